"""A data set's pictures at the size a policy sees them, read by rows: decoded once into a file, or
streamed.

A picture is fitted as soon as it is decoded, so nowhere do all of them stand at full size. What
fits into `cache_gb` is decoded once, in parallel, into one file a camera; more than that is decoded
when it is asked for. The rows are the same either way, to the bit. Neither way maps a file into
memory: what is read does not count as the process's own and does not grow.

Knows how pictures are fitted and kept; of a data set only `Source`.
"""

import errno
import io
import json
import os
import re
import shutil
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import quote

import numpy as np

from armlet.data.digests import CACHE
from armlet.data.files import FULL, BusyError, FullDiskError, hold, make_durable, whole_lines
from armlet.progress import Progress
from armlet.robot.fit import MOST, VERSION, Fit, FitError, View, fit_picture

BLOCK = 256  # rows that are decoded in one go, or a little more: what a killed run may lose, once for each thread
LONGEST = 1024  # rows of one block, however long an episode is
SAVED_EVERY = 5.0  # seconds between two entries of what has been decoded
FEWEST = 8  # rows that a thread is given when pictures are streamed: it opens the film anew
STEP = 48  # pixels, which every patch of networks here (8, 12 or 16) divides
LARGEST, SIDE = 192, 96  # pixels a side that `auto` takes as they are, and brings others to
OPTIONS = "give --pictures.cache_gb 0 to stream without it, or a smaller --pictures.size where a policy is taught"


@dataclass(frozen=True)
class Pictures:
    """How the episodes' pictures are seen and kept. A teacher keeps the fit it was taught with, and
    its students inherit it; the last three change no result."""

    fit: Fit | Literal["auto"] = "exact"
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
                f"pictures.fit is {self.fit!r} and pictures.size is not given; name the side in pixels, such as 224"
            )
        if self.size is not None and not 1 <= self.size <= MOST:
            raise FitError(f"pictures.size is {self.size}, expected 1 to {MOST} pixels a side")
        if not (self.cache_gb >= 0 and self.memory_gb >= 0):  # nor is NaN
            raise FitError(
                f"pictures.cache_gb is {self.cache_gb} and pictures.memory_gb {self.memory_gb}; expected 0 or more"
            )
        if self.workers is not None and self.workers < 1:
            raise FitError(
                f"pictures.workers is {self.workers}, expected 1 or more threads, or nothing for one a core"
            )

    @property
    def threads(self) -> int:
        return self.workers or min(os.cpu_count() or 1, 8)

    def view(self, cameras: dict[str, tuple[int, int]], *, whose: str) -> View:
        """What a policy that is taught on these cameras, name → (height, width), will see. Raises
        FitError where their pictures
        are not square, or not of the size that was asked for."""
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
                    f"{whose}: camera {name!r} has pictures of {height} × {width} pixels, and a policy taught here sees squares; "
                    f"give `--pictures.fit letterbox` (or crop, stretch) and `--pictures.size {_suggested(height, width)}`"
                )
            if self.size not in (None, height):
                raise FitError(
                    f"{whose}: camera {name!r} has pictures of {height} × {width} pixels, and pictures.size is {self.size}; give "
                    "`--pictures.fit letterbox` (or crop, stretch) too, or leave the size out"
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
        taught = f"fit {view.fit}, " + " and ".join(
            f"{height} × {width}" for height, width in sizes
        )
        if self.fit not in ("exact", "auto", view.fit):
            raise FitError(
                f"pictures.fit {self.fit!r} would have no effect: the teacher sees as it was taught ({taught}); leave it out"
            )
        if self.size is not None and sizes != [(self.size, self.size)]:
            raise FitError(
                f"pictures.size {self.size} would have no effect: the teacher sees as it was taught ({taught}); leave it out"
            )


def _suggested(height: int, width: int) -> int:
    """A side that every patch of networks here (8, 12 or 16 pixels) divides, near to the
    picture's."""
    return min(LARGEST, STEP * max(1, max(height, width) // STEP))


class Source(Protocol):
    """A data set whose pictures are read. `starts` (E + 1,): rows at which episodes begin."""

    root: Path
    cameras: dict[str, tuple[int, int]]
    starts: np.ndarray

    def __len__(self) -> int: ...

    @property
    def cache(self) -> Path: ...

    @property
    def pictures_fingerprint(self) -> str: ...

    def pictures_of(self, camera: str, rows: np.ndarray) -> Iterator[np.ndarray]: ...


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
    if not view.cameras:
        return {}
    size = sum(_bytes_of(len(data), shape) for shape in view.cameras.values())
    if size > pictures.cache_gb * 1e9:
        _say(
            f"{data.root}: pictures are streamed: {size / 1e9:.3g} GB decoded, more than --pictures.cache_gb {pictures.cache_gb:g}"
        )
        store = Store(int(pictures.memory_gb * 1e9))
        pool = ThreadPoolExecutor(pictures.threads, thread_name_prefix="pictures")
        return {
            name: Streamed(data, name, shape, view.fit, store, pool, pictures.threads)
            for name, shape in view.cameras.items()
        }
    remove_stale(data.cache, data.pictures_fingerprint)
    return {
        name: _cached(data, name, shape, view.fit, pictures) for name, shape in view.cameras.items()
    }


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def _bytes_of(count: int, size: tuple[int, int]) -> int:
    return count * size[0] * size[1] * 3


def _row_numbers(rows: np.ndarray | slice | int, length: int) -> np.ndarray:
    """Rows as numbers from 0, as numpy would count them; raises IndexError where one is not
    there."""
    return np.asarray(np.arange(length)[rows])


# Decoded once


def _cached(
    data: Source, camera: str, size: tuple[int, int], fit: Fit, pictures: Pictures
) -> "Cached":
    name = f"{data.pictures_fingerprint}-{quote(camera, safe='')}-{size[0]}x{size[1]}-{fit}-{VERSION}.npy"
    place = data.cache / name
    shape = (len(data), *size, 3)
    shipped = data.root / CACHE / name  # decoded before the data set was made read-only
    if _is_whole(shipped, shape):
        place = shipped
    if not _is_whole(place, shape):
        with hold(place.with_suffix(".lock"), f"decoding {camera}", wait=True):
            if not _is_whole(place, shape):
                _Decoding(data, camera, size, fit, place, pictures.threads).run()
    return Cached(place, shape)


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether the file is there, as long as it was written, and says what it holds: one that
    somebody cut short is made again."""
    header = _header(shape)
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
    return np.load(
        _cached(data, camera, data.cameras[camera], "exact", Pictures()).path, mmap_mode="r"
    )


def remove_stale(folder: Path, fingerprint: str) -> None:
    """Delete what was decoded of other episodes than these, as the data set has changed since, and
    by other versions of armlet.
    What another process is decoding stays, and who reads a file still can."""
    freed = 0
    for path in sorted(folder.glob("*.npy*")):
        found = re.fullmatch(r"(([0-9a-f]{16})-.+)\.npy(\.part|\.done)?", path.name)
        if found is None or (
            found[2] == fingerprint and re.search(rf"-\d+x\d+-[a-z]+-{VERSION}$", found[1])
        ):
            continue
        try:
            with hold(folder / f"{found[1]}.lock", "decoding"):
                freed += path.stat().st_blocks * 512
                path.unlink()
        except (BusyError, FileNotFoundError):
            continue
    if freed:
        _say(
            f"{folder}: removed {freed / 1e9:.3g} GB of decoded pictures that belonged to earlier episodes of this data set"
        )


class Cached:
    """Pictures in a .npy file, read by rows and never mapped: mapped pages would count as this
    process's memory."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.path = path
        self._row = int(np.prod(shape[1:]))
        header = _header(shape)
        self._begin = len(header)
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        weakref.finalize(self, os.close, self._file)
        expected = len(header) + shape[0] * self._row
        if (
            os.fstat(self._file).st_size != expected
            or os.pread(self._file, len(header), 0) != header
        ):
            raise ValueError(
                f"{path}: found another file than {shape} pictures of {expected} bytes; delete it, it is made again"
            )

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray | slice | int) -> np.ndarray:
        """The rows (b,) int64, in their order."""
        numbers = _row_numbers(rows, len(self))
        flat = numbers.reshape(-1)
        found = np.empty((len(flat), self._row), np.uint8)
        ends = (
            np.flatnonzero(np.diff(flat) != 1) + 1
        )  # rows that follow one another are read at once
        for first, last in pairwise([0, *ends.tolist(), len(flat)]):
            if last > first:
                self._read(found[first:last], int(flat[first]))
        return found.reshape(*numbers.shape, *self.shape[1:])

    def _read(self, into: np.ndarray, row: int) -> None:
        room = into.data.cast("B")
        at = self._begin + row * self._row
        while len(room):
            count = os.preadv(self._file, [room], at)
            if count == 0:
                raise ValueError(
                    f"{self.path} ends before row {row + len(into)} of {len(self)}; delete it, it is made again"
                )
            room = room[count:]
            at += count


def _header(shape: tuple[int, ...]) -> bytes:
    """The first bytes of the .npy file, so that anybody can read it with numpy."""
    written = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        written, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return written.getvalue()


class _Decoding:
    """One camera's pictures on their way into the file at `place`, which appears when all are
    there.

    Rows are written where they belong in `.part`, and `.done` says which are on the disk: a line of
    first and last for a block. A run that was killed goes on from there.
    """

    def __init__(
        self, data: Source, camera: str, size: tuple[int, int], fit: Fit, place: Path, threads: int
    ) -> None:
        self.data, self.camera, self.size, self.fit = data, camera, size, fit
        self.place, self.threads = place, threads
        self.part = place.with_name(place.name + ".part")
        self.done = place.with_name(place.name + ".done")
        self.header = _header((len(data), *size, 3))
        self.row = _bytes_of(1, size)
        self.stop = threading.Event()

    def run(self) -> None:
        """Raises OSError naming the file and what to do, where there is no room for it."""
        total = len(self.header) + len(self.data) * self.row
        written = self._written(total)
        free = shutil.disk_usage(self.place.parent).free
        needed = total - len(self.header) - int(written.sum()) * self.row
        if needed > free:
            raise FullDiskError(
                errno.ENOSPC,
                f"{self.place}: the decoded pictures take {total / 1e9:.3g} GB, of which {needed / 1e9:.3g} are still to be "
                f"written, and the disk has {free / 1e9:.3g} GB free; free some, or {OPTIONS}",
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
            self.part.unlink(missing_ok=True)  # a full disk hurts everybody
            self.done.unlink(missing_ok=True)
            raise FullDiskError(
                error.errno,
                f"{self.place} could not be written, {total / 1e9:.3g} GB of decoded pictures: {error.strerror}; free some room, "
                f"or {OPTIONS}",
            ) from error
        finally:
            os.close(file)
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
        left = [
            (first, last)
            for first, last in blocks(self.data.starts)
            if not written[first:last].all()
        ]
        running = {
            pool.submit(self._block, file, first, last): (first, last) for first, last in left
        }
        saved = time.monotonic()
        finished: list[tuple[int, int]] = []
        try:
            while running:
                ready, _ = wait(running, timeout=SAVED_EVERY, return_when=FIRST_COMPLETED)
                for future in sorted(
                    ready, key=_failed
                ):  # what was decoded is kept, whatever went wrong beside it
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
            with suppress(
                OSError
            ):  # what went wrong is on its way already; where not, the whole file is made durable below
                self._save(file, finished)
            progress.close()

    def _save(self, file: int, finished: list[tuple[int, int]]) -> None:
        """First the pictures reach the disk, then the line that says so."""
        if not finished:
            return
        os.fsync(file)
        with self.done.open("a") as log:
            log.writelines(
                json.dumps({"first": first, "last": last}) + "\n" for first, last in finished
            )
            log.flush()
            os.fsync(log.fileno())
        finished.clear()

    def _block(self, file: int, first: int, last: int) -> None:
        rows = np.arange(first, last)
        for row, picture in zip(
            rows.tolist(), fitted(self.data, self.camera, rows, self.size, self.fit), strict=True
        ):
            if self.stop.is_set():
                return
            _write(
                file,
                np.ascontiguousarray(picture).data.cast("B"),
                len(self.header) + row * self.row,
            )


def _failed(future: Future[None]) -> bool:
    return future.exception() is not None


def _write(file: int, content: "bytes | memoryview", at: int) -> None:
    room = memoryview(content)
    while room:
        count = os.pwrite(file, room, at)
        room = room[count:]
        at += count


def blocks(starts: np.ndarray) -> list[tuple[int, int]]:
    """All rows in blocks (first, last) of whole episodes, at least `BLOCK` rows each but the last;
    a long episode is cut. An
    episode begins with a key frame, so a block that begins with one decodes nothing in vain."""
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


# Streamed


class Store:
    """Pictures by (camera, row), those used last, up to so many bytes; several threads may use
    it."""

    def __init__(self, room: int) -> None:
        self.room, self.used = room, 0
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
        self._data, self._camera, self._size, self._fit = data, camera, size, fit
        self._store, self._pool, self._threads = store, pool, threads
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
        self._expected = {
            row: future
            for row, future in self._expected.items()
            if row in wanted and not future.cancelled()
        }
        missing = [
            row
            for row in numbers.tolist()
            if row not in self._expected and self._store.get((self._camera, row)) is None
        ]
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
        expected = {
            row: self._expected.pop(row)
            for row in np.unique(numbers).tolist()
            if row in self._expected
        }
        for row, future in (expected | self._begin(missing)).items():
            found[row] = future.result()[row]
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
        self.firsts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def __getitem__(self, rows: np.ndarray | slice | int) -> np.ndarray:
        """The rows (b,) int64, in their order."""
        numbers = _row_numbers(rows, len(self))
        owner = self._owner(numbers)
        found = [
            part[numbers[owner == index] - self.firsts[index]]
            for index, part in enumerate(self.parts)
        ]
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
    count = min(threads, -(-len(rows) // FEWEST))
    return np.array_split(rows, count) if count else []
