"""How the network that a stage trains lies over the processes that train it: alone, as copies (DDP),
or in shards (FSDP2).

Gradients are added up over processes, not averaged: each has its own part of the gradient of one
loss, that of the whole batch. Knows learners, and torch's ways to spread them; no data, no recipe.
"""

import contextlib
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from armlet.training.distributed import World
from armlet.training.learner import Learner

Parallel = Literal["ddp", "fsdp"]


class Spread:
    """A learner on one process. `network` is what runs, with the parameters that train; `forward`
    runs it."""

    sharded = False
    # Whether a gradient is complete when autograd has accumulated it: a DDP sums it later.
    complete_at_once = True

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.network: Learner = learner
        self.forward: Callable[..., Any] = learner

    def begin(self) -> None:
        """To be called once weights are of the types in which they train."""

    def exchange(self, *, now: bool) -> AbstractContextManager:
        """Around a pass and its way back: processes exchange gradients in it, or later."""
        return contextlib.nullcontext()

    def gather(self) -> None:
        """What was trained is whole in the learner, on every process."""


class Copies(Spread):
    """The whole learner on every process (DDP)."""

    complete_at_once = False

    def begin(self) -> None:
        with warnings.catch_warnings():
            # `broadcast_buffers` has another name in newer versions of torch only.
            warnings.simplefilter("ignore", FutureWarning)
            # Which parts an objective leaves out hangs on what it wants.
            self._ddp = DistributedDataParallel(
                self.learner, find_unused_parameters=True, broadcast_buffers=False
            )
        self._ddp.register_comm_hook(None, _summed)
        self.forward = self._ddp

    def exchange(self, *, now: bool) -> AbstractContextManager:
        return contextlib.nullcontext() if now else self._ddp.no_sync()


def _summed(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


def spread_over(
    learner: Learner, world: World, parallel: Parallel, *, offload: bool = False
) -> Spread:
    """The learner as a stage asks to train it."""
    if parallel == "fsdp":
        from armlet.training.shards import Shards  # slow to import, and seldom needed

        return Shards(learner, offload=offload)
    if world.size > 1:
        return Copies(learner)
    return Spread(learner)


def is_shard(value: Tensor) -> bool:
    """Whether a tensor lies in shards."""
    # torch's DTensor, by what it alone has: the class takes long to import.
    return hasattr(value, "full_tensor")


def whole(value: Tensor) -> Tensor:
    """A tensor that may lie in shards, in one piece."""
    if not is_shard(value):
        return value
    found: Tensor = value.full_tensor()  # type: ignore[attr-defined]
    return found


def placed(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` lies; one that is no part of a parameter, such as a count, as it
    is."""
    if not is_shard(like) or is_shard(value) or value.shape != like.shape:
        return value
    from armlet.training.shards import sharded  # as above

    return sharded(value, like)
