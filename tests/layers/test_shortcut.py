"""Long steps along a flow against flows whose end is known: a Gaussian's, which is linear, and a mixture
of two, whose flow carries noise to the quantiles of the mixture."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from armlet.layers import heads
from armlet.layers.heads import FlowHead
from armlet.layers.shortcut import FINEST, by_halves, check_steps, draw_spans, told

WIDTH, CHUNK, DIMS = 8, 3, 2
MEAN, DEVIATION = 0.7, 0.2  # of the Gaussian
MODES, NARROW = (-0.8, 0.8), 0.1  # of the mixture, each with this deviation


def spread(t: Tensor) -> Tensor:
    """Of x at t on the way from N(0, 1) to N(MEAN, DEVIATION²)."""
    return ((1 - t) ** 2 + (t * DEVIATION) ** 2).sqrt()


def gaussian(x: Tensor, t: Tensor, span: Tensor) -> Tensor:
    """The mean velocity over `span` of that flow: x(t) = t · MEAN + spread(t) · x(0). A span that is
    told as 0 is one of the shortest."""
    t = t[:, None, None]
    span = span[:, None, None].clamp(min=1 / FINEST)
    end = (t + span) * MEAN + spread(t + span) / spread(t) * (x - t * MEAN)
    return (end - x) / span


def mixture(x: Tensor, t: Tensor, span: Tensor | None = None) -> Tensor:
    """The velocity to two narrow modes, each as likely: E[x(1) − x(0) | x(t)]."""
    t = t[:, None, None]
    variance = (1 - t) ** 2 + (t * NARROW) ** 2
    likely, velocities = [], []
    for mode in MODES:
        likely.append(-((x - t * mode) ** 2) / (2 * variance))
        slope = (t * NARROW**2 - (1 - t)) / variance
        velocities.append(mode + slope * (x - t * mode))
    shares = torch.stack(likely).softmax(0)
    return (shares * torch.stack(velocities)).sum(0)


def halving(velocity: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The mean velocity that is made of the flow's own by halves alone."""

    def mean_velocity(x: Tensor, t: Tensor, span: Tensor) -> Tensor:
        if not span.any():
            return velocity(x, t)
        return by_halves(mean_velocity, x, t, span)

    return mean_velocity


@pytest.mark.parametrize("span", [1.0, 0.5, 0.25])
def test_two_halves_of_a_known_flow_are_the_whole(span: float) -> None:
    x, at = torch.randn(9, CHUNK, DIMS).double(), torch.full((9,), 1 - span).double()
    spans = torch.full((9,), span).double()
    torch.testing.assert_close(by_halves(gaussian, x, at, spans), gaussian(x, at, spans))
    # From the noise to the end in one: MEAN + DEVIATION · noise, whatever lies between.
    if span == 1.0:
        torch.testing.assert_close(x + gaussian(x, at, spans), MEAN + DEVIATION * x)


def test_halves_of_halves_are_as_many_euler_steps_and_keep_both_modes() -> None:
    noise = torch.linspace(-2, 2, 400).double().view(-1, 1, 1)
    start, whole = torch.zeros(400).double(), torch.ones(400).double()
    end = noise + halving(mixture)(noise, start, whole)
    stepwise = noise
    for step in range(FINEST):
        stepwise = stepwise + mixture(stepwise, start + step / FINEST) / FINEST
    torch.testing.assert_close(end, stepwise)
    # The flow of a line keeps the order of its points, so each ends at the quantile of its rank.
    rank = torch.special.ndtr(noise.flatten())
    upper = rank >= 0.5
    within = torch.special.ndtri(2 * rank - upper.double()).clamp(-4, 4)
    quantile = torch.where(upper, MODES[1], MODES[0]) + NARROW * within
    assert float((end.flatten() - quantile).abs().mean()) < 0.1
    # One step of the flow's own velocity ends at the mean of all, which is neither mode.
    once = noise + mixture(noise, start)
    assert float(once.abs().max()) < 1e-9


def test_spans_end_by_the_end_and_are_told_as_they_were_learnt() -> None:
    torch.manual_seed(0)
    begins, spans = draw_spans(torch.zeros(6000, CHUNK, DIMS))
    assert float((begins + spans).max()) <= 1
    assert torch.equal(begins / spans, (begins / spans).round())
    for span in (1.0, 0.5, 0.25):
        of_it = begins[spans == span]
        assert len(of_it) / 6000 == pytest.approx(1 / 3, abs=0.03)
        assert len(of_it.unique()) == round(1 / span)
    asked = torch.tensor([1.0, 0.5, 0.25, 0.125, 0.1])
    assert told(asked).tolist() == [1.0, 0.5, 0.25, 0.0, 0.0]
    for steps in (1, 2, 4, 8, 10):
        check_steps(steps)
    for steps in (0, 3, 5, 7):
        with pytest.raises(
            ValueError, match=f"steps is {steps}, and a head with `shortcut` learns"
        ):
            check_steps(steps)


def head(*, steps: int = 1, shortcut: bool = True) -> FlowHead:
    torch.manual_seed(0)
    return FlowHead(WIDTH, CHUNK, DIMS, hidden=32, steps=steps, shortcut=shortcut).eval()


@torch.no_grad()
def test_a_teachers_weights_answer_as_they_did_and_a_step_hears_how_long_it_is() -> None:
    teacher, student = head(steps=10, shortcut=False), head(steps=10)
    for block in teacher.blocks:
        torch.nn.init.normal_(block.modulation.weight, std=0.2)
    student.load_state_dict(teacher.weights_for(student))
    condition = torch.randn(5, WIDTH)
    assert torch.equal(student(condition), teacher(condition))
    torch.nn.init.normal_(student.span.weight)
    noisy, t = torch.randn(5, CHUNK, DIMS), torch.zeros(5)
    heard = {}
    for steps in (1, 4, 10):
        student.steps = steps
        heard[steps] = student.velocity(noisy, t, condition)
    for steps, span in ((1, 1.0), (4, 0.25), (10, 0.0)):
        spans = torch.full((5,), span)
        assert torch.equal(heard[steps], student.velocity(noisy, t, condition, None, spans))
    assert not torch.allclose(heard[1], heard[4], atol=1e-3)


def test_the_loss_has_nothing_to_teach_the_true_flow_and_long_steps_learn_from_short(
    monkeypatch,
) -> None:
    flow, asked = head(), []
    actions, condition = torch.randn(4000, CHUNK, DIMS), torch.zeros(4000, WIDTH)
    valid = torch.ones(4000, CHUNK)

    def straight(
        noisy: Tensor, t: Tensor, condition: Tensor, valid: Tensor, span: Tensor
    ) -> Tensor:
        asked.append((torch.is_grad_enabled(), span))
        return (actions - noisy) / (1 - t[:, None, None])

    monkeypatch.setattr(flow, "velocity", straight)
    # In single precision, a velocity near t = 1 is divided by next to nothing.
    assert float(flow.loss(condition, actions, valid).median()) < 1e-8
    assert [grad for grad, _ in asked] == [False, False, True], "short steps are never taught"

    def wrong(*told: Tensor) -> Tensor:
        return straight(*told) + 2 * (told[-1] > 0)[:, None, None]

    monkeypatch.setattr(flow, "velocity", wrong)
    quarter = torch.full((4000,), 0.25)
    monkeypatch.setattr(heads, "draw_spans", lambda like: (torch.zeros(4000), quarter))
    error = flow.loss(condition, actions, valid)
    off = error > 2
    torch.testing.assert_close(error[off], torch.full_like(error[off], 4.0), rtol=1e-2, atol=1e-2)
    assert float(off.float().mean()) == pytest.approx(heads.BOOTSTRAPPED, abs=0.03)
    valid[:, 1:] = 0
    assert math.isclose(float(flow.loss(condition, actions, valid).max()), 4.0, rel_tol=1e-2)
