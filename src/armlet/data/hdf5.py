"""HDF5 files opened, and what is in them taken out by name, or refused by it: damaged, cut short,
linked to another file, declared and never written, of another type or shape.

Needs the extra `hdf5`, which importing this file does not. Knows HDF5; knows no layout and no
robot.
"""

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from armlet.data.opening import EpisodeError, checked
from armlet.robot.tables import TwiceError, read_once

if TYPE_CHECKING:  # it needs the extra
    import h5py

# What h5py raises at a file that is damaged or cut short, by what it was doing.
BROKEN = (OSError, RuntimeError, KeyError, ValueError)
# A compressed file of kilobytes may declare any number of rows.
MOST_BYTES = 2**30  # of numbers that are read at once


@contextlib.contextmanager
def opened(path: Path) -> Iterator["h5py.File"]:
    """A file, to be read. Raises EpisodeError naming it, and ModuleNotFoundError where the extra is
    not installed."""
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} is read with h5py, which is not installed: pip install -e '.[hdf5]'"
        ) from error
    checked(path)
    if not h5py.is_hdf5(path):
        raise EpisodeError(f"{path} is no HDF5 file, whatever it is called; download it again")
    try:
        file = h5py.File(path, "r")
    except BROKEN as error:
        raise EpisodeError(
            f"{path} cannot be opened as HDF5 ({short(error)}); was a copy interrupted? Copy it "
            "again"
        ) from error
    with file:
        try:
            yield file
        except EpisodeError:
            raise
        except BROKEN as error:  # where a damaged file is met when nothing is read yet
            raise EpisodeError(f"{path} is damaged ({short(error)}); copy it again") from error


def group(parent: "h5py.Group", name: str, path: Path) -> "h5py.Group":
    """A group of another. Raises EpisodeError where it is missing, or is none."""
    import h5py

    found = _child(parent, name, path)
    if not isinstance(found, h5py.Group):
        raise EpisodeError(f"{path}: {_place(parent, name)} holds numbers, expected a group")
    return found


def dataset(parent: "h5py.Group", name: str, path: Path) -> "h5py.Dataset":
    """A data set of a group, looked at but not read. Raises EpisodeError where it is missing, is a
    group, was declared and not written, or lies in another file."""
    import h5py

    found = _child(parent, name, path)
    where = f"{path}: {_place(parent, name)}"
    if not isinstance(found, h5py.Dataset):
        raise EpisodeError(f"{where} is a group, expected numbers")
    try:
        elsewhere = found.is_virtual or found.external
        stored = found.id.get_storage_size()
        found.dtype  # noqa: B018 - made when it is asked for, and refused where numpy has none
    except (*BROKEN, TypeError) as error:
        raise EpisodeError(f"{where} is damaged ({short(error)}); copy the file again") from error
    # A file that was downloaded must not make us read another one of this machine.
    if elsewhere:
        raise EpisodeError(
            f"{where} lies in another file, which is not followed; copy it in (h5repack)"
        )
    if found.shape is None:
        raise EpisodeError(f"{where} is empty; write the file again")
    if math.prod(found.shape) and not stored:
        raise EpisodeError(
            f"{where} is said to be {found.shape}, and none of it was written; was the recording "
            "interrupted? Write the file again"
        )
    return found


def names(parent: "h5py.Group", path: Path) -> list[str]:
    """The names in a group. Raises EpisodeError where they cannot be read."""
    try:
        found = list(parent)
    except BROKEN as error:
        raise EpisodeError(
            f"{path}: {parent.name} is damaged ({short(error)}); copy the file again"
        ) from error
    for name in found:
        if not isinstance(name, str):  # bytes: what is no text
            raise EpisodeError(
                f"{path}: {parent.name} is damaged (a name is {name!r}); copy the file again"
            )
    return found


def numbers(found: "h5py.Dataset", rows: slice, path: Path) -> np.ndarray:
    """Rows of a data set of numbers. Raises EpisodeError where it holds something else, is damaged,
    or is larger than any demonstration."""
    where = f"{path}: {found.name}"
    if found.dtype.kind not in "fiub":
        raise EpisodeError(f"{where} is {found.dtype}, expected numbers; write the file again")
    count = math.prod(found.shape) * found.dtype.itemsize
    if count > MOST_BYTES:
        raise EpisodeError(
            f"{where} is {found.shape} {found.dtype}, {count / 2**30:.1f} GB; expected the numbers "
            "of one demonstration"
        )
    return read(found, rows, path)


def read(found: "h5py.Dataset", rows: slice | int, path: Path) -> np.ndarray:
    """Rows of a data set, whatever they are. Raises EpisodeError where it is damaged."""
    try:
        values: np.ndarray = found[rows]
    except BROKEN as error:
        raise EpisodeError(
            f"{path}: {found.name} is damaged ({short(error)}); copy the file again"
        ) from error
    return values


def attribute(of: "h5py.Group", name: str, path: Path) -> Any:
    """An attribute of a group; None where there is none."""
    try:
        return of.attrs.get(name)
    except BROKEN as error:
        raise EpisodeError(
            f"{path}: attribute {name!r} of {of.name} is damaged ({short(error)}); copy the file "
            "again"
        ) from error


def text(of: "h5py.Group", name: str, path: Path) -> str | None:
    """An attribute that is a text; None where there is none."""
    value = attribute(of, name, path)
    if value is None:
        return None
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        raise EpisodeError(
            f"{path}: attribute {name!r} of {of.name} is {type(value).__name__}, expected a text"
        )
    return value


def described(of: "h5py.Group", name: str, path: Path) -> dict[str, Any]:
    """An attribute that is a JSON object; an empty one where there is none."""
    said = text(of, name, path)
    if said is None:
        return {}
    where = f"{path}: attribute {name!r} of {of.name}"
    try:
        value = read_once(said)
    except (TwiceError, json.JSONDecodeError) as error:
        raise EpisodeError(f"{where} is no JSON ({error}); write it again") from error
    if not isinstance(value, dict):
        raise EpisodeError(f"{where} is {type(value).__name__}, expected a JSON object")
    return value


def short(error: BaseException) -> str:
    """What h5py says, in a line."""
    return str(error).split("\n", 1)[0].strip("'\"")[:160]


def _child(parent: "h5py.Group", name: str, path: Path) -> Any:
    import h5py

    where = f"{path}: {_place(parent, name)}"
    try:
        link = parent.get(name, getlink=True)
        if link is None:
            there = ", ".join(names(parent, path)[:12]) or "nothing"
            raise EpisodeError(f"{path}: {parent.name} has no {name!r}; it has {there}")
        if not isinstance(link, h5py.HardLink):
            raise EpisodeError(f"{where} is a link, which is not followed; copy what it means in")
        return parent[name]
    except BROKEN as error:
        if isinstance(error, EpisodeError):
            raise
        raise EpisodeError(f"{where} is damaged ({short(error)}); copy the file again") from error


def _place(parent: "h5py.Group", name: str) -> str:
    return f"{parent.name.rstrip('/')}/{name}"
