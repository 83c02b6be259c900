"""Every policy in every runtime that is asked for: what is exported and when again, what stands in the
report for one that was refused, and whom speed is measured against."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from outside import Dots, reaching
from test_evaluate import dots_policy

from armlet import evaluate, recompute, report
from armlet.evaluation import measure, runtimes, speeds
from armlet.evaluation.provenance import seeds_of
from armlet.lineage import PROVENANCE
from armlet.policies import acting, checkpoint
from armlet.policies.checkpoint import save_policy
from armlet.recipe import Evaluation, Recipe
from armlet.robot.exported import FILE
from armlet.robot.observation import Observation
from armlet.rollout.pool import Contender

WHY = "parity: the largest difference is 0.31 of the range,\n at 97 of 100 frames"
# Milliseconds a decision: what `measure.latency` is made to find.
TIMES = {
    "teacher": 6.0,
    "teacher-1": 3.0,
    "teacher onnx": 2.5,
    "teacher-1 onnx": 1.0,
    "teacher onnx_int8": 2.0,
    "teacher execute 4": 6.0,
    "teacher-1 execute 4": 3.0,
    "teacher execute 4 onnx": 2.5,
    "teacher-1 execute 4 onnx": 1.0,
    "teacher execute 4 onnx_int8": 2.0,
}


@pytest.fixture
def teachers(tmp_path) -> list[Path]:
    return two_policies(tmp_path / "made")


def two_policies(folder: Path) -> list[Path]:
    for seed in (0, 1):
        save_policy(dots_policy(seed), folder / f"teacher-{seed}")
    return [folder / "teacher-0", folder / "teacher-1"]


@pytest.fixture
def recipe(teachers, tmp_path) -> Recipe:
    return recipe_of(teachers, tmp_path / "out")


def recipe_of(teachers: list[Path], out: Path) -> Recipe:
    setting = Evaluation(
        episodes=4,
        workers=1,
        latency_calls=4,
        videos=1,
        runtimes=("eager", "onnx", "onnx_int8"),
    )
    return dataclasses.replace(
        reaching(),
        teacher=teachers[0],
        policies=(teachers[1],),
        out=out,
        evaluation=setting,
    )


@dataclasses.dataclass
class Exporter:
    """An exporter that copies the policy; it refuses what stands in `refuses`."""

    refuses: dict[str, str]
    calls: list[str] = dataclasses.field(default_factory=list)
    frames: list[Sequence[Observation]] = dataclasses.field(default_factory=list)
    dies: bool = False

    def __call__(self, place, out, runtime, budgets, frames, **where) -> str | None:
        called = f"{place.name} {runtime}"
        self.calls.append(called)
        self.frames.append(frames)
        if called in self.refuses:
            return self.refuses[called]
        shutil.copytree(place, out)
        library, _, precision = runtime.partition("_")
        said = {"version": 1, "runtime": library, "precision": precision or "fp32"}
        (out / FILE).write_text(json.dumps(said))
        if self.dies:
            raise KeyboardInterrupt
        return None


@pytest.fixture
def exporter(monkeypatch) -> Exporter:
    return replaced(monkeypatch)[0]


@pytest.fixture
def timed(monkeypatch, exporter) -> None:
    """With no true times, and quickly."""


def replaced(monkeypatch) -> tuple[Exporter, list[list[str]]]:
    """An exporter in the place of armlet's, and which policies are timed together."""
    exporter = Exporter({"teacher-1 onnx_int8": WHY})
    monkeypatch.setattr(evaluate, "export_one", exporter)
    # A copy of a policy is one for torch, whatever lies beside its weights.
    monkeypatch.setattr(acting, "exported_folder", lambda place: None)
    monkeypatch.setattr(checkpoint, "is_exported", lambda folder: False)
    together: list[list[str]] = []

    def latency(policies, observations, *, calls):
        together.append(list(policies))
        found = {}
        for name in policies:
            found[name] = dict.fromkeys(("p50", "p95", "p99"), TIMES[name])
        return found

    monkeypatch.setattr(measure, "latency", latency)
    monkeypatch.setattr(measure, "peak_memory_mb", lambda *asked: 1.0)
    return exporter, together


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> tuple[Path, Exporter, list[list[str]]]:
    """A report of two policies, two numbers of actions a look and three runtimes."""
    folder = tmp_path_factory.mktemp("evaluated")
    recipe = recipe_of(two_policies(folder / "made"), folder / "out")
    setting = dataclasses.replace(recipe.evaluation, execute=(4,))
    with pytest.MonkeyPatch.context() as patch:
        exporter, together = replaced(patch)
        path = evaluate.main(dataclasses.replace(recipe, evaluation=setting))
    return path, exporter, together


def test_every_policy_is_run_and_timed_in_every_runtime(evaluated) -> None:
    path, exporter, timed = evaluated
    found = json.loads(path.read_text())
    rows = {row["name"]: row for row in found["policies"]}
    # Eager first, then runtime by runtime, the teacher first in each; all are timed in one run.
    names = [
        "teacher",
        "teacher-1",
        "teacher execute 4",
        "teacher-1 execute 4",
        "teacher onnx",
        "teacher execute 4 onnx",
        "teacher-1 onnx",
        "teacher-1 execute 4 onnx",
        "teacher onnx_int8",
        "teacher execute 4 onnx_int8",
    ]
    assert list(rows) == names and timed == [names]
    own = rows["teacher execute 4 onnx_int8"]
    assert own["policy"] == "teacher" and own["exported_from"] == "teacher execute 4"
    assert (own["runtime"], own["precision"], own["execute"]) == ("onnx", "int8", 4)
    assert rows["teacher-1"]["runtime"] == "eager" and rows["teacher-1"]["precision"] == "fp32"
    # Once a policy and runtime, however often it is run there.
    assert exporter.calls == [
        "teacher-0 onnx",
        "teacher-1 onnx",
        "teacher-0 onnx_int8",
        "teacher-1 onnx_int8",
    ]
    # What is exported multiplies what it was exported from does.
    for name in ("flops", "params", "keep_ratio"):
        assert rows["teacher-1 onnx"][name] == rows["teacher-1"][name] is not None
    filmed = [policy["name"] for policy in found["rollouts"][0]["policies"]]
    assert filmed == names[:4], "an exported policy does the same"


def test_the_teacher_alone_is_run_in_its_own_runtimes(teachers, tmp_path, monkeypatch) -> None:
    exporter, timed = replaced(monkeypatch)
    recipe = recipe_of(teachers, tmp_path / "out")
    setting = dataclasses.replace(
        recipe.evaluation,
        runtimes=("eager", "onnx"),
        teacher_runtimes=("onnx_int8",),
        execute=(4,),
        videos=0,
    )
    path = evaluate.main(dataclasses.replace(recipe, evaluation=setting))
    rows = [row["name"] for row in json.loads(path.read_text())["policies"]]
    assert [name for name in rows if name.endswith("int8")] == [
        "teacher onnx_int8",
        "teacher execute 4 onnx_int8",
    ]
    assert exporter.calls == ["teacher-0 onnx", "teacher-1 onnx", "teacher-0 onnx_int8"]
    assert timed == [rows]
    twice = dataclasses.replace(setting, teacher_runtimes=("onnx",))
    with pytest.raises(ValueError, match="teacher-runtimes onnx has no effect"):
        evaluate.main(dataclasses.replace(recipe, evaluation=twice))


def test_speed_is_against_the_teacher_in_the_same_runtime_too(evaluated, tmp_path) -> None:
    path = Path(shutil.copytree(evaluated[0].parent, tmp_path / "copy")) / "report.json"
    found = json.loads(path.read_text())
    rows = {row["name"]: row for row in found["policies"]}
    student = rows["teacher-1 onnx"]["speed"]
    assert student["teacher"] == pytest.approx(6.0 / 1.0)
    assert student["teacher_in_runtime"] == pytest.approx(2.5 / 1.0)
    moved = rows["teacher"]["decisions_per_second"] / rows["teacher-1 onnx"]["decisions_per_second"]
    assert student["motion"] == pytest.approx(6.0 * moved)
    beside = rows["teacher onnx"]["decisions_per_second"]
    moved = beside / rows["teacher-1 onnx"]["decisions_per_second"]
    assert student["motion_in_runtime"] == pytest.approx(2.5 * moved)
    # With another `execute`, too, it is the teacher as it was made that is the measure.
    longer = rows["teacher execute 4 onnx"]
    moved = beside / longer["decisions_per_second"]
    assert longer["speed"]["motion_in_runtime"] == pytest.approx(
        moved * TIMES["teacher onnx"] / TIMES["teacher execute 4 onnx"]
    )
    assert rows["teacher onnx_int8"]["speed"]["teacher_in_runtime"] == 1
    table = path.with_name("table.md").read_text()
    [line] = [line for line in table.splitlines() if line.startswith("| teacher-1 onnx | onnx |")]
    assert "| 1.00 | 2.50× | 6.00× |" in line
    assert recompute.check(path).differences == []
    found["policies"][6]["speed"]["teacher_in_runtime"] = 6.0  # the eager teacher's, passed off
    path.write_text(json.dumps(found))
    [differs] = recompute.check(path).differences
    assert differs.where == "teacher-1 onnx, speed.teacher_in_runtime"


def test_non_inferiority_is_stated_in_the_runtime_and_against_the_eager_teacher(
    evaluated,
) -> None:
    path = evaluated[0]
    found = json.loads(path.read_text())
    everyone = {(pair["a"], pair["b"]) for pair in found["pairs"]}
    assert {("teacher-1 onnx", "teacher onnx"), ("teacher-1 onnx", "teacher")} <= everyone
    told = [(pair["a"], pair["b"]) for pair in speeds.told(found["policies"], found["pairs"])]
    # Everybody against the eager teacher, and what was exported against two more.
    assert [pair for pair in told if pair[0] == "teacher-1 onnx"] == [
        ("teacher-1 onnx", "teacher"),
        ("teacher-1 onnx", "teacher-1"),
        ("teacher-1 onnx", "teacher onnx"),
    ]
    assert [pair for pair in told if pair[0] == "teacher execute 4 onnx"] == [
        ("teacher execute 4 onnx", "teacher"),
        ("teacher execute 4 onnx", "teacher execute 4"),
        ("teacher execute 4 onnx", "teacher onnx"),
    ]
    assert len([pair for pair in told if pair[1] == "teacher"]) == 9
    table = path.with_name("table.md").read_text()
    assert "- teacher-1 onnx − teacher onnx: " in table
    assert "teacher onnx_int8 − teacher onnx" not in table, "another runtime's, and no comparison"


def test_what_a_gate_refuses_is_a_row_that_says_why(evaluated, tmp_path) -> None:
    path = evaluated[0]
    found = report.read(path)
    refused, again = found["refused"]
    assert again["name"] == "teacher-1 execute 4 onnx_int8"
    assert refused == {
        "name": "teacher-1 onnx_int8",
        "policy": "teacher-1",
        "runtime": "onnx",
        "precision": "int8",
        "why": WHY,
    }
    line = "- teacher-1 onnx_int8 was not run: " + " ".join(WHY.split())
    table = path.with_name("table.md").read_text().splitlines()
    (head,) = [row for row in table if row.startswith("| policy | runtime |")]
    others = head.count("|") - 4
    assert "| teacher-1 onnx_int8 | onnx int8 | not run: see below |" + " – |" * others in table
    assert line in table
    assert line.removeprefix("- ") in report.main((path,), out=tmp_path / "page.html").read_text()


def test_an_export_is_used_again_only_for_what_it_was_made_from(
    recipe, exporter, timed, teachers
) -> None:
    evaluate.main(recipe)
    first = list(exporter.calls)
    assert len({id(frames) for frames in exporter.frames}) == 1, "made once for all"
    evaluate.main(recipe)
    assert exporter.calls == first, "neither exported nor refused again"
    save_policy(dots_policy(7), teachers[1])
    evaluate.main(recipe)
    assert exporter.calls[len(first) :] == ["teacher-1 onnx", "teacher-1 onnx_int8"]
    for frames in exporter.frames:
        assert len(frames) >= runtimes.FRAMES
        assert {seen.instruction for seen in frames} == {"go to the red dot", "go to the blue dot"}


@pytest.mark.parametrize("dies", ["in an export", "after it"])
def test_a_killed_export_is_made_again(recipe, exporter, timed, dies) -> None:
    exporter.dies = dies == "in an export"
    if exporter.dies:
        with pytest.raises(KeyboardInterrupt):
            evaluate.main(recipe)
    else:
        evaluate.main(recipe)
        beside = recipe.out / "evaluation" / "exported" / "teacher-onnx.json"
        beside.write_text(beside.read_text().replace('"exported"', '"begun"'))
    exporter.dies = False
    before = len(exporter.calls)
    evaluate.main(recipe)
    assert exporter.calls[before] == "teacher-0 onnx"
    assert not (recipe.out / "evaluation" / "exported" / "teacher-onnx.part").exists()


def test_a_folder_that_no_evaluation_made_is_left(recipe, exporter, timed) -> None:
    theirs = recipe.out / "evaluation" / "exported" / "teacher-onnx"
    theirs.mkdir(parents=True)
    (theirs / "mine.txt").write_text("mine")
    with pytest.raises(
        ValueError, match=r"teacher-onnx is there, and teacher-onnx\.json beside it"
    ):
        evaluate.main(recipe)
    assert (theirs / "mine.txt").read_text() == "mine" and not exporter.calls


def test_runtimes_from_which_no_table_comes_are_errors(recipe, exporter) -> None:
    for named, message in (
        ((), "runtimes is empty"),
        (("eager", "onnx", "onnx"), "runtimes says a value twice: eager onnx onnx"),
    ):
        setting = dataclasses.replace(recipe.evaluation, runtimes=named)
        with pytest.raises(ValueError, match=message):
            evaluate.main(dataclasses.replace(recipe, evaluation=setting))
    of_eager = dataclasses.replace(recipe.evaluation, runtimes=("onnx",), listens=2)
    with pytest.raises(ValueError, match=r"listens is about policies in eager, .* leaves it out"):
        evaluate.main(dataclasses.replace(recipe, evaluation=of_eager))
    anyway = dataclasses.replace(recipe.evaluation, runtimes=("onnx",), teacher_runtimes=("eager",))
    with pytest.raises(ValueError, match="teacher-runtimes eager has no effect"):
        evaluate.main(dataclasses.replace(recipe, evaluation=anyway))
    assert not exporter.calls


def test_without_eager_students_are_run_only_where_they_were_exported_to(
    recipe, monkeypatch, evaluated
) -> None:
    _, timed = replaced(monkeypatch)
    setting = dataclasses.replace(
        recipe.evaluation, runtimes=("onnx", "onnx_int8"), execute=(4,), teacher_runtimes=()
    )
    path = evaluate.main(dataclasses.replace(recipe, evaluation=setting))
    found = json.loads(path.read_text())
    rows = {row["name"]: row for row in found["policies"]}
    both = {row["name"]: row for row in json.loads(evaluated[0].read_text())["policies"]}
    # The table of all runtimes, but for the student's rows in eager.
    in_eager = ["teacher-1", "teacher-1 execute 4"]
    assert list(rows) == [name for name in both if name not in in_eager]
    assert timed == [list(rows)]
    for name, row in rows.items():
        said = both[name]
        for key in ("policy", "exported_from", "successes", "layers", "flops", "params", "routing"):
            assert row.get(key) == said.get(key), (name, key)
        assert row["speed"] == said["speed"]
    filmed = [policy["name"] for policy in found["rollouts"][0]["policies"]]
    assert filmed == ["teacher", "teacher execute 4", "teacher-1 onnx", "teacher-1 execute 4 onnx"]
    assert set(found["fingerprint"]["evaluated"]) == {*rows, *in_eager}, "how it was made"
    assert recompute.check(path).differences == []
    assert "teacher-1 onnx" in report.main((path,)).read_text()


def test_without_eager_whoever_is_not_exported_is_run_as_it_is(recipe, monkeypatch) -> None:
    exporter, _ = replaced(monkeypatch)
    setting = dataclasses.replace(recipe.evaluation, runtimes=("onnx_int8",))
    assert "teacher-1 onnx_int8" in exporter.refuses
    found = json.loads(evaluate.main(dataclasses.replace(recipe, evaluation=setting)).read_text())
    assert [row["name"] for row in found["policies"]] == [
        "teacher",
        "teacher-1",
        "teacher onnx_int8",
    ]
    assert [row["name"] for row in found["refused"]] == ["teacher-1 onnx_int8"]


def test_a_policy_behind_a_socket_is_exported_to_nothing(tmp_path) -> None:
    field = {"teacher": Contender(Path("ws://127.0.0.1:1/"))}
    how = runtimes.Exporting(Exporter({}), tmp_path, list, {}, "test")
    found, [refused] = runtimes.exported_contenders(field, ("eager", "onnx"), how)
    assert not found and "behind a socket" in refused.why


def test_budgets_are_exported_together(teachers, tmp_path, monkeypatch) -> None:
    """A folder for all budgets that a policy is run at, which share what they can."""
    asked = []

    def export(place, out, runtime, budgets, frames) -> None:
        asked.append(budgets)
        out.mkdir()
        (out / FILE).write_text("{}")

    field = {"a": Contender(teachers[0])}
    for budget in (0.5, 1.0):
        field[f"a at {budget:g}"] = Contender(teachers[0], budget)
    how = runtimes.Exporting(export, tmp_path / "exported", list, {}, "test")
    found, _ = runtimes.exported_contenders(field, ("eager", "onnx"), how)
    assert asked == [(0.5, 1.0)]
    assert found["a at 0.5 onnx"].budget == 0.5 and found["a onnx"].budget is None
    assert len({contender.folder for contender in found.values()}) == 1


def row(name: str, policy: str, runtime: str, precision: str, milliseconds: float) -> dict:
    times = {"policy": {"p50": milliseconds}}
    return {
        "name": name,
        "policy": policy,
        "runtime": runtime,
        "precision": precision,
        "exported_from": None,
        "latency_ms": times,
        "ms_per_second_of_motion": None,
    }


def test_without_the_teacher_in_a_runtime_nothing_is_said_against_it() -> None:
    """Where its export was refused, another policy of that runtime is no teacher."""
    rows = [
        row("teacher", "teacher", "eager", "fp32", 6.0),
        row("student onnx_int8", "student", "onnx", "int8", 1.0),
        row("teacher onnx", "teacher", "onnx", "fp32", 3.0),
    ]
    assert speeds.against_teacher_in_runtime(rows[1], rows) is None
    assert speeds.against_teacher(rows[1], rows) == 6
    assert speeds.motion_against_teacher(rows[1], rows) is None


def test_an_eager_teacher_of_another_precision_is_eager_still() -> None:
    rows = [
        row("teacher", "teacher", "eager", "bf16", 6.0),
        row("student", "student", "eager", "fp32", 2.0),
    ]
    assert speeds.against_teacher_in_runtime(rows[1], rows) == 3
    assert not speeds.several_runtimes(rows)


def test_seeds_are_taken_together_runtime_by_runtime() -> None:
    field = {}
    made = {}
    for runtime in ("eager", "onnx"):
        for seed in (0, 1):
            name = f"x-{seed}" if runtime == "eager" else f"x-{seed} {runtime}"
            field[name] = Contender(Path(f"{name}"), runtime=runtime)
            made[name] = {PROVENANCE: {"data": "d", "seed": seed}}
    assert seeds_of(field, made) == {
        "x-0": "x",
        "x-1": "x",
        "x-0 onnx": "x onnx",
        "x-1 onnx": "x onnx",
    }


def test_moments_to_compare_at_are_of_every_task_of_every_split(monkeypatch) -> None:
    frames = runtimes.frames_of_world(dots_policy(0), Dots(), ("seen",), 5)
    assert len(frames) >= runtimes.FRAMES
    assert {seen.instruction for seen in frames} == {"go to the red dot", "go to the blue dot"}
    monkeypatch.setattr(runtimes, "MOST", len(frames) // 3)
    fewer = runtimes.frames_of_world(dots_policy(0), Dots(), ("seen",), 5)
    assert len(frames) // 5 <= len(fewer) <= len(frames) // 2
    assert {seen.instruction for seen in fewer} == {"go to the red dot", "go to the blue dot"}


@pytest.mark.slow
def test_what_armlet_exports_is_run_timed_and_recomputed(teachers, tmp_path, own_memory) -> None:
    """Nothing replaced: two runtimes, in closed loop, on a policy of a few weights."""
    recipe = recipe_of(teachers, tmp_path / "out")
    setting = dataclasses.replace(recipe.evaluation, runtimes=("eager", "onnx", "openvino"))
    path = evaluate.main(dataclasses.replace(recipe, policies=(), evaluation=setting))
    found = json.loads(path.read_text())
    rows = {row["name"]: row for row in found["policies"]}
    assert list(rows) == ["teacher", "teacher onnx", "teacher openvino"]
    assert found["refused"] == [] and recompute.check(path).differences == []
    assert len({row["fingerprint"] for row in rows.values()}) == 3
    for name in ("teacher onnx", "teacher openvino"):
        own = rows[name]
        # The same route is run, by the same numbers; without torch in half of the memory.
        assert own["routing"]["activation"] == rows["teacher"]["routing"]["activation"]
        assert own["keep_ratio"] == rows["teacher"]["keep_ratio"] == 1
        assert own["successes"] == rows["teacher"]["successes"]
        assert own["latency_ms"]["device"] == "cpu"
        assert own["peak_memory_mb"] < rows["teacher"]["peak_memory_mb"] / 1.5
        about = found["fingerprint"]["evaluated"][name]
        assert about["exported"]["policy"]["fingerprint"] == rows["teacher"]["fingerprint"]
        assert about["exported"]["gates"]["each"][0]["parity"]["frames"] >= runtimes.FRAMES
