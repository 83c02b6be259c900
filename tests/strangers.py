"""Two networks that are nothing like ours, as others write them, on the contract alone.

`Expert` (as π0 and SmolVLA are built): a language stream whose layers leave keys and values behind,
and an action expert that reads those of its own layer in every step of denoising. It has no
condition. `Writer` (as OpenVLA): a causal decoder that writes an action number by number, with a
cache. It has a prompt, keeps the case, spells by letters and pads with 7.

Both are as small as they can be, and of the same `tiny` robot.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from tiny import TEXTS, identity
from tokenizers import Tokenizer
from torch import Tensor, nn

from armlet.benchmarks.tabletop import Tabletop
from armlet.data.codec import bin_centres
from armlet.data.text import train_tokenizer
from armlet.layers.heads import to_bins
from armlet.policies.contract import Backbone, Body, Features, Pass, State
from armlet.policies.cutting import weights_of
from armlet.robot.inputs import Inputs
from armlet.types import Batch, Trace

CAMERAS = {"scene": 24, "wrist": 16}
PATCH, DIMS, STEPS, BINS = 8, 4, 3, 16


def body() -> Body:
    return Body(Tabletop().action_spec, identity(4), identity(4), train_tokenizer(TEXTS))


@dataclass(frozen=True)
class Cached(State):
    """Hidden tokens, and the keys and values (b, n, d) that every layer so far has left."""

    changing: ClassVar[tuple[str, ...]] = ("hidden", "keys", "values")

    hidden: Tensor
    mask: Tensor
    vision: Tensor
    text: Tensor
    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()


def attend(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    """(b, q, d), (b, n, d) twice; `seen` (b, 1 or q, n) bool."""
    heat = query @ keys.transpose(1, 2) / query.shape[-1] ** 0.5
    return heat.masked_fill(~seen, -1e9).softmax(-1) @ values


class Layer(nn.Module):
    """Attention and an MLP, each added to what was there."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.leave = nn.Linear(width, width)

    def own(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(x)
        return self.key(x), self.value(x)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        x = x + attend(self.query(self.norm(x)), keys, values, seen)
        return x + self.leave(self.mlp(x))


class Stranger(Backbone[Cached]):
    """What the two share: eyes that cut patches, words, state; a prefix whose layers leave keys and
    values behind."""

    def __init__(self, depth: int, body: Body, *, width: int = 16, words: int) -> None:
        super().__init__()
        self.depth, self.body, self.cameras, self.width = depth, body, CAMERAS, width
        self.chunk, self.execute, self.text_tokens = 3, 2, 80
        self.vision_tokens = sum((side // PATCH) ** 2 for side in CAMERAS.values())
        self.eyes = nn.Conv2d(3, width, PATCH, PATCH)
        self.words = nn.Embedding(words, width)
        self.feel = nn.Linear(DIMS, width)

    def embed(self, batch: Batch) -> Cached:
        seen = [self.eyes(batch.images[name]).flatten(2).transpose(1, 2) for name in CAMERAS]
        state = self.feel(batch.state)[:, None]
        hidden = torch.cat([*seen, self.words(batch.text), state], 1)
        text = F.pad(batch.text_mask, (self.vision_tokens, 1))
        vision = torch.zeros_like(text)
        vision[:, : self.vision_tokens] = True
        mask = text | vision
        mask[:, -1] = True
        return Cached(hidden, mask, vision, text)

    def prefix(self, index: int) -> Layer:
        raise NotImplementedError

    def run_layer(self, index: int, state: Cached) -> Cached:
        layer = self.prefix(index)
        key, value = layer.own(state.hidden)
        hidden = layer(state.hidden, key, value, state.mask[:, None])
        return replace(state, hidden=hidden, keys=(*state.keys, key), values=(*state.values, value))

    def skip_layer(self, index: int, state: Cached) -> Cached:
        none = torch.zeros_like(state.hidden)  # nobody reads them: the gates say so
        return replace(state, keys=(*state.keys, none), values=(*state.values, none))

    def features(self, state: Cached) -> Features:
        return Features(state.hidden, state.mask, state.vision, state.text)

    def keep_layers(self, kept: tuple[int, ...]) -> "Stranger":
        weights = weights_of(self, kept)
        cut = type(self)(len(kept), self.body)
        cut.kept_layers = kept
        cut.load_state_dict(weights)
        return cut.to(self.device)

    def to_json(self) -> dict[str, Any]:
        kind = f"strangers:{type(self).__name__}"
        return {"type": kind, "depth": self.depth, "kept": self.kept_layers, **self.body.to_json()}

    @classmethod
    def from_json(cls, description: dict[str, Any], tokenizer: Tokenizer) -> "Stranger":
        made = cls(description["depth"], Body.from_json(description, tokenizer))
        made.kept_layers = description["kept"] and tuple(description["kept"])
        return made


class Expert(Stranger):
    """Denoises a chunk in a few Euler steps (rectified flow) from fixed noise."""

    def __init__(self, depth: int, body: Body) -> None:
        super().__init__(depth, body, words=body.tokenizer.get_vocab_size())
        pair = [nn.ModuleList([Layer(self.width), Layer(self.width)]) for _ in range(depth)]
        self.layers = nn.ModuleList(pair)
        self.enter, self.leave = nn.Linear(DIMS + 1, self.width), nn.Linear(self.width, DIMS)
        self.place = nn.Parameter(torch.randn(self.chunk, self.width))
        self.register_buffer("noise", torch.randn(self.chunk, DIMS))

    def prefix(self, index: int) -> Layer:
        return self.layers[index][0]

    def velocity(self, noisy: Tensor, t: Tensor, run: Pass[Cached]) -> Tensor:
        time = t[:, None, None].expand(-1, self.chunk, -1)
        x = self.enter(torch.cat([noisy, time], -1)) + self.place
        for index in range(self.depth):
            if run.skips(index):
                continue
            state = run.state
            keys, values = state.keys[index], state.values[index]
            after = self.layers[index][1](x, keys, values, state.mask[:, None])
            x = run.gated(index, x, after)
        return self.leave(x)

    def decode(self, run: Pass[Cached], batch: Batch) -> Tensor:
        x = self.noise.expand(len(batch), -1, -1)
        for step in range(STEPS):
            x = x + self.velocity(x, torch.full((len(batch),), step / STEPS), run) / STEPS
        return x

    def loss(self, run: Pass[Cached], batch: Batch) -> Tensor:
        actions, valid = batch.targets()
        t, noise = torch.rand(len(batch)), torch.randn_like(actions)
        mixed = noise + t[:, None, None] * (actions - noise)
        error = (self.velocity(mixed, t, run) - (actions - noise)).square().mean(-1)
        return (error * valid).sum(1) / valid.sum(1).clamp(min=1)


class Letters:
    """How `Writer` reads: a prompt, letters as they are, 7 pads."""

    def __call__(
        self, texts: Sequence[str], *, any_length: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        rows = [[8 + ord(letter) % 120 for letter in f"Do: {text}?"] for text in texts]
        ids = np.full((len(rows), max(map(len, rows), default=1)), 7, np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
        return ids, ids != 7


class Writer(Stranger):
    """Writes an action number by number: one token each, a bin of [−1, 1]."""

    def __init__(self, depth: int, body: Body) -> None:
        super().__init__(depth, body, words=128)
        self.condition_width = self.width
        self.layers = nn.ModuleList(Layer(self.width) for _ in range(depth))
        self.numbers = nn.Embedding(BINS + 1, self.width)
        self.register_buffer("start", torch.tensor([[BINS]]))  # the number that begins an action
        self.places = nn.Parameter(torch.randn(self.chunk * DIMS, self.width))
        self.say = nn.Linear(self.width, BINS)

    @property
    def inputs(self) -> Inputs:
        return replace(super().inputs, words=Letters())

    def prefix(self, index: int) -> Layer:
        return self.layers[index]

    def decode(self, run: Pass[Cached], batch: Batch) -> Tensor:
        rows = len(batch)
        before, state = self._begin(run), run.state
        cache = list(zip(state.keys, state.values, strict=True))
        written: list[Tensor] = []
        for place in range(self.chunk * DIMS):
            x = self.numbers(before) + self.places[place : place + 1]
            seen = F.pad(state.mask, (0, place + 1), value=True)[:, None]
            for index, layer in enumerate(self.layers):
                if run.skips(index):
                    continue
                own = layer.own(x)
                cache[index] = tuple(
                    torch.cat(pair, 1) for pair in zip(cache[index], own, strict=True)
                )
                x = run.gated(index, x, layer(x, *cache[index], seen))
            before = self.say(x).argmax(-1)
            written.append(before)
        bins = torch.cat(written, 1).view(rows, self.chunk, DIMS)
        return bin_centres(bins, -1.0, 1.0, BINS)

    def _begin(self, run: Pass[Cached]) -> Tensor:
        return self.start.expand(len(run.gates), 1)

    def written(self, run: Pass[Cached], bins: Tensor) -> Tensor:
        """Logits (b, k · a, bins) of every number, given those before it (b, k · a): all at once."""
        state, length = run.state, bins.shape[1]
        before = torch.cat([self._begin(run), bins[:, :-1]], 1)
        x = self.numbers(before) + self.places
        own = torch.ones(length, length, dtype=torch.bool).tril()
        seen = torch.cat(
            [
                state.mask[:, None].expand(-1, length, -1),
                own.expand(len(bins), -1, -1),
            ],
            2,
        )
        for index, layer in enumerate(self.layers):
            key, value = layer.own(x)
            keys = torch.cat([state.keys[index], key], 1)
            values = torch.cat([state.values[index], value], 1)
            x = run.gated(index, x, layer(x, keys, values, seen))
        return self.say(x)

    def loss(self, run: Pass[Cached], batch: Batch) -> Tensor:
        actions, valid = batch.targets()
        bins = to_bins(actions, BINS).flatten(1)
        logits = self.written(run, bins)
        error = F.cross_entropy(logits.flatten(0, 1), bins.flatten(), reduction="none")
        error = error.view(actions.shape).mean(-1)
        return (error * valid).sum(1) / valid.sum(1).clamp(min=1)

    def signals(self, names: Collection[str], batch: Batch, run: Pass[Cached]) -> Trace:
        if "condition" not in names:
            return {}
        return {"condition": run.once("condition", lambda: run.state.hidden[:, -1].float())}


def make(kind: type[Stranger], depth: int = 4) -> Stranger:
    torch.manual_seed(0)
    return kind(depth, body()).eval()
