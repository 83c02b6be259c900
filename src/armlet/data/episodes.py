"""Episodes read from LeRobotDataset folders, v2.0 to v3.1 (parquet, and mp4 or pictures), on
pyarrow and PyAV alone; and from folders of demonstrations in HDF5 (`demonstrations`) or RLDS.

Everything is joined by keys: rows by episode_index and frame_index, pictures by timestamp and the
film's own clock, words by task_index. `writer` writes such folders. Knows no policy and no
benchmark.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from armlet.data import demonstrations, rlds
from armlet.data.depth import millimetres, unreadable
from armlet.data.digests import cache_folder, digests
from armlet.data.hub import local_folder
from armlet.data.info import PICTURES, read_info
from armlet.data.layout import (
    EPISODE_LINES,
    IMAGE,
    INFO,
    Columns,
    StoredEpisode,
    data_files,
    episode_files,
    is_depth,
    name_remark,
    names_of,
    picture_size,
    statistics_file,
    stored_episodes,
    tasks_file,
    video_info,
    width,
)
from armlet.data.manifest import Manifest
from armlet.data.opening import EpisodeError, checked
from armlet.data.pictures import mapped
from armlet.data.rows import Rows, read_rows
from armlet.data.sources import PictureSources
from armlet.data.statistics import check_statistics, of_values, read_statistics
from armlet.data.tasks import read_tasks
from armlet.data.values import as_matrix, as_values
from armlet.robot.description import Described

STATE = "observation.state"
ACTION = "action"
EXECUTED = "executed"
PRIVILEGED = "privileged."


@dataclass(frozen=True)
class Features:
    """What a frame holds. `cameras` name → (height, width); `extra` float32 columns name →
    length."""

    state: tuple[str, ...]
    action: tuple[str, ...]
    cameras: dict[str, tuple[int, int]]
    extra: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class EpisodeFrames:
    """One episode of T frames: `images` camera → (T, h, w, 3) uint8; the rest float32 (T, x);
    `info` JSON scalars. `task`: what the robot was told; `asked`: T texts, where it was told
    several things one after the other."""

    images: dict[str, np.ndarray]
    state: np.ndarray
    action: np.ndarray
    extra: dict[str, np.ndarray]
    task: str
    info: dict[str, Any] = field(default_factory=dict)
    asked: tuple[str, ...] = ()

    def told(self, frame: int) -> str:
        """What the robot was told at a frame."""
        return self.asked[frame] if self.asked else self.task

    def check(self, features: Features) -> None:
        """Raises EpisodeError where the episode does not fit, naming the column: what passes can be
        laid out and read again."""
        self._check_words()
        columns: dict[str, tuple[Any, int]] = {
            STATE: (self.state, len(features.state)),
            ACTION: (self.action, len(features.action)),
        }
        for name, size in features.extra.items():
            columns[name] = (self.extra.get(name), size)
        # The state says how many frames there are, even a state of no numbers, (T, 0).
        length = np.shape(self.state)[0] if np.ndim(self.state) else 0
        if length == 0:
            raise EpisodeError(
                f"{STATE}: found {np.shape(self.state)}; an episode has one frame or more"
            )
        for name, (values, size) in columns.items():
            _check_column(name, values, (length, size))
        for name, (height, wide) in features.cameras.items():
            images = self.images.get(name)
            if images is None:
                raise EpisodeError(
                    f"the episode lacks camera {name!r}; it has {sorted(self.images)}"
                )
            if isinstance(images, np.ndarray):
                found = f"{images.shape} {images.dtype}"
            else:
                found = type(images).__name__
            if found != f"({length}, {height}, {wide}, 3) uint8":
                raise EpisodeError(
                    f"camera {name!r}: found {found}, expected ({length}, {height}, {wide}, 3) "
                    "uint8"
                )

    def _check_words(self) -> None:
        for text in (self.task, *self.asked):
            if not isinstance(text, str):
                raise EpisodeError(
                    f"task: found {text!r}, expected a text of what the robot was told"
                )
        # The format allows several tasks an episode, and they are read; our writer keeps one.
        if set(self.asked) - {self.task}:
            raise EpisodeError(
                f"the episode has {len(set(self.asked))} tasks, and one is kept an episode; cut "
                "it where they change"
            )
        for key, value in self.info.items():
            # One by one, so that the message can name the key that will not do.
            try:
                json.dumps({key: value})
            except (TypeError, ValueError) as error:
                raise EpisodeError(
                    f"info: {key!r} is {type(value).__name__}, expected what JSON can say ({error})"
                ) from error

    def numbers(self) -> dict[str, np.ndarray]:
        """What is kept of a frame but its pictures: column → (T, x) float32."""
        columns = {STATE: self.state, ACTION: self.action, **self.extra}
        return {name: _float32(values) for name, values in columns.items()}


def _check_column(name: str, values: Any, shape: tuple[int, int]) -> None:
    if values is None:
        raise EpisodeError(f"the episode lacks column {name!r}, which the data set has")
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        if isinstance(values, np.ndarray):
            found = f"an array of {values.dtype}"
        else:
            found = type(values).__name__
        raise EpisodeError(f"{name}: found {found}, expected an array of numbers")
    if values.shape != shape:
        raise EpisodeError(f"{name}: found shape {values.shape}, expected {shape}")
    # As float32, for that is what is written: a double of 1e39 is finite here and infinite in the
    # file.
    bad = np.flatnonzero(~np.isfinite(_float32(values)).all(1))
    if len(bad):
        raise EpisodeError(
            f"{name}: NaN or infinite at frame {bad[0]} of {shape[0]}, as float32; drop or repair "
            "the episode"
        )


def _float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # becomes infinite, which is looked for
        return values.astype(np.float32)


@dataclass(frozen=True)
class Episode:
    """One episode of a data set: its number there, length in frames, what the robot was told
    (`task` first, `tasks` one after the other, each once), and what is known about it."""

    index: int
    length: int
    task: str
    info: dict[str, Any]
    tasks: tuple[str, ...]


def is_demonstrations(root: Path) -> bool:
    """Whether a folder holds HDF5 files or TFRecords, and is no LeRobotDataset."""
    return not (root / INFO).exists() and bool(demonstrations.find(root) or rlds.find(root))


def is_data_set(root: Path) -> bool:
    """Whether a folder is one that `EpisodeDataset` reads."""
    return (root / INFO).is_file() or is_demonstrations(root)


class EpisodeDataset:
    """A folder of a LeRobotDataset, HDF5 files or RLDS, or one by its name on the hub (`data.hub`).
    What it needs is checked when it is opened; errors name file, column, episode and frame.

    Its N rows stand in order of episode and frame, `starts` (E + 1,) says where each episode
    begins, and `timestamps` (N,) float64 are their seconds in the episode. `runs` (R,) says where
    each stretch of rows without a gap begins: at each episode, and after rows that are missing
    within one. `tasks` are the different texts of what the robot was told, in order of appearance,
    and `asked` (N,) int64 the number of each row's. `cameras` and `depth_cameras`: name → (height,
    width).

    `columns` says which columns hold state and action; `columns()`, `measured` and `extra` call
    them observation.state and action whatever they are called there.
    """

    _rows: Rows
    _stored: list[StoredEpisode]
    _sources: PictureSources
    tasks: tuple[str, ...]
    asked: np.ndarray

    def __init__(self, root: Path | str, columns: Columns | None = None) -> None:
        self.root = local_folder(root, kind="dataset")
        self.roles = columns or Columns()
        self._measured: dict[str, dict[str, Any]] = {}
        # What the files themselves say of the robot beside names and rate; LeRobot's say nothing.
        self.described = Described()
        self._beside: tuple[str, ...] = (INFO, EPISODE_LINES)
        self._manifest = Manifest(self.root, {}, {})
        if is_demonstrations(self.root):
            self._open_demonstrations()
        else:
            self._open_lerobot()
        self.data_files = self._rows.files
        self.timestamps = self._rows.time
        self.starts = self._rows.starts
        self.runs = self._rows.runs
        self.episodes = self._episodes()
        # From here on the rows can be read: columns and cameras whose size the metadata do not say
        # are measured in the first row.
        self._find_columns()
        self._find_cameras()
        self._statistics = self._read_statistics()

    def _open_demonstrations(self) -> None:
        if demonstrations.find(self.root):
            found = demonstrations.open_demonstrations(self.root)
        else:
            found = rlds.open_rlds(self.root, self.roles)
        self._take_info(found.info)
        self._stored = found.stored
        self._rows = found.rows
        self.tasks = found.tasks
        self.asked = found.asked
        self.described = found.described
        self._beside += found.beside
        self._sources = found.pictures

    def _open_lerobot(self) -> None:
        self._manifest = Manifest.of(self.root)
        self._manifest.check_tables()  # films where they are first read
        self._take_info(read_info(self.root))
        self._stored = stored_episodes(self.root, self._info)
        # Before v3 every episode had files of its own.
        file_per_episode = self._info["codebase_version"].startswith("v2")
        has_videos = any(feature["dtype"] == "video" for feature in self._features.values())
        self._rows = read_rows(
            self.root,
            self._row_files(),
            self._stored,
            self.fps,
            file_per_episode=file_per_episode,
            has_videos=has_videos,
        )
        self.tasks, self.asked = read_tasks(self.root, self._info, self._rows, self._stored)
        self._sources = PictureSources(
            self.root, self._rows, self._stored, self._features, self._manifest
        )

    def _take_info(self, info: dict[str, Any]) -> None:
        self._info = info
        self.fps: float = info["fps"]
        self._features: dict[str, dict[str, Any]] = info["features"]

    def __len__(self) -> int:
        return len(self._rows)

    def _row_files(self) -> list[str]:
        """The files that hold the rows, relative to the folder, each once."""
        named: dict[str, None] = {}  # an ordered set
        for each in self._stored:
            if each.data is None:  # the metadata do not say: all that lie where rows are kept
                return data_files(self.root)
            named[each.data] = None
        return list(named)

    @property
    def robot_type(self) -> str:
        """What the data set calls its robot; empty where it does not say."""
        return str(self._info.get("robot_type") or "")

    @property
    def privileged(self) -> dict[str, int]:
        """Facts that only a simulator knows, name → how many numbers."""
        found = {}
        for name, size in self.extra.items():
            if name.startswith(PRIVILEGED):
                found[name.removeprefix(PRIVILEGED)] = size
        return found

    @cached_property
    def cache(self) -> Path:
        """The folder in which what is derived from the data set is kept."""
        return cache_folder(self.root)

    # What the metadata say

    def _find_columns(self) -> None:
        """`_columns_by_role`: the name that a column is asked for by here → (its name there, how
        many numbers)."""
        # state and action first: statistics and columns are read in this order
        self._columns_by_role: dict[str, tuple[str, int]] = {}
        for role, option, name in (
            (STATE, "state", self.roles.state),
            (ACTION, "action", self.roles.action),
        ):
            if name is None:
                continue
            if name not in self._features:
                # Other layouts have no such file.
                where = self.root / INFO if (self.root / INFO).exists() else self.root
                none = ", or None where there is no state" if option == "state" else ""
                raise EpisodeError(
                    f"{where} has no feature {name!r} for the {option}; it has "
                    f"{', '.join(sorted(self._features))}. Name the one that holds it{none}: "
                    f"--columns.{option} NAME"
                )
            size = self._width(name)
            # A state of no numbers is no state: Arrow writes lists of none and cannot read them.
            if role == STATE and size == 0:
                continue
            self._columns_by_role[role] = name, size
        remarks: list[tuple[str, str]] = []
        self.state_names: tuple[str, ...] = ()
        if STATE in self._columns_by_role:
            state, size = self._columns_by_role[STATE]
            self.state_names = names_of(self._features[state], size)
            remarks.append(("state", name_remark(self._features[state], size)))
        action, dims = self._columns_by_role[ACTION]
        if dims == 0:
            raise EpisodeError(
                f"{self.root / INFO}: feature {action!r} has no numbers; name the one that holds "
                "the action"
            )
        self.action_names = names_of(self._features[action], dims)
        remarks.append(("action", name_remark(self._features[action], dims)))
        # Lines on names that could not be taken; none where all is well.
        self.name_remarks = tuple(f"{what}: {said}" for what, said in remarks if said)
        self.extra: dict[str, int] = {}
        for name, feature in self._features.items():
            if self._is_extra(name, feature, dims):
                self.extra[name] = self._width(name)
        for name, size in self.extra.items():
            self._columns_by_role[name] = name, size

    @staticmethod
    def _is_extra(name: str, feature: dict[str, Any], dims: int) -> bool:
        """Whether a column holds what the simulator knew, or the action as it was executed: what
        other recorders call so counts only if it looks like an action."""
        kind = str(feature["dtype"])
        if name == EXECUTED:
            return kind.startswith("float") and width(feature) == dims
        is_flat = len(feature.get("shape") or [1]) == 1
        is_numeric = kind.startswith(("float", "int", "bool"))
        return name.startswith(PRIVILEGED) and is_numeric and is_flat

    def _width(self, name: str) -> int:
        """How many numbers a row of a column has: as the metadata say or, where they do not, as the
        first file does."""
        size = width(self._features[name])
        if size is not None:
            return size
        path, table, place = next(self._rows.columns(self.root, [name]))
        first = as_values(table.column(name), None, f"{path}: {name}", place)  # (n, …)
        return int(np.prod(first.shape[1:], dtype=int))

    def _find_cameras(self) -> None:
        """`_feature_of`: our name of a camera → the feature's."""
        for name, feature in self._features.items():
            if (
                name.startswith(IMAGE)
                and feature["dtype"] not in PICTURES
                and len(feature["shape"] or []) == 3
            ):
                sys.stderr.write(
                    f"{self.root}: {name} is {feature['dtype']} in meta/info.json, and cameras "
                    "are video or image; it is left out\n"
                )
        pictures = [
            name for name, feature in self._features.items() if feature["dtype"] in PICTURES
        ]
        short = [name.removeprefix(IMAGE) for name in pictures]
        self._feature_of: dict[str, str] = {}
        for own, name in zip(short, pictures, strict=True):
            # `top` and `observation.images.top` may stand side by side: both keep their whole name.
            is_unique = short.count(own) == 1
            self._feature_of[own if is_unique else name] = name
        self.cameras: dict[str, tuple[int, int]] = {}
        self.depth_cameras: dict[str, tuple[int, int]] = {}
        for camera, name in self._feature_of.items():
            feature = self._features[name]
            if not is_depth(feature):
                self.cameras[camera] = picture_size(feature) or self._first_size(name)
                continue
            if feature["dtype"] == "video":
                why = unreadable(video_info(feature))
            else:
                why = "they are not kept in a film"
            if why is None:
                self.depth_cameras[camera] = picture_size(feature) or self._first_size(name)
            else:
                sys.stderr.write(
                    f"{self.root}: camera {camera!r} has one channel, no colours; it is left out, "
                    f"because {why}\n"
                )

    def _first_size(self, name: str) -> tuple[int, int]:
        height, wide = next(self._sources.pictures(name, np.arange(1))).shape[:2]
        return height, wide

    def _episodes(self) -> tuple[Episode, ...]:
        found = []
        for each, start, stop in zip(self._stored, self.starts[:-1], self.starts[1:], strict=True):
            numbers = self.asked[start:stop]
            # Only where the task changes is there a text to look up: a dict of all rows is slow.
            changes = np.flatnonzero(np.diff(numbers)) + 1
            tasks: dict[str, None] = {}  # an ordered set
            for number in numbers[[0, *changes]]:
                tasks[self.tasks[number]] = None
            texts = tuple(tasks)
            found.append(Episode(each.index, int(stop - start), texts[0], each.info, texts))
        return tuple(found)

    # Statistics

    @property
    def stats(self) -> dict[str, Any]:
        """Statistics by feature as meta/stats.json has them or, in v2.1, those of the episodes
        taken together as lerobot does; computed where there are none. Quantiles of several episodes
        are averages there: `measured` has the true ones."""
        if self._statistics is None:
            found = {}
            for name, (there, _) in self._columns_by_role.items():
                found[there] = self.measured(name)
            self._statistics = found
        return self._statistics

    def measured(self, name: str) -> dict[str, Any]:
        """Exact statistics of all N rows: lists for min, max, mean, std, q01, q10, q50, q90 and
        q99, and the count. `name` is one of `columns()`, or any other column of numbers."""
        if name not in self._measured:
            if name in self._columns_by_role:
                there, size = self._columns_by_role[name]
                values = self._matrices({name: (there, size)})[name]
            else:
                values = self.column(name)
                if values.dtype.kind not in "fiub":
                    raise EpisodeError(
                        f"{self.root}: {name} is {values.dtype}, and only numbers have statistics"
                    )
            self._measured[name] = of_values(values)
        return self._measured[name]

    def _read_statistics(self) -> dict[str, Any] | None:
        path = statistics_file(self.root, self._info)
        if path is None:
            return None
        statistics = read_statistics(path)
        for role in (STATE, ACTION):
            if role in self._columns_by_role:
                name, dims = self._columns_by_role[role]
                check_statistics(path, statistics, name, dims)
        return statistics

    # Columns

    def columns(self) -> dict[str, np.ndarray]:
        """What is trained on, of all frames, (N, x) float32: observation.state (of width 0 where
        there is none), action, and `extra`. Raises EpisodeError on NaN or a missing column."""
        # A robot without state has one of width 0, (N, 0), so that nobody has to ask.
        found = {STATE: np.zeros((len(self), 0), np.float32)}
        found |= self._matrices(self._columns_by_role)
        for name, values in found.items():
            bad = np.flatnonzero(~np.isfinite(values).all(1))
            if len(bad):
                there = self._columns_by_role[name][0]
                raise EpisodeError(
                    f"{self.root}: {there} is NaN or infinite in {self._rows.place_of(bad[0])}, "
                    f"in {self.root / self._rows.file_of(bad[0])}; drop or repair the episode"
                )
        return found

    def column(self, name: str) -> np.ndarray:
        """Any column by its own name, of all frames: (N, …) of its own type and shape; (N,) for one
        number or text a row. Raises EpisodeError where there is none."""
        feature = self._features.get(name, {})
        if feature.get("dtype") in PICTURES:
            raise EpisodeError(f"{self.root}: {name} holds pictures; read_pictures reads them")
        parts = []
        for path, table, place in self._rows.columns(self.root, [name]):
            where = f"{path}: {name}"
            parts.append(as_values(table.column(name), feature.get("shape"), where, place))
        # From the order of the files to that of episodes and frames.
        return np.concatenate(parts)[self._rows.order]

    def _matrices(self, wanted: dict[str, tuple[str, int]]) -> dict[str, np.ndarray]:
        """Columns (N, x) float32 by the names they have here."""
        parts: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
        # Two roles may share a column (`--columns.state action`), which is read once.
        names = list(dict.fromkeys(there for there, _ in wanted.values()))
        for path, table, place in self._rows.columns(self.root, names):
            for name, (there, size) in wanted.items():
                parts[name].append(as_matrix(table.column(there), size, f"{path}: {there}", place))
        return {name: np.concatenate(values)[self._rows.order] for name, values in parts.items()}

    def rows_of(self, file: str) -> np.ndarray:
        """Of each row of one of `data_files`, in the order of the file: its number among the N, or
        -1 where it is none of them."""
        return self._rows.of_file(self.data_files.index(file))

    # Pictures

    def images(self, episode: int) -> dict[str, np.ndarray]:
        """Camera → (T, h, w, 3) uint8 of one episode, by its position."""
        first, last = self.starts[episode : episode + 2].tolist()
        found = {}
        for camera in self.cameras:
            found[camera] = np.stack(list(self.read_pictures(camera, first, last)))
        return found

    def all_images(self, camera: str) -> np.ndarray:
        """All pictures of a camera in their own size, (N, h, w, 3) uint8, decoded once into a file
        that is mapped into memory: for looking at a small data set. Training reads them at the size
        its policy sees (`pictures.open_pictures`)."""
        self._check_camera(camera)
        return mapped(self, camera)

    def read_pictures(self, camera: str, first: int, last: int) -> Iterator[np.ndarray]:
        """The pictures (h, w, 3) uint8 of rows `first` to `last` (exclusive) of the N, one at a
        time, at full size.

        A row's picture is the frame of the camera's film that is nearest to its timestamp, by the
        film's own clock, at most half of a film frame's period away. Raises EpisodeError or
        VideoError naming file, episode and frame where there is none.
        """
        self._check_span(first, last)
        return self.pictures_of(camera, np.arange(first, last))

    def pictures_of(self, camera: str, rows: np.ndarray) -> Iterator[np.ndarray]:
        """The same of any `rows` (n,) int64, in their order; those that increase are had fastest.
        Several threads may read."""
        self._check_camera(camera)
        wanted = (*self.cameras[camera], 3)
        for row, picture in zip(
            rows.tolist(), self._sources.pictures(self._feature_of[camera], rows), strict=True
        ):
            if picture.shape != wanted:
                raise EpisodeError(
                    f"{self.root}: the picture of {camera} in {self._rows.place_of(row)} is "
                    f"{picture.shape}, meta/info.json says {wanted}"
                )
            yield picture

    def read_depth(self, camera: str, first: int, last: int) -> Iterator[np.ndarray]:
        """The distances (h, w, 1) float32 in millimetres of rows `first` to `last` (exclusive), as
        `read_pictures` has pictures."""
        if camera not in self.depth_cameras:
            raise EpisodeError(
                f"{self.root} has no depth camera {camera!r} that can be read; it has "
                f"{', '.join(self.depth_cameras) or 'none'}"
            )
        self._check_span(first, last)
        key = self._feature_of[camera]
        about = video_info(self._features[key])
        # In the film's own pixels (12 bits of grey): a conversion to colours would keep 8 of them.
        for levels in self._sources.video_frames(key, np.arange(first, last), pixels=None):
            yield millimetres(levels, about)

    def _check_camera(self, camera: str) -> None:
        if camera not in self.cameras:
            depth = "; its distances are read by read_depth" if camera in self.depth_cameras else ""
            raise EpisodeError(
                f"{self.root} has no camera {camera!r}; it has "
                f"{', '.join(self.cameras) or 'none'}{depth}"
            )

    def _check_span(self, first: int, last: int) -> None:
        if not 0 <= first <= last <= len(self):
            raise EpisodeError(
                f"{self.root} has rows 0 to {len(self)}, and rows {first} to {last} were asked for"
            )

    # What is derived from them

    @property
    def fingerprint(self) -> str:
        """A hash of everything that is read: metadata, columns, films, pictures in files of their
        own, and which columns are asked for. Looked at once; files that have not changed are not
        read again."""
        return self._hashes[0]

    @property
    def pictures_fingerprint(self) -> str:
        """The same whichever columns are asked for: they change no picture."""
        return self._hashes[1]

    @cached_property
    def _hashes(self) -> tuple[str, str]:
        ordered = sorted(self._files_read())
        digest = hashlib.sha256(json.dumps([self.roles.state, self.roles.action]).encode())
        pictures_digest = hashlib.sha256()
        found = digests([checked(self.root / name) for name in ordered], self.cache)
        self._manifest.compare(ordered, found)
        for name, content in zip(ordered, found, strict=True):
            for each in (digest, pictures_digest):
                each.update(name.encode())
                each.update(content)
        # 64 bits are enough to tell data sets apart; this is no signature.
        return digest.hexdigest()[:16], pictures_digest.hexdigest()[:16]

    def _files_read(self) -> set[str]:
        """The files whose content decides what is read, relative to the folder."""
        paths = list(episode_files(self.root))
        for path in (tasks_file(self.root, self._info), statistics_file(self.root, self._info)):
            if path is not None:
                paths.append(path)
        for name in self._beside:
            if (self.root / name).exists():
                paths.append(self.root / name)
        names = {path.relative_to(self.root).as_posix() for path in paths}
        names |= set(self.data_files)
        for camera, key in self._feature_of.items():
            if self._features[key]["dtype"] == "video":
                films = set()
                for each in self._stored:
                    film = each.videos[key].file
                    # Distances are not trained on, so a data set may have lost their films.
                    if camera in self.cameras or (self.root / film).exists():
                        films.add(film)
                names |= films
            elif camera in self.cameras:
                # Pictures in the tables are in the digests of these; those beside them are not.
                names |= self._sources.picture_files(key)
        return names
