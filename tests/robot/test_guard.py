"""The guard against what may come: whatever goes in, what comes out is finite, in range, no faster
than it may be and within the workspace; and the robot is held within one control step of what went
wrong. The references are a robot whose place is summed up here, and intervals written out by hand.
"""

import itertools
import logging
import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from armlet.robot.bounds import Bounds, Wall
from armlet.robot.guard import ActionGuard
from armlet.robot.spec import ActionSpec

HZ = 10.0
DELTA = ActionSpec(
    ("dx", "dy", "gripper"), "delta", "none", (-1.0,) * 3, (1.0,) * 3, (2,), -1.0, 1.0, HZ, 0.05
)
ABSOLUTE = ActionSpec(
    ("j0", "j1", "gripper"), "absolute", "none", (-2.0, 0.0, 0.0), (2.0, 3.0, 1.0), (2,), 1.0, 0.0,
    HZ,
)  # fmt: skip
STATE = ("x", "y", "opening")


class Clock:
    """Seconds that go on only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def bounds(spec: ActionSpec = DELTA, **said: object) -> Bounds:
    return Bounds.of(spec, **said)


class Robot:
    """A guard, and a robot that steps at its rate and does as it is told."""

    def __init__(self, spec: ActionSpec = DELTA, at: tuple[float, ...] = (0, 0), **said) -> None:
        self.clock = Clock()
        self.spec = spec
        self.at = np.array(at, float)
        state_names = STATE if spec.mode == "delta" else spec.names
        self.guard = ActionGuard(
            spec, bounds(spec, **said), state_names=state_names, clock=self.clock
        )
        if spec.mode == "absolute":
            self.guard.reset(state=np.append(self.at, 1.0))

    def step(self, asked: object, *, after: float = 1 / HZ, measured: bool = True, **more):
        self.clock.now += after
        state = np.append(self.at, 0.0) if measured and self.spec.mode == "delta" else None
        found = self.guard.step(asked, state=state, **more)
        if found.action is not None:
            moved = found.action[:2].astype(float)
            self.at = self.at + 0.05 * moved if self.spec.mode == "delta" else moved
        return found


def kinds(found) -> list[str]:
    return [event.kind for event in found.events]


def test_what_is_within_all_limits_passes_to_the_bit() -> None:
    robot = Robot(velocity=(8, 8, math.inf), walls=(Wall(0, -9, 9, 0, 0.05),))
    for action in ([0.1, -0.7, 1], [0.3, 0.79, 1], [-0.79, 0, -1]):
        asked = np.array(action, np.float32)
        found = robot.step(asked)
        assert found.action.dtype == np.float32 and np.array_equal(found.action, asked)
        assert not found.events and not found.held and found.stopped is None


def test_range_velocity_and_workspace_are_clipped_and_said() -> None:
    robot = Robot()
    found = robot.step([2.0, -3.0, 1])
    assert found.action.tolist() == [1, -1, 1]
    first, second = found.events
    assert (first.kind, first.dimension, first.asked, first.given) == ("range", "dx", 2, 1)
    assert (second.dimension, second.time) == ("dy", robot.clock.now)
    assert robot.guard.counts == {"range": 2}
    # 4 a second at 10 Hz: 0.4 a step.
    found = Robot(velocity=(4.0, math.inf, math.inf)).step([0.9, 0.9, 1])
    assert found.action == pytest.approx([0.4, 0.9, 1]) and kinds(found) == ["velocity"]
    assert float(found.action[0]) <= 0.4  # the nearest of single precision is above
    # A move of 1 goes 0.05 m: 0.01 m are left on the way to the wall, 0.2 of a move.
    wall = Wall(0, -0.1, 0.11, 0, 0.05)
    robot = Robot(at=(0.1, 0), walls=(wall,))
    found = robot.step([1, 1, 1])
    assert found.action == pytest.approx([0.2, 1, 1]) and kinds(found) == ["workspace"]
    assert robot.step([1, 0, 1]).action[0] == pytest.approx(0, abs=1e-6)
    assert robot.step([-1, 0, 1]).action[0] == -1


def test_the_place_is_summed_up_between_measurements() -> None:
    wall = Wall(0, -1, 0.12, 0, 0.05)
    robot = Robot(walls=(wall,))
    robot.step([0, 0, 1])
    given = [robot.step([1, 0, 1], measured=False).action[0] for _ in range(4)]
    assert given == pytest.approx([1, 1, 0.4, 0], abs=1e-6)


def test_from_outside_the_workspace_only_the_way_back_is_open() -> None:
    robot = Robot(at=(0.5, 0), walls=(Wall(0, -0.1, 0.1, 0, 0.05),))
    assert robot.step([0.5, 0, 1]).action[0] == 0
    assert robot.step([-0.5, 0, 1]).action[0] == -0.5
    backwards = Robot(at=(0.5, 0), walls=(Wall(0, -0.1, 0.1, 0, -0.05),))
    assert backwards.step([0.5, 0, 1]).action[0] == 0.5  # here a positive move leads back
    assert backwards.step([-0.5, 0, 1]).action[0] == 0


def test_speeding_up_is_limited_and_braking_is_not() -> None:
    # 20 a second a second: 2 a second faster a step, 0.2 of a move.
    robot = Robot(acceleration=(20.0, math.inf, math.inf))
    given = [robot.step([0.5, 0.5, 1]).action[0] for _ in range(4)]
    assert given == pytest.approx([0.2, 0.4, 0.5, 0.5])
    assert robot.step([0, 0, 1]).action[0] == 0
    assert robot.step([0.5, 0, 1]).action[0] == pytest.approx(0.2)
    assert robot.step([-0.5, 0, 1]).action[0] == pytest.approx(-0.2)  # it had brakes for the rest
    robot.step(None)
    assert robot.step([-0.5, 0, 1]).action[0] == pytest.approx(-0.2)  # from standing still again


def test_positions_change_no_faster_than_they_may() -> None:
    robot = Robot(ABSOLUTE, at=(0.5, 1.0), velocity=(2.0, 1.0, math.inf))
    found = robot.step([2, 0, 1])
    assert found.action == pytest.approx([0.7, 0.9, 1]) and kinds(found) == ["velocity"] * 2
    assert robot.step([2, 3, 1]).action == pytest.approx([0.9, 1.0, 1])
    held = robot.step(None)
    assert held.held and held.action == pytest.approx([0.9, 1.0, 1])


NONSENSE = [
    np.array([np.nan, 0, 0]),
    np.array([0, np.inf, 0]),
    np.array([0, 0, -np.inf]),
    np.zeros(2),
    np.zeros((1, 3)),
    np.zeros(0),
    "an action",
    object(),
    [[1], [1, 2], [3]],
    {"action": 1},
    [1e400, 0, 0],
    1j * np.ones(3),
    ["1", "0", "0"],
    [None, 0, 0],
]


@pytest.mark.parametrize("asked", NONSENSE, ids=lambda asked: repr(asked).split(" at ")[0][:24])
@pytest.mark.parametrize("spec", [DELTA, ABSOLUTE], ids=["delta", "absolute"])
def test_nonsense_holds_the_robot_in_the_same_step(spec: ActionSpec, asked: object) -> None:
    robot = Robot(spec, at=(0.5, 0.5))
    robot.step(np.array([0.75, 0.5, 0.0], np.float32))
    before = robot.at
    found = robot.step(asked)
    expected = [0.75, 0.5, 0] if spec.mode == "absolute" else [0, 0, 0]
    assert found.held and found.stopped is None and set(kinds(found)) == {"nonsense"}
    assert np.array_equal(found.action, expected) and np.array_equal(robot.at, before)
    assert not robot.step([0.5, 0.5, 0.0]).held  # and goes on with the next that is none
    strict = Robot(spec, at=(0.5, 0.5), on_nonsense="stop")
    assert strict.step(asked).stopped
    assert strict.step([0.5, 0.5, 1]).held and strict.step([0.5, 0.5, 1]).stopped
    strict.guard.reset(state=[0.5, 0.5, 1])
    assert not strict.step([0.5, 0.5, 1]).held


def test_an_error_of_who_should_have_answered_is_nonsense() -> None:
    robot = Robot()
    found = robot.step([1, 1, 1], error="the policy: ValueError: no camera")
    assert found.held and found.action.tolist() == [0, 0, -1]  # never told: open
    assert "no camera" in str(found.events[0])


def test_the_gripper_is_kept_while_the_robot_is_held() -> None:
    robot = Robot()
    robot.step([0, 0, 1])
    assert robot.step(None).action.tolist() == [0, 0, 1]
    assert robot.step([np.nan, 0, -1]).action.tolist() == [0, 0, 1]


def test_silence_is_told_once_and_held_or_stopped() -> None:
    for reply in ("hold", "stop"):
        robot = Robot(silence_s=0.35, on_silence=reply)
        robot.step([1, 0, 1])
        told = []
        for _ in range(6):
            found = robot.step(None)
            assert found.held and found.action.tolist() == [0, 0, 1]
            told.append("silence" in kinds(found))
        assert told == [False, False, False, True, False, False]
        assert (robot.guard.stopped is not None) == (reply == "stop")
        assert robot.step([1, 0, 1]).held == (reply == "stop")
    # What cannot be carried out does not count as an answer.
    robot = Robot(silence_s=0.35, on_silence="stop")
    stopped = [robot.step([np.nan, 0, 0]).stopped for _ in range(6)]
    assert [reason is not None for reason in stopped] == [False] * 4 + [True] * 2


def test_what_was_decided_from_too_long_ago_is_not_carried_out() -> None:
    robot = Robot(age_s=0.5, silence_s=9)
    now = robot.clock.now
    ages = []
    for _ in range(8):
        ages.append(robot.step([1, 0, 1], seen_at=now).held)
    assert ages == [False] * 5 + [True] * 3
    assert kinds(robot.step([1, 0, 1], seen_at=math.nan)) == ["stale"]
    assert kinds(robot.step([1, 0, 1], seen_at=robot.clock.now + 5)) == ["stale"]
    assert not robot.step([1, 0, 1], seen_at=robot.clock.now).held


def test_a_clock_that_jumps_costs_one_step_of_standing_still() -> None:
    for jump in (3600.0, -3600.0):
        robot = Robot(velocity=(4.0, 4.0, math.inf))
        robot.step([0.4, 0, 1])
        found = robot.step([0.4, 0, 1], after=jump)
        assert found.held and "clock" in kinds(found) and found.action.tolist() == [0, 0, 1]
        after = robot.step([1, 0, 1])
        assert not after.held and after.action[0] == pytest.approx(0.4)


def test_who_comes_late_may_not_make_up_for_it_and_who_hurries_moves_less() -> None:
    robot = Robot(velocity=(4.0, 4.0, math.inf))
    assert robot.step([1, 0, 1], after=0.4).action[0] == pytest.approx(0.4)
    assert robot.step([1, 0, 1], after=0.095).action[0] == pytest.approx(0.4)  # jitter
    assert robot.step([1, 0, 1], after=0.05).action[0] == pytest.approx(0.2)
    assert robot.step([1, 0, 1], after=0.0).action[0] == 0


@pytest.mark.parametrize("broken", [math.nan, math.inf, None, "noon"])
def test_a_fault_in_the_guard_itself_stops_the_robot(broken: object, caplog) -> None:
    robot = Robot(ABSOLUTE, at=(0.5, 0.5))
    robot.step([0.6, 0.5, 1])
    robot.guard._clock = lambda: broken
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            found = robot.guard.step([0.7, 0.5, 1])
            assert found.held and found.stopped and kinds(found) == ["fault"]
            assert found.action == pytest.approx([0.6, 0.5, 1])
        chunk = robot.guard.chunk([[0.7, 0.5, 1]])
        assert chunk.stopped and chunk.actions is not None
    assert len(caplog.records) == 1
    robot.guard._clock = robot.clock
    assert robot.step([0.7, 0.5, 1]).held  # until it is reset
    robot.guard.reset(at=np.array([0.6, 0.5, 1]))
    assert not robot.step([0.7, 0.5, 1]).held


def test_whatever_goes_wrong_inside_nothing_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    for inner in ("limited", "whole", "seen"):
        robot = Robot()
        robot.step([1, 0, 1])

        def fails(*_: object, **__: object) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(robot.guard._limiter, inner, fails)
        found = robot.step([1, 1, 1])
        assert found.held and found.stopped and found.action.tolist() == [0, 0, 1]
        monkeypatch.undo()
        assert robot.step([1, 1, 1]).action.tolist() == [0, 0, 1]


def test_a_stop_is_kept_until_it_is_reset() -> None:
    robot = Robot()
    robot.step([1, 0, 1])
    robot.guard.stop("a hand on the button")
    found = robot.step([1, 0, 1])
    assert found.held and found.stopped == "a hand on the button" and kinds(found) == ["stopped"]
    assert not robot.step([1, 0, 1]).events and robot.step([1, 0, 1]).stopped
    robot.guard.reset()
    assert robot.guard.stopped is None and not robot.step([1, 0, 1]).held


@pytest.mark.parametrize("reply", ["hold", "stop"])
@pytest.mark.parametrize("kind", ["range", "velocity", "workspace"])
def test_a_limit_may_hold_or_stop_where_it_would_clip(kind: str, reply: str) -> None:
    said = {f"on_{kind}": reply, "walls": (Wall(1, -0.03, 0.03, 1, 0.05),)}
    robot = Robot(velocity=(4.0, math.inf, math.inf), **said)
    over = {"range": [0, -2, 1], "velocity": [0.9, 0, 1], "workspace": [0, 0.9, 1]}[kind]
    found = robot.step(over)
    assert found.held and kind in kinds(found) and found.action.tolist() == [0, 0, -1]
    assert (found.stopped is not None) == (reply == "stop")


# --- where a robot is


def test_where_nobody_knows_the_place_nothing_is_sent() -> None:
    clock = Clock()
    guard = ActionGuard(ABSOLUTE, bounds(ABSOLUTE, velocity=(2.0,) * 3), clock=clock)
    found = guard.step([1, 1, 1])
    assert found.action is None and found.held and kinds(found) == ["place"]
    guard.reset(at=np.array([1, 1, 1.0]))
    assert guard.step([1, 1, 1]).action.tolist() == [1, 1, 1]
    for wrong in ([1, 1], [1, 1, math.nan]):
        with pytest.raises(ValueError, match="expected 3 finite numbers"):
            guard.reset(at=np.array(wrong))
    # Degrees where radians are meant are no place of this robot.
    for state in ([57, 57, 1], [math.nan, 1, 1], [1, 1], None, "here"):
        guard = ActionGuard(
            ABSOLUTE,
            bounds(ABSOLUTE, velocity=(2.0,) * 3),
            state_names=ABSOLUTE.names,
            clock=clock,
        )
        assert guard.step([1, 1, 1], state=state).action is None
    assert guard.step([1, 1, 1], state=[1, 1, 1.0]).action.tolist() == [1, 1, 1]


def test_a_delta_robot_that_does_not_know_its_place_stands_still_before_a_wall() -> None:
    robot = Robot(walls=(Wall(0, -1, 1, 0, 0.05),))
    for state in (None, [math.nan, 0, 0], [], "here"):
        robot.guard.reset()
        found = robot.guard.step([1, 1, 1], state=state)
        assert found.held and kinds(found) == ["place"] and found.action.tolist() == [0, 0, -1]


# --- the gripper


def test_a_gripper_does_not_chatter() -> None:
    robot = Robot(gripper_steps=3)
    asked = [-1, 1, -1, 1, 1, -1, 1, 1, 1, -1, 1, -1, -1, -1]
    given_ = [robot.step([0, 0, each]).action[2] for each in asked]
    assert given_ == [-1, -1, -1, -1, -1, -1, -1, -1, 1, 1, 1, 1, 1, -1]
    # At once, and then not again for three steps.
    robot = Robot(gripper_rest=3)
    asked = [-1, 1, -1, -1, -1, 1, -1, 1, 1, -1]
    given_ = [robot.step([0, 0, each]).action[2] for each in asked]
    assert given_ == [-1, -1, -1, -1, -1, 1, 1, 1, 1, -1]
    robot = Robot(gripper_band=0.5)  # −0.5 to 0.5 is neither open nor closed
    asked = [0.2, 0.8, 0.4, -0.4, -0.6, 0.4, 0.6]
    given_ = [robot.step([0, 0, each]).action[2] for each in asked]
    assert given_ == pytest.approx([0.2, 0.8, 0.8, 0.8, -0.6, -0.6, 0.6])


def test_a_switch_in_a_step_that_is_held_was_none() -> None:
    robot = Robot(gripper_rest=3, velocity=(4.0, 4.0, math.inf), on_velocity="hold")
    for _ in range(4):
        robot.step([0, 0, -1])
    assert robot.step([0.9, 0, 1]).action.tolist() == [0, 0, -1]  # held, and the gripper kept
    assert robot.step([0.1, 0, 1]).action[2] == 1  # asked again: now, and not after a rest


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1.5, 1.5), max_size=40), st.integers(1, 4), st.floats(0, 0.9), st.booleans()
)
def test_a_gripper_never_turns_sooner_than_so_many_steps(
    asked: list[float], steps: int, band: float, rest: bool
) -> None:
    robot = Robot(**{"gripper_rest" if rest else "gripper_steps": steps}, gripper_band=band)
    sides = [np.sign(robot.step([0, 0, each]).action[2]) for each in asked]
    turns = [index for index in range(1, len(sides)) if sides[index] * sides[index - 1] < 0]
    assert all(later - sooner >= steps for sooner, later in itertools.pairwise(turns))


# --- properties

NUMBERS = st.one_of(
    st.floats(-3, 3), st.floats(width=32), st.just(math.nan), st.floats(-1e308, 1e308)
)
ACTIONS = st.one_of(
    st.lists(NUMBERS, min_size=3, max_size=3),
    st.none(),
    st.lists(NUMBERS, max_size=5),
    st.text(max_size=3),
)
STEPS = st.lists(
    st.tuples(ACTIONS, st.one_of(st.floats(0, 0.3), st.floats(-9, 99)), st.booleans()), max_size=30
)
CALM = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _limits(low: float = 0.5) -> Iterator[float]:
    return st.floats(low, 30)


@CALM
@given(STEPS, _limits(), _limits(5), st.floats(-0.3, 0.3), st.sampled_from(["hold", "stop"]))
def test_whatever_comes_a_delta_robot_stays_within(
    steps: list, fast: float, sudden: float, start: float, reply: str
) -> None:
    wall = Wall(0, -0.2, 0.1, 0, 0.05)
    robot = Robot(
        at=(start, 0),
        velocity=(fast, fast, math.inf),
        acceleration=(sudden, math.inf, math.inf),
        walls=(wall,),
        on_silence=reply,
    )
    lowest, highest = min(start, wall.low), max(start, wall.high)
    speed = 0.0
    for asked, after, measured in steps:
        found = robot.step(asked, after=after, measured=measured or robot.guard._before is None)
        action = found.action
        assert action is not None and action.dtype == np.float32 and action.shape == (3,)
        assert np.isfinite(action).all() and (np.abs(action) <= 1).all()
        # No faster than the limit over the time that passed, and never more than a period's.
        time = 0.1 if after >= 0.09 else max(after, 0)
        assert (np.abs(action[:2]) <= fast * time + 1e-12).all() or after == steps[0][1]
        assert (np.abs(action[:2]) <= fast / HZ * (1 + 1e-7)).all()
        assert abs(action[0]) <= speed + sudden / HZ**2 * (1 + 1e-6)
        speed = abs(float(action[0])) / max(time, 1e-9) / HZ
        assert lowest - 1e-9 <= robot.at[0] <= highest + 1e-9
        lowest = min(max(lowest, robot.at[0]), wall.low)
        highest = max(min(highest, robot.at[0]), wall.high)
        if found.held:
            assert not action[:2].any()


@CALM
@given(STEPS, _limits(), st.sampled_from(["clip", "hold", "stop"]))
def test_whatever_comes_an_absolute_robot_stays_within(
    steps: list, fast: float, reply: str
) -> None:
    wall = Wall(0, -1.0, 1.0)
    robot = Robot(
        ABSOLUTE,
        at=(0.5, 1.0),
        velocity=(fast, fast, fast),
        walls=(wall,),
        on_velocity=reply,
        on_workspace="clip",
    )
    last = np.array([0.5, 1.0, 1.0])
    for asked, after, _ in steps:
        found = robot.step(asked, after=after)
        action = found.action
        assert action is not None and np.isfinite(action).all()
        assert (action >= ABSOLUTE.low).all() and (action <= ABSOLUTE.high).all()
        assert (np.abs(action - last) <= fast / HZ + 1e-6).all()
        assert -1 <= action[0] <= 1
        if found.held:
            assert np.array_equal(action, last.astype(np.float32))
        last = action.astype(float)


@CALM
@given(st.lists(ACTIONS, max_size=6), st.one_of(st.none(), st.just([0.1, 0.2, 1.0])))
def test_whatever_chunk_comes_it_is_what_steps_would_give(rows: list, previous) -> None:
    """A chunk is guarded as its actions would be, sent a period apart, until one is held."""
    said = {"velocity": (4.0, 4.0, math.inf), "gripper_steps": 2}
    robot = Robot(**said)
    chunk = robot.guard.chunk(rows, state=[0, 0, 0], previous=previous)
    assert chunk.actions is not None and np.isfinite(chunk.actions).all()
    assert (np.abs(chunk.actions[:, :2]) <= 0.4 + 1e-7).all()
    whole = all(isinstance(row, list) and len(row) == 3 for row in rows)
    if not rows or not whole:
        return
    stepped = Robot(**said)
    if previous is not None:
        stepped.guard.reset(at=np.array(previous))
    held = False
    for row, given_ in zip(rows, chunk.actions, strict=True):
        found = stepped.step(None if held else row)
        held = held or found.held
        assert np.array_equal(found.action, given_)


def test_a_chunk_begins_at_what_was_sent_last() -> None:
    said = {"velocity": (2.0, 2.0, math.inf)}
    robot = Robot(ABSOLUTE, at=(0.5, 1.0), **said)
    asked = np.array([[2, 1, 1], [2, 1, 1], [2, np.nan, 1], [2, 1, 1]], np.float32)
    found = robot.guard.chunk(asked, previous=np.array([1.0, 1.0, 1.0]))
    assert found.actions[:, 0] == pytest.approx([1.2, 1.4, 1.4, 1.4])
    assert [event.kind for event in found.events] == ["velocity", "velocity", "nonsense"]
    found = robot.guard.chunk(asked, state=[0.5, 1.0, 1.0])
    assert found.actions[:, 0] == pytest.approx([0.7, 0.9, 0.9, 0.9])
    assert robot.guard.chunk(asked).actions is None  # nobody knows where it is
    for wrong in (None, 3, [], np.zeros((0, 3)), np.zeros((2, 2, 3))):
        held = robot.guard.chunk(wrong, state=[0.5, 1.0, 1.0])
        assert held.actions == pytest.approx(np.array([[0.5, 1, 1]] * len(held.actions)))
    robot.guard.stop("enough")
    held = robot.guard.chunk(asked, state=[0.5, 1.0, 1.0])
    assert held.stopped and held.actions == pytest.approx(np.array([[0.5, 1, 1]] * 4))


def test_from_an_action_of_a_chunk_that_is_held_on_all_are() -> None:
    strict = Robot(velocity=(4.0, 4.0, math.inf), on_velocity="hold")
    found = strict.guard.chunk([[0.1, 0, 1], [0.9, 0, 1], [0.1, 0, 1]], state=[0, 0, 0])
    assert found.actions.tolist() == [[np.float32(0.1), 0, 1], [0, 0, 1], [0, 0, 1]]


# --- what is said


def test_a_kind_is_logged_a_line_a_second(caplog: pytest.LogCaptureFixture) -> None:
    robot = Robot()
    with caplog.at_level(logging.WARNING, "armlet.robot.guard"):
        for _ in range(25):
            robot.step([2, 0, 1])
    assert len(caplog.records) == 3 and robot.guard.counts["range"] == 25
    assert caplog.messages[0] == "range: dx 2 became 1: outside its range"
    assert "more since the last line)" in caplog.messages[1]


def test_bounds_of_another_robot_are_refused() -> None:
    one = ActionSpec(("x",), "delta", "none", (-1.0,), (1.0,), (), 0, 0, 10)
    with pytest.raises(ValueError, match="bounds are of 3 dimensions, and an action has 1"):
        ActionGuard(one, bounds())
    with pytest.raises(ValueError, match=r"range\.dx is 0.5 to 1, without 0"):
        ActionGuard(DELTA, bounds(low=(0.5, -1, -1)))


def test_a_slow_robot_is_not_silent_between_two_of_its_steps() -> None:
    slow = ActionSpec(("dx",), "delta", "none", (-1.0,), (1.0,), (), 0, 0, 0.5)
    clock = Clock()
    guard = ActionGuard(slow, clock=clock)
    for _ in range(4):
        clock.now += 2
        assert not guard.step([1]).held
    with pytest.raises(ValueError, match=r"watchdog seconds is 3, and a control step takes 2 s"):
        ActionGuard(slow, Bounds.of(slow, silence_s=3))
