"""Episodes → LeRobotDataset v3.0 on disk, on pyarrow and PyAV alone.

Each finished episode is staged in a folder that appears by one rename, so a killed run loses only
the episode under way; `finalise` lays the staged episodes out as v3.0, in new files beside those
that are there. Knows no policy and no benchmark.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from armlet.data.appending import (
    APPEND,
    ARMLET,
    LISTED,
    READY,
    Existing,
    carry_out,
    check_agrees,
    check_schema,
    list_files,
    next_place,
    plan,
    read_existing,
)
from armlet.data.bounded import read_arrays
from armlet.data.digests import digest_of
from armlet.data.episodes import EpisodeDataset, EpisodeError, EpisodeFrames, Features
from armlet.data.files import (
    atomic_folder,
    hold_and_remove,
    make_folder,
    read_json,
    write_atomically,
)
from armlet.data.hub import refuse_writing
from armlet.data.layout import IMAGE, INFO, STATS, TASKS, column_type, info_json, tasks_table
from armlet.data.manifest import MANIFEST
from armlet.data.statistics import combine, of_images, of_values
from armlet.data.values import as_values
from armlet.data.video import concatenate, write_video
from armlet.progress import Progress

STAGING = ".staging"
STAGED = "armlet/staged"
DECLARED = f"{APPEND}/staged.json"  # what the staged episodes are like; gone once they are laid out
ABOUT = "about.json"
COLUMNS = "columns.npz"
SUMS = "sha256.json"  # of the files beside it
FIX = "delete this folder to make the episode again"


def stage_episode(
    root: Path, index: int, episode: EpisodeFrames, features: Features, *, fps: int
) -> None:
    """Write one episode where `finalise` finds it; may run in a worker process. Whole or not at
    all.

    Raises FileExistsError where one of this number is staged already.
    """
    episode.check(features)
    # Mypy takes one of them for an option of numpy's.
    columns: dict[str, Any] = {**episode.numbers()}
    # Of pictures while they are as they were seen: what comes out of a film is a little different.
    statistics = {}
    for name, frames in episode.images.items():
        statistics[IMAGE + name] = of_images(frames)
    about = {
        "task": episode.task,
        "length": len(episode.state),
        "info": episode.info,
        "statistics": statistics,
    }
    # Padded, so that the order of names is that of numbers.
    with atomic_folder(root / STAGING / f"{index:07d}") as part:
        np.savez(part / COLUMNS, **columns)
        for name, frames in episode.images.items():
            # 4:4:4, for halving the colours' resolution would blur small coloured things most
            # (`video`).
            write_video(part / f"{name}.mp4", frames, fps=fps, pixels="yuv444p", quality=12)
        (part / ABOUT).write_text(json.dumps(about))
        sums = {}
        for path in sorted(part.iterdir()):
            sums[path.name] = digest_of(path).hex()
        (part / SUMS).write_text(json.dumps(sums))


def check_staged(folder: Path) -> None:
    """Raises EpisodeError naming the file where a staged episode is not as it was written; a killed
    run's may have lain there for long."""
    if not (folder / SUMS).exists():  # an older armlet staged it
        return
    for name, said in read_json(folder / SUMS, fix=FIX).items():
        path = folder / name
        if not path.is_file():
            raise EpisodeError(f"{path} is missing; delete {folder} to make the episode again")
        if digest_of(path).hex() != said:
            raise EpisodeError(
                f"{path} is damaged: it is not what was written; delete {folder} to make the "
                "episode again"
            )


class EpisodeWriter:
    """Adds episodes to a data set, new or one that armlet laid out. `metadata` describes how it was
    made; an existing one must agree, and so must its rate, features, robot and version. Where they
    do not, raises EpisodeError and touches nothing.

    What is there is never rewritten but for the tables of tasks and statistics and meta/info.json:
    new episodes get files with numbers that no file has.
    """

    def __init__(
        self,
        root: Path,
        features: Features,
        *,
        fps: int,
        robot: str,
        metadata: dict[str, Any],
        episodes_per_file: int = 5000,
    ) -> None:
        self.root = Path(root)
        self.features = features
        self.fps = fps
        self.robot = robot
        self.metadata = metadata
        self.episodes_per_file = episodes_per_file
        # First everything that may refuse and touches nothing, then what a killed run has left.
        refuse_writing(self.root)
        check_agrees(self.root, features, fps=fps, robot=robot)
        self._check_metadata()
        self._check_staged()
        make_folder(self.root / STAGING)
        self._carry_out()
        read_existing(self.root, self._keys)
        if not (self.root / ARMLET).exists():
            write_atomically(self.root / ARMLET, json.dumps(metadata, indent=1).encode())
        if not (self.root / DECLARED).exists():
            write_atomically(self.root / DECLARED, json.dumps(self._declared).encode())
        self.finalised = EpisodeDataset(self.root) if (self.root / INFO).exists() else None

    @property
    def _keys(self) -> list[str]:
        """The features that are videos."""
        return [IMAGE + name for name in self.features.cameras]

    @property
    def _declared(self) -> dict[str, Any]:
        declared = {"fps": self.fps, "robot": self.robot, "features": asdict(self.features)}
        return _as_read(declared)

    def _check_metadata(self) -> None:
        before = self.root / ARMLET
        if not before.exists():
            return
        found = read_json(before, fix="write what it said, or choose another folder")
        wanted = _as_read(self.metadata)
        differing = [key for key in {*found, *wanted} if found.get(key) != wanted.get(key)]
        if differing:
            raise EpisodeError(
                f"{before}: these episodes were made otherwise ({', '.join(sorted(differing))} "
                "differ), and data of two kinds are not mixed; choose another folder, or delete "
                "this one"
            )

    def _check_staged(self) -> None:
        """Episodes that another run staged, and no data set counts yet, must be of this kind,
        too."""
        # An older armlet did not say what the episodes that it staged are like.
        if not self.staged() or not (self.root / DECLARED).exists():
            return
        found = read_json(self.root / DECLARED, fix="delete it and the staged episodes")
        differing = []
        for key, value in self._declared.items():
            if found.get(key) != value:
                differing.append(f"{key} {found.get(key)!r} there, {value!r} here")
        if differing:
            raise EpisodeError(
                f"{self.root / STAGING} holds {len(self.staged())} finished episodes of another "
                f"kind ({'; '.join(differing)}); choose another folder, or delete this one"
            )

    def _carry_out(self) -> None:
        # Looked for first: without anything to do, no lock and no file is made.
        if (self.root / READY).exists():
            with hold_and_remove(self.root / APPEND / "lock", "adding episodes"):
                carry_out(self.root, self.root / STAGING)

    @property
    def start(self) -> int:
        return len(self.finalised.episodes) if self.finalised else 0

    def staged(self) -> list[Path]:
        """Finished episodes not laid out yet, in order."""
        staging = self.root / STAGING
        if not staging.exists():
            return []
        # Other names are episodes that a killed process has begun to stage (`files.atomic_folder`).
        return sorted(path for path in staging.iterdir() if path.name.isdigit())

    def finished(self) -> list[dict[str, Any]]:
        """The `info` of every finished episode."""
        found = []
        if self.finalised:
            for episode in self.finalised.episodes:
                found.append(episode.info)
        for path in self.staged():
            check_staged(path)
            found.append(read_json(path / ABOUT, fix=FIX)["info"])
        return found

    def add(self, episode: EpisodeFrames) -> None:
        """Stage one episode, numbered after the last."""
        staged = self.staged()
        # After the last, not in the first gap: workers may be staging others right now.
        index = int(staged[-1].name) + 1 if staged else self.start
        stage_episode(self.root, index, episode, self.features, fps=self.fps)

    def finalise(self) -> "EpisodeDataset":
        """Lay staged episodes out as LeRobotDataset v3.0; does nothing where none is staged."""
        staged = self.staged()
        progress = Progress(f"lay out {self.robot}", total=len(staged), unit="episode")
        with hold_and_remove(self.root / APPEND / "lock", "adding episodes"):
            # Each round is a whole append of its own: a kill between two loses nothing.
            for start in range(0, len(staged), self.episodes_per_file):
                some = staged[start : start + self.episodes_per_file]
                self._prepare(some)
                carry_out(self.root, self.root / STAGING)
                progress.advance(len(some))
        progress.close()
        # Other processes may have staged more meanwhile, which DECLARED, in there, is about.
        if not self.staged():
            shutil.rmtree(self.root / APPEND, ignore_errors=True)
        self.finalised = EpisodeDataset(self.root)
        return self.finalised

    def _prepare(self, staged: list[Path]) -> None:
        """Everything that these episodes add to the data set, in the folder from which `carry_out`
        moves it there."""
        # Read again under the lock: another process may have added episodes since this writer was
        # made.
        old = read_existing(self.root, self._keys)
        tasks = list(old.tasks) if old else []
        total = len(old.rows) if old else 0
        if old:
            info = old.info
        else:
            info = info_json(self.features, self.fps, self.robot, episodes=0, frames=0, tasks=0)
        places = self._next_places(info["chunks_size"])
        for path in staged:
            check_staged(path)
        rows, table = self._tables(staged, old, places, tasks)
        check_schema(self.root, old.data if old else [], table)
        videos = {}
        for key in self._keys:
            videos[key] = info["video_path"].format(video_key=key, **places[key])
        data = info["data_path"].format(**places["data"])
        listed = LISTED.format(**places["meta/episodes"])
        with atomic_folder(self.root / READY) as ready:
            for name in (*videos.values(), data, listed):
                (ready / name).parent.mkdir(parents=True, exist_ok=True)
            for camera, name in zip(self.features.cameras, videos.values(), strict=True):
                concatenate([path / f"{camera}.mp4" for path in staged], ready / name)
            pq.write_table(table, ready / data)
            pq.write_table(tasks_table(tasks), ready / TASKS)
            pq.write_table(self._list(rows), ready / listed)
            (ready / STATS).write_text(json.dumps(self._statistics(old, rows, table)))
            counted = {
                "total_episodes": total + len(rows),
                "total_frames": rows[-1]["dataset_to_index"],
                "total_tasks": len(tasks),
                "splits": {"train": f"0:{total + len(rows)}"},
            }
            (ready / INFO).write_text(json.dumps(info | counted, indent=1))
            # The order in which they are moved keeps every reader right: see `appending`.
            files = [*videos.values(), data, TASKS, listed, STATS, INFO, MANIFEST]
            list_files(self.root, ready)
            plan(self.root, ready, [path.name for path in staged], files)

    def _next_places(self, chunks_size: int) -> dict[str, dict[str, int]]:
        """Camera, `data` or `meta/episodes` → the numbers that its next file takes."""
        places = {}
        for key in self._keys:
            places[key] = next_place(self.root / "videos" / key, chunks_size)
        for name in ("data", "meta/episodes"):
            places[name] = next_place(self.root / name, chunks_size)
        return places

    def _list(self, rows: list[dict[str, Any]]) -> pa.Table:
        """The list of new episodes. Raises EpisodeError where the one that is there has other
        columns."""
        table = pa.Table.from_pylist(rows)
        files = sorted(self.root.glob("meta/episodes/chunk-*/file-*.parquet"))
        check_schema(self.root, [str(path.relative_to(self.root)) for path in files], table)
        return table

    def _statistics(
        self, old: Existing | None, rows: list[dict[str, Any]], table: pa.Table
    ) -> dict[str, Any]:
        """Of all rows, exactly; of pictures as each episode's were sampled."""
        old_rows = old.rows if old else []
        old_files = old.data if old else []
        together = {}
        for name in _with_statistics(rows[0]):
            if name in table.column_names:
                # Quantiles of all cannot be had from those of episodes, so old files are read again.
                parts = []
                for file in old_files:
                    before = pq.read_table(self.root / file, columns=[name])
                    parts.append(_numbers(before, name))
                parts.append(_numbers(table, name))
                together[name] = of_values(np.concatenate(parts))
            else:
                # A camera, whose pictures would have to be decoded.
                sampled = [_statistics_of(row, name) for row in [*old_rows, *rows]]
                together[name] = combine(sampled)
        return together

    def _tables(
        self,
        staged: list[Path],
        old: Existing | None,
        places: dict[str, dict[str, int]],
        tasks: list[str],
    ) -> tuple[list[dict[str, Any]], pa.Table]:
        """The rows of the list of episodes, and the table of frames. What is new among the texts is
        added to `tasks`."""
        columns: dict[str, list[np.ndarray]] = {}
        rows: list[dict[str, Any]] = []
        index = len(old.rows) if old else 0
        first = old.frames if old else 0  # among the frames of the whole data set
        time = 0  # frames in the film: every append begins films of its own
        for path in staged:
            about = read_json(path / ABOUT, fix=FIX)
            length = about["length"]
            if about["task"] not in tasks:
                tasks.append(about["task"])
            values = read_arrays(path / COLUMNS, fix=FIX)
            values |= {
                "timestamp": (np.arange(length) / self.fps).astype(np.float32),
                "frame_index": np.arange(length),
                "episode_index": np.full(length, index),
                "index": np.arange(first, first + length),
                "task_index": np.full(length, tasks.index(about["task"])),
            }
            statistics = about["statistics"]
            for name, column in values.items():
                statistics[name] = of_values(column)
            row = self._row(about, index, first, time, places, statistics)
            # Read by nobody here: it tells a person which staged episode a row has been.
            rows.append(row | {STAGED: path.name})
            for name, column in values.items():
                columns.setdefault(name, []).append(column)
            index += 1
            first += length
            time += length
        arrays = {}
        for name, parts in columns.items():
            joined = np.concatenate(parts)
            arrays[name] = pa.array(list(joined), column_type(joined))
        return rows, pa.table(arrays)

    def _row(
        self,
        about: dict[str, Any],
        index: int,
        first: int,
        time: int,
        places: dict[str, dict[str, int]],
        statistics: dict[str, Any],
    ) -> dict[str, Any]:
        row = {
            "episode_index": index,
            "tasks": [about["task"]],
            "length": about["length"],
            "data/chunk_index": places["data"]["chunk_index"],
            "data/file_index": places["data"]["file_index"],
            "dataset_from_index": first,
            "dataset_to_index": first + about["length"],
            "meta/episodes/chunk_index": places["meta/episodes"]["chunk_index"],
            "meta/episodes/file_index": places["meta/episodes"]["file_index"],
            "armlet/info": json.dumps(about["info"]),
        }
        for key in self._keys:
            row |= {
                f"videos/{key}/chunk_index": places[key]["chunk_index"],
                f"videos/{key}/file_index": places[key]["file_index"],
                f"videos/{key}/from_timestamp": time / self.fps,
                f"videos/{key}/to_timestamp": (time + about["length"]) / self.fps,
            }
        for name, values in statistics.items():
            for kind, value in values.items():
                row[f"stats/{name}/{kind}"] = value
        return row


def _as_read(value: dict[str, Any]) -> dict[str, Any]:
    """As it will be read again: JSON turns tuples into lists, and keys into texts."""
    read: dict[str, Any] = json.loads(json.dumps(value))
    return read


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    """A column of numbers or of vectors, as (n,) or (n, x)."""
    return as_values(table.column(name), None, name, "row {}".format)


def _with_statistics(row: dict[str, Any]) -> list[str]:
    """The features of which a row of the list of episodes has statistics: every one has a count."""
    found = []
    for key in row:
        if key.startswith("stats/") and key.endswith("/count"):
            found.append(key.split("/")[1])
    return found


def _statistics_of(row: dict[str, Any], name: str) -> dict[str, Any]:
    prefix = f"stats/{name}/"
    found = {}
    for key, value in row.items():
        if key.startswith(prefix):
            found[key.removeprefix(prefix)] = value
    return found
