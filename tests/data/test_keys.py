"""Rows, pictures and words are joined by their keys: what stands elsewhere is found, what
contradicts is named with its first place."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import EYE, FPS, SIDE, TASKS, Made, film, grey, number

from armlet.data.description import suggest
from armlet.data.episodes import EpisodeDataset, EpisodeError, EpisodeFrames, Features
from armlet.data.frames import BatchMaker, join_frames, load_frames
from armlet.data.layout import Columns, is_depth
from armlet.data.splits import by_task
from armlet.data.text import train_tokenizer
from armlet.data.video import VideoError
from armlet.robot.fit import View
from armlet.robot.inputs import Inputs
from armlet.robot.normalise import Normaliser
from armlet.robot.reading.own import Words, encode

DATA, LISTED, FILM = (
    "data/chunk-000/file-000.parquet",
    "meta/episodes/chunk-000/file-000.parquet",
    f"videos/{EYE}/chunk-000/file-000.mp4",
)


def levels(data: EpisodeDataset, first: int = 0, last: int | None = None) -> list[int]:
    pictures = data.read_pictures("eye", first, len(data) if last is None else last)
    return [int(picture.mean().round()) for picture in pictures]


def assert_right(data: EpisodeDataset, keys: list[tuple[int, int]]) -> None:
    """These (episode, frame) in this order, each with its own numbers, words and picture."""
    wanted = [number({"episode_index": episode, "frame_index": frame}) for episode, frame in keys]
    columns = data.columns()
    assert columns["action"][:, 0].tolist() == wanted
    assert columns["observation.state"][:, 1].tolist() == wanted
    assert (
        np.abs(np.subtract(levels(data), [grey(episode, frame) for episode, frame in keys])).max()
        <= 1
    )
    assert [data.tasks[place] for place in data.asked] == [
        TASKS[episode % 2] for episode, _ in keys
    ]
    episodes = np.unique([episode for episode, _ in keys], return_counts=True)
    assert np.diff(data.starts).tolist() == episodes[1].tolist()
    assert [episode.index for episode in data.episodes] == episodes[0].tolist()


ALL = [(episode, frame) for episode, length in enumerate(Made().lengths) for frame in range(length)]


def test_rows_in_any_order(tmp_path) -> None:
    made = Made()
    np.random.default_rng(0).shuffle(made.rows)
    made.listed.reverse()
    assert_right(EpisodeDataset(made.save(tmp_path / "d")), ALL)


def test_rows_in_files_in_any_order(tmp_path) -> None:
    """Episodes 2 and 0 in one file, 1 in another that is named first; a file that no episode names
    is not looked at."""
    made = Made()
    made.listed[1]["data/file_index"] = 7
    root = made.save(tmp_path / "d")
    table = pa.Table.from_pylist(made.rows)
    pq.write_table(table.slice(4, 3), root / "data/chunk-000/file-007.parquet")
    pq.write_table(pa.concat_tables([table.slice(7), table.slice(0, 4)]), root / DATA)
    (root / "data/chunk-000/file-003.parquet").write_bytes(b"no parquet")
    assert_right(EpisodeDataset(root), ALL)


def test_episode_numbers_with_gaps(tmp_path, capsys) -> None:
    """Episode 1 was deleted from the list by hand, and its rows left."""
    made = Made()
    del made.listed[1]
    made.info["total_episodes"] = 2
    data = EpisodeDataset(made.save(tmp_path / "d"))
    assert_right(data, [key for key in ALL if key[0] != 1])
    assert "3 rows belong to no episode" in capsys.readouterr().err


def test_rows_without_motion_were_dropped(tmp_path) -> None:
    """Frames 0 and 3 of episode 0 are left, with their own times, of a film that has all."""
    made = Made()
    kept = [row for row in made.rows if row["episode_index"] or row["frame_index"] in (0, 3)]
    made.rows[:] = kept
    made.listed[0] |= {"length": 2, "dataset_to_index": 2}
    assert_right(
        EpisodeDataset(made.save(tmp_path / "d")),
        [key for key in ALL if key not in ((0, 1), (0, 2))],
    )


def twice(made: Made) -> None:
    made.rows.insert(6, dict(made.rows[5]))


def missing(made: Made) -> None:
    del made.rows[5]


def too_many(made: Made) -> None:
    made.rows.append(made.rows[6] | {"frame_index": 3, "timestamp": np.float32(0.6)})


def another_span(made: Made) -> None:
    made.listed[1]["dataset_to_index"] += 1


def no_rows(made: Made) -> None:
    del made.rows[4:7]


def at_times(times: list[float]):
    def change(made: Made) -> None:
        for row, time in zip(made.rows[4:7], times, strict=True):
            row["timestamp"] = np.float32(time)

    return change


def untold(made: Made) -> None:
    for row in made.rows:
        del row["task_index"]


def unknown_task(made: Made) -> None:
    made.rows[5]["task_index"] = 9


def listed_twice(made: Made) -> None:
    made.listed.append(dict(made.listed[1]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (twice, r"frame 1 of episode 1 is there twice: .*file-000\.parquet, row 5, and .*row 6"),
        (
            missing,
            r"file-000\.parquet: episode 1 has 2 rows and the metadata say 3; frame 1 is the first that is missing",
        ),
        (too_many, r"episode 1 has 4 rows and the metadata say 3; frame 3 is the first too many"),
        (another_span, r"episode 1 has length 3 and reaches from row 4 to 8"),
        (no_rows, r"file-000\.parquet has no row of episode 1"),
        (at_times([0, float("nan"), 0.4]), r"timestamp of episode 1, frame 1 is nan"),
        (at_times([0, 0.4, 0.2]), r"timestamp of episode 1, frame 2 is 0\.2, after 0\.4"),
        (at_times([0, 0.2, 0.2]), r"timestamp of episode 1, frame 2 is 0\.2, after 0\.2"),
        (untold, r"episode 0 have no column task_index"),
        (
            unknown_task,
            r"episode 1, frame 1 has task_index 9, and .*tasks\.parquet has no such task",
        ),
        (listed_twice, r"lists episode 1 twice"),
    ],
)
def test_what_contradicts_is_named(tmp_path, change, says: str) -> None:
    made = Made()
    change(made)
    with pytest.raises(EpisodeError, match=says):
        EpisodeDataset(made.save(tmp_path / "d"))


@pytest.mark.parametrize("tasks", [[], None, [None]])
def test_an_episode_without_a_task_is_named(tmp_path, tasks) -> None:
    made = Made()
    made.listed[1]["tasks"] = tasks
    with pytest.raises(EpisodeError, match="episode 1 has no task"):
        EpisodeDataset(made.save(tmp_path / "d"))


def test_version_2_1_and_rows_beyond_what_its_metadata_say(tmp_path, capsys) -> None:
    made = Made()
    made.listed[1]["length"] = 2
    assert_right(EpisodeDataset(made.save_v21(tmp_path / "d")), ALL)
    assert (
        "has 3 rows of episode 1 and the metadata say 2; the rows are taken"
        in capsys.readouterr().err
    )
    made.listed[1]["length"] = 4
    made.save_v21(tmp_path / "e")
    with pytest.raises(
        EpisodeError,
        match=r"episode_000001\.parquet: episode 1 has 3 rows and the metadata say 4; frame 3",
    ):
        EpisodeDataset(tmp_path / "e")


def test_without_a_file_of_tasks_one_an_episode_will_do(tmp_path) -> None:
    root = Made().save_v21(tmp_path / "d")
    (root / "meta/tasks.jsonl").unlink()
    assert_right(EpisodeDataset(root), ALL)
    made = Made()
    made.listed[2]["tasks"] = list(TASKS)
    root = made.save_v21(tmp_path / "e")
    (root / "meta/tasks.jsonl").unlink()
    with pytest.raises(EpisodeError, match=r"episode 2 has 2 tasks, and meta/tasks\.parquet"):
        EpisodeDataset(root)


def test_times_follow_from_frames_where_there_are_none(tmp_path) -> None:
    made = Made()
    for row in made.rows:
        del row["timestamp"]
    data = EpisodeDataset(made.save(tmp_path / "d"))
    assert_right(data, ALL)
    assert data.timestamps.tolist() == [frame / FPS for _, frame in ALL]


# Words


def changing(root: Path) -> EpisodeDataset:
    """Episode 0 is told something else from frame 2 on; the metadata list its tasks in the wrong
    order."""
    made = Made()
    made.rows[2]["task_index"] = made.rows[3]["task_index"] = 1
    made.listed[0]["tasks"] = [TASKS[1], TASKS[0]]
    return EpisodeDataset(made.save(root))


def test_words_change_within_an_episode(tmp_path) -> None:
    data = changing(tmp_path / "d")
    assert data.tasks == TASKS and data.asked.tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
    assert [(episode.task, episode.tasks) for episode in data.episodes[:2]] == [
        (TASKS[0], TASKS),
        (TASKS[1], TASKS[1:]),
    ]


def test_a_tasks_number_is_no_place(tmp_path) -> None:
    """As hand-made files number them: in another order, with gaps."""
    made = Made()
    made.tasks = {7: TASKS[1], 3: TASKS[0]}
    for row in made.rows:
        row["task_index"] = 3 if row["task_index"] == 0 else 7
    assert_right(EpisodeDataset(made.save(tmp_path / "d")), ALL)


def test_a_batch_has_the_words_of_its_frames(tmp_path) -> None:
    """Also where data sets are joined that number their words differently."""
    made = Made(lengths=(2, 2))
    made.tasks = {0: TASKS[1], 1: "wait"}
    for each in made.listed:
        each["tasks"] = [made.tasks[each["episode_index"]]]
    frames = join_frames(
        [
            load_frames(changing(tmp_path / "d")),
            load_frames(EpisodeDataset(made.save(tmp_path / "e"))),
        ]
    )
    assert frames.texts == (*TASKS, "wait") and frames.episodes == 5
    tokenizer = train_tokenizer(frames.texts)
    same = [Normaliser(np.zeros(dims, np.float32), np.ones(dims, np.float32)) for dims in (2, 1)]
    inputs = Inputs(View({}), Words(tokenizer, 16), *same, chunk=2)
    batches = BatchMaker(frames, inputs, device=None)
    batch = batches.batch(np.array([1, 2, 12, 14]))
    found = [text[mask].tolist() for text, mask in zip(batch.text, batch.text_mask, strict=True)]
    assert found == [
        encode(tokenizer, text, longest=16) for text in (TASKS[0], TASKS[1], TASKS[1], "wait")
    ]
    assert batch.keys.tolist() == [[0, 1], [0, 2], [3, 0], [4, 0]]


def test_an_episode_of_several_tasks_stays_with_all_that_share_one(tmp_path) -> None:
    """Tasks a-b, b-c and c-d are one group, so no part but theirs may have any of them."""
    made = Made(lengths=(2,) * 12)
    made.tasks = dict(enumerate("abcdefghijklm"))
    for row in made.rows:
        episode = row["episode_index"]
        row["task_index"] = episode + row["frame_index"] if episode < 3 else episode + 1
    made.listed = [each | {"tasks": list(made.tasks.values())} for each in made.listed]
    data = EpisodeDataset(made.save(tmp_path / "d"))
    parts = [set(part.tolist()) for part in by_task(data)]
    assert sorted(len(part & {0, 1, 2}) for part in parts) == [0, 0, 3]


def test_a_converted_folder_is_told_by_its_own_versions_file(tmp_path) -> None:
    """A v2.1 folder with the meta/tasks.parquet of another version, and a v3.0 one with a
    meta/tasks.jsonl, both of other numbers."""
    root = Made().save_v21(tmp_path / "d")
    pq.write_table(
        pa.table({"task_index": [0, 1], "task": TASKS[::-1]}), root / "meta/tasks.parquet"
    )
    before = EpisodeDataset(root)
    assert_right(before, ALL)
    root = Made().save(tmp_path / "e")
    lines = [{"task_index": index, "task": text} for index, text in enumerate(TASKS[::-1])]
    (root / "meta/tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert_right(EpisodeDataset(root), ALL)


def test_a_converted_folder_has_its_own_versions_statistics(tmp_path) -> None:
    def said(number: float) -> dict:
        return {kind: [number] for kind in ("min", "max", "mean", "std")} | {"count": [3]}

    for name, make, mean in (("d", Made.save_v21, 1.0), ("e", Made.save, 2.0)):
        root = make(Made(), tmp_path / name)
        (root / "meta/episodes_stats.jsonl").write_text(
            json.dumps({"episode_index": 0, "stats": {"action": said(1.0)}})
        )
        (root / "meta/stats.json").write_text(json.dumps({"action": said(2.0)}))
        assert EpisodeDataset(root).stats["action"]["mean"] == [mean]


@pytest.mark.parametrize("save", [Made.save, Made.save_v21])
def test_what_an_episode_lists_and_its_rows_were_told_must_agree(tmp_path, save) -> None:
    """In no order, and whatever more it lists; blanks do not count."""
    made = Made()
    made.listed[0]["tasks"] = ["never asked", " pick  it "]
    assert_right(EpisodeDataset(save(made, tmp_path / "d")), ALL)
    made = Made()
    made.rows[5]["task_index"] = 0
    says = r"episode 1, frame 1 has task_index 0, which is 'pick it' in .*tasks\.\w+, and the metadata list 'place it' for this"
    with pytest.raises(EpisodeError, match=says):
        EpisodeDataset(save(made, tmp_path / "e"))


# Pictures


def tabled(root: Path, pictures: list, *, shape: list[int] | None = None) -> EpisodeDataset:
    """The camera's pictures in the table."""
    made = Made().feature("observation.images.list", "image", shape, pictures)
    del made.info["features"][EYE]
    return EpisodeDataset(made.save(root))


@pytest.mark.parametrize("first", [False, True], ids=["height first", "channels first"])
def test_pictures_kept_as_lists_of_numbers(tmp_path, first: bool) -> None:
    wanted = np.random.default_rng(0).integers(0, 256, (len(ALL), 4, 5, 3), np.uint8)
    kept = wanted.transpose(0, 3, 1, 2) if first else wanted
    data = tabled(tmp_path / "d", kept.tolist(), shape=list(kept.shape[1:]))
    assert data.cameras == {"list": (4, 5)}
    np.testing.assert_array_equal(list(data.read_pictures("list", 0, len(ALL))), wanted)


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        ([[[1, 2, 3]], [[4, 5, 6], [7, 8, 9]]], "holds lists of several lengths"),
        (
            [[[1, 2, 256]]],
            r"holds numbers int64 of shape \(1, 1, 3\), expected \(height, width, 3\) whole numbers from 0 to 255",
        ),
        ([[[1, 2]]], r"holds numbers int64 of shape \(1, 1, 2\)"),
        ([], r"holds numbers \w+ of shape \(0,\)"),
        (None, "is empty"),
        ([[[1, 2, None]]], "holds numbers object"),
    ],
)
def test_lists_that_are_no_picture_are_named(tmp_path, odd, says: str) -> None:
    pictures = [[[[1, 2, 3]]]] * len(ALL)
    pictures[5] = odd
    data = tabled(tmp_path / "d", pictures, shape=[1, 1, 3])
    assert len(list(data.read_pictures("list", 0, 5))) == 5
    with pytest.raises(
        EpisodeError, match=rf"observation\.images\.list of episode 1, frame 1 ({says})"
    ):
        list(data.read_pictures("list", 5, 6))


def test_numbers_that_are_no_picture_are_named(tmp_path) -> None:
    data = tabled(tmp_path / "d", [7] * len(ALL), shape=[1, 1, 3])
    with pytest.raises(
        EpisodeError, match=r"episode 0, frame 0 is int, expected a picture's bytes or path"
    ):
        next(data.read_pictures("list", 0, 1))


def test_a_film_longer_than_its_rows(tmp_path) -> None:
    """Each episode's film has one frame more than the table; without the times of the metadata all
    but the first would be wrong."""
    made = Made()
    made.shown = []
    for episode, (each, length) in enumerate(zip(made.listed, made.lengths, strict=True)):
        begins = len(made.shown)
        made.shown += [(begins + frame, grey(episode, frame)) for frame in range(length)] + [
            (begins + length, 250)
        ]
        each |= {
            f"videos/{EYE}/from_timestamp": begins / FPS,
            f"videos/{EYE}/to_timestamp": len(made.shown) / FPS,
        }
    assert_right(EpisodeDataset(made.save(tmp_path / "d")), ALL)


@pytest.mark.parametrize("rate", [10, 15, 30])
def test_a_film_at_another_rate(tmp_path, rate: int) -> None:
    made = Made()
    root = made.save(tmp_path / "d")
    times = [grey(episode, frame) for episode, frame in ALL]
    shown = [
        (tick, times[tick * FPS // rate] if tick * FPS % rate == 0 else 250)
        for tick in range(len(ALL) * rate // FPS)
    ]
    film(root / FILM, shown, tick=Fraction(1, rate))
    assert_right(EpisodeDataset(root), ALL)


def test_no_picture_of_the_next_episode(tmp_path) -> None:
    """The film of episode 1 is a frame shorter than its rows: its last row must not get the first
    picture of episode 2."""
    made = Made()
    del made.shown[6]
    made.shown = [(place, level) for place, (_, level) in enumerate(made.shown)]
    made.listed[1][f"videos/{EYE}/to_timestamp"] = 6 / FPS
    made.listed[2] |= {
        f"videos/{EYE}/from_timestamp": 6 / FPS,
        f"videos/{EYE}/to_timestamp": 11 / FPS,
    }
    data = EpisodeDataset(made.save(tmp_path / "d"))
    assert levels(data, 0, 6) and levels(data, 7)
    with pytest.raises(
        VideoError, match=r"no picture belongs to episode 1, frame 2, at 1\.2 s of its film"
    ):
        levels(data, 0, 8)


def test_pictures_of_some_rows(tmp_path) -> None:
    """Across episodes and films, and refused beyond the rows there are."""
    data = EpisodeDataset(Made().save_v21(tmp_path / "d"))
    for first, last in ((0, 12), (2, 9), (5, 6), (11, 12), (3, 3)):
        assert (
            np.abs(
                np.subtract(levels(data, first, last), [grey(*key) for key in ALL[first:last]])
            ).max(initial=0)
            <= 1
        )
    with pytest.raises(EpisodeError, match="rows 0 to 12, and rows 3 to 13"):
        levels(data, 3, 13)
    with pytest.raises(EpisodeError, match="no camera 'nose'; it has eye"):
        next(data.read_pictures("nose", 0, 1))


def test_the_size_that_is_promised(tmp_path) -> None:
    made = Made()
    made.info["features"][EYE]["shape"] = [64, 48, 3]
    with pytest.raises(
        EpisodeError,
        match=r"eye in episode 0, frame 0 is \(32, 32, 3\), meta/info\.json says \(64, 48, 3\)",
    ):
        levels(EpisodeDataset(made.save(tmp_path / "d")))


# Columns


def test_other_columns_by_their_own_type(tmp_path) -> None:
    made, count = Made(), len(ALL)
    columns = {
        "done": ("bool", [1], [place == 3 for place in range(count)]),
        "contacts": ("int32", [1], list(range(count))),
        "pose": ("float64", [3], [[place / 3, 0.1, -place] for place in range(count)]),
        "matrix": (
            "float64",
            [2, 3],
            [[[place, 1.0, 2.0], [3.0, 4.0, 5.0]] for place in range(count)],
        ),
        "note": ("string", [1], [f"é {place}" for place in range(count)]),
        "scalar": ("float64", [], [place / 7 for place in range(count)]),
    }
    for name, (dtype, shape, values) in columns.items():
        made.feature(name, dtype, shape, values)
    order = np.random.default_rng(1).permutation(count)
    made.rows = [made.rows[place] for place in order]
    data = EpisodeDataset(made.save(tmp_path / "d"))
    for name, (_, _, values) in columns.items():
        found = data.column(name)
        assert found.tolist() == values, name
    assert data.column("done").dtype == bool and data.column("matrix").shape == (count, 2, 3)
    assert data.column("pose").dtype == np.float64 and data.column("note").dtype.kind == "U"
    assert set(data.columns()) == {"observation.state", "action"}, (
        "nothing else is read for training"
    )
    with pytest.raises(EpisodeError, match=r"file-000\.parquet lacks column 'nothing'"):
        data.column("nothing")
    with pytest.raises(EpisodeError, match=r"note is .*, and only numbers have statistics"):
        data.measured("note")


def test_what_is_not_read_may_be_anything(tmp_path) -> None:
    made = Made().feature("effort", "float32", [1], [float("nan")] * len(ALL))
    made.info["features"]["absent"] = {"dtype": "float32", "shape": [4], "names": None}
    made.info["features"]["executed"] = {
        "dtype": "bool",
        "shape": [1],
        "names": None,
    }  # somebody else's, and no action
    assert_right(EpisodeDataset(made.save(tmp_path / "d")), ALL)


def test_columns_of_other_names_and_no_state(tmp_path) -> None:
    made = Made()
    for row in made.rows:
        row["actions"], row["pos"] = row.pop("action"), row.pop("observation.state")
    features = made.info["features"]
    features["actions"], features["pos"] = features.pop("action"), features.pop("observation.state")
    root = made.save(tmp_path / "d")
    named = EpisodeDataset(root, Columns("pos", "actions"))
    assert_right(named, ALL)
    assert (named.state_names, named.action_names) == (("x", "y"), ("0",))
    assert named.measured("action") == named.measured("actions")
    blind = EpisodeDataset(root, Columns(None, "actions"))
    assert blind.columns()["observation.state"].shape == (12, 0) and blind.state_names == ()
    assert blind.fingerprint != named.fingerprint
    with pytest.raises(
        EpisodeError,
        match=r"no feature 'observation\.state' for the state; it has .*actions.*--columns\.state NAME",
    ):
        EpisodeDataset(root)
    with pytest.raises(
        EpisodeError, match=r"no feature 'action' for the action.*--columns\.action NAME"
    ):
        EpisodeDataset(root, Columns("pos"))


def test_float64_and_scalars_are_state_and_action_too(tmp_path) -> None:
    made = Made()
    for row in made.rows:
        row["action"] = row["action"][0]  # a number, and no list of one
    made.info["features"]["action"] |= {"dtype": "float64", "shape": []}
    data = EpisodeDataset(made.save(tmp_path / "d"))
    assert_right(data, ALL)
    assert data.columns()["action"].dtype == np.float32 and data.columns()["action"].shape == (
        12,
        1,
    )


FLOATS = pa.list_(pa.float32())


def with_column(made: Made, name: str, values: list, kind: pa.DataType, root: Path) -> Path:
    """The data set with a column of Arrow's own making, which Python's lists could not say."""
    root = made.save(root)
    table = pq.read_table(root / DATA).drop_columns([name])
    pq.write_table(table.append_column(name, pa.array(values, kind)), root / DATA)
    return root


@pytest.mark.parametrize(
    ("kind", "first", "second", "found"),
    [
        (FLOATS, [1.0], [2.0, 3.0, 4.0], "1 value"),
        (FLOATS, [], [2.0, 3.0, 4.0, 5.0], "0 values"),
        (FLOATS, None, [2.0, 3.0, 4.0, 5.0], "0 values"),
        (FLOATS, [1.0, 2.0, 3.0], [2.0], "3 values"),
        (pa.list_(pa.float32(), 2), None, [2.0, 3.0], "0 values"),
        (pa.list_(FLOATS), [[1.0]], [[2.0], [3.0], [4.0]], "1 value"),
    ],
)
def test_rows_of_other_lengths_are_named(tmp_path, kind, first, second, found: str) -> None:
    """Though their numbers together are as many as are wanted: every row between them would be
    shifted."""
    rows = Made().rows
    values = [[1.0, 2.0] for _ in rows]
    if kind == pa.list_(FLOATS):
        values = [[[1.0], [2.0]] for _ in rows]
    values[6], values[9] = first, second
    for name in ("observation.state", "pose"):
        made = Made().feature("pose", "float32", [2], [[0.0, 0.0]] * len(rows))
        data = EpisodeDataset(with_column(made, name, values, kind, tmp_path / name))
        says = rf"file-000\.parquet: {name} has {found} in episode 1, frame 2, expected 2"
        with pytest.raises(EpisodeError, match=says):
            data.column(name)
        if name != "pose":
            with pytest.raises(EpisodeError, match=says):
                data.columns()


def test_rows_of_a_matrix_are_of_one_length_each(tmp_path) -> None:
    values = [[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]] for _ in ALL]
    values[5] = [[1.0, 2.0], [3.0, 4.0, 5.0, 6.0]]
    made = Made().feature("pose", "float32", [2, 3], [[0.0] * 6] * len(ALL))
    data = EpisodeDataset(with_column(made, "pose", values, pa.list_(FLOATS), tmp_path / "d"))
    with pytest.raises(
        EpisodeError, match="pose has lists of several lengths in episode 1, frame 1"
    ):
        data.column("pose")


def test_a_key_that_is_missing_shifts_no_other(tmp_path) -> None:
    numbers = [[row["frame_index"]] for row in Made().rows]
    numbers[2], numbers[3] = [], [2, 3]
    root = with_column(Made(), "frame_index", numbers, pa.list_(pa.int64()), tmp_path / "d")
    with pytest.raises(EpisodeError, match="frame_index has 0 values in row 2, expected 1"):
        EpisodeDataset(root)


def test_what_is_empty_is_not_taken_for_a_number(tmp_path) -> None:
    for place, (kind, rest) in enumerate(
        ((pa.bool_(), True), (pa.int64(), 1), (pa.float64(), 1.0), (pa.float64(), 1e300))
    ):
        values = [[rest] for _ in ALL]
        if rest != 1e300:
            values[7] = [None]
        data = EpisodeDataset(
            with_column(Made(), "action", values, pa.list_(kind), tmp_path / str(place))
        )
        first = "episode 0, frame 0" if rest == 1e300 else "episode 2, frame 0"
        with pytest.raises(EpisodeError, match=f"action is NaN or infinite in {first}"):
            data.columns()


@pytest.mark.parametrize(
    ("names", "wanted", "remark"),
    [
        (["a", "b"], ("a", "b"), ""),
        ({"motors": ["a", "b"]}, ("a", "b"), ""),
        ({"left": ["a"], "right": ["b"]}, ("a", "b"), ""),
        ({"b": 1, "a": 0}, ("a", "b"), ""),
        ([["a", "b"]], ("a", "b"), ""),
        (["state"], ("0", "1"), ""),  # of the whole
        (["state", "state"], ("0", "1"), "state: 'state' names numbers 0, 1"),
        (["a", ""], ("0", "1"), "state: number 1 has an empty name"),
        (["a", "b", "c"], ("0", "1"), "state: 3 names of 2 numbers"),
        (None, ("0", "1"), ""),
        ("state", ("0", "1"), ""),
    ],
)
def test_names_of_numbers(tmp_path, names, wanted, remark) -> None:
    made = Made()
    made.info["features"]["observation.state"]["names"] = names
    data = EpisodeDataset(made.save(tmp_path / "d"))
    assert data.state_names == wanted
    assert len(data.name_remarks) == bool(remark)
    assert remark in "".join(data.name_remarks)
    assert data.name_remarks == suggest(data).warnings[: len(data.name_remarks)]


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ([SIDE, SIDE, 3], ["height", "width", "channel"]),
        ([SIDE, SIDE, 3], ["h", "w", "c"]),
        ([3, SIDE, SIDE], ["channels", "height", "width"]),
        ([3, SIDE, SIDE], None),
        ([SIDE, SIDE, 3], None),
        (None, None),
    ],
)
def test_shapes_of_pictures(tmp_path, shape, names) -> None:
    made = Made()
    made.info["features"][EYE] |= {"shape": shape, "names": names}
    data = EpisodeDataset(made.save(tmp_path / "d"))
    assert data.cameras == {"eye": (SIDE, SIDE)}
    assert_right(data, ALL)


def test_names_of_cameras(tmp_path) -> None:
    made = Made()
    for name in (
        "image",
        "observation.images.image",
        "observation.images.arm.left",
        "observation.image",
    ):
        made.info["features"][name] = made.info["features"][EYE]
        for each in made.listed:
            each |= {key.replace(EYE, name): value for key, value in each.items() if EYE in key}
    cameras = EpisodeDataset(made.save(tmp_path / "d")).cameras
    assert list(cameras) == [
        "eye",
        "image",
        "observation.images.image",
        "arm.left",
        "observation.image",
    ]


# Statistics


def test_statistics_are_measured(tmp_path) -> None:
    """A dimension that is constant within each episode: quantiles averaged over episodes would be
    far from the true ones."""
    made = Made(lengths=(4, 3, 5))
    for row in made.rows:
        row["action"] = [float(row["episode_index"])]
    data = EpisodeDataset(made.save(tmp_path / "d"))
    values = data.columns()["action"].astype(np.float64)
    found = data.measured("action")
    for name, share in {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}.items():
        assert found[name] == np.quantile(values, share, axis=0).tolist()
    assert (found["min"], found["max"], found["count"]) == ([0.0], [2.0], [12])
    assert found["mean"] == pytest.approx(values.mean(0)) and found["std"] == pytest.approx(
        values.std(0)
    )
    assert data.measured("frame_index")["max"] == [4.0], "any column of numbers"
    assert data.stats["action"] == found, "there is no stats.json"


def test_statistics_stay_what_the_file_says(tmp_path) -> None:
    root = Made().save(tmp_path / "d")
    said = {
        "action": {"mean": [7.0], "std": [float("nan")], "q01": None},
        "observation.state": None,
    }
    (root / "meta/stats.json").write_text(json.dumps(said))
    data = EpisodeDataset(root)
    assert data.stats["action"]["mean"] == [7.0] and data.measured("action")["mean"] != [7.0]


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ([1], r"action is \[1\], expected an object of min, max, mean"),
        ({"max": "a"}, "action max is 'a', expected 1 numbers"),
        ({"min": [[1], [1, 2]]}, "action min is .*, expected 1 numbers"),
        ({"mean": [1, 2]}, "action mean has 2 values and the feature has 1 dimensions"),
    ],
)
def test_statistics_that_are_none_are_named(tmp_path, said, says: str) -> None:
    root = Made().save(tmp_path / "d")
    (root / "meta/stats.json").write_text(json.dumps({"action": said}))
    with pytest.raises(EpisodeError, match=rf"meta/stats\.json: {says}"):
        EpisodeDataset(root)


# Metadata


def test_odd_metadata(tmp_path, capsys) -> None:
    made = Made()
    made.info |= {
        "fps": "5.0",
        "total_episodes": None,
        "data_path": None,
        "video_path": None,
        "splits": None,
        "robot_type": None,
    }
    root = made.save(tmp_path / "d")
    path = root / "meta/info.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    data = EpisodeDataset(root)
    assert data.fps == 5
    assert_right(data, ALL)
    made.info["total_episodes"] = 2
    made.write_info(root)
    assert_right(EpisodeDataset(root), ALL)
    assert "lists 3 episodes, and meta/info.json counts 2; all are taken" in capsys.readouterr().err
    (root / "meta/armlet.json").write_text("{}")
    assert_right(EpisodeDataset(root), ALL[:7])
    made.info["total_episodes"] = 4
    made.write_info(root)
    with pytest.raises(EpisodeError, match=r"lists 3 episodes, and meta/info\.json promises 4"):
        EpisodeDataset(root)


@pytest.mark.parametrize("fps", [None, 0, -5, "fast", float("nan"), True])
def test_a_rate_that_is_none(tmp_path, fps) -> None:
    made = Made()
    made.info["fps"] = fps
    with pytest.raises(EpisodeError, match=r"info\.json: fps is"):
        EpisodeDataset(made.save(tmp_path / "d"))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"


@pytest.mark.parametrize("name", [DATA, LISTED, "meta/tasks.parquet", "meta/info.json", FILM])
def test_files_that_are_not_there_are_named(tmp_path, name: str) -> None:
    root = Made().save(tmp_path / "d")
    path = root / name
    whole = path.read_bytes()

    def refused() -> str:
        with pytest.raises(ValueError, match=path.name) as caught:
            levels(EpisodeDataset(root))
        assert isinstance(caught.value, EpisodeError | VideoError)
        return str(caught.value)

    path.write_bytes(POINTER)
    assert "git lfs pull" in refused()
    path.write_bytes(b"")
    assert "is empty" in refused()
    path.write_bytes(whole[: len(whole) // 2])
    assert any(
        word in refused() for word in ("truncated", "damaged", "cannot be read", "is no JSON")
    )
    path.unlink()
    if name != "meta/tasks.parquet" and name != LISTED:
        assert "is missing" in refused()
    path.symlink_to(tmp_path / "nowhere")
    assert "is a link to" in refused()


def test_folders_that_are_links(tmp_path) -> None:
    root = Made().save(tmp_path / "d")
    for place, name in enumerate(("data", "meta/episodes/chunk-000", f"videos/{EYE}")):
        (root / name).rename(tmp_path / str(place))
        (root / name).symlink_to(tmp_path / str(place))
    (tmp_path / "link").symlink_to(root)
    assert_right(EpisodeDataset(tmp_path / "link"), ALL)


def test_told_is_what_a_frame_was_told(tmp_path) -> None:
    episode = EpisodeFrames(
        {}, np.zeros((3, 1), np.float32), np.zeros((3, 1), np.float32), {}, "a", {}, ("a", "a", "b")
    )
    assert [episode.told(frame) for frame in range(3)] == ["a", "a", "b"]
    assert replace(episode, asked=()).told(2) == "a"
    with pytest.raises(EpisodeError, match="2 tasks, and one is kept an episode"):
        episode.check(Features(("x",), ("a",), {}))


@pytest.mark.parametrize(
    ("feature", "depth"),
    [
        ({"shape": [8, 8, 3]}, False),
        ({"shape": [8, 8, 3], "info": {"is_depth_map": True}}, True),
        ({"shape": [8, 8, 3], "video_info": {"video.is_depth_map": True}}, True),
        ({"shape": [8, 8, 3], "info": {"video.pix_fmt": "gray16le"}}, True),
        (
            {"shape": [8, 8, 3], "info": {"video.pix_fmt": "yuv420p10le", "is_depth_map": False}},
            False,
        ),
        ({"shape": [8, 8, 1]}, True),
        ({"shape": [1, 8, 8], "names": ["channels", "height", "width"]}, True),
        ({"shape": [8, 8]}, True),
        ({"shape": [8, 8, 1], "info": {"is_depth_map": False, "video.pix_fmt": "gray"}}, False),
        ({"shape": [8, 8, 4]}, False),
    ],
)
def test_what_is_no_camera_of_colours(feature: dict, depth: bool) -> None:
    assert is_depth(feature) == depth


def test_a_depth_camera_of_which_too_little_is_said(tmp_path, capsys) -> None:
    """It is left out with a word, and the colours beside it are read; a grey camera that says so
    has colours."""
    made = Made()
    for name, about in (
        ("deep", {"is_depth_map": True}),
        ("grey", {"is_depth_map": False, "video.pix_fmt": "gray"}),
    ):
        made.info["features"][f"observation.images.{name}"] = {
            "dtype": "video",
            "shape": [SIDE, SIDE, 1],
            "info": about,
        }
        for each in made.listed:
            each |= {
                key.replace(".eye", f".{name}"): value for key, value in each.items() if EYE in key
            }
    root = made.save(tmp_path / "d")
    film(root / "videos/observation.images.grey/chunk-000/file-000.mp4", made.shown)
    data = EpisodeDataset(root)
    assert data.cameras == {"eye": (SIDE, SIDE), "grey": (SIDE, SIDE)} and not data.depth_cameras
    assert (
        "camera 'deep' has one channel, no colours; it is left out, because"
        in capsys.readouterr().err
    )
    assert_right(data, ALL)
    assert [picture.shape for picture in data.read_pictures("grey", 0, 2)] == [(SIDE, SIDE, 3)] * 2
    assert data.fingerprint, "its film is not there, and nobody reads it"
    with pytest.raises(EpisodeError, match="no depth camera 'deep' that can be read"):
        next(data.read_depth("deep", 0, 1))
