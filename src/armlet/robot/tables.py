"""What stands in a TOML file that a user writes, or corrects. Knows no robot."""

import tomllib
from pathlib import Path
from typing import Any


def read_table(path: Path, *, called: str, made_by: str, repair: str) -> dict[str, Any]:
    """What a file says. `called`: the name that such a file usually has; `made_by` and `repair` end
    the sentences of a file that is not there, and of one that is no TOML.

    Raises FileNotFoundError, or ValueError naming the file.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: there is no such file; {made_by}") from error
    except IsADirectoryError as error:
        raise ValueError(f"{path} is a folder; name the {called} in it") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}; {repair}") from error
