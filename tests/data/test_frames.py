"""Frames → batches against a join written by hand, in a world whose numbers say where they are
from; and several data sets as one."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_frames

from armlet.data.frames import BatchMaker, Frames, Joined, join_frames
from armlet.data.text import train_tokenizer
from armlet.robot.fit import View
from armlet.robot.inputs import Inputs
from armlet.robot.normalise import Normaliser
from armlet.robot.reading.own import Words

LENGTHS = (4, 1, 6, 3)
CHUNK = 3
TEXTS = ("red", "put it on the blue plate", "open", "close it")
STATE = Normaliser(np.array([5.0], np.float32), np.array([2.0], np.float32))
ACTION = Normaliser(np.array([1.0, -1.0], np.float32), np.array([4.0, 0.5], np.float32))


def where(episode: int, step: int) -> float:
    """The number that stands for a frame."""
    return 100.0 * (episode + 1) + step


def numbered(first: int = 0) -> Frames:
    """Frames whose every number says which episode (counted from `first`) and step it belongs
    to."""
    places = [(episode, step) for episode, length in enumerate(LENGTHS) for step in range(length)]
    at = np.array([where(first + episode, step) for episode, step in places], np.float32)
    scene = np.zeros((len(places), 2, 3, 3), np.uint8)
    scene[:, 0, 1, 2] = [10 * episode + step for episode, step in places]
    return Frames(
        images={"scene": scene, "wrist": 255 - scene},
        state=at[:, None],
        actions=np.stack([at, at + 0.5], 1),
        executed=np.stack([-at, -at - 0.5], 1),
        privileged={"subject": at[:, None], "target": -2 * at[:, None]},
        texts=TEXTS,
        asked=np.array([episode for episode, _ in places], np.int64),
        starts=np.cumsum([0, *LENGTHS]),
        labels={"phase": at.astype(np.int64), "direction": -at.astype(np.int64)},
        descriptions=tuple(f"word {episode}" for episode in range(len(LENGTHS))),
        described=np.array([len(LENGTHS) - 1 - episode for episode, _ in places], np.int64),
    )


def batches_of(frames: Frames) -> BatchMaker:
    tokenizer = train_tokenizer([*TEXTS, *frames.descriptions])
    inputs = Inputs(View({}), Words(tokenizer, 16), STATE, ACTION, CHUNK)
    return BatchMaker(frames, inputs, device=torch.device("cpu"))


@pytest.mark.parametrize("joined", [False, True], ids=["one data set", "the second of two"])
def test_a_batch_is_the_join_written_by_hand(joined: bool) -> None:
    """Rows in any order; labels ahead, the action before, borders, words, facts and what an
    annotator said of that very frame."""
    frames, first = numbered(), 0
    if joined:
        frames, first = join_frames([numbered(), numbered(len(LENGTHS))]), len(LENGTHS)
    batches = batches_of(frames)
    asked = [(2, 5), (0, 0), (3, 1), (1, 0), (2, 3), (0, 3), (3, 2), (2, 0)]
    rows = np.array([frames.starts[first + episode] + step for episode, step in asked])
    batch = batches.batch(rows)
    actions, valid = batch.targets()
    tokenizer = train_tokenizer([*TEXTS, *frames.descriptions])
    subject = frames.privileged["subject"]
    for row, (episode, step) in enumerate(asked):
        number = first + episode
        at = where(number, step)
        assert batch.keys[row].tolist() == [number, step]
        assert batch.state[row].tolist() == [pytest.approx((at - 5) / 2)]
        for ahead in range(CHUNK):
            there = step + ahead < LENGTHS[episode]
            later = where(number, step + ahead)
            expected = [(later - 1) / 4, (later + 0.5 + 1) / 0.5] if there else [0, 0]
            assert bool(valid[row, ahead]) == there
            assert actions[row, ahead].tolist() == pytest.approx(expected)
        before = where(number, step - 1)
        done = (
            (-before, -before - 0.5) if step else (0, 0)
        )  # at an episode's start nothing has been done: zero, in the robot's units
        assert batch.previous_action[row].tolist() == pytest.approx(
            [(done[0] - 1) / 4, (done[1] + 1) / 0.5]
        )
        words = tokenizer.encode(TEXTS[episode]).ids
        assert batch.text[row].tolist() == words + [0] * (batch.text.shape[1] - len(words))
        assert batch.text_mask[row].tolist() == [True] * len(words) + [False] * (
            batch.text.shape[1] - len(words)
        )
        said = tokenizer.encode(f"word {len(LENGTHS) - 1 - episode}").ids
        assert batch.description[row, : len(said)].tolist() == said
        assert (batch.labels["phase"][row], batch.labels["direction"][row]) == (int(at), -int(at))
        assert batch.privileged["subject"][row, 0] == pytest.approx(
            (at - subject.mean()) / subject.std(), abs=1e-4
        )
        assert batch.privileged["target"][row, 0] == pytest.approx(
            -(at - subject.mean()) / subject.std(), abs=1e-4
        )
        pixel = (10 * episode + step) / 255
        assert batch.images["scene"].shape[1:] == (3, 2, 3)
        assert batch.images["scene"][row, 2, 0, 1] == pytest.approx(pixel)
        assert batch.images["scene"][row].sum() == pytest.approx(pixel)
        assert batch.images["wrist"][row, 2, 0, 1] == pytest.approx(1 - pixel)


def test_first_actions_are_each_frames_own() -> None:
    frames = numbered()
    np.testing.assert_allclose(
        batches_of(frames).first_actions().numpy(), ACTION.apply(frames.actions)
    )


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_joined_rows_are_those_of_a_concatenation(lengths: list[int], data: st.DataObject) -> None:
    parts = [
        np.random.default_rng(n).integers(0, 9, (length, 2)) for n, length in enumerate(lengths)
    ]
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
        both.images["scene"][rows],
        np.stack([second.images["scene"][0], first.images["scene"][0], second.images["scene"][-1]]),
    )
    assert both.starts[first.episodes] == len(first)


def test_data_sets_of_which_some_are_described_are_refused() -> None:
    said = dataclasses.replace(
        make_frames(),
        descriptions=("reach", "hold"),
        described=np.zeros(len(make_frames()), np.int64),
    )
    both = join_frames([said, said])
    assert both.descriptions == ("reach", "hold") * 2 and set(both.described) == {0, 2}
    with pytest.raises(ValueError, match="number 1 has no descriptions"):
        join_frames([said, make_frames()])


def test_a_policy_without_a_state_is_given_none_of_the_episodes() -> None:
    frames = numbered()
    blind = dataclasses.replace(frames, state=frames.state[:, :0])
    nothing = Normaliser(np.zeros(0, np.float32), np.ones(0, np.float32))
    rows = np.array([1, 4, 9])
    made = []
    for data in (frames, blind):
        words = Words(train_tokenizer(TEXTS), 16)
        inputs = Inputs(View({}), words, nothing, ACTION, CHUNK)
        with_words = dataclasses.replace(data, described=None, descriptions=())
        made.append(BatchMaker(with_words, inputs, device=torch.device("cpu")).batch(rows))
    seen, unseen = made
    assert seen.state.shape == unseen.state.shape == (3, 0)
    for name in ("actions", "actions_valid", "previous_action", "text"):
        assert torch.equal(getattr(seen, name), getattr(unseen, name)), name
    # A state of another robot is no state that nobody looks at.
    with pytest.raises(ValueError, match=r"observation\.state of the episodes has 0 dimensions"):
        batches_of(blind)
