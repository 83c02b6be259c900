"""Rows that do not follow one another: no chunk of actions runs over a gap; and rows of another
rate than the metadata say are refused."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from made import EYE, FPS, Made, film, grey, number

from armlet.data.episodes import EpisodeDataset, EpisodeError
from armlet.data.frames import BatchMaker, Frames, join_frames, load_frames
from armlet.data.text import train_tokenizer
from armlet.robot.fit import View
from armlet.robot.inputs import Inputs
from armlet.robot.normalise import Normaliser
from armlet.robot.reading.own import Words

CHUNK = 3
OFFSET, SCALE = 7.0, 2.0


def blind(lengths: tuple[int, ...] = (4, 3, 5)) -> Made:
    """Rows without pictures, so that a test may say what it likes of their times."""
    made = Made(lengths=lengths)
    del made.info["features"][EYE]
    return made


def timed(made: Made, seconds: list[float], kind: type = np.float32) -> Made:
    for row, second in zip(made.rows, seconds, strict=True):
        row["timestamp"] = kind(second)
    return made


def kept(made: Made, wanted: dict[int, list[int]]) -> Made:
    """Only these frames of each episode, under their own numbers and times."""
    made.rows = [row for row in made.rows if row["frame_index"] in wanted[row["episode_index"]]]
    first = 0
    for each in made.listed:
        count = len(wanted[each["episode_index"]])
        each |= {"length": count, "dataset_from_index": first, "dataset_to_index": first + count}
        first += count
    return made


def batches_of(frames: Frames) -> BatchMaker:
    state = Normaliser(np.zeros(2, np.float32), np.ones(2, np.float32))
    action = Normaliser(np.array([OFFSET], np.float32), np.array([SCALE], np.float32))
    tokenizer = train_tokenizer(frames.texts)
    inputs = Inputs(View({}), Words(tokenizer, 16), state, action, CHUNK)
    return BatchMaker(frames, inputs, device=torch.device("cpu"))


def assert_joined(
    frames: Frames, places: list[list[tuple[int, int]]], keys: list[tuple[int, int]]
) -> None:
    """Stretches of (episode, frame): each row's chunk is what follows in its own stretch, and the
    action before it what precedes there;
    all other places are not valid, and before a stretch nothing was done."""
    batch = batches_of(frames).batch(np.arange(len(frames)))
    actions, valid = batch.targets()
    row = 0
    for stretch in places:
        said = [
            (number({"episode_index": episode, "frame_index": frame}) - OFFSET) / SCALE
            for episode, frame in stretch
        ]
        for place in range(len(stretch)):
            ahead = said[place : place + CHUNK]
            assert valid[row].tolist() == [True] * len(ahead) + [False] * (CHUNK - len(ahead)), (
                row,
                stretch[place],
            )
            assert actions[row, :, 0].tolist() == ahead + [0.0] * (CHUNK - len(ahead)), (
                row,
                stretch[place],
            )
            assert batch.previous_action[row].tolist() == [
                said[place - 1] if place else -OFFSET / SCALE
            ], (row, stretch[place])
            row += 1
    assert row == len(frames) and batch.keys.tolist() == [list(key) for key in keys]


def test_no_chunk_runs_over_rows_that_were_dropped(tmp_path, capsys) -> None:
    """By their numbers and their times; also in the second of two data sets. Keys count the rows of
    an episode, as traces do."""
    made = kept(blind((8, 3)), {0: [0, 1, 2, 6, 7], 1: [0, 2]})
    frames = load_frames(EpisodeDataset(made.save(tmp_path / "d")))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert (
        "2 gaps within episodes, the first after episode 0, frame 2, 0.8 s long where 0.2 s is a step"
        in said
    )
    stretches = [[(0, 0), (0, 1), (0, 2)], [(0, 6), (0, 7)], [(1, 0)], [(1, 2)]]
    keys = [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1)]
    assert_joined(frames, stretches, keys)
    whole = load_frames(EpisodeDataset(blind((2, 4)).save(tmp_path / "e")))
    assert capsys.readouterr().err == ""
    first = [[(0, 0), (0, 1)], [(1, 0), (1, 1), (1, 2), (1, 3)]]
    before = [key for stretch in first for key in stretch]
    assert_joined(
        join_frames([whole, frames]),
        [*first, *stretches],
        before + [(2 + episode, step) for episode, step in keys],
    )


def test_rows_dropped_and_numbered_anew_are_found_by_their_times(tmp_path, capsys) -> None:
    seconds = [0, 0.2, 0.8, 1.0, 0, 0.2, 0.4, 0, 0.2, 0.4, 0.6, 0.8]
    data = EpisodeDataset(timed(blind(), seconds).save(tmp_path / "d"))
    assert data.runs.tolist() == [0, 2, 4, 7] and data.starts.tolist() == [0, 4, 7, 12]
    assert (
        "1 gaps within episodes, the first after episode 0, frame 1, 0.6 s long"
        in capsys.readouterr().err
    )


def test_rows_dropped_and_timed_anew_are_found_by_their_numbers(tmp_path, capsys) -> None:
    made = kept(blind((8, 3)), {0: [0, 1, 5, 6], 1: [0, 1, 2]})
    data = EpisodeDataset(timed(made, [0, 0.2, 0.4, 0.6, 0, 0.2, 0.4]).save(tmp_path / "d"))
    assert data.runs.tolist() == [0, 2, 4]
    assert "1 gaps within episodes, the first after episode 0, frame 1," in capsys.readouterr().err


def test_rows_of_one_frame_of_several_are_no_neighbours(tmp_path, capsys) -> None:
    """Every second frame was kept and fps left as it was: none follows another."""
    data = EpisodeDataset(kept(blind(), {0: [0, 2], 1: [0, 2], 2: [0, 2, 4]}).save(tmp_path / "d"))
    assert data.runs.tolist() == list(range(7))
    said = capsys.readouterr().err
    assert "4 gaps within episodes" in said and "no two rows follow one another" in said


def test_numbers_of_an_original_at_a_higher_rate_are_no_gaps(tmp_path, capsys) -> None:
    """Six frames apart and 1 / fps s apart: the numbers count something else, and only the seventh
    row is missing."""
    made = blind((4, 3, 5))
    for row in made.rows:
        row["frame_index"] *= 6
    for row in made.rows[9:]:
        row["frame_index"] += 6
        row["timestamp"] += np.float32(0.2)
    data = EpisodeDataset(made.save(tmp_path / "d"))
    assert data.runs.tolist() == [0, 4, 7, 9]
    assert "1 gaps within episodes, the first after episode 2, frame 6," in capsys.readouterr().err


# The rate


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0.1, "10 a second"),
        (0.4, r"2\.5 a second"),
        (200.0, r"0\.005 a second"),
        (0.215, r"4\.651 a second"),
    ],
)
def test_rows_of_another_rate_are_refused(tmp_path, step: float, rate: str) -> None:
    made = blind()
    seconds = [row["frame_index"] * step for row in made.rows]
    root = timed(made, seconds).save(tmp_path / "d")
    with pytest.raises(
        EpisodeError,
        match=rf"file-000\.parquet: rows are \S+ s apart by their timestamp, which are {rate}.*fps 5; write",
    ):
        EpisodeDataset(root)


def test_gaps_and_a_rate_are_told_apart(tmp_path) -> None:
    """Most steps are long, as most rows were dropped: the rate is that of the rows which follow one
    another by their numbers."""
    made = kept(blind((12, 3, 5)), {0: [0, 3, 6, 9, 10], 1: [0, 2], 2: [0, 4]})
    assert EpisodeDataset(made.save(tmp_path / "d")).runs.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]


@pytest.mark.parametrize(
    "clock",
    [
        pytest.param(lambda frame: round(frame / 30, 2), id="rounded to hundredths"),
        pytest.param(lambda frame: 900.0 + frame / 30, id="float32 late in a recording"),
        pytest.param(
            lambda frame: frame / 30 + 0.01 * np.sin(7 * frame), id="jitter of a third of a step"
        ),
        pytest.param(lambda frame: frame / 29.97, id="the rate of television"),
    ],
)
def test_clocks_as_recordings_have_them(tmp_path, capsys, clock) -> None:
    made = blind((40, 50))
    made.info["fps"] = 30
    timed(made, [clock(row["frame_index"]) for row in made.rows])
    data = EpisodeDataset(made.save(tmp_path / "d"))
    assert data.runs.tolist() == [0, 40] and capsys.readouterr().err == ""


def test_a_robot_slightly_slower_than_it_says_is_remarked_on(tmp_path, capsys) -> None:
    made = blind()
    seconds = [row["frame_index"] * 0.206 for row in made.rows]
    assert EpisodeDataset(timed(made, seconds).save(tmp_path / "d")).runs.tolist() == [0, 4, 7]
    assert (
        "rows are 4.854 a second by their timestamp, and meta/info.json says fps 5; they are taken"
        in capsys.readouterr().err
    )


def test_times_that_all_are_zero_are_no_times(tmp_path, capsys) -> None:
    """Some converters write them. Without films nothing is lost; with them no picture can be
    found."""
    made = timed(blind(), [0.0] * 12)
    data = EpisodeDataset(made.save(tmp_path / "d"))
    assert data.timestamps.tolist() == [
        row["frame_index"] / FPS for row in made.rows
    ] and data.runs.tolist() == [0, 4, 7]
    assert (
        "timestamp is the same in all rows; times are taken from frame_index and fps"
        in capsys.readouterr().err
    )
    with pytest.raises(EpisodeError, match="timestamp of episode 0, frame 1 is 0, after 0"):
        EpisodeDataset(timed(Made(), [0.0] * 12).save(tmp_path / "e"))


def test_a_film_of_another_rate_says_nothing_of_the_rows(tmp_path, capsys) -> None:
    """The rows are 5 a second, their film 10."""
    root: Path = Made().save(tmp_path / "d")
    shown = [
        (2 * place, grey(*key))
        for place, key in enumerate((e, f) for e, n in enumerate((4, 3, 5)) for f in range(n))
    ]
    film(root / f"videos/{EYE}/chunk-000/file-000.mp4", shown, tick=Fraction(1, 2 * FPS))
    assert EpisodeDataset(root).runs.tolist() == [0, 4, 7] and capsys.readouterr().err == ""
