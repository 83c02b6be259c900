"""Episodes read from LeRobotDataset folders, v2.0 to v3.1 (parquet, and mp4 or pictures), on pyarrow and PyAV alone.

`writer` writes them. Knows no policy and no benchmark.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from armlet.data.files import hold
from armlet.data.layout import IMAGE, INFO, STATS, Stored, json_lines, stored_v2, stored_v30
from armlet.data.statistics import combine, of_values
from armlet.data.video import read_frames
from armlet.progress import Progress

CACHE = ".cache"
VERSIONS = {"v2.0": stored_v2, "v2.1": stored_v2, "v3.0": stored_v30, "v3.1": stored_v30}


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
        columns: dict[str, tuple[np.ndarray | None, int]] = {
            "observation.state": (self.state, len(features.state)),
            "action": (self.action, len(features.action)),
        }
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


@dataclass(frozen=True)
class Episode:
    """One episode of a data set: its number, length in frames, words, and what is known about it."""

    index: int
    length: int
    task: str
    info: dict[str, Any]


class EpisodeDataset:
    """A LeRobotDataset folder. What it needs is checked when it is opened; errors name file and column.

    Where frames of one episode have several tasks, the episode's first one counts.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._info = json.loads(self._file(INFO).read_text())
        version = self._info.get("codebase_version")
        if version not in VERSIONS:
            raise EpisodeError(
                f"{self.root / INFO}: codebase_version is {version!r}, expected one of {', '.join(VERSIONS)}; "
                "convert it with lerobot"
            )
        self.fps: int = self._info["fps"]
        features = self._info["features"]
        for needed in ("observation.state", "action"):
            if needed not in features:
                raise EpisodeError(f"{self.root / INFO} has no feature {needed!r}; it has {sorted(features)}")
        self.state_names, self.action_names = (_names(features[key]) for key in ("observation.state", "action"))
        self._kept = {  # our name of a camera → the feature's
            name.removeprefix(IMAGE): name for name, feature in features.items() if feature["dtype"] in ("video", "image")
        }
        self.cameras = {camera: _height_width(features[name]) for camera, name in self._kept.items()}
        own = {"observation.state", "action", "timestamp"}
        self.extra = {
            name: feature["shape"][0]
            for name, feature in features.items()
            if feature["dtype"] == "float32" and len(feature["shape"]) == 1 and name not in own
        }
        self._stored = self._located(VERSIONS[version])
        self.tasks = tuple(dict.fromkeys(stored.task for stored in self._stored))
        self.episodes = tuple(Episode(stored.index, stored.length, stored.task, stored.info) for stored in self._stored)
        self.data_files = tuple(dict.fromkeys(stored.data for stored in self._stored))
        self.starts = np.concatenate([[0], np.cumsum([episode.length for episode in self.episodes], dtype=np.int64)])
        self.stats = self._statistics()
        self._check_statistics(features)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def privileged(self) -> dict[str, int]:
        """Facts that only a simulator knows, name → how many numbers."""
        start = "privileged."
        return {name.removeprefix(start): size for name, size in self.extra.items() if name.startswith(start)}

    def _file(self, name: str) -> Path:
        path = self.root / name
        if not path.is_file():
            raise EpisodeError(f"{path} is missing; expected a LeRobotDataset folder (made by `armlet collect` or lerobot)")
        return path

    def _located(self, locate: Any) -> list[Stored]:
        try:
            found: list[Stored] = locate(self.root, self._info)
        except (KeyError, OSError, json.JSONDecodeError, pa.ArrowInvalid) as error:
            raise EpisodeError(f"{self.root / 'meta'}: the list of episodes cannot be read ({error!r}); copy it again") from error
        if not found or len(found) < self._info["total_episodes"]:
            raise EpisodeError(
                f"{self.root / 'meta'} lists {len(found)} episodes, and meta/info.json promises {self._info['total_episodes']}"
            )
        return found

    def _statistics(self) -> dict[str, Any]:
        """meta/stats.json, or in v2.1 those of the episodes taken together."""
        each = self.root / "meta/episodes_stats.jsonl"
        if each.is_file() and not (self.root / STATS).is_file():
            parts = [row["stats"] for row in json_lines(each)]
            return {name: combine([part[name] for part in parts]) for name in parts[0]}
        statistics: dict[str, Any] = json.loads(self._file(STATS).read_text())
        return statistics

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
        for name in self.data_files:
            path = self._file(name)
            missing = sorted(wanted.keys() - set(pq.read_schema(path).names))
            if missing:
                raise EpisodeError(f"{path} lacks column {missing[0]!r}, which meta/info.json promises")
            table = pq.read_table(path, columns=list(wanted))
            for column, size in wanted.items():
                parts[column].append(_matrix(table.column(column), size, f"{path}: {column}"))
        joined = {name: np.concatenate(values)[: len(self)] for name, values in parts.items()}
        for name, values in joined.items():
            if len(values) < len(self):
                raise EpisodeError(f"{self.root}: {name} has {len(values)} frames, and the metadata promise {len(self)}")
            bad = np.flatnonzero(~np.isfinite(values).all(1))
            if len(bad):
                episode = int(np.searchsorted(self.starts, bad[0], "right") - 1)
                frame = bad[0] - self.starts[episode]
                raise EpisodeError(
                    f"{self.root}: {name} is NaN or infinite in episode {episode}, frame {frame}; drop or repair the episode"
                )
        return joined

    def measured(self, name: str) -> dict[str, Any]:
        """Exact statistics of all N rows of one of `columns()`: lists for min, max, mean, std, q01, q10, q50, q90, q99; the count."""
        return of_values(self.columns()[name])

    def images(self, episode: int) -> dict[str, np.ndarray]:
        """Camera → (T, h, w, 3) uint8 of one episode."""
        return {camera: np.stack(list(self._frames(camera, [self._stored[episode]]))) for camera in self.cameras}

    def _frames(self, camera: str, run: list[Stored]) -> Iterator[np.ndarray]:
        """Frames of episodes that follow one another in one file."""
        key, count = self._kept[camera], sum(stored.length for stored in run)
        if key in run[0].videos:
            name, begins = run[0].videos[key]
            return read_frames(self._file(name), round(begins * self.fps), count, fps=self.fps)
        path = self._file(run[0].data)
        pictures = pq.read_table(path, columns=[key]).column(key).slice(run[0].first, count).to_pylist()
        if len(pictures) < count:
            raise EpisodeError(f"{path} ends {count - len(pictures)} frames before its last episode does")
        return (_picture(kept, self.root) for kept in pictures)

    def all_images(self, camera: str) -> np.ndarray:
        """(N, h, w, 3) uint8, decoded once and kept as a memory-mapped file beside the data. A second process waits for the first."""
        place = self.root / CACHE / f"{self.fingerprint}-{camera}.npy"
        if not place.exists():
            with hold(place.with_suffix(".lock"), f"decoding {camera}", wait=True):
                if not place.exists():
                    self._decode(camera, place)
        return np.load(place, mmap_mode="r")

    def _decode(self, camera: str, place: Path) -> None:
        part = place.with_suffix(".part")
        shape = (len(self), *self.cameras[camera], 3)
        frames = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
        progress = Progress(f"decode {camera}", total=len(self), unit="frame")
        at, key = 0, self._kept[camera]
        for _, run in groupby(self._stored, lambda stored: stored.videos.get(key, (stored.data,))[0]):
            for frame in self._frames(camera, list(run)):
                if frame.shape != shape[1:]:
                    raise EpisodeError(f"{self.root}: {camera} frames are {frame.shape}, meta/info.json says {shape[1:]}")
                frames[at] = frame
                at += 1
                progress.advance()
        progress.close()
        frames.flush()
        part.rename(place)

    @property
    def fingerprint(self) -> str:
        """A hash of what the episodes hold: metadata, columns and videos."""
        digest = hashlib.sha256()
        paths = [
            path
            for pattern in ("meta/episodes/**/*.parquet", "meta/episodes.jsonl", "data/**/*.parquet", "videos/**/*.mp4")
            for path in self.root.glob(pattern)
        ]
        for path in sorted(paths):
            digest.update(path.relative_to(self.root).as_posix().encode())
            digest.update(hashlib.file_digest(path.open("rb"), "sha256").digest())
        return digest.hexdigest()[:16]


def _matrix(column: pa.ChunkedArray, size: int, where: str) -> np.ndarray:
    """A column of vectors, or of numbers, as (n, size) float32."""
    chunk = column.combine_chunks()
    flat = chunk.flatten() if pa.types.is_nested(chunk.type) else chunk
    values = flat.to_numpy(zero_copy_only=False).astype(np.float32)
    if len(values) != len(column) * size:
        raise EpisodeError(f"{where} has {len(values)} numbers in {len(column)} frames, expected {size} a frame")
    return values.reshape(-1, size)


def _picture(kept: dict[str, Any], root: Path) -> np.ndarray:
    """A picture as the `datasets` library keeps one: its bytes, or the path of a file."""
    source = io.BytesIO(kept["bytes"]) if kept.get("bytes") else root / kept["path"]
    with Image.open(source) as image:
        return np.asarray(image.convert("RGB"))


def _height_width(feature: dict[str, Any]) -> tuple[int, int]:
    """Of an image feature, whose names say in which order its shape stands."""
    names = list(feature.get("names") or ("height", "width", "channels"))
    return feature["shape"][names.index("height")], feature["shape"][names.index("width")]


def _names(feature: dict[str, Any]) -> tuple[str, ...]:
    names = feature.get("names")
    if isinstance(names, dict):
        names = next(iter(names.values()))
    return tuple(names or (str(index) for index in range(feature["shape"][0])))
