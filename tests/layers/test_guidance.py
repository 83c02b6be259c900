"""Guided denoising (arXiv 2506.07339) against flows whose guided end can be computed by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor

from armlet.layers.guidance import STRONGEST, Guide, guided_flow, strength
from armlet.robot.chunks import soft_mask

CHUNK = 8


def test_the_strength_is_that_of_the_paper() -> None:
    """Equations 3 and 4 as they stand there, (1 − τ) / (τ · r²) with r² = (1 − τ)² / (τ² + (1 − τ)²),
    clipped."""
    for steps in (1, 4, 5, 10, 50):
        for step in range(steps):
            tau = step / steps
            expected = STRONGEST
            if tau:
                squared = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
                expected = min(STRONGEST, (1 - tau) / (tau * squared))
            # With fewer steps than the paper's five, no step goes further than the whole way.
            assert strength(tau, steps) == pytest.approx(min(expected, steps))


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 10])
def test_where_the_flow_is_the_same_everywhere_each_step_takes_its_part_of_the_error(
    steps: int,
) -> None:
    """v = c: where x would end moves with x, ∂Â/∂x = 1, and of Y − Â a step leaves
    1 − w W / steps."""
    noise = torch.randn(2, CHUNK, 3, dtype=torch.float64)
    constant = torch.randn(2, CHUNK, 3, dtype=torch.float64)
    target = torch.randn(2, CHUNK, 3, dtype=torch.float64)
    weights = torch.from_numpy(soft_mask(2, 6, CHUNK))
    found = guided_flow(lambda x, time: constant, noise + 0, steps, Guide(target, weights))
    left = torch.ones(CHUNK, dtype=torch.float64)
    for step in range(steps):
        left = left * (1 - weights * strength(step / steps, steps) / steps)
    expected = target + left[:, None] * (noise + constant - target)
    torch.testing.assert_close(found, expected)
    # In the paper's number of steps, and in fewer, the first takes all of what is frozen.
    if steps <= STRONGEST:
        torch.testing.assert_close(found[:, :2], target[:, :2])
    torch.testing.assert_close(found[:, 6:], (noise + constant)[:, 6:])  # beyond, nothing is pulled


def test_a_linear_flow_is_guided_through_its_own_derivative() -> None:
    """v(x, τ) = M x + τ b over the whole chunk, so that a step's pull reaches the others: numpy, with
    the derivative written out."""
    rng = np.random.default_rng(0)
    size = CHUNK * 2
    matrix = rng.normal(size=(size, size)) / size
    bias = rng.normal(size=size)
    noise = rng.normal(size=size)
    target = rng.normal(size=(CHUNK, 2))
    weights = soft_mask(2, 6, CHUNK)
    x = noise.copy()
    every = np.repeat(weights, 2)
    for step in range(5):
        tau = step / 5
        velocity = matrix @ x + tau * bias
        end = x + (1 - tau) * velocity
        jacobian = np.eye(size) + (1 - tau) * matrix  # ∂Â/∂x
        pull = ((target.ravel() - end) * every) @ jacobian
        x = x + (velocity + strength(tau, 5) * pull) / 5

    def flow(noisy: Tensor, time: float) -> Tensor:
        moved = noisy.flatten(1) @ torch.from_numpy(matrix).T + time * torch.from_numpy(bias)
        return moved.unflatten(1, (CHUNK, 2))

    start = torch.from_numpy(noise).view(1, CHUNK, 2)
    guide = Guide(torch.from_numpy(target)[None], torch.from_numpy(weights))
    with torch.no_grad():  # as where a policy decides
        found = guided_flow(flow, start, 5, guide)
    assert found.numpy().ravel() == pytest.approx(x)
    assert not found.requires_grad


def test_without_weight_nothing_is_guided_and_padding_is_never() -> None:
    noise = torch.randn(1, CHUNK, 5)

    def flow(noisy: Tensor, time: float) -> Tensor:
        return noisy.tanh() * (1 + time)

    x = noise
    for step in range(4):
        x = x + flow(x, step / 4) / 4
    target = torch.full((1, CHUNK, 2), 9.0)  # of five numbers the robot has two
    none = guided_flow(flow, noise, 4, Guide(target, torch.zeros(CHUNK)))
    assert torch.equal(none, x)
    some = guided_flow(flow, noise, 4, Guide(target, torch.ones(CHUNK)))
    assert torch.equal(some[..., 2:], x[..., 2:])
    assert (some[..., :2] - x[..., :2]).abs().min() > 0.1
