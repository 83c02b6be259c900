"""File names and metadata of LeRobotDataset: v3.0 as lerobot 0.4–0.6 reads it, and where v2.0 to
v3.1 keep an episode.

Knows no values of a data set.
"""

import itertools
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from armlet.data.opening import EpisodeError, column_names, read_lines, read_table
from armlet.robot.naming import faults

IMAGE = "observation.images."
INFO = "meta/info.json"
STATS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
# In v2.0 and v2.1, lines of JSON.
TASK_LINES = "meta/tasks.jsonl"
EPISODE_LINES = "meta/episodes.jsonl"
STAT_LINES = "meta/episodes_stats.jsonl"
OURS = "meta/armlet.json"  # made by `EpisodeWriter`, which writes meta/info.json last
# Where rows and films are if meta/info.json does not say.
PATHS_V2 = (
    "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
)
PATHS_V3 = (
    "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
)


@dataclass(frozen=True)
class Columns:
    """Which columns of a data set hold the robot's state and its actions."""

    state: str | None = "observation.state"
    """None: there is none, or it is not to be read."""
    action: str = "action"
    """What the robot was told."""


def column_type(values: np.ndarray) -> pa.DataType:
    """Parquet type of a column: fixed-size lists for vectors, scalars otherwise."""
    base = pa.float32() if values.dtype.kind == "f" else pa.int64()
    # Of fixed sizes, as the features are that lerobot gives the `datasets` library.
    return pa.list_(base, values.shape[1]) if values.ndim == 2 else base


def tasks_table(tasks: list[str]) -> pa.Table:
    """Task texts as the index that pandas expects, which lerobot reads through pandas."""
    name = "__index_level_0__"
    table = pa.table(
        {"task_index": pa.array(range(len(tasks)), pa.int64()), name: pa.array(tasks, pa.string())}
    )
    # What pandas itself would have written; without it `pd.read_parquet` gives an index of numbers,
    # and lerobot looks a task up by its text in the index.
    pandas = {
        "index_columns": [name],
        "column_indexes": [],
        "columns": [
            {
                "name": "task_index",
                "field_name": "task_index",
                "pandas_type": "int64",
                "numpy_type": "int64",
                "metadata": None,
            },
            {
                "name": None,
                "field_name": name,
                "pandas_type": "unicode",
                "numpy_type": "object",
                "metadata": None,
            },
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def info_json(
    features: Any, fps: int, robot: str, *, episodes: int, frames: int, tasks: int
) -> dict[str, Any]:
    """meta/info.json; `features` is an `episodes.Features`."""
    described: dict[str, Any] = {}
    for name, (height, width) in features.cameras.items():
        described[IMAGE + name] = _video(height, width, fps)
    described["observation.state"] = _vector(len(features.state), list(features.state))
    described["action"] = _vector(len(features.action), list(features.action))
    for name, size in features.extra.items():
        described[name] = _vector(size, None)
    described["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    for name in ("frame_index", "episode_index", "index", "task_index"):
        described[name] = {"dtype": "int64", "shape": [1], "names": None}
    data_path, video_path = PATHS_V3
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
        "data_path": data_path,
        "video_path": video_path,
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
    return {
        "dtype": "video",
        "shape": [height, width, 3],
        "names": ["height", "width", "channels"],
        "info": details,
    }


@dataclass(frozen=True)
class Clip:
    """Where an episode's film lies: a file, relative to the data set's folder, and from which
    second of it to which (None: to its end)."""

    file: str
    begins: float
    ends: float | None = None


@dataclass(frozen=True)
class StoredEpisode:
    """One episode as the metadata list it: its number, how many rows it has (None: they do not
    say), what its tasks are, in no order, and where it lies: `data`, a file relative to the data
    set's folder (None: they do not say), and a clip a camera."""

    index: int
    length: int | None
    tasks: tuple[str, ...]
    info: dict[str, Any]
    data: str | None
    videos: dict[str, Clip]


Layout = Callable[[Path, dict[str, Any]], list[StoredEpisode]]


def episode_files(root: Path) -> list[Path]:
    """The files of a v3.x folder that list its episodes, in order; folders may be links."""
    # Not `**`, which does not go through links.
    found = [*root.glob("meta/episodes/*/*.parquet"), *root.glob("meta/episodes/*.parquet")]
    return sorted(found, key=_by_numbers)


def data_files(root: Path) -> list[str]:
    """The files with rows, for metadata that do not name them."""
    found = sorted([*root.glob("data/*/*.parquet"), *root.glob("data/*.parquet")], key=_by_numbers)
    return [path.relative_to(root).as_posix() for path in found]


def stored_v30(root: Path, info: dict[str, Any]) -> list[StoredEpisode]:
    """Episodes of a v3.x folder: many to a file, and videos cut into files where the data need not
    be."""
    paths = episode_files(root)
    if not paths:
        raise EpisodeError(
            f"{root / 'meta/episodes'} holds no parquet file, which lists the episodes; copy the "
            "data set again"
        )
    data_path, video_path = _paths(info, PATHS_V3)
    found = []
    for path in paths:
        # Without the statistics, which are most of the file. Then row by row, so that an error can
        # name the episode.
        names = [name for name in column_names(path) if not name.startswith("stats/")]
        for row in read_table(path, names).to_pylist():
            where = f"{path}: episode {row.get('episode_index')}"
            try:
                found.append(_row_v30(row, info, data_path, video_path, where))
            except (KeyError, IndexError, TypeError, ValueError) as error:
                if isinstance(error, EpisodeError):
                    raise
                raise EpisodeError(
                    f"{where} cannot be understood ({error!r}); copy it again"
                ) from error
    return found


def _row_v30(
    row: dict[str, Any], info: dict[str, Any], data_path: str, video_path: str, where: str
) -> StoredEpisode:
    first = row.get("dataset_from_index")
    last = row.get("dataset_to_index")
    length = row.get("length")
    # Either says how long an episode is; where both do, they must agree.
    if first is not None and last is not None:
        if length is not None and last - first != length:
            raise EpisodeError(
                f"{where} has length {length} and reaches from row {first} to {last}, which are "
                f"{last - first}; convert the data set again"
            )
        length = last - first
    data = None  # in which file is not said: its rows are looked for in all of them
    if row.get("data/chunk_index") is not None and row.get("data/file_index") is not None:
        data = data_path.format(
            chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
        )
    videos = {}
    for key in _video_keys(info):
        at = f"videos/{key}"
        place = {"chunk_index": row[f"{at}/chunk_index"], "file_index": row[f"{at}/file_index"]}
        file = video_path.format(video_key=key, **place)
        begins = row[f"{at}/from_timestamp"]
        ends = row.get(f"{at}/to_timestamp")
        videos[key] = Clip(file, float(begins), None if ends is None else float(ends))
    about = json.loads(row.get("armlet/info") or "{}")
    return StoredEpisode(int(row["episode_index"]), length, _tasks(row, where), about, data, videos)


def stored_v2(root: Path, info: dict[str, Any]) -> list[StoredEpisode]:
    """Episodes of a v2.0 or v2.1 folder: a parquet file and a video per camera each."""
    data_path, video_path = _paths(info, PATHS_V2)
    found = []
    for row in read_lines(root / EPISODE_LINES):
        where = f"{root / EPISODE_LINES}: episode {row.get('episode_index')}"
        try:
            index = int(row["episode_index"])
            length = None if row.get("length") is None else int(row["length"])
            # 1000 files a folder, unless it is said; armlet and lerobot write this number.
            place = {
                "episode_chunk": index // (info["chunks_size"] or 1000),
                "episode_index": index,
            }
            videos = {}
            for key in _video_keys(info):
                # A film of its own begins with the episode.
                videos[key] = Clip(video_path.format(video_key=key, **place), 0.0)
            data = data_path.format(**place)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EpisodeError(
                f"{where} cannot be understood ({error!r}); copy it again"
            ) from error
        found.append(StoredEpisode(index, length, _tasks(row, where), {}, data, videos))
    return found


VERSIONS: dict[str, Layout] = {
    "v2.0": stored_v2,
    "v2.1": stored_v2,
    "v3.0": stored_v30,
    "v3.1": stored_v30,
}


def stored_episodes(root: Path, info: dict[str, Any]) -> list[StoredEpisode]:
    """The episodes that the metadata list, in order of their numbers.

    Raises EpisodeError where there are fewer than meta/info.json counts, or one number is there
    twice. Where there are more, the last ones of a folder of ours are what a killed run left, and
    are left out; in another's the count is wrong, and all are taken. Either is said on stderr.
    """
    found = VERSIONS[info["codebase_version"]](root, info)  # `read_info` has checked the version
    total = info["total_episodes"]
    if not found or (total is not None and len(found) < total):
        raise EpisodeError(
            f"{root / 'meta'} lists {len(found)} episodes, and meta/info.json promises {total}; "
            "copy the data set again"
        )
    if total is not None and len(found) > total:
        ours = (root / OURS).exists()
        does = "the last ones, of a run that was killed, are left out" if ours else "all are taken"
        sys.stderr.write(
            f"{root / 'meta'} lists {len(found)} episodes, and meta/info.json counts {total}; "
            f"{does}\n"
        )
        found = found[:total] if ours else found
    if not found:
        raise EpisodeError(f"{root} has no episodes; was it recorded to the end?")
    found.sort(key=lambda each: each.index)
    for before, after in itertools.pairwise(found):
        if before.index == after.index:
            raise EpisodeError(
                f"{root / 'meta'} lists episode {after.index} twice; were folders merged by hand?"
            )
    return found


def _by_numbers(path: Path) -> list[int]:
    """Files in the order of their numbers: file-1000 comes after file-999."""
    # Of the folder and the file: chunk-001/file-002 → [1, 2].
    return list(map(int, re.findall(r"\d+", "/".join(path.parts[-2:]))))


def _paths(info: dict[str, Any], usual: tuple[str, str]) -> tuple[str, str]:
    return info["data_path"] or usual[0], info["video_path"] or usual[1]


def _tasks(row: dict[str, Any], where: str) -> tuple[str, ...]:
    tasks = row.get("tasks")
    if isinstance(tasks, str):  # some converters write the text itself
        tasks = [tasks]
    if not tasks or not all(isinstance(task, str) for task in tasks):
        raise EpisodeError(
            f"{where} has no task (tasks: {tasks!r}); say in its metadata what the robot was to "
            "do, or leave it out"
        )
    return tuple(tasks)


def _video_keys(info: dict[str, Any]) -> list[str]:
    found = []
    for name, feature in info["features"].items():
        if feature.get("dtype") == "video":
            found.append(name)
    return found


def task_texts(path: Path) -> dict[int, str]:
    """task_index → text, of meta/tasks.parquet or meta/tasks.jsonl. Raises EpisodeError where a
    number has two texts."""
    if path.suffix == ".parquet":
        pairs = _tabled_tasks(path)
    else:
        pairs = [(row.get("task_index"), row.get("task")) for row in read_lines(path)]
    # From numbers to texts, and not by the order of rows: they may stand in any.
    found: dict[int, str] = {}
    for index, text in pairs:
        if not isinstance(index, int) or not isinstance(text, str):
            raise EpisodeError(
                f"{path}: task_index {index!r} has the text {text!r}, expected a number and a "
                "text; copy it again"
            )
        if found.setdefault(index, text) != text:
            raise EpisodeError(
                f"{path}: task_index {index} is {found[index]!r} and {text!r}; which of them the "
                "robot was told is lost"
            )
    return found


def _tabled_tasks(path: Path) -> list[tuple[Any, Any]]:
    """(task_index, text) of every row of meta/tasks.parquet."""
    table = read_table(path)
    texts = []
    for field in table.schema:
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            texts.append(field.name)
    # pandas calls an index without a name __index_level_0__, one that has a name by it.
    named = [name for name in ("task", "__index_level_0__", *texts) if name in texts]
    if not named or "task_index" not in table.column_names:
        raise EpisodeError(
            f"{path} has columns {table.column_names}, expected task_index and a text; copy "
            "it again"
        )
    numbers = table.column("task_index").to_pylist()
    return list(zip(numbers, table.column(named[0]).to_pylist(), strict=True))


def width(feature: dict[str, Any]) -> int | None:
    """How many numbers a row of a feature has; None where its shape is not said. [] is one
    number."""
    shape = feature.get("shape")
    return None if shape is None else math.prod(shape)


def names_of(feature: dict[str, Any], count: int) -> tuple[str, ...]:
    """A name for each of `count` numbers: the feature's own, where it has a different one for each,
    or 0, 1, 2 …

    Lists may be nested in objects ({"motors": […]}), one after the other, or an object may number
    its names ({"dx": 0, …}).
    """
    found = _own_names(feature)
    # A name twice, or too few of them: which number they mean is not known.
    fit = len(found) == count and not faults(found)
    return tuple(found) if fit else tuple(map(str, range(count)))


def name_remark(feature: dict[str, Any], count: int) -> str:
    """Why a feature's names are not those of its `count` numbers; empty where they are, or where it
    has none."""
    found = _own_names(feature)
    wrong = faults(found)
    # One name for several numbers (`["state"]`) names the whole, as many programs write it.
    if len(found) > 1 and len(found) != count:
        wrong.append(f"{len(found)} names of {count} numbers")
    if not wrong:
        return ""
    return (
        f"{'; '.join(wrong)} (`names` in {INFO}): the numbers are called 0 to {count - 1} instead"
    )


def _own_names(feature: dict[str, Any]) -> list[str]:
    names = feature.get("names")
    if isinstance(names, dict) and names:
        numbered = all(isinstance(place, int) for place in names.values())
        if numbered:
            names = [name for name, _ in sorted(names.items(), key=lambda each: each[1])]
    return _flat(names)


def _flat(names: Any) -> list[str]:
    if names is None:
        return []
    if isinstance(names, dict):
        names = list(names.values())
    if not isinstance(names, list | tuple):
        return [str(names)]
    found = []
    for name in names:
        found += _flat(name)
    return found


def picture_size(feature: dict[str, Any]) -> tuple[int, int] | None:
    """(height, width) of a camera's pictures; None where the metadata do not say. `names` says in
    which order the shape stands, and where it does not, the side that is 1, 3 or 4 and first or
    last is the channels."""
    shape = feature.get("shape") or []
    if len(shape) == 2:
        return shape[0], shape[1]
    if len(shape) != 3:
        about = video_info(feature)
        height = about.get("video.height")
        wide = about.get("video.width")
        return (int(height), int(wide)) if height and wide else None
    places = sides(feature)
    if places is None:
        # lerobot's own order, (h, w, c), unless the numbers say (c, h, w), torch's.
        places = {"h": 0, "w": 1}
        if shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
            places = {"h": 1, "w": 2}
    return shape[places["h"]], shape[places["w"]]


def sides(feature: dict[str, Any]) -> dict[str, int] | None:
    """Where height "h" and width "w" stand in the shape of a feature whose three `names` are those
    of a picture; None where they are not."""
    names = feature.get("names")
    if not isinstance(names, list | tuple) or len(names) != 3:
        return None
    # By their first letters: height, width, channels or channel, in capitals or not.
    letters = [str(name)[:1].lower() for name in names]
    if sorted(letters) != ["c", "h", "w"]:
        return None
    return {"h": letters.index("h"), "w": letters.index("w")}


def video_info(feature: dict[str, Any]) -> dict[str, Any]:
    """What else is said of a camera; older versions called it `video_info`."""
    found: dict[str, Any] = {}
    # The newer name last, so that it wins where a converter has kept both.
    for name in ("video_info", "info"):
        if isinstance(feature.get(name), dict):
            found |= feature[name]
    return found


def is_depth(feature: dict[str, Any]) -> bool:
    """Whether a camera's pictures are distances, or anything else with one channel, and not
    colours."""
    about = video_info(feature)
    shape = feature.get("shape") or []
    said = []
    for name in ("is_depth_map", "video.is_depth_map"):
        if about.get(name) is not None:
            said.append(about[name])
    pixels = str(about.get("video.pix_fmt") or "")
    # One channel of more than 8 bits (gray12le, gray16be, grayf32le): ffmpeg's names.
    if any(said) or re.match(r"(gray|y|ya)f?(9|1\d|32)", pixels):
        return True
    if said:  # a camera of grey pictures, which says that it is one
        return False
    size = picture_size(feature)
    count = about.get("video.channels")
    # Where the shape says it too, the shape decides.
    if size is not None and len(shape) == 3:
        count = math.prod(shape) // max(math.prod(size), 1)
    return str(count) == "1" or len(shape) == 2 or pixels.startswith("gray")


def tasks_file(root: Path, info: dict[str, Any]) -> Path | None:
    """Where the texts of the tasks are; None where they are in no file of their own. A folder that
    was converted may hold the file of its old version, too: that of its own comes first."""
    names = (
        (TASK_LINES, TASKS) if info["codebase_version"].startswith("v2") else (TASKS, TASK_LINES)
    )
    return _first(root, names)


def statistics_file(root: Path, info: dict[str, Any]) -> Path | None:
    """Where the statistics are: meta/stats.json, or the episodes' of v2.1; None where there are
    none. Its own version's come first."""
    names = (STAT_LINES, STATS) if info["codebase_version"] == "v2.1" else (STATS, STAT_LINES)
    return _first(root, names)


def _first(root: Path, names: Sequence[str]) -> Path | None:
    for name in names:
        path = root / name
        # A link to nothing is taken too: whoever reads it says so, and a default would hide it.
        if path.exists() or path.is_symlink():
            return path
    return None
