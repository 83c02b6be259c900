"""ActDistill (arXiv 2511.18082): a student with the teacher's own layers and a router that skips
some of them.

    paper                     here
    w_l = (l/(L−1))^γ         `gamma`
    L_sem = L_align + η L_struct   `semantic` (α), `eta`
    L_act                     `layer_action` (β), `steps`
    λ L_budget                `budget` (λ), `keep` (ρ), of every sample or of a batch's mean: `over`
    L_task                    `imitation`, and the match of the final action and condition:
                              `action`, `condition`

Two stages. First routes are drawn (Gumbel noise) while the router learns which are worth their
cost; then the router stands still, and the layers learn the routes that it takes. In one stage the
router comes to rest *on* its threshold, where the pull of the budget and that of the task cancel
and the least thing decides what runs: dev/LOG.md.

    armlet teach  actdistill_tabletop      # a teacher; one ships with the repository, so this is
                  optional
    armlet probe  actdistill_tabletop
    armlet distil actdistill_tabletop
    armlet evaluate actdistill_tabletop

The baselines are in baselines.py. What to expect, measured, stands in
docs/reproductions/actdistill.md.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor

from armlet.data.transforms import DrawBudget, Explore
from armlet.policies.routed import Routing
from armlet.recipe import Objective, Recipe, Round
from armlet.recipes.bases import MatchOutput, demo, metaworld, tabletop
from armlet.training import losses
from armlet.types import Batch, Trace


@dataclass(frozen=True)
class ActDistill(Objective):
    """Stage 2: the output matched as in `MatchOutput`, every layer supervised, and a budget on what
    runs."""

    needs: ClassVar[frozenset[str]] = frozenset(
        {"actions", "condition", "semantics", "layer_actions"}
    )
    wants: ClassVar[frozenset[str]] = frozenset(
        {"imitation", "actions", "condition", "semantics", "layer_actions", "gates", "costs"}
    )
    output: MatchOutput = field(default_factory=MatchOutput)
    keep: float = 0.5
    budget: float = 30.0
    over: Literal["sample", "batch"] = "batch"
    semantic: float = 0.2
    layer_action: float = 0.2
    eta: float = 0.5
    gamma: float = 2.0
    steps: losses.Steps = "chunk"
    every: int = 8  # of so many samples the layers of one are supervised; what supervision costs a step: docs/machinery

    def __call__(self, student: Trace, teacher: Trace, batch: Batch) -> dict[str, Tensor]:
        depth = losses.depth_weights(
            student["semantics"].shape[1], self.gamma, student["semantics"].device
        )
        theirs = {name: teacher[name][:: self.every] for name in ("semantics", "layer_actions")}
        expert, valid = (target[:: self.every] for target in batch.targets())
        semantic = losses.semantic_loss(student["semantics"], theirs["semantics"], self.eta)
        layers = losses.layer_action_loss(
            student["layer_actions"], theirs["layer_actions"], expert, valid, self.steps
        )
        keep = self.keep if batch.budget is None else batch.budget
        return {
            **self.output(student, teacher, batch),
            "semantic": self.semantic * (depth * semantic).mean(),
            "layer_action": self.layer_action * (depth * layers).mean(),
            "budget": self.budget
            * losses.budget_gap(student["gates"], student["costs"], keep, over=self.over).mean(),
        }


@dataclass(frozen=True)
class Published(Objective):
    """The loss exactly as the public code has it: the task's own, the distillation, and a balance
    term that asks for no sparsity.

    With `Routing(mode="published_soft")` it is the published training, whose network is not the one
    deployed (recipes.md §1).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"semantics", "layer_actions"})
    wants: ClassVar[frozenset[str]] = frozenset(
        {"imitation", "semantics", "layer_actions", "soft_gates"}
    )
    balance: float = 1.0
    alpha: float = 1.0
    beta: float = 1.0
    eta: float = 0.5
    gamma: float = 2.0

    def __call__(self, student: Trace, teacher: Trace, batch: Batch) -> dict[str, Tensor]:
        expert, _ = batch.targets()
        distillation = losses.published_distillation(
            (student["semantics"], teacher["semantics"]),
            (student["layer_actions"], teacher["layer_actions"]),
            expert,
            alpha=self.alpha,
            beta=self.beta,
            eta=self.eta,
            gamma=self.gamma,
        )
        return {
            "imitation": student["imitation"].mean(),
            "distillation": distillation,
            "balance": self.balance * losses.published_balance(student["soft_gates"]),
        }


def _distilled(base: Recipe, name: str, out: Path, *, student: Routing, route: int) -> Recipe:
    """`route` steps in which the router is found, and the rest of the base's steps with the router
    frozen."""
    (stage,), frozen = base.stages, ("policy.inner.vision.*",)
    keep = student.budget
    assert keep is not None  # every recipe here gives one
    routing = replace(
        stage,
        objective=ActDistill(keep=keep),
        steps=route,
        freeze=frozen,
        transforms=(*stage.transforms, Explore(1.0, 0.6)),
    )
    # Not compiled: batches of every size go through a layer, as many samples as the router sends
    # there.
    settling = replace(
        stage, steps=stage.steps - route, freeze=(*frozen, "policy.router.*"), compile=False
    )
    return replace(base, name=name, out=out, student=student, stages=(routing, settling))


def actdistill_tabletop() -> Recipe:
    """ActDistill on tabletop: the shipped teacher's layers and a router that runs a quarter of
    them."""
    out = Path("out/actdistill_tabletop")
    return _distilled(
        tabletop(), "actdistill_tabletop", out, student=Routing(budget=0.25), route=1000
    )


def actdistill_metaworld() -> Recipe:
    """ActDistill on three tasks of Meta-World (needs the extra)."""
    out = Path("out/actdistill_metaworld")
    return _distilled(
        metaworld(), "actdistill_metaworld", out, student=Routing(budget=0.3), route=400
    )


def actdistill_demo() -> Recipe:
    """The demo's student: ActDistill on tabletop in minutes, on two cores."""
    return _distilled(
        demo(),
        "actdistill_demo",
        Path("out/demo/actdistill"),
        student=Routing(budget=0.3),
        route=350,
    )


def dial_tabletop() -> Recipe:
    """One student for every budget: its router is told what a decision may cost
    (`--evaluation.budgets`)."""
    base = tabletop()
    (stage,) = base.stages
    told = (*stage.transforms, DrawBudget(0.1, 1.0))
    drawn = replace(base, stages=(replace(stage, transforms=told),))
    student = Routing(dial=True, budget=0.25)
    return _distilled(
        drawn, "dial_tabletop", Path("out/dial_tabletop"), student=student, route=1500
    )


def action_kd_tabletop() -> Recipe:
    """ActDistill's student and router, told the expert's and the teacher's final action and nothing
    else."""
    base = actdistill_tabletop()
    said = MatchOutput(condition=0)
    objective = ActDistill(output=said, keep=0.25, semantic=0, layer_action=0)
    stages = (replace(base.stages[0], objective=objective), replace(base.stages[1], objective=said))
    return replace(
        base, name="action_kd_tabletop", out=Path("out/action_kd_tabletop"), stages=stages
    )


def blind_tabletop() -> Recipe:
    """ActDistill whose router sees image and words only, as the published one: no robot state, no
    previous action."""
    base = actdistill_tabletop()
    student = Routing(budget=0.25, use_state=False, use_previous_action=False)
    return replace(base, name="blind_tabletop", out=Path("out/blind_tabletop"), student=student)


def published_tabletop() -> Recipe:
    """The published training as it is written: soft gates on whole hidden states, its loss, its
    balance term."""
    base = tabletop()
    stage = replace(
        base.stages[0],
        objective=Published(),
        freeze=("policy.inner.vision.*",),
    )
    student = Routing(mode="published_soft")
    return replace(
        base,
        name="published_tabletop",
        out=Path("out/published_tabletop"),
        student=student,
        stages=(stage,),
    )


def onpolicy_tabletop() -> Recipe:
    """ActDistill, then one on-policy round: the student acts, its teacher labels what it met, and
    it learns on."""
    base = actdistill_tabletop()
    more = Round(replace(base.stages[1], steps=1000, learning_rate=3e-4), episodes=1000)
    return replace(
        base, name="onpolicy_tabletop", out=Path("out/onpolicy_tabletop"), rounds=(more,)
    )
