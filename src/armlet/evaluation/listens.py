"""What policies listen to, in numbers and words: success, or error, with one input changed at a time,
against the same policy as it is; and audit.json, in which that stands. Pure functions of outcomes;
knows no policy and no world.

A change costs success only where the input is listened to. That no loss is shown says less: at n
episodes a small one cannot be seen, and an input may be listened to and not needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from armlet.data.files import read_json
from armlet.evaluation import stats
from armlet.robot.tables import read_once

Section = dict[str, Any]  # a part of report.json
AS_IS = "as is"
KIND = "audit"  # by which an audit.json is told from other files
VERSION = 1
NEEDED = ("world", "split", "listens", "left_out", "episodes", "outcomes")


@dataclass(frozen=True)
class LeftOut:
    """A change that was not run, since it would have had no effect or could not be made."""

    policy: str
    of: str  # which input: words, camera NAME, state, previous action
    change: str
    why: str


@dataclass(frozen=True)
class ListenRun:
    """One policy in the episodes of an audit with one input changed, or as it is. `episodes`: their
    numbers in the audit's plan, all of them where nothing is changed."""

    policy: str
    of: str  # which input; empty: none, as it is
    change: str
    episodes: tuple[int, ...]
    success: tuple[bool, ...]

    def to_json(self) -> Section:
        """As it is kept: `success` is a text of 1 and 0, one an episode."""
        return {
            "policy": self.policy,
            "of": self.of,
            "change": self.change,
            "episodes": list(self.episodes),
            "success": "".join(map(str, map(int, self.success))),
        }

    @classmethod
    def from_json(cls, said: Section) -> Self:
        """The inverse of `to_json`. Raises KeyError or TypeError for what is missing or garbled."""
        success = said["success"]
        if set(success) - {"0", "1"}:
            raise TypeError(f"success is a text of 0 and 1, found {sorted(set(success))}")
        return cls(
            policy=said["policy"],
            of=said["of"],
            change=said["change"],
            episodes=tuple(said["episodes"]),
            success=tuple(bit == "1" for bit in success),
        )

    def __post_init__(self) -> None:
        if len(self.episodes) != len(self.success):
            raise ValueError(
                f"{self.policy} {self.change}: {len(self.success)} outcomes of "
                f"{len(self.episodes)} episodes"
            )


def rows(runs: Sequence[ListenRun]) -> list[Section]:
    """The report's `listens`: a row a policy and change, each compared with the policy as it is in
    the same episodes. Raises ValueError where a policy was not run as it is."""
    as_is = {run.policy: run for run in runs if run.change == AS_IS}
    found = []
    for run in runs:
        if run.policy not in as_is:
            raise ValueError(
                f"{run.policy} was run with {run.change} and not as it is; there is nothing to "
                "compare it with"
            )
        found.append(_row(run, as_is[run.policy]))
    return found


def _row(run: ListenRun, before: ListenRun) -> Section:
    successes = sum(run.success)
    low, high = stats.rate_ci95(successes, len(run.success))
    row: Section = {
        "policy": run.policy,
        "of": run.of,
        "change": run.change,
        "successes": successes,
        "episodes": len(run.success),
        "success": successes / len(run.success),
        "low": low,
        "high": high,
    }
    if run is before:
        return row
    own = dict(zip(before.episodes, before.success, strict=True))
    as_it_is = np.array([own[number] for number in run.episodes], bool)
    pair = stats.compare_paired(np.array(run.success, bool), as_it_is)
    return {
        **row,
        "difference": pair.difference,
        "difference_low": pair.ci95[0],
        "difference_high": pair.ci95[1],
        "mcnemar_p": pair.mcnemar_p,
    }


# --- audit.json


def is_audit(path: Path) -> bool:
    """Whether a file is an audit.json of policies that acted in a world; what is wrong with a file
    is said by who reads it."""
    try:
        said = read_once(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and said.get("kind") == KIND


def read(path: Path) -> Section:
    """An audit.json. Raises ValueError naming the file, and what it lacks."""
    said = read_json(path, fix="run `armlet audit` again: it keeps every episode that still holds")
    if said.get("kind") != KIND or said.get("version") != VERSION:
        raise ValueError(
            f"{path} is of kind {said.get('kind')!r} and version {said.get('version')!r}, expected "
            f"{KIND!r} and {VERSION}; did another armlet write it?"
        )
    missing = [name for name in NEEDED if name not in said]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; was it changed by hand?")
    return said


def recompute(said: Section) -> list[Section]:
    """The rows of an audit.json from the outcomes of its single episodes."""
    return rows([ListenRun.from_json(each) for each in said["outcomes"]])


def page(said: Section) -> str:
    """audit.md, from audit.json."""
    episodes = said["episodes"]
    left_out = [LeftOut(**each) for each in said["left_out"]]
    head = (
        f"Each policy in {len(episodes)} episodes of {said['world']} ({said['split']}), seeds "
        f"{episodes[0][-1]:,} to {episodes[-1][-1]:,}, as it is and with one input changed at a "
        "time."
    )
    return f"{head}\n\n{table(said['listens'], left_out)}"


# --- in words


def table(listens: Sequence[Section], left_out: Sequence[LeftOut] = ()) -> str:
    """Markdown: one row a change and one column a policy, then what each policy listens to, and
    what was not run."""
    parts = [success_lines(listens)]
    for policy in policies_of(listens):
        parts.append(sentences(policy, listens))
    parts.append([f"- {said(each)}" for each in left_out])
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def policies_of(listens: Sequence[Section]) -> list[str]:
    """Each once, in their order."""
    return list(dict.fromkeys(row["policy"] for row in listens))


def success_lines(listens: Sequence[Section]) -> list[str]:
    """A row a change: success in %, its interval, and how far that is from the policy as it is."""
    policies = policies_of(listens)
    counts = [row["episodes"] for row in listens]
    # Where all are of as many episodes that is said once.
    whole = f"success of {counts[0]}" if len(set(counts)) == 1 else "success"
    lines = [
        "| changed | " + " | ".join(f"{name}: {whole} (95 %)" for name in policies) + " |",
        "|---" * (len(policies) + 1) + "|",
    ]
    cells = {}
    for row in listens:
        cells[row["policy"], row["change"]] = _cell(row, counted=len(set(counts)) > 1)
    for change in dict.fromkeys(row["change"] for row in listens):
        said_of = [cells.get((name, change), "–") for name in policies]
        lines.append("| " + " | ".join([change, *said_of]) + " |")
    return lines


def _cell(row: Section, *, counted: bool) -> str:
    share = f"{100 * row['success']:.0f} %"
    if counted:
        share += f" of {row['episodes']}"
    return f"{share} ({100 * row['low']:.0f}–{100 * row['high']:.0f})"


def sentences(policy: str, listens: Sequence[Section]) -> list[str]:
    """What a policy listens to: a sentence for what costs success, one for what is not shown to."""
    heard = []
    unheard = []
    better = []
    for row in listens:
        if row["policy"] != policy or row["change"] == AS_IS:
            continue
        if row["difference_high"] < 0:
            heard.append(f"{row['change']} {_points(row)}")
        elif row["difference_low"] > 0:
            better.append(f"{row['change']} {_points(row)}")
        else:
            unheard.append(f"{row['change']} {_points(row)}")
    lines = []
    if heard:
        lines.append(f"- **{policy} listens to** what costs it success: {'; '.join(heard)}.")
    if unheard:
        lines.append(f"- {policy}: no loss is shown with {'; '.join(unheard)}.")
    if better:
        lines.append(f"- {policy} does better without: {'; '.join(better)}.")
    return lines


def _points(row: Section) -> str:
    ends = f"{100 * row['difference_low']:+.0f} to {100 * row['difference_high']:+.0f}"
    return f"({100 * row['difference']:+.0f} points, {ends})".replace("-", "−")


def said(each: LeftOut) -> str:
    """Why a change was not run, in one line."""
    # A reason may have lines of its own, which would end the list that it stands in.
    return f"{each.policy}, {each.change}: not run, {' '.join(each.why.split())}"
