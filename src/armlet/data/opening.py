"""Files of a data set opened, or refused by name: missing, empty, cut short, a Git LFS pointer, a
link to nowhere.

Knows JSON and parquet; knows no layout and no value.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from armlet.data.bounded import check_parquet
from armlet.robot.tables import TwiceError, read_once

LFS = b"version https://git-lfs.github.com/spec/"
# What pyarrow raises at a file that is damaged, cut short or of another kind.
BROKEN = (pa.ArrowException, OSError)


class EpisodeError(ValueError):
    """Episodes that are not what their metadata, or their reader, say they are."""


def fault(path: Path) -> str | None:
    """What is wrong with a file before its content is looked at, with the likely fix; None where
    nothing is."""
    # A link to nowhere first: to everything else here it is a file that is missing.
    if path.is_symlink() and not path.exists():
        return (
            f"{path} is missing: it is a link to {path.readlink()}, where nothing is; download or "
            "copy it again"
        )
    if path.is_dir():
        return f"{path} is a folder, expected a file"
    if not path.is_file():
        return (
            f"{path} is missing; expected a LeRobotDataset folder (made by `armlet collect` or "
            "lerobot)"
        )
    try:
        with path.open("rb") as file:
            begins = file.read(len(LFS))
    except OSError as error:
        return f"{path} cannot be read ({error.strerror}); check its permissions"
    if not begins:
        return f"{path} is empty; was a copy interrupted? Copy it again"
    if begins == LFS:
        return (
            f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in the data "
            "set's folder"
        )
    return None


def checked(path: Path) -> Path:
    """The path of a file that can be read. Raises EpisodeError saying why it cannot."""
    wrong = fault(path)
    if wrong is not None:
        raise EpisodeError(wrong)
    return path


def read_text(path: Path) -> str:
    """The text of a file, whether or not it begins with a byte order mark. Raises EpisodeError
    naming it."""
    # Windows' editors begin a file with the mark, and json refuses it.
    try:
        return checked(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise EpisodeError(
            f"{path} is no UTF-8 text ({error.reason} at byte {error.start}); copy it again"
        ) from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises EpisodeError naming the file, and the place where it stops being
    one."""
    found = _parsed(read_text(path), str(path))
    if not isinstance(found, dict):
        raise EpisodeError(
            f"{path} holds {type(found).__name__}, expected a JSON object; copy it again"
        )
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with a JSON object on every line. Raises EpisodeError naming file and
    line."""
    found = []
    # splitlines() would cut at U+2028 within a text, too.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        value = _parsed(line, f"{path}, line {number}")
        if not isinstance(value, dict):
            raise EpisodeError(
                f"{path}, line {number} holds {type(value).__name__}, expected a JSON object; "
                "copy it again"
            )
        found.append(value)
    return found


def _parsed(text: str, where: str) -> Any:
    try:
        return read_once(text)
    except TwiceError as error:
        raise EpisodeError(f"{where}: {error}, or copy it again") from error
    except ValueError as error:
        raise EpisodeError(
            f"{where} is no JSON ({error}); was a copy interrupted? Copy it again"
        ) from error


def open_parquet(path: Path) -> pq.ParquetFile:
    """A parquet file, its columns not read yet. Raises EpisodeError naming it."""
    checked(path)
    try:
        found = pq.ParquetFile(path)
        check_parquet(found.metadata, path.stat().st_size, columns=[])
    except (*BROKEN, ValueError) as error:
        raise EpisodeError(
            f"{path} cannot be read as parquet ({_short(error)}); copy it again"
        ) from error
    return found


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Some columns of a parquet file, or all. Raises EpisodeError naming it, and a column that it
    lacks."""
    with open_parquet(path) as file:
        names = file.schema_arrow.names
        missing = [name for name in columns or () if name not in names]
        if missing:
            raise EpisodeError(f"{path} lacks column {missing[0]!r}; it has {', '.join(names)}")
        return _read(file, path, names if columns is None else columns)


def read_present(path: Path, columns: Sequence[str]) -> pa.Table:
    """Those of some columns that a parquet file has. Raises EpisodeError naming it."""
    with open_parquet(path) as file:
        present = [name for name in columns if name in file.schema_arrow.names]
        return _read(file, path, present)


def _read(file: pq.ParquetFile, path: Path, columns: Sequence[str]) -> pa.Table:
    try:
        check_parquet(file.metadata, path.stat().st_size, list(columns))
        table = file.read(columns=list(columns))
    except (*BROKEN, ValueError) as error:
        raise EpisodeError(f"{path} is damaged ({_short(error)}); copy it again") from error
    # Arrow takes a name for a path into nested columns: "image" would bring a column called
    # "image.path", too.
    return table.select(list(columns))


def column_names(path: Path) -> list[str]:
    """The names of a parquet file's columns. Raises EpisodeError naming the file."""
    with open_parquet(path) as file:
        return list(file.schema_arrow.names)


def count_rows(path: Path) -> int:
    """How many rows a parquet file has. Raises EpisodeError naming it."""
    with open_parquet(path) as file:
        return int(file.metadata.num_rows)


def _short(error: BaseException) -> str:
    # Arrow's messages may be pages long: a schema, a trace of C++.
    return str(error).split("\n", 1)[0][:160]
