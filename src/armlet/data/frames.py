"""Episodes in memory, ready to be drawn as batches: one row a frame, joined to traces by (episode,
step).

Knows arrays, and from `Inputs` how a policy wants its words and numbers; knows no network.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from armlet.data.episodes import EpisodeDataset
from armlet.data.pictures import Joined, Pictures, Rows, expect, open_pictures
from armlet.robot.fit import View
from armlet.robot.inputs import Inputs, looked_at
from armlet.robot.normalise import Normaliser
from armlet.types import Batch


@dataclass(frozen=True)
class Frames:
    """N frames of E episodes in order. `starts` (E + 1,) says where each episode begins; `texts`
    are different instructions, of which a frame's is number `asked`: it may change within an
    episode. `executed` is what the robot really did, for the previous action. `runs` (R,): where
    stretches begin whose rows follow one another without a gap, episodes among them; None: at each
    episode, and nowhere else. What an annotator said, if one did: `labels` by name, and
    `descriptions`, different texts, of which a frame's is number `described`."""

    images: dict[str, Rows]  # camera -> (N, h, w, 3) uint8
    state: np.ndarray  # (N, s)
    actions: np.ndarray  # (N, a)
    executed: np.ndarray  # (N, a)
    privileged: dict[str, np.ndarray]  # name -> (N, x)
    texts: tuple[str, ...]
    asked: np.ndarray  # (N,) int64
    starts: np.ndarray
    runs: np.ndarray | None = None
    labels: dict[str, np.ndarray] = field(default_factory=dict)  # name -> (N,) int64
    descriptions: tuple[str, ...] = ()
    described: np.ndarray | None = None  # (N,) int64

    def __len__(self) -> int:
        return len(self.state)

    @property
    def episodes(self) -> int:
        return len(self.starts) - 1

    @property
    def begins(self) -> np.ndarray:
        """(R,): the first row of each stretch without a gap."""
        return self.starts[:-1] if self.runs is None else self.runs


class BatchMaker:
    """Rows of `Frames` → a `Batch`: normalised, tokenised, chunked. Actions past the end of an
    episode are not valid, nor are those past a gap in it: what was done in between is not known.
    After one, too, nothing has been done before, and nothing seen: the first observation is
    repeated for a policy that looks at several."""

    def __init__(self, frames: Frames, inputs: Inputs, *, device: torch.device) -> None:
        self.frames = frames
        self.device = device
        self.chunk = inputs.chunk
        self.history = inputs.history
        state = inputs.state
        actions = inputs.actions
        seen = looked_at(frames.state, state)
        _same_robot("observation.state", seen, state)
        _same_robot("action", frames.actions, actions)
        self._episode = np.repeat(np.arange(frames.episodes), np.diff(frames.starts))
        ends = np.append(frames.begins[1:], len(frames))
        # (N,): where each row's stretch without a gap ends.
        self._end = np.repeat(ends, ends - frames.begins)
        self._begin = np.repeat(frames.begins, ends - frames.begins)  # (N,): and where it begins
        # Normalised once for all epochs; what is drawn are rows of these.
        self._state = state.apply(seen).astype(np.float32)
        self._inputs = inputs
        # Relative to the state of each row itself; a chunk's are to that of its first.
        self._actions = inputs.normalised(frames.actions, frames.state)
        # At a beginning nothing was done: zeros in the robot's numbers, which are not zeros here.
        before = np.zeros_like(frames.executed)
        before[1:] = frames.executed[:-1]
        before[frames.begins] = 0
        self._previous = inputs.normalised(before, frames.state)
        if inputs.prompt is None:
            self._text, self._text_mask = inputs.words(frames.texts)
        self._descriptions, self._described = inputs.words(frames.descriptions, any_length=True)
        self._privileged = {}
        for name, values in frames.privileged.items():
            self._privileged[name] = _standardised(values)

    def __len__(self) -> int:
        return len(self.frames)

    def keys(self, rows: np.ndarray) -> np.ndarray:
        """(b, 2) int64: episode and step of each row."""
        episode = self._episode[rows]
        return np.stack([episode, rows - self.frames.starts[episode]], 1)

    def first_actions(self) -> torch.Tensor:
        """(N, a): every frame's own action, normalised."""
        return self._tensor(self._actions)

    def batch(self, rows: np.ndarray, *, pictures: slice | None = None) -> Batch:
        """The batch of `rows` (b,). `pictures`: of these of its moments alone; None: of all."""
        frames = self.frames
        wanted = rows[:, None] + np.arange(self.chunk)  # (b, k): the rows of the chunk's actions
        valid = wanted < self._end[rows][:, None]
        actions = self._chunks(rows, np.minimum(wanted, len(self) - 1))  # (b, k, a)
        actions[~valid] = 0
        text, real = self._words(rows)
        description = None
        description_mask = None
        if frames.described is not None:
            described = frames.described[rows]
            description = self._tensor(self._descriptions[described])
            description_mask = self._tensor(self._described[described])
        seen = self._seen(rows)
        looked = seen if pictures is None else seen[pictures]
        earlier, earlier_valid = self._earlier(rows)
        return Batch(
            images={name: self._images(name, looked) for name in frames.images},
            # Padded to the longest of all: one shape, so compiled code is compiled once.
            text=self._tensor(text),
            text_mask=self._tensor(real),
            state=self._tensor(self._state[seen]),
            previous_action=self._tensor(self._previous[rows]),
            actions=self._tensor(actions),
            actions_valid=self._tensor(valid),
            earlier_actions=earlier,
            earlier_valid=earlier_valid,
            keys=torch.from_numpy(self.keys(rows)),
            description=description,
            description_mask=description_mask,
            labels=self._columns(frames.labels, rows),
            privileged=self._columns(self._privileged, rows),
        )

    def _chunks(self, rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """The normalised actions of rows `wanted` (b, k), decided at `rows` (b,)."""
        if not self._inputs.relative:
            return self._actions[wanted]
        state = self.frames.state[rows][:, None]  # (b, 1, s)
        return self._inputs.normalised(self.frames.actions[wanted], state)

    def _words(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids (b, t) of what is said at `rows`, and which are real."""
        frames = self.frames
        asked = frames.asked[rows]
        if self._inputs.prompt is None:
            return self._text[asked], self._text_mask[asked]
        # Read anew each time: with the state in it hardly a prompt comes twice.
        return self._inputs.prompt([frames.texts[each] for each in asked], self._state[rows])

    def expect(self, rows: np.ndarray) -> None:
        """A word that the pictures of `rows` (b,) are asked for next: those that are streamed are
        decoded meanwhile."""
        wanted = np.unique(self._seen(rows))
        for pictures in self.frames.images.values():
            expect(pictures, rows if self.history == 1 else wanted)

    def _seen(self, rows: np.ndarray) -> np.ndarray:
        """The rows of what is looked at at `rows` (b,): these or, with a history, (b, o)."""
        if self.history == 1:
            return rows
        before = rows[:, None] + np.arange(1 - self.history, 1)
        return np.maximum(before, self._begin[rows][:, None])

    def _earlier(self, rows: np.ndarray) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The actions (b, o − 1, a) of the moments before that are looked at, and which are of this
        stretch (b, o − 1); None where no moment before is looked at."""
        if self.history == 1:
            return None, None
        before = rows[:, None] + np.arange(1 - self.history, 0)  # (b, o − 1)
        begin = self._begin[rows][:, None]
        actions = self._actions[np.maximum(before, begin)]
        return self._tensor(actions), self._tensor(before >= begin)

    def _images(self, name: str, rows: np.ndarray) -> torch.Tensor:
        # (…, h, w, 3) uint8 → (…, 3, h, w) in [0, 1]; moved as bytes, a quarter of the floats.
        return self._tensor(self._read(name, rows)).movedim(-1, -3).float().div_(255)

    def _read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Pictures of `rows` (…), (…, h, w, 3)."""
        if rows.ndim == 1:
            return self.frames.images[name][rows]
        # Each is read once, however many moments look at it.
        once, places = np.unique(rows, return_inverse=True)
        return self.frames.images[name][once][places.reshape(rows.shape)]

    def _columns(self, columns: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, torch.Tensor]:
        return {name: self._tensor(values[rows]) for name, values in columns.items()}

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)


def _same_robot(what: str, values: np.ndarray, normaliser: Normaliser) -> None:
    if values.shape[1] != len(normaliser.offset):
        raise ValueError(
            f"{what} of the episodes has {values.shape[1]} dimensions and the policy's statistics "
            f"have {len(normaliser.offset)}; the policy belongs to another robot than these "
            "episodes"
        )


def _standardised(values: np.ndarray) -> np.ndarray:
    # A fact that never changes is 0 throughout, and not 0 / 0.
    return ((values - values.mean(0)) / np.maximum(values.std(0), 1e-6)).astype(np.float32)


def join_frames(parts: Sequence[Frames]) -> Frames:
    """The episodes of several data sets, one after the other."""
    places: dict[str, int] = {}  # text → its number among all; some are in several data sets
    asked = []
    starts = [np.zeros(1, np.int64)]
    runs = []
    descriptions: list[str] = []
    rows = 0  # of the parts before
    for part in parts:
        # Of each text of the part: its number among all, a new one where it is new.
        numbers = [places.setdefault(text, len(places)) for text in part.texts]
        asked.append(np.array(numbers, np.int64)[part.asked])
        starts.append(part.starts[1:] + rows)
        runs.append(part.begins + rows)
        descriptions += part.descriptions
        rows += len(part)
    images: dict[str, Rows] = {}
    for name in parts[0].images:
        images[name] = Joined([part.images[name] for part in parts])
    return Frames(
        images=images,
        state=np.concatenate([part.state for part in parts]),
        actions=np.concatenate([part.actions for part in parts]),
        executed=np.concatenate([part.executed for part in parts]),
        privileged=_joined_columns([part.privileged for part in parts]),
        texts=tuple(places),
        asked=np.concatenate(asked),
        starts=np.concatenate(starts),
        runs=np.concatenate(runs),
        labels=_joined_columns([part.labels for part in parts]),
        descriptions=tuple(descriptions),
        described=_joined_descriptions(parts),
    )


def _joined_columns(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The columns of the first part, each with what the others hold under its name behind it."""
    joined = {}
    for name in parts[0]:
        joined[name] = np.concatenate([part[name] for part in parts])
    return joined


def _joined_descriptions(parts: Sequence[Frames]) -> np.ndarray | None:
    """Numbers of descriptions when those of every part stand behind those of the parts before it;
    None where none has any. Raises ValueError where some parts are described and some are not:
    nobody asked the annotator about these."""
    silent = [number for number, part in enumerate(parts) if part.described is None]
    if len(silent) == len(parts):
        return None
    if silent:
        raise ValueError(
            f"of {len(parts)} data sets, number {silent[0]} has no descriptions and others have; "
            "annotate it, too"
        )
    numbers = []
    first = 0  # the number of the part's first description among all
    for part in parts:
        numbers.append(np.asarray(part.described) + first)
        first += len(part.descriptions)
    return np.concatenate(numbers)


def draw(length: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """The rows of batch number `step`: every frame once an epoch, in an order that depends on
    (seed, epoch) only, so a resumed run draws what an uninterrupted one would. The last batch of an
    epoch may be smaller."""
    per_epoch = -(-length // batch_size)  # rounded up
    epoch, position = divmod(step, per_epoch)
    order = _order(length, epoch, seed)
    return np.sort(order[position * batch_size : (position + 1) * batch_size])


# Of this epoch and, at its end, of the next, whose first rows are asked for ahead.
@functools.lru_cache(maxsize=2)
def _order(length: int, epoch: int, seed: int) -> np.ndarray:
    order = np.random.default_rng([seed, epoch]).permutation(length)
    order.setflags(write=False)  # it is in the cache
    return order


def load_frames(
    data: EpisodeDataset, view: View | None = None, pictures: Pictures | None = None
) -> Frames:
    """All frames of a data set, its pictures as `view` sees them: where nothing is said, all of
    them, as they are. Columns stand in memory; pictures are read by rows, kept or streamed as
    `pictures` says."""
    columns = data.columns()
    privileged = {name: columns[f"privileged.{name}"] for name in data.privileged}
    return Frames(
        images=open_pictures(data, view or View(data.cameras), pictures or Pictures()),
        state=columns["observation.state"],
        actions=columns["action"],
        # Data that do not say what was carried out: what was commanded.
        executed=columns.get("executed", columns["action"]),
        privileged=privileged,
        texts=data.tasks,
        asked=data.asked,
        starts=data.starts,
        runs=data.runs,
    )
