"""Whether two folders are the same, apart from what differs between two runs without any fault:
times that were measured, mostly. What that is is found by comparing two such runs, not listed."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Tree = dict[str, bytes]  # path → content; of a folder "path/" → nothing, of a link its target
# Locks; what dies under a name that no one reads; hashes that are kept of files that are old enough;
# what says of a cache how far it is, which nobody reads beside a whole one; how a process stood.
LEFT_OUT = re.compile(
    r"\.lock$|(^|/)status/|\.[0-9a-f]{6}-\d+-\d+\.part(/|$)|\.cache/digests\.json$|\.npy\.done$"
)
ALL = "*"
# file → entries that differ, as paths with "*" for places in lists; ALL: the whole file.
Noise = dict[str, frozenset[str]]


def tree(folder: Path) -> Tree:
    """The files of a folder, empty folders among them."""
    found: Tree = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if LEFT_OUT.search(name):
            continue
        if path.is_symlink():
            found[name] = str(path.readlink()).encode()
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def noise(first: Tree, second: Tree) -> Noise:
    """What differs between two runs that were to be the same. Raises AssertionError where it is the
    names of files."""
    assert first.keys() == second.keys(), first.keys() ^ second.keys()
    found: Noise = {}
    for name, content in first.items():
        if content == second[name]:
            continue
        one = _entries(name, content)
        other = _entries(name, second[name])
        if one is None or other is None:
            found[name] = frozenset({ALL})
            continue
        differing = set()
        for place in one.keys() | other.keys():
            if one.get(place) != other.get(place):
                differing.add(place)
        found[name] = frozenset(differing)
    return found


def difference(
    wanted: Tree, found: Tree, known: Noise, leaving: frozenset[str] = frozenset()
) -> str:
    """The first difference in words; empty where there is none. `leaving`: files that are not
    compared."""
    for name in sorted(wanted.keys() | found.keys()):
        if name in leaving:
            continue
        if name not in found:
            return f"{name} is missing"
        if name not in wanted:
            return f"{name} is there"
        if wanted[name] == found[name] or ALL in known.get(name, ()):
            continue
        if name not in known:
            return f"{name} differs"
        one = _entries(name, wanted[name])
        other = _entries(name, found[name])
        if one is None or other is None:
            return f"{name} cannot be read"
        for place in sorted(one.keys() | other.keys()):
            if place not in known[name] and one.get(place) != other.get(place):
                return f"{name}: {place}"
    return ""


def changed_files(before: Tree, after: Tree) -> list[str]:
    return [name for name, content in sorted(after.items()) if before.get(name) != content]


def _entries(name: str, content: bytes) -> dict[str, list[Any]] | None:
    """The leaves of a JSON file, or of JSON lines, by their places; those of a list's items
    together. None where it is neither."""
    try:
        if name.endswith(".jsonl"):
            value: Any = [json.loads(line) for line in content.splitlines()]
        elif name.endswith(".json"):
            value = json.loads(content)
        else:
            return None
    except ValueError:
        return None
    found: dict[str, list[Any]] = {}
    for place, leaf in _leaves(value):
        found.setdefault(place, []).append(leaf)
    return found


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{place}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, f"{place}.*")
    else:
        yield place, value
