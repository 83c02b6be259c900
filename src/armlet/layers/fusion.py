"""Where pictures meet words: cross-attention from one to the other, pooling, a goal code over
learned sub-tasks, FiLM.

Parts of the two-tower network of `aed` (recipes.md §2), whose public account names them and gives
no equations: what stands here is our reading. The file knows vectors and masks; it knows no tower,
no camera, no action and no loss.

Beside the axes of `types`: `q` what asks (vision tokens, and whatever else is not a word), `g`
width of the goal code, `p` prototypes, `h` attention heads (no images here). Text masks (b, 1, 1,
t) are True on words and False on padding.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from armlet.layers.vision import ordered_mean


class CrossAttention(nn.Module):
    """Multi-head attention in which `seen` asks and `words` answer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"a width of {width} does not divide into {heads} heads; choose heads that divide "
                "it"
            )
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        seen: Float[Tensor, "b q d"],
        words: Float[Tensor, "b t d"],
        mask: Bool[Tensor, "b 1 1 t"],
    ) -> Float[Tensor, "b q d"]:
        # Plain products: among a few words they are faster than a fused kernel, on the way back
        # several times.
        answer = self._heat(seen, words, mask).to(words.dtype) @ self._split(self.value(words))
        return self.out(rearrange(answer, "b h q c -> b q (h c)"))

    def weights(
        self,
        seen: Float[Tensor, "b q d"],
        words: Float[Tensor, "b t d"],
        mask: Bool[Tensor, "b 1 1 t"],
    ) -> Float[Tensor, "b q t"]:
        """Who listens to which word, the mean of all heads: each row sums to 1, and padding has
        exactly 0."""
        return self._heat(seen, words, mask).mean(1)

    def _heat(self, seen: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """(b, h, q, t), in single precision: these maps are compared between networks."""
        query = self._split(self.query(seen))  # (b, h, q, c)
        key = self._split(self.key(words))  # (b, h, t, c)
        score = (query @ key.transpose(-1, -2)).float() / query.shape[-1] ** 0.5
        # -inf, so that padding has exactly 0; a text without a single word would give NaN.
        return score.masked_fill(~mask, -torch.inf).softmax(-1)

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h c) -> b h n c", h=self.heads)


class FusionLayer(nn.Module):
    """Cross-attention and an MLP, each on normalised input and added to what was there (pre-LN).
    Words pass unchanged."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_seen = nn.LayerNorm(width)
        self.norm_words = nn.LayerNorm(width)
        self.norm_mlp = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(
        self,
        seen: Float[Tensor, "b q d"],
        words: Float[Tensor, "b t d"],
        mask: Bool[Tensor, "b 1 1 t"],
    ) -> Float[Tensor, "b q d"]:
        seen = seen + self.attention(self.norm_seen(seen), self.norm_words(words), mask)
        return seen + self.mlp(self.norm_mlp(seen))

    def weights(
        self,
        seen: Float[Tensor, "b q d"],
        words: Float[Tensor, "b t d"],
        mask: Bool[Tensor, "b 1 1 t"],
    ) -> Float[Tensor, "b q t"]:
        """The attention map that `forward` would use on the same input, the mean of all heads."""
        return self.attention.weights(self.norm_seen(seen), self.norm_words(words), mask)


class AttentionPool(nn.Module):
    """Tokens (b, n, d), all of them real → one vector (b, d): each head asks a learned question of
    all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.question = nn.Parameter(torch.randn(heads, width // heads))
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        tokens = self.norm(tokens)
        key = rearrange(self.key(tokens), "b n (h c) -> b h n c", h=self.heads)
        value = rearrange(self.value(tokens), "b n (h c) -> b h n c", h=self.heads)
        heat = (key @ self.question[..., None] / key.shape[-1] ** 0.5).softmax(2)  # (b, h, n, 1)
        return self.out((heat * value).sum(2).flatten(1))  # (b, h, c) → (b, d)


class Goal(NamedTuple):
    """`code` (b, g), what is to be done; `assignment` (b, p), which sub-tasks that is like:
    positive, summing to 1."""

    code: Tensor
    assignment: Tensor


class GoalCode(nn.Module):
    """The task abstraction: features (b, x) → a goal code over learned sub-task prototypes.

        c    = LayerNorm(W x)
        α    = softmax(cos(c, prototypes) / temperature)
        code = c + Σ_p α_p prototype_p

    The sum keeps what no prototype stands for, so that a code is never worse than the features it
    was made from.
    """

    def __init__(
        self, inputs: int, goal: int = 128, prototypes: int = 16, *, temperature: float = 0.1
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.enter = nn.Linear(inputs, goal)
        self.norm = nn.LayerNorm(goal)
        self.prototypes = nn.Parameter(torch.randn(prototypes, goal))

    def forward(self, features: Float[Tensor, "b x"]) -> Goal:
        code = self.norm(self.enter(features))
        likeness = F.normalize(code, dim=-1) @ F.normalize(self.prototypes, dim=-1).T  # (b, p)
        assignment = (likeness / self.temperature).softmax(-1)
        return Goal(code + assignment @ self.prototypes, assignment)


class FiLM(nn.Module):
    """Scales and shifts each channel of `x` by what is meant (arXiv 1709.07871). At first it
    changes nothing."""

    def __init__(self, meaning: int, width: int) -> None:
        super().__init__()
        self.film = nn.Linear(meaning, 2 * width)
        # Scale 0 and shift 0: x passes unchanged until training finds a use for the meaning.
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(
        self, x: Float[Tensor, "b *n d"], meaning: Float[Tensor, "b g"]
    ) -> Float[Tensor, "b *n d"]:
        # (b, 2 d) → (b, 1, …, 2 d), with as many axes as x, then halved.
        scale, shift = self.film(meaning).view(len(x), *(1,) * (x.ndim - 2), -1).chunk(2, -1)
        return x * (1 + scale) + shift


class Question(nn.Module):
    """Embedded words (b, t, d), real where `real` (b, t) → one vector (b, d) that says what to look
    for.

    Each place in a sentence has factors of its own, so that "a on b" is not "b on a" before any
    network has read it.
    """

    def __init__(self, width: int, longest: int) -> None:
        super().__init__()
        # Around 1, so that a word keeps its meaning; spread, so that places differ from the start.
        self.order = nn.Parameter(1 + 0.5 * torch.randn(longest, width))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())

    def forward(
        self, words: Float[Tensor, "b t d"], real: Bool[Tensor, "b t"]
    ) -> Float[Tensor, "b d"]:
        return self.leave(ordered_mean(words, real, self.order))
