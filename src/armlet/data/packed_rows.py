"""Rows of a trace store as one object: what a worker makes of a shard, and sends to whoever lays the
store out. Knows columns, and nothing of what they mean."""

from collections.abc import Mapping, Sequence

import numpy as np

from armlet.data.packing import pack, unpack
from armlet.data.traces import Columns

Rows = tuple[np.ndarray, Mapping[str, np.ndarray]]  # keys (b, 2), and of each column (b, …)
KEYS = "(episode, step)"  # beside the columns of a shard, none of which is called so


def pack_rows(parts: Sequence[Rows], columns: Columns) -> bytes:
    """Rows in this order, each column in the type in which it is stored."""
    files = {KEYS: b"".join(np.asarray(keys, np.int64).tobytes() for keys, _ in parts)}
    for name, (_, dtype) in columns.items():
        # Overflow becomes infinite, and is refused when it is stored.
        with np.errstate(over="ignore"):
            files[name] = b"".join(values[name].astype(dtype).tobytes() for _, values in parts)
    return pack(files)


def unpack_rows(content: bytes, columns: Columns) -> Rows:
    """The inverse."""
    files = unpack(content)
    keys = np.frombuffer(files.pop(KEYS), np.int64).reshape(-1, 2)
    values = {}
    for name, (shape, dtype) in columns.items():
        values[name] = np.frombuffer(files[name], dtype).reshape(len(keys), *shape)
    return keys, values


def without(rows: Rows, done: set[tuple[int, ...]]) -> Rows:
    """The rows whose keys are not `done`."""
    keys, values = rows
    new = np.array([tuple(key) not in done for key in keys.tolist()], bool)
    return keys[new], {name: each[new] for name, each in values.items()}
