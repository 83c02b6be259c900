"""How chunks of actions that overlap in time become one: each action that is carried out is a mean
of all that were decided for its moment, in this decision and in those before.

A policy says that it is meant so (`Policy.ensemble`); whoever drives it through an episode keeps the
chunks (`rollout.memory`). Knows no policy and no robot.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ensemble:
    """Of what was decided for a moment, number i from the oldest weighs exp(−coefficient · i): of a
    positive coefficient the oldest counts most (ACT, arXiv 2304.13705, §IV-D, as LeRobot counts)."""

    coefficient: float = 0.01

    def weights(self, count: int) -> np.ndarray:
        """(count,) float64, of any sum, the oldest first."""
        return np.exp(-self.coefficient * np.arange(count, dtype=np.float64))
