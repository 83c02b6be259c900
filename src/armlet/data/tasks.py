"""What the robot was told in each row: by the row's task_index and the file of tasks, never by the
order in which an episode lists its tasks, which is none. Knows rows; knows no other column."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from armlet.data.layout import StoredEpisode, task_texts, tasks_file
from armlet.data.opening import EpisodeError, open_parquet
from armlet.data.rows import Rows


def read_tasks(
    root: Path, info: dict[str, Any], rows: Rows, stored: Sequence[StoredEpisode]
) -> tuple[tuple[str, ...], np.ndarray]:
    """The different texts in order of appearance, and the number (N,) int64 of each row's. Raises
    EpisodeError naming the first episode, and frame, of which it is not known, or of which the list
    of episodes says another."""
    if rows.task is None:
        raise EpisodeError(
            f"{root}: the rows of episode {_without_task(root, stored)} have no column "
            "task_index, so which task they belong to is not known; convert the data set with "
            "lerobot"
        )
    path = tasks_file(root, info)
    if path is None:
        # A task an episode: the episode's position, (N,), stands for it.
        said = _only_tasks(root, stored)
        numbers = rows.episode
    else:
        texts = task_texts(path)
        # (N,) bool, and no look-up row by row: N may be millions.
        unknown = ~np.isin(rows.task, np.array(list(texts), np.int64))
        if unknown.any():
            row = int(np.argmax(unknown))
            raise EpisodeError(
                f"{root / rows.file_of(row)}: {rows.place_of(row)} has task_index "
                f"{rows.task[row]}, and {path} has no such task; it has "
                f"{', '.join(map(str, sorted(texts)[:20]))}"
            )
        _check_listed(root, path, rows, stored, texts)
        said = texts
        numbers = rows.task
    # The few different numbers, not the N rows, are looked up and put in order of appearance.
    found, first, which = np.unique(numbers, return_index=True, return_inverse=True)
    places: dict[str, int] = {}
    for place in np.argsort(first, kind="stable"):
        # Two numbers may have one text: they are one task.
        places.setdefault(said[int(found[place])], len(places))
    asked = np.array([places[said[int(number)]] for number in found], np.int64)
    return tuple(places), asked[which]


def _check_listed(
    root: Path, path: Path, rows: Rows, stored: Sequence[StoredEpisode], texts: dict[int, str]
) -> None:
    """What an episode's rows were told must be among the tasks that the metadata list for it, in
    whatever order; a task more in the list does no harm, as after rows were cut away. Blanks do not
    count."""
    assert rows.task is not None
    plain = {}
    for number, text in texts.items():
        plain[number] = _without_blanks(text)
    for position, each in enumerate(stored):
        listed = set(map(_without_blanks, each.tasks))
        span = slice(rows.starts[position], rows.starts[position + 1])
        found, firsts = np.unique(rows.task[span], return_index=True)
        strange = []  # the first rows, in the episode, of tasks that are not listed
        for number, first in zip(found.tolist(), firsts.tolist(), strict=True):
            if plain[number] not in listed:
                strange.append(first)
        if strange:
            row = int(rows.starts[position]) + min(strange)
            raise EpisodeError(
                f"{root / rows.file_of(row)}: {rows.place_of(row)} has task_index "
                f"{rows.task[row]}, which is {texts[int(rows.task[row])]!r} in {path}, and the "
                f"metadata list {', '.join(map(repr, each.tasks))} for this episode; put right "
                "whichever is wrong"
            )


def _without_blanks(text: str) -> str:
    """With single ones: people type two, and converters leave a line end."""
    return " ".join(text.split())


def _without_task(root: Path, stored: Sequence[StoredEpisode]) -> int:
    """The number of the first episode whose rows have no task_index, as some have none."""
    for each in stored:
        if each.data is None or not _has_task(root / each.data):
            return each.index
    raise AssertionError("all files have the column")


def _has_task(path: Path) -> bool:
    with open_parquet(path) as parquet:
        return "task_index" in parquet.schema_arrow.names


def _only_tasks(root: Path, stored: Sequence[StoredEpisode]) -> dict[int, str]:
    """Position → task of the episodes, where no file says what a task_index means, and each has one
    task."""
    found = {}
    for position, each in enumerate(stored):
        if len(each.tasks) != 1:
            raise EpisodeError(
                f"{root}: episode {each.index} has {len(each.tasks)} tasks, and "
                "meta/tasks.parquet or meta/tasks.jsonl, which says which frame has which, is "
                "missing; copy it again"
            )
        found[position] = each.tasks[0]
    return found
