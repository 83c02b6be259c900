"""Our own recipe: a teacher that denoises, made fast by all levers together, each of which can be left
out.

    lever                                   where, and without it
    fewer layers, found by trying           `layers` (policies/layer_search.py); `_minus_layers`, and
                                            `_minus_search`, as many layers, the first
    ten denoising steps → one               `MatchEndpoint`; `_minus_steps`
    what the teacher's head reads           `MatchEndpoint.condition`; `_minus_condition`
    looking after eight actions, not four   `armlet shorten`, for the teacher as well
    a fast runtime                          `--evaluation.runtimes`, for the teacher as well

and what was tried beside or in the place of these: half as many layers (`_four_layers`), a narrower head
(`_narrow`), a round on-policy (`_round`), the teacher's actions to learn from as well as the expert's
(`_ends`), a router in place of the search (`_router`; of four layers `_four_routed`, and supervised as
ActDistill has it `_four_supervised`), one student for any budget (`_dial`), steps that learn from shorter
ones for any noise (`_shortcut`), a head without steps (`_outright`).

**Ten steps to one.** Our flow heads begin at one fixed noise, so what a policy decides is a map from
what its head reads to actions. `MatchEndpoint` is regression of these: no velocity is learnt but the
one that is asked for. The teacher's own ends can be learnt from as well, which its traces hold; the
recipe leaves them out, since ten steps are one draw of the teacher's and its first step alone, their
mean, succeeded more often (docs/many-tasks.md). What is lost is the distribution: from
other noise such a student says nothing of use, it cannot decide in more steps than it was made for, and it
cannot be guided step by step. `_shortcut` keeps these: a head that is told how long a step is, whose
long steps learn from two of half of them (Frans et al., arXiv 2410.12557; SnapFlow, arXiv
2604.05656, trains π0.5 and SmolVLA to one step so), at two more passes through the head a training
step. Not chosen: reflow (arXiv 2209.03003), which wants a second data set of noise and ends and
straightens paths before they can be cut; consistency distillation (Consistency Policy, arXiv
2405.07503), which for one step from one noise has the same target as `MatchEndpoint`; OneDP (arXiv
2410.21257), whose score difference matches distributions, where here there is one answer a moment.

    armlet collect mt50 && armlet teach mt50 && armlet probe mt50
    armlet distil flagship_mt50
    armlet shorten out/flagship_mt50/student --execute 8 --out out/flagship_mt50/after_8
    armlet evaluate flagship_mt50 --policies out/flagship_mt50/after_8 --evaluation.runtimes onnx

`runs/flagship.sh` is all of it, ablations first. What each lever is worth in milliseconds is known
before any training (`bench/levers.py`); in success, after it.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from armlet.data.transforms import DrawBudget, Explore
from armlet.policies.contract import Student
from armlet.policies.fitting import FitsRobot
from armlet.policies.layer_search import LayerSearch
from armlet.policies.lighter import LighterHead
from armlet.policies.routed import Routing
from armlet.policies.students import FirstK, Whole
from armlet.policies.vla import VLANetwork
from armlet.recipe import Objective, Recipe, Round, Stage
from armlet.recipes.actdistill import ActDistill, dosed
from armlet.recipes.bases import MatchOutput, Row, mt50, own, tabletop
from armlet.training import losses
from armlet.types import Batch, Trace


@dataclass(frozen=True)
class MatchEndpoint(Objective):
    """What a denoising teacher arrives at from its fixed noise, and the expert's actions, matched by
    what the student arrives at from the same noise in its own steps; for a router, a budget as well.
    No loss of a head is asked: a velocity that nobody follows need not be learnt. What weighs
    nothing is not read."""

    expert: float = 1.0
    """Weight of the expert's actions."""
    teacher: float = 1.0
    """Weight of the teacher's actions; 0: they are not read."""
    condition: float = 0.5
    """Weight of what the teacher's head reads; 0: nobody need know it."""
    budget: float = 0.0
    """λ: weight of what a router runs beyond `keep`; 0: there is no router."""
    keep: float = 0.25
    """ρ: the share of the backbone that may run, where `budget` is more than 0."""

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # it follows from the weights
        read = {"actions": self.teacher, "condition": self.condition}
        return frozenset(name for name, weight in read.items() if weight)

    @property
    def wants(self) -> frozenset[str]:  # type: ignore[override]
        return self.needs | {"actions"} | ({"gates", "costs"} if self.budget else frozenset())

    def __call__(self, student: Trace, teacher: Trace, batch: Batch) -> dict[str, Tensor]:
        expert, valid = batch.targets()
        ends = student["actions"]
        terms = {"expert": self.expert * losses.action_l1(ends, expert, valid).mean()}
        if self.teacher:
            distances = losses.action_l1(ends, teacher["actions"], valid)
            terms["teacher"] = self.teacher * distances.mean()
        if self.condition:
            conditions = losses.condition_cosine(student["condition"], teacher["condition"])
            terms["condition"] = self.condition * conditions.mean()
        if self.budget:
            # A router with a dial is told the budget of its batch, and held to that.
            keep = self.keep if batch.budget is None else batch.budget
            excess = losses.budget_gap(student["gates"], student["costs"], keep, over="batch")
            terms["budget"] = self.budget * excess.mean()
        return terms


ENDS = MatchEndpoint(teacher=0.0)  # the expert's actions, and what the teacher's head reads
KEPT = 8  # of sixteen layers, on mt50
# Greedy and on few frames: minutes of a core, where four sets at a time take half an hour.
FOUND = LayerSearch(KEPT, beam=1, frames=128)
ONE: dict[str, Any] = {"steps": 1}
# Half of the teacher's head, a quarter of its multiplications.
NARROW: dict[str, Any] = {"steps": 1, "hidden": 64, "blocks": 1}
OUTRIGHT: dict[str, Any] = {"steps": None, "head": "regression"}
SHORTCUT: dict[str, Any] = {"steps": 1, "shortcut": True}
DENOISING = {"steps": 10}  # of a teacher's head
PUSH = 30.0  # λ, as ActDistill has it


def flagship(
    base: Recipe,
    *,
    layers: Student = FOUND,
    head: dict[str, Any] = ONE,
    objective: Objective | None = ENDS,
    rounds: int = 0,
) -> Recipe:
    """All levers. `layers`: which are kept; `head`: what `LighterHead` is told (empty: the head
    stays); `objective`: of stage and rounds (None: the base's, for a head that goes on denoising);
    `rounds`: on-policy rounds."""
    (stage,) = base.stages
    # The teacher's own eyes go on giving its own tokens, which the kept layers know.
    stage = replace(stage, objective=objective or stage.objective, freeze=("policy.vision.*",))
    student = LighterHead(layers, **head) if head else layers
    return practising(replace(base, student=student, stages=(stage,)), stage, rounds)


def practising(recipe: Recipe, stage: Stage, rounds: int) -> Recipe:
    """The recipe with so many rounds behind its stages, in which the layers learn what to do where the
    student went, as `stage` has it."""
    steps = sum(each.steps for each in recipe.stages) // 3
    lesson = replace(stage, steps=steps, learning_rate=3e-4)
    # What a round makes worse is undone.
    each = Round(lesson, episodes=500, trial=200)
    return replace(recipe, rounds=(each,) * rounds)


def routed(
    base: Recipe,
    *,
    kept: int = KEPT,
    dial: bool = False,
    rounds: int = 0,
    route: int = 1000,
    dose: float = 0.0,
) -> Recipe:
    """A router chooses the layers, `kept` of them on average, in two stages as ActDistill's: it is
    found, then it stands still. `dial`: it is told the budget, which every step of the first draws.
    `dose`: of what ActDistill says of single layers, in both stages, as many times what the paper
    has."""
    (stage,) = base.stages
    share = kept / _depth(base)
    frozen = ("policy.inner.vision.*",)
    told = (*stage.transforms, *((DrawBudget(0.1, 1.0),) if dial else ()))
    finding: Objective = replace(ENDS, budget=PUSH, keep=share)
    settling: Objective = ENDS
    if dose:
        # Of every fourth sample: what a step takes is less, its mean the same.
        finding = dosed(ActDistill(ENDS, share, PUSH), dose, every=4)
        settling = replace(finding, budget=0.0)
    first = replace(
        stage,
        objective=finding,
        steps=route,
        freeze=frozen,
        transforms=(*told, Explore(1.0, 0.6)),
    )
    second = replace(
        stage,
        objective=settling,
        steps=stage.steps - route,
        freeze=(*frozen, "policy.router.*"),
        transforms=told,
        # Batches of every size go through a layer, as many samples as the router sends there.
        compile=False,
    )
    student = LighterHead(Routing(budget=share, dial=dial), **ONE)
    recipe = replace(base, student=student, stages=(first, second))
    return practising(recipe, second, rounds)


def for_any_robot(base: Recipe) -> Recipe:
    """A teacher that denoises, and half of its layers; nobody acts, and so there is no round."""
    network = VLANetwork(head="flow", head_options=dict(DENOISING))
    recipe = replace(base, network=FitsRobot(network))
    return flagship(recipe, layers=replace(FOUND, layers=network.depth // 2))


def _depth(base: Recipe) -> int:
    """The teacher's layers."""
    network = base.network.network if isinstance(base.network, FitsRobot) else base.network
    assert isinstance(network, VLANetwork)  # of every base here
    return network.depth


RECIPES = {
    "flagship": Row(
        "Ours, for your own robot: a teacher that denoises in ten steps; half of its layers, one "
        "step.",
        own,
        for_any_robot,
    ),
    "flagship_tabletop": Row(
        "Ours on tabletop, whose teacher takes no steps: two layers found by trying, and a round "
        "on-policy.",
        tabletop,
        partial(flagship, layers=LayerSearch(2), head={}, objective=MatchEndpoint(), rounds=1),
    ),
    "flagship_mt50": Row(
        "Ours on Meta-World's fifty tasks: eight of sixteen layers, found by trying, and one step "
        "of ten.",
        mt50,
        flagship,
    ),
    "flagship_mt50_minus_layers": Row(
        "The same with all sixteen layers.", mt50, partial(flagship, layers=Whole())
    ),
    "flagship_mt50_minus_search": Row(
        "The same with the first eight layers.", mt50, partial(flagship, layers=FirstK(KEPT))
    ),
    "flagship_mt50_minus_steps": Row(
        "The same with the teacher's ten denoising steps.",
        mt50,
        partial(flagship, head={}, objective=None),
    ),
    "flagship_mt50_minus_condition": Row(
        "The same without its teacher: the expert's actions alone.",
        mt50,
        partial(flagship, objective=replace(ENDS, condition=0.0)),
    ),
    "flagship_mt50_four_layers": Row(
        "The same with four layers.", mt50, partial(flagship, layers=replace(FOUND, layers=4))
    ),
    "flagship_mt50_narrow": Row(
        "The same with a head half as wide and half as deep.", mt50, partial(flagship, head=NARROW)
    ),
    "flagship_mt50_round": Row(
        "The same with a round on-policy.", mt50, partial(flagship, rounds=1)
    ),
    "flagship_mt50_ends": Row(
        "The same with the teacher's actions to learn from as well as the expert's.",
        mt50,
        partial(flagship, objective=MatchEndpoint()),
    ),
    "flagship_mt50_shortcut": Row(
        "The same with steps that learn from shorter ones, for any noise: it can decide in 1, 2, 4 "
        "or 8.",
        mt50,
        partial(flagship, head=SHORTCUT, objective=MatchOutput()),
    ),
    "flagship_mt50_outright": Row(
        "The same with a head that takes no steps, from nothing: is a flow needed to say one "
        "answer?",
        mt50,
        partial(flagship, head=OUTRIGHT),
    ),
    "flagship_mt50_router": Row(
        "The same with a router in place of the search: as much of the backbone, chosen by what is "
        "seen.",
        mt50,
        routed,
    ),
    "flagship_mt50_four_routed": Row(
        "Four layers on average, a router in place of the search.",
        mt50,
        partial(routed, kept=4),
    ),
    "flagship_mt50_four_supervised": Row(
        "The same, and every layer told what the teacher's means and would do, as ActDistill has it.",
        mt50,
        partial(routed, kept=4, dose=1.0),
    ),
    "flagship_mt50_dial": Row(
        "One student for any budget, told what a decision may cost (`--evaluation.budgets`).",
        mt50,
        partial(routed, dial=True),
    ),
}
