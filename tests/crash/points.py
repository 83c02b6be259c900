"""One point of the campaign: a fault at a drawn place of one area's work, what a reader finds then,
and how the same command goes on.

Every attempt is a process of its own, forked from one that has imported everything. An outcome is
one of OUTCOMES; the first two are as it should be.
"""

import contextlib
import importlib
import json
import mmap
import multiprocessing
import os
import random
import re
import shutil
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import power
from areas import AREAS, READERS, Area, Items
from compare import Noise, changed_files, difference, noise, tree
from watch import LET, Change, Decision, Ended, Fail, Kill, watched

SAME, REFUSED = "same bits", "refused by name"
OUTCOMES = (SAME, REFUSED, "other bits", "served in part", "lost", "unnamed error", "hung")
KINDS = {  # how many points of each, of all areas together
    "kill": 200,
    "power cut": 120,
    "disk full": 60,
    "bit flip": 100,
    "cut short": 60,
    "kill, then bit flip": 40,
    "clock jump": 20,
    "two at once": 20,
}
LIMIT = 300  # seconds for one attempt; a busy machine is slow, and no loop here takes seconds
GROWS = ("create", "write", "mkdir", "symlink", "mapped")
PAGE = 4096
DAY = 86400.0
ASIDE = re.compile(r"\.before-[0-9a-f]{8}(-\d+)?(/|$)")  # of lineage.set_aside
# Errors of Python, not of a program that says what is wrong.
RAW = (
    "KeyError", "IndexError", "TypeError", "AttributeError", "AssertionError", "RecursionError",
    "UnicodeDecodeError", "struct.error", "UnpicklingError", "EOFError", "ZeroDivisionError",
    "UnboundLocalError", "NameError", "JSONDecodeError", "ArrowInvalid", "BadZipFile",
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """What was done and how it ended."""

    area: str
    kind: str
    number: int
    seed: int
    where: str  # the change, or the damaged file
    outcome: str
    said: str = ""
    commit: str = ""  # of the repository that it was made in; "": not known

    @property
    def key(self) -> tuple[str, str, int, int]:
        return self.area, self.kind, self.number, self.seed

    @property
    def good(self) -> bool:
        return self.outcome in (SAME, REFUSED)


@dataclass
class Basis:
    """An area as it is without a fault: the folder before it and after it, what differs from run to
    run all the same, every change it makes, and what readers find."""

    before: Path
    after: Path
    noise: Noise
    changes: list[Change]
    found_before: dict[str, Items | None]
    found_after: dict[str, Items | None]


@dataclass
class Attempt:
    """How a process ended: its status and the last lines that it said."""

    status: int
    text: str
    found: object = None

    @property
    def last(self) -> str:
        lines = [line for line in self.text.strip().replace("\r", "\n").split("\n") if line.strip()]
        return lines[-1].strip() if lines else ""


def warm() -> None:
    """Have this process be one from which attempts are forked."""
    import torch

    torch.set_num_threads(1)
    real = multiprocessing.get_context
    # A worker that is spawned imports torch anew, seconds for each; forked from a process with one
    # thread it is a process of its own as well.
    multiprocessing.get_context = lambda method=None: real("fork")  # type: ignore[assignment,misc]
    from armlet import source
    from armlet.evaluation import measure

    # Asked once: who changes the source in the middle of a campaign changes no result of it.
    known = source.identity()
    source.identity = lambda: known
    # It starts a process a policy, which writes nothing.
    measure.peak_memory_mb = lambda *asked: 1.0  # type: ignore[assignment]


class Clock:
    """A clock that processes share, and that can be made to jump."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 8)
        self.jump(0.0)

    def jump(self, seconds: float) -> None:
        self._shared[:8] = struct.pack("d", seconds)

    @property
    def ahead(self) -> float:
        (seconds,) = struct.unpack("d", self._shared[:8])
        return float(seconds)

    def install(self) -> None:
        """In the child: what Python asks for the time. Libraries that ask the system themselves go
        by the real one."""
        now = time.time
        now_ns = time.time_ns
        time.time = lambda: now() + self.ahead  # type: ignore[assignment]
        time.time_ns = lambda: now_ns() + int(self.ahead * 1e9)  # type: ignore[assignment]


@dataclass
class Campaign:
    """All that points need. `base`: a scratch folder of this process."""

    base: Path
    areas: dict[str, Area] = field(default_factory=lambda: dict(AREAS))
    readers: dict[str, Callable[[Path], Items]] = field(default_factory=lambda: dict(READERS))
    clock: Clock = field(default_factory=Clock)
    _known: dict[str, Basis] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """Where everything happens: always the same path, as paths are part of what is made."""
        return self.base / "place"

    # --- attempts

    def run(self, work: Callable[[], object], *, clock: bool = False) -> Attempt:
        """Work in a process of its own, unwatched."""
        child = os.fork()
        if child == 0:
            self._child(work, clock=clock)()
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return Attempt(status, self._said(child))

    def watch(
        self,
        work: Callable[[], object],
        decide: Callable[[Change], Decision],
        *,
        record: bool = False,
        clock: bool = False,
    ) -> tuple[Ended, Attempt]:
        ended = watched(self._child(work, clock=clock), self.root, decide, record=record)
        return ended, Attempt(ended.status, self._said(ended.process))

    def _child(self, work: Callable[[], object], *, clock: bool) -> Callable[[], object]:
        """The work as a command does it: an error is one line, and the exit status says so."""

        def child() -> None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a test's may be another
            signal.alarm(LIMIT)
            said = os.open(self._log(os.getpid()), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(said, 1)
            os.dup2(said, 2)
            sys.stdout = os.fdopen(1, "w", buffering=1)
            sys.stderr = os.fdopen(2, "w", buffering=1)
            if clock:
                self.clock.install()
            status = 0
            try:
                work()
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else 1
                if isinstance(error.code, str):
                    sys.stderr.write(error.code + "\n")
            except BaseException:
                traceback.print_exc()
                status = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

        return child

    def _log(self, process: int) -> Path:
        return self.base / f"said-{process}"

    def _said(self, process: int) -> str:
        log = self._log(process)
        text = log.read_text(errors="replace") if log.exists() else ""
        log.unlink(missing_ok=True)
        return text

    def command(self, area: Area) -> Callable[[], object]:
        """An area's work with the command line's way to end."""

        def work() -> object:
            from armlet.__main__ import _finish

            return _finish(f"armlet {area.name}", lambda: area.work(self.root), debug=False)

        return work

    def read(self, name: str) -> tuple[Items | None, str]:
        """What a reader finds in the place as it is; None and the error where it refuses."""
        kept = self.base / "found.json"

        def work() -> object:
            try:
                found = self.readers[name](self.root)
            except Exception as error:
                said = " ".join(str(error).split("\n"))
                sys.exit(f"read {name}: {type(error).__name__}: {said}")
            return kept.write_text(json.dumps(sorted(found)))

        kept.unlink(missing_ok=True)
        attempt = self.run(self._telling(work))
        if attempt.status == 0:
            return frozenset(json.loads(kept.read_text())), ""
        return None, attempt.last if attempt.status == 1 else f"ended with {attempt.status}"

    def _telling(self, work: Callable[[], object]) -> Callable[[], object]:
        """The same work, which says at its end what it has imported."""

        def telling() -> None:
            work()
            (self.base / "modules.json").write_text(json.dumps(list(sys.modules)))

        return telling

    def _import(self) -> None:
        """Import here what a child has imported, so that the next ones need not: that takes
        longer than their work."""
        for name in json.loads((self.base / "modules.json").read_text()):
            if name in sys.modules or name.startswith("_"):
                continue
            # Some modules can be imported by their own package alone.
            with contextlib.suppress(Exception):
                importlib.import_module(name)

    # --- what an area is without faults

    def basis(self, name: str) -> Basis:
        """Run an area twice without a fault, once it is asked for."""
        if name in self._known:
            return self._known[name]
        area = self.areas[name]
        before = self.base / f"before-{name}"
        if area.after:
            before = self.basis(area.after).after
        else:
            before.mkdir(parents=True, exist_ok=True)
        found_before = {}
        found_after = {}
        self.restore(before)
        for reader in area.reads:
            found_before[reader] = self.read(reader)[0]
        first = self.run(self._telling(self.command(area)))
        self._import()
        assert first.status == 0, f"{name} fails without a fault: {first.text[-2000:]}"
        after = self.base / f"after-{name}"
        shutil.rmtree(after, ignore_errors=True)
        shutil.copytree(self.root, after, symlinks=True)
        for reader in area.reads:
            found_after[reader], said = self.read(reader)
            self._import()
            assert found_after[reader] is not None, f"{name}: {said}"
        self.restore(before)
        ended, again = self.watch(self.command(area), lambda change: LET, record=True)
        assert again.status == 0, f"{name} fails when it is watched: {again.text[-2000:]}"
        assert ended.changes, f"{name} changes nothing"
        differing = noise(tree(after), tree(self.root))
        self._known[name] = Basis(
            before, after, differing, ended.changes, found_before, found_after
        )
        return self._known[name]

    def restore(self, folder: Path) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        # With their times: what is derived from a file may be kept by them.
        shutil.copytree(folder, self.root, symlinks=True)

    # --- points

    def point(self, area: str, kind: str, number: int, seed: int) -> Point:
        """Make one point. The same arguments draw the same fault."""
        rng = random.Random(f"{seed}/{area}/{kind}/{number}")
        basis = self.basis(area)
        where, outcome, said = FAULTS[kind](self, self.areas[area], basis, rng)
        return Point(area, kind, number, seed, where, outcome, self._plain(said))

    def _plain(self, said: str) -> str:
        """Without paths of this machine."""
        return said.replace(str(self.root), "PLACE").replace(str(self.base), "BASE")[:400]

    def is_named(self, said: str) -> bool:
        """Whether an error names a file of the place, and is one that somebody meant."""
        kind = said.split(": ")[1] if said.count(": ") >= 2 else ""
        return str(self.root) in said and kind.split(".")[-1] not in RAW

    def served(self, area: Area, basis: Basis) -> tuple[str, str]:
        """What is wrong with what readers find now, as outcome and words; empty where they find
        what was there before, whole parts of what comes, or refuse by name."""
        for reader in area.reads:
            found, said = self.read(reader)
            if found is None:
                if not self.is_named(said) and not _is_absent(said):
                    return "unnamed error", said
                continue
            after = basis.found_after[reader]
            if found != basis.found_before[reader] and not (after and found <= after):
                return "served in part", f"{reader}: {len(found - (after or found))} are no part"
        return "", ""

    def goes_on(
        self, area: Area, basis: Basis, *, leaving: frozenset[str] = frozenset()
    ) -> tuple[str, str]:
        """The same command again: its outcome, and what it said. `leaving`: files that are damaged,
        and are not compared."""
        attempt = self.run(self.command(area))
        if attempt.status == -signal.SIGALRM:
            return "hung", attempt.last
        if attempt.status != 0:
            named = attempt.status == 1 and self.is_named(attempt.last)
            whole = "Traceback" not in attempt.text
            return (REFUSED if named and whole else "unnamed error"), attempt.last
        made = tree(self.root)
        if leaving:  # what a damaged file has spoilt is set aside, which a line says
            made = {name: each for name, each in made.items() if not ASIDE.search(name)}
        found = difference(tree(basis.after), made, basis.noise, leaving)
        return ("other bits", found) if found else (SAME, "")

    def after_fault(self, area: Area, basis: Basis) -> tuple[str, str]:
        wrong, said = self.served(area, basis)
        if wrong:
            return wrong, said
        return self.goes_on(area, basis)


def _is_absent(said: str) -> bool:
    return "FileNotFoundError" in said


def _told(change: Change) -> str:
    name = Path(change.path).name
    return f"{change.number}: {change.kind} {name}"


Found = tuple[str, str, str]  # where, outcome, what was said


def kill(campaign: Campaign, area: Area, basis: Basis, rng: random.Random) -> Found:
    """Killed before a change, or after some pages of a write; one in four is killed once more while
    it goes on."""
    campaign.restore(basis.before)
    where = _killed(campaign, area, basis, rng)
    if rng.random() < 0.25:
        where += ", then " + _killed(campaign, area, basis, rng)
    return where, *campaign.after_fault(area, basis)


def _killed(campaign: Campaign, area: Area, basis: Basis, rng: random.Random) -> str:
    at = rng.randrange(len(basis.changes))
    torn = rng.random() < 0.5
    where = "not reached"

    def decide(change: Change) -> Decision:
        nonlocal where
        if change.number < at:
            return LET
        if change.number == at:
            where = _told(change)
        first = 0
        if torn and change.kind == "write" and change.size > PAGE:
            first = PAGE * rng.randrange(1, -(-change.size // PAGE))
        return Kill(first)

    campaign.watch(campaign.command(area), decide)
    return where


def disk_full(campaign: Campaign, area: Area, basis: Basis, rng: random.Random) -> Found:
    """From a change on, nothing grows any more, or one write alone fails; then there is room."""
    places = [place for place, each in enumerate(basis.changes) if each.kind in GROWS]
    at = basis.changes[rng.choice(places)].number
    once = rng.random() < 0.3
    where = "not reached"
    failed = False

    def decide(change: Change) -> Decision:
        nonlocal where, failed
        if change.number < at or change.kind not in GROWS or (once and failed):
            return LET
        if not failed:
            where = _told(change) + (" alone" if once else " and all after it")
        failed = True
        return Fail()

    campaign.restore(basis.before)
    _, attempt = campaign.watch(campaign.command(area), decide)
    if attempt.status == -signal.SIGALRM:
        return where, "hung", attempt.last
    if attempt.status != 0:
        told = campaign.is_named(attempt.last) or "No space left" in attempt.last
        if attempt.status != 1 or not told or "Traceback" in attempt.text:
            return where, "unnamed error", attempt.last
    return where, *campaign.after_fault(area, basis)


def power_cut(campaign: Campaign, area: Area, basis: Basis, rng: random.Random) -> Found:
    """What the disk may hold when the power fails; a quarter of them after the command has ended,
    when all of it must be there."""
    changes = basis.changes
    ended = rng.random() < 0.25
    cut = len(changes) if ended else rng.randrange(len(changes))
    mode = rng.choice(power.MODES)
    campaign.restore(basis.before)
    state = power.after(basis.before, changes, cut, power.keeping(mode, changes, cut, rng))
    power.write(state, campaign.root)
    where = f"{'the end' if ended else _told(changes[cut])}; {mode}"
    if ended:
        for reader in area.reads:
            found, said = campaign.read(reader)
            if found != basis.found_after[reader]:
                return where, "lost", said or reader
    return where, *campaign.after_fault(area, basis)


def _damaged(
    campaign: Campaign, names: list[str], rng: random.Random, *, cut: bool
) -> tuple[str, str]:
    """Flip a bit of one of these files, or cut it short; returns the file and words."""
    name = rng.choice(names)
    path = campaign.root / name
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    if cut:
        del content[place:]
    else:
        content[place] ^= 1 << rng.randrange(8)
    # In place and with its times as they were: a disk that fails says nothing.
    about = path.stat()
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    return name, f"{name}, {'cut at' if cut else 'bit in'} byte {place}"


def _files(folder: Path) -> list[str]:
    found = []
    for name, content in sorted(tree(folder).items()):
        if content and not name.endswith("/"):
            found.append(name)
    return found


def _damage(
    campaign: Campaign, area: Area, basis: Basis, rng: random.Random, *, cut: bool
) -> Found:
    """A file that the command finds is damaged, or one that it has made and is read afterwards."""
    made = changed_files(tree(basis.before), tree(basis.after))
    made = [name for name in made if (basis.after / name).stat().st_size]
    there = _files(basis.before)
    if there and (not made or rng.random() < 0.5):
        campaign.restore(basis.before)
        name, where = _damaged(campaign, there, rng, cut=cut)
        return where + ", before", *campaign.goes_on(area, basis, leaving=frozenset({name}))
    campaign.restore(basis.after)
    name, where = _damaged(campaign, made, rng, cut=cut)
    where += ", after"
    for reader in area.reads:
        found, said = campaign.read(reader)
        if found is None and not (campaign.is_named(said) or _is_absent(said)):
            return where, "unnamed error", said
        if found is None:
            return where, REFUSED, said
        if found != basis.found_after[reader]:
            return where, "served in part", reader
    return where, *campaign.goes_on(area, basis, leaving=frozenset({name}))


def bit_flip(campaign: Campaign, area: Area, basis: Basis, rng: random.Random) -> Found:
    return _damage(campaign, area, basis, rng, cut=False)


def cut_short(campaign: Campaign, area: Area, basis: Basis, rng: random.Random) -> Found:
    return _damage(campaign, area, basis, rng, cut=True)


def flip_in_half(campaign: Campaign, area: Area, basis: Basis, rng: random.Random) -> Found:
    """Killed, and what it left is damaged: checkpoints, stores and logs that are continued."""
    campaign.restore(basis.before)
    where = _killed(campaign, area, basis, rng)
    left = changed_files(tree(basis.before), tree(campaign.root))
    left = [name for name in left if (campaign.root / name).stat().st_size]
    if not left:
        return where + ", nothing left", *campaign.after_fault(area, basis)
    name, damage = _damaged(campaign, left, rng, cut=rng.random() < 0.3)
    outcome, said = campaign.goes_on(area, basis, leaving=frozenset({name}))
    return f"{where}; {damage}", outcome, said


def clock_jump(campaign: Campaign, area: Area, basis: Basis, rng: random.Random) -> Found:
    """The clock jumps in the middle, and the other way after a kill."""
    at = rng.randrange(len(basis.changes))
    jump = rng.choice([-400, -1, -0.02, 0.02, 1, 400]) * DAY
    dies = rng.random() < 0.5

    def decide(change: Change) -> Decision:
        if change.number == at:
            campaign.clock.jump(jump)
        return Kill() if dies and change.number >= at + 20 else LET

    campaign.restore(basis.before)
    campaign.clock.jump(0.0)
    campaign.watch(campaign.command(area), decide, clock=True)
    campaign.clock.jump(-jump)
    campaign.run(campaign.command(area), clock=True)
    campaign.clock.jump(0.0)
    return f"{jump / DAY:g} days at change {at}", *campaign.after_fault(area, basis)


def two_at_once(campaign: Campaign, area: Area, basis: Basis, rng: random.Random) -> Found:
    """Two processes with the same command in the same folder: each ends as it should, or says that
    the other is there."""
    campaign.restore(basis.before)
    children = []
    pause = rng.random() * 0.2
    for turn in range(2):
        time.sleep(turn * pause)
        child = os.fork()
        if child == 0:
            campaign._child(campaign.command(area), clock=False)()
            os._exit(0)
        children.append(child)
    where = f"{pause * 1000:.0f} ms apart"
    for child in children:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        attempt = Attempt(status, campaign._said(child))
        if status == -signal.SIGALRM:
            return where, "hung", attempt.last
        if status != 0 and not campaign.is_named(attempt.last):
            return where, "unnamed error", attempt.last
    return where, *campaign.after_fault(area, basis)


FAULTS: dict[str, Callable[[Campaign, Area, Basis, random.Random], Found]] = {
    "kill": kill,
    "power cut": power_cut,
    "disk full": disk_full,
    "bit flip": bit_flip,
    "cut short": cut_short,
    "kill, then bit flip": flip_in_half,
    "clock jump": clock_jump,
    "two at once": two_at_once,
}


def clean(base: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(base)
