"""How processes share a probe: batches of frames that a teacher answers to, and episodes that an
annotator labels, are shards; one of the processes lays out what all have made, in its own folder.

Whether labels are missing is known when all episodes were asked about. The same command, given again,
is another round, about these alone. Knows no recipe, and not how a teacher is loaded.
"""

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from armlet import source
from armlet.annotators import Annotator, NotConfirmedError
from armlet.annotators.store import (
    Labelling,
    confirmed,
    label_identity,
    lay_out_labels,
    refuse_failed,
    refuse_others,
)
from armlet.data.episodes import EpisodeDataset
from armlet.data.frames import BatchMaker
from armlet.data.packed_rows import Rows, pack_rows, unpack_rows, without
from armlet.data.traces import HEADER, Columns, StoreIdentity, TraceWriter
from armlet.lineage import Question
from armlet.rollout.together import SharedWork, Together, sharded, to_bytes
from armlet.training.supervision import ROWS
from armlet.types import Batch, Trace

Work = Callable[[Sequence[int]], bytes]


@dataclass(frozen=True)
class Watched:
    """What a worker makes of a shard of batches, each by its first row: their keys and what the
    teacher answers, packed. The batches are those of one process, as the bits of a product may hang
    on how many rows there are."""

    batches: BatchMaker
    answers: Callable[[Batch], Trace]
    columns: Columns

    def __call__(self, starts: Sequence[int]) -> bytes:
        parts: list[Rows] = []
        for start in starts:
            rows = np.arange(start, min(start + ROWS, len(self.batches)))
            batch = self.batches.batch(rows)
            assert batch.keys is not None
            values = {}
            for name, value in self.answers(batch).items():
                values[name] = value.detach().cpu().float().numpy()
            parts.append((batch.keys.numpy(), values))
        return pack_rows(parts, self.columns)


@dataclass(frozen=True)
class Asked:
    """An annotator, and the store at `folder` of what it says of a data set."""

    annotator: Annotator
    data: EpisodeDataset
    folder: Path


@dataclass(frozen=True)
class Elsewhere:
    """The same work in processes that have loaded nothing: sent to tasks of Ray."""

    traces: Work
    labels: Work


@dataclass(frozen=True)
class Probing:
    """The store of traces at `root`, made by several processes. `beside` writes what lies beside the
    rows; `device`: where the teacher answers."""

    together: Together
    root: Path
    store: StoreIdentity
    watched: Watched
    device: str
    beside: Callable[[], object]
    asked: Asked | None  # None: nobody annotates

    def run(self, elsewhere: Elsewhere, *, title: str) -> None:
        """Make all of it, here or elsewhere; the store lies with one of the processes in the end.
        Raises LabelError where episodes have no labels, once everything else is stored."""
        rounds = self._rounds()
        if not rounds:
            return
        failed = self._run(rounds, elsewhere, title=title)
        if not (self.root / HEADER).is_file():
            sys.stderr.write(
                f"{title}: laid out by a process with another disk, not in {self.root}\n"
            )
        if self.asked is not None:
            refuse_failed(self.asked.folder, failed, len(self.asked.data.episodes))

    def _run(
        self, rounds: list[tuple[int, ...]], elsewhere: Elsewhere, *, title: str
    ) -> dict[int, str]:
        """Returns episode → why it has no labels."""
        annotator = self._agreed(rounds[-1])
        traces = self._work("traces", sharded(self._starts, self.together.size))
        labels = []
        for number, episodes in enumerate(rounds):
            if self.asked is not None:
                shards = sharded(episodes, self.together.size)
                labels.append(self._work("labels", shards, **self._annotated(number, episodes)))
        # Here, where the teacher is loaded already.
        traces.run_as_it_is(self.watched, elsewhere=elsewhere.traces, title=title)
        if annotator is not None and self.asked is not None:
            labelling = Labelling(annotator, self.asked.data)
            labels[-1].run_as_it_is(labelling, elsewhere=elsewhere.labels, title=f"{title}, labels")

        def lay_out() -> bytes:
            self._lay_out(traces.results())
            if self.asked is None:
                return to_bytes({})
            asked = self.asked
            made = itertools.chain.from_iterable(work.results() for work in labels)
            return to_bytes(lay_out_labels(asked.folder, asked.annotator, asked.data, made))

        found = self.together.once("stored", self._of_round(rounds), lay_out)
        failed = {int(number): why for number, why in json.loads(found).items()}
        if not failed:  # until then all results are kept, for whoever lays out a further round
            for work in (traces, *labels):
                work.end()
        return failed

    def _lay_out(self, made: Iterator[bytes]) -> None:
        with TraceWriter(self.root, self.store, self.watched.columns) as writer:
            done = set(map(tuple, writer.done().tolist()))
            for content in made:
                keys, values = without(unpack_rows(content, self.watched.columns), done)
                if len(keys):
                    writer.append(keys, values)
        self.beside()

    @property
    def _starts(self) -> range:
        """The first rows of all batches."""
        return range(0, len(self.watched.batches), ROWS)

    def _rounds(self) -> list[tuple[int, ...]]:
        """The episodes about which the annotator is asked, of each round up to this one; no round
        where nothing is left to be done."""
        episodes = tuple(range(len(self.asked.data.episodes))) if self.asked is not None else ()
        rounds = []
        while True:
            rounds.append(episodes)
            found = self.together.made("stored", self._of_round(rounds))
            if found is None:
                return rounds
            failed = json.loads(found)
            if not failed:
                return []
            episodes = tuple(sorted(map(int, failed)))

    def _agreed(self, episodes: Sequence[int]) -> Annotator | None:
        """The annotator, with leave to spend what these episodes will cost. Raises
        NotConfirmedError, before any of the work: somebody may be at one of the processes'
        terminals, and nobody at the others'."""
        if self.asked is None:
            return None
        asked = self.asked
        refuse_others(asked.folder, label_identity(asked.annotator, asked.data))
        try:
            return confirmed(asked.annotator, asked.data, episodes, None)
        except NotConfirmedError as error:
            raise NotConfirmedError(
                f"{error}. Processes that share the work ask nobody at a terminal: agree beforehand "
                "(--annotator.yes, up to --annotator.most)"
            ) from error

    def _work(self, name: str, shards: tuple[tuple[int, ...], ...], **more: Any) -> SharedWork[int]:
        return SharedWork(self.together, name, {**self._question, **more}, shards)

    @property
    def _question(self) -> Question:
        return {
            "store": asdict(self.store),
            "columns": self.watched.columns,
            "rows": len(self.watched.batches),
            "size": self.together.size,
            "armlet": source.identity(),
            "torch": torch.__version__,
            "device": self.device,
        }

    def _annotated(self, number: int, episodes: Sequence[int]) -> Question:
        """What decides the labels of a round."""
        if self.asked is None:
            return {}
        identity = label_identity(self.asked.annotator, self.asked.data)
        return {"labels": asdict(identity), "round": number, "episodes": episodes}

    def _of_round(self, rounds: Sequence[tuple[int, ...]]) -> Question:
        return {**self._question, **self._annotated(len(rounds) - 1, rounds[-1])}
