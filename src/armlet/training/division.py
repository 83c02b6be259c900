"""One batch in parts: over processes, and over passes one after the other.

Losses couple samples (a matrix of cosines, a mean over the batch), so they are computed of the whole
batch: every part's trace is brought together, each process computes the same loss of the same
numbers, and sends the gradient back through its own part. The sum over all parts is the whole
batch's gradient. Of the passes before the last only the traces are kept; each runs again once its
gradient is known (Gao et al. 2021, arXiv 2101.06983). Knows batches and traces; no objective.
"""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from armlet.training.distributed import World
from armlet.types import Batch, Trace

# Signals that are not of single samples, and the same in every part.
SHARED = frozenset({"costs"})


def places(count: int, pieces: int, every: int = 1) -> list[slice]:
    """`count` samples in as many contiguous pieces, each beginning at a multiple of `every`, so that
    every n-th sample of the pieces is every n-th of the whole. Some are empty where there are fewer
    such multiples than pieces."""
    groups = -(-count // every)
    ends = [groups * piece // pieces * every for piece in range(pieces + 1)]
    bounds = [min(end, count) for end in ends]
    return [slice(*pair) for pair in pairwise(bounds)]


@dataclass(frozen=True)
class Division:
    """How a batch of `whole` samples is divided: over processes, `ranks`, and this process's part
    over its passes, `passes`; slices of the whole. `every`: see `places`."""

    whole: int
    ranks: tuple[slice, ...]
    passes: tuple[slice, ...]
    rank: int
    every: int

    @classmethod
    def of(cls, count: int, world: World, *, passes: int, every: int) -> "Division":
        """A pass without a sample is left out, but for the last one of a process that has none:
        it has to be there when gradients are exchanged."""
        all_places = places(count, world.size * passes, every)
        ranks = []
        for rank in range(world.size):
            mine = all_places[rank * passes : (rank + 1) * passes]
            ranks.append(slice(mine[0].start, mine[-1].stop))
        mine = all_places[world.rank * passes : (world.rank + 1) * passes]
        filled = tuple(each for each in mine if each.stop > each.start)
        return cls(count, tuple(ranks), filled or (slice(0, 0),), world.rank, every)

    @property
    def own(self) -> slice:
        """The samples of this process."""
        return self.ranks[self.rank]

    @property
    def seen(self) -> slice:
        """The samples whose pictures this process needs: its own, or the first, whose answers
        nobody reads, where it has none."""
        return self.own if self.own.stop > self.own.start else slice(0, 1)

    def batch_of(self, batch: Batch, samples: slice) -> Batch:
        """The part of a batch whose pictures are those of `seen`."""
        first = self.seen.start
        images = {}
        for name, pixels in batch.images.items():
            images[name] = pixels[samples.start - first : samples.stop - first]
        rest = dataclasses.replace(batch, images={}).part(samples)
        return dataclasses.replace(rest, images=images)

    def counted(self, name: str, samples: slice, layered: frozenset[str]) -> int:
        """How many rows a signal has of these samples."""
        count = samples.stop - samples.start
        return -(-count // self.every) if name in layered else count


class Divided:
    """The student's answers to a whole batch, of which this process has a part, and the way back.

    `run`: the trace of samples of the whole batch, some of this process's; `exchange(now=)`: around
    a pass and its way back, whether processes exchange gradients in it. `layered`: signals that
    there are of every n-th sample only.
    """

    def __init__(
        self,
        division: Division,
        world: World,
        run: Callable[[slice], Trace],
        exchange: Callable[..., AbstractContextManager],
        *,
        layered: frozenset[str],
    ) -> None:
        self.division = division
        self.world = world
        self.run = run
        self.exchange = exchange
        self.layered = layered
        self._kept: list[Trace] = []
        self._last: Trace = {}

    def trace(self) -> Trace:
        """The whole batch's trace; gradients reach this process's part of it."""
        *before, last = self.division.passes
        for samples in before:
            with self.exchange(now=False):
                self._kept.append(_leaves(self._pass(samples)))
        with self.exchange(now=not before):
            self._last = self._pass(last)
        whole: Trace = {}
        for name in sorted(self._last):  # in one order on every process
            if name in SHARED:
                whole[name] = self._last[name].detach()
                continue
            mine = [part[name] for part in (*self._kept, self._last)]
            whole[name] = self._joined(name, torch.cat(mine))
        return whole

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of the whole batch's loss to every weight."""
        with self.exchange(now=not self._kept):
            loss.backward()
        for index in reversed(range(len(self._kept))):
            with self.exchange(now=index == 0):
                again = self._pass(self.division.passes[index])
                torch.autograd.backward(*_gradients(again, self._kept[index]))

    def _pass(self, samples: slice) -> Trace:
        """The trace of a pass without the rows that only keep a process without samples company.
        Raises ValueError for a signal that has other rows than its samples."""
        idle = samples.stop == samples.start
        seen = self.division.seen if idle else samples
        trace: Trace = {}
        for name, signal in self.run(seen).items():
            if name in SHARED:
                trace[name] = signal
                continue
            wanted = self.division.counted(name, seen, self.layered)
            if len(signal) != wanted:
                raise ValueError(
                    f"the signal {name!r} has {len(signal)} rows of {wanted} samples; a batch that "
                    "is divided takes signals of single samples: train in one process, without "
                    "`accumulate`"
                )
            trace[name] = signal[:0] if idle else signal
        return trace

    def _joined(self, name: str, mine: Tensor) -> Tensor:
        counts = []
        for samples in self.division.ranks:
            counts.append(self.division.counted(name, samples, self.layered))
        parts = self.world.rows(mine, counts)
        parts[self.division.rank] = mine  # with its graph
        return torch.cat(parts) if len(parts) > 1 else mine


def told(
    division: Division, world: World, answers: Callable[[Tensor], Trace], keys: Tensor
) -> Trace:
    """What a teacher answers to a whole batch, `keys` (b, 2); each process asks for its own part."""
    mine = answers(keys[division.seen])
    counts = [each.stop - each.start for each in division.ranks]
    whole: Trace = {}
    for name in sorted(mine):  # in one order on every process
        rows = mine[name][: counts[division.rank]]
        whole[name] = torch.cat(world.rows(rows, counts))
    return whole


def _leaves(trace: Trace) -> Trace:
    """A trace of which only the numbers are kept, and the gradient that they will get."""
    leaves = {}
    for name, signal in trace.items():
        leaves[name] = signal.detach().requires_grad_(signal.requires_grad)
    return leaves


def _gradients(again: Trace, leaves: Trace) -> tuple[list[Tensor], list[Tensor]]:
    """What is sent back through a pass that runs again: signals, and their gradients."""
    signals = []
    gradients = []
    for name, leaf in leaves.items():
        if not leaf.requires_grad:
            continue
        signals.append(again[name])
        gradients.append(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
    return signals, gradients
