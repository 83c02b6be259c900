"""A vision transformer in timm's layout (`blocks.N.attn.qkv` …), as DINOv2 with registers and SigLIP
are saved in it, read where vision-language-action models read them: after the second-to-last block,
without the final norm.

Blocks are pre-norm; LayerNorm's eps is 1e-6 and GELU is exact (erf), in both towers (transformers'
own SigLIP has the approximation by tanh). The last block, the final norm and a pooling head stand in
the files and are not built: nothing reads them. (timm 0.9.10, `models/vision_transformer.py`.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Between = Callable[[int, Tensor], Tensor]  # a block's number, tokens (b, n, d) → tokens


@dataclass(frozen=True)
class ViTSizes:
    """`depth` blocks in the file, of which the last is not run; `mlp` the width inside a block;
    `grid` patches a side, of `patch` pixels each; `prefix` tokens before the patches: a class token
    and registers, or none; `layer_scale`: each branch of a block is scaled (LayerScale)."""

    width: int
    depth: int
    heads: int
    mlp: int
    grid: int
    patch: int = 14
    prefix: int = 0
    layer_scale: bool = False

    def __post_init__(self) -> None:
        if self.depth < 2:
            raise ValueError(
                f"an image tower of {self.depth} block(s): expected at least 2, of which the last "
                "is not run"
            )
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(
                f"an image tower of width {self.width} cannot have {self.heads} heads: expected a "
                "divisor of its width"
            )

    @property
    def side(self) -> int:
        """Of its pictures, in pixels."""
        return self.grid * self.patch

    @property
    def tokens(self) -> int:
        """Patches of a picture."""
        return self.grid**2


class PatchEmbed(nn.Module):
    """(b, 3, h, w) → (b, n, d), patches row by row."""

    def __init__(self, sizes: ViTSizes) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, sizes.width, sizes.patch, stride=sizes.patch)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Every token to every other; queries, keys and values of one matrix."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        split = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (b, n, 3, h, c)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # (b, h, n, c) each
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A factor a channel. timm calls it `gamma`; transformers renames that on loading, so that
    folders of it have `scale_factor` instead."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, sizes: ViTSizes) -> None:
        super().__init__()
        width = sizes.width
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, sizes.heads)
        self.ls1 = LayerScale(width) if sizes.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, sizes.mlp)
        self.ls2 = LayerScale(width) if sizes.layer_scale else nn.Identity()

    def forward(self, x: Tensor, between: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        if between is not None:
            x = between(x)
        return x + self.ls2(self.mlp(self.norm2(x)))


class TimmViT(nn.Module):
    """See the module's docstring; with `prefix` tokens the first is the class token, the others are
    registers."""

    def __init__(self, sizes: ViTSizes) -> None:
        super().__init__()
        self.sizes = sizes
        width = sizes.width
        self.patch_embed = PatchEmbed(sizes)
        # Of patches alone: tokens of the prefix have no place in a picture.
        self.pos_embed = nn.Parameter(torch.randn(1, sizes.tokens, width) * 0.02)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if sizes.prefix else None
        registers = sizes.prefix - 1
        self.reg_token = nn.Parameter(torch.zeros(1, registers, width)) if registers > 0 else None
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth - 1))

    def forward(self, pixels: Tensor, between: Between | None = None) -> Tensor:
        """Normalised pixels (b, 3, side, side) → what each patch became, (b, n, d). `between` is
        called in every block between attention and MLP, with all tokens, the prefix among them."""
        x = self.patch_embed(pixels) + self.pos_embed
        before = [each for each in (self.cls_token, self.reg_token) if each is not None]
        if before:
            x = torch.cat([*(each.expand(len(x), -1, -1) for each in before), x], 1)
        for index, block in enumerate(self.blocks):
            x = block(x, None if between is None else partial(between, index))
        return x[:, self.sizes.prefix :]
