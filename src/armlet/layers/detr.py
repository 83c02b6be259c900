"""Transformer layers whose positions are added to queries and keys in every layer, and not to
values, and the fixed positions of a feature map (DETR, arXiv 2005.12872, as ACT uses it).

Tokens are (b, n, d). Knows no policy.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}
TEMPERATURE = 10000.0


class _Layer(nn.Module):
    """What encoder and decoder have in common: normalising before a step (`pre_norm`) or after it,
    and the two linear maps at the end."""

    def __init__(
        self,
        width: int,
        heads: int,
        feedforward: int,
        *,
        pre_norm: bool = False,
        activation: str = "relu",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}, expected {', '.join(ACTIVATIONS)}")
        self.pre_norm = pre_norm
        self.activation = ACTIVATIONS[activation]
        self.self_attn = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.linear1 = nn.Linear(width, feedforward)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(feedforward, width)

    def _attend(self, x: Tensor, positions: Tensor, padded: Tensor | None = None) -> Tensor:
        asked = x + positions
        found: Tensor = self.self_attn(
            asked, asked, x, key_padding_mask=padded, need_weights=False
        )[0]
        return found

    def _step(self, x: Tensor, norm: nn.Module, do: Callable[[Tensor], Tensor]) -> Tensor:
        """A step beside what enters it."""
        if self.pre_norm:
            return x + self.dropout(do(norm(x)))
        normed: Tensor = norm(x + self.dropout(do(x)))
        return normed

    def _feed(self, x: Tensor) -> Tensor:
        fed: Tensor = self.linear2(self.dropout(self.activation(self.linear1(x))))
        return fed


class EncoderLayer(_Layer):
    """(b, n, d) and positions of the same shape → (b, n, d)."""

    def __init__(self, width: int, heads: int, feedforward: int, **options: object) -> None:
        super().__init__(width, heads, feedforward, **options)  # type: ignore[arg-type]
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, positions: Tensor, padded: Tensor | None = None) -> Tensor:
        """`padded` (b, n) bool: tokens that nobody may attend to."""
        x = self._step(x, self.norm1, lambda y: self._attend(y, positions, padded))
        return self._step(x, self.norm2, self._feed)


class DecoderLayer(_Layer):
    """(b, k, d) with positions (k, d), reading a memory (b, n, d) with positions of its own →
    (b, k, d)."""

    def __init__(self, width: int, heads: int, feedforward: int, **options: object) -> None:
        super().__init__(width, heads, feedforward, **options)  # type: ignore[arg-type]
        self.multihead_attn = nn.MultiheadAttention(
            width, heads, self.self_attn.dropout, batch_first=True
        )
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, x: Tensor, positions: Tensor, memory: Tensor, where: Tensor) -> Tensor:
        def read(y: Tensor) -> Tensor:
            found: Tensor = self.multihead_attn(
                y + positions, memory + where, memory, need_weights=False
            )[0]
            return found

        x = self._step(x, self.norm1, lambda y: self._attend(y, positions))
        x = self._step(x, self.norm2, read)
        return self._step(x, self.norm3, self._feed)


def map_positions(height: int, width: int, dims: int, device: torch.device) -> Tensor:
    """The positions (height · width, dims) of a feature map, row by row: sines and cosines of
    (row + 1) / height and (column + 1) / width of a whole turn, the row's in the first half of the
    dimensions."""
    half = dims // 2
    pairs = torch.arange(half, device=device, dtype=torch.float32) // 2
    periods = TEMPERATURE ** (2 * pairs / half)  # (half,)

    def along(length: int) -> Tensor:
        """(length, half)"""
        steps = torch.arange(1, length + 1, device=device, dtype=torch.float32)
        turns = steps / (steps[-1] + 1e-6) * 2 * math.pi
        angles = turns[:, None] / periods
        return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], -1).flatten(1)

    rows = along(height)[:, None].expand(height, width, half)
    columns = along(width)[None].expand(height, width, half)
    return torch.cat([rows, columns], -1).flatten(0, 1)


def line_positions(length: int, dims: int) -> Tensor:
    """The positions (length, dims) of a row of tokens (Vaswani et al. 2017, arXiv 1706.03762)."""
    pairs = torch.arange(dims, dtype=torch.float64) // 2
    angles = torch.arange(length, dtype=torch.float64)[:, None] / TEMPERATURE ** (2 * pairs / dims)
    angles[:, 0::2] = angles[:, 0::2].sin()
    angles[:, 1::2] = angles[:, 1::2].cos()
    return angles.float()
