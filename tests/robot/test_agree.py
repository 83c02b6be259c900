"""Two descriptions of a robot: what is compared, what is not known, what may differ."""

import dataclasses
import json
import subprocess
import sys
from dataclasses import replace
from math import inf

import numpy as np
import pytest

from armlet.robot.agree import (
    DisagreementError,
    agree,
    differences,
    outside_range,
    remarks,
    same_rate,
)
from armlet.robot.spec import ActionSpec, CameraSpec, ObservationSpec, RobotSpec

ACTION = ActionSpec(
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
SEEN = ObservationSpec({"front": CameraSpec(24, 24)}, ("x", "y"))
ROBOT = RobotSpec(ACTION, SEEN)
INSIDE = np.random.default_rng(0).uniform(-1, 1, (400, 4)).astype(np.float32)


def named(*names: str) -> RobotSpec:
    return replace(ROBOT, action=replace(ACTION, names=names))


@pytest.mark.parametrize(
    "names",
    [
        ("x", "y", "z", "gripper"),
        ("delta_x", "Delta_Y", "dz", "Gripper.pos"),
        ("0", "1", "2", "3"),
    ],
)
def test_the_same_names_written_otherwise_are_no_difference(names: tuple[str, ...]) -> None:
    assert agree(ROBOT, named(*names)) == []


def test_other_names_are_remarked_on_and_another_order_is_refused() -> None:
    (said,) = agree(ROBOT, named("shoulder", "elbow", "wrist", "hand"))
    assert "shoulder, elbow, wrist, hand, taken as dx, dy, dz, gripper" in said
    with pytest.raises(DisagreementError, match="dy, dx stand in another order"):
        agree(ROBOT, named("dy", "dx", "dz", "gripper"))


def test_another_number_of_dimensions_is_one_difference_and_not_five() -> None:
    other = replace(
        ACTION, names=tuple("abcdefg"), low=(-9,) * 7, high=(9,) * 7, grippers=(), mode="absolute"
    )
    (found,) = differences(ROBOT, replace(ROBOT, action=other))
    assert str(found).startswith("action: the robot has 7 numbers, and 4 are expected")


@pytest.mark.parametrize(
    ("hz", "other", "same"),
    [
        (10, 10, True),
        (10.05, 10, True),
        (29.97, 30, True),
        (30, 29.97, True),
        (50, 10, False),
        (12, 10, False),
        (1000, 1011, False),
    ],
)
def test_rates_are_the_same_up_to_rounding(hz: float, other: float, same: bool) -> None:
    assert same_rate(hz, other) == same


def test_what_one_side_does_not_know_is_not_compared() -> None:
    unknown = ActionSpec(
        ("0", "1", "2", "3"), "delta", "none", (-inf,) * 4, (inf,) * 4, (3,), 1.0, -1.0, 10
    )
    blind = ObservationSpec(SEEN.cameras)
    assert agree(ROBOT, RobotSpec(unknown, blind)) == []
    assert agree(RobotSpec(unknown, blind), ROBOT) == []


def test_more_cameras_and_a_state_that_is_not_looked_at_are_no_difference() -> None:
    more = replace(
        SEEN, cameras={**SEEN.cameras, "back": CameraSpec(480, 640)}, state_names=("x", "y")
    )
    assert agree(ROBOT, replace(ROBOT, observation=more)) == []
    stateless = replace(ROBOT, observation=ObservationSpec(SEEN.cameras, state_dims=0))
    assert agree(stateless, ROBOT) == []
    assert differences(ROBOT, stateless)[0].field == "state"


def test_a_fit_takes_pictures_of_any_size() -> None:
    wide = replace(ROBOT, observation=replace(SEEN, cameras={"front": CameraSpec(480, 640)}))
    fitting = replace(ROBOT, observation=replace(SEEN, fit="letterbox"))
    assert agree(fitting, wide) == []
    assert differences(ROBOT, wide)[0].field == "camera 'front'"


def ranged(low: float, high: float) -> RobotSpec:
    """With these ends of everything but the gripper."""
    ends = (low,) * 3 + (-1.0,), (high,) * 3 + (1.0,)
    return replace(ROBOT, action=replace(ACTION, low=ends[0], high=ends[1]))


@pytest.mark.parametrize(
    ("size", "verdict"),
    [
        (1.0, ""),
        (1.19, ""),
        (1.21, "error"),
        (0.6, ""),
        (0.4, "remark"),
        (0.06, "remark"),
        (0.04, "error"),
    ],
)
def test_a_range_may_be_narrower_and_hardly_wider(size: float, verdict: str) -> None:
    found = differences(ranged(-size, size), ROBOT)
    assert bool(found) == (verdict == "error")
    if verdict != "error":
        assert bool(remarks(ranged(-size, size), ROBOT)) == (verdict == "remark")


def test_one_narrow_dimension_is_no_other_unit() -> None:
    action = replace(ACTION, low=(-0.01, -1, -1, -1), high=(0.01, 1, 1, 1))
    assert differences(replace(ROBOT, action=action), ROBOT) == []
    still = replace(ACTION, low=(0.0, -1, -1, -1), high=(0.0, 1, 1, 1))
    assert agree(replace(ROBOT, action=still), ROBOT) == [], "what never moves has no unit"


def test_state_units_are_compared_where_both_know_them() -> None:
    degrees = replace(ROBOT, observation=replace(SEEN, state_units=("deg", "deg")))
    radians = replace(ROBOT, observation=replace(SEEN, state_units=("rad", "rad")))
    assert agree(degrees, ROBOT) == []
    assert [each.field for each in differences(degrees, radians)] == ["state units"]


def test_frames_outside_the_range_are_counted() -> None:
    actions = INSIDE.copy()
    actions[:8, 1] = 1.5
    actions[3, 1] = -2.5
    actions[9, 0] = 1.015  # within one per cent of the range
    (found,) = outside_range(actions, ACTION)
    assert (found.name, found.share, found.worst) == ("dy", 8 / 400, -2.5)


def test_a_spec_comes_back_from_json() -> None:
    robot = replace(ROBOT, observation=replace(SEEN, state_units=("m", "m"), fit="crop"))
    assert RobotSpec.from_json(json.loads(json.dumps(robot.to_json()))) == robot
    nobody = replace(ROBOT, action=replace(ACTION, translation_scale=None, grippers=()))
    assert RobotSpec.from_json(json.loads(json.dumps(nobody.to_json()))) == nobody


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mode": "deltas"}, "mode is 'deltas', expected delta, absolute"),
        ({"rotation": "rpy"}, "rotation is 'rpy'"),
        ({"grippers": (4,)}, "4 is no dimension, there are 4"),
        ({"grippers": (3, 3)}, "names a dimension twice"),
        ({"low": (1, 1, 1, 2)}, "'gripper' has low 2 and high 1"),
        ({"low": (float("nan"),) * 4}, "has low nan"),
        ({"control_hz": 0}, "control_hz is 0"),
        ({"high": (1.0,) * 3}, "one entry a dimension"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(change: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(ACTION, **change)


def test_a_robots_own_computer_needs_no_torch() -> None:
    """Every module of robot/, in a process of its own."""
    code = (
        "import importlib, pkgutil, sys, armlet.robot\n"
        "for each in pkgutil.walk_packages(armlet.robot.__path__, 'armlet.robot.'):\n"
        "    importlib.import_module(each.name)\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'av', 'armlet.data', 'armlet.policies'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
