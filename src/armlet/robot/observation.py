"""What a robot knows at one moment, in numpy. Knows no world and no policy."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Observation:
    """What a robot knows at one moment, in numpy: what `Policy.infer` takes and `World.observe`
    gives.

    `images`: camera name -> (h, w, 3) uint8; `state` (s,) float32; `instruction` the words;
    `previous_action` (a,) float32, zeros at the start of an episode.
    """

    images: dict[str, np.ndarray]
    state: np.ndarray
    instruction: str
    previous_action: np.ndarray
