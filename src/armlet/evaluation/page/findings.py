"""What a report found out, one finding a recipe: students of several seeds are one row, and each is
told against its teacher. Verdicts are those of the report; one of before there were verdicts says
whether non-inferiority was shown, and nothing more is made of it. Knows reports; draws nothing."""

import os.path
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from armlet.evaluation import speeds
from armlet.evaluation.figures import called_together

Report = dict[str, Any]
Row = dict[str, Any]  # of one policy
MARGIN = 0.03  # of `non_inferior_3pp`, as a share
NOT_SHOWN = "not shown"
AS_GOOD = "as good"
# How a headline tells them, the best first. `not shown` is of reports without verdicts.
WORDS = {
    "better": "Better than {versus}",
    AS_GOOD: "As good as {versus}, within {margin} points",
    "worse": "Worse than {versus}",
    "undecided": "Undecided against {versus}",
    NOT_SHOWN: "Not shown to be as good as {versus}, within {margin} points",
    "not comparable": "Not comparable with {versus}",
}
LONG = 18  # characters; of more, a name is shortened where there is little room
NAMED = 4  # so many names a verdict are read at a glance; of more, their number is


@dataclass(frozen=True)
class Group:
    """A recipe: one row, or those of its seeds."""

    name: str
    rows: tuple[Row, ...]

    @property
    def success(self) -> float:
        """The mean of its seeds, a share."""
        rates = [row["successes"] / row["episodes"] for row in self.rows]
        return sum(rates) / len(rates)

    def tally(self, field: str, name: str) -> tuple[int, int] | None:
        """Successes and episodes of all its seeds in one task or split; None: it has none there."""
        found = [row[field][name] for row in self.rows if name in row[field]]
        if not found:
            return None
        return sum(each["successes"] for each in found), sum(each["episodes"] for each in found)


@dataclass(frozen=True)
class Finding:
    """A recipe against another. Differences and margin are shares."""

    policy: str
    versus: str
    verdict: str  # a key of WORDS
    # None, all three: the two did not meet the same episodes.
    difference: float | None
    low: float | None
    high: float | None
    margin: float
    episodes: int
    seeds: int | None  # None: a single policy of before there were verdicts
    sentence: str | None  # the report's own, where it has one
    times_less: float | None  # computing time: `versus` ÷ `policy`


def groups(report: Report) -> list[Group]:
    """The recipes of a report in the order of their first rows, the teacher first."""
    found: dict[str, list[Row]] = {}
    together = called_together(report)
    for row in report["policies"]:
        found.setdefault(together.get(row["name"], row["name"]), []).append(row)
    return [Group(name, tuple(rows)) for name, rows in found.items()]


def mean_milliseconds(report: Report, group: Group) -> float:
    """The mean of a recipe's seeds, of `speeds.computing`."""
    policies = report["policies"]
    return sum(speeds.computing(row, policies) for row in group.rows) / len(group.rows)


def findings(report: Report) -> list[Finding]:
    """One a recipe and whom it is compared with; those against the teacher first."""
    found = _verdicts(report) if report.get("verdicts") else _from_pairs(report)
    teacher = report["policies"][0]["name"]
    return sorted(found, key=lambda each: each.versus != teacher)  # sorted keeps the rest in order


def _verdicts(report: Report) -> list[Finding]:
    """Those that the report says itself, but for single seeds of a recipe, whose verdict is one;
    and of several runtimes the pairs with the teacher in the same one."""
    single = set(called_together(report))
    times = _times(report)
    found = []
    for row in report["verdicts"]:
        if row["policy"] in single or row["versus"] in single:
            continue
        found.append(
            Finding(
                policy=row["policy"],
                versus=row["versus"],
                verdict=row["verdict"],
                difference=row["difference"],
                low=row["low"],
                high=row["high"],
                margin=row["margin"],
                episodes=row["episodes"],
                seeds=row["seeds"],
                sentence=row["sentence"],
                times_less=_ratio(times, row["policy"], row["versus"]),
            )
        )
    teacher = report["policies"][0]["name"]
    told = {(each.policy, each.versus) for each in found}
    for pair in report["pairs"]:
        both = (pair["a"], pair["b"])
        if pair["b"] == teacher or both in told or single.intersection(both):
            continue
        if speeds.is_headline(pair, report["policies"]):
            found.append(_from_pair(pair, None, times))
    return found


def _from_pairs(report: Report) -> list[Finding]:
    """Of a report without verdicts: recipes of several seeds by their comparison over seeds, single
    policies by the pairs that speed is stated with."""
    teacher = report["policies"][0]["name"]
    over_seeds = {}
    for pair in (report.get("seeds") or {}).get("pairs", []):
        if pair["b"] == teacher:
            over_seeds[pair["a"]] = pair
    of_row: dict[str, list[Row]] = {}
    for pair in report["pairs"]:
        if speeds.is_headline(pair, report["policies"]):
            of_row.setdefault(pair["a"], []).append(pair)
    times = _times(report)
    found = []
    for group in groups(report)[1:]:
        if group.name in over_seeds:
            found.append(_from_pair(over_seeds[group.name], len(group.rows), times))
            continue
        for row in group.rows:
            for pair in of_row.get(row["name"], []):
                found.append(_from_pair(pair, None, times))
    return found


def _from_pair(pair: Row, seeds: int | None, times: dict[str, float]) -> Finding:
    low, high = pair["ci95"]
    return Finding(
        policy=pair["a"],
        versus=pair["b"],
        verdict=AS_GOOD if pair["non_inferior_3pp"] else NOT_SHOWN,
        difference=pair["difference"],
        low=low,
        high=high,
        margin=MARGIN,
        episodes=pair["n"],
        seeds=seeds,
        sentence=None,
        times_less=_ratio(times, pair["a"], pair["b"]),
    )


def _times(report: Report) -> dict[str, float]:
    """Milliseconds by the name of a recipe, and of a row."""
    policies = report["policies"]
    found = {row["name"]: speeds.computing(row, policies) for row in policies}
    for group in groups(report):
        found[group.name] = mean_milliseconds(report, group)
    return found


def _ratio(times: dict[str, float], policy: str, versus: str) -> float | None:
    """How many times less a policy computes; None where the report has no row of either."""
    if policy not in times or versus not in times:
        return None
    return times[versus] / times[policy]


@dataclass(frozen=True)
class Headline:
    """What a report found, as one or two lines: each a verdict, and who has it."""

    verdict: str
    words: str
    names: tuple[str, ...]  # none where there are more than a glance takes in
    count: int


def headlines(report: Report, found: Sequence[Finding]) -> list[Headline]:
    """Of the findings against the teacher, one line a verdict, the best first."""
    teacher = report["policies"][0]["name"]
    lines = []
    for verdict, words in WORDS.items():
        mine = [each for each in found if each.verdict == verdict and each.versus == teacher]
        if not mine:
            continue
        margin = f"{100 * mine[0].margin:g}"
        names = tuple(each.policy for each in mine)
        said = words.format(versus=teacher, margin=margin)
        lines.append(Headline(verdict, said, names if len(names) <= NAMED else (), len(names)))
    return lines


def fastest(report: Report, found: Sequence[Finding]) -> Finding | None:
    """Of those that are better or as good as the teacher, the one that computes least, where that
    is less than the teacher does."""
    teacher = report["policies"][0]["name"]
    good = []
    for each in found:
        proved = each.verdict in ("better", AS_GOOD) and each.versus == teacher
        if proved and each.times_less is not None and each.times_less > 1:
            good.append(each)
    return max(good, key=lambda each: each.times_less or 0, default=None)


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Names for a narrow place. Without what all but the first begin with, where that is much:
    `…_aux@0.2` of `vla_ad_tiny_offline_aux@0.2`; else long ones without their middle, where they
    still differ. Names of 18 characters or fewer stay whole."""
    common = os.path.commonprefix(list(names[1:]))  # noqa: RUF071 - of letters, not of folders
    while common and common[-1].isalnum() and not _ends_words(common, names[1:]):
        common = common[:-1]
    if len(names) > 2 and len(common) >= 8 and max(map(len, names)) > LONG:
        stripped = [names[0], *("…" + name[len(common) :] for name in names[1:])]
        return dict(zip(names, stripped, strict=True))
    cut = [name if len(name) <= LONG else f"{name[:6]}…{name[-11:]}" for name in names]
    if len(set(cut)) < len(cut):
        return {name: name for name in names}
    return dict(zip(names, cut, strict=True))


def _ends_words(common: str, names: Sequence[str]) -> bool:
    """Whether what follows is a new word in every name: half a word is no name."""
    return all(not name[len(common) : len(common) + 1].isalnum() for name in names)
