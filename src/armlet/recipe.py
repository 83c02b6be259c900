"""Values that say what to run: an Objective, a Stage, a Recipe. Nothing here runs anything.

A run is a frozen value returned by a function in `armlet/recipes/`; variants use
`dataclasses.replace`. Whatever changes a result is in the recipe, and saved beside what it
produced.
"""

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from armlet import limits
from armlet.annotators import Annotator
from armlet.benchmarks import Benchmark
from armlet.data import hub
from armlet.data.augment import Augment
from armlet.data.layout import Columns
from armlet.data.pictures import Pictures
from armlet.limits import ABOVE_0, BELOW_1, MOST
from armlet.policies.contract import Network, Student
from armlet.robot.normalise import Mode
from armlet.robot.spec import ActionSpec
from armlet.types import Batch, Precision, Trace


class Objective(ABC):
    """What a stage minimises. Subclasses are frozen dataclasses whose fields are its weights.

    `needs`: what it reads from the teacher's trace; `wants`: what it reads from the student's.
    `every`: it reads the layers (semantics and layer actions) of every n-th sample only; the heads
    that read them are the dearest part of a small network's step.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    wants: ClassVar[frozenset[str]] = frozenset()
    every: int = 1

    @abstractmethod
    def __call__(self, student: Trace, teacher: Trace, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses; the trainer minimises their sum."""


@dataclass(frozen=True)
class Stage:
    """One stretch of training.

    `train` and `freeze` are patterns of parameter names (`vision.*`); what matches `train` and not
    `freeze` trains. `ema` averages the weights that are saved (None: the last ones). `augment`
    changes the pictures. `balance` draws frames of rare actions more often, where the head chooses
    among a few: 0 as they come, 1 all about equally. `gripper_noise`: the share of gripper commands
    that are told wrong, the expert's and the teacher's final ones alike (data.noise).
    `exploration`: the noise of a network that decides while it trains, a router, from the first
    step to the last (Gumbel noise at 1, none at 0); `budgets`: the range from which each step's
    budget is drawn, for one with a dial. With `teacher="ema_self"` it is no stored trace that is
    matched, but what the student's own running average (`teacher_decay`) answers; in the first
    stage the average starts from the teacher, which must be the same network, later from the
    student. `precision` is that of the matrix products; weights and losses stay in single
    precision. `compile` fuses each backbone layer (torch.compile) where that is possible: on a CPU,
    where a C++ compiler is found.
    """

    objective: Objective
    steps: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    optimiser: Literal["muon", "adamw"] = "muon"
    weight_decay: float = 0.01
    warmup: int = 200
    schedule: Literal["cosine", "constant"] = "cosine"
    clip: float = 1.0
    ema: float | None = None
    augment: Augment = field(default_factory=Augment)
    balance: float = 0.0
    gripper_noise: float = 0.0
    exploration: tuple[float, float] = (1.0, 0.0)
    budgets: tuple[float, float] | None = None
    teacher: Literal["frozen", "ema_self"] = "frozen"
    teacher_decay: float = 0.995
    precision: Precision = "bf16"
    compile: bool = False
    train: tuple[str, ...] = ("*",)
    freeze: tuple[str, ...] = ()
    log_every: int = 50
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        limits.positive(self, "batch_size", "log_every", "checkpoint_every")
        limits.check(self, steps=(0, inf))  # of several stages, one may be left out so
        limits.check(
            self,
            learning_rate=(ABOVE_0, MOST),
            clip=(ABOVE_0, inf),
            weight_decay=(0, MOST),
            warmup=(0, inf),
        )
        limits.check(
            self,
            ema=(0, BELOW_1),
            teacher_decay=(0, BELOW_1),
            balance=(0, MOST),
            gripper_noise=(0, 1),
        )
        limits.check(self, exploration=(0, MOST), budgets=(ABOVE_0, 1))


@dataclass(frozen=True)
class Collection:
    """How episodes are made. Only successes are kept."""

    episodes: int = 8000
    """How many."""
    seed: int = 10_000_000
    """Of the first; each has the next."""
    workers: int = 2
    """Processes at the same time."""
    disturbed_share: float = 0.6
    """Share of episodes in which the expert is disturbed (DART)."""
    distracted_share: float = 0.5
    """Share in which it is sent to a wrong thing first."""
    actor: Literal["expert", "teacher"] = "expert"
    """Who acts; the teacher acts undisturbed."""

    def __post_init__(self) -> None:
        limits.positive(self, "episodes", "workers")
        limits.check(self, seed=(0, inf), disturbed_share=(0, 1), distracted_share=(0, 1))


@dataclass(frozen=True)
class Probe:
    """The heads that read every layer while training, and how they are fitted on the frozen
    teacher."""

    stage: Stage
    graph_width: int = 32
    semantic_width: int = 64
    neighbours: int = 8
    heads: int = 4
    graph_layers: int = 2
    queries: int = 8
    hidden: int = 128

    def __post_init__(self) -> None:
        limits.positive(
            self, "graph_width", "semantic_width", "neighbours", "heads", "queries", "hidden"
        )
        limits.check(self, graph_layers=(0, inf))


@dataclass(frozen=True)
class Evaluation:
    """How policies are measured."""

    episodes: int = 400
    """Paired episodes a split, spread evenly over its tasks."""
    splits: tuple[str, ...] = ("seen",)
    """The benchmark's conditions."""
    seed: int = 500_000_000
    """Of the first episode."""
    workers: int = 2
    """Processes at the same time."""
    latency_calls: int = 200
    """Timed decisions."""
    budgets: tuple[float, ...] = ()
    """Shares of its backbone at which the recipe's student is run as well; it must have been
    calibrated."""
    execute: tuple[int, ...] = ()
    """Every policy is run as well carrying out this many actions of a chunk before it looks
    again."""
    slower: tuple[float, ...] = ()
    """How many times slower a robot's computer is than this one, for runs in which the world goes
    on while a policy thinks."""
    late: tuple[Literal["wait", "run_on"], ...] = ("wait",)
    """What the arm does meanwhile: wait holds still, run_on carries out what is left of the chunk
    before (armlet/rollout/loop.py)."""
    videos: int = 1
    """Films of each policy."""

    def __post_init__(self) -> None:
        limits.positive(self, "episodes", "workers", "latency_calls", "execute")
        limits.check(
            self, seed=(0, inf), videos=(0, inf), budgets=(ABOVE_0, 1), slower=(ABOVE_0, MOST)
        )


@dataclass(frozen=True)
class Round:
    """One on-policy round after the stages: the student acts in `episodes` episodes of `split` from
    `seed` on (a later round in others), the teacher labels every state it reaches, the data grow by
    these, and `stage` trains on all of them.

    `share` of what is drawn comes from the rounds' own frames, however few they are. `replay`
    bounds those that a round keeps: first all of episodes that failed, then those where student and
    teacher differ most; None keeps all. With `trial`, that many held-out episodes are run by the
    student before and after the round, and where it succeeds less often than before it goes back to
    what it was.
    """

    stage: Stage
    episodes: int = 500
    seed: int = 20_000_000
    workers: int = 2
    split: str = "seen"
    share: float = 0.3
    replay: int | None = None
    trial: int = 0

    def __post_init__(self) -> None:
        limits.positive(self, "episodes", "workers", "replay")
        limits.check(self, seed=(0, inf), share=(ABOVE_0, BELOW_1), trial=(0, inf))


@dataclass(frozen=True)
class Recipe:
    """Everything a run needs. Each verb reads the fields it is about and leaves its result under
    `out`."""

    name: str
    """Of the student, in logs and reports."""
    benchmark: Benchmark | None
    """The world in which episodes are collected and policies act; None: there is none, and
    policies are measured on held-out episodes."""
    episodes: Path
    """A LeRobotDataset: its folder, or hf:user/name; `collect` writes it."""
    teacher: Path
    """A policy: its folder, or hf:user/name; `teach` writes it."""
    out: Path
    """The folder of the student, its stages and its evaluation."""
    columns: Columns = field(default_factory=Columns)
    """Of the episodes: which hold state and action."""
    pictures: Pictures = field(default_factory=Pictures)
    """Of the episodes: how they are seen, and kept while training."""
    collection: Collection = field(default_factory=Collection)
    """How `collect` makes episodes."""
    network: Network | None = None
    """What `teach` makes a teacher of."""
    normalise_actions: Mode = "identity"
    """By which of the episodes' statistics a network sees actions (armlet/robot/normalise.py)."""
    outside_range: float = 0.5
    """The largest share of frames whose action may lie outside the robot's range
    (armlet/agreement.py)."""
    teach: Stage | None = None
    """How a teacher is taught."""
    probe: Probe | None = None
    """How the teacher's layers are read, where a student learns from them."""
    annotator: Annotator | None = None
    """Who says in words what happens in the episodes."""
    student: Student | None = None
    """What is made out of the teacher."""
    stages: tuple[Stage, ...] = ()
    """How the student is trained, one after the other."""
    rounds: tuple[Round, ...] = ()
    """On-policy rounds after them."""
    traced: tuple[str, ...] = ("actions", "condition")
    """What `probe` stores of the teacher, beside what its heads read."""
    trace_precision: Precision = "fp32"
    """Of the teacher's matrix products while `probe` watches it."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """How policies are measured."""
    shared: Path | None = None
    """The folder of traces, when several recipes use the same; none: in `out`."""
    split: Literal["last", "tasks"] = "last"
    """Which episodes no student trains on: the last ones, or by tasks, 70/15/15, no instruction
    and no scene in two parts (armlet/data/splits.py)."""
    held_out: float = 0.02
    """With `last`, the share of episodes, from the end."""
    policies: tuple[Path, ...] = ()
    """Folders, or hf:user/name, of more policies that `evaluate` runs in the same episodes."""
    weights: Literal["fp16", "fp32"] = "fp32"
    """As which numbers a teacher or student is kept on disk."""
    seed: int = 0
    """Of weights, batches and noise, whatever is trained."""

    def __post_init__(self) -> None:
        limits.check(self, outside_range=(0, 1), held_out=(ABOVE_0, BELOW_1), seed=(0, inf))
        trained = {
            "teach": (self.teach,),
            "probe.stage": (self.probe and self.probe.stage,),
            "stages": self.stages,
        }
        for name, stages in trained.items():
            if any(stages) and not sum(stage.steps for stage in stages if stage):
                raise ValueError(
                    f"recipe {self.name!r}: {name} has no steps, so nothing would be "
                    "trained; give it at least 1"
                )
        provided = set(self.traced) | ({"semantics", "layer_actions"} if self.probe else set())
        for index, stage in enumerate(self.all_stages):
            missing = stage.objective.needs - provided if stage.teacher == "frozen" else frozenset()
            if missing:
                raise ValueError(
                    f"recipe {self.name!r}: stage {index} ({type(stage.objective).__name__}) "
                    f"needs {sorted(missing)} "
                    "from the teacher, which nothing provides; give the recipe a `probe`"
                )

    @property
    def all_stages(self) -> tuple[Stage, ...]:
        """Every stretch of a student's training in order, those of on-policy rounds last."""
        return (*self.stages, *(each.stage for each in self.rounds))

    @property
    def own_columns(self) -> Columns:
        """Of episodes that armlet records itself: its own names, and no state where none is
        read."""
        return Columns(state=None) if self.columns.state is None else Columns()

    @property
    def traces(self) -> Path:
        return (self.shared or self.out) / "traces"

    @property
    def labels(self) -> Path:
        """Where an annotator's labels of the episodes are, beside the traces."""
        return self.traces.with_name(f"labels-{type(self.annotator).__name__.lower()}")

    @property
    def student_folder(self) -> Path:
        return self.out / "student"


YOURS = Path("YOUR-EPISODES")  # stands where a recipe is for whatever robot `--episodes` are of
Factory = Callable[[], Recipe]
KINDS: dict[str, hub.Kind] = {
    "episodes": "dataset",
    "teacher": "model",
    "policies": "model",
}  # what a field names


def at_hand(recipe: Recipe, *, reads: Sequence[str], writes: Sequence[str] = ()) -> Recipe:
    """The recipe with what a verb `reads` at hand: names on the hub are fetched, and stand for one
    commit from here on.

    Every verb begins with it. Raises ValueError where a field that is written to names something on
    the hub, or lies in its cache, and what `hub.pinned` raises.
    """
    for name in ("out", "shared", *writes):
        place = getattr(recipe, name)
        if place is not None:
            try:
                hub.refuse_writing(place)
            except ValueError as error:
                raise ValueError(f"--{name}: {error}") from error
    found: dict[str, Any] = {}
    for name in reads:
        places, kind = getattr(recipe, name), KINDS[name]
        if isinstance(places, tuple):
            found[name] = tuple(hub.pinned(place, kind=kind) for place in places)
        else:
            found[name] = hub.pinned(places, kind=kind)
    return replace(recipe, **found)


def suited(recipe: Recipe, robot: ActionSpec) -> Recipe:
    """The recipe with what its annotator must know of the robot, which the teacher says."""
    if recipe.annotator is None:
        return recipe
    return replace(recipe, annotator=recipe.annotator.suited(robot))


def to_json(value: Any) -> Any:
    """A recipe (or any dataclass) as JSON, every dataclass with the name of its class."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": type(value).__name__, **fields}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    json.dumps(value)  # raises, naming the type, where a value has no JSON form
    return value
