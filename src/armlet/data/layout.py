"""File names and metadata of LeRobotDataset v3.0, as lerobot 0.4–0.6 reads them. Knows no values of a data set."""

import json
from typing import Any

import numpy as np
import pyarrow as pa

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
