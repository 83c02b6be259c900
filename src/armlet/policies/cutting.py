"""The weights of a policy some of whose layers are left out, for a student that begins with them."""

from typing import TypeVar

import torch
from torch import Tensor

from armlet.policies.contract import Backbone

B = TypeVar("B", bound=Backbone)


def weights_of(policy: Backbone, kept: tuple[int, ...]) -> dict[str, Tensor]:
    """The weights of a policy whose layers are these of another's `layers`, renumbered, and whose
    rest is the same.

    Raises ValueError where `kept` are not increasing numbers of layers that are there.
    """
    depth = len(policy.layers)
    if not kept or sorted(set(kept)) != list(kept) or kept[-1] >= depth or kept[0] < 0:
        raise ValueError(
            f"the layers to keep are {_short(kept)}, and the policy has {depth}: expected some of 0 "
            f"to {depth - 1}, in order; a smaller `--student.layers` fits it"
        )
    weights = {}
    for name, tensor in policy.state_dict().items():
        room, _, rest = name.partition(".")  # layers.<index>.<rest>
        if room != "layers":
            weights[name] = tensor
            continue
        index, _, rest = rest.partition(".")
        if int(index) in kept:
            weights[f"layers.{kept.index(int(index))}.{rest}"] = tensor
    return weights


def with_weights(student: B, weights: dict[str, Tensor], device: torch.device) -> B:
    """A student with copies of these weights (`weights_of`), on the device of the network that it
    was cut from. One that was built without weights has none to give: nor has its student any."""
    if device.type != "meta":
        student.load_state_dict(weights)
    return student.to(device)


def _short(numbers: tuple[int, ...]) -> str:
    """Numbers as words, the first few of many."""
    shown = ", ".join(map(str, numbers[:8])) or "none"
    return f"{shown}, … {numbers[-1]}" if len(numbers) > 8 else shown
