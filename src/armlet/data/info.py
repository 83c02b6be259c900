"""meta/info.json read once, every field that armlet looks at made what it is expected to be, or
refused by its name.

Other programs write it, and people do by hand, so a number may be a text and a shape a number:
where only one thing can be meant it is taken. Knows no file but this one; what stands where is
`layout`.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from armlet.data.layout import IMAGE, INFO, VERSIONS, sides, video_info
from armlet.data.opening import EpisodeError, read_object

PICTURES = ("video", "image")  # the dtypes of cameras
# What the names of files may be made of, with an example of each.
PLACES_V2 = {"episode_chunk": 0, "episode_index": 0, "video_key": "camera"}
PLACES_V3 = {"chunk_index": 0, "file_index": 0, "video_key": "camera"}


def read_info(root: Path) -> dict[str, Any]:
    """meta/info.json with `fps` a number, and `features` name → description, of which `shape` is a
    list of whole numbers, or None where it is not said. Raises EpisodeError naming the field that
    will not do."""
    path = root / INFO
    info = read_object(path)
    version = info.get("codebase_version")
    if not isinstance(version, str) or version not in VERSIONS:
        raise EpisodeError(
            f"{path}: codebase_version is {version!r}, expected one of {', '.join(VERSIONS)}; "
            "convert it with lerobot"
        )
    features = info.get("features")
    if not isinstance(features, dict) or not _are_objects(features.values()):
        raise EpisodeError(
            f"{path}: features is {type(features).__name__}, expected an object of objects; copy "
            "it again"
        )
    places = PLACES_V2 if version.startswith("v2") else PLACES_V3
    described = {}
    for name, feature in features.items():
        described[name] = _feature(name, feature, f"{path}: features[{name!r}]")
    video_path = None
    # Where there are no films, nobody cares what an older version called them.
    if any(feature["dtype"] == "video" for feature in described.values()):
        video_path = _template(info.get("video_path"), f"{path}: video_path", places)
    # What is not read here stays as it is: others' fields are none of our business.
    read = {
        "fps": _rate(info.get("fps"), path),
        "total_episodes": _optional_count(info.get("total_episodes"), f"{path}: total_episodes"),
        "chunks_size": _optional_count(info.get("chunks_size"), f"{path}: chunks_size"),
        "data_path": _template(info.get("data_path"), f"{path}: data_path", places),
        "video_path": video_path,
        "features": described,
    }
    return info | read


def _are_objects(values: Iterable[Any]) -> bool:
    return all(isinstance(value, dict) for value in values)


def _rate(value: Any, path: Path) -> float:
    """Rows a second; a whole number where it is one."""
    try:
        rate = float(value)  # also of "30"
    except (TypeError, ValueError):
        rate = math.nan
    # To Python true is the number 1; in a file by hand it is a mistake.
    if not (math.isfinite(rate) and rate > 0) or isinstance(value, bool):
        raise EpisodeError(
            f"{path}: fps is {value!r}, expected rows a second; write how many there are"
        )
    return int(rate) if rate.is_integer() else rate


def _count(value: Any) -> int | None:
    """A whole number from 0 on, also written as 3.0 or "3"; None where it is none."""
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if value >= 0 and value == int(value) else None


def _optional_count(value: Any, where: str) -> int | None:
    if value is None:
        return None
    count = _count(value)
    if count is None:
        raise EpisodeError(f"{where} is {value!r}, expected a whole number; write it, or null")
    return count


def _template(value: Any, where: str, places: dict[str, Any]) -> str | None:
    """How files are called. Raises EpisodeError where nothing can be put in for what stands in its
    braces."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise EpisodeError(
            f"{where} is {value!r}, expected the name of a file with {_braces(places)}; write it, "
            "or null"
        )
    # Tried out: whatever stands in the braces (a format such as :03d, too) must be something that
    # numbers and names can be put into.
    try:
        value.format(**places)
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        raise EpisodeError(
            f"{where} is {value!r}, expected {_braces(places)} in it and nothing else in braces"
        ) from error
    return value


def _braces(places: dict[str, Any]) -> str:
    return ", ".join(f"{{{name}}}" for name in places)


def _feature(name: str, feature: dict[str, Any], where: str) -> dict[str, Any]:
    shape = _shape(feature.get("shape"), f"{where}: shape")
    for kind in ("video_info", "info"):
        _check_about(feature.get(kind), f"{where}: {kind}")
    return feature | {"shape": shape, "dtype": _dtype(name, feature, where)}


def _shape(value: Any, where: str) -> list[int] | None:
    """How long a row is in each direction. A number alone is one direction; names of sides (["h",
    "w", "c"]) and nulls say nothing."""
    if value is None:
        return None
    sides = value if isinstance(value, list) else [value]
    found = []
    for side in sides:
        count = _count(side)
        if count is not None:
            found.append(count)
        elif isinstance(value, list) and (side is None or isinstance(side, str)):
            return None  # says nothing; a number that is none is refused below
    if len(found) != len(sides):
        raise EpisodeError(
            f"{where} is {value!r}, expected a list of whole numbers; write how many numbers a "
            "row has, or null"
        )
    return found


def _dtype(name: str, feature: dict[str, Any], where: str) -> str | None:
    """A feature's type. One that has none and can only be a camera would be left out without a
    word."""
    value = feature.get("dtype")
    if value is not None and not isinstance(value, str):
        raise EpisodeError(
            f"{where}: dtype is {value!r}, expected a text such as 'float32' or 'video'; write it"
        )
    if value is None:
        # What lerobot says of a film and of nothing else.
        if any(key.startswith("video.") for key in video_info(feature)):
            return "video"
        if name.startswith(IMAGE) or sides(feature) is not None:
            raise EpisodeError(
                f"{where} has no dtype, expected 'video' or 'image'; write which of them its "
                "pictures are kept in"
            )
    return value


def _check_about(about: Any, where: str) -> None:
    """What else is said of a camera, as far as it decides what is read."""
    if not isinstance(about, dict):
        return
    for name in ("video.height", "video.width", "video.channels"):
        _optional_count(about.get(name), f"{where}: {name}")
    # A text "false" would count as true.
    for name in ("is_depth_map", "video.is_depth_map", "video.use_log"):
        if about.get(name) not in (None, True, False):
            raise EpisodeError(
                f"{where}: {name} is {about[name]!r}, expected true or false; write which"
            )
    for name in ("video.depth_min", "video.depth_max", "video.shift"):
        value = about.get(name)
        if value is not None and (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise EpisodeError(f"{where}: {name} is {value!r}, expected metres; write how many")
