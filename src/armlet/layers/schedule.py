"""From noise to actions in steps: the arithmetic of denoising diffusion (DDPM, arXiv 2006.11239) and
of its deterministic shortcut (DDIM, arXiv 2010.02502), as the library diffusers computes them with
its usual settings (leading timesteps, the last step to no noise at all, fixed small variance).

Knows no network.
"""

import functools
import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from torch import Tensor

Kind = Literal["DDPM", "DDIM"]
Betas = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Prediction = Literal["epsilon", "sample"]
MOST_BETA = 0.999


@dataclass(frozen=True)
class Schedule:
    """`train_steps` levels of noise by a curve `betas`, from `start` to `end` where the curve has
    ends; `prediction`: what the network says, the noise or the actions; `clip`: how large a guessed
    action may be (None: any); `kind` and `steps`: how, and in how many, noise becomes actions."""

    train_steps: int
    betas: Betas
    start: float
    end: float
    prediction: Prediction
    clip: float | None
    kind: Kind
    steps: int

    def __post_init__(self) -> None:
        for name, known in (("betas", Betas), ("prediction", Prediction), ("kind", Kind)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f"{name} of the noise schedule is {getattr(self, name)!r}, expected "
                    f"{', '.join(get_args(known))}"
                )
        if not 1 <= self.steps <= self.train_steps:
            raise ValueError(
                f"{self.steps} denoising steps, expected 1 to {self.train_steps}, as many as it was "
                "trained with"
            )

    @property
    def timesteps(self) -> tuple[int, ...]:
        """The levels of noise that are passed through, from most to least."""
        ratio = self.train_steps // self.steps
        return tuple(ratio * index for index in reversed(range(self.steps)))

    @functools.cached_property
    def kept(self) -> np.ndarray:
        """(train_steps,) float32: how much of the actions' variance is left at each level."""
        # In numpy: a tensor that is first asked for at rest could not be trained through later.
        count = self.train_steps
        if self.betas == "linear":
            betas = np.linspace(self.start, self.end, count, dtype=np.float32)
        elif self.betas == "scaled_linear":
            betas = np.linspace(self.start**0.5, self.end**0.5, count, dtype=np.float32) ** 2
        else:
            found = []
            for index in range(count):
                ratio = _cosine((index + 1) / count) / _cosine(index / count)
                found.append(min(1 - ratio, MOST_BETA))
            betas = np.array(found, np.float32)
        return np.cumprod(1 - betas, dtype=np.float64).astype(np.float32)

    def noisy(self, actions: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """Actions (b, k, a) at the levels (b,) int64 of noise."""
        kept = levels.new_tensor(self.kept, dtype=actions.dtype)[levels].view(-1, 1, 1)
        return kept.sqrt() * actions + (1 - kept).sqrt() * noise

    def target(self, actions: Tensor, noise: Tensor) -> Tensor:
        """What the network should say."""
        return noise if self.prediction == "epsilon" else actions

    def step(self, said: Tensor, index: int, sample: Tensor, noise: Tensor | None) -> Tensor:
        """The sample after step number `index`, in which the network said `said` of it. `noise` is
        what DDPM adds; nobody adds any in the last step, nor does DDIM."""
        level = self.timesteps[index]
        one = np.float32(1)
        here = self.kept[level]
        there = self.kept[level - self.train_steps // self.steps] if level else one
        guess = said
        if self.prediction == "epsilon":
            guess = (sample - float(np.sqrt(one - here)) * said) / float(np.sqrt(here))
        blur = said
        if self.prediction == "sample":  # of the guess as it is, before it is clipped
            blur = (sample - float(np.sqrt(here)) * said) / float(np.sqrt(one - here))
        if self.clip is not None:
            guess = guess.clamp(-self.clip, self.clip)
        if self.kind == "DDIM":
            return float(np.sqrt(there)) * guess + float(np.sqrt(one - there)) * blur
        fresh = one - here / there  # the noise that came with this level
        of_guess = np.sqrt(there) * fresh / (one - here)
        of_sample = np.sqrt(here / there) * (one - there) / (one - here)
        mean = float(of_guess) * guess + float(of_sample) * sample
        if level == 0 or noise is None:
            return mean
        variance = max((one - there) / (one - here) * fresh, np.float32(1e-20))
        return mean + float(np.sqrt(variance)) * noise


def _cosine(share: float) -> float:
    return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2
