"""Intervals and tests against other implementations, published examples and simulation."""

import numpy as np
import pytest
from scipy.stats import multinomial
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.proportion import proportion_confint

from armlet.stats import compare_paired, compare_seeds, mcnemar, newcombe_paired, ratio_ci95, wilson


@pytest.mark.parametrize(("successes", "episodes"), [(0, 10), (10, 10), (81, 263), (390, 400), (1, 1)])
def test_wilson_is_statsmodels(successes: int, episodes: int) -> None:
    assert wilson(successes, episodes) == pytest.approx(proportion_confint(successes, episodes, method="wilson"), abs=1e-12)


def test_nothing_run_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert newcombe_paired(0, 0, 0, 0) == (-1.0, 1.0)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (5, 0), (3, 7), (12, 30)])
def test_mcnemar_is_statsmodels(only_a: int, only_b: int) -> None:
    reference = reference_mcnemar([[10, only_a], [only_b, 10]], exact=True).pvalue if only_a + only_b else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(reference)


def test_newcombes_published_example() -> None:
    """Newcombe 1998, table II, columns (36, 12, 2, 0): method 10 gives 0.2 with interval 0.0569 to 0.3404."""
    low, high = newcombe_paired(36, 12, 2, 0)
    assert (low, high) == pytest.approx((0.0569, 0.3404), abs=5e-5)


def test_a_correlation_that_the_correction_takes_away_leaves_two_independent_intervals() -> None:
    """Where n/2 is more than ad − bc, φ is 0 (Newcombe 1998, page 2640), and Wilson's two intervals add up in squares."""
    for both, only_a, only_b, neither in ((1, 0, 0, 1), (5, 4, 2, 2)):
        n = both + only_a + only_b + neither
        assert 0 < both * neither - only_a * only_b <= n / 2
        found = newcombe_paired(both, only_a, only_b, neither)
        a, b = both + only_a, both + only_b
        (low_a, high_a), (low_b, high_b) = (proportion_confint(each, n, method="wilson") for each in (a, b))
        below = np.hypot(a / n - low_a, high_b - b / n)
        above = np.hypot(high_a - a / n, b / n - low_b)
        assert found == pytest.approx(((a - b) / n - below, (a - b) / n + above))


def test_the_interval_covers() -> None:
    cells = (0.8, 0.08, 0.06, 0.06)
    tables = multinomial.rvs(200, cells, size=2000, random_state=0)
    hits = [low <= cells[1] - cells[2] <= high for low, high in (newcombe_paired(*map(int, table)) for table in tables)]
    assert 0.93 <= np.mean(hits) <= 0.975


def test_comparison_is_antisymmetric_and_judges_the_margin() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(1500) < 0.95, rng.random(1500) < 0.93
    forward, backward = compare_paired(a, b), compare_paired(b, a)
    assert forward.difference == pytest.approx(-backward.difference)
    assert forward.ci95 == pytest.approx(tuple(-bound for bound in reversed(backward.ci95)))
    assert forward.difference == pytest.approx(a.mean() - b.mean()) and forward.only_a == (a & ~b).sum()
    assert forward.non_inferior_3pp
    assert not compare_paired(a[:20], b[:20]).non_inferior_3pp
    same = compare_paired(a, a)
    assert same.difference == 0 and same.mcnemar_p == 1 and same.only_a == same.only_b == 0
    with pytest.raises(ValueError, match="one shape"):
        compare_paired(a, b[:-1])


def test_over_seeds_students_are_drawn_again_where_only_they_differ() -> None:
    """Two students, one that always succeeds and one that never does, against one that never does: drawn again, their mean is
    0, ½ or 1, a quarter, half and a quarter of the time. No episode differs from another."""
    a, b = np.repeat([[True], [False]], 50, axis=1), np.zeros((1, 50), bool)
    found = compare_seeds(a, b, resamples=2000)
    assert found.difference == 0.5 and found.ci95 == pytest.approx((0, 1)) and found.non_inferior_3pp
    turned = compare_seeds(b, a, resamples=2000)
    assert turned.ci95 == pytest.approx((-1, 0)) and not turned.non_inferior_3pp
    many = np.repeat(np.arange(100)[:, None] < 80, 50, axis=1)
    low, high = compare_seeds(many, b, resamples=4000).ci95
    assert (low, high) == pytest.approx((0.8 - 1.96 * 0.04, 0.8 + 1.96 * 0.04), abs=0.011)


def test_over_seeds_the_interval_is_as_wide_as_both_make_it() -> None:
    """Both students and episodes drawn again: the variances of the two means and of what is left between them add up (Owen 2007,
    theorem 5), and the interval is 1.96 deviations to both sides."""
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 0.15, 300)
    a, b = (rng.random((6, 300)) < np.clip(rate + rng.normal(0, 0.03, (6, 1)) + hard, 0, 1) for rate in (0.75, 0.70))
    students = (a.mean(1).var() + b.mean(1).var()) / 6
    episodes = (a.mean(0) - b.mean(0)).var() / 300
    left = sum((x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()).var() for x in (a, b)) / (6 * 300)
    low, high = compare_seeds(a, b, resamples=4000).ci95
    wide = 2 * 1.96 * (students + episodes + left) ** 0.5
    assert high - low == pytest.approx(wide, rel=0.06)
    assert (low + high) / 2 == pytest.approx(a.mean() - b.mean(), abs=0.1 * wide)


def test_over_seeds_all_students_meet_the_same_episodes() -> None:
    """Students that fail in the same episodes: drawn again, those weigh for all alike, and nothing is left of the difference."""
    row = np.random.default_rng(0).random(40) < 0.5
    found = compare_seeds(np.stack([row] * 3), np.stack([row] * 2), resamples=200)
    assert found.ci95 == pytest.approx((0, 0)) and found.non_inferior_3pp


def test_over_seeds_one_student_each_is_the_paired_difference() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random(400) < 0.9, rng.random(400) < 0.8
    one, pair = compare_seeds(a[None], b[None], resamples=4000), compare_paired(a, b)
    assert one.difference == pytest.approx(pair.difference)
    deviation = (a.astype(float) - b).std() / 20
    assert one.ci95 == pytest.approx((pair.difference - 1.96 * deviation, pair.difference + 1.96 * deviation), abs=0.006)
    with pytest.raises(ValueError, match="with one n"):
        compare_seeds(a[None], b[None, :10])


def test_a_ratios_interval_is_the_delta_methods_where_episodes_are_many() -> None:
    """Var(Σa/Σb) ≈ Σ(a − r·b)² / (Σb)² (Cochran 1977, eq. 6.13): what is counted in one episode hangs together."""
    rng = np.random.default_rng(0)
    steps = rng.integers(8, 81, 3000)
    toggles = rng.poisson(steps * rng.gamma(1, 0.05, 3000) * steps / 40)  # more often in longer ones
    assert toggles.sum() / steps.sum() > 1.2 * (toggles / steps).mean(), "so that a mean of rates is another number"
    rate = toggles.sum() / steps.sum()
    error = np.sqrt(((toggles - rate * steps) ** 2).sum()) / steps.sum()
    assert error > 1.5 * np.sqrt(toggles.sum()) / steps.sum(), "were they counted singly, the interval would be far narrower"
    assert ratio_ci95(toggles, steps) == pytest.approx((rate - 1.96 * error, rate + 1.96 * error), rel=0.02)


def test_a_ratio_of_few_episodes() -> None:
    assert ratio_ci95(np.zeros(5), np.ones(5)) == (0, 0)
    assert ratio_ci95(np.ones(1), np.ones(1)) is None
    with pytest.raises(ValueError, match=r"one shape \(n,\)"):
        ratio_ci95(np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match="positive, found 0"):
        ratio_ci95(np.ones(2), np.array([1, 0]))
