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
    assert forward.non_inferior_3pp
    assert not compare_paired(a[:20], b[:20]).non_inferior_3pp
    same = compare_paired(a, a)
    assert same.difference == 0 and same.mcnemar_p == 1 and same.only_a == same.only_b == 0
    with pytest.raises(ValueError, match="one shape"):
        compare_paired(a, b[:-1])


def test_over_seeds_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Students whose skill varies with the seed, episodes whose difficulty varies: 95 % of intervals, or nearly, hold the difference."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(60):
        hard = rng.normal(0, 0.05, 300)
        a, b = (rng.random((6, 300)) < np.clip(rate + rng.normal(0, 0.02, (6, 1)) + hard, 0, 1) for rate in (0.90, 0.85))
        found = compare_seeds(a, b, resamples=300)
        held += found.ci95[0] <= 0.05 <= found.ci95[1]
    assert held >= 51


def test_over_seeds_one_student_each_is_the_paired_difference() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random(400) < 0.9, rng.random(400) < 0.8
    one, pair = compare_seeds(a[None], b[None], resamples=2000), compare_paired(a, b)
    assert one.difference == pytest.approx(pair.difference)
    assert one.ci95 == pytest.approx(pair.ci95, abs=0.02)
    same = compare_seeds(np.stack([a, a]), np.stack([a, a]), resamples=200)
    assert same.difference == 0 and same.ci95 == (0, 0) and same.non_inferior_3pp
    with pytest.raises(ValueError, match="with one n"):
        compare_seeds(a[None], b[None, :10])


def test_a_ratios_interval_is_the_delta_methods_where_episodes_are_many() -> None:
    """Var(Σa/Σb) ≈ Σ(a − r·b)² / (Σb)² (Cochran 1977, eq. 6.13): what is counted in one episode hangs together."""
    rng = np.random.default_rng(0)
    steps = rng.integers(8, 81, 3000)
    toggles = rng.poisson(steps * rng.gamma(1, 0.05, 3000))
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
