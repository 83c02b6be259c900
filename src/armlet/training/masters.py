"""Weights in half precision while they train, and what steps are added to.

A weight of 16 bits cannot take a step that is smaller than 1/256 of it, so what trains has a copy in
single precision, its master: optimisers see that one, and the network its rounding (Micikevicius et
al. 2018, arXiv 1710.03740). Knows modules; no stage and no policy.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

HALVES = (torch.bfloat16, torch.float16)


class Masters:
    """The weights that train, `trained`, by name, as optimisers are to see them: `weights`. A weight
    in single precision is its own master.

    `halve`: those of linear layers, trained or not, are brought to bfloat16 until `restore`, but for
    modules that say `stays_single`. What does not train is kept as it was, where rounding would
    change it; on the CPU, whose memory is the larger one. `at_once`: a gradient goes to its master as
    soon as autograd has it; else when `take` is called, where somebody adds to it until then.
    """

    def __init__(
        self,
        network: nn.Module,
        trained: dict[str, nn.Parameter],
        *,
        halve: bool = False,
        at_once: bool = True,
    ) -> None:
        self.weights: dict[str, nn.Parameter] = {}
        self._network = network
        self._trained = trained
        self._were: dict[str, torch.dtype] = {}
        self._parked: dict[str, Tensor] = {}
        linear = _linear_weights(network) if halve else {}
        for name, parameter in trained.items():
            if parameter.dtype in HALVES or name in linear:
                self.weights[name] = nn.Parameter(parameter.detach().float())
            else:
                self.weights[name] = parameter
        for name, matrix in linear.items():
            if matrix.dtype != torch.float32:
                continue
            self._were[name] = matrix.dtype
            half = matrix.detach().bfloat16()
            if name not in trained and not torch.equal(half.float(), matrix.detach()):
                self._parked[name] = matrix.detach().cpu()
            matrix.data = half
        self._hooks = []
        for name, parameter in trained.items():
            if at_once and self.weights[name] is not parameter:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._take(name)))

    def _take(self, name: str) -> Callable[[Tensor], None]:
        master = self.weights[name]

        def hand_over(parameter: Tensor) -> None:
            # One weight after the other, so that never all gradients are there twice.
            assert parameter.grad is not None
            grad = parameter.grad.float()
            master.grad = grad if master.grad is None else master.grad + grad
            parameter.grad = None

        return hand_over

    def take(self) -> None:
        """The gradients that stand at the network's weights go to their masters."""
        for name, parameter in self._trained.items():
            if self.weights[name] is not parameter and parameter.grad is not None:
                self._take(name)(parameter)

    @torch.no_grad()
    def show(self) -> None:
        """The network sees what its masters are now."""
        for name, master in self.weights.items():
            parameter = self._trained[name]
            if parameter is not master:
                parameter.copy_(master)

    def state(self) -> dict[str, Tensor]:
        """The masters of weights that are in half precision, by name."""
        found = {}
        for name, master in self.weights.items():
            if master is not self._trained[name]:
                found[name] = master.detach()
        return found

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """What `state` gave."""
        for name, value in state.items():
            self.weights[name].copy_(value)

    @torch.no_grad()
    def restore(self) -> None:
        """The network in the precision in which it was: what trained as its masters are, the rest
        as it was to the bit."""
        for hook in self._hooks:
            hook.remove()
        self.show()
        for name, parameter in self._network.named_parameters():
            if name not in self._were:
                continue
            if name in self.weights:
                whole = self.weights[name].detach()
            else:
                whole = self._parked.get(name, parameter.detach())
            parameter.data = whole.to(parameter.device, self._were[name])


@torch.no_grad()
def halve(network: nn.Module) -> None:
    """Brings the matrices of linear layers in single precision to bfloat16, for good; those of modules
    that say `stays_single` are left."""
    for matrix in _linear_weights(network).values():
        if matrix.dtype == torch.float32:
            matrix.data = matrix.bfloat16()


def _linear_weights(network: nn.Module) -> dict[str, Tensor]:
    """The matrices of linear layers by name, but for low-rank ones, which weigh nothing, and those of
    modules that say `stays_single`: they compute in single precision, outside of autocast."""
    found: dict[str, Tensor] = {}
    single: tuple[str, ...] = ()  # how the names of their parts begin
    for name, part in network.named_modules():
        if getattr(part, "stays_single", False):
            single += (f"{name}." if name else "",)
        if isinstance(part, nn.Linear) and "lora_" not in name and not name.startswith(single):
            found[f"{name}.weight" if name else "weight"] = part.weight
    return found
