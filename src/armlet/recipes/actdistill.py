"""ActDistill (arXiv 2511.18082): a student with the teacher's own layers and a router that skips some of them.

    paper                     here
    w_l = (l/(L−1))^γ         `gamma`
    L_sem = L_align + η L_struct   `semantic` (α), `eta`
    L_act                     `layer_action` (β), `steps`
    λ L_budget                `budget` (λ), `keep` (ρ), of every sample or of a batch's mean: `over`
    L_task                    `imitation`, and the match of the final action and condition: `action`, `condition`

    armlet teach  actdistill_tabletop      # a teacher; one ships with the repository, so this is optional
    armlet probe  actdistill_tabletop
    armlet distil actdistill_tabletop
    armlet evaluate actdistill_tabletop

`first_k_tabletop` trains the first layers alone, with the same data, steps and match to the teacher: the baseline
that matters most. What to expect, measured, stands in docs/reproductions/actdistill.md.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from armlet import losses
from armlet.benchmarks.metaworld import Metaworld
from armlet.benchmarks.tabletop import Tabletop
from armlet.policies.routed import Routing
from armlet.policies.subset import FirstK
from armlet.recipe import Collection, Evaluation, Network, Objective, Probe, Recipe, Stage
from armlet.types import Batch, Trace


@dataclass(frozen=True)
class Imitate(Objective):
    """Behaviour cloning, with guesses of simulator facts (standardised) while a teacher learns.

    The guesses are squared errors: near the thing, where the hand gives its place away, they are small at once, and what
    is left to learn from is the rest, where only the words tell which thing is meant.
    """

    privileged: float = 1.0
    facts: tuple[str, ...] = ("subject", "target")

    @property
    def wants(self) -> frozenset[str]:  # type: ignore[override]  # it follows from `facts`
        return frozenset({"imitation", *(f"{how}.{fact}" for fact in self.facts for how in ("privileged", "pointed"))})

    def __call__(self, student: Trace, teacher: Trace, batch: Batch) -> dict[str, Tensor]:
        terms = {"imitation": student["imitation"].mean()}
        for fact in self.facts:
            for how in ("privileged", "pointed"):
                error = (student[f"{how}.{fact}"].float() - batch.privileged[fact]).square().mean()
                terms[f"{how}.{fact}"] = self.privileged / len(self.facts) * error
        return terms


@dataclass(frozen=True)
class FitHeads(Objective):
    """Stage 1: the heads of every layer learn to say the expert's action; the teacher is frozen."""

    wants: ClassVar[frozenset[str]] = frozenset({"layer_actions"})

    def __call__(self, student: Trace, teacher: Trace, batch: Batch) -> dict[str, Tensor]:
        expert, valid = batch.targets()
        layers = student["layer_actions"].unbind(1)
        return {"layer_actions": torch.stack([losses.action_mse(actions, expert, valid) for actions in layers]).mean()}


@dataclass(frozen=True)
class MatchOutput(Objective):
    """Fine-tuning towards the expert and the teacher's final answer, without layer supervision or budget."""

    needs: ClassVar[frozenset[str]] = frozenset({"actions", "condition"})
    wants: ClassVar[frozenset[str]] = frozenset({"imitation", "actions", "condition"})
    imitation: float = 1.0
    action: float = 1.0
    condition: float = 0.5

    def __call__(self, student: Trace, teacher: Trace, batch: Batch) -> dict[str, Tensor]:
        return {
            "imitation": self.imitation * student["imitation"].mean(),
            "action": self.action * losses.action_l1(student["actions"], teacher["actions"], batch.actions_valid).mean(),
            "condition": self.condition * losses.condition_cosine(student["condition"], teacher["condition"]).mean(),
        }


@dataclass(frozen=True)
class ActDistill(Objective):
    """Stage 2: the output matched as in `MatchOutput`, every layer supervised, and a budget on what runs."""

    needs: ClassVar[frozenset[str]] = frozenset({"actions", "condition", "semantics", "layer_actions"})
    wants: ClassVar[frozenset[str]] = frozenset(
        {"imitation", "actions", "condition", "semantics", "layer_actions", "gates", "costs"}
    )
    output: MatchOutput = MatchOutput()
    keep: float = 0.5
    budget: float = 30.0
    over: Literal["sample", "batch"] = "batch"
    semantic: float = 0.2
    layer_action: float = 0.2
    eta: float = 0.5
    gamma: float = 2.0
    steps: losses.Steps = "chunk"

    def __call__(self, student: Trace, teacher: Trace, batch: Batch) -> dict[str, Tensor]:
        depth = losses.depth_weights(student["semantics"].shape[1], self.gamma, student["semantics"].device)
        semantic = losses.semantic_loss(student["semantics"], teacher["semantics"], self.eta)
        layers = losses.layer_action_loss(student["layer_actions"], teacher["layer_actions"], *batch.targets(), self.steps)
        return {
            **self.output(student, teacher, batch),
            "semantic": self.semantic * (depth * semantic).mean(),
            "layer_action": self.layer_action * (depth * layers).mean(),
            "budget": self.budget * losses.budget_gap(student["gates"], student["costs"], self.keep, over=self.over).mean(),
        }


TEACH = Stage(Imitate(), steps=6000, batch_size=128, ema=0.999, compile=True)
PROBE = Probe(Stage(FitHeads(), steps=600, optimiser="adamw", train=("probe.*",)))


def _stages(keep: float, *, route: int, settle: int, **values: Any) -> tuple[Stage, ...]:
    """First the router is found, by drawing routes; then it stands still, and the layers learn the routes it takes."""
    stage = Stage(
        ActDistill(keep=keep),
        steps=route,
        batch_size=128,
        learning_rate=5e-4,
        freeze=("policy.inner.vision.*",),
        ema=0.998,
        exploration=(1.0, 0.6),
        compile=True,
    )
    frozen = (*stage.freeze, "policy.router.*")
    # Not compiled: batches of every size go through a layer, as many samples as its router sends there.
    settled = replace(stage, objective=MatchOutput(), steps=settle, freeze=frozen, exploration=(0.0, 0.0), compile=False)
    return replace(stage, **values), replace(settled, **values)


def actdistill_tabletop() -> Recipe:
    """ActDistill on tabletop: the shipped teacher's layers and a router that runs about a third of them."""
    return Recipe(
        name="actdistill_tabletop",
        benchmark=Tabletop(),
        episodes=Path("out/tabletop/episodes"),
        teacher=Path("checkpoints/tabletop-teacher"),
        out=Path("out/actdistill_tabletop"),
        collection=Collection(),
        network=Network(strides={"scene": 12, "wrist": 16}),
        teach=TEACH,
        probe=PROBE,
        student=Routing(),
        stages=_stages(0.3, route=1000, settle=2000),
    )


def _first_k(base: Recipe, name: str, out: Path) -> Recipe:
    """The first three of eight layers, on the traces, data and steps of an ActDistill recipe."""
    steps = sum(stage.steps for stage in base.stages)
    stage = replace(base.stages[0], objective=MatchOutput(), steps=steps, freeze=("policy.vision.*",))
    return replace(base, name=name, out=out, shared=base.out, student=FirstK(3), stages=(stage,))


def first_k_tabletop() -> Recipe:
    """The baseline: the teacher's first layers, fine-tuned on the same data for as many steps."""
    return _first_k(actdistill_tabletop(), "first_k_tabletop", Path("out/first_k_tabletop"))


def actdistill_metaworld() -> Recipe:
    """ActDistill on three tasks of Meta-World (needs the extra), its teacher taught from Meta-World's own experts."""
    base = actdistill_tabletop()
    return replace(
        base,
        name="actdistill_metaworld",
        benchmark=Metaworld(),
        episodes=Path("out/metaworld/episodes"),
        teacher=Path("out/metaworld/teacher"),
        out=Path("out/actdistill_metaworld"),
        collection=Collection(episodes=600),
        teach=replace(TEACH, steps=600, warmup=100),
        probe=replace(PROBE, stage=replace(PROBE.stage, steps=300)),
        stages=_stages(0.3, route=400, settle=600, warmup=50),
        evaluation=Evaluation(episodes=150),
    )


def first_k_metaworld() -> Recipe:
    """The baseline on Meta-World."""
    return _first_k(actdistill_metaworld(), "first_k_metaworld", Path("out/first_k_metaworld"))


def actdistill_demo() -> Recipe:
    """The demo's student: ActDistill on tabletop in minutes, on two cores."""
    base = actdistill_tabletop()
    return replace(
        base,
        name="actdistill_demo",
        episodes=Path("out/demo/episodes"),
        out=Path("out/demo/actdistill"),
        collection=replace(base.collection, episodes=1200),
        probe=replace(PROBE, stage=replace(PROBE.stage, steps=200)),
        stages=_stages(0.3, route=400, settle=1000, batch_size=64, warmup=50, compile=False),
        evaluation=Evaluation(episodes=100),
    )


def first_k_demo() -> Recipe:
    """The demo's baseline: as many first layers as the budget allows, the same data and steps."""
    return _first_k(actdistill_demo(), "first_k_demo", Path("out/demo/first_k"))
