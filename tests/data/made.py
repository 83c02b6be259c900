"""A LeRobotDataset made by hand, in closed form: state, action and the grey of every picture say
which frame of which episode it is.

A test changes what it is about — rows, films, metadata — and saves.
"""

import copy
import json
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FPS, SIDE = 5, 32
EYE = "observation.images.eye"
TASKS = ("pick it", "place it")


def grey(episode: int, frame: int) -> int:
    return (20 + 40 * episode + 5 * frame) % 240


def film(
    path: Path,
    pictures: list[tuple[int, int]],
    *,
    tick: Fraction = Fraction(1, FPS),
    **options: str,
) -> None:
    """H.264 of (time in ticks, grey level) each; `options` are the encoder's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1 / tick)
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.codec_context.time_base = "yuv444p", tick
        stream.options = {"crf": "0", "threads": "1", "bf": "0", **options}
        for time, level in pictures:
            frame = av.VideoFrame.from_ndarray(
                np.full((SIDE, SIDE, 3), level, np.uint8), format="rgb24"
            )
            frame.pts, frame.time_base = time, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def number(row: dict[str, Any]) -> float:
    """What state and action of a row are."""
    return 100.0 * row["episode_index"] + row["frame_index"]


@dataclass
class Made:
    """`rows` of `files`, episodes as meta lists them, the film's (ticks, grey); `save` writes v3.0,
    `save_v21` v2.1."""

    lengths: tuple[int, ...] = (4, 3, 5)
    rows: list[dict[str, Any]] = field(default_factory=list)
    listed: list[dict[str, Any]] = field(default_factory=list)
    shown: list[tuple[int, int]] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    tasks: dict[int, str] = field(default_factory=lambda: dict(enumerate(TASKS)))

    def __post_init__(self) -> None:
        first = 0
        for episode, length in enumerate(self.lengths):
            for frame in range(length):
                row = {
                    "episode_index": episode,
                    "frame_index": frame,
                    "index": first + frame,
                    "task_index": episode % 2,
                }
                row |= {
                    "timestamp": np.float32(frame / FPS),
                    "observation.state": [number(row)] * 2,
                    "action": [number(row)],
                }
                self.rows.append(row)
                self.shown.append((first + frame, grey(episode, frame)))
            self.listed.append(
                {
                    "episode_index": episode, "tasks": [TASKS[episode % 2]], "length": length,
                    "data/chunk_index": 0, "data/file_index": 0,
                    "dataset_from_index": first, "dataset_to_index": first + length,
                    f"videos/{EYE}/chunk_index": 0, f"videos/{EYE}/file_index": 0,
                    f"videos/{EYE}/from_timestamp": first / FPS, f"videos/{EYE}/to_timestamp": (first + length) / FPS,
                }
            )  # fmt: skip
            first += length
        self.info = {
            "codebase_version": "v3.0",
            "fps": FPS,
            "total_episodes": len(self.lengths),
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
            "features": {
                EYE: {
                    "dtype": "video",
                    "shape": [SIDE, SIDE, 3],
                    "names": ["height", "width", "channels"],
                },
                "observation.state": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
                "action": {"dtype": "float32", "shape": [1], "names": None},
            },
        }

    def save(self, root: Path) -> Path:
        (root / "meta/episodes/chunk-000").mkdir(parents=True)
        (root / "data/chunk-000").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self.rows), root / "data/chunk-000/file-000.parquet")
        pq.write_table(
            pa.Table.from_pylist(self.listed), root / "meta/episodes/chunk-000/file-000.parquet"
        )
        tasks = pa.table({"task_index": list(self.tasks), "task": list(self.tasks.values())})
        pq.write_table(tasks, root / "meta/tasks.parquet")
        film(root / f"videos/{EYE}/chunk-000/file-000.mp4", self.shown)
        self.write_info(root)
        return root

    def save_v21(self, root: Path) -> Path:
        """A file and a film an episode."""
        self.info |= {"codebase_version": "v2.1", "data_path": None, "video_path": None}
        for episode in range(len(self.lengths)):
            path = root / f"data/chunk-000/episode_{episode:06d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [row for row in self.rows if row["episode_index"] == episode]
            pq.write_table(pa.Table.from_pylist(rows), path)
            shown = [(row["frame_index"], grey(episode, row["frame_index"])) for row in rows]
            film(root / f"videos/chunk-000/{EYE}/episode_{episode:06d}.mp4", shown)
        self.write_info(root)
        lines = [
            {name: each[name] for name in ("episode_index", "tasks", "length")}
            for each in self.listed
        ]
        (root / "meta/episodes.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines)
        )
        tasks = [{"task_index": index, "task": text} for index, text in self.tasks.items()]
        (root / "meta/tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in tasks))
        return root

    def write_info(self, root: Path) -> None:
        (root / "meta").mkdir(parents=True, exist_ok=True)
        (root / "meta/info.json").write_text(json.dumps(self.info))

    def feature(self, name: str, dtype: str, shape: Any, values: list[Any], **more: Any) -> "Made":
        """The same with one more column, its values row by row."""
        self.info["features"][name] = {"dtype": dtype, "shape": shape, "names": None, **more}
        for row, value in zip(self.rows, values, strict=True):
            row[name] = copy.deepcopy(value)
        return self
