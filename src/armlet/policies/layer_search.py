"""Which layers of a teacher a student keeps, found by trying: a set of layers is scored by how far
the actions of the network cut to it are from the teacher's, without any training.

All sets are tried where there are few. Where there are many (16 of 32 layers: 601,080,390) layers
are left out one after the other, with a beam of the best sets so far. A score hangs on teacher,
frames and set alone, so that a killed search goes on from those that are kept in a file. Knows the
contract; knows no network.
"""

import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from armlet import limits
from armlet.data.lines import appending, whole_lines
from armlet.policies.contract import Backbone, Pass, State, Student
from armlet.policies.students import Kept
from armlet.progress import Progress
from armlet.types import Batch

Layers = tuple[int, ...]  # numbers of layers that are kept, rising
ROWS = 128  # frames of a forward pass
GROUP = 16  # sets that are scored on the same embedded frames, and kept together
SHOWN = 10  # of the best sets, how many are kept beside the weights


@dataclass(frozen=True)
class Scored:
    """A set of layers and how far its actions are from the teacher's: L1 of normalised actions, the
    mean over real steps of the frames' chunks."""

    layers: Layers
    error: float
    # Of each episode of the frames (`episodes_of`), its errors summed over real steps; empty of a
    # network that fell apart.
    sums: tuple[float, ...] = ()


@dataclass(frozen=True)
class Lead:
    """By how much the best set leads another: the difference of their errors, another − best, in the
    same frames, with its 95 % interval over episodes (a ratio of sums, linearised; Student's t). The
    best was picked for being first, of `Found.scored`, so a lead is rather too large than too
    small."""

    layers: Layers  # of the other
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Found:
    """What a search has found. `best`: of the sets of the size that was asked for, the best first;
    `scored`: how many sets of any size were tried; `of`: the layers of the teacher."""

    best: tuple[Scored, ...]
    scored: int
    frames: int
    of: int
    beam: int | None  # None: every set was tried
    episodes: int = 0  # that the frames are of
    lead: Lead | None = None  # on the second; None: there is none, or there is one episode
    # Sets, the best among them, that the frames do not show to be further off than the best is.
    within_noise: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As it is kept beside the weights, with the best sets only."""
        best = tuple(replace(each, sums=()) for each in self.best[:SHOWN])
        said: dict[str, Any] = json.loads(json.dumps(asdict(replace(self, best=best))))
        for each in said["best"]:
            del each["sums"]
        return said


@dataclass(frozen=True)
class LayerSearch(Student):
    """The set of `layers` layers whose actions, without training, are nearest to the teacher's."""

    reads: ClassVar[frozenset[str]] = frozenset({"actions"})
    layers: int
    """How many are kept."""
    exhaustive: int = 1000
    """Every set is tried where there are no more of them than this."""
    beam: int = 4
    """Otherwise layers are left out one after the other, and so many of the best sets are followed;
    1: the best alone (greedy)."""
    # Of 512, tabletop's two best pairs came out alike.
    frames: int = 1024
    """Frames that are tried on, at most."""

    @property
    def looks_at(self) -> int:
        return self.frames

    def __post_init__(self) -> None:
        limits.positive(self, "layers", "exhaustive", "beam", "frames")

    def choose(
        self, teacher: Backbone, sample: Batch, kept: Path | None = None
    ) -> tuple[Student, dict[str, Any]]:
        found = search(
            teacher,
            sample,
            self.layers,
            exhaustive=self.exhaustive,
            beam=self.beam,
            scores=Scores(kept),
        )
        return Kept(found.best[0].layers), found.to_json()

    def build(self, teacher: Backbone, sample: Batch | None = None) -> Backbone:
        if sample is None:
            raise ValueError(
                "LayerSearch looks at the data to choose layers; pass build() a sample batch"
            )
        return self.choose(teacher, sample)[0].build(teacher)


class Scores:
    """Scores by set, as far as they are known; with a `path`, also of earlier runs: a line a set.
    Whoever gives it sees to it that the file is of the same teacher and frames."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.known: dict[Layers, Scored] = {}
        for line in whole_lines(path) if path is not None else ():
            row = json.loads(line)
            if "sums" not in row:  # an older search kept no episodes; scored anew
                continue
            layers = tuple(row["layers"])
            self.known[layers] = Scored(layers, row["error"], tuple(row["sums"]))

    def add(self, scored: Sequence[Scored]) -> None:
        """Remember these."""
        for each in scored:
            self.known[each.layers] = each
        if self.path is not None:
            with appending(self.path) as add:
                for each in scored:
                    add(json.dumps(asdict(each)))


def search(
    teacher: Backbone,
    sample: Batch,
    layers: int,
    *,
    exhaustive: int = 1000,
    beam: int = 4,
    scores: Scores | None = None,
    title: str = "layer search",
) -> Found:
    """The sets of `layers` layers of a teacher, best first: all of them where there are no more than
    `exhaustive`, else those that a `beam` met. `sample`: frames, with the teacher's actions as
    `taught`; without, it is asked for them. Raises ValueError where so many layers are not there.
    """
    depth = len(teacher.layers)
    if layers > depth:
        raise ValueError(
            f"{layers} layers are to be kept, and the teacher has {depth}; give a smaller "
            "`--student.layers`"
        )
    if sample.taught is None:
        with torch.inference_mode():
            sample = replace(sample, taught=teacher(sample))
    scores = scores or Scores()
    count = math.comb(depth, layers)
    few = count <= exhaustive

    def scored(sets: Sequence[Layers]) -> list[Scored]:
        return _scored(teacher, sample, sets, scores, title=f"{title}, {len(sets[0])} of {depth}")

    if few:
        best = scored(list(itertools.combinations(range(depth), layers)))
        tried = count
    else:
        best, tried = _leave_out(depth, layers, beam, scored)
    leads = _leads(best, sample)
    within = None if leads is None else 1 + sum(lead.low <= 0 for lead in leads)
    return Found(
        tuple(best),
        tried,
        len(sample),
        depth,
        None if few else beam,
        episodes=int(episodes_of(sample).max()) + 1,
        lead=leads[0] if leads else None,
        within_noise=within,
    )


def episodes_of(sample: Batch) -> Tensor:
    """(b,) int64: which episode each frame is of, counted from 0; frames without keys are taken for
    one episode each."""
    if sample.keys is None:
        return torch.arange(len(sample))
    return sample.keys[:, 0].cpu().unique(return_inverse=True)[1]


def _leads(best: Sequence[Scored], sample: Batch) -> list[Lead] | None:
    """By how much the first of these leads each of the others that did not fall apart; None where
    one episode cannot say."""
    episodes = episodes_of(sample)
    count = int(episodes.max()) + 1
    if count < 2 or not best[0].sums:
        return None
    steps = torch.zeros(count, dtype=torch.float64)
    steps.index_add_(0, episodes, _valid(sample).sum(1).double().cpu())
    weights = steps.numpy()
    first = np.array(best[0].sums)
    from scipy import stats as scipy_stats  # slow to import, and of use only here

    quantile = float(scipy_stats.t.ppf(0.975, count - 1))
    found = []
    for other in best[1:]:
        if not other.sums:
            continue
        gaps = np.array(other.sums) - first
        difference = float(gaps.sum() / weights.sum())
        left = gaps - difference * weights  # of a ratio of sums, what each episode adds
        variance = count / (count - 1) * float((left**2).sum()) / float(weights.sum()) ** 2
        half = quantile * math.sqrt(variance)
        found.append(Lead(other.layers, difference, difference - half, difference + half))
    return found


def _leave_out(
    depth: int, layers: int, beam: int, scored: Callable[[Sequence[Layers]], list[Scored]]
) -> tuple[list[Scored], int]:
    """The sets of the last size, best first, and how many were tried on the way: from all layers on,
    each of the `beam` best sets loses each of its layers in turn."""
    best = [Scored(tuple(range(depth)), 0.0)]  # what all layers answer is the teacher's answer
    tried = 0
    for _ in range(depth - layers):
        shorter: set[Layers] = set()
        for each in best[:beam]:
            shorter.update(itertools.combinations(each.layers, len(each.layers) - 1))
        best = scored(sorted(shorter))
        tried += len(best)
    return best, tried


def _scored(
    teacher: Backbone, sample: Batch, sets: Sequence[Layers], scores: Scores, *, title: str
) -> list[Scored]:
    """The sets with their scores, best first; of equal ones the first in order."""
    missing = [each for each in sets if each not in scores.known]
    progress = Progress(title, total=len(sets), start=len(sets) - len(missing), unit="set")
    for start in range(0, len(missing), GROUP):
        group = missing[start : start + GROUP]
        scores.add(errors_of(teacher, sample, group))
        progress.advance(len(group))
    progress.close()
    found = [scores.known[each] for each in sets]
    return sorted(found, key=lambda each: (each.error, each.layers))


@torch.inference_mode()
def errors_of(teacher: Backbone, sample: Batch, sets: Sequence[Layers]) -> list[Scored]:
    """How far the actions of each set are from `sample.taught`, in the order of the sets."""
    sums = [0.0] * len(sets)
    steps = 0.0
    episodes = episodes_of(sample)
    of_each = torch.zeros(len(sets), int(episodes.max()) + 1, dtype=torch.float64)
    for start in range(0, len(sample), ROWS):
        part = sample.part(slice(start, start + ROWS))
        assert part.taught is not None  # `search` sees to it
        valid = _valid(part)
        steps += float(valid.sum())
        for number, actions in enumerate(answers(teacher, part, sets)):
            gap = (actions.float() - part.taught).abs().mean(-1)  # (b, k)
            counted = gap * valid
            sums[number] += float(counted.sum())
            mine = episodes[start : start + ROWS]
            of_each[number].index_add_(0, mine, counted.sum(1).double().cpu())
    found = []
    for layers, total, each in zip(sets, sums, of_each, strict=True):
        if math.isfinite(total):
            found.append(Scored(layers, total / steps, tuple(each.tolist())))
        else:  # a network that falls apart without a layer may answer NaN: nothing is further off
            found.append(Scored(layers, sys.float_info.max))
    return found


def _valid(sample: Batch) -> Tensor:
    """(b, k): which steps count; all of moments that nobody recorded."""
    if sample.actions_valid is not None:
        return sample.actions_valid
    assert sample.taught is not None  # `search` sees to it
    return torch.ones(sample.taught.shape[:2], device=sample.taught.device)


def answers(policy: Backbone, batch: Batch, sets: Sequence[Layers]) -> Iterator[Tensor]:
    """(b, k, a) of each set in turn, as the network cut to it would answer. No layer is copied:
    others are skipped as a router skips them, and what two neighbouring sets have in common from the
    first layer on runs once."""
    depth = len(policy.layers)
    path: list[State] = [policy.embed(batch)]  # before layer 0, and behind each layer decided
    decided: list[bool] = []
    for kept in sets:
        wanted = [index in kept for index in range(depth)]
        alike = 0
        while alike < len(decided) and decided[alike] == wanted[alike]:
            alike += 1
        del path[alike + 1 :]
        for index in range(alike, depth):
            step = policy.run_layer if wanted[index] else policy.skip_layer
            path.append(step(index, path[-1]))
        decided = wanted
        gates = torch.tensor(wanted, device=policy.device).float().expand(len(batch), -1)
        plan = tuple(map(int, wanted))
        yield policy.decode(Pass(path[0], path[-1], (), gates, {}, plan), batch)
