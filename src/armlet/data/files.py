"""A file or a folder appears whole or not at all, and of two processes one at a time writes. Knows
bytes and JSON; knows no other format.

What is written stands beside its place first, under a name that no other process uses and that ends
in `.part`; then it is made durable, renamed, and the rename made durable too. A process that dies
leaves at most such a `.part`, which nothing reads, and which the next process that writes into the
folder removes, on the same computer and in the same container: nobody else knows that it died.
"""

import contextlib
import errno
import hashlib
import itertools
import os
import re
import secrets
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout

from armlet.robot.tables import TwiceError, read_once

PART = re.compile(r"\.(?P<host>[0-9a-f]{6})-(?P<process>\d+)-\d+\.part$")
TOKEN = 10  # random digits in such a name
LFS = b"version https://git-lfs"
PROBE = 2**20  # bytes: what a disk that is not full has room for
FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "files may not grow that large here",
}
_numbers = itertools.count()
_under_way: set[Path] = set()  # what this process is writing
# (process, folder): leftovers are looked for once, as folders may hold very many files.
_swept: set[tuple[int, Path]] = set()


class BusyError(OSError):
    """Another process is writing where this one would."""


class FullDiskError(OSError):
    """There is no room for a file; what stood there before still does."""


def hold(lock: Path, doing: str, *, wait: bool = False) -> AcquireReturnProxy:
    """Until the `with` it is used in ends, or this process does, no other process holds `lock`, a
    file that is made for it.

    Where one does, raises BusyError that says what it is `doing` there; with `wait`, waits for it.
    """
    # Durable, too: whoever writes under it later finds it there, and syncs what it made itself.
    make_folder(lock.parent)
    # A lock of the system's: it ends with the process, so no leftover file locks anybody out.
    held = FileLock(lock)
    try:
        return held.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise BusyError(
                f"{lock.parent}: another process is {doing} here; wait for it, or stop it"
            ) from None
    sys.stderr.write(f"{lock.parent}: another process is {doing} here; waiting for it\n")
    return held.acquire()


def is_held(lock: Path) -> bool:
    """Whether a process holds `lock`. Asked by holding it for a moment, so only for words: who
    begins to write in that moment finds it held."""
    if not lock.exists():
        return False
    try:
        FileLock(lock).acquire(timeout=0).lock.release()
    except Timeout:
        return True
    except OSError:  # of a folder that this process may not write to
        return False
    return False


@contextlib.contextmanager
def hold_and_remove(lock: Path, doing: str) -> Iterator[None]:
    """As `hold`, for something short: waits for the other, and leaves no file."""
    with hold(lock, doing, wait=True):
        try:
            yield
        finally:
            with contextlib.suppress(PermissionError):  # Windows removes no open file
                # Still held: whoever opened it meanwhile sees that it is gone, and makes another.
                lock.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """The whole file or, where anything fails, what stood there before. Raises FullDiskError,
    naming the file, where there is no room for it."""
    with atomic_file(path, size=len(content)) as part:
        part.write_bytes(content)


def create_file(path: Path, content: bytes) -> bool:
    """The whole file, where there is none of that name; False, and nothing is changed, where there
    is one. Of several processes that create one, on any machines that share the disk, one is told
    True. Raises OSError where the disk cannot do this."""
    make_folder(path.parent)
    _sweep(path.parent)
    part = _beside(path)
    _under_way.add(part)
    try:
        with naming_a_full_disk(path, part, size=len(content)):
            part.write_bytes(content)
            make_durable(part)
            # A link and no rename, which would replace what is there; and no exclusive open, after
            # which the name would stand on a file that is not whole.
            created = _link(part, path)
            make_durable(path.parent)
    finally:
        part.unlink(missing_ok=True)
        _under_way.discard(part)
    return created


def _link(part: Path, path: Path) -> bool:
    try:
        os.link(part, path)
    except FileExistsError:
        # NFS sends a request again whose answer was lost: then the link that is there is ours.
        return part.stat().st_nlink > 1
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise OSError(
                error.errno,
                "this file system has no hard links, by which processes agree on who makes what; "
                "take a folder on another, or an s3:// URL",
                str(path),
            ) from error
        raise
    return True


@contextlib.contextmanager
def atomic_file(path: Path, *, size: int | None = None, apart: bool = False) -> Iterator[Path]:
    """The name to write a file under, whatever writes it; when the block ends, the file is at
    `path`, whole.

    Where the block raises, what stood at `path` still stands, and nothing else is left. A full disk
    becomes one FullDiskError, however the library that met it put it; `size`, in bytes, is what it
    says was needed. The name does not end as `path` does, so a library that guesses a format from
    it must be told. `apart`: the name lies in a folder of its own, for a library that makes files
    of its own beside it, as safetensors does: where the process dies, nobody would know them.
    """
    make_folder(path.parent)
    _sweep(path.parent)
    ours = _beside(path)
    part = ours / path.name if apart else ours
    _under_way.add(ours)
    try:
        with naming_a_full_disk(path, ours, size=size):
            if apart:
                ours.mkdir()
            yield part
            # Content before name: otherwise a power cut may leave the name on an empty file.
            make_durable(part)
            part.replace(path)
            make_durable(path.parent)
    finally:
        if ours.is_dir():
            shutil.rmtree(ours)
        else:
            ours.unlink(missing_ok=True)
        _under_way.discard(ours)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill; when the block ends, it is at `path` with all that it holds. Where
    the block raises, nothing is.

    Raises FileExistsError where there is something at `path` already.
    """
    refuse_existing(path)
    make_folder(path.parent)
    _sweep(path.parent)
    part = _beside(path)
    _under_way.add(part)
    try:
        with naming_a_full_disk(path, part):
            part.mkdir()
            yield part
            # From the innermost folder out, each after what it holds.
            for folder, _, names in os.walk(part, topdown=False):
                for name in names:
                    make_durable(Path(folder, name))
                make_durable(Path(folder))
            # Again, as filling it may take long; and rename would replace an empty folder.
            refuse_existing(path)
            part.rename(path)
            make_durable(path.parent)
    finally:
        if part.exists():
            shutil.rmtree(part)
        _under_way.discard(part)


def refuse_existing(path: Path) -> None:
    # lexists: a link to nothing is something, too.
    if os.path.lexists(path):
        raise FileExistsError(
            errno.EEXIST, "exists already; choose another folder, or delete this one", str(path)
        )


def make_folder(folder: Path) -> None:
    """The folder and those it lies in, where they are missing, so that they outlast a power cut."""
    # A new name is durable once the folder that holds it is.
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        make_durable(each.parent)


def make_durable(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    if path.is_symlink():
        return  # a name in its folder, and durable with that
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folder, and writes its names by itself
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # some network disks cannot do this for a folder; for a file all can
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP, errno.EBADF)):
            raise
    finally:
        os.close(handle)


def pid_namespace() -> str:
    """The number of the namespace in which this process has its number, as each container has one of
    its own, even where several share a hostname; "" where the system does not say."""
    try:
        return os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        return ""


def _host() -> str:
    # On a network disk several computers write into one folder, and a number says nothing of the
    # processes of another, nor of those of another container on the same.
    said = f"{socket.gethostname()} {pid_namespace()}"
    return hashlib.sha256(said.encode()).hexdigest()[:6]


def _beside(path: Path) -> Path:
    """A name for this process, this call and nobody else."""
    # At random as well: where two that cannot be told apart shared a name, one would take the
    # other's link for its own (`_link`).
    token = f"{next(_numbers)}{secrets.randbelow(10**TOKEN):0{TOKEN}d}"
    return path.with_name(f"{path.name}.{_host()}-{os.getpid()}-{token}.part")


def _sweep(folder: Path) -> None:
    """Remove what processes of this computer left half written when they died; other names are not
    ours."""
    if (os.getpid(), folder) in _swept:
        return
    _swept.add((os.getpid(), folder))
    for path in folder.iterdir():
        found = PART.search(path.name)
        if found is None or found["host"] != _host():
            continue
        if path in _under_way or lives(int(found["process"])):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)  # another process may be sweeping too
        else:
            path.unlink(missing_ok=True)


def lives(process: int) -> bool:
    """Whether a process of this computer is there; of this one, whether an earlier one of its
    number is."""
    if process == os.getpid():
        # What this process is writing is known; the rest is of one that had its number before.
        return False
    if os.name == "nt":
        return True  # asking would end it
    # Signal 0 is none: the system only says whether it could be sent.
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # somebody else's; a number too large to ask about
        return True
    return True


@contextlib.contextmanager
def naming_a_full_disk(
    path: Path, part: Path | None = None, *, size: int | None = None
) -> Iterator[None]:
    """Whatever a library raises in the block because there is no room becomes one FullDiskError
    about `path`; other errors pass, those of the system with the file's name. `part` is what was
    written so far, where that is another file."""
    if part is None:
        part = path
    try:
        yield
    except FullDiskError:
        raise
    except Exception as error:  # every library has its own; all are raised again
        number = _why_full(error, path.parent)
        if number is not None:
            if size is not None:
                needed = f"; {size / 1e6:.1f} MB are needed"
            else:
                needed = f" after {_size(part) / 1e6:.1f} MB"
            free = shutil.disk_usage(path.parent).free / 1e6
            raise FullDiskError(
                number,
                f"{path} could not be written{needed}: {FULL[number]} ({free:.1f} MB free). What "
                "was there before is as it was; free some room, or choose another --out",
            ) from error
        # An error of the system without the file's name, as write and fsync raise: (number, text).
        if (
            isinstance(error, OSError)
            and type(error).__module__ == "builtins"  # those of stores name their object
            and error.errno is not None
            and error.filename is None
            and len(error.args) == 2
        ):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _size(part: Path) -> int:
    """Bytes of a file or a folder."""
    paths = [each for each in part.rglob("*") if each.is_file()] if part.is_dir() else [part]
    return sum(each.stat().st_size for each in paths if each.exists())


def _why_full(error: BaseException, folder: Path) -> int | None:
    """The number of the system's error where there was no room; None for every other error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in FULL:
            return cause.errno
        for number in FULL:
            if os.strerror(number) in str(cause):  # how the writers in Rust say it
                return number
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, ValueError | TypeError | LookupError | ArithmeticError):
        return None  # a mistake, whatever the disk is like
    if isinstance(error, OSError) and error.errno is not None:
        return None  # the system said why
    # Others hide the cause: torch speaks of positions in a zip file, numpy of numbers requested and
    # written. So the disk itself is asked.
    return _probe(folder)


def _probe(folder: Path) -> int | None:
    """Why a little more cannot be written into a folder; None where it can."""
    part = _beside(folder / "room")
    try:
        part.write_bytes(b"\1" * PROBE)
        make_durable(part)
    except OSError as error:
        return error.errno if error.errno in FULL else None
    finally:
        part.unlink(missing_ok=True)
    return None


def check_is_here(path: Path, *, fix: str) -> None:
    """Raises FileNotFoundError where there is no file, ValueError where it is a folder or the
    pointer that Git LFS leaves in the place of a file; `fix` says what to do."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a file; {fix}")
    if not path.exists():
        what = "is a link to nothing" if path.is_symlink() else "is missing"
        raise FileNotFoundError(f"{path} {what}; {fix}")
    with path.open("rb") as file:
        start = file.read(len(LFS))
    if start == LFS:
        raise ValueError(
            f"{path} is a pointer of Git LFS ({path.stat().st_size} bytes), not the file itself; "
            "run `git lfs pull` in its repository"
        )


def read_whole(path: Path, *, fix: str) -> bytes:
    """The bytes of a file. Raises as `check_is_here` does."""
    check_is_here(path, fix=fix)
    return path.read_bytes()


def parse_json(content: bytes, path: Path, *, fix: str) -> dict[str, Any]:
    """The JSON object in `content`, which was read from `path`. Raises ValueError naming the file
    and the place."""
    try:
        found = read_once(content.decode())
    except TwiceError as error:
        raise ValueError(f"{path}: {error}; {fix}") from error
    except ValueError as error:
        raise ValueError(
            f"{path} ({len(content)} bytes) is not JSON ({error}): cut short, or not written by "
            f"armlet; {fix}"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a JSON {type(found).__name__}, expected an object; {fix}")
    return found


def read_json(path: Path, *, fix: str) -> dict[str, Any]:
    """The JSON object in a file. Raises FileNotFoundError or ValueError naming the file."""
    return parse_json(read_whole(path, fix=fix), path, fix=fix)
