"""A convolutional image encoder, pixels → a grid of tokens, a pointer into such tokens, and what
word vectors ask it to look for. They know no camera by name and no text."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvEncoder(nn.Module):
    """(b, 3, h, w) in [0, 1] → (b, n, width), one token per `stride`² pixels, positions included.

    `size` is the side of the square image; it must be a multiple of `stride`, which is 8, 12 or 16.
    What is looked for modulates the features (FiLM, arXiv 1709.07871, as in RT-1): `words` (b,
    width) scales and shifts each channel of the last map, so that "red" can single out what is red
    before the backbone begins.
    """

    def __init__(self, size: int, width: int, *, stride: int = 12, channels: int = 32) -> None:
        super().__init__()
        # Of the first convolution; each of the two others has a stride of 2.
        first = {8: 2, 12: 3, 16: 4}.get(stride)
        if first is None or size % stride:
            raise ValueError(
                f"pictures of {size} pixels a side in patches of {stride}: expected patches of 8, "
                "12 or 16 that divide the side; give `--pictures.fit letterbox --pictures.size` a "
                "multiple (192 is one of all three), or the network other `strides`"
            )
        self.net = nn.Sequential(
            nn.Conv2d(3, channels, 2 * first - 1, first, first - 1),
            nn.GELU(),
            nn.Conv2d(channels, 2 * channels, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(2 * channels, 4 * channels, 3, 2, 1),
        )
        self.film = nn.Linear(width, 8 * channels)
        # At first words change nothing.
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        self.leave = nn.Sequential(nn.GELU(), nn.Conv2d(4 * channels, width, 1))
        self.tokens = (size // stride) ** 2
        self.position = nn.Parameter(torch.randn(self.tokens, width) * 0.02)
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor, words: Tensor) -> Tensor:
        features = self.net((image - 0.5) * 2)  # (b, c, h', w')
        scale, shift = self.film(words)[:, :, None, None].chunk(2, 1)  # (b, c, 1, 1) each
        features = self.leave(features * (1 + scale) + shift)  # (b, width, h', w')
        return self.norm(features.flatten(2).transpose(1, 2)) + self.position


def on_grid(positions: Tensor, side: int) -> Tensor:
    """Learned positions (1, n, d) of a square grid, on a grid of another side where one is asked:
    (1, side², d)."""
    own = round(positions.shape[1] ** 0.5)
    if own == side:
        return positions
    picture = positions.transpose(1, 2).unflatten(-1, (own, own))  # (1, d, own, own)
    picture = F.interpolate(picture, (side, side), mode="bicubic", align_corners=False)
    return picture.flatten(2).transpose(1, 2)


class Pointer(nn.Module):
    """Where the thing meant is, from the tokens (b, n, width) of a picture alone: (b, size).

    A soft-argmax over tokens (Levine et al. 2016, arXiv 1504.00702, §4.1), each with a place of its
    own to learn. The query knows no words, so that tokens can be told apart only by what the words
    did to them: what it learns is to mark the thing meant.
    """

    def __init__(self, width: int, tokens: int, size: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(width))
        self.key = nn.Linear(width, width)
        self.place = nn.Parameter(torch.randn(tokens, size) * 0.1)
        self.offset = nn.Linear(width, size)

    def forward(self, tokens: Tensor) -> Tensor:
        # (b, n): how likely each token is to be the thing meant.
        heat = torch.softmax(self.key(tokens) @ self.query / tokens.shape[-1] ** 0.5, dim=1)
        # A token's place is where its patch is; the offset is where in the patch the thing lies.
        return (heat.unsqueeze(-1) * (self.place + self.offset(tokens))).sum(1)


class Pointers(nn.Module):
    """What several pointers say of the tokens (b, n, width) of a picture, side by side: (b, size),
    `size` / `count` from each."""

    def __init__(self, width: int, tokens: int, size: int, *, count: int) -> None:
        super().__init__()
        if size % count:
            raise ValueError(
                f"size {size} is not a multiple of {count}, the number of pointers that share it"
            )
        self.each = nn.ModuleList(Pointer(width, tokens, size // count) for _ in range(count))

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.cat([pointer(tokens) for pointer in self.each], -1)


def ordered_mean(words: Tensor, mask: Tensor, order: Tensor) -> Tensor:
    """Word vectors (b, n, d), real where `mask` (b, n), → their mean (b, d), each weighed by its
    place, `order` (≥ n, d), so that "a on b" is not "b on a"."""
    return word_mean(words * order[: words.shape[1]], mask)


def word_mean(words: Tensor, mask: Tensor) -> Tensor:
    """The mean (b, d) of the words (b, n, d) that are real."""
    real = mask.unsqueeze(-1).to(words.dtype)  # (b, n, 1)
    return (words * real).sum(1) / real.sum(1).clamp(min=1)
