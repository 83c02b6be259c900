"""How often the 95 % interval over training seeds holds the true difference, by simulation.

    python bench/intervals.py [--times 3000] [--out docs/machinery/coverage.json]

An episode has a difficulty that all policies meet, a student has a skill that its seed gave it, and
it succeeds with probability Φ(mean + skill + difficulty): students and episodes are crossed, as in
an evaluation. For rates of success of two recipes, how much seeds differ and how many there are of
each, it says how often the interval of `compare_seeds` holds the difference of the rates, and how
wide it is, for the interval of today and for the one before version 4 of the report. Writes a JSON
file, and beside dev/LOG.md a table.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import tyro
from scipy.special import ndtr, ndtri

from armlet.evaluation.stats import compare_seeds

DIFFICULTY = 1.5  # standard deviation over episodes, on the probit's scale
RATES = ((0.98, 0.96), (0.97, 0.90), (0.85, 0.80))
SPREADS = (0.05, 0.2, 0.5)  # of skill over seeds, on the probit's scale
COUNTS = ((5, 5), (8, 8), (12, 12), (5, 3), (3, 3), (5, 1), (8, 1))  # students of each side
METHODS = ("mover", "satterthwaite")


@dataclasses.dataclass
class Arguments:
    times: int = 3000
    """Simulated evaluations of each case."""
    episodes: int = 400
    out: Path = Path("docs/machinery/coverage.json")
    table: Path = Path("dev/coverage.md")


def students(rng, rate: float, spread: float, count: int, hard: np.ndarray) -> np.ndarray:
    """Outcomes (count, n) of students that succeed in `rate` of all episodes, on average over
    seeds: Φ(m/√(1 + difficulty² + spread²)) is the mean of Φ(m + skill + difficulty)."""
    mean = ndtri(rate) * np.sqrt(1 + DIFFICULTY**2 + spread**2)
    skill = rng.normal(0, spread, (count, 1))
    return rng.random((count, len(hard))) < ndtr(mean + skill + hard)


def points(rate: float, spread: float) -> float:
    """The standard deviation of the rate of success over seeds, in points."""
    skill = np.random.default_rng(0).normal(0, spread, 20_000)
    mean = ndtri(rate) * np.sqrt(1 + DIFFICULTY**2 + spread**2)
    return float(100 * ndtr((mean + skill) / np.sqrt(1 + DIFFICULTY**2)).std())


def case(rates, spread: float, counts, arguments: Arguments) -> dict:
    """Coverage and mean width of one case, of both intervals on the same simulated outcomes."""
    rng = np.random.default_rng(0)
    held = dict.fromkeys(METHODS, 0)
    width = dict.fromkeys(METHODS, 0.0)
    for _ in range(arguments.times):
        hard = rng.normal(0, DIFFICULTY, arguments.episodes)
        sides = []
        for rate, count in zip(rates, counts, strict=True):
            # A side of one is a policy that is given: its rate is what it is.
            own = spread if count > 1 else 0.0
            sides.append(students(rng, rate, own, count, hard))
        for method in METHODS:
            low, high = compare_seeds(*sides, method=method).ci95
            held[method] += low <= rates[0] - rates[1] <= high
            width[method] += 100 * (high - low)
    return {
        "rates": rates,
        "seeds": counts,
        "sd_points": [points(rate, spread) for rate in rates],
        "coverage": {method: held[method] / arguments.times for method in METHODS},
        "width_points": {method: width[method] / arguments.times for method in METHODS},
    }


def table(cases: list[dict], arguments: Arguments) -> str:
    """Markdown, one row a case."""
    lines = [
        "# How often the interval over seeds holds",
        "",
        f"Of a stated 95 %, {arguments.times:,} simulated evaluations a row of "
        f"{arguments.episodes} episodes each: `python bench/intervals.py`. `mover` is today's; "
        "`satterthwaite` stood in reports before version 4.",
        "",
        "| rates | seeds | differ by (sd, points) | mover | satterthwaite | width, points | before |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in cases:
        one, other = each["rates"]
        mine, theirs = each["seeds"]
        spread, beside = each["sd_points"]
        held = each["coverage"]
        width = each["width_points"]
        lines.append(
            f"| {100 * one:.0f} %, {100 * other:.0f} % | {mine}, {theirs} "
            f"| {spread:.1f}, {beside:.1f} | {100 * held['mover']:.1f} % "
            f"| {100 * held['satterthwaite']:.1f} % | {width['mover']:.1f} "
            f"| {width['satterthwaite']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Arguments) -> None:
    cases = []
    for counts in COUNTS:
        for rates in RATES:
            for spread in SPREADS:
                cases.append(case(rates, spread, counts, arguments))
    least = {method: min(each["coverage"][method] for each in cases) for method in METHODS}
    result = {
        "times": arguments.times,
        "episodes": arguments.episodes,
        "least": least,
        "cases": cases,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    arguments.table.write_text(table(cases, arguments))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
