"""The longest `execute` that is non-inferior: how often it is chosen wrongly, what is run again, and
what an evaluation takes from it."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from outside import reaching
from test_evaluate import LongDots, dots_policy

from armlet import calibrate
from armlet.evaluation import calibration, episodes, stats
from armlet.evaluation.calibration import Rate, longest, longest_rows, search, values_for
from armlet.evaluation.settings import contenders
from armlet.measuring import Calibration
from armlet.policies.checkpoint import save_policy
from armlet.recipe import Recipe
from armlet.rollout.loop import Episode

# --- the choice


def compared(both: int, only_a: int, only_b: int, neither: int):
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    return stats.compare_paired(a, b)


SAME = compared(950, 20, 20, 10)
WORSE = compared(900, 10, 60, 30)


def rated(execute: int) -> Rate:
    return Rate(execute, 0, 1000, (0.0, 1.0), 1.0)


@pytest.mark.parametrize(
    ("order", "asked", "chosen"), [("sequential", [3, 4], 3), ("all", [3, 4, 5, 6], 5)]
)
def test_in_turn_the_first_failure_ends_it_and_all_are_all(order, asked, chosen) -> None:
    seen = []
    found = {3: SAME, 4: WORSE, 5: SAME, 6: WORSE}

    def compare(value: int):
        seen.append(value)
        return rated(value), found[value]

    tried = search((3, 4, 5, 6), compare, Calibration(order=order))
    assert seen == asked == [each.rate.execute for each in tried]
    assert longest(2, tried) == chosen
    assert longest(2, [each for each in tried if not each.non_inferior]) == 2
    confidence = {"sequential": 0.95, "all": 1 - 0.05 / 4}[order]
    for each in tried:
        pair = each.pair
        counts = (pair.both, pair.only_a, pair.only_b, pair.neither)
        assert each.lower == stats.newcombe_paired(*counts, confidence=confidence)[0]
    if order == "sequential":
        assert tried[0].lower == SAME.ci95[0]


def test_the_margin_decides() -> None:
    pair = compared(940, 20, 30, 10)
    low = pair.ci95[0]
    for margin, shown in ((-low + 1e-9, True), (-low - 1e-9, False)):
        [tried] = search([3], lambda value: (rated(value), pair), Calibration(margin=margin))
        assert tried.non_inferior is shown


@pytest.mark.parametrize("order", ["sequential", pytest.param("all", marks=pytest.mark.slow)])
def test_a_number_that_is_worse_by_the_margin_is_rarely_taken(order) -> None:
    """Every longer number is worse by exactly the margin, so that any choice is a false one: of at
    most 2.5 % of calibrations by design. Picking the longest of those that are shown, each at the
    full level, is wrong in several times as many."""
    rng = np.random.default_rng(0)
    how = Calibration(order=order, margin=0.03)
    n, own, values = 400, 0.9, (3, 4, 5, 6)
    wrong = careless = 0
    simulations = 400
    for _ in range(simulations):
        # A hard episode is hard for all numbers of actions, which makes pairs worth having.
        hard = rng.random(n)
        first = hard < own
        outcomes = {}
        for value in values:
            lost = first & (rng.random(n) < 0.05 / own)
            won = ~first & (rng.random(n) < 0.02 / (1 - own))
            outcomes[value] = (first & ~lost) | won

        def compare(value: int, outcomes=outcomes, first=first):
            return rated(value), stats.compare_paired(outcomes[value], first)

        wrong += longest(2, search(values, compare, how)) > 2
        careless += any(compare(value)[1].ci95[0] > -0.03 for value in values)
    assert wrong / simulations <= 0.045  # 2.5 %, and 2.6 standard errors
    assert careless / simulations > 0.05


def test_numbers_up_to_the_chunk_are_tried() -> None:
    assert values_for(2, 6, Calibration()) == [3, 4, 5, 6]
    assert values_for(2, 6, Calibration(execute=(8, 4, 2))) == [4]
    assert values_for(4, 4, Calibration()) == []


def test_a_number_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="execute says a value twice: 4 4"):
        Calibration(execute=(4, 4))


# --- the verb


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    save_policy(dots_policy(0), tmp_path / "teacher")
    return dataclasses.replace(
        reaching(),
        benchmark=LongDots(),
        teacher=tmp_path / "teacher",
        out=tmp_path / "out",
        calibration=Calibration(episodes=300, workers=1),
    )


@pytest.fixture
def ran(monkeypatch) -> list[str]:
    """What is really run, by the number of actions. Up to 3, one episode of 30 fails; with more,
    every fifth."""
    jobs: list[str] = []

    def run_all(field, benchmark, attempts, **settings):
        for each in attempts:
            jobs.append(each.name)
            execute = field[each.name].execute or 2
            fails = each.seed % 5 == 0 if execute > 3 else each.seed % 30 == 0
            decisions = ((1, 1),) * -(-12 // execute)
            yield each, Episode(not fails, np.zeros((12, 1)), 0, None, decisions)

    monkeypatch.setattr(episodes, "run_all", run_all)
    return jobs


def test_what_is_found_is_written_and_shown(recipe, ran, capsys) -> None:
    path = calibrate.main(recipe)
    assert path == recipe.out / "calibration.json"
    found = json.loads(path.read_text())
    [teacher] = found["policies"]
    assert (teacher["name"], teacher["chunk"], teacher["longest"]) == ("teacher", 4, 3)
    assert [each["rate"]["execute"] for each in teacher["tried"]] == [3, 4]
    assert [each["non_inferior"] for each in teacher["tried"]] == [True, False]
    assert teacher["own"]["successes"] == 290 and teacher["own"]["execute"] == 2
    # Six decisions of two actions, four of three, in 12 steps at 5 Hz.
    rates = [teacher["own"]["decisions_per_second"]]
    rates += [each["rate"]["decisions_per_second"] for each in teacher["tried"]]
    assert rates == pytest.approx([2.5, 5 / 3, 1.25])
    assert found["seeds"] == [300_000_000, 300_000_299]
    table = path.with_suffix(".md").read_text()
    assert table.strip() in capsys.readouterr().out and "- teacher: execute 3\n" in table
    assert "| teacher | 4 | 240/300 = 80.0 % |" in table and "not shown |" in table


def test_nothing_is_run_twice(recipe, ran) -> None:
    calibrate.main(recipe)
    # Its own number once, though it is met twice.
    assert len(ran) == 3 * 300
    calibrate.main(recipe)
    assert len(ran) == 3 * 300
    longer = dataclasses.replace(recipe.calibration, episodes=310)
    calibrate.main(dataclasses.replace(recipe, calibration=longer))
    assert len(ran) == 3 * 310


def test_an_evaluation_has_a_row_for_what_was_found(recipe, ran) -> None:
    save_policy(dots_policy(1), recipe.student_folder)
    calibrate.main(recipe)
    field = contenders(recipe)
    found = longest_rows(recipe, field)
    assert {name: each.execute for name, each in found.items()} == {
        "teacher execute 3": 3,
        "reaching execute 3": 3,
    }
    assert found["teacher execute 3"].folder == recipe.teacher
    assert longest_rows(dataclasses.replace(recipe, out=recipe.out / "elsewhere"), field) == {}


def test_a_policy_whose_own_number_is_the_longest_has_no_second_row(recipe, ran) -> None:
    only = dataclasses.replace(recipe.calibration, execute=(4,))
    recipe = dataclasses.replace(recipe, calibration=only)
    calibrate.main(recipe)
    assert longest_rows(recipe, contenders(recipe)) == {}
    assert "- teacher: execute 2, its own" in (recipe.out / "calibration.md").read_text()


def change_teacher(recipe: Recipe) -> Recipe:
    save_policy(dots_policy(5), recipe.teacher)
    return recipe


def change_world(recipe: Recipe) -> Recipe:
    return dataclasses.replace(recipe, benchmark=LongDots(13))


def make_student(recipe: Recipe) -> Recipe:
    save_policy(dots_policy(1), recipe.student_folder)
    return recipe


def meet_seeds(recipe: Recipe) -> Recipe:
    # The recipe's own range is elsewhere: the one in the file counts.
    path = recipe.out / "calibration.json"
    said = json.loads(path.read_text())
    said["seeds"] = [700_000_000, 700_000_299]
    path.write_text(json.dumps(said))
    return recipe


def write_anew(recipe: Recipe) -> Recipe:
    path = recipe.out / "calibration.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    return recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_teacher, r"was made from another 'teacher': fingerprint \w+ of .*, and .* has \w+"),
        (change_world, r"another world \(limit: 12 → 13\)"),
        (make_student, r"knows no policy 'reaching', only teacher"),
        (
            meet_seeds,
            r"calibration\.json: calibration has the seeds 700,000,000 to 700,000,299, expected "
            r"seeds within 300,000,000 to 399,999,999",
        ),
        (write_anew, r"has version 2, expected 1"),
    ],
)
def test_a_calibration_of_something_else_is_an_error_that_says_what(
    recipe, ran, change, message
) -> None:
    calibrate.main(recipe)
    changed = change(recipe)
    with pytest.raises(ValueError, match=message):
        longest_rows(changed, contenders(changed))


def test_a_baseline_that_was_not_calibrated_is_said(recipe, ran, tmp_path, capsys) -> None:
    calibrate.main(recipe)
    save_policy(dots_policy(2), tmp_path / "baseline")
    recipe = dataclasses.replace(recipe, policies=(tmp_path / "baseline",))
    assert list(longest_rows(recipe, contenders(recipe))) == ["teacher execute 3"]
    assert "knows no policy 'baseline'" in capsys.readouterr().err
    calibrate.main(recipe)
    assert list(longest_rows(recipe, contenders(recipe))) == [
        "teacher execute 3",
        "baseline execute 3",
    ]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"execute": (3, 6)}, "execute 6 would be tried for no policy: teacher carries out 2 of 4"),
        ({"execute": (2,)}, "execute 2 would be tried for no policy"),
        ({"seed": 500_000_003}, "the seeds 500,000,003 to 500,000,302, expected seeds within 300"),
        ({"seed": 399_999_999}, "399,999,999 to 400,000,298, expected .* the calibration range"),
        ({"seed": 700_000_000}, "the seeds 700,000,000 to 700,000,299, expected seeds within 300"),
    ],
)
def test_what_would_be_no_calibration_is_refused_before_anything_is_run(
    recipe, ran, setting, message
) -> None:
    def work() -> None:
        how = dataclasses.replace(recipe.calibration, **setting)
        calibrate.main(dataclasses.replace(recipe, calibration=how))

    with pytest.raises(ValueError, match=message):
        work()
    assert not ran


def test_nothing_is_calibrated_on_worlds_that_policies_were_trained_on(recipe, ran) -> None:
    """Collected with a seed of one's own, and so many that they reach them."""
    met = dataclasses.replace(recipe.collection, seed=300_000_000 - 10, episodes=11)
    with pytest.raises(ValueError, match=r"calibration has the seeds .*, and collection has"):
        calibrate.main(dataclasses.replace(recipe, collection=met))
    assert not ran
    calibrate.main(dataclasses.replace(recipe, collection=dataclasses.replace(met, episodes=10)))
    assert ran


def test_without_a_world_there_is_nothing_to_calibrate_in(recipe) -> None:
    with pytest.raises(ValueError, match="no world to calibrate in"):
        calibrate.main(dataclasses.replace(recipe, benchmark=None))


def test_a_policys_chunk_is_asked_for_where_it_does_not_say(recipe, monkeypatch) -> None:
    class Foreign:
        execute = 2

        def infer(self, observation):
            return np.zeros((7, 1), np.float32)

        def decide(self, observation):
            from armlet.policies.contract import Decision

            return Decision(self.infer(observation), ())

        def reset(self) -> None:
            pass

    assert calibrate.chunk_of(Foreign(), recipe.benchmark, recipe) == 7
    assert calibrate.chunk_of(dots_policy(0), recipe.benchmark, recipe) == 4


def test_the_file_is_read_as_it_was_written(recipe, ran) -> None:
    path = calibrate.main(recipe)
    said = json.loads(path.read_text())
    assert said["version"] == calibration.VERSION and said["split"] == "seen"
    assert Path(said["policies"][0]["folder"]) == recipe.teacher
    assert said["setting"]["margin"] == 0.03
