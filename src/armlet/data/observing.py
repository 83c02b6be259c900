"""Frames as a robot would see them: rows of a data set → observations, in the robot's own numbers.

For policies that are asked and not trained; batches for training are `frames.BatchMaker`'s. Knows
arrays; knows no policy.
"""

import numpy as np

from armlet.data.frames import Frames
from armlet.robot.observation import Observation


def observations(frames: Frames, rows: np.ndarray) -> list[Observation]:
    """What a robot knows at each of `rows` (n,). As for training, nothing was done before the first
    frame of an episode, or of a stretch after a gap in it."""
    # Camera → (n, h, w, 3): one read a camera, and not one a row.
    seen = {name: pictures[rows] for name, pictures in frames.images.items()}
    begins = np.isin(rows, frames.begins)
    found = []
    for place, row in enumerate(rows):
        before = np.zeros_like(frames.executed[row]) if begins[place] else frames.executed[row - 1]
        found.append(
            Observation(
                images={name: pictures[place] for name, pictures in seen.items()},
                state=np.asarray(frames.state[row], np.float32),
                instruction=frames.texts[frames.asked[row]],
                previous_action=np.asarray(before, np.float32),
            )
        )
    return found


def keys_of(frames: Frames, rows: np.ndarray) -> np.ndarray:
    """(n, 2) int64: episode and step of each row."""
    episode = np.searchsorted(frames.starts, rows, side="right") - 1
    return np.stack([episode, rows - frames.starts[episode]], 1)
