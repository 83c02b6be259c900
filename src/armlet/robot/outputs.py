"""From a network's numbers to a robot's. Knows arrays; knows no network and no torch."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from armlet.robot.normalise import Normaliser
from armlet.robot.spec import ActionSpec

OPEN = 0.5  # from here on a gripper that is decided is open


@dataclass(frozen=True)
class Decision:
    """`actions` (k, a) float32 in the robot's own numbers; `gates` (l,) 1 for a layer that ran,
    none where nobody can say."""

    actions: np.ndarray
    gates: tuple[int, ...]


@dataclass(frozen=True)
class Outputs:
    """How normalised actions become those of a robot.

    `spec`: whose range they are brought into; `actions`: how they were normalised; `relative`:
    dimensions that are, before normalising, what they are beyond the state's numbers of the same
    index. `gripper`: a dimension that is decided first: all are clipped to −1 … 1, and it is 1 from
    a half on and else 0 (CogACT); None: none is.
    """

    spec: ActionSpec
    actions: Normaliser
    relative: tuple[int, ...] = ()
    gripper: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "action_spec": self.spec.to_json(),
            "actions": self.actions.to_json(),
            "relative": list(self.relative),
            "gripper": self.gripper,
        }

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> Self:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for what it did not
        write."""
        return cls(
            spec=ActionSpec.from_json(said["action_spec"]),
            actions=Normaliser.from_json(said["actions"]),
            relative=tuple(said["relative"]),
            gripper=said["gripper"],
        )

    def denormalise(self, actions: np.ndarray, state: np.ndarray | None = None) -> np.ndarray:
        """Normalised actions (…, k, a) → what the robot takes, within its range, float32; NaN stays
        NaN. `state` (…, s) is the robot's own, in its own numbers, for actions that are relative to
        it. Raises ValueError where it is needed and is not there."""
        if self.gripper is not None:
            actions = decided(actions, self.gripper)
        found = self.actions.invert(actions)
        relative = self.relative
        if relative:
            if state is None:
                raise ValueError(
                    "a policy has decided, and its actions are relative to the state; give one"
                )
            found = np.array(found)
            found[..., relative] += np.asarray(state)[..., None, relative]
        # A network's numbers have no bounds, and a robot's controller may fault beyond its own.
        return np.clip(found, self.spec.low, self.spec.high).astype(np.float32)

    def normalise(self, actions: np.ndarray, state: np.ndarray | None = None) -> np.ndarray:
        """What `denormalise` makes these actions (…, k, a) of, float32, as far as that is known: it
        may have clipped them. Raises ValueError where the state is needed and is not there."""
        found = np.array(actions, np.float64)
        relative = self.relative
        if relative:
            if state is None:
                raise ValueError(
                    "actions are to be made relative to the state, and there is none; give one"
                )
            found[..., relative] -= np.asarray(state)[..., None, relative]
        return self.actions.before_invert(found).astype(np.float32)


def decided(actions: np.ndarray, gripper: int) -> np.ndarray:
    """Actions (…, a) clipped to −1 … 1, the gripper 0 or 1. NaN stays NaN."""
    found: np.ndarray = np.clip(actions, -1, 1)
    said = found[..., gripper]
    found[..., gripper] = np.where(np.isnan(said), said, said >= OPEN)
    return found
