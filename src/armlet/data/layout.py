"""File names and metadata of LeRobotDataset: v3.0 as lerobot 0.4–0.6 reads it, and where v2.0 to v3.1 keep an episode.

Knows no values of a data set.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

IMAGE = "observation.images."
INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
EPISODES = "meta/episodes/chunk-000/file-{file:03d}.parquet"
DATA = "data/chunk-000/file-{file:03d}.parquet"
VIDEO = "videos/{camera}/chunk-000/file-{file:03d}.mp4"


def column_type(values: np.ndarray) -> pa.DataType:
    """Parquet type of a column: fixed-size lists for vectors, scalars otherwise."""
    base = pa.float32() if values.dtype.kind == "f" else pa.int64()
    return pa.list_(base, values.shape[1]) if values.ndim == 2 else base


def tasks_table(tasks: list[str]) -> pa.Table:
    """Task texts as the index that pandas expects, which lerobot reads through pandas."""
    name = "__index_level_0__"
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), name: pa.array(tasks, pa.string())})
    pandas = {
        "index_columns": [name],
        "column_indexes": [],
        "columns": [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64", "metadata": None},
            {"name": None, "field_name": name, "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def info_json(features: Any, fps: int, robot: str, *, episodes: int, frames: int, tasks: int) -> dict[str, Any]:
    """meta/info.json; `features` is an `episodes.Features`."""
    described: dict[str, Any] = {
        f"observation.images.{name}": _video(height, width, fps) for name, (height, width) in features.cameras.items()
    }
    described["observation.state"] = _vector(len(features.state), list(features.state))
    described["action"] = _vector(len(features.action), list(features.action))
    described |= {name: _vector(size, None) for name, size in features.extra.items()}
    described["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    for name in ("frame_index", "episode_index", "index", "task_index"):
        described[name] = {"dtype": "int64", "shape": [1], "names": None}
    return {
        "codebase_version": "v3.0",
        "robot_type": robot,
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {"train": f"0:{episodes}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": described,
    }


def _vector(size: int, names: list[str] | None) -> dict[str, Any]:
    return {"dtype": "float32", "shape": [size], "names": names}


def _video(height: int, width: int, fps: int) -> dict[str, Any]:
    details = {
        "video.height": height,
        "video.width": width,
        "video.codec": "h264",
        "video.pix_fmt": "yuv444p",
        "video.is_depth_map": False,
        "video.fps": fps,
        "video.channels": 3,
        "has_audio": False,
    }
    return {"dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channels"], "info": details}


@dataclass(frozen=True)
class Stored:
    """One episode and where its parts lie. `data` and `videos` name files relative to the data set's folder: the
    parquet file and the episode's first row in it; camera key → video file and the second at which it begins."""

    index: int
    length: int
    task: str
    info: dict[str, Any]
    data: str
    first: int
    videos: dict[str, tuple[str, float]]


def stored_v30(root: Path, info: dict[str, Any]) -> list[Stored]:
    """Episodes of a v3.x folder: many to a file, and videos cut into files where the data need not be."""
    paths = sorted(root.glob("meta/episodes/chunk-*/file-*.parquet"))
    rows = [row for path in paths for row in pq.read_table(path, columns=_columns(path)).to_pylist()][: info["total_episodes"]]
    begins: dict[str, int] = {}
    found = []
    for row in rows:
        data = info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        first = row["dataset_from_index"] - begins.setdefault(data, row["dataset_from_index"])
        videos = {}
        for key in _video_keys(info):
            at = f"videos/{key}"
            place = {"chunk_index": row[f"{at}/chunk_index"], "file_index": row[f"{at}/file_index"]}
            videos[key] = (info["video_path"].format(video_key=key, **place), row[f"{at}/from_timestamp"])
        about = json.loads(row.get("armlet/info") or "{}")
        found.append(Stored(row["episode_index"], row["length"], row["tasks"][0], about, data, first, videos))
    return found


def _columns(path: Path) -> list[str]:
    """All but the statistics, which are most of the file."""
    return [name for name in pq.read_schema(path).names if not name.startswith("stats/")]


def stored_v2(root: Path, info: dict[str, Any]) -> list[Stored]:
    """Episodes of a v2.0 or v2.1 folder: a parquet file and a video per camera each."""
    found = []
    for row in json_lines(root / "meta/episodes.jsonl"):
        place = {"episode_chunk": row["episode_index"] // info["chunks_size"], "episode_index": row["episode_index"]}
        videos = {key: (info["video_path"].format(video_key=key, **place), 0.0) for key in _video_keys(info)}
        data = info["data_path"].format(**place)
        found.append(Stored(row["episode_index"], row["length"], row["tasks"][0], {}, data, 0, videos))
    return found


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def _video_keys(info: dict[str, Any]) -> list[str]:
    return [name for name, feature in info["features"].items() if feature["dtype"] == "video"]
