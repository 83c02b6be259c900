"""The limits of a guard, applied to one action: `Limiter.limited`, a function of what is remembered
(`Memory`), an action and the time it has. `guard` calls it, and knows clock, watchdog and log.

Each kind of limit is an interval a dimension. *Standing still* lies within all of them: a move of 0
of a delta robot, the position that was sent last of an absolute one, and of every gripper, which is
told a position either way. So the intervals meet, and an action that is clipped to one after the
other is in all. That is why what speeds up is limited and what slows down is not, and why from
outside the workspace only the ways that lead no further out are open.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from armlet.robot.agree import plain
from armlet.robot.bounds import Bounds, Response, check_held
from armlet.robot.spec import ActionSpec

Kind = Literal[
    "nonsense",  # NaN, infinity, another shape, no array; an error of who should have answered
    "silence",  # nothing that could be carried out for longer than the watchdog waits
    "stale",  # decided from what was seen longer ago than that
    "clock",  # it went backwards, or the control loop stood still longer than that
    "place",  # nobody knows where the robot is, which a limit depends on
    "range", "velocity", "acceleration", "workspace",
    "gripper",  # it was not asked for its other side often enough in a row
    "fault",  # an error in the guard itself
    "stopped",  # by `stop`
]  # fmt: skip
Action = np.ndarray  # (a,) float32, in the robot's own numbers
SLACK = 1e-6  # of what was asked: less is rounding, and no event
BEYOND = 0.05  # of the range: a state so far outside it is of another unit, or no position
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Event:
    """One intervention. `dimension` the action's, None where it is about all of them; `asked` and
    `given` its numbers, None where there is none; `time` in seconds of the guard's clock."""

    kind: Kind
    time: float
    why: str
    dimension: str | None = None
    asked: float | None = None
    given: float | None = None

    def __str__(self) -> str:
        if self.dimension is None:
            return f"{self.kind}: {self.why}"
        return (
            f"{self.kind}: {self.dimension} {_number(self.asked)} became {_number(self.given)}: "
            f"{self.why}"
        )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


@dataclass(frozen=True)
class Memory:
    """What limits depend on. `last` (a,): what was sent last, NaN where nobody knows; `speed` (a,)
    a second, of the last step; `place` one of each wall; `sides`, one a gripper: 1 closed, −1 open,
    0 not known; `turned`: how many steps in a row have asked for the other side."""

    last: np.ndarray
    speed: np.ndarray
    place: np.ndarray
    sides: tuple[int, ...]
    turned: tuple[int, ...]


def hold_action(spec: ActionSpec, last: Action | None) -> Action | None:
    """The action (a,) that holds an arm still after it was told `last` (None: nothing yet): no
    motion, the gripper as it was, open at first. None: an absolute robot that was told nothing."""
    # A place is held by going there again, a change by none.
    if spec.mode == "absolute":
        return last
    held = np.zeros(spec.dims, np.float32)
    for index in spec.grippers:
        # No motion of a gripper is the place where it is: 0 may be half open.
        held[index] = spec.gripper_open if last is None else last[index]
    return held


class Limiter:
    """The limits `bounds` of a robot `spec`; `state_names` say which number of a state is where an
    absolute robot stands. Raises ValueError where the bounds are not of such a robot."""

    def __init__(self, spec: ActionSpec, bounds: Bounds, state_names: Sequence[str] = ()) -> None:
        self.spec = spec
        self.bounds = bounds
        if len(bounds.low) != spec.dims:
            raise ValueError(
                f"bounds are of {len(bounds.low)} dimensions, and an action has {spec.dims}; are "
                "they another robot's?"
            )
        check_held(bounds, spec)
        # In single precision, as motors are told: 0.1 is not a number of it.
        low = np.array(bounds.low, np.float32).astype(np.float64)
        high = np.array(bounds.high, np.float32).astype(np.float64)
        self.low = np.clip(low, -LARGEST, LARGEST)  # (a,): an end may be open, no number is
        self.high = np.clip(high, -LARGEST, LARGEST)
        self._state_at = _places_of(spec, state_names)
        self._velocity = np.array(bounds.velocity, np.float64)
        self._acceleration = np.array(bounds.acceleration, np.float64)
        self.moves = np.ones(spec.dims, bool)  # (a,): a change; the others are positions
        self.moves[list(spec.grippers)] = False
        self.moves &= spec.mode == "delta"
        self.period = 1 / spec.control_hz

    def response(self, kind: Kind) -> Response:
        if kind == "range":
            return self.bounds.on_range
        if kind in ("velocity", "acceleration"):
            return self.bounds.on_velocity
        if kind == "workspace":
            return self.bounds.on_workspace
        return "clip" if kind == "gripper" else "hold"

    def hold(self, memory: Memory) -> Action | None:
        last = memory.last.astype(np.float32) if np.isfinite(memory.last).all() else None
        action = hold_action(self.spec, last)
        return None if action is None else np.clip(action, self.low, self.high).astype(np.float32)

    def whole(self, asked: object, now: float, events: list[Event]) -> np.ndarray | None:
        """What was asked as (a,) float64, None where it is none; `events` grow by what is wrong."""
        try:
            action = numbers(asked)
        except Exception as error:  # whatever is raised by what is no array
            events.append(Event("nonsense", now, f"no action: {error}"))
            return None
        if action.shape != (self.spec.dims,):
            why = f"shape {action.shape}, expected ({self.spec.dims},)"
            events.append(Event("nonsense", now, why))
            return None
        bad = np.flatnonzero(~np.isfinite(action))
        for index in bad:
            value = float(action[index])
            events.append(Event("nonsense", now, "not finite", self.spec.names[index], value))
        return None if len(bad) else action

    # --- what is remembered

    def nothing_known(self) -> Memory:
        dims = self.spec.dims
        unknown = np.full(dims, np.nan)
        hold = hold_action(self.spec, None)  # of a delta robot, known without anything sent
        count = len(self.spec.grippers)
        return Memory(
            last=unknown if hold is None else hold.astype(np.float64),
            speed=np.zeros(dims),
            place=np.full(len(self.bounds.walls), np.nan),
            sides=(0,) * count,
            turned=(0,) * count,
        )

    def sent(self, last: np.ndarray) -> Memory:
        """As if `last` (a,) float64 had been sent."""
        known = np.clip(last, self.low, self.high).astype(np.float32).astype(np.float64)
        sides = tuple(self._side(index, last[index], 0.0) for index in self.spec.grippers)
        return replace(self.nothing_known(), last=known, sides=sides)

    def seen(self, memory: Memory, state: object) -> Memory:
        """What a state (s,) says of where the robot is; what it cannot say is not known."""
        try:
            measured = numbers(state).reshape(-1)  # (s,)
        except Exception:  # whatever is raised by what is no array: then nothing is known
            measured = np.empty(0)
        place = memory.place.copy()
        for number, wall in enumerate(self.bounds.walls):
            if wall.state is not None:
                place[number] = _at(measured, wall.state)
        last = memory.last.copy()
        # An absolute robot stands where it was sent to last: its state lags behind.
        for index, at in self._state_at.items() if self.spec.mode == "absolute" else ():
            if np.isnan(last[index]):
                last[index] = self._position(index, _at(measured, at))
        return replace(memory, place=place, last=last)

    def _position(self, index: int, measured: float) -> float:
        """Where dimension `index` of an absolute robot is by its state; NaN where that is none."""
        low = self.low[index]
        high = self.high[index]
        slack = BEYOND * (high - low)
        if not low - slack <= measured <= high + slack:  # NaN is neither; nor is another unit
            return math.nan
        return float(np.float32(np.clip(measured, low, high)))

    # --- limits

    def limited(
        self, memory: Memory, action: np.ndarray, passed: float, now: float
    ) -> tuple[Memory, Action | None, list[Event]]:
        """What of `action` (a,) may be carried out within `passed` seconds, None: nothing; and what
        is to be remembered then."""
        lost = self._lost(memory, now)
        if lost is not None:
            return memory, None, [lost]
        memory, wanted, events = self._gripped(memory, action, now)
        # Standing still lies within each of these, so that clipping to one leaves none of the
        # others.
        still = np.where(self.moves, 0.0, memory.last)  # (a,), NaN where nobody knows
        lowest = self.low
        highest = self.high
        for kind, low, high in self._intervals(memory, still, passed):
            clipped = np.clip(wanted, low, high)
            far = np.abs(clipped - wanted) > SLACK * np.maximum(1, np.abs(wanted))
            for index in np.flatnonzero(far):
                name = self.spec.names[index]
                numbers = float(wanted[index]), float(clipped[index])
                events.append(Event(kind, now, _REASONS[kind], name, *numbers))
            wanted = clipped
            lowest = np.maximum(lowest, low)
            highest = np.minimum(highest, high)
        if any(self.response(event.kind) != "clip" for event in events):
            return memory, None, events
        given = _single(wanted, lowest, highest)
        sent = given.astype(np.float64)
        change = np.nan_to_num(np.where(self.moves, sent, sent - still))
        place = memory.place.copy()
        for number, wall in enumerate(self.bounds.walls):
            place[number] += sent[wall.dimension] * wall.scale
        memory = replace(memory, last=sent, speed=change / (passed or self.period), place=place)
        return memory, given, events

    def _lost(self, memory: Memory, now: float) -> Event | None:
        """An event where a limit depends on a place that nobody knows."""
        for number, wall in enumerate(self.bounds.walls):
            if wall.state is not None and np.isnan(memory.place[number]):
                name = self.spec.names[wall.dimension]
                return Event("place", now, "its state does not say where it is", name)
        limited = np.isfinite(self._velocity) | np.isfinite(self._acceleration)  # (a,)
        unknown = np.flatnonzero(limited & ~self.moves & np.isnan(memory.last))
        if len(unknown):
            why = "neither its state nor `reset(at=…)` says where it is"
            return Event("place", now, why, self.spec.names[unknown[0]])
        return None

    def _intervals(
        self, memory: Memory, still: np.ndarray, passed: float
    ) -> list[tuple[Kind, np.ndarray, np.ndarray]]:
        """Lowest and highest (a,) of each kind of limit; `still` (a,) lies within each."""
        found: list[tuple[Kind, np.ndarray, np.ndarray]] = [("range", self.low, self.high)]
        reach = _times(self._velocity, passed)
        found.append(("velocity", _open(still - reach, -1), _open(still + reach, 1)))
        # Slower is always allowed, and so is the other way from standing still.
        faster = _times(self._acceleration, passed * passed)
        slower = np.minimum(memory.speed, 0) * passed
        quicker = np.maximum(memory.speed, 0) * passed
        low = _open(still + slower - faster, -1)
        high = _open(still + quicker + faster, 1)
        found.append(("acceleration", low, high))
        low = np.full(self.spec.dims, -math.inf)
        high = np.full(self.spec.dims, math.inf)
        for number, wall in enumerate(self.bounds.walls):
            index = wall.dimension
            here = memory.last[index] if wall.state is None else memory.place[number]
            if np.isnan(here):  # of an absolute robot: nothing is known of what was before
                here = wall.low
            # From outside it may come back, and go no further out.
            nearest = min(wall.low, here), max(wall.high, here)
            if wall.state is None:
                low[index], high[index] = nearest
            else:
                ends = (nearest[0] - here) / wall.scale, (nearest[1] - here) / wall.scale
                low[index], high[index] = min(ends), max(ends)
        found.append(("workspace", low, high))
        return found

    # --- the gripper

    def _side(self, index: int, value: float, band: float) -> int:
        """On which side of the middle a command of gripper `index` lies: 1 closed, −1 open, 0 where
        it is within the band about the middle, a share of its travel."""
        travel = self.spec.gripper_closed - self.spec.gripper_open
        share = (value - self.spec.gripper_open) / travel  # 0 open, 1 closed
        return int(share > 0.5 + band / 2) - int(share < 0.5 - band / 2)

    def _gripped(
        self, memory: Memory, action: np.ndarray, now: float
    ) -> tuple[Memory, np.ndarray, list[Event]]:
        """The action with grippers kept as they are until they are asked for the other side often
        enough in a row."""
        wanted = action.copy()
        sides = list(memory.sides)
        turned = list(memory.turned)
        events = []
        for number, index in enumerate(self.spec.grippers):
            asks = self._side(index, wanted[index], self.bounds.gripper_band)
            kept = memory.last[index]
            turned[number] = turned[number] + 1 if asks == -sides[number] else 0
            # Which side it is on is not known at first: then what is asked for is.
            if sides[number] == 0 or np.isnan(kept) or turned[number] >= self.bounds.gripper_steps:
                sides[number] = asks or self._side(index, wanted[index], 0.0)
                turned[number] = 0
            elif asks != sides[number]:
                if kept != wanted[index]:
                    name = self.spec.names[index]
                    numbers = float(wanted[index]), float(kept)
                    why = f"not asked for its other side {self.bounds.gripper_steps} times in a row"
                    events.append(Event("gripper", now, why, name, *numbers))
                wanted[index] = kept
        return replace(memory, sides=tuple(sides), turned=tuple(turned)), wanted, events


_REASONS: dict[Kind, str] = {
    "range": "outside its range",
    "velocity": "faster than it may",
    "acceleration": "faster all at once than it may",
    "workspace": "outside its workspace",
}


def numbers(value: object) -> np.ndarray:
    """A copy as float64. Raises where it is no array of numbers: what, is up to it."""
    found = np.asarray(value)
    if found.dtype.kind not in "iuf":  # texts of digits and complex numbers would be taken
        raise TypeError(f"an array of {found.dtype}, expected numbers")
    return found.astype(np.float64)


def _places_of(spec: ActionSpec, state_names: Sequence[str]) -> dict[int, int]:
    """Action dimension → the number of the state of the same name, where there is one such."""
    found = {}
    called = [plain(name) for name in state_names]
    for index, name in enumerate(spec.names):
        if called.count(plain(name)) == 1:
            found[index] = called.index(plain(name))
    return found


def _at(state: np.ndarray, index: int) -> float:
    """A number of a state (s,), NaN where it has not so many."""
    value = float(state[index]) if index < len(state) else math.nan
    return value if math.isfinite(value) else math.nan


def _times(limit: np.ndarray, factor: float) -> np.ndarray:
    """`limit * factor`, infinite where there is no limit, also of no time."""
    found = np.full(len(limit), math.inf)
    known = np.isfinite(limit)
    found[known] = limit[known] * factor
    return found


def _open(ends: np.ndarray, sign: int) -> np.ndarray:
    """Ends of which nobody knows what they start from limit nothing."""
    return np.where(np.isnan(ends), sign * math.inf, ends)


def _single(wanted: np.ndarray, low: np.ndarray, high: np.ndarray) -> Action:
    """(a,) in single precision, rounded to within `low` and `high`, which lie about a number of
    that precision."""
    given = wanted.astype(np.float32)
    above = given > high
    given[above] = np.nextafter(given[above], np.float32(-math.inf))
    below = given < low
    given[below] = np.nextafter(given[below], np.float32(math.inf))
    return given
