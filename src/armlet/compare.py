"""compare: the policies of two reports, in the episodes that both met → a verdict a pair.

    armlet compare A/report.json B/report.json

Two reports can be compared where the same world was met in the same episodes by the first split's
plan: then outcomes are paired episode by episode, from the outcomes that lie beside each report, and
it is as if the policies had been in one evaluation. Where they cannot, the verdict is "not
comparable" and says why; it is never a comparison of two rates from different episodes. Knows
reports; runs no policy.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from armlet.evaluation import outcomes as kept
from armlet.evaluation import report as evaluation
from armlet.evaluation.offline_report import is_offline
from armlet.evaluation.outcomes import Outcomes, Planned
from armlet.evaluation.verdicts import Verdict, judge, not_comparable
from armlet.lineage import differences, summary
from armlet.seeds import said

MARGIN = 0.03


@dataclass(frozen=True)
class Side:
    """One of the two reports."""

    path: Path
    report: dict[str, Any]
    outcomes: Outcomes | None  # None: a report from before they were kept

    @property
    def names(self) -> list[str]:
        """The recipes, and policies that stand alone."""
        if self.outcomes is None:
            return [row["name"] for row in self.report["policies"]]
        return list(kept.together(self.outcomes, self.outcomes.splits[0]))


def main(
    one: Path,
    other: Path,
    /,
    *,
    policy: str | None = None,
    versus: str | None = None,
    margin: float = MARGIN,
) -> str:
    """Compare policies of one report with those of another; returns a verdict a line. `one`, `other`:
    report.json, or folders that hold one. `policy`: of the first report, every one but its teacher
    if not given; `versus`: of the second, likewise. `margin`: of "as good as", a share."""
    if not 0 < margin < 1:
        raise ValueError(f"--margin is {margin}, expected a share above 0 and below 1: 0.03")
    first = read(one)
    second = read(other)
    found = compare(first, second, policy=policy, versus=versus, margin=margin)
    return "\n".join(verdict.sentence for verdict in found)


def read(path: Path) -> Side:
    """A report with its outcomes. Raises FileNotFoundError or ValueError naming the file."""
    path = path / "report.json" if path.is_dir() else path
    if is_offline(path):
        raise ValueError(
            f"{path} compares with held-out episodes: nothing acted, so there are no outcomes to "
            "pair; `armlet report` shows it"
        )
    report = evaluation.read(path)
    return Side(path, report, evaluation.outcomes_of(report, path))


def compare(
    first: Side, second: Side, *, policy: str | None, versus: str | None, margin: float = MARGIN
) -> list[Verdict]:
    """Every policy of the first report against every one of the second; one verdict, on the reports,
    where these cannot be compared."""
    names = _asked(first, policy, "--policy")
    others = _asked(second, versus, "--versus")
    reason = why_not(first, second)
    if reason or first.outcomes is None or second.outcomes is None:
        return [not_comparable(str(first.path), str(second.path), reason, margin)]
    found = []
    for name in names:
        for against in others:
            a, b = paired(first.outcomes, second.outcomes, name, against)
            # Both may call theirs the same: which report it is of tells them apart.
            mine = f"{name} ({first.path})"
            theirs = f"{against} ({second.path})"
            found.append(judge(mine, theirs, a, b, margin))
    return found


def _asked(side: Side, name: str | None, option: str) -> list[str]:
    names = side.names
    if name is None:
        # Teachers are compared only where nobody else is there, or where it is asked for.
        return names[1:] or names
    if name not in names:
        raise ValueError(f"{option} {name}: {side.path} has {', '.join(names)}")
    return [name]


def why_not(first: Side, second: Side) -> str:
    """Why two reports cannot be compared, in a clause; empty where they can."""
    if first.outcomes is None or second.outcomes is None:
        path = first.path if first.outcomes is None else second.path
        return f"{path} keeps no outcomes of single episodes, as reports of version 1 do not"
    worlds = [side.report["fingerprint"].get("benchmark") for side in (first, second)]
    if None in worlds:
        return "one of them does not say which world it was run in"
    differing = differences(*worlds)
    if differing:
        return f"they were run in other worlds ({summary(differing)})"
    splits = (first.outcomes.splits[0], second.outcomes.splits[0])
    if splits[0] != splits[1]:
        return f"one is about the split {splits[0]}, the other about {splits[1]}"
    return _other_episodes(first.outcomes, second.outcomes)


def _other_episodes(first: Outcomes, second: Outcomes) -> str:
    """Why two did not meet the same episodes; empty where all of one's are the other's, too."""
    if (first.limit, first.hz) != (second.limit, second.hz):
        return (
            f"an episode ends after {first.limit} steps at {first.hz:g} Hz in one, and after "
            f"{second.limit} at {second.hz:g} Hz in the other"
        )
    mine = episodes(first)
    theirs = episodes(second)
    shared = sum(episode in theirs for episode in mine)
    smaller = min(len(mine), len(theirs))
    if shared == smaller:
        return ""
    # A part of both would be one that somebody chose.
    return (
        f"they share {shared:,} of {smaller:,} episodes: seeds {_seeds(first)} and "
        f"{_seeds(second)}, {len(mine):,} and {len(theirs):,} episodes"
    )


def episodes(outcomes: Outcomes) -> dict[Planned, int]:
    """The first split's episodes, and which row of its outcomes each is."""
    found = {}
    for row, number in enumerate(outcomes.rows_of(outcomes.splits[0])):
        found[outcomes.episodes[number]] = row
    return found


def _seeds(outcomes: Outcomes) -> str:
    seeds = [episode.seed for episode in episodes(outcomes)]
    return said(range(min(seeds), max(seeds) + 1))


def paired(
    first: Outcomes, second: Outcomes, name: str, against: str
) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes (s, n) and (s', n) of the two in the episodes that both met, in one order."""
    mine = episodes(first)
    theirs = episodes(second)
    shared = [episode for episode in mine if episode in theirs]
    a = kept.together(first, first.splits[0])[name]
    b = kept.together(second, second.splits[0])[against]
    rows = [mine[episode] for episode in shared]
    others = [theirs[episode] for episode in shared]
    return a[:, rows], b[:, others]
