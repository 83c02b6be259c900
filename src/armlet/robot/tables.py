"""What stands in a TOML file that a user writes, or corrects; and JSON, read so that nothing of it is
passed over. Knows no robot."""

import json
import tomllib
from pathlib import Path
from typing import Any

ENDLESS = "brackets within brackets without end"


def read_table(path: Path, *, called: str, made_by: str, repair: str) -> dict[str, Any]:
    """What a file says. `called`: the name that such a file usually has; `made_by` and `repair` end
    the sentences of a file that is not there, and of one that is no TOML.

    Raises FileNotFoundError, or ValueError naming the file.
    """
    try:
        return read_toml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: there is no such file; {made_by}") from error
    except IsADirectoryError as error:
        raise ValueError(f"{path} is a folder; name the {called} in it") from error
    except ValueError as error:
        raise ValueError(f"{path} is not TOML: {error}; {repair}") from error


def read_toml(text: str) -> dict[str, Any]:
    """What a text of TOML says. Raises ValueError."""
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(ENDLESS) from error


class TwiceError(ValueError):
    """An object of JSON says one name twice."""


def read_once(text: str | bytes) -> Any:
    """What a text of JSON says. Raises TwiceError where an object says a name twice, of which Python
    would keep the last and say nothing; json.JSONDecodeError or another ValueError for what is no
    JSON."""
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except RecursionError as error:
        raise ValueError(ENDLESS) from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set()
        for name, _ in pairs:
            if name in seen:
                raise TwiceError(f"{name!r:.80} stands there twice; keep the one that is meant")
            seen.add(name)
    return found
