"""Whether two descriptions of a robot are of the same one. It is asked at four doors, and nothing
passes that only looks alike:

    data ↔ policy        before anything is taught, watched, distilled or measured on recordings
    teacher ↔ student    before a student is trained
    policy ↔ world       before the first episode
    load                 `load_policy(folder, robot=…)`, by whoever knows which robot they have

`ours` is who acts and looks, a policy; `theirs` is what it meets. All that differs is one error,
each line with its fix; what may differ without harm is a remark. What one side does not know (None,
or no names) is not compared.

Names. Names are free text, so another name alone proves nothing: it is remarked on, and taken.
Names that are the same and stand in another order are an error, and so is a number of them that
differs. `dx`, `delta_x` and `x` are one name here, and capitals do not count.

Range. A policy speaks within the range that it was taught with. That may be narrower than what the
robot takes, as recordings seldom reach both ends of every joint, and is remarked on. It is an error
where it reaches beyond the robot's by more than a tenth in any dimension, and where it is under a
twentieth of the robot's in all that are no grippers: then the numbers are in another unit (degrees
for radians are a factor of 57).

Knows no data set, no policy and no file.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from armlet.robot.spec import ActionSpec, ObservationSpec, RobotSpec

TOLERANCE = 0.01  # of a dimension's range: rounding, and video-rate interpolation, stay within
BEYOND = 0.1  # of the robot's range: how far a policy's may reach beyond it
NARROW = 0.05  # of the robot's range: less than this in every dimension is another unit
HALF = 0.5  # of the robot's range: less than this in some dimension is remarked on
CLOSE = 1e-3  # of what is expected: numbers that people round when they write them down


@dataclass(frozen=True)
class Difference:
    """One field of which two robots think otherwise; `found` and `expected` in words."""

    field: str
    found: str
    expected: str
    fix: str

    def __str__(self) -> str:
        return f"{self.field}: {self.found}, and {self.expected}; {self.fix}"


class DisagreementError(ValueError):
    """Two descriptions that are not of the same robot; `differences` has every one."""

    def __init__(self, whose: tuple[str, str], differences: Sequence[Difference]) -> None:
        self.differences = tuple(differences)
        super().__init__(f"{whose[0]} and {whose[1]} do not agree: {listed(self.differences)}")


def listed(found: Sequence[object]) -> str:
    """Several lines as one, numbered where there is more than one."""
    if len(found) == 1:
        return str(found[0])
    return "; ".join(f"({number}) {each}" for number, each in enumerate(found, 1))


def agree(
    ours: RobotSpec, theirs: RobotSpec, *, whose: tuple[str, str] = ("the policy", "the robot")
) -> list[str]:
    """Returns remarks, a line each, on what differs without harm. Raises DisagreementError with all
    that must not differ.

    `whose` says in messages who the two are: first ours, who acts, then theirs.
    """
    found = differences(ours, theirs, whose=whose)
    if found:
        raise DisagreementError(whose, found)
    return remarks(ours, theirs, whose=whose)


def differences(
    ours: RobotSpec, theirs: RobotSpec, *, whose: tuple[str, str] = ("the policy", "the robot")
) -> list[Difference]:
    """All in which the two must not differ and do; empty where one can act for the other."""
    found = [
        *_names("action", ours.action.names, theirs.action.names, whose).differences,
        *_rates(ours.action, theirs.action, whose),
    ]
    # With other dimensions the rest would be compared number by number with something else.
    if ours.action.dims == theirs.action.dims:
        found += _conventions(ours.action, theirs.action, whose)
        found += _ranges(ours.action, theirs.action, whose)
    return found + _seen(ours.observation, theirs.observation, whose)


def remarks(
    ours: RobotSpec, theirs: RobotSpec, *, whose: tuple[str, str] = ("the policy", "the robot")
) -> list[str]:
    """What differs without harm and is worth a line: other names, and a narrower range."""
    said = list(_names("action", ours.action.names, theirs.action.names, whose).remarks)
    mine = ours.observation
    others = theirs.observation
    if mine.state_dims == others.state_dims:
        said += _names("state", mine.state_names, others.state_names, whose).remarks
    if ours.action.dims == theirs.action.dims:
        narrow = []
        used = shares(ours.action, theirs.action)  # (a,)
        for name, share in zip(ours.action.names, used, strict=True):
            if share < HALF:
                narrow.append(f"{name} ({share:.2g} of it)")
        if narrow:
            said.append(
                f"{whose[0]} uses a small part of the range that {whose[1]} takes: "
                f"{', '.join(narrow)}"
            )
    return said


def same_rate(hz: float, other: float) -> bool:
    """Data sets keep a whole number of frames a second, so a robot's rate may stand there
    rounded."""
    return other == round(hz) or hz == round(other) or abs(hz - other) <= 0.01 * max(hz, other)


@dataclass(frozen=True)
class Outside:
    """One dimension of some actions: which `share` of the frames lies outside the robot's range,
    and the value furthest out."""

    name: str
    share: float
    worst: float
    low: float
    high: float

    def __str__(self) -> str:
        return (
            f"{self.name} in {self.share:.2g} of the frames, at worst {self.worst:g}, where it "
            f"takes {self.low:g} to {self.high:g}"
        )


def outside_range(actions: np.ndarray, spec: ActionSpec) -> list[Outside]:
    """The dimensions of `actions` (N, a) that leave the robot's range by more than 1 % of it."""
    found = []
    for index, name in enumerate(spec.names):
        low = spec.low[index]
        high = spec.high[index]
        values = actions[:, index].astype(np.float64)
        width = high - low if np.isfinite(high - low) else 1.0  # one end may be open
        beyond = np.maximum(low - values, values - high)  # (N,): below 0 inside the range
        out = beyond > TOLERANCE * width
        if out.any():
            found.append(
                Outside(name, float(out.mean()), float(values[beyond.argmax()]), low, high)
            )
    return found


@dataclass(frozen=True)
class _Names:
    """What is to be said of two lists of names."""

    differences: tuple[Difference, ...] = ()
    remarks: tuple[str, ...] = ()


def _names(what: str, ours: Sequence[str], theirs: Sequence[str], whose: tuple[str, str]) -> _Names:
    if not ours or not theirs:  # nobody knows them
        return _Names()
    if len(ours) != len(theirs):
        return _Names((_another_count(what, len(ours), len(theirs), whose),))
    mine = [plain(name) for name in ours]
    others = [plain(name) for name in theirs]
    # Names that only count (0, 1, 2 …) are a reader's, and say nothing of an order.
    if mine == others or not is_named(ours) or not is_named(theirs):
        return _Names()
    moved = []
    for index, name in enumerate(others):
        if name in mine and mine[index] != name:
            moved.append(theirs[index])
    # A name that stands there twice has no place of its own to have moved from.
    if moved and len(set(mine)) == len(mine) and len(set(others)) == len(others):
        order = Difference(
            f"{what} names",
            f"{', '.join(moved)} stand in another order: {whose[1]} has {', '.join(theirs)}",
            f"{whose[0]} has {', '.join(ours)}",
            "put the columns in that order, or describe a robot of theirs",
        )
        return _Names((order,))
    remark = (
        f"{what}: {whose[1]} calls it {', '.join(theirs)}, taken as {', '.join(ours)} in this order"
    )
    return _Names(remarks=(remark,))


def _another_count(what: str, ours: int, theirs: int, whose: tuple[str, str]) -> Difference:
    return Difference(
        what,
        f"{whose[1]} has {theirs} numbers",
        f"{ours} are expected by {whose[0]}",
        "are they of another robot?",
    )


def plain(name: str) -> str:
    """A name without what people write differently: capitals, and a `d` or `delta_` before a
    direction."""
    # LeRobot writes a joint's position as `elbow.pos`.
    found = name.strip().casefold().removesuffix(".pos").replace("-", "_").replace(" ", "_")
    # Only ahead of a direction: `door` is no change of an `oor`.
    for prefix in ("delta_", "d_", "d"):
        rest = found.removeprefix(prefix)
        if rest != found and rest in ("x", "y", "z", "roll", "pitch", "yaw", "rx", "ry", "rz"):
            return rest
    return found


def is_named(names: Sequence[str]) -> bool:
    """Whether these are names that somebody gave: where a data set has none, its reader counts."""
    return not all(name.isdigit() for name in names)  # 0, 1, 2 …


def _rates(ours: ActionSpec, theirs: ActionSpec, whose: tuple[str, str]) -> list[Difference]:
    if same_rate(ours.control_hz, theirs.control_hz):
        return []
    us, them = whose
    return [
        Difference(
            "rate",
            f"{them} has {theirs.control_hz:g} actions a second",
            f"{us} {ours.control_hz:g} (control_hz)",
            "record or convert the episodes at that rate, or describe the robot's own (control_hz)",
        )
    ]


def _conventions(ours: ActionSpec, theirs: ActionSpec, whose: tuple[str, str]) -> list[Difference]:
    """What the numbers mean, but their range and rate."""
    us, them = whose
    found = []
    if ours.mode != theirs.mode:
        fix = (
            "correct `mode` where it is described wrongly, or use a policy of "
            f"{theirs.mode} actions"
        )
        found.append(
            Difference("mode", f"{them} has {theirs.mode} actions", f"{us} {ours.mode}", fix)
        )
    if ours.rotation != theirs.rotation:
        fix = "correct `rotation` where it is described wrongly, or convert the actions"
        found.append(
            Difference(
                "rotation", f"{them} has {theirs.rotation!r}", f"{us} {ours.rotation!r}", fix
            )
        )
    found += _grippers(ours, theirs, whose)
    scales = ours.translation_scale, theirs.translation_scale
    # Where one of them is not known there is nothing to compare; the range may still tell.
    if scales[0] is not None and scales[1] is not None and not _close(scales[0], scales[1]):
        found.append(
            Difference(
                "translation_scale",
                f"a command of 1 moves {them} by {scales[1]:g} m",
                f"{us} by {scales[0]:g} m",
                "convert the actions (armlet/robot/conventions.py), or correct where it is "
                "described wrongly",
            )
        )
    return found


def _grippers(ours: ActionSpec, theirs: ActionSpec, whose: tuple[str, str]) -> list[Difference]:
    us, them = whose
    if sorted(ours.grippers) != sorted(theirs.grippers):  # two arms may name theirs in any order
        return [
            Difference(
                "grippers",
                f"{them} has {_which(theirs)}",
                f"{us} {_which(ours)}",
                "correct `grippers` where they are described wrongly",
            )
        ]
    if not ours.grippers:
        return []
    mine = (ours.gripper_open, ours.gripper_closed)
    others = (theirs.gripper_open, theirs.gripper_closed)
    width = abs(mine[0] - mine[1])  # the gripper's whole travel, in which a difference is measured
    if max(abs(mine[0] - others[0]), abs(mine[1] - others[1])) <= CLOSE * width:
        return []
    # The worst of mistakes: everything runs, and nothing is ever held.
    if max(abs(mine[0] - others[1]), abs(mine[1] - others[0])) <= CLOSE * width:
        fix = (
            "they are swapped, so it would open where it should close: correct gripper_open and "
            "gripper_closed where they are described wrongly, or convert the actions"
        )
    else:
        fix = (
            "convert the actions (armlet/robot/conventions.py), or correct where they are "
            "described wrongly"
        )
    return [
        Difference(
            "gripper ends",
            f"{them} is open at {others[0]:g} and closed at {others[1]:g}",
            f"{us} open at {mine[0]:g} and closed at {mine[1]:g}",
            fix,
        )
    ]


def _which(spec: ActionSpec) -> str:
    if not spec.grippers:
        return "no gripper"
    return "gripper " + ", ".join(f"{index} ({spec.names[index]})" for index in spec.grippers)


def _close(first: float, second: float) -> bool:
    return abs(first - second) <= CLOSE * max(abs(first), abs(second))


def shares(ours: ActionSpec, theirs: ActionSpec) -> np.ndarray:
    """(a,): how wide our range is in theirs, 1 where one of them is not known or does not move."""
    mine = np.array(ours.high, np.float64) - np.array(ours.low, np.float64)
    others = np.array(theirs.high, np.float64) - np.array(theirs.low, np.float64)
    known = np.isfinite(mine) & np.isfinite(others) & (mine > 0) & (others > 0)
    # The inner `where` keeps numpy from warning of a division whose result is not used.
    return np.where(known, mine / np.where(known, others, 1.0), 1.0)


def _ranges(ours: ActionSpec, theirs: ActionSpec, whose: tuple[str, str]) -> list[Difference]:
    us, them = whose
    fix = "are the numbers in another unit? Convert them, or describe the robot's own low and high"
    beyond = []
    for index, name in enumerate(ours.names):
        low = theirs.low[index]
        high = theirs.high[index]
        if not math.isfinite(ours.high[index] - ours.low[index]):
            continue  # nobody knows it
        room = BEYOND * (high - low)  # infinite where theirs is open: nothing lies beyond it
        if ours.low[index] < low - room or ours.high[index] > high + room:
            beyond.append(
                f"{name} {ours.low[index]:g} to {ours.high[index]:g}, where it takes {low:g} to "
                f"{high:g}"
            )
    if beyond:
        return [Difference("range", f"{us} says {'; '.join(beyond)}", f"{them} takes less", fix)]
    # A gripper may well use little of its range: one that only holds thin things.
    moving = [index for index in range(ours.dims) if index not in ours.grippers]
    used = shares(ours, theirs)[moving]  # (m,)
    # One joint may be used little; all of them at once is a factor, and no habit.
    if len(used) and (used < NARROW).all():
        index = moving[int(used.argmax())]
        name = ours.names[index]
        found = f"{them} takes {theirs.low[index]:g} to {theirs.high[index]:g} of {name}"
        expected = (
            f"{us} says {ours.low[index]:g} to {ours.high[index]:g}, under a twentieth of it in "
            "every dimension"
        )
        return [Difference("range", found, expected, fix)]
    return []


def _seen(
    ours: ObservationSpec, theirs: ObservationSpec, whose: tuple[str, str]
) -> list[Difference]:
    """Cameras and state: of these, theirs may have more cameras, and a state that ours does not
    look at."""
    found = []
    for name, wanted in ours.cameras.items():
        there = theirs.cameras.get(name)
        if there is None:  # by name alone: which camera stands where another did, nobody can tell
            has = ", ".join(sorted(theirs.cameras)) or "no camera"
            fix = "rename one, or record it"
            expected = f"{whose[0]} looks through it"
            found.append(Difference(f"camera {name!r}", f"{whose[1]} has {has}", expected, fix))
        elif ours.fit == "exact" and theirs.fit != "any" and there != wanted:
            fix = (
                "it takes pictures of that size as they are (fit exact); one taught with "
                "`--pictures.fit letterbox` (or crop, stretch) and `--pictures.size` takes any"
            )
            found.append(
                Difference(
                    f"camera {name!r}",
                    f"found ({there.height}, {there.width}, 3)",
                    f"expected ({wanted.height}, {wanted.width}, 3) uint8",
                    fix,
                )
            )
    mine = ours.state_dims
    others = theirs.state_dims
    if not mine or others is None:  # a policy without a state does not look at one
        return found
    if mine != others:
        return [*found, _another_count("state", mine, others, whose)]
    # Of names only the order counts: a state that is called otherwise is taken.
    found += _names("state", ours.state_names, theirs.state_names, whose).differences
    units = ours.state_units, theirs.state_units
    if all(units) and units[0] != units[1]:
        found.append(
            Difference(
                "state units",
                f"{whose[1]} has {', '.join(units[1])}",
                f"{whose[0]} {', '.join(units[0])}",
                "convert the state",
            )
        )
    return found
