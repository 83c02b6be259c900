"""One file per system; what the file in the folder has is a choice on the command line: each row of
its table `RECIPES`, and each function without arguments that returns a `Recipe`. From outside:
`armlet distil mypackage.recipes:mine`, a function or a row there.

Names are read from the source, so that listing them imports nothing heavy: a row stands there as
`"name": Row("what it is", base, …)`.

What tables of many tasks are made of is a product, and no row a recipe: in a file's table
`AT_BUDGETS` a line `"first_k": Across("what it is", change)` is `first_k_mt50_25`,
`first_k_mt50_50`, `first_k_libero_object_25` …, a name for every world of `WORLDS` and budget of
`BUDGETS`; in `IN_WORLDS`, which has no budgets, `"bc_whole"` is `bc_whole_mt50` and so on.
"""

import ast
import difflib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from armlet import outside

if TYPE_CHECKING:  # naming the recipes imports nothing heavy
    from armlet.recipe import Recipe

_HERE = Path(__file__).parent
TABLE = "RECIPES"  # of a file: name → Row (recipes/bases.py)
AT_BUDGETS = "AT_BUDGETS"  # the same of products: name → Across (recipes/bases.py)
IN_WORLDS = "IN_WORLDS"
META_WORLD = ("mt50", "ml45", "mt10")
LIBERO = ("libero_object", "libero_spatial")
WORLDS = (*META_WORLD, *LIBERO)  # bases on which whole tables are made
_TOGETHER = {"META_WORLD": META_WORLD, "LIBERO": LIBERO, "WORLDS": WORLDS}
BUDGETS = (25, 50)  # percent of the teacher's layers that a student runs
OWN = "own"  # the base of recipes for whatever robot there is


@dataclass(frozen=True)
class Choice:
    """What the source says of a recipe: its `module`, one line that says what it is, and the name
    of what it starts from."""

    module: str
    summary: str
    base: str


@dataclass(frozen=True)
class Product:
    """What the source says of a recipe in several worlds: its `module` and `table`, one line that
    says what it is, and in which worlds it is."""

    module: str
    table: str
    summary: str
    worlds: tuple[str, ...]

    @property
    def budgets(self) -> tuple[int, ...]:
        """Percent of the teacher's layers; none of a recipe that has no budget."""
        return BUDGETS if self.table == AT_BUDGETS else ()

    def names(self, stem: str) -> dict[str, tuple[str, int | None]]:
        """The name of every recipe → its world and its budget. `stem`: what they all begin with."""
        found: dict[str, tuple[str, int | None]] = {}
        for world in self.worlds:
            if not self.budgets:
                found[f"{stem}_{world}"] = (world, None)
            for budget in self.budgets:
                found[f"{stem}_{world}_{budget}"] = (world, budget)
        return found


def available() -> dict[str, str]:
    """Recipe name → one line that says what it is; those for one's own robot come first. Without
    `products`."""
    found = _found()
    ordered = sorted(found, key=lambda name: found[name].base != OWN)
    return {name: found[name].summary for name in ordered}


def for_own_robots() -> list[str]:
    """The names of recipes that are for whatever robot the episodes are of."""
    return [name for name, choice in _found().items() if choice.base == OWN]


@cache  # the source does not change while it runs, and is parsed for every name that is looked up
def products() -> dict[str, Product]:
    """What the names of recipes in several worlds begin with → what the source says of them."""
    found: dict[str, Product] = {}
    for path in sorted(_HERE.glob("[!_]*.py")):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.Assign):
                continue
            table = ast.unparse(node.targets[0])
            if table not in (AT_BUDGETS, IN_WORLDS):
                continue
            for name, row in _entries(node.value):
                if name in found:
                    raise ValueError(
                        f"two recipes are called {name}: {found[name].module}.py and {path.name}"
                    )
                found[name] = _product(row, path, table)
    return found


def _product(row: ast.Call, path: Path, table: str) -> Product:
    try:
        summary, _, *worlds = row.args
        there = _TOGETHER[ast.unparse(worlds[0])] if worlds else WORLDS
        return Product(path.stem, table, ast.literal_eval(summary), there)
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path.name}, line {row.lineno}: a row of {table} is read without running it; expected "
            f'`"name": Across("what it is", change)`, behind them perhaps {" or ".join(_TOGETHER)}'
        ) from error


def product_names() -> dict[str, str]:
    """The name of every recipe that is one of a product → what it is."""
    found = {}
    for stem, product in products().items():
        for name, (world, budget) in product.names(stem).items():
            at = "" if budget is None else f" at {budget} %"
            found[name] = f"On {world}{at}: {product.summary}"
    return found


def _entries(table: ast.expr) -> Iterator[tuple[str, ast.Call]]:
    """The lines of a table, as they stand in the source."""
    rows = zip(table.keys, table.values, strict=True) if isinstance(table, ast.Dict) else ()
    for key, row in rows:
        assert key is not None and isinstance(row, ast.Call)
        yield ast.literal_eval(key), row


@cache  # as above
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
        for stem, product in products().items():
            places = product.names(stem)
            if name in places:
                return _of_product(stem, product, name, *places[name])
        near = difflib.get_close_matches(name, [*found, *product_names()], 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(found)}"
        raise ValueError(f"no recipe {name!r}; {hint}")
    module = importlib.import_module(f"{__name__}.{found[name].module}")
    # A row of its table, or a function of that name.
    row = getattr(module, TABLE, {}).get(name)
    return getattr(module, name) if row is None else partial(row.make, name)


def _of_product(
    stem: str, product: Product, name: str, world: str, budget: int | None
) -> Callable[[], "Recipe"]:
    """What makes the recipe called `name`, one of a product."""
    module = importlib.import_module(f"{__name__}.{product.module}")
    row = getattr(module, product.table)[stem]
    return partial(row.make, name, world, None if budget is None else budget / 100)


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
