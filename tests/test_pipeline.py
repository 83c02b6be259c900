"""Every verb on real episodes, end to end; a recipe and a benchmark from outside the package; bad
input."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_recipe

from armlet import collect, distil, evaluate, probe, recipes, teach
from armlet import report as report_page
from armlet.__main__ import main
from armlet.data.episodes import EpisodeDataset
from armlet.data.files import BusyError, hold
from armlet.data.frames import load_frames
from armlet.data.opening import EpisodeError
from armlet.data.traces import StaleTraceError, TraceStore
from armlet.data.transforms import GripperNoise
from armlet.evaluation import figures, outcomes
from armlet.evaluation.provenance import gripper_noise
from armlet.options import override
from armlet.policies.checkpoint import load_policy, policy_fingerprint
from armlet.recipe import Recipe, Round, to_json
from armlet.recipes.bases import Imitate
from armlet.rollout.loop import run_task
from armlet.training import practice
from armlet.training import trainer as training
from armlet.training.trainer import make_batches

EXAMPLE = Path(__file__).parent / "outside.py"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    made = tiny_recipe(tmp_path_factory.mktemp("pipeline"))
    for verb in (collect, teach, probe, distil):
        verb.main(made)
    evaluate.main(judged(made))
    return made


def judged(recipe: Recipe) -> Recipe:
    """The recipe in a world whose episodes end before much is decided, and so counted."""
    return dataclasses.replace(
        recipe, benchmark=dataclasses.replace(recipe.benchmark, step_limit=9)
    )


def test_every_verb_leaves_its_result(recipe: Recipe) -> None:
    data = EpisodeDataset(recipe.episodes)
    assert len(data.episodes) >= 6 and {info.info["task"] for info in data.episodes} > {
        "push",
        "rake",
    }
    store = TraceStore(recipe.traces)
    assert len(store) == len(data)
    assert store.columns["semantics"][0] == (4, recipe.probe.semantic_width)
    student = load_policy(
        recipe.student_folder
    )  # hardly trained, its router may say the same of every frame, and be left behind
    assert student.to_json()["type"] == "routed" or 0 < len(student.layers) <= 2


def test_heads_of_another_shape_are_refused_and_left_alone(recipe: Recipe) -> None:
    """By both verbs that read them; the answer says which file, what differs and what to do."""
    other = dataclasses.replace(
        recipe, probe=dataclasses.replace(recipe.probe, queries=recipe.probe.queries + 1)
    )
    heads = recipe.heads_file.read_bytes()
    for verb in (probe, distil):
        with pytest.raises(ValueError, match=r"probe\.queries: 8 → 9(?s:.*)--shared"):
            verb.main(dataclasses.replace(other, out=recipe.out / "other", shared=recipe.out))
    assert recipe.heads_file.read_bytes() == heads


def test_the_report_has_what_a_number_needs(recipe: Recipe) -> None:
    report = json.loads((recipe.out / "evaluation" / "report.json").read_text())
    names = [policy["name"] for policy in report["policies"]]
    assert names == ["teacher", "tiny"]
    for policy in report["policies"]:
        assert policy["episodes"] == 7 and 0 <= policy["ci95"][0] <= policy["ci95"][1] <= 1
        assert {"p50", "p95", "p99"} == policy["latency_ms"]["policy"].keys()
        assert (
            policy["flops"]["total"] > policy["flops"]["backbone"] >= 0
            and policy["peak_memory_mb"] > 0
        )
        assert sum(family["episodes"] for family in policy["by_family"].values()) == 7
    assert {"a", "b", "difference", "ci95", "mcnemar_p", "non_inferior_3pp"} <= report["pairs"][
        0
    ].keys()
    assert {"armlet", "torch", "benchmark", "recipe"} <= report["fingerprint"].keys()
    assert report["fingerprint"]["benchmark"]["renderer"] == "ray"
    for name in ("table.md", "success-latency.png", "touch-500000000.mp4"):
        assert (recipe.out / "evaluation" / name).stat().st_size > 0


def test_a_second_evaluation_runs_nothing_again(
    recipe: Recipe, monkeypatch, no_fresh_process
) -> None:
    from armlet.rollout import pool

    monkeypatch.setattr(
        pool._Evaluate, "__call__", None
    )  # to run an episode for the table would fail
    log = recipe.out / "evaluation" / "episodes.jsonl"
    before = log.read_text()
    log.write_text(before + '{"policy": "cut sho')
    evaluate.main(judged(recipe))
    assert log.read_text() == before


@pytest.mark.parametrize(
    ("verb", "lock"),
    [
        (collect, "episodes/.cache/recording"),
        (distil, "distil"),
        (evaluate, "evaluation/evaluating"),
    ],
    ids=["collect", "distil", "evaluate"],
)
def test_a_folder_in_which_another_process_writes_is_left_alone(
    recipe: Recipe, verb, lock: str
) -> None:

    def everything() -> dict[Path, bytes]:
        return {
            path: path.read_bytes()
            for path in recipe.out.rglob("*")
            if path.is_file() and path.suffix != ".lock"
        }

    before = everything()
    assert {path.suffix for path in before} >= {".json", ".pt", ".safetensors", ".parquet", ".mp4"}
    with (
        hold(recipe.out / f"{lock}.lock", "busy"),
        pytest.raises(BusyError, match="wait for it, or stop it"),
    ):
        verb.main(recipe)
    assert before == everything()


def test_collecting_again_changes_nothing_and_more_is_added(recipe: Recipe) -> None:
    before = EpisodeDataset(recipe.episodes).fingerprint
    collect.main(recipe)
    assert EpisodeDataset(recipe.episodes).fingerprint == before


def test_other_tasks_are_not_collected_into_the_same_folder(recipe: Recipe) -> None:
    fewer = dataclasses.replace(recipe.benchmark, families=("drawer",))
    before = EpisodeDataset(recipe.episodes).fingerprint
    with pytest.raises(EpisodeError, match=r"made otherwise .*tasks.* differ"):
        collect.main(dataclasses.replace(recipe, benchmark=fewer))
    assert EpisodeDataset(recipe.episodes).fingerprint == before


def test_first_k_uses_the_same_traces(recipe: Recipe) -> None:
    short = dataclasses.replace(
        recipes.make("first_k_tabletop").stages[0], steps=3, batch_size=8, compile=False
    )
    changes = {
        "name": "first",
        "out": recipe.out / "first",
        "shared": recipe.out,
        "stages": (short,),
    }
    baseline = dataclasses.replace(
        recipe,
        student=dataclasses.replace(recipes.make("first_k_tabletop").student, layers=2),
        **changes,
    )
    distil.main(baseline)
    assert len(load_policy(baseline.student_folder).layers) == 2


OTHERS = ("aed", "vita")  # with teachers of their own: tests/test_systems.py
TOLD = ("vla_ad_aux", "vla_ad_both", "vla_ad_bc")
STUDENTS = [
    name
    for name in recipes.available()
    if name in TOLD or (name.endswith("_tabletop") and not name.startswith(OTHERS))
]


# Other numbers of these are all that they differ from; `test_recipes_that_are_alike` says so.
ALIKE = {
    "bc_long_tabletop": "bc_tabletop",
    "faithful_low_tabletop": "faithful_tabletop",
    "faithful_high_tabletop": "faithful_tabletop",
}
TRAINED = [
    pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else []) for name in STUDENTS
]


def shape(value: object, place: str = "") -> object:
    """A recipe as JSON without its numbers but 0, and without the names of its files."""
    if isinstance(value, dict):
        named = {"name", "out"} if not place else set()
        return {name: shape(each, name) for name, each in value.items() if name not in named}
    if isinstance(value, list):
        return [shape(each, place) for each in value]
    return bool(value) if isinstance(value, int | float) else value


@pytest.mark.parametrize("name", ALIKE)
def test_recipes_that_are_alike(name: str) -> None:
    mine, other = (to_json(recipes.make(each)) for each in (name, ALIKE[name]))
    assert mine != other and shape(mine) == shape(other)


@pytest.mark.parametrize("name", TRAINED)
def test_every_recipe_trains_a_student_that_acts(recipe: Recipe, tmp_path, name: str) -> None:
    """Every recipe of the package, with its own student and objectives, on the tiny episodes and
    traces."""
    full = recipes.find(name)()
    short = {"steps": 2, "batch_size": 8, "compile": False}
    stages = tuple(dataclasses.replace(stage, **short) for stage in full.stages)
    student = full.student
    if hasattr(student, "layers"):
        student = dataclasses.replace(student, layers=2)
    if hasattr(student, "network"):
        network = dataclasses.replace(student.network, chunk=3, strides={"scene": 16, "wrist": 16})
        student = dataclasses.replace(student, network=network)
    rounds = tuple(
        dataclasses.replace(
            each, stage=dataclasses.replace(each.stage, **short), episodes=3, trial=2, workers=1
        )
        for each in full.rounds
    )
    changes = {"student": student, "stages": stages, "rounds": rounds, "annotator": full.annotator}
    small = dataclasses.replace(
        judged(recipe), name=name, out=tmp_path, shared=recipe.out, **changes
    )
    probe.main(small)  # an annotator's labels; the traces are there
    made = load_policy(distil.main(small))
    task = recipe.benchmark.tasks()[0]
    gates = np.array(run_task(made, recipe.benchmark, task, 3).gates)
    assert gates.shape[1] == len(made.layers) and set(np.unique(gates)) <= {0, 1}


def test_an_on_policy_round_adds_what_the_student_met_and_resumes(
    recipe: Recipe, tmp_path, monkeypatch
) -> None:
    """The states are the student's, the labels and traces the teacher's; a run killed after acting
    ends as one that was not."""
    short = dataclasses.replace(recipe.stages[1], steps=4, checkpoint_every=2)
    rounds = (Round(short, episodes=4, workers=1),) * 2
    teacher = load_policy(recipe.teacher)
    update = training.Trainer._update

    def dies(trainer: training.Trainer) -> dict[str, float]:
        if trainer.folder.name == "distil-2" and trainer.step == 3:
            raise KeyboardInterrupt
        return update(trainer)

    whole, killed = (
        dataclasses.replace(judged(recipe), out=tmp_path / name, shared=recipe.out, rounds=rounds)
        for name in ("whole", "killed")
    )
    monkeypatch.setattr(training.Trainer, "_update", dies)
    with pytest.raises(KeyboardInterrupt):
        distil.main(killed)
    monkeypatch.undo()
    ends = [load_policy(distil.main(each)).state_dict() for each in (whole, killed)]
    assert all((ends[0][name] == ends[1][name]).all() for name in ends[0])
    data = EpisodeDataset(tmp_path / "whole" / "round-0" / "episodes")
    assert len(data.episodes) == 4
    later = EpisodeDataset(tmp_path / "whole" / "round-1" / "episodes")
    assert not {each.info["seed"] for each in data.episodes} & {
        each.info["seed"] for each in later.episodes
    }
    store = TraceStore(tmp_path / "whole" / "round-0" / "traces")
    assert len(store) == len(data)
    made_from = store.header.identity
    assert made_from["teacher"] == policy_fingerprint(recipe.teacher)
    assert made_from["data"] == data.fingerprint
    frames = load_frames(data)
    # What was recorded as the action is the first of the chunk that the teacher answers there, but
    # for the video's loss.
    answers = store.read(store.keys, want=["actions"])["actions"][:, 0].float().numpy()
    assert np.abs(answers - make_batches(teacher, frames)._actions).mean() < 0.05
    assert np.abs(frames.executed - frames.actions).mean() > 0.01, "the student did something else"


@pytest.mark.parametrize(("successes", "promoted"), [((2, 1), False), ((2, 2), True)])
def test_a_round_that_makes_a_student_worse_is_undone(
    recipe: Recipe, tmp_path, monkeypatch, successes, promoted
) -> None:
    short = dataclasses.replace(recipe.stages[1], steps=2)
    rounds = (Round(short, episodes=2, workers=1, replay=5, trial=2, split="unseen_objects"),)
    tried = dataclasses.replace(judged(recipe), out=tmp_path, shared=recipe.out, rounds=rounds)
    monkeypatch.setattr(practice, "_successes", lambda *_: list(successes))
    made = load_policy(distil.main(tried))
    verdict = json.loads((tmp_path / "round-0" / "trial.json").read_text())
    assert verdict.pop("made_from").keys() == {"episodes", "seed", "split", "student"}
    assert verdict == {
        "episodes": 2,
        "split": "unseen_objects",
        "before": 2,
        "after": successes[1],
        "promoted": promoted,
    }
    before, after = (load_policy(tmp_path / "round-0" / name) for name in ("student", "candidate"))
    kept, other = (after, before) if promoted else (before, after)
    same = [
        all(
            bool((made.state_dict()[name] == value).all())
            for name, value in each.state_dict().items()
        )
        for each in (kept, other)
    ]
    assert same == [True, False] and made.to_json() == kept.to_json()
    monkeypatch.undo()
    again = load_policy(
        distil.main(tried)
    )  # resumed, it reads the verdict and does not run the trial
    assert all(
        bool((again.state_dict()[name] == value).all()) for name, value in made.state_dict().items()
    )


def test_a_dial_is_evaluated_at_every_budget(recipe: Recipe, tmp_path, no_fresh_process) -> None:
    full = recipes.find("dial_tabletop")()
    stages = tuple(
        dataclasses.replace(stage, steps=2, batch_size=8, compile=False) for stage in full.stages
    )
    evaluation = dataclasses.replace(recipe.evaluation, budgets=(0.25, 1.0))
    dial = dataclasses.replace(
        judged(recipe),
        name="dial",
        out=tmp_path,
        shared=recipe.out,
        student=full.student,
        stages=stages,
        evaluation=evaluation,
    )
    distil.main(dial)
    report = json.loads(evaluate.main(dial).read_text())
    shares = {
        policy["budget"]: policy["flops"]["backbone"] / report["policies"][0]["flops"]["backbone"]
        for policy in report["policies"]
    }
    assert [policy["name"] for policy in report["policies"]] == [
        "teacher",
        "dial",
        "dial at 0.25",
        "dial at 1",
    ]
    assert shares[0.25] < 0.8 and shares[1.0] == pytest.approx(
        1, abs=0.1
    )  # hardly trained: all its logits are alike
    assert report["rollouts"][0]["policies"][2]["gates"] and list(report["training"]) == ["dial"]
    assert (tmp_path / "evaluation" / "success-budget.png").stat().st_size > 0
    with pytest.raises(ValueError, match="no policy of this report was run at a budget"):
        figures.success_against_budget({"policies": report["policies"][:2]}, tmp_path / "none.png")
    page = report_page.main((tmp_path / "evaluation",))
    assert "One student, any budget" in page.read_text()


def test_students_of_flipped_labels_are_drawn_against_their_share(
    recipe: Recipe, tmp_path, no_fresh_process
) -> None:
    made = []
    for noise in (0.0, 0.25):
        transforms = (*recipe.stages[0].transforms, GripperNoise(noise))
        stages = (dataclasses.replace(recipe.stages[0], steps=2, transforms=transforms),)
        folder = tmp_path / f"student@{noise:g}"
        made.append(
            distil.main(
                dataclasses.replace(
                    recipe, name=folder.name, out=folder, shared=recipe.out, stages=stages
                )
            )
        )
    compared = dataclasses.replace(
        judged(recipe), out=tmp_path, shared=recipe.out, policies=tuple(made)
    )
    report = json.loads(evaluate.main(compared).read_text())
    assert [(policy["name"], policy["gripper_noise"]) for policy in report["policies"][1:]] == [
        ("student@0", 0),
        ("student@0.25", 0.25),
    ]
    assert (tmp_path / "evaluation" / "success-noise.png").stat().st_size > 0
    assert not (recipe.out / "evaluation" / "success-noise.png").exists()
    low, high = report["policies"][1]["gripper_toggles"]["per_100_steps_ci95"]
    assert low <= report["policies"][1]["gripper_toggles"]["per_100_steps"] <= high


@pytest.mark.parametrize(
    ("provenance", "noise"),
    [
        ({}, None),
        ({"recipe": {"stages": [], "rounds": []}}, None),
        ({"recipe": {"stages": [{}]}}, 0),  # from before there was such a field
        (
            {"recipe": {"stages": [{"gripper_noise": 0.1}, {"gripper_noise": 0.2}], "rounds": []}},
            0.2,
        ),
        (
            {
                "recipe": {
                    "stages": [{"transforms": [{"class": "Balance", "power": 1}]}],
                    "rounds": [
                        {"stage": {"transforms": [{"class": "GripperNoise", "share": 0.3}]}}
                    ],
                }
            },
            0.3,
        ),
        (
            {
                "recipe": {
                    "stages": [{"gripper_noise": 0.1}],
                    "rounds": [{"stage": {"gripper_noise": 0.4}}],
                }
            },
            0.4,
        ),
    ],
)
def test_what_a_policy_says_of_flipped_labels(provenance: dict, noise: float | None) -> None:
    assert gripper_noise(provenance) == noise


def test_a_stale_store_is_refused(recipe: Recipe, tmp_path) -> None:
    other = dataclasses.replace(recipe, teacher=tmp_path / "teacher", seed=9)
    other = dataclasses.replace(other, out=tmp_path, shared=recipe.out)
    teach.main(dataclasses.replace(other, teach=dataclasses.replace(recipe.teach, steps=1)))
    with pytest.raises(ValueError, match=r"the teacher: .* → "):
        distil.main(other)
    unread = dataclasses.replace(other, stages=(dataclasses.replace(recipe.stages[1]),), probe=None)
    with pytest.raises(
        StaleTraceError, match="the teacher changed"
    ):  # no heads are read, and the traces are another teacher's
        distil.main(unread)


def test_traces_in_bfloat16_are_nearly_the_same_and_are_not_taken_for_them(
    recipe: Recipe, tmp_path, monkeypatch
) -> None:
    # Also where the processor has none, and would compute in single precision.
    monkeypatch.setattr("armlet.training.learner.multiplies_bf16", lambda device: True)
    plain = dataclasses.replace(recipe, probe=None, stages=(), out=tmp_path / "fp32")
    rough = dataclasses.replace(plain, trace_precision="bf16", out=tmp_path / "bf16")
    exact, rounded = (TraceStore(probe.main(each)) for each in (plain, rough))
    assert (exact.keys == rounded.keys).all()
    for name, values in exact.read(exact.keys).items():
        error = (rounded.read(exact.keys)[name].float() - values.float()).abs()
        assert 0 < error.max() < 0.1, name
    with pytest.raises(StaleTraceError):
        probe.main(dataclasses.replace(rough, out=plain.out))


def test_an_impossible_recipe_is_refused(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match=r"needs \['layer_actions', 'semantics'\]"):
        dataclasses.replace(recipe, probe=None)
    with pytest.raises(ValueError, match="did you mean 'actdistill_tabletop'"):
        recipes.find("actdistil_tabletop")


def armlet(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "armlet", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )


def test_the_command_line_explains_itself() -> None:
    helped = armlet("--help")
    assert helped.returncode == 0
    assert all(
        verb in helped.stdout
        for verb in ("collect", "teach", "probe", "distil", "evaluate", "actdistill_tabletop")
    )
    wrong = armlet("distil", "actdistill_tabletop", "--student.hiden", "3")
    assert (
        wrong.returncode == 1
        and wrong.stderr.count("\n") == 1
        and "--student.hiden" in wrong.stderr
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("distill", "tabletop"), "no verb 'distill'"),
        (("distil",), "name a recipe"),
        (("distil", "actdistil_tabletop"), "did you mean 'actdistill_tabletop'"),
        (("distil", "actdistill_tabletop", "--student.hiden", "3"), "no option --student.hiden; did you mean --student.hidden?"),
        (("teach", "tabletop", "--teach.batch-size", "x"), "--teach.batch-size: invalid literal for int"),
        (("teach", "tabletop", "--teach.batch-size", "0"), "Stage.batch_size is 0, expected at least 1"),
        (("probe", "actdistill_tabletop", "--episodes", "{here}"), "meta/info.json is missing"),
        (("teach", "nowhere:mine"), "there is no module 'nowhere', neither installed nor in"),
        (("teach", ":mine"), "':mine' names no module"),
        (("teach", "mine:reachin"), "in mine there is no function 'reachin'; did you mean mine:reaching? it has"),
        (("teach", "mine:COLOURS"), "'COLOURS' is a dict, no function"),
        (("teach", "mine:DotWorld"), "TypeError"),
        (("teach", "mine:ActionSpec"), "TypeError"),
        (("teach", "mine:Dots"), "mine:Dots gave a Dots, expected a function without arguments that returns an armlet Recipe"),
        (("report", "nowhere"), "nowhere"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(
    arguments: tuple[str, ...], said: str, tmp_path, monkeypatch, capsys
) -> None:
    (tmp_path / "mine.py").write_text(EXAMPLE.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(
        sys, "argv", ["armlet", *(argument.format(here=tmp_path) for argument in arguments)]
    )
    with pytest.raises(SystemExit) as left:
        main()
    assert (
        isinstance(left.value.code, str) and said in left.value.code and "\n" not in left.value.code
    )
    assert capsys.readouterr().err == ""


def test_help_is_quick_and_loads_no_torch() -> None:
    script = (
        "import sys; from armlet.__main__ import usage; usage(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_recipe_and_a_benchmark_from_outside_are_one_file(tmp_path, monkeypatch) -> None:
    (tmp_path / "mine.py").write_text(EXAMPLE.read_text())
    options = ("mine:reaching", "--out", str(tmp_path / "out"))
    # In a process of its own, which starts others: they find the file as well.
    answer = armlet("collect", *options, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr[-2000:]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    for verb in ("teach", "probe", "distil", "evaluate"):
        monkeypatch.setattr(sys, "argv", ["armlet", verb, *options])
        main()
    report = json.loads((tmp_path / "out/evaluation/report.json").read_text())
    assert report["fingerprint"]["benchmark"] == {"benchmark": "dots"}
    assert [policy["name"] for policy in report["policies"]] == ["teacher", "reaching"]


def test_facts_that_the_episodes_lack_are_named_with_what_to_do(recipe: Recipe, tmp_path) -> None:
    stage = dataclasses.replace(recipe.stages[0], objective=Imitate(facts=("nobody",)))
    lacking = dataclasses.replace(recipe, stages=(stage,), out=tmp_path, shared=recipe.out)
    with pytest.raises(
        ValueError, match=r"guess nobody, facts of a simulator .*`--stages\.0\.objective\.facts`"
    ):
        distil.main(lacking)
    teaching = dataclasses.replace(recipe.teach, objective=Imitate(facts=("subject", "nobody")))
    with pytest.raises(
        ValueError, match=r"guess nobody, facts of a simulator .*`--teach\.objective\.facts`"
    ):
        teach.main(
            dataclasses.replace(recipe, teach=teaching, teacher=tmp_path / "teacher", out=tmp_path)
        )
    assert override(recipe, ["--teach.objective.facts"], "armlet teach").teach.objective.facts == ()


def test_a_report_is_recomputed_from_the_outcomes_beside_it(recipe: Recipe) -> None:
    folder = recipe.out / "evaluation"
    report = json.loads((folder / "report.json").read_text())
    found = outcomes.read(folder / report["outcomes"]["file"], sha256=report["outcomes"]["sha256"])
    sections = json.loads(json.dumps(outcomes.recompute(found)))
    for row, shown in zip(sections.pop("policies"), report["policies"], strict=True):
        del shown["routing"]["layers"]
        shown["routing"].pop("changes_with", None)
        assert {name: shown[name] for name in row} == row
    assert {name: report[name] for name in sections} == sections
    assert report["version"] == 4
