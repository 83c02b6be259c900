"""How soon policies succeed (`armlet.evaluation.reaching`), as lines of the page. Knows reports and
outcomes; writes no HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from armlet.evaluation.outcomes import Outcomes, Run
from armlet.evaluation.page.curves import UNITS, line_mark
from armlet.evaluation.page.findings import short_names
from armlet.evaluation.page.pictures import LINE, Label, Scale, Tick, round_numbers, spread
from armlet.evaluation.reaching import AT_ONCE, computers, shares

Report = dict[str, Any]
HEIGHT = 220  # px of the plot


@dataclass(frozen=True)
class Course:
    """One recipe's line, over the episodes of all its seeds. `mark`: how it looks."""

    name: str
    mark: str
    path: str


@dataclass(frozen=True)
class Reached:
    """All recipes on one computer. Places as in `pictures.Plot`."""

    title: str
    height: int
    courses: tuple[Course, ...]
    labels: tuple[Label, ...]
    across: tuple[Tick, ...]
    down: tuple[Tick, ...]

    @property
    def paths(self) -> list[tuple[str, str]]:
        """What each path looks like, and the path."""
        return [(course.mark, course.path) for course in self.courses]


def reached(report: Report, outcomes: Outcomes) -> list[Reached]:
    """One a computer, as `computers` has them, if there were episodes. A recipe has the same colour in
    all."""
    if not outcomes.episodes:
        return []
    found = computers(report, outcomes)
    order = list(found[AT_ONCE])
    limit = outcomes.limit / outcomes.hz
    return [_drawn(title, runs, order, outcomes.hz, limit) for title, runs in found.items()]


def _drawn(
    title: str, runs: Mapping[str, Sequence[Run]], order: Sequence[str], hz: float, limit: float
) -> Reached:
    height = max(HEIGHT, LINE * len(runs))
    across = Scale(0, limit)
    up = Scale(0, 1, height)
    short = short_names(order)
    courses = []
    ends = []
    for index, name in enumerate(order):
        if name not in runs:
            continue
        times, share = shares(runs[name])
        last = float(share[-1]) if len(share) else 0.0
        mark = line_mark(index)
        courses.append(Course(name, mark, _steps(times / hz, share, limit)))
        ends.append(up.down(last))
    labels = []
    for course, y, at in zip(courses, ends, spread(ends, LINE, height), strict=True):
        labels.append(Label(course.name, short[course.name], course.mark, 100, y, round(at, 1)))
    below = [Tick(across(number), f"{number:g}") for number in round_numbers(0, limit, 5)]
    beside = [Tick(up.down(number / 100), f"{number:g}") for number in round_numbers(0, 100)]
    return Reached(title, height, tuple(courses), tuple(labels), tuple(below), tuple(beside))


def _steps(seconds: np.ndarray, share: np.ndarray, limit: float) -> str:
    """A path that rises where an episode succeeds, in a square of UNITS."""
    path = f"M0 {UNITS}"
    for time, value in zip(seconds, share, strict=True):
        path += f"H{UNITS * time / limit:.0f}V{UNITS * (1 - value):.0f}"
    return f"{path}H{UNITS}"
