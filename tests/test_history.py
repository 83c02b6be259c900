"""Policies that look at several moments, and those whose chunks overlap: the same observations in
training, where a data set asks and in the closed loop; joined chunks against sums written by hand."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_rollout import Line, spec

from armlet.data.augment import Augment
from armlet.data.batching import batch_of
from armlet.data.frames import BatchMaker, Frames
from armlet.data.text import train_tokenizer
from armlet.evaluation.action_errors import Recording
from armlet.evaluation.asking import Asker
from armlet.robot.ensemble import Adaptive, Exponential
from armlet.robot.fit import View
from armlet.robot.inputs import Inputs
from armlet.robot.memory import Overlap, Past
from armlet.robot.normalise import Normaliser
from armlet.robot.observation import Observation, recent
from armlet.robot.outputs import Decision
from armlet.robot.reading.own import Words
from armlet.rollout.actors import Expert
from armlet.rollout.loop import run

# Two episodes; in the second the third row follows a gap.
STARTS = np.array([0, 4, 9])
RUNS = np.array([0, 4, 6])
STATE = Normaliser(np.array([1.0], np.float32), np.array([2.0], np.float32))
ACTION = Normaliser(np.zeros(2, np.float32), np.array([4.0, 0.5], np.float32))
# Row → the rows of what is looked at, with a history of three.
SEEN = {0: (0, 0, 0), 1: (0, 0, 1), 3: (1, 2, 3), 4: (4, 4, 4), 5: (4, 4, 5), 6: (6, 6, 6)}


def frames() -> Frames:
    """Frames whose numbers and pictures say which row they are."""
    number = np.arange(9, dtype=np.float32)
    pictures = np.zeros((9, 4, 5, 3), np.uint8)
    pictures[:, 1, 2, 0] = 10 * number
    return Frames(
        images={"eye": pictures},
        state=number[:, None],
        actions=np.stack([number, -number], 1),
        executed=np.stack([number, number], 1),
        privileged={},
        texts=("go",),
        asked=np.zeros(9, np.int64),
        starts=STARTS,
        runs=RUNS,
    )


def inputs(history: int = 3) -> Inputs:
    words = Words(train_tokenizer(["go"]), 8)
    return Inputs(View({"eye": (4, 5)}), words, STATE, ACTION, 2, history=history)


def asker() -> Asker:
    made = frames()
    data = SimpleNamespace(tasks=("go",), asked=made.asked, root="here")
    recording = Recording(made.actions, made.executed, STARTS, RUNS)
    return Asker(data, recording, made.state, None)  # type: ignore[arg-type]  # neither is asked


def test_a_batch_has_the_moments_before_and_the_first_again() -> None:
    batches = BatchMaker(frames(), inputs(), device=torch.device("cpu"))
    rows = np.array([6, 0, 3, 1, 5, 4])
    batch = batches.batch(rows)
    wanted = np.array([SEEN[row] for row in rows])
    assert batch.images["eye"].shape == (6, 3, 3, 4, 5)
    np.testing.assert_allclose(batch.images["eye"][:, :, 0, 1, 2], 10 * wanted / 255, atol=1e-6)
    np.testing.assert_allclose(batch.state[..., 0], (wanted - 1) / 2)
    np.testing.assert_allclose(batch.present[:, 0], (rows - 1) / 2)
    assert batch.earlier_actions is not None and batch.earlier_valid is not None
    np.testing.assert_allclose(batch.earlier_actions[..., 0], wanted[:, :-1] / 4)
    assert batch.earlier_valid[2].all() and not batch.earlier_valid[1].any()
    assert batch.earlier_valid[3].tolist() == [False, True]


def test_a_robot_is_shown_what_was_trained_on() -> None:
    rows = np.array([0, 1, 3, 5, 6])
    trained = BatchMaker(frames(), inputs(), device=torch.device("cpu")).batch(rows)
    seen = asker().observations(rows, frames().images, 3)
    assert [len(each.past) for each in seen] == [0, 1, 2, 1, 0]
    batch = batch_of(inputs().arrays(seen), device=torch.device("cpu"))
    assert torch.equal(batch.images["eye"], trained.images["eye"])
    assert torch.equal(batch.state, trained.state)
    assert torch.equal(batch.previous_action, trained.previous_action)
    one = batch_of(inputs(1).arrays(seen), device=torch.device("cpu"))
    assert one.state.shape == (5, 1) and torch.equal(one.state, batch.present)


def test_moments_are_augmented_alike() -> None:
    one = torch.rand(2, 3, 8, 8)
    several = one[:, None].repeat(1, 3, 1, 1, 1)
    change = Augment(brightness=0.3, contrast=0.2, saturation=0.4, crop=2)
    single = change.pictures({"eye": one.clone()}, np.random.default_rng(0))["eye"]
    found = change.pictures({"eye": several}, np.random.default_rng(0))["eye"]
    for moment in range(3):
        torch.testing.assert_close(found[:, moment], single)


class Looks:
    """Remembers what it was shown; its actions say nothing."""

    def __init__(self, history: int, execute: int) -> None:
        self.history = history
        self.execute = execute
        self.shown: list[list[float]] = []

    def reset(self) -> None: ...

    def decide(self, observation: Observation) -> Decision:
        seen = recent(observation, self.history)
        self.shown.append([float(each.state[0]) for each in seen])
        return Decision(np.tile(np.float32([1, 0.5]), (6, 1)), (1,))

    def infer(self, observation: Observation) -> np.ndarray:
        return self.decide(observation).actions


class Places(Line):
    """Each step goes one further; what is observed is how many were made."""

    def observe(self) -> Observation:  # type: ignore[override]
        place = np.float32([super().observe()])
        return Observation({}, place, "go", np.zeros(2, np.float32))

    def privileged(self) -> dict[str, np.ndarray]:
        return {}

    @property
    def instruction(self) -> str:
        return "go"


@pytest.mark.parametrize("record", [False, True])
def test_the_loop_shows_the_steps_before_each_decision(record: bool) -> None:
    world = Places(goal=np.inf)
    actor = Looks(3, 4)
    run(world, actor, spec=spec(), limit=9, record=record)
    assert actor.shown == [[0, 0, 0], [2, 3, 4], [6, 7, 8]]
    # Nobody looks at steps that nobody sees.
    assert record or world.looks == [0, 2, 3, 4, 6, 7, 8]


def test_who_labels_sees_its_own_history() -> None:
    label = Looks(2, 1)
    run(Places(np.inf), Looks(1, 3), spec=spec(), limit=4, label=label, record=True)
    assert label.shown == [[0, 0], [0, 1], [1, 2], [2, 3]]
    assert not hasattr(Expert, "history"), "most look at the present one"


def test_a_past_is_of_one_episode_and_holds_no_past_of_its_own() -> None:
    past = Past(2)
    observation = Observation({}, np.zeros(1), "go", np.zeros(2))
    assert past.see(observation).past == ()
    (before,) = past.see(observation).past
    assert before.past == ()
    assert Past(1).see(observation) is observation


class Guesses:
    """Chunk number n says n for all its moments, in the first dimension."""

    history = 1
    execute = 1

    def __init__(self, ensemble: Exponential | Adaptive, execute: int = 1) -> None:
        self.ensemble = ensemble
        self.execute = execute
        self.asked = 0

    def reset(self) -> None: ...

    def decide(self, observation: float) -> Decision:
        self.asked += 1
        return Decision(np.tile(np.float32([self.asked, 1.0]), (4, 1)), (1,))


def test_overlapping_chunks_are_weighed_the_oldest_most() -> None:
    world = Line(np.inf)
    run(world, Guesses(Exponential(0.1)), spec=spec(), limit=7)
    told = [float(action[0]) for action in world.told]
    for step, found in enumerate(told):
        # What chunks of four say of this step: those of the last four decisions.
        decided = np.arange(max(step - 3, 0), step + 1) + 1
        weights = np.exp(-0.1 * np.arange(len(decided)))
        assert found == pytest.approx((weights * decided).sum() / weights.sum(), rel=1e-6)


def test_what_was_carried_out_is_left_behind() -> None:
    world = Line(np.inf)
    run(world, Guesses(Exponential(0.0), execute=3), spec=spec(), limit=6)
    # Of the first chunk its last action is left; of the second decision all four are its own.
    assert [float(action[0]) for action in world.told] == [1, 1, 1, 1.5, 2, 2]


def test_what_disagrees_with_the_newest_counts_little() -> None:
    chunks = [np.float32([[1, 0], [1, 0]]), np.float32([[0, 1], [0, 1]])]
    overlap = Overlap(Adaptive(horizon=2, alpha=1.0), spec())
    overlap.join(chunks[0], 0)
    found = overlap.join(chunks[1], 1)
    near = np.exp(1.0)
    np.testing.assert_allclose(found[0], [1 / (1 + near), near / (1 + near)], rtol=1e-5)
    np.testing.assert_allclose(found[1], [0, 1])
    # Of more chunks than the horizon the newest count.
    overlap.join(chunks[1], 1)
    np.testing.assert_allclose(overlap.join(chunks[1], 1)[0], [0, 1])


def test_what_routes_depend_on_exchanges_the_past_too() -> None:
    from armlet.evaluation.measure import _mixed

    def at(number: float, past: tuple[Observation, ...] = ()) -> Observation:
        return Observation({}, np.float32([number]), "go", np.zeros(2), past)

    mixed = _mixed(at(3, (at(1), at(2))), at(9, (at(8),)), ["state"])
    assert [float(each.state[0]) for each in (*mixed.past, mixed)] == [8, 8, 9]
    assert dataclasses.replace(mixed, past=()).instruction == "go"
