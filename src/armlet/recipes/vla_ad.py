"""VLA-AD (arXiv 2605.16241): an annotator says what happens in the data; its words help a small
student while it trains, and are gone when it acts.

    paper                                      here
    success-only teacher rollouts              `vla_ad_rollouts`: `Collection(actor="teacher")`
    phase anchors, nine of them, by rule       `annotator=PhaseRules()`, asked by `armlet probe`
    (element, direction) by a VLM              `annotator=Vlm(…)` in its place; it needs a server
                                               (annotators/vlm.py)
    L_full(x, text, description) + α L_img     `privileged_text`; α is `alpha`
    phase CE + cosine to the direction's text  `aux_heads`, the second account of the paper; or
                                               `both`
    w = (1, 1, 1, 2, 2, 2, 1)                  `weights`, where the action has these seven
                                               dimensions
    LongCLIP-B/16 with LoRA, 158 M             `policies.clip_lora.published()`; `small()` trains
                                               here

    armlet probe  vla_ad_tabletop      # the teacher's answers, and the annotator's labels
    armlet distil vla_ad_tabletop
    armlet evaluate vla_ad_tabletop --policies out/vla_ad_action_kd/student

Ways from the paper. On tabletop the episodes are those of every other recipe, in which the hand is
disturbed, answered by the teacher: undisturbed rollouts show a student no way back. Our student is
told the robot's state. It was not pretrained, so what a pretrained CLIP would know of words and
things it learns by guessing simulator facts while it trains (`facts`), and its labels are soft
(`soft`); without the two it had 65 % after 9,000 steps (dev/LOG.md). `vla_ad_action_kd` is the same
student, data, guesses and steps without a word; what semantics add is the difference of the two.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from armlet.annotators import DIRECTIONS, PHASES
from armlet.annotators.phase_rules import METAWORLD, PhaseRules
from armlet.data.codec import Bins
from armlet.data.transforms import GripperNoise
from armlet.layers.heads import to_bins
from armlet.policies.clip_lora import ClipLoraNetwork, small, tiny
from armlet.policies.students import Another
from armlet.policies.vla import VLANetwork
from armlet.recipe import Collection, Objective, Recipe, Round
from armlet.recipes.aed import aed_tabletop
from armlet.recipes.bases import DISTIL, FACTS, TEACH, demo, guess, guesses, metaworld, tabletop
from armlet.training import losses
from armlet.types import Batch, Trace

Semantic = Literal["none", "privileged_text", "aux_heads", "both"]


@dataclass(frozen=True)
class VlaAd(Objective):
    """The teacher's actions as bins, for the path that is told the description and for the one that
    is deployed.

    With `soft`, the temperature of `data.codec.Bins.gaussian`, the neighbours of an action's bin
    count as well; 0 is the paper's one bin. `facts` are guessed as in `bases.guess`.
    """

    semantic: Semantic = "privileged_text"
    alpha: float = 1.0
    phase: float = 0.1
    direction: float = 0.1
    weights: tuple[float, ...] | None = None
    target: Literal["teacher", "expert"] = "teacher"
    soft: float = 0.0
    facts: tuple[str, ...] = ()

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # it follows from `target`
        return frozenset({"actions"} if self.target == "teacher" else ())

    @property
    def wants(self) -> frozenset[str]:  # type: ignore[override]  # it follows from `semantic`
        told = {"logits.told"} if self.semantic in ("privileged_text", "both") else set()
        guessed = (
            {"phase", "direction", "direction.text"}
            if self.semantic in ("aux_heads", "both")
            else set()
        )
        return frozenset({"logits"} | told | guessed | guesses(self.facts))

    def __call__(self, student: Trace, teacher: Trace, batch: Batch) -> dict[str, Tensor]:
        if self.semantic != "none" and (batch.description is None or "phase" not in batch.labels):
            raise ValueError(
                f"semantic={self.semantic!r} needs an annotator's labels; give the recipe an `annotator`"
            )
        expert, valid = batch.targets()
        target = self._bins(
            teacher["actions"] if self.target == "teacher" else expert, student["logits"].shape[-1]
        )
        weights = None if self.weights is None else torch.tensor(self.weights, device=target.device)
        terms = {
            "image": self.alpha
            * losses.action_cross_entropy(student["logits"], target, valid, weights).mean()
        }
        if "logits.told" in self.wants:
            terms["told"] = losses.action_cross_entropy(
                student["logits.told"], target, valid, weights
            ).mean()
        if "phase" in self.wants:
            direction = batch.labels["direction"]
            named = direction.masked_fill(direction == DIRECTIONS.index("none"), -1)
            gap = losses.text_cosine(student["direction"], student["direction.text"], named)
            terms["phase"] = (
                self.phase
                * losses.label_cross_entropy(student["phase"], batch.labels["phase"]).mean()
            )
            terms["direction"] = self.direction * gap.mean()
        return terms | guess(student, batch, self.facts)

    def _bins(self, actions: Tensor, bins: int) -> Tensor:
        """The number of each action's bin, or, with `soft`, how likely each bin is."""
        if not self.soft:
            return to_bins(actions, bins)
        dims = actions.shape[-1]
        codec = Bins(tuple(map(str, range(dims))), (-1.0,) * dims, (1.0,) * dims, bins)
        return codec.gaussian(actions, temperature=self.soft)


def _student(network: ClipLoraNetwork, semantic: Semantic) -> ClipLoraNetwork:
    return replace(
        network,
        aux_heads=semantic in ("aux_heads", "both"),
        phases=len(PHASES),
        directions=DIRECTIONS,
    )


def _distilled(
    base: Recipe,
    name: str,
    semantic: Semantic,
    *,
    rules: PhaseRules | None = None,
    out: Path | None = None,
    network: ClipLoraNetwork | None = None,
    soft: float = 32.0,
    learning_rate: float = 1e-3,
) -> Recipe:
    """The base's episodes and teacher, a CLIP of ours, and an objective with or without words."""
    (stage,) = base.stages
    objective = VlaAd(semantic, soft=soft, facts=FACTS)
    # Nothing is told wrong unless a study asks for it (runs/noisy_gripper.sh).
    transforms = (*stage.transforms, GripperNoise())
    training = replace(
        stage, objective=objective, learning_rate=learning_rate, transforms=transforms
    )
    return replace(
        base,
        name=name,
        out=out or Path("out") / name,
        annotator=None if semantic == "none" else rules or PhaseRules(),
        student=Another(_student(network or small(), semantic)),
        stages=(training,),
    )


def _base() -> Recipe:
    """tabletop, of whose teacher no layer is read; and more steps, for a student that starts from
    nothing."""
    return replace(
        tabletop(),
        shared=Path("out/vla_ad_tabletop"),
        probe=None,
        trace_precision="bf16",  # a third of the time, and the student learns in it as well
        stages=(replace(DISTIL, steps=6000),),
    )


def vla_ad_tabletop() -> Recipe:
    """VLA-AD on tabletop: phases by rule, told to the student while it learns."""
    return _distilled(_base(), "vla_ad_tabletop", "privileged_text")


def vla_ad_aux() -> Recipe:
    """VLA-AD's other account: the student guesses phase and direction while it learns."""
    return _distilled(_base(), "vla_ad_aux", "aux_heads")


def vla_ad_both() -> Recipe:
    """VLA-AD with both: told the description, and guessing phase and direction."""
    return _distilled(_base(), "vla_ad_both", "both")


def vla_ad_action_kd() -> Recipe:
    """VLA-AD's student without a word: the teacher's actions and nothing else."""
    return _distilled(_base(), "vla_ad_action_kd", "none")


def vla_ad_bc() -> Recipe:
    """VLA-AD's student without a teacher: the expert's actions and nothing else."""
    base = _distilled(_base(), "vla_ad_bc", "none")
    (stage,) = base.stages
    assert isinstance(stage.objective, VlaAd)
    return replace(
        base, stages=(replace(stage, objective=replace(stage.objective, target="expert")),)
    )


def vla_ad_large() -> Recipe:
    """VLA-AD with a teacher 44 times larger than its student, 44.8 M parameters; teaching it takes
    a GPU (runs/vla_ad_large.sh)."""
    return _large("vla_ad_large", "privileged_text")


def vla_ad_large_action_kd() -> Recipe:
    """The same without a word: the teacher's actions and nothing else."""
    return _large("vla_ad_large_action_kd", "none")


def _large(name: str, semantic: Semantic) -> Recipe:
    out, base = Path("out/vla_ad_large"), _base()
    assert isinstance(base.network, VLANetwork)
    base = replace(
        base,
        network=replace(base.network, width=512, depth=14, heads=8),
        teach=replace(TEACH, learning_rate=5e-4, warmup=500),
        teacher=out / "teacher",
        shared=out,
    )
    return _distilled(base, name, semantic)


def vla_ad_tiny() -> Recipe:
    """VLA-AD with a student 44 times smaller than its teacher, AED's: about 0.1 M parameters of 4.4
    M."""
    return _practising("vla_ad_tiny", "privileged_text")


def vla_ad_tiny_action_kd() -> Recipe:
    """The same without a word: the teacher's actions and nothing else."""
    return _practising("vla_ad_tiny_action_kd", "none")


def vla_ad_tiny_offline() -> Recipe:
    """`vla_ad_tiny` without its rounds of practice, as the paper has none; runs/noisy_gripper.sh
    trains it."""
    return _tiny("vla_ad_tiny_offline", "privileged_text")


def vla_ad_tiny_offline_action_kd() -> Recipe:
    """The same without a word: the teacher's actions and nothing else."""
    return _tiny("vla_ad_tiny_offline_action_kd", "none")


def vla_ad_tiny_offline_aux() -> Recipe:
    """`vla_ad_tiny_offline` that guesses phase and direction and is not told them."""
    return _tiny("vla_ad_tiny_offline_aux", "aux_heads")


def vla_ad_tiny_offline_both() -> Recipe:
    """`vla_ad_tiny_offline` that is told the description and guesses phase and direction."""
    return _tiny("vla_ad_tiny_offline_both", "both")


def _tiny(name: str, semantic: Semantic) -> Recipe:
    """The teacher and traces of AED on tabletop; steps are cheap, and so it takes more of them, and
    larger ones (dev/LOG.md)."""
    base = replace(aed_tabletop(), split="last", stages=(replace(DISTIL, steps=20_000),))
    return _distilled(base, name, semantic, network=tiny(), soft=2.0, learning_rate=4e-3)


def _practising(name: str, semantic: Semantic) -> Recipe:
    """A student so small stands still, or goes in circles, in places where no episode of the expert
    has been. So it practises: three
    rounds in which its teacher says what to do there. The paper has none."""
    recipe = _tiny(name, semantic)
    lesson = replace(recipe.stages[0], steps=2500, learning_rate=2e-3)
    return replace(recipe, rounds=(Round(lesson, episodes=700),) * 3)


def vla_ad_rollouts() -> Recipe:
    """VLA-AD on what its teacher did, as published: successful rollouts only, nobody disturbed."""
    base = replace(
        _base(),
        episodes=Path("out/vla_ad_rollouts/episodes"),
        shared=Path("out/vla_ad_rollouts"),
        collection=Collection(actor="teacher"),
    )
    return _distilled(base, "vla_ad_rollouts", "privileged_text")


def vla_ad_metaworld() -> Recipe:
    """VLA-AD on three tasks of Meta-World (needs the extra)."""
    return _distilled(
        metaworld(), "vla_ad_metaworld", "privileged_text", rules=PhaseRules(METAWORLD)
    )


def vla_ad_demo() -> Recipe:
    """VLA-AD on the demo's few episodes, in minutes: the whole path, and too few steps to
    succeed."""
    return _distilled(demo(), "vla_ad_demo", "privileged_text", out=Path("out/demo/vla_ad"))
