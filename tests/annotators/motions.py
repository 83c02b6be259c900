"""Episodes made of plain motions, and a data set of them: what a rule should say about each step is
known."""

from pathlib import Path

import numpy as np

from armlet.data.episodes import EpisodeDataset, EpisodeFrames, Features
from armlet.data.writer import EpisodeWriter

OPEN, CLOSED = -1.0, 1.0
WIDE, THING, NOTHING = 0.068, 0.034, 0.0  # between the fingers
FEATURES = Features(
    ("x", "y", "z", "gap"), ("dx", "dy", "dz", "gripper"), {"scene": (32, 32)}, {"executed": 4}
)
Part = tuple[str, int, tuple[float, float, float], float, float]

APPROACH: Part = ("approaching", 3, (1, 0, -0.4), OPEN, WIDE)
GRASP: Part = ("grasping", 1, (0, 0, 0), CLOSED, WIDE)
LIFT: Part = ("transporting", 2, (0, 0, 1), CLOSED, THING)
CARRY: Part = ("transporting", 3, (0, 1, 0), CLOSED, THING)
LOWER: Part = ("placing", 2, (0, 0, -1), CLOSED, THING)
RELEASE: Part = ("placing", 3, (0, 0, 1), OPEN, WIDE)
PICK_AND_PLACE = (APPROACH, GRASP, LIFT, CARRY, LOWER, RELEASE)
PULL_A_DRAWER = (APPROACH, GRASP, ("operating", 4, (-1, 0, 0), CLOSED, THING))
DESCEND_AND_PUSH = (
    ("approaching", 3, (0, 0, -0.6), CLOSED, NOTHING),
    ("operating", 5, (0, 1, 0), CLOSED, NOTHING),
)


def play(
    *parts: Part, start: tuple[float, float, float] = (0.0, 0.0, 0.11), seed: int = 0
) -> tuple[EpisodeFrames, list[str]]:
    """An episode in which every command is carried out, and the name of each of its steps."""
    place, states, actions, names = np.array(start), [], [], []
    for name, count, command, gripper, gap in parts:
        for _ in range(count):
            states.append([*place, gap])
            actions.append([*command, gripper])
            names.append(name)
            place = place + 0.05 * np.array(command)
    images = np.random.default_rng(seed).integers(0, 256, (len(names), 32, 32, 3), dtype=np.uint8)
    state, action = np.array(states, np.float32), np.array(actions, np.float32)
    return EpisodeFrames({"scene": images}, state, action, {"executed": action}, "do it", {}), names


def data_of(
    root: Path, *motions: tuple[Part, ...], task: str = "open the red drawer"
) -> EpisodeDataset:
    """A data set of these motions, one an episode."""
    writer = EpisodeWriter(root, FEATURES, fps=10, robot="test", metadata={})
    for number, parts in enumerate(motions):
        episode, _ = play(*parts, seed=number)
        writer.add(
            EpisodeFrames(
                episode.images,
                episode.state,
                episode.action,
                episode.extra,
                task,
                {"attempt": number},
            )
        )
    return writer.finalise()
