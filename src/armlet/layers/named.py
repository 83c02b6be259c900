"""Modules by any name, and what stands for a robot's state where there is none. Knows no policy."""

from collections.abc import ItemsView, Iterator, KeysView
from urllib.parse import quote, unquote

import torch
from torch import Tensor, nn

TAKEN = frozenset(dir(nn.ModuleDict()))  # "type", "keys" …: torch forbids these names, too


class Named(nn.ModuleDict):
    """A ModuleDict whose keys are names of any kind, as cameras have them: torch forbids dots
    (`observation.image`) and the names of its own attributes. Those are kept percent-encoded, all
    others as they are; whoever asks uses the name itself."""

    def __getitem__(self, name: str) -> nn.Module:
        return super().__getitem__(_key(name))

    def __setitem__(self, name: str, module: nn.Module) -> None:
        super().__setitem__(_key(name), module)

    def __contains__(self, name: str) -> bool:
        return super().__contains__(_key(name))

    def __iter__(self) -> Iterator[str]:
        return iter([unquote(key) for key in super().__iter__()])

    def keys(self) -> KeysView[str]:
        return dict.fromkeys(self).keys()

    def items(self) -> ItemsView[str, nn.Module]:
        return dict(zip(self, self.values(), strict=True)).items()


def _key(name: str) -> str:
    if name in TAKEN:
        return f"%{ord(name[0]):02X}{name[1:]}"  # one encoded letter is enough: "keys" → "%6Beys"
    # `quote` leaves dots alone; of what it does encode only its own sign must be, or two names
    # could become one
    return name.replace("%", quote("%")).replace(".", "%2E")


class NoState(nn.Module):
    """The token (b, width) of a robot whose state is not known: (b, 0) → the same learned one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, state: Tensor) -> Tensor:
        return self.bias.expand(len(state), -1)


def state_layer(dims: int, width: int) -> nn.Module:
    """(b, dims) → (b, width): linear or, for a robot without a known state, the same for all. A
    linear map of nothing would be an empty matrix, which optimisers do not take."""
    return nn.Linear(dims, width) if dims else NoState(width)
