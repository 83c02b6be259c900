"""What a data set suggests about its robot: right about robots nobody has heard of, and never surer
than it may be."""

import dataclasses

import numpy as np
import pytest
from recordings import Recording, absolute, delta, follow, switch

from armlet.data.description import Suggestion, suggest


def counted(dims: int) -> tuple[str, ...]:
    return tuple(map(str, range(dims)))


def recording(
    moves: tuple[np.ndarray, np.ndarray, np.ndarray],
    names: tuple[str, ...] | None = None,
    **ends: float,
) -> Recording:
    """A robot that moves so; with `opened` and `closed`, a gripper is its last dimension."""
    action, state, starts = moves
    if ends:
        gripper = switch(starts, ends["opened"], ends["closed"])
        action = np.c_[action, gripper]
        state = np.c_[state, follow(gripper[:, None], 0.3)]
    count = action.shape[1]
    return Recording(action, state, starts, names or counted(count), counted(state.shape[1]))


def blind(made: Recording) -> Recording:
    return dataclasses.replace(made, state=made.state[:, :0], state_names=())


def wide(size: float, dims: int) -> tuple[np.ndarray, np.ndarray]:
    return -size * np.ones(dims), size * np.ones(dims)


RADIANS = recording(absolute(*wide(2.0, 6)), opened=1.0, closed=0.0)
DEGREES = recording(absolute(*wide(90.0, 5)), opened=100.0, closed=0.0)
HAND = recording(delta(3), opened=-1.0, closed=1.0)
HAND_6 = recording(delta(6), opened=1.0, closed=0.0)
BASE = recording(delta(2, gain=1 / 30, noise=0.02), ("vx", "vy"))
PIXELS = recording(absolute(np.array([50.0, 50.0]), np.array([450.0, 450.0])))


@pytest.mark.parametrize(
    ("made", "mode"),
    [
        (RADIANS, "absolute"),
        (DEGREES, "absolute"),
        (PIXELS, "absolute"),
        (HAND, "delta"),
        (HAND_6, "delta"),
        (BASE, "delta"),
        (recording(delta(3, gain=0.004, noise=0.01)), "delta"),
    ],
)
def test_places_and_changes_are_told_apart_by_the_state(made: Recording, mode: str) -> None:
    found = suggest(made).mode
    assert (found.value, found.confidence) == (mode, "sure")


def test_without_a_state_nothing_is_sure() -> None:
    for made in (HAND, RADIANS, DEGREES):
        assert suggest(blind(made)).mode.confidence != "sure"
    assert suggest(blind(HAND)).mode.value == "delta"


def test_a_hand_that_always_goes_to_one_place_says_nothing() -> None:
    """Where it stands then says what it will do, as well as how it moves does."""
    rng = np.random.default_rng(0)
    actions, states = [], []
    for _ in range(15):
        place = rng.uniform(-0.5, 0.5, 3)
        for _ in range(60):
            command = 2 * (0.1 - place) + 0.02 * rng.normal(size=3)
            actions.append(command)
            states.append(place)
            place = place + 0.05 * command
    made = recording((np.array(actions), np.array(states), np.arange(16) * 60))
    assert suggest(made).mode.confidence != "sure"


def test_an_episode_is_not_followed_by_the_next() -> None:
    """Of short episodes, where the jump from one to the next would drown every change."""
    found = suggest(recording(delta(3, episodes=80, length=4))).mode
    assert (found.value, found.confidence) == ("delta", "sure")


def test_noise_and_too_few_frames_say_nothing() -> None:
    rng = np.random.default_rng(0)
    noise = recording((rng.normal(size=(900, 7)), rng.normal(size=(900, 7)), np.arange(11) * 90))
    few = recording(absolute(*wide(2.0, 3), episodes=2, length=20))
    for made in (noise, few):
        found = suggest(made).mode
        assert (found.value, found.confidence) == (None, "unclear")


def test_names_and_numbers_that_disagree_are_not_sure() -> None:
    names = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
    found = suggest(dataclasses.replace(RADIANS, action_names=names)).mode
    assert found.value == "absolute" and found.confidence == "likely" and "called dx" in found.why
    right = suggest(dataclasses.replace(HAND, action_names=("dx", "dy", "dz", "gripper"))).mode
    assert (right.value, right.confidence) == ("delta", "sure")


@pytest.mark.parametrize(
    ("made", "ends"),
    [(RADIANS, (1, 0)), (DEGREES, (100, 0)), (HAND, (-1, 1)), (HAND_6, (1, 0))],
)
def test_a_gripper_without_a_name_is_likely_and_its_ends_are(
    made: Recording, ends: tuple[float, float]
) -> None:
    found = suggest(made)
    last = made.action.shape[1] - 1
    assert (found.grippers.value, found.grippers.confidence) == ((last,), "likely")
    assert (found.gripper_open.value, found.gripper_closed.value) == ends
    assert found.gripper_open.confidence == "likely", "no statistic knows which end is open"
    assert found.sure.grippers is None and found.sure.gripper_open is None


def test_a_gripper_by_name_is_sure_and_its_unknown_ends_are_not_made_up() -> None:
    action, state, starts = absolute(*wide(2.0, 3))
    names = ("lift", "turn", "left_gripper.pos")
    found = suggest(Recording(action, state, starts, names, names))
    assert (found.grippers.value, found.grippers.confidence) == ((2,), "sure")
    assert (found.gripper_open.value, found.gripper_open.confidence) == (None, "unclear")


def test_two_arms_have_two_grippers() -> None:
    one = RADIANS
    other = recording(absolute(*wide(2.0, 6), seed=1), opened=1.0, closed=0.0)
    both = Recording(
        np.c_[one.action, other.action],
        np.c_[one.state, other.state],
        one.starts,
        counted(14),
        counted(14),
    )
    found = suggest(both)
    assert found.grippers.value == (6, 13) and found.mode.value == "absolute"
    action = both.action.copy()
    action[:, 13] *= 100
    differ = suggest(dataclasses.replace(both, action=action))
    assert differ.gripper_open.value is None and "differ" in differ.gripper_open.why


def test_episodes_that_begin_either_way_say_little_of_the_ends() -> None:
    action = HAND.action.copy()
    first = HAND.starts[:-1]
    action[first[::2], 3] *= -1
    found = suggest(dataclasses.replace(HAND, action=action))
    assert found.gripper_open.confidence == "unclear"


def test_no_gripper_is_sure_only_where_names_tell() -> None:
    assert suggest(BASE).grippers.value == () and suggest(BASE).grippers.confidence == "sure"
    assert suggest(PIXELS).grippers.value == () and suggest(PIXELS).grippers.confidence == "likely"


@pytest.mark.parametrize(
    ("names", "rotation", "confidence"),
    [
        (("x", "y", "z", "qx", "qy", "qz", "qw"), "quaternion", "sure"),
        (("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"), "euler", "sure"),
        (("x", "y", "z", "rx", "ry", "rz", "gripper"), "axis_angle", "likely"),
        (("a_roll", "a_pitch", "a_yaw", "b", "c", "d", "e"), "euler", "sure"),
        (tuple(f"rot6d_{index}" for index in range(6)) + ("x",), "rot6d", "sure"),
        (("pan", "lift", "flex", "roll", "turn", "bend", "gripper"), "none", "sure"),
        (tuple(f"joint_{index}" for index in range(7)), "none", "sure"),
        (counted(7), None, "unclear"),
    ],
)
def test_rotations_are_found_by_their_names(
    names: tuple[str, ...], rotation: str | None, confidence: str
) -> None:
    found = suggest(dataclasses.replace(RADIANS, action_names=names)).rotation
    assert (found.value, found.confidence) == (rotation, confidence)


def test_a_quaternion_is_found_by_its_length() -> None:
    four = HAND_6.action[:, :4] + 0.1
    four /= np.linalg.norm(four, axis=1, keepdims=True)
    action = np.c_[HAND_6.action[:, :3], four]
    found = suggest(dataclasses.replace(HAND_6, action=action, action_names=counted(7)))
    assert (found.rotation.value, found.rotation.confidence) == ("quaternion", "likely")
    assert "3, 4, 5, 6" in found.rotation.why


def test_what_never_moves_is_far_out_or_absurd_is_said() -> None:
    action = RADIANS.action.copy()
    action[:, 2] = 0.3
    action[5, 0] = 1e6
    action[7, 1] = 99.0
    state = RADIANS.state.copy()
    state[:, 4] = 0.0
    said = suggest(dataclasses.replace(RADIANS, action=action, state=state)).warnings
    assert [line for line in said if line.startswith("action: never moves: 2 (at 0.3)")]
    assert [line for line in said if line.startswith("action 0: goes from")]
    assert [line for line in said if "action 1:" in line and "1 frames are far out" in line]
    assert [line for line in said if line.startswith("state: never moves: 4 (at 0)")]
    assert suggest(RADIANS).warnings == ()


def test_ranges_are_of_all_frames() -> None:
    found: Suggestion = suggest(DEGREES)
    assert [each.low for each in found.actions] == DEGREES.action.astype(np.float32).min(0).tolist()
    assert found.actions[0].unit == "degrees?" and found.actions[5].unit == ""
    assert suggest(RADIANS).actions[0].unit.startswith("radians")
    assert suggest(HAND).actions[0].unit == "", "of a change nobody knows the unit"


def test_much_data_are_looked_at_by_whole_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("armlet.data.description.MOST_ROWS", 300)
    found = suggest(HAND)
    assert found.mode.value == "delta" and found.frames == len(HAND)
