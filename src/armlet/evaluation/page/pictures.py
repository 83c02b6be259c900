"""Where the marks of the page's pictures stand: the forest of differences, success against time,
success against a budget, and heat maps. Across, places are % of a width that nobody knows before the
page is opened, so that a picture fits any screen and its words stay as large as they are; down, they
are pixels. Knows findings and rows; writes no HTML."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from armlet.evaluation.page.findings import (
    Finding,
    Group,
    findings,
    groups,
    mean_milliseconds,
    short_names,
)
from armlet.evaluation.speeds import computing, counts_motion, runtime_of, several_runtimes

Report = dict[str, Any]
Row = dict[str, Any]  # of one policy
HEIGHT = 300  # px of the plot, without its axes
LINE = 18  # px from one label to the next
# The colour and the shape of a mark, as the style sheet and the page's symbols call them. Both say
# the same, for those who cannot tell the colours apart.
MARKS = {
    "better": "better",
    "as good": "good",
    "worse": "worse",
    "undecided": "open",
    "not shown": "open",
    "not comparable": "other",
}
TEACHER = "teacher"
TALL = 18  # rows of a heat map, at most
STEPS = 5  # shades of a heat map, beside the empty one


@dataclass(frozen=True)
class Tick:
    """A number at an axis. `at`: % across, or pixels down."""

    at: float
    label: str


@dataclass(frozen=True)
class Scale:
    """Numbers → places, `low` at 0 and `high` at `length`."""

    low: float
    high: float
    length: float = 100.0

    def __call__(self, value: float) -> float:
        return round((value - self.low) / (self.high - self.low) * self.length, 2)

    def down(self, value: float) -> float:
        """The same from the top, as pixels are counted."""
        return round(self.length - self(value), 2)


def round_numbers(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` multiples of 1, 2 or 5 times a power of ten from `low` to `high`."""
    span = high - low
    power = 10.0 ** math.floor(math.log10(span / most))
    for factor in (1, 2, 5, 10, 20):
        step = factor * power
        first = math.ceil(low / step - 1e-9)
        last = math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [index * step for index in range(first, last + 1)]


def signed(value: float, digits: int | None = None) -> str:
    """With its sign, and a minus as long as the plus. `digits`: after the point; None: as many as
    it has."""
    text = f"{value:+g}" if digits is None else f"{value:+.{digits}f}"
    return text.replace("-", "−")


def spread(places: Sequence[float], gap: float, length: float) -> list[float]:
    """Places at least `gap` apart, in the same order, as near to those given as that allows and, if
    there is room, within 0 to `length`. `places` may stand in any order."""
    order = sorted(range(len(places)), key=places.__getitem__)
    found = list(places)
    lowest = 0.0
    for index in order:
        found[index] = max(found[index], lowest)
        lowest = found[index] + gap
    highest = max(length, (len(places) - 1) * gap)
    for index in reversed(order):
        found[index] = min(found[index], highest)
        highest = found[index] - gap
    return found


# --- the forest
# ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ForestRow:
    """A finding and where it stands, in % across."""

    finding: Finding
    mark: str
    at: float | None  # None, with `low` and `high`: there is nothing to draw
    low: float | None
    high: float | None
    margin: float  # where a policy would be worse by just the margin


@dataclass(frozen=True)
class Forest:
    """Findings on one axis of percentage points."""

    versus: str | None  # whom all are compared with; None: each row says it
    rows: tuple[ForestRow, ...]
    zero: float
    ticks: tuple[Tick, ...]
    margin: float  # of the first row, in points, for the legend


def forests(report: Report) -> list[Forest]:
    """What was compared with the teacher, then everything else; what is empty is left out."""
    teacher = report["policies"][0]["name"]
    first = [each for each in findings(report) if each.versus == teacher]
    others = [each for each in findings(report) if each.versus != teacher]
    found = []
    if first:
        found.append(_forest(teacher, first))
    if others:
        found.append(_forest(None, others))
    return found


def _forest(versus: str | None, found: list[Finding]) -> Forest:
    found = sorted(found, key=_best_first)
    ends = [0.0]
    for each in found:
        ends += [-100 * each.margin, 100 * (each.low or 0), 100 * (each.high or 0)]
    room = 0.06 * (max(ends) - min(ends))
    scale = Scale(min(ends) - room, max(ends) + room)
    rows = []
    for each in found:
        rows.append(
            ForestRow(
                finding=each,
                mark=MARKS[each.verdict],
                at=None if each.difference is None else scale(100 * each.difference),
                low=None if each.low is None else scale(100 * each.low),
                high=None if each.high is None else scale(100 * each.high),
                margin=scale(-100 * each.margin),
            )
        )
    ticks = []
    for number in round_numbers(scale.low, scale.high, 5):
        ticks.append(Tick(scale(number), signed(number) if abs(number) > 1e-9 else "0"))
    return Forest(versus, tuple(rows), scale(0), tuple(ticks), 100 * found[0].margin)


def _best_first(finding: Finding) -> float:
    """Where a finding is sorted; what cannot be compared comes last."""
    return math.inf if finding.difference is None else -finding.difference


# --- success against something
# ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dot:
    """A policy in a picture of success: `x` and `mean_x` in %, everything else in pixels."""

    name: str
    mark: str
    x: float
    y: float
    # The ends of its interval; None: it has none, and the spread of its seeds shows itself.
    low: float | None
    high: float | None
    mean: tuple[float, float] | None  # of a single seed: where the mean of all stands
    told: str  # what a pointer on it is told


@dataclass(frozen=True)
class Label:
    """A name beside the plot, and the dot it belongs to."""

    name: str
    short: str
    mark: str
    x: float
    y: float
    at: float  # px down: where the name stands


@dataclass(frozen=True)
class Plot:
    """A picture of success against something."""

    title: str  # of the axis below
    height: int
    dots: tuple[Dot, ...]  # faint ones first, so that they lie behind
    labels: tuple[Label, ...]
    across: tuple[Tick, ...]
    down: tuple[Tick, ...]
    teacher: float  # px down: the teacher's success
    joined: tuple[tuple[float, float], ...] = ()  # a line through these


@dataclass(frozen=True)
class Spot:
    """A policy to be drawn: numbers, not places yet."""

    name: str
    mark: str
    x: float
    rate: float  # share
    interval: tuple[float, float] | None
    seeds: tuple[tuple[str, float, float], ...] = ()  # of each its name, x and rate


def front(report: Report) -> Plot:
    """Success against milliseconds, of a second of motion where every row says them."""
    marks = {each.policy: MARKS[each.verdict] for each in reversed(findings(report))}
    spots = []
    for index, group in enumerate(groups(report)):
        mark = TEACHER if index == 0 else marks.get(group.name, "other")
        spots.append(_spot(report, group, mark))
    title = "milliseconds of computing per second of motion"
    if not counts_motion(report["policies"]):
        title = "milliseconds a decision (p50)"
    return _plot(spots, title, 0.0)


def _spot(report: Report, group: Group, mark: str) -> Spot:
    policies = report["policies"]
    if len(group.rows) == 1:
        [row] = group.rows
        low, high = row["ci95"]
        return Spot(group.name, mark, computing(row, policies), group.success, (low, high))
    seeds = []
    for row in group.rows:
        rate = row["successes"] / row["episodes"]
        seeds.append((row["name"], computing(row, policies), rate))
    mean = mean_milliseconds(report, group)
    # Of seeds and episodes; reports before version 4 have none.
    interval = None
    for row in report["seeds"]["policies"]:
        if row["name"] == group.name and "ci95" in row:
            interval = (row["ci95"][0], row["ci95"][1])
    return Spot(group.name, mark, mean, group.success, interval, tuple(seeds))


def dial(report: Report) -> Plot | None:
    """Success against the share of the backbone's FLOPs of the student with a dial, the other
    policies beside it; None where nobody has one, or nobody knows the FLOPs."""
    policies = [row for row in report["policies"] if row["flops"]["backbone"] is not None]
    turned = [row for row in policies if row.get("budget") is not None]
    if not turned:
        return None
    whole = report["policies"][0]["flops"]["backbone"]
    if whole is None:
        whole = max(row["flops"]["backbone"] for row in policies)
    spots = []
    for row in policies:
        mark = "dial" if row.get("budget") is not None else "other"
        if row is report["policies"][0]:
            mark = TEACHER
        low, high = row["ci95"]
        share = 100 * row["flops"]["backbone"] / whole
        rate = row["successes"] / row["episodes"]
        spots.append(Spot(row["name"], mark, share, rate, (low, high)))
    return _plot(spots, "share of the backbone's FLOPs, %", 0.0, join="dial")


def _plot(spots: list[Spot], title: str, left: float, join: str | None = None) -> Plot:
    """The places of all; `join`: the mark whose dots a line goes through."""
    height = max(HEIGHT, LINE * len(spots))
    furthest = max(max([spot.x, *(x for _, x, _ in spot.seeds)]) for spot in spots)
    rates = []
    for spot in spots:
        rates += [spot.rate, *(spot.interval or ()), *(rate for _, _, rate in spot.seeds)]
    # A little room around: rates near 100 % would else lie on the edge.
    room = max(0.01, 0.06 * (max(rates) - min(rates)))
    across = Scale(left, 1.04 * furthest)
    up = Scale(max(0.0, min(rates) - room), min(1.0, max(rates)) + room / 2, height)
    dots: list[Dot] = []
    for spot in spots:
        for name, x, rate in spot.seeds:
            mean = (across(spot.x), up.down(spot.rate))
            told = f"{name}: {100 * rate:.1f} %, {x:.2f}"
            dots.append(Dot(name, spot.mark, across(x), up.down(rate), None, None, mean, told))
    for spot in spots:
        low, high = spot.interval or (None, None)
        told = f"{spot.name}: {100 * spot.rate:.1f} %, {spot.x:.2f}"
        if spot.seeds:
            told += f"; mean of {len(spot.seeds)} seeds"
        dots.append(
            Dot(
                name=spot.name,
                mark=spot.mark,
                x=across(spot.x),
                y=up.down(spot.rate),
                low=None if low is None else up.down(low),
                high=None if high is None else up.down(high),
                mean=None,
                told=told,
            )
        )
    joined = []
    for spot in sorted(spots, key=lambda spot: spot.x):
        if spot.mark == join:
            joined.append((across(spot.x), up.down(spot.rate)))
    down = []
    for number in round_numbers(100 * up.low, min(100.0, 100 * up.high)):
        down.append(Tick(up.down(number / 100), f"{number:g}"))
    below = [Tick(across(number), f"{number:g}") for number in round_numbers(0, across.high, 5)]
    return Plot(
        title=title,
        height=height,
        dots=tuple(dots),
        labels=_labels(dots, height),
        across=tuple(below),
        down=tuple(down),
        teacher=up.down(spots[0].rate),
        joined=tuple(joined),
    )


def _labels(dots: list[Dot], height: float) -> tuple[Label, ...]:
    """A name for each dot that is not a single seed's."""
    named = [dot for dot in dots if dot.mean is None]
    # Of the same height, the one further right comes first: its line leaves the plot undisturbed.
    named.sort(key=lambda dot: (dot.y, -dot.x))
    short = short_names([dot.name for dot in dots if dot.mean is None])
    places = spread([dot.y for dot in named], LINE, height)
    found = []
    for dot, at in zip(named, places, strict=True):
        found.append(Label(dot.name, short[dot.name], dot.mark, dot.x, dot.y, round(at, 1)))
    return tuple(found)


# --- heat maps
# ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A place of a heat map. `shade`: 0 (nothing) to STEPS; None: there is no value."""

    text: str
    told: str
    shade: int | None


EMPTY = Cell("", "", None)


@dataclass(frozen=True)
class Heat:
    """A table whose cells are coloured: rows down, columns across."""

    what: str  # `failures` or `runs`: which colour
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    least: str  # what the empty shade means, and the fullest
    most: str


def heat(
    what: str,
    names: tuple[str, str],
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Cell]]],
    ends: tuple[str, str],
) -> Heat:
    """Turned so that the longer side goes down, as a telephone is narrow. `names` of (rows,
    columns)."""
    if len(columns) > len(rows):
        turned = []
        for index, column in enumerate(columns):
            turned.append((column, tuple(cells[index] for _, cells in rows)))
        across = tuple(name for name, _ in rows)
        return Heat(what, names[1], across, tuple(turned), *ends)
    kept = tuple((name, tuple(cells)) for name, cells in rows)
    return Heat(what, names[0], tuple(columns), kept, *ends)


def parts(picture: Heat) -> list[Heat]:
    """A long map as several of about the same length, which stand beside each other on a desk."""
    count = math.ceil(len(picture.rows) / TALL)
    length = math.ceil(len(picture.rows) / count)
    starts = range(0, len(picture.rows), length)
    return [replace(picture, rows=picture.rows[start : start + length]) for start in starts]


def successes(
    names: tuple[str, str],
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[tuple[int, int] | None]]],
) -> Heat:
    """A heat map of (successes, episodes): the more failures, the fuller the colour."""
    worst = 0.0
    for _, tallies in rows:
        for tally in tallies:
            if tally is not None:
                worst = max(worst, 1 - tally[0] / tally[1])
    shown = []
    for name, tallies in rows:
        cells = []
        for column, tally in zip(columns, tallies, strict=True):
            cells.append(EMPTY if tally is None else _success(f"{name}, {column}", tally, worst))
        shown.append((name, cells))
    return heat("failures", names, columns, shown, ("no failures", f"{100 * worst:.0f} %"))


def _success(where: str, tally: tuple[int, int], worst: float) -> Cell:
    right, of = tally
    share = right / of
    # Neither 100 nor 0 is written of a share that is not: 1999 of 2000 is 99.
    percent = round(100 * share) if right in (0, of) else min(99, max(1, round(100 * share)))
    return Cell(str(percent), f"{where}: {right} of {of}", _shade(1 - share, worst))


def _shade(value: float, most: float) -> int:
    """0 of nothing, then STEPS equal ones."""
    if value <= 0 or most <= 0:
        return 0
    return min(STEPS, 1 + int(STEPS * value / most))


def tasks(report: Report) -> Heat:
    """Recipes × tasks on the first split: an average can hide that one task makes all the
    difference."""
    names = list(report["policies"][0]["by_task"])
    rows = []
    for group in groups(report):
        rows.append((group.name, [group.tally("by_task", name) for name in names]))
    return successes(("policy", "task"), names, rows)


def splits(report: Report) -> Heat | None:
    """Recipes × splits; None where there is only one."""
    names = list(report["policies"][0]["by_split"])
    if len(names) < 2:
        return None
    rows = []
    for group in groups(report):
        rows.append((group.name, [group.tally("by_split", name) for name in names]))
    return successes(("policy", "split"), [name.replace("_", " ") for name in names], rows)


def late(report: Report) -> Heat | None:
    """Policies × slower computers, by the rule under which they act late."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    columns: dict[str, None] = {}  # in the order of the report
    for row in report["delayed"]:
        column = f"{row['slower']:g}×, {row['late']}"
        columns[column] = None
        found.setdefault(row["name"], {})[column] = (row["successes"], row["episodes"])
    if not found:
        return None
    names = list(columns)
    rows = [(name, [cells.get(column) for column in names]) for name, cells in found.items()]
    return successes(("policy", "computer and rule"), names, rows)


def listens(report: Report) -> Heat | None:
    """Policies × what was changed in what they see; None where nobody asked."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    changes: dict[str, None] = {}
    for row in report.get("listens", []):
        changes[row["change"]] = None
        found.setdefault(row["policy"], {})[row["change"]] = (row["successes"], row["episodes"])
    if not found:
        return None
    names = list(changes)
    rows = [(name, [cells.get(change) for change in names]) for name, cells in found.items()]
    return successes(("policy", "what was changed"), names, rows)


def layers(report: Report) -> Heat:
    """How often each layer runs, by its number in the network that a student was cut from."""
    depth = report["depth"]
    rows = []
    for group in groups(report):
        # Seeds that were cut alike are one row; of those that were not, each is one.
        cut = {tuple(row["routing"]["layers"]) for row in group.rows}
        if len(cut) == 1:
            rows.append((group.name, _layers(group.name, group.rows, depth)))
        else:
            rows += [(row["name"], _layers(row["name"], [row], depth)) for row in group.rows]
    numbers = [str(number) for number in range(depth)]
    return heat("runs", ("policy", "layer"), numbers, rows, ("never", "always"))


def _layers(name: str, seeds: Sequence[Row], depth: int) -> list[Cell]:
    """The mean of some policies that have the same layers."""
    cells = [EMPTY] * depth
    for index, number in enumerate(seeds[0]["routing"]["layers"]):
        share = sum(row["routing"]["activation"][index] for row in seeds) / len(seeds)
        told = f"{name}, layer {number}: runs in {share:.2f} of decisions"
        cells[number] = Cell(f"{share:.2f}".removesuffix(".00"), told, _shade(share, 1.0))
    return cells


def runtimes(report: Report) -> str:
    """Which runtimes there are, for the line under the pictures; nothing of one."""
    if not several_runtimes(report["policies"]):
        return ""
    return ", ".join(dict.fromkeys(map(runtime_of, report["policies"])))
