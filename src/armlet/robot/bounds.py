"""What a guard lets pass to a robot's motors: ranges, speeds, a workspace, and what is done where
an action lies outside; and the file that says it, `guard.toml`.

    mode = "delta"              # of the robot that the numbers are of: another is refused

    [range]                     # narrower than the robot's own; left out: the robot's
    dx = [-0.8, 0.8]
    [velocity]                  # at most, a second, in the action's own unit: of a delta the sum of
    dx = 8.0                    # its moves, of an absolute position how far it changes
    [acceleration]              # how much faster a second of motion may become; braking is free
    dx = 40.0
    [workspace]                 # a box, in the state's unit; of absolute actions in their own
    x = [0.1, 0.6]
    [scale]                     # of delta actions: how far a command of 1 moves the state's number;
    x = 0.05                    # left out: the robot's `translation_scale`
    [gripper]                   # so that it does not chatter
    rest = 3                    # control steps from one switch to the next, at least
    steps = 1                   # in a row, that must ask for the other side: it is so much later
    band = 0.1                  # of its travel, about the middle, that is on neither side
    [watchdog]
    seconds = 0.5               # without a fresh action that could be carried out
    age = 2.0                   # of what was seen, for an action still to be carried out
    [on]                        # clip (to the limit), hold (still, this step) or stop (until reset)
    range = "clip"
    velocity = "clip"           # acceleration, too
    workspace = "clip"
    nonsense = "hold"           # NaN, infinity, another shape, an error: hold or stop
    silence = "hold"            # hold or stop

Every table may be left out, and every dimension of a table: then nothing limits it but the range.
`proposal` makes such a file from recordings. Knows no policy; carries nothing out (`guard` does).
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

from armlet.robot.agree import plain
from armlet.robot.naming import OF_THREE, ROT6D, ROTATIONS
from armlet.robot.spec import ActionSpec
from armlet.robot.tables import read_table

FILE = "guard.toml"
Response = Literal["clip", "hold", "stop"]
Reply = Literal["hold", "stop"]  # to what cannot be clipped
TABLES = ("range", "velocity", "acceleration", "workspace", "scale", "gripper", "watchdog", "on")
SILENCE_S = 0.5
PERIODS = 5  # of silence, where these are longer
Named = tuple[str, Any]


@dataclass(frozen=True)
class Wall:
    """Two walls: number `state` of the robot's state stays within `low` … `high`, in its own unit.
    A command of 1 in action dimension `dimension` moves it by `scale`. `state` None: the action is
    the position itself."""

    dimension: int
    low: float
    high: float
    state: int | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(
                f"a workspace of {self.low:g} to {self.high:g}: give the smaller number first"
            )
        if not (math.isfinite(self.scale) and self.scale != 0):
            raise ValueError(
                f"a command of 1 moves the state by {self.scale:g}: expected a number other than 0"
            )


@dataclass(frozen=True)
class Bounds:
    """Limits of each of a dimensions, and what is done beyond them; `of` is the robot's own range
    and no more. `velocity` and `acceleration` are infinite where nothing is said.

    Raises ValueError where they contradict themselves.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    velocity: tuple[float, ...]  # a second
    acceleration: tuple[float, ...]  # a second, a second
    walls: tuple[Wall, ...] = ()
    gripper_steps: int = 1
    gripper_rest: int = 1  # control steps from one switch to the next, at least
    gripper_band: float = 0.0
    silence_s: float = SILENCE_S
    age_s: float = math.inf  # of what an action was decided from
    on_range: Response = "clip"
    on_velocity: Response = "clip"
    on_workspace: Response = "clip"
    on_nonsense: Reply = "hold"
    on_silence: Reply = "hold"

    def __post_init__(self) -> None:
        for low, high in zip(self.low, self.high, strict=True):
            if not low <= high:  # NaN is caught here as well
                raise ValueError(
                    f"a range of {low:g} to {high:g}: give the smaller number first, no NaN"
                )
        for what in ("velocity", "acceleration"):
            for value in getattr(self, what):
                if not value > 0:
                    raise ValueError(f"{what} is {value:g}, expected more than 0")
        for name in ("steps", "rest"):
            value = getattr(self, f"gripper_{name}")
            if value < 1:
                raise ValueError(f"gripper {name} is {value}, expected 1 or more")
        if not 0 <= self.gripper_band < 1:
            raise ValueError(
                f"gripper band is {self.gripper_band:g}, expected a share of the gripper's travel, "
                "at least 0 and less than 1"
            )
        if not 0 < self.silence_s < math.inf:
            raise ValueError(
                f"watchdog seconds is {self.silence_s:g}, expected more than 0 and finite"
            )
        if not self.age_s > 0:
            raise ValueError(f"watchdog age is {self.age_s:g} s, expected more than 0")

    @classmethod
    def of(cls, spec: ActionSpec, **settings: Any) -> Self:
        """The robot's own range, and what else `settings` say."""
        unlimited = (math.inf,) * spec.dims
        fields = {
            "low": spec.low,
            "high": spec.high,
            "velocity": unlimited,
            "acceleration": unlimited,
            "silence_s": max(SILENCE_S, PERIODS / spec.control_hz),
            **settings,
        }
        return cls(**fields)

    @classmethod
    def read(cls, path: Path, spec: ActionSpec, state_names: Sequence[str] = ()) -> Self:
        """A `guard.toml` for this robot. Raises FileNotFoundError, and ValueError naming the file
        and what in it will not do."""
        made_by = "`armlet inspect EPISODES --guard` writes one"
        said = read_table(path, called=FILE, made_by=made_by, repair="repair it there")
        try:
            found = cls.of(spec, **_settings(said, spec, state_names))
            _check(found, spec)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return found


def _settings(
    said: Mapping[str, Any], spec: ActionSpec, state_names: Sequence[str]
) -> dict[str, Any]:
    """What a file says, as fields of `Bounds`."""
    _known("", said, ("mode", *TABLES))
    if said.get("mode") != spec.mode:
        raise ValueError(
            f"mode is {said.get('mode')!r}, and the robot's actions are {spec.mode!r}: limits of "
            "the one mean nothing for the other; are these another robot's?"
        )
    tables = {}
    for name in TABLES:
        tables[name] = said.get(name, {})
        if not isinstance(tables[name], dict):
            raise ValueError(f"{name} is {tables[name]!r}, expected a table: [{name}]")
    low, high = _ranges(tables["range"], spec)
    settings: dict[str, Any] = {
        "low": low,
        "high": high,
        "velocity": _speeds("velocity", tables["velocity"], spec),
        "acceleration": _speeds("acceleration", tables["acceleration"], spec),
        "walls": _walls(tables["workspace"], tables["scale"], spec, state_names),
    }
    gripper = tables["gripper"]
    _known("gripper", gripper, ("rest", "steps", "band"))
    if gripper and not spec.grippers:
        raise ValueError("[gripper] would have no effect: the robot has none; leave it out")
    for name in ("rest", "steps"):
        if name not in gripper:
            continue
        if type(gripper[name]) is not int:
            raise ValueError(f"gripper.{name} is {gripper[name]!r}, expected a whole number")
        settings[f"gripper_{name}"] = gripper[name]
    if "band" in gripper:
        settings["gripper_band"] = _number("gripper.band", gripper["band"])
    _known("watchdog", tables["watchdog"], ("seconds", "age"))
    if "seconds" in tables["watchdog"]:
        settings["silence_s"] = _number("watchdog.seconds", tables["watchdog"]["seconds"])
    if "age" in tables["watchdog"]:
        settings["age_s"] = _number("watchdog.age", tables["watchdog"]["age"])
    return settings | _responses(tables["on"])


def _responses(said: Mapping[str, Any]) -> dict[str, Any]:
    can = {
        "range": get_args(Response),
        "velocity": get_args(Response),
        "workspace": get_args(Response),
        "nonsense": get_args(Reply),
        "silence": get_args(Reply),
    }
    _known("on", said, tuple(can))
    found = {}
    for name, value in said.items():
        if value not in can[name]:
            raise ValueError(f"on.{name} is {value!r}, expected {' or '.join(can[name])}")
        found[f"on_{name}"] = value
    return found


def _ranges(
    said: Mapping[str, Any], spec: ActionSpec
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    low = list(spec.low)
    high = list(spec.high)
    for index, (name, value) in _by_dimension("range", said, spec).items():
        ends = _pair(f"range.{name}", value)
        if ends[0] < low[index] or ends[1] > high[index]:
            raise ValueError(
                f"range.{name} is {ends[0]:g} to {ends[1]:g}, and the robot takes {low[index]:g} "
                f"to {high[index]:g}: a guard narrows this and cannot widen it"
            )
        low[index], high[index] = ends
    return tuple(low), tuple(high)


def _speeds(what: str, said: Mapping[str, Any], spec: ActionSpec) -> tuple[float, ...]:
    found = [math.inf] * spec.dims
    for index, (name, value) in _by_dimension(what, said, spec).items():
        found[index] = _number(f"{what}.{name}", value)
    return tuple(found)


def _walls(
    said: Mapping[str, Any],
    scales: Mapping[str, Any],
    spec: ActionSpec,
    state_names: Sequence[str],
) -> tuple[Wall, ...]:
    boxes = _by_dimension("workspace", said, spec)
    scaled = _by_dimension("scale", scales, spec)
    for index in scaled:
        if index not in boxes or spec.mode == "absolute":
            raise ValueError(
                f"scale.{scaled[index][0]} would have no effect: it is about delta actions in the "
                "[workspace], by which this is not limited"
            )
    walls = []
    for index, (name, value) in boxes.items():
        if index in spec.grippers:
            raise ValueError(f"workspace.{name} is a gripper; limit it in [range]")
        low, high = _pair(f"workspace.{name}", value)
        if spec.mode == "absolute":
            walls.append(Wall(index, low, high))
            continue
        scale = _scale(name, index, scaled, spec)
        walls.append(Wall(index, low, high, state_of(index, spec, state_names), scale))
    return tuple(walls)


def _scale(name: str, index: int, scaled: Mapping[int, Named], spec: ActionSpec) -> float:
    if index in scaled:
        called, value = scaled[index]
        return _number(f"scale.{called}", value)
    if index in spec.translation and spec.translation_scale is not None:
        return spec.translation_scale
    raise ValueError(
        f"workspace.{name}: how far a command of 1 moves it nobody said; say it: [scale] {name} = …"
    )


def state_of(index: int, spec: ActionSpec, state_names: Sequence[str]) -> int:
    """Which number of the state an action dimension moves: the one of the same name, but for a
    `d` or `delta_` before it. Raises ValueError where there is none, or several."""
    wanted = plain(spec.names[index])
    at = [place for place, name in enumerate(state_names) if plain(name) == wanted]
    if len(at) != 1:
        names = ", ".join(state_names) or "no names"
        raise ValueError(
            f"workspace: where {spec.names[index]} has moved the robot is read from its state, "
            f"which has {len(at) or 'nothing'} called {wanted} ({names}); name the state's numbers "
            "(`state_names` in robot.toml), or leave it out of [workspace]"
        )
    return at[0]


def _by_dimension(table: str, said: Mapping[str, Any], spec: ActionSpec) -> dict[int, Named]:
    """A table by action dimension: number → the name that it has there, and what is said of it."""
    found: dict[int, Named] = {}
    for name, value in said.items():
        index = _dimension(table, name, spec)
        if index in found:
            raise ValueError(
                f"{table}: {found[index][0]} and {name} are one dimension; say it once"
            )
        found[index] = (name, value)
    return found


def _dimension(table: str, name: str, spec: ActionSpec) -> int:
    """An action dimension by its name, or by the state's name that it moves."""
    if spec.names.count(name) == 1:
        return spec.names.index(name)
    at = [index for index, each in enumerate(spec.names) if plain(each) == plain(name)]
    if len(at) != 1:
        raise ValueError(
            f"{table}.{name}: {'several dimensions are' if at else 'no dimension is'} called that; "
            f"an action has {', '.join(spec.names)}"
        )
    return at[0]


def _known(table: str, said: Mapping[str, Any], names: Sequence[str]) -> None:
    unknown = sorted(set(said) - set(names))
    if unknown:
        where = f"{table}.{unknown[0]}" if table else unknown[0]
        raise ValueError(f"{where} limits nothing; expected {', '.join(names)}")


def _number(what: str, value: Any) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool)  # True is an int
    if not good or not math.isfinite(value):
        raise ValueError(f"{what} is {value!r}, expected a finite number")
    return float(value)


def _pair(what: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{what} is {value!r}, expected two numbers: [lowest, highest]")
    return _number(what, value[0]), _number(what, value[1])


def is_rotation(name: str) -> bool:
    """Whether a dimension's name is that of an angle, or of another number of a rotation."""
    whole = plain(name)
    end = re.split(r"[_.]", whole)[-1]  # left_arm.qx → qx
    for form in ("quaternion", *OF_THREE):
        for spelling in ROTATIONS[cast(Any, form)]:
            if end in spelling:
                return True
    return bool(ROT6D.search(whole))


def _check(found: Bounds, spec: ActionSpec) -> None:
    """Raises ValueError for limits under which this robot could not be held, or that would move it
    where nobody asked."""
    check_held(found, spec)
    turning = spec.mode == "absolute" and spec.rotation != "none"
    for index, name in enumerate(spec.names):
        limited = math.isfinite(found.velocity[index]) or math.isfinite(found.acceleration[index])
        # Part of the way from one rotation to another is none of its numbers alone: beyond ±180°
        # an angle would go round the long way, and a quaternion would be none.
        if turning and limited and is_rotation(name) and found.on_velocity == "clip":
            raise ValueError(
                f"velocity.{name}: a rotation ({spec.rotation}) that is clipped number by number "
                'is another rotation; say [on] velocity = "hold", or leave it out'
            )


def check_held(found: Bounds, spec: ActionSpec) -> None:
    """Raises ValueError where standing still is outside the range, or two control steps are so far
    apart that every one would be silence."""
    period = 1 / spec.control_hz
    if found.silence_s < 2 * period:
        raise ValueError(
            f"watchdog seconds is {found.silence_s:g}, and a control step takes {period:g} s: the "
            f"watchdog must wait for two, {2 * period:g} s, or more"
        )
    if spec.mode == "absolute":
        return
    for index, name in enumerate(spec.names):
        if index in spec.grippers or found.low[index] <= 0 <= found.high[index]:
            continue
        raise ValueError(
            f"range.{name} is {found.low[index]:g} to {found.high[index]:g}, without 0: a robot of "
            "changes is held by commands of 0"
        )
