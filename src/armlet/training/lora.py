"""Low-rank additions to linear layers (LoRA, arXiv 2106.09685), for as long as a stage trains.

They are put in before the first step and added to the layers' own weights after the last, so
whatever comes then, another stage, a measurement, a file, meets the network as it was built. The
layers are peft's. Knows modules and the names of their layers; no policy.
"""

import fnmatch
import re
from typing import cast

import torch
from torch import nn

from armlet.recipe import LoRA

FACTORS = "lora_"  # how peft's own weights are named


def add_lora(network: nn.Module, lora: LoRA) -> frozenset[str]:
    """Puts low-rank additions, which begin at zero, on the linear layers that `lora.targets` name;
    returns the names of their factors. Raises ValueError for a pattern that matches no linear
    layer, or a network that has such additions of its own."""
    from peft import LoraConfig, inject_adapter_in_model  # slow to import, and seldom needed

    if any(FACTORS in name for name, _ in network.named_parameters()):
        raise ValueError(
            "the network has low-rank additions of its own (`lora_rank`); give the stage no `lora`, "
            "or the network `lora_rank` 0"
        )
    linear = _linear_layers(network)
    chosen: list[str] = []
    for pattern in lora.targets:
        found = fnmatch.filter(linear, pattern)
        if not found:
            some = ", ".join(linear[:4])
            raise ValueError(
                f"lora.targets={lora.targets}: {pattern!r} matches no linear layer; names look like "
                f"{some} …"
            )
        chosen += found
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # only divided by the rank
        lora_dropout=0.0,
        # One pattern of whole names: in a list each would also match the end of a longer name.
        target_modules="|".join(map(re.escape, sorted(set(chosen)))),
    )
    inject_adapter_in_model(config, network)
    return frozenset(name for name, _ in network.named_parameters() if FACTORS in name)


def _linear_layers(network: nn.Module) -> list[str]:
    """The names of the linear layers that run as such."""
    found = []
    for name, part in network.named_modules():
        parent = network.get_submodule(name.rpartition(".")[0])
        # torch's attention reads the matrix of its last layer and never calls that: what was added
        # there would be learnt by nobody.
        if isinstance(part, nn.Linear) and not isinstance(parent, nn.MultiheadAttention):
            found.append(name)
    return found


@torch.no_grad()
def merge_lora(network: nn.Module) -> None:
    """Adds what was learnt to the layers' own weights, in single precision, and puts these layers
    back in their places."""
    from peft.tuners.lora import Linear  # as above

    for name, layer in list(network.named_modules()):
        if not isinstance(layer, Linear):
            continue
        plain = cast(nn.Linear, layer.get_base_layer())
        added = layer.get_delta_weight("default")  # (out, in): B A · alpha / rank
        plain.weight.copy_(plain.weight.float() + added.float())
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, plain)
