"""VITA-VLA (arXiv 2510.09607): a small action expert teaches a vision–language model to act, and
lends it its decoder.

    paper                                   here
    small action expert, Seer               a VLA of ours whose head is the paper's decoder:
                                            `VLANetwork(head="arm_gripper")`
    VLM, state token, action query, mapper  `policies.action_query`; `published()` is the paper's
                                            size, 7.5 B
    stage 1: MSE(mapper(h^VLM), h^expert)   `Align`; only `ALIGN` trains, where the model was
                                            pretrained
    stage 2: MAE(arm) + 0.01 BCE(gripper)   `Finetune`: the head's own loss; eyes frozen, where
                                            they were pretrained

    armlet teach  vita_vla_tabletop     # the expert
    armlet probe  vita_vla_tabletop     # what its decoder reads, frame by frame
    armlet distil vita_vla_tabletop
    armlet evaluate vita_vla_tabletop --policies out/vita_vla_finetune/student

What it saves is training: `vita_vla_finetune` is the same model, decoder and number of steps
without stage 1. No pretrained model can be had here, so ours starts from nothing: both stages train
all of it but the decoder, which stage 1 leaves alone, and what a pretrained model would know of
words and things is learned by guessing simulator facts while it trains (`facts`), with and without
stage 1. `vita_vla_large` has a model eight times its expert's size, as the paper's is larger than its
own; `vita_vla_shuffled` aligns with what the expert read at *other* frames, so that what is left of
the gain is not the expert's. Success against steps and demonstrations: runs/vita_vla.sh.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from armlet.data.transforms import ShuffledTeacher
from armlet.policies.action_query import (
    ALIGN,
    FINETUNE,
    SCRATCH,
    ActionQueryNetwork,
    ReuseDecoder,
    llama,
)
from armlet.policies.fitting import FitsPictures, FitsRobot
from armlet.policies.vla import VLANetwork
from armlet.recipe import Objective, Recipe, Stage
from armlet.recipes.bases import (
    DISTIL,
    FACTS,
    Across,
    Row,
    as_trained_in,
    guess,
    guesses,
    metaworld,
    own,
    tabletop,
)
from armlet.training import losses
from armlet.types import Batch, Trace

STRIDES = {"scene": 12, "wrist": 16}  # camera → pixels of a patch, a side
CHUNK = 3  # future steps, one action query each


@dataclass(frozen=True)
class Align(Objective):
    """Stage 1: what the mapper gives the decoder is what the expert gives it."""

    needs: ClassVar[frozenset[str]] = frozenset({"condition"})
    facts: tuple[str, ...] = ()
    """Simulator facts guessed while it learns."""

    @property
    def wants(self) -> frozenset[str]:  # type: ignore[override]  # it follows from `facts`
        return guesses(self.facts) | {"condition"}

    def __call__(self, student: Trace, teacher: Trace, batch: Batch) -> dict[str, Tensor]:
        gap = losses.condition_mse(student["condition"], teacher["condition"])
        return {"align": gap.mean()} | guess(student, batch, self.facts)


@dataclass(frozen=True)
class Finetune(Objective):
    """Stage 2: MAE(arm) + 0.01 BCE(gripper) against the expert's actions in the data."""

    facts: tuple[str, ...] = ()
    """Simulator facts guessed while it learns."""

    @property
    def wants(self) -> frozenset[str]:  # type: ignore[override]  # it follows from `facts`
        return guesses(self.facts) | {"imitation"}

    def __call__(self, student: Trace, teacher: Trace, batch: Batch) -> dict[str, Tensor]:
        return {"imitation": student["imitation"].mean()} | guess(student, batch, self.facts)


# 13 M parameters of layers, where the expert has 1.6 M.
LARGE = ActionQueryNetwork(language=llama(width=320, depth=11, heads=5), strides=STRIDES)
SMALL = ActionQueryNetwork(strides=STRIDES)


def vita_vla(
    base: Recipe,
    *,
    align: int = 3000,
    finetune: int = 3000,
    network: ActionQueryNetwork = SMALL,
    shuffled: bool = False,
) -> Recipe:
    """`align` steps of stage 1, none where it is 0, and `finetune` of stage 2, with a small expert
    for this world. `shuffled`: stage 1 is told the expert's vectors of other frames."""
    stages = _stages(FACTS, align, finetune)
    if shuffled:
        first, *rest = stages
        told = (*first.transforms, ShuffledTeacher())
        stages = (replace(first, transforms=told), *rest)
    shared = Path("out") / f"vita_vla_{base.name}"
    return replace(
        base,
        shared=shared,
        teacher=shared / "expert",
        network=VLANetwork(chunk=CHUNK, head="arm_gripper", strides=STRIDES),
        probe=None,  # stage 1 reads the condition, and no layer
        student=ReuseDecoder(network),
        stages=stages,
    )


def for_any_robot(base: Recipe) -> Recipe:
    """The same with an expert that is fitted to the robot, and with nothing to guess."""
    return replace(
        base,
        network=FitsRobot(VLANetwork(head="arm_gripper")),
        probe=None,  # as above
        student=FitsPictures(ReuseDecoder()),
        stages=_stages((), 3000, 3000),
    )


def _stages(facts: tuple[str, ...], align: int, finetune: int) -> tuple[Stage, ...]:
    stage = replace(DISTIL, learning_rate=1e-3)
    # A pattern that matches nothing is refused, and without facts there are no heads that guess.
    guessing = ("privileged.*", "pointers.*") if facts else ()
    first = replace(
        stage,
        objective=Align(facts),
        steps=align,
        train=(*ALIGN, *SCRATCH, *guessing),
        freeze_pretrained=SCRATCH,
    )
    # Eyes that start from nothing have to learn.
    second = replace(stage, objective=Finetune(facts), steps=finetune, freeze_pretrained=FINETUNE)
    # Without stage 1 it is the same model, to see what the alignment is worth.
    return (first, second) if align else (second,)


RECIPES = {
    "vita_vla": Row(
        "VITA-VLA for your own robot: a language model aligned with a small expert, then "
        "fine-tuned with its decoder.",
        own,
        for_any_robot,
    ),
    "vita_vla_tabletop": Row(
        "VITA-VLA on tabletop: a language model of ours aligned with a small expert, then "
        "fine-tuned with its decoder.",
        tabletop,
        vita_vla,
    ),
    "vita_vla_finetune": Row(
        "VITA-VLA's model and decoder without the alignment, for as many steps.",
        tabletop,
        partial(vita_vla, align=0, finetune=6000),
    ),
    "vita_vla_shuffled": Row(
        "A control: VITA-VLA aligned with what its expert read at other frames.",
        tabletop,
        partial(vita_vla, shuffled=True),
    ),
    "vita_vla_large": Row(
        "VITA-VLA with a language model eight times as large as its expert.",
        tabletop,
        partial(vita_vla, network=LARGE),
    ),
    "vita_vla_large_finetune": Row(
        "The same model without the alignment, for as many steps.",
        tabletop,
        partial(vita_vla, align=0, finetune=6000, network=LARGE),
    ),
    "vita_vla_large_shuffled": Row(
        "The same model aligned with what its expert read at other frames.",
        tabletop,
        partial(vita_vla, network=LARGE, shuffled=True),
    ),
    "vita_vla_metaworld": Row(
        "VITA-VLA on three tasks of Meta-World (needs the extra).",
        metaworld,
        partial(vita_vla, align=500, finetune=500),
    ),
    "vita_vla_metaworld_finetune": Row(
        "The same without the alignment, for as many steps.",
        metaworld,
        partial(vita_vla, align=0, finetune=1000),
    ),
}


def in_world(base: Recipe, *, align: bool = True, shuffled: bool = False) -> Recipe:
    """As many steps as the other recipes of this world have, half of them to align."""
    assert base.benchmark is not None
    steps = base.stages[0].steps
    # Every number of the state from here on is a finger's: one in Meta-World, two in LIBERO.
    fingers = sum("finger" in name or name == "gap" for name in base.benchmark.state_names)
    network = replace(SMALL, gripper_state=tuple(range(-fingers, 0)))
    first = steps // 2 if align else 0
    recipe = vita_vla(base, align=first, finetune=steps - first, network=network, shuffled=shuffled)
    return as_trained_in(base, recipe)


IN_WORLDS = {
    "vita_vla": Across("VITA-VLA, a language model aligned with a small expert.", in_world),
    "vita_vla_finetune": Across(
        "VITA-VLA's model and decoder without the alignment, for as many steps.",
        partial(in_world, align=False),
    ),
    "vita_vla_shuffled": Across(
        "a control: aligned with what the expert read at other frames.",
        partial(in_world, shuffled=True),
    ),
}
