"""What a data set suggests about its robot, by names and by statistics: never a fact, always with
how sure it is and why.

Delta or absolute. An absolute action is where the robot stands a moment later, so a linear map of
the state explains it; a delta (or a velocity) is explained by how the state changes. Both maps are
fitted to every dimension, and the one that leaves less unexplained wins. Without a state only the
actions themselves speak: places change slowly and lie away from 0, changes lie about 0.

Grippers are found by name, or as dimensions that nearly always stand at one of two ends. Which end
is open no statistic knows: that most episodes begin there is a hint, and stays one. Rotations are
found by names (`rx`, `roll`, `qx`, `rot6d_0`), and quaternions by their length.

Knows columns and names; knows no policy, and decodes no picture.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from armlet.data.episodes import ACTION, STATE, EpisodeDataset
from armlet.robot.agree import is_named
from armlet.robot.description import Described, option
from armlet.robot.naming import rotation_named

Confidence = Literal["sure", "likely", "unclear"]

MOST_ROWS = 50_000  # that are looked at for a guess: whole episodes, spread over the data set
FEWEST_PAIRS = 100  # of frames that follow one another: fewer say nothing
EXPLAINED = 0.3  # of a dimension's variance left over, at most, for a map to count as right
CLEARER = 4.0  # times as much left over by the other map, for a guess to be sure
AT_AN_END = 0.05  # of a dimension's range: this near to its lowest or highest value is at that end
TURN = 6.9  # radians: more than a full turn, so angles beyond it are degrees
FAR_OUT = 10.0  # times the width from q01 to q99: further beyond them is a glitch, no motion

SAID = "the files say which controller it is"

# Of a dimension's name, in lower case.
GRIPPER = re.compile(r"grip|claw|jaw|finger|^(?:open|close)d?$")
DELTA = re.compile(r"(?:.*[_.])?(?:delta|d(?=[xyz]|roll|pitch|yaw|r[xyz]))")  # dx, arm.delta_yaw
VELOCITY = re.compile(r"vel(?:ocity)?$|(?:^|[_.])vel|_dot$|^v[xyz]$")  # joint_vel, q1_dot, vx
PLACE = re.compile(r"[._]pos(?:ition)?$|_target$")  # elbow.pos, x_target
COUNTED = re.compile(r"(?:[a-z]+[_.]?)?\d+")  # names that only count: 3, j3, joint_3, motor.3


@dataclass(frozen=True)
class Guess:
    """A value (None: none is suggested), how sure it is, and why."""

    value: Any
    confidence: Confidence
    why: str

    def __str__(self) -> str:
        return f"{_said(self.value)} ({self.confidence}: {self.why})"


@dataclass(frozen=True)
class Range:
    """How one dimension moves over all frames, in the data's own unit."""

    name: str
    low: float
    high: float
    q01: float
    q50: float
    q99: float
    mean: float
    std: float
    unit: str = ""  # a guess in words; empty: none

    @property
    def is_constant(self) -> bool:
        return self.low == self.high


@dataclass(frozen=True)
class Suggestion:
    """What a data set says of its robot (names, rate, cameras, ranges), and what it suggests."""

    episodes: int
    frames: int
    robot_type: str
    control_hz: float
    actions: tuple[Range, ...]
    state: tuple[Range, ...]
    cameras: dict[str, tuple[int, int]]
    tasks: tuple[str, ...]
    mode: Guess
    rotation: Guess
    grippers: Guess
    gripper_open: Guess | None  # None: no gripper is suggested
    gripper_closed: Guess | None
    warnings: tuple[str, ...] = field(default=())

    @property
    def guesses(self) -> dict[str, Guess]:
        """What is guessed, by the name of its field in `Described`."""
        found = {
            "mode": self.mode,
            "rotation": self.rotation,
            "grippers": self.grippers,
            "gripper_open": self.gripper_open,
            "gripper_closed": self.gripper_closed,
        }
        known = {}
        for name, guess in found.items():
            if guess is not None:
                known[name] = guess
        return known

    @property
    def asking(self) -> dict[str, str]:
        """Field → its option with the value that is suggested, and why: for whoever asks."""
        said = {}
        for name, guess in self.guesses.items():
            value = _option_value(guess.value)
            # An empty tuple, no gripper, is the option and nothing behind it.
            shown = f"{option(name)} {value}".rstrip() if guess.value is not None else option(name)
            said[name] = f"{shown} ({guess.confidence}: {guess.why})"
        return said

    @property
    def sure(self) -> Described:
        """What is certain enough to be written down as it is."""
        certain = {}
        for name, guess in self.guesses.items():
            if guess.confidence == "sure" and guess.value is not None:
                certain[name] = guess.value
        return Described(**certain)


def suggest(data: EpisodeDataset) -> Suggestion:
    """What the episodes suggest. Reads the columns of numbers; no picture."""
    columns = data.columns()
    rows, starts = _some_episodes(data.starts)
    actions = columns[ACTION][rows].astype(np.float64)
    state = columns[STATE][rows].astype(np.float64)
    names = data.action_names
    grippers = _grippers(names, actions)
    # A gripper is a place even where actions are changes, and what never moves says nothing.
    moving = []
    for index in range(len(names)):
        if index not in (grippers.value or ()) and np.ptp(actions[:, index]) > 0:
            moving.append(index)
    mode = _mode(names, moving, actions, state, starts)
    rotation = _rotation(names, actions)
    opened, closed = _ends(grippers.value or (), actions, starts)
    told = data.described
    if told.mode is not None:  # the files of a simulator say what its controller is
        mode = Guess(told.mode, "sure", SAID)
        rotation = Guess(told.rotation, "sure", SAID)
        grippers = Guess(told.grippers, "sure", SAID)
        opened = Guess(told.gripper_open, "sure", SAID)
        closed = Guess(told.gripper_closed, "sure", SAID)
    action_ranges = _ranges(names, columns[ACTION], unit_of=_units(names, actions, mode, grippers))
    state_ranges = _ranges(data.state_names, columns[STATE], unit_of={})
    return Suggestion(
        episodes=len(data.episodes),
        frames=len(data),
        robot_type=data.robot_type,
        control_hz=data.fps,
        actions=action_ranges,
        state=state_ranges,
        cameras=dict(data.cameras),
        tasks=tuple(data.tasks),
        mode=mode,
        rotation=rotation,
        grippers=grippers,
        gripper_open=opened,
        gripper_closed=closed,
        warnings=(
            *data.name_remarks,
            *_warnings("action", action_ranges, columns[ACTION]),
            *_warnings("state", state_ranges, columns[STATE]),
            *_two_valued(names, actions, grippers),
        ),
    )


def _some_episodes(starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of whole episodes, spread over all, of at most about MOST_ROWS; and where each begins
    among them, with their number behind the last."""
    count = len(starts) - 1
    every = max(1, int(np.ceil(starts[-1] / MOST_ROWS)))
    rows = []
    for episode in range(0, count, min(every, count)):  # the first at least, where few are long
        rows.append(np.arange(starts[episode], starts[episode + 1])[:MOST_ROWS])
    return np.concatenate(rows), np.cumsum([0, *map(len, rows)])


# Delta or absolute


def _mode(
    names: Sequence[str],
    moving: list[int],
    actions: np.ndarray,
    state: np.ndarray,
    starts: np.ndarray,
) -> Guess:
    if not moving:
        return Guess(None, "unclear", "nothing moves but grippers")
    named = _mode_by_names([names[index] for index in moving])
    inner = np.ones(len(actions), bool)
    inner[starts[1:] - 1] = False  # the last frame of an episode has none after it
    before = np.flatnonzero(inner)
    if state.shape[1] and len(before) >= FEWEST_PAIRS:
        seen = _mode_by_state(actions[:, moving], state, before, starts)
    else:
        seen = _mode_alone(actions[:, moving], before)
    # Names are somebody's word, the fit is what the numbers do: where both agree it is sure, and
    # where they do not, whichever is surer is likely.
    if named is None:
        return seen
    if seen.value in (None, named.value):
        both = named.why if seen.value is None else f"{named.why}; {seen.why}"
        return Guess(named.value, "sure", both)
    if seen.confidence == "sure":
        why = f"{seen.why}; but {named.why}, which would be {named.value}"
        return Guess(seen.value, "likely", why)
    return Guess(named.value, "likely", f"{named.why}; but {seen.why}")


def _mode_by_names(names: Sequence[str]) -> Guess | None:
    """What names say outright, where they all say the same."""
    lower = [name.casefold() for name in names]
    called = f"they are called {', '.join(names[:4])}"
    if all(map(DELTA.match, lower)):
        return Guess("delta", "sure", called)
    if all(map(VELOCITY.search, lower)):
        return Guess("delta", "sure", f"{called}, velocities")
    if all(map(PLACE.search, lower)):
        return Guess("absolute", "sure", called)
    return None


def _mode_by_state(
    actions: np.ndarray, state: np.ndarray, before: np.ndarray, starts: np.ndarray
) -> Guess:
    """By what a linear map of the state, and one of its changes, leave unexplained of each
    dimension."""
    last = starts[np.searchsorted(starts, before, side="right")] - 1  # of each frame's episode
    here = state[before]  # (n, s)
    after = state[before + 1]
    later = state[np.minimum(before + 2, last)]  # a robot may follow a command a step late
    wanted = actions[before]
    # `here` and `after` side by side would explain a delta as well, by their difference.
    place = _unexplained(after, wanted)
    change = _unexplained(np.concatenate([after - here, later - after], 1), wanted)
    # Where both explain a dimension (a hand that always goes to one and the same place), neither
    # says what it is.
    told = np.maximum(place, change) > EXPLAINED
    absolute = told & (place < EXPLAINED) & (2 * place < change)
    delta = told & (change < 2 * EXPLAINED) & (2 * change < place)
    dims = actions.shape[1]
    # Each dimension that says something has a vote; a few odd ones must not decide for all.
    votes = {"absolute": int(absolute.sum()), "delta": int(delta.sum())}
    value, other = sorted(votes, key=lambda name: -votes[name])
    if not votes[value]:
        why = (
            f"where the state stands explains {_share(place)} of the actions and how it changes "
            f"{_share(change)}, which tells nothing"
        )
        return Guess(None, "unclear", why)
    if votes[value] < 3 * votes[other]:
        why = f"{votes['absolute']} dimensions look absolute and {votes['delta']} delta"
        return Guess(None, "unclear", why)
    if value == "absolute":
        mine = absolute
        left = place
        against = change
        words = ("where the state stands a frame later", "how it changes")
    else:
        mine = delta
        left = change
        against = place
        words = ("how the state changes", "where it stands")
    why = (
        f"{words[0]} explains {_share(left[mine])} of {int(mine.sum())} of {dims} dimensions, "
        f"{words[1]} {_share(against[mine])}"
    )
    # Sure only where the winner explains nearly all and the other far less, in most dimensions.
    clear = np.median(left[mine]) < EXPLAINED
    clear &= np.median(against[mine]) > CLEARER * np.median(left[mine])
    agreed = not votes[other] and 3 * votes[value] >= 2 * dims
    return Guess(value, "sure" if clear and agreed else "likely", why)


def _share(unexplained: np.ndarray) -> str:
    return f"{max(0.0, 1 - float(np.median(unexplained))):.0%}"


def _unexplained(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(N, s), (N, a) → (a,): the share of each column's variance that a linear map of `known`
    leaves over, corrected for how many numbers `known` has (adjusted R²)."""
    centred = known - known.mean(0)
    spread = centred.std(0)  # scaled by it, or metres beside ticks would be lost to rounding
    centred = centred[:, spread > 0] / spread[spread > 0]
    target = wanted - wanted.mean(0)
    total = (target**2).sum(0)
    rows = len(known)
    columns = centred.shape[1]
    if columns == 0 or rows <= 2 * columns + 2:  # so few rows are explained by anything
        return np.ones(wanted.shape[1])
    map_, *_ = np.linalg.lstsq(centred, target, rcond=1e-8)
    left = ((target - centred @ map_) ** 2).sum(0)
    share = np.divide(left, total, out=np.ones_like(total), where=total > 0)
    return share * (rows - 1) / (rows - columns - 1)


def _mode_alone(actions: np.ndarray, before: np.ndarray) -> Guess:
    """Without a state that speaks: places change slowly and lie away from 0. Never sure."""
    if len(before) < FEWEST_PAIRS:
        return Guess(
            None, "unclear", f"{len(before)} frames with one after them are too few to tell"
        )
    # (a,) each: how far a frame is from the next, in deviations; how far the mean lies from 0.
    step = np.sqrt(((actions[before + 1] - actions[before]) ** 2).mean(0)) / actions.std(0)
    away = np.abs(actions.mean(0)) / np.sqrt((actions**2).mean(0))
    slow = float(np.median(step))
    far = float(np.median(away))
    why = (
        f"no state to compare with; from frame to frame they change by {slow:.0%} of their spread, "
        f"and their mean is {far:.0%} of their size"
    )
    if slow < 0.25 and far > 0.5:
        return Guess("absolute", "likely", why)
    if far < 0.35 and slow > 0.25:
        return Guess("delta", "likely", why)
    return Guess(None, "unclear", why)


# Grippers


def _grippers(names: Sequence[str], actions: np.ndarray) -> Guess:
    called = [index for index, name in enumerate(names) if GRIPPER.search(name.casefold())]
    if called:
        return Guess(tuple(called), "sure", f"called {', '.join(names[index] for index in called)}")
    # By their numbers: hardly anything but a gripper is either fully here or fully there.
    ended = [index for index in range(len(names)) if _is_two_valued(actions[:, index])]
    if ended:
        which = ", ".join(f"{index} ({names[index]})" for index in ended)
        why = f"dimension {which} nearly always stands at one of two ends"
        return Guess(tuple(ended), "likely", why)
    if _are_telling(names) and len(actions) >= FEWEST_PAIRS:
        return Guess((), "sure", "no name says gripper, and none stands at one of two ends")
    return Guess((), "likely", "none stands at one of two ends; their names tell nothing")


def _are_telling(names: Sequence[str]) -> bool:
    """Whether every dimension has a name that does more than count."""
    return not any(COUNTED.fullmatch(name.casefold()) for name in names)


def _is_two_valued(values: np.ndarray) -> bool:
    low = values.min()
    high = values.max()
    if low == high or len(values) < 20:
        return False
    room = AT_AN_END * (high - low)
    at_low = float((values <= low + room).mean())
    at_high = float((values >= high - room).mean())
    # Both ends are really visited, and little time is spent in between.
    return min(at_low, at_high) >= 0.02 and at_low + at_high >= 0.9


def _ends(
    grippers: Sequence[int], actions: np.ndarray, starts: np.ndarray
) -> tuple[Guess | None, Guess | None]:
    """Open and closed, where there is a gripper."""
    if not grippers:
        return None, None
    wide = actions[:, list(grippers)]  # (N, g)
    low = float(wide.min())
    high = float(wide.max())
    if low == high:
        why = f"it always stands at {low:g}"
        return Guess(None, "unclear", why), Guess(None, "unclear", why)
    if (3 * np.ptp(wide, axis=0) < high - low).any():  # one moves in a third of their common range
        shown = "; ".join(f"{each.min():g} to {each.max():g}" for each in wide.T)
        why = f"the grippers differ ({shown}), and one pair of ends is kept for all: convert one"
        return Guess(None, "unclear", why), Guess(None, "unclear", why)
    usual = _usual_ends(low, high)
    if usual is not None:
        low, high = usual
    elif not all(_is_two_valued(each) for each in wide.T):
        why = f"it goes from {low:.4g} to {high:.4g}, which may be less than its ends"
        return Guess(None, "unclear", why), Guess(None, "unclear", why)
    count = len(starts) - 1
    # The share of episodes that begin in the upper half: arms usually set out with an open hand.
    upper = float((wide[starts[:-1]] > (low + high) / 2).mean())
    opened, closed = (high, low) if upper >= 0.5 else (low, high)
    most = max(upper, 1 - upper)
    where = f"{most:.0%} of {count} episodes begin nearer to {opened:g}"
    if most < 0.8 or count < 3:
        where += ", which tells little"
        return Guess(opened, "unclear", where), Guess(closed, "unclear", "the other end")
    why = f"{where}, as most do with an open gripper"
    return Guess(opened, "likely", why), Guess(closed, "likely", "the other end")


def _usual_ends(low: float, high: float) -> tuple[float, float] | None:
    """The ends that people usually give a gripper's commands, where these fill them: half of the
    range at least is used, and hardly anything lies outside."""
    for usual in ((0.0, 1.0), (-1.0, 1.0), (0.0, 100.0), (0.0, 255.0)):
        width = usual[1] - usual[0]
        inside = low >= usual[0] - 0.05 * width and high <= usual[1] + 0.05 * width
        if inside and high - low > 0.5 * width:
            return usual
    return None


def _two_valued(names: Sequence[str], actions: np.ndarray, grippers: Guess) -> list[str]:
    """A line for what stands at one of two ends and is not called a gripper, where others are."""
    if grippers.confidence != "sure":
        return []
    found = []
    for index, name in enumerate(names):
        if index not in grippers.value and _is_two_valued(actions[:, index]):
            found.append(name)
    if not found:
        return []
    return [
        f"action {', '.join(found)}: nearly always at one of two ends, and called no gripper; is "
        "it a switch, or the end of an episode?"
    ]


# Rotations, units, ranges


def _rotation(names: Sequence[str], actions: np.ndarray) -> Guess:
    named = rotation_named(names)
    if named is not None:
        form, by = named
        if form == "rot6d":
            return Guess(form, "sure", f"called {by[0]} …")
        called = ", ".join(by)
        if form == "axis_angle":  # rx, ry, rz are what people call both
            return Guess(form, "likely", f"called {called}, which Euler angles are as well")
        return Guess(form, "sure", f"called {called}")
    length = _unit_length(actions)
    if length is not None:
        shown = ", ".join(names[index] for index in range(length, length + 4))
        return Guess("quaternion", "likely", f"{shown} always have length 1 together")
    if _are_telling(names):
        return Guess("none", "sure", f"no name says one: {', '.join(names[:8])}")
    if is_named(names) and any(re.match(r"j(?:oint)?[_.]?\d", name.casefold()) for name in names):
        return Guess("none", "sure", f"they are joints: {', '.join(names[:4])}")
    if len(names) in (7, 14):
        why = (
            "the names tell nothing; six numbers and a gripper an arm are joints, or x, y, z and a "
            "rotation"
        )
        return Guess(None, "unclear", why)
    return Guess("none", "likely", "the names tell nothing, and no four numbers are a quaternion")


def _unit_length(actions: np.ndarray) -> int | None:
    """Where four numbers stand side by side whose squares always add up to 1, and that move."""
    for index in range(actions.shape[1] - 3):
        four = actions[:, index : index + 4]
        # 1, 0, 0, 0 that never moves has length 1 as well, and is padding.
        if np.ptp(four, axis=0).max() > 1e-3 and np.allclose((four**2).sum(1), 1, atol=1e-2):
            return index
    return None


def _units(
    names: Sequence[str], actions: np.ndarray, mode: Guess, grippers: Guess
) -> dict[int, str]:
    """A unit in words for the dimensions of which one can be guessed."""
    found = {}
    for index in range(len(names)):
        most = float(np.abs(actions[:, index]).max())
        # Changes may be of any size in any unit.
        if index in (grippers.value or ()) or mode.value != "absolute":
            continue
        if re.search(r"(?:^|[_.])[xyz]$", names[index].casefold()):
            found[index] = "metres?" if most < 5 else "millimetres or pixels?"
        elif most > TURN:
            found[index] = "degrees?" if len(names) > 3 else "pixels, or degrees?"
        elif most > 0.5:
            found[index] = "radians, or normalised?"
    return found


def _ranges(
    names: Sequence[str], values: np.ndarray, *, unit_of: dict[int, str]
) -> tuple[Range, ...]:
    if not len(values):
        return ()
    wide = values.astype(np.float64)
    quantiles = np.quantile(wide, (0.01, 0.5, 0.99), axis=0)
    ranges = []
    for index, name in enumerate(names):
        found = Range(
            name=name,
            low=float(wide[:, index].min()),
            high=float(wide[:, index].max()),
            q01=float(quantiles[0, index]),
            q50=float(quantiles[1, index]),
            q99=float(quantiles[2, index]),
            mean=float(wide[:, index].mean()),
            std=float(wide[:, index].std()),
            unit=unit_of.get(index, ""),
        )
        ranges.append(found)
    return tuple(ranges)


def _warnings(what: str, ranges: Sequence[Range], values: np.ndarray) -> list[str]:
    lines = []
    constant = [f"{each.name} (at {each.low:g})" for each in ranges if each.is_constant]
    if constant:
        lines.append(f"{what}: never moves: {', '.join(constant)}")
    for index, each in enumerate(ranges):
        width = each.q99 - each.q01
        if max(abs(each.low), abs(each.high)) > 1e4:
            lines.append(
                f"{what} {each.name}: goes from {each.low:g} to {each.high:g}; is this a number of "
                "a robot?"
            )
        elif width > 0 and max(each.high - each.q99, each.q01 - each.low) > FAR_OUT * width:
            far = np.flatnonzero(
                (values[:, index] > each.q99 + FAR_OUT * width)
                | (values[:, index] < each.q01 - FAR_OUT * width)
            )
            lines.append(
                f"{what} {each.name}: from {each.low:g} to {each.high:g}, but 98 % of the frames "
                f"are within {each.q01:g} … {each.q99:g}; {len(far)} frames are far out, the first "
                f"is frame {far[0]}: glitches?"
            )
    return lines


def _said(value: Any) -> str:
    if value is None:
        return "?"
    if value == ():
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else f"{value}"


def _option_value(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
