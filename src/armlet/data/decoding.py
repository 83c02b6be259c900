"""Decode all pictures of a camera once, in parallel, into one .npy file; a run that was killed goes
on where it stopped.

Knows how the file is laid out and where its rows come from (`Source`); knows no recipe, and not who
reads it (`pictures` does).
"""

import errno
import io
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np

from armlet.data.files import FULL, FullDiskError, make_durable
from armlet.data.lines import appending, whole_lines
from armlet.progress import Progress
from armlet.robot.fit import Fit, fit_picture

# Rows that are decoded in one go, or a little more: what a killed run may lose, once for each
# thread.
BLOCK = 256
LONGEST = 1024  # rows of one block, however long an episode is
SAVED_EVERY = 5.0  # seconds between two entries of what has been decoded
OPTIONS = (
    "give --pictures.cache_gb 0 to stream without it, or a smaller --pictures.size where a policy "
    "is taught"
)


class Source(Protocol):
    """What must be known of a data set whose pictures are read. `starts` (E + 1,): rows at which
    episodes begin."""

    root: Path
    cameras: dict[str, tuple[int, int]]
    starts: np.ndarray

    def __len__(self) -> int: ...

    @property
    def cache(self) -> Path: ...

    @property
    def pictures_fingerprint(self) -> str: ...

    def pictures_of(self, camera: str, rows: np.ndarray) -> Iterator[np.ndarray]: ...


def bytes_of(count: int, size: tuple[int, int]) -> int:
    return count * size[0] * size[1] * 3


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The first bytes of the .npy file, so that anybody can read it with numpy."""
    written = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        written, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return written.getvalue()


class Decoding:
    """One camera's pictures on their way into the file at `place`, which appears when all are
    there.

    Rows are written where they belong in `.part`, and `.done` says which are on the disk: a line of
    first and last for a block. A run that was killed goes on from there.
    """

    def __init__(
        self, data: Source, camera: str, size: tuple[int, int], fit: Fit, place: Path, threads: int
    ) -> None:
        self.data = data
        self.camera = camera
        self.size = size
        self.fit = fit
        self.place = place
        self.threads = threads
        # No random names here, unlike `files.atomic_file`: the next run is to find them.
        self.part = place.with_name(place.name + ".part")
        self.done = place.with_name(place.name + ".done")
        self.header = npy_header((len(data), *size, 3))
        self.row = bytes_of(1, size)
        self.stop = threading.Event()

    def run(self) -> None:
        """Raises OSError naming the file and what to do, where there is no room for it."""
        total = len(self.header) + len(self.data) * self.row
        written = self._written(total)
        # Asked beforehand, for the file is sparse at first: it would fill the disk hours later.
        free = shutil.disk_usage(self.place.parent).free
        needed = total - len(self.header) - int(written.sum()) * self.row
        if needed > free:
            raise FullDiskError(
                errno.ENOSPC,
                f"{self.place}: the decoded pictures take {total / 1e9:.3g} GB, of which "
                f"{needed / 1e9:.3g} are still to be written, and the disk has {free / 1e9:.3g} "
                f"GB free; free some, or {OPTIONS}",
            )
        file = os.open(self.part, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.ftruncate(file, total)
            _write(file, self.header, 0)
            self._decode(file, written)
            os.fsync(file)
        except OSError as error:
            if error.errno not in FULL:
                raise
            # A full disk hurts everybody who uses it: the room is given back at once.
            self.part.unlink(missing_ok=True)
            self.done.unlink(missing_ok=True)
            raise FullDiskError(
                error.errno,
                f"{self.place} could not be written, {total / 1e9:.3g} GB of decoded pictures: "
                f"{error.strerror}; free some room, or {OPTIONS}",
            ) from error
        finally:
            os.close(file)
        # The order makes a kill harmless at any point: a whole file with a `.done` beside it is
        # whole.
        self.part.replace(self.place)
        make_durable(self.place.parent)
        self.done.unlink(missing_ok=True)

    def _written(self, total: int) -> np.ndarray:
        """(N,) bool: the rows that an earlier run has left on the disk."""
        written = np.zeros(len(self.data), bool)
        if not self.part.exists() or self.part.stat().st_size != total:
            self.part.unlink(missing_ok=True)
            self.done.unlink(missing_ok=True)
            return written
        for line in whole_lines(self.done):
            block = json.loads(line)
            written[block["first"] : block["last"]] = True
        return written

    def _decode(self, file: int, written: np.ndarray) -> None:
        progress = Progress(
            f"decode {self.camera}", total=len(written), start=int(written.sum()), unit="frame"
        )
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        running: dict[Future[None], tuple[int, int]] = {}
        for first, last in blocks(self.data.starts):
            if not written[first:last].all():
                running[pool.submit(self._block, file, first, last)] = (first, last)
        saved = time.monotonic()
        finished: list[tuple[int, int]] = []
        try:
            while running:
                ready, _ = wait(running, timeout=SAVED_EVERY, return_when=FIRST_COMPLETED)
                # What was decoded is kept, whatever went wrong beside it.
                for future in sorted(ready, key=_failed):
                    first, last = block = running.pop(future)
                    future.result()
                    finished.append(block)
                    progress.advance(last - first)
                if time.monotonic() - saved > SAVED_EVERY:
                    self._save(file, finished)
                    saved = time.monotonic()
        finally:
            self.stop.set()
            pool.shutdown(cancel_futures=True)
            # An error is on its way up already; where there is none, `run` makes the whole file
            # durable.
            with suppress(OSError):
                self._save(file, finished)
            progress.close()

    def _save(self, file: int, finished: list[tuple[int, int]]) -> None:
        """First the pictures reach the disk, then the line that says so."""
        if not finished:
            return
        os.fsync(file)
        with appending(self.done) as add:
            for first, last in finished:
                add(json.dumps({"first": first, "last": last}))
        finished.clear()

    def _block(self, file: int, first: int, last: int) -> None:
        rows = np.arange(first, last)
        pictures = fitted(self.data, self.camera, rows, self.size, self.fit)
        for row, picture in zip(rows.tolist(), pictures, strict=True):
            if self.stop.is_set():
                return
            content = np.ascontiguousarray(picture).data.cast("B")
            # Every row has its place, so threads write side by side without a lock.
            _write(file, content, len(self.header) + row * self.row)


def _failed(future: Future[None]) -> bool:
    return future.exception() is not None


def _write(file: int, content: "bytes | memoryview", at: int) -> None:
    room = memoryview(content)
    while room:  # one call may write less than it was given
        count = os.pwrite(file, room, at)
        room = room[count:]
        at += count


def blocks(starts: np.ndarray) -> list[tuple[int, int]]:
    """All rows in blocks (first, last) of whole episodes, at least `BLOCK` rows each but the last;
    a long episode is cut. An episode begins with a key frame, so a block that begins with one
    decodes nothing in vain."""
    found = []
    first = int(starts[0])
    for end in map(int, starts[1:]):
        if end - first < BLOCK and end != starts[-1]:
            continue
        for cut in range(first, end, LONGEST):
            found.append((cut, min(cut + LONGEST, end)))
        first = end
    return found


def fitted(
    data: Source, camera: str, rows: np.ndarray, size: tuple[int, int], fit: Fit
) -> Iterator[np.ndarray]:
    """The pictures of `rows` (n,), each fitted as soon as it is decoded."""
    for picture in data.pictures_of(camera, rows):
        yield fit_picture(picture, size, fit, camera=camera)
