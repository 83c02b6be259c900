"""A file appears whole or not at all. Knows bytes; knows no format."""

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
