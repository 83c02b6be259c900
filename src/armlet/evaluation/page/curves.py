"""Loss curves and the map of what ran during a film, as paths of a picture. Knows reports; writes no
HTML."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from armlet.evaluation.page.findings import groups
from armlet.evaluation.page.pictures import LINE, Label, Scale, Tick, round_numbers, spread

Report = dict[str, Any]
HEIGHT = 260  # px of the plot of losses
ASIDE = ("step", "seconds", "learning_rate", "grad_norm")  # what a curve holds that is no loss
COLOURS = 6  # of lines; after these they have another stroke
STROKES = ("", "dashed", "dotted", "dash-dot")
UNITS = 1000  # the side of the square in which paths are drawn, whatever its size on the screen


@dataclass(frozen=True)
class Line:
    """One term of the loss over all stages. `mark`: how it looks."""

    term: str
    mark: str
    paths: tuple[str, ...]  # one a stage
    first: float
    last: float


@dataclass(frozen=True)
class Curves:
    """The losses of one policy's training. Places as in `pictures.Plot`."""

    name: str
    height: int
    lines: tuple[Line, ...]
    labels: tuple[Label, ...]
    across: tuple[Tick, ...]
    down: tuple[Tick, ...]
    left_out: tuple[str, ...]  # terms that are nowhere above 0, which a logarithm cannot show

    @property
    def paths(self) -> list[tuple[str, str]]:
        """What each path looks like, and the path."""
        return [(line.mark, path) for line in self.lines for path in line.paths]


def line_mark(index: int) -> str:
    """What the style sheet calls the line of this number: each looks otherwise, as long as there are
    strokes."""
    stroke = STROKES[index // COLOURS % len(STROKES)]
    return f"line-{index % COLOURS} {stroke}".rstrip()


def training(report: Report) -> list[Curves]:
    """One a policy that says how it was trained."""
    told = report.get("training") or {}
    return [_curves(name, stages) for name, stages in told.items()]


def _curves(name: str, stages: Sequence[dict[str, Any]]) -> Curves:
    points: dict[str, list[list[tuple[float, float]]]] = {}  # term → of each stage its points
    offset = 0
    for stage in stages:
        for term, values in stage.items():
            if term in ASIDE:
                continue
            steps = [offset + step for step in stage["step"]]
            positive = []
            for step, value in zip(steps, values, strict=True):
                if value is not None and math.isfinite(value) and value > 0:
                    positive.append((step, value))
            points.setdefault(term, []).append(positive)
        offset += stage["step"][-1] if stage["step"] else 0
    shown = {term: parts for term, parts in points.items() if any(parts)}
    left_out = tuple(term for term in points if term not in shown)
    values = [value for parts in shown.values() for part in parts for _, value in part]
    if not values:
        return Curves(name, HEIGHT, (), (), (), (), left_out)
    across = Scale(0, max(offset, 1))
    low = math.log10(min(values))
    high = max(math.log10(max(values)), low + 0.1)
    height = max(HEIGHT, LINE * len(shown))
    up = Scale(low, high, height)
    lines = []
    for index, (term, parts) in enumerate(shown.items()):
        lines.append(_line(term, index, parts, across, up))
    below = [Tick(across(number), f"{number:g}") for number in round_numbers(0, across.high, 4)]
    ends = []
    for line in lines:
        ends.append((line, up.down(math.log10(line.last))))
    places = spread([y for _, y in ends], LINE, height)
    labels = []
    for (line, y), at in zip(ends, places, strict=True):
        labels.append(Label(line.term, line.term, line.mark, 100, y, round(at, 1)))
    return Curves(name, height, tuple(lines), tuple(labels), tuple(below), _decades(up), left_out)


def _line(
    term: str, index: int, parts: list[list[tuple[float, float]]], across: Scale, up: Scale
) -> Line:
    paths = []
    for part in parts:
        places = []
        for step, value in part:
            x = across(step) * UNITS / 100
            y = up.down(math.log10(value)) * UNITS / up.length
            places.append(f"{x:.0f} {y:.0f}")
        if places:
            paths.append("M" + "L".join(places))
    flat = [value for part in parts for _, value in part]
    return Line(term, line_mark(index), tuple(paths), flat[0], flat[-1])


def _decades(up: Scale) -> tuple[Tick, ...]:
    """Powers of ten; with their double and fivefold where there are fewer than three."""
    for factors in ((1,), (1, 2, 5)):
        ticks = []
        for power in range(math.floor(up.low), math.ceil(up.high) + 1):
            for factor in factors:
                at = power + math.log10(factor)
                if up.low <= at <= up.high:
                    ticks.append(Tick(up.down(at), f"{factor * 10.0**power:g}"))
        if len(ticks) >= 3:
            break
    return tuple(ticks)


@dataclass(frozen=True)
class Lane:
    """One policy's row of the map: layers up, steps across. Paths in units of a step and a layer;
    `runs`: computed; `idle`: there, and not computed; neither where it was cut away."""

    name: str
    outcome: str
    runs: str
    idle: str
    drawn: bool  # False: another seed of the same recipe is, or nobody knows what ran


@dataclass(frozen=True)
class Episode:
    """A film and its map."""

    task: str
    seed: int
    video: str
    source: str | None  # None: it does not lie beside the report
    fps: int
    steps: int  # of the longest
    depth: int
    lanes: tuple[Lane, ...]
    ticks: tuple[Tick, ...]


def episodes(report: Report) -> list[Episode]:
    """One a film."""
    numbers = {row["name"]: row["routing"]["layers"] for row in report["policies"]}
    firsts = {group.rows[0]["name"] for group in groups(report)}
    found = []
    for film in report.get("rollouts", []):
        steps = max([1, *(policy["steps"] for policy in film["policies"])])
        lanes = []
        for policy in film["policies"]:
            lane = _lane(policy, numbers[policy["name"]], report["depth"])
            lanes.append(replace(lane, drawn=bool(policy["gates"]) and policy["name"] in firsts))
        across = Scale(0, steps)
        whole = [number for number in round_numbers(0, steps) if number == int(number)]
        ticks = [Tick(across(number), f"{number:g}") for number in whole]
        found.append(
            Episode(
                task=film["task"],
                seed=film["seed"],
                video=film["video"],
                source=film.get("source"),
                fps=film["fps"],
                steps=steps,
                depth=report["depth"],
                lanes=tuple(lanes),
                ticks=tuple(ticks),
            )
        )
    return found


def _lane(policy: dict[str, Any], numbers: Sequence[int], depth: int) -> Lane:
    runs: list[str] = []
    idle: list[str] = []
    for decision, gates in enumerate(policy["gates"]):
        left = decision * policy["execute"]
        wide = min(policy["execute"], max(policy["steps"] - left, 0))
        for number, gate in zip(numbers, gates, strict=True):
            # y grows downwards, and layer 0 is drawn at the bottom.
            square = f"M{left} {depth - 1 - number}h{wide}v1h-{wide}z"
            (runs if gate == "1" else idle).append(square)
    outcome = f"{'success' if policy['success'] else 'failure'}, {policy['steps']} steps"
    return Lane(policy["name"], outcome, "".join(runs), "".join(idle), drawn=True)
