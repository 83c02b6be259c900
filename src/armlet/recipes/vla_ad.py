"""VLA-AD (arXiv 2605.16241): an annotator says what happens in the data; its words help a small
student while it trains, and are gone when it acts.

    paper                                      here
    success-only teacher rollouts              `vla_ad_rollouts`: `Collection(actor="teacher")`
    phase anchors, nine of them, by rule       `annotator=PhaseRules()`, asked by `armlet probe`
    (element, direction) by a VLM              `vla_ad_vlm`, which needs a server; `vla_ad_truth`:
                                               by what the simulator knew, in a VLM's place
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
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from armlet.annotators import DIRECTIONS, PHASES, Annotator
from armlet.annotators.controls import ConstantWords, PhaseCodes
from armlet.annotators.motion_rules import MotionRules
from armlet.annotators.phase_rules import METAWORLD, PhaseRules
from armlet.annotators.truth import SimulatorWords
from armlet.annotators.vlm import Vlm
from armlet.data.codec import Bins
from armlet.data.transforms import GripperNoise, ShuffledWords
from armlet.layers.heads import to_bins
from armlet.policies.clip_lora import ClipLoraNetwork, small, tiny
from armlet.policies.fitting import Alike
from armlet.policies.students import OtherNetwork
from armlet.policies.vla import VLANetwork
from armlet.recipe import Collection, Objective, Recipe, Round
from armlet.recipes import META_WORLD
from armlet.recipes.bases import (
    DISTIL,
    FACTS,
    SHIPPED_TOWERS,
    TEACH,
    Across,
    Row,
    demo,
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

# How an annotator's words help the student.
Semantic = Literal["none", "privileged_text", "aux_heads", "both"]
SMALL = small()
TABLETOP_RULES = PhaseRules()


@dataclass(frozen=True)
class VlaAd(Objective):
    """The teacher's actions as bins, for the path that is told the description and for the one that
    is deployed."""

    semantic: Semantic = "privileged_text"
    """How the annotator's words help: told, guessed, both, or not at all."""
    alpha: float = 1.0
    """α: weight of the path that is deployed."""
    phase: float = 0.1
    """Weight of the guess of the phase."""
    direction: float = 0.1
    """Weight of the guess of the direction."""
    weights: tuple[float, ...] | None = None
    """Of each action dimension; none: all alike."""
    target: Literal["teacher", "expert"] = "teacher"
    """Whose actions are learned."""
    soft: float = 0.0
    """Temperature by which the neighbours of an action's bin count as well
    (`data.codec.Bins.gaussian`); 0: the paper's one bin."""
    facts: tuple[str, ...] = ()
    """Simulator facts guessed while it learns, as in `bases.guess`."""

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # it follows from `target`
        # Taught the expert's actions, it asks no teacher for anything.
        return frozenset({"actions"} if self.target == "teacher" else ())

    @property
    def wants(self) -> frozenset[str]:  # type: ignore[override]  # it follows from `semantic`
        found = {"logits"}
        if self.semantic in ("privileged_text", "both"):
            found.add("logits.told")
        if self.semantic in ("aux_heads", "both"):
            found |= {"phase", "direction", "direction.text"}
        return frozenset(found) | guesses(self.facts)

    def __call__(self, student: Trace, teacher: Trace, batch: Batch) -> dict[str, Tensor]:
        if self.semantic != "none" and (batch.description is None or "phase" not in batch.labels):
            raise ValueError(
                f"semantic={self.semantic!r} needs an annotator's labels; give the recipe an "
                "`annotator`"
            )
        expert, valid = batch.targets()
        actions = teacher["actions"] if self.target == "teacher" else expert
        target = self._bins(actions, student["logits"].shape[-1])
        weights = None
        if self.weights is not None:
            weights = torch.tensor(self.weights, device=target.device)
        # The paper's L_img, of the path that is deployed, and L_full, of the one that is told.
        image = losses.action_cross_entropy(student["logits"], target, valid, weights)
        terms = {"image": self.alpha * image.mean()}
        if "logits.told" in self.wants:
            full = losses.action_cross_entropy(student["logits.told"], target, valid, weights)
            terms["told"] = full.mean()
        if "phase" in self.wants:
            # An arm that goes nowhere has no direction whose words could be guessed.
            direction = batch.labels["direction"]
            named = direction.masked_fill(direction == DIRECTIONS.index("none"), -1)
            gap = losses.text_cosine(student["direction"], student["direction.text"], named)
            phase = losses.label_cross_entropy(student["phase"], batch.labels["phase"])
            terms["phase"] = self.phase * phase.mean()
            terms["direction"] = self.direction * gap.mean()
        return terms | guess(student, batch, self.facts)

    def _bins(self, actions: Tensor, bins: int) -> Tensor:
        """The number of each action's bin, or, with `soft`, how likely each bin is."""
        if not self.soft:
            return to_bins(actions, bins)
        # Actions are normalised, so every dimension has the same bins, and names do not matter.
        dims = actions.shape[-1]
        codec = Bins(tuple(map(str, range(dims))), (-1.0,) * dims, (1.0,) * dims, bins)
        return codec.gaussian(actions, temperature=self.soft)


def vla_ad(
    base: Recipe,
    semantic: Semantic = "privileged_text",
    *,
    target: Literal["teacher", "expert"] = "teacher",
    rules: Annotator = TABLETOP_RULES,
    network: ClipLoraNetwork = SMALL,
    soft: float = 32.0,
    learning_rate: float = 1e-3,
    shuffled: bool = False,
) -> Recipe:
    """The base's episodes and teacher, a CLIP of ours, and an objective with or without words."""
    (stage,) = base.stages
    objective = VlaAd(semantic, target=target, soft=soft, facts=FACTS)
    # Nothing is told wrong unless a study asks for it (runs/noisy_gripper.sh).
    transforms = (*stage.transforms, GripperNoise())
    if shuffled:
        transforms = (*transforms, ShuffledWords())
    training = replace(
        stage, objective=objective, learning_rate=learning_rate, transforms=transforms
    )
    return replace(
        base,
        annotator=None if semantic == "none" else rules,
        student=OtherNetwork(told(network, semantic)),
        stages=(training,),
    )


def truth(base: Recipe, semantic: Semantic = "privileged_text", **others: Any) -> Recipe:
    """Things and directions from what the simulator knew, in a model's place."""
    from armlet.benchmarks.tabletop.language import SEEN

    wordings = []
    for skill, said in SEEN.items():
        wordings += [(skill, wording) for wording in said]
    return vla_ad(base, semantic, rules=SimulatorWords(tuple(wordings)), **others)


def vlm(base: Recipe) -> Recipe:
    """Asked of a server on this machine, unless `--annotator.base-url` names another."""
    model = Vlm(
        model="Qwen/Qwen2.5-VL-7B-Instruct",
        base_url="http://localhost:8000/v1",
        cache=Path("out/vla_ad_vlm/answers"),
        enlarge=4,  # 72 pixels a side are few for a model that was taught on photographs
    )
    return vla_ad(base, rules=model)


def told(network: ClipLoraNetwork, semantic: Semantic) -> ClipLoraNetwork:
    """The network with heads for what it guesses, where it guesses."""
    return replace(
        network,
        aux_heads=semantic in ("aux_heads", "both"),
        phases=len(PHASES),
        directions=DIRECTIONS,
    )


def for_any_robot(base: Recipe) -> Recipe:
    """Phases by what every robot has, motion and grippers; a student as small, fitted to its
    teacher, with nothing to guess of a simulator."""
    network = replace(small(), strides={})  # no camera of tabletop's: `Alike` finds them
    return replace(
        base,
        probe=None,  # of the teacher the final actions alone are read
        trace_precision="bf16",
        annotator=MotionRules(),
        student=Alike(told(network, "privileged_text")),
        stages=(replace(DISTIL, objective=VlaAd(soft=32.0), steps=6000, learning_rate=1e-3),),
    )


def _longer() -> Recipe:
    """tabletop, of whose teacher no layer is read; and more steps, for a student that starts from
    nothing."""
    return replace(
        tabletop(),
        shared=Path("out/vla_ad_tabletop"),  # traces without layers are not tabletop's
        probe=None,
        trace_precision="bf16",  # a third of the time, and the student learns in it as well
        stages=(replace(DISTIL, steps=6000),),
    )


def _large() -> Recipe:
    """The same with a teacher of 44.8 M parameters."""
    base = _longer()
    out = Path("out/vla_ad_large")
    assert isinstance(base.network, VLANetwork)
    return replace(
        base,
        network=replace(base.network, width=512, depth=14, heads=8),
        teach=replace(TEACH, learning_rate=5e-4, warmup=500),
        teacher=out / "teacher",
        shared=out,
    )


def _rollouts() -> Recipe:
    """The same with episodes of the teacher."""
    folder = Path("out/vla_ad_rollouts")
    # Only what succeeds is kept (`TeacherActs`), as the paper's rollouts are.
    collection = Collection(actor="teacher")
    return replace(_longer(), episodes=folder / "episodes", shared=folder, collection=collection)


def _with_aed_teacher() -> Recipe:
    """The teacher and traces of AED on tabletop; steps are cheap, and so a tiny student takes more
    of them, and larger ones (dev/LOG.md)."""
    # Held out as in VLA-AD's other recipes, where AED's hold out whole tasks.
    base = two_towers(longer_taught(tabletop()), teacher=SHIPPED_TOWERS)
    return replace(base, split="last", stages=(replace(DISTIL, steps=20_000),))


def tiny_student(base: Recipe, semantic: Semantic = "privileged_text") -> Recipe:
    return vla_ad(base, semantic, network=tiny(), soft=2.0, learning_rate=4e-3)


def practising(base: Recipe, semantic: Semantic = "privileged_text") -> Recipe:
    """A student so small stands still, or goes in circles, in places where no episode of the expert
    has been. So it practises: three rounds in which its teacher says what to do there. The paper
    has none."""
    recipe = tiny_student(base, semantic)
    # A gentler rate than at first: it goes on from what it can do.
    lesson = replace(recipe.stages[0], steps=2500, learning_rate=2e-3)
    return replace(recipe, rounds=(Round(lesson, episodes=700),) * 3)


RECIPES = {
    "vla_ad": Row(
        "VLA-AD for your own robot: phases by its motion and grippers, told to the student while "
        "it learns.",
        own,
        for_any_robot,
    ),
    "vla_ad_tabletop": Row(
        "VLA-AD on tabletop: phases by rule, told to the student while it learns.", _longer, vla_ad
    ),
    "vla_ad_aux": Row(
        "VLA-AD's other account: the student guesses phase and direction while it learns.",
        _longer,
        partial(vla_ad, semantic="aux_heads"),
    ),
    "vla_ad_both": Row(
        "VLA-AD with both: told the description, and guessing phase and direction.",
        _longer,
        partial(vla_ad, semantic="both"),
    ),
    "vla_ad_action_kd": Row(
        "VLA-AD's student without a word: the teacher's actions and nothing else.",
        _longer,
        partial(vla_ad, semantic="none"),
    ),
    "vla_ad_bc": Row(
        "VLA-AD's student without a teacher: the expert's actions and nothing else.",
        _longer,
        partial(vla_ad, semantic="none", target="expert"),
    ),
    "vla_ad_truth": Row(
        "VLA-AD told the thing and its direction by the simulator, as a model that errs nowhere would.",
        _longer,
        truth,
    ),
    "vla_ad_truth_both": Row(
        "The same, and the student guesses phase and direction as well.",
        _longer,
        partial(truth, semantic="both"),
    ),
    "vla_ad_truth_shuffled": Row(
        "A control: the simulator's words, each told at another frame.",
        _longer,
        partial(truth, shuffled=True),
    ),
    "vla_ad_constant": Row(
        "A control: the same words at every frame.", _longer, partial(vla_ad, rules=ConstantWords())
    ),
    "vla_ad_phase_codes": Row(
        "A control: phases as letters, without a word.",
        _longer,
        partial(vla_ad, rules=PhaseCodes()),
    ),
    "vla_ad_vlm": Row(
        "VLA-AD with a vision-language model on a server (`--annotator.base-url`, `--annotator.yes`).",
        _longer,
        vlm,
    ),
    "vla_ad_large": Row(
        "VLA-AD with a teacher 44 times larger than its student, 44.8 M parameters; teaching it "
        "takes a GPU (runs/vla_ad_large.sh).",
        _large,
        vla_ad,
    ),
    "vla_ad_large_action_kd": Row(
        "The same without a word: the teacher's actions and nothing else.",
        _large,
        partial(vla_ad, semantic="none"),
    ),
    "vla_ad_tiny": Row(
        "VLA-AD with a student 44 times smaller than its teacher, AED's: about 0.1 M parameters "
        "of 4.4 M.",
        _with_aed_teacher,
        practising,
    ),
    "vla_ad_tiny_action_kd": Row(
        "The same without a word: the teacher's actions and nothing else.",
        _with_aed_teacher,
        partial(practising, semantic="none"),
    ),
    "vla_ad_tiny_offline": Row(
        "`vla_ad_tiny` without its rounds of practice, as the paper has none; "
        "runs/noisy_gripper.sh trains it.",
        _with_aed_teacher,
        tiny_student,
    ),
    "vla_ad_tiny_offline_action_kd": Row(
        "The same without a word: the teacher's actions and nothing else.",
        _with_aed_teacher,
        partial(tiny_student, semantic="none"),
    ),
    "vla_ad_tiny_offline_aux": Row(
        "`vla_ad_tiny_offline` that guesses phase and direction and is not told them.",
        _with_aed_teacher,
        partial(tiny_student, semantic="aux_heads"),
    ),
    "vla_ad_tiny_offline_both": Row(
        "`vla_ad_tiny_offline` that is told the description and guesses phase and direction.",
        _with_aed_teacher,
        partial(tiny_student, semantic="both"),
    ),
    "vla_ad_rollouts": Row(
        "VLA-AD on what its teacher did, as published: successful rollouts only, nobody disturbed.",
        _rollouts,
        vla_ad,
    ),
    "vla_ad_metaworld": Row(
        "VLA-AD on three tasks of Meta-World (needs the extra).",
        metaworld,
        partial(vla_ad, rules=PhaseRules(METAWORLD)),
    ),
    "vla_ad_demo": Row(
        "VLA-AD on the demo's few episodes, in minutes: the whole path, and too few steps to "
        "succeed.",
        demo,
        vla_ad,
    ),
}


def in_world(base: Recipe, semantic: Semantic = "privileged_text", **others: Any) -> Recipe:
    """A student of as many actions a decision as its teacher. Its rules see where Meta-World's hand
    is; of another robot they see commands and grippers."""
    assert isinstance(base.network, VLANetwork)
    network = replace(SMALL, chunk=base.network.chunk, execute=base.network.execute)
    settings = {"rules": rules_of(base), "network": network, **others}
    return vla_ad(base, semantic, **settings)


def rules_of(base: Recipe) -> Annotator:
    from armlet.benchmarks.metaworld import Metaworld

    if not isinstance(base.benchmark, Metaworld):
        return MotionRules()
    # The rules' numbers that are of a step are of one at 20 Hz.
    faster = base.benchmark.action_spec.control_hz / 20
    assert METAWORLD.metres_per_command is not None
    embodiment = replace(
        METAWORLD,
        metres_per_command=METAWORLD.metres_per_command / faster,
        settled=METAWORLD.settled / faster,
    )
    return PhaseRules(embodiment)


def truth_in(base: Recipe) -> Recipe:
    """The thing that each task of Meta-World is about, and which way it moved."""
    from armlet.benchmarks.metaworld.language import THINGS

    rules = rules_of(base)
    assert isinstance(rules, PhaseRules)
    return in_world(base, rules=SimulatorWords(things=tuple(THINGS.items()), rules=rules))


def codes_in(base: Recipe) -> Recipe:
    rules = rules_of(base)
    assert isinstance(rules, PhaseRules)
    return in_world(base, rules=PhaseCodes(rules))


IN_WORLDS = {
    "vla_ad": Across("VLA-AD, phases by rule, told while it learns.", in_world),
    "vla_ad_aux": Across(
        "its other account: phase and direction are guessed.",
        partial(in_world, semantic="aux_heads"),
    ),
    "vla_ad_action_kd": Across(
        "its student without a word: the teacher's actions alone.",
        partial(in_world, semantic="none"),
    ),
    "vla_ad_bc": Across(
        "its student without a teacher: the expert's actions alone.",
        partial(in_world, semantic="none", target="expert"),
    ),
    "vla_ad_truth": Across(
        "told the thing and its direction by the simulator.", truth_in, META_WORLD
    ),
    "vla_ad_shuffled": Across(
        "a control: words of other frames.", partial(in_world, shuffled=True)
    ),
    "vla_ad_constant": Across(
        "a control: the same words at every frame.", partial(in_world, rules=ConstantWords())
    ),
    "vla_ad_phase_codes": Across("a control: phases as letters.", codes_in, META_WORLD),
}
