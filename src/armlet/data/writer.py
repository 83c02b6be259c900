"""Episodes → LeRobotDataset v3.0 on disk, on pyarrow and PyAV alone.

Each finished episode is staged in a folder that appears by one rename, so a killed run loses only the episode
under way; `finalise` lays the staged episodes out as v3.0. Knows no policy and no benchmark.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from armlet.data.episodes import EpisodeDataset, EpisodeError, EpisodeFrames, Features
from armlet.data.layout import DATA, EPISODES, IMAGE, INFO, STATS, TASKS, VIDEO, column_type, info_json, tasks_table
from armlet.data.statistics import combine, of_images, of_values
from armlet.data.video import concatenate, write_video
from armlet.progress import Progress

STAGING, ARMLET, STAGED = ".staging", "meta/armlet.json", "armlet/staged"


def stage_episode(root: Path, index: int, episode: EpisodeFrames, features: Features, *, fps: int) -> None:
    """Write one episode where `finalise` finds it; may run in a worker process. Whole or not at all."""
    episode.check(features)
    place = root / STAGING / f"{index:07d}"
    part = place.with_name(place.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    columns: dict[str, Any] = {"observation.state": episode.state, "action": episode.action, **episode.extra}
    np.savez(part / "columns.npz", **columns)
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
        if self.finalised and self.staged():
            self._forget_laid_out()

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
        progress = Progress(f"lay out {self.robot}", total=len(staged), unit="episode")
        for start in range(0, len(staged), self.episodes_per_file):
            some = staged[start : start + self.episodes_per_file]
            self._write_file(some)
            for path in some:
                shutil.rmtree(path)
            progress.advance(len(some))
        progress.close()
        return EpisodeDataset(self.root)

    def _forget_laid_out(self) -> None:
        """Remove staged episodes that the newest file holds already: a run was killed between writing and removing."""
        assert self.finalised is not None
        newest = self.root / EPISODES.format(file=len(self.finalised.data_files) - 1)
        if STAGED not in pq.read_schema(newest).names:  # somebody else wrote it
            return
        laid_out = set(pq.read_table(newest, columns=[STAGED]).column(STAGED).to_pylist())
        for name in laid_out & {path.name for path in self.staged()}:
            shutil.rmtree(self.root / STAGING / name)

    def _write_file(self, staged: list[Path]) -> None:
        old = EpisodeDataset(self.root) if (self.root / INFO).exists() else None
        number = len(old.data_files) if old else 0
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
        every = (_rows(self.root) if old else []) + rows
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
            rows.append(self._row(about, index, first, time, number, statistics) | {STAGED: path.name})
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


def _rows(root: Path) -> list[dict[str, Any]]:
    total = json.loads((root / INFO).read_text())["total_episodes"]  # files it does not count were cut off while being written
    paths = sorted((root / EPISODES.format(file=0)).parent.glob("file-*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()][:total]


def _statistics_of(row: dict[str, Any], name: str) -> dict[str, Any]:
    prefix = f"stats/{name}/"
    return {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix)}
