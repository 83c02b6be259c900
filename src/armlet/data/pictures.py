"""A data set's pictures at the size a policy sees them, read by rows: decoded once into a file, or
streamed.

A picture is fitted as soon as it is decoded, so nowhere do all of them stand at full size. What
fits into `cache_gb` is decoded once, in parallel, into one file a camera; more than that is decoded
when it is asked for. The rows are the same either way, to the bit. Neither way maps a file into
memory: what is read does not count as the process's own and does not grow.

Knows how pictures are fitted and kept; of a data set only `Source`.
"""

import os
import re
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import quote

import numpy as np

from armlet.data.decoding import Decoding, Source, bytes_of, fitted, npy_header
from armlet.data.digests import CACHE
from armlet.data.files import BusyError, hold
from armlet.robot.fit import MOST, VERSION, Fit, FitError, Taught, View

FEWEST = 8  # rows that a thread is given when pictures are streamed: it opens the film anew
STEP = 48  # pixels, which every patch of networks here (8, 12 or 16) divides
LARGEST = 192  # pixels a side that `auto` takes as they are
SIDE = 96  # to which it brings the others


@dataclass(frozen=True)
class Pictures:
    """How the episodes' pictures are seen and kept. A teacher keeps the fit it was taught with, and
    its students inherit it; the last three change no result."""

    fit: Taught | Literal["auto"] = "exact"
    """How a picture becomes a square of `size` pixels a side: letterbox (all of it, black bars),
    crop (its middle), stretch; exact takes squares as they are. auto: exact where all are small
    squares that our patches divide, else letterbox."""
    size: int | None = None
    """Pixels a side; none: as they are, or 96 where auto must letterbox."""
    cache_gb: float = 50.0
    """Gigabytes of decoded pictures kept on disk, beside the data; more is streamed."""
    memory_gb: float = 0.5
    """Gigabytes of pictures that streaming keeps in memory."""
    workers: int | None = None
    """Threads that decode; none: one a core, at most 8."""

    def __post_init__(self) -> None:
        if self.fit not in ("exact", "auto") and self.size is None:
            raise FitError(
                f"pictures.fit is {self.fit!r} and pictures.size is not given; name the side in "
                "pixels, such as 224"
            )
        if self.size is not None and not 1 <= self.size <= MOST:
            raise FitError(f"pictures.size is {self.size}, expected 1 to {MOST} pixels a side")
        if not (self.cache_gb >= 0 and self.memory_gb >= 0):  # nor is NaN
            raise FitError(
                f"pictures.cache_gb is {self.cache_gb} and pictures.memory_gb {self.memory_gb}; "
                "expected 0 or more"
            )
        if self.workers is not None and self.workers < 1:
            raise FitError(
                f"pictures.workers is {self.workers}, expected 1 or more threads, or nothing for "
                "one a core"
            )

    @property
    def threads(self) -> int:
        return self.workers or min(os.cpu_count() or 1, 8)

    def view(self, cameras: dict[str, tuple[int, int]], *, whose: str) -> View:
        """What a policy that is taught on these cameras, name → (height, width), will see. Raises
        FitError where their pictures are not square, or not of the size that was asked for."""
        if self.fit == "auto":
            small = all(h == w <= LARGEST and not h % STEP for h, w in cameras.values())
            if small and self.size is None:
                return View(dict(cameras))
            return replace(self, fit="letterbox", size=self.size or SIDE).view(cameras, whose=whose)
        if self.fit != "exact":
            assert self.size is not None
            return View(dict.fromkeys(cameras, (self.size, self.size)), self.fit)
        for name, (height, width) in cameras.items():
            if height != width:
                raise FitError(
                    f"{whose}: camera {name!r} has pictures of {height} × {width} pixels, and a "
                    "policy taught here sees squares; give `--pictures.fit letterbox` (or crop, "
                    f"stretch) and `--pictures.size {suggested_size(height, width)}`"
                )
            if self.size not in (None, height):
                raise FitError(
                    f"{whose}: camera {name!r} has pictures of {height} × {width} pixels, and "
                    f"pictures.size is {self.size}; give `--pictures.fit letterbox` (or crop, "
                    "stretch) too, or leave the size out"
                )
        return View(dict(cameras))

    @property
    def asked(self) -> bool:
        """Whether a way to see pictures is asked for, which must then be the teacher's."""
        return self.fit not in ("exact", "auto") or self.size is not None

    def agree(self, view: View) -> None:
        """Raises FitError where another fit or size is asked for than a policy that exists was
        taught with: it would be ignored."""
        sizes = sorted(set(view.cameras.values()))
        shown = [f"{height} × {width}" for height, width in sizes]
        taught = f"fit {view.fit}, {' and '.join(shown)}"
        if self.fit not in ("exact", "auto", view.fit):
            raise FitError(
                f"pictures.fit {self.fit!r} would have no effect: the teacher sees as it was "
                f"taught ({taught}); leave it out"
            )
        if self.size is not None and sizes != [(self.size, self.size)]:
            raise FitError(
                f"pictures.size {self.size} would have no effect: the teacher sees as it was "
                f"taught ({taught}); leave it out"
            )


def suggested_size(height: int, width: int) -> int:
    """A side that every patch of networks here (8, 12 or 16 pixels) divides, near to the
    picture's."""
    return min(LARGEST, STEP * max(1, max(height, width) // STEP))


class Rows(Protocol):
    """Pictures (N, h, w, 3) uint8 that are read by rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: np.ndarray | slice | int, /) -> np.ndarray: ...


def open_pictures(data: Source, view: View, pictures: Pictures) -> dict[str, Rows]:
    """Camera → the data set's pictures as `view` sees them; decodes them first where that has not
    been done.

    Raises FitError where the cameras do not fit the view, and OSError where there is no room for
    what is decoded.
    """
    view.check(data.cameras, whose=str(data.root))
    view = view.of(data.cameras)
    if not view.cameras:
        return {}
    # All cameras or none: with half of them streamed, every batch would wait for the slower half.
    size = sum(bytes_of(len(data), shape) for shape in view.cameras.values())
    if size > pictures.cache_gb * 1e9:
        _say(
            f"{data.root}: pictures are streamed: {size / 1e9:.3g} GB decoded, more than "
            f"--pictures.cache_gb {pictures.cache_gb:g}"
        )
        store = Store(int(pictures.memory_gb * 1e9))
        pool = ThreadPoolExecutor(pictures.threads, thread_name_prefix="pictures")
        streamed: dict[str, Rows] = {}
        for name, shape in view.cameras.items():
            streamed[name] = Streamed(data, name, shape, view.fit, store, pool, pictures.threads)
        return streamed
    # Before decoding, which may need the room.
    remove_stale(data.cache, data.pictures_fingerprint)
    decoded: dict[str, Rows] = {}
    for name, shape in view.cameras.items():
        decoded[name] = _cached(data, name, shape, view.fit, pictures)
    return decoded


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def _row_numbers(rows: np.ndarray | slice | int, length: int) -> np.ndarray:
    """Rows as numbers from 0, as numpy would count them; raises IndexError where one is not
    there."""
    return np.asarray(np.arange(length)[rows])


# Decoded once


def _cached(
    data: Source, camera: str, size: tuple[int, int], fit: Fit, pictures: Pictures
) -> "Cached":
    # All that decides a byte is in the name, so a file of this name holds what is asked for. quote:
    # names of cameras may hold slashes.
    name = (
        f"{data.pictures_fingerprint}-{quote(camera, safe='')}-"
        f"{size[0]}x{size[1]}-{fit}-{VERSION}.npy"
    )
    place = data.cache / name
    shape = (len(data), *size, 3)
    shipped = data.root / CACHE / name  # decoded before the data set was made read-only
    if _is_whole(shipped, shape):
        place = shipped
    if not _is_whole(place, shape):
        with hold(place.with_suffix(".lock"), f"decoding {camera}", wait=True):
            # While this process waited, the one that held the lock may have decoded everything.
            if not _is_whole(place, shape):
                Decoding(data, camera, size, fit, place, pictures.threads).run()
    return Cached(place, shape)


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether the file is there, as long as it was written, and says what it holds: one that
    somebody cut short is made again."""
    header = npy_header(shape)
    try:
        with path.open("rb") as file:
            return (
                os.fstat(file.fileno()).st_size == len(header) + int(np.prod(shape))
                and file.read(len(header)) == header
            )
    except FileNotFoundError:
        return False


def mapped(data: Source, camera: str) -> np.ndarray:
    """A camera's pictures in their own size, (N, h, w, 3) uint8, mapped into memory."""
    kept = _cached(data, camera, data.cameras[camera], "exact", Pictures())
    return np.load(kept.path, mmap_mode="r")


def remove_stale(folder: Path, fingerprint: str) -> None:
    """Delete what was decoded of other episodes than these, as the data set has changed since, and
    by other versions of armlet. What another process is decoding stays, and who reads a file still
    can."""
    freed = 0
    for path in sorted(folder.glob("*.npy*")):
        found = re.fullmatch(r"(([0-9a-f]{16})-.+)\.npy(\.part|\.done)?", path.name)
        if found is None:  # not ours
            continue
        is_of_this_version = re.search(rf"-\d+x\d+-[a-z]+-{VERSION}$", found[1]) is not None
        if found[2] == fingerprint and is_of_this_version:
            continue
        try:
            with hold(folder / f"{found[1]}.lock", "decoding"):
                # What is on the disk, in the blocks of 512 bytes that POSIX counts in: a `.part`
                # has holes where nothing was decoded yet.
                freed += path.stat().st_blocks * 512
                path.unlink()
        except (BusyError, FileNotFoundError):
            continue
    if freed:
        _say(
            f"{folder}: removed {freed / 1e9:.3g} GB of decoded pictures that belonged to earlier "
            "episodes of this data set"
        )


class Cached:
    """Pictures in a .npy file, read by rows and never mapped: mapped pages would count as this
    process's memory."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.path = path
        self._row = int(np.prod(shape[1:]))
        header = npy_header(shape)
        self._begin = len(header)
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        # Not __del__, which may run when the interpreter has taken `os` apart already.
        weakref.finalize(self, os.close, self._file)
        expected = len(header) + shape[0] * self._row
        if (
            os.fstat(self._file).st_size != expected
            or os.pread(self._file, len(header), 0) != header
        ):
            raise ValueError(
                f"{path}: found another file than {shape} pictures of {expected} bytes; delete "
                "it, it is made again"
            )

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray | slice | int) -> np.ndarray:
        """The rows (b,) int64, in their order."""
        numbers = _row_numbers(rows, len(self))
        flat = numbers.reshape(-1)
        found = np.empty((len(flat), self._row), np.uint8)
        # Rows that follow one another are read at once.
        ends = np.flatnonzero(np.diff(flat) != 1) + 1
        for first, last in pairwise([0, *ends.tolist(), len(flat)]):
            if last > first:
                self._read(found[first:last], int(flat[first]))
        return found.reshape(*numbers.shape, *self.shape[1:])

    def _read(self, into: np.ndarray, row: int) -> None:
        room = into.data.cast("B")
        at = self._begin + row * self._row
        while len(room):
            # Into the array itself, and at a position of its own: no copy, and threads may share
            # the file. One call may read less than was asked for.
            count = os.preadv(self._file, [room], at)
            if count == 0:
                raise ValueError(
                    f"{self.path} ends before row {row + len(into)} of {len(self)}; delete it, it "
                    "is made again"
                )
            room = room[count:]
            at += count


# Streamed


class Store:
    """Pictures by (camera, row), those used last, up to so many bytes; several threads may use
    it."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.used = 0
        self._kept: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int]) -> np.ndarray | None:
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key]

    def put(self, key: tuple[str, int], picture: np.ndarray) -> None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return
            self._kept[key] = picture
            self.used += picture.nbytes
            while self.used > self.room:
                _, dropped = self._kept.popitem(last=False)
                self.used -= dropped.nbytes


class Streamed:
    """Pictures that are decoded when their rows are asked for, or a little before, by the threads
    of `pool`."""

    def __init__(
        self,
        data: Source,
        camera: str,
        size: tuple[int, int],
        fit: Fit,
        store: Store,
        pool: ThreadPoolExecutor,
        threads: int,
    ) -> None:
        self.shape = (len(data), *size, 3)
        self._data = data
        self._camera = camera
        self._size = size
        self._fit = fit
        self._store = store
        self._pool = pool
        self._threads = threads
        self._expected: dict[int, Future[dict[int, np.ndarray]]] = {}  # row → who decodes it

    def __len__(self) -> int:
        return self.shape[0]

    def expect(self, rows: np.ndarray) -> None:
        """Begin to decode rows that will be asked for next. What was expected before and not asked
        for is given up."""
        numbers = np.unique(_row_numbers(rows, len(self)))
        wanted = set(numbers.tolist())
        for row, future in self._expected.items():
            if row not in wanted:
                future.cancel()  # of what is decoded already the store keeps what it has room for
        still_expected = {}
        for row, future in self._expected.items():
            # A thread decodes several rows; giving up one of them gives up those beside it too.
            if row in wanted and not future.cancelled():
                still_expected[row] = future
        self._expected = still_expected
        missing = []
        for row in numbers.tolist():
            if row not in self._expected and self._store.get((self._camera, row)) is None:
                missing.append(row)
        self._expected |= self._begin(missing)

    def __getitem__(self, rows: np.ndarray | slice | int) -> np.ndarray:
        """The rows (b,) int64, in their order."""
        numbers = _row_numbers(rows, len(self))
        found: dict[int, np.ndarray] = {}
        missing = []
        for row in np.unique(numbers).tolist():
            if row in self._expected:
                continue
            kept = self._store.get((self._camera, row))
            if kept is None:
                missing.append(row)
            else:
                found[row] = kept
        expected = {}
        for row in np.unique(numbers).tolist():
            if row in self._expected:
                expected[row] = self._expected.pop(row)
        # What nobody expected is begun first, then all are waited for.
        for row, future in (expected | self._begin(missing)).items():
            found[row] = future.result()[row]
        # Rows may be asked for twice, in any order and shape: (…) → (…, h, w, 3).
        answer = np.empty((numbers.size, *self.shape[1:]), np.uint8)
        for index, row in enumerate(numbers.reshape(-1).tolist()):
            answer[index] = found[row]
        return answer.reshape(*numbers.shape, *self.shape[1:])

    def _begin(self, rows: list[int]) -> dict[int, "Future[dict[int, np.ndarray]]"]:
        """Row → the thread's answer that will hold it; rows near one another are decoded
        together."""
        begun: dict[int, Future[dict[int, np.ndarray]]] = {}
        for part in shares(np.array(rows, np.int64), self._threads):
            future = self._pool.submit(self._decode, part)
            begun |= dict.fromkeys(part.tolist(), future)
        return begun

    def _decode(self, rows: np.ndarray) -> dict[int, np.ndarray]:
        pictures = fitted(self._data, self._camera, rows, self._size, self._fit)
        found = dict(zip(rows.tolist(), pictures, strict=True))
        for row, picture in found.items():
            self._store.put((self._camera, row), picture)
        return found


class Joined:
    """Pictures of several data sets, one after the other, read by rows and never copied whole."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = parts
        self.firsts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def __getitem__(self, rows: np.ndarray | slice | int) -> np.ndarray:
        """The rows (b,) int64, in their order."""
        numbers = _row_numbers(rows, len(self))
        owner = self._owner(numbers)
        found = []
        for index, part in enumerate(self.parts):
            found.append(part[numbers[owner == index] - self.firsts[index]])
        # `found` has the rows part by part. The argsort of an argsort is the rank: which of them
        # each row that was asked for has become.
        order = np.argsort(np.argsort(owner, kind="stable"), kind="stable")
        return np.concatenate(found)[order]

    def expect(self, rows: np.ndarray) -> None:
        """A word to each of the parts which of its rows are asked for next."""
        owner = self._owner(rows)
        for index, part in enumerate(self.parts):
            expect(part, rows[owner == index] - self.firsts[index])

    def _owner(self, rows: np.ndarray) -> np.ndarray:
        """(b,) int64: the number of the part that has each row."""
        return np.searchsorted(self.firsts, rows, side="right") - 1


def expect(pictures: Rows, rows: np.ndarray) -> None:
    """A word that `rows` (b,) are asked for next; only pictures that are streamed have use for
    it."""
    if isinstance(pictures, Streamed | Joined):
        pictures.expect(rows)


def shares(rows: np.ndarray, threads: int) -> list[np.ndarray]:
    """Increasing rows in a share for each thread, of neighbours; fewer shares where they would be
    too small."""
    count = min(threads, -(-len(rows) // FEWEST))  # rounded up
    return np.array_split(rows, count) if count else []
