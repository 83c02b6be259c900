"""Numbers of a robot ↔ numbers of a network, by the statistics of a data set. Knows no file and no
network.

    normalised = (value − offset) / scale + shift
    value      = (normalised − shift) · back + offset

a dimension at a time. `back` is `scale` but where a library's own way back is not the inverse of
its way there.

**Modes** say which statistics count: `mean_std`; `min_max`; `quantiles` (q01 and q99); `quantile10`
(q10 and q90); `identity`, none. **Variants** say by which formula, for policies that were trained
elsewhere must be fed as they were there:

    armlet   mean_std     (x − mean) / s, s the deviation
             the others   (x − (lo + hi)/2) / s, s = (hi − lo)/2, so lo … hi becomes −1 … 1
             back         the inverse
             s is never almost nothing: see `steady` below
    lerobot  mean_std     (x − mean) / (std + 1e-8)
             back         x · std + mean, without the 1e-8
             the others   2 (x − lo) / (hi − lo) − 1, with 1e-8 for hi − lo where that is 0
             back         (x + 1)(hi − lo)/2 + lo
             (NormalizerProcessorStep of 0.4 to 0.6)
    openpi   mean_std     (x − mean) / (std + 1e-6)
             quantiles    2 (x − q01) / (q99 − q01 + 1e-6) − 1
             back         the inverse
             (transforms.Normalize and Unnormalize; it has no other modes)
    openvla  quantiles, min_max
                          2 (x − lo) / (hi − lo + 1e-8) − 1; where hi = lo: x − lo
             back         (x + 1)(hi − lo)/2 + lo, without the 1e-8
             (data_utils.normalize_action_and_proprio, predict_action; it has no other modes)
    openvla_oft           the same, and the 1e-8 on the way back as well

`epsilon` replaces a library's own small number; 0 leaves it out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np

from armlet.robot.spec import ActionSpec

Mode = Literal["identity", "mean_std", "min_max", "quantiles", "quantile10"]
Variant = Literal["armlet", "lerobot", "openpi", "openvla", "openvla_oft"]

# The statistics that each mode reads.
NEEDED: dict[str, tuple[str, ...]] = {
    "identity": (),
    "mean_std": ("mean", "std"),
    "min_max": ("min", "max"),
    "quantiles": ("q01", "q99"),
    "quantile10": ("q10", "q90"),
}
# What the libraries add to what they divide by.
EPSILON = {"lerobot": 1e-8, "openpi": 1e-6, "openvla": 1e-8, "openvla_oft": 1e-8}

ROUNDING = 1e-6  # of where a dimension stands: less is rounding (float32: 6e-8), not motion
# In the data's own unit, for a dimension that stands at 0: float32's rounding of numbers about 1.
NOISE = 1e-7
NEARLY = 1e-3  # of where a dimension stands: the least that a network is shown as one unit

USUAL = 50.0  # a normalised value that few rows may pass
FEW = 0.01  # of the rows
EVER = 1000.0  # one that none may


@dataclass(frozen=True)
class Normaliser:
    """See the module's docstring; arrays (x,) float32. Without `shift` it is 0, without `back` it
    is `scale`."""

    offset: np.ndarray
    scale: np.ndarray
    shift: np.ndarray = None  # type: ignore[assignment]  # __post_init__ knows how long it is
    back: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        # A frozen dataclass is set this way, once.
        if self.shift is None:
            object.__setattr__(self, "shift", np.zeros_like(self.offset))
        if self.back is None:
            object.__setattr__(self, "back", self.scale)

    @classmethod
    def from_statistics(
        cls,
        statistics: dict[str, Any],
        mode: Mode,
        *,
        what: str,
        dims: int,
        keep: tuple[int, ...] = (),
        variant: Variant = "armlet",
        epsilon: float | None = None,
    ) -> Self:
        """The normaliser of a mode and variant; dimensions in `keep` pass as they are.

        Raises ValueError where statistics are missing, belong to another robot (a different number
        of dimensions) or would divide by nothing, and for a mode that a variant does not have.
        """
        first, second = _read(statistics, mode, what=what, dims=dims)
        if variant == "armlet":
            if epsilon is not None:
                raise ValueError(
                    f"epsilon={epsilon}: normalisation variant 'armlet' has none; leave it out, or "
                    "choose another"
                )
            offset, scale = _own(first, second, mode)
            shift = np.zeros(dims)
            back = scale
        elif mode == "identity":  # `_read` gives 0 and 1
            offset = np.zeros(dims)
            scale = np.ones(dims)
            shift = np.zeros(dims)
            back = scale
        else:
            small = EPSILON[variant] if epsilon is None else epsilon
            offset, scale, shift, back = _theirs(first, second, mode, variant, small)
        kept = list(keep)
        offset[kept] = 0.0
        scale[kept] = 1.0
        shift[kept] = 0.0
        back[kept] = 1.0
        # In single precision, as they will be kept: a tiny scale may be 0 there.
        nothing = np.flatnonzero(np.asarray(scale, np.float32) == 0)
        if len(nothing):
            raise ValueError(
                f"statistics of {what!r}: dimension {nothing[0]} never moved, and epsilon is 0; it "
                "would be divided by 0"
            )
        return cls(*(np.array(values, np.float32) for values in (offset, scale, shift, back)))

    @classmethod
    def of_actions(cls, statistics: dict[str, Any], mode: Mode, spec: ActionSpec) -> Self:
        """The normaliser of a robot's actions, by the statistics of those in its data.

        A gripper is not normalised by statistics, which change with how often it closes, but by its
        ends: they become -1 and 1. It passes as it is where its ends are about that already (-1 and
        1, or 0 and 1), and with `identity`. With quantiles, a dimension that moves so seldom that
        q01 and q99 are the same is normalised by its lowest and highest value.
        """
        found = cls.from_statistics(statistics, mode, what="action", dims=spec.dims)
        offset = found.offset.copy()
        scale = found.scale.copy()
        if mode in ("quantiles", "quantile10"):
            low, high = NEEDED[mode]
            lowest = np.array(statistics[low], np.float64)
            seldom = lowest == np.array(statistics[high], np.float64)  # (a,)
            whole = cls.from_statistics(statistics, "min_max", what="action", dims=spec.dims)
            # It rests, and jumps now and then: between two equal quantiles there is no width.
            offset = np.where(seldom, whole.offset, offset)
            scale = np.where(seldom, whole.scale, scale)
        # Ends of 0 and 1 pass as well: a network sees the gripper move.
        kept = mode == "identity" or is_plain(spec)
        width = abs(spec.gripper_closed - spec.gripper_open)
        for index in spec.grippers:
            offset[index] = 0.0 if kept else (spec.gripper_open + spec.gripper_closed) / 2
            scale[index] = 1.0 if kept else width / 2
        return cls(offset, scale)

    @property
    def moved(self) -> np.ndarray:
        """(x,) bool: whether `scale` is how far a dimension moved in the data. Where it had no
        statistics (identity) or stood still, the scale was chosen otherwise: see `steady`."""
        place = np.abs(self.offset)
        plain = (self.offset == 0) & (self.scale == 1)
        still = self.scale == np.maximum(place, 1)
        # `_own` multiplies in double precision, and it is kept in single: hence the slack.
        nearly = self.scale <= NEARLY * place * (1 + 1e-6)
        return ~(plain | still | nearly)

    def apply(self, values: np.ndarray) -> np.ndarray:
        return (values - self.offset) / self.scale + self.shift  # (…, x)

    def invert(self, values: np.ndarray) -> np.ndarray:
        return (values - self.shift) * self.back + self.offset

    def before_invert(self, values: np.ndarray) -> np.ndarray:
        """What `invert` makes these values of. Not always `apply`, which some libraries do not undo
        to the digit (`back`); of a dimension that is always the same, the middle."""
        moving = self.back != 0
        width = np.where(moving, self.back, 1)
        return np.where(moving, (values - self.offset) / width, 0) + self.shift  # (…, x)

    def to_json(self) -> dict[str, list[float]]:
        """`shift` and `back` stand there only where they say something."""
        said = {"offset": self.offset.tolist(), "scale": self.scale.tolist()}
        if self.shift.any():
            said["shift"] = self.shift.tolist()
        if not np.array_equal(self.back, self.scale):
            said["back"] = self.back.tolist()
        return said

    @classmethod
    def from_json(cls, value: dict[str, list[float]]) -> Self:
        """The inverse of `to_json`. Raises ValueError naming what is no list of finite numbers, one
        a dimension, or would divide by nothing."""
        arrays = {}
        for name, numbers in value.items():
            found = np.array(numbers, np.float32)
            size = np.shape(value["offset"])
            if found.ndim != 1 or found.shape != size or not np.isfinite(found).all():
                raise ValueError(
                    f"statistics: {name} is {numbers!r:.60}, expected a list of finite numbers, as "
                    "many as `offset` has"
                )
            arrays[name] = found
        made = cls(**arrays)
        if not (made.scale > 0).all():
            raise ValueError(
                f"statistics: scale is {value['scale']!r:.60}, expected numbers above 0"
            )
        return made


def is_plain(spec: ActionSpec) -> bool:
    """Whether a gripper's ends are about -1 and 1 as they are, so that a network sees it move."""
    ends = spec.gripper_open, spec.gripper_closed
    return max(map(abs, ends)) <= 1 and abs(ends[0] - ends[1]) >= 1


def normalised(spec: ActionSpec, actions: Normaliser) -> ActionSpec:
    """What a robot's actions are to a network: its range and the ends of its grippers as
    `actions` makes them."""
    low = actions.apply(np.array(spec.low, np.float64))
    high = actions.apply(np.array(spec.high, np.float64))
    ends = spec.gripper_open, spec.gripper_closed
    if spec.grippers:
        at = spec.grippers[0]  # all grippers have the same ends, and the same way there
        opened = actions.apply(np.full(spec.dims, ends[0], np.float64))[at]
        closed = actions.apply(np.full(spec.dims, ends[1], np.float64))[at]
        ends = float(opened), float(closed)
    return replace(
        spec,
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        gripper_open=ends[0],
        gripper_closed=ends[1],
    )


def _read(
    statistics: dict[str, Any], mode: Mode, *, what: str, dims: int
) -> tuple[np.ndarray, np.ndarray]:
    """The two statistics that a mode reads, (dims,) float64 each."""
    if mode not in NEEDED:
        raise ValueError(f"no normalisation {mode!r}; there are {', '.join(NEEDED)}")
    found = []
    for name in NEEDED[mode]:
        if name not in statistics:
            raise ValueError(
                f"statistics of {what!r} lack {name!r}, which normalisation {mode!r} needs"
            )
        try:
            values = np.array(statistics[name], np.float64)
        except (TypeError, ValueError) as error:  # texts, lists of several lengths, anything
            raise ValueError(
                f"statistics of {what!r}: {name} is {statistics[name]!r:.60}, expected {dims} numbers"
            ) from error
        if values.shape != (dims,):
            raise ValueError(
                f"statistics of {what!r}: {name} has shape {values.shape}, expected ({dims},); are "
                "they of another robot?"
            )
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ValueError(
                f"statistics of {what!r}: {name} of dimension {bad[0]} is {values[bad[0]]}; "
                "measure them again"
            )
        found.append(values)
    if mode == "identity":
        return np.zeros(dims), np.ones(dims)
    return found[0], found[1]


def _own(first: np.ndarray, second: np.ndarray, mode: Mode) -> tuple[np.ndarray, np.ndarray]:
    """Offset and scale of armlet's own formulas."""
    if mode == "identity":
        return first, second
    centre, spread = _centre_and_spread(first, second, mode)
    still, nearly = _steady(centre, spread)  # why: see `steady`
    scale = np.where(nearly, NEARLY * np.abs(centre), spread)
    return centre, np.where(still, np.maximum(np.abs(centre), 1.0), scale)


def _theirs(
    first: np.ndarray, second: np.ndarray, mode: Mode, variant: Variant, epsilon: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Offset, scale, shift and back of another library's formulas, in its own single precision."""
    first = first.astype(np.float32)
    second = second.astype(np.float32)
    small = np.float32(epsilon)
    if mode == "mean_std" and not variant.startswith("openvla"):
        scale = second + small
        # lerobot adds the small number on the way there and forgets it on the way back.
        back = second.copy() if variant == "lerobot" else scale.copy()
        return first, scale, np.zeros_like(first), back
    if variant in ("openvla", "openvla_oft"):
        if mode not in ("quantiles", "min_max"):
            raise ValueError(f"{variant} has no normalisation {mode!r}; it has quantiles, min_max")
        stands = second == first
        # Divided by 1e-8 alone, a step of a micrometre would be hundreds; there they say 0.
        scale = np.where(stands, 1, (second - first + small) / 2)
        back = (second - first + (small if variant == "openvla_oft" else 0)) / 2
        return first, scale, np.where(stands, 0, -1).astype(np.float32), back
    if variant == "openpi":
        if mode != "quantiles":
            raise ValueError(f"openpi has no normalisation {mode!r}; it has mean_std and quantiles")
        width = second - first + small
    else:
        width = np.where(second == first, small, second - first)
    # 2 (x − lo) / width − 1 as offset, scale and shift.
    return first, width / 2, np.full_like(first, -1), width / 2


def _centre_and_spread(
    first: np.ndarray, second: np.ndarray, mode: Mode
) -> tuple[np.ndarray, np.ndarray]:
    """Where a dimension stands and how far it moves about that."""
    if mode == "mean_std":
        return first, second
    return (first + second) / 2, (second - first) / 2


def _steady(centre: np.ndarray, spread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which dimensions stand still, and which nearly do: (dims,) bool each."""
    # Relative, for no size in metres or radians says what almost nothing is.
    place = np.abs(centre)
    still = spread <= np.maximum(ROUNDING * place, NOISE)
    return still, ~still & (spread < NEARLY * place)


def steady(statistics: dict[str, Any], mode: Mode, *, what: str, dims: int) -> dict[int, str]:
    """The dimensions that hardly moved in the data → what `Normaliser.from_statistics` does with
    each, in words.

    Divided by a deviation of almost nothing, a joint that always stood at 0.1 and reads 0.101 would
    be a million deviations away. No size in metres or radians says what almost nothing is, so it is
    measured against the place where the dimension stands:

    - it *stands still* where it moved by no more than 1e-6 of that place (rounding), or 1e-7 about
      0. Its distance from that place passes in its own unit: scale 1, or the size of the place
      itself where that is larger than 1.
    - it *nearly* stands still where it moved by less than 1e-3 of that place. A thousandth of the
      place is then one unit.

    A dimension that moves by 1e-4 about 0 does not stand still by this, and is normalised like any
    other.
    """
    if mode == "identity":
        return {}
    centre, spread = _centre_and_spread(*_read(statistics, mode, what=what, dims=dims), mode)
    still, nearly = _steady(centre, spread)
    said = {}
    for index in np.flatnonzero(still | nearly):
        scale = max(abs(centre[index]), 1.0) if still[index] else NEARLY * abs(centre[index])
        how = "stands still" if still[index] else "hardly moves"
        said[int(index)] = f"{how} at {centre[index]:g}, scale {scale:g}"
    return said


def check_sane(what: str, values: np.ndarray, normaliser: Normaliser, names: Sequence[str]) -> None:
    """Raises ValueError where `values` (N, x) of a data set, normalised, are further off than
    numbers of the same robot can be.

    That is more than 1000 once, or more than 50 in more than 1 % of the rows. A dimension without
    statistics (identity) may be 50.
    """
    # (N, x); whatever is far off when normalised is so far off for the network.
    found = np.abs(normaliser.apply(values))
    plain = (normaliser.offset == 0) & (normaliser.scale == 1) & (normaliser.shift == 0)
    for index in range(found.shape[1]):
        worst = int(found[:, index].argmax()) if len(found) else 0  # the row to name
        if not len(found) or not found[worst, index] > USUAL:
            continue
        share = float((found[:, index] > USUAL).mean())
        if found[worst, index] <= EVER and (plain[index] or share <= FEW):
            continue
        if plain[index]:
            fix = "it has no statistics: choose a normalisation (--normalise-actions), or repair the row"
        else:
            fix = (
                "the statistics are another robot's or in another unit, or the row is damaged: "
                "repair or drop it"
            )
        raise ValueError(
            f"{what}, dimension {index} ({names[index]}): {values[worst, index]:g} in row {worst} "
            f"is {found[worst, index]:.4g} when normalised (offset {normaliser.offset[index]:g}, "
            f"scale {normaliser.scale[index]:g}); {share:.1%} of the rows are over {USUAL:g}, "
            f"expected at most {FEW:.0%}, and none over {EVER:g}; {fix}"
        )
