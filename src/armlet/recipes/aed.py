"""AED (action expert distillation, as the public account of the VITA-VLA framework describes it): a
larger policy's action, attention and representation, and image–text contrast, taught to two towers
that choose among 24 actions.

    account                                      here
    ViT-B/16 ‖ RoBERTa-base, 225 M               `policies.two_tower.student_base()`;
    `small_student()` trains here
    ViT-L/14 ‖ RoBERTa-large, 0.68 B             `teacher_large()`; `small_teacher()`
    24 discrete actions                          `PRIMITIVES`, a codebook of axes
    (bench/codebook.py: an expert acts through it)
    optional regression head                     `refine=True`: an offset from the primitive chosen
    1.0 L_action + 0.5 L_attn + 0.5 L_repr       `action`, `attention`, `representation`
      + 0.2 L_contrastive                        `contrastive`
    teacher's, expert's or mixed targets         `share` of the teacher, `temperature`
    frozen and ema_self teachers                 `Stage.teacher`
    online loop: replay, relabel, promote        `aed_online`: `Round(replay=…, trial=…)`

    armlet probe  aed_tabletop         # the shipped teacher's actions, attention and hidden states
    armlet distil aed_tabletop
    armlet evaluate aed_tabletop

The account gives no number and no equation for the goal code and the online loop: what stands here
is our reading. Its towers are pretrained; what ours would know of words and things if they were,
they learn by guessing simulator facts while they train (`facts`), in every row of the table.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from armlet.benchmarks import Benchmark
from armlet.benchmarks.tabletop import Tabletop
from armlet.data.augment import Augment
from armlet.data.codec import Codebook
from armlet.policies.students import Kept
from armlet.policies.two_tower import TwoTowerNetwork, TwoTowerStudent, small_student, small_teacher
from armlet.recipe import Collection, Objective, Recipe, Round, Stage
from armlet.recipes.bases import DISTIL, FACTS, TEACH, guess, guesses, metaworld, tabletop
from armlet.training import losses
from armlet.types import Batch, Trace

LAST = "attention.1"  # of the two fusion layers, the one that the goal code reads


@dataclass(frozen=True)
class Aed(Objective):
    """The account's four terms with its weights. A weight of 0 leaves a term out, and what it would
    read. `grids`: vision tokens a
    side, camera by camera; the recipes set it from cameras and patches."""

    action: float = 1.0
    attention: float = 0.5
    representation: float = 0.5
    contrastive: float = 0.2
    share: float = 0.5
    temperature: float = 2.0
    grids: tuple[int, ...] = (6, 4)
    projected: bool = True
    facts: tuple[str, ...] = ()

    @property
    def _terms(self) -> dict[str, tuple[float, tuple[str, ...], tuple[str, ...]]]:
        """Term → its weight, what it reads of the teacher, and what of the student."""
        return {
            "action": (self.action * self.share, ("logits",), ("logits",)),
            "imitation": (self.action * (1 - self.share), (), ("imitation",)),
            "attention": (self.attention, (LAST,), (LAST,)),
            "representation": (self.representation, ("fused",), (self._own,)),
            "contrastive": (self.contrastive, (), ("image", "text")),
        }

    @property
    def _own(self) -> str:
        return "projected" if self.projected else "fused"

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # it follows from the weights
        return frozenset(
            name for weight, theirs, _ in self._terms.values() if weight for name in theirs
        )

    @property
    def wants(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset(
            name for weight, _, own in self._terms.values() if weight for name in own
        ) | guesses(self.facts)

    def __call__(self, student: Trace, teacher: Trace, batch: Batch) -> dict[str, Tensor]:
        _, valid = batch.targets()
        distances: dict[str, Callable[[], Tensor]] = {
            "action": lambda: losses.action_distribution_kl(
                student["logits"], teacher["logits"], valid, temperature=self.temperature
            ),
            "imitation": lambda: student["imitation"],
            "attention": lambda: losses.attention_kl(
                student[LAST], teacher[LAST], student_grids=self.grids, teacher_grids=self.grids
            ),
            "representation": lambda: losses.representation_mse(
                student[self._own],
                teacher["fused"],
                student_grids=self.grids,
                teacher_grids=self.grids,
            ),
            "contrastive": lambda: losses.info_nce(
                student["image"], student["text"], losses.same_instruction(batch.text)
            ),
        }
        terms = {
            name: weight * distances[name]().mean()
            for name, (weight, _, _) in self._terms.items()
            if weight
        }
        return terms | guess(student, batch, self.facts)


def choosing(network: TwoTowerNetwork, benchmark: Benchmark, patch: int) -> TwoTowerNetwork:
    """The network with patches of so many pixels, and a head that chooses among 24 primitives of
    this robot, and refines what it chose."""
    book = Codebook.axes(benchmark.action_spec)
    return replace(
        network,
        patch=patch,
        head="codebook",
        head_options={"primitives": book.array.tolist(), "refine": True},
    )


def _distilled(
    base: Recipe,
    name: str,
    objective: Aed,
    *,
    steps: int,
    patch: int = 12,
    teacher: Path | None = None,
) -> Recipe:
    shared = Path("out") / f"aed_{base.name}"
    teach = base.teach
    assert teach is not None
    grids = tuple(size // patch for size in base.world("act").cameras.values())
    return replace(
        base,
        name=name,
        out=Path("out") / name,
        shared=shared,
        teacher=teacher or shared / "teacher",
        network=choosing(small_teacher(), base.world("act"), patch),
        teach=teach,
        probe=None,
        split="tasks",
        traced=("actions", "condition", "logits", LAST, "fused"),
        trace_precision="bf16",  # half of the time, and the student learns in it as well
        student=TwoTowerStudent(choosing(small_student(), base.world("act"), patch)),
        stages=_two_stages(replace(objective, grids=grids, facts=FACTS), steps),
    )


def _two_stages(objective: Aed, steps: int) -> tuple[Stage, Stage]:
    """The teacher's voice first; then the last third with the expert's, at a tenth of the rate."""
    pictures = Augment(brightness=0.15, contrast=0.15, saturation=0.15, crop=2)
    stage = replace(DISTIL, objective=objective, learning_rate=1e-3, augment=pictures, balance=0.5)
    last = replace(objective, share=min(objective.share, 0.25))
    return replace(stage, steps=steps * 2 // 3), replace(
        stage, objective=last, steps=steps // 3, learning_rate=1e-4
    )


def _on_tabletop(name: str, objective: Aed) -> Recipe:
    """All with the teacher that ships with the repository (runs/aed_teacher.sh made it)."""
    base = replace(tabletop(), teach=replace(TEACH, steps=5000))
    return _distilled(base, name, objective, steps=6000, teacher=Path("checkpoints/aed-teacher"))


def aed_tabletop() -> Recipe:
    """AED on tabletop: two towers of 4 M parameters teach two of 1 M, which choose among 24
    actions."""
    return _on_tabletop("aed_tabletop", Aed())


def aed_metaworld() -> Recipe:
    """AED on three tasks of Meta-World (needs the extra), whose few instructions do not part into
    three."""
    return replace(_distilled(metaworld(), "aed_metaworld", Aed(), steps=1500), split="last")


def aed_families() -> Recipe:
    """AED's data as the account has them: three families, 224 px, up to 50,000 trajectories
    (`--collection.episodes`)."""
    base = tabletop()
    families = replace(
        base,
        name="families",
        benchmark=Tabletop(scene_pixels=224, wrist_pixels=96),
        episodes=Path("out/aed_families/episodes"),
        collection=Collection(episodes=50_000),
    )
    return _distilled(families, "aed_families", Aed(), steps=6000, patch=16)


def aed_minus_attention() -> Recipe:
    """AED without the attention term."""
    return _on_tabletop("aed_minus_attention", Aed(attention=0))


def aed_minus_contrastive() -> Recipe:
    """AED without the contrastive term."""
    return _on_tabletop("aed_minus_contrastive", Aed(contrastive=0))


def aed_action_only() -> Recipe:
    """AED's student, taught actions only: the action distillation that the other terms must
    beat."""
    return _on_tabletop("aed_action_only", Aed(attention=0, representation=0, contrastive=0))


def aed_contrastive_only() -> Recipe:
    """AED's student with contrast and the expert's actions only; without any action it would not
    act."""
    return _on_tabletop("aed_contrastive_only", Aed(attention=0, representation=0, share=0))


def aed_bc() -> Recipe:
    """AED's student without a teacher: the expert's actions and nothing else."""
    return _on_tabletop("aed_bc", Aed(attention=0, representation=0, contrastive=0, share=0))


def aed_online() -> Recipe:
    """AED, then its feedback loop on unseen wordings: hard steps relabelled, learned from, kept
    only if success does not fall.

    Of tabletop's unseen splits it is the one in which the student falls far behind its teacher
    (docs/reproductions/aed.md).
    """
    base = aed_tabletop()
    lesson = replace(base.stages[0], steps=300, learning_rate=5e-4)
    step = Round(lesson, episodes=150, split="unseen_wordings", share=0.5, replay=2000, trial=200)
    return replace(base, name="aed_online", out=Path("out/aed_online"), rounds=(step,) * 2)


def aed_self() -> Recipe:
    """The teacher's own shape, taught by its own running average (`ema_self`)."""
    base = aed_tabletop()
    objective = Aed(projected=False, facts=FACTS)
    stages = tuple(replace(stage, objective=objective, teacher="ema_self") for stage in base.stages)
    return replace(
        base, name="aed_self", out=Path("out/aed_self"), student=Kept((0, 1)), stages=stages
    )
