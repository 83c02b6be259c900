"""What an original project's own code answered, against what armlet answers from the same files:

    python tests/golden.py LAYOUT FOLDER [FOLDER …]

LAYOUT is the name of a kind of checkpoint (openvla_hf, openvla_oft, cogact, prismatic_openvla,
smolvla, pi0, pi05, act, diffusion); FOLDER a variant as the golden fixtures have them: a checkpoint
in the real layout, inputs, and every quantity that the original computed. One line a quantity, with
its error and bound; the exit status is 0 only if all hold and nothing that the folder holds was left
out.

Each layout's comparison stands in `tests/goldens/LAYOUT.py`: `compare(folder)` yields `Line`s.
"""

import importlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

LAYOUTS = (
    "openvla_hf",
    "openvla_oft",
    "cogact",
    "prismatic_openvla",
    "smolvla",
    "pi0",
    "pi05",
    "act",
    "diffusion",
)


@dataclass(frozen=True)
class Line:
    """One quantity: how far it is from what was expected, and how far it may be."""

    name: str
    error: float
    bound: float
    said: str = ""  # what else is to be known, such as how many numbers were compared

    @property
    def holds(self) -> bool:
        return self.error <= self.bound  # NaN holds nothing

    def __str__(self) -> str:
        verdict = "ok  " if self.holds else "FAIL"
        return f"{verdict} {self.name:<48} error {self.error:<10.3g} bound {self.bound:<8.2g} {self.said}"


def near(name: str, found: Any, expected: Any, bound: float, *, relative: bool = False) -> Line:
    """The largest absolute error of an array, or that over the largest number expected; another
    shape is an infinite error."""
    mine = np.asarray(found, np.float64)
    theirs = np.asarray(expected, np.float64)
    if mine.shape != theirs.shape:
        return Line(name, float("inf"), bound, f"shape {mine.shape}, expected {theirs.shape}")
    error = float(np.abs(mine - theirs).max(initial=0.0))
    if relative:
        error /= max(float(np.abs(theirs).max(initial=0.0)), 1e-12)
    return Line(name, error, bound, f"{mine.size} numbers{', relative' if relative else ''}")


def equal(name: str, found: Any, expected: Any) -> Line:
    """How many entries differ; none may."""
    mine = np.asarray(found)
    theirs = np.asarray(expected)
    if mine.shape != theirs.shape:
        return Line(name, float("inf"), 0.0, f"shape {mine.shape}, expected {theirs.shape}")
    return Line(name, float((mine != theirs).sum()), 0.0, f"{mine.size} entries, equal")


class Golden:
    """The arrays of a fixture, of which every one must be compared or be named with a reason."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        self.used.add(name)
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def leave_out(self, names: Iterable[str], why: str) -> None:
        """Some are no answers to compare with: inputs, or what their README calls information."""
        assert why
        self.used.update(names)

    def rest(self) -> Line:
        """How many were neither compared nor named."""
        left = sorted(set(self.arrays) - self.used)
        shown = ", ".join(left[:8]) + (" …" if len(left) > 8 else "")
        return Line("quantities left out", float(len(left)), 0.0, shown)


def compare(layout: str, folder: Path) -> list[Line]:
    """All lines of one variant."""
    module = importlib.import_module(f"goldens.{layout}")
    return list(module.compare(folder))


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    if len(arguments) < 2 or arguments[0] not in LAYOUTS:
        say(f"usage: python tests/golden.py LAYOUT FOLDER …; LAYOUT: {', '.join(LAYOUTS)}")
        return 2
    layout, *folders = arguments
    failed = 0
    for folder in folders:
        say(f"{layout} {folder}")
        for line in compare(layout, Path(folder)):
            say(str(line))
            failed += not line.holds
    say(f"{failed} failed" if failed else "all hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
