"""recompute: every interval, comparison and tally of a report again, from the counts and outcomes
that are stored.

    armlet recompute report.json [more …]        an audit.json, too

A report says how many of how many episodes succeeded and, of two policies, in how many both, one or
neither did; everything else that it says of success follows from these, and is compared here with
what it says. Where the outcomes of single episodes are kept beside it (`outcomes.json.gz`), the
counts themselves are counted again, and so are steps, gripper toggles and the intervals over seeds.
Without them these three stand in the report as they were found, and are named as such.

Milliseconds, operations and memory were measured; nothing here can say whether they are right, only
whether the ratios beside them are theirs.
Knows reports; runs no policy.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from armlet.evaluation import listens, offline_report, outcomes, speeds, stats, verdicts
from armlet.evaluation.report import outcomes_of
from armlet.report import read

Report = dict[str, Any]
# Successes of a policy by what the episodes are about.
GROUPINGS = ("by_family", "by_task", "by_split")
# In how many episodes which of two policies succeeded: the fourfold table of a pair.
FOURFOLD = ("both", "only_a", "only_b", "neither")


@dataclass(frozen=True)
class Difference:
    """A number that is not what the stored counts give."""

    file: str
    where: str  # in words: "student − teacher, seen.ci95[0]"
    found: Any  # in the report
    expected: Any  # from the counts

    def __str__(self) -> str:
        values = f"found {_short(self.found)}, expected {_short(self.expected)}"
        return f"{self.file}: {self.where}: {values}"


@dataclass
class Account:
    """What was compared in one report."""

    file: str
    compared: int = 0  # numbers and texts, those that differ among them
    differences: list[Difference] = field(default_factory=list)
    not_stored: list[str] = field(default_factory=list)  # what cannot be recomputed, in words

    def same(self, where: str, found: Any, expected: Any) -> None:
        """Compare two numbers, texts, or lists and dictionaries of them, entry by entry. What
        `expected` does not speak of is left."""
        if isinstance(expected, dict) and isinstance(found, dict):
            for name, value in expected.items():
                self.same(f"{where}.{name}", found.get(name, "nothing"), value)
            return
        sequences = isinstance(expected, list | tuple) and isinstance(found, list | tuple)
        # Of different lengths they are one difference, told as a whole.
        if sequences and len(expected) == len(found):
            for index, (one, other) in enumerate(zip(found, expected, strict=True)):
                self.same(f"{where}[{index}]", one, other)
            return
        self.compared += 1
        if not _equal(found, expected):
            self.differences.append(Difference(self.file, where, found, expected))


def main(reports: tuple[Path, ...], /) -> str:
    """Check reports; returns one line a report. `reports`: files, or folders that hold a
    report.json.

    Raises ValueError that lists every number which differs.
    """
    if not reports:
        raise ValueError("name at least one report.json (made by `armlet evaluate`)")
    accounts = []
    differences: list[Difference] = []
    compared = 0
    for path in reports:
        account = check(path / "report.json" if path.is_dir() else path)
        accounts.append(account)
        differences += account.differences
        compared += account.compared
    if differences:
        # All of them: one that was changed by hand tends to have company.
        lines = "\n".join(f"  {difference}" for difference in differences)
        raise ValueError(
            f"{len(differences)} of {compared} numbers are not what the stored counts give:\n"
            f"{lines}"
        )
    return "\n".join(map(_sentence, accounts))


def check(path: Path) -> Account:
    """Recompute one report. Raises FileNotFoundError or ValueError where report or outcomes cannot
    be read."""
    if offline_report.is_offline(path):
        raise ValueError(
            f"{path} compares with held-out episodes: nothing was executed, so it stores no outcomes "
            "and no counts to recompute; `armlet evaluate` makes it again, `armlet report` shows it"
        )
    account = Account(path.as_posix())
    if listens.is_audit(path):
        _audit(account, path)
        return account
    report = read(path)
    try:
        kept = outcomes_of(report, path)
        if kept is not None:
            _by_outcomes(account, report, kept)
        else:
            _by_counts(account, report)
            account.not_stored += _what_counts_cannot_say(report)
        _margins(account, report)
        _speeds(account, report)
    except KeyError as error:
        raise ValueError(
            f"{path} lacks the field {error}; was it edited, or written by another armlet?"
        ) from error
    return account


def _audit(account: Account, path: Path) -> None:
    """The rows of an audit.json from its episodes."""
    said = listens.read(path)
    try:
        expected = listens.recompute(said)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} lacks or garbles a field ({error}); was it edited?") from error
    account.same("number of rows", len(said["listens"]), len(expected))
    # Not strict: that one is missing has been told.
    for own, row in zip(said["listens"], expected, strict=False):
        account.same(_name(row), own, row)


def _by_outcomes(account: Account, report: Report, kept: outcomes.Outcomes) -> None:
    """Everything from the outcomes of single episodes: the sections that `armlet evaluate` itself
    computes from them."""
    for name, expected in outcomes.recompute(kept, version=report["version"]).items():
        found = report[name]
        if isinstance(expected, list):
            account.same(f"number of {name}", len(found), len(expected))
            # Not strict: that one is missing has been told, and the others are compared still.
            for own, row in zip(found, expected, strict=False):
                account.same(f"{name}, {_name(row)}", own, row)
                _same_groups(account, f"{name}, {_name(row)}", own, row)
        else:
            account.same(name, found, expected)
            account.same(f"groups of {name}", sorted(found), sorted(expected))
    _verdicts(account, report, kept)


def _verdicts(account: Account, report: Report, kept: outcomes.Outcomes) -> None:
    """What is said of every recipe, with its sentence. Against whom, and by which margin, the report
    itself says."""
    if report["version"] < outcomes.REPORT:
        return
    said = report["verdicts"]
    first = kept.policies[0].name
    baselines = []
    for verdict in said:
        if verdict["versus"] != first and verdict["versus"] not in baselines:
            baselines.append(verdict["versus"])
    margin = said[0]["margin"] if said else stats.MARGIN
    _same_verdicts(account, said, verdicts.verdicts(kept, baselines, margin), "")
    by_split = report.get("verdicts_by_split")
    if not by_split:  # of before there were any, or of one split
        return
    wanted = verdicts.verdicts_by_split(kept, baselines, margin)
    account.same("splits with verdicts", sorted(by_split), sorted(wanted))
    for split, expected in wanted.items():
        _same_verdicts(account, by_split.get(split, []), expected, f", {split}")


def _same_verdicts(
    account: Account, said: list[Report], expected: list[verdicts.Verdict], where: str
) -> None:
    account.same(f"number of verdicts{where}", len(said), len(expected))
    for own, verdict in zip(said, expected, strict=False):
        named = f"verdict on {verdict.policy} against {verdict.versus}{where}"
        account.same(named, own, verdict.to_json())


def _same_groups(account: Account, where: str, own: Report, row: Report) -> None:
    """`Account.same` leaves what `expected` does not speak of, so a group of episodes that was made
    up would pass it: their names are compared as well."""
    for grouping in GROUPINGS:
        if grouping in row:
            account.same(
                f"{where}: groups of {grouping}", sorted(own[grouping]), sorted(row[grouping])
            )


def _by_counts(account: Account, report: Report) -> None:
    """Intervals and comparisons from the counts in the report itself: Wilson's interval of every
    rate, which reports without outcomes have throughout; Newcombe's and McNemar's of every pair."""
    for policy in report["policies"]:
        _rate(account, policy["name"], policy)
        for grouping in GROUPINGS:
            for group, tally in policy[grouping].items():
                _rate(account, f"{policy['name']}, {grouping} {group}", tally)
    for delayed in report.get("delayed", []):
        _rate(account, f"{delayed['name']}, {delayed['slower']:g}× slower", delayed)
    for split, pair in _all_pairs(report):
        where = f"{pair['a']} − {pair['b']}, {split}"
        least = min(_fourfold(pair))
        # Outcomes cannot be made of a negative count; only a changed report has one.
        if least < 0:
            account.same(f"{where}: counts", least, "0 or more")
            continue
        outcomes_a, outcomes_b = _outcomes_of(pair)
        account.same(where, pair, stats.compare_paired(outcomes_a, outcomes_b).to_json())
    if report.get("seeds"):
        _seeds(account, report)


def _rate(account: Account, where: str, tally: Report) -> None:
    """A rate's interval, from its successes and episodes."""
    successes = tally["successes"]
    episodes = tally["episodes"]
    # No interval belongs to such a count.
    if not 0 <= successes <= episodes or not episodes:
        expected = f"0 to {episodes}, of at least one episode"
        account.same(f"{where}: successes", successes, expected)
        return
    account.same(f"{where}: ci95", tally["ci95"], list(stats.wilson(successes, episodes)))


def _fourfold(pair: Report) -> list[int]:
    return [pair[count] for count in FOURFOLD]


def _outcomes_of(pair: Report) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes (n,) bool of two policies that fill the pair's table of both, one and neither."""
    # In some order: nothing that is computed of them depends on it.
    counts = _fourfold(pair)
    a = np.repeat([True, True, False, False], counts)
    b = np.repeat([True, False, True, False], counts)
    return a, b


def _all_pairs(report: Report) -> Iterator[tuple[str, Report]]:
    """Every pair and the split it is about."""
    first = _first_split(report)
    for pair in report["pairs"]:
        yield first, pair
    for split, pairs in report.get("pairs_by_split", {}).items():
        for pair in pairs:
            yield split, pair


def _first_split(report: Report) -> str:
    return next(iter(report["policies"][0]["by_split"]))


def _seeds(account: Account, report: Report) -> None:
    """Rates over seeds from the single students' rates; the interval needs the outcomes."""
    policies = {policy["name"]: policy for policy in report["policies"]}
    means: dict[str, float] = {}
    for group in report["seeds"]["policies"]:
        name = group["name"]
        # One that is nobody's seed stands for itself: the teacher.
        members = [member for member in policies if _is_seed_of(member, name)] or [name]
        each = []
        for member in members:
            each.append(policies[member]["successes"] / policies[member]["episodes"])
        means[name] = float(np.mean(each))
        expected = {"seeds": len(members), "success": means[name], "each": each}
        account.same(f"over seeds, {name}", group, expected)
    for pair in report["seeds"]["pairs"]:
        expected = {
            "n": report["policies"][0]["episodes"],
            "difference": means[pair["a"]] - means[pair["b"]],
            # From the interval as it stands: only outcomes could give that again.
            "non_inferior_3pp": pair["ci95"][0] > -stats.MARGIN,
        }
        account.same(f"over seeds, {pair['a']} − {pair['b']}", pair, expected)


def _is_seed_of(member: str, name: str) -> bool:
    # By the name, `name-0`, `name-1` …: reports without outcomes say nothing else.
    stem, _, number = member.rpartition("-")
    return stem == name and number.isdigit()


def _margins(account: Account, report: Report) -> None:
    """Counts that stand in two places agree: a pair's with its policies', a policy's with those of
    its tasks and families."""
    first = _first_split(report)
    by_split = {}
    for policy in report["policies"]:
        name = policy["name"]
        by_split[name] = policy["by_split"]
        own = {"successes": policy["successes"], "episodes": policy["episodes"]}
        account.same(f"{name}, by_split {first}", policy["by_split"][first], own)
        # Not by_split: each split has episodes of its own, and `own` is of the first.
        for grouping in ("by_family", "by_task"):
            total = {"successes": 0, "episodes": 0}
            for group in policy[grouping].values():
                total["successes"] += group["successes"]
                total["episodes"] += group["episodes"]
            account.same(f"{name}, sum of {grouping}", total, own)
    for split, pair in _all_pairs(report):
        # a succeeds in `both` and `only_a`, b in `both` and `only_b`.
        for side, alone in (("a", "only_a"), ("b", "only_b")):
            tally = by_split[pair[side]][split]
            where = f"{pair['a']} − {pair['b']}, {split}: both + {alone}"
            account.same(where, pair["both"] + pair[alone], tally["successes"])
            account.same(f"{pair['a']} − {pair['b']}, {split}: n", pair["n"], tally["episodes"])


def _speeds(account: Account, report: Report) -> None:
    """Ratios of the milliseconds that stand in the report, and whom a row is a row of."""
    names = {policy["name"] for policy in report["policies"]}
    # Where students were run as what they were exported to alone, they have no rows of their own.
    names |= set(report["fingerprint"].get("evaluated", {}))
    for policy in report["policies"]:
        name = policy["name"]
        # Older reports say no ratios: whoever shows them divides.
        if "speed" in policy:
            found = speeds.speed(policy, report["policies"])
            if "motion_in_runtime" not in policy["speed"]:  # of before it was said
                del found["motion_in_runtime"]
            account.same(f"{name}, speed", policy["speed"], found)
        for said in ("policy", "exported_from"):
            if policy[said] is not None and policy[said] not in names:
                account.same(f"{name}, {said}", policy[said], "the name of a row")


def _what_counts_cannot_say(report: Report) -> list[str]:
    """What only the outcomes of single episodes could give, in words."""
    found = ["mean steps"]
    toggles = any(policy.get("gripper_toggles") for policy in report["policies"])
    if toggles:
        found.append("gripper toggles")
    if report.get("seeds"):
        found.append("intervals over seeds")
    return found


def _sentence(account: Account) -> str:
    """One line of a report in which nothing differs."""
    rest = ""
    if account.not_stored:
        rest = f"; not to be recomputed without outcomes: {', '.join(account.not_stored)}"
    return f"{account.file}: {account.compared} numbers recomputed, none differs{rest}"


def _name(row: Report) -> str:
    """What a row of a section is about."""
    if "a" in row:
        return f"{row['a']} − {row['b']}"
    if "change" in row:
        return f"{row['policy']} with {row['change']}"
    rest = f" {row['slower']:g}× slower, {row['late']}" if "slower" in row else ""
    return f"{row['name']}{rest}"


def _equal(found: Any, expected: Any) -> bool:
    """Numbers to the last digits that two versions of a library may differ in; all else, and
    counts, exactly."""
    # Some programs write 1.0 as 1; a bool is an int in Python, and no number here.
    number = isinstance(found, int | float) and not isinstance(found, bool)
    if isinstance(expected, float) and number:
        return math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-12)
    return type(found) is type(expected) and found == expected


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
