"""The documentation as a site: `make docs` builds it into build/site with Sphinx, MyST and Furo.

Pages are the Markdown files of this folder, which GitHub shows as well. The one thing made here is
the directive of the page python.md:

    ```{reference} armlet.robot.spec
    :only: ActionSpec
    ```

It writes what is public in a module, from its source: signatures as they stand there, docstrings as
Markdown. Nothing is imported, so the site needs neither torch nor armlet. Knows no module by name.
"""

import inspect
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import griffe
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parent.parent

project = "armlet"
author = "The armlet authors"
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser", "sphinx_copybutton"]
exclude_patterns = ["requirements.lock"]
# `#on-tabletop` links to the heading "On tabletop", as on GitHub.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

html_theme = "furo"
html_title = f"armlet {release}"
html_copy_source = False
html_show_sphinx = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88


class Reference(SphinxDirective):
    """What is public in one module: its docstring, then classes and functions in their order."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Callable[[str], list[str]]]] = {"only": str.split}

    def run(self) -> list:
        name = self.arguments[0]
        try:
            module = LOADER.load(name)
        except ModuleNotFoundError as error:
            raise self.error(f"no module {name!r} in src/") from error
        only = self.options.get("only")
        members = [
            member
            for member in module.members.values()
            if not member.is_alias and member.is_public and (only is None or member.name in only)
        ]
        missing = set(only or ()) - {member.name for member in members}
        if missing:
            raise self.error(f"{name} has no {', '.join(sorted(missing))}")
        text = [f":::{{py:module}} {name}\n:::", prose(module)]
        for member in members:
            if member.is_class or member.is_function:
                text.append(described(member, name, fence=6))
        return self.parse_text_to_nodes("\n\n".join(text))


LOADER = griffe.GriffeLoader(search_paths=[ROOT / "src"])


def prose(thing: griffe.Object) -> str:
    """A docstring, its first line aligned with the others."""
    return inspect.cleandoc(thing.docstring.value) if thing.docstring else ""


def described(thing: griffe.Object, module: str, *, fence: int) -> str:
    """A class or function as a MyST directive of Sphinx's Python domain; what a class holds is
    nested in it, with fewer colons."""
    colons = ":" * fence
    parts = [prose(thing)]
    if thing.is_class:
        for member in thing.members.values():
            if member.is_alias or not member.is_public:
                continue
            if member.name.startswith("__") and member.name != "__call__":
                continue  # dataclasses say in their signature what `__init__` takes
            if member.is_function or (member.is_attribute and member.docstring):
                parts.append(described(member, module, fence=fence - 1))
    head = f"{colons}{{py:{kind(thing)}}} {signature(thing)}\n:module: {module}"
    return f"{head}\n\n" + "\n\n".join(parts) + f"\n{colons}"


def kind(thing: griffe.Object) -> str:
    """The directive of Sphinx's Python domain."""
    if thing.is_class:
        return "class"
    inside = thing.parent is not None and thing.parent.is_class
    if thing.is_attribute:
        return "attribute"
    if "property" in thing.labels:
        return "property"
    return "method" if inside else "function"


def signature(thing: griffe.Object) -> str:
    """Name, parameters and what is returned, as the source has them."""
    if thing.is_attribute or "property" in thing.labels:
        return thing.name
    parameters: list[str] = []
    starred = False
    for parameter in thing.parameters:
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is griffe.ParameterKind.keyword_only and not starred:
            parameters.append("*")
            starred = True
        starred = starred or parameter.kind is griffe.ParameterKind.var_positional
        parameters.append(written(parameter))
    returned = f" -> {thing.returns}" if thing.is_function and thing.returns else ""
    return f"{thing.name}({', '.join(parameters)}){returned}"


def written(parameter: griffe.Parameter) -> str:
    """A parameter on one line. griffe gives `*args` a default, which Python has not."""
    stars = {
        griffe.ParameterKind.var_positional: "*",
        griffe.ParameterKind.var_keyword: "**",
    }.get(parameter.kind, "")
    text = stars + parameter.name
    if parameter.annotation is not None:
        text += f": {parameter.annotation}"
    if parameter.default is not None and not stars:
        text += f" = {parameter.default}"
    return " ".join(text.split())


def titled(app: Sphinx, page: str, content: list[str]) -> None:
    """Give a table beside a report, which `armlet evaluate` writes without one, a title."""
    if page.startswith("reproductions/") and not content[0].lstrip().startswith("#"):
        _, folder, name = page.split("/")
        content[0] = f"# {folder}: {name}\n\n{content[0]}"


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", titled)
    app.add_directive("reference", Reference)
    return {"parallel_read_safe": True}
