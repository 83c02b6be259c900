"""ActDistill (arXiv 2511.18082): a student with the teacher's own layers and a router that skips
some of them.

    paper                          here
    w_l = (l/(L−1))^γ              `gamma`
    L_sem = L_align + η L_struct   `semantic` (α), `eta`
    L_act                          `layer_action` (β), `steps`
    Σ_l w_l (α L_sem + β L_act)    `over_layers="sum"`, `every=1`, α = β = 1, in both stages:
                                   `faithful`; `actdistill` has far less of both, which is cheaper
    λ L_budget                     `budget` (λ), `keep` (ρ), of every sample or of a batch's mean:
                                   `over`
    L_task                         `imitation`, and the match of the final action and condition:
                                   `action`, `condition`

Two stages. First routes are drawn (Gumbel noise) while the router learns which are worth their
cost; then the router stands still, and the layers learn the routes that it takes. In one stage the
router comes to rest *on* its threshold, where the pull of the budget and that of the task cancel
and the least thing decides what runs: dev/LOG.md.

    armlet teach    actdistill --episodes DIR     # a teacher, or bring one: --teacher DIR
    armlet probe    actdistill --episodes DIR
    armlet distil   actdistill --episodes DIR
    armlet evaluate actdistill --episodes DIR

On tabletop it is `actdistill_tabletop` with no options: episodes are collected, and a teacher ships
with the repository.

The baselines are in baselines.py. What to expect, measured, stands in
docs/reproductions/actdistill.md.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor

from armlet.data.transforms import DrawBudget, Explore
from armlet.policies.routed import Routing
from armlet.recipe import QUIET, Objective, Recipe, Round
from armlet.recipes.bases import (
    Across,
    MatchOutput,
    Row,
    demo,
    libero_object,
    libero_spatial,
    metaworld,
    own,
    tabletop,
)
from armlet.training import losses
from armlet.types import LAYERS, Batch, Trace


@dataclass(frozen=True)
class ActDistill(Objective):
    """Stage 2: the output matched, as in `MatchOutput` or otherwise, every layer supervised, and a
    budget on what runs. Raises ValueError where the output has a budget of its own."""

    output: Objective = field(default_factory=MatchOutput)
    """How the output is matched."""
    keep: float = 0.5
    """ρ: the share of the backbone that may run."""
    budget: float = 30.0
    """λ: weight of what runs beyond it."""
    over: Literal["sample", "batch"] = "batch"
    """Whether every sample keeps to the share, or the mean of a batch."""
    semantic: float = 0.2
    """α: weight of the layers' semantics."""
    layer_action: float = 0.2
    """β: weight of the actions that the layers say."""
    eta: float = 0.5
    """η: weight of structure among the semantics."""
    gamma: float = 2.0
    """Exponent of the depth's weights; 0: all layers alike."""
    steps: losses.Steps = "chunk"
    """Which steps of a chunk the layers' actions are compared at."""
    every: int = 8
    """Of so many samples the layers of one are supervised; what supervision costs a step:
    docs/machinery."""
    over_layers: Literal["mean", "sum"] = field(default="mean", metadata=QUIET)
    """How the terms of single layers become one: their mean, or, as in the paper, their sum, which
    is as many times more as there are layers."""

    def __post_init__(self) -> None:
        _ask_once(self)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # it follows from `output`
        return self.output.needs | LAYERS

    @property
    def wants(self) -> frozenset[str]:  # type: ignore[override]
        return self.output.wants | LAYERS | {"gates", "costs"}

    @property
    def reads_logits(self) -> bool:
        return self.output.reads_logits

    def suited(self, *, chooses: bool, logits: bool) -> "ActDistill":
        return replace(self, output=self.output.suited(chooses=chooses, logits=logits))

    def without_layers(self) -> Objective:
        if self.semantic or self.layer_action:
            return self
        return Budgeted(self.output, self.keep, self.budget, self.over)

    def __call__(self, student: Trace, teacher: Trace, batch: Batch) -> dict[str, Tensor]:
        own = student["semantics"]  # of every n-th sample alone, as the learner was told
        depth = losses.depth_weights(own.shape[1], self.gamma, own.device)  # (l,)
        expert, valid = batch.targets()
        semantic = losses.semantic_loss(own, teacher["semantics"][:: self.every], self.eta)
        layers = losses.layer_action_loss(
            student["layer_actions"],
            teacher["layer_actions"][:: self.every],
            expert[:: self.every],
            valid[:: self.every],
            self.steps,
        )
        return {
            **self.output(student, teacher, batch),
            "semantic": self.semantic * self._of_layers(depth * semantic),
            "layer_action": self.layer_action * self._of_layers(depth * layers),
            **_excess(self, student, batch),
        }

    def _of_layers(self, terms: Tensor) -> Tensor:
        """(b, l) → one number: the mean over samples of what `over_layers` says."""
        return terms.sum(-1).mean() if self.over_layers == "sum" else terms.mean()


@dataclass(frozen=True)
class Budgeted(Objective):
    """The output matched, and a budget on what runs: what is left of `ActDistill` where no layer of
    the teacher can be read. Raises ValueError where the output has a budget of its own."""

    output: Objective = field(default_factory=MatchOutput)
    """How the output is matched."""
    keep: float = 0.5
    """ρ: the share of the backbone that may run."""
    budget: float = 30.0
    """λ: weight of what runs beyond it."""
    over: Literal["sample", "batch"] = "batch"
    """Whether every sample keeps to the share, or the mean of a batch."""

    def __post_init__(self) -> None:
        _ask_once(self)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # it follows from `output`
        return self.output.needs

    @property
    def wants(self) -> frozenset[str]:  # type: ignore[override]
        return self.output.wants | {"gates", "costs"}

    @property
    def reads_logits(self) -> bool:
        return self.output.reads_logits

    def suited(self, *, chooses: bool, logits: bool) -> "Budgeted":
        return replace(self, output=self.output.suited(chooses=chooses, logits=logits))

    def __call__(self, student: Trace, teacher: Trace, batch: Batch) -> dict[str, Tensor]:
        return {**self.output(student, teacher, batch), **_excess(self, student, batch)}


def _ask_once(objective: "ActDistill | Budgeted") -> None:
    """Raises ValueError where the output asks for a budget as well, under the same name in the
    loss."""
    asked = getattr(objective.output, "budget", 0.0)
    if asked:
        name = type(objective).__name__
        raise ValueError(
            f"output.budget is {asked:g}, and {name} asks for a budget itself: set `budget` and `keep` "
            "of the objective, and leave its output's budget at 0"
        )


def dosed(objective: ActDistill, dose: float, *, every: int = 1) -> ActDistill:
    """The layers supervised as the paper has it, a sum over them with α = β = `dose`, of every n-th
    sample. The paper's dose is 1, of every sample."""
    return replace(objective, semantic=dose, layer_action=dose, every=every, over_layers="sum")


def _excess(
    objective: "ActDistill | Budgeted | Published", student: Trace, batch: Batch
) -> dict[str, Tensor]:
    """The budget's term."""
    # A router with a dial is told the budget of its batch, and held to that.
    keep = objective.keep if batch.budget is None else batch.budget
    excess = losses.budget_gap(student["gates"], student["costs"], keep, over=objective.over)
    return {"budget": objective.budget * excess.mean()}


@dataclass(frozen=True)
class Published(Objective):
    """The loss exactly as the public code has it: the task's own, the distillation, and a balance
    term that asks for no sparsity.

    With `Routing(mode="published_soft")` it is the published training, whose network is not the one
    deployed (recipes.md §1). With `budget` a term of ours is added that does ask for it: what the
    public loss gives at a cost that is held.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"semantics", "layer_actions"})
    balance: float = 1.0
    """Weight of the balance term."""
    alpha: float = 1.0
    """Weight of the semantics."""
    beta: float = 1.0
    """Weight of the layers' actions."""
    eta: float = 0.5
    """Weight of structure among the semantics."""
    gamma: float = 2.0
    """Exponent of the depth's weights."""
    budget: float = field(default=0.0, metadata=QUIET)
    """λ: weight of what runs beyond `keep`, which the public code does not ask; 0: nobody does."""
    keep: float = field(default=0.5, metadata=QUIET)
    """ρ: the share of the backbone that may run, where `budget` is more than 0."""
    over: Literal["sample", "batch"] = field(default="batch", metadata=QUIET)
    """Whether every sample keeps to the share, or the mean of a batch."""

    @property
    def wants(self) -> frozenset[str]:  # type: ignore[override]  # it follows from `budget`
        found = frozenset({"imitation", "soft_gates"}) | LAYERS
        return found | {"gates", "costs"} if self.budget else found

    def __call__(self, student: Trace, teacher: Trace, batch: Batch) -> dict[str, Tensor]:
        expert, _ = batch.targets()  # as published: padded steps count like any other
        distillation = losses.published_distillation(
            (student["semantics"], teacher["semantics"]),
            (student["layer_actions"], teacher["layer_actions"]),
            expert,
            alpha=self.alpha,
            beta=self.beta,
            eta=self.eta,
            gamma=self.gamma,
        )
        terms = {
            "imitation": student["imitation"].mean(),
            "distillation": distillation,
            "balance": self.balance * losses.published_balance(student["soft_gates"]),
        }
        return terms | _excess(self, student, batch) if self.budget else terms


# Two of tabletop's eight layers.
QUARTER = Routing(budget=0.25)


def actdistill(base: Recipe, student: Routing = QUARTER, *, route: int = 1000) -> Recipe:
    """`route` steps in which the router is found, and the rest of the base's steps with the router
    frozen."""
    (stage,) = base.stages
    # The teacher's eyes, which are as good as they will be, and give the router what it reads.
    frozen = ("policy.inner.vision.*",)
    keep = student.budget
    assert keep is not None  # every recipe here gives one
    routing = replace(
        stage,
        objective=ActDistill(output=output_of(base), keep=keep),
        steps=route,
        freeze=frozen,
        transforms=(*stage.transforms, Explore(1.0, 0.6)),  # noise falls, but never to none
    )
    # Not compiled: batches of every size go through a layer, as many samples as the router sends
    # there.
    settling = replace(
        stage, steps=stage.steps - route, freeze=(*frozen, "policy.router.*"), compile=False
    )
    return replace(base, student=student, stages=(routing, settling))


def output_of(base: Recipe) -> MatchOutput:
    """How the base's students match its teacher's output."""
    (stage,) = base.stages
    assert isinstance(stage.objective, MatchOutput)  # every base here has one
    return stage.objective


def faithful(
    base: Recipe, student: Routing = QUARTER, *, dose: float = 1.0, route: int = 1000
) -> Recipe:
    """The layers supervised as the paper has it: a sum over layers with α = β = `dose`, of every
    sample, while the router learns and behind it. The paper's dose is 1."""
    recipe = actdistill(base, student, route=route)
    routing, settling = recipe.stages
    assert isinstance(routing.objective, ActDistill)
    objective = dosed(routing.objective, dose)
    # Behind the router's own stage nothing that runs can change, and so no budget is asked.
    told = replace(objective, budget=0.0)
    stages = (replace(routing, objective=objective), replace(settling, objective=told))
    return replace(recipe, stages=stages)


def dial(base: Recipe) -> Recipe:
    """Every step of the first stage draws what its decisions may cost, and the router is told."""
    (stage,) = base.stages
    told = (*stage.transforms, DrawBudget(0.1, 1.0))
    drawn = replace(base, stages=(replace(stage, transforms=told),))
    return actdistill(drawn, Routing(dial=True, budget=0.25), route=1500)


def action_kd(base: Recipe, *, budget: float = 0.25) -> Recipe:
    """Neither the condition nor any layer is matched."""
    recipe = actdistill(base, Routing(budget=budget), route=_third(base))
    said = replace(output_of(base), condition=0)
    # The same loss with weights of 0: layers are read, and nothing comes of it.
    objective = ActDistill(output=said, keep=budget, semantic=0, layer_action=0)
    # The second stage has a router that stands still, so no budget either.
    first, second = recipe.stages
    stages = (replace(first, objective=objective), replace(second, objective=said))
    return replace(recipe, stages=stages)


def published(base: Recipe) -> Recipe:
    """One stage with the public code's gates and loss, which ask for no budget."""
    stage = replace(
        base.stages[0],
        objective=Published(),
        freeze=("policy.inner.vision.*",),
    )
    return replace(base, student=Routing(mode="published_soft"), stages=(stage,))


def published_budget(base: Recipe, *, budget: float = 0.25) -> Recipe:
    """The public code's gates and loss, held to a budget by the term that `actdistill` has."""
    recipe = published(base)
    (stage,) = recipe.stages
    asked = Published(budget=ActDistill.budget, keep=budget)
    student = Routing(mode="published_soft", budget=budget)
    return replace(recipe, student=student, stages=(replace(stage, objective=asked),))


def onpolicy(base: Recipe) -> Recipe:
    """One round of practice after the two stages."""
    recipe = actdistill(base)
    # The router stands still here too; the layers learn what to do where the student went.
    lesson = replace(recipe.stages[1], steps=1000, learning_rate=3e-4)
    return replace(recipe, rounds=(Round(lesson, episodes=1000),))


# The published router: it sees tokens, and neither the robot's state nor its last action.
BLIND = Routing(budget=0.25, use_state=False, use_previous_action=False)
# Its router itself, where it stands in ours in every other way.
PUBLISHED_ROUTER = replace(BLIND, chooser="published", hidden=512)
RECIPES = {
    "actdistill": Row(
        "ActDistill for your own robot: its teacher's layers and a router that runs half of them.",
        own,
        partial(actdistill, student=Routing(budget=0.5)),
    ),
    "dial": Row(
        "One student of your own robot for every budget: its router is told what a decision may "
        "cost.",
        own,
        dial,
    ),
    "action_kd": Row(
        "ActDistill for your own robot, told the final action and nothing else.",
        own,
        partial(action_kd, budget=0.5),
    ),
    "published": Row(
        "The published training of ActDistill, as it is written, for your own robot's teacher.",
        own,
        published,
    ),
    "faithful": Row(
        "ActDistill for your own robot with the layers supervised as the paper has it: a sum over "
        "layers, every sample, both stages.",
        own,
        partial(faithful, student=Routing(budget=0.5)),
    ),
    "published_budget": Row(
        "The published training for your own robot's teacher, held to half of its layers.",
        own,
        partial(published_budget, budget=0.5),
    ),
    "actdistill_tabletop": Row(
        "ActDistill on tabletop: the shipped teacher's layers and a router that runs a quarter "
        "of them.",
        tabletop,
        actdistill,
    ),
    "actdistill_metaworld": Row(
        "ActDistill on three tasks of Meta-World (needs the extra).",
        metaworld,
        partial(actdistill, student=Routing(budget=0.3), route=400),
    ),
    "actdistill_libero_object": Row(
        "ActDistill on LIBERO-Object (needs the extra).",
        libero_object,
        actdistill,
    ),
    "actdistill_libero_spatial": Row(
        "ActDistill on LIBERO-Spatial (needs the extra).",
        libero_spatial,
        actdistill,
    ),
    "actdistill_demo": Row(
        "The demo's student: ActDistill on tabletop in minutes, on two cores.",
        demo,
        partial(actdistill, student=Routing(budget=0.3), route=350),
    ),
    "dial_tabletop": Row(
        "One student for every budget: its router is told what a decision may cost "
        "(`--evaluation.budgets`).",
        tabletop,
        dial,
    ),
    "action_kd_tabletop": Row(
        "ActDistill's student and router, told the expert's and the teacher's final action and "
        "nothing else.",
        tabletop,
        action_kd,
    ),
    "blind_tabletop": Row(
        "ActDistill whose router sees image and words only, as the published one: no robot "
        "state, no previous action.",
        tabletop,
        partial(actdistill, student=BLIND),
    ),
    "published_router_tabletop": Row(
        "ActDistill with the router of the public code, which pools projected tokens and has one "
        "linear map a layer.",
        tabletop,
        partial(actdistill, student=PUBLISHED_ROUTER),
    ),
    "published_tabletop": Row(
        "The published training as it is written: soft gates on whole hidden states, its loss, "
        "its balance term.",
        tabletop,
        published,
    ),
    "published_budget_tabletop": Row(
        "The published training with a budget's term added, so that it runs a quarter of the "
        "layers.",
        tabletop,
        published_budget,
    ),
    "faithful_tabletop": Row(
        "ActDistill with its layers supervised as the paper has it: a sum over layers, every "
        "sample, both stages.",
        tabletop,
        faithful,
    ),
    "faithful_low_tabletop": Row(
        "The same with a fifth of the paper's weight on what the layers say.",
        tabletop,
        partial(faithful, dose=0.2),
    ),
    "faithful_high_tabletop": Row(
        "The same with eight times the paper's weight on what the layers say.",
        tabletop,
        partial(faithful, dose=8.0),
    ),
    "onpolicy_tabletop": Row(
        "ActDistill, then one on-policy round: the student acts, its teacher labels what it met, "
        "and it learns on.",
        tabletop,
        onpolicy,
    ),
}


def at(base: Recipe, *, budget: float, blind: bool = False) -> Recipe:
    """A third of the steps finds the router, as on tabletop. `blind`: it sees image and words
    only."""
    student = replace(BLIND if blind else QUARTER, budget=budget)
    return actdistill(base, student, route=_third(base))


def faithful_at(base: Recipe, *, budget: float, dose: float = 1.0) -> Recipe:
    return faithful(base, Routing(budget=budget), dose=dose, route=_third(base))


def router_at(base: Recipe, *, budget: float) -> Recipe:
    return actdistill(base, replace(PUBLISHED_ROUTER, budget=budget), route=_third(base))


def _third(base: Recipe) -> int:
    return base.stages[0].steps // 3


AT_BUDGETS = {
    "actdistill": Across("ActDistill, its teacher's layers and a router.", at),
    "blind": Across(
        "ActDistill whose router sees no state and no previous action.", partial(at, blind=True)
    ),
    "faithful": Across("ActDistill with its layers supervised as the paper has it.", faithful_at),
    "faithful_low": Across(
        "the same with a fifth of the paper's weight.", partial(faithful_at, dose=0.2)
    ),
    "faithful_high": Across(
        "the same with eight times the paper's weight.", partial(faithful_at, dose=8.0)
    ),
    "published_router": Across("ActDistill with the router of the public code.", router_at),
    "published_budget": Across("the published training, held to a budget.", published_budget),
    "action_kd": Across("ActDistill told the final action and nothing else.", action_kd),
}
IN_WORLDS = {
    "published": Across(
        "the published training as it is written, which asks for no budget.", published
    ),
}
