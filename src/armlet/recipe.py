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
from armlet.benchmarks import Benchmark, native_robot
from armlet.data import hub, mirror, store
from armlet.data.augment import Augment
from armlet.data.door import check_policy, robot_of
from armlet.data.episodes import EpisodeDataset
from armlet.data.hub_name import Kind
from armlet.data.layout import Columns
from armlet.data.pictures import Pictures
from armlet.data.transforms import BatchTransform
from armlet.limits import ABOVE_0, BELOW_1, MOST
from armlet.logs import Logging
from armlet.measuring import QUIET, Calibration, Evaluation
from armlet.policies.contract import Network, Student
from armlet.robot.description import RobotOptions
from armlet.robot.fit import View
from armlet.robot.normalise import Mode, Normaliser
from armlet.robot.spec import ActionSpec, RobotSpec
from armlet.shards import Shards
from armlet.types import LAYERS, Batch, Precision, Trace

# Fields of a stage that cannot change what it makes. The last three are about how a batch is
# divided, as is the number of processes, which is no field: they round otherwise, as devices do.
CHANGES_NOTHING = ("log_every", "checkpoint_every", "accumulate", "parallel", "offload")


class Objective(ABC):
    """What a stage minimises. Subclasses are frozen dataclasses whose fields are its weights.

    `every`: it reads the layers (semantics and layer actions) of every n-th sample only; the heads
    that read them are the dearest part of a small network's step.
    """

    # Names of a trace (types.py). Of the class and not of the value: a recipe is checked by them
    # before anything is built.
    needs: ClassVar[frozenset[str]] = frozenset()  # what it reads of the teacher's trace
    wants: ClassVar[frozenset[str]] = frozenset()  # what it reads of the student's
    every: int = 1

    def without_layers(self) -> "Objective":
        """The same where nobody can read the teacher's layers: of objectives that read them and
        give what they say no weight. Others need them, or never read them."""
        return self

    @abstractmethod
    def __call__(self, student: Trace, teacher: Trace, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses; the trainer minimises their sum."""

    @property
    def reads_logits(self) -> bool:
        """Whether it compares logits where the student has them and `suited` is told so."""
        return False

    def suited(self, *, chooses: bool, logits: bool) -> "Objective":
        """The objective for the student that it meets. `chooses`: the student chooses its actions
        among classes (bins, primitives, tokens), so that no gradient goes through what it decides,
        and its logits are what can be taught. `logits`: it and the teacher's trace have them. Most
        objectives are the same for all."""
        return self


@dataclass(frozen=True)
class OwnAverage:
    """The student's own running average as its teacher (Mean Teacher, arXiv 1703.01780). In the
    first stage it starts from the recipe's teacher, which must be the same network; in a later one
    from the student as it is then."""

    decay: float = 0.995
    """Share that the average keeps of itself at a step, the rest is the student's; below 1."""

    def __post_init__(self) -> None:
        limits.check(self, decay=(0, BELOW_1))  # an average that keeps all of itself never moves


@dataclass(frozen=True)
class LoRA:
    """Low-rank additions to linear layers (arXiv 2106.09685), which train in the place of these
    layers' own weights, and are added to them when the stage ends."""

    rank: int = 0
    """Rank of what is added; 0: nothing is, and weights train themselves."""
    alpha: float = 16.0
    """Its scale, over the rank."""
    targets: tuple[str, ...] = ("policy.*.q_proj", "policy.*.v_proj")
    """Patterns of the names of linear layers that are added to."""
    whole: tuple[str, ...] = ()
    """Patterns of weights that train as they are beside it (`policy.head.*`); of all others none
    does."""

    def __post_init__(self) -> None:
        limits.check(self, rank=(0, inf), alpha=(ABOVE_0, MOST))
        if self.rank and not self.targets:
            raise ValueError("lora.targets names no layer: give patterns such as policy.*.q_proj")


@dataclass(frozen=True)
class Stage:
    """One stretch of training."""

    objective: Objective
    """What is minimised, and the weights of its terms."""
    steps: int
    """How many batches are learnt from; 0 leaves the stage out."""
    batch_size: int = 64
    """Frames in a batch; every frame is drawn once before any is drawn again."""
    learning_rate: float = 1e-3
    """Step size after the warm-up, of AdamW; Muon's steps are scaled to be as large."""
    optimiser: Literal["muon", "adamw"] = "muon"
    """muon: of the backbone's matrices, and AdamW of the rest; adamw: of everything."""
    weight_decay: float = 0.01
    """What weights lose a step, as a multiple of the learning rate (decoupled, as in AdamW)."""
    warmup: int = 200
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """The rate after the warm-up: half a cosine down to 2 % at the last step, or as it is."""
    # Clipped over all weights together, so that the direction of a step stays (Pascanu et al. 2013).
    clip: float = 1.0
    """Largest norm of the gradient of all weights together; a longer one is shortened."""
    ema: float | None = None
    """Decay a step of the averaged weights that a stage ends with; None: it ends with the last."""
    transforms: tuple[BatchTransform, ...] = (Augment(),)
    """What is done to a batch before the student sees it, in this order (data/transforms.py)."""
    teacher: OwnAverage | None = None
    """Whom the student is compared with; None: what `probe` stored of the recipe's teacher."""
    # bf16 has fp32's range, so that no loss scaling is needed; its sums are kept in fp32.
    precision: Precision = "bf16"
    """Precision of the matrix products, where the processor has bf16 ones (else they are single);
    weights and losses stay in single precision."""
    compile: bool = False
    """Fuse each layer (torch.compile): slow to start, then faster; on a CPU it takes g++ or clang."""
    train: tuple[str, ...] = ("*",)
    """Patterns of names of weights that train (`policy.head.*`); one that matches none is an error."""
    freeze: tuple[str, ...] = ()
    """Patterns of those that do not, although `train` names them."""
    freeze_pretrained: tuple[str, ...] = field(default=(), metadata=QUIET)
    """Patterns of those that do not where they are pretrained, and train where they start from
    nothing; what stands here may match nothing, also in `train`."""
    lora: LoRA = field(default=LoRA(), metadata=QUIET)
    """Low-rank additions that train in the place of the weights."""
    weights_precision: Precision | None = field(default=None, metadata=QUIET)
    """In which precision linear layers are held while they train, bf16 to need half of the memory;
    what trains has a copy in single precision that steps are added to. None: as they are."""
    recompute: bool = field(default=False, metadata=QUIET)
    """Compute each layer of the backbone once more on the way back, and keep nothing of it until
    then (gradient checkpointing): less memory, a third more time."""
    accumulate: int = field(default=1, metadata=QUIET)
    """Parts of a batch that pass through the network one after the other, for less memory: the step
    is that of the whole batch, and all parts but the last are computed twice (training/division.py)."""
    parallel: Literal["ddp", "fsdp"] = field(default="ddp", metadata=QUIET)
    """How several processes (torchrun) hold the network: each a copy (ddp), or each a part of every
    weight, its gradient and the optimiser's state (fsdp); docs/several-machines.md."""
    offload: bool = field(default=False, metadata=QUIET)
    """With fsdp, what is not at work lies in the memory of the CPU: slower, for larger networks."""
    log_every: int = 50
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every: int = 500
    """Steps between two saved states, from which a killed run goes on; Ctrl-C saves one as well."""

    @property
    def needs(self) -> frozenset[str]:
        """What its objective, and what is done to its batches, read of the teacher's trace."""
        found = self.objective.needs
        for transform in self.transforms:
            found |= transform.needs
        return found

    def __post_init__(self) -> None:
        limits.positive(self, "batch_size", "accumulate", "log_every", "checkpoint_every")
        self._check_shards()
        limits.check(self, steps=(0, inf))  # of several stages, one may be left out so
        if self.teacher is not None and (self.lora.rank or self.weights_precision):
            raise ValueError(
                "teacher is the student's own average, which follows its weights as they are; give "
                "the stage no `lora` and no `weights_precision`, or no such teacher"
            )
        if self.weights_precision == "bf16" and self.precision != "bf16":
            raise ValueError(
                f"weights_precision is bf16 and precision {self.precision}: products of such "
                "weights are in bf16; give the stage `precision` bf16 as well"
            )
        limits.check(
            self,
            learning_rate=(ABOVE_0, MOST),
            clip=(ABOVE_0, inf),
            weight_decay=(0, MOST),
            warmup=(0, inf),
            ema=(0, BELOW_1),
        )

    def _check_shards(self) -> None:
        """Raises ValueError for what a stage in shards cannot do, and for what has no effect."""
        if self.parallel == "ddp":
            if self.offload:
                raise ValueError("offload has no effect without `parallel` fsdp")
            return
        instead = "give the stage `parallel` ddp"
        if self.teacher is not None:
            raise ValueError(
                "parallel is fsdp, and teacher the student's own average, which is whole on every "
                f"process; {instead}, or no such teacher"
            )
        if self.weights_precision is not None:
            raise ValueError(
                f"parallel is fsdp, and weights_precision {self.weights_precision}: weights in "
                "shards are held as they are, and are their own masters; leave it out (products are "
                f"in `precision` all the same), or {instead}"
            )
        if self.compile:
            raise ValueError(f"parallel is fsdp, and compile true: set it false, or {instead}")
        if self.offload and self.optimiser == "muon":
            raise ValueError(
                "offload, and optimiser muon, whose matrices are brought together at every step: "
                "give the stage `optimiser` adamw, or no offload"
            )


@dataclass(frozen=True)
class Collection:
    """How episodes are made. Only successes are kept."""

    episodes: int = 8000
    """How many."""
    # Far from the seeds of rounds and of the evaluation; evaluation/settings.py refuses overlaps.
    seed: int = 10_000_000
    """Of the first; each has the next."""
    workers: int = 2
    """Processes at the same time."""
    disturbed_share: float = 0.6
    """Share of episodes in which the expert is disturbed (DART)."""
    # Without these a hand near a thing always means that thing, and no word need be heard.
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
    """How they are fitted."""
    graph_width: int = 32
    """Numbers a node of a layer's graph of tokens."""
    semantic_width: int = 64
    """Numbers in what a layer's graph says: its semantic vector."""
    neighbours: int = 8
    """Image tokens that each is joined to: those most like it."""
    heads: int = 4
    """Attention heads in the graph's layers."""
    graph_layers: int = 2
    """Rounds in which the nodes of a graph hear their neighbours."""
    queries: int = 8
    """Questions that a layer's action head asks the tokens."""
    hidden: int = 128
    """Width inside a layer's action head."""

    def __post_init__(self) -> None:
        limits.positive(
            self, "graph_width", "semantic_width", "neighbours", "heads", "queries", "hidden"
        )
        limits.check(self, graph_layers=(0, inf))  # 0: nodes hear no neighbours


@dataclass(frozen=True)
class Round:
    """One on-policy round after the stages: the student acts, the teacher labels every state that
    it reaches, the data grow by these, and training goes on, on all of them."""

    stage: Stage
    """How the student is trained on the data, old and new."""
    episodes: int = 500
    """Episodes in which the student acts."""
    # Neither what was collected nor what is evaluated.
    seed: int = 20_000_000
    """Seed of the first of them; a later round acts in others."""
    workers: int = 2
    """Processes that act at the same time."""
    split: str = "seen"
    """The benchmark's split from which the episodes' tasks are."""
    share: float = 0.3
    """Share of the frames drawn that are the rounds' own, however few these are; below 1."""
    replay: int | None = None
    """Most frames that are added, of failures first, then of large disagreement; None: all."""
    trial: int = 0
    """Held-out episodes in which a round must not make the student worse, or is undone; 0: none."""

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
    # The episodes.
    columns: Columns = field(default_factory=Columns)
    """Of the episodes: which hold state and action."""
    pictures: Pictures = field(default_factory=Pictures)
    """Of the episodes: how they are seen, and kept while training."""
    robot: RobotOptions = field(default_factory=RobotOptions)
    """Whose the episodes are, where they do not say (armlet/robot/description.py)."""
    collection: Collection = field(default_factory=Collection)
    """How `collect` makes episodes."""
    # The teacher; None where a recipe distils one that exists.
    network: Network | None = None
    """What `teach` makes a teacher of."""
    normalise_actions: Mode = "identity"
    """By which of the episodes' statistics a network sees actions (armlet/robot/normalise.py)."""
    outside_range: float = 0.5
    """The largest share of frames whose action may lie outside the robot's range
    (armlet/data/door.py)."""
    teach: Stage | None = None
    """How a teacher is taught."""
    # What is learnt from the teacher, and by whom.
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
    teacher_precision: Precision = field(default="fp32", metadata=QUIET)
    """In which the teacher's linear layers are held meanwhile, bf16 to need half of the memory."""
    # Measuring, and what is common to all verbs.
    evaluation: Evaluation = field(default_factory=Evaluation)
    """How policies are measured."""
    calibration: Calibration = field(default=Calibration(), metadata=QUIET)
    """How the longest `execute` that is no worse is looked for."""
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
    acting_device: str = "cpu"
    """Where policies act and are timed (collect, rounds, evaluate): cpu, cuda …"""
    log: Logging = field(default=Logging(), metadata=QUIET)
    """Where the run is logged beside its own files."""
    shards: Shards = field(default=Shards(), metadata=QUIET)
    """How the work is shared among processes."""

    def __post_init__(self) -> None:
        limits.check(self, outside_range=(0, 1), held_out=(ABOVE_0, BELOW_1), seed=(0, inf))
        if self.teacher_precision == "bf16" and self.trace_precision != "bf16":
            raise ValueError(
                f"recipe {self.name!r}: teacher_precision is bf16 and trace_precision "
                f"{self.trace_precision}: products of such weights are in bf16; give "
                "trace_precision bf16 as well"
            )
        trained: dict[str, tuple[Stage | None, ...]] = {
            "teach": (self.teach,),
            "probe.stage": (self.probe.stage if self.probe else None,),
            "stages": self.stages,
        }
        # One stage of several may have no steps; where all have none, a policy would be saved that
        # is as it was drawn.
        for name, stages in trained.items():
            if any(stages) and not sum(stage.steps for stage in stages if stage):
                raise ValueError(
                    f"recipe {self.name!r}: {name} has no steps, so nothing would be "
                    "trained; give it at least 1"
                )
        # Told here and not after the hours that `probe` takes. The probe's heads provide two.
        provided = set(self.traced)
        if self.probe:
            provided |= LAYERS
        unsaid = self.student.reads - provided if self.student else None
        if unsaid:
            raise ValueError(
                f"recipe {self.name!r}: its student is chosen by the teacher's {sorted(unsaid)}, "
                "which `traced` does not name; add it"
            )
        for index, stage in enumerate(self.all_stages):
            # The student's own average, as a teacher, answers whatever it is asked.
            missing = stage.needs - provided
            if missing and stage.teacher is None:
                raise ValueError(
                    f"recipe {self.name!r}: stage {index} ({type(stage.objective).__name__}) "
                    f"needs {sorted(missing)} from the teacher, which nothing provides; "
                    "give the recipe a `probe`"
                )

    @property
    def all_stages(self) -> tuple[Stage, ...]:
        """Every stretch of a student's training in order, those of on-policy rounds last."""
        return (*self.stages, *(each.stage for each in self.rounds))

    @property
    def needs(self) -> frozenset[str]:
        """What the objectives, and whatever chooses a student, read of the teacher's trace."""
        found = self.student.reads if self.student else frozenset[str]()
        for stage in self.all_stages:
            # A stage with a teacher of its own, the student's average, reads no store.
            if stage.teacher is None:
                found |= stage.needs
        return found

    @property
    def wants(self) -> frozenset[str]:
        """What the objectives read of the student's."""
        found: frozenset[str] = frozenset()
        for stage in self.all_stages:
            found |= stage.objective.wants
        return found

    @property
    def may_read_logits(self) -> bool:
        """Whether a stage compares logits with the recipe's teacher, where both have them."""
        return any(
            stage.objective.reads_logits for stage in self.all_stages if stage.teacher is None
        )

    def for_student(self, *, chooses: bool, logits: bool) -> "Recipe":
        """The recipe with objectives for the student that they meet: whether it chooses its actions
        among classes, and whether it has their logits."""

        def suited(stage: Stage) -> Stage:
            # The student's own average answers whatever it is asked.
            answered = stage.teacher is not None or "logits" in self.traced
            objective = stage.objective.suited(chooses=chooses, logits=logits and answered)
            return replace(stage, objective=objective)

        rounds = tuple(replace(each, stage=suited(each.stage)) for each in self.rounds)
        return replace(self, stages=tuple(map(suited, self.stages)), rounds=rounds)

    @property
    def why_teacher_is_needed(self) -> str:
        """What takes the teacher's own weights when a student is distilled, in words; empty where
        the traces are enough."""
        reasons = []
        if self.student is not None and self.student.needs_teacher:
            kind = type(self.student).__name__
            reasons.append(f"its student ({kind}) is made from them")
        if self.stages and self.stages[0].teacher is not None:
            reasons.append("the average that teaches its first stage starts from them")
        if "imitation.velocity" in self.wants:
            reasons.append("its velocities are compared with those of the teacher's head")
        if self.rounds:
            reasons.append("in its rounds the teacher says what it would have done")
        return "; ".join(reasons)

    def world(self, verb: str) -> Benchmark:
        """The benchmark, for a verb in which somebody acts. Raises ValueError where there is
        none."""
        if self.benchmark is None:
            raise ValueError(
                f"recipe {self.name!r} has no benchmark, so there is no world to {verb} in; use "
                "one that has, such as actdistill_tabletop. With `--episodes` of your own, teach, probe, "
                "distil and evaluate need none"
            )
        return self.benchmark

    def agree_on_pictures(self, view: View) -> None:
        """Raises FitError where pictures are asked for in another way than the teacher sees them,
        `view`, and nobody would see them so."""
        own = self.student is not None and self.student.own_eyes
        if not (own and view.fit == "any"):
            self.pictures.agree(view)

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
        # By its class: labels of two annotators may stand side by side.
        return self.traces.with_name(f"labels-{type(self.annotator).__name__.lower()}")

    @property
    def heads_file(self) -> Path:
        """Where the probe's fitted heads are, beside the traces."""
        return self.traces.with_name("probe") / "heads.safetensors"

    @property
    def student_folder(self) -> Path:
        return self.out / "student"


YOURS = Path("YOUR-EPISODES")  # stands where a recipe is for whatever robot `--episodes` are of
Factory = Callable[[], Recipe]
# What a field names on the hub, where data sets and models have separate names.
KINDS: dict[str, Kind] = {"episodes": "dataset", "teacher": "model", "policies": "model"}


def at_hand(recipe: Recipe, *, reads: Sequence[str], writes: Sequence[str] = ()) -> Recipe:
    """The recipe with what a verb `reads` at hand: names on the hub are fetched, and stand for one
    commit from here on.

    Every verb begins with it. Raises ValueError where a field that is written to names something on
    the hub, or lies in its cache, and what `hub.pinned` raises.
    """
    # Before anything is fetched: an error should not come after a download.
    for name in ("out", "shared", *writes):
        place = getattr(recipe, name)
        if place is not None and not (name in reads and store.is_stored(place)):
            try:
                hub.refuse_writing(place)
            except ValueError as error:
                raise ValueError(f"--{name}: {error}") from error
            if store.is_stored(place):
                raise ValueError(
                    f"--{name} {place.as_posix()}: this is written to; a program that calls a verb "
                    "itself does it in `with armlet.stores.written(recipe, VERB) as recipe:`"
                )
    found: dict[str, Any] = {}
    for name in reads:
        places = getattr(recipe, name)
        if name == "shared":
            if places is not None:
                found[name] = mirror.mirrored(places)
            continue
        kind = KINDS[name]
        if isinstance(places, tuple):
            found[name] = tuple(_at_hand(place, kind) for place in places)
        else:
            found[name] = _at_hand(places, kind)
    return replace(recipe, **found)


def _at_hand(place: Path, kind: Kind) -> Path:
    return mirror.mirrored(place) if store.is_stored(place) else hub.pinned(place, kind=kind)


def suited(recipe: Recipe, robot: ActionSpec) -> Recipe:
    """The recipe with what its annotator must know of the robot, which the teacher says."""
    if recipe.annotator is None:
        return recipe
    return replace(recipe, annotator=recipe.annotator.suited(robot))


def robot_of_episodes(recipe: Recipe, data: EpisodeDataset) -> RobotSpec:
    """The robot of the recipe's episodes, complete; raises what `data.door.robot_of` does."""
    native = native_robot(recipe.benchmark, data.robot_type)
    return robot_of(data, recipe.robot, native=native)


def check_episodes(
    recipe: Recipe,
    data: EpisodeDataset,
    policy: RobotSpec,
    *,
    state: Normaliser | None = None,
    title: str,
    whose: str = "the policy",
) -> None:
    """The recipe's episodes before a policy of this robot is watched on them, distilled or
    measured: what `data.door.check_policy` raises and remarks on. They are their benchmark's robot's
    where they say that they are of it. `state`: by which statistics the policy sees it."""
    check_policy(
        data,
        policy,
        recipe.robot,
        native=native_robot(recipe.benchmark, data.robot_type),
        state=state,
        limit=recipe.outside_range,
        title=title,
        whose=whose,
    )


def settings(stage: Stage) -> dict[str, Any]:
    """What of a stage can change its result, as JSON."""
    said: dict[str, Any] = to_json(stage)
    for name in CHANGES_NOTHING:
        said.pop(name, None)
    return said


def to_json(value: Any) -> Any:
    """A recipe (or any dataclass) as JSON, every dataclass with the name of its class."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # The class, for two objectives may have the same fields.
        said = {"class": type(value).__name__}
        for each in dataclasses.fields(value):
            found = getattr(value, each.name)
            if each.metadata.get("quiet") and found == each.default:
                continue
            said[each.name] = to_json(found)
        return said
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, Path):
        return mirror.told(value.as_posix())  # a URL as it was given
    json.dumps(value)  # raises, naming the type, where a value has no JSON form
    return value
