"""Baselines have the chances that ActDistill has: data, teacher, steps, rate, augmentation, first
weights and no less of the network. Whoever gives one of them more says so here."""

from dataclasses import fields

import pytest

from armlet import recipes
from armlet.data.transforms import Explore
from armlet.policies.layer_search import LayerSearch
from armlet.policies.routed import Routing
from armlet.policies.students import FirstK, Fresh, LayerDrop, Whole
from armlet.recipe import Recipe
from armlet.recipes.bases import Imitate, MatchOutput

DEPTH = 8  # layers of the teachers of these worlds
WORLDS = ("", "_tabletop", "_metaworld", "_demo")
# Of a stage: what an objective, a student and a compiler decide, and nothing that could favour one.
OWN = {"objective", "steps", "transforms", "freeze", "compile"}
FROM_NOTHING = ("bc", "bc_long")
CUT = ("first_k", "layer_drop", "layer_search", "random_skip", "bc_warm", "bc_whole", *FROM_NOTHING)


def there(world: str) -> list[str]:
    return [name for name in CUT if name + world in recipes.available()]


CASES = [(name, world) for world in WORLDS for name in there(world)]
BOTH = pytest.mark.parametrize(("name", "world"), CASES)


def steps(recipe: Recipe) -> int:
    return sum(stage.steps for stage in recipe.all_stages)


def test_each_world_has_the_baselines_that_matter() -> None:
    assert set(there("")) == set(CUT) - {"bc_whole"} and set(there("_tabletop")) == set(CUT)
    assert {"first_k", "layer_search", "bc", "bc_warm", "bc_long"} <= set(there("_metaworld"))


@BOTH
def test_a_baseline_trains_as_long_as_actdistill_in_the_same_way(name: str, world: str) -> None:
    ours, theirs = recipes.make(f"actdistill{world}"), recipes.make(name + world)
    (stage,) = theirs.stages
    if name == "bc_long":
        assert theirs.teach is not None
        assert steps(theirs) == theirs.teach.steps + steps(ours), "its teacher's steps as well"
    else:
        assert steps(theirs) == steps(ours)
    for own in ours.stages:
        assert tuple(each for each in own.transforms if not isinstance(each, Explore)) == (
            stage.transforms
        ), "of what is done to a batch, ActDistill has only the noise in its routes for itself"
        for each in fields(stage):
            if each.name in OWN or (each.name == "learning_rate" and name in FROM_NOTHING):
                continue
            assert getattr(own, each.name) == getattr(stage, each.name), each.name
    for field in (
        "episodes",
        "collection",
        "held_out",
        "split",
        "seed",
        "probe",
        "teach",
        "rounds",
    ):
        assert getattr(ours, field) == getattr(theirs, field), field
    if world:
        assert (ours.teacher, ours.traces) == (theirs.teacher, theirs.traces)


@BOTH
def test_a_baseline_keeps_no_less_of_the_network(name: str, world: str) -> None:
    ours, theirs = recipes.make(f"actdistill{world}"), recipes.make(name + world)
    assert isinstance(ours.student, Routing) and ours.student.budget is not None
    student = theirs.student
    if isinstance(student, Fresh):
        student = student.student
    share = 1.0
    if isinstance(student, FirstK | LayerDrop | LayerSearch):
        share = student.layers / DEPTH
    elif isinstance(student, Routing):
        share = student.initial_keep
    else:
        assert student == Whole()
    assert share >= ours.student.budget


@BOTH
def test_first_weights_and_what_is_told(name: str, world: str) -> None:
    recipe = recipes.make(name + world)
    (stage,) = recipe.stages
    own = recipes.make(f"actdistill{world}").stages[-1]
    if name in FROM_NOTHING:
        assert isinstance(recipe.student, Fresh) and not recipe.why_teacher_is_needed
        assert stage.learning_rate == 1e-3, "as a teacher is taught, from nothing too"
    else:
        assert recipe.student is not None and recipe.student.needs_teacher
        # The eyes stay the teacher's for all who have them.
        assert [each.replace(".inner", "") for each in stage.freeze] == ["policy.vision.*"]
        assert stage.freeze[0].endswith("vision.*") and own.freeze[0].endswith("vision.*")
    if name.startswith("bc"):
        assert isinstance(stage.objective, Imitate) and not stage.needs
        if name not in FROM_NOTHING:
            assert stage.objective.facts == (), "the expert's actions and nothing else"
    else:
        assert stage.objective == MatchOutput(), "told as ActDistill's second stage is"


def test_whoever_has_more_steps_is_named() -> None:
    more = []
    for name in recipes.available():
        if name.startswith(("aed", "vita_vla", "vla_ad")):
            continue
        recipe = recipes.make(name)
        if name.startswith("flagship") and recipe.rounds:
            continue  # a round on-policy, which its own ablation is without
        world = next(each for each in reversed(WORLDS) if name.endswith(each))
        if recipe.stages and steps(recipe) > steps(recipes.make(f"first_k{world}")):
            more.append(name)
    assert sorted(more) == [
        "bc_long",
        "bc_long_metaworld",
        "bc_long_tabletop",
        "onpolicy_tabletop",
    ]
