"""A run's status file: how far it is, how fast, and that it lives, for whoever watches from outside.

While a verb runs, a thread writes one small file every few seconds into OUT/status; what it says of
progress is what the verb's `Progress` says anyway. It is no obstacle: a step costs two readings of a
clock, and where the file cannot be written the run goes on and says so once. A verb that fails at
once, before anything was counted, leaves none.
"""

import contextlib
import json
import math
import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from armlet.data.files import pid_namespace, write_atomically
from armlet.logs import standing
from armlet.logs.standing import (
    FOLDER,
    KIND,
    VERSION,
    Beat,
    End,
    Ending,
    Eye,
    Gpu,
    Phase,
    Status,
    Steps,
)
from armlet.progress import Progress, watching

EVERY = 10.0  # seconds between two beats
SOON = 2.0  # … and after something begins
PATIENCE = 10.0  # seconds that a run waits for its last writing
KEPT = 100  # phases that are over and still said
LONG = 500  # letters of an error that are kept


@contextlib.contextmanager
def beating(out: Path, verb: str, recipe: str, *, every: float = EVERY) -> Iterator[None]:
    """While it lasts, a file in `out`/status says how this process is doing; when it ends, how it
    ended. `recipe`: what the verb runs on, by name."""
    run = _Run(out, verb, recipe, every)
    with watching(run):
        run.start()
        try:
            yield
        except KeyboardInterrupt:
            run.end("stopped")
            raise
        except BaseException as error:
            run.end("failed", f"{type(error).__name__}: {error}")
            raise
        run.end("finished")


class _Run:
    """What is known of this process's run, and the thread that writes it."""

    def __init__(self, out: Path, verb: str, recipe: str, every: float) -> None:
        self.out = out
        self.verb = verb
        self.recipe = recipe
        self.every = every
        self.process = standing.this_process()
        host = "".join(each if each.isalnum() else "-" for each in self.process.host)
        # Of containers that share a hostname, each has a process of this number.
        process = "-".join(part for part in (host, pid_namespace(), str(self.process.pid)) if part)
        self.path = out / FOLDER / f"{verb}-{process}.json"
        self.command = _command()
        self.folder = str(Path.cwd())
        self.log = _log()
        self._started_unix = time.time()
        self._started = time.monotonic()
        # The innermost that is under way is last. Only the thread that works changes it.
        self._open: list[Progress] = []
        self._values: Mapping[str, float] = {}
        self._over: list[Phase] = []
        self._steps = 0
        self._stepped = self._started
        self._longest: float | None = None
        self._fresh = True  # no step of this phase yet
        self._beats = 0
        self._eye = Eye()
        self._failed = ""
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._end: End | None = None
        # A daemon: a disk that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._beat, name="armlet status", daemon=True)

    # What `Progress` tells

    def begun(self, progress: Progress) -> None:
        self._open.append(progress)
        self._values = {}
        self._anew()
        self._wake.set()

    def advanced(self, progress: Progress, values: Mapping[str, float]) -> None:
        now = time.monotonic()
        # From the phase's begin to its first step is no usual time: things are loaded and compiled.
        if not self._fresh:
            self._longest = max(self._longest or 0.0, now - self._stepped)
        self._fresh = False
        self._stepped = now
        self._steps += 1
        self._values = values

    def ended(self, progress: Progress) -> None:
        if progress not in self._open:
            return  # closed twice
        self._over = [*self._over, _phase(progress, self._values)][-KEPT:]
        self._open.remove(progress)
        self._values = {}
        self._anew()
        self._wake.set()

    def _anew(self) -> None:
        self._longest = None
        self._fresh = True
        self._stepped = time.monotonic()

    # The file

    def start(self) -> None:
        self._thread.start()

    def end(self, how: Ending, why: str = "") -> None:
        """Have the last writing made; it waits for it, and for one under way, but not for ever."""
        self._end = End(how, time.time(), why[:LONG])
        self._ending.set()
        self._wake.set()
        self._thread.join(PATIENCE)

    # Only the thread writes: a beat that the disk held up must not take the place of the end.

    def _beat(self) -> None:
        # Asked at each turn as well: an end that comes just before the clearing wakes nobody.
        while not self._ending.is_set():
            # Of many short phases not each is written.
            if self._wake.wait(self.every) and self._ending.wait(min(SOON, self.every)):
                break
            self._wake.clear()
            self._write(None)
        end = self._end
        assert end is not None
        before = self._others() if end.how == "finished" else []
        # What was finished long ago, and has just been asked for again, keeps what it said then.
        already = any(other.ended and other.ended.how == "finished" for _, other in before)
        if self._steps or self._beats or (end.how == "finished" and not already):
            self._write(end)

    def _write(self, ended: End | None) -> None:
        try:
            # Not once: where a container is started again at once, what it goes on from seems to beat
            # until it has been silent for long enough.
            if not self._beats or time.monotonic() - self._started < 2 * standing.SILENT:
                self._supersede()
            self._beats += 1
            content = json.dumps(asdict(self._status(ended)), indent=1).encode()
            write_atomically(self.path, content)
        except Exception as error:  # of the disk, of a driver: none of it may end the run
            if not self._failed:
                sys.stderr.write(
                    f"{self.verb} {self.recipe}: the status file cannot be written ({error}); the "
                    "run goes on, and `armlet status` shows it as silent\n"
                )
            self._failed = str(error)

    def _status(self, ended: End | None) -> Status:
        now = time.monotonic()
        under_way = self._open[-1:]  # one look: the other thread may close it meanwhile
        return Status(
            kind=KIND,
            version=VERSION,
            verb=self.verb,
            recipe=self.recipe,
            command=self.command,
            folder=self.folder,
            log=self.log,
            started_unix=self._started_unix,
            seconds=now - self._started,
            phase=_phase(under_way[0], self._values) if under_way else None,
            phases=tuple(self._over),
            beat=Beat(self._beats, self.every, time.time(), now),
            steps=Steps(self._steps, max(0.0, now - self._stepped), self._longest),
            process=self.process,
            rank=_rank(),
            gpus=_gpus(),
            free_disk=_free(self.out),
            ended=ended,
        )

    def _others(self) -> list[tuple[Path, Status]]:
        """The files of other processes that ran this verb on this recipe here."""
        found = []
        for path in sorted(self.path.parent.glob(f"{self.verb}-*.json")):
            if path == self.path:
                continue
            with contextlib.suppress(OSError, ValueError):  # it may go, or be anything
                said = standing.read(path)
                if said.recipe == self.recipe:
                    found.append((path, said))
        return found

    def _supersede(self) -> None:
        """Remove what earlier runs of the same left, which this one goes on from; those that run
        beside it stay. Of one of another machine that is wrongly taken for dead, the next beat
        writes the file again."""
        for path, said in self._others():
            how = self._eye.standing(path, said)
            if how.state in ("running", "stalled"):
                continue
            if how.state == "silent" and standing.is_here(said.process):
                continue  # it is there, and may be woken again
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _phase(progress: Progress, values: Mapping[str, float]) -> Phase:
    left = progress.left
    kept = {}
    for name, value in values.items():
        if math.isfinite(value):  # JSON has no other numbers
            kept[name] = float(value)
    return Phase(
        title=progress.title,
        unit=progress.unit,
        done=progress.done,
        total=progress.total,
        rate=progress.rate,
        left_s=left if math.isfinite(left) else None,
        values=kept,
    )


def _command() -> str:
    """What was typed, or what would do the same."""
    program, *rest = sys.orig_argv
    if Path(sys.argv[0]).name == "armlet":
        return shlex.join(["armlet", *sys.argv[1:]])
    return shlex.join([program, *rest])


def _log() -> str | None:
    """The file that this process's errors and progress go to, where that is one."""
    try:
        if not Path("/proc/self/fd/2").is_file():
            return None
        return os.readlink("/proc/self/fd/2")
    except OSError:  # another system, or stderr is closed
        return None


def _free(out: Path) -> int | None:
    try:
        return shutil.disk_usage(out).free
    except OSError:
        return None


# Torch is asked only where the verb has imported it; half imported, it lacks parts.


def _gpus() -> tuple[Gpu, ...]:
    """The devices on which this process holds memory. Asked of torch's own books and not of the
    driver, which must not be disturbed while a graph is captured, and opens devices nobody uses."""
    cuda: Any = getattr(sys.modules.get("torch"), "cuda", None)
    if not hasattr(cuda, "is_initialized") or not cuda.is_initialized():
        return ()
    found = []
    for index in range(cuda.device_count()):
        held = cuda.memory_reserved(index)
        if held:
            about = cuda.get_device_properties(index)
            most = cuda.max_memory_allocated(index)
            found.append(Gpu(index, about.name, held, most, about.total_memory))
    return tuple(found)


def _rank() -> tuple[int, int] | None:
    several: Any = getattr(sys.modules.get("torch"), "distributed", None)
    if not hasattr(several, "is_initialized") or not several.is_initialized():
        return None
    return several.get_rank(), several.get_world_size()
