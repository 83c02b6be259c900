"""What a run says of itself in its status file, and how it stands: whether it runs, how it ended, or
whether it was killed, has fallen silent, or goes on beating without getting anywhere.

A run's own clocks are compared with ours only where they are one clock: on the same machine since the
same boot, by monotonic time, which nobody sets. Of a run elsewhere its beats are counted, where we
have looked long enough; only a first look must believe the clock of another machine. Knows the file;
knows no verb.
"""

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from armlet import limits
from armlet.data.files import read_json

FOLDER = "status"  # in the folder that a verb writes to
KIND = "armlet status"
VERSION = 1
SILENT = 60.0  # seconds without a beat after which a run that beats every ten has fallen silent
STALLED = 300.0  # the shortest time without a step that is called a stall
TIMES = 10  # … where it is also so many times the longest between two steps before
# … and before there are two steps to compare with: large weights are read from slow disks.
UNCOUNTED = 1800.0
FIX = "delete it; a run that goes on writes another"
LATEST = 2.5e11  # seconds of Unix time: the year 9892; calendars end with 9999
LARGEST = 1e30  # seconds, bytes, steps: more than there are, and arithmetic stays finite

Ending = Literal["finished", "stopped", "failed"]
State = Literal["running", "finished", "stopped", "failed", "killed", "silent", "stalled"]
ALARMING: tuple[State, ...] = ("failed", "killed", "silent", "stalled")


@dataclass(frozen=True)
class Phase:
    """What is counted at the moment, or was. `values`: what the last step said, such as its loss."""

    title: str
    unit: str
    done: int
    total: int
    rate: float  # a second
    left_s: float | None  # None: nothing is done yet
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Beat:
    """When the file was written, by every clock there is."""

    count: int
    every_s: float
    unix: float  # which may be set, forwards and backwards
    monotonic: float  # of the machine, since it was started


@dataclass(frozen=True)
class Steps:
    """How often anything advanced so far."""

    count: int
    seconds_ago: float  # when the file was written
    longest_s: float | None  # between two steps of the present phase; None: there were no two


@dataclass(frozen=True)
class Process:
    """Whose file it is. `started`: in ticks since the machine was, so that another process of the
    same number is told apart; `machine`: of its boot and its namespaces."""

    pid: int
    host: str
    started: int | None
    machine: str | None


@dataclass(frozen=True)
class Gpu:
    """A device on which this process holds memory."""

    index: int
    name: str
    held: int  # bytes that torch has reserved
    most: int  # bytes that were in use at the same time
    total: int


@dataclass(frozen=True)
class End:
    """How a run ended, said by itself."""

    how: Ending
    unix: float
    why: str = ""  # the error


@dataclass(frozen=True)
class Status:
    """One status file."""

    kind: str
    version: int
    verb: str
    recipe: str
    command: str  # which resumes it
    folder: str  # in which it was called
    log: str | None  # the file that its stderr goes to; None: a terminal or a pipe
    started_unix: float
    seconds: float  # since then, by monotonic time
    phase: Phase | None
    phases: tuple[Phase, ...]  # before it
    beat: Beat
    steps: Steps
    process: Process
    rank: tuple[int, int] | None  # of several processes that train together: which, of how many
    gpus: tuple[Gpu, ...]
    free_disk: int | None  # bytes, where it writes
    ended: End | None


PARTS = {"phase": Phase, "beat": Beat, "steps": Steps, "process": Process, "ended": End}
LISTS = {"phases": Phase, "gpus": Gpu}


def read(path: Path) -> Status:
    """The status in a file. Raises FileNotFoundError or ValueError, naming file and field."""
    said: dict[str, Any] = dict(read_json(path, fix=FIX))
    if said.get("kind") != KIND or said.get("version") != VERSION:
        raise ValueError(
            f"{path} is {said.get('kind')!r:.40}, version {said.get('version')!r:.40}, expected "
            f"{KIND!r}, {VERSION}; {FIX}"
        )
    try:
        for name, kind in PARTS.items():
            if said.get(name) is not None:
                said[name] = _made(kind, said[name])
        for name, kind in LISTS.items():
            said[name] = tuple(_made(kind, each) for each in said[name])
        if said.get("rank") is not None:
            said["rank"] = tuple(said["rank"])
        found: Status = _made(Status, said)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}; {FIX}") from error
    return found


def _made(kind: Any, said: Any) -> Any:
    names = {each.name for each in fields(kind)}
    if not isinstance(said, Mapping) or not set(said) <= names:
        raise ValueError(f"{kind.__name__} is {said!r:.60}, expected {', '.join(sorted(names))}")
    made = kind(**said)
    limits.typed(made)
    _check_numbers(made)
    return made


def _check_numbers(made: Any) -> None:
    """Raises ValueError naming the first number that cannot be shown: Python reads whole numbers
    that no float holds, and times that no calendar has."""
    for name, value in vars(made).items():
        low, high = (0.0, LATEST) if name.endswith("unix") else (-LARGEST, LARGEST)
        numbers = [value]
        if isinstance(value, Mapping):
            # What a step says, a loss that explodes too, is any finite number.
            low, high = -limits.MOST, limits.MOST
            numbers = list(value.values())
        for number in numbers:
            if isinstance(number, int | float) and not low <= number <= high:
                raise ValueError(
                    f"{type(made).__name__}.{name} is {number!r:.40}, expected {low:g} to {high:g}"
                )


# Which process it is, and where


def this_process() -> Process:
    return Process(os.getpid(), socket.gethostname(), started_at(os.getpid()), machine())


def machine() -> str | None:
    """What processes share that have the same monotonic clock and see one another by number; None
    where the system does not say (anything but Linux)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        spaces = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "time")]
    except OSError:
        return None
    return " ".join([boot, *spaces])


def started_at(pid: int) -> int | None:
    """When a process was started, in ticks since the machine was; None where there is no such
    process, it has ended and nobody has asked for its result, or the system does not say."""
    try:
        said = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name, in brackets, may hold anything; the state is the first field behind it.
    rest = said.rpartition(")")[2].split()
    return None if rest[0] in ("Z", "X") else int(rest[19])


def is_here(process: Process) -> bool:
    """Whether the process is one of this machine's, so that it can be looked for."""
    return process.machine is not None and process.machine == machine()


def is_gone(process: Process) -> bool:
    """Whether a process of this machine is no longer there."""
    return process.started != started_at(process.pid)


# How it stands


@dataclass(frozen=True)
class Standing:
    """How a run stands. `silence`: seconds since its last beat; `idle`: since its last step; `why`:
    in words, where it needs somebody."""

    state: State
    silence: float
    idle: float
    why: str = ""

    @property
    def alarming(self) -> bool:
        return self.state in ALARMING


@dataclass
class Eye:
    """Who looks at status files, perhaps several times. `stalled`: seconds without a step that are
    a stall; None: as this module says."""

    stalled: float | None = None
    # File → its beats, and when we first saw that many, by our monotonic time.
    _seen: dict[Path, tuple[int, float]] = field(default_factory=dict)
    _changed: set[Path] = field(default_factory=set)  # whose beats we have seen change

    def standing(self, path: Path, said: Status) -> Standing:
        """How a run stands that says this in the file at `path`."""
        silence, certain = self._silence(path, said)
        idle = said.steps.seconds_ago + silence
        if said.ended is not None:
            why = said.ended.why if said.ended.how == "failed" else ""
            return Standing(said.ended.how, silence, idle, why)
        here = is_here(said.process)
        who = f"process {said.process.pid} of {said.process.host}"
        if here and is_gone(said.process):
            return Standing("killed", silence, idle, f"{who} is gone, and did not say how it ended")
        if silence > max(SILENT, 6 * said.beat.every_s):
            why = f"no beat for {duration(silence)}"
            if here:
                why += f"; {who} is there, and is stopped or hangs"
            elif not certain:
                why += f", by the clock of {said.process.host}; --twice or --watch counts its beats"
            else:
                why += f"; {who} cannot be looked for from here"
            return Standing("silent", silence, idle, why)
        limit, than = self._limit(said)
        if idle > limit:
            return Standing(
                "stalled", silence, idle, f"{who} beats, and no step for {duration(idle)} ({than})"
            )
        return Standing("running", silence, idle)

    def _limit(self, said: Status) -> tuple[float, str]:
        """Seconds without a step that are a stall, and what they are compared with."""
        longest = said.steps.longest_s
        if said.phase is None or longest is None:
            return self.stalled or UNCOUNTED, "there is nothing yet to compare with"
        least = STALLED if self.stalled is None else self.stalled
        return max(least, TIMES * longest), f"the longest before: {duration(longest)}"

    def _silence(self, path: Path, said: Status) -> tuple[float, bool]:
        """Seconds since the last beat, and whether no clock of another machine had to be
        believed."""
        now = time.monotonic()
        count, since = self._seen.get(path, (said.beat.count, now))
        if count != said.beat.count:
            since = now
            self._changed.add(path)
        self._seen[path] = (said.beat.count, since)
        if is_here(said.process):
            return max(0.0, now - said.beat.monotonic), True
        # Its beats were seen to change, or not to for longer than they may stay away.
        if path in self._changed or now - since > max(SILENT, 6 * said.beat.every_s):
            return now - since, True
        return max(0.0, time.time() - said.beat.unix), False


def duration(seconds: float) -> str:
    """As a person says it: 42 s, 12 min, 3.5 h, 2.1 days."""
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            digits = 1 if unit == "h" else 0
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds / 86_400:.1f} days"
