"""Chunks that come late: the soft mask against the paper's formula, the queue against the closed
loop's own timetables, and a policy in a thread that fails, hangs and answers nonsense while a robot
steps at its rate."""

import math
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armlet.robot.bounds import Bounds
from armlet.robot.chunks import follow, soft_mask
from armlet.robot.ensemble import Exponential
from armlet.robot.guard import ActionGuard
from armlet.robot.observation import Observation
from armlet.robot.queue import AsyncActor, ChunkQueue
from armlet.robot.spec import ActionSpec
from armlet.rollout.loop import schedule

HZ = 50.0
SPEC = ActionSpec(("dx", "gripper"), "delta", "none", (-999.0,) * 2, (999.0,) * 2, (1,), -1, 1, HZ)
SEEN = Observation({}, np.zeros(1, np.float32), "go", np.zeros(2, np.float32))


def chunk_of(number: int, size: int, gripper: float = 1.0) -> np.ndarray:
    """Actions that name themselves: the decision's number times 100, and the place in its chunk."""
    rows = [(100 * number + place, gripper) for place in range(size)]
    return np.array(rows, np.float32)


# --- the mask


@given(st.integers(1, 40), st.data())
def test_the_soft_mask_is_that_of_the_paper(chunk: int, data: st.DataObject) -> None:
    """Equation 5 of arXiv 2506.07339, written as it stands there, H − s being the overlap."""
    overlap = data.draw(st.integers(0, chunk))
    frozen = data.draw(st.integers(0, overlap))
    weights = soft_mask(frozen, overlap, chunk)
    for i in range(chunk):
        if i < frozen:
            expected = 1.0
        elif i < overlap:
            c = (overlap - i) / (overlap - frozen + 1)
            expected = c * (math.exp(c) - 1) / (math.e - 1)
        else:
            expected = 0.0
        assert weights[i] == pytest.approx(expected)
    assert (np.diff(weights) <= 1e-12).all()


def test_blending_goes_over_from_the_old_chunk_to_the_new() -> None:
    old = chunk_of(1, 6)[2:]  # four are left
    new = chunk_of(2, 6, gripper=-1)
    got = follow(new, old, 1, "blend", SPEC)
    weights = soft_mask(1, 4, 6)[1:, None]
    padded = np.concatenate([old[1:], np.zeros((2, 2))])
    expected = weights * padded + (1 - weights) * new[1:]
    assert got[:, 0] == pytest.approx(expected[:, 0]) and len(got) == 5
    # A gripper is on one side or the other, never between.
    assert got[:, 1].tolist() == [1 if weight >= 0.5 else -1 for weight in weights[:, 0]]
    assert np.array_equal(new, chunk_of(2, 6, gripper=-1))  # and the policy's answer is its own
    # As much as is left, however late: nothing of the old one is carried out twice.
    assert follow(new, old, 9, "blend", SPEC)[:, 0].tolist() == [204, 205]
    assert np.array_equal(follow(new, old[:0], 0, "blend", SPEC), new)


def test_rotations_given_as_positions_are_not_blended() -> None:
    turning = replace(SPEC, mode="absolute", rotation="quaternion")
    with pytest.raises(ValueError, match=r"blend mixes actions number by number.*use run_on"):
        ChunkQueue(turning, execute=1, late="blend")
    ChunkQueue(turning, execute=1, late="run_on")


# --- the queue


@pytest.mark.parametrize("late", ["wait", "run_on", "blend", "guided"])
@pytest.mark.parametrize("size", [1, 3, 6])
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_queue_carries_out_what_the_closed_loop_does(
    late: str, size: int, data: st.DataObject
) -> None:
    """The same delay at each decision gives the same actions at the same steps."""
    execute = data.draw(st.integers(1, size))
    lag = data.draw(st.integers(0, 8))
    expected: list[float] = []
    left = np.empty((0, 2), np.float32)
    for number in range(1, 6):
        now, left = schedule(
            chunk_of(number, size), left, SPEC, execute=execute, lag=lag, late=late
        )
        expected += [math.nan if action is None else float(action[0]) for action in now]
    queue = ChunkQueue(SPEC, execute=execute, late=late)
    got: list[float] = []
    asked = 0
    due: list = []
    while len(got) < len(expected):
        if queue.wants and asked < 6:
            asked += 1
            due.append((len(got) + lag, chunk_of(asked, size), queue.ask()))
        for _, chunk, ticket in [each for each in due if each[0] == len(got)]:
            assert queue.put(chunk, ticket)
            due.pop(0)
        action = queue.take()
        got.append(math.nan if action is None else float(action[0]))
    assert np.allclose(got, expected, equal_nan=True)
    assert set(queue.delays) <= {lag}


def test_an_ensemble_in_the_queue_is_that_of_the_closed_loop() -> None:
    queue = ChunkQueue(SPEC, execute=1, ensemble=Exponential(0.0))
    got = []
    for number in range(1, 4):
        queue.put(chunk_of(number, 3), queue.ask())
        got.append(queue.take()[0])
    # The mean of what each decision said of the moment.
    assert got == pytest.approx([100, (101 + 200) / 2, (102 + 201 + 300) / 3])


def test_an_answer_to_another_episode_or_twice_is_of_no_use() -> None:
    queue = ChunkQueue(SPEC, execute=2)
    old = queue.ask()
    with pytest.raises(RuntimeError, match="asked for already"):
        queue.ask()
    queue.reset()
    assert not queue.put(chunk_of(1, 3), old) and queue.take() is None
    new = queue.ask()
    assert not queue.put(chunk_of(1, 3), old)
    assert queue.put(chunk_of(2, 3), new) and not queue.put(chunk_of(3, 3), new)
    assert queue.take()[0] == 200
    queue.take()
    lost = queue.ask()
    queue.drop(lost)
    assert queue.wants and queue.take() is None  # nothing of the chunk before either
    assert not queue.put(chunk_of(4, 3), lost)


@pytest.mark.parametrize(
    "wrong", [np.zeros(2), np.zeros((3, 3)), np.zeros((1, 2)), np.full((2, 2), np.nan), "no"]
)
def test_what_is_no_chunk_is_refused(wrong: object) -> None:
    queue = ChunkQueue(SPEC, execute=2)
    with pytest.raises(ValueError, match=r"."):
        queue.put(wrong, queue.ask())
    with pytest.raises(ValueError, match="execute is 0"):
        ChunkQueue(SPEC, execute=0)


# --- a policy in a thread


class Policy:
    """Answers when it is let, and what it is told to."""

    def __init__(self) -> None:
        self.answers = threading.Semaphore(0)
        self.answered = threading.Semaphore(0)
        self.asked: list[Observation] = []
        self.fails: object = None

    def infer(self, seen: Observation) -> np.ndarray:
        self.asked.append(seen)
        self.answers.acquire()
        try:
            if isinstance(self.fails, BaseException):
                raise self.fails
            return chunk_of(len(self.asked), 4) if self.fails is None else self.fails
        finally:
            self.answered.release()

    def answer(self, actor: AsyncActor, fails: object = None) -> None:
        """Lets it answer, and waits until the answer is there."""
        self.fails = fails
        self.answers.release()
        assert self.answered.acquire(timeout=5)
        until = time.monotonic() + 5
        while time.monotonic() < until:
            with actor._changed:
                if actor.queue._asked is None:
                    return
            time.sleep(1e-3)
        raise AssertionError("the answer did not arrive")


class Stepper:
    """A robot that steps at its rate, by a clock that is told."""

    def __init__(self, execute: int = 2, **said) -> None:
        self.now = 0.0
        bounds = said.pop("bounds", Bounds.of(SPEC, silence_s=0.1))
        self.guard = ActionGuard(SPEC, bounds, clock=lambda: self.now)
        self.policy = Policy()
        self.actor = AsyncActor(self.policy.infer, self.guard, execute=execute, **said)
        self.actor.reset()

    def step(self, seen: Observation = SEEN):
        self.now += 1 / HZ
        return self.actor.action(seen)

    def close(self) -> None:
        self.actor._closed = True
        self.policy.answers.release(9)
        self.actor.close()


@pytest.fixture
def robot():
    made = []

    def make(**said) -> Stepper:
        made.append(Stepper(**said))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_the_control_loop_never_waits_for_the_policy(robot) -> None:
    stepper = robot(late="run_on")
    assert [stepper.step().held for _ in range(3)] == [True] * 3
    stepper.policy.answer(stepper.actor)
    first = [stepper.step() for _ in range(3)]
    # Asked again after two; the third is of what is left of the first chunk.
    assert [given_.action[0] for given_ in first] == [100, 101, 102]
    stepper.policy.answer(stepper.actor)
    assert [stepper.step().action[0] for _ in range(2)] == [201, 202]
    assert list(stepper.actor.queue.delays) == [3, 1]
    # It is told what went to the motors, not what was wanted.
    assert [seen.previous_action.tolist() for seen in stepper.policy.asked[:2]] == [
        [0, 0],
        [101, 1],
    ]


WRONG = {
    "an exception": RuntimeError("out of memory"),
    "NaN": np.full((4, 2), np.nan, np.float32),
    "another shape": np.zeros((4, 7), np.float32),
    "no array": "four actions",
    "one action": np.zeros(2, np.float32),
}


@pytest.mark.parametrize("fails", WRONG.values(), ids=WRONG.keys())
def test_what_a_policy_gets_wrong_holds_the_robot_in_the_next_step(robot, fails: object) -> None:
    stepper = robot()
    stepper.step()
    stepper.policy.answer(stepper.actor)
    assert stepper.step().action[0] == 100
    stepper.step()
    stepper.step()
    stepper.policy.answer(stepper.actor, fails)
    held = stepper.step()
    assert held.held and held.action.tolist() == [0, 1] and held.stopped is None
    assert [event.kind for event in held.events] == ["nonsense"]
    assert "the policy" in str(held.events[0])
    assert stepper.step().held  # nothing of the chunk before is carried out any more
    stepper.policy.answer(stepper.actor)
    assert not stepper.step().held


def test_a_policy_that_never_answers_is_waited_for_as_long_as_the_watchdog_says(robot) -> None:
    stepper = robot(bounds=Bounds.of(SPEC, silence_s=0.1, on_silence="stop"))
    stepper.step()
    stepper.policy.answer(stepper.actor)
    given_ = [stepper.step() for _ in range(12)]
    assert [each.held for each in given_] == [False] * 4 + [True] * 8
    # 0.1 s after the last action that was carried out, at 50 Hz the sixth step of standing still.
    assert [each.stopped is not None for each in given_].index(True) in (9, 10)
    stepper.policy.answer(stepper.actor)
    assert stepper.step().stopped
    stepper.actor.reset()
    stepper.step()
    stepper.policy.answer(stepper.actor)
    assert not stepper.step().held


def test_jumps_of_a_policy_are_clipped_and_a_clock_that_jumps_holds(robot) -> None:
    bounds = Bounds.of(SPEC, velocity=(500.0, math.inf), silence_s=0.5)
    stepper = robot(bounds=bounds)
    stepper.step()
    stepper.policy.answer(stepper.actor)
    jump = stepper.step()  # 100 is asked for; 500 a second at 50 Hz are 10
    assert jump.action[0] == pytest.approx(10) and jump.events[0].kind == "velocity"
    stepper.now += 60
    assert stepper.step().held
    assert not stepper.step().held


def test_an_answer_to_the_episode_before_is_thrown_away(robot) -> None:
    stepper = robot()
    stepper.step()
    while not stepper.policy.asked:
        time.sleep(1e-3)
    stepper.actor.reset()
    stepper.policy.fails = None
    stepper.policy.answers.release()
    assert stepper.policy.answered.acquire(timeout=5)
    for _ in range(3):
        assert stepper.step().held
    stepper.policy.answer(stepper.actor)
    assert stepper.step().action[0] == 200  # asked at the first step of this one


def test_a_broken_clock_or_observation_holds_and_raises_nothing(robot) -> None:
    stepper = robot()
    stepper.step()
    stepper.policy.answer(stepper.actor)
    assert stepper.actor.action(None).held
    stepper.now = math.nan
    assert stepper.actor.action(SEEN).stopped


def test_in_real_time_with_a_real_thread_the_robot_holds_when_the_policy_hangs() -> None:
    """At 100 Hz: no control step waits, and standing still begins at the step in which nothing is
    left of the chunk."""
    spec = replace(SPEC, control_hz=100.0)
    guard = ActionGuard(spec, Bounds.of(spec, silence_s=0.1, on_silence="stop"))
    hangs = threading.Event()
    asked = []

    def infer(seen: Observation) -> np.ndarray:
        asked.append(seen)
        if len(asked) > 3:
            hangs.wait(5)
        time.sleep(0.015)
        return chunk_of(len(asked), 8)

    with AsyncActor(infer, guard, execute=4, late="run_on") as actor:
        actor.reset()
        given_ = []
        longest = 0.0
        begin = time.monotonic()
        for number in range(60):
            until = begin + number / 100
            time.sleep(max(0.0, until - time.monotonic()))
            started = time.monotonic()
            given_.append(actor.action(SEEN))
            longest = max(longest, time.monotonic() - started)
        hangs.set()
    moved = [index for index, each in enumerate(given_) if not each.held]
    # Three chunks of eight, of which what was carried out meanwhile is left out.
    assert len(asked) >= 4 and moved
    last = moved[-1]
    assert all(each.held and each.action[0] == 0 for each in given_[last + 1 :])
    assert given_[-1].stopped is not None
    assert longest < 0.1
