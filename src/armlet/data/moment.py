"""A folder in which somebody works, as it is at one moment between two steps of the work: which
files have changed since they were noted, each with a second name (a hard link) under which it can
be read while the work goes on.

What is replaced later keeps its old content under that name. What grows is read as far as it went
at that moment; what is cut off or written over in place is noticed, and looked at again later.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from armlet.data.digests import CACHE
from armlet.data.files import PART, make_folder
from armlet.data.mirror import BLOCKS, ORIGIN, is_in_blocks
from armlet.data.object_storage import StorageError, StoredObjects
from armlet.data.store import Entry

LARGE = 2**26  # bytes; a file that grows is uploaded again only when it is half as large again …
STILL = 60.0  # … or when it has not grown for this many seconds
YOUNG = 2.0  # seconds: a file may change again within its clock's granularity

Stamp = tuple[int, int, int]  # size, time of modification (ns), inode


@dataclass(frozen=True)
class Kept:
    """A file as it was uploaded, or fetched; `stamp`: by which a change is seen, None where it is
    hashed again."""

    entry: Entry
    stamp: Stamp | None


@dataclass(frozen=True)
class Seen:
    """The folder at one moment: files that are as they were noted, and links to all others."""

    same: dict[str, Kept]
    links: dict[str, tuple[Path, Stamp]]


def look(folder: Path, noted: Mapping[str, Kept], links: Path, *, lag: bool) -> Seen:
    """The folder as it is now; the links lie in `links`, on the same disk, until the next look.
    `lag`: a large file that grows may stay as it was noted. Raises OSError where the disk has no
    hard links."""
    shutil.rmtree(links, ignore_errors=True)
    make_folder(links)
    now = time.time_ns()
    seen = Seen({}, {})
    for name in _names(folder):
        path = folder / name
        kept = noted.get(name)
        if is_in_blocks(path):
            if kept is not None:  # else it is lost: what is here is a part of it
                seen.same[name] = kept
            continue
        link = links / str(len(seen.links))
        with contextlib.suppress(FileNotFoundError):  # it went while we looked
            stamp = stamp_of(path)
            if kept is not None and (stamp == kept.stamp or (lag and _grows(kept, stamp, now))):
                seen.same[name] = kept
                continue
            link_to(path.resolve(), link)
            stamp = stamp_of(link)
            if now - stamp[1] < YOUNG * 1e9:
                stamp = (stamp[0], 0, stamp[2])  # never that of a file: it is hashed again
            seen.links[name] = (link, stamp)
    return seen


def link_to(path: Path, link: Path) -> None:
    """A second name for a file. Raises OSError where the disk has no hard links."""
    try:
        os.link(path, link)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise OSError(
                error.errno,
                "this file system has no hard links, by which a folder is uploaded as it was at "
                "one moment; make ~/.cache/armlet a link to a folder on another",
                str(link.parent),
            ) from error
        raise


def stamp_of(path: Path) -> Stamp:
    about = path.stat()
    return about.st_size, about.st_mtime_ns, about.st_ino


def digest(path: Path, size: int) -> tuple[int, str]:
    """Of the first `size` bytes: how many there are, and their SHA-256."""
    made = hashlib.sha256()
    read = 0
    with path.open("rb") as file:
        for block in _blocks(file, size):
            made.update(block)
            read += len(block)
    return read, made.hexdigest()


def _blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The first `size` bytes of a file, or as many as there are."""
    left = size
    while left:
        block = file.read(min(left, 2**20))
        if not block:
            return
        left -= len(block)
        yield block


def put(objects: StoredObjects, entry: Entry, link: Path) -> None:
    """Upload the first bytes of a file, as many as were seen: it may have grown since. Raises
    StorageError where they are others by now."""
    part = link
    if link.stat().st_size != entry.size:
        part = link.with_name(f"{link.name}-part")
        with link.open("rb") as whole, part.open("wb") as file:
            for block in _blocks(whole, entry.size):
                file.write(block)
    objects.put(entry.at, part)
    # Of what was cut off or written over in place meanwhile something else was sent.
    if digest(part, entry.size) != (entry.size, entry.sha256):
        objects.remove(entry.at)
        raise StorageError(errno.EAGAIN, f"{link} changed while it was uploaded")


def _names(folder: Path) -> list[str]:
    """Files that are kept: no locks, nothing half written, nothing that is derived."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != CACHE and not PART.search(name)]
        for name in files:
            if name == ORIGIN or name.endswith((".lock", BLOCKS)) or PART.search(name):
                continue
            found.append(Path(place, name).relative_to(folder).as_posix())
    return sorted(found)


def _grows(kept: Kept, stamp: Stamp, now: int) -> bool:
    """Whether a large file is the one that was noted, with a little more at its end, and more to
    come."""
    if kept.stamp is None or kept.entry.size < LARGE or kept.stamp[2] != stamp[2]:
        return False
    return kept.entry.size < stamp[0] < 1.5 * kept.entry.size and now - stamp[1] < STILL * 1e9
