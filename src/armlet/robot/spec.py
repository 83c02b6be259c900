"""What a robot is: what the numbers of its actions mean, and what it observes.

Knows no data set, no policy and no file. Whether two robots are the same is `agree`'s business;
who says what of a robot (its data, a file, options) is `description`'s.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self, get_args

import numpy as np

from armlet import limits
from armlet.robot.fit import Fit, View, known_fit

SLACK = 1e-6  # of a range: what single precision may add to its end

Mode = Literal["delta", "absolute"]  # a change, or a place to be reached
Rotation = Literal["none", "axis_angle", "euler", "quaternion", "rot6d"]  # none: joints, too


@dataclass(frozen=True)
class ActionSpec:
    """What the numbers of an action mean. Two specs that differ are converted or refused, never
    assumed equal.

    `names` one per dimension; `low`/`high` the range the robot accepts; `grippers` the indices of
    gripper dimensions (none without one, two of two arms), `gripper_open`/`gripper_closed` their
    ends; `control_hz` the rate at which single actions are executed; `translation_scale` metres
    moved by a command of 1.0, None where nobody knows.

    Raises ValueError naming the field, where the description contradicts itself.
    """

    names: tuple[str, ...]
    mode: Mode
    rotation: Rotation
    low: tuple[float, ...]
    high: tuple[float, ...]
    grippers: tuple[int, ...]
    gripper_open: float
    gripper_closed: float
    control_hz: float
    translation_scale: float | None = None

    def __post_init__(self) -> None:
        sizes = {"names": len(self.names), "low": len(self.low), "high": len(self.high)}
        if len(set(sizes.values())) != 1:
            raise ValueError(
                f"ActionSpec: names, low and high must have one entry a dimension, found {sizes}"
            )
        _check_word("ActionSpec.mode", self.mode, get_args(Mode))
        _check_word("ActionSpec.rotation", self.rotation, get_args(Rotation))
        for index in self.grippers:
            if not 0 <= index < self.dims:
                raise ValueError(
                    f"ActionSpec.grippers: {index} is no dimension, there are {self.dims} "
                    f"(0 to {self.dims - 1}); name those that open and close a gripper"
                )
        if len(set(self.grippers)) != len(self.grippers):
            raise ValueError(
                f"ActionSpec.grippers: {list(self.grippers)} names a dimension twice; name each "
                "once"
            )
        for name, low, high in zip(self.names, self.low, self.high, strict=True):
            if not low <= high:  # NaN is caught here as well
                raise ValueError(
                    f"ActionSpec: dimension {name!r} has low {low:g} and high {high:g}; give the "
                    "smaller number as low"
                )
        if not (math.isfinite(self.control_hz) and self.control_hz > 0):
            raise ValueError(
                f"ActionSpec.control_hz is {self.control_hz!r}, expected actions a second, more "
                "than 0"
            )

    @property
    def dims(self) -> int:
        return len(self.names)

    @property
    def translation(self) -> tuple[int, ...]:
        """Which dimensions move the hand along an axis, in units of `translation_scale`: those
        named x, y, z or dx, dy, dz."""
        found = []
        for index, name in enumerate(self.names):
            if name.removeprefix("d") in ("x", "y", "z"):
                found.append(index)
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """The fields; `gripper` is one number, several, or None. A robot of one gripper is written
        as it was while there could be no more, so that the hash of what was saved then stays."""
        fields = asdict(self)
        grippers = list(fields.pop("grippers"))
        if len(grippers) > 1:
            return {**fields, "gripper": grippers}
        return {**fields, "gripper": grippers[0] if grippers else None}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `to_json`, from JSON, which has no tuples. Raises ValueError naming a field
        of another type, KeyError or TypeError where one is missing or unknown."""
        value = dict(value)
        found = value.pop("gripper")
        # One number, several, or None: see `to_json`.
        several = isinstance(found, list)
        alone = [] if found is None else [found]
        value["grippers"] = found if several else alone
        fields: dict[str, Any] = {}
        for name, item in value.items():
            fields[name] = tuple(item) if isinstance(item, list) else item
        spec = cls(**fields)
        limits.typed(spec)
        return spec


@dataclass(frozen=True)
class CameraSpec:
    """The size of a camera's pictures, in pixels."""

    height: int
    width: int


@dataclass(frozen=True)
class ObservationSpec:
    """What a robot observes, or what a policy looks at.

    `cameras` by name. `state_names` one a number of the state; empty where there is no state, or
    where nobody knows its names: then `state_dims` says how many numbers it has (None: nobody
    knows). `state_units` one a number of the state, in words (`rad`, `deg`, `m`), empty where
    nobody knows. `fit`: how a picture of another size is brought to the camera's.
    """

    cameras: dict[str, CameraSpec] = field(default_factory=dict)
    state_names: tuple[str, ...] = ()
    state_units: tuple[str, ...] = ()
    fit: Fit = "exact"
    state_dims: int | None = None

    def __post_init__(self) -> None:
        known_fit(self.fit)
        # A frozen dataclass is set this way: who gives names need not count them.
        if self.state_names and self.state_dims is None:
            object.__setattr__(self, "state_dims", len(self.state_names))
        for name in ("state_names", "state_units"):
            entries = len(getattr(self, name))
            if entries and self.state_dims is not None and entries != self.state_dims:
                raise ValueError(
                    f"ObservationSpec.{name} has {entries} entries and the state has "
                    f"{self.state_dims} numbers; give one a number"
                )

    @classmethod
    def of(
        cls,
        cameras: Mapping[str, tuple[int, int]],
        *,
        state_names: Sequence[str] = (),
        state_dims: int | None = None,
        fit: Fit = "exact",
    ) -> Self:
        """From camera → (height, width) in pixels. State names that only count (0, 1, 2 …) are
        names that nobody gave."""
        named = not all(name.isdigit() for name in state_names)  # none at all is not named either
        return cls(
            {name: CameraSpec(height, width) for name, (height, width) in cameras.items()},
            state_names=tuple(state_names) if named else (),
            state_dims=len(state_names) if state_dims is None else state_dims,
            fit=fit,
        )

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

    @property
    def view(self) -> View:
        """Its cameras as (height, width), with the fit."""
        sizes = {name: (camera.height, camera.width) for name, camera in self.cameras.items()}
        return View(sizes, self.fit)


@dataclass(frozen=True)
class RobotSpec:
    """A robot, as far as a policy and its data must agree on it."""

    action: ActionSpec
    observation: ObservationSpec

    def to_json(self) -> dict[str, Any]:
        return {"action": self.action.to_json(), "observation": asdict(self.observation)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(
            ActionSpec.from_json(value["action"]), ObservationSpec.from_json(value["observation"])
        )


def _check_word(what: str, found: str, known: tuple[str, ...]) -> None:
    if found not in known:
        raise ValueError(f"{what} is {found!r}, expected {', '.join(known)}")


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
            f"action dimension {names[where[-1]]!r} is NaN or infinite at "
            f"{tuple(map(int, where[:-1]))}"
        )
    ends = np.asarray(low, np.float64), np.asarray(high, np.float64)
    slack = SLACK * (ends[1] - ends[0])  # (a,)
    outside = (values < ends[0] - slack) | (values > ends[1] + slack)
    if outside.any() and not clip:
        where = np.argwhere(outside)[0]
        at = where[-1]
        raise ValueError(
            f"action dimension {names[at]!r} is {values[tuple(where)]:g}, outside {ends[0][at]:g} "
            f"… {ends[1][at]:g} ({outside.sum()} of {outside.size} numbers are outside theirs); "
            "clip=True moves them to the end of their range, unless the range is that of another "
            "robot"
        )
    # Also without `clip`: what single precision added is taken off again.
    return np.clip(values, *ends)
