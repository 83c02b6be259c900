"""Nobody is tested in worlds that somebody was trained in: seeds of collection, practice, trials and evaluation, in every recipe."""

import itertools

import pytest

from armlet import recipes
from armlet.benchmarks.tabletop import Tabletop
from armlet.practice import first_seed
from armlet.recipe import Collection, Evaluation, Recipe, Round
from armlet.rollout import plan

RECIPES = [recipes.find(name)() for name in recipes.available()]
MOST = 100_000  # episodes that anybody may ask for on the command line without one use reaching into another's


def worlds(recipe: Recipe) -> dict[str, range]:
    """Which seeds are used for what."""
    found = {
        "collected": range(recipe.collection.seed, recipe.collection.seed + recipe.collection.episodes),
        "evaluated": range(recipe.evaluation.seed, recipe.evaluation.seed + recipe.evaluation.episodes),
    }
    for number, each in enumerate(recipe.rounds):
        first = first_seed(recipe, number)
        found[f"practised {number}"] = range(first, first + each.episodes)
    return found


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_no_two_uses_share_a_world(recipe: Recipe) -> None:
    used = worlds(recipe)
    names = sorted(used)
    for place, name in enumerate(names):
        for other in names[place + 1 :]:
            assert used[name].stop <= used[other].start or used[other].stop <= used[name].start, (name, other)


def test_what_is_used_where_nothing_is_said_is_far_apart() -> None:
    firsts = sorted([Collection().seed, Round(stage=None).seed, Evaluation().seed])
    assert min(after - before for before, after in itertools.pairwise(firsts)) > MOST


def test_a_plan_has_a_world_for_every_episode_and_the_tasks_in_turn() -> None:
    benchmark = Tabletop()
    for split in ("seen", "unseen_scenes"):
        made = plan(benchmark, split, 25, 1000)
        assert [seed for _, seed in made] == list(range(1000, 1025))
        tasks = benchmark.tasks(split)
        assert [task for task, _ in made] == [tasks[index % len(tasks)] for index in range(25)]
        assert {task.split for task, _ in made} == {split}
    assert plan(benchmark, "seen", 10, 1000) == plan(benchmark, "seen", 25, 1000)[:10], "more episodes: the same, and others"
