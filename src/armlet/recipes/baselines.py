"""The simple ways to a smaller network, on the data, teacher, traces and number of steps of every
other recipe.

`first_k` is the one that matters most: the published router's activation falls with depth, close to
running the first layers only (recipes.md §1, 3). On tabletop each keeps two of eight layers, as
many as ActDistill's student runs.
"""

from dataclasses import replace
from pathlib import Path

from armlet.policies.contract import Student
from armlet.policies.routed import Routing
from armlet.policies.students import FirstK, Fresh, LayerDrop
from armlet.recipe import Recipe, Stage
from armlet.recipes.bases import Imitate, demo, metaworld, tabletop

KEPT = 2  # of eight layers, on tabletop


def _baseline(base: Recipe, name: str, out: Path, student: Student, stage: Stage) -> Recipe:
    return replace(base, name=name, out=out, student=student, stages=(stage,))


def _first_k(base: Recipe, name: str, out: Path, kept: int) -> Recipe:
    return _baseline(
        base, name, out, FirstK(kept), replace(base.stages[0], freeze=("policy.vision.*",))
    )


def first_k_tabletop() -> Recipe:
    """The baseline: the teacher's first layers, fine-tuned towards the expert and the teacher's
    answer."""
    return _first_k(tabletop(), "first_k_tabletop", Path("out/first_k_tabletop"), KEPT)


def first_k_metaworld() -> Recipe:
    """The baseline on Meta-World."""
    return _first_k(metaworld(), "first_k_metaworld", Path("out/first_k_metaworld"), 3)


def first_k_demo() -> Recipe:
    """The demo's baseline: as many first layers as the budget allows, the same data and steps."""
    return _first_k(demo(), "first_k_demo", Path("out/demo/first_k"), 3)


def layer_drop_tabletop() -> Recipe:
    """The layers that change their input most, fine-tuned as `first_k` is."""
    base = first_k_tabletop()
    return replace(
        base,
        name="layer_drop_tabletop",
        out=Path("out/layer_drop_tabletop"),
        student=LayerDrop(KEPT),
    )


def random_skip_tabletop() -> Recipe:
    """As many layers, drawn at random at every decision, in training and when deployed."""
    base = tabletop()
    stage = replace(base.stages[0], freeze=("policy.inner.vision.*",), compile=False)
    student = Routing(chooser="random", initial_keep=KEPT / 8)
    return _baseline(base, "random_skip_tabletop", Path("out/random_skip_tabletop"), student, stage)


def bc_tabletop() -> Recipe:
    """No teacher: a fresh network of two layers that imitates the expert, as the teacher itself
    once did."""
    base = tabletop()
    stage = replace(base.stages[0], objective=Imitate(), learning_rate=1e-3)
    return _baseline(base, "bc_tabletop", Path("out/bc_tabletop"), Fresh(FirstK(KEPT)), stage)
