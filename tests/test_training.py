"""The training loop: resumes to the same result, draws every frame once an epoch, and fails
loudly."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_frames, make_policy

from armlet.data.frames import BatchMaker, draw
from armlet.data.lines import read_lines
from armlet.data.transforms import Balance
from armlet.layers.graph import ProbeHeads
from armlet.layers.heads import CodebookHead
from armlet.policies.routed import Routing
from armlet.policies.two_tower import TwoTowerNetwork
from armlet.recipe import Stage
from armlet.recipes.actdistill import ActDistill
from armlet.recipes.bases import FitHeads, Imitate
from armlet.training.learner import Learner
from armlet.training.stopping import Stop, waiting_stop
from armlet.training.trainer import Trainer, make_batches, rate, trainable

STAGE = Stage(Imitate(), steps=8, batch_size=5, warmup=2, log_every=1, checkpoint_every=4, ema=0.9)


def run(folder: Path, stage: Stage = STAGE, **options) -> Learner:
    torch.manual_seed(3)
    policy = make_policy()
    learner = Learner(policy, privileged={"subject": 3, "target": 3})
    Trainer(
        learner,
        stage,
        make_batches(policy, make_frames()),
        folder=folder,
        seed=1,
        title="test",
        **options,
    ).run()
    return learner


class Killed(BaseException):
    pass


def killed(monkeypatch: pytest.MonkeyPatch, folder: Path, stage: Stage, *, at: int) -> None:
    """A run that dies in the step behind step `at`."""
    update = Trainer._update

    def dies(trainer: Trainer) -> dict[str, float]:
        if trainer.step == at:
            raise Killed
        return update(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", dies)
        with pytest.raises(Killed):
            run(folder, stage)


def test_a_log_that_was_cut_is_named_and_one_that_is_gone_begins_anew(
    tmp_path, monkeypatch, capsys
) -> None:
    killed(monkeypatch, tmp_path, STAGE, at=7)
    log = tmp_path / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([lines[0], *lines[2:]]))
    with pytest.raises(ValueError, match=r"metrics\.jsonl has 3 lines up to step 4, and had 4"):
        run(tmp_path, STAGE)
    log.unlink()
    run(tmp_path, STAGE)
    assert [json.loads(line)["step"] for line in read_lines(log)] == [5, 6, 7, 8]
    assert "is not there: the log goes on from step 4" in capsys.readouterr().err


@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
@pytest.mark.parametrize("at", [5, 7])
def test_a_killed_run_resumes_to_the_same_weights(
    tmp_path, monkeypatch, at: int, optimiser: str
) -> None:
    stage = dataclasses.replace(STAGE, optimiser=optimiser)
    whole = run(tmp_path / "whole", stage)
    killed(monkeypatch, tmp_path / "parts", stage, at=at)
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # as a full disk leaves it
    resumed = run(tmp_path / "parts", stage)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    logs = [
        list(map(json.loads, read_lines(tmp_path / run / "metrics.jsonl")))
        for run in ("whole", "parts")
    ]
    for row in logs[0] + logs[1]:
        row.pop("seconds")
    assert logs[0] == logs[1] and [row["step"] for row in logs[0]] == list(range(1, 9))


def test_the_next_batchs_pictures_are_begun_while_this_one_is_learnt(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, expected = [], []
    draws, expects = BatchMaker.batch, BatchMaker.expect

    def batch(self: BatchMaker, rows: np.ndarray, **options):
        drawn.append(rows.tolist())
        return draws(self, rows, **options)

    def expect(self: BatchMaker, rows: np.ndarray) -> None:
        expected.append(rows.tolist())
        expects(self, rows)

    monkeypatch.setattr(BatchMaker, "batch", batch)
    monkeypatch.setattr(BatchMaker, "expect", expect)
    run(tmp_path)
    assert len(drawn) == STAGE.steps and expected == drawn[1:]


def test_without_a_compiler_the_same_is_done_uncompiled_and_said(
    tmp_path, monkeypatch, capsys
) -> None:
    plain = run(tmp_path / "plain")
    monkeypatch.setattr("armlet.training.trainer.shutil.which", lambda name: None)
    asked = run(tmp_path / "asked", dataclasses.replace(STAGE, compile=True))
    assert "no C++ compiler" in capsys.readouterr().err
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain.state_dict().values(), asked.state_dict().values(), strict=True)
    )


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="torch.compile needs a C++ compiler",
)
@pytest.mark.parametrize("kind", ["plain", "routed", "two towers"])
def test_compiled_layers_learn_the_same(tmp_path, kind: str) -> None:
    learners = []
    for compiled in (False, True):
        torch.manual_seed(3)
        policy = make_policy()
        if kind == "routed":
            policy = Routing().build(policy)
        if kind == "two towers":
            network = TwoTowerNetwork(
                width=32, heads=2, vision_layers=2, text_layers=1, patch=8, chunk=3, execute=1
            )
            policy = network.build(policy.body, {"scene": 24, "wrist": 16})
        learner = Learner(policy)
        stage = dataclasses.replace(
            STAGE, objective=Imitate(facts=()), precision="fp32", compile=compiled
        )
        folder = tmp_path / str(compiled)
        Trainer(
            learner, stage, make_batches(policy, make_frames()), folder=folder, seed=1, title="test"
        ).run()
        learners.append(learner)
    for (name, a), b in zip(
        learners[0].state_dict().items(), learners[1].state_dict().values(), strict=True
    ):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-2, msg=name)


@pytest.mark.slow
def test_half_a_compiled_library_left_by_a_killed_process_is_not_the_end(tmp_path) -> None:
    program = (
        "import dataclasses, pathlib, sys, torch; torch.set_num_threads(1); sys.path[:0] = [sys.argv[1]]; import test_training as t; "
        "t.run(pathlib.Path(sys.argv[2]), dataclasses.replace(t.STAGE, compile=True))"
    )

    def run(folder: Path) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", program, str(Path(__file__).parent), str(folder)]
        cache = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
        return subprocess.run(command, capture_output=True, text=True, env=cache, check=True)

    assert "damaged" not in run(tmp_path / "first").stderr
    libraries = list((tmp_path / "cache").rglob("*.so"))
    assert libraries
    for library in libraries:
        library.write_bytes(library.read_bytes()[:100])
    assert "damaged" in run(tmp_path / "second").stderr
    ends = [
        (tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1]
        for name in ("first", "second")
    ]
    assert json.loads(ends[0])["loss"] == pytest.approx(json.loads(ends[1])["loss"], rel=1e-3), (
        "the same but for rounding to bf16"
    )


def test_every_frame_once_an_epoch_in_an_order_of_its_own() -> None:
    epochs = [
        np.concatenate([draw(23, 5, epoch * 5 + step, seed=4) for step in range(5)])
        for epoch in range(3)
    ]
    assert all(sorted(rows) == list(range(23)) for rows in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(draw(23, 5, 0, seed=4), draw(23, 5, 0, seed=5)), (
        "and another seed draws otherwise"
    )
    assert len(draw(23, 5, 4, seed=4)) == 3, "the last batch holds what is left"


def test_training_learns(tmp_path) -> None:
    run(
        tmp_path,
        dataclasses.replace(
            STAGE, steps=150, learning_rate=3e-3, batch_size=16, log_every=10, precision="fp32"
        ),
    )
    rows = list(map(json.loads, read_lines(tmp_path / "metrics.jsonl")))
    assert rows[-1]["imitation"] < 0.6 * rows[0]["imitation"]


def test_patterns_choose_what_trains() -> None:
    learner = Learner(make_policy())
    chosen = trainable(learner, dataclasses.replace(STAGE, freeze=("policy.vision.*",)))
    assert chosen and not any(name.startswith("policy.vision") for name in chosen)
    asked = trainable(
        learner, dataclasses.replace(STAGE, train=("policy.head.*", "policy.layers.1.*"))
    )
    every = {name for name, _ in learner.named_parameters()}
    assert (
        asked.keys()
        == {name for name in every if name.startswith(("policy.head.", "policy.layers.1."))}
        != every
    )
    with pytest.raises(ValueError, match="leaves nothing to train"):
        trainable(learner, dataclasses.replace(STAGE, freeze=("*",)))
    for field in ("train", "freeze"):
        with pytest.raises(
            ValueError,
            match=rf"{field}=.*'policy.vison.\*' matches no parameter; did you mean 'policy.vision",
        ):
            trainable(
                learner, dataclasses.replace(STAGE, **{field: ("policy.head.*", "policy.vison.*")})
            )


def test_frozen_weights_stay_to_the_bit(tmp_path) -> None:
    before = {name: tensor.clone() for name, tensor in make_policy().state_dict().items()}
    learner = run(tmp_path, dataclasses.replace(STAGE, freeze=("policy.vision.*",)))
    speaks_only_through_vision = (
        "vision",
        "asked",
    )  # `asked` modulates the images, by a gain that starts at nothing
    for name, tensor in learner.policy.state_dict().items():
        if name.startswith("vision") or not name.startswith(speaks_only_through_vision):
            assert torch.equal(tensor, before[name]) == name.startswith("vision"), name


def test_fitting_heads_leaves_the_teacher_as_it_was(tmp_path) -> None:
    policy = make_policy()
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    heads = ProbeHeads(4, 32, chunk=3, dims=4, graph_width=16, semantic_width=16, hidden=16)
    start = {name: tensor.clone() for name, tensor in heads.state_dict().items()}
    stage = dataclasses.replace(
        STAGE, objective=FitHeads(), train=("probe.*",), optimiser="adamw", steps=3, ema=None
    )
    batches = make_batches(policy, make_frames())
    Trainer(
        Learner(policy, probe=heads), stage, batches, folder=tmp_path, seed=0, title="probe"
    ).run()
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
    assert any(not torch.equal(tensor, start[name]) for name, tensor in heads.state_dict().items())


def test_nan_stops_the_run_and_says_where(tmp_path) -> None:
    policy, frames = make_policy(), make_frames()
    frames.actions[:] = np.nan
    learner = Learner(policy, privileged={"subject": 3, "target": 3})
    trainer = Trainer(
        learner, STAGE, make_batches(policy, frames), folder=tmp_path, seed=0, title="nan"
    )
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 0.*imitation"):
        trainer.run()


def test_episodes_of_another_robot_are_refused() -> None:
    frames = make_frames()
    wide = dataclasses.replace(frames, actions=np.zeros((len(frames), 7), np.float32))
    with pytest.raises(ValueError, match="another robot"):
        make_batches(make_policy(), wide)


def test_warm_up_and_schedule() -> None:
    stage = dataclasses.replace(STAGE, steps=1000, warmup=10)
    assert rate(stage, 0) == pytest.approx(0.1) and rate(stage, 9) == pytest.approx(1, abs=1e-3)
    assert rate(stage, 505) == pytest.approx(0.5, abs=0.02) and rate(stage, 999) == pytest.approx(
        0.02
    )
    assert rate(dataclasses.replace(stage, schedule="constant"), 999) == 1


@pytest.mark.parametrize(
    ("size", "keep"),
    [
        pytest.param(1, 0.3, marks=pytest.mark.slow),
        (3, 0.6),
        pytest.param(8, 0.3, marks=pytest.mark.slow),
    ],
)
def test_the_budget_is_reached_with_batches_of_any_size(tmp_path, size: int, keep: float) -> None:
    """The budget alone moves the router to the keep ratio asked for, whatever the size of the
    (last) batch."""
    policy = Routing(initial_keep=0.9).build(make_policy(depth=10))
    learner, frames = Learner(policy), make_frames()

    @dataclasses.dataclass(frozen=True)
    class Budget(ActDistill):
        needs = frozenset()
        wants = frozenset({"gates", "costs", "imitation"})

        def __call__(self, student, teacher, batch):
            from armlet.training import losses

            gap = losses.budget_gap(
                student["gates"], student["costs"], self.keep, over="batch"
            ).mean()
            return {"budget": 10 * gap, "imitation": 0.01 * student["imitation"].mean()}

    stage = Stage(Budget(keep=keep), steps=250, batch_size=size, learning_rate=1e-2, optimiser="adamw", warmup=1, precision="fp32", train=("policy.router.*",), schedule="constant")  # fmt: skip
    Trainer(
        learner, stage, make_batches(policy, frames), folder=tmp_path, seed=0, title="budget"
    ).run()
    with torch.no_grad():
        batch = make_batches(policy, frames).batch(np.arange(len(frames)))
        gates = learner(batch, ["gates"])["gates"]
    assert gates.mean() == pytest.approx(keep, abs=0.12)


def test_frames_of_rare_actions_are_drawn_more_often() -> None:
    rng = np.random.default_rng(0)
    head = CodebookHead(8, 2, 2, primitives=[[1.0, 0], [-1, 0], [0, 1]])
    actions = torch.tensor([[1.0, 0.1]] * 80 + [[-1, 0.1]] * 16 + [[0.1, 0.9]] * 4)[
        torch.from_numpy(rng.permutation(100))
    ]
    found = head.classes(actions)
    classes = found.numpy()

    def chosen(rows: np.ndarray, power: float) -> np.ndarray:
        return Balance(power).choose(rows, lambda: found)

    counts = [np.bincount(classes[chosen(np.arange(100), power)]) for power in (0.5, 1.0)]
    assert counts[0].tolist() == [80, 16 * 2, 4 * 4] and counts[1].tolist() == [80, 80, 80]
    some = np.flatnonzero(classes != 1)
    times = np.bincount(chosen(some, 1.0), minlength=100)
    own = np.bincount(classes[some])
    wanted = np.where(classes != 1, np.round(own.max() / np.maximum(own, 1)[classes]), 0)
    # Each by its own class, among the rows that are drawn from.
    np.testing.assert_array_equal(times, wanted)
    assert chosen(np.arange(100), 0.0).tolist() == list(range(100))


def test_a_trainer_draws_the_frames_that_its_transforms_choose(tmp_path) -> None:
    policy = TwoTowerNetwork(
        width=32,
        heads=2,
        vision_layers=1,
        text_layers=1,
        patch=8,
        chunk=3,
        execute=1,
        head="codebook",
        head_options={"primitives": [[1.0, 0, 0, 1], [-1, 0, 0, -1]]},
    ).build(make_policy().body, {"scene": 24, "wrist": 16})
    frames = make_frames()
    frames.actions[:] = [1, 0, 0, 1]
    frames.actions[4:8] = [-1, 0, 0, -1]
    stage = dataclasses.replace(STAGE, transforms=(Balance(1.0),))
    options = {"folder": tmp_path, "seed": 0, "title": "balance"}
    batches = make_batches(policy, frames)
    rows = Trainer(
        Learner(policy, privileged={"subject": 3, "target": 3}), stage, batches, **options
    ).rows
    times = np.bincount(rows)
    assert set(times[4:8]) == {round((len(frames) - 4) / 4)} and set(
        np.delete(times, range(4, 8))
    ) == {1}
    plain = Learner(make_policy(), privileged={"subject": 3, "target": 3})
    with pytest.raises(
        ValueError, match=r"Balance\(power=1\.0\): .* does not choose among a few actions"
    ):
        Trainer(plain, stage, make_batches(plain.policy, frames), **options)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts, as in a program that was started at a terminal and not in the
    background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Somebody presses Ctrl-C while step number `after` is under way."""
    update = Trainer._update

    def pressed(trainer: Trainer) -> dict[str, float]:
        if trainer.step == after - 1:
            signal.raise_signal(signal.SIGINT)
        return update(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", pressed)
        with pytest.raises(KeyboardInterrupt):
            run(folder)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("after", [1, 6])
def test_ctrl_c_waits_for_the_step_and_saves_it(tmp_path, monkeypatch, capfd, after: int) -> None:
    whole = run(tmp_path / "whole")
    handler = signal.getsignal(signal.SIGINT)
    interrupted(tmp_path / "parts", monkeypatch, after=after)
    assert signal.getsignal(signal.SIGINT) is handler
    assert "stops after this step" in capfd.readouterr().err
    state = torch.load(tmp_path / "parts" / "state.pt", weights_only=True)
    assert state["step"] == after, "nothing since the last checkpoint is lost"
    begun: list[int] = []
    update = Trainer._update
    monkeypatch.setattr(Trainer, "_update", lambda self: begun.append(self.step) or update(self))
    resumed = run(tmp_path / "parts")
    assert begun == list(range(after, STAGE.steps))
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_in_the_last_step_ends_a_stage_that_is_finished(tmp_path, monkeypatch) -> None:
    update = Trainer._update

    def pressed(trainer: Trainer) -> dict[str, float]:
        if trainer.step == STAGE.steps - 1:
            signal.raise_signal(signal.SIGINT)
        return update(trainer)

    monkeypatch.setattr(Trainer, "_update", pressed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == STAGE.steps


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("after", [4, 5])
def test_ctrl_c_saves_no_step_twice(tmp_path, monkeypatch, after: int) -> None:
    """Neither in a step that was a checkpoint already, nor ahead of the first step after a resume."""
    saved: list[int] = []
    save = Trainer._save
    monkeypatch.setattr(Trainer, "_save", lambda self: (saved.append(self.step), save(self)))
    interrupted(tmp_path, monkeypatch, after=after)
    assert saved == sorted({4, after})
    resume = Trainer._resume

    def pressed(trainer: Trainer) -> None:
        resume(trainer)
        monkeypatch.setattr(Trainer, "_stop", stopped)

    @contextlib.contextmanager
    def stopped(trainer: Trainer) -> Iterator[Stop]:
        yield Stop(asked=True)

    monkeypatch.setattr(Trainer, "_resume", pressed)
    run(tmp_path)
    assert saved == sorted({4, after})


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_stops_at_once() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), waiting_stop("test") as stop:  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        reached.append(stop.asked)
        signal.raise_signal(signal.SIGINT)
        reached.append("after the second")
    assert reached == [True]


def test_where_ctrl_c_is_ignored_it_stays_ignored() -> None:
    """As for a job in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with waiting_stop("test") as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop.asked and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
