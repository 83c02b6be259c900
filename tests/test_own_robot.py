"""A robot of one's own goes into `teach` without a benchmark, and comes out as a policy that knows
it; what needs a world says so."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from outside import Dots, reaching

from armlet import collect, teach
from armlet.benchmarks import benchmark_robot
from armlet.data.episodes import EpisodeDataset, EpisodeFrames, Features
from armlet.data.writer import EpisodeWriter
from armlet.policies.checkpoint import load_policy, save_policy
from armlet.recipe import Collection, Recipe, check_episodes
from armlet.robot.agree import DisagreementError
from armlet.robot.description import FILE, Described, RobotOptions, UnknownRobotError, completed
from armlet.teach import too_long
from armlet.training.practice import practise

NAMES = ("base", "lift", "jaw")
SAID = RobotOptions(
    mode="absolute", rotation="none", grippers=("jaw",), gripper_open=100.0, gripper_closed=0.0
)


def frames(number: int) -> EpisodeFrames:
    rng = np.random.default_rng(number)
    places = np.cumsum(rng.normal(size=(13, 3)), 0) * 5 + [20.0, 90.0, 0.0]
    places[:, 2] = np.where(np.arange(13) < 6, 97.0, 3.0)
    images = {"eye": rng.integers(0, 255, (12, 32, 32, 3), np.uint8)}
    return EpisodeFrames(images, places[:-1], places[1:], {}, "lift it")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe over episodes of a robot of two joints in degrees and a gripper in per cent."""
    root = tmp_path_factory.mktemp("own")
    features = Features(NAMES, NAMES, {"eye": (32, 32)})
    writer = EpisodeWriter(root / "episodes", features, fps=20, robot="mine", metadata={})
    for number in range(3):
        writer.add(frames(number))
    writer.finalise()
    return dataclasses.replace(
        reaching(),
        benchmark=None,
        normalise_actions="min_max",
        episodes=root / "episodes",
        teacher=root / "teacher",
        out=root / "out",
        robot=SAID,
    )


def test_a_teacher_of_a_robot_nobody_knows(own: Recipe, capfd: pytest.CaptureFixture[str]) -> None:
    teacher = load_policy(teach.main(own))
    spec = teacher.robot.action
    assert (spec.names, spec.mode, spec.control_hz) == (NAMES, "absolute", 20)
    assert (spec.grippers, spec.gripper_open, spec.gripper_closed) == ((2,), 100, 0)
    assert (spec.low[2], spec.high[2]) == (0, 100)
    assert teacher.robot.observation.state_names == NAMES
    said = capfd.readouterr().err
    assert "benchmark" not in said and "far outside" not in said


def test_what_nobody_said_is_asked_for_by_name(own: Recipe) -> None:
    with pytest.raises(UnknownRobotError, match=r"--robot\.mode.*--robot\.gripper-open") as raised:
        teach.main(dataclasses.replace(own, robot=RobotOptions()))
    assert f"armlet inspect {own.episodes}" in str(raised.value)
    assert raised.value.missing[-2:] == ("gripper_open", "gripper_closed")


def test_degrees_shown_as_they_are_are_remarked_on(own: Recipe, tmp_path: Path, capfd) -> None:
    plain = dataclasses.replace(
        own, normalise_actions="identity", teacher=tmp_path / "t", out=tmp_path / "o"
    )
    teach.main(plain)
    said = capfd.readouterr().err
    assert "shown base, lift, jaw far outside -1 … 1" in said and "choose min_max" in said


def test_a_chunk_that_is_longer_than_every_episode_is_remarked_on(own: Recipe) -> None:
    data = EpisodeDataset(own.episodes)  # of 12 frames
    assert too_long(data, SimpleNamespace(chunk=12)) == []
    (said,) = too_long(data, SimpleNamespace(chunk=14))
    assert "14 actions, and the longest episode 12 frames: the last 2" in said


def test_a_world_it_cannot_act_in_is_remarked_on(own: Recipe, tmp_path: Path, capfd) -> None:
    foreign = dataclasses.replace(own, benchmark=Dots(), teacher=tmp_path / "t", out=tmp_path / "o")
    teach.main(foreign)
    said = capfd.readouterr().err
    assert "cannot act in benchmark 'dots'" in said and "1 numbers, and 3 are expected" in said


def test_what_needs_a_world_says_so(own: Recipe) -> None:
    with pytest.raises(ValueError, match="has no benchmark, so there is no world to collect in"):
        collect.main(own)
    with pytest.raises(ValueError, match="no world to practise in"):
        practise(own, 0, None, None, "")  # type: ignore[arg-type]  # neither is looked at


def test_episodes_that_were_recorded_here_describe_their_robot(tmp_path: Path) -> None:
    recipe = dataclasses.replace(
        reaching(), episodes=tmp_path / "e", collection=Collection(episodes=2, workers=1)
    )
    folder = collect.main(recipe)
    said = Described.read(folder / FILE)
    assert completed(said) == Dots().action_spec and said.state_names == ("x",)
    (folder / FILE).write_text('mode = "absolute"\n')
    collect.main(recipe)
    assert (folder / FILE).read_text() == 'mode = "absolute"\n', "corrected by hand"


def test_what_a_benchmark_says_of_its_own_episodes_holds_for_a_policy(tmp_path: Path) -> None:
    """How far a command moves, neither names nor numbers tell; a world knows it of its own."""
    recipe = dataclasses.replace(
        reaching(), episodes=tmp_path / "e", collection=Collection(episodes=2, workers=1)
    )
    data = EpisodeDataset(collect.main(recipe))
    (data.root / FILE).unlink()
    robot = benchmark_robot(Dots())
    further = dataclasses.replace(robot.action, translation_scale=1.0)
    policy = dataclasses.replace(robot, action=further)
    check_episodes(recipe, data, robot, title="probe")
    with pytest.raises(DisagreementError, match=r"translation.scale"):
        check_episodes(recipe, data, policy, title="probe")
    # Of no benchmark, they are taken to be as the policy has them.
    check_episodes(dataclasses.replace(recipe, benchmark=None), data, policy, title="probe")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gripper_open": 0.0}, "the gripper is 0 both open and closed"),
        ({"high": (1e3, 1e3, 50.0)}, "jaw goes from 0 to 50, and its gripper from 0 to 100"),
        ({"names": ("a",), "low": (0.0,), "high": (1.0,), "grippers": ()}, "of 3 numbers and 1"),
    ],
)
def test_a_policy_that_contradicts_itself_is_not_loaded(
    own: Recipe, tmp_path: Path, change: dict, said: str
) -> None:
    policy = load_policy(teach.main(own))
    spec = dataclasses.replace(policy.body.action_spec, **change)
    policy.body = dataclasses.replace(policy.body, action_spec=spec)
    save_policy(policy, tmp_path)
    with pytest.raises(ValueError, match=f"contradicts itself: .*{said}"):
        load_policy(tmp_path)
