"""A folder behind a URL (`s3://bucket/prefix`), kept in a local folder that stands for it: data
sets, policies and stores of traces are read there as ever.

Files are fetched whole, each checked against its size and, where the store says an MD5, against
that; but for `rows-*.bin`, of which traces are: these are as large as a store is, and blocks of
them are fetched as rows are asked for. A file is fetched once; whatever changes behind the URL is
another folder here.
"""

import fnmatch
import hashlib
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from armlet.data.digests import HOME
from armlet.data.files import make_folder, read_json, write_atomically
from armlet.data.object_storage import StorageError, StoredObjects

IN_BLOCKS = "rows-*.bin"
ORIGIN = ".origin.json"  # in a local folder: where the files come from that are fetched in blocks
WHOLE = ".whole"  # all small files are here
BLOCK = 2**20  # bytes: a request costs about as much as 1 MB does to be carried
# pathlib makes s3:/bucket of s3://bucket.
STORED = re.compile(r"(s3|memory):/+(?P<rest>.+)")
MD5 = re.compile(r'"?(?P<digest>[0-9a-f]{32})"?')  # as S3 says it of what was put in one piece


def is_stored(place: Path | str) -> bool:
    """Whether a place is a URL of a store of objects, and no folder."""
    return STORED.fullmatch(Path(place).as_posix()) is not None


def mirrored(place: Path | str, *, cache: Path = HOME) -> Path:
    """The local folder that stands for what is at a URL; folders as they are. Raises
    `object_storage.StorageError`, or FileNotFoundError where nothing is there."""
    if not is_stored(place):
        return Path(place)
    protocol, _, rest = Path(place).as_posix().partition(":")
    url = f"{protocol}://{rest.strip('/')}"
    objects = StoredObjects(url)
    entries = objects.entries()
    if not entries:
        raise FileNotFoundError(f"nothing is at {url}; is it the folder that was meant?")
    listed = [[name, size, said] for name, (size, said) in sorted(entries.items())]
    name = hashlib.sha256(json.dumps([url, listed]).encode()).hexdigest()[:16]
    local = cache.expanduser() / "stores" / name
    if (local / WHOLE).exists():
        return local
    for name, (size, said) in entries.items():
        if _in_blocks(name):
            _prepare(local / name, size, f"{url}/{PurePosixPath(name).parent}".removesuffix("/."))
        elif not (local / name).exists():
            write_atomically(local / name, fetched(objects, name, size, said))
    write_atomically(local / WHOLE, url.encode())
    return local


def _in_blocks(name: str) -> bool:
    return fnmatch.fnmatch(PurePosixPath(name).name, IN_BLOCKS)


def fetched(objects: StoredObjects, name: str, size: int, said: str) -> bytes:
    """A whole file. Raises StorageError where what arrives is not what is listed."""
    content = objects.read(name)
    found = -1 if content is None else len(content)
    if content is None or found != size:
        raise StorageError(
            5, f"{objects.url}/{name}: {found} bytes arrived and {size} are listed; try again"
        )
    md5 = MD5.fullmatch(said)
    if md5 is not None:
        # As a checksum, and no protection: whoever writes the store also says this.
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if digest != md5["digest"]:
            raise StorageError(
                5, f"{objects.url}/{name}: its checksum differs from the store's; try again"
            )
    return content


def _prepare(local: Path, size: int, url: str) -> None:
    """A file of this size, of which nothing is there yet: it takes no room."""
    make_folder(local.parent)
    write_atomically(local.with_name(ORIGIN), json.dumps({"url": url, "block": BLOCK}).encode())
    blocks = local.with_name(f"{local.name}.blocks")
    if not blocks.exists():
        with local.open("ab") as file:
            file.truncate(size)
        write_atomically(blocks, bytes(-(-size // BLOCK)))


class InBlocks:
    """The files of one local folder that are fetched in blocks, as somebody needs them."""

    def __init__(self, folder: Path) -> None:
        said = read_json(folder / ORIGIN, fix="delete the folder, which is fetched again")
        self.folder = folder
        self.block = int(said["block"])
        self._objects = StoredObjects(said["url"])
        self._have: dict[str, np.ndarray] = {}

    @classmethod
    def of(cls, folder: Path) -> "InBlocks | None":
        """None: the files of this folder are whole."""
        return cls(folder) if (folder / ORIGIN).is_file() else None

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}  # a map, and a client, cannot be sent

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]  # as if it were made there

    def need(self, name: str, starts: np.ndarray, length: int) -> None:
        """`length` bytes (at least one) from each of `starts` (n,) in the local file: what is
        missing of them is fetched, in one batch."""
        have = self._blocks(name)
        first = starts // self.block
        last = (starts + length - 1) // self.block
        wanted = first
        if (last != first).any():
            spans = [np.arange(a, b + 1) for a, b in zip(first, last, strict=True)]
            wanted = np.concatenate(spans)
        if have[wanted].all():
            return
        missing = np.unique(wanted[have[wanted] == 0])
        self._fetch(name, missing)
        have[missing] = 1

    def _blocks(self, name: str) -> np.ndarray:
        """(blocks,) uint8: 1 where a block is here; the file itself, so all processes see it."""
        if name not in self._have:
            path = self.folder / f"{name}.blocks"
            self._have[name] = np.asarray(np.memmap(path, np.uint8, mode="r+"))
        return self._have[name]

    def _fetch(self, name: str, blocks: np.ndarray) -> None:
        path = self.folder / name
        size = path.stat().st_size
        starts = (blocks * self.block).tolist()
        ends = [min(start + self.block, size) for start in starts]
        found = self._objects.ranges(name, starts, ends)
        with path.open("r+b") as file:
            for start, end, content in zip(starts, ends, found, strict=True):
                if len(content) != end - start:
                    raise StorageError(
                        5,
                        f"{self._objects.url}/{name}: {len(content)} bytes arrived of the "
                        f"{end - start} from {start} on; try again",
                    )
                file.seek(start)
                file.write(content)
