"""Hashes of files, each read once for as long as it stays as it is, and where what is derived from
a data set is kept.

Knows bytes; knows no format.
"""

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from armlet.data.files import write_atomically
from armlet.data.hub import in_cache

CACHE = ".cache"  # a folder in the data set's own, where that can be written to
HOME = Path("~/.cache/armlet")
KEPT = "digests.json"
# Seconds: a file may change again within its clock's granularity, and nothing would show it.
YOUNG = 2.0
_said: set[Path] = set()  # folders whose cache is elsewhere, and about which that was said


def cache_folder(root: Path) -> Path:
    """Where what is derived from the data set at `root` is kept: in it or, where it is read-only or
    belongs to the hub's cache, in the user's cache or that of the machine, which is said on stderr
    once a process. The folder need not be there yet."""
    own = root / CACHE
    fetched = in_cache(root)
    if not fetched and os.access(own if own.exists() else root, os.W_OK | os.X_OK):
        return own
    real = root.resolve()
    # The second where there is no home to write to, as in some containers; with the user's number,
    # since everybody's temporary folder is the same.
    places = (HOME.expanduser(), Path(tempfile.gettempdir()) / f"armlet-{os.getuid()}")
    place = next((place for place in places if _can_make(place)), places[0])
    # Named by the whole real path: two data sets may be called the same.
    elsewhere = place / hashlib.sha256(str(real).encode()).hexdigest()[:16]
    if real not in _said:
        _said.add(real)
        why = "belongs to the hub's cache" if fetched else "is read-only"
        sys.stderr.write(f"{root} {why}; what is derived from it is kept in {elsewhere}\n")
    return elsewhere


def _can_make(folder: Path) -> bool:
    """Whether a folder is there and can be written to, or could be made."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def digests(paths: Iterable[Path], cache: Path, *, keep: bool = True) -> list[bytes]:
    """The SHA-256 of each file. Those that have not changed since they were read last, by the
    record in `cache`, are not read again: the same real path, size, inode, and times of change to
    the nanosecond. Files written in the last two seconds are always read. `keep`: whether the record may
    be written."""
    known = _known(cache / KEPT)
    fresh = False
    found = []
    for path in paths:
        real = path.resolve()
        before = _stamp(real)
        entry = known.get(str(real))
        if entry is not None and entry[:-1] == before:  # kept only where it was old enough by then
            found.append(bytes.fromhex(entry[-1]))
            continue
        now = time.time_ns()  # before reading: what changes while it is read is young
        digest = digest_of(real)
        found.append(digest)
        known.pop(str(real), None)
        # Kept only if it did not change while it was read.
        if before == _stamp(real) and not _young(before, now):
            known[str(real)] = [*before, digest.hex()]
            fresh = True
    if fresh and keep:
        _keep(cache / KEPT, known)
    return found


def digest_of(path: Path) -> bytes:
    """The SHA-256 of a file, which is read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _stamp(path: Path) -> list[int]:
    # The time of change beside that of modification: programs set the latter back, as tar does.
    about = path.stat()
    return [about.st_size, about.st_mtime_ns, about.st_ino, about.st_ctime_ns]


def _young(stamp: list[int], now: int) -> bool:
    """Whether a file changed within two seconds before `now` (nanoseconds), or after it, by either
    of its clocks."""
    return now - max(stamp[1], stamp[3]) < YOUNG * 1e9


def _known(path: Path) -> dict[str, list]:
    """What was kept; nothing where that cannot be read: then all files are read again."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    for entry in found.values():
        # size, two times, inode, and the digest; an older armlet's may have less
        if not (isinstance(entry, list) and len(entry) == 5):
            return {}
    return found


def _keep(path: Path, known: dict[str, list]) -> None:
    try:
        write_atomically(path, json.dumps(known).encode())
    except OSError as error:  # hashes are right without it, and only slower the next time
        sys.stderr.write(
            f"{path} cannot be written ({error.strerror}); the data set is read again next time\n"
        )
