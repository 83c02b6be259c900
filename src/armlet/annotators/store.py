"""Labels on disk: one row a frame in a trace store, and which of them are still missing.

Texts stand in the rows themselves, as UTF-8 bytes padded to a fixed width, so a store is complete
in one place and a row is still one read; a text that does not fit is refused, never cut. Knows no
annotator.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import numpy as np

from armlet.annotators import (
    DESCRIPTION_BYTES,
    ELEMENT_BYTES,
    AnnotationError,
    Annotator,
    Cost,
    LabelError,
    Labels,
    NotConfirmedError,
    annotator_fingerprint,
    encode_text,
)
from armlet.data.episodes import EpisodeDataset, EpisodeFrames
from armlet.data.files import read_json, write_atomically
from armlet.data.packed_rows import pack_rows, unpack_rows, without
from armlet.data.packing import pack, unpack
from armlet.data.traces import HEADER, StoreIdentity, TraceStore, TraceWriter
from armlet.progress import Progress

FORMAT = "labels 1"  # raised whenever what stands in a row changes
COLUMNS: dict[str, tuple[tuple[int, ...], str]] = {
    # (), one number: its place in PHASES, or in DIRECTIONS. Whoever changes these lists, which are
    # not in the store, raises FORMAT.
    "phase": ((), "uint8"),
    "direction": ((), "uint8"),
    "element": ((ELEMENT_BYTES,), "uint8"),
    "description": ((DESCRIPTION_BYTES,), "uint8"),
}
# Rows in memory before they are written: every write waits for the disk twice, and what a killed
# run may lose has to be asked for, and paid for, again.
ROWS = 2048
GIVE_UP = 20  # episodes that fail one after the other before the rest are not tried any more
FAILED = "failed.json"
Row = tuple[np.ndarray, dict[str, np.ndarray]]
Keep = Callable[[np.ndarray, dict[str, np.ndarray]], object]  # keys (n, 2), columns (n, …)


def label_identity(annotator: Annotator, data: EpisodeDataset) -> StoreIdentity:
    """What a store of labels must have been made from."""
    return StoreIdentity(
        data=data.fingerprint, teacher=annotator_fingerprint(annotator), preprocessing=FORMAT
    )


def store_labels(
    root: Path | str,
    annotator: Annotator,
    data: EpisodeDataset,
    *,
    confirm: Callable[[Cost], bool] | None = None,
) -> Path:
    """Labels of every frame of a data set, into the store at `root`; what is there already stays.
    Returns `root`.

    `confirm` is shown what it will cost, before anything is asked, unless the annotator has agreed
    to that (`agreed`). Raises NotConfirmedError where that costs something and `confirm` is missing
    or says no. Episodes an annotator has no answer
    for become one LabelError at the end, when all the others are stored; it names them,
    `failed.json` lists them, and the next run asks only about these.
    """
    root = Path(root)
    identity = label_identity(annotator, data)
    refuse_others(root, identity)
    with TraceWriter(root, identity, COLUMNS) as writer:
        done = set(map(tuple, writer.done().tolist()))  # (episode, step)
        missing = []
        for number, episode in enumerate(data.episodes):
            if _steps_left(number, episode.length, done):
                missing.append(number)
        annotator = confirmed(annotator, data, missing, confirm)
        progress = Progress(
            f"labels of {data.root.name}",
            total=len(data.episodes),
            start=len(data.episodes) - len(missing),
            unit="episode",
        )

        def tell(failed: int) -> None:
            progress.advance(failed=failed)

        with contextlib.closing(progress):
            episodes = _Episodes(data, annotator)
            failed = _annotate(annotator, episodes, missing, done, writer.append, tell)
    _list_failed(root, failed)
    refuse_failed(root, failed, len(data.episodes))
    return root


def confirmed(
    annotator: Annotator,
    data: EpisodeDataset,
    missing: Sequence[int],
    confirm: Callable[[Cost], bool] | None,
) -> Annotator:
    """The annotator, with leave to spend what labels of the episodes `missing` will cost; see
    `store_labels`."""
    cost = None
    if missing:
        # One by one: all episodes at once need not fit into memory.
        blind = map(_Episodes(data, annotator).blind, missing)
        cost = annotator.estimate(blind, data.cameras, data.fps)
    # Rules ask nobody (None), and of episodes in which nothing is operated nobody is asked (0).
    if cost is None or not cost.questions:
        return annotator
    if not annotator.agreed(cost) and (confirm is None or not confirm(cost)):
        raise NotConfirmedError(f"nothing was asked, because nobody confirmed {cost}")
    return annotator.confirmed()


class Labelling:
    """What one of several processes makes of episodes, a shard after the other: their labels, packed
    with why some have none. Raises LabelError where nothing works: others may have a server that
    answers."""

    def __init__(self, annotator: Annotator, data: EpisodeDataset) -> None:
        self._annotator = annotator
        self._episodes = _Episodes(data, annotator)
        self._in_a_row = 0  # how many failed one after the other

    def __call__(self, numbers: Sequence[int]) -> bytes:
        parts: list[Row] = []

        def keep(keys: np.ndarray, columns: dict[str, np.ndarray]) -> None:
            parts.append((keys, columns))

        failed = _annotate(self._annotator, self._episodes, list(numbers), set(), keep)
        self._in_a_row = self._in_a_row + len(failed) if len(failed) == len(numbers) else 0
        if self._in_a_row >= GIVE_UP:
            number, why = sorted(failed.items())[-1]
            raise LabelError(
                f"{self._in_a_row} episodes failed one after the other; the last was episode "
                f"{number}, {why}"
            )
        rows = pack_rows(parts, COLUMNS)
        return pack({"rows": rows, FAILED: json.dumps(failed).encode()})


def lay_out_labels(
    root: Path, annotator: Annotator, data: EpisodeDataset, shards: Iterable[bytes]
) -> dict[int, str]:
    """Labels that processes made together (`Labelling`), into the store at `root`; what is there
    already stays. Returns episode → why it has none."""
    said: dict[int, str] = {}
    with TraceWriter(root, label_identity(annotator, data), COLUMNS) as writer:
        done = set(map(tuple, writer.done().tolist()))  # (episode, step)
        for content in shards:
            files = unpack(content)
            keys, columns = without(unpack_rows(files["rows"], COLUMNS), done)
            if len(keys):
                writer.append(keys, columns)
                done |= set(map(tuple, keys.tolist()))
            for number, why in json.loads(files[FAILED]).items():
                said[int(number)] = why
    failed = {}
    for number, why in said.items():
        if _steps_left(number, data.episodes[number].length, done):
            failed[number] = why
    _list_failed(root, failed)
    return failed


class _Episodes:
    """The episodes of a data set as annotators take them."""

    def __init__(self, data: EpisodeDataset, annotator: Annotator) -> None:
        self.data = data
        self.looks = annotator.looks
        self.columns = data.columns()

    def blind(self, number: int) -> EpisodeFrames:
        """An episode without its pictures."""
        span = slice(self.data.starts[number], self.data.starts[number + 1])
        values = {name: column[span] for name, column in self.columns.items()}
        state = values.pop("observation.state")
        action = values.pop("action")
        about = self.data.episodes[number]
        asked: tuple[str, ...] = ()
        if len(about.tasks) > 1:
            asked = tuple(self.data.tasks[place] for place in self.data.asked[span].tolist())
        return EpisodeFrames({}, state, action, values, about.task, about.info, asked)

    def seen(self, number: int) -> EpisodeFrames:
        """An episode with its pictures, for an annotator that looks at them."""
        episode = self.blind(number)
        if self.looks:
            episode.images.update(self.data.images(number))
        return episode


def _annotate(
    annotator: Annotator,
    episodes: _Episodes,
    missing: list[int],
    done: set[tuple[int, ...]],
    keep: Keep,
    tell: Callable[[int], object] = lambda failed: None,
) -> dict[int, str]:
    """Labels of the episodes `missing`, some at a time to `keep`; returns episode → why it has none.
    `tell` is told after each episode how many failed so far."""
    data = episodes.data
    in_a_row = 0  # how many failed one after the other
    failed: dict[int, str] = {}
    pending: list[Row] = []

    def annotate(number: int) -> Labels:
        return annotator.annotate(episodes.seen(number), data.fps)

    # Threads, not processes: an annotator mostly waits for a server.
    pool = ThreadPoolExecutor(annotator.concurrency)
    try:
        jobs: dict[Future[Labels], int] = {}
        for number in missing:
            jobs[pool.submit(annotate, number)] = number
        for job in as_completed(jobs):
            number = jobs.pop(job)
            try:
                labels = job.result()
            except AnnotationError as error:
                failed[number] = str(error)
                in_a_row += 1
            else:
                in_a_row = 0
                pending.append(_rows(number, labels, data.episodes[number].length, done))
            if sum(len(keys) for keys, _ in pending) >= ROWS:
                _flush(keep, pending)
            tell(len(failed))
            # A server that is down would otherwise be asked about every episode, with all retries.
            if in_a_row == GIVE_UP:
                failed |= dict.fromkeys(
                    jobs.values(),
                    f"not tried: {GIVE_UP} episodes before it failed one after the other",
                )
                break
    finally:
        # Also after an error: what was answered is paid for, and kept.
        pool.shutdown(cancel_futures=True)
        _flush(keep, pending)
    return failed


def _steps_left(number: int, length: int, done: set[tuple[int, ...]]) -> list[int]:
    """The steps of an episode that have no labels yet: a killed run may have written some."""
    return [step for step in range(length) if (number, step) not in done]


def _rows(number: int, labels: Labels, length: int, done: set[tuple[int, ...]]) -> Row:
    if len(labels) != length:
        raise LabelError(
            f"episode {number} has {length} frames, and the annotator labelled {len(labels)}"
        )
    steps = np.array(_steps_left(number, length, done))
    keys = np.stack([np.full(len(steps), number), steps], 1)  # (n, 2)
    columns = {
        "phase": labels.phase[steps],
        "direction": labels.direction[steps],
        "element": _texts(labels.element, ELEMENT_BYTES, "element")[steps],
        "description": _texts(labels.description, DESCRIPTION_BYTES, "description")[steps],
    }
    return keys, columns


def _flush(keep: Keep, pending: list[Row]) -> None:
    """Keep what is pending. What cannot be written is not tried again: the next run makes it
    anew."""
    rows = pending.copy()
    pending.clear()
    if not rows:
        return
    keys, values = zip(*rows, strict=True)
    columns = {}
    for name in COLUMNS:
        columns[name] = np.concatenate([each[name] for each in values])
    keep(np.concatenate(keys), columns)


def _list_failed(root: Path, failed: dict[int, str]) -> None:
    path = root / FAILED
    # One file, of the last run: an old list would name episodes that have labels by now.
    if not failed:
        path.unlink(missing_ok=True)
        return
    listed = []
    for number in sorted(failed):
        listed.append({"episode": number, "why": failed[number]})
    write_atomically(path, json.dumps(listed, indent=1).encode())


def refuse_failed(root: Path, failed: dict[int, str], episodes: int) -> None:
    """Raises LabelError naming the episodes that have no labels, where there are any."""
    if not failed:
        return
    lines = []
    for number in sorted(failed):
        lines.append(f"episode {number}, {failed[number]}")
    shown = "\n  ".join(lines[:8])
    raise LabelError(
        f"{len(failed)} of {episodes} episodes have no labels; the others are stored. Run the "
        f"same command again to ask only about these ({root / FAILED} lists them all):\n  {shown}"
    )


def load_labels(
    root: Path | str, data: EpisodeDataset, annotator: Annotator | None = None
) -> Labels:
    """Labels of all N frames of a data set, in its order. Raises LabelError where the store belongs
    to other episodes (or to another annotator, if one is given), or lacks some."""
    root = Path(root)
    if not (root / HEADER).is_file():
        raise LabelError(
            f"{root} holds no labels of what happens in the episodes; `armlet probe` of the recipe that "
            "reads them makes them, from Python store_labels"
        )
    store = TraceStore(root)
    found = store.header.identity
    if annotator:
        wanted = label_identity(annotator, data)
    else:
        # Whoever made them: only the episodes must be these.
        wanted = StoreIdentity(data.fingerprint, found["teacher"], FORMAT)
    refuse_others(root, wanted)
    lengths = np.diff(data.starts)
    episodes = np.repeat(np.arange(len(lengths)), lengths)  # (N,)
    # Each row's number less that of its episode's first row; keys are (N, 2).
    steps = np.arange(len(episodes)) - np.repeat(data.starts[:-1], lengths)
    keys = np.stack([episodes, steps], 1)
    try:
        rows = store.read(keys)  # tensors (N, …)
    except KeyError as error:
        raise LabelError(
            f"{root} has labels of {len(store)} of {len(keys)} frames; `armlet probe` again adds the "
            "missing ones, from Python store_labels"
        ) from error
    return Labels(
        rows["phase"].numpy().astype(np.int64),
        rows["direction"].numpy().astype(np.int64),
        _words(rows["element"].numpy()),
        _words(rows["description"].numpy()),
    )


def refuse_others(root: Path, wanted: StoreIdentity) -> None:
    """Raises LabelError where a store exists and was made from something else."""
    if not (root / HEADER).is_file():
        return
    found = read_json(root / HEADER, fix=f"delete {root} to annotate again")["identity"]
    names = {
        "data": "other episodes",
        "teacher": "another annotator",
        "preprocessing": "another version of armlet",
    }
    for key, value in asdict(wanted).items():
        if found.get(key) != value:
            raise LabelError(
                f"the labels in {root} belong to {names[key]}: they were made from "
                f"{found.get(key)!r}, and this is {value!r}. Store labels in another folder, or "
                "delete this one"
            )


def _texts(texts: Sequence[str], room: int, name: str) -> np.ndarray:
    """T texts as (T, room) uint8, padded with zeros."""
    if not texts:  # np.stack takes no empty list
        return np.zeros((0, room), np.uint8)
    # A few different texts stand for hundreds of frames: each is encoded once.
    rows = {}
    for text in set(texts):
        padded = encode_text(text, room, name).ljust(room, b"\0")
        rows[text] = np.frombuffer(padded, np.uint8)
    return np.stack([rows[text] for text in texts])


def _words(rows: np.ndarray) -> tuple[str, ...]:
    """(T, room) uint8 → T texts."""
    # `encode_text` refuses zero bytes, so those at the end are padding.
    known, which = np.unique(rows, axis=0, return_inverse=True)
    texts = [row.tobytes().rstrip(b"\0").decode() for row in known]
    return tuple(texts[index] for index in which.ravel())
