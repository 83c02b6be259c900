"""What `goldens.pi` compares of π0.5."""

from collections.abc import Iterator
from pathlib import Path

from golden import Line

from goldens.pi import compare as compare_pi


def compare(folder: Path) -> Iterator[Line]:
    """A line for each quantity of a variant's folder."""
    return compare_pi("pi05", folder)
