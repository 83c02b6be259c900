"""Four doors, and every way in which a robot may be another than it seems: none passes.

A bend is made to whoever the policy meets: the recordings, its teacher, a world, or whoever loads
it and says which robot they have.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import make_policy

from armlet.data.door import check_policy, check_taught
from armlet.data.episodes import EpisodeDataset, EpisodeFrames, Features
from armlet.data.writer import EpisodeWriter
from armlet.policies.checkpoint import load_policy, save_policy
from armlet.policies.vla import VLA
from armlet.robot.agree import DisagreementError, agree
from armlet.robot.description import Described, RobotOptions
from armlet.robot.spec import ActionSpec, CameraSpec, ObservationSpec, RobotSpec
from armlet.rollout.door import check_world

STATE = ("x", "y", "z", "gap")
Bend = Callable[[RobotSpec], RobotSpec]


def action(**fields: object) -> Bend:
    return lambda robot: replace(robot, action=replace(robot.action, **fields))


def observation(**fields: object) -> Bend:
    return lambda robot: replace(robot, observation=replace(robot.observation, **fields))


def swapped(robot: RobotSpec) -> RobotSpec:
    ends = {
        "gripper_open": robot.action.gripper_closed,
        "gripper_closed": robot.action.gripper_open,
    }
    return action(**ends)(robot)


SCENE = CameraSpec(24, 24)
BENDS: dict[str, tuple[Bend, str]] = {
    "gripper ends swapped": (swapped, "they are swapped"),
    "gripper in per cent": (
        action(gripper_open=100.0, gripper_closed=0.0, high=(1.0, 1.0, 1.0, 100.0)),
        "open at 100 and closed at 0",
    ),
    "another gripper": (action(grippers=(2,)), r"gripper 2 \(dz\)"),
    "no gripper": (action(grippers=()), "has no gripper"),
    "moves in centimetres": (action(translation_scale=0.01), "a command of 1 moves .* by 0.01 m"),
    "a tenth of the range": (action(low=(-0.1,) * 4, high=(0.1,) * 4), "another unit"),
    "degrees": (action(low=(-180.0,) * 4, high=(180.0,) * 4), "another unit"),
    "another rate": (action(control_hz=50.0), "50 actions a second"),
    "names in another order": (
        action(names=("dy", "dx", "dz", "gripper")),
        "dy, dx stand in another order",
    ),
    "absolute": (action(mode="absolute"), "has absolute actions"),
    "another rotation": (action(rotation="euler"), "'euler'"),
    "no such camera": (observation(cameras={"scene": SCENE}), "camera 'wrist'"),
    "another size of picture": (
        observation(cameras={"scene": CameraSpec(24, 32), "wrist": CameraSpec(16, 16)}),
        r"camera 'scene': found \(24, 32, 3\), and expected \(24, 24, 3\)",
    ),
    "state in another order": (
        observation(state_names=("y", "x", "z", "gap")),
        "y, x stand in another order",
    ),
    "more state": (
        observation(state_names=(*STATE, "load"), state_dims=5),
        "has 5 numbers, and 4 are expected",
    ),
}


@pytest.fixture(scope="module")
def policy() -> VLA:
    made = make_policy()  # cameras scene, 24 pixels, and wrist, 16; dx, dy, dz, gripper
    made.body = dataclasses.replace(made.body, state_names=STATE)
    return made


@pytest.fixture(scope="module")
def folder(policy: VLA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("policy")
    save_policy(policy, where)
    return where


@pytest.fixture(scope="module")
def episodes(policy: VLA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("episodes") / "set"
    names = policy.body.action_spec.names
    cameras = {"scene": (24, 24), "wrist": (16, 16)}
    rng = np.random.default_rng(0)
    fps = round(policy.body.action_spec.control_hz)
    writer = EpisodeWriter(root, Features(STATE, names, cameras), fps=fps, robot="r", metadata={})
    images = {name: np.zeros((4, *size, 3), np.uint8) for name, size in cameras.items()}
    actions = rng.uniform(-1, 1, (4, 4)).astype(np.float32)
    writer.add(EpisodeFrames(images, actions, actions, {}, "go"))
    writer.finalise()
    return root


def at_data(policy: VLA, robot: RobotSpec, episodes: Path, folder: Path) -> None:
    """Episodes that say of themselves what a data set can, and the rest by options."""
    data = EpisodeDataset(episodes)
    data.fps = robot.action.control_hz
    data.action_names = robot.action.names
    data.state_names = robot.observation.state_names
    cameras = robot.observation.cameras
    data.cameras = {name: (each.height, each.width) for name, each in cameras.items()}
    said = dataclasses.asdict(Described.of(robot.action))
    options = RobotOptions(**said | {"names": None, "control_hz": None})
    check_policy(data, policy.robot, options, limit=0.5, title="probe")


def at_student(policy: VLA, robot: RobotSpec, episodes: Path, folder: Path) -> None:
    agree(policy.robot, robot, whose=("the student", "its teacher"))


def at_world(policy: VLA, robot: RobotSpec, episodes: Path, folder: Path) -> None:
    cameras = robot.observation.cameras
    world = SimpleNamespace(
        name="somewhere",
        action_spec=robot.action,
        state_names=robot.observation.state_names,
        camera_sizes={name: (each.height, each.width) for name, each in cameras.items()},
    )
    check_world(policy, world)


def at_load(policy: VLA, robot: RobotSpec, episodes: Path, folder: Path) -> None:
    load_policy(folder, robot=robot)


DOORS = {"data": at_data, "teacher": at_student, "world": at_world, "load": at_load}


@pytest.mark.parametrize("door", DOORS)
def test_a_door_is_open_to_the_robot_itself(
    door: str, policy: VLA, episodes: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    DOORS[door](policy, policy.robot, episodes, folder)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("bend", BENDS)
@pytest.mark.parametrize("door", DOORS)
def test_a_door_is_shut_to_any_other(
    door: str, bend: str, policy: VLA, episodes: Path, folder: Path
) -> None:
    bent, said = BENDS[bend]
    with pytest.raises(DisagreementError, match=said):
        DOORS[door](policy, bent(policy.robot), episodes, folder)


@pytest.mark.parametrize("door", DOORS)
def test_all_that_differs_is_said_at_once(
    door: str, policy: VLA, episodes: Path, folder: Path
) -> None:
    robot = policy.robot
    for bend in ("gripper ends swapped", "another rate", "absolute", "no such camera"):
        robot = BENDS[bend][0](robot)
    with pytest.raises(DisagreementError, match=r"\(1\).*\(2\).*\(3\).*\(4\)") as raised:
        DOORS[door](policy, robot, episodes, folder)
    assert {each.field for each in raised.value.differences} == {
        "gripper ends",
        "rate",
        "mode",
        "camera 'wrist'",
    }


ENDS = ActionSpec(
    names=("dx", "dy", "dz", "gripper"),
    mode="delta",
    rotation="none",
    low=(-1.0,) * 4,
    high=(1.0, 1.0, 1.0, 100.0),
    grippers=(3,),
    gripper_open=1.0,
    gripper_closed=0.0,
    control_hz=5.0,
)


def with_actions(episodes: Path, index: int, column: list[float]) -> EpisodeDataset:
    """Episodes that move through all of `ENDS`' range, but for one dimension."""
    data = EpisodeDataset(episodes)
    values = np.array([[1, 1, 1, 1], [-1, -1, -1, 0], [1, 1, 1, 1], [-1, -1, -1, 0]], np.float32)
    values[:, index] = column
    columns = {"action": values, "observation.state": np.zeros((4, 4), np.float32)}
    data.columns = lambda: columns  # type: ignore[method-assign]
    return data


@pytest.mark.parametrize(
    ("ends", "column", "remark"),
    [
        ((1.0, 0.0), [1, 0, 1, 0], ""),
        ((1.0, 0.0), [0.6, 0.4, 0.6, 0.4], ""),
        ((1.0, -1.0), [1, 0, 1, 0], "never nearer to its gripper_closed -1 than to 1"),
        ((1.0, 0.0), [1, 1, 1, 1], "never nearer to its gripper_closed 0 than to 1"),
        ((0.0, 1.0), [1, 1, 1, 1], "never nearer to its gripper_open 0 than to 1"),
    ],
)
def test_a_gripper_that_never_goes_to_an_end_is_remarked_on(
    ends: tuple[float, float],
    column: list[float],
    remark: str,
    episodes: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    spec = replace(ENDS, gripper_open=ends[0], gripper_closed=ends[1])
    robot = RobotSpec(spec, ObservationSpec({}))
    check_taught(with_actions(episodes, 3, column), robot, limit=0.5, title="teach")
    said = capfd.readouterr().err
    assert remark in said if remark else said == ""


def test_a_gripper_whose_commands_lie_far_from_both_ends_is_refused(episodes: Path) -> None:
    """The range of a gripper is widened to its ends, so nothing else would notice."""
    robot = RobotSpec(replace(ENDS, gripper_open=70.0, gripper_closed=50.0), ObservationSpec({}))
    data = with_actions(episodes, 3, [1, 0, 1, 0])
    with pytest.raises(DisagreementError, match=r"0 to 1 in the data set.*open at 70 and closed"):
        check_taught(data, robot, limit=0.5, title="teach")
    check_taught(data, robot, limit=1.0, title="teach")


def test_one_dimension_in_another_unit_is_remarked_on(
    policy: VLA, episodes: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = policy.robot.action
    narrow = float(spec.high[2]) * 0.001
    data = EpisodeDataset(episodes)
    values = np.array([spec.low, spec.high, spec.low, spec.high], np.float32)
    values[:, 2] = [-narrow, narrow, -narrow, narrow]
    columns = {"action": values, "observation.state": np.zeros((4, 4), np.float32)}
    data.columns = lambda: columns  # type: ignore[method-assign]
    check_policy(data, policy.robot, RobotOptions(mode=spec.mode), limit=0.5, title="probe")
    said = capfd.readouterr().err
    assert "under a twentieth of the policy's range of dz (0.001 of it)" in said


def test_an_error_names_the_policy_that_is_meant(policy: VLA, episodes: Path) -> None:
    with pytest.raises(DisagreementError, match="policy 'other' do not agree"):
        check_policy(
            EpisodeDataset(episodes),
            policy.robot,
            RobotOptions(mode="absolute"),
            limit=0.5,
            title="evaluate",
            whose="policy 'other'",
        )
