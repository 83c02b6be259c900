"""What a file says of itself, looked at before memory is taken for it: how long its header is, how many
arrays and of which size, into how much it unpacks.

A file of a few kilobytes can promise terabytes, or unpack into gigabytes. Each of these readers refuses
such a file by its name. Knows formats; knows nothing of what is in them.
"""

import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from armlet.data.files import check_is_here

# Of safetensors: bytes of a header, or an index; of a thousand tensors 0.2 MB.
HEADER = 8 * 2**20
TENSORS = 50_000  # of a file; the largest of the kinds here have 1,300
UNPACKED = 2**30  # bytes that a packed file may have
ROWS = 2**26  # of one parquet file: two weeks at 50 Hz
SPARE = 2**28  # bytes that columns may have in memory, however well they were packed …
PACKED = 100  # … and beyond that so many times the bytes of the file
PIXELS = 2**26  # of one picture of a film
GZIP = 16 + zlib.MAX_WBITS  # what zlib calls that format


def safetensors_header(path: Path, *, fix: str) -> bytes:
    """The header of a safetensors file. Raises FileNotFoundError or ValueError naming the file where
    it is missing, cut short, too long, or of too many tensors; `fix` says what to do."""
    check_is_here(path, fix=fix)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(
                f"{path} ({size} bytes) is no whole safetensors file: it was cut short, or is "
                f"something else; {fix}"
            )
        if length > HEADER:
            raise ValueError(
                f"{path}: its header has {length} bytes, expected {HEADER} at most; this is no "
                "file of a policy's weights"
            )
        content = file.read(length)
    # Counted before they are parsed: a hundred thousand of them take a hundred times the memory.
    count = content.count(b'"data_offsets"')
    if count > TENSORS:
        raise ValueError(
            f"{path}: its header names {count} tensors, expected {TENSORS} at most; this is no file "
            "of a policy's weights"
        )
    return content


def unpacked(content: bytes, most: int = UNPACKED) -> bytes:
    """What was packed by gzip. Raises ValueError where it is damaged, cut short, or has more than
    `most` bytes."""
    unpacker = zlib.decompressobj(GZIP)
    try:
        found = unpacker.decompress(content, most)
    except zlib.error as error:
        raise ValueError(f"not packed by gzip: {error}") from error
    if unpacker.unconsumed_tail:
        raise ValueError(f"more than {most} bytes are packed into {len(content)}")
    if not unpacker.eof:
        raise ValueError("cut short")
    if unpacker.unused_data:
        raise ValueError(f"{len(unpacker.unused_data)} bytes stand behind its end")
    return found


def read_arrays(path: Path, *, fix: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file that `numpy.savez` wrote. Raises FileNotFoundError or ValueError
    naming the file where it is none, or promises more than it holds; `fix` says what to do."""
    check_is_here(path, fix=fix)
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                _check_array(archive, entry)
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, OSError) as error:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is no whole file of arrays ({error}); {fix}"
        ) from error


def _check_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Raises ValueError where an array is packed, of objects, or larger than its bytes."""
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{entry.filename!r:.80} is packed, which numpy.savez does to none")
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{entry.filename!r:.80} is of version {version}, expected (1, 0)")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        held = entry.file_size - file.tell()
    needed = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or needed != held:
        raise ValueError(
            f"{entry.filename!r:.80} of shape {shape} and type {dtype} has {held} bytes, expected "
            f"{needed}"
        )


def check_parquet(about: Any, size: int, columns: list[str] | None = None) -> None:
    """Raises ValueError where a parquet file of `size` bytes promises more than any data set has;
    `about`: its metadata. `columns`: those that are wanted, or all."""
    groups = [about.row_group(index) for index in range(about.num_row_groups)]
    rows = sum(group.num_rows for group in groups)
    if rows != about.num_rows or not 0 <= rows <= ROWS:
        raise ValueError(
            f"it promises {about.num_rows} rows, and {rows} in its parts, expected the same, and "
            f"{ROWS} at most"
        )
    promised = 0
    for group in groups:
        for index in range(group.num_columns):
            column = group.column(index)
            if columns is None or column.path_in_schema.partition(".")[0] in columns:
                promised += max(0, column.total_uncompressed_size)
    most = SPARE + PACKED * size
    if promised > most:
        raise ValueError(
            f"its {size} bytes promise {promised}, expected {most} at most; write it with less "
            "compression if it is meant so"
        )


def check_film(path: Path) -> None:
    """Raises ValueError where a film promises more frames than it has bytes: a decoder makes room
    for all of them. What is no mp4 passes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        for name, begins, ends in _boxes(file, 0, size):
            if name != b"stsz" or ends - begins < 12:
                continue
            file.seek(begins)
            _, each, count = struct.unpack(">III", file.read(12))
            # Each has a size of its own, 4 bytes long, or all have one.
            if count * (each or 4) > size:
                raise ValueError(f"it promises {count} frames, and has {size} bytes")


# Boxes that hold boxes, on the way to the one that says how many frames there are.
HOLDERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def _boxes(file: IO[bytes], begins: int, ends: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes of a stretch of an mp4 file, and those within: name, where its content begins and
    ends."""
    at = begins
    while at + 8 <= ends:
        file.seek(at)
        length, name = struct.unpack(">I4s", file.read(8))
        start = at + 8
        if length == 1 and at + 16 <= ends:  # its length follows, in 8 bytes
            (length,) = struct.unpack(">Q", file.read(8))
            start += 8
        elif length == 0:  # to the end
            length = ends - at
        if at + length > ends or at + length < start:
            return  # the decoder says what is wrong with it
        yield name, start, at + length
        if name in HOLDERS:
            yield from _boxes(file, start, at + length)
        at += length
