"""The policy contract. Any network that can name its layer list can be watched, probed and routed.

One file per network in this folder; nothing is copied or edited to watch or route it.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from armlet import limits
from armlet.data.text import encode
from armlet.layers.heads import ActionHead
from armlet.robot.fit import Fit, View, fit_picture, known_fit
from armlet.robot.normalise import Normaliser
from armlet.robot.observation import Observation
from armlet.robot.spec import ActionSpec, CameraSpec, ObservationSpec, RobotSpec
from armlet.types import Batch, Trace

SIZES = (
    "width",
    "depth",
    "heads",
    "chunk",
    "execute",
    "text_tokens",
    "patch",
    "image",
)  # of a network, where it has them


@dataclass(frozen=True)
class Tokens:
    """What enters the backbone. `hidden` (b, n, d); `mask`, `vision`, `text` (b, n) bool: real,
    image and word
    tokens; `attention` what a layer needs as its mask (None: everything sees everything); `rotary`
    (cos, sin)."""

    hidden: Tensor
    mask: Tensor
    vision: Tensor
    text: Tensor
    attention: Tensor | None
    rotary: tuple[Tensor, Tensor]

    def select(self, rows: Tensor) -> "Tokens":
        """The same for some samples of the batch; `rows` (b',) int64."""
        cos, sin = self.rotary
        return replace(
            self,
            hidden=self.hidden[rows],
            mask=self.mask[rows],
            vision=self.vision[rows],
            text=self.text[rows],
            attention=None if self.attention is None else self.attention[rows],
            rotary=(cos if len(cos) == 1 else cos[rows], sin if len(sin) == 1 else sin[rows]),
        )


@dataclass(frozen=True)
class Pass:
    """One pass through the backbone: last `hidden` (b, n, d); `hiddens`, after every layer, where
    asked for; `gates` (b, l), 1 where a layer ran; `extras`, whatever else the network has to say
    (a router's logits);
    `plan`, the first sample's gates where the host has read them."""

    hidden: Tensor
    hiddens: tuple[Tensor, ...]
    gates: Tensor
    extras: Trace
    plan: tuple[int, ...] = ()


@dataclass(frozen=True)
class Decision:
    """`actions` (k, a) float32 in the robot's own numbers; `gates` (l,) 1 for a layer that ran."""

    actions: np.ndarray
    gates: tuple[int, ...]


@dataclass(frozen=True)
class Body:
    """What a policy must know of the robot and its data to turn its numbers into deeds."""

    action_spec: ActionSpec
    state: Normaliser
    actions: Normaliser
    tokenizer: Tokenizer
    state_names: tuple[str, ...] = ()  # one a number of the state; none where nobody knows
    fit: Fit = "exact"  # how a picture of another size than the policy's is brought to it

    def to_json(self) -> dict[str, Any]:
        """Everything but the tokenizer."""
        said: dict[str, Any] = {
            "action_spec": asdict(self.action_spec),
            "state": self.state.to_json(),
            "actions": self.actions.to_json(),
        }
        if self.state_names:
            said["state_names"] = list(self.state_names)
        if self.fit != "exact":
            said["fit"] = self.fit
        return said

    @classmethod
    def from_json(cls, description: dict[str, Any], tokenizer: Tokenizer) -> Self:
        """What `to_json` described; other entries of the description are another's."""
        spec = ActionSpec.from_json(description["action_spec"])
        state, actions = (
            Normaliser.from_json(description["state"]),
            Normaliser.from_json(description["actions"]),
        )
        names = tuple(description.get("state_names", ()))
        return cls(
            spec, state, actions, tokenizer, names, known_fit(description.get("fit", "exact"))
        )


class Policy(nn.Module, ABC):
    """Images, words and state in; a chunk of actions out."""

    layers: nn.ModuleList
    head: ActionHead
    body: Body
    cameras: dict[str, int]  # name → side of its square picture in pixels
    width: int  # of a token
    vision_tokens: int  # of all cameras
    text_tokens: int  # of the longest instruction it takes
    execute: int  # actions of a chunk carried out before it looks again
    kept_layers: tuple[int, ...] | None = (
        None  # which layers of the network it was cut from are its own; None: it was not cut
    )

    @property
    def view(self) -> View:
        """How it sees the pictures of a data set or a robot."""
        return View({name: (side, side) for name, side in self.cameras.items()}, self.body.fit)

    @property
    def robot(self) -> RobotSpec:
        """The robot that it acts for, as it was taught: to be compared with whoever it meets."""
        cameras = {name: CameraSpec(side, side) for name, side in self.cameras.items()}
        seen = ObservationSpec(
            cameras=cameras,
            state_names=self.body.state_names,
            fit=self.body.fit,
            state_dims=len(self.body.state.offset),
        )
        return RobotSpec(self.body.action_spec, seen)

    @property
    def layer_numbers(self) -> tuple[int, ...]:
        """Its layers' numbers in the network it was cut from, or its own."""
        return self.kept_layers or tuple(range(len(self.layers)))

    @property
    def blocks(self) -> list[nn.Module]:
        """What a stage compiles: its layers, and whatever else stands there several times over."""
        return list(self.layers)

    @property
    def condition_width(self) -> int:
        """Of what `condition` answers; where a policy says nothing else, the tokens that its head
        reads, side by side."""
        return self.width * self.head.vectors

    @abstractmethod
    def prepare(self, observations: Sequence[Observation]) -> Batch:
        """Robot observations → a batch on the policy's device, normalised."""

    @abstractmethod
    def embed(self, batch: Batch) -> Tokens:
        """A batch → the tokens that enter layer 0."""

    @abstractmethod
    def run_layer(self, index: int, hidden: Tensor, tokens: Tokens) -> Tensor:
        """Hidden states (b, n, d) through layer `index`."""

    @abstractmethod
    def condition(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """Last hidden states → the feature (b, d) that conditions the action head."""

    def denormalise(self, actions: np.ndarray) -> np.ndarray:
        """Normalised actions (…, a) → what the robot takes, within its range."""
        spec = self.body.action_spec
        return np.clip(self.body.actions.invert(actions), spec.low, spec.high).astype(np.float32)

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Everything needed to build it again but the weights and the tokenizer; `type` names the
        module here."""

    @abstractmethod
    def keep_layers(self, kept: tuple[int, ...]) -> "Policy":
        """A copy whose backbone has only these layers, in order."""

    def backbone(
        self, tokens: Tokens, batch: Batch, *, watch: bool = False, exploration: float = 0.0
    ) -> Pass:
        """All layers in order; with `watch` the hidden states after each are kept. `exploration` is
        for networks
        that decide while they train; this one decides nothing."""
        hidden, seen = tokens.hidden, []
        for index in range(len(self.layers)):
            hidden = self.run_layer(index, hidden, tokens)
            if watch:
                seen.append(hidden)
        gates = torch.ones(len(batch), len(self.layers), device=hidden.device)
        return Pass(hidden, tuple(seen), gates, {})

    def signals(self, names: Collection[str], batch: Batch, tokens: Tokens, run: Pass) -> Trace:
        """What else this network can say of a pass that `Learner.trace` has made, by name:
        attention maps, embeddings, logits. `names` are those that nobody else answers; one that
        this network does not know is left out. Hidden states after every
        layer are in `run.hiddens` where a name says `attention.` or `hidden.`."""
        return {}

    def forward(self, batch: Batch) -> Tensor:
        """(b, k, a) normalised actions."""
        tokens = self.embed(batch)
        return self.head(self.condition(self.backbone(tokens, batch).hidden, tokens))

    def layer_costs(self) -> Tensor:
        """(l,) relative cost of each layer: its parameters, to which the multiplications per token
        are proportional."""
        return torch.tensor(
            [float(sum(p.numel() for p in layer.parameters())) for layer in self.layers]
        )

    @torch.inference_mode()
    def decide(self, observation: Observation) -> Decision:
        """One observation → actions in the robot's own numbers, and which layers ran to find
        them."""
        batch = self.prepare([observation])
        tokens = self.embed(batch)
        run = self.backbone(tokens, batch)
        actions = self.head(self.condition(run.hidden, tokens))[0].float().cpu().numpy()
        if not np.isfinite(actions).all():
            raise FloatingPointError("the policy answered with NaN or infinite actions")
        return Decision(self.denormalise(actions), run.plan or (1,) * len(self.layers))

    def infer(self, observation: Observation) -> np.ndarray:
        """One observation → (k, a) float32 actions in the robot's own numbers."""
        return self.decide(observation).actions

    def deployed(self) -> "Policy":
        """This policy without what only training needs, answering the same; most have nothing to
        leave behind."""
        return self

    def calibrate(self, batch: Batch) -> None:
        """What a policy measures of itself once it is trained, on frames that it was not trained
        on. Most measure nothing."""

    def at(self, budget: float) -> "Policy":
        """The same policy, costing at most this share of its backbone. Raises ValueError where it
        has no such dial."""
        raise ValueError(
            f"a policy of type {self.to_json()['type']!r} has no budget dial; routed students have one"
        )

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


@dataclass(frozen=True)
class Network(ABC):
    """A frozen dataclass of sizes that makes a policy from nothing; what depends on robot and data
    it is told.

    Where it has them, `width`, `depth`, `heads`, `chunk`, `execute`, `text_tokens`, `patch` and
    `image` are at least 1, `heads` divides `width`, and no more of a chunk is carried out than it
    has.
    """

    def __post_init__(self) -> None:
        there = [name for name in SIZES if hasattr(self, name)]
        limits.positive(self, *there)
        if "execute" in there and "chunk" in there:
            limits.check(self, execute=(1, getattr(self, "chunk")))  # noqa: B009 - not every network has one
        width, heads = getattr(self, "width", 0), getattr(self, "heads", 1)
        if width % heads:
            raise ValueError(
                f"{type(self).__name__}.heads is {heads}, expected a divisor of its width, {width}"
            )

    @abstractmethod
    def build(self, body: Body, cameras: dict[str, int]) -> Policy:
        """A policy with fresh weights. `cameras`: name → side of its square image in pixels."""


@dataclass(frozen=True)
class Student(ABC):
    """A frozen dataclass that makes a student out of a teacher."""

    @abstractmethod
    def build(self, teacher: Policy, sample: Batch | None = None) -> Policy:
        """A new policy; the teacher itself stays as it is. `sample`: some of the data, for students
        cut to fit them."""


def gather(
    observations: Sequence[Observation],
    cameras: dict[str, int],
    body: Body,
    *,
    text_tokens: int,
    device: torch.device,
) -> Batch:
    """Robot observations → a batch: what `prepare` does for every policy of this folder.

    `cameras`: name → side in pixels, to which pictures are brought as the body's `fit` says. Raises
    ValueError naming a camera that is missing or whose pictures are not taken, or an instruction
    that is empty or longer than `text_tokens`.
    """
    if not observations:
        raise ValueError("found no observation, expected at least one")
    for seen in observations:
        _check_told(seen, cameras)
    images = {}
    for name, size in cameras.items():
        pictures = [
            fit_picture(np.asarray(seen.images[name]), size, body.fit, camera=name)
            for seen in observations
        ]
        stacked = np.stack(pictures)
        images[name] = torch.from_numpy(stacked).to(device).permute(0, 3, 1, 2).float().div_(255)
    ids = [encode(body.tokenizer, seen.instruction, longest=text_tokens) for seen in observations]
    text = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids], batch_first=True).to(
        device
    )
    if len(body.state.offset):
        state = np.stack(
            [body.state.apply(_numbers("state", seen.state, body.state)) for seen in observations]
        )
    else:  # taught without a state: whatever the robot says of its own is not looked at
        state = np.zeros((len(observations), 0), np.float32)
    previous = np.stack(
        [
            body.actions.apply(_numbers("previous_action", seen.previous_action, body.actions))
            for seen in observations
        ]
    )
    return Batch(
        images=images,
        text=text,
        text_mask=text != 0,
        state=torch.from_numpy(state).to(device),
        previous_action=torch.from_numpy(previous).to(device),
    )


def _check_told(seen: Observation, cameras: Collection[str]) -> None:
    """Raises ValueError naming the camera that an observation lacks, or the field that is of
    another kind."""
    if not isinstance(seen.images, Mapping):
        raise ValueError(
            f"images: found a {type(seen.images).__name__}, expected a dictionary of camera → picture"
        )
    missing = [name for name in cameras if name not in seen.images]
    if missing:
        raise ValueError(
            f"the observation lacks camera(s) {missing}; it has {sorted(map(str, seen.images))}"
        )
    if not isinstance(seen.instruction, str):
        raise ValueError(
            f"instruction: found a {type(seen.instruction).__name__}, expected a text (str)"
        )


def _numbers(field: str, values: Any, normaliser: Normaliser) -> np.ndarray:
    """A field of an observation as (x,) float32: lists, tensors and other kinds of numbers are
    taken as well. Raises ValueError
    naming the field where they are not as many as the policy was taught with, not finite, or no
    numbers."""
    dims = len(normaliser.offset)
    if isinstance(values, Tensor):
        values = values.detach().float().cpu()  # numpy knows no bfloat16
    try:
        found = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise ValueError(
            f"{field}: found {values!r:.60}, expected {dims} numbers in a row"
        ) from error
    if found.dtype.kind not in "fiu":
        raise ValueError(f"{field}: found {found.dtype} ({values!r:.60}), expected {dims} numbers")
    if found.shape != (dims,):
        raise ValueError(
            f"{field}: found shape {found.shape}, expected ({dims},); the policy was taught with {dims} numbers, in the order of "
            "its data set"
        )
    if not np.isfinite(found).all():
        raise ValueError(
            f"{field}: NaN or infinite at {np.flatnonzero(~np.isfinite(found)).tolist()}, expected finite numbers"
        )
    return found.astype(np.float32)


def weights_of(policy: Policy, kept: tuple[int, ...]) -> dict[str, Tensor]:
    """The weights of a policy whose layers are these of another's `layers`, renumbered, and whose
    rest is the same.

    Raises ValueError where `kept` are not increasing numbers of layers that are there.
    """
    depth = len(policy.layers)
    if not kept or sorted(set(kept)) != list(kept) or kept[-1] >= depth or kept[0] < 0:
        raise ValueError(
            f"layers to keep must be increasing numbers from 0 to {depth - 1}, found {kept}"
        )
    weights = {}
    for name, tensor in policy.state_dict().items():
        room, _, rest = name.partition(".")
        if room != "layers":
            weights[name] = tensor
            continue
        index, _, rest = rest.partition(".")
        if int(index) in kept:
            weights[f"layers.{kept.index(int(index))}.{rest}"] = tensor
    return weights


def tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a frozen dataclass as they were before JSON, which knows lists only."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }


def rebuild(description: dict[str, Any], tokenizer: Tokenizer) -> Policy:
    """A policy with fresh weights from its description; `type` names a module of this folder."""
    kind = description.get("type")
    try:
        module = importlib.import_module(f"armlet.policies.{kind}")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"policy type {kind!r} is unknown: there is no armlet/policies/{kind}.py"
        ) from error
    return module.from_json(description, tokenizer)
