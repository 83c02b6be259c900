"""A corpus of several data sets is each of them, joined by key: whatever order rows and keys are
asked in, and whatever the stores hold beside."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_frames, make_policy

from armlet.data.corpus import Corpus, Part
from armlet.data.frames import Frames
from armlet.data.traces import StoreIdentity, TraceStore, TraceWriter
from armlet.training.trainer import make_batches

POLICY = make_policy()
NEEDS = ("condition", "map")
SIZES = (3, 5, 2)  # episodes of three data sets


def make(frames: Frames):
    return make_batches(POLICY, frames)


def keys_of(frames: Frames) -> np.ndarray:
    rows = np.arange(len(frames))
    return make(frames).keys(rows)


def answer(number: int, keys: np.ndarray, wide: int) -> dict[str, np.ndarray]:
    """What the teacher said of data set `number`: of each key something of its own, in numbers that
    half precision holds; a map as wide as that data set's longest text."""
    said = 100 * number + 10 * keys[:, 0] + keys[:, 1]
    return {
        "condition": np.stack([said, -said], 1).astype(np.float32),
        "map": np.tile(said[:, None, None] + np.arange(wide), (1, 2, 1)).astype(np.float32),
        "unread": np.ones((len(keys), 1), np.float32),
    }


def store(
    root: Path, number: int, frames: Frames, *, wide: int, leave_out: int | None = None
) -> TraceStore:
    """A store whose rows were appended in no order."""
    keys = keys_of(frames)
    order = np.random.default_rng(number).permutation(len(keys))
    keys = keys[[row for row in order if row != leave_out]]
    values = answer(number, keys, wide)
    columns = {name: (value.shape[1:], "float16") for name, value in values.items()}
    identity = StoreIdentity(f"data {number}", "teacher", "none")
    with TraceWriter(root, identity, columns, shard_bytes=300) as writer:
        writer.append(keys, values)
    return TraceStore(root)


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> list[Part]:
    root = tmp_path_factory.mktemp("corpus")
    made = []
    for number, episodes in enumerate(SIZES):
        frames = make_frames(episodes=episodes, seed=number)
        # Texts stand in another order in each data set.
        texts = frames.texts[number:] + frames.texts[:number]
        numbers = np.array([texts.index(text) for text in frames.texts])
        frames = dataclasses.replace(frames, texts=texts, asked=numbers[frames.asked])
        traces = store(root / str(number), number, frames, wide=3 + number)
        made.append(Part(frames, f"data {number}", traces))
    return made


@pytest.fixture(scope="module")
def corpus(parts: list[Part]) -> Corpus:
    return Corpus(parts, make, needs=NEEDS)


@given(st.randoms(use_true_random=False), st.integers(1, 60))
def test_every_row_is_its_own_data_sets(
    parts: list[Part], corpus: Corpus, random, count: int
) -> None:
    """Some rows twice, of all data sets, in any order: frame by frame and answer by answer as each
    data set alone has it. (Simulator facts are standardised over all frames, so they are left
    out.)"""
    rows = np.array([random.randrange(len(corpus)) for _ in range(count)])
    batch = corpus.batch(rows)
    answers = corpus.traces(batch.keys)
    assert answers.keys() == set(NEEDS)
    assert np.array_equal(corpus.rows(batch.keys), rows), "keys say which row they are of"
    number = np.searchsorted(corpus.first_rows, rows, side="right") - 1
    for part in np.unique(number):
        mine = np.flatnonzero(number == part)
        alone = Corpus([parts[part]], make, needs=NEEDS)
        own = alone.batch(rows[mine] - corpus.first_rows[part])
        for name, pixels in own.images.items():
            assert torch.equal(batch.images[name][mine], pixels)
        for name in ("state", "previous_action", "actions", "actions_valid", "text"):
            assert torch.equal(getattr(batch, name)[mine], getattr(own, name)), name
        assert torch.equal(batch.keys[mine][:, 1], own.keys[:, 1])
        assert torch.equal(batch.keys[mine][:, 0] - sum(SIZES[:part]), own.keys[:, 0])
        expected = alone.traces(own.keys)
        wide = expected["map"].shape[-1]
        assert torch.equal(answers["condition"][mine], expected["condition"])
        assert torch.equal(answers["map"][mine][..., :wide], expected["map"])
        assert not answers["map"][mine][..., wide:].any(), "what a narrower map lacks is padding"
        said = answer(part, own.keys.numpy(), wide)
        np.testing.assert_array_equal(expected["map"].numpy(), said["map"])
    assert all(values.dtype == torch.float32 for values in answers.values())


def test_what_comes_later_moves_nothing_that_was_there(parts: list[Part], corpus: Corpus) -> None:
    grown = Corpus(parts[:1], make, needs=NEEDS)
    assert grown.frames is parts[0].frames, "one data set alone is not copied"
    for part in parts[1:]:
        before = grown
        grown = grown.with_more(part)
        assert len(grown) == len(before) + len(part.frames)
        rows = np.arange(len(before))
        assert np.array_equal(grown.keys(rows), before.keys(rows))
        assert len(before.parts) == len(grown.parts) - 1, "the corpus of before is as it was"
    rows = np.arange(len(corpus))
    assert np.array_equal(grown.keys(rows), corpus.keys(rows))
    assert grown.fingerprints == ["data 0", "data 1", "data 2"]


@given(st.integers(0, 2), st.integers(0, 7))
def test_a_missing_trace_is_named(
    tmp_path_factory, parts: list[Part], number: int, row: int
) -> None:
    root = tmp_path_factory.mktemp("holes")
    part = parts[number]
    holed = store(root, number, part.frames, wide=3 + number, leave_out=row)
    others = [*parts[:number], dataclasses.replace(part, traces=holed), *parts[number + 1 :]]
    corpus = Corpus(others, make, needs=NEEDS)
    first = corpus.first_rows[number]
    there = np.setdiff1d(np.arange(len(corpus)), [first + row])
    corpus.traces(torch.from_numpy(corpus.keys(there)))
    episode, step = keys_of(part.frames)[row]
    asked = torch.from_numpy(corpus.keys(np.arange(len(corpus))))
    with pytest.raises(KeyError, match=rf"no trace of episode {episode}, step {step} in {root}"):
        corpus.traces(asked)


def test_what_nobody_stored_is_asked_for_by_the_options_that_store_it(parts: list[Part]) -> None:
    with pytest.raises(ValueError, match=r"lacks logits .*--traced condition logits map unread`"):
        Corpus(parts, make, needs=("condition", "logits"))
    bare = dataclasses.replace(parts[1], traces=None)
    with pytest.raises(ValueError, match="no traces of data set data 1"):
        Corpus([parts[0], bare], make, needs=NEEDS)
    corpus = Corpus([parts[0], bare], make)
    assert corpus.stores == [] and len(corpus.batch(np.arange(3))) == 3
