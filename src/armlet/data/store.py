"""What armlet keeps behind a URL: a list of files that is replaced as a whole, so that whoever reads
sees all files of one moment, and never some of the next.

Below the URL:

    .armlet/000007.json           the seventh list: every file's size, SHA-256 and object; the one
                                  with the largest number counts
    .armlet/versions/DIGEST-…     a file that a verb which is under way has written
    .armlet/once                  by which it is known that the store creates an object once
    episodes.jsonl, …             the same under its own name, once the verb has ended

A list is created on condition that nobody else has created the one of that number, so of two
writers one is told. Knows names and digests; knows nothing of what the files are for.
"""

import errno
import json
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from armlet.data.files import parse_json
from armlet.data.object_storage import StorageError, StoredObjects

OWN = ".armlet"
VERSIONS = f"{OWN}/versions"
LIST = re.compile(r"(?P<number>\d{6,})\.json")
STORED = re.compile(r"(s3|memory):/+(?P<rest>.+)")  # pathlib makes s3:/bucket of s3://bucket
LARGEST = 2**43  # bytes of one file: more than a disk's largest, or a store's, is a damaged number
LOOKS = 5  # at a list that is replaced while it is asked for


@dataclass(frozen=True)
class Entry:
    """A file of a store. `size`: in bytes; `at`: the object that holds it, below the URL."""

    size: int
    sha256: str
    at: str

    def same(self, other: "Entry | None") -> bool:
        """Whether both hold the same, wherever that is."""
        return other is not None and (self.size, self.sha256) == (other.size, other.sha256)


@dataclass(frozen=True)
class Listing:
    """The files of one moment, by name. `number`: of the list, 0 where there is none yet; `writer`:
    who wrote it, and `host` and `process`, for people."""

    number: int = 0
    files: Mapping[str, Entry] = field(default_factory=dict)
    writer: str = ""
    host: str = ""
    process: int = 0

    @property
    def who(self) -> str:
        return f"process {self.process} of {self.host}"


def is_stored(place: Path | str) -> bool:
    """Whether a place is a URL of a store of objects, and no folder."""
    return STORED.fullmatch(Path(place).as_posix()) is not None


def url_of(place: Path | str) -> str:
    """A URL as it is written, of what pathlib made of it."""
    protocol, _, rest = Path(place).as_posix().partition(":")
    return f"{protocol}://{rest.strip('/')}"


def check_name(name: str, url: str) -> str:
    """The name of a file below a URL. Raises StorageError where it would lead out of a folder."""
    path = PurePosixPath(name)
    leads_out = path.is_absolute() or ".." in path.parts
    # "." and "" are the folder itself; half of a surrogate pair is no letter of any file's name.
    if leads_out or not path.name or path.as_posix() != name or not _is_text(name):
        raise StorageError(errno.EINVAL, f"{url}: {name!r} is no name of a file in a folder")
    return name


def _is_text(name: str) -> bool:
    return "\0" not in name and not any("\ud800" <= letter <= "\udfff" for letter in name)


def check_folders(names: Collection[str], place: str) -> None:
    """Raises StorageError where one name is a file, and a folder of another."""
    for name in names:
        for folder in PurePosixPath(name).parents:
            if folder.as_posix() in names:
                raise StorageError(
                    errno.EINVAL,
                    f"{place}: {folder} is a file there, and {name} would lie in it; remove one",
                )


class Store:
    """The files behind a URL."""

    def __init__(self, url: str) -> None:
        self.objects = StoredObjects(url)
        self.url = self.objects.url

    def listing(self) -> Listing:
        """The files that count now."""
        for _ in range(LOOKS):
            numbers = self.numbers()
            if not numbers:
                return Listing()
            name = _list_name(numbers[-1])
            content = self.objects.read(name)
            if content is not None:
                return self._parsed(content, name, numbers[-1])
            # Another list took its place after we looked.
        raise StorageError(
            errno.EAGAIN, f"{self.url}: its lists are replaced faster than they are read; try again"
        )

    def numbers(self) -> list[int]:
        """Of the lists that are there, ascending."""
        found = []
        for name in self.objects.names(OWN):
            match = LIST.fullmatch(name)
            if match is not None:
                found.append(int(match["number"]))
        return sorted(found)

    def create(self, listing: Listing) -> bool:
        """Make this the list that counts; False, and nothing is changed, where another has that
        number or a larger one."""
        said = {name: asdict(entry) for name, entry in sorted(listing.files.items())}
        about = {"writer": listing.writer, "host": listing.host, "process": listing.process}
        name = _list_name(listing.number)
        if not self.objects.create(name, json.dumps({**about, "files": said}, indent=1).encode()):
            return False
        numbers = self.numbers()
        # Of a writer that slept while others wrote and removed the list whose number this one has:
        # a list is removed by whoever has written the next but one. The next alone was written by
        # somebody who read this one.
        if numbers and numbers[-1] > listing.number + 1:
            self.objects.remove(name)
            return False
        for number in numbers[:-2]:  # the last but one stays for whoever has just seen its name
            self.objects.remove(_list_name(number))
        return True

    def check_creates(self) -> None:
        """Raises StorageError where an object is created although it is there: in such a store
        writers could not be told of each other."""
        # The first one who asks creates it; whoever asks again must be told that it is there.
        for _ in range(2):
            if not self.objects.create(f"{OWN}/once", secrets.token_hex(8).encode()):
                return
        raise StorageError(
            errno.ENOTSUP,
            f"{self.url}: this store creates an object that is there already (it does not know "
            "If-None-Match), so two writers could undo each other's work; take another store, or "
            "a folder",
        )

    def _parsed(self, content: bytes, name: str, number: int) -> Listing:
        place = f"{self.url}/{name}"
        said = parse_json(content, Path(place), fix=f"remove {OWN} there, and what is not whole")
        try:
            return listing_of({**said, "number": number}, place)
        except (KeyError, TypeError, AttributeError) as error:
            raise StorageError(
                errno.EIO, f"{place} is no list of files ({type(error).__name__}: {error})"
            ) from error


def listing_of(said: Any, place: str) -> Listing:
    """A list, of what JSON holds. Raises StorageError, KeyError, TypeError or AttributeError where it
    holds something else."""
    files = {}
    for name, entry in said["files"].items():
        files[check_name(name, place)] = entry_of(entry, place)
    check_folders(files, place)
    found = Listing(said["number"], files, said["writer"], said["host"], said["process"])
    for value, kind in (
        (found.number, int),
        (found.writer, str),
        (found.host, str),
        (found.process, int),
    ):
        if type(value) is not kind:
            raise TypeError(f"{value!r:.80} where {kind.__name__} is expected")
    return found


def entry_of(said: Any, place: str) -> Entry:
    """As `listing_of`, of one file."""
    size = said["size"]
    sha256 = said["sha256"]
    at = said["at"]
    is_size = type(size) is int and 0 <= size <= LARGEST
    if not is_size or not isinstance(sha256, str) or not isinstance(at, str):
        raise TypeError(f"{said!r:.120}")
    return Entry(size, sha256, check_name(at, place))


def _list_name(number: int) -> str:
    return f"{OWN}/{number:06d}.json"


def holding(url: str) -> tuple[Store, Listing, str] | None:
    """The store that has what is at a URL: at it, or above; its list, and the rest of the URL in it
    ("" or "folder/"). None where no store of armlet's is there."""
    protocol, _, rest = url.partition("://")
    parts = rest.split("/")
    for count in range(len(parts), 0, -1):
        store = Store(f"{protocol}://{'/'.join(parts[:count])}")
        try:
            listing = store.listing()
        except StorageError as error:
            # Above what was named, others' rules hold: what may not be read there is not ours.
            if count < len(parts) and error.errno in (errno.EACCES, errno.EPERM):
                continue
            raise
        if listing.number:
            inside = "/".join(parts[count:])
            return store, listing, f"{inside}/" if inside else ""
    return None
