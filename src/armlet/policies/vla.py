"""Our VLA: convolutional eyes, words, robot state, a Llama backbone (transformers' own layers), an
action head.

About 1 M to 7 B parameters by configuration. Tokens stand in the order [cameras, words, state,
action query]; every token sees every other (the prefix attention of π0), and the query's last
hidden state conditions the action head; a head that wants a vector for each step of the chunk has
the query repeated. Knows no benchmark and no recipe.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from armlet.layers.heads import HEADS, Kind, fitted
from armlet.layers.named import Named, state_layer
from armlet.layers.vision import ConvEncoder, ordered_mean
from armlet.policies.contract import Body, Network, Policy, Tokens, gather, tuples, weights_of
from armlet.robot.normalise import normalised
from armlet.robot.observation import Observation
from armlet.types import Batch


@dataclass(frozen=True)
class VLAConfig:
    """Sizes of the network. `cameras` name → side in pixels; `strides` name → pixels per token;
    `text_tokens` the
    longest instruction; `execute` how many actions of a chunk are carried out before the policy
    looks again."""

    cameras: dict[str, int]
    strides: dict[str, int]
    state_dims: int
    action_dims: int
    vocabulary: int
    width: int = 128
    depth: int = 8
    heads: int = 4
    chunk: int = 8
    execute: int = 3
    text_tokens: int = 32
    vision_channels: int = 32
    head: Kind = "regression"
    head_options: dict[str, Any] = field(default_factory=dict)
    kept_layers: tuple[int, ...] | None = (
        None  # which layers of the network it was cut from, where it was cut
    )

    def llama(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=int(self.width * 8 / 3) // 32 * 32,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=4096,
            attn_implementation="eager",  # type: ignore[call-arg]  # tens of tokens: faster than fused, thrice in backward
        )


@dataclass(frozen=True)
class VLANetwork(Network):
    """Sizes of a VLA that is taught from nothing; `strides` camera → pixels per token, 16 where
    nothing is said."""

    width: int = 128
    depth: int = 8
    heads: int = 4
    chunk: int = 6
    execute: int = 2
    text_tokens: int = 32
    vision_channels: int = 32
    strides: dict[str, int] = field(default_factory=dict)
    head: Kind = "regression"
    head_options: dict[str, Any] = field(default_factory=dict)

    def build(self, body: Body, cameras: dict[str, int]) -> "VLA":
        config = VLAConfig(
            cameras=cameras,
            strides={name: self.strides.get(name, 16) for name in cameras},
            state_dims=len(body.state.offset),
            action_dims=body.action_spec.dims,
            vocabulary=body.tokenizer.get_vocab_size(),
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            chunk=self.chunk,
            execute=self.execute,
            text_tokens=self.text_tokens,
            vision_channels=self.vision_channels,
            head=self.head,
            head_options=fitted(
                self.head, normalised(body.action_spec, body.actions), self.head_options
            ),
        )
        return VLA(config, body)


class VLA(Policy):
    """See the module's docstring."""

    def __init__(self, config: VLAConfig, body: Body) -> None:
        super().__init__()
        self.config, self.body, self.cameras = config, body, config.cameras
        self.width, self.text_tokens, self.execute = (
            config.width,
            config.text_tokens,
            config.execute,
        )
        self.kept_layers = config.kept_layers
        llama = config.llama()
        eyes = {
            name: ConvEncoder(
                size, config.width, stride=config.strides[name], channels=config.vision_channels
            )
            for name, size in config.cameras.items()
        }
        self.vision, self.vision_tokens = (
            Named(eyes),
            sum(encoder.tokens for encoder in eyes.values()),
        )
        self.words = nn.Embedding(config.vocabulary, config.width, padding_idx=0)
        self.order = nn.Parameter(
            1 + 0.5 * torch.randn(config.text_tokens, config.width)
        )  # "a on b" is not "b on a"
        self.asked = nn.Sequential(
            nn.LayerNorm(config.width), nn.Linear(config.width, config.width), nn.GELU()
        )
        self.state = state_layer(config.state_dims, config.width)
        self.query = nn.Parameter(torch.randn(config.width) * 0.02)
        layers = [LlamaDecoderLayer(llama, index) for index in range(config.depth)]
        for layer in layers:
            layer.self_attn.is_causal = False
        self.layers = nn.ModuleList(layers)
        self.norm = LlamaRMSNorm(config.width)
        self.rotary = LlamaRotaryEmbedding(llama)
        self.head = HEADS[config.head](
            config.width, config.chunk, config.action_dims, **config.head_options
        )
        self.apply(_initialise)

    def prepare(self, observations: Sequence[Observation]) -> Batch:
        return gather(
            observations,
            self.config.cameras,
            self.body,
            text_tokens=self.text_tokens,
            device=self.device,
        )

    def ask(self, words: Tensor, mask: Tensor) -> Tensor:
        """Embedded words (b, n, d), real where `mask` (b, n) → one vector (b, d) that says what to
        look for."""
        return self.asked(ordered_mean(words, mask, self.order))

    def embed(self, batch: Batch) -> Tokens:
        words = self.words(batch.text)
        asked = self.ask(words, batch.text_mask)
        eyes = [self.vision[name](batch.images[name], asked) for name in self.config.cameras]
        state = self.state(batch.state).unsqueeze(1)
        query = self.query.expand(len(batch), self.head.vectors, -1)
        hidden = torch.cat([*eyes, words, state, query], 1)
        seen, length = sum(part.shape[1] for part in eyes), hidden.shape[1]
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        mask[:, seen : seen + words.shape[1]] = batch.text_mask
        vision, text = torch.zeros_like(mask), torch.zeros_like(mask)
        vision[:, :seen] = True
        text[:, seen : seen + words.shape[1]] = batch.text_mask
        if len(batch) == 1 and bool(
            batch.text_mask.all()
        ):  # nothing is padded: no mask to build, and positions just count up
            positions = torch.arange(length, device=hidden.device)[None]
            return Tokens(hidden, mask, vision, text, None, self.rotary(hidden, positions))
        positions = mask.long().cumsum(1) - 1
        attention = torch.zeros(mask.shape, device=hidden.device).masked_fill_(~mask, -1e9)[
            :, None, None, :
        ]
        return Tokens(hidden, mask, vision, text, attention, self.rotary(hidden, positions))

    def run_layer(self, index: int, hidden: Tensor, tokens: Tokens) -> Tensor:
        return self.layers[index](
            hidden, attention_mask=tokens.attention, position_embeddings=tokens.rotary
        )

    def condition(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        return self.norm(hidden[:, -self.head.vectors :]).flatten(1)

    def keep_layers(self, kept: tuple[int, ...]) -> "VLA":
        weights = weights_of(self, kept)
        student = VLA(replace(self.config, depth=len(kept), kept_layers=tuple(kept)), self.body)
        student.load_state_dict(weights)
        return student.to(self.device)

    def to_json(self) -> dict[str, Any]:
        """Everything but the weights and the tokenizer."""
        return {"type": "vla", "network": asdict(self.config), **self.body.to_json()}


def from_json(description: dict[str, Any], tokenizer: Tokenizer) -> VLA:
    """The network that `to_json` described, with fresh weights."""
    return VLA(VLAConfig(**tuples(description["network"])), Body.from_json(description, tokenizer))


def _initialise(module: nn.Module) -> None:
    """Llama's own initialisation for what is ours, too."""
    if (isinstance(module, nn.Linear) and module.bias is None) or isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
