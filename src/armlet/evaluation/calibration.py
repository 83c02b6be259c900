"""The longest `execute` of a policy that is non-inferior to its own: how it is chosen, calibration.json,
and what an evaluation takes from it.

A policy that looks again after four actions in place of two thinks half as often, and that is the
cheapest speed there is: a student is compared with a teacher that had it as well. It is chosen on
episodes of its own, never on those of a report. Knows counts and files; runs no policy.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from armlet.data.files import read_json, write_atomically
from armlet.evaluation import stats
from armlet.evaluation.figures import markdown_row, number, rate
from armlet.evaluation.settings import apart, seeds
from armlet.evaluation.stats import PairedComparison
from armlet.lineage import as_json, differences, summary
from armlet.measuring import Calibration
from armlet.recipe import Recipe
from armlet.rollout.pool import Contender
from armlet.seeds import check_calibration

VERSION = 1
FILE = "calibration.json"
AGAIN = "run `armlet calibrate` again: it keeps every episode that still holds"


@dataclass(frozen=True)
class Rate:
    """How a policy did with one number of actions."""

    execute: int
    successes: int
    episodes: int
    ci95: tuple[float, float]
    decisions_per_second: float | None  # in which the arm moved; None: it never did


@dataclass(frozen=True)
class Tried:
    """A longer `execute` against the policy's own, in the same episodes."""

    rate: Rate
    pair: PairedComparison  # longer − own
    confidence: float  # of the interval that decides
    lower: float  # its lower end
    non_inferior: bool  # it lies above −margin


@dataclass(frozen=True)
class Calibrated:
    """What was found of one policy."""

    name: str
    folder: str
    fingerprint: str
    chunk: int  # actions that it decides at a time: no longer `execute` is possible
    own: Rate
    tried: tuple[Tried, ...]  # in the order in which they were
    longest: int  # the one to take; its own where no longer one is shown to be non-inferior


@dataclass(frozen=True)
class CalibrationReport:
    """calibration.json."""

    benchmark: dict[str, Any]
    split: str
    seeds: tuple[int, int]  # of the first episode and of the last
    setting: Calibration
    policies: tuple[Calibrated, ...]
    fingerprint: dict[str, Any]
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        """As it stands in the file."""
        return as_json(asdict(self))


def search(
    values: Sequence[int], compare: Callable[[int], tuple[Rate, PairedComparison]], how: Calibration
) -> tuple[Tried, ...]:
    """Try longer numbers of actions, `values` in rising order. `compare`: one of them against the
    policy's own.

    `sequential` goes on for as long as non-inferiority is shown, each time at the full level. That
    is no repeated chance: a hypothesis is reached only when all before it were rejected, so that
    the probability of any false claim stays at 2.5 % (a fixed sequence: Maurer, Hothorn and
    Lehmacher 1995). `all` tries every value, and as any of them may then be taken, the level is
    divided by their number (Bonferroni).
    """
    every = how.order == "all"
    confidence = 1 - 0.05 / len(values) if every and values else 0.95
    found = []
    for value in values:
        rate_of_it, pair = compare(value)
        lower, _ = stats.newcombe_paired(
            pair.both, pair.only_a, pair.only_b, pair.neither, confidence=confidence
        )
        tried = Tried(rate_of_it, pair, confidence, lower, lower > -how.margin)
        found.append(tried)
        if not tried.non_inferior and not every:
            break
    return tuple(found)


def longest(own: int, tried: Sequence[Tried]) -> int:
    """The longest number of actions that is non-inferior; the policy's own where none is."""
    shown = [each.rate.execute for each in tried if each.non_inferior]
    return max(shown, default=own)


def values_for(own: int, chunk: int, how: Calibration) -> list[int]:
    """Numbers of actions that are tried for a policy, in rising order."""
    wanted = sorted(how.execute) if how.execute else range(own + 1, chunk + 1)
    return [value for value in wanted if own < value <= chunk]


# --- on disk


def write(path: Path, report: CalibrationReport) -> str:
    """The file, and a table beside it as calibration.md; returns the table."""
    write_atomically(path, json.dumps(report.to_json(), indent=1).encode())
    lines = table(report)
    write_atomically(path.with_suffix(".md"), lines.encode())
    return lines


def table(report: CalibrationReport) -> str:
    """Markdown: one row a number of actions of each policy, and what follows."""
    margin = 100 * report.setting.margin
    lines = [
        "| policy | execute | success | 95 % interval | decisions per second of motion "
        f"| against its own | lower end − {margin:g} pp margin |",
        "|---|---|---|---|---|---|---|",
    ]
    ends = []
    for policy in report.policies:
        lines.append(_row(policy.name, policy.own, "", "its own"))
        for tried in policy.tried:
            against = f"{100 * tried.pair.difference:+.1f} pp"
            shown = "non-inferior" if tried.non_inferior else "not shown"
            verdict = f"{100 * tried.lower:+.1f} pp at {100 * tried.confidence:.4g} %: {shown}"
            lines.append(_row(policy.name, tried.rate, against, verdict))
        end = f"- {policy.name}: execute {policy.longest}"
        if policy.longest == policy.own.execute:
            end += ", its own: no longer one is shown to be non-inferior"
        ends.append(end)
    first, last = report.seeds
    n = report.setting.episodes
    about = f"{n} paired episodes of `{report.split}`, seeds {first} to {last}."
    return "\n".join([*lines, "", about, "", *ends]) + "\n"


def _row(name: str, found: Rate, against: str, verdict: str) -> str:
    counted = {
        "successes": found.successes,
        "episodes": found.episodes,
        "ci95": found.ci95,
    }
    asked = number(found.decisions_per_second, 2)
    return markdown_row([name, str(found.execute), rate(counted), asked, against, verdict])


def longest_rows(recipe: Recipe, field: Mapping[str, Contender]) -> dict[str, Contender]:
    """Each policy once more with the longest `execute` that was found for it, where calibration.json
    lies in `out`; `NAME execute N`. `field`: the policies as they are, the teacher first.

    Raises ValueError, saying what differs, where the file was made from another teacher or student,
    in another world, or in episodes that this evaluation is about.
    """
    path = recipe.out / FILE
    if not path.is_file() or recipe.benchmark is None:
        return {}
    said = read_json(path, fix=AGAIN)
    if said.get("version") != VERSION:
        raise ValueError(f"{path} has version {said.get('version')!r}, expected {VERSION}; {AGAIN}")
    world = as_json(recipe.benchmark.fingerprint())
    differing = differences(said["benchmark"], world)
    if differing:
        raise ValueError(f"{path} was made in another world ({summary(differing)}); {AGAIN}")
    first, last = said["seeds"]
    # The file's own seeds: calibrate may have been given others than this recipe says.
    chosen_on = range(first, last + 1)
    check_calibration(chosen_on, str(path))
    ranges = {"evaluation": seeds(recipe)["evaluation"], str(path): chosen_on}
    apart("evaluation", ranges)
    entries = {entry["name"]: entry for entry in said["policies"]}
    required = {"teacher", recipe.name}
    found = {}
    for name, contender in field.items():
        plain = contender == Contender(contender.folder)
        if not plain:
            continue
        entry = entries.get(name)
        if entry is None and name in required:
            raise ValueError(
                f"{path} knows no policy {name!r}, only {', '.join(entries)}; it would be compared "
                f"with policies that were given their longest `execute`. {AGAIN}, or delete the file"
            )
        if entry is None:
            sys.stderr.write(
                f"evaluate {recipe.name}: {path} knows no policy {name!r}, which has no row with "
                f"its longest `execute`; {AGAIN} with the same --policies\n"
            )
            continue
        now = contender.fingerprint
        if entry["fingerprint"] != now:
            raise ValueError(
                f"{path} was made from another {name!r}: fingerprint {entry['fingerprint'][:12]} of "
                f"{entry['folder']}, and {contender.folder} has {now[:12]}; {AGAIN}, or delete the "
                "file"
            )
        if entry["longest"] != entry["own"]["execute"]:
            value = entry["longest"]
            found[f"{name} execute {value}"] = replace(contender, execute=value)
    return found
