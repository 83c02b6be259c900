"""Muon in single precision, against torch's, which is in bfloat16, and against its definition."""

import pytest
import torch
from torch import Tensor, nn

from armlet.training.muon import SinglePrecisionMuon, muon_for, orthogonal

GROUP = torch.optim.Muon([nn.Parameter(torch.zeros(2, 2))]).param_groups[0]


def stepped(
    kind: type[torch.optim.Muon], start: Tensor, gradients: list[Tensor], *, nesterov: bool
) -> list[Tensor]:
    """A matrix after each of these steps."""
    matrix = nn.Parameter(start.clone())
    muon = kind(
        [matrix], lr=0.01, weight_decay=0.1, nesterov=nesterov, adjust_lr_fn="match_rms_adamw"
    )
    found = []
    for gradient in gradients:
        matrix.grad = gradient.clone()
        muon.step()
        found.append(matrix.detach().clone())
    return found


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32), (1, 16)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_it_steps_as_torchs_does_but_for_its_rounding(
    shape: tuple[int, int], nesterov: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=chance)
    gradients = list(torch.randn(5, *shape, generator=chance))
    ours = stepped(SinglePrecisionMuon, start, gradients, nesterov=nesterov)
    rounded = stepped(torch.optim.Muon, start, gradients, nesterov=nesterov)
    with monkeypatch.context() as patched:
        patched.setattr(Tensor, "bfloat16", lambda tensor: tensor.clone())
        exact = stepped(torch.optim.Muon, start, gradients, nesterov=nesterov)
    for mine, theirs, rough in zip(ours, exact, rounded, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
        # bfloat16 has three decimal digits, and is rounded to fifteen times a step.
        assert 0 < (mine - rough).norm() < 0.02 * (rough - start).norm()


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_an_update_keeps_its_singular_vectors_and_its_values_are_near_1(
    shape: tuple[int, int],
) -> None:
    update = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, values, right = torch.linalg.svd(update, full_matrices=False)
    # The iteration is an odd polynomial of the singular values, and leaves the vectors alone.
    a, b, c = GROUP["ns_coefficients"]
    scaled = values / values.norm()
    for _ in range(GROUP["ns_steps"]):
        scaled = a * scaled + b * scaled**3 + c * scaled**5
    found = orthogonal(update, GROUP)
    torch.testing.assert_close(found, left @ torch.diag(scaled) @ right, atol=2e-4, rtol=0)
    assert ((torch.linalg.svdvals(found) - 1).abs() < 0.5).all()


def test_a_matrix_without_a_gradient_stays_and_a_gradient_of_zeros_only_decays() -> None:
    left_out = nn.Parameter(torch.ones(3, 4))
    still = nn.Parameter(torch.ones(3, 4))
    still.grad = torch.zeros(3, 4)
    SinglePrecisionMuon(
        [left_out, still], lr=0.5, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    ).step()
    assert torch.equal(left_out, torch.ones(3, 4))
    torch.testing.assert_close(still.detach(), torch.full((3, 4), 0.95))


def test_its_state_is_torchs() -> None:
    """A run goes on where the other processor stopped."""
    gradient = torch.randn(6, 5, generator=torch.Generator().manual_seed(2))
    states = []
    for kind in (SinglePrecisionMuon, torch.optim.Muon):
        matrix = nn.Parameter(torch.zeros(6, 5))
        matrix.grad = gradient
        muon = kind([matrix], adjust_lr_fn="match_rms_adamw")
        muon.step()
        states.append(muon.state_dict())
    ours, theirs = states
    assert ours["state"].keys() == theirs["state"].keys()
    assert torch.equal(ours["state"][0]["momentum_buffer"], theirs["state"][0]["momentum_buffer"])
    assert ours["param_groups"][0].keys() == theirs["param_groups"][0].keys()


def test_which_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, kind in ((True, torch.optim.Muon), (False, SinglePrecisionMuon)):
        monkeypatch.setattr("armlet.training.muon.multiplies_bf16", lambda device, has=has: has)
        assert muon_for("cpu") is kind
