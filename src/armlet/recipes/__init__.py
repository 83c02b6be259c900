"""One file per recipe; the file in the folder is the entry. A function that returns `Recipe` is a
choice on the command line, under its own name. From outside: `armlet distil
mypackage.recipes:mine`.

Names are read from the source, so that listing them imports nothing heavy.
"""

import ast
import difflib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # naming the recipes imports nothing heavy
    from armlet.recipe import Recipe

_HERE = Path(__file__).parent


def available() -> dict[str, str]:
    """Recipe name → first line of its docstring."""
    return {name: summary for name, (_, summary) in _found().items()}


def _found() -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for path in sorted(_HERE.glob("[!_]*.py")):
        for node in ast.parse(path.read_text()).body:
            if (
                isinstance(node, ast.FunctionDef)
                and ast.unparse(node.returns or ast.Constant("")) == "Recipe"
            ):
                if node.name.startswith("_"):
                    continue
                if node.name in found:
                    raise ValueError(
                        f"two recipes are called {node.name}: {found[node.name][0]}.py and {path.name}"
                    )
                found[node.name] = (path.stem, (ast.get_docstring(node) or "").split("\n")[0])
    return found


def make(name: str) -> "Recipe":
    """The recipe called `name`, or made by `package.module:function`. Raises ValueError with the
    nearest name, or saying what is wrong
    with a recipe from outside."""
    from armlet.recipe import Recipe

    made = find(name)()
    if not isinstance(made, Recipe):
        raise ValueError(
            f"{name} gave a {type(made).__name__}, expected a function without arguments that returns an armlet Recipe"
        )
    return made


def find(name: str) -> Callable[[], "Recipe"]:
    """The function called `name`, or `package.module:function`. Raises ValueError with the nearest
    name."""
    if ":" in name:
        return _outside(name)
    found = _found()
    if name not in found:
        near = difflib.get_close_matches(name, found, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(found)}"
        raise ValueError(f"no recipe {name!r}; {hint}")
    return getattr(importlib.import_module(f"{__name__}.{found[name][0]}"), name)


def _outside(name: str) -> Callable[[], "Recipe"]:
    place, _, function = name.partition(":")
    sys.path.insert(
        0, str(Path.cwd())
    )  # a recipe beside the user's data, as `python -m` would find it
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not (place == error.name or place.startswith(f"{error.name}.")):
            raise  # something that the module itself imports
        raise ValueError(
            f"{name}: there is no module {place!r}, neither installed nor in {Path.cwd()}"
        ) from error
    except ValueError as error:  # an empty name
        raise ValueError(f"{name!r} names no module; expected package.module:function") from error
    found = getattr(module, function, None)
    if not callable(found):
        there = sorted(
            each
            for each, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "") == place
        )
        what = (
            f"there is no function {function!r}"
            if found is None
            else f"{function!r} is a {type(found).__name__}, no function"
        )
        raise ValueError(f"{name}: in {place} {what}; it has {', '.join(there) or 'none'}")
    recipe: Callable[[], Recipe] = found
    return recipe
