"""A network in shards (FSDP2), and Muon of matrices that lie so. Knows learners and torch's tensors that
are distributed; no data, no recipe."""

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from armlet.training.learner import Learner
from armlet.training.spread import Spread, whole


class Shards(Spread):
    """Every parameter, its gradient and what optimisers keep of it divided over the processes
    (FSDP2, arXiv 2304.11277): one layer is whole at a time. `offload`: what is not at work lies in
    the memory of the CPU.

    The shards are of a twin of the learner, whose own weights are given away until `gather`: the
    network that others know is never half a network.
    """

    sharded = True

    def __init__(self, learner: Learner, *, offload: bool = False) -> None:
        super().__init__(learner)
        _check_dtypes(learner)
        self._device = learner.policy.device
        # Parameters and buffers are the same tensors in both, and nothing is copied.
        tensors = [*learner.parameters(), *learner.buffers()]
        self.network = copy.deepcopy(learner, {id(each): each for each in tensors})
        self.forward = self.network
        mesh = init_device_mesh(self._device.type, (dist.get_world_size(),))
        policy: OffloadPolicy = CPUOffloadPolicy() if offload else OffloadPolicy()
        for block in self.network.policy.blocks:
            fully_shard(block, mesh=mesh, offload_policy=policy)
        fully_shard(self.network, mesh=mesh, offload_policy=policy)
        for part in self.network.modules():
            if isinstance(part, FSDPModule):
                # A plain sum, which every backend has.
                part.set_force_sum_reduction_for_comms(True)
                part.set_gradient_divide_factor(1.0)
        for parameter in learner.parameters():
            parameter.data = parameter.data.new_empty(0)

    @torch.no_grad()
    def gather(self) -> None:
        shards = dict(self.network.named_parameters())
        for name, parameter in self.learner.named_parameters():
            parameter.data = whole(shards[name].detach().to(self._device))


def _check_dtypes(learner: nn.Module) -> None:
    """Raises ValueError where weights that train are of several types: FSDP reduces one."""
    found: dict[torch.dtype, str] = {}
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad:
            found.setdefault(parameter.dtype, name)
    if len(found) > 1:
        (one, first), (other, second) = list(found.items())[:2]
        raise ValueError(
            f"parallel is fsdp, and {first} trains in {one}, {second} in {other}: shards are of one "
            "type; give the stage `parallel` ddp, or train one of them (`train`, `freeze`)"
        )


def sharded(value: Tensor, like: Tensor) -> DTensor:
    """A tensor that every process has whole, in shards as `like`; nothing is sent."""
    assert isinstance(like, DTensor)
    here = value.to(like.device)
    return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)


class ShardedMuon(torch.optim.Muon):
    """Muon of matrices that lie in shards. An update is orthogonal as a whole or not at all: each
    matrix's is brought together, made orthogonal by one process, matrix after matrix another, and
    sent to all. The momentum stays in shards."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step. It has no closure: nothing here evaluates a loss twice."""
        assert closure is None
        rank = dist.get_rank()
        size = dist.get_world_size()
        for group in self.param_groups:
            there = [each for each in group["params"] if each.grad is not None]
            for start in range(0, len(there), size):
                some = there[start : start + size]  # one for each process
                mine = None
                for owner, matrix in enumerate(some):
                    update = self._update(matrix, group).full_tensor()
                    if owner == rank:
                        mine = _orthogonal_step(update, group)
                for owner, matrix in enumerate(some):
                    step = mine
                    if owner != rank:
                        step = torch.empty(matrix.shape, dtype=matrix.dtype, device=matrix.device)
                    assert step is not None
                    dist.broadcast(step, src=owner)
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(sharded(step, matrix.detach()))

    def _update(self, matrix: nn.Parameter, group: dict[str, Any]) -> DTensor:
        """The gradient's running average, in shards; looked ahead where that is asked for
        (Nesterov)."""
        gradient = matrix.grad
        assert isinstance(gradient, DTensor)
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average = state["momentum_buffer"]
        average.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(average, group["momentum"]) if group["nesterov"] else average
        assert isinstance(update, DTensor)
        return update


def _orthogonal_step(update: Tensor, group: dict[str, Any]) -> Tensor:
    """The step that torch's Muon takes for this update, without momentum and decay."""
    step = nn.Parameter(torch.zeros_like(update))
    step.grad = update
    plain = torch.optim.Muon(
        [step],
        lr=group["lr"],
        weight_decay=0.0,
        momentum=0.0,
        nesterov=False,
        ns_coefficients=group["ns_coefficients"],
        ns_steps=group["ns_steps"],
        eps=group["eps"],
        adjust_lr_fn=group["adjust_lr_fn"],
    )
    plain.step()
    return step.detach()
