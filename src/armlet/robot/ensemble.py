"""How chunks of actions that overlap in time become one: each action that is carried out is a mean
of all that were decided for its moment, in this decision and in those before. Numpy only.

A policy says which (`Policy.ensemble`); whoever drives it through an episode keeps the chunks
(`robot.memory`), and an evaluation may try one on any policy. Knows no policy.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from armlet.robot.spec import ActionSpec

Gripper = Literal["decided", "averaged"]


@dataclass(frozen=True)
class Ensemble(ABC):
    """A frozen dataclass of settings. `chunks`: how many are kept, the newest among them; None: as
    many as reach the moment."""

    @property
    def chunks(self) -> int | None:
        return None

    @abstractmethod
    def weights(self, decided: np.ndarray) -> np.ndarray:
        """What was decided for one moment, (m, a), the oldest decision first → weights (m,) of any
        sum."""

    def meant(self, action: np.ndarray, spec: ActionSpec) -> np.ndarray:
        """A mean (a,) as it is carried out."""
        return action

    def to_json(self) -> dict[str, Any]:
        return {"kind": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class Exponential(Ensemble):
    """Weight exp(−coefficient · i), i = 0 for the oldest: of a positive coefficient the oldest
    counts most (ACT, arXiv 2304.13705, §IV-D, as LeRobot counts)."""

    coefficient: float = 0.01

    def weights(self, decided: np.ndarray) -> np.ndarray:
        return np.exp(-self.coefficient * np.arange(len(decided), dtype=np.float64))


@dataclass(frozen=True)
class Adaptive(Ensemble):
    """Weight exp(alpha · cosine to the newest): what disagrees with it counts little (CogACT, arXiv
    2411.19650, §3.4). `horizon`: chunks that are kept, this one among them (CogACT: 7 for a Bridge
    robot at 5 Hz, 2 for Google's at 3 Hz), at most as many as a chunk has actions. `gripper`: with
    `decided` the mean is brought to the nearer of a gripper's two ends, closed in the middle, as for
    a policy that knows only these; `averaged` leaves it."""

    horizon: int = 7
    alpha: float = 0.1
    gripper: Gripper = "averaged"

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ValueError(f"an ensemble of {self.horizon} decisions: expected 1 or more")

    @property
    def chunks(self) -> int:
        return self.horizon

    def weights(self, decided: np.ndarray) -> np.ndarray:
        newest = decided[-1]
        lengths = np.linalg.norm(decided, axis=1) * np.linalg.norm(newest)
        # The small number is CogACT's own: actions of all zeros have no direction.
        return np.exp(self.alpha * (decided @ newest) / (lengths + 1e-7))

    def meant(self, action: np.ndarray, spec: ActionSpec) -> np.ndarray:
        if self.gripper == "averaged":
            return action
        found = action.copy()
        for index in spec.grippers:
            to_open = abs(action[index] - spec.gripper_open)
            to_closed = abs(action[index] - spec.gripper_closed)
            found[index] = spec.gripper_open if to_open < to_closed else spec.gripper_closed
        return found


KINDS: dict[str, type[Ensemble]] = {each.__name__: each for each in (Exponential, Adaptive)}


def ensemble_from_json(said: dict[str, Any]) -> Ensemble:
    """The inverse of `Ensemble.to_json`. Raises ValueError for a kind that is not known, TypeError
    for settings that it does not have."""
    kind = said.get("kind")
    if kind not in KINDS:
        raise ValueError(f"ensemble.kind is {kind!r}, expected {' or '.join(KINDS)}")
    return KINDS[kind](**{name: value for name, value in said.items() if name != "kind"})
