"""Modules that are not armlet's: a recipe, policy or benchmark of somebody's own, by the name that
stands before the colon of `package.module:Name`. They are installed, or lie in the folder in which
armlet is called. Knows no recipe, policy or benchmark.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def module(place: str, *, whose: str, named_by_file: bool = False) -> ModuleType:
    """The module of this name; `whose` it is goes into the error. `named_by_file`: nobody typed the
    name, a file says it.

    Raises ValueError where there is none, or the name is empty; what is wrong inside of it is its
    own error. Of a name that a file says, also where the module lies beside the weights of a
    policy: it came with them, and nobody has looked at it.
    """
    here = str(Path.cwd())
    # Last, where `python -m` would have it first: no file of the user's stands in for a library.
    if here not in sys.path:
        sys.path.append(here)
    if named_by_file:
        _refuse_beside_weights(place, whose)
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


def _refuse_beside_weights(place: str, whose: str) -> None:
    """Raises ValueError where a module of the folder in which armlet is called, or one that it is a
    part of, lies in the folder of a policy. Nothing is imported to find out."""
    first, *inner = place.split(".")
    try:
        spec = importlib.util.find_spec(first) if first else None
    except ValueError:  # of a module that some program has put together
        spec = None
    if spec is None:
        return  # whoever imports it says so
    if spec.submodule_search_locations is not None:
        folders = [Path(each) for each in spec.submodule_search_locations]
    else:
        folders = [Path(spec.origin or ".").parent]
    here = Path.cwd().resolve()
    for folder in folders:
        if not folder.resolve().is_relative_to(here):
            continue  # installed
        for each in (
            here,
            folder,
            *(folder.joinpath(*inner[:end]) for end in range(1, len(inner))),
        ):
            if (each / "config.json").is_file() and any(each.glob("*.safetensors")):
                raise ValueError(
                    f"{whose}: {place} lies in {each}, beside the weights of a policy; code that "
                    "comes with weights is not run. If you have read it and trust it, put it into "
                    "a package of its own, or call armlet in another folder that holds it"
                )
