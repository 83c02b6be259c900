"""A file appears whole or not at all, a log is read without half a line, and of two processes one at a time writes. Knows bytes and
lines; knows no format."""

import os
import sys
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout


class BusyError(OSError):
    """Another process is writing where this one would."""


def hold(lock: Path, doing: str, *, wait: bool = False) -> AcquireReturnProxy:
    """Until the `with` it is used in ends, or this process does, no other process holds `lock`, a file that is made for it.

    Where one does, raises BusyError that says what it is `doing` there; with `wait`, waits for it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    try:
        return held.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise BusyError(f"{lock.parent}: another process is {doing} here; wait for it, or stop it") from None
    sys.stderr.write(f"{lock.parent}: another process is {doing} here; waiting for it\n")
    return held.acquire()


def write_atomically(path: Path, content: bytes) -> None:
    """The whole file or, where anything fails, what stood there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def whole_lines(path: Path) -> list[str]:
    """The lines of a log that is written line by line; none where there is no file. A last one cut short by a kill is left out,
    and dropped from the file, so that the next line does not join it."""
    if not path.exists():
        return []
    *lines, rest = path.read_text().split("\n")
    if rest:
        write_atomically(path, "".join(line + "\n" for line in lines).encode())
    return lines
