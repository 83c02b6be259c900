"""Intervals and paired tests for success rates. Pure functions of counts and outcomes; knows no
policy and no report."""

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import scipy  # loads its parts where they are first asked for: `stats` takes a second

MARGIN = 0.03  # a student within 3 percentage points counts as no worse (non-inferiority)


# A report asks of the same few counts again and again, task by task.
@cache
def wilson(successes: int, episodes: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion; (0, 1) where nothing was run."""
    if episodes == 0:
        return 0.0, 1.0
    interval = scipy.stats.binomtest(successes, episodes).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def rate_ci95(successes: int, episodes: int) -> tuple[float, float]:
    """95 % interval of a success rate, the one that tables show: Wilson's where that lies within 5
    to 95 %, and Clopper and Pearson's exact one where it reaches beyond. Wilson's alone holds a
    true rate of .98 in 92 % of cases at n = 50, and one of .997 in 86 %; this one holds every rate
    above .95 in at least 95 % of cases from n = 50 on."""
    low, high = wilson(successes, episodes)
    if low >= 0.05 and high <= 0.95:
        return low, high
    return clopper_pearson(successes, episodes)


@cache
def clopper_pearson(
    successes: int, episodes: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """The exact interval of a proportion, which holds the truth at least as often as it says; (0,
    1) where nothing was run."""
    if episodes == 0:
        return 0.0, 1.0
    interval = scipy.stats.binomtest(successes, episodes).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided McNemar p: how surprising the discordant pairs are, were both equally good; 1
    where there are none."""
    # Given how many pairs differ, either side of each is as likely as a coin's.
    if only_a + only_b == 0:
        return 1.0
    return float(scipy.stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


def newcombe_paired(
    both: int, only_a: int, only_b: int, neither: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of p_a − p_b for paired proportions (Newcombe 1998, Stat. Med. 17:2635, method
    10)."""
    n = both + only_a + only_b + neither
    if n == 0:
        return -1.0, 1.0
    p_a = (both + only_a) / n
    p_b = (both + only_b) / n
    low_a, high_a = wilson(both + only_a, n, confidence=confidence)
    low_b, high_b = wilson(both + only_b, n, confidence=confidence)
    phi = _correlation(both, only_a, only_b, neither)
    below_a = p_a - low_a
    above_a = high_a - p_a
    below_b = p_b - low_b
    above_b = high_b - p_b
    # Squares of distances, as of two sides with the angle between them: correlated rates (φ > 0)
    # make a narrow interval. Rounding may take a sum of 0 a little below it.
    lower = below_a**2 - 2 * phi * below_a * above_b + above_b**2
    upper = above_a**2 - 2 * phi * above_a * below_b + below_b**2
    difference = p_a - p_b
    return difference - float(np.sqrt(max(lower, 0))), difference + float(np.sqrt(max(upper, 0)))


def _correlation(both: int, only_a: int, only_b: int, neither: int) -> float:
    """φ with Newcombe's continuity correction where it is positive; 0 where a margin is empty."""
    product = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if product == 0:
        return 0.0
    n = both + only_a + only_b + neither
    top = both * neither - only_a * only_b
    # Only a positive φ is corrected: it is what narrows the interval.
    corrected = max(top - n / 2, 0) if top > 0 else top
    return float(corrected / np.sqrt(product))


def ratio_ci95(
    counts: np.ndarray, exposures: np.ndarray, *, resamples: int = 9999, seed: int = 0
) -> tuple[float, float] | None:
    """95 % interval of Σ counts / Σ exposures over n episodes (n,): a percentile bootstrap that
    draws episodes again, since what is counted in one of them hangs together. None of fewer than
    two episodes. Raises ValueError for an episode without exposure."""
    counts = np.asarray(counts, np.float64)
    exposures = np.asarray(exposures, np.float64)
    if counts.shape != exposures.shape or counts.ndim != 1:
        raise ValueError(
            f"counts and exposures must have one shape (n,), found {counts.shape} and "
            f"{exposures.shape}"
        )
    if (exposures <= 0).any():
        raise ValueError(f"exposures must be positive, found {exposures.min():g}")
    if len(counts) < 2:
        return None
    # Drawn in pairs: an episode's counts stay with its exposure.
    found = scipy.stats.bootstrap(
        (counts, exposures),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=resamples,
        batch=500,  # resamples at a time, for memory
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


@dataclass(frozen=True)
class PairedComparison:
    """a against b on the same n episodes. `non_inferior_3pp`: the interval's lower end lies above
    −3 pp (a one-sided test at 2.5 %)."""

    n: int
    both: int  # of the n, in how many both succeed; the next three likewise
    only_a: int
    only_b: int
    neither: int
    difference: float
    ci95: tuple[float, float]
    mcnemar_p: float
    non_inferior_3pp: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_paired(a: np.ndarray, b: np.ndarray) -> PairedComparison:
    """Outcomes (n,) bool of two policies on the same episodes, in the same order."""
    a = np.asarray(a, bool)
    b = np.asarray(b, bool)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"paired outcomes must have one shape (n,), found {a.shape} and {b.shape}")
    both = int((a & b).sum())
    only_a = int((a & ~b).sum())
    only_b = int((~a & b).sum())
    neither = len(a) - both - only_a - only_b
    interval = newcombe_paired(both, only_a, only_b, neither)
    return PairedComparison(
        n=len(a),
        both=both,
        only_a=only_a,
        only_b=only_b,
        neither=neither,
        difference=(only_a - only_b) / max(len(a), 1),
        ci95=interval,
        mcnemar_p=mcnemar(only_a, only_b),
        non_inferior_3pp=interval[0] > -MARGIN,
    )


def mean_difference(a: np.ndarray, b: np.ndarray) -> tuple[float, tuple[float, float]]:
    """The mean of a − b, (n,) numbers each of the same episodes, and its 95 % interval by Student's t
    of the paired differences; without width of fewer than two episodes."""
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    mean = float(difference.mean())
    count = len(difference)
    if count < 2:
        return mean, (mean, mean)
    error = float(difference.std(ddof=1) / np.sqrt(count))
    width = float(scipy.stats.t.ppf(0.975, count - 1)) * error
    return mean, (mean - width, mean + width)


Method = Literal["mover", "satterthwaite"]


@dataclass(frozen=True)
class SeedComparison:
    """Mean success of a's students against b's on the same n episodes; `seeds` how many students
    each has."""

    n: int
    seeds: tuple[int, int]
    difference: float
    ci95: tuple[float, float]
    non_inferior_3pp: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_seeds(a: np.ndarray, b: np.ndarray, *, method: Method = "mover") -> SeedComparison:
    """Outcomes (s, n) bool of the students that two recipes made from s seeds each, on the same n
    episodes. Raises ValueError where there are fewer than two episodes, or not the same ones.

    The interval is about other seeds and other episodes. Outcomes are students × episodes, crossed,
    so the difference of the means varies with three things, whose variances are estimated by the
    mean squares of a two-way layout without replication (`Variances`).

    `mover`: each variance has a half-width of its own, Student's t at its own degrees of freedom
    times its root, and the squares of these are added (Howe 1974; Zou and Donner 2008, Stat. Med.
    27:1693, the "method of variance estimates recovery"). Few seeds make wide intervals, since
    their spread is hardly known. Coverage of a stated 95 %, simulated by bench/intervals.py
    (dev/coverage.md): 94.7 to 99.4 % for 3 to 12 seeds a side, 5 against 3, or 5 and 8 against one
    given policy, whose successes differ by 0.1 to 7.6 points from seed to seed.

    `satterthwaite`: one t for the sum of the variances, with Satterthwaite's degrees of freedom
    (1946), as in reports before version 4. It covers 91 to 94 % where 3, 5 or 12 seeds of one side
    differ by several points and those of the other less.

    With one student on both sides it is the paired interval of `compare_paired`.
    """
    a = np.asarray(a, np.float64)
    b = np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise ValueError(
            f"outcomes over seeds must have shapes (seeds, n) with one n, found {a.shape} and "
            f"{b.shape}"
        )
    n = a.shape[1]
    if n < 2:
        raise ValueError(f"a comparison over seeds needs at least 2 episodes, found {n}")
    difference = float(a.mean() - b.mean())
    # One policy on each side: no seeds to vary, and for two proportions there is a better interval.
    if len(a) == len(b) == 1:
        low, high = compare_paired(a[0], b[0]).ci95
    else:
        found = variances(a, b)
        half = found.half_width() if method == "mover" else found.satterthwaite()
        low = difference - half
        high = difference + half
    return SeedComparison(n, (len(a), len(b)), difference, (low, high), low > -MARGIN)


def mean_ci95(successes: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean success of a recipe's students, outcomes (s, n) bool: over seeds and
    episodes, and of one student the interval of its rate (`rate_ci95`)."""
    successes = np.asarray(successes, np.float64)
    if len(successes) == 1:
        return rate_ci95(int(successes.sum()), successes.shape[1])
    # Against one that never succeeds, which varies with nothing.
    low, high = compare_seeds(successes, np.zeros((1, successes.shape[1]))).ci95
    return max(low, 0.0), min(high, 1.0)


@dataclass(frozen=True)
class Variances:
    """What the difference of two means over students and episodes varies with. Shares, squared."""

    # s²(mean of a − mean of b, episode by episode) / n, with one discordant pair added (as Agresti
    # and Min 2005 add half a one to each cell), so that it is not 0 where all succeed.
    episodes: float
    n: int
    # s²(means of a side's students) / s, and s − 1, of each side that has several; a side of one is
    # a policy that is given, not drawn.
    students: tuple[tuple[float, int], ...]
    # What neither the student nor the episode explains: it is in both of the above, and counted once.
    rest: float

    def half_width(self) -> float:
        """Of the 95 % interval: half-widths of the parts, added in squares."""
        t = float(scipy.stats.t.ppf(0.975, self.n - 1))
        # By chance the rest may be estimated as more than all of it.
        squares = t**2 * max(self.episodes - self.rest, 0.0)
        for variance, freedom in self.students:
            squares += float(scipy.stats.t.ppf(0.975, freedom)) ** 2 * variance
        # No narrower than were there no seeds.
        return float(np.sqrt(max(squares, t**2 * self.episodes)))

    def satterthwaite(self) -> float:
        """Of the same interval, with one t for the sum."""
        terms = [(self.episodes, self.n - 1), *self.students]
        total = sum(variance for variance, _ in terms)
        # By chance the estimate can be below each of its parts.
        variance = max(total - self.rest, self.episodes, total - self.episodes)
        freedom = variance**2 / sum(part**2 / degrees for part, degrees in terms)
        return float(scipy.stats.t.ppf(0.975, freedom) * np.sqrt(variance))


def variances(a: np.ndarray, b: np.ndarray) -> Variances:
    """Of mean a − mean b, for outcomes (s, n) of two sides on the same n episodes."""
    a = np.asarray(a, np.float64)
    b = np.asarray(b, np.float64)
    n = a.shape[1]
    per_episode = a.mean(0) - b.mean(0)  # (n,)
    squares = float(((per_episode - per_episode.mean()) ** 2).sum())
    students = []
    rest = 0.0
    for outcomes in (a, b):
        count = len(outcomes)
        if count == 1:
            continue
        means = outcomes.mean(1)  # (s,)
        students.append((float(means.var(ddof=1)) / count, count - 1))
        # (s, n): what neither the student nor the episode explains.
        residual = outcomes - outcomes.mean(0) - means[:, None] + outcomes.mean()
        rest += float((residual**2).sum()) / ((count - 1) * (n - 1)) / (count * n)
    # + 1: the discordant pair that is added
    return Variances((squares + 1) / (n * (n - 1)), n, tuple(students), rest)
