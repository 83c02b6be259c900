"""The language columns of a data set: written into a copy, read back, and other people's rows left
alone."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from armlet.data.episodes import EpisodeDataset, EpisodeError, EpisodeFrames, Features
from armlet.data.language import (
    EVENTS,
    PERSISTENT,
    frame_times,
    read_persistent,
    remark,
    write_persistent,
)
from armlet.data.manifest import MANIFEST
from armlet.data.writer import EpisodeWriter

FEATURES = Features(("x", "gap"), ("dx", "gripper"), {"scene": (32, 32)}, {})
LENGTHS = (5, 3, 4)
SPOKEN = [{"type": "function", "function": {"name": "say", "arguments": {"text": "on it"}}}]


@pytest.fixture
def data(tmp_path) -> EpisodeDataset:
    """Two files: two episodes, and one."""
    writer = EpisodeWriter(
        tmp_path / "d", FEATURES, fps=10, robot="test", metadata={}, episodes_per_file=2
    )
    for index, length in enumerate(LENGTHS):
        rng = np.random.default_rng(index)
        images = {"scene": rng.integers(0, 256, (length, 32, 32, 3), dtype=np.uint8)}
        numbers = [rng.normal(size=(length, 2)).astype(np.float32) for _ in range(2)]
        writer.add(EpisodeFrames(images, *numbers, {}, "lift it", {"attempt": index}))
    return writer.finalise()


REMARKS = [
    [
        remark("subtask", "go there", 0.0),
        remark("subtask", "grasp — ещё 立方", float(np.float32(0.3))),
    ],
    [],
    [remark("memory", "it was left", 0.0)],
]


def test_what_is_said_holds_on_every_frame(data, tmp_path) -> None:
    copy = write_persistent(data, tmp_path / "copy", REMARKS)
    assert read_persistent(copy) == REMARKS and read_persistent(data) == [[], [], []]
    frames = [
        row for name in copy.data_files for row in pq.read_table(copy.root / name).to_pylist()
    ]
    for row in frames:
        assert row[PERSISTENT] == REMARKS[row["episode_index"]] and row[EVENTS] == []
    assert np.array_equal(frame_times(copy), [row["timestamp"] for row in frames])


def test_the_schema_is_lerobots(data, tmp_path) -> None:
    """As `language_persistent_arrow_type` of lerobot 0.6.2 has it; its JSON is text underneath,
    which `datasets` casts."""
    copy = write_persistent(data, tmp_path / "copy", REMARKS)
    schema = pq.read_schema(copy.root / copy.data_files[0])
    row = schema.field(PERSISTENT).type.value_type
    assert [row.field(index).name for index in range(row.num_fields)] == [
        "role", "content", "style", "timestamp", "camera", "tool_calls",
    ]  # fmt: skip
    assert row.field("timestamp").type == pa.float32() and not row.field("role").nullable
    assert row.field("tool_calls").type == pa.list_(pa.string())
    event = schema.field(EVENTS).type.value_type
    assert "timestamp" not in {event.field(index).name for index in range(event.num_fields)}
    info = json.loads((copy.root / "meta/info.json").read_text())
    for name in (PERSISTENT, EVENTS):
        assert info["features"][name] == {"dtype": "language", "shape": [1], "names": None}
    assert info["codebase_version"] == "v3.0"


def test_the_copy_is_the_same_data_set_but_for_its_words(data, tmp_path) -> None:
    data.all_images("scene")  # a cache, which belongs to the original
    copy = write_persistent(data, tmp_path / "copy", REMARKS)
    assert copy.fingerprint != data.fingerprint
    assert all(
        np.array_equal(values, copy.columns()[name]) for name, values in data.columns().items()
    )
    assert np.array_equal(copy.images(2)["scene"], data.images(2)["scene"])
    assert [episode.info for episode in copy.episodes] == [
        episode.info for episode in data.episodes
    ]
    assert not (copy.root / ".cache").exists()
    video = next(copy.root.glob("videos/**/*.mp4"))
    assert os.stat(video).st_nlink == 2, "a video is not copied where it can be linked"


@pytest.mark.parametrize("form", ["structs", "json"])
def test_events_and_tool_calls_of_others_stay(data, tmp_path, form: str) -> None:
    """lerobot's pipeline writes tool calls as structs, the `datasets` library as JSON."""
    (data.root / MANIFEST).unlink()
    for name in data.data_files:
        table = pq.read_table(data.root / name)
        said = [
            {
                "role": "assistant",
                "content": None,
                "style": None,
                "camera": None,
                "tool_calls": SPOKEN if frame == 1 else None,
            }
            for frame in table.column("frame_index").to_pylist()
        ]
        events = pa.array([[row] for row in said])
        if form == "json":
            texts = [
                [row | {"tool_calls": [json.dumps(call) for call in row["tool_calls"] or []]}]
                for row in said
            ]
            plain = pa.array(texts)
            kinds = plain.type.value_type
            fields = [kinds.field(at) for at in range(kinds.num_fields - 1)]
            events = plain.cast(
                pa.list_(pa.struct([*fields, pa.field("tool_calls", pa.list_(pa.json_()))]))
            )
        pq.write_table(table.append_column(EVENTS, events), data.root / name)
    before = pq.read_table(data.root / data.data_files[0]).column(EVENTS)
    copy = write_persistent(EpisodeDataset(data.root), tmp_path / "copy", REMARKS)
    again = write_persistent(copy, tmp_path / "again", read_persistent(copy))
    after = pq.read_table(again.root / data.data_files[0]).column(EVENTS)
    assert after.to_pylist() == before.to_pylist() and after.type == before.type
    assert "on it" in str(after.to_pylist()[1])
    assert read_persistent(again) == REMARKS


def test_nothing_half_written_is_taken_for_a_copy(data, tmp_path, monkeypatch) -> None:
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", full)
        with pytest.raises(OSError, match="the disk is full"):
            write_persistent(data, tmp_path / "copy", REMARKS)
    assert not (tmp_path / "copy").exists()
    write_persistent(data, tmp_path / "copy", REMARKS)
    with pytest.raises(EpisodeError, match="exists already"):
        write_persistent(data, tmp_path / "copy", REMARKS)
    with pytest.raises(EpisodeError, match="3 episodes, and there are remarks about 1"):
        write_persistent(data, tmp_path / "other", [[]])


def test_a_data_set_that_speaks_in_some_files_only_is_refused(data, tmp_path) -> None:
    copy = write_persistent(data, tmp_path / "copy", REMARKS)
    path = copy.root / copy.data_files[1]
    pq.write_table(pq.read_table(path).drop_columns([PERSISTENT]), path)
    with pytest.raises(EpisodeError, match=r"file-001.parquet lacks column 'language_persistent'"):
        read_persistent(copy)
