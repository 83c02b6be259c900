"""Columns of parquet → arrays. Knows Arrow's types; knows no data set."""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from armlet.data.opening import EpisodeError


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _flat(column: pa.ChunkedArray) -> tuple[pa.Array, tuple[int, ...]]:
    """The values of all rows one after the other, and the shape of a row, as its first has it."""
    values = column.combine_chunks()
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    shape: list[int] = []
    while _is_list(values.type):
        length = len(values)
        values = values.flatten()
        shape.append(len(values) // length if length else 0)
    return values, tuple(shape)


def as_matrix(column: pa.ChunkedArray, size: int, where: str) -> np.ndarray:
    """A column of vectors, or of numbers, as (n, size) float32. Raises EpisodeError saying `where` it has another size, or no
    numbers."""
    values, _ = _flat(column)
    kind = values.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise EpisodeError(f"{where} is {column.type}, expected numbers")
    if len(values) != len(column) * size:
        raise EpisodeError(f"{where} has {len(values)} numbers in {len(column)} frames, expected {size} a frame")
    return values.to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, size)


def as_values(column: pa.ChunkedArray, shape: Sequence[int] | None, where: str) -> np.ndarray:
    """A column as an array (n, …) of its own type, each row of this shape; one number, or text, a row is (n,).

    Lists of records (the language columns) are an array of Python objects. Raises EpisodeError where the rows have other shapes.
    """
    kind = column.type
    while _is_list(kind):
        kind = kind.value_type
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_struct(kind) or pa.types.is_map(kind) or pa.types.is_binary(kind):
        rows = np.empty(len(column), object)
        for place, value in enumerate(column.to_pylist()):  # one by one: numpy would make rows of equal lists
            rows[place] = value
        return rows
    values, own = _flat(column)
    wanted = own if shape is None else tuple(shape)
    if math.prod(wanted) == 1:
        wanted = ()
    if len(values) != len(column) * math.prod(wanted):
        raise EpisodeError(f"{where} has {len(values)} values in {len(column)} frames, expected rows of shape {wanted}")
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        texts = values.to_pylist()
        array = np.array(texts, object if None in texts else str)
    else:
        array = values.to_numpy(zero_copy_only=False)
    return array.reshape(len(column), *wanted)
