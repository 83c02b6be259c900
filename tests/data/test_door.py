"""Data at a robot's door: which robot episodes are of, and who may learn from them."""

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import Recording, absolute, delta

from armlet.data.door import check_policy, check_taught, robot_of
from armlet.robot.agree import DisagreementError
from armlet.robot.description import FILE, RobotOptions, UnknownRobotError
from armlet.robot.normalise import Normaliser
from armlet.robot.spec import ActionSpec, ObservationSpec, RobotSpec

NAMES = ("dx", "dy", "dz", "gripper")
SAID = RobotOptions(
    mode="delta", rotation="none", grippers=(3,), gripper_open=1.0, gripper_closed=-1.0
)
SEEN = ObservationSpec.of({"front": (48, 64)}, state_names=("x", "y", "z", "gap"))
ACTION = ActionSpec(NAMES, "delta", "none", (-1.0,) * 4, (1.0,) * 4, (3,), 1.0, -1.0, 10, 0.05)
ROBOT = RobotSpec(ACTION, SEEN)


class Data(Recording):
    """Adds what an EpisodeDataset measures."""

    def measured(self, name: str) -> dict[str, list[float]]:
        values = self.columns()[name]
        return {"min": values.min(0).tolist(), "max": values.max(0).tolist()}


def episodes(
    folder: Path, *, names: tuple[str, ...] = NAMES, scale: float = 1.0, fps: float = 10
) -> Data:
    rng = np.random.default_rng(0)
    action = scale * rng.uniform(-1, 1, (400, len(names)))
    state = rng.normal(size=(400, 4))
    starts = np.arange(5) * 100
    made = Data(action, state, starts, names, SEEN.state_names, fps=fps, root=str(folder))
    made.root = folder  # type: ignore[assignment]
    return made


def probe(data: Data, policy: RobotSpec = ROBOT, options: RobotOptions = SAID, **more: Any) -> None:
    check_policy(data, policy, options, **{"limit": 0.5, **more}, title="probe test")


def test_a_robot_is_what_its_data_and_whoever_knows_it_say(tmp_path: Path) -> None:
    data = episodes(tmp_path)
    robot = robot_of(data, SAID)
    low = data.columns()["action"].min(0)
    assert robot.action.low[:3] == tuple(low[:3].tolist()), "to the bit: nobody is cut short"
    assert (robot.action.low[3], robot.action.high[3]) == (-1, 1), "a gripper reaches its ends"
    assert (robot.action.names, robot.action.control_hz) == (NAMES, 10)
    assert robot.action.translation_scale is None
    assert robot.observation == SEEN


def test_what_nobody_said_is_asked_for_with_what_the_data_suggest(tmp_path: Path) -> None:
    action, state, starts = absolute(-2 * np.ones(3), 2 * np.ones(3))
    data = Data(action, state, starts, ("0", "1", "2"), ("0", "1", "2"), root=str(tmp_path))
    data.root = tmp_path
    with pytest.raises(UnknownRobotError, match=r"--robot.mode absolute \(sure: where the state"):
        robot_of(data, RobotOptions())
    (tmp_path / FILE).write_text('mode = "absolute"\nrotation = "none"\ngrippers = []\n')
    assert robot_of(data, RobotOptions()).action.mode == "absolute"
    assert robot_of(data, RobotOptions(mode="delta")).action.mode == "delta"


def test_a_benchmarks_own_episodes_need_no_description(tmp_path: Path) -> None:
    robot = robot_of(episodes(tmp_path, scale=0.5), RobotOptions(), native=ROBOT)
    assert robot == ROBOT


def test_what_is_said_must_be_of_these_data(tmp_path: Path) -> None:
    data = episodes(tmp_path)
    with pytest.raises(DisagreementError, match="stand in another order"):
        robot_of(data, replace(SAID, names=("dy", "dx", "dz", "gripper")))
    with pytest.raises(DisagreementError, match=r"10 actions a second, and .* 50"):
        robot_of(data, replace(SAID, control_hz=50.0))
    with pytest.raises(DisagreementError, match="has 4 numbers, and 2"):
        robot_of(data, replace(SAID, names=("a", "b")))
    assert robot_of(data, replace(SAID, control_hz=10.04)).action.control_hz == 10.04


def test_a_rotation_that_names_contradict_is_refused(tmp_path: Path) -> None:
    turning = episodes(tmp_path, names=("roll", "pitch", "yaw", "gripper"))
    with pytest.raises(DisagreementError, match=r"roll, pitch, yaw .*--robot\.rotation"):
        robot_of(turning, replace(SAID, rotation="quaternion"))
    assert robot_of(turning, replace(SAID, rotation="axis_angle")).action.rotation == "axis_angle"
    policy = replace(ROBOT, action=replace(ACTION, names=("a", "b", "c", "d"), rotation="rot6d"))
    with pytest.raises(DisagreementError, match="the policy's actions have 'rot6d'"):
        probe(turning, policy, RobotOptions())


def test_names_that_could_not_be_taken_are_remarked_on(tmp_path: Path, capfd) -> None:
    data = episodes(tmp_path)
    data.name_remarks = ("action: twice",)
    probe(data)
    check_taught(data, ROBOT, limit=0.5, title="teach test")
    assert capfd.readouterr().err == "probe test: action: twice\nteach test: action: twice\n"


def test_episodes_of_this_robot_are_taken_without_a_word(tmp_path: Path, capfd) -> None:
    probe(episodes(tmp_path))
    probe(episodes(tmp_path), options=RobotOptions())
    probe(episodes(tmp_path, names=("0", "1", "2", "3")), options=RobotOptions())
    check_taught(episodes(tmp_path), ROBOT, limit=0.5, title="teach test")
    assert capfd.readouterr().err == ""


def test_other_names_are_one_line_on_stderr(tmp_path: Path, capfd) -> None:
    probe(episodes(tmp_path, names=("shoulder", "elbow", "wrist", "hand")))
    said = capfd.readouterr().err
    assert "shoulder, elbow, wrist, hand, taken as dx, dy, dz, gripper" in said
    assert said.startswith("probe test: ") and said.count("\n") == 1


def test_another_number_of_dimensions_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DisagreementError, match="has 7 numbers, and 4 are expected") as raised:
        probe(episodes(tmp_path, names=tuple("abcdefg")), options=RobotOptions())
    assert len(raised.value.differences) == 1


def test_actions_outside_the_range_are_counted_and_beyond_a_share_refused(
    tmp_path: Path, capfd
) -> None:
    data = episodes(tmp_path)
    data.action[:8, 1] = 1.5
    data.action[3, 1] = -2.5
    line = "dy in 0.02 of the frames, at worst -2.5, where it takes -1 to 1"
    probe(data)
    check_taught(data, ROBOT, limit=0.5, title="teach test")
    assert capfd.readouterr().err.count(line) == 2
    with pytest.raises(ValueError, match=r"dy in 0\.02 of the .*another unit.*--outside-range 1"):
        probe(data, limit=0.01)
    with pytest.raises(ValueError, match="range: dx in"):
        check_taught(episodes(tmp_path, scale=50), ROBOT, limit=0.5, title="teach test")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"mode": "absolute"}, "said to be absolute, and look delta (they are called dx, dy, dz"),
        ({"grippers": (0,)}, "3 (gripper) is called a gripper, and not said to be one"),
        ({"grippers": ()}, "3 (gripper) is called a gripper"),
        ({"grippers": (2, 3)}, ""),
        ({"low": (-1e3,) * 4, "high": (1e3,) * 4}, "range of -1000 to 1000 is over twenty times"),
    ],
)
def test_what_the_data_speak_against_is_remarked_on_where_it_was_said(
    change: dict[str, Any], said: str, tmp_path: Path, capfd
) -> None:
    robot = replace(ROBOT, action=replace(ACTION, **change))
    check_taught(episodes(tmp_path), robot, limit=0.5, title="teach test")
    line = capfd.readouterr().err
    assert said in line if said else line == ""


def test_actions_of_a_much_smaller_unit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="range of -1 to 1 is over twenty times as much in every dimension"
    ):
        probe(episodes(tmp_path, scale=1 / 57))
    probe(episodes(tmp_path, scale=1 / 57), limit=1)
    probe(episodes(tmp_path, scale=1 / 15))


def test_data_that_clearly_are_another_robots_are_refused_where_nobody_said(
    tmp_path: Path,
) -> None:
    """A policy of changes, and recordings of places."""
    action, state, starts = absolute(-np.ones(4), np.ones(4))
    counted = ("0", "1", "2", "3")
    data = Data(action, state, starts, counted, counted, fps=10, root=str(tmp_path))
    data.root = tmp_path
    policy = replace(ROBOT, action=replace(ACTION, grippers=()))
    with pytest.raises(DisagreementError, match=r"looks absolute .* --robot\.mode delta"):
        probe(data, policy, RobotOptions())
    probe(data, policy, RobotOptions(mode="delta", grippers=()))
    moves, places, starts = delta(4)
    right = Data(moves, places, starts, counted, counted, fps=10, root=str(tmp_path))
    right.root = tmp_path
    probe(right, policy, RobotOptions())


def test_a_policy_without_a_state_takes_data_with_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stateless = replace(ROBOT, observation=replace(SEEN, state_names=(), state_dims=0))
    data = episodes(tmp_path)
    count = len(data.state_names)
    probe(data, stateless)
    assert f"its state of {count} numbers is not read: the policy looks at none" in (
        capsys.readouterr().err
    )
    blind = dataclasses.replace(data, state=data.state[:, :0], state_names=())
    blind.root = tmp_path
    probe(blind, stateless)
    assert "is not read" not in capsys.readouterr().err
    # The other way about nothing can stand in for what is looked at.
    with pytest.raises(DisagreementError, match=rf"state: .*{count}"):
        probe(blind)


def test_everything_that_differs_is_said_at_once(tmp_path: Path) -> None:
    data = episodes(tmp_path, names=("dy", "dx", "dz", "gripper"), fps=50, scale=50)
    data.cameras = {"back": (48, 64)}
    with pytest.raises(ValueError, match=r"\(1\) .*another order.*rate: .*camera 'front'.*range: "):
        probe(data)


TAUGHT = Normaliser(np.array([0.5, 0.0, -0.2, 0.04]), np.array([0.1, 0.2, 0.3, 0.04]))


def seen(folder: Path, factor: float | list[float] = 1.0, *, away: float = 0.0) -> Data:
    """Episodes with a state as `TAUGHT`, in another unit, or `away` deviations from there."""
    data = episodes(folder)
    metres = TAUGHT.invert(np.random.default_rng(1).normal(size=(400, 4)) + away)
    return dataclasses.replace(data, state=metres * factor, root=folder)  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [100, 1 / 100, 1000, 180 / np.pi, np.pi / 180])
def test_a_state_in_another_unit_is_refused(tmp_path: Path, factor: float) -> None:
    with pytest.raises(DisagreementError, match=r"state: .*x goes from .*taught 0\.5 ± 0\.1.*unit"):
        probe(seen(tmp_path, factor), state=TAUGHT)
    probe(seen(tmp_path, factor), state=TAUGHT, limit=1)
    probe(seen(tmp_path, factor))  # nobody knows the statistics


@pytest.mark.parametrize("unit", [100, 1 / 100])
def test_half_of_a_state_in_another_unit_is_remarked_on(tmp_path: Path, unit: float, capfd) -> None:
    probe(seen(tmp_path, [1, unit, unit, 1]), state=TAUGHT)
    said = capfd.readouterr().err
    assert "y goes from" in said and "z goes from" in said and "x goes" not in said


def test_a_state_that_is_the_robots_own_is_taken_without_a_word(tmp_path: Path, capfd) -> None:
    probe(seen(tmp_path), state=TAUGHT)
    probe(seen(tmp_path, away=5), state=TAUGHT)  # another place of its room
    still = seen(tmp_path)
    still.state[:] = still.state[0]
    probe(still, state=TAUGHT)
    still.state[:] = 0  # an arm that is switched off
    probe(still, state=TAUGHT)
    plain = Normaliser(np.zeros(4, np.float32), np.ones(4, np.float32))
    probe(seen(tmp_path, 1e4), state=plain)
    steady = {"mean": [0.5, 0, 3, 40], "std": [0, 0, 1e-4, 1e-9]}
    stood = Normaliser.from_statistics(steady, "mean_std", what="state", dims=4)
    assert not stood.moved.any()
    probe(seen(tmp_path, 1e4), state=stood)
    assert capfd.readouterr().err == ""
