"""Muon on processors without matrix products in bfloat16. Knows matrices; no network and no loss."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from armlet.machine import multiplies_bf16


def muon_for(device: str) -> type[torch.optim.Muon]:
    """torch's Muon, which makes updates orthogonal in bfloat16, where that is of use on a device
    (`cpu`, `cuda` …); else the same in single precision."""
    return torch.optim.Muon if multiplies_bf16(device) else SinglePrecisionMuon


class SinglePrecisionMuon(torch.optim.Muon):
    """torch's Muon, with its fields and its state, but for the precision in which an update is made
    orthogonal. Where bfloat16 is slow, that took 40 % of a student's training."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step. It has no closure: nothing here evaluates a loss twice."""
        assert closure is None
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                update = orthogonal(running_update(self.state[matrix], matrix, group), group)
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * _scale(matrix, group))


def running_update(state: dict[str, Any], matrix: nn.Parameter, group: Mapping[str, Any]) -> Tensor:
    """The gradient's running average, which is `state`'s; looked ahead where that is asked for
    (Nesterov)."""
    gradient = matrix.grad
    assert gradient is not None
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(gradient)
    average: Tensor = state["momentum_buffer"]
    average.lerp_(gradient, 1 - group["momentum"])
    return gradient.lerp(average, group["momentum"]) if group["nesterov"] else average


def orthogonal(update: Float[Tensor, "m n"], group: Mapping[str, Any]) -> Float[Tensor, "m n"]:
    """A matrix with the singular vectors of `update` and singular values near 1 (0.7 to 1.2 with
    torch's five iterations): Newton and Schulz's iteration with Jordan's coefficients (2024)."""
    a, b, c = group["ns_coefficients"]
    # The smaller square: of rows with rows.
    tall = update.shape[0] > update.shape[1]
    found = update.float().T if tall else update.float()
    # Of Frobenius norm 1, no singular value is above 1, where the iteration converges.
    found = found / found.norm().clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        squares = found @ found.T
        polynomial = torch.addmm(squares, squares, squares, beta=b, alpha=c)
        found = torch.addmm(found, polynomial, found, beta=a)
    return found.T if tall else found


def _scale(matrix: Tensor, group: Mapping[str, Any]) -> float:
    """Of the learning rate, so that a step is as large as AdamW's (Liu et al. 2025)."""
    assert group["adjust_lr_fn"] == "match_rms_adamw"
    return 0.2 * float(max(matrix.shape)) ** 0.5
