"""What the robot was told in each row: by the row's task_index and the file of tasks, never by the order in which an episode lists
its tasks, which is none. Knows rows; knows no other column."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from armlet.data.layout import Stored, task_texts, tasks_file
from armlet.data.opening import EpisodeError, open_parquet
from armlet.data.rows import Rows


def told(root: Path, rows: Rows, stored: Sequence[Stored]) -> tuple[tuple[str, ...], np.ndarray]:
    """The different texts in order of appearance, and the number (N,) int64 of each row's. Raises EpisodeError naming the first
    episode, and frame, of which it is not known."""
    if rows.task is None:
        number = next(number for number, each in enumerate(stored) if each.data is None or not _has_task(root / each.data))
        raise EpisodeError(
            f"{root}: the rows of episode {stored[number].index} have no column task_index, so which task they "
            "belong to is not known; convert the data set with lerobot"
        )
    texts = task_texts(root)
    if texts is None:
        said = _only_tasks(root, stored)
        numbers = rows.episode
    else:
        unknown = ~np.isin(rows.task, np.array(list(texts), np.int64))
        if unknown.any():
            row = int(np.argmax(unknown))
            raise EpisodeError(
                f"{root / rows.file_of(row)}: {rows.place_of(row)} has task_index {rows.task[row]}, and {tasks_file(root)} has no such task; "
                f"it has {', '.join(map(str, sorted(texts)[:20]))}"
            )
        said, numbers = texts, rows.task
    found, first, which = np.unique(numbers, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    tasks = tuple(dict.fromkeys(said[int(found[place])] for place in order))
    places = {text: place for place, text in enumerate(tasks)}
    return tasks, np.array([places[said[int(number)]] for number in found], np.int64)[which]


def _has_task(path: Path) -> bool:
    with open_parquet(path) as parquet:
        return "task_index" in parquet.schema_arrow.names


def _only_tasks(root: Path, stored: Sequence[Stored]) -> dict[int, str]:
    """Position → task of the episodes, where no file says what a task_index means, and each has one task."""
    found = {}
    for position, each in enumerate(stored):
        if len(each.tasks) != 1:
            raise EpisodeError(
                f"{root}: episode {each.index} has {len(each.tasks)} tasks, and meta/tasks.parquet or meta/tasks.jsonl, "
                "which says which frame has which, is missing; copy it again"
            )
        found[position] = each.tasks[0]
    return found
