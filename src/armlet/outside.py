"""Modules that are not armlet's: a recipe, policy or benchmark of somebody's own, by the name that
stands before the colon of `package.module:Name`. They are installed, or lie in the folder in which
armlet is called. Knows no recipe, policy or benchmark.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType


def module(place: str, *, whose: str) -> ModuleType:
    """The module of this name; `whose` it is goes into the error.

    Raises ValueError where there is none, or the name is empty; what is wrong inside of it is its
    own error.
    """
    here = str(Path.cwd())
    # Last, where `python -m` would have it first: no file of the user's stands in for a library.
    if here not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise  # the module is there, and lacks one that it imports
        raise ValueError(
            f"{whose}: there is no module {error.name!r}, neither installed nor in {here}"
        ) from error
    except ValueError as error:  # an empty name
        raise ValueError(f"{whose} names no module; expected package.module:Name") from error
