"""Demonstrations in HDF5, as robomimic lays them out and LIBERO publishes its own, read where they
are: a folder of files, of each the group `data` with a group `demo_N` an episode.

    data            attributes env_args, and problem_info where LIBERO wrote it (JSON)
    data/demo_0     actions (T, a), states (T, s), obs/NAME (T, …); the attribute num_samples

Sources: robomimic's "Dataset Structure" (robomimic.github.io/docs/datasets/overview.html), and
LIBERO's scripts/create_dataset.py. Three things of these files are easily got wrong:

- **Pictures.** LIBERO keeps them as OpenGL gives them, the lowest row first, and says so
  (`macros_image_convention`). They are turned by half a turn, here and nowhere else: so do the
  policies that are known for LIBERO, which therefore see it mirrored. robomimic turns them itself
  before it writes them, and they are taken as they are.
- **Which observation an action answers.** robomimic writes what was seen before an action, LIBERO
  what was seen after it. Where the simulator's states lie beside them, joints are compared with
  these (`_delay`); then each observation is joined to the action that followed it, and an episode
  is a row shorter.
- **Units.** They are the controller's: −1 to 1 for each number, −1 opens the gripper. What env_args
  say of that is known of the robot (`described`); what they do not say is asked for.

Knows files; knows no simulator and no policy.
"""

import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from armlet.data import hdf5
from armlet.data.layout import IMAGE, StoredEpisode
from armlet.data.opening import EpisodeError
from armlet.data.rows import Rows
from armlet.data.sources import PictureSources
from armlet.data.values import Place
from armlet.robot.description import Described

if TYPE_CHECKING:  # it needs the extra
    import h5py

SUFFIXES = (".hdf5", ".h5")
STATE = "observation.state"
ACTION = "action"
STATES = "states"  # of the simulator, as MuJoCo has them: time, places, speeds
OBS = "obs/"
# What a state is made of, the first of which all is there; and what its numbers are called. LIBERO's
# is what the policies that are known for it read.
_FINGERS = ("left_finger", "right_finger")
_STATES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("ee_states", "gripper_states"): ("x", "y", "z", "rx", "ry", "rz", *_FINGERS),
    ("ee_pos", "ee_ori", "gripper_states"): ("x", "y", "z", "rx", "ry", "rz", *_FINGERS),
    ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"): (
        "x", "y", "z", "qx", "qy", "qz", "qw", *_FINGERS,
    ),
}  # fmt: skip
_JOINTS = ("joint_states", "robot0_joint_pos")
_HAND = ("dx", "dy", "dz", "drx", "dry", "drz", "gripper")
# A delay of the observations counts as found where they err by less than this of the usual motion.
_CLEAR = 0.2
Shape = tuple[tuple[int, ...], str]  # of a row of a feature, and its type
_NOT_SEEN = "write it, as LIBERO and robomimic do, or convert the data set with lerobot"


def half_turn(picture: np.ndarray) -> np.ndarray:
    """Of OpenGL's picture (h, w, 3): upright, and mirrored as LIBERO's policies know it."""
    return picture[::-1, ::-1]


def mirrored(picture: np.ndarray) -> np.ndarray:
    """The same of a picture (h, w, 3) that is upright already."""
    return picture[:, ::-1]


def as_stored(picture: np.ndarray) -> np.ndarray:
    """What robomimic wrote: it is upright, and not mirrored."""
    return picture


# macros_image_convention → how a picture is turned; None: it is not said.
TURNS: dict[str | None, Callable[[np.ndarray], np.ndarray]] = {
    "opengl": half_turn,
    "opencv": mirrored,
    None: as_stored,
}


@dataclass(frozen=True)
class _Demo:
    """A group `demo_N` of T rows: what the robot was told in it."""

    name: str
    length: int
    told: str


@dataclass(frozen=True)
class _File:
    """What a file says. `shapes`: name of a feature → (shape of a row, its type). `delay`: how many
    actions an observation comes after the one beside it."""

    name: str
    hz: float
    convention: str | None
    robot: str
    described: Described
    shapes: dict[str, Shape]
    demos: tuple[_Demo, ...]
    delay: int

    @property
    def rows(self) -> list[int]:
        """How many rows each of its demonstrations is read as."""
        return [demo.length - self.delay for demo in self.demos]


@dataclass(frozen=True)
class Demonstrations:
    """What an `EpisodeDataset` is made of. `described`: what the files say of the robot; `beside`:
    files that decide what is read, beside those with the rows."""

    info: dict[str, Any]
    stored: list[StoredEpisode]
    rows: Rows
    tasks: tuple[str, ...]
    asked: np.ndarray
    pictures: PictureSources
    described: Described
    beside: tuple[str, ...] = ()


def find(root: Path) -> list[Path]:
    """The HDF5 files of a folder, in order of their names. Raises EpisodeError for a file: what is
    derived from episodes is kept beside them."""
    if root.suffix in SUFFIXES and root.is_file():
        raise EpisodeError(f"{root} is a file; give the folder that it lies in")
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.suffix in SUFFIXES)


def open_demonstrations(root: Path) -> Demonstrations:
    """All demonstrations of the files in a folder. Raises EpisodeError naming file, group and what
    was expected, and ModuleNotFoundError without the extra."""
    files = [_scan(path) for path in find(root)]
    _check_alike(root, files)
    stored: list[StoredEpisode] = []
    for file in files:
        for demo, length in zip(file.demos, file.rows, strict=True):
            about = {"file": file.name, "demo": demo.name}
            stored.append(StoredEpisode(len(stored), length, (demo.told,), about, file.name, {}))
    features = _features(files[0].shapes)
    told: dict[str, int] = {}  # in order of appearance
    for each in stored:
        told.setdefault(each.tasks[0], len(told))
    rows = _rows(files, stored, told)
    info = {
        "codebase_version": "hdf5",
        "robot_type": files[0].robot,
        "fps": files[0].hz,
        "features": features,
    }
    return Demonstrations(
        info=info,
        stored=stored,
        rows=rows,
        tasks=tuple(told),
        asked=np.asarray(rows.task),
        pictures=_Pictures(root, rows, stored, features),
        described=files[0].described,
    )


# What a file says


def _scan(path: Path) -> _File:
    with hdf5.opened(path) as file:
        data = hdf5.group(file, "data", path)
        env = hdf5.described(data, "env_args", path)
        found = sorted(hdf5.names(data, path), key=_by_number)
        if not found:
            raise EpisodeError(f"{path}: /data has no demonstration; was it recorded to the end?")
        demos = []
        shapes: dict[str, Shape] = {}
        for name in found:
            group = hdf5.group(data, name, path)
            length, own = _shapes(group, path)
            _check_same(own, shapes or own, f"{path}: {group.name}", found[0])
            shapes = own
            demos.append(_Demo(name, length, _told(data, group, env, path)))
        convention = hdf5.text(data, "macros_image_convention", path)
        if convention not in TURNS:
            raise EpisodeError(
                f"{path}: macros_image_convention is {convention!r}, expected opengl or opencv; "
                "which way up its pictures are is not known"
            )
        delay = _delay(data, demos, path)
    kwargs = _object(env.get("env_kwargs"))
    robots = kwargs.get("robots")
    return _File(
        name=path.name,
        hz=_rate(kwargs.get("control_freq"), path),
        convention=convention,
        robot=", ".join(map(str, robots)) if isinstance(robots, list) else str(robots or ""),
        described=_robot(kwargs, shapes[ACTION][0][0]),
        shapes=shapes,
        demos=tuple(demos),
        delay=delay,
    )


def _by_number(name: str) -> tuple[int, str]:
    """demo_10 comes after demo_9."""
    digits = re.findall(r"\d+", name)
    return (int(digits[-1]) if digits else -1, name)


def _shapes(demo: "h5py.Group", path: Path) -> tuple[int, dict[str, Shape]]:
    """How many rows a demonstration has, and what a row holds: feature → shape and type. Raises
    EpisodeError where its parts are not equally long."""
    actions = hdf5.dataset(demo, "actions", path)
    if actions.ndim != 2 or actions.dtype.kind not in "fiu" or 0 in actions.shape:
        raise EpisodeError(
            f"{path}: {actions.name} is {actions.shape} {actions.dtype}, expected (steps, numbers) "
            "of floats; write the file again"
        )
    length = int(actions.shape[0])
    found: dict[str, Shape] = {ACTION: ((int(actions.shape[1]),), "float32")}
    there = hdf5.names(demo, path)
    if "obs" not in there:
        raise EpisodeError(
            f"{path}: {demo.name} has no observations, only what the simulator needs to make them; "
            "run robomimic's dataset_states_to_obs.py or LIBERO's create_dataset.py"
        )
    seen = hdf5.group(demo, "obs", path)
    parts = [(OBS + name, hdf5.dataset(seen, name, path)) for name in hdf5.names(seen, path)]
    if STATES in there:
        parts.append((STATES, hdf5.dataset(demo, STATES, path)))
    for name, part in parts:
        if part.ndim == 0 or part.shape[0] != length:
            raise EpisodeError(
                f"{path}: {part.name} is {part.shape} and {actions.name} {actions.shape}; expected "
                "as many rows. Write the file again"
            )
        kind = _kind(name, part, path)
        if kind is not None:
            found[IMAGE + name.removeprefix(OBS) if kind == "image" else name] = (
                tuple(map(int, part.shape[1:])),
                kind,
            )
    samples = hdf5.attribute(demo, "num_samples", path)
    if samples is not None and not np.array_equal(samples, length):
        raise EpisodeError(
            f"{path}: {demo.name} has {length} actions, and num_samples says {samples}; copy the "
            "file again"
        )
    return length, found


def _kind(name: str, part: "h5py.Dataset", path: Path) -> str | None:
    """The type of a feature; None for what is not read: distances, texts."""
    is_picture = part.ndim == 4 and part.shape[3] == 3
    if is_picture and part.dtype == np.uint8:
        return "image"
    if is_picture:
        raise EpisodeError(
            f"{path}: {part.name} is {part.shape} {part.dtype}, expected pictures of uint8, 0 to "
            "255; write them again"
        )
    if part.dtype.kind in "fiub" and part.ndim <= 2:
        return "float32"
    if name in {OBS + each for parts in _STATES for each in parts}:
        raise EpisodeError(
            f"{path}: {part.name} is {part.shape} {part.dtype}, expected (steps, numbers); write "
            "the file again"
        )
    return None


def _told(data: "h5py.Group", demo: "h5py.Group", env: dict[str, Any], path: Path) -> str:
    """What the robot was told: of the demonstration itself (`ep_meta`, as RoboCasa writes it), of
    the file (`problem_info`, LIBERO's), or of the environment."""
    said = [
        hdf5.described(demo, "ep_meta", path).get("lang"),
        hdf5.described(data, "problem_info", path).get("language_instruction"),
        env.get("lang"),
    ]
    for each in said:
        # LIBERO's own parser gives the words one by one, and some files have them in quotes.
        words = " ".join(map(str, each)) if isinstance(each, list) else each
        if isinstance(words, str) and words.strip().strip('"'):
            return " ".join(words.strip().strip('"').split())
    raise EpisodeError(
        f"{path} does not say what the robot was told (attribute problem_info of /data: "
        f'{{"language_instruction": "…"}}); {_NOT_SEEN}'
    )


def _rate(value: Any, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise EpisodeError(
            f"{path}: control_freq in env_kwargs of env_args (an attribute of /data) is {value!r}, "
            f"expected actions a second; {_NOT_SEEN}"
        )
    return int(value) if float(value).is_integer() else float(value)


def _robot(kwargs: dict[str, Any], dims: int) -> Described:
    """What env_kwargs say of the robot; nothing where they are of one that is not known here."""
    controller = kwargs.get("controller_configs")
    if isinstance(controller, list) and len(controller) == 1:  # one an arm
        controller = controller[0]
    said = _object(controller)
    if kwargs.get("robots") not in ("Panda", ["Panda"]) or dims != len(_HAND):
        return Described()
    if said.get("type") != "OSC_POSE" or said.get("control_delta") is not True:
        return Described()
    reach = said.get("output_max")
    full = said.get("input_max")
    scale = None
    if isinstance(reach, list) and reach[0] == reach[1] == reach[2] and full == 1:
        scale = float(reach[0])
    # robosuite's operational space controller and its PandaGripper.
    return Described(
        mode="delta",
        rotation="axis_angle",
        grippers=(6,),
        gripper_open=-1.0,
        gripper_closed=1.0,
        translation_scale=scale,
        low=(-1.0,) * dims if full == 1 else None,
        high=(1.0,) * dims if full == 1 else None,
    )


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _delay(data: "h5py.Group", demos: Sequence[_Demo], path: Path) -> int:
    """0 where an observation is what was seen before the action beside it, 1 where after.

    The simulator's state beside an action is the one it was carried out in. So the joints as they
    were observed are those of the same state, or of the next; the first demonstration that moves
    tells which.
    """
    for demo in demos:
        group = hdf5.group(data, demo.name, path)
        seen = hdf5.group(group, "obs", path)
        named = [name for name in _JOINTS if name in seen]
        if not named or STATES not in group:
            break
        joints = hdf5.numbers(hdf5.dataset(seen, named[0], path), slice(None), path)
        states = hdf5.numbers(hdf5.dataset(group, STATES, path), slice(None), path)
        places = states[:, 1 : 1 + joints.shape[1]]  # behind the time; the robot comes first
        if places.shape != joints.shape or len(joints) < 2:
            break
        motion = float(np.abs(np.diff(places, axis=0)).mean())
        same = float(np.abs(joints - places).mean())
        after = float(np.abs(joints[:-1] - places[1:]).mean())
        if min(same, after) < _CLEAR * motion:
            return int(after < same)
    # LIBERO's script steps first and looks then; robomimic the other way round.
    delay = int(hdf5.text(data, "problem_info", path) is not None)
    sys.stderr.write(
        f"{path}: no joints and states that would say whether it was looked before or after each "
        f"action; taken as {'LIBERO writes it, after' if delay else 'robomimic writes it, before'}\n"
    )
    return delay


# All files together


def _check_alike(root: Path, files: Sequence[_File]) -> None:
    first = files[0]
    for each in files:
        _check_same(each.shapes, first.shapes, str(root / each.name), first.name)
        for what in ("hz", "robot", "described"):
            if getattr(each, what) != getattr(first, what):
                raise EpisodeError(
                    f"{root / each.name} was recorded with another robot than {first.name} "
                    f"({what}: {getattr(each, what)}, there {getattr(first, what)}); keep them in "
                    "folders of their own"
                )
        if min(each.rows) < 1:
            short = each.demos[int(np.argmin(each.rows))]
            raise EpisodeError(
                f"{root / each.name}: {short.name} has {short.length} action, and nothing was "
                "seen before it; leave it out"
            )


def _check_same(
    found: dict[str, Shape],
    wanted: dict[str, Shape],
    where: str,
    other: str,
) -> None:
    for name in [*wanted, *found]:
        if found.get(name) != wanted.get(name):
            told = []
            for shape in (found.get(name), wanted.get(name)):
                told.append("none" if shape is None else f"{shape[0]} a row")
            raise EpisodeError(
                f"{where}: {name} is {told[0]}, and {told[1]} in {other}; demonstrations of one "
                "folder must be of one robot and its cameras. Keep them in folders of their own"
            )


def _features(shapes: dict[str, Shape]) -> dict[str, dict[str, Any]]:
    """As meta/info.json would describe them."""
    found: dict[str, dict[str, Any]] = {}
    for name, (shape, kind) in shapes.items():
        names: list[str] | None = None
        if kind == "image":
            names = ["height", "width", "channels"]
        elif name == ACTION and shape == (len(_HAND),):
            names = list(_HAND)
        found[name] = {"dtype": kind, "shape": list(shape), "names": names}
    for parts, called in _STATES.items():
        if all(OBS + part in shapes for part in parts):
            width = sum(math.prod(shapes[OBS + part][0]) for part in parts)
            fit = width == len(called)
            found[STATE] = {
                "dtype": "float32",
                "shape": [width],
                "names": list(called) if fit else None,
            }
            break
    return found


def _parts(name: str, features: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """The data sets in a demonstration's group that a feature is made of."""
    if name == ACTION:
        return ("actions",)
    if name != STATE:
        return (name,)
    there = [parts for parts in _STATES if all(OBS + part in features for part in parts)]
    return tuple(OBS + part for part in there[0])


def _rows(files: Sequence[_File], stored: Sequence[StoredEpisode], told: dict[str, int]) -> "_Rows":
    lengths = [int(each.length or 0) for each in stored]
    tasks = np.array([told[each.tasks[0]] for each in stored], np.int64)
    return _Rows.of_whole_files(
        [file.name for file in files],
        [sum(file.rows) for file in files],
        lengths,
        np.repeat(tasks, lengths),
        files[0].hz,
        scanned=tuple(files),
    )


@dataclass(frozen=True)
class _Rows(Rows):
    """Rows whose columns are in HDF5."""

    scanned: tuple[_File, ...]

    def columns(self, root: Path, names: Sequence[str]) -> Iterator[tuple[Path, pa.Table, Place]]:
        features = _features(self.scanned[0].shapes)
        for number, file in enumerate(self.scanned):
            path = root / file.name
            with hdf5.opened(path) as opened:
                data = hdf5.group(opened, "data", path)
                table = {}
                for name in names:
                    if name not in features:
                        raise EpisodeError(
                            f"{path} lacks {name!r}; it has {', '.join(sorted(features))}"
                        )
                    values = _column(data, file, _parts(name, features), path)
                    table[name] = pa.FixedSizeListArray.from_arrays(
                        pa.array(values.ravel()), values.shape[1]
                    )
            yield path, pa.table(table), partial(self.place_in, number)


def _column(data: "h5py.Group", file: _File, parts: Sequence[str], path: Path) -> np.ndarray:
    """(n, x) float64: a column of all demonstrations of a file, one after the other."""
    found = []
    for demo, rows in zip(file.demos, file.rows, strict=True):
        group = hdf5.group(data, demo.name, path)
        beside = []
        for part in parts:
            # What belongs to actions begins with the first one that followed an observation.
            first = 0 if part.startswith(OBS) else file.delay
            holder = hdf5.group(group, "obs", path) if part.startswith(OBS) else group
            values = hdf5.dataset(holder, part.removeprefix(OBS), path)
            if len(values) != demo.length:
                raise EpisodeError(
                    f"{path} has changed since the data set was opened; open it again"
                )
            taken = hdf5.numbers(values, slice(first, first + rows), path)
            beside.append(taken.astype(np.float64).reshape(rows, -1))
        found.append(np.concatenate(beside, 1))
    return np.concatenate(found)


@dataclass(frozen=True)
class _Pictures(PictureSources):
    """Pictures in HDF5, one in memory at a time."""

    def pictures(self, key: str, wanted: np.ndarray) -> Iterator[np.ndarray]:
        rows = self.rows
        assert isinstance(rows, _Rows)
        name = key.removeprefix(IMAGE)
        for number, run in groupby(wanted.tolist(), key=lambda row: int(rows.file[row])):
            turn = TURNS[rows.scanned[number].convention]
            path = self.root / rows.files[number]
            with hdf5.opened(path) as file:
                data = hdf5.group(file, "data", path)
                for episode, frames in groupby(run, key=lambda row: int(rows.episode[row])):
                    demo = hdf5.group(data, self.stored[episode].info["demo"], path)
                    shown = hdf5.dataset(hdf5.group(demo, "obs", path), name, path)
                    for row in frames:
                        picture = hdf5.read(shown, int(rows.frame[row]), path)
                        yield np.ascontiguousarray(turn(picture))

    def picture_files(self, key: str) -> set[str]:
        return set()  # they are in the files of the rows
