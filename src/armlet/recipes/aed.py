"""AED (action expert distillation, as the public account of the VITA-VLA framework describes it): a
larger policy's action, attention and representation, and image–text contrast, taught to two towers
that choose among 24 actions.

    account                                 here
    ViT-B/16 ‖ RoBERTa-base, 225 M          `policies.two_tower.student_base()`;
                                            `small_student()` trains here
    ViT-L/14 ‖ RoBERTa-large, 0.68 B        `teacher_large()`; `small_teacher()`
    24 discrete actions                     `Codebook.axes` (bench/codebook.py: an expert acts
                                            through it)
    optional regression head                `refine=True`: an offset from the primitive chosen;
                                            `refine_gripper=True`: of the fingers' opening, too
    KL of attention, 16² patches on 14²     `teacher_grids`, `layers`
    1.0 L_action + 0.5 L_attn + 0.5 L_repr  `action`, `attention`, `representation`
      + 0.2 L_contrastive                   `contrastive`
    teacher's, expert's or mixed targets    `share` of the teacher, `temperature`
    frozen and ema_self teachers            `Stage.teacher`: None and `OwnAverage`
    online loop: replay, relabel, promote   `aed_online`: `Round(replay=…, trial=…)`

    armlet probe  aed_tabletop         # the shipped teacher's actions, attention and hidden states
    armlet distil aed_tabletop
    armlet evaluate aed_tabletop

The account gives no number and no equation for the goal code and the online loop: what stands here
is our reading. Its towers are pretrained; what ours would know of words and things if they were,
they learn by guessing simulator facts while they train (`facts`), in every row of the table.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from armlet.data.augment import Augment
from armlet.data.transforms import Balance, TeacherTells
from armlet.policies.fitting import Choosing, SameChoices
from armlet.policies.students import Kept
from armlet.policies.two_tower import TwoTowerStudent, small_student, small_teacher
from armlet.recipe import QUIET, Collection, Objective, OwnAverage, Recipe, Round, Stage
from armlet.recipes.bases import (
    DISTIL,
    FACTS,
    LAST,
    SHIPPED_TOWERS,
    TRACED,
    Across,
    Row,
    as_trained_in,
    choosing,
    chunked_as,
    guess,
    guesses,
    longer_taught,
    metaworld,
    own,
    tabletop,
    two_towers,
)
from armlet.training import losses
from armlet.types import Batch, Trace


@dataclass(frozen=True)
class Aed(Objective):
    """The account's four terms with its weights. A weight of 0 leaves a term out, and what it would
    read."""

    action: float = 1.0
    """Weight of the choice among primitives."""
    attention: float = 0.5
    """Weight of the maps of what pictures ask of words."""
    representation: float = 0.5
    """Weight of the hidden states."""
    contrastive: float = 0.2
    """Weight of pictures against words."""
    share: float = 0.5
    """Of the action term, the teacher's share; the rest is the expert's."""
    temperature: float = 2.0
    """Of both distributions over primitives."""
    grids: tuple[int, ...] = (6, 4)
    """Vision tokens a side, camera by camera; none: both networks have the same."""
    projected: bool = True
    """Compare hidden states through a projection to the teacher's width."""
    facts: tuple[str, ...] = ()
    """Simulator facts guessed while it learns."""
    teacher_grids: tuple[int, ...] = field(default=(), metadata=QUIET)
    """The teacher's, where its patches are of another size than the student's: what it saw is
    resized to `grids`, camera by camera. None: they are the same."""
    layers: tuple[int, ...] = field(default=(), metadata=QUIET)
    """Fusion layers, by number from 0, whose attention and hidden states are compared, each as much
    as the others; none: the last of two alone."""

    def __post_init__(self) -> None:
        if self.teacher_grids and not self.grids:
            raise ValueError(
                f"teacher_grids is {self.teacher_grids} and grids says nothing: give `grids` the "
                "student's, to which the teacher's are resized"
            )

    @property
    def _maps(self) -> tuple[str, ...]:
        """The signals of attention that are compared."""
        return tuple(f"attention.{layer}" for layer in self.layers) or (LAST,)

    def _states(self, name: str) -> tuple[str, ...]:
        """The signals of hidden states of this name that are compared."""
        return tuple(f"{name}.{layer}" for layer in self.layers) or (name,)

    @property
    def _terms(self) -> dict[str, tuple[float, tuple[str, ...], tuple[str, ...]]]:
        """Term → its weight, what it reads of the teacher, and what of the student."""
        return {
            "action": (self.action * self.share, ("logits",), ("logits",)),
            "imitation": (self.action * (1 - self.share), (), ("imitation",)),
            "attention": (self.attention, self._maps, self._maps),
            "representation": (
                self.representation,
                self._states("fused"),
                self._states(self._own),
            ),
            "contrastive": (self.contrastive, (), ("image", "text")),
        }

    @property
    def _own(self) -> str:
        return "projected" if self.projected else "fused"

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # it follows from the weights
        found: set[str] = set()
        for weight, theirs, _ in self._terms.values():
            if weight:
                found.update(theirs)
        return frozenset(found)

    @property
    def wants(self) -> frozenset[str]:  # type: ignore[override]
        found: set[str] = set()
        for weight, _, mine in self._terms.values():
            if weight:
                found.update(mine)
        return frozenset(found) | guesses(self.facts)

    def __call__(self, student: Trace, teacher: Trace, batch: Batch) -> dict[str, Tensor]:
        _, valid = batch.targets()
        # Lambdas: a term whose weight is 0 is not computed, and its signals are not there.
        distances: dict[str, Callable[[], Tensor]] = {
            "action": lambda: losses.action_distribution_kl(
                student["logits"], teacher["logits"], valid, temperature=self.temperature
            ),
            "imitation": lambda: student["imitation"],
            "attention": lambda: self._over_layers(
                losses.attention_kl, student, self._maps, teacher, self._maps
            ),
            "representation": lambda: self._over_layers(
                losses.representation_mse,
                student,
                self._states(self._own),
                teacher,
                self._states("fused"),
            ),
            "contrastive": lambda: losses.info_nce(
                student["image"], student["text"], losses.same_instruction(batch.text)
            ),
        }
        terms = {}
        for name, (weight, _, _) in self._terms.items():
            if weight:
                terms[name] = weight * distances[name]().mean()
        return terms | guess(student, batch, self.facts)

    def _over_layers(
        self,
        distance: Callable[..., Tensor],
        student: Trace,
        mine: tuple[str, ...],
        teacher: Trace,
        theirs: tuple[str, ...],
    ) -> Tensor:
        """(b,): the distance of signals over places, each in its own grids; the mean of layers."""
        grids = self.grids or None
        found = []
        for ours, said in zip(mine, theirs, strict=True):
            gap = distance(
                student[ours],
                teacher[said],
                student_grids=grids,
                teacher_grids=self.teacher_grids or grids,
            )
            found.append(gap)
        return found[0] if len(found) == 1 else torch.stack(found).mean(0)


WHOLE = Aed()  # the account's own weights


def aed(
    base: Recipe,
    objective: Aed = WHOLE,
    *,
    steps: int = 6000,
    patch: int = 12,
    own_patch: int | None = None,
    teacher: Path | None = None,
) -> Recipe:
    """The base's episodes, a larger pair of towers as the teacher, and a smaller one that learns
    from it; with `own_patch`, one that sees in patches of its own size."""
    assert base.benchmark is not None
    own = own_patch or patch
    sides = tuple(base.benchmark.cameras.values())
    grids = tuple(size // own for size in sides)  # (6, 4) on tabletop
    theirs = tuple(size // patch for size in sides)
    said = replace(objective, grids=grids, facts=FACTS)
    if theirs != grids:
        said = replace(said, teacher_grids=theirs)
    recipe = two_towers(base, patch=patch, teacher=teacher)
    if said.layers:  # traces of their own, which hold more
        traced = ("actions", "condition", "logits", *sorted(said.needs - {"logits"}))
        recipe = replace(recipe, traced=traced, shared=Path(f"out/aed_layers_{base.name}"))
    return replace(
        recipe,
        student=TwoTowerStudent(choosing(chunked_as(base, small_student()), base.benchmark, own)),
        stages=two_stages(said, steps),
    )


def two_stages(objective: Aed, steps: int) -> tuple[Stage, Stage]:
    """The teacher's voice first; then the last third with the expert's, at a tenth of the rate."""
    # Of 24 primitives a few are most of the data.
    pictures = Augment(brightness=0.15, contrast=0.15, saturation=0.15, crop=2)
    transforms = (pictures, Balance(0.5))
    stage = replace(DISTIL, objective=objective, learning_rate=1e-3, transforms=transforms)
    # min: an objective that hears no teacher at all stays without.
    last = replace(objective, share=min(objective.share, 0.25))
    return replace(stage, steps=steps * 2 // 3), replace(
        stage, objective=last, steps=steps // 3, learning_rate=1e-4
    )


def for_any_robot(base: Recipe) -> Recipe:
    """Nobody knows which way this robot's actions go: its primitives are found among them."""
    return replace(
        base,
        network=Choosing(small_teacher()),
        probe=None,  # as above
        traced=TRACED,
        trace_precision="bf16",
        student=SameChoices(small_student()),
        # Both networks see in the same patches, and no simulator knows facts to guess.
        stages=two_stages(Aed(grids=()), 6000),
    )


def of_actions(base: Recipe) -> Recipe:
    """A teacher of which nothing but actions is known says nothing of choices, attention or hidden
    states. Its action is imitated in half of the frames and the expert's in the others, the
    account's mixed targets, by the student's own choice among primitives; pictures are compared with
    words as before."""
    recipe = for_any_robot(base)
    objective = Aed(attention=0, representation=0, share=0, grids=())
    stages = []
    for stage, share in zip(recipe.stages, (0.5, 0.25), strict=True):
        told = (TeacherTells(share), *stage.transforms)
        stages.append(replace(stage, objective=objective, transforms=told))
    return replace(recipe, traced=("actions",), trace_precision="fp32", stages=tuple(stages))


def on_tabletop(base: Recipe, objective: Aed = WHOLE) -> Recipe:
    """All with the teacher that ships with the repository (runs/aed_teacher.sh made it)."""
    return aed(longer_taught(base), objective, teacher=SHIPPED_TOWERS)


def finer(base: Recipe) -> Recipe:
    """The account's teacher sees in 16 x 16 patches and its student in 14 x 14; here it is 6 and 9
    a side of the scene, 4 and 6 of the wrist's."""
    return aed(longer_taught(base), own_patch=8, teacher=SHIPPED_TOWERS)


def opening(base: Recipe) -> Recipe:
    """The fingers' opening is refined as every other dimension is, a yaw among them."""
    recipe = on_tabletop(base)
    assert isinstance(recipe.student, TwoTowerStudent)
    network = recipe.student.network
    options = {**network.head_options, "refine_gripper": True}
    return replace(recipe, student=TwoTowerStudent(replace(network, head_options=options)))


def on_metaworld(base: Recipe) -> Recipe:
    """Its few instructions do not part into three."""
    return replace(aed(base, steps=1500), split="last")


def families(base: Recipe) -> Recipe:
    """The account's pictures and its number of trajectories."""
    from armlet.benchmarks.tabletop import Tabletop

    larger = replace(
        base,
        name="families",
        benchmark=Tabletop(scene_pixels=224, wrist_pixels=96),
        episodes=Path("out/aed_families/episodes"),
        collection=Collection(episodes=50_000),
    )
    # 224 and 96 are multiples of 16.
    return aed(larger, patch=16)


def online(base: Recipe) -> Recipe:
    """Of tabletop's unseen splits it is the one in which the student falls far behind its teacher
    (docs/reproductions/aed.md)."""
    recipe = on_tabletop(base)
    lesson = replace(recipe.stages[0], steps=300, learning_rate=5e-4)
    step = Round(lesson, episodes=150, split="unseen_wordings", share=0.5, replay=2000, trial=200)
    return replace(recipe, rounds=(step,) * 2)


def own_average(base: Recipe) -> Recipe:
    """A student of its teacher's shape."""
    recipe = on_tabletop(base)
    # Its teacher is as wide as it is itself, so there is nothing to project.
    objective = Aed(projected=False, facts=FACTS)
    first, last = recipe.stages
    stages = (
        replace(first, objective=objective, teacher=OwnAverage()),
        replace(last, objective=objective, teacher=OwnAverage()),
    )
    # Both fusion layers: the teacher's own network, which it goes on from.
    return replace(recipe, student=Kept((0, 1)), stages=stages)


def weighing(**weights: Any) -> Callable[[Recipe], Recipe]:
    """AED on tabletop with other weights."""
    return partial(on_tabletop, objective=replace(WHOLE, **weights))


RECIPES = {
    "aed": Row(
        "AED for your own robot: two towers teach two smaller ones to choose among 24 of its "
        "actions.",
        own,
        for_any_robot,
    ),
    "aed_actions": Row(
        "AED for your own robot where of its teacher only actions are known, as behind a socket.",
        own,
        of_actions,
    ),
    "aed_tabletop": Row(
        "AED on tabletop: two towers of 4 M parameters teach two of 1 M, which choose among 24 "
        "actions.",
        tabletop,
        on_tabletop,
    ),
    "aed_metaworld": Row(
        "AED on three tasks of Meta-World (needs the extra), whose few instructions do not part "
        "into three.",
        metaworld,
        on_metaworld,
    ),
    "aed_families": Row(
        "AED's data as the account has them: three families, 224 px, up to 50,000 trajectories "
        "(`--collection.episodes`).",
        tabletop,
        families,
    ),
    "aed_minus_attention": Row("AED without the attention term.", tabletop, weighing(attention=0)),
    "aed_minus_contrastive": Row(
        "AED without the contrastive term.", tabletop, weighing(contrastive=0)
    ),
    "aed_action_only": Row(
        "AED's student, taught actions only: the action distillation that the other terms must "
        "beat.",
        tabletop,
        weighing(attention=0, representation=0, contrastive=0),
    ),
    "aed_contrastive_only": Row(
        "AED's student with contrast and the expert's actions only; without any action it would "
        "not act.",
        tabletop,
        weighing(attention=0, representation=0, share=0),
    ),
    "aed_bc": Row(
        "AED's student without a teacher: the expert's actions and nothing else.",
        tabletop,
        weighing(attention=0, representation=0, contrastive=0, share=0),
    ),
    "aed_online": Row(
        "AED, then its feedback loop on unseen wordings: hard steps relabelled, learned from, "
        "kept only if success does not fall.",
        tabletop,
        online,
    ),
    "aed_finer_tabletop": Row(
        "AED where the student sees in smaller patches than its teacher, whose maps are resized.",
        tabletop,
        finer,
    ),
    "aed_layers_tabletop": Row(
        "AED with attention and hidden states of both fusion layers.",
        tabletop,
        weighing(layers=(0, 1)),
    ),
    "aed_opening_tabletop": Row(
        "AED whose student refines how far the fingers open, too.", tabletop, opening
    ),
    "aed_self": Row(
        "The teacher's own shape, taught by its own running average (`ema_self`).",
        tabletop,
        own_average,
    ),
}


def in_world(base: Recipe, **weights: Any) -> Recipe:
    """As many steps as the other recipes of this world have, in patches that divide its cameras."""
    assert base.benchmark is not None
    patch = next(p for p in PATCHES if not any(s % p for s in base.benchmark.cameras.values()))
    objective = replace(WHOLE, **weights)
    recipe = aed(base, objective, steps=base.stages[0].steps, patch=patch)
    first, last = recipe.stages
    last = replace(last, steps=base.stages[0].steps - first.steps)  # thirds need not be whole
    # Its few instructions do not part into three.
    return as_trained_in(base, replace(recipe, split="last", stages=(first, last)))


PATCHES = (16, 12, 8)  # pixels a side; the largest that fits
ACTIONS: dict[str, Any] = {"attention": 0.0, "representation": 0.0, "contrastive": 0.0}
IN_WORLDS = {
    "aed": Across("AED, two towers teach two smaller ones to choose among 24 actions.", in_world),
    "aed_action_only": Across("AED's student, taught actions only.", partial(in_world, **ACTIONS)),
    "aed_bc": Across("AED's student without a teacher.", partial(in_world, **ACTIONS, share=0.0)),
}
