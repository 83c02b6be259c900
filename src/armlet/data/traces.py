"""The trace store: what a teacher answered, one row per (episode, step), joined by key and never by
order.

On disk: `header.json` (identity and columns), `keys.bin` (two int64 and a CRC-32 a row, of the key
and the row; of the row alone in stores of before) and `rows-NNN.bin`, in which all columns of a row
lie side by side, so a random row is one contiguous read. Rows are appended first and their keys after, so what a killed or full-disk run left half
written is cut off on the next opening. Knows no policy.
"""

import json
import math
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from armlet.data.files import hold, is_held, make_durable, read_json, write_atomically
from armlet.data.mirror import InBlocks

# An entry of keys.bin. Little-endian whatever the machine: stores are copied between machines.
KEY = np.dtype([("episode", "<i8"), ("step", "<i8"), ("crc", "<u4")])
HEADER = "header.json"
KEYS = "keys.bin"
LOCK = "writer.lock"
TYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
LARGEST = 2**31 - 1  # numbers in a row's entry, bytes of a row, rows in a shard
Columns = dict[str, tuple[tuple[int, ...], str]]  # name → shape of a row's entry, numpy type


class TraceError(ValueError):
    """A store that is damaged, or data that do not belong in it."""


class StaleTraceError(TraceError):
    """A store made from other data, another teacher or another preprocessing."""


@dataclass(frozen=True)
class StoreIdentity:
    """Fingerprints of what the traces were made from."""

    data: str
    teacher: str
    preprocessing: str


def _check_identity(root: Path, found: dict[str, str], wanted: StoreIdentity) -> None:
    names = {"data": "the episodes", "teacher": "the teacher", "preprocessing": "the preprocessing"}
    stale = []
    for key, value in asdict(wanted).items():
        there = found.get(key)
        if there != value:
            stale.append(f"{names[key]} changed (the store has {there!r}, this run has {value!r})")
    if stale:
        raise StaleTraceError(
            f"the traces in {root} are stale: {'; '.join(stale)}. Run `armlet probe` into another "
            "folder, or delete this one"
        )


def _shape(said: Any) -> tuple[int, ...]:
    """The shape of a row's entry as a header says it. Raises TypeError where it is none."""
    shape = tuple(said)
    whole = all(type(each) is int and each >= 0 for each in shape)
    if not whole or math.prod(shape) > LARGEST:
        raise TypeError(f"a shape is {said!r:.80}")
    return shape


def _number_type(said: Any) -> str:
    """The name of a type of plain numbers. Raises TypeError for any other: of objects, a file's
    bytes would be taken for places in memory."""
    if said not in TYPES:
        raise TypeError(f"a type is {said!r:.40}, expected one of {', '.join(TYPES)}")
    return str(said)


def _check_row(columns: Columns) -> None:
    """Raises TypeError where no row can be laid out so."""
    size = 0
    for name, (shape, dtype) in columns.items():
        if not name:
            raise TypeError("a column has no name")
        size += math.prod(shape) * np.dtype(dtype).itemsize
    if not 1 <= size <= LARGEST:
        raise TypeError(f"a row has {size} bytes, expected 1 to {LARGEST}")


def _row_type(columns: Columns) -> np.dtype:
    return np.dtype([(name, dtype, tuple(shape)) for name, (shape, dtype) in columns.items()])


@dataclass(frozen=True)
class _Header:
    identity: dict[str, str]
    columns: Columns
    rows_per_shard: int
    # Whether a row's checksum is of its key, too: else a damaged key is another row's.
    keys_checked: bool = False

    @classmethod
    def read(cls, root: Path) -> Self:
        path = root / HEADER
        if not path.is_file():
            raise TraceError(
                f"{path} is missing: there are no traces here; run `armlet probe` first"
            )
        try:
            value = read_json(
                path, fix=f"delete {root} and run `armlet probe` again, or copy the file again"
            )
            columns = {}
            for name, (shape, dtype) in value["columns"].items():
                columns[name] = (_shape(shape), _number_type(dtype))
            _check_row(columns)
            per = value["rows_per_shard"]
            if type(per) is not int or not 1 <= per <= LARGEST:
                raise TypeError(f"rows_per_shard is {per!r:.40}")
            checked = value.get("keys_checked", False)
            return cls(dict(value["identity"]), columns, per, bool(checked))
        except (KeyError, TypeError, AttributeError) as error:
            raise TraceError(
                f"{path} does not describe a trace store ({type(error).__name__}: {error}); delete "
                f"{root} and run `armlet probe` again"
            ) from error
        except ValueError as error:
            raise TraceError(str(error)) from error

    @property
    def row(self) -> np.dtype:
        return _row_type(self.columns)

    def checksum(self, key: np.ndarray, row: np.ndarray) -> int:
        """Of a row, a record, and of its `key` (2,) where the store has it so."""
        begun = zlib.crc32(key.astype("<i8").tobytes()) if self.keys_checked else 0
        return zlib.crc32(row.tobytes(), begun)


def read_identity(root: Path) -> StoreIdentity:
    """What the store at `root` was made from. Raises TraceError where there is none."""
    found = _Header.read(root).identity
    return StoreIdentity(**{name: found.get(name, "") for name in StoreIdentity.__annotations__})


def _shard(root: Path, number: int) -> Path:
    return root / f"rows-{number:03d}.bin"


def _shards(root: Path) -> dict[int, Path]:
    """Number → file, of the shards that are there. Not of what else is called alike: a tool that
    synchronizes folders leaves a `rows-000 (1).bin`."""
    found = {}
    for path in root.glob("rows-*.bin"):
        digits = path.stem.removeprefix("rows-")
        if digits.isdecimal() and path == _shard(root, int(digits)):
            found[int(digits)] = path
    return found


class TraceWriter:
    """Appends rows; a context manager. Opening an existing store of the same identity goes on where
    it ended."""

    def __init__(
        self,
        root: Path | str,
        identity: StoreIdentity,
        columns: Columns,
        *,
        shard_bytes: int = 2**30,
    ) -> None:
        self.root = Path(root)
        self._held = hold(self.root / LOCK, "writing traces")
        try:
            self._open(identity, columns, shard_bytes)
        except BaseException:  # Ctrl-C as well: nobody has this writer to close it
            self.close()
            raise

    def _open(self, identity: StoreIdentity, columns: Columns, shard_bytes: int) -> None:
        if (self.root / HEADER).exists():
            header = _Header.read(self.root)
            _check_identity(self.root, header.identity, identity)
            if header.columns != columns:
                raise TraceError(
                    f"{self.root} has columns {header.columns}, this run would write {columns}"
                )
        else:
            _check_row(columns)
            rows_per_shard = max(1, shard_bytes // _row_type(columns).itemsize)
            header = _Header(asdict(identity), columns, rows_per_shard, keys_checked=True)
            write_atomically(self.root / HEADER, json.dumps(asdict(header), indent=1).encode())
        self.header = header
        self._row = header.row
        self._keys = self._recover()

    def _recover(self) -> set[tuple[int, int]]:
        """Cut off what is not whole: keys without their rows, rows without their keys. Raises
        TraceError, and cuts nothing, where a key stands there twice."""
        path = self.root / KEYS
        if not path.exists():
            path.touch()
            make_durable(self.root)
        whole = path.stat().st_size // KEY.itemsize
        per = self.header.rows_per_shard
        size = self._row.itemsize
        stored = 0
        while stored % per == 0:  # behind a shard that is not full none can count
            shard = _shard(self.root, stored // per)
            rows = shard.stat().st_size // size if shard.exists() else 0
            if rows == 0:
                break
            stored += min(rows, per)
        # Rows are written first, so those without keys are the usual case after a kill.
        whole = min(whole, stored)
        keys = np.fromfile(path, KEY, count=whole)
        known = self._refuse_twice(keys)
        os.truncate(path, whole * KEY.itemsize)
        for number, shard in _shards(self.root).items():
            kept = max(0, min(whole - number * per, per)) * size
            os.truncate(shard, min(shard.stat().st_size, kept))  # never made longer, with zeros
        return known

    def _refuse_twice(self, keys: np.ndarray) -> set[tuple[int, int]]:
        """The keys that `keys`, entries, hold. Raises TraceError where two are one: no run stores a
        key twice, so one of them was changed since, and which row is its is not known."""
        first: dict[tuple[int, int], int] = {}
        pairs = zip(keys["episode"].tolist(), keys["step"].tolist(), strict=True)
        for place, key in enumerate(pairs):
            before = first.setdefault(key, place)
            if before != place:
                path = self.root / KEYS
                raise TraceError(
                    f"{path} has episode {key[0]}, step {key[1]} twice, as keys {before} and {place} of "
                    f"{len(keys)}: it is damaged. Copy {self.root} again, or delete it and run `armlet "
                    f"probe`; `truncate -s {before * KEY.itemsize} {path}` keeps the rows before, and "
                    "`armlet probe` stores the others again"
                )
        return set(first)

    def done(self) -> np.ndarray:
        """(rows, 2) int64: the keys that are stored."""
        return np.array(sorted(self._keys), np.int64).reshape(-1, 2)

    def append(self, keys: Tensor | np.ndarray, values: Mapping[str, Tensor | np.ndarray]) -> None:
        """Store rows: `keys` (b, 2) episode and step; `values` name → (b, …). Raises TraceError on
        a missing or unknown column, a key twice, NaN or a number too large for the column's type;
        OSError on a full disk, nothing lost."""
        keys = np.asarray(keys, np.int64)
        new = [tuple(key) for key in keys.tolist()]
        for key in new:
            if key in self._keys:
                raise TraceError(f"{self.root}: episode {key[0]}, step {key[1]} is stored already")
        if len(set(new)) != len(new):
            raise TraceError(f"{self.root}: a key stands twice in one batch")
        rows = self._rows(keys, values)
        try:
            self._write(keys, rows)
        except OSError as error:
            self._keys = self._recover()
            free = shutil.disk_usage(self.root).free / 2**20
            raise OSError(
                error.errno,
                f"{self.root}: could not write traces ({error.strerror}); {free:.0f} MB are free. "
                f"The {len(self._keys)} rows written before are kept; make room and run the same "
                "command again",
            ) from error
        self._keys.update(new)

    def _rows(self, keys: np.ndarray, values: Mapping[str, Tensor | np.ndarray]) -> np.ndarray:
        if values.keys() != self.header.columns.keys():
            missing = self.header.columns.keys() - values.keys()
            extra = values.keys() - self.header.columns.keys()
            raise TraceError(
                f"{self.root}: missing column(s) {sorted(missing)}, unknown column(s) "
                f"{sorted(extra)}"
            )
        rows = np.zeros(len(keys), self._row)
        for name, (shape, dtype) in self.header.columns.items():
            value = values[name]
            if isinstance(value, Tensor):
                wide = torch.float32 if value.is_floating_point() else torch.int64
                value = value.detach().cpu().to(wide)  # numpy knows no bfloat16
            array = np.asarray(value)
            if array.shape != (len(keys), *shape):
                raise TraceError(
                    f"{self.root}: {name} has shape {array.shape}, expected {(len(keys), *shape)}"
                )
            _check_range(name, array, dtype, keys)  # ahead of the cast, which would hide it
            rows[name] = array
        return rows

    def _write(self, keys: np.ndarray, rows: np.ndarray) -> None:
        per = self.header.rows_per_shard
        start = (self.root / KEYS).stat().st_size // KEY.itemsize
        position = 0
        while position < len(rows):
            number, inside = divmod(start + position, per)  # which shard, and how full it is
            count = min(per - inside, len(rows) - position)
            shard = _shard(self.root, number)
            new = not shard.exists()
            with shard.open("ab") as file:
                file.write(rows[position : position + count].tobytes())
                file.flush()
                os.fsync(file.fileno())
            if new:  # its name lies in the folder
                make_durable(self.root)
            position += count
        # Only now that the rows are on the disk: a key promises its row.
        entries = np.zeros(len(keys), KEY)
        entries["episode"], entries["step"] = keys.T
        for place, row in enumerate(rows):
            entries["crc"][place] = self.header.checksum(keys[place], row)
        with (self.root / KEYS).open("ab") as file:
            file.write(entries.tobytes())
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        self._held.lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_range(name: str, array: np.ndarray, dtype: str, keys: np.ndarray) -> None:
    limits = np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.iinfo(dtype)
    with np.errstate(invalid="ignore"):
        # Written so that NaN, which compares false with everything, is bad.
        bad = ~((array >= limits.min) & (array <= limits.max))
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        value = array[bad].ravel()[0]
        raise TraceError(
            f"{name} of episode {keys[row, 0]}, step {keys[row, 1]} is {value}, which {dtype} "
            f"cannot hold ({limits.min:g} to {limits.max:g}); NaN or overflow in the teacher"
        )


class TraceStore:
    """Reads a store. Rows come from memory-mapped shards; a row's checksum is verified when it is
    first read.

    May be pickled and shared with worker processes: every process maps the files itself.
    """

    def __init__(
        self, root: Path | str, identity: StoreIdentity | None = None, *, verify: bool = True
    ) -> None:
        self.root = Path(root)
        self.verify = verify
        self.header = _Header.read(self.root)
        if identity is not None:
            _check_identity(self.root, self.header.identity, identity)
        self._entries = self._read_keys()
        # Sorted by key, and where each key's row lies on the disk.
        order = np.lexsort((self._entries["step"], self._entries["episode"]))
        self._order = order
        self._sorted = self._entries[order]
        # (rows, 2) int64, sorted
        self.keys = np.stack([self._sorted["episode"], self._sorted["step"]], 1)
        self._episodes = np.unique(self._sorted["episode"])
        self._firsts = np.searchsorted(self._sorted["episode"], self._episodes)
        self._checked = np.zeros(len(self._entries), bool)
        self._shards: list[np.ndarray] | None = None
        self._in_blocks = InBlocks.of(self.root)  # of a store behind a URL
        self._check_files()

    def __len__(self) -> int:
        return len(self._entries)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": None}  # a map cannot be sent: each process maps anew

    @property
    def columns(self) -> Columns:
        return self.header.columns

    def _read_keys(self) -> np.ndarray:
        path = self.root / KEYS
        if not path.is_file():
            raise TraceError(
                f"{path} is missing, without which no row is known: copy the whole folder again, or "
                "run `armlet probe`, which stores all rows again"
            )
        return np.fromfile(path, KEY)

    def _check_files(self) -> None:
        per = self.header.rows_per_shard
        size = self.header.row.itemsize
        for number in range(-(-len(self) // per)):
            path = _shard(self.root, number)
            wanted = min(per, len(self) - number * per) * size
            if not path.is_file():
                raise TraceError(
                    f"{path} is missing; copy the whole folder again, or run `armlet probe`"
                )
            if path.stat().st_size < wanted:
                raise TraceError(
                    f"{path} has {path.stat().st_size} bytes, expected {wanted}: it is truncated; "
                    "`armlet probe` stores the missing rows again"
                )
        # Of rows without keys nobody would know: they would be missing without a word.
        there = sum(path.stat().st_size for path in _shards(self.root).values())
        keys = self.root / KEYS
        if there > len(self) * size or keys.stat().st_size % KEY.itemsize:
            # In this order: one that lets go in between has changed the keys by then.
            held = is_held(self.root / LOCK)
            if held or keys.stat().st_size // KEY.itemsize != len(self):
                raise TraceError(
                    f"{self.root} is being written: it has {len(self)} keys, and {there / size:g} rows. "
                    "Wait until `armlet probe` has ended there, then run this again"
                )
            raise TraceError(
                f"{keys} has {keys.stat().st_size} bytes, {len(self)} whole keys, and there are "
                f"{there / size:g} rows: the file was cut short, or a run was stopped while it "
                "stored; `armlet probe` stores what is missing again"
            )

    def _map(self) -> list[np.ndarray]:
        if self._shards is None:
            self._shards = []
            for number in range(-(-len(self) // self.header.rows_per_shard)):
                mapped = np.memmap(_shard(self.root, number), self.header.row, mode="r")
                self._shards.append(np.asarray(mapped))  # a plain array: memmap's indexing is slow
        return self._shards

    def positions(self, keys: np.ndarray) -> np.ndarray:
        """Where rows lie. Raises KeyError naming an (episode, step) that the store does not
        have."""
        # Where an episode's steps follow one another, a row is found by counting from its first:
        # guessed for all at once, then compared with what stands there.
        place = np.searchsorted(self._episodes, keys[:, 0])
        place = np.minimum(place, max(len(self._episodes) - 1, 0))
        first = self._firsts[place] if len(self) else np.zeros(len(keys), np.int64)
        step_of_first = self._sorted["step"][first] if len(self) else first
        found = np.clip(first + keys[:, 1] - step_of_first, 0, max(len(self) - 1, 0))
        mine = self.keys[found] if len(self) else np.full_like(keys, -1)
        if (mine != keys).any():  # an episode with gaps: look each up
            table = {tuple(key): row for row, key in enumerate(self.keys.tolist())}
            found = np.array([table.get(tuple(key), -1) for key in keys.tolist()])
        missing = found < 0
        if missing.any():
            episode, step = keys[missing][0]
            raise KeyError(
                f"no trace of episode {episode}, step {step} in {self.root} ({len(self)} rows of "
                f"{len(self._episodes)} episodes); run `armlet probe` on these episodes"
            )
        return self._order[found]

    def read(
        self, keys: Tensor | np.ndarray | Sequence, want: Iterable[str] | None = None
    ) -> dict[str, Tensor]:
        """Columns `want` (default: all) of the rows with these keys (b, 2), in their order: name →
        (b, …)."""
        keys = np.asarray(keys, np.int64).reshape(-1, 2)
        names = list(want) if want is not None else list(self.columns)
        unknown = [name for name in names if name not in self.columns]
        if unknown:
            raise KeyError(f"{self.root} has no column {unknown}; it has {sorted(self.columns)}")
        positions = self.positions(keys)
        shards = self._map()
        per = self.header.rows_per_shard
        numbers = positions // per
        values = {}
        for name in names:
            shape, dtype = self.columns[name]
            values[name] = np.empty((len(keys), *shape), dtype)
        for number in np.unique(numbers):
            at = np.flatnonzero(numbers == number)
            rows = positions[at] - number * per
            if self._in_blocks is not None:
                size = self.header.row.itemsize
                self._in_blocks.need(_shard(self.root, int(number)).name, rows * size, size)
            if self.verify:
                self._verify(int(number), rows, positions[at])
            for name in names:
                found = shards[number][name][rows]
                # One shard holds them all: nothing to put together, so nothing is copied twice.
                if len(at) == len(keys):
                    values[name] = np.asarray(found)
                else:
                    values[name][at] = found
        return {name: torch.from_numpy(array) for name, array in values.items()}

    def _verify(self, number: int, rows: np.ndarray, positions: np.ndarray) -> None:
        fresh = ~self._checked[positions]  # a row is read once an epoch, and checked once
        damaged = self._damaged(number, rows[fresh], positions[fresh])
        if len(damaged) and self._in_blocks is not None:
            # What is here of a store behind a URL may be damaged, and the store whole.
            size = self.header.row.itemsize
            self._in_blocks.need_again(_shard(self.root, number).name, rows[damaged] * size, size)
            damaged = self._damaged(number, rows[fresh], positions[fresh])
        if len(damaged):
            entry = self._entries[positions[fresh][damaged[0]]]
            raise TraceError(
                f"{self.root}: the row of episode {entry['episode']}, step {entry['step']} is "
                "damaged (checksum differs); copy the store again, or delete it and run "
                "`armlet probe`"
            )
        self._checked[positions] = True

    def _damaged(self, number: int, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """(n,) int64: which of these rows of a shard are not what was written."""
        shard = self._map()[number]
        found = []
        for index, (row, position) in enumerate(zip(rows, positions, strict=True)):
            entry = self._entries[position]
            key = np.array([entry["episode"], entry["step"]])
            if self.header.checksum(key, shard[row]) != entry["crc"]:
                found.append(index)
        return np.array(found, np.int64)
