"""Several data sets as one: the same rows as numpy's own concatenation gives, without copying pictures."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_frames

from armlet.data.frames import Joined, join_frames


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_joined_rows_are_those_of_a_concatenation(lengths: list[int], data: st.DataObject) -> None:
    parts = [np.random.default_rng(n).integers(0, 9, (length, 2)) for n, length in enumerate(lengths)]
    whole = np.concatenate(parts)
    rows = np.array(data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=9)))
    joined = Joined(parts)
    assert len(joined) == len(whole)
    np.testing.assert_array_equal(joined[rows], whole[rows])
    np.testing.assert_array_equal(joined[1:3], whole[1:3])


def test_joined_episodes_follow_one_another() -> None:
    first, second = make_frames(), make_frames(episodes=3, seed=1)
    both = join_frames([first, second])
    assert len(both) == len(first) + len(second) and both.episodes == 10
    rows = np.array([len(first), 0, len(both) - 1])
    np.testing.assert_array_equal(
        both.images["scene"][rows], np.stack([second.images["scene"][0], first.images["scene"][0], second.images["scene"][-1]])
    )
    assert both.starts[first.episodes] == len(first)
