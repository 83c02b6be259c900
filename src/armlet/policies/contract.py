"""The policy contract, in two floors.

*Policy*: anything that acts, ours or not, here or behind a socket. *Backbone*: a policy whose
inside can be watched, probed, routed and cut, because it can name its layers and hand over what
goes from one to the next. That, its `State`, is opaque to whoever does so: hidden tokens and masks,
two streams with keys and values of each layer, a cache, whatever the network needs. What is read of
it, by a router or a probe, the network says itself (`Backbone.features`).

One file per network in this folder; nothing is copied or edited to watch or route it. Networks of
tokens with an action head, as all of ours are, need only what `tokens.TokenPolicy` leaves open.
"""

import abc
import dataclasses
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from armlet import limits
from armlet.data.batching import batch_of
from armlet.layers.guidance import Guide
from armlet.layers.heads import Kind
from armlet.layers.router import mix
from armlet.policies.guiding import guide_of
from armlet.robot.ensemble import Ensemble
from armlet.robot.fit import Fit, View, known_fit
from armlet.robot.inputs import Inputs
from armlet.robot.normalise import Normaliser
from armlet.robot.observation import Observation
from armlet.robot.outputs import Decision, Outputs
from armlet.robot.reading.own import Words
from armlet.robot.spec import ActionSpec, CameraSpec, ObservationSpec, RobotSpec
from armlet.types import Batch, Trace

# Sizes of a network, where it has them; the oldest are in every description that was ever written.
OLDEST = ("width", "depth", "heads", "chunk", "execute", "text_tokens", "patch", "image")
SIZES = (
    *OLDEST, "channels", "vision_channels", "vision_layers", "expert_width", "text_width",
    "text_heads", "embed", "goal", "prototypes", "embedding", "phases",
)  # fmt: skip
LARGEST = 65536  # of any of these: more is a slip, and would ask for more memory than there is
Join = Callable[[Tensor, Tensor], Tensor]  # (b, …) twice, a layer's input and its output → one


@dataclass(frozen=True)
class State:
    """What goes from layer to layer of b samples: a frozen dataclass of tensors (b, …), None, and
    tuples of those. None also stands where a layer that was skipped left nothing (no keys and
    values); where it ran for others of the batch, the skipped ones have zeros.

    Whoever routes a network knows no more of it than the three methods here. `changing` names the
    fields that a layer changes, floating point all of them; the others stand still all the way.
    """

    changing: ClassVar[tuple[str, ...]] = ()

    def select(self, rows: Tensor) -> Self:
        """The same for some samples; `rows` (b',) int64."""
        chosen = {}
        for field in dataclasses.fields(self):
            chosen[field.name] = _each(lambda x: x[rows], getattr(self, field.name))
        return replace(self, **chosen)

    def put(self, rows: Tensor, part: Self) -> Self:
        """This state, with what a layer did to the samples `rows` (b',), `part`, in their
        places."""
        # A copy, and not `mine[rows] = theirs`: autograd still needs `mine`, and so may the caller.
        return self._joined(part, lambda mine, theirs: mine.index_copy(0, rows, theirs))

    def blend(self, other: Self, join: Join) -> Self:
        """This state, joined with what a layer made of it, tensor by tensor."""
        return self._joined(other, join)

    def _joined(self, other: Self, join: Join) -> Self:
        rows = _rows(self)
        others = _rows(other)

        def joined_pair(mine: Tensor | None, theirs: Tensor | None) -> Tensor:
            # What a skipped layer did not make counts as zeros beside what a layer made.
            if mine is None:
                assert theirs is not None  # `_each` leaves out what neither has
                mine = theirs.new_zeros(rows, *theirs.shape[1:])
            if theirs is None:
                theirs = mine.new_zeros(others, *mine.shape[1:])
            return join(mine, theirs)

        joined = {}
        for name in self.changing:  # the others are the same tensors in both
            joined[name] = _each(joined_pair, getattr(self, name), getattr(other, name))
        return replace(self, **joined)


def _each(do: Callable[..., Tensor], *values: Any) -> Any:
    """`do` to the tensors of some values of the same build: tensors, None, or tuples of those."""
    first = values[0]
    if all(value is None for value in values):
        return None
    if isinstance(first, tuple):
        return tuple(_each(do, *parts) for parts in zip(*values, strict=True))
    return do(*values)


def _rows(state: State) -> int:
    """Of how many samples a state is."""
    for field in dataclasses.fields(state):
        value = getattr(state, field.name)
        if isinstance(value, Tensor):
            return len(value)
    raise TypeError(f"{type(state).__name__} has no field that is a tensor")


S = TypeVar("S", bound=State)
N = TypeVar("N", bound="Network")
B = TypeVar("B", bound="Backbone")


@dataclass(frozen=True)
class Features:
    """What may be read of a state by a router or a probe. `hidden` (b, n, d); `mask`, `vision`,
    `text` (b, n) bool: real tokens, those of pictures, those of words."""

    hidden: Tensor
    mask: Tensor
    vision: Tensor
    text: Tensor


@dataclass(frozen=True)
class Pass(Generic[S]):
    """One pass through the layers: the state that entered the first, `start`, and left the last,
    `state`; `states`, after every layer, where asked for; `gates` (b, l), 1 where a layer ran;
    `extras`, whatever else there is to say (a router's logits); `plan`, the first sample's gates
    where the host has read them."""

    start: S
    state: S
    states: tuple[S, ...]
    gates: Tensor
    extras: Trace
    plan: tuple[int, ...] = ()

    def once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What actions, loss and signals all read is made by whoever is first to ask: computed
        once, and its gradients summed before they go on."""
        if name not in self.extras:
            self.extras[name] = make()
        return self.extras[name]

    def gated(self, index: int, before: Tensor, after: Tensor) -> Tensor:
        """For networks whose layers run again while they decode: what went into layer `index` there
        (b, …), and what came out, as its gates say; the router learns from that, too."""
        gate = self.gates[:, index]  # its value is hard, its gradient soft
        return mix(before, after, gate, gate)

    def skips(self, index: int) -> bool:
        """Whether layer `index` is known to run for nobody, so that it need not run again."""
        # The plan is the first sample's; of others the host knows nothing, and asking a GPU waits.
        return len(self.gates) == 1 and bool(self.plan) and not self.plan[index]


@dataclass(frozen=True)
class Loop:
    """What a network does several `times` before it has decided: a step of denoising, or a token
    that it writes."""

    what: Literal["denoising step", "token"]
    times: int


@dataclass(frozen=True)
class Body:
    """What a policy must know of the robot and its data to turn its numbers into deeds."""

    action_spec: ActionSpec
    state: Normaliser
    actions: Normaliser
    tokenizer: Tokenizer
    state_names: tuple[str, ...] = ()  # one a number of the state; none where nobody knows
    fit: Fit = "exact"  # how a picture of another size than the policy's is brought to it
    # Action dimensions that are relative to the state's of the same index, before normalising.
    relative: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        most = min(len(self.state.offset), self.action_spec.dims)
        beyond = [index for index in self.relative if not 0 <= index < most]
        if beyond:
            raise ValueError(
                f"relative names {', '.join(map(str, beyond))}: actions are relative to the state's "
                f"numbers of the same index, and the state has {len(self.state.offset)} and an action "
                f"{self.action_spec.dims}; does the policy look at no state?"
            )

    def to_json(self) -> dict[str, Any]:
        """Everything but the tokenizer."""
        said: dict[str, Any] = {
            "action_spec": self.action_spec.to_json(),
            "state": self.state.to_json(),
            "actions": self.actions.to_json(),
        }
        # Left out where they say nothing: what was saved before they were there still hashes alike.
        if self.state_names:
            said["state_names"] = list(self.state_names)
        if self.fit != "exact":
            said["fit"] = self.fit
        if self.relative:
            said["relative"] = list(self.relative)
        return said

    @classmethod
    def from_json(cls, description: dict[str, Any], tokenizer: Tokenizer) -> Self:
        """What `to_json` described; other entries of the description are another's. Raises
        ValueError naming what is of another type, KeyError or TypeError for what is missing or
        unknown."""
        names = description.get("state_names", [])
        if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
            raise ValueError(f"state_names is {names!r:.60}, expected a list of names")
        return cls(
            action_spec=ActionSpec.from_json(description["action_spec"]),
            state=Normaliser.from_json(description["state"]),
            actions=Normaliser.from_json(description["actions"]),
            tokenizer=tokenizer,
            state_names=tuple(names),
            fit=known_fit(description.get("fit", "exact")),
            relative=tuple(description.get("relative", ())),
        )


class Policy(ABC):
    """Anything that acts: an observation in, a chunk of actions out."""

    execute: int  # actions of a chunk carried out before it looks again
    history: int = 1  # observations it looks at, one a control step (`Observation.past`)
    # How the chunks of an episode that overlap become one; None: each stands alone. The policy does
    # not do it, whoever drives it does (`robot.memory.Overlap`): `infer` is of one moment.
    ensemble: Ensemble | None = None

    @property
    @abstractmethod
    def robot(self) -> RobotSpec:
        """The robot that it acts for: to be compared with whoever it meets."""

    @abstractmethod
    def infer(self, observation: Observation) -> np.ndarray:
        """One observation → (k, a) float32 actions in the robot's own numbers."""

    def decide(self, observation: Observation) -> Decision:
        """The same, and which layers ran to find it, where that can be said."""
        return Decision(self.infer(observation), ())

    def decide_all(self, observations: Sequence[Observation]) -> list[Decision]:
        """The same of several moments, as if an episode began with each."""
        return [self.decide(observation) for observation in observations]

    def reset(self) -> None:  # noqa: B027 - most have nothing to forget
        """An episode begins. Most remember nothing."""

    def deployed(self) -> "Policy":
        """This policy without what only training needs, answering the same; most have nothing to
        leave behind."""
        return self

    def at(self, budget: float) -> Self:
        """The same policy, costing at most this share of its backbone. Raises ValueError where it
        has no such dial."""
        raise ValueError(f"{self.kind} has no budget dial; routed students have one")

    @property
    def kind(self) -> str:
        """What it is, in an error."""
        return f"a {type(self).__name__}"

    @property
    def why_unguided(self) -> str:
        """Why it cannot be guided by the actions under way (`Observation.underway`); empty: it
        can."""
        return f"{self.kind} has no flow from noise to actions that could be guided"


class Backbone(nn.Module, Policy, Generic[S]):
    """A policy whose layers can be watched, probed, routed and cut.

    A subclass names its `layers`, says how a batch becomes a state (`embed`), what a layer does to
    it (`run_layer`), what may be read of it (`features`), and what is decided at the end (`decode`,
    `loss`). Nothing else is needed; signals beyond these, a feature that conditions an action head
    among them, are said where there are any (`signals`).
    """

    layers: nn.ModuleList
    body: Body
    cameras: dict[str, int]  # name → side of its square picture in pixels
    chunk: int  # actions that are decided at a time
    width: int  # of the features
    text_tokens: int  # of the longest instruction it takes
    vision_tokens: int = 0  # of all cameras, where some of the features are theirs
    condition_width: int | None = None  # of the signal `condition`, where there is one
    kept_layers: tuple[int, ...] | None = None  # of the network it was cut from; None: it was not
    recompute: bool = False  # its layers' activations on the way back, while a stage asks for it
    of_layers: tuple[str, ...] = ("hidden.",)  # how signals begin that read every layer's state

    @property
    def kept_weights(self) -> frozenset[str]:
        """Names of its parameters that no stage trains: those beneath low-rank additions of its
        own, say."""
        return frozenset()

    @property
    def pretrained_weights(self) -> frozenset[str]:
        """Names of its parameters that knew something before any training here: what
        `Stage.freeze_pretrained` is about."""
        return frozenset()

    @property
    def view(self) -> View:
        """How it sees the pictures of a data set or a robot."""
        return View({name: (side, side) for name, side in self.cameras.items()}, self.body.fit)

    @property
    def inputs(self) -> Inputs:
        """How it wants pictures, words and numbers. A network with a prompt, a tokenizer or a
        padding of its own brings its own `words`."""
        words = Words(self.body.tokenizer, self.text_tokens)
        body = self.body
        return Inputs(
            self.view,
            words,
            body.state,
            body.actions,
            self.chunk,
            body.relative,
            history=self.history,
        )

    @property
    def outputs(self) -> Outputs:
        """How its normalised actions become the robot's."""
        body = self.body
        return Outputs(body.action_spec, body.actions, body.relative)

    @property
    def robot(self) -> RobotSpec:
        sizes = self.view.cameras.items()
        seen = ObservationSpec(
            cameras={name: CameraSpec(height, width) for name, (height, width) in sizes},
            state_names=self.body.state_names,
            fit=self.body.fit,
            state_dims=len(self.body.state.offset),
        )
        return RobotSpec(self.body.action_spec, seen)

    @property
    def kind(self) -> str:
        return f"a policy of type {self.to_json()['type']!r}"

    @property
    def dims(self) -> int:
        """Of an action."""
        return self.body.action_spec.dims

    @property
    def loop(self) -> Loop | None:
        """What it repeats while it decodes; None: it decides at once."""
        return None

    @property
    def layer_numbers(self) -> tuple[int, ...]:
        """Its layers' numbers in the network it was cut from, or its own."""
        return self.kept_layers or tuple(range(len(self.layers)))  # no network keeps no layer

    @property
    def blocks(self) -> list[nn.Module]:
        """What a stage compiles: its layers, and whatever else stands there several times over."""
        return list(self.layers)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def prepare(self, observations: Sequence[Observation]) -> Batch:
        """Robot observations → a batch on the policy's device, normalised."""
        return batch_of(self.inputs.arrays(observations), device=self.device)

    @abstractmethod
    def embed(self, batch: Batch) -> S:
        """A batch → the state that enters layer 0."""

    @abstractmethod
    def run_layer(self, index: int, state: S) -> S:
        """The state through layer `index`."""

    def run_last(self, index: int, state: S) -> S:
        """`run_layer` of the last layer, of which only what `decode` reads has to be right, to the
        last digits but one: for graphs, where nobody watches. Most save nothing there."""
        return self.run_layer(index, state)

    def skip_layer(self, index: int, state: S) -> S:
        """The state past layer `index`, which does not run. It is of the same build as what
        `run_layer` gives, so that the samples of a batch may go either way."""
        return state

    @abstractmethod
    def features(self, state: S) -> Features:
        """What may be read of a state, before the first layer or after any."""

    @abstractmethod
    def decode(self, run: Pass[S], batch: Batch) -> Tensor:
        """(b, k, a) normalised actions, from all that a pass has left."""

    def decode_guided(self, run: Pass[S], batch: Batch, guide: Guide) -> Tensor:
        """`decode`, guided (`layers/guidance.py`). Raises ValueError where it cannot be."""
        raise ValueError(self.why_unguided)

    @abstractmethod
    def loss(self, run: Pass[S], batch: Batch) -> Tensor:
        """(b,): how far the pass is from the batch's actions, counting those that are valid."""

    def classes(self, actions: Tensor) -> Tensor | None:
        """(…, a) normalised actions → (…,) which of a few each is nearest to, for a policy that
        chooses among a few; else None."""
        return None

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Everything needed to build it again but the weights and the tokenizer; `type` names the
        module here, or, from elsewhere, `package.module:Class`."""

    @abstractmethod
    def keep_layers(self, kept: tuple[int, ...]) -> "Backbone":
        """A copy whose backbone has only these layers, in order."""

    def with_head(self, head: Kind | None, options: dict[str, Any]) -> "Backbone":
        """A copy with another action head, of this kind (None: its own), in which these `options` are
        others; its weights begin as the head's that it replaces. Raises ValueError where there is
        nothing of the sort."""
        raise ValueError(f"{self.kind} has no action head that could be made lighter")

    def through(self, index: int, state: S) -> S:
        """`run_layer`; while `recompute` is on, only what goes in is kept for the way back, where
        the layer runs once more. Whoever runs all layers in a row goes through here."""
        if not (self.recompute and torch.is_grad_enabled()):
            return self.run_layer(index, state)
        # Not the reentrant kind: it keeps gradients of what it is not given as a tensor, and what
        # goes in here is a state.
        return checkpoint(self.run_layer, index, state, use_reentrant=False)

    def run_layers(
        self, state: S, batch: Batch, *, watch: bool = False, exploration: float = 0.0
    ) -> Pass[S]:
        """All layers in order; with `watch` the states after each are kept. `exploration` is for
        networks that decide while they train; this one decides nothing."""
        start = state
        seen = []
        for index in range(len(self.layers)):
            state = self.through(index, state)
            if watch:
                seen.append(state)
        gates = torch.ones(len(batch), len(self.layers), device=self.device)  # all layers ran
        return Pass(start, state, tuple(seen), gates, {})

    def signals(self, names: Collection[str], batch: Batch, run: Pass[S]) -> Trace:
        """What else this network can say of a pass, by name: a condition, logits, attention maps,
        embeddings. `names` are those that nobody else answers; one that this network does not know
        is left out. States after every layer are in `run.states` where a name begins as one of
        `of_layers` does."""
        return {}

    def forward(self, batch: Batch) -> Tensor:
        """(b, k, a) normalised actions."""
        return self.decode(self.run_layers(self.embed(batch), batch), batch)

    def layer_costs(self) -> Tensor:
        """(l,) relative cost of each layer: its parameters, to which the multiplications per token
        are proportional."""
        costs = []
        for layer in self.layers:
            costs.append(sum(parameter.numel() for parameter in layer.parameters()))
        return torch.tensor(costs, dtype=torch.float32)

    def denormalise(self, actions: np.ndarray, state: np.ndarray | None = None) -> np.ndarray:
        """Normalised actions (…, k, a) → what the robot takes, within its range. `state` (…, s) is
        the robot's own, in its own numbers, for policies whose actions are relative to it. Raises
        ValueError where it is needed and is not there."""
        return self.outputs.denormalise(actions, state)

    def decide(self, observation: Observation) -> Decision:
        guided = observation.underway is not None
        # What is made in inference mode could not be differentiated, as a guide has to.
        with torch.inference_mode(not guided), torch.no_grad():
            batch = self.prepare([observation])
            run = self.run_layers(self.embed(batch), batch)
            if guided:
                actions = self.decode_guided(run, batch, guide_of(observation, self))
            else:
                actions = self.decode(run, batch)
            chunk = actions[0].float().cpu().numpy()
        if not np.isfinite(chunk).all():  # clipped, NaN would stay NaN and infinity be full speed
            raise FloatingPointError("the policy answered with NaN or infinite actions")
        state = self.inputs.state_of(observation)
        return Decision(self.denormalise(chunk, state), run.plan or (1,) * len(self.layers))

    def infer(self, observation: Observation) -> np.ndarray:
        return self.decide(observation).actions

    def layers_for(self, observation: Observation) -> tuple[int, ...]:
        """The layers that `decide` would run, 1 or 0 each; none of them runs."""
        return (1,) * len(self.layers)

    def deployed(self) -> "Backbone":
        return self

    def calibrate(self, batch: Batch) -> None:
        """What a policy measures of itself once it is trained, on frames that it was not trained
        on. Most measure nothing."""


def left_to(place: str, *names: str) -> Callable[[type], type]:
    """For a class around another policy: these members are those of the one at `place`."""

    def decorate(cls: type) -> type:
        # Properties and not __getattr__: the base class has these names, and would answer first.
        for name in names:
            setattr(cls, name, property(operator.attrgetter(f"{place}.{name}")))
        return abc.update_abstractmethods(cls)  # some of them are no longer abstract

    return decorate


@dataclass(frozen=True)
class Network(ABC):
    """A frozen dataclass of sizes that makes a policy from nothing; what depends on robot and data
    it is told.

    Where it has them, the numbers in `SIZES` are at least 1 and at most `LARGEST`, `heads` divides
    `width`, and no more of a chunk is carried out than it has.
    """

    def __post_init__(self) -> None:
        there = [name for name in SIZES if hasattr(self, name)]
        limits.check(self, **dict.fromkeys(there, (1, LARGEST)))
        if "execute" in there and "chunk" in there:
            limits.check(self, execute=(1, getattr(self, "chunk")))  # noqa: B009 - not every network has one
        width = getattr(self, "width", 0)
        heads = getattr(self, "heads", 1)
        if width % heads:
            raise ValueError(
                f"{type(self).__name__}.heads is {heads}, expected a divisor of its width, {width}"
            )

    def suited(self, body: Body, actions: np.ndarray) -> "Network":
        """The network with what it takes from a data set's `actions` (N, a), in the robot's own
        numbers; most take nothing."""
        return self

    @abstractmethod
    def build(self, body: Body, cameras: dict[str, int]) -> Backbone:
        """A policy with fresh weights. `cameras`: name → side of its square image in pixels."""


@dataclass(frozen=True)
class Student(ABC):
    """A frozen dataclass that makes a student out of a teacher."""

    needs_teacher: ClassVar[bool] = True
    """Whether it takes or looks at the teacher's weights. One that does not is given a network of
    the teacher's shape and robot, words and statistics, without weights, so that it can be made where
    the teacher is not (policies/facts.py)."""
    own_eyes: ClassVar[bool] = False
    """Whether its network looks with other eyes than the teacher's. Where the teacher brings pictures
    of any size to its own itself (fit `any`), such a student sees them as the recipe's `pictures`
    say."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """Signals of the teacher's trace by which it is chosen before it is built (`choose`)."""

    @property
    def looks_at(self) -> int:
        """By how many frames at most it is chosen so."""
        return 0

    def choose(
        self, teacher: Backbone, sample: Batch, kept: Path | None = None
    ) -> tuple["Student", dict[str, Any]]:
        """The student with everything chosen that is long in choosing, and what was found on the
        way, as JSON, to be kept beside its weights; most have nothing to choose, and are not asked.

        `sample`: frames that nobody trains on, with the teacher's actions as `taught`. `kept`: a
        file of results, from which a killed choice goes on."""
        return self, {}

    def from_nothing(self) -> "Student | None":
        """A student of the same shape that takes none of the teacher's weights, where that is worth
        training; None where it is not."""
        return None if self.needs_teacher else self

    @abstractmethod
    def build(self, teacher: Backbone, sample: Batch | None = None) -> Backbone:
        """A new policy; the teacher itself stays as it is. `sample`: some of the data, for students
        cut to fit them."""


def sides_of(sample: Batch) -> dict[str, int]:
    """The cameras of a batch: name → side of its square pictures in pixels."""
    return {name: int(images.shape[-1]) for name, images in sample.images.items()}


def tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a frozen dataclass as they were before JSON, which knows lists only."""
    found = {}
    for name, value in fields.items():
        found[name] = tuple(value) if isinstance(value, list) else value
    return found


def sizes_of(kind: type[N], fields: dict[str, Any]) -> N:
    """A network of this kind from its sizes in JSON. Raises ValueError naming one of another type
    or missing, TypeError for one that it does not have."""
    # Defaults change from version to version, and every version has written these: without one it
    # would be another network, or the same that is carried out otherwise. What a later version
    # added may be missing.
    there = kind.__dataclass_fields__
    missing = [name for name in (*OLDEST, "head") if name in there and name not in fields]
    if missing:
        raise ValueError(f"{kind.__name__} lacks {', '.join(missing)}")
    made = kind(**tuples(fields))
    limits.typed(made)
    return made


def check_cameras(cameras: Any) -> None:
    """Raises ValueError where these, from JSON, are not name → side in pixels."""
    good = isinstance(cameras, dict) and all(type(side) is int for side in cameras.values())
    if not good or not all(side > 0 for side in cameras.values()):
        raise ValueError(f"cameras is {cameras!r:.60}, expected name → side in pixels")
