"""Episodes on disk as LeRobotDataset v3.0 (parquet and mp4), written and read on pyarrow and PyAV alone.

Writing: each finished episode is staged in a folder that appears by one rename, so a killed run loses only the
episode under way; `finalise` lays the staged episodes out as v3.0. Knows no policy and no benchmark.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from armlet.data.layout import DATA, EPISODES, INFO, STATS, TASKS, VIDEO, column_type, info_json, tasks_table
from armlet.data.statistics import combine, of_images, of_values
from armlet.data.video import concatenate, read_frames, write_video

STAGING, CACHE, ARMLET = ".staging", ".cache", "meta/armlet.json"
IMAGE = "observation.images."


class EpisodeError(ValueError):
    """Episodes that are not what their metadata, or their reader, say they are."""


@dataclass(frozen=True)
class Features:
    """What a frame holds. `cameras` name → (height, width); `extra` float32 columns name → length."""

    state: tuple[str, ...]
    action: tuple[str, ...]
    cameras: dict[str, tuple[int, int]]
    extra: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class EpisodeFrames:
    """One episode of T frames: `images` camera → (T, h, w, 3) uint8; the rest float32 (T, x); `info` JSON scalars."""

    images: dict[str, np.ndarray]
    state: np.ndarray
    action: np.ndarray
    extra: dict[str, np.ndarray]
    task: str
    info: dict[str, Any] = field(default_factory=dict)

    def check(self, features: Features) -> None:
        """Raises EpisodeError where the episode does not fit, naming the column."""
        columns = {"observation.state": (self.state, len(features.state)), "action": (self.action, len(features.action))}
        columns |= {name: (self.extra.get(name), size) for name, size in features.extra.items()}
        length = len(self.state)
        for name, (values, size) in columns.items():
            if values is None:
                raise EpisodeError(f"the episode lacks column {name!r}, which the data set has")
            if values.shape != (length, size):
                raise EpisodeError(f"{name}: found shape {values.shape}, expected ({length}, {size})")
            bad = np.flatnonzero(~np.isfinite(values).all(1))
            if len(bad):
                raise EpisodeError(f"{name}: NaN or infinite at frame {bad[0]} of {length}; drop or repair the episode")
        for name, (height, width) in features.cameras.items():
            images = self.images.get(name)
            if images is None:
                raise EpisodeError(f"the episode lacks camera {name!r}; it has {sorted(self.images)}")
            if images.shape != (length, height, width, 3) or images.dtype != np.uint8:
                raise EpisodeError(
                    f"camera {name!r}: found {images.shape} {images.dtype}, expected ({length}, {height}, {width}, 3) uint8"
                )


def stage_episode(root: Path, index: int, episode: EpisodeFrames, features: Features, *, fps: int) -> None:
    """Write one episode where `finalise` finds it; may run in a worker process. Whole or not at all."""
    episode.check(features)
    place = root / STAGING / f"{index:07d}"
    part = place.with_name(place.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    np.savez(part / "columns.npz", **{"observation.state": episode.state, "action": episode.action}, **episode.extra)
    for name, frames in episode.images.items():
        write_video(part / f"{name}.mp4", frames, fps=fps, pixels="yuv444p", quality=12)
    statistics = {IMAGE + name: of_images(frames) for name, frames in episode.images.items()}
    about = {"task": episode.task, "length": len(episode.state), "info": episode.info, "statistics": statistics}
    (part / "about.json").write_text(json.dumps(about))
    part.rename(place)


class EpisodeWriter:
    """Adds episodes to a data set, new or existing. `metadata` describes how it was made; an existing one must agree."""

    def __init__(
        self, root: Path, features: Features, *, fps: int, robot: str, metadata: dict[str, Any], episodes_per_file: int = 5000
    ) -> None:
        self.root, self.features, self.fps, self.robot = Path(root), features, fps, robot
        self.metadata, self.episodes_per_file = metadata, episodes_per_file
        (self.root / STAGING).mkdir(parents=True, exist_ok=True)
        for leftover in (self.root / STAGING).glob("*.part"):
            shutil.rmtree(leftover)
        before = self.root / ARMLET
        if before.exists() and (found := json.loads(before.read_text())) != metadata:
            differing = [key for key in {*found, *metadata} if found.get(key) != metadata.get(key)]
            raise EpisodeError(
                f"{before}: these episodes were made otherwise ({', '.join(sorted(differing))} differ), and data of two kinds "
                "are not mixed; choose another folder, or delete this one"
            )
        before.parent.mkdir(parents=True, exist_ok=True)
        before.write_text(json.dumps(metadata, indent=1))
        self.finalised = EpisodeDataset(self.root) if (self.root / INFO).exists() else None

    @property
    def start(self) -> int:
        return len(self.finalised.episodes) if self.finalised else 0

    def staged(self) -> list[Path]:
        """Finished episodes not laid out yet, in order."""
        return sorted(path for path in (self.root / STAGING).iterdir() if not path.name.endswith(".part"))

    def finished(self) -> list[dict[str, Any]]:
        """The `info` of every finished episode."""
        old = [episode.info for episode in self.finalised.episodes] if self.finalised else []
        return old + [json.loads((path / "about.json").read_text())["info"] for path in self.staged()]

    def add(self, episode: EpisodeFrames) -> None:
        """Stage one episode, numbered after the last."""
        staged = self.staged()
        index = int(staged[-1].name) + 1 if staged else self.start
        stage_episode(self.root, index, episode, self.features, fps=self.fps)

    def finalise(self) -> "EpisodeDataset":
        """Lay staged episodes out as LeRobotDataset v3.0; does nothing where none is staged."""
        staged = self.staged()
        for start in range(0, len(staged), self.episodes_per_file):
            self._write_file(staged[start : start + self.episodes_per_file])
        for path in self.staged():
            shutil.rmtree(path)
        return EpisodeDataset(self.root)

    def _write_file(self, staged: list[Path]) -> None:
        old = EpisodeDataset(self.root) if (self.root / INFO).exists() else None
        number = old.files if old else 0
        tasks = list(old.tasks) if old else []
        rows, table = self._tables(staged, old, number, tasks)
        for name in self.features.cameras:
            target = self.root / VIDEO.format(camera=IMAGE + name, file=number)
            target.parent.mkdir(parents=True, exist_ok=True)
            concatenate([path / f"{name}.mp4" for path in staged], target)
        for path, content in ((DATA.format(file=number), table), (EPISODES.format(file=number), pa.Table.from_pylist(rows))):
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(content, self.root / path)
        pq.write_table(tasks_table(tasks), self.root / TASKS)
        every = (old.rows if old else []) + rows
        names = {key.split("/")[1] for key in rows[0] if key.startswith("stats/")}
        together = {name: combine([_statistics_of(row, name) for row in every]) for name in names}
        (self.root / STATS).write_text(json.dumps(together))
        frames = every[-1]["dataset_to_index"]
        info = info_json(self.features, self.fps, self.robot, episodes=len(every), frames=frames, tasks=len(tasks))
        part = self.root / (INFO + ".part")  # the last to be written: what it does not count does not exist
        part.write_text(json.dumps(info, indent=1))
        part.rename(self.root / INFO)

    def _tables(
        self, staged: list[Path], old: "EpisodeDataset | None", number: int, tasks: list[str]
    ) -> tuple[list[dict[str, Any]], pa.Table]:
        columns: dict[str, list[np.ndarray]] = {}
        rows: list[dict[str, Any]] = []
        index, first, time = self.start if old is None else len(old.episodes), len(old) if old else 0, 0
        for path in staged:
            about = json.loads((path / "about.json").read_text())
            length = about["length"]
            if about["task"] not in tasks:
                tasks.append(about["task"])
            values = dict(np.load(path / "columns.npz"))
            values |= {
                "timestamp": (np.arange(length) / self.fps).astype(np.float32),
                "frame_index": np.arange(length),
                "episode_index": np.full(length, index),
                "index": np.arange(first, first + length),
                "task_index": np.full(length, tasks.index(about["task"])),
            }
            statistics = about["statistics"] | {name: of_values(column) for name, column in values.items()}
            rows.append(self._row(about, index, first, time, number, statistics))
            for name, column in values.items():
                columns.setdefault(name, []).append(column)
            index, first, time = index + 1, first + length, time + length
        joined = {name: np.concatenate(parts) for name, parts in columns.items()}
        return rows, pa.table({name: pa.array(list(values), column_type(values)) for name, values in joined.items()})

    def _row(
        self, about: dict[str, Any], index: int, first: int, time: int, number: int, statistics: dict[str, Any]
    ) -> dict[str, Any]:
        row = {
            "episode_index": index,
            "tasks": [about["task"]],
            "length": about["length"],
            "data/chunk_index": 0,
            "data/file_index": number,
            "dataset_from_index": first,
            "dataset_to_index": first + about["length"],
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": number,
            "armlet/info": json.dumps(about["info"]),
        }
        for camera in self.features.cameras:
            key = f"videos/{IMAGE}{camera}"
            row |= {
                f"{key}/chunk_index": 0,
                f"{key}/file_index": number,
                f"{key}/from_timestamp": time / self.fps,
                f"{key}/to_timestamp": (time + about["length"]) / self.fps,
            }
        for name, values in statistics.items():
            row |= {f"stats/{name}/{kind}": value for kind, value in values.items()}
        return row


def _statistics_of(row: dict[str, Any], name: str) -> dict[str, Any]:
    prefix = f"stats/{name}/"
    return {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix)}


@dataclass(frozen=True)
class Episode:
    """One episode of a data set: its number, length in frames, words, and what is known about it."""

    index: int
    length: int
    task: str
    info: dict[str, Any]


class EpisodeDataset:
    """Reads LeRobotDataset v3.0. Everything it needs is checked when it is opened; errors name file and column."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._info = json.loads(self._file(INFO).read_text())
        if (found := self._info.get("codebase_version")) != "v3.0":
            raise EpisodeError(f"{self.root / INFO}: codebase_version is {found!r}, expected 'v3.0'; convert it with lerobot")
        self.fps: int = self._info["fps"]
        features = self._info["features"]
        for needed in ("observation.state", "action"):
            if needed not in features:
                raise EpisodeError(f"{self.root / INFO} has no feature {needed!r}; it has {sorted(features)}")
        self.state_names, self.action_names = (_names(features[key]) for key in ("observation.state", "action"))
        self.cameras = {
            name.removeprefix(IMAGE): tuple(feature["shape"][:2])
            for name, feature in features.items()
            if feature["dtype"] in ("video", "image")
        }
        own = {"observation.state", "action", "timestamp", "frame_index", "episode_index", "index", "task_index"}
        self.extra = {
            name: feature["shape"][0] for name, feature in features.items() if feature["dtype"] == "float32" and name not in own
        }
        folder = self._file(EPISODES.format(file=0)).parent
        self._paths = sorted(folder.glob("file-*.parquet"))[:None]
        rows = [row for path in self._paths for row in pq.read_table(path).to_pylist()]
        self.rows = rows[: self._info["total_episodes"]]
        self.files = 1 + max(row["data/file_index"] for row in self.rows)
        self.tasks = tuple(pq.read_table(self._file(TASKS)).column("__index_level_0__").to_pylist())
        self.episodes = tuple(
            Episode(row["episode_index"], row["length"], row["tasks"][0], json.loads(row.get("armlet/info") or "{}"))
            for row in self.rows
        )
        self.starts = np.array([0, *(row["dataset_to_index"] for row in self.rows)])
        self.stats = json.loads(self._file(STATS).read_text())
        self._check_statistics(features)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _file(self, name: str) -> Path:
        path = self.root / name
        if not path.is_file():
            raise EpisodeError(f"{path} is missing; expected a LeRobotDataset v3.0 folder (made by `armlet collect` or lerobot)")
        return path

    def _check_statistics(self, features: dict[str, Any]) -> None:
        for name in ("observation.state", "action"):
            dims = features[name]["shape"][0]
            for kind, values in self.stats.get(name, {}).items():
                if kind != "count" and len(values) != dims:
                    raise EpisodeError(
                        f"{self.root / STATS}: {name} {kind} has {len(values)} values and the feature has {dims} dimensions; "
                        "these are the statistics of another robot"
                    )

    def columns(self) -> dict[str, np.ndarray]:
        """State, action and extra columns of all frames, (N, x) float32. Raises EpisodeError on NaN or a missing column."""
        wanted = {"observation.state": len(self.state_names), "action": len(self.action_names), **self.extra}
        parts: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
        for number in range(self.files):
            path = self._file(DATA.format(file=number))
            table = pq.read_table(path)
            for name, size in wanted.items():
                if name not in table.column_names:
                    raise EpisodeError(f"{path} lacks column {name!r}, which meta/info.json promises")
                flat = table.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)
                parts[name].append(flat.reshape(-1, size).astype(np.float32))
        joined = {name: np.concatenate(values)[: len(self)] for name, values in parts.items()}
        for name, values in joined.items():
            if len(values) < len(self):
                raise EpisodeError(f"{self.root}: {name} has {len(values)} frames, and meta/info.json promises {len(self)}")
            bad = np.flatnonzero(~np.isfinite(values).all(1))
            if len(bad):
                episode = int(np.searchsorted(self.starts, bad[0], "right") - 1)
                frame = bad[0] - self.starts[episode]
                raise EpisodeError(
                    f"{self.root}: {name} is NaN or infinite in episode {episode}, frame {frame}; drop or repair the episode"
                )
        return joined

    def images(self, episode: int) -> dict[str, np.ndarray]:
        """Camera → (T, h, w, 3) uint8 of one episode."""
        return {camera: np.stack(list(self._frames(camera, episode, episode + 1))) for camera in self.cameras}

    def _frames(self, camera: str, first: int, last: int):
        """Frames of episodes first … last − 1, which lie in one file."""
        row = self.rows[first]
        key = f"videos/{IMAGE}{camera}"
        path = self._file(VIDEO.format(camera=IMAGE + camera, file=row[f"{key}/file_index"]))
        start = round(row[f"{key}/from_timestamp"] * self.fps)
        count = int(self.starts[last] - self.starts[first])
        return read_frames(path, start, count, fps=self.fps)

    def all_images(self, camera: str) -> np.ndarray:
        """(N, h, w, 3) uint8, decoded once and kept as a memory-mapped file beside the data."""
        place = self.root / CACHE / f"{self.fingerprint}-{camera}.npy"
        if not place.exists():
            place.parent.mkdir(exist_ok=True)
            part = place.with_suffix(".part")
            shape = (len(self), *self.cameras[camera], 3)
            frames = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
            at = 0
            for number in range(self.files):
                inside = [row["episode_index"] for row in self.rows if row["data/file_index"] == number]
                for frame in self._frames(camera, inside[0], inside[-1] + 1):
                    if frame.shape != shape[1:]:
                        raise EpisodeError(f"{self.root}: {camera} frames are {frame.shape}, meta/info.json says {shape[1:]}")
                    frames[at] = frame
                    at += 1
            frames.flush()
            part.rename(place)
        return np.load(place, mmap_mode="r")

    @property
    def fingerprint(self) -> str:
        """A hash of what the episodes hold: metadata, columns and videos."""
        digest = hashlib.sha256()
        paths = [
            path
            for pattern in ("meta/episodes/**/*.parquet", "data/**/*.parquet", "videos/**/*.mp4")
            for path in self.root.glob(pattern)
        ]
        for path in sorted(paths):
            digest.update(path.relative_to(self.root).as_posix().encode())
            digest.update(hashlib.file_digest(path.open("rb"), "sha256").digest())
        return digest.hexdigest()[:16]


def _names(feature: dict[str, Any]) -> tuple[str, ...]:
    names = feature.get("names")
    if isinstance(names, dict):
        names = next(iter(names.values()))
    return tuple(names or (str(index) for index in range(feature["shape"][0])))
