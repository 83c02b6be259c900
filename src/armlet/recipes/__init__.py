"""One file per system; what the file in the folder has is a choice on the command line: each row of
its table `RECIPES`, and each function without arguments that returns a `Recipe`. From outside:
`armlet distil mypackage.recipes:mine`, a function or a row there.

Names are read from the source, so that listing them imports nothing heavy: a row stands there as
`"name": Row("what it is", base, …)`.
"""

import ast
import difflib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from armlet import outside

if TYPE_CHECKING:  # naming the recipes imports nothing heavy
    from armlet.recipe import Recipe

_HERE = Path(__file__).parent
TABLE = "RECIPES"  # of a file: name → Row (recipes/bases.py)
OWN = "own"  # the base of recipes for whatever robot there is


@dataclass(frozen=True)
class Choice:
    """What the source says of a recipe: its `module`, one line that says what it is, and the name
    of what it starts from."""

    module: str
    summary: str
    base: str


def available() -> dict[str, str]:
    """Recipe name → one line that says what it is; those for one's own robot come first."""
    found = _found()
    ordered = sorted(found, key=lambda name: found[name].base != OWN)
    return {name: found[name].summary for name in ordered}


def for_own_robots() -> list[str]:
    """The names of recipes that are for whatever robot the episodes are of."""
    return [name for name, choice in _found().items() if choice.base == OWN]


def _found() -> dict[str, Choice]:
    found: dict[str, Choice] = {}
    for path in sorted(_HERE.glob("[!_]*.py")):  # in one order on every machine
        for name, choice in _choices(path):
            if name in found:
                raise ValueError(
                    f"two recipes are called {name}: {found[name].module}.py and {path.name}"
                )
            found[name] = choice
    return found


def _choices(path: Path) -> Iterator[tuple[str, Choice]]:
    """Name and description of every recipe that a file's source has."""
    # Parsed and not imported: `armlet --help` should not wait for torch and a simulator.
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            returns = ast.unparse(node.returns or ast.Constant(""))
            if returns == "Recipe" and not ast.unparse(node.args):
                paragraph = (ast.get_docstring(node) or "").split("\n\n")[0]
                yield node.name, Choice(path.stem, " ".join(paragraph.split()), node.name)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == TABLE:
            yield from _rows(node.value, path)


def _rows(table: ast.expr, path: Path) -> Iterator[tuple[str, Choice]]:
    rows = zip(table.keys, table.values, strict=True) if isinstance(table, ast.Dict) else ()
    for key, row in rows:
        try:
            assert key is not None and isinstance(row, ast.Call)
            summary, base, *_ = row.args
            choice = Choice(path.stem, ast.literal_eval(summary), ast.unparse(base))
            yield ast.literal_eval(key), choice
        except (AssertionError, ValueError) as error:
            raise ValueError(
                f"{path.name}, line {row.lineno}: a row of {TABLE} is read without running it; "
                'expected `"name": Row("what it is", base, …)`'
            ) from error


def make(name: str) -> "Recipe":
    """The recipe called `name`, or made by `package.module:function`. Raises ValueError with the
    nearest name, or saying what is wrong with a recipe from outside."""
    from armlet.recipe import Recipe

    made = find(name)()
    if not isinstance(made, Recipe):
        raise ValueError(
            f"{name} gave a {type(made).__name__}, expected a function without arguments that "
            "returns an armlet Recipe"
        )
    return made


def find(name: str) -> Callable[[], "Recipe"]:
    """What makes the recipe called `name`, or `package.module:function`. Raises ValueError with
    the nearest name."""
    if ":" in name:
        return _outside(name)
    found = _found()
    if name not in found:
        near = difflib.get_close_matches(name, found, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(found)}"
        raise ValueError(f"no recipe {name!r}; {hint}")
    module = importlib.import_module(f"{__name__}.{found[name].module}")
    # A row of its table, or a function of that name.
    row = getattr(module, TABLE, {}).get(name)
    return getattr(module, name) if row is None else partial(row.make, name)


def _outside(name: str) -> Callable[[], "Recipe"]:
    place, _, function = name.partition(":")
    module = outside.module(place, whose=repr(name))
    # As in ours: a row of its table goes before a function of that name.
    row = getattr(module, TABLE, {}).get(function)
    found = getattr(module, function, None) if row is None else partial(row.make, function)
    if not callable(found):
        there = list(getattr(module, TABLE, {}))
        for each, value in vars(module).items():
            # What it imported is no recipe of its own.
            if callable(value) and getattr(value, "__module__", "") == place:
                there.append(each)
        if found is None:
            what = f"there is no function {function!r}"
        else:
            what = f"{function!r} is a {type(found).__name__}, no function"
        near = difflib.get_close_matches(function, there, 1)
        hint = f"did you mean {place}:{near[0]}? " if near else ""
        raise ValueError(
            f"{name}: in {place} {what}; {hint}it has {', '.join(sorted(there)) or 'none'}"
        )
    recipe: Callable[[], Recipe] = found
    return recipe
