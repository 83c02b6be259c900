"""Episodes are compared with the robot before anything is taught: names, order, rate, range; all
that differs in one error."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import make_policy

from armlet.agreement import check_policy, check_taught, outside_range
from armlet.robot.spec import ActionSpec

SPEC = ActionSpec(
    ("dx", "dy", "dz", "gripper"),
    "delta",
    "none",
    (-1.0,) * 4,
    (1.0,) * 4,
    (3,),
    1.0,
    -1.0,
    10,
    0.05,
)
INSIDE = np.random.default_rng(0).uniform(-1, 1, (400, 4)).astype(np.float32)


def episodes(names: tuple[str, ...] = SPEC.names, fps: float = 10) -> SimpleNamespace:
    return SimpleNamespace(root="folder", action_names=names, state_names=("x",), fps=fps)


def check(
    data: SimpleNamespace, actions: np.ndarray = INSIDE, spec: ActionSpec = SPEC, limit: float = 0.5
) -> None:
    check_taught(data, actions, spec, limit=limit, title="teach test")


@pytest.mark.parametrize(
    "names",
    [
        SPEC.names,
        ("x", "y", "z", "gripper"),
        ("delta_x", "Delta_Y", "dz", "Gripper.pos"),
        ("0", "1", "2", "3"),
    ],
)
def test_episodes_of_this_robot_are_taken_without_a_word(names: tuple[str, ...], capfd) -> None:
    check(episodes(names))
    assert capfd.readouterr().err == ""


def test_other_names_are_remarked_on_and_another_order_is_refused(capfd) -> None:
    check(episodes(("shoulder", "elbow", "wrist", "hand")))
    assert "shoulder, elbow, wrist, hand, taken as dx, dy, dz, gripper" in capfd.readouterr().err
    with pytest.raises(ValueError, match="dy, dx stand in another order"):
        check(episodes(("dy", "dx", "dz", "gripper")))
    with pytest.raises(ValueError, match="7 numbers and 4 are expected"):
        check(episodes(tuple("abcdefg")))


@pytest.mark.parametrize(
    ("fps", "hz", "right"),
    [(10, 10, True), (10, 10.05, True), (30, 29.97, True), (50, 10, False), (10, 12, False)],
)
def test_the_rate_of_episodes_and_robot(fps: float, hz: float, right: bool) -> None:
    spec = dataclasses.replace(SPEC, control_hz=hz)
    if right:
        check(episodes(fps=fps), spec=spec)
        return
    with pytest.raises(
        ValueError, match=rf"{fps} actions a second \(fps\) and {hz:g} are executed \(control_hz\)"
    ):
        check(episodes(fps=fps), spec=spec)


def test_actions_outside_the_range_are_counted_and_beyond_a_share_refused(capfd) -> None:
    actions = INSIDE.copy()
    actions[:8, 1] = 1.5
    actions[3, 1] = -2.5
    actions[9, 0] = 1.015  # within one per cent of the range
    (found,) = outside_range(actions, SPEC)
    assert (found.name, found.share, found.worst) == ("dy", 8 / 400, -2.5)
    check(episodes(), actions)
    assert (
        "dy in 0.02 of the frames, at worst -2.5, where it takes -1 to 1" in capfd.readouterr().err
    )
    with pytest.raises(
        ValueError, match=r"dy in 0\.02 of the frames.*another unit.*--outside-range 1"
    ):
        check(episodes(), actions, limit=0.01)
    with pytest.raises(ValueError, match="range: dx in"):
        check(episodes(), 50 * INSIDE)


def test_everything_that_differs_is_said_at_once() -> None:
    with pytest.raises(
        ValueError, match=r"\(1\) action: .*another order.*\(2\) rate: .*\(3\) range: "
    ):
        check(episodes(("dy", "dx", "dz", "gripper"), fps=50), 50 * INSIDE)


def test_a_policys_cameras_must_be_there_and_in_its_size() -> None:
    policy = make_policy()  # scene at 24 and wrist at 16 pixels a side
    data = episodes()
    data.state_names = ("x", "y", "z", "gap")
    data.cameras = {"scene": (24, 24), "wrist": (16, 16), "more": (9, 9)}
    policy.body = dataclasses.replace(policy.body, action_spec=SPEC)
    check_policy(data, INSIDE, policy, limit=0.5, title="probe test")
    data.cameras = {"scene": (24, 32), "hand": (16, 16)}
    with pytest.raises(
        ValueError,
        match=r"camera 'scene': found \(24, 32, 3\), expected \(24, 24, 3\).*camera 'wrist': .* there is hand, scene",
    ):
        check_policy(data, INSIDE, policy, limit=0.5, title="probe test")
