"""Weights for a narrower flow head (`heads.FlowHead`), taken out of a wider one.

Of every set of numbers inside that a head's maps read and write (the tokens', the condition's, those
of the map of time, an MLP's, attention's heads) those are kept that its weights are largest for, in
their order. That needs no data. It is where training begins, not a head that answers as the wider one
did: what is left out was read as well. At full width nothing is left out, and all are the same to the bit.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

HEAD = 32  # numbers of an attention head
RATIO = 4  # an MLP is so many times as wide as the tokens
Weights = Mapping[str, Tensor]


def narrowed(weights: Weights, hidden: int, blocks: int) -> dict[str, Tensor]:
    """The weights of a head of this width and so many blocks, the first of the wider one. Raises
    ValueError where it has fewer of either."""
    there = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    wide = len(weights["enter.bias"])
    if hidden > wide or blocks > len(there):
        raise ValueError(
            f"a flow head with hidden {hidden} and {blocks} blocks cannot be taken out of one with "
            f"hidden {wide} and {len(there)}: give no more than these"
        )
    names = [f"blocks.{index}" for index in range(blocks)]
    tokens = _largest(_written(weights, names), hidden)
    condition = _largest(
        _rows(weights["condition.weight"]) + _rows(weights["time.2.weight"]), hidden
    )
    found = {
        "enter.weight": weights["enter.weight"][tokens],
        "enter.bias": weights["enter.bias"][tokens],
        "position": weights["position"][:, tokens],
        "leave.weight": weights["leave.weight"][:, tokens],
        "leave.bias": weights["leave.bias"],
        "condition.weight": weights["condition.weight"][condition],
        "condition.bias": weights["condition.bias"][condition],
        "noise": weights["noise"],
    }
    units = _largest(_rows(weights["time.0.weight"]) * _columns(weights["time.2.weight"]), hidden)
    _between(found, weights, "time", units, None, condition)
    if "span.weight" in weights:
        found["span.weight"] = weights["span.weight"][condition]
        found["span.bias"] = weights["span.bias"][condition]
    for name in names:
        _block(found, weights, name, tokens, condition)
    return {name: tensor.clone() for name, tensor in found.items()}


def _block(
    found: dict[str, Tensor], weights: Weights, name: str, tokens: Tensor, condition: Tensor
) -> None:
    """One block's weights, between these numbers of the tokens and of the condition."""
    wide = len(weights["enter.bias"])
    *_, values = weights[f"{name}.qkv.weight"].chunk(3)  # queries, keys, values
    out = weights[f"{name}.out.weight"]
    # By what a head hears and passes on; which of its numbers are largest would mix heads.
    passed = (_rows(values) * _columns(out)).unflatten(0, (-1, HEAD)).sum(1)  # one a head
    heads = _largest(passed, len(tokens) // HEAD)
    inside = (heads[:, None] * HEAD + torch.arange(HEAD)).flatten()
    rows = torch.cat([inside, wide + inside, 2 * wide + inside])  # queries, keys, values
    found[f"{name}.qkv.weight"] = weights[f"{name}.qkv.weight"][rows][:, tokens]
    found[f"{name}.qkv.bias"] = weights[f"{name}.qkv.bias"][rows]
    found[f"{name}.out.weight"] = out[tokens][:, inside]
    found[f"{name}.out.bias"] = weights[f"{name}.out.bias"][tokens]
    first, second = weights[f"{name}.mlp.0.weight"], weights[f"{name}.mlp.2.weight"]
    units = _largest(_rows(first) * _columns(second), RATIO * len(tokens))
    _between(found, weights, f"{name}.mlp", units, tokens, tokens)
    # Six vectors one behind the other: shift, scale and gate of attention, and of the MLP.
    six = torch.cat([part * wide + tokens for part in range(6)])
    found[f"{name}.modulation.weight"] = weights[f"{name}.modulation.weight"][six][:, condition]
    found[f"{name}.modulation.bias"] = weights[f"{name}.modulation.bias"][six]


def _between(
    found: dict[str, Tensor],
    weights: Weights,
    name: str,
    units: Tensor,
    read: Tensor | None,
    written: Tensor,
) -> None:
    """Two maps with `units` between them; `read`: of what the first reads; None: all."""
    first = weights[f"{name}.0.weight"][units]
    found[f"{name}.0.weight"] = first if read is None else first[:, read]
    found[f"{name}.0.bias"] = weights[f"{name}.0.bias"][units]
    found[f"{name}.2.weight"] = weights[f"{name}.2.weight"][written][:, units]
    found[f"{name}.2.bias"] = weights[f"{name}.2.bias"][written]


def _written(weights: Weights, blocks: list[str]) -> Tensor:
    """(d,): how much of each of the tokens' numbers is written, and read in the end."""
    size = _rows(weights["enter.weight"]) + _columns(weights["position"])
    size = size + _columns(weights["leave.weight"])
    for name in blocks:
        size = size + _rows(weights[f"{name}.out.weight"]) + _rows(weights[f"{name}.mlp.2.weight"])
    return size


def _largest(sizes: Tensor, count: int) -> Tensor:
    """The places (count,) of the largest, in their order."""
    return sizes.topk(count).indices.sort().values


def _rows(matrix: Tensor) -> Tensor:
    """Each row's squared length."""
    return matrix.square().sum(1)


def _columns(matrix: Tensor) -> Tensor:
    """Each column's squared length."""
    return matrix.square().sum(0)
