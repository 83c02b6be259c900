"""Parts of a data set: nothing in two of them, every kind of task in each, the same whatever the
order."""

from types import SimpleNamespace

import numpy as np
import pytest

from armlet.data.splits import by_task, last, parts, rows_of


def data_of(episodes: list[tuple[str, str, int]]):
    return SimpleNamespace(
        episodes=[
            SimpleNamespace(task=words, tasks=(words,), info={"task": kind, "seed": seed})
            for kind, words, seed in episodes
        ]
    )


def many(count: int = 600):
    rng = np.random.default_rng(0)
    kinds = ("push", "place", "rake")
    return data_of(
        [(kinds[n % 3], f"{kinds[n % 3]} thing {rng.integers(40)}", n) for n in range(count)]
    )


def test_no_instruction_and_no_scene_is_in_two_parts_and_every_kind_is_in_each() -> None:
    data = many()
    for number in range(0, 30, 3):  # the same scenes, told in other words
        data.episodes[300 + number].info["seed"] = data.episodes[number].info["seed"]
    parts = by_task(data)
    assert sorted(np.concatenate(parts)) == list(range(600))
    for field in (
        lambda episode: episode.task,
        lambda episode: (episode.info["task"], episode.info["seed"]),
    ):
        found = [{field(data.episodes[number]) for number in part} for part in parts]
        assert not (found[0] & found[1] or found[0] & found[2] or found[1] & found[2])
    assert [len(part) / 600 for part in parts] == pytest.approx([0.7, 0.15, 0.15], abs=0.04)
    assert all(
        {data.episodes[number].info["task"] for number in part} == {"push", "place", "rake"}
        for part in parts
    )


def parts_of(data) -> dict[str, int]:
    """Instruction → its part."""
    return {
        data.episodes[number].task: part
        for part, numbers in enumerate(by_task(data))
        for number in numbers
    }


def test_parts_do_not_hang_on_the_order_of_collection() -> None:
    data = many()
    shuffled = SimpleNamespace(
        episodes=[data.episodes[number] for number in np.random.default_rng(1).permutation(600)]
    )
    assert parts_of(data) == parts_of(shuffled)


def test_a_larger_collection_leaves_most_instructions_where_they_were() -> None:
    small, large = many(300), many(600)
    where = [parts_of(data) for data in (small, large)]
    shared = where[0].keys() & where[1].keys()
    assert sum(where[0][words] == where[1][words] for words in shared) / len(shared) > 0.85


def test_too_few_episodes_are_refused() -> None:
    with pytest.raises(ValueError, match="one part is empty"):
        by_task(data_of([("push", "push it", 1), ("push", "push it", 2)]))
    with pytest.raises(ValueError, match="leaves none to train on"):
        last(data_of([("push", "push it", 1)]), 0.5)


def test_rows_of_episodes() -> None:
    starts = np.array([0, 3, 5, 9])
    assert rows_of(starts, np.array([0, 2])).tolist() == [0, 1, 2, 5, 6, 7, 8]


def test_what_a_report_is_about_is_not_calibrated_on() -> None:
    found = parts(many(10), "last", 0.2, reported=True)
    assert found.held_out.tolist() == [8, 9]
    assert found.train.tolist() == found.calibrate.tolist() == list(range(8))
    assert parts(many(10), "last", 0.2).calibrate.tolist() == [8, 9]
    by_words = parts(many(), "tasks", 0.2, reported=True)
    assert not set(by_words.calibrate) & {*by_words.train, *by_words.held_out}


def test_the_last_share_is_held_out_and_everything_else_trains() -> None:
    train, held = last(many(), 0.02)
    assert held.tolist() == list(range(588, 600)) and train.tolist() == list(range(588))
    train, held = last(many(3), 0.01)
    assert held.tolist() == [2] and train.tolist() == [0, 1], "at least one"
