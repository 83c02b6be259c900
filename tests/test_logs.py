"""Runs in the logs that people watch: every point once, however often a run is killed and resumed;
the same run for all verbs; a place that fails ends no training. Places are made up here; the real
libraries are asked in `make test-logs`."""

import json
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tiny import make_frames, make_policy

from armlet import logs
from armlet.logs import Logging, Run, RunLog
from armlet.recipe import Recipe, Stage, to_json
from armlet.recipes.bases import Imitate
from armlet.training.learner import Learner
from armlet.training.trainer import Trainer, make_batches

STAGE = Stage(Imitate(facts=()), steps=12, batch_size=8, warmup=1, log_every=1, checkpoint_every=4)


@dataclass
class Kept:
    """A place that keeps what it is told, by the run."""

    runs: list[Run] = field(default_factory=list)
    points: list[tuple[str, str, int, dict[str, float]]] = field(default_factory=list)
    closed: int = 0
    fails: bool = False

    def opened(self, run: Run) -> "_Open":
        self.runs.append(run)
        return _Open(self, run.id)


@dataclass
class _Open:
    kept: Kept
    run: str

    def point(self, series: str, step: int, values: dict[str, float]) -> None:
        if self.kept.fails:
            raise ConnectionError("nobody answers")
        self.kept.points.append((self.run, series, step, dict(values)))

    def close(self) -> None:
        self.kept.closed += 1


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Kept]]:
    """Two places, in the stead of libraries that need not be installed."""
    made = {}
    for to in ("tensorboard", "wandb"):
        made[to] = Kept()
        module = types.SimpleNamespace(opened=made[to].opened)
        monkeypatch.setitem(sys.modules, f"armlet.logs.{to}_place", module)
    monkeypatch.setattr(logs, "check", lambda asked: None)
    return made


def log_of(out: Path, *to: str) -> RunLog:
    return RunLog(Logging(to=to or ("tensorboard",)), out, "name", {"said": 1})


def train(out: Path, *to: str, stop_at: int = 0, stage: Stage = STAGE, seed: int = 0) -> list[dict]:
    """A stage, killed before its step `stop_at` is made; the lines that it has written."""
    policy = make_policy(depth=2)
    trainer = Trainer(
        Learner(policy),
        stage,
        make_batches(policy, make_frames()),
        folder=out / "teach",
        seed=seed,
        title="t",
        log=log_of(out, *to) if to else None,
    )
    plain = trainer._update

    def killed() -> dict[str, float]:
        if trainer.step + 1 == stop_at:
            raise MemoryError
        return plain()

    trainer._update = killed
    if stop_at:
        with pytest.raises(MemoryError):
            trainer.run()
    else:
        trainer.run()
    lines = (out / "teach" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def steps(kept: Kept, series: str = "teach") -> list[int]:
    return [step for _, name, step, _ in kept.points if name == series]


def test_a_run_that_is_killed_twice_has_every_point_once(
    tmp_path: Path, places: dict[str, Kept]
) -> None:
    train(tmp_path, "tensorboard", "wandb", stop_at=7)
    train(tmp_path, "tensorboard", "wandb", stop_at=11)
    lines = train(tmp_path, "tensorboard", "wandb")
    assert [line["step"] for line in lines] == list(range(1, 13))
    for kept in places.values():
        assert steps(kept) == list(range(1, 13))
        assert {run.id for run in kept.runs} == {kept.runs[0].id}, "the same run goes on"
        for (_, _, step, values), line in zip(kept.points, lines, strict=True):
            assert values["loss"] == line["loss"] and step == line["step"]
            assert "step" not in values and "learning_rate" in values


def test_logging_changes_nothing_of_what_is_trained(
    tmp_path: Path, places: dict[str, Kept]
) -> None:
    plain = train(tmp_path / "plain")
    told = train(tmp_path / "told", "tensorboard")
    for one, other in zip(plain, told, strict=True):
        assert one["loss"] == other["loss"] and one["grad_norm"] == other["grad_norm"]
    assert not (tmp_path / "plain" / "logging.json").exists()
    assert not (tmp_path / "plain" / "teach" / "logged.json").exists()


def test_a_place_asked_for_later_is_told_what_was_before(
    tmp_path: Path, places: dict[str, Kept]
) -> None:
    train(tmp_path, stop_at=9)
    train(tmp_path, "tensorboard", stop_at=11)
    train(tmp_path, "tensorboard", "wandb")
    for kept in places.values():
        assert sorted(steps(kept)) == list(range(1, 13)), "the first eight are those on disk"


def test_a_stage_that_begins_anew_begins_a_new_run(tmp_path: Path, places: dict[str, Kept]) -> None:
    train(tmp_path, "tensorboard", stop_at=7)
    train(tmp_path, "tensorboard", seed=1)
    kept = places["tensorboard"]
    first, second = dict.fromkeys(run.id for run in kept.runs)
    assert [step for run, _, step, _ in kept.points if run == first] == list(range(1, 7))
    assert [step for run, _, step, _ in kept.points if run == second] == list(range(1, 13))


def test_a_killed_process_between_mark_and_point_doubles_nothing(
    tmp_path: Path, places: dict[str, Kept]
) -> None:
    series = log_of(tmp_path).series(tmp_path / "teach")
    series.point(1, {"loss": 1.0})
    mark = json.loads((tmp_path / "teach" / "logged.json").read_text())
    mark["sent"]["tensorboard"] = 2  # the mark of a second point, which was never sent
    (tmp_path / "teach" / "logged.json").write_text(json.dumps(mark))
    again = log_of(tmp_path).series(tmp_path / "teach")
    again.catch_up([{"step": step, "loss": 1.0} for step in (1, 2, 3)])
    assert steps(places["tensorboard"]) == [1, 3]


def test_results_stand_once_and_follow_one_another(tmp_path: Path, places: dict[str, Kept]) -> None:
    for of in ("a", "a", "b", "b", "a"):
        log_of(tmp_path).series(tmp_path / "evaluation").result(of, {"teacher/success": 0.5})
    assert steps(places["tensorboard"], "evaluation") == [0, 1, 2]


def test_verbs_of_one_out_are_one_run(tmp_path: Path, places: dict[str, Kept]) -> None:
    for name in ("teach", "distil-0", "evaluation"):
        with log_of(tmp_path) as log:
            log.series(tmp_path / name).point(1, {"x": 1, "flag": True, "text": "left out"})
    kept = places["tensorboard"]
    assert len({run.id for run in kept.runs}) == 1 and kept.closed == 3
    assert all(values == {"x": 1.0, "flag": 1.0} for *_, values in kept.points)
    assert kept.runs[0].config == {"said": 1} and kept.runs[0].folder == tmp_path


def test_a_place_that_fails_ends_no_training(
    tmp_path: Path, places: dict[str, Kept], capsys: pytest.CaptureFixture[str]
) -> None:
    places["wandb"].fails = True
    assert len(train(tmp_path, "wandb", "tensorboard")) == 12
    assert steps(places["tensorboard"]) == list(range(1, 13))
    told = capsys.readouterr().err
    assert told.count("wandb failed (ConnectionError: nobody answers)") == 1


def test_a_library_that_is_not_there_is_told_before_the_work(tmp_path: Path) -> None:
    missing = Logging(to=("trackio",))
    if logs.importlib.util.find_spec("trackio") is None:
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'armlet\[trackio\]'"):
            RunLog(missing, tmp_path, "n", {})


def test_what_would_have_no_effect_is_an_error() -> None:
    for wrong, said in (
        ({"to": ("wandb", "wandb")}, "names a place twice"),
        ({"to": ("tensorbord",)}, "tensorbord is not known"),
        ({"offline": True, "to": ("tensorboard",)}, "no effect without wandb"),
        ({"project": "p"}, "no effect without log.to"),
    ):
        with pytest.raises(ValueError, match=said):
            Logging(**wrong)


def test_a_recipe_that_logs_nowhere_says_nothing_of_it() -> None:
    recipe = Recipe("n", None, Path("e"), Path("t"), Path("o"))
    assert "log" not in to_json(recipe)
