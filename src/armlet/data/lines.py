"""A log of JSON objects, a line each: written line by line, read without half a line, and each line
held to the checksum that it was written with.

A line ends in `"crc": "1a2b3c4d"`, the CRC-32 of the line as it would be without. A digit that a
disk changed would otherwise be a result that nobody measured. Logs of before have no checksums: such
lines are taken as they are, as long as none with one stands before them. Knows no line's content.
"""

import contextlib
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from armlet.data.files import make_durable, make_folder, naming_a_full_disk

SEAL = re.compile(rb'(?:, )?"crc": "([0-9a-f]{8})"\}\Z')
# What a bit makes of one; no line of ours ends so without one.
LIKE_A_SEAL = re.compile(rb'"[^"]{3}": "[^"]{8}"\}\Z')
FIX = (
    "the file was damaged (by a disk, a power cut, or by hand). Delete that line to do again what it "
    "stood for, or the file to do all of it again"
)


def sealed(line: str) -> str:
    """A line, a JSON object, with its checksum."""
    between = "" if line == "{}" else ", "
    return f'{line[:-1]}{between}"crc": "{zlib.crc32(line.encode()):08x}"}}'


def read_lines(path: Path) -> list[str]:
    """The lines of a log, without their checksums; none where there is no file. A last one without
    an end is left out: it is being written, or was cut short by a kill.

    Raises ValueError, naming the line, where one is not what was written.
    """
    if not path.exists():
        return []
    return _checked(path.read_bytes(), path)[0]


def whole_lines(path: Path) -> list[str]:
    """The same, for who goes on writing: a last line cut short is cut off the file as well, so that
    the next line does not join it."""
    if not path.exists():
        return []
    content = path.read_bytes()
    lines, rest = _checked(content, path)
    if rest:  # cut off in place: a copy would need room, and the disk may just have been full
        with path.open("r+b") as file:
            file.truncate(len(content) - rest)
            os.fsync(file.fileno())
    return lines


def check_count(path: Path, found: int, promised: int | None, *, until: str) -> None:
    """Raises ValueError where a log has not the lines that were `promised` (None: nobody did). One
    that is not there is somebody's wish, and stderr says so. `until`: up to where they count."""
    if promised in (None, found):
        return
    if not path.exists():
        sys.stderr.write(f"{path} is not there: the log goes on from {until}\n")
        return
    raise ValueError(
        f"{path} has {found} lines up to {until}, and had {promised} when that was saved: it was "
        "cut, or a line was deleted. Put it back, or delete it: the log then goes on from there, and "
        "nothing else is lost"
    )


def _checked(content: bytes, path: Path) -> tuple[list[str], int]:
    """The whole lines, and how many bytes follow them."""
    # What follows the last line end is no line yet; `splitlines` would not tell the difference.
    *lines, rest = content.split(b"\n")
    found = []
    checked = False
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number} of {len(lines)}"
        if not line.endswith(b"}") or not _is_object(line):
            there = "NUL bytes" if b"\0" in line else repr(line[:40].decode(errors="replace"))
            raise ValueError(f"{where}: found {there}, expected a JSON object; {FIX}")
        seal = SEAL.search(line)
        if seal is not None:
            bare = line[: seal.start()] + b"}"
            if zlib.crc32(bare) != int(seal[1], 16):
                raise ValueError(f"{where}: not what was written (its checksum differs); {FIX}")
            checked = True
            line = bare
        elif LIKE_A_SEAL.search(line):
            raise ValueError(f"{where}: not what was written (its checksum is none); {FIX}")
        elif checked:
            raise ValueError(f"{where}: it has no checksum, and lines before it have; {FIX}")
        found.append(line.decode())
    return found, len(rest)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode()), dict)
    except (ValueError, RecursionError):  # no UTF-8, no JSON, brackets without end
        return False


@contextlib.contextmanager
def appending(path: Path) -> Iterator[Callable[[str], None]]:
    """What adds a line, a JSON object, to a log with its checksum, and gives it to the system before
    it returns, so a killed process loses none that it wrote."""
    make_folder(path.parent)
    new = not path.exists()
    # Without a buffer of Python's: what is in one dies with the process.
    with path.open("ab", buffering=0) as file:
        if new:
            make_durable(path.parent)

        def add(line: str) -> None:
            content = (sealed(line) + "\n").encode()
            with naming_a_full_disk(path):
                written = 0
                # A nearly full disk takes a part, then refuses the rest.
                while written < len(content):
                    written += file.write(content[written:])

        yield add
        with naming_a_full_disk(path):
            os.fsync(file.fileno())
