"""Errors of chunks against what an expert did, in closed form: an oracle, a constant, episodes that
end, gaps in them, grippers, intervals."""

import numpy as np
import pytest

from armlet.evaluation.action_errors import (
    CHUNK,
    EPISODE,
    MEAN,
    REPEAT,
    Recording,
    absolute,
    baselines,
    by_dimension,
    by_group,
    by_step,
    choose_rows,
    gripper_agreement,
    moments_at,
    over_episodes,
    share,
    thirds,
)

DIMS = 3


def recording(*lengths: int, gaps: tuple[int, ...] = (), seed: int = 0) -> Recording:
    """Episodes of some lengths, all numbers different; `gaps`: rows before which one is missing."""
    starts = np.cumsum([0, *lengths])
    actions = np.random.default_rng(seed).normal(size=(starts[-1], DIMS)).astype(np.float32)
    runs = np.array(sorted({*starts[:-1].tolist(), *gaps}))
    return Recording(actions, actions, starts, runs)


def test_the_expert_itself_errs_by_nothing_and_a_constant_by_that_constant() -> None:
    data = recording(7, 4)
    moments = moments_at(data, np.arange(11), 5)
    assert np.all(absolute(moments.actions, moments.actions) == 0)
    off = np.array([0.5, -2.0, 30.0])
    errors = absolute(moments.actions + off, moments.actions)
    np.testing.assert_allclose(by_dimension(errors, moments.valid), np.abs(off))
    np.testing.assert_allclose(by_step(errors, moments.valid), np.tile(np.abs(off), (5, 1)))


def test_a_chunk_holds_what_the_expert_did_next() -> None:
    data = recording(7, 4)
    moments = moments_at(data, np.array([2, 7]), 3)
    np.testing.assert_array_equal(moments.actions[0], data.actions[2:5])
    np.testing.assert_array_equal(moments.actions[1], data.actions[7:10])
    np.testing.assert_array_equal(moments.previous[0], data.actions[1])
    assert moments.known.tolist() == [True, False] and not moments.previous[1].any()
    assert moments.episode.tolist() == [0, 1] and moments.step.tolist() == [2, 0]


def test_steps_past_the_end_of_an_episode_are_not_counted() -> None:
    data = recording(4, 4)
    moments = moments_at(data, np.arange(4), 3)
    assert moments.valid.sum(1).tolist() == [3, 3, 2, 1]
    wrong = moments.actions + np.where(moments.valid[..., None], 0, 1e9)
    assert not by_dimension(absolute(wrong, moments.actions), moments.valid).any()


def test_gaps_are_not_bridged() -> None:
    """Row 3 stands after rows that are missing: no chunk reaches into it, and nothing was done
    before it."""
    data = recording(6, gaps=(3,))
    moments = moments_at(data, np.arange(6), 4)
    assert moments.valid.sum(1).tolist() == [3, 2, 1, 3, 2, 1]
    assert moments.known.tolist() == [False, True, True, False, True, True]
    assert not moments.previous[3].any()


def test_what_was_executed_is_what_came_before() -> None:
    data = recording(4)
    done = Recording(data.actions, data.actions + 1, data.starts, data.runs)
    np.testing.assert_allclose(moments_at(done, np.array([2]), 1).previous[0], data.actions[1] + 1)


@pytest.mark.parametrize("most", [1, 5, 12, 13, 100])
def test_frames_are_chosen_evenly_over_the_episodes_asked_for(most: int) -> None:
    data = recording(5, 6, 7, 2)
    rows = choose_rows(data, [1, 2], most)
    assert len(rows) == len(set(rows.tolist())) == min(most, 13)
    assert rows.min() >= 5 and rows.max() < 18 and np.all(np.diff(rows) > 0)
    if 1 < most < 13:
        assert np.ptp(np.diff(rows)) <= 1


def test_thirds_of_an_episode() -> None:
    data = recording(9, 3, 1)
    groups = thirds(moments_at(data, np.arange(13), 2))
    assert groups.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 1, 2, 0]


def test_groups_are_means_of_their_own_moments() -> None:
    data = recording(6)
    moments = moments_at(data, np.arange(6), 2)
    off = np.arange(6)[:, None, None] * np.ones((1, 1, DIMS))
    errors = absolute(moments.actions + off, moments.actions)
    found = by_group(errors, moments.valid, ("a", "b", "c"), np.array([0, 0, 0, 2, 2, 2]))
    # The last moment has one step, so 5 counts once and the others twice.
    assert list(found) == ["a", "c"]
    np.testing.assert_allclose(found["a"], 1.0)
    np.testing.assert_allclose(found["c"], (3 * 2 + 4 * 2 + 5) / 5)


def test_nan_is_refused_and_so_is_another_shape() -> None:
    data = recording(6)
    moments = moments_at(data, np.arange(6), 2)
    bad = moments.actions.copy()
    bad[4, 1, 2] = np.nan
    with pytest.raises(ValueError, match="dimension 2 of step 1 of the chunk, at moment 4"):
        absolute(bad, moments.actions)
    with pytest.raises(ValueError, match="expected"):
        absolute(moments.actions[:, :1], moments.actions)


def test_baselines_in_closed_form() -> None:
    """Episodes in which the action is the step's number, in one dimension times ten; the shown ones
    are 4 and 6 long."""
    lengths = (4, 6, 5)
    starts = np.cumsum([0, *lengths])
    steps = np.concatenate([np.arange(length) for length in lengths]).astype(np.float32)
    actions = np.stack([steps, 10 * steps], 1)
    data = Recording(actions, actions, starts, starts[:-1])
    moments = moments_at(data, np.arange(10, 15), 3)
    found = baselines(data, [0, 1], moments)
    mean = (0 + 1 + 2 + 3 + 0 + 1 + 2 + 3 + 4 + 5) / 10
    np.testing.assert_allclose(found[MEAN][..., 0], mean)
    np.testing.assert_allclose(found[REPEAT][:, 0, 0], [mean, 0, 1, 2, 3])
    np.testing.assert_allclose(found[REPEAT][:, 2, 1], [10 * mean, 0, 10, 20, 30])
    # Step j of the chunks of the shown episodes: their actions without the first j.
    second = np.mean([1, 2, 3, 1, 2, 3, 4, 5])
    third = np.mean([2, 3, 2, 3, 4, 5])
    np.testing.assert_allclose(found[CHUNK][0, :, 0], [mean, second, third])
    np.testing.assert_allclose(found[EPISODE][1, :, 1], [10, 20, 30])
    np.testing.assert_allclose(found[EPISODE][4, :, 0], [4, 5, mean])  # none is longer than 6


def test_baselines_never_look_at_what_they_are_compared_with() -> None:
    data = recording(5, 6, 7)
    moments = moments_at(data, data.rows_of([2]), 3)
    before = baselines(data, [0, 1], moments)
    changed = data.actions.copy()
    changed[11:] += 100
    other = Recording(changed, data.executed, data.starts, data.runs)
    after = baselines(other, [0, 1], moments)
    for name, chunks in before.items():
        np.testing.assert_array_equal(after[name], chunks)


def test_the_mean_chunk_does_not_reach_over_the_end_of_an_episode() -> None:
    data = recording(2, 2)
    found = baselines(data, [0, 1], moments_at(data, np.arange(4), 2))
    np.testing.assert_allclose(found[CHUNK][0, 1], data.actions[[1, 3]].mean(0), rtol=1e-6)


def test_the_share_of_the_mean_action_is_1_and_has_no_unit() -> None:
    data = recording(8, 9)
    moments = moments_at(data, np.arange(17), 2)
    errors = absolute(baselines(data, [0, 1], moments)[MEAN], moments.actions)
    scale = by_dimension(errors, moments.valid)
    whole = share(errors, scale, (0, 2))
    assert whole[moments.valid].mean() == pytest.approx(1)
    units = np.array([1, 1, 1000.0])
    np.testing.assert_allclose(share(errors * units, scale * units, (0, 2)), whole)
    assert share(errors, scale, (1,))[3, 0] == pytest.approx(errors[3, 0, 1] / scale[1])


def test_agreement_of_several_grippers() -> None:
    """Two of them, open at 1 and closed at −1. The first policy says the left one's side always and
    the right one's never."""
    side = np.array([1, 1, -1, -1, -1, 1], np.float32)
    actions = np.stack([side, np.zeros(6, np.float32), -side], 1)
    data = Recording(actions, actions, np.array([0, 6]), np.array([0]))
    moments = moments_at(data, np.arange(6), 2)
    answers = moments.actions.copy()
    answers[..., 0] *= 0.2  # nearer to the middle, and still on its side
    answers[..., 2] *= -1
    left, right = gripper_agreement(answers, moments, {0: "left", 2: "right"}, (1.0, -1.0))
    assert (left.name, left.agreement, left.at_changes) == ("left", 1.0, 1.0)
    assert (right.name, right.agreement, right.at_changes) == ("right", 0.0, 0.0)
    # Of 11 steps, those whose side is not that of the action before the chunk: rows 2 (two steps),
    # 1 (its second), 5 (one), 4 (its second).
    assert left.changes == 5


def test_who_repeats_a_gripper_is_right_but_at_the_changes() -> None:
    side = np.repeat([0.0, 1.0, 0.0], 20).astype(np.float32)[:, None]
    data = Recording(side, side, np.array([0, 60]), np.array([0]))
    moments = moments_at(data, np.arange(60), 1)
    chunks = baselines(data, [0], moments)[REPEAT]
    (found,) = gripper_agreement(chunks, moments, {0: "jaw"}, (0.0, 1.0))
    assert found.agreement == pytest.approx(58 / 60)
    assert (found.at_changes, found.changes) == (0.0, 2)


def test_a_gripper_that_never_changes_has_no_agreement_at_changes() -> None:
    side = np.ones((5, 1), np.float32)
    data = Recording(side, side, np.array([0, 5]), np.array([0]))
    moments = moments_at(data, np.arange(5), 1)
    (found,) = gripper_agreement(moments.actions, moments, {0: "jaw"}, (0.0, 1.0))
    assert (found.agreement, found.at_changes, found.changes) == (1.0, None, 0)


def test_with_as_many_values_in_each_episode_the_interval_is_that_of_the_t_test() -> None:
    from scipy import stats

    values = np.random.default_rng(0).normal(size=(12, 4))
    episode = np.repeat(np.arange(6), 2)
    found = over_episodes(values, np.ones((12, 4), bool), episode)
    each = values.reshape(6, 8).mean(1)
    low, high = stats.t.interval(0.95, 5, each.mean(), stats.sem(each))
    assert found.mean == pytest.approx(values.mean())
    assert found.ci95 == pytest.approx((low, high))


def test_the_interval_is_about_episodes_not_about_frames() -> None:
    """The same frame said a hundred times tells nothing new."""
    values = np.array([[0.0], [1.0], [3.0]])
    once = over_episodes(values, np.ones((3, 1), bool), np.arange(3))
    often = over_episodes(
        np.repeat(values, 100, 0), np.ones((300, 1), bool), np.repeat(np.arange(3), 100)
    )
    assert often.ci95 == pytest.approx(once.ci95)


def test_one_episode_has_no_interval() -> None:
    found = over_episodes(np.arange(5.0)[:, None], np.ones((5, 1), bool), np.zeros(5, int))
    assert found.mean == 2 and found.ci95 is None


def test_what_is_not_valid_counts_nowhere() -> None:
    values = np.array([[1.0, 1e9], [3.0, 1e9]])
    valid = np.array([[True, False], [True, False]])
    assert over_episodes(values, valid, np.arange(2)).mean == 2


def test_intervals_cover_the_truth() -> None:
    """Of 95 %, over 2,000 samples of eight episodes of unequal length: within three of the counts'
    own deviations, and a little short, as linearised ratios are with few of them."""
    rng = np.random.default_rng(0)
    inside = 0
    samples = 2000
    for _ in range(samples):
        lengths = rng.integers(5, 12, 8)
        episode = np.repeat(np.arange(8), lengths)
        values = 0.3 + rng.normal(size=8)[episode] + 0.1 * rng.normal(size=len(episode))
        found = over_episodes(values[:, None], np.ones((len(episode), 1), bool), episode)
        low, high = found.ci95
        inside += low <= 0.3 <= high
    assert 0.93 <= inside / samples <= 0.965
