"""A file appears whole or not at all, and a log is read without half a line. Knows bytes and lines; knows no format."""

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """The whole file or, where anything fails, what stood there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def whole_lines(path: Path) -> list[str]:
    """The lines of a log that is written line by line; none where there is no file. A last one cut short by a kill is left out,
    and dropped from the file, so that the next line does not join it."""
    if not path.exists():
        return []
    *lines, rest = path.read_text().split("\n")
    if rest:
        write_atomically(path, "".join(line + "\n" for line in lines).encode())
    return lines
