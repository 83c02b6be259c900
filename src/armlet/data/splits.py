"""Which episodes a student learns from, which it is calibrated on, and which nobody shows it. Knows
data sets, no network."""

import hashlib
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

import numpy as np

from armlet.data.episodes import EpisodeDataset

SHARES = (0.70, 0.15, 0.15)  # of episodes to train on, to calibrate on, and to leave alone


def last(data: EpisodeDataset, held_out: float) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the first episodes, and of the last share `held_out` of them (at least one).
    Raises ValueError where nothing is left."""
    episodes = len(data.episodes)
    count = max(1, math.ceil(held_out * episodes))
    if count >= episodes:
        raise ValueError(
            f"held_out {held_out} of {episodes} episodes leaves none to train on; lower it, or "
            "collect more"
        )
    return np.arange(episodes - count), np.arange(episodes - count, episodes)


def by_task(
    data: EpisodeDataset, shares: tuple[float, float, float] = SHARES
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three parts in which no instruction and no scene (the seed it was drawn from) stands twice;
    every kind of task is in each, as far as it has instructions enough.

    Episodes that share an instruction, any of those of an episode, or a scene stay together. Groups
    are ordered by a hash of their words, so that a larger collection of the same kind moves few of
    them. Raises ValueError where a part would be empty.
    """
    groups = _groups(data)
    by_kind: dict[str, list[list[int]]] = defaultdict(list)
    for group in groups:
        by_kind[str(data.episodes[group[0]].info.get("task", ""))].append(group)
    parts: list[list[int]] = [[], [], []]
    for kind in sorted(by_kind):
        ordered = sorted(by_kind[kind], key=lambda group: _hash(_first_words(data, group)))
        total = sum(map(len, ordered))
        done = 0
        for group in ordered:
            share = (done + len(group) / 2) / total  # the middle of a group says where it belongs
            if share < shares[0]:
                part = 0
            elif share < shares[0] + shares[1]:
                part = 1
            else:
                part = 2
            parts[part].extend(group)
            done += len(group)
    if not all(parts):
        raise ValueError(
            f"{len(data.episodes)} episodes in {len(groups)} groups of instruction and scene do "
            f"not part into {shares}: one part is empty; collect more"
        )
    train, calibrate, left = (np.array(sorted(part), np.int64) for part in parts)
    return train, calibrate, left


def rows_of(starts: np.ndarray, episodes: np.ndarray) -> np.ndarray:
    """The frames (n,) of some episodes, in order; `starts` (E + 1,) says where each begins."""
    return np.concatenate([np.arange(starts[number], starts[number + 1]) for number in episodes])


def _first_words(data: EpisodeDataset, group: list[int]) -> str:
    """The first of a group's instructions in the alphabet: a name that does not change as the group
    grows, but for words ahead of it."""
    return min(min(data.episodes[number].tasks) for number in group)


def _groups(data: EpisodeDataset) -> list[list[int]]:
    """Episodes joined wherever two have the same instruction, or the same seed of the same task."""
    # Union–find: each episode points towards the root of its group.
    parent = list(range(len(data.episodes)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]  # halves the way for whoever comes next
            number = parent[number]
        return number

    first: dict[tuple, int] = {}
    for number, episode in enumerate(data.episodes):
        marks: list[tuple] = [("words", words) for words in episode.tasks]
        if "seed" in episode.info:
            marks.append(("scene", episode.info.get("task"), episode.info["seed"]))
        for mark in marks:
            # To the first episode with this mark; the first itself is joined to itself.
            parent[root(number)] = root(first.setdefault(mark, number))
    found: dict[int, list[int]] = defaultdict(list)
    for number in range(len(parent)):
        found[root(number)].append(number)
    return list(found.values())


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


@dataclass(frozen=True)
class Parts:
    """Numbers of episodes: those to `train` on, those to `calibrate` on, and those that are
    `held_out`. A data set that is cut in two has no part of its own to calibrate on (`parts`)."""

    train: np.ndarray
    calibrate: np.ndarray
    held_out: np.ndarray


def parts(
    data: EpisodeDataset,
    split: Literal["last", "tasks"],
    held_out: float,
    *,
    reported: bool = False,
) -> Parts:
    """A data set as a recipe's `split` and `held_out` cut it.

    `reported`: the held-out episodes are what a report is about, as where there is no world to act
    in, so nothing may be chosen on them: of two parts, the one to train on is calibrated on too.
    Otherwise the last share is, which a report on episodes in a world says nothing about.
    """
    if split == "tasks":
        return Parts(*by_task(data))
    train, left = last(data, held_out)
    return Parts(train, train if reported else left, left)
