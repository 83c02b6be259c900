"""π0 (arXiv 2410.24164) and π0.5 (arXiv 2504.16054): a PaliGemma that reads pictures and words once
a decision, and an expert of the same depth that carries noise to actions, reading the keys and
values of each of its layers in every step.

A layer is the *pair* of both: it runs or is skipped as one, and where it was skipped there are no
keys and values for the expert to read, whose layer does not run either. Sizes come from a
checkpoint's tensors; which files it has, and what its words and numbers are, others know.

    π0      the state is a token of the expert's, the time is mixed into the action tokens
    π0.5    the state is written into the prompt, the time modulates the expert's norms
"""

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from armlet.layers.action_head import masked_mean
from armlet.layers.draws import by_sample, normal_like
from armlet.layers.gemma import GemmaLayer, hide, make_norm, normed
from armlet.layers.guidance import Guide, guided_flow
from armlet.policies.building import rebuild_with
from armlet.policies.contract import Backbone, Body, Features, Loop, Pass, State
from armlet.policies.cutting import weights_of
from armlet.policies.pretrained.pi_files import Box
from armlet.robot.fit import View
from armlet.robot.inputs import Inputs
from armlet.robot.reading.paligemma import Prompts
from armlet.types import Batch, Trace

Design = Literal["pi0", "pi05"]
EPSILON = 1e-6  # of all norms
BASE = 10000.0  # of the rotary positions
# Weights that stay in single precision where the others are in half of it, as LeRobot keeps them:
# the eyes, the norms, and what is not of the two Gemmas.
SINGLE = ("vision.", "projector.", "norm", "layernorm", "action_", "state_proj", "time_mlp")


@dataclass(frozen=True)
class PiSizes:
    """What the shapes of a checkpoint's tensors say; `heads` and `vision_heads` they do not."""

    width: int
    mlp: int
    expert_width: int
    expert_mlp: int
    depth: int
    head_dim: int
    vocabulary: int
    vision_width: int
    vision_depth: int
    vision_mlp: int
    vision_heads: int
    patch: int
    image: int  # side of a picture in pixels
    state_slots: int  # numbers of a state, filled up with 0
    action_slots: int
    heads: int = 8  # with one head of keys and values


@dataclass(frozen=True)
class PiNetwork:
    """A network of this kind, and how it is used. `cameras`: name → (height, width) of its
    pictures, which the network brings to its own size; in the order of its tokens."""

    design: Design
    sizes: PiSizes
    prompts: Prompts
    cameras: dict[str, tuple[int, int]]
    chunk: int
    execute: int
    steps: int = 10
    """From noise to actions."""
    padding: float = -1.0
    """What stands beside a picture that is not square, where white is 1 and black −1; LeRobot 0.4
    put −3 there."""
    box: Box = "middle"
    """Where a picture lies that is not square: in the middle, or in the right and lower corner, as
    LeRobot before 0.4 put it."""
    count_padding: bool = False
    """Actions past the end of an episode count in the loss, as the last one repeated."""
    min_period: float = 0.004
    max_period: float = 4.0
    beta: tuple[float, float] = (1.5, 1.0)
    """Of the distribution of the time that is trained at."""
    time_scale: float = 0.999
    time_offset: float = 0.001
    seed: int = 0
    """Of the noise that a decision starts from."""
    half: bool = False
    """The two Gemmas are in bfloat16."""


@dataclass(frozen=True)
class PiState(State):
    """The prefix: `hidden` (b, n, d); `mask`, `vision`, `text` (b, n) bool; `attention`
    (b, 1, n, n), added to scores; `cos`, `sin` (b, n, h); `state` (b, s) the robot's, filled up;
    and what each layer that ran has left, `keys` and `values`, l of (b, 1, n, h) or None."""

    changing: ClassVar[tuple[str, ...]] = ("hidden", "keys", "values")

    hidden: Tensor
    mask: Tensor
    vision: Tensor
    text: Tensor
    attention: Tensor
    cos: Tensor
    sin: Tensor
    state: Tensor
    keys: tuple[Tensor | None, ...]
    values: tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Suffix:
    """What all denoising steps of a decision share: of the s tokens of the expert, `rotary` (cos,
    sin) (b, s, h) and `attention` (b, 1, s, n + s)."""

    rotary: tuple[Tensor, Tensor]
    attention: Tensor


class Pair(nn.Module):
    """A layer of the prefix and the expert's layer that reads its keys and values."""

    prefix: GemmaLayer
    expert: GemmaLayer

    def __init__(self, prefix: GemmaLayer, expert: GemmaLayer) -> None:
        super().__init__()
        self.prefix = prefix
        self.expert = expert


class Pi(Backbone[PiState]):
    """See the module's docstring. Signals: `condition` (b, w), what the expert makes of the action
    tokens in its first step, which starts from the same noise at every moment."""

    noise: Tensor
    rotary: nn.Module

    def __init__(
        self, network: PiNetwork, body: Body, *, kept_layers: tuple[int, ...] | None = None
    ) -> None:
        from transformers import SiglipVisionConfig, SiglipVisionModel
        from transformers.models.gemma.modeling_gemma import GemmaRotaryEmbedding

        super().__init__()
        sizes = network.sizes
        self.network = network
        self.body = body
        self.kept_layers = kept_layers
        self.cameras = dict.fromkeys(network.cameras, sizes.image)
        self.chunk = network.chunk
        self.execute = network.execute
        self.width = sizes.width
        self.condition_width = sizes.expert_width
        self.text_tokens = network.prompts.longest
        self.vision_tokens = len(network.cameras) * (sizes.image // sizes.patch) ** 2
        gemma = _gemma(sizes, sizes.width, sizes.mlp)
        expert = _gemma(sizes, sizes.expert_width, sizes.expert_mlp)
        eyes = SiglipVisionConfig(
            hidden_size=sizes.vision_width,
            intermediate_size=sizes.vision_mlp,
            num_hidden_layers=sizes.vision_depth,
            num_attention_heads=sizes.vision_heads,
            image_size=sizes.image,
            patch_size=sizes.patch,
            hidden_act="gelu_pytorch_tanh",
            layer_norm_eps=EPSILON,
            vision_use_head=False,
            attn_implementation="sdpa",  # type: ignore[call-arg]
        )
        self.vision = SiglipVisionModel(eyes)
        self.projector = nn.Linear(sizes.vision_width, sizes.width)
        self.words = nn.Embedding(sizes.vocabulary, sizes.width)
        modulated = sizes.expert_width if network.design == "pi05" else None
        self.layers = nn.ModuleList()
        for _ in range(sizes.depth):
            self.layers.append(Pair(GemmaLayer(gemma), GemmaLayer(expert, modulated)))
        self.norm = make_norm(gemma, None)
        self.expert_norm = make_norm(expert, modulated)
        self.rotary = GemmaRotaryEmbedding(gemma)
        wide = sizes.expert_width
        self.action_in_proj = nn.Linear(sizes.action_slots, wide)
        self.action_out_proj = nn.Linear(wide, sizes.action_slots)
        if network.design == "pi0":
            self.state_proj = nn.Linear(sizes.state_slots, wide)
            self.action_time_mlp_in = nn.Linear(2 * wide, wide)
            self.action_time_mlp_out = nn.Linear(wide, wide)
        else:
            self.time_mlp_in = nn.Linear(wide, wide)
            self.time_mlp_out = nn.Linear(wide, wide)
        if not self.words.weight.is_meta:  # there is nothing to draw
            self.apply(_initialise)
        _to_precision(self, half=network.half)
        # Of its own generator, and no weight: how a policy answers must hang on `seed` alone.
        noise = torch.randn(
            network.chunk, sizes.action_slots, generator=torch.Generator().manual_seed(network.seed)
        )
        self.register_buffer("noise", noise, persistent=False)

    # What it is told

    @property
    def view(self) -> View:
        return View(dict(self.network.cameras), self.body.fit)

    @property
    def inputs(self) -> Inputs:
        prompts = self.network.prompts.reader(self.body.tokenizer)
        found = replace(super().inputs, words=prompts)
        return replace(found, prompt=prompts.with_state) if prompts.reads_state else found

    @property
    def loop(self) -> Loop:
        return Loop("denoising step", self.network.steps)

    @property
    def blocks(self) -> list[nn.Module]:
        found = list(self.vision.encoder.layers)
        for pair in self.pairs:
            found += [pair.prefix, pair.expert]
        return found

    @property
    def pairs(self) -> list[Pair]:
        """Its layers."""
        return list(self.layers)  # type: ignore[arg-type]  # torch says no more than Module

    # The prefix

    def pictures(self, batch: Batch) -> list[Tensor]:
        """Each camera's pictures as the eyes see them, (b, 3, side, side) in −1 … 1."""
        side = self.network.sizes.image
        found = []
        for name in self.network.cameras:
            found.append(boxed(batch.images[name], side, self.network.padding, self.network.box))
        return found

    def look(self, pictures: list[Tensor]) -> Tensor:
        """Pictures of c cameras, each (b, 3, side, side) → what is seen (c · b, p, v), before it is
        brought to the width of words: the first camera's b, then the next one's."""
        hidden = self.vision.embeddings(torch.cat(pictures))
        for layer in self.vision.encoder.layers:
            hidden = layer(hidden, None)
        return self.vision.post_layernorm(hidden)

    def embed(self, batch: Batch) -> PiState:
        return self.embed_parts(self.pictures(batch), batch.text, batch.text_mask, batch.state)

    def embed_parts(
        self, pictures: list[Tensor], text: Tensor, text_mask: Tensor, state: Tensor
    ) -> PiState:
        """What `pictures` gave, ids (b, t), which are real, and the normalised state (b, s) → the
        prefix."""
        seen = self.projector(self.look(pictures))  # (c · b, p, d)
        seen = torch.cat(seen.chunk(len(pictures)), 1)  # (b, c · p, d)
        # Words are scaled and pictures are not: Gemma's own habit, which openpi keeps for words.
        words = self.words(text) * math.sqrt(self.width)
        hidden = torch.cat([seen.to(words.dtype), words], 1)
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        mask[:, seen.shape[1] :] = text_mask
        vision = torch.zeros_like(mask)
        vision[:, : seen.shape[1]] = True
        positions = mask.long().cumsum(1) - 1  # padding takes none
        cos, sin = self.rotary(hidden, positions)
        slots = self.network.sizes.state_slots
        nothing = (None,) * len(self.layers)
        return PiState(
            hidden=hidden,
            mask=mask,
            vision=vision,
            text=mask & ~vision,
            attention=hide(mask[:, None, :, None] & mask[:, None, None, :]),
            cos=cos,
            sin=sin,
            state=F.pad(state, (0, slots - state.shape[1])),
            keys=nothing,
            values=nothing,
        )

    def run_layer(self, index: int, state: PiState) -> PiState:
        hidden, keys, values = self.pairs[index].prefix(
            state.hidden, (state.cos, state.sin), state.attention
        )
        return replace(
            state,
            hidden=hidden,
            keys=_with(state.keys, index, keys),
            values=_with(state.values, index, values),
        )

    def features(self, state: PiState) -> Features:
        return Features(state.hidden, state.mask, state.vision, state.text)

    def run_layers(
        self, state: PiState, batch: Batch, *, watch: bool = False, exploration: float = 0.0
    ) -> Pass[PiState]:
        run = super().run_layers(state, batch, watch=watch, exploration=exploration)
        return replace(run, plan=(1,) * len(self.layers))  # nobody routes it: the host knows

    # The expert

    def suffix(self, state: PiState) -> Suffix:
        """What the steps of a decision share."""
        ahead = self._ahead
        count = ahead + self.chunk
        device = state.mask.device
        own = torch.ones(count, count, dtype=torch.bool, device=device)
        own[:ahead, ahead:] = False  # the state's token sees no action
        rows = len(state.mask)
        prefix = state.mask[:, None, None, :].expand(-1, -1, count, -1)
        seen = torch.cat([prefix, own.expand(rows, 1, -1, -1)], -1)
        positions = state.mask.sum(1, keepdim=True) + torch.arange(count, device=device)
        cos, sin = self.rotary(state.hidden, positions)
        return Suffix((cos, sin), hide(seen))

    @property
    def _ahead(self) -> int:
        """Tokens of the expert ahead of its actions."""
        return 1 if self.network.design == "pi0" else 0

    def embed_time(self, time: Tensor) -> Tensor:
        """(b,) → (b, w): sines, then cosines. In double precision, as openpi has it."""
        network = self.network
        half = network.sizes.expert_width // 2
        fraction = torch.linspace(0, 1, half, dtype=torch.float64, device=time.device)
        period = network.min_period * (network.max_period / network.min_period) ** fraction
        angles = time.double()[:, None] * (2 * math.pi / period)
        return torch.cat([angles.sin(), angles.cos()], -1).float()

    def embed_suffix(
        self, state: PiState, noisy: Tensor, time: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Noisy actions (b, k, slots) at times (b,) → the expert's tokens (b, s, w), and what
        modulates its norms (b, w)."""
        said = self.embed_time(time)
        actions = self.action_in_proj(noisy)
        if self.network.design == "pi05":
            condition = F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(said))))
            return actions, condition
        both = torch.cat([actions, said[:, None].expand(-1, self.chunk, -1).to(actions.dtype)], -1)
        actions = self.action_time_mlp_out(F.silu(self.action_time_mlp_in(both)))
        return torch.cat([self.state_proj(state.state)[:, None], actions], 1), None

    def answer(self, run: Pass[PiState], suffix: Suffix, noisy: Tensor, time: Tensor) -> Tensor:
        """What the expert makes of noisy actions (b, k, slots) at times (b,): (b, k, w), ahead of
        the last projection, in single precision."""
        state = run.state
        hidden, condition = self.embed_suffix(state, noisy, time)
        hidden = hidden.to(state.hidden.dtype)
        # Where the host knows of the one sample which layers ran, there is nothing to choose.
        known = len(run.gates) == 1 and bool(run.plan)
        for index, pair in enumerate(self.pairs):
            keys = state.keys[index]
            values = state.values[index]
            if keys is None or values is None or run.skips(index):
                continue
            made, _, _ = pair.expert(
                hidden, suffix.rotary, suffix.attention, (keys, values), condition
            )
            hidden = made if known else run.gated(index, hidden, made)
        return normed(self.expert_norm, hidden, condition)[:, self._ahead :].float()

    def velocity(self, run: Pass[PiState], suffix: Suffix, noisy: Tensor, time: Tensor) -> Tensor:
        """(b, k, slots): which way from actions to noise."""
        return self.action_out_proj(self.answer(run, suffix, noisy, time)).float()

    # What it decides

    def _first(self, run: Pass[PiState]) -> Tensor:
        """(b, k, w): what the expert makes of its first step, read by actions and condition."""
        rows = len(run.state.mask)
        noise = self.noise.expand(rows, -1, -1)
        time = noise.new_ones(rows)
        return run.once("first_step", lambda: self.answer(run, self.suffix(run.state), noise, time))

    def decode(self, run: Pass[PiState], batch: Batch) -> Tensor:
        steps = self.network.steps
        rows = len(run.state.mask)
        suffix = self.suffix(run.state)
        noise = self.noise.expand(rows, -1, -1)
        x = noise - self.action_out_proj(self._first(run)).float() / steps
        for step in range(1, steps):
            time = noise.new_full((rows,), 1 - step / steps)
            x = x - self.velocity(run, suffix, x, time) / steps
        return x[..., : self.dims]

    @property
    def why_unguided(self) -> str:
        return ""

    def decode_guided(self, run: Pass[PiState], batch: Batch, guide: Guide) -> Tensor:
        suffix = self.suffix(run.state)

        def velocity(x: Tensor, time: float) -> Tensor:
            # Its own time goes from 1, noise, to 0, and its velocity from actions to noise.
            return -self.velocity(run, suffix, x, x.new_full((len(x),), 1 - time))

        noise = self.noise.expand(len(run.state.mask), -1, -1)
        return guided_flow(velocity, noise, self.network.steps, guide)[..., : self.dims]

    def signals(self, names: Collection[str], batch: Batch, run: Pass[PiState]) -> Trace:
        if "condition" not in names:
            return {}
        return {"condition": run.once("condition", lambda: self._first(run).mean(1))}

    def loss(self, run: Pass[PiState], batch: Batch) -> Tensor:
        actions, valid = batch.targets()
        actions = self.filled(actions, valid)
        beta = torch.distributions.Beta(*self.network.beta)
        drawn = by_sample(lambda count: beta.sample((count,)), len(actions)).to(actions)
        time = self.network.time_offset + self.network.time_scale * drawn
        error = self.errors(run, actions, normal_like(actions), time)[..., : self.dims]
        return masked_mean(error, torch.ones_like(valid) if self.network.count_padding else valid)

    def filled(self, actions: Tensor, valid: Tensor) -> Tensor:
        """(b, k, a) normalised actions, valid (b, k) → (b, k, slots): past the end of an episode
        the last one again, as LeRobot's loader has it, and as these networks were taught; slots
        that the robot does not have are 0."""
        last = (valid.sum(1).long() - 1).clamp(min=0)  # (b,); those that are valid come first
        held = actions.gather(1, last[:, None, None].expand(-1, 1, actions.shape[-1]))
        actions = torch.where(valid.bool()[..., None], actions, held)
        return F.pad(actions, (0, self.network.sizes.action_slots - actions.shape[-1]))

    def errors(self, run: Pass[PiState], actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """(b, k, slots): the squared error of the velocity at times (b,) on the straight way from
        `actions` to `noise`, both (b, k, slots)."""
        at = time[:, None, None]
        noisy = at * noise + (1 - at) * actions
        return (
            self.velocity(run, self.suffix(run.state), noisy, time) - (noise - actions)
        ).square()

    # On disk

    def keep_layers(self, kept: tuple[int, ...]) -> "Pi":
        weights = weights_of(self, kept)
        sizes = replace(self.network.sizes, depth=len(kept))
        network = replace(self.network, sizes=sizes)
        described = {**self.to_json(), "network": asdict(network), "kept_layers": list(kept)}
        student = rebuild_with(described, self.body.tokenizer, weights)
        assert isinstance(student, Pi)
        return student.to(self.device).train(self.training)

    def to_json(self) -> dict[str, Any]:
        return {
            "type": f"pretrained.{self.network.design}",
            "network": asdict(self.network),
            "kept_layers": self.kept_layers,
            **self.body.to_json(),
        }


def from_json(description: dict[str, Any], tokenizer: Tokenizer) -> Pi:
    """The network that `to_json` described, with fresh weights."""
    said = dict(description["network"])
    said["sizes"] = PiSizes(**said["sizes"])
    said["prompts"] = Prompts(**said["prompts"])
    said["cameras"] = {name: tuple(size) for name, size in said["cameras"].items()}
    said["beta"] = tuple(said["beta"])
    kept = description.get("kept_layers")
    body = Body.from_json(description, tokenizer)
    return Pi(PiNetwork(**said), body, kept_layers=tuple(kept) if kept else None)


def boxed(pictures: Tensor, side: int, padding: float, box: Box = "middle") -> Tensor:
    """Pictures (b, 3, h, w) in 0 … 1, as large as fits a square of `side` pixels, in its middle (an
    odd pixel right and below) or its right and lower corner, in −1 … 1, with `padding` around.
    Without antialiasing, and sizes cut to whole pixels, as openpi's and LeRobot's networks do
    it."""
    height, width = pictures.shape[-2:]
    if (height, width) != (side, side):
        ratio = max(width / side, height / side)
        inner = int(height / ratio), int(width / ratio)
        pictures = F.interpolate(pictures, inner, mode="bilinear", align_corners=False).clamp(0, 1)
    tall = side - pictures.shape[-2]
    wide = side - pictures.shape[-1]
    around = (wide, 0, tall, 0)
    if box == "middle":
        around = (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2)
    # In 0 … 1 here: doubled and moved with the picture.
    return F.pad(pictures, around, value=(padding + 1) / 2) * 2 - 1


def _gemma(sizes: PiSizes, width: int, mlp: int) -> Any:
    from transformers import GemmaConfig

    return GemmaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        num_key_value_heads=1,
        head_dim=sizes.head_dim,
        hidden_act="gelu_pytorch_tanh",
        rms_norm_eps=EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": BASE},
    )


def _with(parts: tuple[Tensor | None, ...], index: int, part: Tensor) -> tuple[Tensor | None, ...]:
    return (*parts[:index], part, *parts[index + 1 :])


def _initialise(module: nn.Module) -> None:
    """Gemma's own initialisation of words and matrices without a bias."""
    if (isinstance(module, nn.Linear) and module.bias is None) or isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


def is_single(name: str) -> bool:
    """Whether a weight of this name stays in single precision."""
    return any(part in name for part in SINGLE)


def _to_precision(network: nn.Module, *, half: bool) -> None:
    if not half:
        return
    for name, parameter in network.named_parameters():
        if not is_single(name):
            parameter.data = parameter.data.to(torch.bfloat16)
