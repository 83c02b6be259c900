"""The parts of SmolVLA's network (arXiv 2506.01844) that know no robot: its image tower, the layers
of its language model and of its expert, and rotary positions.

Blocks are transformers' own (SmolVLM's vision encoder, Llama's norms, projections and MLPs); what
stands here is what SmolVLA does otherwise than they: rotary positions in single precision with a
base of its own, and expert layers that read keys and values which the language model left.

Importing this file imports transformers, which takes seconds: it is imported where a network is
built. (LeRobot 0.6.1, `policies/smolvla/smolvlm_with_expert.py`.)
"""

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionTransformer

from armlet.policies.pretrained.smolvla_sizes import Eye, Sizes, Text

Rotary = tuple[Tensor, Tensor]  # cos and sin, (b, 1, n, c / 2) each, single precision


def rotary(positions: Tensor, head: int, base: float) -> Rotary:
    """Positions (b, n) → what `rotate` turns heads of `head` numbers by."""
    half = head // 2
    exponents = 2.0 / head * torch.arange(half, dtype=torch.float32, device=positions.device)
    angles = positions[:, None, :, None].float() / base**exponents  # (b, 1, n, c / 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, turn: Rotary) -> Tensor:
    """(b, h, n, c) turned by its positions: halves are paired, not neighbours; in single precision
    whatever comes in."""
    cos, sin = turn
    first, second = x.float().chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """(b, h, q, c), (b, g, n, c) twice → (b, q, h · c); `mask` (b, 1, q, n) or (b, 1, 1, n), bool
    or added. Each of the g heads of keys serves h / g queries."""
    together = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    return together.transpose(1, 2).flatten(2)


def split(x: Tensor, head: int) -> Tensor:
    """(b, n, h · c) → (b, h, n, c)."""
    return x.unflatten(-1, (-1, head)).transpose(1, 2)


class PrefixLayer(LlamaDecoderLayer):
    """A layer of the language model, over pictures, words and state."""

    def __init__(self, text: Text) -> None:
        super().__init__(_llama(text, text.width, text.inner), 0)
        self.head = text.head

    def forward(  # type: ignore[override]  # its own arguments: nothing of transformers calls it
        self, hidden: Tensor, turn: Rotary, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(b, n, d) → the same after it, and its keys, turned, and values (b, g, n, c)."""
        attention = self.self_attn
        normed = self.input_layernorm(hidden).to(attention.q_proj.weight.dtype)
        query = rotate(split(attention.q_proj(normed), self.head), turn)
        key = rotate(split(attention.k_proj(normed), self.head), turn)
        value = split(attention.v_proj(normed), self.head)
        hidden = hidden + attention.o_proj(attend(query, key, value, mask.to(query.dtype)))
        normed = self.post_attention_layernorm(hidden).to(normed.dtype)
        return hidden + self.mlp(normed), key, value


class ExpertLayer(LlamaDecoderLayer):
    """A layer of the expert, over the actions of a chunk. `reads`: `self`, each action attends to
    the language model's keys and values and to the actions up to it; `cross`, to the former alone,
    through maps of its own."""

    def __init__(self, text: Text, reads: str) -> None:
        super().__init__(_llama(text, text.expert_width, text.expert_inner), 0)
        self.head = text.head
        self.reads = reads
        if reads == "cross":
            wide = text.kv_heads * text.head
            self.self_attn.k_proj = nn.Linear(wide, wide, bias=text.attention_bias)
            self.self_attn.v_proj = nn.Linear(wide, wide, bias=text.attention_bias)

    @property
    def readers(self) -> tuple[nn.Linear, nn.Linear]:
        """The maps of keys and of values."""
        return self.self_attn.k_proj, self.self_attn.v_proj

    def read(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What the language model left, (b, g, n, c) twice, as this layer attends to it. It is the
        same in every denoising step."""
        if self.reads == "self":
            return keys, values
        found = []
        for project, kept in zip(self.readers, (keys, values), strict=True):
            flat = kept.transpose(1, 2).flatten(2).to(project.weight.dtype)  # (b, n, g · c)
            found.append(split(project(flat), self.head))
        return found[0], found[1]

    def forward(  # type: ignore[override]  # as above
        self, hidden: Tensor, keys: Tensor, values: Tensor, turn: Rotary, mask: Tensor
    ) -> Tensor:
        """Actions (b, k, e), and what `read` gave, (b, g, n, c) twice → (b, k, e). `mask`: bool,
        (b, 1, k, n + k) in a `self` layer and (b, 1, 1, n) in a `cross` one."""
        attention = self.self_attn
        normed = self.input_layernorm(hidden).to(attention.q_proj.weight.dtype)
        query = rotate(split(attention.q_proj(normed), self.head), turn)
        keys = keys.to(query.dtype)
        values = values.to(query.dtype)
        if self.reads == "self":
            own = rotate(split(attention.k_proj(normed), self.head), turn)
            keys = torch.cat([keys, own], 2)
            values = torch.cat([values, split(attention.v_proj(normed), self.head)], 2)
        hidden = hidden + attention.o_proj(attend(query, keys, values, mask))
        return hidden + self.mlp(self.post_attention_layernorm(hidden).to(normed.dtype))


class Pair(nn.Module):
    """A layer of the language model with the expert's that reads it, if one does (`reads` is
    `nothing` otherwise): skipped, routed and cut together."""

    def __init__(self, text: Text, reads: str) -> None:
        super().__init__()
        self.prefix = PrefixLayer(text)
        self.expert = None if reads == "nothing" else ExpertLayer(text, reads)


class Vision(nn.Module):
    """Pictures (b, 3, h, w) in −1 … 1 → patches (b, p, d'): SmolVLM's vision transformer."""

    def __init__(self, eye: Eye, *, shifted: bool) -> None:
        super().__init__()
        self.eye = eye
        self.shifted = shifted
        self.tower = SmolVLMVisionTransformer(_vision(eye))
        # Of grids that were met, by rows, columns and device.
        self._places: dict[tuple[int, int, torch.device], Tensor] = {}

    @property
    def encoder_layers(self) -> list[nn.Module]:
        return list(self.tower.encoder.layers)

    def forward(self, pictures: Tensor) -> Tensor:
        embeddings = self.tower.embeddings
        grid = embeddings.patch_embedding(pictures.to(embeddings.patch_embedding.weight.dtype))
        rows, columns = grid.shape[-2:]
        places = self._known_places(rows, columns, grid.device)
        hidden = grid.flatten(2).transpose(1, 2) + embeddings.position_embedding(places)
        hidden = self.tower.encoder(inputs_embeds=hidden).last_hidden_state
        return self.tower.post_layernorm(hidden)

    def _known_places(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """`positions` on a device. Kept: they are made by the host, whose rounding decides them, and
        what a host sends to a GPU cannot be recorded there as a graph."""
        if torch.compiler.is_compiling():  # nothing made there may outlast it
            return positions(rows, columns, self.eye, shifted=self.shifted).to(device)
        key = (rows, columns, device)
        if key not in self._places:
            with torch.inference_mode(False):  # a stage that trains may be the next to ask
                made = positions(rows, columns, self.eye, shifted=self.shifted)
                self._places[key] = made.to(device)
        return self._places[key]


class Connector(nn.Module):
    """Patches (b, p, d') → tokens (b, p / s², d): a pixel shuffle that lays s × s patches side by
    side, and a linear map."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.shuffle = sizes.shuffle
        self.proj = nn.Linear(sizes.eye.width * sizes.shuffle**2, sizes.text.width, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        side = isqrt(patches.shape[1])  # as the original: whatever the picture's shape, a square
        near = self.shuffle
        blocks = patches.view(len(patches), side // near, near, side // near, near, -1)
        # (b, row, its rows, column, its columns, d') → (b, row, column, rows and columns, d')
        shuffled = blocks.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)
        return self.proj(shuffled)


def positions(rows: int, columns: int, eye: Eye, *, shifted: bool = False) -> Tensor:
    """(rows · columns,) int64: which learned position each patch has. A grid of the tower's own
    size has them in order; of another, the nearest before.

    `shifted`: as transformers 4.55.1 to 4.57 had them in single precision (their issue 41190): a
    factor of 1 − 1e-6 moves row and column i to the position of i − 1.
    """
    side = eye.side
    edges = torch.arange(1 / side, 1.0, 1 / side)  # where position 1, 2, … begin
    found = []
    for count in (rows, columns):
        along = torch.arange(count, dtype=torch.float32)
        if shifted:
            part = along / count * (1 - 1e-6)
        else:
            part = (along * (1.0 / torch.tensor(count))).clamp(max=1 - 1e-6)
        found.append(torch.bucketize(part, edges, right=True))
    return (found[0][:, None] * side + found[1][None, :]).flatten()


def norm(width: int, epsilon: float) -> nn.Module:
    """Llama's."""
    return LlamaRMSNorm(width, eps=epsilon)


def _llama(text: Text, width: int, inner: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=text.vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=text.heads,
        num_key_value_heads=text.kv_heads,
        head_dim=text.head,
        hidden_act=text.activation,
        rms_norm_eps=text.epsilon,
        attention_bias=text.attention_bias,
        mlp_bias=text.mlp_bias,
    )


def _vision(eye: Eye) -> SmolVLMVisionConfig:
    return SmolVLMVisionConfig(
        hidden_size=eye.width,
        intermediate_size=eye.inner,
        num_hidden_layers=eye.layers,
        num_attention_heads=eye.heads,
        image_size=eye.image,
        patch_size=eye.patch,
        hidden_act=eye.activation,
        layer_norm_eps=eye.epsilon,
        attn_implementation="sdpa",  # type: ignore[call-arg]
    )
