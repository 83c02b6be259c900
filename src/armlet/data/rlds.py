"""Demonstrations in RLDS, as TensorFlow Datasets writes them (Open X-Embodiment, LIBERO for OpenVLA):
a folder of TFRecord files, each record an episode, read where they are and without TensorFlow.

    features.json       what a record holds: `steps`, and in it action, observation/NAME, …
    dataset_info.json   splits, and how many records each of their files has
    metadata.json       control_hz, steps a second: RLDS itself has no place for it
    NAME-SPLIT.tfrecord-00000-of-00008

In a record a feature of the steps is one flat list, of all steps one after the other: `steps/action`
has T times as many numbers as an action. Sources: github.com/google-research/rlds, and of
tensorflow/datasets core/features, core/example_serializer.py and proto/feature.proto.

An observation and the action beside it belong together: what was seen, and what was done then. The
last step is read like the others. Knows files; knows no robot and no policy.
"""

import io
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from armlet.data.demonstrations import Demonstrations
from armlet.data.layout import IMAGE, Columns, StoredEpisode
from armlet.data.opening import EpisodeError, read_object
from armlet.data.rows import Rows
from armlet.data.sources import PictureSources
from armlet.data.tfrecord import Record, Values, WireError, example, records
from armlet.data.values import Place
from armlet.robot.description import Described

FEATURES = "features.json"
ABOUT = "dataset_info.json"
METADATA = "metadata.json"
RATE = "control_hz"
STATE = "observation.state"
STEPS = "steps/"
SHARD = re.compile(r"(?:.+-)?(?P<split>[^-]+)\.tfrecord-(?P<number>\d+)-of-(?P<count>\d+)")
JOINED = "+"  # `action/world_vector+action/rotation_delta`: numbers side by side
# Where an episode says what the robot was told, the first of which is there: Open X's ways.
_WORDS = (
    "language_instruction",
    "observation/natural_language_instruction",
    "observation/language_instruction",
    "natural_language_instruction",
)
# The types of features.json, and what they are kept as in an Example.
_KEPT = {
    **dict.fromkeys(("float16", "bfloat16", "float32", "float64"), "float"),
    **dict.fromkeys(("int8", "int16", "int32", "int64", "bool"), "int64"),
    **dict.fromkeys(("uint8", "uint16", "uint32", "uint64"), "int64"),
    "string": "bytes",
}
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True)
class _Leaf:
    """A feature of the steps. `kept`: as what in an Example; `kind`: "numbers", "image" or "text".
    `shape` of a step; None in a picture's where any size will do."""

    kept: str
    kind: str
    shape: tuple[int | None, ...]
    dtype: str

    @property
    def size(self) -> int:
        """How many values of the list a step has."""
        return math.prod(int(side or 0) for side in self.shape) if self.kind == "numbers" else 1


@dataclass(frozen=True)
class _Scanned:
    """A file as it was when the data set was opened. Of each record, its length in steps; of each
    step (n,) what was told; of each camera (n, 2), where in the file its pictures begin and end."""

    name: str
    split: str
    lengths: tuple[int, ...]
    told: tuple[str, ...]
    pictures: dict[str, np.ndarray]
    stamp: tuple[int, int]


def find(root: Path) -> list[Path]:
    """The TFRecord files of a folder, in order of their names. Raises EpisodeError for a file: what
    is derived from episodes is kept beside them."""
    if root.is_file() and SHARD.fullmatch(root.name):
        raise EpisodeError(f"{root} is a file; give the folder that it lies in")
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if SHARD.fullmatch(path.name))


def open_rlds(root: Path, columns: Columns) -> Demonstrations:
    """All episodes of all splits of a folder. `columns` may join features by a +.

    Every byte is read once, to find where the episodes are and whether they are whole. Raises
    EpisodeError naming file, record and field, and what was expected.
    """
    hz = _rate(root)
    leaves = _leaves(root)
    words = _words(root, leaves)
    scanned = []
    for path, split, count in _shards(root):
        scanned.append(_scan(path, split, count, leaves, words))
    stored: list[StoredEpisode] = []
    told: dict[str, int] = {}  # in order of appearance
    for file in scanned:
        first = 0
        for number, length in enumerate(file.lengths):
            said = dict.fromkeys(file.told[first : first + length])
            for each in said:
                told.setdefault(each, len(told))
            about = {"file": file.name, "record": number, "split": file.split}
            stored.append(StoredEpisode(len(stored), length, tuple(said), about, file.name, {}))
            first += length
    rows = _rows(scanned, leaves, told, hz)
    features = _features(leaves, columns)
    assert rows.task is not None
    return Demonstrations(
        info={"codebase_version": "rlds", "robot_type": "", "fps": hz, "features": features},
        stored=stored,
        rows=rows,
        tasks=tuple(told),
        asked=rows.task,
        pictures=_Pictures(root, rows, stored, features),
        described=Described(),
        beside=(FEATURES, ABOUT, METADATA),
    )


# What the files beside the records say


def _rate(root: Path) -> float:
    path = root / METADATA
    fix = f'write {{"{RATE}": N}} into it, with the actions a second of this robot'
    if not path.exists():
        raise EpisodeError(
            f"{path} is missing; RLDS does not say how many steps a second there are: {fix}"
        )
    value = read_object(path).get(RATE)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise EpisodeError(f"{path}: {RATE} is {value!r}, expected actions a second; {fix}")
    return int(value) if float(value).is_integer() else float(value)


def _shards(root: Path) -> list[tuple[Path, str, int | None]]:
    """Files, in order of splits and numbers; the split of each, and how many records it should
    have."""
    path = root / ABOUT
    about = read_object(path)
    kind = about.get("fileFormat", "tfrecord")
    if kind != "tfrecord":
        raise EpisodeError(f"{path}: fileFormat is {kind!r}, expected tfrecord; write it as such")
    there: dict[str, dict[int, Path]] = {}
    promised: dict[str, int] = {}
    for each in find(root):
        named = SHARD.fullmatch(each.name)
        assert named is not None
        split, number, count = named["split"], int(named["number"]), int(named["count"])
        if promised.setdefault(split, count) != count or number in there.get(split, {}):
            raise EpisodeError(
                f"{each}: other files of split {split!r} are of {promised[split]}; two data sets "
                "lie in one folder. Keep them in folders of their own"
            )
        there.setdefault(split, {})[number] = each
    found: list[tuple[Path, str, int | None]] = []
    for split, lengths in _splits(about, path).items():
        count = promised.get(split, 0) if lengths is None else len(lengths)
        files = there.pop(split, {})
        missing = [number for number in range(count) if number not in files]
        if missing or len(files) != count or count == 0:
            which = f"; number {missing[0]} is the first that is missing" if missing else ""
            raise EpisodeError(
                f"{path}: split {split!r} has {count} files, and {len(files)} of it lie beside "
                f"it{which}. Download them again"
            )
        for number in range(count):
            found.append((files[number], split, None if lengths is None else lengths[number]))
    if there:
        raise EpisodeError(
            f"{path} lists no split {next(iter(there))!r}, of which there are files; list it, or "
            "move them away"
        )
    return found


def _splits(about: dict[str, Any], path: Path) -> dict[str, list[int] | None]:
    """Split → how many records each of its files has; None where that is not said."""
    found: dict[str, list[int] | None] = {}
    splits = about.get("splits")
    for split in splits if isinstance(splits, list) else []:
        lengths = split.get("shardLengths") if isinstance(split, dict) else None
        try:
            name = str(split["name"])
            # protobuf's JSON has whole numbers as texts
            found[name] = None if lengths is None else [int(length) for length in lengths]
        except (KeyError, TypeError, ValueError) as error:
            raise EpisodeError(f"{path}: splits cannot be understood ({error!r:.80})") from error
    if not found:
        raise EpisodeError(f"{path} lists no splits; was the data set written to its end?")
    if len(found) > 1:
        sys.stderr.write(f"{path.parent}: splits {', '.join(found)} are read as one data set\n")
    return found


def _leaves(root: Path) -> dict[str, _Leaf]:
    """The features of the steps, by their names in a record. What cannot be read is left out, in a
    line on stderr."""
    path = root / FEATURES
    found: dict[str, _Leaf] = {}
    left: dict[str, str] = {}
    _walk(read_object(path), "", found, left, path)
    if not found:
        raise EpisodeError(
            f"{path} describes no steps that can be read (featuresDict, features, steps, sequence); "
            "is this a data set of RLDS, written by tensorflow_datasets 4.6 or later?"
        )
    if left:
        said = [f"{name.removeprefix(STEPS)} ({why})" for name, why in left.items()]
        sys.stderr.write(f"{path}: left out: {', '.join(said)}\n")
    return found


def _walk(node: Any, name: str, found: dict[str, _Leaf], left: dict[str, str], path: Path) -> None:
    where = f"{path}: {name or 'the whole'}"
    if not isinstance(node, dict):
        raise EpisodeError(f"{where} is {type(node).__name__}, expected an object; copy it again")
    try:
        if "featuresDict" in node:
            for own, child in node["featuresDict"]["features"].items():
                inside = f"{name}/{own}" if name else own
                if inside in found:
                    raise EpisodeError(f"{path}: {inside} is there twice; write it again")
                if inside.startswith(STEPS) or inside == "steps":  # what else is about the episode
                    _walk(child, inside, found, left, path)
        elif name == "steps" and "sequence" in node:
            _walk(node["sequence"]["feature"], name, found, left, path)
        else:
            leaf = _leaf(node)
            if isinstance(leaf, str):
                left[name] = leaf
            else:
                found[name] = leaf
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, EpisodeError):
            raise
        raise EpisodeError(
            f"{where} cannot be understood ({error!r:.80}); copy it again"
        ) from error


def _leaf(node: dict[str, Any]) -> _Leaf | str:
    """A feature that is none of features; or why it is not read."""
    if "text" in node:
        return _Leaf("bytes", "text", (), "string")
    if "classLabel" in node:
        return _Leaf("int64", "numbers", (), "int64")
    if "image" in node:
        shape = _shape(node["image"])
        dtype = node["image"].get("dtype", "uint8")
        if len(shape) != 3 or shape[2] != 3 or dtype != "uint8":
            return f"pictures {shape} {dtype}, no colours"
        return _Leaf("bytes", "image", shape, "image")
    if "tensor" not in node:
        return str(node.get("pythonClassName", "of no kind that is known")).rpartition(".")[2]
    shape = _shape(node["tensor"])
    dtype = str(node["tensor"]["dtype"])
    if node["tensor"].get("encoding", "none").lower() != "none":
        return f"packed by {node['tensor']['encoding']}"
    if dtype == "string" and not shape:
        return _Leaf("bytes", "text", (), "string")
    if _KEPT.get(dtype) not in ("float", "int64") or None in shape or 0 in shape:
        return f"{shape} {dtype}"
    kept = _KEPT[dtype]
    return _Leaf(kept, "numbers", shape, {"float": "float32", "int64": "int64"}[kept])


def _shape(node: dict[str, Any]) -> tuple[int | None, ...]:
    sides = [int(side) for side in node.get("shape", {}).get("dimensions", [])]
    return tuple(None if side < 0 else side for side in sides)


def _words(root: Path, leaves: dict[str, _Leaf]) -> str:
    for name in _WORDS:
        if STEPS + name in leaves and leaves[STEPS + name].kind == "text":
            return STEPS + name
    raise EpisodeError(
        f"{root / FEATURES} does not say what the robot was told; expected a text in the steps, "
        f"{' or '.join(_WORDS)}"
    )


def _own(name: str, leaf: _Leaf) -> str:
    """What a feature of a record is called here."""
    short = name.removeprefix(STEPS)
    if leaf.kind == "image":
        return IMAGE + short.removeprefix("observation/")
    return short


def _features(leaves: dict[str, _Leaf], columns: Columns) -> dict[str, dict[str, Any]]:
    """As meta/info.json would describe them."""
    found: dict[str, dict[str, Any]] = {}
    for name, leaf in leaves.items():
        if leaf.kind == "image":
            # Of any size: it is measured in the first one.
            size = None if None in leaf.shape else list(leaf.shape)
            names = None if size is None else ["height", "width", "channels"]
            found[_own(name, leaf)] = {"dtype": "image", "shape": size, "names": names}
        elif leaf.kind == "numbers":
            found[_own(name, leaf)] = {"dtype": leaf.dtype, "shape": list(leaf.shape)}
    if "observation/state" in found:
        found[STATE] = found["observation/state"]
    for asked in (columns.state, columns.action):
        parts = asked.split(JOINED) if asked else []
        kinds = [found[part]["dtype"] for part in parts if part in found]
        if 1 < len(parts) == len(kinds) and "image" not in kinds:
            width = sum(math.prod(found[part]["shape"]) for part in parts)
            found[str(asked)] = {"dtype": "float32", "shape": [width]}
    return found


def _parts(name: str) -> list[str]:
    """The features in a record that a column is made of."""
    parts = []
    for part in name.split(JOINED):
        parts.append(STEPS + ("observation/state" if part == STATE else part))
    return parts


# Records


def _read(record: Record, leaves: dict[str, _Leaf], path: Path) -> dict[str, Values]:
    """What a record says under these names, all there and of the promised kind."""
    where = f"{path}: record {record.number}"
    try:
        found = example(record.content, leaves)
    except WireError as error:
        raise EpisodeError(f"{where} is no tf.train.Example ({error}); write it again") from error
    for name, leaf in leaves.items():
        if name not in found:
            raise EpisodeError(f"{where} lacks {name}, which {FEATURES} promises; write it again")
        if found[name].kind != leaf.kept:
            raise EpisodeError(
                f"{where}: {name} holds {found[name].kind}, and {FEATURES} says {leaf.kept}; put "
                "one of them right"
            )
    return found


def _length(found: dict[str, Values], leaves: dict[str, _Leaf], where: str) -> int:
    """How many steps a record has: as many as every feature of it."""
    lengths: dict[str, int] = {}
    for name, values in found.items():
        size = leaves[name].size
        lengths[name], rest = divmod(len(values), size)
        if rest:
            raise EpisodeError(
                f"{where}: {name} has {len(values)} numbers, no multiple of {size}, which a step "
                f"has by {FEATURES}; put one of them right"
            )
    usual = next(iter(lengths))
    for name, length in lengths.items():
        if length != lengths[usual]:
            raise EpisodeError(
                f"{where}: {name} has {length} steps and {usual} {lengths[usual]}; write it again"
            )
    if lengths[usual] == 0:
        raise EpisodeError(f"{where} has no steps; leave it out")
    return lengths[usual]


def _scan(
    path: Path, split: str, count: int | None, leaves: dict[str, _Leaf], words: str
) -> _Scanned:
    lengths: list[int] = []
    told: list[str] = []
    spans: dict[str, list[np.ndarray]] = {}
    cameras = [name for name, leaf in leaves.items() if leaf.kind == "image"]
    stamp = _stamp(path)
    for record in records(path):
        where = f"{path}: record {record.number}"
        found = _read(record, leaves, path)
        lengths.append(_length(found, leaves, where))
        for name in ("is_first", "is_last"):
            if STEPS + name in found and leaves[STEPS + name].size == 1:
                _check_ends(_numbers(found[STEPS + name], where, name), name, where)
        told += _texts(record, found[words], f"{where}: {words}")
        for name in cameras:
            places = np.array(found[name].spans, np.int64) + record.begins
            spans.setdefault(_own(name, leaves[name]), []).append(places)
    if count is not None and len(lengths) != count:
        raise EpisodeError(
            f"{path} has {len(lengths)} records, and {ABOUT} says {count}; download it again"
        )
    pictures = {name: np.concatenate(each) for name, each in spans.items()}
    return _Scanned(path.name, split, tuple(lengths), tuple(told), pictures, stamp)


def _stamp(path: Path) -> tuple[int, int]:
    if not path.exists():
        return (0, 0)  # a link to nowhere, which the reader names
    about = path.stat()
    return about.st_size, about.st_mtime_ns


def _check_ends(said: np.ndarray, name: str, where: str) -> None:
    """is_first and is_last are of the first and last step only, if of any."""
    inner = said[1:] if name == "is_first" else said[:-1]
    if inner.any():
        step = int(np.argmax(inner != 0)) + (name == "is_first")
        raise EpisodeError(
            f"{where}: {name} of step {step} of {len(said)} is true; expected one episode a record"
        )


def _numbers(values: Values, where: str, name: str) -> np.ndarray:
    try:
        return values.numbers()
    except WireError as error:
        raise EpisodeError(f"{where}: {name} is damaged ({error}); write it again") from error


def _texts(record: Record, values: Values, where: str) -> list[str]:
    found = []
    for step, (begins, ends) in enumerate(values.spans):
        try:
            text = record.content[begins:ends].decode()
        except UnicodeDecodeError as error:
            raise EpisodeError(
                f"{where} of step {step} is no UTF-8 text; write it again"
            ) from error
        if not text.strip():
            raise EpisodeError(
                f"{where} of step {step} is empty, so what the robot was told is not known; write "
                "it there, or leave the episode out"
            )
        found.append(" ".join(text.split()))
    return found


# All files together


def _rows(
    files: Sequence[_Scanned], leaves: dict[str, _Leaf], told: dict[str, int], hz: float
) -> "_Rows":
    return _Rows.of_whole_files(
        [file.name for file in files],
        [len(file.told) for file in files],
        [length for file in files for length in file.lengths],
        np.array([told[text] for file in files for text in file.told], np.int64),
        hz,
        scanned=tuple(files),
        leaves=leaves,
    )


@dataclass(frozen=True)
class _Rows(Rows):
    """Rows whose columns are in TFRecords."""

    scanned: tuple[_Scanned, ...]
    leaves: dict[str, _Leaf]

    def columns(self, root: Path, names: Sequence[str]) -> Iterator[tuple[Path, pa.Table, Place]]:
        for number, file in enumerate(self.scanned):
            path = root / file.name
            wanted: dict[str, _Leaf] = {}
            for name in names:
                for part in _parts(name):
                    if part not in self.leaves or self.leaves[part].kind != "numbers":
                        raise EpisodeError(f"{path} has no column of numbers {name!r}")
                    wanted[part] = self.leaves[part]
            found: dict[str, list[np.ndarray]] = {name: [] for name in names}
            for record in _unchanged(path, file):
                for name, values in _columns(record, names, wanted, path).items():
                    found[name].append(values)
            table = {}
            for name, each in found.items():
                values = np.concatenate(each)
                table[name] = pa.FixedSizeListArray.from_arrays(
                    pa.array(values.ravel()), values.shape[1]
                )
            yield path, pa.table(table), partial(self.place_in, number)


def _columns(
    record: Record, names: Sequence[str], wanted: dict[str, _Leaf], path: Path
) -> dict[str, np.ndarray]:
    """Columns (T, x) of a record."""
    where = f"{path}: record {record.number}"
    found = _read(record, wanted, path)
    columns = {}
    for name in names:
        beside = []
        for part in _parts(name):
            beside.append(_numbers(found[part], where, part).reshape(-1, wanted[part].size))
        columns[name] = np.concatenate(beside, 1)
    return columns


def _unchanged(path: Path, file: _Scanned) -> Iterator[Record]:
    if _stamp(path) != file.stamp:
        raise EpisodeError(f"{path} has changed since the data set was opened; open it again")
    yield from records(path)


@dataclass(frozen=True)
class _Pictures(PictureSources):
    """Pictures in TFRecords, JPEG or PNG, one in memory at a time."""

    def pictures(self, key: str, wanted: np.ndarray) -> Iterator[np.ndarray]:
        rows = self.rows
        assert isinstance(rows, _Rows)
        shape = self.features[key]["shape"]
        for number, run in groupby(wanted.tolist(), key=lambda row: int(rows.file[row])):
            file = rows.scanned[number]
            path = self.root / file.name
            # Its checksums were looked at when the data set was opened.
            if _stamp(path) != file.stamp:
                raise EpisodeError(
                    f"{path} has changed since the data set was opened; open it again"
                )
            with path.open("rb") as opened:
                for row in run:
                    begins, ends = file.pictures[key][rows.place[row]].tolist()
                    opened.seek(begins)
                    record = self.stored[rows.episode[row]].info["record"]
                    name = key.removeprefix(IMAGE)
                    where = f"{path}: record {record}: {name} of step {rows.frame[row]}"
                    yield _picture(opened.read(ends - begins), shape, where)

    def picture_files(self, key: str) -> set[str]:
        return set()  # they are in the files of the rows


def _picture(kept: bytes, shape: Sequence[int] | None, where: str) -> np.ndarray:
    """(h, w, 3) uint8. Its size is looked at before memory is taken for it."""
    if not kept:
        raise EpisodeError(f"{where} is empty; write the pictures again, or leave the camera out")
    try:
        with Image.open(io.BytesIO(kept), formats=("JPEG", "PNG")) as image:
            if shape is not None and image.size != (shape[1], shape[0]):
                raise EpisodeError(
                    f"{where} is {image.size[1]} × {image.size[0]}, and {FEATURES} says "
                    f"{shape[0]} × {shape[1]}; put one of them right"
                )
            if image.mode not in ("RGB", "L", "P"):
                raise EpisodeError(f"{where} has pixels of mode {image.mode}, expected RGB")
            return np.asarray(image.convert("RGB"))
    except _DAMAGED as error:
        if isinstance(error, EpisodeError):
            raise
        raise EpisodeError(
            f"{where} cannot be read as JPEG or PNG ({str(error)[:120]}); write it again"
        ) from error
