"""Phases of whatever robot: motions whose phases are known, told in metres, degrees or ticks, as
deltas or as places."""

from dataclasses import replace

import numpy as np
import pytest

from armlet.annotators import PHASES
from armlet.annotators.motion_rules import MotionRules
from armlet.data.episodes import EpisodeFrames
from armlet.robot.spec import ActionSpec

FPS = 10.0
# phase, steps, how far each moves, whether the gripper is closed
PICK_AND_PLACE = (
    ("idle", 5, 0.0, False),
    ("approaching", 5, 1.0, False),
    ("approaching", 2, 0.0, False),  # too short to be a rest
    ("approaching", 5, 1.0, False),
    ("grasping", 5, 0.0, True),
    ("transporting", 10, 1.0, True),
    ("holding", 6, 0.0, True),
    ("transporting", 5, -1.0, True),
    ("placing", 5, 0.2, True),
    ("placing", 5, 0.2, False),
    ("approaching", 6, 1.0, False),
    ("completed", 6, 0.0, False),
)
AGAIN = (
    ("approaching", 8, 1.0, False),
    ("grasping", 5, 0.0, True),
    ("transporting", 8, 1.0, True),
    ("placing", 5, 1.0, True),
    ("placing", 4, 1.0, False),
    ("regrasping", 5, 0.0, True),
    ("transporting", 9, 1.0, True),
)
TWICE = (
    ("approaching", 8, 1.0, False),
    ("grasping", 5, 0.0, True),
    ("transporting", 8, 1.0, True),
    ("placing", 5, 1.0, True),
    ("placing", 5, 1.0, False),
    ("approaching", 9, 1.0, False),
    ("grasping", 5, 0.0, True),
    ("transporting", 9, 1.0, True),
)


def robot(mode: str = "delta", scale: float = 1.0, opened: float = -1, closed: float = 1):
    return ActionSpec(
        names=("a", "b", "gripper"),
        mode=mode,
        rotation="none",
        low=(-scale, -scale, min(opened, closed)),
        high=(scale, scale, max(opened, closed)),
        grippers=(2,),
        gripper_open=opened,
        gripper_closed=closed,
        control_hz=FPS,
        translation_scale=1.0,
    )


def play(parts: tuple, spec: ActionSpec) -> tuple[EpisodeFrames, list[str]]:
    steps = [(name, speed, shut) for name, count, speed, shut in parts for _ in range(count)]
    moves = np.array([[speed, -speed] for _, speed, _ in steps]) * spec.high[0]
    if spec.mode == "absolute":
        moves = moves.cumsum(0) / 50
    held = [spec.gripper_closed if shut else spec.gripper_open for *_, shut in steps]
    actions = np.column_stack([moves, held]).astype(np.float32)
    nothing = np.zeros((len(steps), 0), np.float32)
    return EpisodeFrames({}, nothing, actions, {}, "do it", {}), [name for name, *_ in steps]


SPECS = {
    "metres": robot(),
    "degrees": robot("absolute", 180.0, 100.0, 0.0),
    "ticks": robot("absolute", 2048.0, 0.0, 40.0),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("parts", [PICK_AND_PLACE, AGAIN, TWICE])
def test_known_motions_have_their_phases(parts: tuple, spec: ActionSpec) -> None:
    episode, names = play(parts, spec)
    labels = MotionRules().suited(spec).annotate(episode, FPS)
    assert [PHASES[phase] for phase in labels.phase] == names
    assert set(labels.description) == set(names)


def test_the_rate_says_how_long_a_second_is() -> None:
    episode, names = play(PICK_AND_PLACE, robot())
    actions = np.repeat(episode.action, 5, axis=0)
    labels = MotionRules(robot()).annotate(replace(episode, action=actions), 5 * FPS)
    assert [PHASES[phase] for phase in labels.phase] == [name for name in names for _ in range(5)]


def test_a_robot_without_grippers_operates_or_rests() -> None:
    episode, names = play(PICK_AND_PLACE[:2], robot())
    spec = replace(robot(), names=("a", "b"), low=(-1, -1), high=(1, 1), grippers=())
    episode = replace(episode, action=episode.action[:, :2])
    labels = MotionRules(spec).annotate(episode, FPS)
    wanted = [{"approaching": "operating"}.get(name, name) for name in names]
    assert [PHASES[phase] for phase in labels.phase] == wanted


def test_what_it_is_told_of_a_robot_stays_and_is_in_its_fingerprint() -> None:
    told = MotionRules(robot())
    assert told.suited(robot("absolute")) is told
    assert MotionRules().suited(robot()) == told
    assert MotionRules(robot("absolute")).fingerprint() != told.fingerprint()
    with pytest.raises(ValueError, match=r"suited\(\)"):
        MotionRules().annotate(play(AGAIN, robot())[0], FPS)


def test_an_episode_that_never_moves_has_labels() -> None:
    episode, _ = play((("idle", 7, 0.0, False),), robot())
    assert len(MotionRules(robot()).annotate(episode, FPS)) == 7
