"""Small whole objects by name, in a folder or behind a URL, and the one thing that processes on
several machines agree by: an object is created by one of them, and all others are told that it is
there.

Knows nothing of what the objects are for. Who opens `s3://` needs the extra `s3`.
"""

import re
from pathlib import Path
from typing import Protocol

from armlet.data.files import PART, create_file, write_atomically

URL = re.compile(r"[a-z][a-z0-9+.-]+:/+")


class Objects(Protocol):
    """Names have no more than one `/` in them; what is read was written whole."""

    def read(self, name: str) -> bytes | None:
        """What stands there; None where nothing does."""

    def create(self, name: str, content: bytes) -> bool:
        """Write an object that is not there. False, and nothing is changed, where it is."""

    def write(self, name: str, content: bytes) -> None:
        """Write an object, in the place of what is there."""

    def names(self, folder: str) -> list[str]:
        """The names of the objects in a folder, without it, sorted."""

    def remove(self, name: str) -> None:
        """Remove an object, where it is there."""


def open_objects(place: str) -> Objects:
    """The objects in a folder, or below a URL. Raises ValueError for a URL by which processes could
    not agree."""
    if URL.match(place):
        # Here and not above: fsspec takes a while to import, and most runs have none.
        from armlet.data.object_storage import StoredObjects

        return StoredObjects(place)
    return FolderObjects(Path(place))


class FolderObjects:
    """Objects as files of a folder, which several machines may share (NFS)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None

    def create(self, name: str, content: bytes) -> bool:
        return create_file(self.root / name, content)

    def write(self, name: str, content: bytes) -> None:
        write_atomically(self.root / name, content)

    def names(self, folder: str) -> list[str]:
        place = self.root / folder
        if not place.is_dir():
            return []
        # Without what a process that was killed left half written.
        return sorted(path.name for path in place.iterdir() if not PART.search(path.name))

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)
