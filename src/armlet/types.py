"""The vocabulary every other file speaks; it knows no model, no data format and no benchmark.

Axes, used in every signature and comment:

    b  batch        k  actions in a chunk     l  layers of the backbone
    n  tokens       a  action dimensions      d  width
    t  text tokens  s  robot-state dimensions h, w  image rows, columns

A *trace* is what a policy answers when it is watched: plain named tensors. The teacher's answer, a
row of the trace store and the student's answer are the same type, so a loss reads two of them and a
missing signal is a `KeyError` with its name:

    actions        (b, k, a)   the chunk it would execute, normalised
    condition      (b, d)      the feature that conditions its action head
    semantics      (b, l, d)   one semantic vector per layer, from the probe's graph heads
    layer_actions  (b, l, k, a) the action each layer would take, from the probe's action heads
    gates          (b, l)      how much of each layer ran: 1 ran, 0 skipped
    logits         (b, k, n)   of its action head's n primitives; (b, k, a, bins) of a head with
                   bins
    costs          (l,)        what each layer costs, relative to the others
    imitation      (b,)        its action head's own loss against the episodes' actions
    privileged.x   (b, x)      what it guesses of simulator fact x, while a teacher is taught
    pointed.x      (b, x)      the same, guessed from the vision tokens alone
    hidden.6       (b, n, d)   hidden states after layer 6
    attention.1    (b, n, t)   what each vision token of two towers listens to in fusion layer 1
    fused          (b, n, d)   their vision tokens after the last fusion layer; `projected`: the
                   same, in the teacher's width
    image, text    (b, d)      unit vectors of picture and words, to be compared
    logits.told    …           what `logits` would be, were the annotator's description heard
    phase          (b, c)      logits of an annotator's phases; `direction`, `direction.text`:
                   embeddings of what it says is done
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
from torch import Tensor

Trace = dict[str, Tensor]
Precision = Literal["bf16", "fp32"]  # of matrix products


@dataclass(frozen=True)
class ActionSpec:
    """What the numbers of an action mean. Two specs that differ are converted or refused, never
    assumed equal.

    `names` one per dimension; `low`/`high` the range the robot accepts; `gripper` the index of the
    gripper dimension (None without one) and `gripper_open`/`gripper_closed` its two ends;
    `control_hz` the rate at which single actions are executed; `translation_scale` metres moved by
    a command of 1.0.
    """

    names: tuple[str, ...]
    mode: Literal["delta", "absolute"]
    rotation: Literal["none", "axis_angle", "euler", "quaternion", "rot6d"]
    low: tuple[float, ...]
    high: tuple[float, ...]
    gripper: int | None
    gripper_open: float
    gripper_closed: float
    control_hz: float
    translation_scale: float

    def __post_init__(self) -> None:
        sizes = {"names": len(self.names), "low": len(self.low), "high": len(self.high)}
        if len(set(sizes.values())) != 1:
            raise ValueError(
                f"ActionSpec: names, low and high must have one entry a dimension, found {sizes}"
            )

    @property
    def dims(self) -> int:
        return len(self.names)

    @property
    def translation(self) -> tuple[int, ...]:
        """Which dimensions move the hand along an axis, in units of `translation_scale`: those
        named x, y, z or dx, dy, dz."""
        return tuple(
            index
            for index, name in enumerate(self.names)
            if name.removeprefix("d") in ("x", "y", "z")
        )

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `dataclasses.asdict`, from JSON, which has no tuples."""
        fields: dict[str, Any] = {
            name: tuple(item) if isinstance(item, list) else item for name, item in value.items()
        }
        return cls(**fields)

    def differences(self, other: "ActionSpec") -> list[str]:
        """The fields in which two specs differ, as readable lines; empty when they are
        interchangeable."""
        return [
            f"{name}: {getattr(self, name)!r} != {getattr(other, name)!r}"
            for name in self.__dataclass_fields__
            if getattr(self, name) != getattr(other, name)
        ]


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


@dataclass(frozen=True)
class Batch:
    """Model-ready tensors for `b` moments, all on one device.

    `images`: camera -> (b, 3, h, w) float in [0, 1]; `text` (b, t) int64 and `text_mask` (b, t)
    bool; `state` (b, s) and `previous_action` (b, a) normalised; `actions` (b, k, a) normalised
    targets and `actions_valid` (b, k) bool (False past the end of the episode), both None at
    inference; `keys` (b, 2) int64 (episode, step); `budget` the share of the backbone that each
    decision may cost, for a student that can be told; `description` (b, u) int64, 0 pads, an
    annotator's words about the moment, and `labels`, name → (b,) int64, what it named (phase,
    element, direction): privileged, for training only; `privileged`: simulator facts for auxiliary
    losses while a teacher trains.
    """

    images: dict[str, Tensor]
    text: Tensor
    text_mask: Tensor
    state: Tensor
    previous_action: Tensor
    actions: Tensor | None = None
    actions_valid: Tensor | None = None
    keys: Tensor | None = None
    budget: float | None = None
    description: Tensor | None = None
    labels: dict[str, Tensor] = field(default_factory=dict)
    privileged: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.state)

    def targets(self) -> tuple[Tensor, Tensor]:
        """`actions` and `actions_valid`. Raises ValueError where there are none: at inference."""
        if self.actions is None or self.actions_valid is None:
            raise ValueError(
                "this batch has no actions to compare with; it was made from observations, not from episodes"
            )
        return self.actions, self.actions_valid
