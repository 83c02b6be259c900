"""No policy is tested on a world that it, or a recipe's choice, was made with: seeds of data,
rounds, trials and evaluations are apart, for every recipe; each of them makes exactly the worlds
that its range of seeds says; and nothing is chosen on what is kept for reports."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from outside import Dots, DotWorld, reaching

from armlet import calibrate, collect, distil, evaluate, recipes, seeds
from armlet.benchmarks.libero import Libero
from armlet.benchmarks.tabletop import Tabletop
from armlet.deploy.frames import FRAMES, TEXTS
from armlet.deploy.gates import SEED
from armlet.evaluation import settings
from armlet.recipe import Evaluation, Recipe, Round
from armlet.robot.outputs import Decision
from armlet.rollout import actors
from armlet.rollout.actors import ExpertActs, StudentActs, TeacherActs
from armlet.training import practice
from armlet.training.practice import TRIAL, first_seed

RECIPES = {name: recipes.find(name)() for name in recipes.available()}


def apart(ranges: dict[str, range]) -> None:
    """Sorted by their starts, each ends before the next begins."""
    filled = sorted((each.start, each.stop, what) for what, each in ranges.items() if len(each))
    for (_, stop, what), (start, _, other) in itertools.pairwise(filled):
        assert stop <= start, f"{what} and {other} share seeds"


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_trains_on_and_is_tested_on_is_apart(name: str) -> None:
    ranges = settings.seeds(RECIPES[name])
    assert len(ranges["evaluation"]) == RECIPES[name].evaluation.episodes > 0
    assert {what for what in ranges if what.endswith("its trial")} == {
        f"rounds.{n}, its trial" for n in range(len(RECIPES[name].rounds))
    }
    apart(ranges)


def test_no_recipe_is_tested_on_what_another_was_made_with() -> None:
    """A student is compared with those of other recipes, and starts from a teacher that was made by
    another."""
    tested = [
        each
        for recipe in RECIPES.values()
        for what, each in settings.seeds(recipe).items()
        if what == "evaluation"
    ]
    for recipe in RECIPES.values():
        for what, each in settings.seeds(recipe).items():
            if what != "evaluation" and len(each):
                assert all(
                    each.stop <= other.start or other.stop <= each.start for other in tested
                ), (recipe.name, what)


made: list[int] = []  # the seeds of all worlds, in order


class Watched(Dots):
    """The dots, watched."""

    def make(self, task, seed: int) -> DotWorld:
        made.append(seed)
        return super().make(task, seed)


@pytest.fixture
def recipe(monkeypatch, tmp_path) -> Recipe:
    made.clear()
    answer = np.zeros((2, 1), np.float32)
    still = SimpleNamespace(
        execute=2,
        reset=lambda: None,
        infer=lambda seen: answer,
        decide=lambda seen: Decision(answer, (1,)),
    )
    monkeypatch.setattr(actors, "loaded", lambda folder, device, known=None: still)
    return dataclasses.replace(reaching(), benchmark=Watched(), out=tmp_path)


def test_an_expert_and_a_teacher_that_act_use_the_collections_seeds(recipe) -> None:
    said = settings.seeds(recipe)["collection"]
    for acts in (
        ExpertActs(recipe.benchmark, recipe.collection),
        TeacherActs(recipe.benchmark, recipe.teacher, recipe.collection.seed),
    ):
        made.clear()
        for attempt in range(recipe.collection.episodes):
            acts(attempt)
        assert made == list(said)


def test_a_rounds_student_and_its_trial_use_the_rounds_seeds(recipe, monkeypatch) -> None:
    stage = recipe.stages[0]
    recipe = dataclasses.replace(
        recipe, rounds=(Round(stage, episodes=3, trial=2), Round(stage, episodes=4, trial=3))
    )
    ranges = settings.seeds(recipe)
    apart(ranges)
    tried: list[int] = []

    def run_all(field, benchmark, attempts, **settings):
        for attempt in attempts:
            tried.append(attempt.seed)
            yield attempt, SimpleNamespace(success=True)

    monkeypatch.setattr(practice, "run_all", run_all)
    for number, each in enumerate(recipe.rounds):
        made.clear()
        tried.clear()
        student = StudentActs(
            recipe.benchmark, recipe.out, recipe.teacher, first_seed(recipe, number), each.split
        )
        for attempt in range(each.episodes):
            student(attempt)
        assert made == list(ranges[f"rounds.{number}"])
        practice._successes(recipe, each, [recipe.out / "student"], number)
        assert tried == list(ranges[f"rounds.{number}, its trial"])
        assert tried[0] == first_seed(recipe, number) + TRIAL


def test_what_seeds_are_for_is_apart_and_the_first_are_where_they_were() -> None:
    """Reports from before there were ranges began at 500,000,000, and recipes were chosen there."""
    ranges = (seeds.TRAINING, seeds.CALIBRATION, seeds.AUDIT, seeds.TUNING, seeds.REPORT)
    apart(dict(zip("abcde", ranges, strict=True)))
    for seed in (FRAMES, TEXTS, SEED):
        assert seed not in seeds.REPORT, "an export's gates choose as well"
    assert Evaluation().first_seed == 500_000_000
    assert Evaluation(purpose="report").first_seed in seeds.REPORT
    assert Evaluation(purpose="report", seed=700_000_007).first_seed == 700_000_007
    assert seeds.purpose_of(range(500_000_000, 500_002_000)) == "tuning"
    assert seeds.purpose_of(range(740_000_000, 740_001_000)) == "report"
    assert seeds.purpose_of(range(699_999_999, 700_000_400)) is None


@pytest.mark.parametrize("name", RECIPES)
def test_no_recipe_is_trained_or_chosen_on_what_is_kept_for_reports(name: str) -> None:
    settings.choose_elsewhere(RECIPES[name])


CHOSEN_ON_REPORTS = {
    "collection": lambda recipe: dataclasses.replace(
        recipe, collection=dataclasses.replace(recipe.collection, seed=800_000_000)
    ),
    "rounds.0": lambda recipe: with_round(recipe, seed=800_000_000),
    # Its own episodes are below the range, and those that decide are in it.
    "rounds.0, its trial": lambda recipe: with_round(recipe, seed=REPORTS - TRIAL, trial=3),
}
REPORTS = seeds.REPORT.start


def with_round(recipe: Recipe, **how) -> Recipe:
    return dataclasses.replace(recipe, rounds=(Round(recipe.stages[0], episodes=3, **how),))


@pytest.mark.parametrize("what", CHOSEN_ON_REPORTS)
@pytest.mark.parametrize("verb", [collect, distil, calibrate, evaluate])
def test_whoever_trains_or_chooses_on_what_is_kept_for_reports_is_refused(
    recipe, what: str, verb
) -> None:
    changed = CHOSEN_ON_REPORTS[what](recipe)
    if verb is collect and what != "collection":
        pytest.skip("collects nothing for rounds")
    with pytest.raises(ValueError, match=f"^{what} has the seeds .* are kept for reports"):
        verb.main(changed)
    assert not made, "before anything was run"


def few(states: int | None, splits: tuple[str, ...] = ("seen",), **changes) -> Recipe:
    """A recipe on tabletop whose splits behind `seen` have so many initial states."""

    class Few(Tabletop):
        def states(self, split: str) -> int | None:
            return None if split == "seen" else states

    recipe = recipes.make("first_k_tabletop")
    setting = dataclasses.replace(recipe.evaluation, splits=splits, **changes)
    return dataclasses.replace(recipe, benchmark=Few(), evaluation=setting)


def test_initial_states_that_reports_are_on_are_not_chosen_on() -> None:
    """LIBERO's official ones are the same fifty for every range of seeds."""
    assert [Libero().states(split) for split in ("seen", "official")] == [None, 50]
    assert recipes.make("first_k_libero_object_25").evaluation.splits == ("seen",)
    other = Tabletop().splits[1]
    tasks = len(Tabletop().tasks(other))
    with pytest.raises(ValueError, match="5 initial states a task, the same for every seed"):
        settings.check(few(5, (other,)))
    with pytest.raises(ValueError, match="nothing may be chosen there"):
        settings.check_calibration_states(few(5, (other, "seen")))
    settings.check_calibration_states(few(5, ("seen", other)))
    settings.check(few(5, (other,), purpose="report", episodes=5 * tasks))
    with pytest.raises(ValueError, match=f"give at most {5 * tasks}"):
        settings.check(few(5, (other,), purpose="report", episodes=5 * tasks + 1))
    routed = few(5, (other,), purpose="report", episodes=tasks, routes=("static",))
    with pytest.raises(ValueError, match="routes on"):
        settings.check(routed)
    settings.check(few(None, (other,)))


def test_every_episode_of_an_evaluation_has_a_seed_of_its_own_in_its_range(recipe) -> None:
    planned = settings.planned(recipe.benchmark, recipe.evaluation)
    assert [seed for _, seed in planned] == list(settings.seeds(recipe)["evaluation"])
