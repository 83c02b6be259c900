"""Policies from their descriptions: which module makes one, and how one is built without weights, to be
given those of a file."""

import functools
import importlib
import threading
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from armlet import outside
from armlet.policies.contract import Backbone


def rebuild(description: dict[str, Any], tokenizer: Tokenizer, *, empty: bool = False) -> Backbone:
    """A policy with fresh weights from its description; `type` names a module of this folder, or a
    Backbone from elsewhere as `package.module:Class`, whose `from_json` makes it.

    `empty`: without weights, to be given those of a file (`checkpoint.load_weights`). Parameters
    have names, shapes and a precision, and take neither memory nor the time to draw them; buffers
    are what the network computes.
    """
    make = _maker(str(description.get("type")))
    if not empty:
        return make(description, tokenizer)
    _listen()
    before = BUILDING.empty  # a network may build another inside, as a routed one does
    BUILDING.empty = True
    try:
        return make(description, tokenizer)
    finally:
        BUILDING.empty = before


def rebuild_with(
    description: dict[str, Any], tokenizer: Tokenizer, weights: dict[str, Tensor]
) -> Backbone:
    """A policy from its description, with copies of these weights. It is built without any first: to
    draw those of a large network takes minutes."""
    policy = rebuild(description, tokenizer, empty=True)
    copies = {name: tensor.detach().clone() for name, tensor in weights.items()}
    policy.load_state_dict(copies, assign=True)
    return policy


class _Building(threading.local):
    """Whether this thread builds a network without weights; others may build theirs meanwhile."""

    empty = False


BUILDING = _Building()


@functools.cache
def _listen() -> None:
    """From now on torch asks `_without_weights` of every parameter. Never undone: other threads
    register parameters at any time."""
    # `with torch.device("meta")` would empty buffers, too, some of which no file holds.
    register_module_parameter_registration_hook(_without_weights)  # type: ignore[arg-type]


def _without_weights(
    module: nn.Module, name: str, parameter: nn.Parameter | None
) -> nn.Parameter | None:
    """A parameter that a module was given, without its numbers, where that is wanted. None: as it
    is. Those of torch's layers have not been drawn yet, so that no memory is touched."""
    if parameter is None or not BUILDING.empty:
        return None
    return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)


def _maker(kind: str) -> Callable[[dict[str, Any], Tokenizer], Backbone]:
    """What makes a policy of this type from its description. Raises ValueError where nothing
    does."""
    place, _, name = kind.partition(":")  # package.module:Class, or a module of this folder
    if not name:
        try:
            module = importlib.import_module(f"armlet.policies.{kind}")
        except ModuleNotFoundError as error:
            raise ValueError(
                f"policy type {kind!r} is unknown: there is no armlet/policies/{kind}.py"
            ) from error
        return module.from_json
    module = outside.module(place, whose=f"policy type {kind!r}", named_by_file=True)
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Backbone)):
        raise ValueError(
            f"policy type {kind!r}: {name} in {place} is {found!r}, expected a Backbone"
        )
    make: Callable[[dict[str, Any], Tokenizer], Backbone] | None
    make = getattr(found, "from_json", None)
    if make is None:
        raise ValueError(f"policy type {kind!r}: {name} has no `from_json`, so it cannot be loaded")
    return make
