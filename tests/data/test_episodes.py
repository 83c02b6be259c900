"""Episodes on disk: what is written is read, in LeRobot's layout; what is wrong is named; what is
killed goes on."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from armlet.data.episodes import EpisodeDataset, EpisodeError, EpisodeFrames, Features
from armlet.data.frames import load_frames
from armlet.data.manifest import MANIFEST
from armlet.data.video import VideoError, write_video
from armlet.data.writer import STAGING, EpisodeWriter

FEATURES = Features(
    ("x", "y", "gap"),
    ("dx", "gripper"),
    {"scene": (48, 48), "wrist": (32, 48)},
    {"privileged.goal": 3},
)
TASKS = ("open the red drawer", "push the blue cube")


def episode(index: int) -> EpisodeFrames:
    rng = np.random.default_rng(index)
    length = 5 + index % 4
    images = {}
    for name, (height, width) in FEATURES.cameras.items():
        frames = np.full((length, height, width, 3), 90, np.uint8)
        for step in range(length):
            frames[step, 8:24, 4 + 2 * step : 16 + 2 * step] = [
                [250, 20, 20],
                [20, 30, 240],
                [20, 200, 60],
            ][index % 3]
        images[name] = frames
    return EpisodeFrames(
        images,
        rng.normal(size=(length, 3)).astype(np.float32),
        rng.normal(size=(length, 2)).astype(np.float32),
        {"privileged.goal": rng.normal(size=(length, 3)).astype(np.float32)},
        TASKS[index % 2],
        {"attempt": index, "seed": 100 + index},
    )


def writer(root: Path, **options) -> EpisodeWriter:
    return EpisodeWriter(
        root, FEATURES, fps=10, robot="test", metadata={"renderer": "ray"}, **options
    )


def write(root: Path, count: int, **options) -> EpisodeDataset:
    target = writer(root, **options)
    for index in range(count):
        target.add(episode(index))
    return target.finalise()


def assert_equal(data: EpisodeDataset, indices: list[int], *, about: bool = True) -> None:
    columns = data.columns()
    assert len(data.episodes) == len(indices)
    for position, index in enumerate(indices):
        wanted = episode(index)
        span = slice(data.starts[position], data.starts[position + 1])
        assert np.array_equal(columns["observation.state"][span], wanted.state)
        assert np.array_equal(columns["action"][span], wanted.action)
        assert np.array_equal(columns["privileged.goal"][span], wanted.extra["privileged.goal"])
        assert data.episodes[position].task == wanted.task
        assert data.episodes[position].info == (wanted.info if about else {})
        for name, frames in data.images(position).items():
            error = np.mean((frames.astype(float) - wanted.images[name]) ** 2)
            assert 10 * np.log10(255**2 / error) > 34, f"{name}: a codec should cost less"
            assert np.array_equal(data.all_images(name)[span], frames)


@pytest.mark.parametrize("per_file", [2, 100])
def test_round_trip(tmp_path, per_file: int) -> None:
    data = write(tmp_path, 7, episodes_per_file=per_file)
    assert_equal(data, list(range(7)))
    assert (data.fps, data.state_names, data.action_names) == (10, FEATURES.state, FEATURES.action)
    assert data.cameras == FEATURES.cameras and data.extra == FEATURES.extra and data.tasks == TASKS
    frames = load_frames(data)
    assert (
        len(frames) == len(data)
        and frames.texts == TASKS
        and frames.asked[data.starts[1]] == 1
        and frames.privileged["goal"].shape == (len(data), 3)
    )


def test_statistics_are_those_of_the_data(tmp_path) -> None:
    data = write(tmp_path, 5)
    actions = data.columns()["action"]
    assert data.stats["action"]["mean"] == pytest.approx(actions.mean(0).tolist(), abs=1e-6)
    assert data.stats["action"]["std"] == pytest.approx(actions.std(0).tolist(), abs=1e-6)
    assert data.stats["action"]["max"] == pytest.approx(actions.max(0).tolist())
    assert np.shape(data.stats["observation.images.scene"]["mean"]) == (3, 1, 1)


def test_appending_and_finalising_twice(tmp_path) -> None:
    write(tmp_path, 3)
    again = writer(tmp_path)
    assert [info["attempt"] for info in again.finished()] == [0, 1, 2]
    before = again.finalise().fingerprint
    again.add(episode(5))
    assert len(again.finished()) == 4
    data = again.finalise()
    assert_equal(data, [0, 1, 2, 5])
    assert (
        data.fingerprint != before and writer(tmp_path).finalise().fingerprint == data.fingerprint
    )


def test_layout_is_lerobots(tmp_path) -> None:
    write(tmp_path, 3)
    info = json.loads((tmp_path / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["total_frames"] == 5 + 6 + 7
    assert info["features"]["observation.images.scene"]["info"]["video.codec"] == "h264"
    row = pq.read_table(tmp_path / "meta/episodes/chunk-000/file-000.parquet").to_pylist()[1]
    assert row["dataset_from_index"] == 5 and row[
        "videos/observation.images.wrist/from_timestamp"
    ] == pytest.approx(0.5)
    assert "stats/action/q99" in row
    tasks = pq.read_table(tmp_path / "meta/tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["__index_level_0__"]
    data = pq.read_table(tmp_path / "data/chunk-000/file-000.parquet")
    assert data.schema.field("action").type == pa.list_(pa.float32(), 2)
    assert data.column("frame_index").to_pylist()[:6] == [0, 1, 2, 3, 4, 0]


def as_v21(old: EpisodeDataset, root: Path) -> None:
    """The same episodes as a v2.1 folder: a parquet file and a video per camera for each,
    statistics per episode."""
    (root / "meta").mkdir(parents=True)
    info = json.loads((old.root / "meta/info.json").read_text()) | {
        "codebase_version": "v2.1",
        "chunks_size": 3,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    table = pq.read_table(old.root / "data/chunk-000/file-000.parquet")
    rows = pq.read_table(old.root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    listed, statistics = [], []
    for index, episode in enumerate(old.episodes):
        data = root / f"data/chunk-{index // 3:03d}/episode_{index:06d}.parquet"
        data.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.slice(int(old.starts[index]), episode.length), data)
        for camera, frames in old.images(index).items():
            name = (
                f"videos/chunk-{index // 3:03d}/observation.images.{camera}/episode_{index:06d}.mp4"
            )
            write_video(root / name, frames, fps=10, pixels="yuv444p", quality=1)
        listed.append({"episode_index": index, "tasks": [episode.task], "length": episode.length})
        kept = {
            name: {
                kind: rows[index][f"stats/{name}/{kind}"]
                for kind in ("min", "max", "mean", "std", "count")
            }
            for name in ("observation.state", "action")
        }
        statistics.append({"episode_index": index, "stats": kept})
    for name, lines in (("episodes", listed), ("episodes_stats", statistics)):
        (root / f"meta/{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_version_2_1_is_read_alike(tmp_path) -> None:
    new = write(tmp_path / "new", 7)
    as_v21(new, tmp_path / "old")
    old = EpisodeDataset(tmp_path / "old")
    assert_equal(old, list(range(7)), about=False)
    assert old.tasks == new.tasks and len(old.data_files) == 7
    for kind in ("mean", "std", "min", "max"):
        assert old.stats["action"][kind] == pytest.approx(new.stats["action"][kind])
    (tmp_path / "old/data/chunk-001/episode_000004.parquet").unlink()
    with pytest.raises(EpisodeError, match=r"episode_000004\.parquet is missing"):
        old.columns()


def test_pictures_in_the_table_and_columns_of_numbers(tmp_path) -> None:
    """As lerobot writes without videos: PNG bytes in the table, channels first in the metadata,
    scalar columns."""
    new = write(tmp_path, 4)
    (tmp_path / MANIFEST).unlink()  # as others write, or changed on purpose
    path, meta = tmp_path / "data/chunk-000/file-000.parquet", tmp_path / "meta/info.json"
    pictures = []
    for index in range(4):
        for frame in new.images(index)["scene"]:
            buffer = io.BytesIO()
            Image.fromarray(frame).save(buffer, "PNG")
            pictures.append({"bytes": buffer.getvalue(), "path": None})
    rewrite(path, lambda table: table.append_column("observation.images.scene", pa.array(pictures)))
    rewrite(
        path,
        lambda table: table.append_column(
            "next.reward", pa.array(np.arange(len(new)), pa.float32())
        ),
    )
    info = json.loads(meta.read_text())
    info["features"]["observation.images.scene"] = {
        "dtype": "image", "shape": [3, 48, 48], "names": ["channels", "height", "width"]
    }  # fmt: skip
    info["features"]["next.reward"] = {"dtype": "float32", "shape": [1], "names": None}
    meta.write_text(json.dumps(info))
    data = EpisodeDataset(tmp_path)
    assert_equal(data, list(range(4)))
    assert np.array_equal(data.column("next.reward"), np.arange(len(new)))


def test_videos_cut_elsewhere_than_the_data(tmp_path) -> None:
    """lerobot starts a new video file by its size, not where the data do."""
    write(tmp_path, 5)
    (tmp_path / MANIFEST).unlink()  # as others write, or changed on purpose
    listed = tmp_path / "meta/episodes/chunk-000/file-000.parquet"
    folder, key = tmp_path / "videos/observation.images.scene", "videos/observation.images.scene"
    moved = np.concatenate([EpisodeDataset(tmp_path).images(index)["scene"] for index in (3, 4)])
    write_video(folder / "chunk-001/file-002.mp4", moved, fps=10, pixels="yuv444p", quality=1)

    def change(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        for row, begins in ((rows[3], 0.0), (rows[4], rows[3]["length"] / 10)):
            row |= {
                f"{key}/chunk_index": 1,
                f"{key}/file_index": 2,
                f"{key}/from_timestamp": begins,
            }
        return pa.Table.from_pylist(rows, schema=table.schema)

    rewrite(listed, change)
    assert_equal(EpisodeDataset(tmp_path), list(range(5)))


def test_kill_while_writing(tmp_path) -> None:
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_episodes import *
target = writer(Path({str(tmp_path)!r}))
for index in range(500):
    target.add(episode(index))
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 120
    while len(list((tmp_path / STAGING).glob("*"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    target = writer(tmp_path)
    done = [info["attempt"] for info in target.finished()]
    assert done == list(range(len(done))) and len(done) >= 3
    target.add(episode(len(done)))
    assert_equal(target.finalise(), list(range(len(done) + 1)))


@pytest.mark.parametrize("survived", range(4))
def test_kill_while_laying_out(tmp_path, monkeypatch: pytest.MonkeyPatch, survived: int) -> None:
    """Killed after a file was written, and before all of what it was made from was removed: nothing
    is there twice."""
    remove, removed = shutil.rmtree, []

    def killed(path: Path, **kwargs) -> None:
        if STAGING in str(path) and not kwargs:
            if len(removed) == survived:
                raise KeyboardInterrupt
            removed.append(path)
        remove(path, **kwargs)

    target = writer(tmp_path, episodes_per_file=3)
    for index in range(5):
        target.add(episode(index))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            target.finalise()
    target = writer(tmp_path, episodes_per_file=3)
    assert sorted(info["attempt"] for info in target.finished()) == list(range(5))
    assert_equal(target.finalise(), list(range(5)))


def test_bad_episodes_are_refused(tmp_path) -> None:
    target, good = writer(tmp_path), episode(0)
    broken = good.action.copy()
    broken[3, 1] = np.nan
    with pytest.raises(EpisodeError, match="action: NaN or infinite at frame 3"):
        target.add(replace(good, action=broken))
    with pytest.raises(EpisodeError, match=r"action: found shape \(4, 2\), expected \(5, 2\)"):
        target.add(replace(good, action=good.action[:4]))
    with pytest.raises(EpisodeError, match=r"lacks column 'privileged.goal'"):
        target.add(replace(good, extra={}))
    with pytest.raises(EpisodeError, match="lacks camera 'wrist'"):
        target.add(replace(good, images={"scene": good.images["scene"]}))
    with pytest.raises(EpisodeError, match=r"expected .* uint8"):
        target.add(
            replace(good, images={name: frames / 255.0 for name, frames in good.images.items()})
        )
    for change, says in (
        (
            {"action": good.action.astype(np.float64) + 1e300},
            "action: NaN or infinite at frame 0 of 5, as float32",
        ),
        ({"action": good.action.tolist()}, "action: found list, expected an array of numbers"),
        (
            {"action": good.action.astype(str)},
            "action: found an array of <U32, expected an array of numbers",
        ),
        ({"state": good.state[:0]}, "an episode has one frame or more"),
        ({"task": None}, "task: found None, expected a text"),
        ({"task": b"go"}, "task: found b'go', expected a text"),
        ({"info": {"seed": np.float32(1)}}, "info: 'seed' is float32, expected what JSON can say"),
        (
            {"images": {**good.images, "scene": good.images["scene"].tolist()}},
            r"camera 'scene': found list, expected \(5",
        ),
    ):
        with pytest.raises(EpisodeError, match=says):
            target.add(replace(good, **change))
    target.add(good)
    assert_equal(target.finalise(), [0])


@pytest.mark.parametrize("kind", [np.int64, np.float64, np.bool_])
def test_numbers_of_another_type_are_kept_as_those_of_the_data_set(tmp_path, kind: type) -> None:
    """Beside those that are there: a column of two types could not be laid out, and what is staged
    stays."""
    target, good = writer(tmp_path), episode(0)
    whole = (good.action > 0).astype(kind)
    target.add(good)
    target.finalise()
    target.add(replace(good, action=whole))
    found = target.finalise().columns()["action"]
    np.testing.assert_array_equal(found, np.concatenate([good.action, whole.astype(np.float32)]))


def test_two_kinds_of_data_are_not_mixed(tmp_path) -> None:
    write(tmp_path, 1)
    with pytest.raises(EpisodeError, match="renderer differ"):
        EpisodeWriter(tmp_path, FEATURES, fps=10, robot="test", metadata={"renderer": "egl"})


def rewrite(path: Path, change) -> None:
    table = pq.read_table(path)
    pq.write_table(change(table), path)


def test_damaged_data_sets_are_named(tmp_path) -> None:
    data_file = tmp_path / "data/chunk-000/file-000.parquet"
    write(tmp_path, 3)
    (tmp_path / MANIFEST).unlink()  # as others write, or changed on purpose
    original = data_file.read_bytes()
    rewrite(data_file, lambda table: table.drop_columns(["action"]))
    with pytest.raises(EpisodeError, match="lacks column 'action'"):
        EpisodeDataset(tmp_path).columns()
    data_file.write_bytes(original)

    def poison(table: pa.Table) -> pa.Table:
        actions = table.column("action").to_pylist()
        actions[7][0] = float("nan")
        return table.set_column(
            table.column_names.index("action"),
            "action",
            pa.array(actions, pa.list_(pa.float32(), 2)),
        )

    rewrite(data_file, poison)
    with pytest.raises(EpisodeError, match="action is NaN or infinite in episode 1, frame 2"):
        EpisodeDataset(tmp_path).columns()
    data_file.write_bytes(original)
    stats = tmp_path / "meta/stats.json"
    kept = stats.read_text()
    stats.write_text(json.dumps({**json.loads(kept), "action": {"mean": [0.0] * 7}}))
    with pytest.raises(EpisodeError, match="statistics of another robot"):
        EpisodeDataset(tmp_path)
    stats.unlink()
    computed = EpisodeDataset(tmp_path).stats
    assert computed["action"] == EpisodeDataset(tmp_path).measured("action")
    assert computed["action"]["mean"] == pytest.approx(json.loads(kept)["action"]["mean"])


def test_truncated_videos_are_named(tmp_path) -> None:
    write(tmp_path, 3)
    (tmp_path / MANIFEST).unlink()  # as others write, or changed on purpose
    video = tmp_path / "videos/observation.images.scene/chunk-000/file-000.mp4"
    content = video.read_bytes()
    video.write_bytes(content[: len(content) // 2])
    with pytest.raises(VideoError, match=r"file-000\.mp4"):
        EpisodeDataset(tmp_path).images(2)
    write(tmp_path / "short", 1)
    short = tmp_path / "short/videos/observation.images.scene/chunk-000/file-000.mp4"
    video.write_bytes(short.read_bytes())
    with pytest.raises(VideoError, match="truncated"):
        EpisodeDataset(tmp_path).images(2)


def test_other_versions_are_refused(tmp_path) -> None:
    write(tmp_path, 1)
    (tmp_path / MANIFEST).unlink()  # as others write, or changed on purpose
    info = tmp_path / "meta/info.json"
    info.write_text(info.read_text().replace('"v3.0"', '"v1.6"'))
    with pytest.raises(EpisodeError, match=r"v1\.6"):
        EpisodeDataset(tmp_path)
    with pytest.raises(EpisodeError, match=r"info\.json is missing"):
        EpisodeDataset(tmp_path / "nowhere")


def test_two_processes_that_decode_the_same_videos_get_the_same_pictures(tmp_path) -> None:
    data = write(tmp_path, 40)
    script = f"""
from armlet.data.episodes import EpisodeDataset
data = EpisodeDataset({str(tmp_path)!r})
for camera in data.cameras:
    data.all_images(camera)
"""
    both = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    for camera in data.cameras:
        one_by_one = np.concatenate(
            [data.images(number)[camera] for number in range(len(data.episodes))]
        )
        assert (data.all_images(camera) == one_by_one).all()
