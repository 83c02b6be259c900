"""Random numbers of single samples, drawn so that they do not hang on how a batch is divided.

A network that trains draws for every sample of its batch: noise, a time, a route. Where a batch is
divided, over processes or over passes one after the other, each part draws the numbers of the whole
batch and keeps its own rows, so that a sample meets the numbers that it would have met undivided.
Outside of `divided` a draw is what torch makes of it, to the bit. Knows tensors; no network and no
process.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch
from torch import Tensor, nn


class UndividedDrawError(RuntimeError):
    """A network drew numbers in another way than through this file, while its batch was divided."""


class _Division:
    """The rows of the whole batch that are here, and torch's generator as this file left it."""

    def __init__(self, rows: slice, whole: int, device: torch.device) -> None:
        self.rows = rows
        self.whole = whole
        self.device = device
        self.state = self._state()

    def draw(self, make: Callable[[], Tensor]) -> Tensor:
        self.check()
        drawn = make()
        self.state = self._state()
        return drawn

    def check(self) -> None:
        if not torch.equal(self.state, self._state()):
            raise UndividedDrawError(
                "numbers were drawn that hang on how the batch is divided: by dropout, or by a "
                "network that draws beside armlet.layers.draws"
            )

    def _state(self) -> Tensor:
        if self.device.type == "cuda":
            # Both: some networks draw where the numbers are needed, some on the host.
            return torch.cat([torch.get_rng_state(), torch.cuda.get_rng_state(self.device)])
        return torch.get_rng_state()


_division: ContextVar[_Division | None] = ContextVar("division", default=None)


@contextlib.contextmanager
def divided(rows: slice, whole: int, device: torch.device) -> Iterator[None]:
    """While it lasts, what passes through a network on `device` are the samples `rows` of a batch of
    `whole`. Raises UndividedDrawError where it drew numbers past this file."""
    division = _Division(rows, whole, device)
    token = _division.set(division)
    try:
        yield
    finally:
        _division.reset(token)
    division.check()


def by_sample(make: Callable[[int], Tensor], count: int, *, times: int = 1) -> Tensor:
    """`make(n)`: numbers (n, …) for n samples → (count, …), those of the `count` samples that are
    here. `times`: all samples stand there so many times, one whole batch after the other."""
    division = _division.get()
    if division is None:
        return make(count)
    here = division.rows.stop - division.rows.start
    if count != here * times:
        raise ValueError(f"numbers for {count} samples, and {here} are here, {times} times")
    drawn = division.draw(lambda: make(division.whole * times))
    batches = drawn.unflatten(0, (times, division.whole))
    return batches[:, division.rows].flatten(0, 1)


def shared(make: Callable[[], Tensor]) -> Tensor:
    """What is drawn once for all samples of a batch."""
    division = _division.get()
    return make() if division is None else division.draw(make)


def normal_like(x: Tensor, *, times: int = 1) -> Tensor:
    """Standard normal numbers, as `torch.randn_like(x)` draws them; x (times · b, …)."""

    def make(count: int) -> Tensor:
        if count == len(x):
            return torch.randn_like(x)
        return torch.randn(count, *x.shape[1:], dtype=x.dtype, device=x.device)

    return by_sample(make, len(x), times=times)


def uniform(x: Tensor) -> Tensor:
    """(b,): a number of [0, 1) for each sample of x (b, …), as `torch.rand` draws them."""

    def make(count: int) -> Tensor:
        return torch.rand(count, dtype=x.dtype, device=x.device)

    return by_sample(make, len(x))


def why_undividable(network: nn.Module) -> str:
    """Which part of a network that is about to train mixes the samples of a batch, or draws numbers
    that hang on how it is divided; empty where none is known to."""
    for name, part in network.named_modules():
        if not part.training:
            continue
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            return f"{name} normalises by the statistics of its batch"
        drops = isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0
        if drops or (isinstance(part, nn.MultiheadAttention) and part.dropout > 0):
            return f"{name} drops activations at random (dropout)"
    return ""
