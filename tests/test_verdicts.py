"""Verdicts: the five words against the interval's ends, how many episodes or seeds would decide
against a closed form and by simulation, one verdict a recipe."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import norm
from test_outcomes import OUTCOMES, policy

from armlet.evaluation import stats, verdicts
from armlet.evaluation.outcomes import Outcomes, Planned
from armlet.evaluation.verdicts import judge, not_comparable, word


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.001, 0.02, "better"),
        (0.0, 0.02, "as good"),
        (-0.029, 0.02, "as good"),
        (-0.029, -0.001, "as good"),  # a little less, and by no more than the margin
        (-0.03, 0.02, "undecided"),
        (-0.031, -0.001, "worse"),
        (-0.031, 0.0, "undecided"),
        (-0.2, -0.1, "worse"),
    ],
)
def test_the_intervals_ends_decide(low: float, high: float, expected: str) -> None:
    assert word(low, high, 0.03) == expected


def outcomes_of(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = (both, only_a, only_b, neither)
    a = np.repeat([True, True, False, False], counts)
    b = np.repeat([True, False, True, False], counts)
    return a[None], b[None]


def test_a_pairs_verdict_has_the_pairs_numbers() -> None:
    a, b = outcomes_of(360, 2, 30, 8)
    found = judge("student", "teacher", a, b, 0.03)
    pair = stats.compare_paired(a[0], b[0])
    assert (found.verdict, found.difference) == ("worse", pytest.approx(-0.07))
    assert (found.low, found.high) == pair.ci95
    assert (found.episodes, found.seeds, found.versus_seeds, found.margin) == (400, 1, 1, 0.03)
    assert found.episodes_to_decide is None
    assert found.sentence == (
        f"student is worse than teacher: -7.0 pp (95 % interval {100 * pair.ci95[0]:+.1f} to "
        f"{100 * pair.ci95[1]:+.1f}; 400 paired episodes)."
    )


def test_a_little_less_is_said() -> None:
    found = judge("student", "teacher", *outcomes_of(9500, 50, 150, 300), 0.03)
    assert found.verdict == "as good" and found.high is not None and found.high < 0
    assert "as good as teacher within 3 points" in found.sentence
    assert "; less, but by no more than the margin" in found.sentence


@pytest.mark.parametrize("table", [(180, 8, 9, 3), (90, 4, 4, 2), (170, 10, 14, 6)])
def test_episodes_that_would_decide_are_those_of_the_closed_form(table) -> None:
    """(z₀.₉₇₅ + z₀.₈)² (ψ − δ²) / d², with one discordant pair added and t for z at these n."""
    a, b = outcomes_of(*table)
    found = judge("student", "teacher", a, b, 0.03)
    n = sum(table)
    share = (table[1] + table[2] + 1) / (n - 1)
    difference = (table[1] - table[2]) / n
    distance = max(difference + 0.03, -difference)
    closed = (norm.ppf(0.975) + norm.ppf(0.8)) ** 2 * (share - difference**2) / distance**2
    assert found.verdict == "undecided"
    assert found.episodes_to_decide == pytest.approx(closed, rel=0.03)
    assert f"about {found.episodes_to_decide:,} episodes would decide" in found.sentence


def test_so_many_episodes_do_decide_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    cells = np.array([180, 8, 8, 4]) / 200
    asked = judge("a", "b", *outcomes_of(180, 8, 8, 4), 0.03).episodes_to_decide
    assert asked is not None
    decided = 0
    for _ in range(300):
        table = rng.multinomial(asked, cells)
        decided += judge("a", "b", *outcomes_of(*map(int, table)), 0.03).verdict != "undecided"
    assert 0.74 <= decided / 300 <= 0.9


def students(rates: list[float], n: int) -> np.ndarray:
    """Outcomes (s, n) of exactly these rates, failures in other episodes for each student."""
    rows = []
    for number, rate in enumerate(rates):
        row = np.ones(n, bool)
        row[: round(n * (1 - rate))] = False
        rows.append(np.roll(row, 37 * number))
    return np.stack(rows)


def test_where_seeds_differ_more_seeds_are_asked_for_and_not_more_episodes() -> None:
    a = students([0.90, 0.96, 0.86], 4000)
    b = students([0.92], 4000)
    found = judge("recipe", "teacher", a, b, 0.03)
    assert (found.verdict, found.seeds, found.versus_seeds) == ("undecided", 3, 1)
    assert found.episodes_to_decide is None and found.seeds_to_decide is not None
    assert found.seeds_to_decide > 5
    assert f"about {found.seeds_to_decide} training seeds would decide" in found.sentence
    assert "a claim about a recipe takes 5 seeds" in found.sentence
    # As many seeds that differ as these do: the distance that they ask for is reached just then.
    few = stats.variances(a, b)
    distance = max(found.difference + 0.03, -found.difference)
    needed = verdicts._needed(3999) * few.episodes
    times = found.seeds_to_decide / 3
    assert needed + verdicts._of_seeds(few, times) <= distance**2
    assert needed + verdicts._of_seeds(few, times - 1 / 3) > distance**2


def test_where_seeds_hardly_differ_episodes_are_asked_for() -> None:
    a = students([0.90] * 5, 200)
    b = students([0.91], 200)
    found = judge("recipe", "teacher", a, b, 0.03)
    assert found.verdict == "undecided" and found.episodes_to_decide is not None
    assert found.episodes_to_decide > 200 and found.seeds_to_decide is None
    assert "a claim about" not in found.sentence


def test_of_several_seeds_there_is_one_verdict_against_the_teacher_and_each_baseline() -> None:
    episodes = tuple(Planned("seen", "hand", "touch", seed) for seed in range(8))
    names = ("teacher", "cut-0", "ours-0", "cut-1", "ours-1", "alone")
    runs = []
    for name in names:
        success = "11111111" if name == "teacher" else "11111110"
        runs.append(policy(name, success, [5] * 8))
    outcomes = Outcomes(10.0, 40, episodes, tuple(runs))
    found = verdicts.verdicts(outcomes, ("cut", "alone"), 0.03)
    assert [(each.policy, each.versus, each.seeds, each.versus_seeds) for each in found] == [
        ("cut", "teacher", 2, 1),
        ("ours", "teacher", 2, 1),
        ("alone", "teacher", 1, 1),
        ("ours", "cut", 2, 2),
        ("alone", "cut", 1, 2),
        ("ours", "alone", 2, 1),
    ]
    with pytest.raises(ValueError, match="names 'first_k', which is not run here; there are teach"):
        verdicts.verdicts(outcomes, ("first_k",), 0.03)
    with pytest.raises(ValueError, match="baselines teacher has no effect"):
        verdicts.verdicts(outcomes, ("teacher",), 0.03)


def test_a_policy_that_is_called_as_others_are_together_is_not_one_of_them() -> None:
    runs = tuple(policy(name, "111111", [5] * 6) for name in ("teacher", "cut", "cut-0", "cut-1"))
    outcomes = dataclasses.replace(OUTCOMES, policies=runs, delayed=())
    found = verdicts.verdicts(outcomes, (), 0.03)
    assert [(each.policy, each.seeds) for each in found] == [("cut", 1), ("cut (cut-0, cut-1)", 2)]


def test_each_split_has_verdicts_of_its_own_episodes() -> None:
    """A policy may be as good where it was taught and worse elsewhere."""
    seen = [Planned("seen", "tool", "rake", seed) for seed in range(200)]
    unseen = [Planned("unseen", "tool", "rake", seed) for seed in range(100)]
    good = "1" * 200
    runs = (
        policy("teacher", good + "1" * 100, [5] * 300),
        policy("student", good + "1" * 60 + "0" * 40, [5] * 300),
    )
    outcomes = Outcomes(10.0, 40, (*seen, *unseen), runs)
    (first,) = verdicts.verdicts(outcomes, (), 0.03)
    assert (first.verdict, first.difference, first.episodes) == ("as good", 0, 200)
    by_split = verdicts.verdicts_by_split(outcomes, (), 0.03)
    assert list(by_split) == ["unseen"]
    (other,) = by_split["unseen"]
    a, b = outcomes_of(60, 0, 40, 0)
    assert other == judge("student", "teacher", a, b, 0.03)
    assert (other.verdict, other.episodes) == ("worse", 100)


def test_what_cannot_be_compared_has_no_numbers() -> None:
    found = not_comparable("a", "b", "they met other episodes", 0.03)
    assert found.to_json()["difference"] is None and found.verdict == "not comparable"
    assert found.sentence == "a and b are not comparable: they met other episodes."
