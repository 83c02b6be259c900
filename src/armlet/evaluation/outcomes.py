"""What happened in every single episode of an evaluation, kept beside its report; and every count,
interval and comparison of the report as a function of it.

    outcomes = outcomes.read(Path("evaluation/outcomes.json.gz"))
    outcomes.recompute(outcomes)["pairs"] == report["pairs"]

`armlet evaluate` makes its report by calling `recompute`, so a reader who calls it on the stored
file gets the same numbers, those of the bootstrap included (its seeds are fixed). The file is JSON,
compressed, of a few bytes an episode:

    version    1, 2 where students are said to be seeds of one recipe, 3 with `listens`
    hz, limit  control steps a second; the step at which an episode ends without success
    episodes   [[split, family, task, seed], …]: the n episodes that every policy met, in the order
               of the plan
    policies   [{name, fingerprint, execute, layer_costs, routes, success, steps, decisions, waited,
               toggles}, …], the first is the one that others are compared with; `success` is a text
               of n characters, 1 or 0; the lists have n numbers; `guarded`, one more, only where a
               policy acts behind a guard
    listened   [[split, family, task, seed], …]: the episodes in which it was found out what policies
               listen to; this and the next only where it was
    listens    [{policy, of, change, episodes, success}, …]: with one input changed, or as it is;
               `episodes` are numbers of the list before, `success` is a text of as many characters
    delayed    [{policy, slower, late, delay_ms, lag_steps, success, …}, …]: the same policies
               acting late, in the episodes of the first split only

This file knows no policy, no world and no torch.
"""

import gzip
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from armlet.data.bounded import unpacked
from armlet.data.files import write_atomically
from armlet.evaluation import listens, stats
from armlet.evaluation.listens import ListenRun
from armlet.robot.tables import read_once

# 1 had no `seeds_of`, 2 no `listens`; a file without them is still written as 1 or 2.
VERSION = 3
VERSIONS = (1, 2, 3)
REPORT = 4  # the report's version, whose sections are computed here
Section = dict[str, Any]  # a part of report.json
Value = TypeVar("Value")


@dataclass(frozen=True)
class Planned:
    """One episode that was fixed in advance, before any policy was run."""

    split: str  # the condition it is run under
    family: str  # the kind of task
    task: str
    seed: int  # of its world


@dataclass(frozen=True)
class Run:
    """What one policy did in n episodes, one entry an episode."""

    success: tuple[bool, ...]
    steps: tuple[int, ...]  # control steps until success or the limit, those of waiting included
    decisions: tuple[int, ...]  # how often the policy was asked
    waited: tuple[int, ...]  # steps in which the arm held still because no action was there
    # How often the gripper was sent the other way; None: no gripper.
    toggles: tuple[int, ...] | None
    # Control steps in which a guard intervened; None: without one.
    guarded: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.success)

    def only(self, rows: Sequence[int]) -> "Run":
        """The same for some of the episodes."""
        return Run(
            success=_at(self.success, rows),
            steps=_at(self.steps, rows),
            decisions=_at(self.decisions, rows),
            waited=_at(self.waited, rows),
            toggles=None if self.toggles is None else _at(self.toggles, rows),
            guarded=None if self.guarded is None else _at(self.guarded, rows),
        )


def _at(values: tuple[Value, ...], rows: Sequence[int]) -> tuple[Value, ...]:
    return tuple(values[row] for row in rows)


@dataclass(frozen=True)
class PolicyRun:
    """One policy in all episodes."""

    name: str
    fingerprint: str
    execute: int  # actions carried out before it looks again
    layer_costs: tuple[float, ...]  # (l,) what each layer costs, relative to the others
    # How often each set of layers ran in the first split's decisions; a set is a text of l
    # characters, 1: the layer ran, 0: it was skipped.
    routes: dict[str, int]
    run: Run
    # What the students are called together of which this is one seed, by what they say of how they
    # were made; None: it says nothing, or it is alone.
    seeds_of: str | None = None


@dataclass(frozen=True)
class DelayedRun:
    """A policy whose actions come late, in the first split's episodes."""

    policy: str
    slower: float  # how many times slower than here the computer was taken to be
    late: str  # the controller's rule for the time of a decision (`rollout.Late`)
    delay_ms: float  # a decision's p50 here times `slower`
    lag_steps: int  # that in control steps
    run: Run


@dataclass(frozen=True)
class Outcomes:
    """Everything that a report's success rates are computed from. Raises ValueError where a run has
    not one entry an episode."""

    hz: float
    limit: int
    episodes: tuple[Planned, ...]
    policies: tuple[PolicyRun, ...]
    delayed: tuple[DelayedRun, ...] = ()
    # Of what policies listen to, in episodes of its own.
    listened: tuple[Planned, ...] = ()
    listens: tuple[ListenRun, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("hz", self.hz), ("limit", self.limit)):
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"outcomes: {name} is {value!r}, expected more than 0")
        known = {policy.name for policy in self.policies}
        for policy in self.policies:
            _check_lengths(policy.name, policy.run, len(self.episodes))
        first = len(self.rows_of(self.splits[0])) if self.episodes else 0
        for late in self.delayed:
            if late.policy not in known:
                raise ValueError(
                    f"outcomes: {late.policy!r} acted late, and is none of the policies {sorted(known)}"
                )
            called = f"{late.policy} {late.slower:g}× slower, {late.late}"
            _check_lengths(called, late.run, first)
        for run in self.listens:
            beyond = [number for number in run.episodes if not 0 <= number < len(self.listened)]
            if beyond:
                raise ValueError(
                    f"outcomes of {run.policy!r} with {run.change}: there is no episode "
                    f"{beyond[0]}, {len(self.listened)} were planned"
                )

    @property
    def splits(self) -> tuple[str, ...]:
        """In the order in which they were asked for."""
        # A dict and not a set: it keeps the order, and the first split is the one reported.
        return tuple(dict.fromkeys(episode.split for episode in self.episodes))

    def rows_of(self, split: str) -> list[int]:
        """The numbers of one split's episodes."""
        rows = []
        for row, episode in enumerate(self.episodes):
            if episode.split == split:
                rows.append(row)
        return rows

    def successes(self, split: str) -> dict[str, np.ndarray]:
        """Policy → in which of one split's m episodes it succeeded, (m,) bool."""
        rows = self.rows_of(split)
        found = {}
        for policy in self.policies:
            found[policy.name] = np.array(_at(policy.run.success, rows), bool)
        return found


def _check_lengths(name: str, run: Run, n: int) -> None:
    """Raises ValueError where a run has not `n` entries of everything."""
    columns: dict[str, Sequence[Any]] = {
        "success": run.success,
        "steps": run.steps,
        "decisions": run.decisions,
        "waited": run.waited,
    }
    if run.toggles is not None:
        columns["toggles"] = run.toggles
    if run.guarded is not None:
        columns["guarded"] = run.guarded
    for column, values in columns.items():
        if len(values) != n:
            raise ValueError(
                f"outcomes of {name!r}: {column} has {len(values)} entries, expected {n}, "
                "one an episode"
            )


# --- on disk
# ------------------------------------------------------------------------------------------------


def to_bytes(outcomes: Outcomes) -> bytes:
    """The file's content: the same bytes for the same outcomes, whenever they are written."""
    # A file in which nobody has `seeds_of` is one of version 1, byte for byte.
    grouped = any(policy.seeds_of is not None for policy in outcomes.policies)
    value = {
        "version": 2 if grouped else 1,
        "hz": outcomes.hz,
        "limit": outcomes.limit,
        "episodes": _listed(outcomes.episodes),
        "policies": list(map(_flat, outcomes.policies)),
        "delayed": list(map(_flat, outcomes.delayed)),
    }
    if outcomes.listens:
        value["version"] = VERSION
        value["listened"] = _listed(outcomes.listened)
        value["listens"] = [run.to_json() for run in outcomes.listens]
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    # gzip writes the time into its header otherwise, and the sha256 would differ.
    return gzip.compress(text.encode(), mtime=0)


def from_bytes(content: bytes, *, source: str = "outcomes") -> Outcomes:
    """The inverse of `to_bytes`. Raises ValueError naming `source` and what is wrong with it."""
    try:
        value = read_once(unpacked(content))
    except ValueError as error:
        raise ValueError(
            f"{source} is not compressed JSON ({error}); was it cut short? "
            "Run `armlet evaluate` again"
        ) from error
    found = value.get("version") if isinstance(value, dict) else None
    if found not in VERSIONS:
        raise ValueError(
            f"{source} has version {found!r}, expected one of {VERSIONS}; was it written by a newer "
            "armlet?"
        )
    try:
        policies = []
        for entry in value["policies"]:
            fields = _fields(entry)
            fields["layer_costs"] = tuple(entry["layer_costs"])  # JSON knows lists only
            policies.append(PolicyRun(**fields))
        return Outcomes(
            hz=value["hz"],
            limit=value["limit"],
            episodes=tuple(Planned(*entry) for entry in value["episodes"]),
            policies=tuple(policies),
            delayed=tuple(DelayedRun(**_fields(entry)) for entry in value["delayed"]),
            listened=tuple(Planned(*entry) for entry in value.get("listened", [])),
            listens=tuple(map(ListenRun.from_json, value.get("listens", []))),
        )
    # A field that is missing, or one too many for the constructors: cut or changed by hand.
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{source} lacks or garbles a field ({error}); it was not written by `armlet evaluate`"
        ) from error


def write(path: Path, outcomes: Outcomes) -> str:
    """Write the file, whole or not at all; returns the sha256 of its content, which the report
    keeps."""
    content = to_bytes(outcomes)
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()


def read(path: Path, *, sha256: str | None = None) -> Outcomes:
    """Read the file. `sha256`: what its report says of it. Raises FileNotFoundError or ValueError
    naming the file."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; `armlet evaluate` writes it beside report.json"
        )
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise ValueError(
            f"{path} is not the one its report was made from: sha256 {found[:12]}…, "
            f"expected {sha256[:12]}…; put that one beside the report, or move this one away"
        )
    return from_bytes(content, source=str(path))


def _listed(episodes: Sequence[Planned]) -> list[list[Any]]:
    """Lists without names: of thousands of episodes the names would be most of the file."""
    return [[each.split, each.family, each.task, each.seed] for each in episodes]


def _flat(entry: PolicyRun | DelayedRun) -> dict[str, Any]:
    """An entry of the file: the fields of its run stand beside its own."""
    fields = asdict(entry)
    # Left out where nobody has one: the file is then the same as version 1 wrote it.
    if fields.get("seeds_of", "") is None:
        del fields["seeds_of"]
    run = fields.pop("run")
    if run["guarded"] is None:
        del run["guarded"]
    run["success"] = "".join(map(str, map(int, run["success"])))
    return {**fields, **run}


def _fields(entry: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `_flat`, for the constructor of what it was made from, which refuses fields
    that it does not know."""
    fields = dict(entry)
    text = fields.pop("success")
    if set(text) - {"0", "1"}:
        raise TypeError(f"success is a text of 0 and 1, found {sorted(set(text))}")
    steps, decisions, waited = (
        _counts(fields.pop(name)) for name in ("steps", "decisions", "waited")
    )
    toggles = fields.pop("toggles")
    if toggles is not None:
        toggles = _counts(toggles)
    guarded = fields.pop("guarded", None)
    if guarded is not None:
        guarded = _counts(guarded)
    success = tuple(bit == "1" for bit in text)
    fields["run"] = Run(success, steps, decisions, waited, toggles, guarded)
    return fields


def _counts(values: Sequence[Any]) -> tuple[int, ...]:
    for value in values:
        if not isinstance(value, int) or value < 0:
            raise TypeError(f"expected counts, found {value!r}")
    return tuple(values)


# --- the report's sections
# ----------------------------------------------------------------------------------


def recompute(outcomes: Outcomes, *, version: int = REPORT) -> Section:
    """The sections of a report of this version that follow from outcomes alone. A policy's row lacks
    what was measured otherwise: milliseconds, operations, memory."""
    # The first split is the one that the evaluation is about; others stand beside it.
    first = outcomes.splits[0]
    rows = []
    for policy in outcomes.policies:
        rows.append(policy_row(outcomes, policy, version))
    delayed = []
    for late in outcomes.delayed:
        delayed.append(delayed_row(outcomes, late))
    return {
        "policies": rows,
        "pairs": pairs(outcomes, first),
        "pairs_by_split": {split: pairs(outcomes, split) for split in outcomes.splits[1:]},
        "seeds": over_seeds(outcomes, first, version),
        "delayed": delayed,
        "delayed_pairs": delayed_pairs(outcomes, version),
        "listens": listens.rows(outcomes.listens),
    }


def policy_row(outcomes: Outcomes, policy: PolicyRun, version: int = REPORT) -> Section:
    """What one policy's row says of its episodes. Everything but `by_split` is about the first
    split."""
    rows = outcomes.rows_of(outcomes.splits[0])
    run = policy.run.only(rows)
    families = []
    tasks = []
    for row in rows:
        families.append(outcomes.episodes[row].family)
        tasks.append(outcomes.episodes[row].task)
    splits = [episode.split for episode in outcomes.episodes]
    grouped: Section = {} if policy.seeds_of is None else {"seeds_of": policy.seeds_of}
    looks: Section = {}
    if version >= REPORT:
        looks["looks_per_episode"] = sum(run.decisions) / len(run)
    if run.guarded is not None:
        grouped["guarded_share"] = sum(run.guarded) / max(sum(run.steps), 1)
    return {
        "name": policy.name,
        "fingerprint": policy.fingerprint,
        "execute": policy.execute,
        **grouped,
        **tally(run.success),
        "mean_steps": mean_steps(run),
        "seconds_to_success": seconds_to_success(outcomes, run),
        "decisions_per_second": decisions_per_second(run, outcomes.hz),
        **looks,
        "gripper_toggles": toggle_rates(run),
        "keep_ratio": keep_ratio(policy),
        "routing": routing(policy.routes),
        "by_family": tally_by(families, run.success),
        "by_task": tally_by(tasks, run.success),
        # Of all episodes, not of the first split's only.
        "by_split": tally_by(splits, policy.run.success),
    }


def delayed_row(outcomes: Outcomes, late: DelayedRun) -> Section:
    """A policy that acts late: how late, by which rule, and what came of it."""
    return {
        "name": late.policy,
        "slower": late.slower,
        "late": late.late,
        "delay_ms": late.delay_ms,
        "lag_steps": late.lag_steps,
        **tally(late.run.success),
        "mean_steps": mean_steps(late.run),
        "seconds_to_success": seconds_to_success(outcomes, late.run),
        "waiting_share": sum(late.run.waited) / max(sum(late.run.steps), 1),
        "decisions_per_second": decisions_per_second(late.run, outcomes.hz),
    }


def mean_steps(run: Run) -> float | None:
    """Of the episodes that succeeded: a failure lasts as long as the limit, whatever it did."""
    steps = np.array(run.steps)[np.array(run.success, bool)]
    return float(np.mean(steps)) if len(steps) else None


def tally(success: Sequence[bool]) -> Section:
    """Successes of episodes, with their 95 % interval (stats.rate_ci95)."""
    successes = sum(success)
    return {
        "successes": successes,
        "episodes": len(success),
        "ci95": stats.rate_ci95(successes, len(success)),
    }


def tally_by(groups: Sequence[str], success: Sequence[bool]) -> dict[str, Section]:
    """The same for each group of episodes."""
    found: dict[str, list[bool]] = {}
    for group, each in zip(groups, success, strict=True):
        found.setdefault(group, []).append(each)
    tallies = {}
    for group, values in found.items():
        tallies[group] = tally(values)
    return tallies


def seconds_to_success(outcomes: Outcomes, run: Run) -> Section:
    """`successes`: mean seconds of the episodes that succeeded (None: none did), which flatters a
    policy that fails where it would have taken long; `restricted`: mean over all episodes, a
    failure counting as the `limit` (the restricted mean survival time, Royston and Parmar 2013)."""
    limit = outcomes.limit / outcomes.hz
    seconds = np.array(run.steps, float) / outcomes.hz
    success = np.array(run.success, bool)
    return {
        "successes": float(seconds[success].mean()) if success.any() else None,
        "restricted": float(restricted_seconds(outcomes, run).mean()) if len(run) else None,
        "limit": limit,
    }


def restricted_seconds(outcomes: Outcomes, run: Run) -> np.ndarray:
    """(n,): each episode's seconds to success, a failure counting as the limit."""
    seconds = np.array(run.steps, float) / outcomes.hz
    limit = outcomes.limit / outcomes.hz
    return np.where(np.array(run.success, bool), seconds, limit)


def decisions_per_second(run: Run, hz: float) -> float | None:
    """How often the policy was asked in a second in which the arm moved, at `hz` control steps a
    second; None where it never moved. About hz / execute, and more where success cuts a chunk
    short."""
    # Sums over all episodes, not a mean of ratios: short episodes would count too much.
    moved = sum(run.steps) - sum(run.waited)
    return sum(run.decisions) * hz / moved if moved else None


def toggle_rates(run: Run) -> Section | None:
    """How often the gripper is sent the other way; None without one."""
    if run.toggles is None:
        return None
    interval = None
    found = stats.ratio_ci95(np.array(run.toggles), np.array(run.steps))
    if found is not None:
        low, high = found
        interval = [100 * low, 100 * high]
    return {
        "per_episode": float(np.mean(run.toggles)),
        # A ratio of sums: an episode that fails lasts longer, and would toggle more for that alone.
        "per_100_steps": 100 * sum(run.toggles) / sum(run.steps),
        "per_100_steps_ci95": interval,
    }


def keep_ratio(policy: PolicyRun) -> float | None:
    """The mean share of the backbone's cost that a decision ran; None where nobody knows its
    layers."""
    if not policy.layer_costs:
        return None
    costs = np.array(policy.layer_costs)  # (l,)
    total = sum(policy.routes.values())  # decisions
    spent = 0.0
    for route, count in policy.routes.items():
        spent += count * costs[_layers(route)].sum()
    return float(spent / (total * costs.sum()))


def routing(routes: dict[str, int]) -> Section:
    """How often each layer runs, and whether the router ever changes its mind."""
    total = sum(routes.values())
    # Of two that are as common the first by name, so that the report does not depend on order.
    commonest = min(routes, key=lambda route: (-routes[route], route))
    ran = np.zeros(len(commonest))  # (l,) decisions in which each layer ran
    for route, count in routes.items():
        ran += count * _layers(route)
    return {
        "activation": (ran / total).tolist(),
        "patterns": len(routes),
        "commonest_pattern": commonest,
        "commonest_share": routes[commonest] / total,
    }


def _layers(route: str) -> np.ndarray:
    """(l,) bool: which layers ran."""
    # The dtype is said for the route of a policy without layers, which is an empty text.
    return np.array(list(route), "<U1") == "1"


def pairs(outcomes: Outcomes, split: str) -> list[Section]:
    """Every policy against those before it, on one split's episodes."""
    found = outcomes.successes(split)
    names = list(found)
    rows = []
    for index, a in enumerate(names):
        # b came earlier, the teacher first: a − b reads as student − teacher.
        for b in names[:index]:
            rows.append({"a": a, "b": b, **stats.compare_paired(found[a], found[b]).to_json()})
    return rows


def delayed_pairs(outcomes: Outcomes, version: int = REPORT) -> list[Section]:
    """The policies that were run late under the same rule on the same slow computer, every one
    against the first of them: in how many episodes it succeeds, and after how many seconds, a failure
    counting as the limit."""
    groups: dict[tuple[float, str], list[DelayedRun]] = {}
    for late in outcomes.delayed:
        groups.setdefault((late.slower, late.late), []).append(late)
    rows = []
    for (slower, rule), (first, *others) in groups.items():
        for other in others:
            theirs = np.array(other.run.success, bool)
            compared = stats.compare_paired(theirs, np.array(first.run.success, bool))
            about = {"slower": slower, "late": rule, "a": other.policy, "b": first.policy}
            row = {**about, **compared.to_json()}
            if version >= REPORT:
                seconds = [restricted_seconds(outcomes, each.run) for each in (other, first)]
                difference, interval = stats.mean_difference(*seconds)
                row["seconds"] = {"difference": difference, "ci95": interval}
            rows.append(row)
    return rows


def together(outcomes: Outcomes, split: str) -> dict[str, np.ndarray]:
    """Recipe, or policy that stands alone → in which of one split's n episodes its students
    succeeded, (seeds, n) bool."""
    found = outcomes.successes(split)
    names = [(policy.name, policy.seeds_of) for policy in outcomes.policies]
    stacked = {}
    for name, members in grouped(names).items():
        stacked[name] = np.stack([found[member] for member in members])
    return stacked


def grouped(names: Sequence[tuple[str, str | None]]) -> dict[str, list[str]]:
    """Recipe, or policy that stands alone → the names of its students. `names`: of each policy, and
    what it says that its recipe is called (`PolicyRun.seeds_of`). The first, the teacher, is one
    that is given, and stands alone."""
    (first, _), *others = names
    groups: dict[tuple[bool, str], list[str]] = {}  # seeds of one recipe?, its name → their names
    for name, said in others:
        called = said or stem(name)
        # A policy may be called as the students of several seeds are called together.
        group = (False, name) if called is None else (True, called)
        groups.setdefault(group, []).append(name)
    alone = {name for name, _ in names}
    found = {first: [first]}
    for (_, called), members in groups.items():
        # One that is alone keeps its own name, whatever others would have been called.
        name = called if len(members) > 1 else members[0]
        if name in found or (len(members) > 1 and name in alone):
            name = f"{name} ({', '.join(members)})"
        found[name] = members
    return found


def over_seeds(outcomes: Outcomes, split: str, version: int = REPORT) -> Section:
    """Students that differ in their seed only, taken together, and compared with each other and
    with the first policy, on one split's episodes. Empty where there are none. `version`: of the
    report; before 4 the interval was another, and single recipes had none."""
    groups = together(outcomes, split)
    first = outcomes.policies[0].name
    several = {}
    for name, values in groups.items():
        if name == first or len(values) > 1:
            several[name] = values
    if len(several) < 2:
        return {}
    method: stats.Method = "mover" if version >= REPORT else "satterthwaite"
    names = list(several)
    compared = []
    for index, a in enumerate(names):
        for b in names[:index]:
            pair = stats.compare_seeds(several[a], several[b], method=method)
            compared.append({"a": a, "b": b, **pair.to_json()})
    rows = []
    for name, values in several.items():
        rows.append(_seed_row(name, values, version))
    return {"policies": rows, "pairs": compared}


def stem(name: str) -> str | None:
    """What students are called together of which one that does not say how it was made is a seed, by
    its name alone, `name-0`, `name-1` …: there is nothing else to go by. None: it is none."""
    match = re.fullmatch(r"(.+)-\d+", name)
    return match[1] if match else None


def _seed_row(name: str, values: np.ndarray, version: int) -> Section:
    """Of (seeds, n) outcomes. `sd`: the standard deviation over seeds (None of one); `ci95`: of the
    mean, over seeds and episodes."""
    each = values.mean(1)  # (seeds,) success rates
    interval: Section = {"ci95": stats.mean_ci95(values)} if version >= REPORT else {}
    return {
        "name": name,
        "seeds": len(values),
        "success": float(values.mean()),
        **interval,
        # ddof=1: seeds are a sample of those that could have been drawn.
        "sd": float(each.std(ddof=1)) if len(each) > 1 else None,
        "each": each.tolist(),
    }
