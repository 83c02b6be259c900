"""Guided denoising: a flow from noise to actions, drawn towards actions that are under way already.

Real-time chunking (arXiv 2506.07339): while a policy thinks, the robot carries out what is left of
the chunk before, so the new chunk must begin with those actions and go on from them. Its flow is
guided there at inference, by ΠGDM (Song et al., ICLR 2023), with no training of its own. With τ from
0 (noise) to 1 (actions), v the velocity and W the soft mask over the steps of the chunk:

    Â  = x + (1 − τ) v(x, τ)                              where x would end, going straight on
    v' = v + w(τ) · (Y − Â)ᵀ diag(W) ∂Â/∂x                eq. 2; Y: the actions under way
    w(τ) = min(β, (τ² + (1 − τ)²) / (τ (1 − τ)))          eq. 3 and 4

The paper has five steps and β = 5. A step of 1/n with a weight of more than n would move the end
beyond Y (where ∂Â/∂x is 1, each step leaves 1 − w/n of the distance), so β is here at most the number
of steps. Knows no policy, no unit and no robot.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

STRONGEST = 5.0  # β of the paper
Velocity = Callable[[Tensor, float], Tensor]  # x (b, k, A) at τ → (b, k, A), from noise to actions


@dataclass(frozen=True)
class Guide:
    """`target` (b, k, a): the normalised actions under way, anything where nothing is; `weights`
    (k,) in 0 … 1: how much each step counts (`robot.chunks.soft_mask`)."""

    target: Tensor
    weights: Tensor


def strength(time: float, steps: int) -> float:
    """w(τ) at `time`, in a flow of so many steps."""
    bound = min(STRONGEST, float(steps))
    if time == 0:  # the second of eq. 3's terms is infinite
        return bound
    left = 1 - time
    return min(bound, (time**2 + left**2) / (time * left))


def guided_flow(velocity: Velocity, noise: Tensor, steps: int, guide: Guide) -> Tensor:
    """Noise (b, k, A) carried to actions (b, k, A) in so many steps of Euler's method, guided. Of A
    numbers an action the first a are guided, and the others are the network's padding."""
    padding = noise.shape[-1] - guide.target.shape[-1]
    target = F.pad(guide.target.to(noise), (0, padding))
    weights = guide.weights.to(noise)[:, None].expand(guide.target.shape[1:])  # (k, a)
    weights = F.pad(weights, (0, padding))
    x = noise
    for step in range(steps):
        time = step / steps
        # Modules of the policy may be frozen or not: the gradient asked for is that of x alone.
        with torch.enable_grad():
            here = x.detach().requires_grad_()
            moved = velocity(here, time)
            end = here + (1 - time) * moved
            error = ((target - end) * weights).detach()
            (pull,) = torch.autograd.grad(end, here, error)  # errorᵀ ∂Â/∂x
        x = x + (moved.detach() + strength(time, steps) * pull) / steps
    return x
