"""The simple ways to a smaller network, on the data, teacher, traces and number of steps of every
other recipe.

`first_k` is the one that matters most: the published router's activation falls with depth, close to
running the first layers only (recipes.md §1, 3). On tabletop each keeps two of eight layers, as
many as ActDistill's student runs.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from armlet.policies.contract import Student
from armlet.policies.layer_search import LayerSearch
from armlet.policies.routed import Routing
from armlet.policies.students import FirstK, Fresh, LayerDrop, Whole
from armlet.recipe import Recipe
from armlet.recipes.bases import (
    FACTS,
    Across,
    Imitate,
    Row,
    demo,
    layers_at,
    libero_object,
    libero_spatial,
    metaworld,
    own,
    tabletop,
)

KEPT = 2  # of eight layers, on tabletop
HALF = 4  # of as many, for a robot that nobody knows


def first_k(base: Recipe, kept: int = KEPT) -> Recipe:
    """The first layers, with the teacher's eyes as they are."""
    stage = replace(base.stages[0], freeze=("policy.vision.*",))
    # The teacher's own eyes go on giving its own tokens, which the kept layers know.
    return replace(base, student=FirstK(kept), stages=(stage,))


def layer_drop(base: Recipe, kept: int = KEPT) -> Recipe:
    """Other layers of the teacher, trained as `first_k` is."""
    return replace(first_k(base), student=LayerDrop(kept))


def layer_search(base: Recipe, kept: int = KEPT) -> Recipe:
    """The layers whose actions are nearest to the teacher's as they are, trained as `first_k` is."""
    return replace(first_k(base), student=LayerSearch(kept))


def random_skip(base: Recipe, share: float = KEPT / 8) -> Recipe:
    # Not compiled: another number of samples goes through a layer at every step.
    stage = replace(base.stages[0], freeze=("policy.inner.vision.*",), compile=False)
    student = Routing(chooser="random", initial_keep=share)
    return replace(base, student=student, stages=(stage,))


def bc(base: Recipe, kept: int = KEPT, facts: tuple[str, ...] = FACTS) -> Recipe:
    """The network of `first_k`, from nothing, with the rate of one that starts so."""
    stage = replace(base.stages[0], objective=Imitate(facts=facts), learning_rate=1e-3)
    # Of the shape of the first layers; of their weights nothing is kept.
    return replace(base, student=Fresh(FirstK(kept)), stages=(stage,))


def bc_warm(base: Recipe, student: Student | None = None) -> Recipe:
    """A student that starts from the teacher's weights, as `first_k` does, and is told the expert's
    actions alone."""
    recipe = first_k(base)
    stage = replace(recipe.stages[0], objective=Imitate(facts=()))
    return replace(recipe, student=student or recipe.student, stages=(stage,))


def bc_long(base: Recipe, kept: int = KEPT, facts: tuple[str, ...] = FACTS) -> Recipe:
    """`bc` with as many steps as a student and its teacher have had together."""
    assert base.teach is not None  # every base here says how a teacher is taught
    recipe = bc(base, kept, facts)
    (stage,) = recipe.stages
    return replace(recipe, stages=(replace(stage, steps=base.teach.steps + stage.steps),))


RECIPES = {
    "first_k": Row(
        "The baseline for your own robot: its teacher's first layers, fine-tuned towards expert "
        "and teacher.",
        own,
        partial(first_k, kept=HALF),
    ),
    "layer_drop": Row(
        "The layers of your own robot's teacher that change their input most, fine-tuned as "
        "`first_k` is.",
        own,
        partial(layer_drop, kept=HALF),
    ),
    "layer_search": Row(
        "The layers of your own robot's teacher that answer most as all do, found by trying, "
        "fine-tuned as `first_k` is.",
        own,
        partial(layer_search, kept=HALF),
    ),
    "random_skip": Row(
        "Half of the layers of your own robot's teacher, chosen at random at every decision.",
        own,
        partial(random_skip, share=HALF / 8),
    ),
    "bc": Row(
        "No teacher: a fresh network of half the layers that imitates your own robot's episodes.",
        own,
        partial(bc, kept=HALF, facts=()),
    ),
    "bc_warm": Row(
        "No teacher while training: the first layers of your own robot's teacher imitate its "
        "episodes.",
        own,
        partial(bc_warm, student=FirstK(HALF)),
    ),
    "bc_long": Row(
        "`bc` for your own robot with as many steps as student and teacher have together.",
        own,
        partial(bc_long, kept=HALF, facts=()),
    ),
    "first_k_tabletop": Row(
        "The baseline: the teacher's first layers, fine-tuned towards the expert and the "
        "teacher's answer.",
        tabletop,
        first_k,
    ),
    "first_k_metaworld": Row("The baseline on Meta-World.", metaworld, partial(first_k, kept=3)),
    "first_k_libero_object": Row("The baseline on LIBERO-Object.", libero_object, first_k),
    "first_k_libero_spatial": Row("The baseline on LIBERO-Spatial.", libero_spatial, first_k),
    "first_k_demo": Row(
        "The demo's baseline: as many first layers as the budget allows, the same data and steps.",
        demo,
        partial(first_k, kept=3),
    ),
    "layer_drop_tabletop": Row(
        "The layers that change their input most, fine-tuned as `first_k` is.",
        tabletop,
        layer_drop,
    ),
    "layer_search_tabletop": Row(
        "The two layers whose actions are nearest to the teacher's without training, of all 28 "
        "pairs, fine-tuned as `first_k` is.",
        tabletop,
        layer_search,
    ),
    "layer_search_metaworld": Row(
        "The layers nearest to the teacher's answers, on Meta-World.",
        metaworld,
        partial(layer_search, kept=3),
    ),
    "random_skip_tabletop": Row(
        "As many layers, chosen at random at every decision, in training and when deployed.",
        tabletop,
        random_skip,
    ),
    "bc_tabletop": Row(
        "No teacher: a fresh network of two layers that imitates the expert, as the teacher "
        "itself once did.",
        tabletop,
        bc,
    ),
    "bc_metaworld": Row(
        "No teacher, on Meta-World.",
        metaworld,
        partial(bc, kept=3),
    ),
    "bc_warm_tabletop": Row(
        "No teacher while training: its first two layers, as `first_k`, imitate the expert.",
        tabletop,
        bc_warm,
    ),
    "bc_whole_tabletop": Row(
        "No teacher while training: all of its layers go on imitating the expert.",
        tabletop,
        partial(bc_warm, student=Whole()),
    ),
    "bc_warm_metaworld": Row(
        "No teacher while training: its first layers imitate the expert, on Meta-World.",
        metaworld,
        partial(bc_warm, student=FirstK(3)),
    ),
    "bc_long_tabletop": Row(
        "`bc` with as many steps as student and teacher have had together.",
        tabletop,
        bc_long,
    ),
    "bc_long_metaworld": Row(
        "The same on Meta-World.",
        metaworld,
        partial(bc_long, kept=3),
    ),
}


def keeping(
    change: Callable[[Recipe, int], Recipe],
) -> Callable[..., Recipe]:
    """A change that is told a number of layers, as one that is told a share of them."""

    def at(base: Recipe, *, budget: float) -> Recipe:
        return change(base, layers_at(base, budget))

    return at


def warm_at(base: Recipe, *, budget: float) -> Recipe:
    return bc_warm(base, FirstK(layers_at(base, budget)))


def search_at(base: Recipe, *, budget: float) -> Recipe:
    """Fewer frames and a narrower beam than on tabletop, so that a search among sixteen layers, whose
    every answer takes ten steps of denoising, costs less than the student's training."""
    kept = layers_at(base, budget)
    return replace(first_k(base), student=LayerSearch(kept, frames=512, beam=2))


def skip_at(base: Recipe, *, budget: float) -> Recipe:
    return random_skip(base, budget)


AT_BUDGETS = {
    "first_k": Across("its teacher's first layers, fine-tuned.", keeping(first_k)),
    "layer_drop": Across("the layers that change their input most.", keeping(layer_drop)),
    "layer_search": Across("the layers that answer most as all do.", search_at),
    "random_skip": Across("layers chosen at random at every decision.", skip_at),
    "bc": Across("no teacher: a fresh network of as many layers.", keeping(bc)),
    "bc_long": Across("`bc` with its teacher's steps as well.", keeping(bc_long)),
    "bc_warm": Across("no teacher while training: its first layers go on imitating.", warm_at),
}
IN_WORLDS = {
    "bc_whole": Across(
        "no teacher while training: all layers go on imitating.", partial(bc_warm, student=Whole())
    ),
}
