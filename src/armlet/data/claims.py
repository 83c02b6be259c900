"""Who makes which shard of some work, where any number of processes on any machines share it.

All they have in common is a place with `Objects`, and all that they agree by is that an object is
created once:

    about.json           the question: what the work is
    claims/000007.00     shard 7 is made by the worker that is named in it
    claims/000007.01     … which died, and this one has taken it over
    workers/ID.json      of one worker: where it runs, and a number that it counts up while it lives
    results/000007       what was made, with its checksum: the first that is published counts
    done                 the work was used, and the rest of the folder may go

No clock is compared with another: a worker is dead where its number has stood still for the lease
that it promised, by the clock of whoever looks. A shard may be made twice (by a worker that was
thought dead and was only slow), and counts once. Knows bytes, and nothing of what is made.
"""

import hashlib
import json
import math
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from armlet.data.files import lives, parse_json, pid_namespace
from armlet.data.objects import Objects

ABOUT = "about.json"
DONE = "done"
TAKEN = 5  # workers that may die over one shard; then it is the shard
BEATS = 4  # signs of life within a lease
BOOT = Path("/proc/sys/kernel/random/boot_id")
LONGEST = 200  # bytes of a worker's name; a hostname has 64 at most
FIX = "its worker is waited for as long as one that says nothing"
SAID = {"computer": str, "process": int, "count": int, "lease": int | float}  # by a worker


class ShardError(RuntimeError):
    """A shard that cannot be made, or whose result is damaged."""


def computer() -> str:
    """Where a process number means this process and no other: the computer since it was started,
    and the container in it."""
    said = [socket.gethostname()]
    if BOOT.is_file():
        said.append(BOOT.read_text().strip())
    if pid_namespace():
        said.append(pid_namespace())
    return " ".join(said)


class Worker:
    """One who claims shards, from `with` on; meanwhile a thread says that it lives. `name` is its
    own and nobody else's, ever."""

    def __init__(self, objects: Objects, *, lease: float) -> None:
        self.objects = objects
        self.lease = lease
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._count = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def __enter__(self) -> Self:
        self._say()  # before the first claim: a claim's worker is known
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._stopped.set()
        self._thread.join()
        why = "" if error is None else f"{type(error).__name__}: {error}"
        # Said, so that nobody has to wait for the lease.
        self._say(left=True, why=why)

    def _live(self) -> None:
        while not self._stopped.wait(self.lease / BEATS):
            try:
                self._say()
            except OSError as error:  # a store that does not answer now may at the next beat
                sys.stderr.write(f"{self.name}: no sign of life could be written ({error})\n")

    def _say(self, **more: Any) -> None:
        self._count += 1
        said = {
            "computer": computer(),
            "process": os.getpid(),
            "count": self._count,
            "lease": self.lease,  # seconds
            "time": time.time(),  # for people; nothing is decided by it
            **more,
        }
        self.objects.write(f"workers/{self.name}.json", json.dumps(said).encode())


class Watch:
    """Sees of other workers whether they live. `clock`: seconds, of this process alone."""

    def __init__(self, objects: Objects, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.objects = objects
        self.clock = clock
        # Worker → its number when it was last seen to move, and when that was.
        self._seen: dict[str, tuple[int, float]] = {}
        self._damaged: set[str] = set()  # workers whose file was told to be

    def is_dead(self, worker: str, lease: float) -> bool:
        """`lease`: for one that never said its own."""
        said = self.said(worker)
        if said.get("left"):
            return True
        if said.get("computer") == computer():
            process = said["process"]
            if process != os.getpid() and not lives(process):
                return True
        now = self.clock()
        count = said.get("count", 0)
        if worker not in self._seen or self._seen[worker][0] != count:
            self._seen[worker] = (count, now)
        return now - self._seen[worker][1] > said.get("lease", lease)

    def said(self, worker: str) -> dict[str, Any]:
        """Nothing where its file is missing, or damaged: then its lease decides."""
        name = f"workers/{worker}.json"
        content = self.objects.read(name)
        if content is None:
            return {}
        try:
            return _checked(parse_json(content, Path(name), fix=FIX), name)
        except ValueError as error:
            if worker not in self._damaged:
                sys.stderr.write(f"{error}\n")
            self._damaged.add(worker)
            return {}


def _checked(said: dict[str, Any], name: str) -> dict[str, Any]:
    """What a worker says, if it is what `Worker` writes. Raises ValueError naming object and
    field."""
    for field, kind in SAID.items():
        value: Any = said.get(field)
        right = isinstance(value, kind)
        if right and field in ("process", "lease"):
            right = 0 < value < math.inf
        if not right:
            raise ValueError(f"{name}: {field} is {value!r:.40}, which no worker writes; {FIX}")
    if not isinstance(said.get("why", ""), str):
        raise ValueError(f"{name}: why is {said['why']!r:.40}, expected words; {FIX}")
    return said


class Claims:
    """The shards 0 to `count` of one work, as one process sees them: without a `worker` it looks
    on."""

    def __init__(
        self,
        objects: Objects,
        count: int,
        worker: Worker | None = None,
        *,
        lease: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.objects = objects
        self.count = count
        self.worker = worker
        self.lease = lease
        self._watch = Watch(objects, clock=clock)
        self._owners: dict[str, str] = {}  # a claim → its worker; claims never change
        # Everybody begins elsewhere, so that few try to claim the same.
        self._first = int(hashlib.sha256(worker.name.encode()).hexdigest(), 16) if worker else 0

    def finished(self) -> set[int]:
        found = {int(name) for name in self.objects.names("results") if name.isdigit()}
        # Asked last: results go only after the work was said to be done.
        if len(found) < self.count and self.objects.read(DONE) is not None:
            return set(range(self.count))
        return found

    @property
    def all_finished(self) -> bool:
        return len(self.finished()) >= self.count

    def next(self) -> int | None:
        """A shard that is this worker's from now on; None where each is finished, or another's who
        lives. Raises ShardError where too many workers died over one."""
        assert self.worker is not None
        finished = self.finished()
        latest = self._latest()
        for place in range(self.count):
            shard = (self._first + place) % self.count
            if shard in finished:
                continue
            before = latest.get(shard)
            if before is not None and not self._is_free(shard, before):
                continue
            number = 0 if before is None else before + 1
            self._check_taken(shard, number)
            name = f"claims/{shard:06d}.{number:02d}"
            # Another may have claimed it since we looked.
            if self.objects.create(name, self.worker.name.encode()):
                return shard
        return None

    def publish(self, shard: int, content: bytes) -> bool:
        """The shard's result, if it is the first; False where another was. Says so where the two
        are not the same."""
        name = f"results/{shard:06d}"
        if self.objects.create(name, seal(content)):
            return True
        if self.result(shard) != content:
            sys.stderr.write(
                f"{name} was made twice, and not the same: the machines compute otherwise; the "
                "first counts\n"
            )
        return False

    def result(self, shard: int) -> bytes:
        """Raises ShardError where it is missing or damaged."""
        name = f"results/{shard:06d}"
        content = self.objects.read(name)
        if content is None:
            raise ShardError(f"{name} is missing; start a worker again, which makes it")
        return unseal(content, name)

    def results(self) -> Iterator[bytes]:
        """Of all shards, in order."""
        for shard in range(self.count):
            yield self.result(shard)

    def _latest(self) -> dict[int, int]:
        """Shard → the number of its last claim."""
        latest: dict[int, int] = {}
        for name in self.objects.names("claims"):
            shard, _, number = name.partition(".")
            if not (shard.isdigit() and number.isdigit()):
                continue  # a network disk's own file (.nfs…)
            latest[int(shard)] = max(int(number), latest.get(int(shard), 0))
        return latest

    def _is_free(self, shard: int, number: int) -> bool:
        """Whether whoever claimed it last is gone."""
        return self._watch.is_dead(self.owner(shard, number), self.lease)

    def owner(self, shard: int, number: int) -> str:
        """Of a claim that cannot be read, a name that nobody has: whoever made it may live, so it is
        waited for as long as a worker that says nothing, and then taken over."""
        name = f"claims/{shard:06d}.{number:02d}"
        if name not in self._owners:
            worker = _worker(self.objects.read(name) or b"")
            if worker is None:
                sys.stderr.write(f"{name} is damaged, and names no worker; {FIX}\n")
                worker = f"unreadable-{shard:06d}.{number:02d}"
            self._owners[name] = worker
        return self._owners[name]

    def _check_taken(self, shard: int, number: int) -> None:
        if number < TAKEN:
            return
        workers = []
        for before in range(number):
            worker = self.owner(shard, before)
            why = self._watch.said(worker).get("why") or "without a word"
            workers.append(f"{worker} ({why})")
        raise ShardError(
            f"shard {shard} of {self.count}: {number} workers died over it: {'; '.join(workers)}. "
            "Mend what they died of, and delete the shard's claims to try again"
        )


def _worker(claim: bytes) -> str | None:
    """The name in a claim; None where it cannot be one, nor a part of an object's name."""
    try:
        name = claim.decode()
    except UnicodeDecodeError:
        return None
    if not name or len(claim) > LONGEST or not name.isprintable() or "/" in name:
        return None
    return name


def begin(objects: Objects, question: dict[str, Any]) -> None:
    """Say what the work is, or see that it is the same. Raises ShardError where another work stands
    in this place."""
    asked = json.dumps(question, sort_keys=True, indent=1).encode()
    if not objects.create(ABOUT, asked):
        found = objects.read(ABOUT)
        if found != asked:
            raise ShardError(
                f"{ABOUT}: another work stands in its place than is asked for; choose another "
                "folder, or delete this one"
            )


def end(objects: Objects) -> None:
    """Say that the work was used, and remove what was made for it. Whoever comes later is told
    that it was done."""
    objects.create(DONE, b"")
    for folder in ("claims", "workers", "results"):
        for name in objects.names(folder):
            objects.remove(f"{folder}/{name}")


def seal(content: bytes) -> bytes:
    """With its checksum: a body that arrives truncated is noticed."""
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def unseal(sealed: bytes, name: str) -> bytes:
    """The inverse. Raises ShardError naming the object."""
    said, _, content = sealed.partition(b"\n")
    if hashlib.sha256(content).hexdigest().encode() != said:
        raise ShardError(
            f"{name} ({len(sealed)} bytes) is damaged: its checksum differs; delete it and its "
            "claims, and start a worker again"
        )
    return content
