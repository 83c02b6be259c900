"""What happened in every single episode of an evaluation, kept beside its report; and every count,
interval and comparison of the report as a function of it.

    outcomes = outcomes.read(Path("evaluation/outcomes.json.gz"))
    outcomes.recompute(outcomes)["pairs"] == report["pairs"]

`armlet evaluate` makes its report by calling `recompute`, so a reader who calls it on the stored
file gets the same numbers, those of the bootstrap included (its seeds are fixed). The file is JSON,
compressed, of a few bytes an episode:

    version    1, or 2 where students are said to be seeds of one recipe
    hz, limit  control steps a second; the step at which an episode ends without success
    episodes   [[split, family, task, seed], …]: the n episodes that every policy met, in the order
               of the plan
    policies   [{name, fingerprint, execute, layer_costs, routes, success, steps, decisions, waited,
               toggles}, …], the first is the one that others are compared with; `success` is a text
               of n characters, 1 or 0; the lists have n numbers
    delayed    [{policy, slower, late, delay_ms, lag_steps, success, …}, …]: the same policies
               acting late, in the episodes of the first split only

This file knows no policy, no world and no torch.
"""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from armlet.data.files import write_atomically
from armlet.evaluation import stats

VERSION = 2  # 1 had no `seeds_of`; a file in which nobody has one is still written as 1
VERSIONS = (1, 2)
Section = dict[str, Any]


@dataclass(frozen=True)
class Planned:
    """One episode that was fixed in advance: a task, the condition it is run under, and the seed of
    its world."""

    split: str
    family: str
    task: str
    seed: int


@dataclass(frozen=True)
class Run:
    """What one policy did in n episodes, entry by entry. `steps`: control steps until success or
    the limit, those of waiting included; `decisions`: how often the policy was asked; `waited`:
    steps in which the arm held still because no action was there;
    `toggles`: how often the gripper was sent the other way (None: no gripper)."""

    success: tuple[bool, ...]
    steps: tuple[int, ...]
    decisions: tuple[int, ...]
    waited: tuple[int, ...]
    toggles: tuple[int, ...] | None

    def __len__(self) -> int:
        return len(self.success)

    def only(self, rows: Sequence[int]) -> "Run":
        """The same for some of the episodes."""
        return Run(
            success=tuple(self.success[row] for row in rows),
            steps=tuple(self.steps[row] for row in rows),
            decisions=tuple(self.decisions[row] for row in rows),
            waited=tuple(self.waited[row] for row in rows),
            toggles=None if self.toggles is None else tuple(self.toggles[row] for row in rows),
        )


@dataclass(frozen=True)
class PolicyRun:
    """One policy in all episodes. `execute`: actions carried out before it looks again;
    `layer_costs` (l,): what each layer costs,
    relative to the others; `routes`: how often each set of layers ran, as a text of l characters 1
    or 0, in the first split. `seeds_of`: what the students are called together of which this is one
    seed, by what they say of how they were made (None: they say nothing, or it is alone)."""

    name: str
    fingerprint: str
    execute: int
    layer_costs: tuple[float, ...]
    routes: dict[str, int]
    run: Run
    seeds_of: str | None = None


@dataclass(frozen=True)
class DelayedRun:
    """A policy whose actions come `lag_steps` control steps late, in the first split's episodes.
    `late` is the controller's rule for that time (`rollout.Late`), `slower` how many times slower
    than here the computer was taken to be, `delay_ms` the time of
    a decision that follows."""

    policy: str
    slower: float
    late: str
    delay_ms: float
    lag_steps: int
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

    def __post_init__(self) -> None:
        first = len(self.rows_of(self.splits[0])) if self.episodes else 0
        expected = [(policy.name, policy.run, len(self.episodes)) for policy in self.policies]
        expected += [
            (f"{late.policy} {late.slower:g}× slower, {late.late}", late.run, first)
            for late in self.delayed
        ]
        for name, run, n in expected:
            columns = {
                "success": run.success,
                "steps": run.steps,
                "decisions": run.decisions,
                "waited": run.waited,
            }
            if run.toggles is not None:
                columns["toggles"] = run.toggles
            for column, values in columns.items():
                if len(values) != n:
                    raise ValueError(
                        f"outcomes of {name!r}: {column} has {len(values)} entries, expected {n}, one an episode"
                    )

    @property
    def splits(self) -> tuple[str, ...]:
        """In the order in which they were asked for."""
        return tuple(dict.fromkeys(episode.split for episode in self.episodes))

    def rows_of(self, split: str) -> list[int]:
        """The numbers of one split's episodes."""
        return [row for row, episode in enumerate(self.episodes) if episode.split == split]

    def successes(self, split: str) -> dict[str, np.ndarray]:
        """Policy → in which of one split's m episodes it succeeded, (m,) bool."""
        rows = self.rows_of(split)
        return {
            policy.name: np.array(policy.run.only(rows).success, bool) for policy in self.policies
        }


# --- on disk
# ------------------------------------------------------------------------------------------------


def to_bytes(outcomes: Outcomes) -> bytes:
    """The file's content: the same bytes for the same outcomes, whenever they are written."""
    grouped = any(policy.seeds_of is not None for policy in outcomes.policies)
    value = {
        "version": VERSION if grouped else 1,
        "hz": outcomes.hz,
        "limit": outcomes.limit,
        "episodes": [[e.split, e.family, e.task, e.seed] for e in outcomes.episodes],
        "policies": [_flat(policy) for policy in outcomes.policies],
        "delayed": [_flat(late) for late in outcomes.delayed],
    }
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return gzip.compress(text.encode(), mtime=0)


def from_bytes(content: bytes, *, source: str = "outcomes") -> Outcomes:
    """The inverse of `to_bytes`. Raises ValueError naming `source` and what is wrong with it."""
    try:
        value = json.loads(gzip.decompress(content))
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(
            f"{source} is not compressed JSON ({error}); was it cut short? Run `armlet evaluate` again"
        ) from error
    found = value.get("version") if isinstance(value, dict) else None
    if found not in VERSIONS:
        raise ValueError(
            f"{source} has version {found!r}, expected one of {VERSIONS}; was it written by a newer "
            "armlet?"
        )
    try:
        return Outcomes(
            hz=value["hz"],
            limit=value["limit"],
            episodes=tuple(Planned(*entry) for entry in value["episodes"]),
            policies=tuple(
                PolicyRun(**_fields(entry) | {"layer_costs": tuple(entry["layer_costs"])})
                for entry in value["policies"]
            ),
            delayed=tuple(DelayedRun(**_fields(entry)) for entry in value["delayed"]),
        )
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
            f"{path} is not the one its report was made from: sha256 {found[:12]}…, expected {sha256[:12]}…"
        )
    return from_bytes(content, source=str(path))


def _flat(entry: PolicyRun | DelayedRun) -> dict[str, Any]:
    """An entry of the file: the fields of its run stand beside its own."""
    fields = asdict(entry)
    if fields.get("seeds_of", "") is None:
        del fields["seeds_of"]
    run = fields.pop("run")
    run["success"] = "".join("1" if success else "0" for success in run["success"])
    return {**fields, **run}


def _fields(entry: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `_flat`, for the constructor of what it was made from, which refuses fields
    that it does not know."""
    fields = dict(entry)
    text = fields.pop("success")
    if set(text) - {"0", "1"}:
        raise TypeError(f"success is a text of 0 and 1, found {sorted(set(text))}")
    steps, decisions, waited = (
        tuple(fields.pop(name)) for name in ("steps", "decisions", "waited")
    )
    toggles = fields.pop("toggles")
    success = tuple(bit == "1" for bit in text)
    return {
        **fields,
        "run": Run(success, steps, decisions, waited, None if toggles is None else tuple(toggles)),
    }


# --- the report's sections
# ----------------------------------------------------------------------------------


def recompute(outcomes: Outcomes) -> Section:
    """The sections of a report that follow from outcomes alone. A policy's row lacks what was
    measured otherwise: milliseconds,
    operations, memory."""
    first = outcomes.splits[0]
    return {
        "policies": [policy_row(outcomes, policy) for policy in outcomes.policies],
        "pairs": pairs(outcomes, first),
        "pairs_by_split": {split: pairs(outcomes, split) for split in outcomes.splits[1:]},
        "seeds": over_seeds(outcomes, first),
        "delayed": [delayed_row(outcomes, late) for late in outcomes.delayed],
        "delayed_pairs": delayed_pairs(outcomes),
    }


def policy_row(outcomes: Outcomes, policy: PolicyRun) -> Section:
    """What one policy's row says of its episodes. Everything but `by_split` is about the first
    split."""
    rows = outcomes.rows_of(outcomes.splits[0])
    run = policy.run.only(rows)
    seen = [outcomes.episodes[row] for row in rows]
    steps = [number for number, success in zip(run.steps, run.success, strict=True) if success]
    return {
        "name": policy.name,
        "fingerprint": policy.fingerprint,
        "execute": policy.execute,
        **({} if policy.seeds_of is None else {"seeds_of": policy.seeds_of}),
        **tally(run.success),
        "mean_steps": float(np.mean(steps)) if steps else None,
        "seconds_to_success": seconds_to_success(outcomes, run),
        "decisions_per_second": decisions_per_second(outcomes, run),
        "gripper_toggles": toggle_rates(run),
        "keep_ratio": keep_ratio(policy),
        "routing": routing(policy.routes),
        "by_family": tally_by([episode.family for episode in seen], run.success),
        "by_task": tally_by([episode.task for episode in seen], run.success),
        "by_split": tally_by([episode.split for episode in outcomes.episodes], policy.run.success),
    }


def delayed_row(outcomes: Outcomes, late: DelayedRun) -> Section:
    """A policy that acts late: how late, by which rule, and what came of it."""
    steps = [
        number for number, success in zip(late.run.steps, late.run.success, strict=True) if success
    ]
    return {
        "name": late.policy,
        "slower": late.slower,
        "late": late.late,
        "delay_ms": late.delay_ms,
        "lag_steps": late.lag_steps,
        **tally(late.run.success),
        "mean_steps": float(np.mean(steps)) if steps else None,
        "seconds_to_success": seconds_to_success(outcomes, late.run),
        "waiting_share": sum(late.run.waited) / max(sum(late.run.steps), 1),
        "decisions_per_second": decisions_per_second(outcomes, late.run),
    }


def tally(success: Sequence[bool]) -> Section:
    """Successes of episodes, with their interval."""
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
    return {group: tally(values) for group, values in found.items()}


def seconds_to_success(outcomes: Outcomes, run: Run) -> Section:
    """`successes`: mean seconds of the episodes that succeeded (None: none did), which flatters a
    policy that fails where it would have taken long; `restricted`: mean over all episodes, a
    failure counting as the `limit` (the restricted mean survival time,
    Royston and Parmar 2013)."""
    limit = outcomes.limit / outcomes.hz
    seconds = np.array(run.steps, float) / outcomes.hz
    success = np.array(run.success, bool)
    return {
        "successes": float(seconds[success].mean()) if success.any() else None,
        "restricted": float(np.where(success, seconds, limit).mean()) if len(run) else None,
        "limit": limit,
    }


def decisions_per_second(outcomes: Outcomes, run: Run) -> float | None:
    """How often the policy was asked in a second in which the arm moved; None where it never moved.
    About hz / execute, and more where
    success cuts a chunk short."""
    moved = sum(run.steps) - sum(run.waited)
    return sum(run.decisions) * outcomes.hz / moved if moved else None


def toggle_rates(run: Run) -> Section | None:
    """How often the gripper is sent the other way; None without one."""
    if run.toggles is None:
        return None
    interval = stats.ratio_ci95(np.array(run.toggles), np.array(run.steps))
    return {
        "per_episode": float(np.mean(run.toggles)),
        "per_100_steps": 100 * sum(run.toggles) / sum(run.steps),
        "per_100_steps_ci95": None if interval is None else [100 * bound for bound in interval],
    }


def keep_ratio(policy: PolicyRun) -> float:
    """The mean share of the backbone's cost that a decision ran."""
    costs = np.array(policy.layer_costs)
    total = sum(policy.routes.values())
    spent = sum(count * costs[_layers(route)].sum() for route, count in policy.routes.items())
    return float(spent / (total * costs.sum()))


def routing(routes: dict[str, int]) -> Section:
    """How often each layer runs, and whether the router ever changes its mind."""
    total = sum(routes.values())
    ran = sum(count * _layers(route).astype(float) for route, count in routes.items())
    commonest = min(routes, key=lambda route: (-routes[route], route))
    return {
        "activation": (np.asarray(ran) / total).tolist(),
        "patterns": len(routes),
        "commonest_pattern": commonest,
        "commonest_share": routes[commonest] / total,
    }


def _layers(route: str) -> np.ndarray:
    return np.array([bit == "1" for bit in route])


def pairs(outcomes: Outcomes, split: str) -> list[Section]:
    """Every policy against those before it, on one split's episodes."""
    found = outcomes.successes(split)
    names = list(found)
    rows = []
    for index, a in enumerate(names):
        for b in names[:index]:
            rows.append({"a": a, "b": b, **stats.compare_paired(found[a], found[b]).to_json()})
    return rows


def delayed_pairs(outcomes: Outcomes) -> list[Section]:
    """The policies that were run late under the same rule on the same slow computer, every one
    against the first of them."""
    groups: dict[tuple[float, str], list[DelayedRun]] = {}
    for late in outcomes.delayed:
        groups.setdefault((late.slower, late.late), []).append(late)
    rows = []
    for (slower, rule), (first, *others) in groups.items():
        for other in others:
            compared = stats.compare_paired(
                np.array(other.run.success, bool), np.array(first.run.success, bool)
            )
            rows.append(
                {
                    "slower": slower,
                    "late": rule,
                    "a": other.policy,
                    "b": first.policy,
                    **compared.to_json(),
                }
            )
    return rows


def over_seeds(outcomes: Outcomes, split: str) -> Section:
    """Students that differ in their seed only, taken together, and compared with each other and
    with the first policy, on one split's episodes. Empty where there are none."""
    found = outcomes.successes(split)
    first = next(iter(found))
    groups: dict[str, list[str]] = {}
    for policy in outcomes.policies:
        together_with = seeds_of(policy)
        if together_with is not None:
            groups.setdefault(together_with, []).append(policy.name)
    together = {first: found[first][None]}
    for called, members in groups.items():
        if len(members) > 1:
            together[called] = np.stack([found[member] for member in members])
    if len(together) < 2:
        return {}
    names = list(together)
    compared = []
    for index, a in enumerate(names):
        for b in names[:index]:
            compared.append(
                {"a": a, "b": b, **stats.compare_seeds(together[a], together[b]).to_json()}
            )
    return {
        "policies": [_seed_row(name, values) for name, values in together.items()],
        "pairs": compared,
    }


def seeds_of(policy: PolicyRun) -> str | None:
    """What the students are called together of which this is one seed. One that does not say how it
    was made is taken by its name, `name-0`, `name-1` …: there is nothing else to go by."""
    if policy.seeds_of is not None:
        return policy.seeds_of
    match = re.fullmatch(r"(.+)-\d+", policy.name)
    return match[1] if match else None


def _seed_row(name: str, values: np.ndarray) -> Section:
    """Of (seeds, n) outcomes. `sd`: the standard deviation over seeds (None of one)."""
    each = values.mean(1)
    return {
        "name": name,
        "seeds": len(values),
        "success": float(values.mean()),
        "sd": float(each.std(ddof=1)) if len(each) > 1 else None,
        "each": each.tolist(),
    }
