"""What somebody says of a robot: options, a file `robot.toml`, a benchmark, a data set. Each says
what it knows, and leaves the rest to the next.

    options  over  robot.toml  over  what the data set says of itself

`completed` makes a spec of it, or names everything that nobody said. Knows no data set and no
policy; what recordings suggest is found by `armlet.data.description`.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self, get_args

from armlet.robot import naming
from armlet.robot.spec import ActionSpec, Mode, Rotation
from armlet.robot.tables import read_table

FILE = "robot.toml"
NEEDED = ("mode", "rotation", "grippers")  # what no data set says of itself
ENDS = ("gripper_open", "gripper_closed")  # needed where there is a gripper
# What the question for a missing field offers.
CAN_BE = {
    "mode": " or ".join(get_args(Mode)),
    "rotation": ", ".join(get_args(Rotation)),
    "grippers": "the names or numbers of the dimensions, from 0; none where there is no gripper",
    "gripper_open": "the command that opens it",
    "gripper_closed": "the command that closes it",
}


@dataclass(frozen=True)
class Described:
    """What somebody says of a robot; None: nothing."""

    mode: Mode | None = None
    """An action is a change (delta: velocities too) or a place to be reached (absolute)."""
    rotation: Rotation | None = None
    """How an action says a rotation; `none` for joints, and where there is none."""
    grippers: tuple[int | str, ...] | None = None
    """Action dimensions that open and close a gripper, by name or number (from 0)."""
    gripper_open: float | None = None
    """The command that opens a gripper, in the data's unit."""
    gripper_closed: float | None = None
    """The command that closes a gripper, in the data's unit."""
    translation_scale: float | None = None
    """Metres that a command of 1 moves the hand; left out where nobody knows."""
    control_hz: float | None = None
    """Actions a second; else the data set's fps."""
    names: tuple[str, ...] | None = None
    """A name for each action dimension; else the data set's."""
    low: tuple[float, ...] | None = None
    """The lowest command of each action dimension; else the lowest in the data."""
    high: tuple[float, ...] | None = None
    """The highest command of each action dimension; else the highest in the data."""
    state_names: tuple[str, ...] | None = None
    """A name for each number of the state; else the data set's."""

    def over(self, other: "Described") -> "Described":
        """What this one says and, of what it does not, what the other does."""
        # Fields of Described alone: options have one more, the file, which says nothing of a robot.
        merged: dict[str, Any] = {}
        for each in fields(Described):
            mine = getattr(self, each.name)
            merged[each.name] = getattr(other, each.name) if mine is None else mine
        return Described(**merged)

    @classmethod
    def of(cls, spec: ActionSpec, state_names: Sequence[str] = ()) -> Self:
        """All that is known of a robot."""
        return cls(
            mode=spec.mode,
            rotation=spec.rotation,
            grippers=spec.grippers,
            # Without a gripper they are 0 and mean nothing.
            gripper_open=spec.gripper_open if spec.grippers else None,
            gripper_closed=spec.gripper_closed if spec.grippers else None,
            translation_scale=spec.translation_scale,
            control_hz=spec.control_hz,
            names=spec.names,
            low=spec.low,
            high=spec.high,
            state_names=tuple(state_names) or None,
        )

    @classmethod
    def read(cls, path: Path) -> "Described":
        """A `robot.toml`. Raises FileNotFoundError, and ValueError naming the file and what in it
        will not do."""
        said = read_table(
            path,
            called=FILE,
            made_by="`armlet inspect` writes one beside the data",
            repair="repair it there (a `?` is what `armlet inspect` could not guess: say it)",
        )
        return from_table(said, path)


@dataclass(frozen=True)
class RobotOptions(Described):
    """What the robot is, where its data set does not say: over the file, and the file over the
    data."""

    file: Path | None = None
    """A robot.toml; else the one in the data set's folder, where there is one."""

    def with_file(self, beside: Path) -> Described:
        """The options over their file, or over the one that lies `beside`, a folder."""
        _check(self, option)
        if self.file is not None:
            return self._over_file(Described.read(self.file))
        # One that is named must be there; the one beside the data need not.
        found = beside / FILE
        return self._over_file(Described.read(found) if found.is_file() else Described())

    def _over_file(self, file: Described) -> Described:
        merged = self.over(file)
        # Options that take away the file's gripper take its ends away with it; ends that are
        # options themselves would have no effect beside the file's `grippers = []`.
        if self.grippers == ():
            return replace(merged, gripper_open=None, gripper_closed=None)
        _check_ends(replace(self, grippers=merged.grippers), option)
        return merged


def _check(said: Described, called: Callable[[str], str]) -> None:
    """Raises ValueError where what one source says of a robot contradicts itself, whatever anybody
    else says. `called`: how the source calls a field."""
    for name in ("names", "state_names"):
        wrong = naming.faults(getattr(said, name) or ())
        if wrong:
            raise ValueError(
                f"{called(name)} must name each number once: {'; '.join(wrong)}; give each a name "
                "of its own, or leave it out: then the data set's names count"
            )
    for name in ("low", "high"):
        values = getattr(said, name) or ()
        if not all(map(math.isfinite, values)):
            raise ValueError(
                f"{called(name)} is {' '.join(f'{each:g}' for each in values)}, expected finite "
                "numbers; leave it out where nobody knows the range: then the data's counts"
            )
    for name in (*ENDS, "translation_scale", "control_hz"):
        value = getattr(said, name)
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{called(name)} is {value:g}, expected a finite number")
    for index, each in enumerate(said.grippers or ()):
        if each in (said.grippers or ())[:index]:
            raise ValueError(f"{called('grippers')} names {each!r} twice; name each dimension once")
    _check_ends(said, called)


def _check_ends(said: Described, called: Callable[[str], str]) -> None:
    """Raises ValueError where there is no gripper, and ends of one are given."""
    ends = [name for name in ENDS if getattr(said, name) is not None]
    if said.grippers == () and ends:
        raise ValueError(
            f"{' and '.join(map(called, ends))} say how a gripper moves, and `grippers` that there "
            "is none; leave them out, or name the gripper's dimension"
        )


def from_table(said: dict[str, Any], path: Path) -> Described:
    """What a table of TOML says of a robot; `path` is its file. Raises ValueError naming the file
    and what in it will not do."""
    known = [each.name for each in fields(Described)]
    unknown = sorted(set(said) - set(known))
    if unknown:
        raise ValueError(
            f"{path}: {', '.join(unknown)} says nothing of a robot; it may hold {', '.join(known)}"
        )
    found = Described(**{name: _read(name, value, path) for name, value in said.items()})
    _check(found, lambda name: f"{path}: {name}")
    return found


class UnknownRobotError(ValueError):
    """Something about a robot that its data cannot tell, and nobody said; `missing` are the
    fields."""

    def __init__(self, message: str, missing: Sequence[str]) -> None:
        self.missing = tuple(missing)
        super().__init__(message)


def completed(
    said: Described, *, suggestions: Mapping[str, str] | None = None, whose: str = "the data"
) -> ActionSpec:
    """A spec of what was said, with `names`, `low`, `high` and `control_hz` among it. A gripper's
    range is widened to its ends.

    Raises UnknownRobotError, which asks for everything that is missing by the name of its option,
    with what the data suggest (`suggestions`: field → the option with a value, and why), and
    ValueError where what is said contradicts itself.
    """
    _ask(said, suggestions or {}, whose)
    # What was asked for is there now, and the caller gave the rest; said for the type checker.
    assert said.names is not None and said.low is not None and said.high is not None
    assert said.mode is not None and said.rotation is not None and said.control_hz is not None
    assert said.grippers is not None
    grippers = indices(said.grippers, said.names)
    low, high = _range(said.names, said.low, said.high, whose)
    ends = (0.0, 0.0)  # of a robot without a gripper
    if grippers:
        assert said.gripper_open is not None and said.gripper_closed is not None
        ends = (said.gripper_open, said.gripper_closed)
        if not all(map(math.isfinite, ends)) or ends[0] == ends[1]:
            raise ValueError(
                f"{whose}: the gripper is open at {ends[0]:g} and closed at {ends[1]:g}; give two "
                f"commands that differ: {option('gripper_open')} and {option('gripper_closed')}"
            )
    # Recordings in which it never opens have a range that ends short of open.
    for index in grippers:
        low[index] = min(low[index], *ends)
        high[index] = max(high[index], *ends)
    scale = said.translation_scale
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(
            f"{whose}: {option('translation_scale')} is {scale:g}, expected the metres that a "
            "command of 1 moves the hand, more than 0"
        )
    try:
        return ActionSpec(
            names=said.names,
            mode=said.mode,
            rotation=said.rotation,
            low=tuple(low),
            high=tuple(high),
            grippers=grippers,
            gripper_open=ends[0],
            gripper_closed=ends[1],
            control_hz=said.control_hz,
            translation_scale=scale,
        )
    except ValueError as error:
        raise ValueError(f"{whose}, as {FILE} or the options describe it: {error}") from error


def _ask(said: Described, suggestions: Mapping[str, str], whose: str) -> None:
    """Raises UnknownRobotError where something is missing."""
    missing = [name for name in NEEDED if getattr(said, name) is None]
    # Where nobody said whether there is a gripper, the suggestions hold ends if it looks like one.
    ends_matter = ENDS[0] in suggestions if said.grippers is None else bool(said.grippers)
    if ends_matter:
        missing += [name for name in ENDS if getattr(said, name) is None]
    if not missing:
        return
    asked = []
    for name in missing:  # all at once: asked one at a time, it would take as many runs
        asked.append(suggestions.get(name, f"{option(name)} … ({CAN_BE[name]})"))
    raise UnknownRobotError(
        f"{whose}: what its actions mean is said nowhere; say it: {'; '.join(asked)}. Or run "
        f"`armlet inspect {whose}`: it shows the data and writes {FILE}, in which this is said "
        "once",
        missing,
    )


def _range(
    names: Sequence[str], low: Sequence[float], high: Sequence[float], whose: str
) -> tuple[list[float], list[float]]:
    for name, found in (("low", low), ("high", high)):
        if len(found) != len(names):
            raise ValueError(
                f"{whose}: {option(name)} has {len(found)} entries and an action {len(names)} "
                f"dimensions ({', '.join(names)}); give one for each"
            )
    return list(low), list(high)


def indices(said: Sequence[int | str], names: Sequence[str]) -> tuple[int, ...]:
    """Dimensions named by number or name → their numbers, in order. Raises ValueError for one that
    there is not."""
    found = []
    for each in said:
        if names.count(each) > 1:
            which = [index for index, name in enumerate(names) if name == each]
            raise ValueError(
                f"{option('grippers')}: {each!r} is the name of dimensions "
                f"{', '.join(map(str, which))}; give the number"
            )
        # A name goes first: a data set without names calls its dimensions "0", "1", "2".
        number = names.index(each) if each in names else each
        if isinstance(number, str) and number.lstrip("-").isdigit():
            number = int(number)
        if isinstance(number, str) or not -len(names) <= number < len(names):
            raise ValueError(
                f"{option('grippers')}: there is no dimension {each!r}; an action has "
                f"{', '.join(names)} (0 to {len(names) - 1}); a robot without a gripper has "
                f"`{option('grippers')}` and nothing behind it, or `grippers = []`"
            )
        found.append(number % len(names))  # -1 is the last
    return tuple(sorted(set(found)))


def option(name: str) -> str:
    """How a field is said on the command line."""
    return f"--robot.{name.replace('_', '-')}"


def as_toml(value: Any) -> str:
    """A text, number or list of them as TOML says it; a float is read back to the bit."""
    if isinstance(value, str):  # a TOML basic string is written as JSON is
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool) or not isinstance(value, int | float | list | tuple):
        raise TypeError(f"{value!r} has no place in a {FILE}")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return repr(value)  # the shortest text that gives the same float again


def toml_lines(said: Described) -> list[str]:
    """A line for everything that is said, in the order of the fields."""
    lines = []
    for each in fields(Described):
        value = getattr(said, each.name)
        if value is not None:
            lines.append(f"{each.name} = {as_toml(value)}")
    return lines


def recorded_toml(spec: ActionSpec, state_names: Sequence[str]) -> str:
    """The `robot.toml` of episodes that armlet recorded itself: everything is known."""
    title = "# What the robot of these episodes is, as it was when they were recorded."
    return "\n".join([title, *toml_lines(Described.of(spec, state_names)), ""])


def _read(name: str, value: Any, path: Path) -> Any:
    """A value of a `robot.toml` as its field has it."""
    one_of = {"mode": get_args(Mode), "rotation": get_args(Rotation)}
    where = f"{path}: {name} is {value!r}"
    if name in one_of:
        if value not in one_of[name]:
            raise ValueError(f"{where}, expected {', '.join(one_of[name])}")
        return value
    if name in (*ENDS, "translation_scale", "control_hz"):
        if not _number(value):
            raise ValueError(f"{where}, expected a number")
        return float(value)
    if not isinstance(value, list):
        raise ValueError(f"{where}, expected a list, one entry a dimension")
    if name in ("low", "high"):
        if not all(map(_number, value)):
            raise ValueError(f"{where}, expected numbers")
        return tuple(map(float, value))
    whole = name == "grippers"
    for each in value:
        if not isinstance(each, str) and not (whole and type(each) is int):  # True is an int, too
            kinds = "names or numbers of dimensions" if whole else "names"
            raise ValueError(f"{where}, expected {kinds}")
    return tuple(value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)  # True is an int
