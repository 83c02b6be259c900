"""What a power cut may leave: from recorded changes of a folder, the states in which its disk may
come up again.

The model is what POSIX promises and no more, after ALICE (Pillai et al. 2014) and CrashMonkey
(Mohan et al. 2018). A file's bytes and length last once that file is synced; a name, made, moved or
removed, lasts once the folder that holds it is. Of what is not synced each change may be there or
not, whatever came after it, and a write page by page; where a file is long enough and its bytes are
not there, they are zeros. A rename within a file system happens whole or not at all. What stood
there when the recording began is taken to be on the disk.
"""

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from watch import Change

PAGE = 4096
NAMES = ("create", "mkdir", "symlink", "rename", "link", "unlink")
BYTES = ("write", "truncate")

# Which of the changes that are not synced are there, of `loose`, their places in the recording; and
# whether a page of a write is: (change's place, page's number) → bool.
Kept = tuple[set[int], Callable[[int, int], bool]]


@dataclass
class Node:
    """A file, folder or link."""

    kind: str  # file, folder, link
    content: bytearray = field(default_factory=bytearray)
    names: dict[str, "Node"] = field(default_factory=dict)
    target: str = ""


MODES = ("nothing", "names", "bytes", "lengths", "all but one", "only one", "drawn")


def loose(changes: list[Change], cut: int) -> list[int]:
    """The places of those of the first `cut` changes that no sync has made last."""
    synced: set[tuple[str, int | str]] = set()
    found = []
    for place in range(cut - 1, -1, -1):
        change = changes[place]
        if change.failed:
            continue
        if change.kind == "fsync":
            synced.add(("inode", change.inode))
            synced.add(("folder", change.path))
        elif change.kind in BYTES:
            if ("inode", change.inode) not in synced:
                found.append(place)
        elif change.kind in NAMES:
            # A rename between two folders is one step of the journal: either's sync brings it.
            holders = {_folder(change.path)}
            if change.kind in ("rename", "link"):
                holders.add(_folder(change.to))
            if not any(("folder", holder) in synced for holder in holders):
                found.append(place)
    return found[::-1]


def keeping(mode: str, changes: list[Change], cut: int, rng: random.Random) -> Kept:
    """What is there of the changes that are not synced, by one of MODES."""
    free = loose(changes, cut)
    names = {place for place in free if changes[place].kind in NAMES}
    if mode == "nothing":
        return set(), _whole
    if mode == "names":
        return names, _whole
    if mode == "bytes":
        return set(free) - names, _whole
    if mode == "lengths":  # files are as long as they should be, and hold zeros
        return set(free), lambda place, page: False
    one = rng.choice(free) if free else -1
    if mode == "all but one":
        return set(free) - {one}, _whole
    if mode == "only one":
        return {one} & set(free), _whole
    some = {place for place in free if rng.random() < 0.5}
    pages: dict[tuple[int, int], bool] = {}

    def drawn(place: int, page: int) -> bool:
        return pages.setdefault((place, page), rng.random() < 0.5)

    return some, drawn


def _whole(place: int, page: int) -> bool:
    return True


def all_of_it(changes: list[Change], cut: int) -> Kept:
    """Everything is there, as after a kill."""
    return set(loose(changes, cut)), _whole


def after(before: Path, changes: list[Change], cut: int, kept: Kept) -> Node:
    """The tree as it comes up when the power fails before change number `cut`: `before` is a copy
    of what stood there when the recording began."""
    root = read(before)
    there, page_there = kept
    free = set(loose(changes, cut))
    # By inode as the recording has it, and by path as the process saw it: two trees, since what the
    # process saw is not what the disk has.
    seen = _Seen(root)
    for place, change in enumerate(changes[:cut]):
        if change.failed:
            continue
        lasts = place not in free or place in there
        if change.kind in BYTES:
            node = seen.file(change)
            whole = place not in free
            if lasts:
                _write(node, change, lambda page, p=place, w=whole: w or page_there(p, page))
        elif change.kind in NAMES:
            seen.name(change, lasts=lasts)
    return root


class _Seen:
    """The names that the running process sees, and the nodes behind them; and, beside them, which
    of these names the disk has."""

    def __init__(self, disk: Node) -> None:
        self.disk = disk
        self.paths: dict[str, Node] = {}
        self._add(".", disk)

    def _add(self, path: str, node: Node) -> None:
        self.paths[path] = node
        for name, inner in node.names.items():
            self._add(name if path == "." else f"{path}/{name}", inner)

    def file(self, change: Change) -> Node:
        """The node that is written to. A file that was moved or removed while open keeps the name
        that the system tells, so one that is not known by name is a node that nothing names."""
        return self.paths.setdefault(change.path, Node("file"))

    def name(self, change: Change, *, lasts: bool) -> None:
        if change.kind in ("create", "mkdir", "symlink"):
            kind = {"create": "file", "mkdir": "folder", "symlink": "link"}[change.kind]
            node = Node(kind, target=change.to if kind == "link" else "")
            self.paths[change.path] = node
            if lasts:
                self._put(change.path, node)
            return
        if change.kind == "unlink":
            self.paths.pop(change.path, None)
            if lasts:
                self._take(change.path)
            return
        node = self.paths.get(change.path, Node("file"))
        holder = self.paths.get(_folder(change.to))
        if lasts and change.kind == "rename":
            self._take(change.path)
        if lasts and holder is not None:
            holder.names[os.path.basename(change.to)] = node
        moved = {change.to: node}
        for path in list(self.paths):
            if path.startswith(change.path + "/"):
                moved[change.to + path[len(change.path) :]] = self.paths[path]
        if change.kind == "rename":
            for path in list(self.paths):
                if path == change.path or path.startswith(change.path + "/"):
                    del self.paths[path]
        self.paths |= moved

    def _put(self, path: str, node: Node) -> None:
        holder = self.paths.get(_folder(path))
        if holder is not None:
            holder.names[os.path.basename(path)] = node

    def _take(self, path: str) -> None:
        holder = self.paths.get(_folder(path))
        if holder is not None:
            holder.names.pop(os.path.basename(path), None)


def _folder(path: str) -> str:
    return os.path.dirname(path) or "."


def _write(node: Node, change: Change, page_there: Callable[[int], bool]) -> None:
    content = node.content
    if change.kind == "truncate":
        del content[change.size :]
        content.extend(bytes(change.size - len(content)))
        return
    end = change.offset + len(change.data)
    if end > len(content):
        content.extend(bytes(end - len(content)))  # the length; its bytes follow page by page
    for page in range(change.offset // PAGE, -(-end // PAGE)):
        first = max(page * PAGE, change.offset)
        last = min((page + 1) * PAGE, end)
        if page_there(page):
            content[first:last] = change.data[first - change.offset : last - change.offset]


def read(path: Path) -> Node:
    """A folder of the disk as a tree."""
    if path.is_symlink():
        return Node("link", target=os.readlink(path))
    if path.is_file():
        return Node("file", bytearray(path.read_bytes()))
    found = Node("folder")
    if path.exists():
        for inner in path.iterdir():
            found.names[inner.name] = read(inner)
    return found


def write(node: Node, path: Path) -> None:
    """A tree in the place of what stands at a path."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
    if node.kind == "link":
        path.symlink_to(node.target)
    elif node.kind == "file":
        path.write_bytes(node.content)
    else:
        path.mkdir(parents=True)
        for name, inner in node.names.items():
            write(inner, path / name)
