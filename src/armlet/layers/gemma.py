"""A layer of Gemma over tokens that may also attend to keys and values of other tokens, computed
before: what π0's prefix and its action expert are made of.

Attention, MLP and norms are transformers' own, and so are the names of their weights. What is
different here is where keys and values come from, and, in π0.5's expert, norms that are modulated
by the time of the flow (adaRMS). Knows no policy.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:  # slow to import, and of use only where a network is built
    from transformers import GemmaConfig

# What is added to the scores of what may not be seen. Finite, so that padding, which sees nothing,
# is a mean of all and not NaN.
HIDDEN = -2.3819763e38


class GemmaLayer(nn.Module):
    """`condition`: the width of what modulates the norms; None: they have weights of their own."""

    def __init__(self, config: "GemmaConfig", condition: int | None = None) -> None:
        from transformers.models.gemma import modeling_gemma as gemma

        super().__init__()
        self.head_dim = config.head_dim
        self.heads = config.num_attention_heads
        self.self_attn = gemma.GemmaAttention(config, 0)
        self.mlp = gemma.GemmaMLP(config)
        self.input_layernorm = make_norm(config, condition)
        self.post_attention_layernorm = make_norm(config, condition)

    def forward(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        attention: Tensor,
        past: tuple[Tensor, Tensor] | None = None,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (b, n, d) → tokens, and their keys and values (b, 1, n, h). `rotary` (cos, sin)
        (b, n, h) of their positions; `past`, keys and values (b, 1, m, h) of tokens that they see
        as well, ahead of their own; `attention` (b, 1, n, m + n) is added to the scores;
        `condition` (b, c) modulates the norms."""
        normed, gate = _normed(self.input_layernorm, hidden, condition)
        query = _rotated(self._split(self.self_attn.q_proj(normed)), rotary)
        key = _rotated(self._split(self.self_attn.k_proj(normed)), rotary)
        value = self._split(self.self_attn.v_proj(normed))
        keys = key
        values = value
        if past is not None:
            keys = torch.cat([past[0], key], 2)
            values = torch.cat([past[1], value], 2)
        attended = F.scaled_dot_product_attention(
            query,
            keys.expand(-1, self.heads, -1, -1),  # one head of keys and values for all queries
            values.expand(-1, self.heads, -1, -1),
            attn_mask=attention.to(query.dtype),
            scale=self.self_attn.scaling,
        )
        attended = self.self_attn.o_proj(attended.transpose(1, 2).flatten(2))
        hidden = hidden + (attended if gate is None else attended * gate)
        normed, gate = _normed(self.post_attention_layernorm, hidden, condition)
        made = self.mlp(normed)
        return hidden + (made if gate is None else made * gate), key, value

    def _split(self, x: Tensor) -> Tensor:
        """(b, n, heads · h) → (b, heads, n, h)."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class AdaRMSNorm(nn.Module):
    """RMSNorm without a weight, scaled and shifted by a condition, which also says how much of what
    is made of it is added (π0.5, arXiv 2504.16054; openpi's replaced modeling_gemma.py)."""

    def __init__(self, width: int, condition: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.dense = nn.Linear(condition, 3 * width)
        nn.init.zeros_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """(b, n, d), (b, c) → normed (b, n, d), gate (b, 1, d)."""
        said = self.dense(condition.to(self.dense.weight.dtype)).float().unsqueeze(1)
        scale, shift, gate = said.chunk(3, -1)  # in this order: it decides everything
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (normed * (1 + scale) + shift).to(x.dtype), gate.to(x.dtype)


def make_norm(config: "GemmaConfig", condition: int | None) -> nn.Module:
    """A norm of Gemma's, whose weight is what is added to 1, or one that a condition modulates."""
    from transformers.models.gemma import modeling_gemma as gemma

    if condition is None:
        return gemma.GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
    return AdaRMSNorm(config.hidden_size, condition, config.rms_norm_eps)


def _normed(norm: nn.Module, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if isinstance(norm, AdaRMSNorm):
        assert condition is not None  # a network with such norms has one
        normed, gate = norm(x, condition)
        return normed, gate
    return norm(x), None


def normed(norm: nn.Module, x: Tensor, condition: Tensor | None) -> Tensor:
    """(b, n, d) through the last norm of a network, whose gate, if it has one, nobody reads."""
    return _normed(norm, x, condition)[0]


def _rotated(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """(b, heads, n, h), turned by cos and sin (b, n, h): halves, not pairs."""
    cos, sin = rotary
    first, second = x.chunk(2, -1)
    turned = torch.cat([-second, first], -1)
    return x * cos.unsqueeze(1).to(x.dtype) + turned * sin.unsqueeze(1).to(x.dtype)


def hide(seen: Tensor) -> Tensor:
    """What may be seen (…) bool → what is added to the scores, float32."""
    nothing = torch.zeros(seen.shape, device=seen.device)
    return nothing.masked_fill_(~seen, HIDDEN)
