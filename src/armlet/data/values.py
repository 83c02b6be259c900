"""Columns of parquet → arrays, every row of one shape. Knows Arrow's types; knows no data set."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from armlet.data.opening import EpisodeError

Place = Callable[[int], str]  # which row of a file: its episode and frame, in words


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def flatten(
    column: pa.ChunkedArray, count: int | None, where: str, place: Place
) -> tuple[pa.Array, tuple[int, ...]]:
    """The values of all rows one after the other, and the shape of a row; scalars have none, ().

    `count`: how many values a row has, None: as many as the first. Raises EpisodeError naming
    `where` and the first row that has another number of them, is empty, or holds lists of several
    lengths: their sum may be right all the same, and every row in between would be shifted.
    """
    values = column.combine_chunks()
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    row = np.arange(len(values))  # of each value: which row it stands in
    shape: list[int] = []
    unequal: list[int] = []
    # Lists in lists are opened level by level; each level is a dimension of the row's shape.
    while _is_list(values.type):
        # -1: a null in the place of a list, which is not the same as a list of nothing.
        lengths = pc.fill_null(pc.list_value_length(values), -1).to_numpy(zero_copy_only=False)
        usual = int(lengths[0]) if len(lengths) else 0
        others = np.flatnonzero((lengths != usual) | (lengths < 0))
        if len(others):
            unequal.append(int(row[others[0]]))
        shape.append(usual)
        row = np.repeat(row, np.maximum(lengths, 0))
        values = values.flatten()  # leaves empty lists out
    if not shape:
        if count not in (None, 1) and len(column):
            raise EpisodeError(f"{where} has 1 value in {place(0)}, expected {count}")
        return values, ()
    # (n,): how many values each row has; minlength, as the last rows may have none.
    found = np.bincount(row, minlength=len(column))
    if count is None:
        count = int(found[0]) if len(found) else 0
    wrong = np.flatnonzero(found != count)
    if len(wrong):
        first = int(wrong[0])
        numbers = f"{found[first]} value{'' if found[first] == 1 else 's'}"
        raise EpisodeError(
            f"{where} has {numbers} in {place(first)}, expected {count}; write the file again"
        )
    if unequal:
        raise EpisodeError(
            f"{where} has lists of several lengths in {place(min(unequal))}; write the file again"
        )
    return values, tuple(shape)


def as_matrix(column: pa.ChunkedArray, size: int, where: str, place: Place) -> np.ndarray:
    """A column of vectors, or of numbers, as (n, size) float32. Raises EpisodeError saying `where`,
    and in which row, it has another size, or no numbers."""
    kind = column.type
    values, _ = flatten(column, size, where, place)
    if not (
        pa.types.is_integer(values.type)
        or pa.types.is_floating(values.type)
        or pa.types.is_boolean(values.type)
    ):
        raise EpisodeError(f"{where} is {kind}, expected numbers")
    if pa.types.is_boolean(values.type):
        # So that an empty one is NaN, which is looked for later.
        values = pc.cast(values, pa.uint8())
    # Too large for float32 is infinite, which is looked for as well.
    with np.errstate(over="ignore"):
        return values.to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, size)


def as_values(
    column: pa.ChunkedArray, shape: Sequence[int] | None, where: str, place: Place
) -> np.ndarray:
    """A column as an array (n, …) of its own type, each row of this shape; one number, or text, a
    row is (n,).

    Lists of records (the language columns) are an array of Python objects. Raises EpisodeError
    where a row has another shape.
    """
    kind = column.type
    while _is_list(kind):
        kind = kind.value_type
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_struct(kind) or pa.types.is_map(kind) or pa.types.is_binary(kind):
        rows = np.empty(len(column), object)  # (n,)
        # One by one: numpy would make rows of equal lists.
        for number, value in enumerate(column.to_pylist()):
            rows[number] = value
        return rows
    values, own = flatten(column, None if shape is None else math.prod(shape), where, place)
    wanted = own if shape is None else tuple(shape)
    # lerobot's scalars have shape [1] in the metadata, and are numbers in the files.
    if math.prod(wanted) == 1:
        wanted = ()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        # numpy's own texts where all are there: they compare as a whole.
        texts = values.to_pylist()
        array = np.array(texts, object if None in texts else str)
    else:
        array = values.to_numpy(zero_copy_only=False)
    return array.reshape(len(column), *wanted)
