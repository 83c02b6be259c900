"""What a robot is: what the numbers of its actions mean, and what it sees and feels. Knows no data
set, no policy and no file."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np

from armlet.robot.fit import Fit, known_fit

SLACK = 1e-6  # of a range: what single precision may add to its end


@dataclass(frozen=True)
class ActionSpec:
    """What the numbers of an action mean. Two specs that differ are converted or refused, never
    assumed equal.

    `names` one per dimension; `low`/`high` the range the robot accepts; `grippers` the indices of
    gripper dimensions (none without one, two of two arms), `gripper_open`/`gripper_closed` their ends;
    `control_hz` the rate at which single actions are executed; `translation_scale` metres moved by
    a command of 1.0.
    """

    names: tuple[str, ...]
    mode: Literal["delta", "absolute"]
    rotation: Literal["none", "axis_angle", "euler", "quaternion", "rot6d"]
    low: tuple[float, ...]
    high: tuple[float, ...]
    grippers: tuple[int, ...]
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
        if "gripper" in value:  # as it was written while there could be only one
            value = dict(value)
            only = value.pop("gripper")
            value["grippers"] = [] if only is None else [only]
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
class CameraSpec:
    """The pictures of a camera, in pixels."""

    height: int
    width: int


@dataclass(frozen=True)
class ObservationSpec:
    """What a robot sees and feels. `cameras` by name; `state_names` one a number of its state, none
    where nobody knows them, and `state_units` as many, or none; `fit` how a picture of another size
    is brought to a camera's; `state_dims` how many numbers its state has."""

    cameras: dict[str, CameraSpec]
    state_names: tuple[str, ...] = ()
    state_units: tuple[str, ...] = ()
    fit: Fit = "exact"
    state_dims: int | None = None

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `dataclasses.asdict`, from JSON, which has no tuples."""
        return cls(
            cameras={name: CameraSpec(**camera) for name, camera in value["cameras"].items()},
            state_names=tuple(value.get("state_names", ())),
            state_units=tuple(value.get("state_units", ())),
            fit=known_fit(value.get("fit", "exact")),
            state_dims=value.get("state_dims"),
        )


@dataclass(frozen=True)
class RobotSpec:
    """All that two parties must agree on before one of them acts for the other."""

    action: ActionSpec
    observation: ObservationSpec

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(
            ActionSpec.from_json(value["action"]), ObservationSpec.from_json(value["observation"])
        )


def within(
    actions: np.ndarray,
    names: Sequence[str],
    low: Sequence[float],
    high: Sequence[float],
    *,
    clip: bool = False,
) -> np.ndarray:
    """`actions` (…, a) as float64, none outside low…high; with `clip`, those that were are moved to
    its end.

    Raises ValueError naming dimension, value and range of the first that is outside, if not `clip`;
    and where a value is NaN or infinite, or the last axis is not one entry a name.
    """
    values = np.asarray(actions, np.float64)
    if values.ndim == 0 or values.shape[-1] != len(names):
        raise ValueError(
            f"actions have shape {values.shape}, expected (…, {len(names)}): {', '.join(names)}"
        )
    if not np.isfinite(values).all():
        where = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(
            f"action dimension {names[where[-1]]!r} is NaN or infinite at {tuple(map(int, where[:-1]))}"
        )
    ends = np.asarray(low, np.float64), np.asarray(high, np.float64)
    slack = SLACK * (ends[1] - ends[0])
    outside = (values < ends[0] - slack) | (values > ends[1] + slack)
    if outside.any() and not clip:
        where = np.argwhere(outside)[0]
        at = where[-1]
        raise ValueError(
            f"action dimension {names[at]!r} is {values[tuple(where)]:g}, outside {ends[0][at]:g} … {ends[1][at]:g} "
            f"({outside.sum()} of {outside.size} numbers are outside theirs); clip=True moves them to the end of their range, "
            "unless the range is that of another robot"
        )
    return np.clip(values, *ends)
