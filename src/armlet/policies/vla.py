"""Our VLA: convolutional eyes, words, robot state, a Llama backbone (transformers' own layers), an
action head.

About 1 M to 7 B parameters by configuration. Tokens stand in the order [cameras, words, state,
action query]; every token sees every other (the prefix attention of π0), and the query's last
hidden state conditions the action head; a head that wants a vector for each step of the chunk has
the query repeated. Knows no benchmark and no recipe.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from armlet.layers.heads import HEADS, Kind, check_options
from armlet.layers.named import Named, state_layer
from armlet.layers.vision import ConvEncoder, ordered_mean
from armlet.policies.contract import Body, Network, check_cameras, sizes_of, tuples
from armlet.policies.cutting import weights_of, with_weights
from armlet.policies.tokens import TokenPolicy, TokenState
from armlet.robot.normalise import normalised
from armlet.types import Batch

if TYPE_CHECKING:  # slow to import, and of use only where a network is built
    from transformers import LlamaConfig


@dataclass(frozen=True)
class VLANetwork(Network):
    """Sizes of a VLA that is taught from nothing."""

    width: int = 128
    """Numbers a token has in the backbone."""
    depth: int = 8
    """Layers of the backbone."""
    heads: int = 4
    """Attention heads of a layer; they divide the width."""
    chunk: int = 6
    """Actions decided at a time."""
    execute: int = 2
    """Actions of a chunk that are carried out before the policy looks again."""
    text_tokens: int = 32
    """Tokens of the longest instruction."""
    vision_channels: int = 32
    """Channels of the eyes' first convolution."""
    strides: dict[str, int] = field(default_factory=dict)
    """Camera → pixels a token, a side: 8, 12 or 16; 16 where nothing is said."""
    head: Kind = "regression"
    """How actions are decided (armlet/layers/heads.py)."""
    head_options: dict[str, Any] = field(default_factory=dict)
    """More of the head, by the names of its arguments (armlet/layers/heads.py)."""

    def build(self, body: Body, cameras: dict[str, int]) -> "VLA":
        seen = normalised(body.action_spec, body.actions)
        options = HEADS[self.head].fitted(seen, self.head_options)
        return VLA(replace(self, head_options=options), cameras, body)

    def llama(self, vocabulary: int) -> "LlamaConfig":
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=self.width,
            intermediate_size=int(self.width * 8 / 3) // 32 * 32,  # Llama's 8/3, in whole blocks
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=4096,
            # Among tens of tokens plain products are faster than a fused kernel, backward thrice.
            attn_implementation="eager",  # type: ignore[call-arg]
        )


class VLA(TokenPolicy):
    """See the module's docstring."""

    def __init__(
        self,
        network: VLANetwork,
        cameras: dict[str, int],
        body: Body,
        *,
        kept_layers: tuple[int, ...] | None = None,
    ) -> None:
        from transformers.models.llama import modeling_llama

        super().__init__()
        strides = {name: network.strides.get(name, 16) for name in cameras}
        # Said of every camera, so that a saved description does not hang on what is usual.
        self.network = replace(network, strides=strides)
        self.body = body
        self.cameras = cameras
        self.kept_layers = kept_layers
        self.width = width = network.width
        self.text_tokens = network.text_tokens
        self.execute = network.execute
        vocabulary = body.tokenizer.get_vocab_size()
        llama = network.llama(vocabulary)
        self.vision = Named()
        self.vision_tokens = 0
        for name, size in cameras.items():
            eye = ConvEncoder(size, width, stride=strides[name], channels=network.vision_channels)
            self.vision[name] = eye
            self.vision_tokens += eye.tokens
        self.words = nn.Embedding(vocabulary, width, padding_idx=0)
        # Each place in a sentence has factors of its own: "a on b" is not "b on a".
        self.order = nn.Parameter(1 + 0.5 * torch.randn(network.text_tokens, width))
        self.asked = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.state = state_layer(len(body.state.offset), width)
        self.query = nn.Parameter(torch.randn(width) * 0.02)
        self.layers = nn.ModuleList()
        for index in range(network.depth):
            layer = modeling_llama.LlamaDecoderLayer(llama, index)
            layer.self_attn.is_causal = False  # every token sees every other: see the docstring
            self.layers.append(layer)
        self.norm = modeling_llama.LlamaRMSNorm(width)
        self.rotary = modeling_llama.LlamaRotaryEmbedding(llama)
        dims = body.action_spec.dims
        self.head = HEADS[network.head](width, network.chunk, dims, **network.head_options)
        self.apply(_initialise)  # what Llama's own model class would do; only its layers are here

    def ask(self, words: Tensor, mask: Tensor) -> Tensor:
        """Embedded words (b, n, d), real where `mask` (b, n) → one vector (b, d) that says what to
        look for."""
        return self.asked(ordered_mean(words, mask, self.order))

    def embed(self, batch: Batch) -> TokenState:
        words = self.words(batch.text)  # (b, t, d)
        asked = self.ask(words, batch.text_mask)
        eyes = [self.vision[name](batch.images[name], asked) for name in self.cameras]
        state = self.state(batch.state).unsqueeze(1)  # (b, d) → (b, 1, d)
        query = self.query.expand(len(batch), self.head.vectors, -1)  # as often as the head reads
        hidden = torch.cat([*eyes, words, state, query], 1)  # (b, n, d)
        seen = self.vision_tokens
        length = hidden.shape[1]
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        mask[:, seen : seen + words.shape[1]] = batch.text_mask
        vision = torch.zeros_like(mask)
        text = torch.zeros_like(mask)
        vision[:, :seen] = True
        text[:, seen : seen + words.shape[1]] = batch.text_mask
        if _unpadded(batch):  # no mask to build, and positions just count up
            positions = torch.arange(length, device=hidden.device)[None]
            rotary = self.rotary(hidden, positions)
            return TokenState(hidden, mask, vision, text, rotary=rotary)
        # Padding takes no position, so that what follows stands where it would without.
        positions = mask.long().cumsum(1) - 1
        # Finite, and far enough down to be exactly 0 behind the softmax.
        attention = torch.zeros(mask.shape, device=hidden.device).masked_fill_(~mask, -1e9)
        rotary = self.rotary(hidden, positions)
        return TokenState(hidden, mask, vision, text, attention[:, None, None, :], rotary)

    def run_layer(self, index: int, state: TokenState) -> TokenState:
        hidden = self.layers[index](
            state.hidden, attention_mask=state.attention, position_embeddings=state.rotary
        )
        return replace(state, hidden=hidden)

    def run_last(self, index: int, state: TokenState) -> TokenState:
        # Only the queries are read of it: they ask, and all tokens answer.
        from transformers.models.llama.modeling_llama import rotate_half

        assert state.rotary is not None  # `embed` makes them
        asking = self.head.vectors
        layer: Any = self.layers[index]  # torch says no more than Module
        attention = layer.self_attn
        normed = layer.input_layernorm(state.hidden)
        cos, sin = (each.unsqueeze(1) for each in state.rotary)  # (1, 1, n, c)

        def heads(tokens: Tensor) -> Tensor:
            """(b, n, d) → (b, h, n, c)."""
            return tokens.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

        queries = heads(attention.q_proj(normed[:, -asking:]))
        keys = heads(attention.k_proj(normed))
        queries = queries * cos[:, :, -asking:] + rotate_half(queries) * sin[:, :, -asking:]
        keys = keys * cos + rotate_half(keys) * sin
        heard = F.scaled_dot_product_attention(
            queries, keys, heads(attention.v_proj(normed)), state.attention, scale=attention.scaling
        )
        hidden = state.hidden[:, -asking:] + attention.o_proj(heard.transpose(1, 2).flatten(2))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return replace(state, hidden=hidden)

    def condition(self, state: TokenState) -> Tensor:
        return self.norm(state.hidden[:, -self.head.vectors :]).flatten(1)  # (b, v, d) → (b, v · d)

    def keep_layers(self, kept: tuple[int, ...]) -> "VLA":
        weights = weights_of(self, kept)
        network = replace(self.network, depth=len(kept))
        student = VLA(network, self.cameras, self.body, kept_layers=tuple(kept))
        return with_weights(student, weights, self.device)

    def with_head(self, head: Kind | None, options: dict[str, Any]) -> "VLA":
        kind = head or self.network.head
        check_options(kind, options)
        same = kind == self.network.head
        ours = self.network.head_options if same else {}
        network = replace(self.network, head=kind, head_options={**ours, **options})
        lighter = VLA(network, self.cameras, self.body, kept_layers=self.kept_layers)
        # One of another kind has nothing in common with it: it begins as it was drawn.
        begin = self.head.weights_for(lighter.head) if same else lighter.head.state_dict()
        weights = {f"head.{name}": tensor for name, tensor in begin.items()}
        for name, tensor in self.state_dict().items():
            if not name.startswith("head."):
                weights[name] = tensor
        return with_weights(lighter, weights, self.device)

    def to_json(self) -> dict[str, Any]:
        """Everything but the weights and the tokenizer."""
        network = {
            "cameras": self.cameras,
            "strides": self.network.strides,
            "state_dims": len(self.body.state.offset),
            "action_dims": self.body.action_spec.dims,
            "vocabulary": self.words.num_embeddings,
            **asdict(self.network),
            "kept_layers": self.kept_layers,
        }
        return {"type": "vla", "network": network, **self.body.to_json()}


def from_json(description: dict[str, Any], tokenizer: Tokenizer) -> VLA:
    """The network that `to_json` described, with fresh weights."""
    network = tuples(description["network"])
    body = Body.from_json(description, tokenizer)
    cameras = network.pop("cameras")
    kept = network.pop("kept_layers", None)
    # Said twice in the file, so that a config of other statistics or words than its own is noticed.
    fitting = {
        "state_dims": len(body.state.offset),
        "action_dims": body.action_spec.dims,
        "vocabulary": tokenizer.get_vocab_size(),
    }
    for name, found in fitting.items():
        if network.pop(name) != found:
            raise ValueError(
                f"network.{name} is {description['network'][name]}, and its statistics or words "
                f"have {found}"
            )
    check_cameras(cameras)
    return VLA(sizes_of(VLANetwork, network), cameras, body, kept_layers=kept)


def _unpadded(batch: Batch) -> bool:
    """Whether this is one observation none of whose words is padding. A graph that is compiled
    cannot ask: where nobody has said it, every batch is treated there as one that may be padded,
    which gives the same."""
    if batch.unpadded:
        return True
    if len(batch) > 1 or torch.compiler.is_compiling():
        return False
    return bool(batch.text_mask.all())


def _initialise(module: nn.Module) -> None:
    """Llama's own initialisation for what is ours, too."""
    if (isinstance(module, nn.Linear) and module.bias is None) or isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
