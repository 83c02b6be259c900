"""The flow head against straight lines: with the true velocity the loss is nothing and a few Euler
steps arrive exactly."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from armlet.layers.heads import FlowHead

SAMPLES, CHUNK, DIMS, WIDTH = 64, 3, 2, 8


def head(steps: int = 4) -> FlowHead:
    torch.manual_seed(0)
    return FlowHead(WIDTH, CHUNK, DIMS, hidden=32, steps=steps).eval()


def towards(actions: Tensor, times: list[Tensor]) -> Callable[..., Tensor]:
    """The velocity of a point that is at `noisy` at time t and goes straight to `actions`, where it
    is at time 1."""

    def velocity(
        noisy: Tensor, t: Tensor, condition: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        times.append(t)
        return (actions - noisy) / (1 - t[:, None, None])

    return velocity


def test_the_loss_is_the_distance_to_the_straight_lines_velocity(monkeypatch) -> None:
    flow, times = head(), []
    actions, condition = torch.randn(SAMPLES, CHUNK, DIMS), torch.randn(SAMPLES, WIDTH)
    valid = torch.ones(SAMPLES, CHUNK)
    monkeypatch.setattr(flow, "velocity", towards(actions, times))
    assert float(flow.loss(condition, actions, valid).max()) < 1e-6
    (t,) = times
    assert t.min() >= 0 and t.max() < 1 and float(t.std()) == pytest.approx(12**-0.5, rel=0.15), (
        "uniform, each sample's own"
    )
    monkeypatch.setattr(
        flow,
        "velocity",
        lambda noisy, t, condition, valid: towards(actions, [])(noisy, t, condition) + 2,
    )
    torch.testing.assert_close(
        flow.loss(condition, actions, valid), torch.full((SAMPLES,), 4.0), rtol=1e-3, atol=1e-3
    )
    valid[:, 1:] = 0
    spoiled = actions.clone()
    spoiled[:, 1:] = 1e3
    torch.testing.assert_close(
        flow.loss(condition, spoiled, valid), torch.full((SAMPLES,), 4.0), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_euler_steps_go_from_the_noise_at_time_0_to_the_actions_at_time_1(
    monkeypatch, steps: int
) -> None:
    flow, times = head(steps), []
    actions = torch.randn(5, CHUNK, DIMS)
    monkeypatch.setattr(flow, "velocity", towards(actions, times))
    torch.testing.assert_close(flow(torch.zeros(5, WIDTH)), actions, rtol=1e-4, atol=1e-4)
    assert [float(t[0]) for t in times] == pytest.approx([step / steps for step in range(steps)])
    monkeypatch.setattr(flow, "velocity", lambda noisy, t, condition: torch.full_like(noisy, 0.5))
    torch.testing.assert_close(flow(torch.zeros(5, WIDTH)), flow.noise.expand(5, -1, -1) + 0.5)


@torch.no_grad()
def test_the_velocity_hears_condition_and_time_and_a_decision_repeats() -> None:
    flow = head()
    for block in flow.blocks:
        torch.nn.init.normal_(block.modulation.weight, std=0.2)  # which begin at nothing
    condition = torch.randn(2, WIDTH)
    first = flow(condition)
    torch.rand(3)
    assert torch.equal(first, flow(condition))
    assert not torch.allclose(first[0], first[1], atol=1e-3)
    noisy = flow.noise.expand(2, -1, -1)
    early, late = (flow.velocity(noisy, torch.full((2,), t), condition) for t in (0.1, 0.9))
    assert not torch.allclose(early, late, atol=1e-3)
