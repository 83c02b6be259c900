"""The simple ways to a smaller network, on the data, teacher, traces and number of steps of every
other recipe.

`first_k` is the one that matters most: the published router's activation falls with depth, close to
running the first layers only (recipes.md §1, 3). On tabletop each keeps two of eight layers, as
many as ActDistill's student runs.
"""

from dataclasses import replace
from functools import partial

from armlet.policies.routed import Routing
from armlet.policies.students import FirstK, Fresh, LayerDrop
from armlet.recipe import Recipe
from armlet.recipes.bases import (
    FACTS,
    Imitate,
    Row,
    demo,
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
}
