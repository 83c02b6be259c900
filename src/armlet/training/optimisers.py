"""The optimisers of a stage and its step sizes. Knows parameters by name; no network and no loss."""

import math

import torch
from torch import nn

from armlet.recipe import Stage
from armlet.training.lora import FACTORS
from armlet.training.muon import muon_for
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
        kind = muon_for(matrices[0].device.type)
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


def rate(stage: Stage, step: int) -> float:
    """The factor on the learning rate at a step: linear warm-up, then constant or a half cosine
    down to 2 %."""
    warm = min(1.0, (step + 1) / max(stage.warmup, 1))
    if stage.schedule == "constant":
        return warm
    return warm * max(0.02, 0.5 * (1 + math.cos(math.pi * step / max(stage.steps, 1))))
