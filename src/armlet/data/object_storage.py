"""Objects behind a URL, through fsspec: `s3://bucket/prefix`, and `memory://` for tests.

Only stores that create an object on condition that it is not there, whoever else tries at that
moment: S3 has it as `If-None-Match`. What a store answers instead becomes one error that names the
object and what to do; where waiting helps, it is asked again a few times.
"""

import contextlib
import errno
import importlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

Answer = TypeVar("Answer")
CREATING = ("s3", "memory")  # protocols in which an object is created on condition
TRIES = 5  # of one request, in all
FIRST_PAUSE = 0.5  # seconds before the second; each one after it waits twice as long
EXTRAS = {"s3": "s3fs"}
BUSY = ("ConditionalRequestConflict", "OperationAborted")  # another request about the same object
FULL = ("QuotaExceeded", "XMinioStorageFull")  # codes of Ceph and MinIO; others say 507
# Errors of clients that met no answer, by the names of their classes in botocore and aiohttp.
UNANSWERED = (
    "Connection", "Timeout", "ClientOSError", "ServerDisconnected", "IncompleteRead",
    "ClientPayload", "ResponseStreaming",
)  # fmt: skip


class StorageError(OSError):
    """A store that does not do what it was asked for, with what to do about it."""


class StoredObjects:
    """Objects below a URL; see `objects.Objects`."""

    def __init__(self, url: str, *, sleep: Callable[[float], object] = time.sleep) -> None:
        protocol, _, rest = url.partition(":")
        if protocol not in CREATING:
            raise ValueError(
                f"{url}: processes agree by objects that are created once, and armlet knows this "
                f"of {', '.join(f'{each}://' for each in CREATING)} and folders alone"
            )
        self.url = f"{protocol}://{rest.strip('/')}"
        self._root = rest.strip("/")
        self._sleep = sleep
        self._files = open_store(protocol, self.url)

    def read(self, name: str) -> bytes | None:
        try:
            found: bytes = self._ask(name, lambda path: self._files.cat_file(path))
        except FileNotFoundError:
            return None
        return found

    def create(self, name: str, content: bytes) -> bool:
        """True as well where just this content is there: a request whose answer was lost is sent
        again, and then meets its own object."""
        try:
            self._ask(name, lambda path: self._files.pipe_file(path, content, mode="create"))
        except FileExistsError:
            return self.read(name) == content
        return True

    def write(self, name: str, content: bytes) -> None:
        self._ask(name, lambda path: self._files.pipe_file(path, content))

    def names(self, folder: str) -> list[str]:
        def listed(path: str) -> list[str]:
            # What others wrote meanwhile is not in fsspec's own list.
            self._files.invalidate_cache(path)
            return [entry.rpartition("/")[2] for entry in self._files.ls(path, detail=False)]

        try:
            return sorted(name for name in self._ask(folder, listed) if name)
        except FileNotFoundError:
            return []

    def entries(self) -> dict[str, tuple[int, str]]:
        """Every object below the URL: its size in bytes, and what the store says of its content
        ("": nothing)."""

        def listed(path: str) -> dict[str, tuple[int, str]]:
            root = path.rstrip("/")
            self._files.invalidate_cache(root)
            found = {}
            for place, about in self._files.find(root, detail=True).items():
                name = place.lstrip("/").removeprefix(f"{root.lstrip('/')}/")
                said = about.get("ETag") or about.get("created") or ""
                found[name] = (int(about["size"]), str(said))
            return found

        return self._ask("", listed)

    def ranges(self, name: str, starts: list[int], ends: list[int]) -> list[bytes]:
        """Bytes of one object, each from a start to an end, asked for at the same time."""

        def asked(path: str) -> list[bytes]:
            found: list[bytes] = self._files.cat_ranges(
                [path] * len(starts), starts, ends, on_error="raise"
            )
            return found

        return self._ask(name, asked)

    def put(self, name: str, path: Path) -> None:
        """Write an object that holds what a file does; it appears whole, however large."""
        self._ask(name, lambda place: self._files.put_file(path.as_posix(), place))

    def get(self, name: str, path: Path) -> None:
        """Write what an object holds into a file. Raises FileNotFoundError where there is none."""
        self._ask(name, lambda place: self._files.get_file(place, path.as_posix()))

    def copy(self, name: str, to: str) -> None:
        """Make one object what another is, in the store itself. Raises FileNotFoundError where that
        is not there."""
        there = f"{self._root}/{to}"
        self._ask(name, lambda place: self._files.cp_file(place, there))

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._ask(name, lambda path: self._files.rm_file(path))

    def _ask(self, name: str, request: Callable[[str], Answer]) -> Answer:
        path = f"{self._root}/{name}"
        pauses = _pauses()
        while True:
            try:
                return request(path)
            except FileExistsError:
                raise
            except FileNotFoundError as error:
                # An object that is not there is an answer; a bucket that is not is a mistake.
                if _answered(error)[1] == "NoSuchBucket":
                    raise named(error, f"{self.url}/{name}") from error
                raise
            except Exception as error:  # each client has its own; all are raised again, named
                pause = next(pauses, None)
                if pause is None or not is_passing(error):
                    raise named(error, f"{self.url}/{name}") from error
                self._sleep(pause)


def _pauses() -> Iterator[float]:
    for number in range(TRIES - 1):
        yield FIRST_PAUSE * 2**number


def open_store(protocol: str, whose: str) -> Any:
    """fsspec's file system of this protocol. Raises ModuleNotFoundError, with what mends it."""
    package = EXTRAS.get(protocol)
    try:
        fsspec = importlib.import_module("fsspec")
        if package is not None:
            importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{whose} needs the package {error.name!r}: pip install -e '.[{protocol}]'"
        ) from error
    # Lists of objects are asked for anew each time: other machines write, too.
    if protocol != "s3":
        return fsspec.filesystem(protocol, use_listings_cache=False)
    # Asking again is done here, once for all stores, and would multiply.
    once = {"retries": {"max_attempts": 1}}
    files = fsspec.filesystem(protocol, use_listings_cache=False, config_kwargs=once)
    files.retries = 1
    return files


def is_passing(error: BaseException) -> bool:
    """Whether the same request may do better in a while."""
    status, code = _answered(error)
    if status:
        if code in BUSY or status == 429:
            return True
        return status >= 500 and not _is_full(status, code)
    for each in _chain(error):
        if isinstance(each, TimeoutError | ConnectionError):
            return True
        if any(words in type(each).__name__ for words in UNANSWERED):
            return True
    return False


def _is_full(status: int, code: str) -> bool:
    return status == 507 or code in FULL


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and what it was raised from: fsspec makes its own of what a client raised."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _answered(error: BaseException) -> tuple[int, str]:
    """The status of HTTP and the store's own code for what it answered; 0 and "" where it gave no
    answer."""
    for each in _chain(error):
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return int(status), str(response.get("Error", {}).get("Code", ""))
    return 0, ""


def named(error: BaseException, what: str) -> StorageError:
    """What a store's client raised, as one error about the object, with the likely fix."""
    status, code = _answered(error)
    names = {type(each).__name__ for each in _chain(error)}
    number = getattr(error, "errno", None) or errno.EIO
    if code == "NoSuchBucket":
        fix = "there is no such bucket; make it, or mend the URL"
    elif names & {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}:
        fix = (
            "there are no credentials; give some as for any S3 client (~/.aws/credentials, a role)"
        )
    elif code in ("ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
        fix = "the store does not take these credentials; renew them"
    elif code == "RequestTimeTooSkewed":
        fix = "this machine's clock is wrong by more than the store allows; set it (NTP)"
    elif _is_full(status, code):
        fix = "the store is full, or your share of it is used up; free some room there"
    elif status == 403 or isinstance(error, PermissionError):
        fix = "the credentials may not do this here; allow them to read, write and list"
    elif is_passing(error):
        fix = f"asked {TRIES} times; the store does not answer as it should, try again later"
    else:
        fix = "see what the store says"
    said = f"{type(error).__name__}: {error}"
    return StorageError(number, f"{what}: {fix} ({said})")
