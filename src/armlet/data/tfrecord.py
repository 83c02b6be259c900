"""TFRecord files and the `tf.train.Example`s in them, without TensorFlow: each record held to both of
its checksums, and to the length of its file before memory is taken for it.

A record is its length (8 bytes), a checksum of these, its bytes, and a checksum of those: CRC-32C,
"masked" (tensorflow.org/tutorials/load_data/tfrecord). An Example is protobuf, a map of names to
lists of bytes, of float32 or of int64 (tensorflow/core/example/feature.proto). Knows no data set.
"""

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from armlet.data.opening import EpisodeError, checked

MOST_BYTES = 2**31 - 1  # of a record: protobuf reads no more
MOST_TEXTS = 2**20  # of a list of bytes: a million steps
HEAD = struct.Struct("<QI")
FOOT = struct.Struct("<I")
KINDS = {1: "bytes", 2: "float", 3: "int64"}  # the field of a Feature, and what it holds
POLYNOMIAL = 0x82F63B78  # of CRC-32C, its bits in the order in which they are sent
BLOCK = 2**18  # bytes whose checksum is made at once, so that they stay in the processor's cache
# protobuf's wire types
VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5


class WireError(ValueError):
    """Bytes that are no protobuf message; says where."""


@dataclass(frozen=True)
class Record:
    """A record of a file: which one it is, at which byte of the file its content begins."""

    number: int
    begins: int
    content: bytes


@dataclass
class Values:
    """What an Example says under a name. `kind`: one of `KINDS`, or "nothing". Of bytes, `spans`:
    where each begins and ends in the record; of numbers `packed`, as they stand there."""

    kind: str = "nothing"
    spans: list[tuple[int, int]] = field(default_factory=list)
    packed: bytearray = field(default_factory=bytearray)

    def __len__(self) -> int:
        if self.kind == "bytes":
            return len(self.spans)
        if self.kind == "float":
            return len(self.packed) // 4
        # The last byte of each number is below 128.
        return int((np.frombuffer(self.packed, np.uint8) < 128).sum())

    def numbers(self) -> np.ndarray:
        """(n,) float32 or int64. Raises WireError where they are cut short."""
        if self.kind == "float":
            if len(self.packed) % 4:
                raise WireError(f"{len(self.packed)} bytes are no float32s")
            return np.frombuffer(self.packed, "<f4")
        return _whole_numbers(np.frombuffer(self.packed, np.uint8))


# Records


def records(path: Path) -> Iterator[Record]:
    """The records of a file, one in memory at a time. Raises EpisodeError naming file and record
    where one is cut short, damaged, or longer than any episode."""
    size = checked(path).stat().st_size
    try:
        with path.open("rb") as file:
            number = 0
            while file.tell() < size:
                yield _record(file, size, number, path)
                number += 1
    except OSError as error:
        raise EpisodeError(f"{path} cannot be read ({error}); copy it again") from error


def _record(file: BinaryIO, size: int, number: int, path: Path) -> Record:
    where = f"{path}: record {number}, at byte {file.tell()},"
    head = file.read(HEAD.size)
    if len(head) < HEAD.size:
        raise EpisodeError(f"{where} is cut short; was a copy interrupted? Copy the file again")
    length, mark = HEAD.unpack(head)
    if masked(crc32c(head[:8])) != mark:
        what = "is no TFRecord, or is damaged" if number == 0 else "is damaged"
        raise EpisodeError(f"{where} {what} (the checksum of its length); copy the file again")
    left = size - file.tell() - FOOT.size
    if length > left:
        raise EpisodeError(
            f"{where} has {length} bytes by its own word, and the file {max(left, 0)} more; was a "
            "copy interrupted? Copy the file again"
        )
    if length > MOST_BYTES:
        raise EpisodeError(
            f"{where} has {length} bytes, expected {MOST_BYTES} at most, as protobuf does; write "
            "shorter episodes"
        )
    begins = file.tell()
    content = file.read(length)
    foot = file.read(FOOT.size)
    if len(content) < length or len(foot) < FOOT.size:
        raise EpisodeError(f"{where} became shorter while it was read; open the data set again")
    if masked(crc32c(content)) != FOOT.unpack(foot)[0]:
        raise EpisodeError(f"{where} is damaged (the checksum of its content); copy the file again")
    return Record(number, begins, content)


# Checksums


def masked(crc: int) -> int:
    """A checksum as TFRecord keeps it: turned, and moved by a constant."""
    turned = (crc >> 15) | (crc << 17)
    return (turned + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(content: bytes) -> int:
    """CRC-32C of some bytes (RFC 3720, B.4), hundreds of times as fast as byte by byte in Python.

    The register after some bytes is a sum over them, each moved on by as many bytes as follow it. So
    neighbours are joined, then pairs of them, and so on: a tree, each level of which is an operation
    on an array.
    """
    register = 0xFFFFFFFF
    for start in range(0, len(content), BLOCK):
        register = _moved_over(content[start : start + BLOCK], register)
    return register ^ 0xFFFFFFFF


def _moved_over(block: bytes, register: int) -> int:
    """The register after some more bytes."""
    if len(block) < 4:
        first = _table()[0]
        for byte in block:
            register = int(first[(register ^ byte) & 255]) ^ (register >> 8)
        return register
    # What stood in the register is added to the first bytes, and zeros before these add nothing.
    before = -len(block) % 4
    words = np.zeros((len(block) + before) // 4, "<u4")
    flat = words.view(np.uint8)
    flat[before:] = np.frombuffer(block, np.uint8)
    flat[before : before + 4] ^= np.frombuffer(FOOT.pack(register), np.uint8)
    level = 2  # words of 2^2 bytes
    while len(words) > 1:
        if len(words) % 2:
            words = np.concatenate([np.zeros(1, "<u4"), words])
        words = _moved(words[0::2], level) ^ words[1::2]
        level += 1
    return int(_moved(words, 2)[0])


def _moved(registers: np.ndarray, level: int) -> np.ndarray:
    """Registers (n,) after 2^level bytes of zeros."""
    return _apply(_zeros(level), registers)


def _apply(tables: np.ndarray, registers: np.ndarray) -> np.ndarray:
    # Their bytes as indices: shifts and masks would take most of the time.
    each = np.ascontiguousarray(registers, "<u4").view(np.uint8)
    found = tables[0][each[0::4]]
    for byte in range(1, 4):
        found ^= tables[byte][each[byte::4]]
    return found


@cache
def _zeros(level: int) -> np.ndarray:
    """(4, 256) uint32: what each byte of a register becomes after 2^level bytes of zeros; their sum
    is what the register becomes."""
    if level == 0:
        return _table()
    half = _zeros(level - 1)
    return np.stack([_apply(half, each) for each in half])


@cache
def _table() -> np.ndarray:
    """(4, 256) uint32: the same of one byte of zeros."""
    first = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        first = np.where(first & 1, (first >> 1) ^ np.uint32(POLYNOMIAL), first >> 1)
    rest = [np.arange(256, dtype=np.uint32) << np.uint32(8 * byte) for byte in range(3)]
    return np.stack([first.astype(np.uint32), *rest])


# Examples


def example(content: bytes, wanted: Collection[str]) -> dict[str, Values]:
    """Those of the `wanted` names that an Example has. Raises WireError where it is none, and where
    it says a name twice."""
    found: dict[str, Values] = {}
    for begins, ends in _messages(content, 0, len(content), 1):
        for start, stop in _messages(content, begins, ends, 1):
            key = _only(content, start, stop, 1)
            held = _only(content, start, stop, 2)
            try:
                name = content[slice(*key)].decode()
            except UnicodeDecodeError as error:
                raise WireError(f"a name at byte {start} is no text") from error
            if name not in wanted:
                continue
            if name in found:
                raise WireError(f"{name!r:.80} is there twice")
            found[name] = _values(content, *held)
    return found


def _only(content: bytes, start: int, stop: int, wanted: int) -> tuple[int, int]:
    """Where a field of an entry begins and ends; nowhere where it is not there."""
    found = None
    for span in _messages(content, start, stop, wanted):
        if found is not None:
            raise WireError(f"the entry at byte {start} has two names, or two values")
        found = span
    return found or (start, start)


def _values(content: bytes, start: int, stop: int) -> Values:
    found = Values()
    for number, wire, begins, ends in _fields(content, start, stop):
        if number not in KINDS or wire != BYTES:
            continue
        found = Values(KINDS[number])  # one of the three; of several the last, as protobuf has it
        for inner, kind, first, last in _fields(content, begins, ends):
            if inner != 1:
                continue
            if found.kind == "bytes" and kind == BYTES:
                found.spans.append((first, last))
                if len(found.spans) > MOST_TEXTS:
                    raise WireError(f"a list at byte {begins} has more than {MOST_TEXTS} entries")
            elif kind in (BYTES, FOUR if found.kind == "float" else VARINT) and (
                found.kind != "bytes"
            ):
                found.packed += content[first:last]
            else:
                raise WireError(f"a list of {found.kind} at byte {begins} holds something else")
    return found


def _messages(content: bytes, start: int, stop: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Where the messages, or bytes, of a field begin and end."""
    for number, wire, begins, ends in _fields(content, start, stop):
        if number == wanted and wire == BYTES:
            yield begins, ends


def _fields(content: bytes, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of a message: number, wire type, where its content begins and ends."""
    at = start
    while at < stop:
        key, at = _varint(content, at, stop)
        wire = key & 7
        begins = at
        if wire == VARINT:
            _, at = _varint(content, at, stop)
        elif wire == BYTES:
            length, begins = _varint(content, at, stop)
            at = begins + length
        elif wire in (EIGHT, FOUR):
            at += 8 if wire == EIGHT else 4
        else:
            raise WireError(f"no field begins at byte {begins - 1}")
        if at > stop or key < 8:
            raise WireError(f"the field at byte {begins} does not end where it should")
        yield key >> 3, wire, begins, at


def _varint(content: bytes, at: int, stop: int) -> tuple[int, int]:
    found = 0
    for index, byte in enumerate(content[at : min(stop, at + 10)]):
        found |= (byte & 127) << (7 * index)
        if byte < 128:
            return found, at + index + 1
    raise WireError(f"the number at byte {at} does not end")


def _whole_numbers(packed: np.ndarray) -> np.ndarray:
    """(n,) int64 from varints (bytes,), one after the other."""
    ends = np.flatnonzero(packed < 128)
    if len(packed) and (not len(ends) or ends[-1] != len(packed) - 1):
        raise WireError("the last whole number does not end")
    begins = np.concatenate([[0], ends + 1])[:-1]
    lengths = ends - begins + 1
    if len(lengths) and lengths.max() > 10:
        raise WireError("a whole number has more than 10 bytes")
    found = np.zeros(len(ends), np.uint64)
    for index in range(int(lengths.max(initial=0))):
        longer = lengths > index
        seven = packed[begins[longer] + index].astype(np.uint64) & np.uint64(127)
        found[longer] |= seven << np.uint64(7 * index)
    return found.view(np.int64)
