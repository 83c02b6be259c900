"""Verbs whose places are URLs of stores (`s3://bucket/prefix`): what they read is fetched, what they
write is uploaded. Knows which fields and arguments of a verb are written to; the verbs themselves
know folders only.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from armlet.data.mirror import mirrored
from armlet.data.store import OWN, is_stored, url_of
from armlet.data.upload import Upload
from armlet.progress import watching
from armlet.recipe import Recipe

# The fields of a recipe that a verb writes to.
WRITES: dict[str, tuple[str, ...]] = {
    "collect": ("episodes", "out"),
    "teach": ("teacher", "out"),
    "probe": ("shared", "out"),
    "distil": ("out",),
    "calibrate": ("out",),
    "evaluate": ("out",),
}
# Of the verbs about folders and files: their arguments that are read, and those that are a folder
# that is written.
READS_PLACES: dict[str, tuple[str, ...]] = {
    "audit": ("policies", "episodes"),
    "compare": ("one", "other"),
    "export": ("place", "episodes"),
    "plan": ("policy", "check"),
    "profile": ("policy",),
    "publish": ("folder", "report"),
    "recompute": ("reports",),
    "report": ("reports",),
    "serve": ("policy",),
    "shorten": ("place",),
}
WRITES_PLACES: dict[str, str] = {
    "audit": "out",
    "export": "out",
    "plan": "out",
    "profile": "out",
    "shorten": "out",
}
BESIDE = ("export", "report")  # that write beside what they read, where nothing is said
TRACES = ("traces/rows-*.bin",)  # of a run's folder: all but `probe` only read them


def is_written_to(recipe: Recipe, verb: str) -> bool:
    """Whether a verb writes to a URL."""
    places = (getattr(recipe, name) for name in WRITES.get(verb, ()))
    return any(place is not None and is_stored(place) for place in places)


@contextlib.contextmanager
def written(recipe: Recipe, verb: str) -> Iterator[Recipe]:
    """The recipe with a local folder in the place of each URL that the verb writes to; when the
    block ends, all that is in them has been uploaded. Raises as `Upload` does."""
    fields = {}
    for name in WRITES.get(verb, ()):
        place = getattr(recipe, name)
        if place is not None and is_stored(place):
            fields[name] = url_of(place)
    if not fields:
        yield recipe
        return
    recipe = _meeting(recipe, fields)
    with ExitStack() as stack:
        folders: dict[str, Path] = {}
        # A teacher in `out` is a part of that, and no store of its own.
        for url in sorted(set(fields.values()), key=len):
            if any(f"{url}/".startswith(f"{outer}/") for outer in folders):
                continue
            upload = Upload(
                url,
                title=f"{verb} {recipe.name}",
                alike=recipe.shards.on is not None,
                in_blocks=() if verb == "probe" else TRACES,
            )
            folders[url] = stack.enter_context(upload).folder
            stack.enter_context(watching(upload))
        found: dict[str, Any] = {name: _inside(url, folders) for name, url in fields.items()}
        yield replace(recipe, **found)


def _inside(url: str, folders: dict[str, Path]) -> Path:
    for outer, folder in folders.items():
        if f"{url}/".startswith(f"{outer}/"):
            return folder / PurePosixPath(url.removeprefix(outer).strip("/"))
    raise AssertionError("each is in one of them")


def _meeting(recipe: Recipe, fields: dict[str, str]) -> Recipe:
    """Processes that share the work meet at the URL, as each has a folder of its own."""
    if recipe.shards.on is None or recipe.shards.at is not None:
        return recipe
    url = fields.get("episodes") or fields.get("shared") or fields["out"]
    return replace(recipe, shards=replace(recipe.shards, at=f"{url}/{OWN}/shards"))


def of_places(main: Callable[..., Any], verb: str) -> Callable[..., Any]:
    """A verb about folders, which takes URLs in their place. Calling it raises ValueError for a URL
    that it does not take."""
    signature = inspect.signature(main)

    @functools.wraps(main)
    def over_stores(*given: Any, **named: Any) -> Any:
        bound = signature.bind(*given, **named)
        arguments = bound.arguments
        # Before anything is fetched.
        reads_url = False
        for name, value in arguments.items():
            for each in value if isinstance(value, tuple) else (value,):
                if isinstance(each, str | Path) and is_stored(each):
                    _refuse(verb, name, each)
                    reads_url |= name in READS_PLACES.get(verb, ())
        if reads_url and verb in BESIDE and arguments.get("out") is None:
            raise ValueError(
                f"{verb} writes beside what it reads, which is a store: say where, with --out"
            )
        for name in READS_PLACES.get(verb, ()):
            if name in arguments:
                arguments[name] = _read(arguments[name])
        out = arguments.get("out")
        if out is None or not is_stored(out):
            return main(*bound.args, **bound.kwargs)
        with Upload(url_of(out), title=f"armlet {verb}") as upload, watching(upload):
            arguments["out"] = upload.folder
            return main(*bound.args, **bound.kwargs)

    return over_stores


def _refuse(verb: str, name: str, place: str | Path) -> None:
    if name in READS_PLACES.get(verb, ()) or name == WRITES_PLACES.get(verb):
        return
    option = name if name in ("place", "folder") else f"--{name}"
    raise ValueError(
        f"armlet {verb} takes no URL of a store as {option} ({url_of(place)}): give a folder here, "
        "and copy it from there or there with any tool (aws s3 cp --recursive)"
    )


def _read(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_read(each) for each in value)
    if not isinstance(value, str | Path) or not is_stored(value):
        return value
    place = Path(value)
    if place.suffix in (".json", ".toml"):  # a file, with what lies beside it
        return type(value)(mirrored(place.parent) / place.name)
    return type(value)(mirrored(place))
