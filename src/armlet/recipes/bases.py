"""What recipes start from: episodes and a teacher, how teachers are taught and watched, and the
objectives that are no recipe's own. A recipe adds a student and the stages that train it.

`own` is a robot of one's own: episodes from the command line, no world, and sizes that fit what the
episodes turn out to have. `tabletop`, `metaworld`, `mt50`, `libero_object`, `libero_spatial` and
`demo` are worlds of ours. All recipes of one
world share its episodes, teacher and traces, so what differs in a table is the recipe. A base is a
recipe without a student: `armlet collect tabletop`, `armlet teach tabletop` and `armlet probe
tabletop` make what they share.

`Row` is a line of a file's table of recipes: a base and what is changed in it; its name says where
its files are. `Across` is a line for many recipes: the same change in every world that tables are
made of, at every budget (armlet/recipes/__init__.py has worlds, budgets and names).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from armlet.benchmarks import Benchmark
from armlet.data.codec import Codebook
from armlet.data.pictures import Pictures
from armlet.policies.fitting import FitsRobot
from armlet.policies.two_tower import TwoTowerNetwork, small_teacher
from armlet.policies.vla import VLANetwork
from armlet.recipe import (
    QUIET,
    YOURS,
    Collection,
    Evaluation,
    Objective,
    Probe,
    Recipe,
    Stage,
)
from armlet.recipes import WORLDS
from armlet.training import losses
from armlet.types import Batch, Trace

FACTS = ("subject", "target")  # where the thing is that the words mean, and where it shall go


def guesses(facts: tuple[str, ...]) -> frozenset[str]:
    """What `guess` reads of a student."""
    return frozenset(_signals(facts))


def _signals(facts: tuple[str, ...]) -> list[str]:
    """Both guesses of every fact: from the condition, and from the picture alone."""
    found = []
    for fact in facts:
        found += [f"privileged.{fact}", f"pointed.{fact}"]
    return found


def guess(
    student: Trace, batch: Batch, facts: tuple[str, ...], weight: float = 1.0
) -> dict[str, Tensor]:
    """Guesses of simulator facts (standardised) while a network learns from nothing which thing the
    words mean.

    They are squared errors: near the thing, where the hand gives its place away, they are small at
    once, and what is left to learn from is the rest, where only the words tell which thing is
    meant.
    """
    terms = {}
    for signal in _signals(facts):
        fact = signal.partition(".")[2]
        error = student[signal].float() - batch.privileged[fact]  # (b, numbers of the fact)
        # Over the number of facts, so that naming more of them does not drown the actions.
        terms[signal] = weight / len(facts) * error.square().mean()
    return terms


@dataclass(frozen=True)
class Imitate(Objective):
    """Behaviour cloning, with guesses of simulator facts while a teacher learns."""

    privileged: float = 1.0
    """Weight of the guesses."""
    facts: tuple[str, ...] = FACTS
    """Which simulator facts are guessed."""

    @property
    def wants(self) -> frozenset[str]:  # type: ignore[override]  # it follows from `facts`
        return guesses(self.facts) | {"imitation"}

    def __call__(self, student: Trace, teacher: Trace, batch: Batch) -> dict[str, Tensor]:
        return {"imitation": student["imitation"].mean()} | guess(
            student, batch, self.facts, self.privileged
        )


@dataclass(frozen=True)
class FitHeads(Objective):
    """Stage 1: the heads of every layer learn to say the expert's action; the teacher is frozen."""

    wants: ClassVar[frozenset[str]] = frozenset({"layer_actions"})

    def __call__(self, student: Trace, teacher: Trace, batch: Batch) -> dict[str, Tensor]:
        expert, valid = batch.targets()
        layers = student["layer_actions"].unbind(1)  # l of (b, k, a)
        gaps = [losses.action_mse(actions, expert, valid) for actions in layers]
        return {"layer_actions": torch.stack(gaps).mean()}


@dataclass(frozen=True)
class MatchOutput(Objective):
    """Fine-tuning towards the expert and the teacher's final answer, without layer supervision or
    budget. What weighs nothing is not read."""

    imitation: float = 1.0
    """Weight of the expert's actions."""
    action: float = 1.0
    """Weight of the teacher's actions."""
    condition: float = 0.5
    """Weight of what the teacher's head reads; 0: nobody need know it."""
    by: Literal["fitting", "actions", "logits", "choices", "velocity"] = field(
        default="fitting", metadata=QUIET
    )
    """How the teacher's actions are matched: actions, by their distance; logits, of a student and a
    teacher that choose among the same classes; choices, by the student's own loss against the
    teacher's actions; velocity, of two flow heads, whose velocities are compared at the same noise
    and time (`FlowHead.distance`); fitting: logits or choices for a student that chooses, actions
    for others."""

    def _matches(self) -> list[tuple[str, str]]:
        """What is read of the teacher, and of the student."""
        matched = []
        if self.action:
            named = {
                "logits": ("logits", "logits"),
                "choices": ("actions", "imitation.teacher"),
                "velocity": ("condition", "imitation.velocity"),
            }
            matched.append(named.get(self.by, ("actions", "actions")))
        if self.condition:
            matched.append(("condition", "condition"))
        return matched

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # it follows from the weights
        return frozenset(theirs for theirs, _ in self._matches())

    @property
    def wants(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset(mine for _, mine in self._matches()) | {"imitation"}

    @property
    def reads_logits(self) -> bool:
        return bool(self.action) and self.by == "fitting"

    def suited(self, *, chooses: bool, logits: bool) -> "MatchOutput":
        if not (chooses and self.reads_logits):
            return self
        return replace(self, by="logits" if logits else "choices")

    def __call__(self, student: Trace, teacher: Trace, batch: Batch) -> dict[str, Tensor]:
        terms = {"imitation": self.imitation * student["imitation"].mean()}
        # The actions, and what the head read for them, which the published loss never matches.
        if self.action:
            terms["action"] = self.action * self._actions(student, teacher, batch).mean()
        if self.condition:
            conditions = losses.condition_cosine(student["condition"], teacher["condition"])
            terms["condition"] = self.condition * conditions.mean()
        return terms

    def _actions(self, student: Trace, teacher: Trace, batch: Batch) -> Tensor:
        """(b,): how far the student's actions are from the teacher's."""
        if self.by == "choices":
            return student["imitation.teacher"]
        if self.by == "velocity":
            return student["imitation.velocity"]
        if self.by == "logits":
            mine = student["logits"]
            theirs = teacher["logits"]
            if mine.shape != theirs.shape:
                raise ValueError(
                    f"the student chooses among {tuple(mine.shape[2:])} and its teacher among "
                    f"{tuple(theirs.shape[2:])} (dimensions, classes): their logits cannot be "
                    "compared; set `objective.by` of the stage to choices, and it learns which of "
                    "its own classes the teacher's actions are"
                )
            return losses.action_distribution_kl(mine, theirs, batch.actions_valid)
        return losses.action_l1(student["actions"], teacher["actions"], batch.actions_valid)


# What recipes begin with; each replaces what it does otherwise.
TEACH = Stage(Imitate(), steps=6000, batch_size=128, ema=0.999, compile=True)
PROBE = Probe(Stage(FitHeads(), steps=600, optimiser="adamw", train=("probe.*",)))
# Of a flow head: ten steps of Euler's method, and back through them, cost nine times as much as a
# velocity and lead to the same flow.
MATCH_FLOW = MatchOutput(by="velocity")
DISTIL = Stage(
    MatchOutput(), steps=3000, batch_size=128, learning_rate=5e-4, ema=0.998, compile=True
)


@dataclass(frozen=True)
class Row:
    """A recipe as a line of a table: what it is, what it starts from, and what makes it of that."""

    summary: str
    base: Callable[[], Recipe]
    change: Callable[[Recipe], Recipe]

    def make(self, name: str) -> Recipe:
        """The recipe of this name, whose files are in a folder of this name. A teacher of one's own
        robot is there as well, until `--teacher` names another."""
        recipe = self.change(self.base())
        out = recipe.out.parent / name
        if name.endswith("_demo"):  # what the demo makes lies together
            out = recipe.out / name.removesuffix("_demo")
        if recipe.benchmark is None:  # two recipes for one's own robot may want different teachers
            recipe = replace(recipe, teacher=out / "teacher")
        return replace(recipe, name=name, out=out)


@dataclass(frozen=True)
class Across:
    """A recipe in several worlds, a line of a file's table: what it is, and what makes it of a base
    and, in a table of budgets, of a share of the teacher's layers."""

    summary: str
    change: Callable[..., Recipe]
    worlds: tuple[str, ...] = WORLDS

    def make(self, name: str, world: str, budget: float | None = None) -> Recipe:
        """The recipe of this name in a world, which is the name of a base here. `budget`: the share
        that its student runs, in a table of budgets."""
        base: Callable[[], Recipe] = globals()[world]
        change = self.change if budget is None else partial(self.change, budget=budget)
        return Row(self.summary, base, change).make(name)


def layers_at(base: Recipe, budget: float) -> int:
    """How many layers of the base's teacher are a share of them. Raises ValueError where the base
    does not say how deep its teacher is, or the share is no whole number of layers."""
    if not isinstance(base.network, VLANetwork):
        raise ValueError(f"base {base.name!r} has no VLANetwork, so its depth is not known")
    count = base.network.depth * budget
    if count < 1 or count != int(count):
        raise ValueError(
            f"{budget:g} of the {base.network.depth} layers of {base.name!r} is {count:g}, no whole "
            "number of layers"
        )
    return int(count)


def as_trained_in(base: Recipe, recipe: Recipe) -> Recipe:
    """The recipe with batches of the size that the base's students learn from, and their warm-up."""
    usual = base.stages[0]
    stages = []
    for stage in recipe.stages:
        stages.append(replace(stage, batch_size=usual.batch_size, warmup=usual.warmup))
    return replace(recipe, stages=tuple(stages))


def own() -> Recipe:
    """Your own robot (--episodes) and a teacher, taught from them or brought (--teacher); no
    student."""
    # A chunk is a time, and patches divide the pictures: both follow from the episodes. No joint is
    # as large as another, so actions are brought to -1 … 1 by what the episodes have.
    return Recipe(
        name="own",
        benchmark=None,
        episodes=YOURS,
        teacher=Path("out/own/teacher"),
        out=Path("out/own"),
        # Cameras of any shape: brought to squares that the patches divide.
        pictures=Pictures(fit="auto"),
        network=FitsRobot(VLANetwork()),
        normalise_actions="min_max",
        teach=replace(TEACH, objective=Imitate(facts=())),
        probe=PROBE,
        stages=(DISTIL,),
        held_out=0.1,  # of what may be fifty episodes, enough to measure on
    )


def tabletop() -> Recipe:
    """8,000 episodes of tabletop, the teacher that ships with the repository and its traces; no
    student."""
    from armlet.benchmarks.tabletop import Tabletop  # brings its simulator with it

    return Recipe(
        name="tabletop",
        benchmark=Tabletop(),
        episodes=Path("out/tabletop/episodes"),
        teacher=Path("checkpoints/tabletop-teacher"),
        out=Path("out/tabletop"),
        shared=Path("out/tabletop"),
        collection=Collection(),
        network=VLANetwork(strides={"scene": 12, "wrist": 16}),  # 72 and 48 px: 36 and 9 tokens
        teach=TEACH,
        probe=PROBE,
        stages=(DISTIL,),
    )


def metaworld() -> Recipe:
    """Three tasks of Meta-World (needs the extra), a teacher taught from Meta-World's own experts;
    no student."""
    from armlet.benchmarks.metaworld import Metaworld

    return replace(
        tabletop(),
        name="metaworld",
        benchmark=Metaworld(),
        episodes=Path("out/metaworld/episodes"),
        teacher=Path("out/metaworld/teacher"),
        out=Path("out/metaworld"),
        shared=Path("out/metaworld"),
        collection=Collection(episodes=600),  # 200 a task
        teach=replace(TEACH, steps=600, warmup=100),
        probe=replace(PROBE, stage=replace(PROBE.stage, steps=300)),
        stages=(replace(DISTIL, steps=1000, warmup=50),),
        evaluation=Evaluation(episodes=150),
    )


def mt50() -> Recipe:
    """All fifty tasks of Meta-World, one teacher that is told which (needs the extra); no student."""
    from armlet.benchmarks.metaworld.language import WORDINGS

    return many_tasks("mt50", tuple(WORDINGS))


def ml45() -> Recipe:
    """The same of forty-five tasks: five are held out, the split unseen_tasks; no student."""
    from armlet.benchmarks.metaworld import HELD_OUT
    from armlet.benchmarks.metaworld.language import WORDINGS

    taught = tuple(name for name in WORDINGS if name not in HELD_OUT)
    return many_tasks("ml45", taught)


def mt10() -> Recipe:
    """The same of ten tasks, as Meta-World's MT10 chose them; no student."""
    from armlet.benchmarks.metaworld import MT10

    return many_tasks("mt10", MT10)


def many_tasks(name: str, task_names: tuple[str, ...], *, per_task: int = 40) -> Recipe:
    """Meta-World at 40 Hz with a teacher of 16 layers and a flow head of ten steps."""
    from armlet.benchmarks.metaworld import Metaworld

    base = metaworld()
    out = Path("out") / name
    # At 20 Hz the expert of bin-picking succeeds in 1 of 10 episodes, of handle-pull-side in 6.
    benchmark = Metaworld(task_names=task_names, action_repeat=2, step_limit=200)
    network = VLANetwork(
        depth=16,
        chunk=12,
        execute=4,
        strides={"scene": 12, "wrist": 16},
        head="flow",
        head_options={"steps": 10},
    )
    return replace(
        base,
        name=name,
        benchmark=benchmark,
        episodes=out / "episodes",
        teacher=out / "teacher",
        out=out,
        shared=out,
        collection=Collection(episodes=per_task * len(task_names)),
        network=network,
        teach=replace(TEACH, steps=10000, batch_size=64, warmup=200),
        probe=PROBE,
        # A student of four layers takes 0.4 s a step of one core, ActDistill's 1.2 until its router
        # stands still (dev/LOG.md).
        stages=(replace(DISTIL, objective=MATCH_FLOW, steps=2000, batch_size=64, warmup=100),),
        evaluation=Evaluation(episodes=500),
    )


def libero(suite: str, *, episodes: int = 1000) -> Recipe:
    """A suite of LIBERO (needs the extra): a teacher taught from our scripted expert's episodes; a
    report is on the official initial states, fifty a task (`--evaluation.splits official`); no
    student."""
    from armlet.benchmarks.libero import Libero

    return replace(
        tabletop(),
        name=suite,
        benchmark=Libero(suite=suite),
        episodes=Path("out") / suite / "episodes",
        teacher=Path("out") / suite / "teacher",
        out=Path("out") / suite,
        shared=Path("out") / suite,
        # Longer is an episode in which the expert had to try again; it is dropped with those that
        # fail (`Libero.step_limit`).
        # Each process keeps a world a task, of 0.9 GB.
        collection=Collection(episodes=episodes, workers=1),
        network=VLANetwork(strides={"scene": 12, "wrist": 16}),  # 96 and 64 px: 64 and 16 tokens
        # Chosen on drawn layouts: the official ones are the same for all seeds (`Libero.states`).
        evaluation=Evaluation(episodes=500, workers=1),
    )


def libero_object() -> Recipe:
    """LIBERO-Object: which of seven groceries goes into the basket; no student."""
    return libero("libero_object")


def libero_spatial() -> Recipe:
    """LIBERO-Spatial: which of two bowls goes onto the plate, told by where it stands; no
    student."""
    return libero("libero_spatial")


def demo() -> Recipe:
    """tabletop in minutes on two cores: few episodes, few steps, 100 paired episodes in the end; no
    student."""
    base = tabletop()
    return replace(
        base,
        name="demo",
        episodes=Path("out/demo/episodes"),
        out=Path("out/demo"),
        shared=Path("out/demo"),
        collection=replace(base.collection, episodes=1000),
        probe=replace(PROBE, stage=replace(PROBE.stage, steps=200)),
        # Compiling would take longer than it saves in so few steps.
        stages=(replace(DISTIL, steps=1050, batch_size=64, warmup=50, compile=False),),
        evaluation=Evaluation(episodes=100),
    )


# --- a teacher of two towers


LAST = "attention.1"  # of the two fusion layers, the one that the goal code reads
# What any recipe may read of such a teacher, so that all of one world share one store.
TRACED = ("actions", "condition", "logits", LAST, "fused")

SHIPPED_TOWERS = Path("checkpoints/aed-teacher")


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


def chunked_as(base: Recipe, network: TwoTowerNetwork) -> TwoTowerNetwork:
    """The network with as many actions a decision as the base's teacher."""
    if not isinstance(base.network, VLANetwork):
        return network
    return replace(network, chunk=base.network.chunk, execute=base.network.execute)


def two_towers(base: Recipe, *, patch: int = 12, teacher: Path | None = None) -> Recipe:
    """The base with a teacher of two towers that choose among primitives, and what is stored of its
    answers; no student. `teacher`: one that is there already."""
    assert base.benchmark is not None
    # Not the base's: its teacher is another.
    shared = Path("out") / f"aed_{base.name}"
    return replace(
        base,
        shared=shared,
        teacher=teacher or shared / "teacher",
        network=choosing(chunked_as(base, small_teacher()), base.benchmark, patch),
        probe=None,  # nobody reads its layers through heads
        split="tasks",
        traced=TRACED,
        trace_precision="bf16",  # half of the time, and students learn in it as well
    )


def longer_taught(base: Recipe) -> Recipe:
    """As many steps as the two towers that ship were taught (runs/aed_teacher.sh)."""
    return replace(base, teach=replace(TEACH, steps=5000))
