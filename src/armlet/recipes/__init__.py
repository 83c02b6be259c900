"""One file per recipe; the file in the folder is the entry. A function that returns `Recipe` is a choice on the
command line, under its own name. From outside: `armlet distil mypackage.recipes:mine`.

Names are read from the source, so that listing them imports nothing heavy.
"""

import ast
import difflib
import importlib
import sys
from pathlib import Path

_HERE = Path(__file__).parent


def available() -> dict[str, str]:
    """Recipe name → first line of its docstring."""
    return {name: summary for name, (_, summary) in _found().items()}


def _found() -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for path in sorted(_HERE.glob("[!_]*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and ast.unparse(node.returns or ast.Constant("")) == "Recipe":
                if node.name.startswith("_"):
                    continue
                if node.name in found:
                    raise ValueError(f"two recipes are called {node.name}: {found[node.name][0]}.py and {path.name}")
                found[node.name] = (path.stem, (ast.get_docstring(node) or "").split("\n")[0])
    return found


def find(name: str):
    """The function called `name`, or `package.module:function`. Raises ValueError with the nearest name."""
    if ":" in name:
        module, _, function = name.partition(":")
        sys.path.insert(0, str(Path.cwd()))  # a recipe beside the user's data, as `python -m` would find it
        return getattr(importlib.import_module(module), function)
    found = _found()
    if name not in found:
        near = difflib.get_close_matches(name, found, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(found)}"
        raise ValueError(f"no recipe {name!r}; {hint}")
    return getattr(importlib.import_module(f"{__name__}.{found[name][0]}"), name)
