"""Recipes that are products of a system, a world and a budget: what a name says is what is made, and
within a world all have the same chances."""

import importlib
from dataclasses import fields
from functools import cache

import pytest

from armlet import recipes
from armlet.annotators.phase_rules import METAWORLD, PhaseRules
from armlet.data.transforms import Explore
from armlet.evaluation import settings
from armlet.policies.layer_search import LayerSearch
from armlet.policies.routed import Routing
from armlet.policies.students import FirstK, Fresh, LayerDrop
from armlet.policies.vla import VLANetwork
from armlet.recipe import Recipe, Stage
from armlet.recipes import bases

# A stage's own: what an objective, a student and a compiler decide. Batches have their own eyes for
# `Augment` (aed) and never favour one otherwise.
OWN = {"objective", "steps", "transforms", "freeze", "freeze_pretrained", "train", "compile"}
LONGER = ("bc_long",)  # named so
FROM_NOTHING = ("bc", "bc_long", "aed", "vita_vla", "vla_ad")  # 1e-3, as a teacher is taught
PLACES: dict[str, tuple[str, str, int | None]] = {}
for stem, product in recipes.products().items():
    for name, place in product.names(stem).items():
        PLACES[name] = (stem, *place)


@cache
def made(name: str) -> Recipe:
    return recipes.make(name)


def base_of(world: str) -> Recipe:
    recipe: Recipe = getattr(bases, world)()
    return recipe


def test_a_listing_is_what_the_tables_say() -> None:
    said = recipes.products()
    assert not PLACES.keys() & recipes.available().keys()
    assert PLACES.keys() == recipes.product_names().keys()
    for module in sorted({each.module for each in said.values()}):
        there = importlib.import_module(f"armlet.recipes.{module}")
        for table in (recipes.AT_BUDGETS, recipes.IN_WORLDS):
            rows = getattr(there, table, {})
            own = {n: p for n, p in said.items() if (p.module, p.table) == (module, table)}
            assert rows.keys() == own.keys(), (module, table)
            for stem, row in rows.items():
                assert (row.summary, row.worlds) == (own[stem].summary, own[stem].worlds), stem


def share(recipe: Recipe) -> float:
    """Of the teacher's layers, what the student runs."""
    student = recipe.student
    if isinstance(student, Fresh):
        student = student.student
    if isinstance(student, Routing):
        kept = student.initial_keep if student.chooser == "random" else student.budget
        assert kept is not None
        return kept
    assert isinstance(student, FirstK | LayerDrop | LayerSearch)
    assert isinstance(recipe.network, VLANetwork)
    return student.layers / recipe.network.depth


def test_a_budget_is_the_share_of_the_teacher_that_runs() -> None:
    asked = [each for each in PLACES.items() if each[1][2] is not None]
    assert len(asked) == 15 * len(recipes.WORLDS) * len(recipes.BUDGETS)
    for name, (_, _, budget) in asked:
        assert budget is not None
        assert share(made(name)) == budget / 100, name
        for stage in made(name).stages:
            keep = getattr(stage.objective, "keep", budget / 100)
            if getattr(stage.objective, "budget", 0):
                assert keep == budget / 100, name


def chances(stage: Stage, *, rate: bool) -> dict[str, object]:
    left = OWN if rate else OWN | {"learning_rate"}
    return {each.name: getattr(stage, each.name) for each in fields(stage) if each.name not in left}


@pytest.mark.parametrize("world", recipes.WORLDS)
def test_all_of_a_world_are_trained_as_long_in_the_same_way(world: str) -> None:
    base = base_of(world)
    (usual,) = base.stages
    for name, (stem, where, _) in PLACES.items():
        if where != world:
            continue
        recipe = made(name)
        assert (recipe.name, recipe.out.name) == (name, name)
        steps = sum(stage.steps for stage in recipe.stages)
        extra = base.teach.steps if stem in LONGER and base.teach is not None else 0
        assert steps == usual.steps + extra, name
        same_rate = not stem.startswith(FROM_NOTHING) or stem in ("bc_warm", "bc_whole")
        for stage in recipe.stages:
            assert chances(stage, rate=same_rate) == chances(usual, rate=same_rate), name
            if not stem.startswith(("aed", "vita_vla", "vla_ad")):
                transforms = [t for t in stage.transforms if not isinstance(t, Explore)]
                assert tuple(transforms) == usual.transforms, name
        for field in ("episodes", "collection", "held_out", "split", "seed", "evaluation"):
            assert getattr(recipe, field) == getattr(base, field), (name, field)
        if not stem.startswith(("aed", "vita_vla")):  # they have teachers of their own
            assert (recipe.teacher, recipe.traces) == (base.teacher, base.traces), name


def test_seeds_are_apart() -> None:
    for name in PLACES:
        settings.apart("evaluation", settings.seeds(made(name)))


def test_rules_of_a_step_follow_the_rate() -> None:
    """A command of 1 moves Meta-World's hand by 4 cm at 20 Hz, and by 2 cm at 40 Hz."""
    annotator = recipes.make("vla_ad_mt50").annotator
    assert isinstance(annotator, PhaseRules)
    assert annotator.embodiment.metres_per_command == 0.02
    assert annotator.embodiment.settled == METAWORLD.settled / 2
    spec = recipes.make("vla_ad_mt50").world("a test").action_spec
    assert spec.translation_scale == annotator.embodiment.metres_per_command
    same = recipes.make("vla_ad_metaworld").annotator
    assert isinstance(same, PhaseRules) and same.embodiment == METAWORLD


def test_a_share_that_is_no_number_of_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.3 of the 16 layers of 'mt50' is 4\.8, no whole"):
        bases.layers_at(bases.mt50(), 0.3)
    with pytest.raises(ValueError, match="no VLANetwork"):
        bases.layers_at(bases.two_towers(bases.mt10()), 0.5)
    with pytest.raises(ValueError, match="did you mean 'first_k_mt50_25'"):
        recipes.find("first_k_mt50_24")
