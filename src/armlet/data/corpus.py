"""What a student learns from, as one thing: the frames, labels and traces of one or several data
sets, joined by key.

The episodes of a data set are numbered after those of the sets before it, and its frames stand
after theirs. Knows frames and trace stores; knows no policy and no recipe.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from armlet.data.frames import BatchMaker, Frames, join_frames
from armlet.data.traces import TraceStore
from armlet.types import Batch, Trace

MakeBatches = Callable[[Frames], BatchMaker]


@dataclass(frozen=True)
class Part:
    """One data set of a corpus: its frames with their labels, its fingerprint, and what the teacher
    answered to its frames (None: nobody reads that)."""

    frames: Frames
    fingerprint: str
    traces: TraceStore | None = None


class Corpus:
    """`make` turns frames into batches as one policy takes them. `needs`: the signals of the
    teacher that `traces` answers.

    Raises ValueError naming a store that lacks such a signal, or a data set without a store where
    something is needed.
    """

    def __init__(
        self, parts: Sequence[Part], make: MakeBatches, *, needs: Collection[str] = ()
    ) -> None:
        self.parts = tuple(parts)
        self.needs = tuple(sorted(needs))
        self._make = make
        frames = [part.frames for part in self.parts]
        self.frames = frames[0] if len(frames) == 1 else join_frames(frames)
        self._batches = make(self.frames)
        # Of each part: its first row, and its first episode, among all.
        self.first_rows = np.cumsum([0, *map(len, frames[:-1])])
        self._first_episodes = np.cumsum([0, *(each.episodes for each in frames[:-1])])
        self._stores = self._check_stores()
        self._shapes = self._largest_shapes()

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def fingerprints(self) -> list[str]:
        """Of its data sets."""
        return [part.fingerprint for part in self.parts]

    @property
    def stores(self) -> list[TraceStore]:
        """Of its data sets, in their order; none where nothing of the teacher is needed."""
        return list(self._stores)

    def with_more(self, part: Part) -> "Corpus":
        """The same with the episodes of another data set after those that are there, whose rows and
        keys stay as they are."""
        return Corpus((*self.parts, part), self._make, needs=self.needs)

    def batch(self, rows: np.ndarray, *, pictures: slice | None = None) -> Batch:
        """The batch of `rows` (b,). `pictures`: of these of its moments alone; None: of all."""
        return self._batches.batch(rows, pictures=pictures)

    def expect(self, rows: np.ndarray) -> None:
        """A word that `rows` (b,) are asked for next."""
        self._batches.expect(rows)

    def first_actions(self) -> Tensor:
        """(N, a): every frame's own action, normalised."""
        return self._batches.first_actions()

    def keys(self, rows: np.ndarray) -> np.ndarray:
        """(b, 2) int64: episode and step of each row."""
        return self._batches.keys(rows)

    def rows(self, keys: Tensor | np.ndarray) -> np.ndarray:
        """(b,) int64: the row of each key (b, 2), the inverse of `keys`."""
        found = np.asarray(keys)
        return self.frames.starts[found[:, 0]] + found[:, 1]

    def traces(self, keys: Tensor) -> Trace:
        """What the teacher answered to the frames with these keys (b, 2), in their order: float32,
        on the batches' device. Raises KeyError naming the store, episode and step that is
        missing."""
        wanted = keys.cpu().numpy()
        parts = np.searchsorted(self._first_episodes, wanted[:, 0], side="right") - 1  # (b,)
        found = {}
        for name, (shape, dtype) in self._shapes.items():
            found[name] = torch.zeros(len(wanted), *shape, dtype=dtype)
        for number in np.unique(parts):
            mine = np.flatnonzero(parts == number)
            own = wanted[mine] - [self._first_episodes[number], 0]  # as they are numbered there
            answers = self._stores[number].read(own, want=self.needs)
            for name, values in answers.items():
                # Into the corner of the room: what a narrower store lacks stays 0.
                corner = map(slice, values.shape[1:])
                place: tuple[Tensor | slice, ...] = (torch.from_numpy(mine), *corner)
                found[name][place] = values
        # Moved as they are stored, half the bytes, and widened there.
        return {name: values.to(self._batches.device).float() for name, values in found.items()}

    def _check_stores(self) -> list[TraceStore]:
        stores: list[TraceStore] = []
        if not self.needs:
            return stores
        for part in self.parts:
            store = part.traces
            if store is None:
                raise ValueError(
                    f"the teacher's {', '.join(self.needs)} are needed, and there are no traces of "
                    f"data set {part.fingerprint}; run `armlet probe` on it"
                )
            missing = sorted(set(self.needs) - set(store.columns))
            if missing:
                raise ValueError(
                    f"{store.root} lacks {', '.join(missing)} of the teacher; it has "
                    f"{', '.join(sorted(store.columns))}. Run `armlet probe` into another "
                    "`--shared` (or `--out`) with `--traced "
                    f"{' '.join(sorted({*store.columns, *missing}))}`"
                )
            stores.append(store)
        return stores

    def _largest_shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Of each signal: room for that of every store, and its type. A map over words is as wide
        as the longest text of its data set; what a narrower one lacks is padding, 0."""
        shapes = {}
        for name in self.needs:
            columns = [store.columns[name] for store in self._stores]
            largest = np.max([shape for shape, _ in columns], axis=0)
            kept = np.zeros(0, columns[0][1])  # to ask torch what it calls that type
            shapes[name] = (tuple(np.atleast_1d(largest).tolist()), torch.from_numpy(kept).dtype)
        return shapes
