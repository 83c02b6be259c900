"""SmolVLA (arXiv 2506.01844) on the contract: a language model reads pictures, words and state once
a decision, and an expert carries noise to actions in a few steps, reading the keys and values of
each of its layers.

A layer of the backbone is the pair of a language model's layer and the expert's beside it: skipped
together, and where neither ran there are no keys and values to read. What is watched, routed and
probed are the tokens of the language model; the expert runs in `decode` and `loss`, by the gates of
the pass.

    x at t = 1 is noise, at t = 0 the actions;  x ← x − v(x, t) / steps,  t = 1, 1 − 1/steps, …
    trained at  x = t · noise + (1 − t) · actions,  v = noise − actions,  t = 0.001 + 0.999 · β,
    β of Beta(1.5, 1)

Noise is one sample's, drawn once from `seed`: the same observation gives the same actions.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from armlet.layers.action_head import masked_mean
from armlet.layers.draws import by_sample
from armlet.layers.guidance import Guide, guided_flow
from armlet.policies.building import rebuild_with
from armlet.policies.contract import Backbone, Body, Features, Loop, Pass, State
from armlet.policies.cutting import weights_of
from armlet.policies.precisions import SHORT
from armlet.policies.pretrained.smolvla_sizes import BASE, Sizes
from armlet.robot.fit import View
from armlet.robot.inputs import Inputs
from armlet.robot.normalise import Normaliser
from armlet.robot.reading.smolvla import SmolPrompt
from armlet.types import Batch, Trace

if TYPE_CHECKING:  # with it comes transformers, which takes seconds
    from armlet.policies.pretrained.smolvla_layers import Pair

# What is added to what is not attended to: exactly 0 behind the softmax, and finite in bfloat16
# too, so that a token of padding, which sees nothing, has the mean of all and not NaN.
HIDDEN = -1e30
EARLIEST = 0.001  # of the times that it is trained at
BETA = 1.5  # of Beta(1.5, 1), from which they are drawn
Rotary = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class PrefixState(State):
    """`hidden` (b, n, d): tokens of pictures, words and state, then padding; `mask`, `vision`,
    `text`, `own` (b, n) bool: which are real, of pictures, of words, and the robot's state;
    `positions` (b, n) int64; `attention` (b, 1, n, n), added to what a layer attends by; `turn`,
    its rotary positions; `keys` and `values`: of each layer (b, g, n, c), None until it has run,
    and where it did not."""

    changing: ClassVar[tuple[str, ...]] = ("hidden", "keys", "values")

    hidden: Tensor
    mask: Tensor
    vision: Tensor
    text: Tensor
    own: Tensor
    positions: Tensor
    attention: Tensor
    turn: Rotary
    keys: tuple[Tensor | None, ...]
    values: tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Memory:
    """What the expert reads in every step of a decision: `layers`, the keys and values of each
    (b, g, n, c), None where none runs; `sights`, by what a layer reads, what it turns its actions
    by and its mask, bool."""

    layers: tuple[tuple[Tensor, Tensor] | None, ...]
    sights: dict[str, tuple[Rotary, Tensor]]


class SmolVLA(Backbone[PrefixState]):
    """See the module's docstring. Signals: `condition` (b, e), what the expert makes of the actions
    in its first step, which starts from the same noise at every moment."""

    noise: Tensor
    frequencies: Tensor

    def __init__(
        self, sizes: Sizes, body: Body, *, kept_layers: tuple[int, ...] | None = None
    ) -> None:
        from armlet.policies.pretrained import smolvla_layers as parts

        super().__init__()
        self.sizes = sizes
        self.body = body
        self.kept_layers = kept_layers
        self.cameras = {name: max(size) for name, size in sizes.cameras.items()}
        self.chunk = sizes.chunk
        self.execute = sizes.execute
        self.width = sizes.text.width
        self.text_tokens = sizes.text_tokens
        # Without a size to bring them to, as many as the pictures are large.
        known = sizes.picture is not None
        self.vision_tokens = sum(sizes.picture_tokens.values()) if known else 0
        self._rotary = parts.rotary
        wide = sizes.text.expert_width
        self.condition_width = wide
        shifted = sizes.vision_positions == "shifted"
        self.vision = parts.Vision(sizes.eye, shifted=shifted)
        self.connector = parts.Connector(sizes)
        self.words = nn.Embedding(sizes.text.vocabulary, self.width)
        self.state_proj = nn.Linear(sizes.state_room, self.width)
        self.layers = nn.ModuleList(parts.Pair(sizes.text, reads) for reads in sizes.layers)
        self.action_in_proj = nn.Linear(sizes.action_room, wide)
        self.action_time_mlp_in = nn.Linear(2 * wide, wide)
        self.action_time_mlp_out = nn.Linear(wide, wide)
        self.norm = parts.norm(wide, sizes.text.epsilon)
        self.action_out_proj = nn.Linear(wide, sizes.action_room)
        generator = torch.Generator().manual_seed(sizes.seed)
        noise = torch.randn(sizes.chunk, sizes.action_room, generator=generator)
        self.register_buffer("noise", noise, persistent=False)
        # In double precision, as it was trained: single moves actions by 1e-4.
        along = torch.linspace(0, 1, wide // 2, dtype=torch.float64)
        periods = sizes.min_period * (sizes.max_period / sizes.min_period) ** along
        self.register_buffer("frequencies", 2 * math.pi / periods, persistent=False)
        for name, parameter in self.named_parameters():
            kept = sizes.vlm_precision if is_vlm(name) else sizes.expert_precision
            parameter.data = parameter.data.to(SHORT[kept])

    # What it is told

    @property
    def view(self) -> View:
        return View(dict(self.sizes.cameras), "any")

    @property
    def inputs(self) -> Inputs:
        sizes = self.sizes
        tokenizer = self.body.tokenizer
        words = SmolPrompt(tokenizer, sizes.text_tokens, sizes.pad, sizes.padded, sizes.new_line)
        return replace(super().inputs, words=words)

    @property
    def pairs(self) -> "list[Pair]":
        """Its layers."""
        return cast("list[Pair]", list(self.layers))

    @property
    def loop(self) -> Loop:
        return Loop("denoising step", self.sizes.steps)

    @property
    def blocks(self) -> list[nn.Module]:
        found: list[nn.Module] = []
        for pair in self.pairs:
            found.append(pair.prefix)
            if pair.expert is not None:
                found.append(pair.expert)
        return [*found, *self.vision.encoder_layers]

    # The language model

    def pictures(self, batch: Batch) -> list[Tensor]:
        """(b, 3, h, w) in −1 … 1 of each camera, as the tower sees them."""
        found = []
        for name in self.sizes.cameras:
            image = batch.images[name]
            said = (self.sizes.pixels or {}).get(name)
            if said is not None:
                image = _normalised(image, Normaliser.from_json(said))
            if self.sizes.picture is not None:
                image = fitted(image, *self.sizes.picture)
            found.append(image * 2 - 1)
        return found

    def seen(self, batch: Batch) -> list[tuple[Tensor, bool]]:
        """The tokens (b, m, d) of each camera, and whether somebody has it."""
        pictures = self.pictures(batch)
        if self.sizes.blanks:  # the same for all samples, so it is looked at once
            pictures.append(torch.full_like(pictures[-1][:1], -1))
        found = [(tokens, True) for tokens in self._looked_at(pictures)]
        if self.sizes.blanks:
            blank = found.pop()[0].expand(len(batch), -1, -1)
            found += [(blank, False)] * self.sizes.blanks
        return [(tokens * self.width**0.5, there) for tokens, there in found]

    def _looked_at(self, pictures: list[Tensor]) -> list[Tensor]:
        """(b', m, d) of each, not scaled; those of one size are looked at together."""
        if len({picture.shape[1:] for picture in pictures}) > 1:
            return [self.connector(self.vision(picture)) for picture in pictures]
        together = self.connector(self.vision(torch.cat(pictures)))
        return list(together.split([len(picture) for picture in pictures]))

    def embed(self, batch: Batch) -> PrefixState:
        parts: list[Tensor] = []
        real: list[Tensor] = []
        kinds: list[str] = []  # of each part

        def add(tokens: Tensor, mask: Tensor | bool, kind: str) -> None:
            parts.append(tokens)
            everywhere = tokens.new_ones(tokens.shape[:2], dtype=torch.bool)
            real.append(everywhere & mask)
            kinds.append(kind)

        start = None
        if self.sizes.marks:  # not scaled, unlike words; there also around a camera nobody has
            marks = self.words.weight[list(self.sizes.marks)].expand(len(batch), -1, -1)
            start = marks[:, :2]
            end = marks[:, 2:]
        for tokens, there in self.seen(batch):
            if start is not None:
                add(start, True, "mark")
            add(tokens, there, "picture" if there else "blank")
            if start is not None:
                add(end, True, "mark")
        add(self.words(batch.text) * self.width**0.5, batch.text_mask, "word")
        state = F.pad(batch.state, (0, self.sizes.state_room - batch.state.shape[1]))
        state = self.state_proj(state.to(self.state_proj.weight.dtype))
        add(state.unsqueeze(1), True, "state")
        if not batch.unpadded:  # a graph of one moment needs none: how many lack, it cannot ask
            lacking = self.sizes.prefix_length - sum(part.shape[1] for part in parts)
            if lacking > 0:
                add(state.new_zeros(len(batch), lacking, self.width), False, "padding")
        which = {}
        for kind in ("picture", "word", "state"):
            at = [
                torch.full_like(mask, each == kind) for each, mask in zip(kinds, real, strict=True)
            ]
            which[kind] = torch.cat(at, 1)
        return self._state(torch.cat(parts, 1), torch.cat(real, 1), which)

    def _state(self, hidden: Tensor, mask: Tensor, which: dict[str, Tensor]) -> PrefixState:
        """What enters the first layer, of tokens (b, n, d); of each kind `which` they are, (b, n)
        bool."""
        # Pictures and words do not see the state; it, and what follows it, sees them.
        block = which["state"].long().cumsum(1)  # (b, n)
        sees = block[:, None, :] <= block[:, :, None]  # (b, n, n)
        sees = sees & mask[:, None, :] & mask[:, :, None]
        attention = torch.zeros(sees.shape, dtype=hidden.dtype, device=hidden.device)
        positions = mask.long().cumsum(1) - 1  # padding takes no position
        return PrefixState(
            hidden=hidden,
            mask=mask,
            vision=which["picture"],
            text=which["word"] & mask,
            own=which["state"],
            positions=positions,
            attention=attention.masked_fill_(~sees, HIDDEN).unsqueeze(1),
            turn=self._rotary(positions, self.sizes.text.head, BASE),
            keys=(None,) * len(self.layers),
            values=(None,) * len(self.layers),
        )

    def run_layer(self, index: int, state: PrefixState) -> PrefixState:
        hidden, key, value = self.pairs[index].prefix(state.hidden, state.turn, state.attention)
        keys = (*state.keys[:index], key, *state.keys[index + 1 :])
        values = (*state.values[:index], value, *state.values[index + 1 :])
        return replace(state, hidden=hidden, keys=keys, values=values)

    def features(self, state: PrefixState) -> Features:
        return Features(state.hidden, state.mask, state.vision, state.text)

    # The expert

    def suffix(self, x: Tensor, time: Tensor) -> Tensor:
        """Noisy actions (b, k, A) at times (b,) → the expert's tokens (b, k, e)."""
        actions = self.action_in_proj(x.to(self.action_in_proj.weight.dtype))
        times = self.time_features(time).to(actions.dtype)
        both = torch.cat([actions, times[:, None].expand_as(actions)], -1)
        return self.action_time_mlp_out(F.silu(self.action_time_mlp_in(both)))

    def time_features(self, time: Tensor) -> Tensor:
        """(b,) → (b, e) float64: sines, then cosines."""
        angles = time.double()[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], -1)

    def memory(self, run: Pass[PrefixState]) -> Memory:
        """What a pass has left for the expert."""
        found: list[tuple[Tensor, Tensor] | None] = []
        for index, pair in enumerate(self.pairs):
            keys = run.state.keys[index]
            values = run.state.values[index]
            if pair.expert is None or keys is None or values is None or run.skips(index):
                found.append(None)
            else:
                found.append(pair.expert.read(keys, values))
        return Memory(tuple(found), self._sights(run.state))

    def _sights(self, state: PrefixState) -> dict[str, tuple[Rotary, Tensor]]:
        count = len(state.mask)
        steps = torch.arange(self.chunk, device=state.mask.device).expand(count, -1)  # (b, k)
        after = steps + state.mask.sum(1, keepdim=True)  # behind what is real of the prefix
        head = self.sizes.text.head
        real = state.mask[:, None, None, :]  # (b, 1, 1, n)
        # An action sees those before it and itself.
        causal = (steps[:, None, :] <= steps[:, :, None])[:, None]  # (b, 1, k, k)
        every = torch.cat([real.expand(-1, -1, self.chunk, -1), causal], -1)
        return {
            "self": (self._rotary(after, head, BASE), every),
            # The keys of a `cross` layer have no positions of their own: the actions count from 0.
            "cross": (self._rotary(steps, head, BASE), real),
        }

    def answer(self, run: Pass[PrefixState], memory: Memory, x: Tensor, time: Tensor) -> Tensor:
        """What the expert makes of noisy actions (b, k, A) at times (b,), ahead of the last map:
        (b, k, e) float32."""
        hidden = self.suffix(x, time)
        # Where the host knows of the one sample which layers ran, there is nothing to choose.
        known = len(run.gates) == 1 and bool(run.plan)
        for index, pair in enumerate(self.pairs):
            kept = memory.layers[index]
            if pair.expert is None or kept is None:
                continue
            turn, mask = memory.sights[pair.expert.reads]
            after = pair.expert(hidden, *kept, turn, mask)
            hidden = after if known else run.gated(index, hidden, after)
        return self.norm(hidden).float()

    def moved(self, answer: Tensor) -> Tensor:
        """(b, k, e) → the velocity (b, k, A), in single precision whatever the network runs in."""
        out = self.action_out_proj
        return F.linear(answer, out.weight.float(), out.bias.float())

    def _first(self, run: Pass[PrefixState], memory: Memory) -> Tensor:
        """The answer to noise, (b, k, e), which actions and condition both read."""
        count = len(run.state.mask)
        noise = self.noise.expand(count, -1, -1)
        time = torch.ones(count, device=noise.device)
        return run.once("first_step", lambda: self.answer(run, memory, noise, time))

    def decode(self, run: Pass[PrefixState], batch: Batch) -> Tensor:
        memory = self.memory(run)
        count = len(run.state.mask)
        step = -1 / self.sizes.steps
        x = self.noise.expand(count, -1, -1)
        x = x + step * self.moved(self._first(run, memory))
        for number in range(1, self.sizes.steps):
            time = torch.full((count,), 1 + number * step, device=x.device)
            x = x + step * self.moved(self.answer(run, memory, x, time))
        return x[..., : self.dims]

    @property
    def why_unguided(self) -> str:
        return ""

    def decode_guided(self, run: Pass[PrefixState], batch: Batch, guide: Guide) -> Tensor:
        memory = self.memory(run)

        def velocity(x: Tensor, time: float) -> Tensor:
            # Its own time goes from 1, noise, to 0, and its velocity from actions to noise.
            at = torch.full((len(x),), 1 - time, device=x.device)
            return -self.moved(self.answer(run, memory, x, at))

        noise = self.noise.expand(len(run.state.mask), -1, -1)
        return guided_flow(velocity, noise, self.sizes.steps, guide)[..., : self.dims]

    def signals(self, names: Collection[str], batch: Batch, run: Pass[PrefixState]) -> Trace:
        if "condition" not in names:
            return {}

        def condition() -> Tensor:
            return self._first(run, self.memory(run)).mean(1)  # (b, k, e) → (b, e)

        return {"condition": run.once("condition", condition)}

    def loss(self, run: Pass[PrefixState], batch: Batch) -> Tensor:
        actions, valid = batch.targets()
        if self.sizes.loss == "padded":  # elsewhere what follows an episode reaches nothing else
            actions = _held(actions, valid)
        size = (self.chunk, self.sizes.action_room)
        device = actions.device
        noise = by_sample(lambda count: torch.randn(count, *size, device=device), len(batch))
        drawn = by_sample(lambda count: torch.rand(count, device=device), len(batch))
        # The inverse of Beta(1.5, 1)'s distribution, u = β ** 1.5.
        time = EARLIEST + (1 - EARLIEST) * drawn ** (1 / BETA)
        return self.flow_loss(run, actions, valid.float(), noise, time)

    def flow_loss(
        self, run: Pass[PrefixState], actions: Tensor, valid: Tensor, noise: Tensor, time: Tensor
    ) -> Tensor:
        """(b,): the squared error of the velocity at noise (b, k, A) and times (b,), over the
        robot's dimensions and the steps that are `valid` (b, k); with the loss `padded`, as LeRobot
        0.4.4 trained, over all dimensions and all steps."""
        error = self.flow_errors(run, actions, noise, time)
        if self.sizes.loss == "padded":
            return error.mean((1, 2))
        return masked_mean(error[..., : self.dims], valid)

    def flow_errors(
        self, run: Pass[PrefixState], actions: Tensor, noise: Tensor, time: Tensor
    ) -> Tensor:
        """(b, k, A): the same, of every number."""
        target = F.pad(actions, (0, self.sizes.action_room - self.dims))
        t = time[:, None, None]
        x = t * noise + (1 - t) * target
        velocity = self.moved(self.answer(run, self.memory(run), x, time))
        return (velocity - (noise - target)).square()

    # What is made of it

    def layer_costs(self) -> Tensor:
        """(l,): multiplications of a decision in each layer, but for those of attention itself: the
        language model's, once for each of its tokens, and the expert's, for each action in each
        step."""
        sizes = self.sizes
        costs = []
        for pair in self.pairs:
            cost = _count(pair.prefix) * sizes.prefix_tokens
            if pair.expert is not None:
                each = _count(pair.expert)
                if pair.expert.reads == "cross":  # these read the prefix, once
                    reading = _count(*pair.expert.readers)
                    each -= reading
                    cost += reading * sizes.prefix_tokens
                cost += each * sizes.chunk * sizes.steps
            costs.append(cost)
        return torch.tensor(costs, dtype=torch.float32)

    def keep_layers(self, kept: tuple[int, ...]) -> "SmolVLA":
        weights = weights_of(self, kept)
        reads = tuple(self.sizes.layers[index] for index in kept)
        sizes = replace(self.sizes, layers=reads)
        description = described(sizes, self.body, tuple(kept))
        student = rebuild_with(description, self.body.tokenizer, weights)
        assert isinstance(student, SmolVLA)
        return student.to(self.device).train(self.training)

    def to_json(self) -> dict[str, Any]:
        return described(self.sizes, self.body, self.kept_layers)


def described(
    sizes: Sizes, body: Body, kept_layers: tuple[int, ...] | None = None
) -> dict[str, Any]:
    """A network as `from_json` makes it."""
    return {
        "type": "pretrained.smolvla",
        "network": {**sizes.to_json(), "kept_layers": kept_layers},
        **body.to_json(),
    }


def from_json(description: dict[str, Any], tokenizer: Tokenizer) -> SmolVLA:
    """The network that `to_json` described, with fresh weights."""
    network = dict(description["network"])
    kept = network.pop("kept_layers", None)
    body = Body.from_json(description, tokenizer)
    return SmolVLA(
        Sizes.from_json(network), body, kept_layers=None if kept is None else tuple(kept)
    )


def is_vlm(name: str) -> bool:
    """Whether a parameter is one of the VLM's, and not of what SmolVLA puts beside it."""
    return name.startswith(("vision.", "connector.", "words.")) or ".prefix." in name


def fitted(image: Tensor, width: int, height: int) -> Tensor:
    """(b, 3, h, w) → (b, 3, height, width): as large as fits, black at the left and the top of it.
    Not antialiased, unlike what Pillow makes: the teacher was taught so."""
    rows, columns = image.shape[-2:]
    ratio = max(columns / width, rows / height)
    inner_height = int(rows / ratio)  # cut, not rounded
    inner_width = int(columns / ratio)
    image = F.interpolate(image, (inner_height, inner_width), mode="bilinear", align_corners=False)
    return F.pad(image, (width - inner_width, 0, height - inner_height, 0))


def _normalised(image: Tensor, by: Normaliser) -> Tensor:
    """(b, 3, h, w), a channel at a time."""
    parts = []
    for values in (by.offset, by.scale, by.shift):
        parts.append(torch.from_numpy(values).to(image.device)[:, None, None])
    offset, scale, shift = parts
    return (image - offset) / scale + shift


def _held(actions: Tensor, valid: Tensor) -> Tensor:
    """(b, k, a): past the end of an episode, where `valid` (b, k) is not, the last action again, as
    LeRobot's loader has it."""
    last = (valid.sum(1).long() - 1).clamp(min=0)  # (b,); those that are valid come first
    again = actions.take_along_dim(last[:, None, None], 1)  # (b, 1, a)
    return torch.where(valid.bool()[..., None], actions, again)


def _count(*modules: nn.Module) -> int:
    """Parameters."""
    total = 0
    for module in modules:
        total += sum(parameter.numel() for parameter in module.parameters())
    return total
