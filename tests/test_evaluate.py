"""What an evaluation runs again and what it does not, who takes part, what a report says of where
it comes from; and settings that
contradict each other."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from outside import Dots, reaching

from armlet import evaluate, source
from armlet.data.lines import read_lines
from armlet.data.pictures import Pictures
from armlet.data.text import train_tokenizer
from armlet.evaluation import episodes, measure, outcomes, report
from armlet.evaluation.episodes import conditions
from armlet.evaluation.settings import contenders, planned
from armlet.policies.checkpoint import load_policy, save_policy
from armlet.policies.contract import Body
from armlet.policies.vla import VLANetwork
from armlet.recipe import Evaluation, Recipe
from armlet.robot.bounds import Bounds
from armlet.robot.normalise import Normaliser
from armlet.rollout.loop import Episode, plan, run_task
from armlet.rollout.pool import Attempt, Contender, run_all


def dots_policy(seed: int):
    torch.manual_seed(seed)
    one = Normaliser(np.zeros(1, np.float32), np.ones(1, np.float32))
    tokenizer = train_tokenizer(["go to the red dot", "go to the blue dot"])
    network = VLANetwork(width=32, depth=2, heads=2, chunk=4, vision_channels=8)
    return network.build(Body(Dots().action_spec, one, one, tokenizer), {"eye": 32}).eval()


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> list[Path]:
    """Two policies for the dots, of one shape and different weights."""
    folder = tmp_path_factory.mktemp("teachers")
    for seed in (0, 1):
        save_policy(
            dots_policy(seed),
            folder / f"teacher-{seed}",
            provenance={"recipe": {"name": f"made {seed}"}},
        )
    return [folder / "teacher-0", folder / "teacher-1"]


@pytest.fixture
def recipe(teachers, tmp_path) -> Recipe:
    setting = Evaluation(episodes=4, workers=1, latency_calls=4, videos=0)
    return dataclasses.replace(reaching(), teacher=teachers[0], out=tmp_path, evaluation=setting)


def run_episodes(recipe: Recipe, field: dict[str, Contender], out: Path) -> dict:
    benchmark, setting = recipe.benchmark, recipe.evaluation
    return episodes.run_episodes(field, benchmark, planned(benchmark, setting), out, title="test")


# --- what is run again
# --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class LongDots(Dots):
    """The same, with a setting that changes results."""

    limit: int = 12

    def fingerprint(self) -> dict:
        return {"benchmark": "dots", "limit": self.limit}


@pytest.fixture
def ran(monkeypatch) -> list[tuple[str, str, int]]:
    """What is really run, as (name, task, seed); an episode succeeds where its seed is even."""
    jobs: list[tuple[str, str, int]] = []

    def run_all(field, benchmark, attempts, **settings):
        for each in attempts:
            jobs.append((each.name, each.task.name, each.seed))
            yield each, Episode(each.seed % 2 == 0, np.zeros((7, 1)), 0, None, ((1, 1),))

    monkeypatch.setattr(episodes, "run_all", run_all)
    return jobs


CHANGES = {
    "the weights": lambda recipe, field, teachers: (
        recipe,
        {"p": dataclasses.replace(field["p"], folder=teachers[1])},
    ),
    "the budget": lambda recipe, field, _: (
        recipe,
        {"p": dataclasses.replace(field["p"], budget=0.5)},
    ),
    "how many actions are carried out": lambda recipe, field, _: (
        recipe,
        {"p": dataclasses.replace(field["p"], execute=3)},
    ),
    "the lag": lambda recipe, field, _: (recipe, {"p": dataclasses.replace(field["p"], lag=2)}),
    "the rule": lambda recipe, field, _: (
        recipe,
        {"p": dataclasses.replace(field["p"], lag=1, late="run_on")},
    ),
    "the guard": lambda recipe, field, _: (
        recipe,
        {"p": dataclasses.replace(field["p"], guard=Bounds.of(Dots().action_spec))},
    ),
    "the benchmark": lambda recipe, field, _: (
        dataclasses.replace(recipe, benchmark=LongDots(13)),
        field,
    ),
    "the split": lambda recipe, field, _: (
        dataclasses.replace(
            recipe, evaluation=dataclasses.replace(recipe.evaluation, splits=("other",))
        ),
        field,
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_an_episode_is_run_again_where_anything_differs_that_it_was_made_from(
    recipe, teachers, ran, tmp_path, what
) -> None:
    recipe, field = (
        dataclasses.replace(recipe, benchmark=LongDots()),
        {"p": Contender(teachers[0], lag=1)},
    )
    rows = run_episodes(recipe, field, tmp_path)
    assert [row["success"] for row in rows["p"]] == [True, False, True, False] and len(ran) == 4
    log = (tmp_path / "episodes.jsonl").read_text()
    run_episodes(recipe, field, tmp_path)
    assert len(ran) == 4, "nothing differs, so nothing is run again"
    changed, other = CHANGES[what](recipe, field, teachers)
    run_episodes(changed, other, tmp_path)
    assert len(ran) == 8
    assert (tmp_path / "episodes.jsonl").read_text().startswith(log), "old rows stay"
    run_episodes(recipe, field, tmp_path)
    assert len(ran) == 8, "and are used again by whom they are about"


@pytest.mark.parametrize(
    "other", [{"commit": "b"}, {"dirty": True}, {"files": "2"}, {"commit": None, "dirty": None}]
)
def test_rows_of_another_armlet_are_not_used(
    recipe, teachers, ran, tmp_path, monkeypatch, other
) -> None:
    here = {"version": "0.1.0", "commit": "a", "dirty": False, "files": "1"}
    for identity, expected in ((here, 4), (here, 4), (here | other, 8), (here, 8)):
        monkeypatch.setattr(source, "identity", lambda identity=identity: identity)
        run_episodes(recipe, {"p": Contender(teachers[0])}, tmp_path)
        assert len(ran) == expected


def test_rows_that_do_not_say_what_they_were_made_from_are_not_used_and_stay(
    recipe, teachers, ran, tmp_path
) -> None:
    old = json.dumps(
        {
            "policy": Contender(teachers[0]).fingerprint,
            "setup": json.dumps(Dots().fingerprint()),
            "split": "seen",
        }
    )
    (tmp_path / "episodes.jsonl").write_text(old + "\n")
    run_episodes(recipe, {"p": Contender(teachers[0])}, tmp_path)
    assert len(ran) == 4 and (tmp_path / "episodes.jsonl").read_text().startswith(old)


def test_a_rule_for_acting_late_makes_no_difference_where_nothing_is_late(teachers) -> None:
    waits, runs_on = (
        conditions(Contender(teachers[0], late=late), Dots()) for late in ("wait", "run_on")
    )
    assert waits == runs_on


# --- which code ran
# -----------------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    options = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    done = subprocess.run(
        ["git", "-C", folder, *options, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A committed package in a repository, taken for armlet's own."""
    package = tmp_path / "repository" / "src" / "pack"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("one = 1\n")
    git(tmp_path, "init", "-q", "repository")
    git(package, "add", ".")
    git(package, "commit", "-qm", "first")
    monkeypatch.setattr(source, "PACKAGE", package)
    return package


def fresh_identity() -> dict:
    return source.identity.__wrapped__()


def test_the_code_that_ran_is_named_by_its_commit_and_by_what_differs_from_it(package) -> None:
    clean = fresh_identity()
    assert clean["commit"] == git(package, "rev-parse", "HEAD") and clean["dirty"] is False
    (package.parents[1] / "notes.md").write_text("about something else")
    assert fresh_identity() == clean, "what is no part of the package decides nothing"
    (package / "__init__.py").write_text("one = 2\n")
    changed = fresh_identity()
    assert (
        changed["dirty"] is True
        and changed["commit"] == clean["commit"]
        and changed["files"] != clean["files"]
    )
    (package / "__init__.py").write_text("one = 1\n")
    assert fresh_identity() == clean
    (package / "new.py").write_text("")
    untracked = fresh_identity()
    assert untracked["dirty"] is True and untracked["files"] not in (
        clean["files"],
        changed["files"],
    )


def test_without_git_or_a_repository_the_files_tell(package, monkeypatch, tmp_path) -> None:
    clean = fresh_identity()
    monkeypatch.setenv("PATH", str(tmp_path))
    without = fresh_identity()
    assert (without["commit"], without["dirty"], without["files"]) == (None, None, clean["files"])


def test_a_package_in_an_environment_inside_another_repository_is_not_at_that_ones_commit(
    package, monkeypatch
) -> None:
    installed = package.parents[1] / ".venv" / "pack"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("one = 1\n")
    monkeypatch.setattr(source, "PACKAGE", installed)
    assert fresh_identity()["commit"] is None


def test_digests_are_of_names_and_contents_of_files(tmp_path) -> None:
    def digest(**files: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(content)
        return source.digest(folder)

    assert digest(a="1", b="2") == digest(b="2", a="1")
    assert (
        len(
            {
                digest(a="1", b="2"),
                digest(a="2", b="1"),
                digest(a="12", b=""),
                digest(a="1", c="2"),
                digest(a="1"),
            }
        )
        == 5
    )


# --- a whole evaluation
# -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(teachers, tmp_path_factory) -> Path:
    """Two policies, three numbers of actions a look, two slow computers, two rules."""
    out = tmp_path_factory.mktemp("evaluated")
    setting = Evaluation(
        episodes=4,
        workers=1,
        latency_calls=4,
        videos=0,
        execute=(1, 4),
        slower=(1e-6, 1e6),
        late=("wait", "run_on"),
    )
    recipe = dataclasses.replace(
        reaching(), teacher=teachers[0], policies=(teachers[1],), out=out, evaluation=setting
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "peak_memory_mb", lambda *asked: 1.0)
        return evaluate.main(recipe)


def test_policies_are_run_again_with_each_number_of_actions_a_look(evaluated: Path) -> None:
    report = json.loads(evaluated.read_text())
    rows = {row["name"]: row for row in report["policies"]}
    names = [
        "teacher",
        "teacher-1",
        "teacher execute 1",
        "teacher-1 execute 1",
        "teacher execute 4",
        "teacher-1 execute 4",
    ]
    assert list(rows) == names
    kept = outcomes.read(evaluated.with_name("outcomes.json.gz"))
    for policy, execute in zip(kept.policies, (2, 2, 1, 1, 4, 4), strict=True):
        row = rows[policy.name]
        assert policy.execute == row["execute"] == execute
        assert policy.run.decisions == tuple(-(-steps // execute) for steps in policy.run.steps)
        asked = Dots().action_spec.control_hz * sum(policy.run.decisions) / sum(policy.run.steps)
        assert row["decisions_per_second"] == pytest.approx(asked)
        assert row["ms_per_second_of_motion"] == pytest.approx(
            row["latency_ms"]["policy"]["p50"] * asked
        )
    assert (
        rows["teacher"]["fingerprint"]
        == rows["teacher execute 4"]["fingerprint"]
        != rows["teacher-1"]["fingerprint"]
    )


def test_on_a_slower_computer_policies_come_late_by_their_own_time(evaluated: Path) -> None:
    report = json.loads(evaluated.read_text())
    times = {row["name"]: row["latency_ms"]["policy"]["p50"] for row in report["policies"]}
    assert len(report["delayed"]) == 6 * 2 * 2
    for row in report["delayed"]:
        assert row["delay_ms"] == pytest.approx(row["slower"] * times[row["name"]])
        assert row["lag_steps"] == int(np.ceil(row["delay_ms"] * 5 / 1000))
        if row["slower"] > 1:
            assert (
                row["waiting_share"] == 1
                and row["successes"] == 0
                and row["decisions_per_second"] is None
            )
            assert row["seconds_to_success"] == {"successes": None, "restricted": 2.0, "limit": 2.0}
        else:
            assert row["lag_steps"] == 1 and row["late"] in ("wait", "run_on")
    table = evaluated.with_name("table.md").read_text()
    assert (
        "| teacher | 1e+06× slower | run_on |" in table
        and "| policy, by task | red | blue |" in table
    )


def test_a_report_says_what_it_was_made_with(evaluated: Path, teachers) -> None:
    found = json.loads(evaluated.read_text())["fingerprint"]
    identity = source.identity()
    assert [found[name] for name in ("commit", "dirty", "files")] == [
        identity[name] for name in ("commit", "dirty", "files")
    ]
    assert (
        found["processor"] == measure.processor()
        and found["threads"] == 1
        and found["workers"] == 1
    )
    assert found["seeds"] == {"recipe": 0, "episodes": [500_000_000, 500_000_003]}
    assert found["evaluated"]["teacher-1"] == {
        "folder": teachers[1].as_posix(),
        "recipe": {"name": "made 1"},
    }
    assert found["evaluated"]["teacher execute 4"]["recipe"] == {"name": "made 0"}
    assert found["recipe"]["evaluation"]["slower"] == [1e-6, 1e6]


def test_a_report_has_the_shape_of_those_that_were_shipped(evaluated: Path) -> None:
    """Whoever reads the one reads the other: sections, a policy's row and what is nested in it.
    Those that were shipped are of version 2, which `read` completes."""
    docs = Path(__file__).parents[1] / "docs" / "reproductions"
    shipped = report.read(docs / "tabletop_fresh" / "report.json")
    found = json.loads(evaluated.read_text())
    assert set(found) == set(shipped) and (found["version"], shipped["version"]) == (4, 2)
    ours, theirs = found["policies"][0], shipped["policies"][0]
    assert set(ours) - {"speed", "looks_per_episode"} == set(theirs)
    for name, value in theirs.items():
        if isinstance(value, dict) and not name.startswith("by_"):
            assert set(value) - {"changes_with"} == set(ours[name] or value) - {"changes_with"}
    assert set(shipped["fingerprint"]) <= set(found["fingerprint"])
    assert found["fingerprint"]["device"] == "cpu" == ours["latency_ms"]["device"]


def test_an_evaluation_for_tuning_has_verdicts_and_no_plan(evaluated: Path) -> None:
    found = json.loads(evaluated.read_text())
    assert (found["purpose"], found["plan"], found["listens"]) == ("tuning", None, [])
    assert not evaluated.with_name("plan.json").exists()
    others = [row["name"] for row in found["policies"][1:]]
    assert [(each["policy"], each["versus"]) for each in found["verdicts"]] == [
        (name, "teacher") for name in others
    ]
    table = evaluated.with_name("table.md").read_text()
    for verdict in found["verdicts"]:
        assert f"- {verdict['sentence']}\n" in table
        pair = next(
            pair
            for pair in found["pairs"]
            if (pair["a"], pair["b"]) == (verdict["policy"], "teacher")
        )
        assert [verdict["low"], verdict["high"]] == pair["ci95"]
        assert verdict["difference"] == pytest.approx(pair["difference"])
        assert (verdict["margin"], verdict["episodes"]) == (0.03, 4)
    row = found["policies"][0]
    kept = outcomes.read(evaluated.with_name("outcomes.json.gz")).policies[0]
    assert row["looks_per_episode"] == sum(kept.run.decisions) / 4


def test_a_report_has_its_plan_which_was_there_before_the_first_episode(
    recipe, teachers, monkeypatch
) -> None:
    setting = dataclasses.replace(recipe.evaluation, purpose="report", baselines=("teacher-1",))
    recipe = dataclasses.replace(recipe, evaluation=setting, policies=(teachers[1],))
    path = recipe.out / "evaluation" / "plan.json"
    found = []

    def run_episodes(field, benchmark, met, *_, **__):
        assert path.is_file()
        assert [seed for _, seed in met] == list(range(800_000_000, 800_000_004))
        return {}

    def summarise(recipe, field, episodes, rows, out, plan_of_report, *_):
        found.append(plan_of_report)
        raise InterruptedError

    monkeypatch.setattr(evaluate, "run_episodes", run_episodes)
    monkeypatch.setattr(evaluate, "run_further", lambda *_: None)
    monkeypatch.setattr(evaluate, "summarise", summarise)
    for _ in range(2):
        with pytest.raises(InterruptedError):
            evaluate.main(recipe)
    said = json.loads(path.read_text())
    assert said["policies"] == {
        name: Contender(folder).fingerprint
        for name, folder in zip(("teacher", "teacher-1"), teachers, strict=True)
    }
    assert [plan.to_json() for plan in found] == [said, said]
    longer = dataclasses.replace(recipe, evaluation=dataclasses.replace(setting, episodes=5))
    with pytest.raises(ValueError, match=r"plans something else \(episodes: 4 → 5, seeds\.1: "):
        evaluate.main(longer)
    assert len(found) == 2, "before anything was run"
    whole = report.Report(
        report.OutcomesFile("", ""), {"policies": []}, {}, (), (), {}, {}, "report", found[0]
    ).to_json()
    assert (whole["version"], whole["purpose"], whole["plan"]) == (4, "report", said)


def test_more_actions_than_a_chunk_has_are_an_error(recipe) -> None:
    recipe = dataclasses.replace(
        recipe, evaluation=dataclasses.replace(recipe.evaluation, execute=(5,))
    )
    with pytest.raises(
        ValueError, match="5 actions of each chunk should be carried out, and this policy's have 4"
    ):
        evaluate.main(recipe)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"splits": ()}, "splits is empty; name at least one split, the benchmark's are seen"),
        ({"execute": (2, 2)}, "execute says a value twice: 2 2"),
        ({"splits": ("seen", "seen")}, "splits says a value twice"),
        ({"seed": 9_999_999}, "seeds 9,999,999 to 10,000,002: expected seeds within 500,000,000"),
        ({"seed": 599_999_998}, "599,999,998 to 600,000,001: expected .* the tuning range; leave"),
        ({"seed": 700_000_000}, "or say what it is for: --evaluation.purpose report"),
        ({"purpose": "report", "seed": 500_000_000}, "or .*: --evaluation.purpose tuning"),
        ({"purpose": "report", "seed": 899_999_999}, "within 700,000,000 to 899,999,999"),
        ({"slower": (20.0,), "late": ()}, "needs a rule for acting late"),
        ({"look": 2}, "look is about plans, and only a report has one"),
        ({"baselines": ("a", "a")}, "baselines says a value twice: a a"),
        ({"baselines": ("first_k",)}, "baselines names 'first_k', which is not run here"),
        ({"late": ("run_on",)}, "late is about policies on a slower computer"),
        ({"budgets": (0.5,)}, "budgets are those of the recipe's student, and there is none in"),
    ],
)
def test_settings_that_contradict_each_other_or_do_nothing_are_errors(
    recipe, ran, setting, message
) -> None:
    recipe = dataclasses.replace(
        recipe, evaluation=dataclasses.replace(recipe.evaluation, **setting)
    )
    with pytest.raises(ValueError, match=message):
        evaluate.main(recipe)
    assert not ran, "before anything was run"


def test_a_machines_processor_has_a_name() -> None:
    assert measure.processor() not in ("", "unknown") or sys.platform != "linux"


def test_the_command_line_takes_several_numbers() -> None:
    from armlet.options import override

    options = [
        "--evaluation.execute",
        "2",
        "4",
        "6",
        "--evaluation.slower",
        "20",
        "50",
        "--evaluation.late",
        "wait",
        "blend",
    ]
    setting = override(reaching(), options, "armlet evaluate").evaluation
    assert (setting.execute, setting.slower, setting.late) == (
        (2, 4, 6),
        (20.0, 50.0),
        ("wait", "blend"),
    )


def test_every_policys_name_is_its_own(recipe, teachers) -> None:
    assert list(contenders(dataclasses.replace(recipe, policies=(teachers[1],)))) == [
        "teacher",
        "teacher-1",
    ]
    same = teachers[1].parent / "other" / "teacher-1"
    both = contenders(dataclasses.replace(recipe, policies=(teachers[1], same)))
    assert both[same.as_posix()].folder == same and both["teacher-1"].folder == teachers[1]
    with pytest.raises(ValueError, match=f"names {same}, which is evaluated already, as '{same}'"):
        contenders(dataclasses.replace(recipe, policies=(teachers[1], same, same)))


def test_the_same_policy_under_two_names_is_refused(recipe, teachers, tmp_path) -> None:
    save_policy(dots_policy(3), recipe.student_folder)
    (tmp_path / "link").symlink_to(teachers[0])
    for folder, named in (
        (recipe.student_folder, recipe.name),
        (tmp_path / "link", "teacher"),
        (teachers[0], "teacher"),
    ):
        with pytest.raises(
            ValueError, match=f"names {folder}, which is evaluated already, as '{named}'"
        ):
            contenders(dataclasses.replace(recipe, policies=(folder,)))


def test_pictures_that_the_teacher_does_not_see_so_are_refused(recipe, ran) -> None:
    with pytest.raises(ValueError, match=r"pictures\.fit 'crop' would have no effect"):
        evaluate.main(dataclasses.replace(recipe, pictures=Pictures("crop", 24)))
    assert not ran


def test_a_line_of_the_log_without_its_split_is_named(recipe, ran) -> None:
    field = contenders(recipe)
    out = recipe.out / "evaluation"
    run_episodes(recipe, field, out)
    log = out / "episodes.jsonl"
    first, *others = read_lines(log)  # of a log without checksums, which would name it before
    lines = [first.replace('"split": "seen", ', "", 1), *others]
    log.write_text("".join(line + "\n" for line in lines))
    with pytest.raises(ValueError, match=r"episodes\.jsonl: a line has no split"):
        run_episodes(recipe, field, out)


def test_a_line_that_is_being_written_is_cut_by_nobody_but_who_goes_on(recipe, ran) -> None:
    field = contenders(recipe)
    out = recipe.out / "evaluation"
    run_episodes(recipe, field, out)
    log = out / episodes.LOG
    whole = log.read_bytes()
    with log.open("ab") as file:
        file.write(b'{"half')
    work = episodes._Act(field, recipe.benchmark, "cpu", {}, log)
    assert work([]) == b"" and log.read_bytes() == whole + b'{"half'
    run_episodes(recipe, field, out)
    assert log.read_bytes() == whole


def test_a_policy_saved_anew_is_run_anew_in_the_same_process(tmp_path) -> None:
    """What is logged under a fingerprint is what the policy of that fingerprint did."""
    policy, dots = dots_policy(0), Dots()
    jobs = [Attempt("it", task, seed) for task, seed in plan(dots, "seen", 2, 7)]
    successes = []
    for direction in (-1.0, 1.0):  # always one way: one of two dots is on either side
        with torch.no_grad():
            policy.head.net[-1].weight.zero_()
            policy.head.net[-1].bias.fill_(direction)
        save_policy(policy, tmp_path / "policy")
        found = [
            episode.success
            for _, episode in run_all({"it": Contender(tmp_path / "policy")}, dots, jobs, workers=1)
        ]
        alone = load_policy(tmp_path / "policy")
        assert found == [run_task(alone, dots, each.task, each.seed).success for each in jobs]
        successes.append(found)
    assert successes[0] == [not success for success in successes[1]], "the other way, the other dot"


def test_an_evaluation_without_a_student_says_so(recipe, capsys) -> None:
    assert list(contenders(recipe)) == ["teacher"]
    assert f"there is no student in {recipe.student_folder} yet" in capsys.readouterr().err
    save_policy(dots_policy(3), recipe.student_folder)
    assert list(contenders(recipe)) == ["teacher", recipe.name]
    assert capsys.readouterr().err == ""


def test_policies_are_run_again_behind_a_guard(recipe, teachers, tmp_path) -> None:
    """What it lets through is counted in the log, in the outcomes and in the report's row."""
    spec = Dots().action_spec
    path = tmp_path / "guard.toml"
    halves = "\n".join(f'"{name}" = {0.01 * spec.control_hz}' for name in spec.names)
    path.write_text(f'mode = "{spec.mode}"\n[velocity]\n{halves}\n')
    setting = dataclasses.replace(recipe.evaluation, guard=str(path))
    recipe = dataclasses.replace(recipe, evaluation=setting)
    field = contenders(recipe)
    assert list(field) == ["teacher", "teacher guarded"] and field["teacher"].guard is None
    rows = run_episodes(recipe, field, tmp_path)
    assert all("guarded" not in row for row in rows["teacher"])
    safe = episodes.run_of(rows["teacher guarded"])
    assert episodes.run_of(rows["teacher"]).guarded is None
    assert safe.guarded is not None and any(safe.guarded)
    late = dataclasses.replace(setting, slower=(1e6,), late=("wait", "blend"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "peak_memory_mb", lambda *asked: 1.0)
        report = json.loads(evaluate.main(dataclasses.replace(recipe, evaluation=late)).read_text())
    bare, row = report["policies"]
    assert "guarded_share" not in bare
    assert row["guarded_share"] == sum(safe.guarded) / sum(safe.steps)
    assert [(each["name"], each["late"]) for each in report["delayed"]] == [
        ("teacher", "wait"),
        ("teacher guarded", "wait"),
        ("teacher", "blend"),
        ("teacher guarded", "blend"),
    ]
    assert report["fingerprint"]["evaluation"]["guard"] == str(path)
    path.write_text('mode = "nonsense"\n')
    with pytest.raises(ValueError, match=r"guard\.toml: mode is 'nonsense'"):
        evaluate.main(recipe)
