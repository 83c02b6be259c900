"""A folder behind a URL (`s3://bucket/prefix`), kept in a local folder that stands for it: data
sets, policies and stores of traces are read there as ever.

Files are fetched whole, each checked against its size and against the SHA-256 that armlet keeps
beside what it wrote there (`data/store.py`) or, of what others put there, the MD5 that the store
says; but for `rows-*.bin`, of which traces are: these are as large as a store is, and blocks of
them are fetched as rows are asked for. A file is fetched once; whatever changes behind the URL is
another folder here.
"""

import errno
import fnmatch
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from armlet.data.digests import HOME
from armlet.data.files import atomic_file, make_folder, read_json, write_atomically
from armlet.data.object_storage import StorageError, StoredObjects
from armlet.data.store import OWN, Entry, check_folders, check_name, holding, is_stored, url_of

IN_BLOCKS = ("rows-*.bin", "*/rows-*.bin")
ORIGIN = ".origin.json"  # in a local folder: where the files come from that are fetched in blocks
BLOCKS = ".blocks"  # beside such a file: which of its blocks are here
WHOLE = ".whole"  # all small files are here
BLOCK = 2**20  # bytes: a request costs about as much as 1 MB does to be carried
MD5 = re.compile(r'"?(?P<digest>[0-9a-f]{32})"?')  # as S3 says it of what was put in one piece
SHA256 = re.compile(r"[0-9a-f]{64}")
FORM = 2  # of what is kept here: what an older armlet fetched is fetched again
AT_ONCE = 8  # requests
HASHED = 2**22  # bytes: a larger file that is here already is held to its size alone
CHANGES = 3  # of what is behind a URL while it is fetched
_stand_ins: dict[Path, str] = {}  # local folders of this process → the URLs that they stand for


def mirrored(place: Path | str, *, cache: Path = HOME) -> Path:
    """The local folder that stands for what is at a URL; folders as they are. Raises
    `object_storage.StorageError`, or FileNotFoundError where nothing is there."""
    if not is_stored(place):
        return Path(place)
    url = url_of(place)
    stores = cache.expanduser() / "stores"
    local = _of_others(url, stores) if holding(url) is None else _of_ours(url, stores)
    stands_for(local, url)
    return local


def stands_for(local: Path, url: str) -> None:
    """From here on `told` says the URL for this folder."""
    _stand_ins[local] = url


def told(text: str) -> str:
    """A text with URLs in the place of local folders that stand for them in this process."""
    for local, url in _stand_ins.items():
        text = text.replace(local.as_posix(), url)
    return text


def _of_ours(url: str, stores: Path) -> Path:
    """What armlet has written, as it was at one moment."""
    for attempt in range(CHANGES):
        found = holding(url)
        assert found is not None  # lists are never removed without another
        store, listing, inside = found
        files = {}
        for name, entry in listing.files.items():
            if name.startswith(inside):
                files[name.removeprefix(inside)] = entry
        if not files:
            raise FileNotFoundError(
                f"nothing is at {url} yet: armlet writes {store.url}, and has not written this; is "
                "it the folder that was meant?"
            )
        listed = [[name, entry.size, entry.sha256] for name, entry in sorted(files.items())]
        local = stores / _digest([url, listed])
        try:
            # Also where all is here: objects get other names when a verb has ended.
            fill(local, files, store.objects, in_blocks=IN_BLOCKS)
        except (StorageError, FileNotFoundError):
            # What was listed may have made room for the next, which is asked for then.
            if attempt + 1 == CHANGES or store.listing().number == listing.number:
                raise
            continue
        if not (local / WHOLE).exists():
            write_atomically(local / WHOLE, url.encode())
        return local
    raise AssertionError("the last attempt returns or raises")


def _of_others(url: str, stores: Path) -> Path:
    """What other tools have put there."""
    objects = StoredObjects(url)
    entries = objects.entries()
    for name in entries:
        inside, own, _ = f"/{name}".rpartition(f"/{OWN}/")
        if own:
            raise FileNotFoundError(
                f"{url} is no folder that was written as one: name {url}{inside}, which is there"
            )
    check_folders(entries, url)
    if not entries:
        raise FileNotFoundError(f"nothing is at {url}; is it the folder that was meant?")
    listed = [[name, size, said] for name, (size, said) in sorted(entries.items())]
    local = stores / _digest([url, listed])
    for name, (size, said) in entries.items():
        path = local / check_name(name, url)
        if matches(name, IN_BLOCKS):
            _prepare(path, size, url, name)
        elif not _is_here(path, size, said):
            write_atomically(path, fetched(objects, name, size, said))
    if not (local / WHOLE).exists():
        write_atomically(local / WHOLE, url.encode())
    return local


def _digest(listed: list[Any]) -> str:
    return hashlib.sha256(json.dumps([FORM, *listed]).encode()).hexdigest()[:16]


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a file's name is like one of these, in which `*` is any letters and `/`."""
    return any(fnmatch.fnmatchcase(name, each) for each in patterns)


def fill(
    local: Path, files: Mapping[str, Entry], objects: StoredObjects, *, in_blocks: Sequence[str]
) -> None:
    """Files of a store into a local folder, but for those that are there; of files whose name is
    like one of `in_blocks`, their room, until somebody asks for rows. Raises StorageError where
    what arrives is not what is listed, FileNotFoundError where it is gone."""
    missing = []
    for name, entry in files.items():
        path = local / name
        here = path.exists()
        if is_in_blocks(path) or (not here and matches(name, in_blocks)):
            _prepare(path, entry.size, objects.url, entry.at)
        elif not _is_here(path, entry.size, entry.sha256):
            missing.append(name)
    in_turn(lambda name: fetch(objects, files[name], local / name), missing)


def _is_here(path: Path, size: int, said: str) -> bool:
    """Whether a file was fetched, and is still what it was. `said`: its SHA-256, or what a store says
    of it, which may be its MD5."""
    if not path.is_file() or path.stat().st_size != size:
        return False
    if size > HASHED:
        return True
    content = path.read_bytes()
    md5 = MD5.fullmatch(said)
    if md5 is not None:
        return hashlib.md5(content, usedforsecurity=False).hexdigest() == md5["digest"]
    if SHA256.fullmatch(said):
        return hashlib.sha256(content).hexdigest() == said
    return True


def in_turn(work: Any, of: Iterable[Any]) -> list[Any]:
    """What `work` returns of each, some at once; raises what the first that failed did."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(work, of))


def fetch(objects: StoredObjects, entry: Entry, path: Path) -> None:
    """A whole file of a store. Raises as `fill` does."""
    with atomic_file(path, size=entry.size) as part:
        try:
            objects.get(entry.at, part)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                errno.ENOENT,
                f"{objects.url}/{entry.at} is listed and is gone; run the verb that made it again: "
                "where it was made it is uploaded again, elsewhere it is made anew",
            ) from error
        size = part.stat().st_size
        if size != entry.size:
            raise StorageError(
                errno.EIO,
                f"{objects.url}/{entry.at}: {size} bytes arrived and {entry.size} are listed",
            )
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != entry.sha256:
            raise StorageError(
                errno.EIO,
                f"{objects.url}/{entry.at}: its checksum differs from the one it was written with: "
                "it was damaged, or replaced by another tool; remove it there, and run the verb "
                "that made it again",
            )


def fetched(objects: StoredObjects, name: str, size: int, said: str) -> bytes:
    """A whole file that another tool put there. Raises StorageError where what arrives is not what
    is listed."""
    content = objects.read(name)
    found = -1 if content is None else len(content)
    if content is None or found != size:
        raise StorageError(
            errno.EIO,
            f"{objects.url}/{name}: {found} bytes arrived and {size} are listed; try again",
        )
    md5 = MD5.fullmatch(said)
    if md5 is not None:
        # As a checksum, and no protection: whoever writes the store also says this.
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if digest != md5["digest"]:
            raise StorageError(
                errno.EIO, f"{objects.url}/{name}: its checksum differs from the store's; try again"
            )
    return content


def _prepare(local: Path, size: int, url: str, name: str) -> None:
    """A file of this size, of which nothing is there yet: it takes no room. `name`: of its object,
    below the URL."""
    make_folder(local.parent)
    path = local.with_name(ORIGIN)
    origin: dict[str, Any] = {"url": url, "block": BLOCK, "objects": {}}
    if path.exists():
        origin = read_json(path, fix="delete the folder, which is fetched again")
    if origin["objects"].get(local.name) != name:
        origin["objects"][local.name] = name
        write_atomically(path, json.dumps(origin).encode())
    count = -(-size // int(origin["block"]))
    # Ahead of the file: a file without them is whole.
    if not is_in_blocks(local) or blocks_of(local).stat().st_size != count:
        write_atomically(blocks_of(local), bytes(count))
    if not local.exists() or local.stat().st_size != size:
        with local.open("ab") as file:
            file.truncate(size)


def blocks_of(path: Path) -> Path:
    """Where it stands which blocks of a file are here."""
    return path.with_name(f"{path.name}{BLOCKS}")


def is_in_blocks(path: Path) -> bool:
    """Whether a local file is fetched as it is read."""
    return blocks_of(path).exists()


class InBlocks:
    """The files of one local folder that are fetched in blocks, as somebody needs them."""

    def __init__(self, folder: Path) -> None:
        said = read_json(folder / ORIGIN, fix="delete the folder, which is fetched again")
        self.folder = folder
        self.block = int(said["block"])
        self._objects = StoredObjects(said["url"])
        self._named: dict[str, str] = said["objects"]
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
        if name not in self._named:
            return  # written here, and whole
        have = self._blocks(name)
        wanted = self._blocks_with(starts, length)
        if have[wanted].all():
            return
        missing = np.unique(wanted[have[wanted] == 0])
        self._fetch(name, missing)
        have[missing] = 1

    def need_again(self, name: str, starts: np.ndarray, length: int) -> None:
        """As `need`, of what is here and is not what was written."""
        if name in self._named:
            self._blocks(name)[self._blocks_with(starts, length)] = 0
            self.need(name, starts, length)

    def _blocks_with(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The blocks that have any of `length` bytes from each of `starts` (n,), some of them twice."""
        first = starts // self.block
        last = (starts + length - 1) // self.block
        if (last == first).all():
            return first
        spans = [np.arange(a, b + 1) for a, b in zip(first, last, strict=True)]
        return np.concatenate(spans)

    def _blocks(self, name: str) -> np.ndarray:
        """(blocks,) uint8: 1 where a block is here; the file itself, so all processes see it."""
        if name not in self._have:
            path = blocks_of(self.folder / name)
            self._have[name] = np.asarray(np.memmap(path, np.uint8, mode="r+"))
        return self._have[name]

    def _fetch(self, name: str, blocks: np.ndarray) -> None:
        path = self.folder / name
        size = path.stat().st_size
        starts = (blocks * self.block).tolist()
        ends = [min(start + self.block, size) for start in starts]
        try:
            found = self._objects.ranges(self._named[name], starts, ends)
        except FileNotFoundError as error:
            raise StorageError(
                errno.ENOENT,
                f"{self._objects.url}/{self._named[name]} is gone: what is there was written anew "
                "since it was opened; start the same command again",
            ) from error
        with path.open("r+b") as file:
            for start, end, content in zip(starts, ends, found, strict=True):
                if len(content) != end - start:
                    raise StorageError(
                        errno.EIO,
                        f"{self._objects.url}/{name}: {len(content)} bytes arrived of the "
                        f"{end - start} from {start} on; try again",
                    )
                file.seek(start)
                file.write(content)
