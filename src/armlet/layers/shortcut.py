"""Long steps along a flow, as shortcut models take them (Frans, Hafner, Levine and Abbeel, arXiv
2410.12557).

A flow carries x from noise at t = 0 to actions at t = 1 with a velocity v(x, t), and Euler's method
needs many steps where its paths bend. A shortcut model is told as well how long a step is to be, and
says the mean velocity s(x, t, d) over it, so that one step arrives where many would:

    x(t + d) = x(t) + d · s(x, t, d),    s(x, t, 0) = v(x, t)
    s(x, t, 2d) = (s(x, t, d) + s(x + d · s(x, t, d), t + d, d)) / 2        its eq. 4

The second line teaches long steps by shorter ones, for any noise, without a teacher. Spans are 1, 1/2
and 1/4; 1/8, the shortest, is told as 0, as the paper has it of its 1/128: there the velocity is
the flow's own. Knows no network.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from armlet.layers.draws import by_sample, uniform

FINEST = 8  # steps of which each is as good as infinitely short; a power of 2
# x (b, k, a), t (b,), d (b,) as it is told → (b, k, a)
MeanVelocity = Callable[[Tensor, Tensor, Tensor], Tensor]


def check_steps(steps: int) -> None:
    """Raises ValueError for a number of steps whose length nobody was ever told."""
    if steps < 1 or (steps < FINEST and FINEST % steps):
        known = [str(count) for count in range(1, FINEST) if not FINEST % count]
        raise ValueError(
            f"steps is {steps}, and a head with `shortcut` learns {', '.join(known)}, and from "
            f"{FINEST} on any number; give one of these"
        )


def told(span: Tensor) -> Tensor:
    """How long steps of these spans are said to be: the shortest, and shorter ones, 0."""
    return torch.where(span > 1 / FINEST, span, torch.zeros_like(span))


def draw_spans(like: Tensor) -> tuple[Tensor, Tensor]:
    """For each sample of `like` (b, …) where a long step begins and how long it is, (b,) and (b,): 1,
    1/2 or 1/4, each as likely, from a multiple of itself on, so that it ends by t = 1."""
    halvings = FINEST.bit_length() - 1

    def choose(count: int) -> Tensor:
        return torch.randint(0, halvings, (count,), device=like.device)

    span = 0.5 ** by_sample(choose, len(like)).to(like.dtype)
    place = (uniform(span) / span).floor()  # 0 … 1/span − 1
    return place * span, span


def by_halves(velocity: MeanVelocity, x: Tensor, t: Tensor, span: Tensor) -> Tensor:
    """(b, k, a): the mean velocity from x (b, k, a) at t (b,) over `span` (b,), in two steps of half
    of it: what one step of `span` is to say."""
    half = span / 2
    first = velocity(x, t, told(half))
    middle = x + half[:, None, None] * first
    second = velocity(middle, t + half, told(half))
    return (first + second) / 2
