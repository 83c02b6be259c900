"""The optimisers of a stage and its step sizes. Knows parameters by name; no network and no loss."""

import math

import torch
from torch import Tensor, nn

from armlet.machine import multiplies_bf16
from armlet.recipe import Stage
from armlet.training.lora import FACTORS
from armlet.training.spread import is_shard


def make_optimisers(
    parameters: dict[str, nn.Parameter], stage: Stage
) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon for the backbone's matrices and AdamW for the rest (Jordan et al. 2024, with
    AdamW's step size)."""
    matrices = []
    rest = []
    for name, parameter in parameters.items():
        # Muon makes an update orthogonal, which means something for a map between hidden states;
        # embeddings, heads, gains and biases stay with AdamW, as Jordan et al. have it.
        # So do the factors of low-rank additions: neither is a map between hidden states.
        inside = parameter.ndim == 2 and ".layers." in name
        if stage.optimiser == "muon" and inside and not (stage.lora.rank and FACTORS in name):
            matrices.append(parameter)
        else:
            rest.append(parameter)
    step = stage.learning_rate
    decay = stage.weight_decay
    optimisers: list[torch.optim.Optimizer] = []
    if matrices:
        kind = muon(matrices[0].device)
        if is_shard(matrices[0]):
            from armlet.training.shards import ShardedMuon  # slow to import, and seldom needed

            kind = ShardedMuon
        # match_rms_adamw scales Muon's step to be as large as AdamW's: one learning rate for both.
        optimisers.append(
            kind(matrices, lr=step, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        )
    if rest:
        optimisers.append(
            torch.optim.AdamW(rest, lr=step, weight_decay=decay, betas=(0.9, 0.95), fused=True)
        )
    return optimisers


def muon(device: torch.device) -> type[torch.optim.Muon]:
    """The Muon for matrices on a device: torch's, or one in single precision for a processor that has
    no products in bf16."""
    return torch.optim.Muon if multiplies_bf16(device.type) else SingleMuon


class SingleMuon(torch.optim.Muon):
    """torch's Muon, whose iteration runs in single precision instead of bfloat16: finer, and on a
    processor without products in bf16 about twenty times as fast. Its state is the same. Of torch's
    ways to scale a step it has `match_rms_adamw`."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step. It has no closure: nothing here evaluates a loss twice."""
        assert closure is None
        for group in self.param_groups:
            assert group["adjust_lr_fn"] == "match_rms_adamw"
            for matrix in group["params"]:
                gradient = matrix.grad
                if gradient is None:
                    continue
                state = self.state[matrix]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(gradient)
                average = state["momentum_buffer"]
                average.lerp_(gradient, 1 - group["momentum"])
                update = gradient.lerp(average, group["momentum"]) if group["nesterov"] else average
                step = orthogonal(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                scale = 0.2 * math.sqrt(max(matrix.shape))
                matrix.add_(step.to(matrix.dtype), alpha=-group["lr"] * scale)


def orthogonal(
    update: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """(m, n): a matrix with the singular vectors of `update` and singular values near 1, by Newton and
    Schulz's iteration as Jordan et al. have it, in single precision."""
    first, second, third = coefficients
    tall = update.shape[0] > update.shape[1]
    found = update.float().T if tall else update.float()
    found = found / found.norm().clamp(min=eps)
    for _ in range(steps):
        gram = found @ found.T
        turned = torch.addmm(gram, gram, gram, beta=second, alpha=third)
        found = torch.addmm(found, turned, found, beta=first)
    return found.T if tall else found


def rate(stage: Stage, step: int) -> float:
    """The factor on the learning rate at a step: linear warm-up, then constant or a half cosine
    down to 2 %."""
    warm = min(1.0, (step + 1) / max(stage.warmup, 1))
    if stage.schedule == "constant":
        return warm
    return warm * max(0.02, 0.5 * (1 + math.cos(math.pi * step / max(stage.steps, 1))))
