"""What a comparison says, in one of five words; and where it says nothing, how many episodes or
training seeds would.

The interval of the difference decides, against 0 and against −margin:

    better          all of it lies above 0
    as good         all of it lies above −margin (non-inferior); it may lie below 0 as well, and then
                    the sentence says that the policy is shown to be a little less
    worse           all of it lies below 0, and not all of it above −margin
    undecided       anything else
    not comparable  the two did not meet the same episodes of the same world

Students of one recipe and several training seeds have one verdict together, whose interval is of
seeds and episodes. Knows outcomes and counts; no report and no file.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import scipy

from armlet.evaluation import outcomes as kept
from armlet.evaluation import stats
from armlet.evaluation.outcomes import Outcomes
from armlet.evaluation.stats import Variances

Word = Literal["better", "as good", "worse", "undecided", "not comparable"]
POWER = 0.8  # the chance that so many episodes decide, were the truth what was found
CLAIM = 5  # training seeds from which on a verdict is one about a recipe
MOST_SEEDS = 1000  # more are not looked for: nobody trains so many


@dataclass(frozen=True)
class Verdict:
    """One policy, or the students of one recipe, against another. Differences are shares."""

    policy: str
    versus: str
    verdict: Word
    difference: float | None  # policy − versus; this and the next two None: not comparable
    low: float | None  # of the 95 % interval
    high: float | None
    margin: float
    episodes: int  # that both met
    seeds: int  # students of the policy's recipe that are taken together
    versus_seeds: int
    # Where it is undecided: so many paired episodes would decide, or so many seeds a recipe in these
    # episodes. None: decided, or none would.
    episodes_to_decide: int | None
    seeds_to_decide: int | None
    sentence: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def word(low: float, high: float, margin: float) -> Word:
    """The verdict of a 95 % interval of policy − versus."""
    if low > 0:
        return "better"
    if low > -margin:
        return "as good"
    if high < 0:
        return "worse"
    return "undecided"


def judge(policy: str, versus: str, a: np.ndarray, b: np.ndarray, margin: float) -> Verdict:
    """Outcomes (s, n) and (s', n) bool of two recipes' students, or of single policies (1, n), on
    the same n episodes."""
    compared = stats.compare_seeds(a, b)
    low, high = compared.ci95
    found = word(low, high, margin)
    episodes = None
    seeds = None
    if found == "undecided":
        parts = stats.variances(a, b)
        distance = max(compared.difference + margin, -compared.difference)
        episodes = episodes_to_decide(parts, distance)
        if episodes is None:
            seeds = seeds_to_decide(parts, max(len(a), len(b)), distance)
    verdict = Verdict(
        policy=policy,
        versus=versus,
        verdict=found,
        difference=compared.difference,
        low=low,
        high=high,
        margin=margin,
        episodes=compared.n,
        seeds=len(a),
        versus_seeds=len(b),
        episodes_to_decide=episodes,
        seeds_to_decide=seeds,
        sentence="",
    )
    return _told(verdict)


def not_comparable(policy: str, versus: str, why: str, margin: float) -> Verdict:
    """Two that did not meet the same episodes. `why`: a clause."""
    return Verdict(
        policy=policy,
        versus=versus,
        verdict="not comparable",
        difference=None,
        low=None,
        high=None,
        margin=margin,
        episodes=0,
        seeds=1,
        versus_seeds=1,
        episodes_to_decide=None,
        seeds_to_decide=None,
        sentence=f"{policy} and {versus} are not comparable: {why}.",
    )


# --- how many would decide
# ------------------------------------------------------------------------------------------------


def episodes_to_decide(found: Variances, distance: float) -> int | None:
    """Paired episodes with which a difference lies `distance` from what it is tested against, and
    the test shows it with a probability of `POWER`, the variances being as they were found. None:
    no number of episodes would, as seeds differ too much.

    Of two single policies it is n = (z₀.₉₇₅ + z₀.₈)² (ψ − δ²) / distance² with ψ the share of
    discordant pairs and δ the difference (Connor 1987, Biometrics 43:207, without the variance under
    the null hypothesis, as the interval and not McNemar's test decides), one such pair being added.
    """
    seeds = _of_seeds(found, 1.0)
    # Of the seeds' variances the rest is a part, which falls with the number of episodes.
    estimated = sum(variance for variance, _ in found.students)
    falls = min(found.rest / estimated, 1.0) if estimated else 0.0
    stays = seeds * (1 - falls)
    if distance**2 <= stays:
        return None
    both = _needed(found.n - 1) * max(found.episodes - found.rest, 0.0) + seeds * falls
    # No narrower than were there no seeds (`Variances.half_width`).
    alone = _needed(found.n - 1) * found.episodes
    share = max(both / (distance**2 - stays), alone / distance**2)
    # Never fewer than were not enough.
    return max(math.ceil(found.n * share), found.n + 1)


def seeds_to_decide(found: Variances, seeds: int, distance: float) -> int | None:
    """Training seeds a recipe with which the same would be shown in the same episodes. `seeds`: of
    the recipe that has more. None: none would, there are too few episodes as well."""
    episodes = _needed(found.n - 1) * found.episodes
    for more in range(seeds + 1, MOST_SEEDS + 1):
        if episodes + _of_seeds(found, more / seeds) <= distance**2:
            return more
    return None


def _of_seeds(found: Variances, times: float) -> float:
    """The square of the distance that seeds ask for, were there so many times as many."""
    total = 0.0
    for variance, freedom in found.students:
        total += _needed(times * (freedom + 1) - 1) * variance / times
    return total


def _needed(freedom: float) -> float:
    """The square of how many standard errors must lie between a difference and what it is tested
    against."""
    quantiles = scipy.stats.t.ppf(0.975, freedom) + scipy.stats.norm.ppf(POWER)
    return float(quantiles) ** 2


# --- in words
# ------------------------------------------------------------------------------------------------


def _told(verdict: Verdict) -> Verdict:
    """The same with its sentence."""
    fields = {**verdict.to_json(), "sentence": sentence(verdict)}
    return Verdict(**fields)


def sentence(verdict: Verdict) -> str:
    """A verdict in words, as tables and pages have it."""
    assert verdict.difference is not None
    assert verdict.low is not None
    assert verdict.high is not None
    margin = f"{100 * verdict.margin:g} points"
    said = {
        "better": f"{verdict.policy} is better than {verdict.versus}",
        "as good": f"{verdict.policy} is as good as {verdict.versus} within {margin}",
        "worse": f"{verdict.policy} is worse than {verdict.versus}",
        "undecided": f"{verdict.policy} against {verdict.versus} is undecided",
    }[verdict.verdict]
    of = "paired episodes"
    if verdict.seeds > 1 or verdict.versus_seeds > 1:
        of = f"paired episodes, {verdict.seeds} against {verdict.versus_seeds} training seeds"
    numbers = (
        f"{100 * verdict.difference:+.1f} pp (95 % interval {100 * verdict.low:+.1f} to "
        f"{100 * verdict.high:+.1f}; {verdict.episodes:,} {of})"
    )
    return f"{said}: {numbers}{_rest(verdict)}."


def _rest(verdict: Verdict) -> str:
    """What else has to be said: what would decide, that it is a little less, that seeds are few."""
    assert verdict.high is not None
    rest = ""
    if verdict.verdict == "as good" and verdict.high < 0:
        rest = "; less, but by no more than the margin"
    if verdict.verdict == "undecided":
        if verdict.episodes_to_decide is not None:
            rest = f"; about {verdict.episodes_to_decide:,} episodes would decide"
        elif verdict.seeds_to_decide is not None:
            rest = f"; about {verdict.seeds_to_decide} training seeds would decide"
        else:
            rest = "; it takes more training seeds and more episodes to decide"
    several = [count for count in (verdict.seeds, verdict.versus_seeds) if count > 1]
    if several and min(several) < CLAIM:
        rest += f"; a claim about a recipe takes {CLAIM} seeds"
    return rest


# --- of a whole evaluation
# ------------------------------------------------------------------------------------------------


def verdicts_by_split(
    outcomes: Outcomes, baselines: Sequence[str], margin: float
) -> dict[str, list[Verdict]]:
    """The same on each split behind the first, by its name."""
    found = {}
    for split in outcomes.splits[1:]:
        found[split] = verdicts(outcomes, baselines, margin, split)
    return found


def verdicts(
    outcomes: Outcomes, baselines: Sequence[str], margin: float, split: str | None = None
) -> list[Verdict]:
    """Every recipe, or policy that stands alone, against the first policy and against each of the
    `baselines`, in a split's episodes, the first split's where none is named. Raises ValueError for
    a baseline that was not run."""
    together = kept.together(outcomes, split or outcomes.splits[0])
    check_baselines(baselines, together)
    first = next(iter(together))
    told: set[frozenset[str]] = set()  # who has been compared with whom
    found = []
    for versus in (first, *baselines):
        for name, successes in together.items():
            both = frozenset((name, versus))
            # Nobody is judged against himself, and the first, with which all are, against nobody.
            if name in (first, versus) or both in told:
                continue
            told.add(both)
            found.append(judge(name, versus, successes, together[versus], margin))
    return found


def check_baselines(baselines: Sequence[str], together: Mapping[str, Any]) -> None:
    """Raises ValueError where one is no policy of this evaluation, or is the first, against which
    all are judged anyway. `together`: by the name of a recipe, or of a policy that stands alone."""
    for name in baselines:
        if name not in together:
            raise ValueError(
                f"--evaluation.baselines names {name!r}, which is not run here; there are "
                + ", ".join(together)
            )
        if name == next(iter(together)):
            raise ValueError(
                f"--evaluation.baselines {name} has no effect: every policy is compared with it"
            )
