"""Which frames of a round are kept and how often they are drawn."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_frames

from armlet.training.practice import mixed, worth_learning


def data_of(frames, failed: set[int]):
    return SimpleNamespace(
        episodes=[
            SimpleNamespace(info={"success": index not in failed})
            for index in range(frames.episodes)
        ]
    )


def test_failed_episodes_come_first_then_the_largest_differences() -> None:
    frames = make_frames(episodes=5)
    rng = np.random.default_rng(0)
    frames = dataclasses.replace(
        frames, executed=frames.actions + rng.normal(size=frames.actions.shape).astype(np.float32)
    )
    data = data_of(frames, {1, 3})
    assert worth_learning(data, frames, None).tolist() == list(range(len(frames)))
    episode = np.repeat(np.arange(5), np.diff(frames.starts))
    lost = np.flatnonzero(np.isin(episode, [1, 3]))
    kept = worth_learning(data, frames, len(lost) + 3)
    assert set(lost) <= set(kept) and len(kept) == len(lost) + 3
    distance = np.abs(frames.executed - frames.actions).mean(1)
    others = np.setdiff1d(np.arange(len(frames)), lost)
    assert set(kept) - set(lost) == set(others[np.argsort(-distance[others])[:3]])
    few = worth_learning(data, frames, 2)
    assert set(few) <= set(lost) and distance[few].min() >= np.sort(distance[lost])[-2]


@given(st.integers(50, 5000), st.integers(1, 60), st.floats(0.05, 0.6))
def test_what_was_practised_is_drawn_as_often_as_asked(
    base: int, practised: int, share: float
) -> None:
    rows = mixed(np.arange(base), base + np.arange(practised), share)
    counts = np.bincount(rows)
    assert (counts[:base] == 1).all() and len(set(counts[base:])) == 1
    found = (rows >= base).mean()
    if (
        practised <= share / (1 - share) * base
    ):  # else once is more than asked, and less than once there is not
        assert found == pytest.approx(share, abs=0.5 * practised / len(rows) + 0.01)
    else:
        assert counts[-1] == 1
