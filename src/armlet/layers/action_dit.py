"""CogACT's action model: a diffusion transformer that carries noise to a chunk of actions, told by
one feature what to do (arXiv 2411.19650).

It is given the noisy actions of a training step of the diffusion (0 … 99), that step's number and
the feature, and says the noise in them (ε). Token 0 holds feature and step, tokens 1 … k the
actions. *Guidance* (Ho and Salimans, arXiv 2207.12598) asks it twice, with the feature and with a
learned one that stands for "no feature", and goes beyond the first: ε = ε₀ + s (ε₁ − ε₀). While it
learns, the feature of some samples is replaced by that one.

    schedule   squaredcos_cap_v2 (Nichol and Dhariwal, arXiv 2102.09672), 100 steps
    ddim       arXiv 2010.02502, η = 0: `steps` of these, evenly spaced; the network sees their
               numbers in training, not 0, 1, 2 …
    ddpm       arXiv 2006.11239, all 100, each but the last with noise of its own

x₀ is not clipped on the way. Sampling starts from fixed noise drawn from `seed`, so that a policy
answers the same observation the same way. Knows no file and no language model.
"""

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armlet.layers.action_head import ActionHead, masked_mean
from armlet.layers.draws import by_sample, normal_like

Sampler = Literal["ddim", "ddpm"]
TRAINING_STEPS = 100  # of the diffusion
FREQUENCY = 256  # numbers that a step's number becomes
PERIOD = 10_000  # longest wave of these, in radians
MIDDLE = 50  # the one step of a sampler that has one


def betas(steps: int = TRAINING_STEPS) -> np.ndarray:
    """(steps,) float64: how much noise each training step adds, from a squared cosine, never more
    than 0.999."""

    def kept(share: float) -> float:  # ᾱ after this share of all steps
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    found = []
    for step in range(steps):
        found.append(min(1 - kept((step + 1) / steps) / kept(step / steps), 0.999))
    return np.array(found)


def kept_signal(steps: int = TRAINING_STEPS) -> np.ndarray:
    """ᾱ (steps,) float64: the share of the signal's variance that is left after each step."""
    return np.cumprod(1 - betas(steps))


def spaced(count: int, steps: int = TRAINING_STEPS) -> tuple[int, ...]:
    """The numbers of the training steps that a sampler of `count` steps visits, ascending: from 0
    with the smallest stride that gives so many; where none does, evenly spread (the original
    refuses these); a single one is step 50. Raises ValueError where there are not so many."""
    if not 1 <= count <= steps:
        raise ValueError(f"{count} denoising steps: expected 1 to {steps}")
    if count == 1:
        return (MIDDLE * steps // TRAINING_STEPS,)
    for stride in range(1, steps):
        found = range(0, steps, stride)
        if len(found) == count:
            return tuple(found)
    return tuple(index * steps // count for index in range(count))


class _Attention(nn.Module):
    """Every token sees every other that is real."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, seen: Tensor | None) -> Tensor:
        """(b, n, d) → (b, n, d); `seen` (b, 1, 1, n) bool: who may be looked at; None: all."""
        # The three stand one behind the other, each with its heads side by side.
        split = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (b, n, 3, h, c)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each (b, h, n, c)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return self.proj(found.transpose(1, 2).flatten(2))


class _Perceptron(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        # By tanh, as DiT; the image towers beside it have the exact GELU.
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        # Without parameters, and so without names in the files.
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = _Perceptron(width)

    def forward(self, x: Tensor, seen: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm1(x), seen)
        return x + self.mlp(self.norm2(x))


class _Linear(nn.Module):
    """A linear map under the name that it has in the files: `x_embedder.linear`."""

    def __init__(self, wide: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(wide, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class _Told(_Linear):
    """The feature; `uncondition` stands for none, and goes through the same map."""

    def __init__(self, wide: int, out: int) -> None:
        super().__init__(wide, out)
        self.uncondition = nn.Parameter(torch.randn(1, wide) * 0.02)


class _Step(nn.Module):
    """A training step's number, by waves of many lengths: cosines, then sines."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        half = FREQUENCY // 2
        waves = torch.exp(-math.log(PERIOD) * torch.arange(half, dtype=torch.float32) / half)
        self.register_buffer("frequencies", waves, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(FREQUENCY, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, step: Tensor, dtype: torch.dtype) -> Tensor:
        """(b,) → (b, d)."""
        angles = step[:, None].float() * self.frequencies.float()  # (b, 128)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], -1).to(dtype))


class ActionDiT(nn.Module):
    """The network; names are those of the files. See the module's docstring."""

    def __init__(
        self, *, told: int, width: int, depth: int, heads: int, chunk: int, dims: int
    ) -> None:
        super().__init__()
        self.x_embedder = _Linear(dims, width)
        self.t_embedder = _Step(width)
        self.z_embedder = _Told(told, width)
        self.positional_embedding = nn.Parameter(torch.randn(chunk + 1, width) * width**-0.5)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.final_layer = _Linear(width, dims)

    def forward(
        self, noisy: Tensor, step: Tensor, told: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """(b, k, a), (b,), (b, d) → ε (b, k, a), in single precision. `valid` (b, k) bool: actions
        that are no padding; None: all."""
        dtype = self.positional_embedding.dtype
        first = self.t_embedder(step, dtype) + self.z_embedder(told.to(dtype))  # (b, d)
        x = torch.cat([first[:, None], self.x_embedder(noisy.to(dtype))], 1)  # (b, 1 + k, d)
        x = x + self.positional_embedding
        seen = None
        if valid is not None:
            seen = F.pad(valid, (1, 0), value=True)[:, None, None, :]  # token 0 is always real
        for block in self.blocks:
            x = block(x, seen)
        return self.final_layer(self.norm(x))[:, 1:].float()


class DiffusionHead(ActionHead):
    """See the module's docstring. `hidden`, `depth` and `heads` are those of a small network; CogACT's
    smallest has 384, 6 and 4. `steps` None: 10 of ddim, all 100 of ddpm. `guidance`: s; at 1 or
    below the network is asked once. `repeated` and `dropout` are the loss's: how many training
    steps are drawn a sample, and the share of samples that are told nothing."""

    noise: Tensor
    kept: Tensor

    def __init__(
        self,
        width: int,
        chunk: int,
        dims: int,
        *,
        hidden: int = 128,
        depth: int = 2,
        heads: int = 4,
        sampler: Sampler = "ddim",
        steps: int | None = None,
        guidance: float = 1.5,
        repeated: int = 8,
        dropout: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.chunk = chunk
        self.dims = dims
        self.sampler = sampler
        self.guidance = guidance
        self.repeated = repeated
        self.dropout = dropout
        self.visited = visited(sampler, steps)
        self.steps = len(self.visited)
        self.net = ActionDiT(
            told=width, width=hidden, depth=depth, heads=heads, chunk=chunk, dims=dims
        )
        self.table: list[float] = kept_signal().tolist()  # ᾱ, in double precision as it was made
        # The first row is where sampling starts; the others are what ddpm adds on its way.
        noise = torch.randn(
            TRAINING_STEPS, chunk, dims, generator=torch.Generator().manual_seed(seed)
        )
        # Not in the weights: a checkpoint has no noise, and `seed` is said where it is described.
        self.register_buffer("noise", noise, persistent=False)
        self.register_buffer("kept", torch.tensor(self.table), persistent=False)

    def epsilon(self, noisy: Tensor, step: int, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        """ε (b, k, a) by the feature, and by none where there is guidance."""
        steps = torch.full((len(noisy),), step, device=noisy.device)
        if self.guidance <= 1:
            return self.net(noisy, steps, condition), None
        none = self.net.z_embedder.uncondition.to(condition.dtype).expand(len(noisy), -1)
        both = self.net(
            torch.cat([noisy, noisy]), torch.cat([steps, steps]), torch.cat([condition, none])
        )
        told, untold = both.chunk(2)
        return told, untold

    def guided(self, noisy: Tensor, step: int, condition: Tensor) -> Tensor:
        """ε (b, k, a) that is followed."""
        told, untold = self.epsilon(noisy, step, condition)
        return told if untold is None else untold + self.guidance * (told - untold)

    def forward(self, condition: Tensor) -> Tensor:
        """(b, d) → (b, k, a) normalised, as sampled: neither clipped nor the gripper decided."""
        shape = (len(condition), self.chunk, self.dims)
        x = self.noise[0].expand(shape).to(torch.float32)
        for index, step in reversed(list(enumerate(self.visited))):
            epsilon = self.guided(x, step, condition)
            here = self.table[step]
            before = (
                self.table[self.visited[index - 1]] if index else 1.0
            )  # what is clean has all of it
            clean = (1 / here) ** 0.5 * x - (1 / here - 1) ** 0.5 * epsilon  # x₀
            if self.sampler == "ddim":
                x = before**0.5 * clean + (1 - before) ** 0.5 * epsilon
            else:
                x = self._posterior(clean, x, here, before, index)
        return x

    def _posterior(
        self, clean: Tensor, noisy: Tensor, here: float, before: float, index: int
    ) -> Tensor:
        """A draw from q(x before | x here, x₀), with noise of this step's own."""
        beta = 1 - here / before
        mean = beta * before**0.5 / (1 - here) * clean
        mean = mean + (1 - before) * (1 - beta) ** 0.5 / (1 - here) * noisy
        if not index:  # the last step adds no noise
            return mean
        deviation = (beta * (1 - before) / (1 - here)) ** 0.5
        return mean + deviation * self.noise[index].to(mean.dtype)

    def loss(self, condition: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        """Mean squared error of ε at `repeated` training steps a sample, each with noise of its
        own; while it trains, `dropout` of these are told nothing."""
        count = self.repeated
        # All samples, then all again: (r · b, …).
        clean = actions.float().repeat(count, 1, 1)
        told = condition.repeat(count, 1)
        real = valid.bool().repeat(count, 1)
        noise = normal_like(clean, times=count)

        def steps(samples: int) -> Tensor:
            return torch.randint(0, TRAINING_STEPS, (samples,), device=clean.device)

        step = by_sample(steps, len(clean), times=count)
        kept = self.kept[step][:, None, None]
        noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
        if self.training and self.dropout:

            def chances(samples: int) -> Tensor:
                return torch.rand(samples, device=told.device)

            untold = by_sample(chances, len(told), times=count) < self.dropout
            told = torch.where(
                untold[:, None], self.net.z_embedder.uncondition.to(told.dtype), told
            )
        # What stands past the end of an episode is no action, and nobody may look at it; where
        # nothing is valid all is looked at, since a softmax over nothing is NaN, and that sample's
        # loss is 0 anyway.
        seen = real | ~real.any(1, keepdim=True)
        error = self.net(noisy, step, told, seen) - noise
        error = masked_mean(error.square(), real.float())  # (r · b,)
        return error.unflatten(0, (count, -1)).mean(0)


def visited(sampler: Sampler, steps: int | None) -> tuple[int, ...]:
    """The training steps that a sampler visits, ascending. Raises ValueError where it has not as
    many."""
    if sampler == "ddim":
        return spaced(10 if steps is None else steps)
    if sampler != "ddpm":
        raise ValueError(f"sampler is {sampler!r}, expected ddim or ddpm")
    if steps not in (None, TRAINING_STEPS):
        raise ValueError(
            f"steps is {steps}, and ddpm takes all {TRAINING_STEPS}; leave it out, or take ddim"
        )
    return tuple(range(TRAINING_STEPS))
