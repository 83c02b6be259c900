"""What somebody says of a robot, and what is asked for where nobody did."""

from pathlib import Path
from typing import Any

import pytest

from armlet.robot.description import (
    FILE,
    Described,
    RobotOptions,
    UnknownRobotError,
    completed,
    indices,
    recorded_toml,
)
from armlet.robot.naming import against_names
from armlet.robot.spec import ActionSpec

SPEC = ActionSpec(
    ("a", "b", 'grip "q"'),
    "absolute",
    "none",
    (-1.5, 0.1, 0.0),
    (1.0, 1 / 3, 100.0),
    (2,),
    100.0,
    0.0,
    29.97,
    0.05,
)
DATA = Described(names=("a", "b", "c"), low=(0.0,) * 3, high=(1.0,) * 3, control_hz=30)
SAID = Described(
    mode="delta", rotation="euler", grippers=("c",), gripper_open=1.0, gripper_closed=-1.0
)


def test_a_robot_that_was_recorded_comes_back_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_text(recorded_toml(SPEC, ("x", "y")), encoding="utf-8")
    read = Described.read(path)
    assert completed(read) == SPEC
    assert read.state_names == ("x", "y")


def test_without_a_gripper_nothing_is_said_of_its_ends(tmp_path: Path) -> None:
    spec = ActionSpec(("a",), "delta", "none", (0,), (1,), (), 0.0, 0.0, 5)
    path = tmp_path / FILE
    path.write_text(recorded_toml(spec, ()), encoding="utf-8")
    assert "gripper_" not in path.read_text()
    assert completed(Described.read(path)) == spec


def test_options_are_over_the_file_and_the_file_over_the_data(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('mode = "delta"\nrotation = "euler"\ncontrol_hz = 10\n')
    found = RobotOptions(rotation="none").with_file(tmp_path).over(DATA)
    assert (found.mode, found.rotation, found.control_hz) == ("delta", "none", 10)
    assert found.names == DATA.names


def test_a_file_that_is_named_is_read_in_place_of_the_one_beside(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('mode = "delta"\n')
    other = tmp_path / "other.toml"
    other.write_text('mode = "absolute"\n')
    assert RobotOptions(file=other).with_file(tmp_path).mode == "absolute"
    assert RobotOptions().with_file(tmp_path / "nowhere").mode is None
    with pytest.raises(FileNotFoundError, match="armlet inspect"):
        RobotOptions(file=tmp_path / "no.toml").with_file(tmp_path)
    with pytest.raises(ValueError, match=r"is a folder; name the robot\.toml in it"):
        RobotOptions(file=tmp_path).with_file(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mode = ", "is not TOML"),
        ('mode = "relative"', "mode is 'relative', expected delta, absolute"),
        ('mod = "delta"', "mod says nothing of a robot; it may hold mode"),
        ("gripper_open = true", "gripper_open is True, expected a number"),
        ('low = ["a"]', "expected numbers"),
        ("grippers = 3", "expected a list"),
        ("grippers = [3.5]", "names or numbers of dimensions"),
        ("names = [1]", "expected names"),
        ('names = ["x", "y", "x"]', "names must name each number once: 'x' names numbers 0, 2"),
        ('names = ["x", " "]', "number 1 has an empty name"),
        ('state_names = ["x", "x"]', "state_names must name each number once"),
        ("grippers = [1, 1]", "grippers names 1 twice"),
        ("grippers = []\ngripper_open = 1.0", "gripper_open say.* that there is none"),
        ("grippers = []\ngripper_open = 1\ngripper_closed = 0", "gripper_open and .*gripper_clos"),
        ("low = [-inf, 0]", "low is -inf 0, expected finite"),
        ("high = [nan]", "high is nan, expected finite"),
        ("gripper_open = inf", "gripper_open is inf, expected a finite"),
        ("control_hz = nan", "control_hz is nan, expected a finite"),
    ],
)
def test_a_file_that_will_not_do_is_refused_by_its_name(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / FILE
    path.write_text(text)
    with pytest.raises(ValueError, match=said) as raised:
        Described.read(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"names": ("x", "x")}, r"--robot\.names must name each number once"),
        ({"state_names": ("",)}, r"--robot\.state-names .* number 0 has an empty name"),
        ({"grippers": (), "gripper_open": 1.0}, r"--robot\.gripper-open say"),
        ({"low": (float("nan"),)}, r"--robot\.low is nan"),
    ],
)
def test_options_that_contradict_themselves_are_refused_by_their_name(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        RobotOptions(**options).with_file(tmp_path)


def test_an_option_takes_a_files_gripper_away_with_its_ends(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_text("grippers = [2]\ngripper_open = 1.0\ngripper_closed = 0.0\n")
    found = RobotOptions(grippers=()).with_file(tmp_path)
    assert (found.grippers, found.gripper_open, found.gripper_closed) == ((), None, None)
    assert RobotOptions(gripper_open=2.0).with_file(tmp_path).gripper_open == 2
    path.write_text("grippers = []\n")
    with pytest.raises(ValueError, match=r"--robot\.gripper-open say how a gripper moves"):
        RobotOptions(gripper_open=1.0).with_file(tmp_path)


HAND = ("dx", "dy", "dz")


@pytest.mark.parametrize(
    ("rotation", "names", "said"),
    [
        ("quaternion", (*HAND, "roll", "pitch", "yaw"), "roll, pitch, yaw are names"),
        ("quaternion", (*HAND, "rx", "ry", "rz"), "as euler or axis_angle"),
        ("rot6d", (*HAND, "droll", "dpitch", "dyaw"), "droll, dpitch, dyaw are names"),
        ("euler", ("arm.qx", "arm.qy", "arm.qz", "arm.qw"), "as quaternion"),
        ("axis_angle", tuple(f"rot6d_{index}" for index in range(6)), "as rot6d"),
        ("none", (*HAND, "roll", "pitch", "yaw"), "roll, pitch, yaw are names"),
        ("none", ("qx", "qy", "qz", "qw"), "as quaternion"),
        ("quaternion", ("0", "1", "2"), "a quaternion has 4 numbers and an action 3"),
        ("rot6d", ("0", "1", "2", "3", "4"), "a rot6d has 6 numbers"),
        # What names cannot tell, or do not contradict.
        ("euler", (*HAND, "rx", "ry", "rz"), ""),
        ("axis_angle", (*HAND, "roll", "pitch", "yaw"), ""),
        ("none", ("waist_roll", "waist_pitch", "waist_yaw"), ""),
        ("quaternion", (*HAND, "qw", "qx", "qy", "qz"), ""),
        ("quaternion", ("0", "1", "2", "3"), ""),
        ("none", ("j1", "j2"), ""),
    ],
)
def test_names_contradict_a_form_of_rotation(
    rotation: Any, names: tuple[str, ...], said: str
) -> None:
    found = against_names(rotation, names)
    assert said in found if said else found == ""


def test_everything_that_is_missing_is_asked_for_by_name() -> None:
    suggestions = {
        "mode": "--robot.mode delta (sure: named so)",
        "gripper_open": "--robot.gripper-open 1 (likely: they begin there)",
    }
    with pytest.raises(UnknownRobotError) as raised:
        completed(DATA, suggestions=suggestions, whose="folder")
    said = str(raised.value)
    assert raised.value.missing == (
        "mode",
        "rotation",
        "grippers",
        "gripper_open",
        "gripper_closed",
    )
    assert "--robot.mode delta (sure: named so); --robot.rotation … (none, axis_angle" in said
    assert "--robot.gripper-open 1 (likely" in said and "--robot.gripper-closed … (the" in said
    assert "armlet inspect folder" in said


def test_ends_are_asked_for_where_there_is_a_gripper_and_nowhere_else() -> None:
    half = Described(mode="delta", rotation="none", grippers=(1,)).over(DATA)
    with pytest.raises(UnknownRobotError) as raised:
        completed(half)
    assert raised.value.missing == ("gripper_open", "gripper_closed")
    none = Described(mode="delta", rotation="none", grippers=()).over(DATA)
    assert completed(none).grippers == ()


def test_a_grippers_range_reaches_its_ends() -> None:
    spec = completed(SAID.over(DATA))
    assert (spec.low, spec.high) == ((0.0, 0.0, -1.0), (1.0, 1.0, 1.0))
    assert (spec.grippers, spec.gripper_open, spec.gripper_closed) == ((2,), 1.0, -1.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (Described(low=(0.0,)), "--robot.low has 1 entries and an action 3 dimensions"),
        (Described(names=("a",)), "has 3 entries and an action 1 dimensions"),
        (Described(gripper_open=-1.0), "open at -1 and closed at -1"),
        (Described(translation_scale=0.0), "--robot.translation-scale is 0"),
        (Described(grippers=("d",)), "no dimension 'd'; an action has a, b, c"),
        (Described(grippers=(3,)), "no dimension 3"),
        (Described(control_hz=0.0), "as robot.toml or the options describe it.*control_hz is 0"),
        (Described(low=(2.0, 0.0, 0.0)), "options describe it.*'a' has low 2 and high 1"),
    ],
)
def test_what_contradicts_itself_is_refused(change: Described, said: str) -> None:
    if change.names:
        change = Described(names=change.names, grippers=())
    with pytest.raises(ValueError, match=said):
        completed(change.over(SAID).over(DATA))


def test_dimensions_are_named_by_number_or_name() -> None:
    with pytest.raises(ValueError, match="'jaw' is the name of dimensions 1, 3; give the number"):
        indices(("jaw",), ("x", "jaw", "y", "jaw"))
    names = ("3", "left", "right", "top")
    assert indices(("right", 1), names) == (1, 2)
    assert indices(("3",), names) == (0,), "a name comes before a number"
    assert indices((-1, "-1", 3), names) == (3,)
