"""Runs work in a child process and stops it before each of its changes of the disk: the k-th can be
let through, torn, failed as on a full disk, or be the last. What happened can be recorded.

ptrace with a seccomp filter, spoken through ctypes: no compiler, no strace, no FUSE. It sees system
calls, so what C, C++ and Rust libraries write is seen as what Python writes, and what children and
threads write, too. Linux on x86-64 only.

It does not see bytes stored through a writable shared mapping (what the file held when it was next
synced is recorded in their place) nor io_uring, which is refused. A change is known by its number
among those under one folder; where two threads write at once, their order may differ from run to
run.
"""

import contextlib
import ctypes
import errno
import os
import platform
import signal
import struct
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.ptrace.restype = ctypes.c_long
LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

# System calls of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl).
WRITES = {
    1: "write",
    18: "pwrite64",
    20: "writev",
    296: "pwritev",
    328: "pwritev2",
    40: "sendfile",
    326: "copy_file_range",
}
OPENS = {2: 1, 257: 2}  # open, openat: which argument holds the flags
PATHS = {  # name, and the places of (folder, path) pairs among the arguments; None: no folder
    82: ("rename", ((None, 0), (None, 1))),
    264: ("rename", ((0, 1), (2, 3))),
    316: ("rename", ((0, 1), (2, 3))),
    86: ("link", ((None, 0), (None, 1))),
    265: ("link", ((0, 1), (2, 3))),
    88: ("symlink", ((None, 1),)),
    266: ("symlink", ((1, 2),)),
    87: ("unlink", ((None, 0),)),
    263: ("unlink", ((0, 1),)),
    84: ("unlink", ((None, 0),)),  # rmdir
    83: ("mkdir", ((None, 0),)),
    258: ("mkdir", ((0, 1),)),
    76: ("truncate", ((None, 0),)),
    85: ("creat", ((None, 0),)),
}
DESCRIPTORS = {77: "ftruncate", 285: "fallocate", 74: "fsync", 75: "fsync"}  # 75: fdatasync
MMAP = 9
IO_URING = 425
OPENAT2 = 437
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
AT_FDCWD = -100

SEIZE, INTERRUPT, LISTEN = 0x4206, 0x4207, 0x4208
CONT, SYSCALL, GETREGS, SETREGS = 7, 24, 12, 13
GET_SYSCALL_INFO = 0x420E
# Forks, clones and execs are followed, seccomp's stops are told, and the child dies with us.
OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x80 | 0x100000
SECCOMP_STOP, GROUP_STOP = 7, 128
WALL = 0x40000000
NOTHING_ELSE = 0x20000000  # __WNOTHREAD
REGISTERS = struct.Struct("27Q")  # struct user_regs_struct
RAX, RDX, ORIG_RAX = 10, 12, 15
KILLED = -signal.SIGKILL


class UnwatchableError(RuntimeError):
    """This machine does not let a process watch another one, or the work did what cannot be seen."""


@dataclass
class Change:
    """One change of the disk that is about to happen, or has. Paths are relative to the watched
    folder."""

    number: int
    kind: str  # create, write, truncate, fsync, rename, link, symlink, unlink, mkdir, mapped
    path: str
    to: str = ""  # of rename and link: where it goes; of symlink: what it names
    offset: int = 0  # of write
    size: int = 0  # bytes of a write; of truncate: the new length
    data: bytes = b""  # of a write, where changes are recorded
    inode: int = 0  # of the file or folder that is written, made, moved or synced
    descriptor: int = -1  # under which the process knows the file
    failed: bool = False


@dataclass(frozen=True)
class Let:
    """What is done about a change: it happens."""


@dataclass(frozen=True)
class Kill:
    """The process dies before it, or after `first` bytes of a write."""

    first: int = 0


@dataclass(frozen=True)
class Fail:
    """The system refuses it with this error."""

    number: int = errno.ENOSPC


Decision = Let | Kill | Fail
LET = Let()


@dataclass
class Ended:
    """How the work ended: its exit status (negative: the signal), and the changes that it made."""

    status: int
    changes: list[Change] = field(default_factory=list)
    process: int = 0

    @property
    def killed(self) -> bool:
        return self.status == KILLED


def supported() -> str:
    """Why this machine cannot watch; empty where it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"needs Linux on x86-64, this is {sys.platform} on {platform.machine()}"
    try:
        ended = watched(lambda: None, Path("/nowhere"), lambda change: LET)
    except (OSError, UnwatchableError) as error:
        return f"ptrace is not allowed here ({error})"
    return "" if ended.status == 0 else f"a watched process ended with {ended.status}"


def watched(
    work: Callable[[], object],
    root: Path,
    decide: Callable[[Change], Decision],
    *,
    record: bool = False,
) -> Ended:
    """Run `work` in a forked child, asking `decide` before each change under `root`. With `record`,
    writes come with their data and everything that the child did is returned."""
    go, ready = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ready)
        _become(work, go)
    os.close(go)
    try:
        _ptrace(SEIZE, child, OPTIONS)
        os.write(ready, b"g")
        return _Tracer(child, root, decide, record=record).run()
    except BaseException:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, WALL)
        raise
    finally:
        os.close(ready)


def _become(work: Callable[[], object], go: int) -> None:
    """In the child: wait until somebody watches, then work and leave without any clean-up of the
    process it was forked from."""
    status = 1
    try:
        os.read(go, 1)
        _filter()
        work()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 2
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _filter() -> None:
    """Have the kernel stop this process, and those it starts, at changes of the disk and nowhere
    else."""
    program = b"".join(_instructions())
    buffer = ctypes.create_string_buffer(program)
    # struct sock_fprog
    head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    said = ctypes.create_string_buffer(head)
    if LIBC.prctl(38, 1, 0, 0, 0) != 0:  # PR_SET_NO_NEW_PRIVS
        raise OSError(ctypes.get_errno(), "prctl")
    if LIBC.prctl(22, 2, ctypes.byref(said), 0, 0) != 0:  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "seccomp")


def _instructions() -> Iterator[bytes]:
    """A BPF program over struct seccomp_data: number at byte 0, arguments from byte 16, 8 bytes
    each, of which the low words are looked at."""
    load, equal, any_of, give = 0x20, 0x15, 0x45, 0x06
    trace, allow = 0x7FF00000, 0x7FFF0000

    def one(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    yield one(load, 0)
    for number in (*WRITES, *PATHS, *DESCRIPTORS, IO_URING, OPENAT2):
        yield one(equal, number, 0, 1)
        yield one(give, trace)
    for number, place in OPENS.items():
        yield one(equal, number, 0, 4)
        yield one(load, 16 + 8 * place)
        yield one(any_of, WRITING, 0, 1)
        yield one(give, trace)
        yield one(give, allow)
    yield one(equal, MMAP, 0, 6)
    yield one(load, 16 + 8 * 2)
    yield one(any_of, 2, 0, 3)  # PROT_WRITE
    yield one(load, 16 + 8 * 3)
    yield one(any_of, 1, 0, 1)  # MAP_SHARED
    yield one(give, trace)
    yield one(give, allow)
    yield one(give, allow)


def _ptrace(request: int, process: int, data: object = 0, at: int = 0) -> int:
    ctypes.set_errno(0)
    found = LIBC.ptrace(request, process, at, data)
    if found == -1 and ctypes.get_errno():
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace: {os.strerror(number)}")
    return found


class _Tracer:
    """Follows one child and all that it starts."""

    def __init__(
        self, child: int, root: Path, decide: Callable[[Change], Decision], *, record: bool
    ) -> None:
        self.child = child
        self.root = os.path.realpath(root)
        self.decide = decide
        self.record = record
        self.alive = {child}
        self.count = 0
        self.changes: list[Change] = []
        # Per thread: what is looked at when its system call has ended.
        self.leaving: dict[int, tuple[Change, int]] = {}
        self.mapped: dict[int, int] = {}  # inodes with a writable mapping: their sizes so far
        self.made: dict[int, int] = {}  # inodes: how many files had this number
        self._info = ctypes.create_string_buffer(88)

    def run(self) -> Ended:
        status = None
        while status is None or self.alive:
            try:
                process, how = os.waitpid(-1, WALL | NOTHING_ELSE)
            except ChildProcessError:
                break
            if os.WIFEXITED(how) or os.WIFSIGNALED(how):
                self.alive.discard(process)
                if process == self.child:
                    status = os.waitstatus_to_exitcode(how)
                    self._kill()  # what it started does not outlive it
                continue
            self.alive.add(process)
            with contextlib.suppress(ProcessLookupError):
                self._stopped(process, how)
        assert status is not None
        return Ended(status, self.changes, self.child)

    def _kill(self) -> None:
        for process in list(self.alive):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def _stopped(self, process: int, how: int) -> None:
        sent = os.WSTOPSIG(how)
        event = how >> 16
        try:
            if event == SECCOMP_STOP:
                self._entering(process)
            elif sent == signal.SIGTRAP | 0x80:
                self._left(process)
            elif event == GROUP_STOP and sent in (signal.SIGSTOP, signal.SIGTSTP):
                _ptrace(LISTEN, process)
            elif event:
                _ptrace(CONT, process)
            else:
                _ptrace(CONT, process, int(sent))
        except OSError as error:
            if error.errno != errno.ESRCH:  # it was killed meanwhile
                raise

    # --- a system call begins

    def _entering(self, process: int) -> None:
        number, arguments = self._call(process)
        if number in (IO_URING, OPENAT2):
            self._kill()
            raise UnwatchableError(f"system call {number} is not followed here")
        change = self._change(process, number, arguments)
        if change is None:
            _ptrace(CONT, process)
            return
        # What a mapping wrote is known to be there when the file is synced.
        if change.kind == "fsync" and change.inode in self.mapped:
            self._snapshot(process, arguments[0], change)
        change.number = self.count
        self.count += 1
        decision = self.decide(change)
        if isinstance(decision, Kill):
            if decision.first:
                self._write_first(process, arguments, change, decision.first)
            self._kill()
        elif isinstance(decision, Fail):
            change.failed = True
            self._answer(process, -decision.number)
            self._done(change)
            _ptrace(CONT, process)
        elif self.record:
            self.leaving[process] = (change, number)
            _ptrace(SYSCALL, process)  # stops again when it is done
        else:
            _ptrace(CONT, process)

    def _call(self, process: int) -> tuple[int, tuple[int, ...]]:
        _ptrace(GET_SYSCALL_INFO, process, ctypes.addressof(self._info), 88)
        number, *arguments = struct.unpack_from("7Q", self._info, 24)
        return number, tuple(arguments)

    def _answer(self, process: int, value: int) -> None:
        """Have the system call not happen, and return this."""
        registers = ctypes.create_string_buffer(REGISTERS.size)
        _ptrace(GETREGS, process, ctypes.addressof(registers))
        values = list(REGISTERS.unpack(registers.raw))
        values[ORIG_RAX] = 2**64 - 1
        values[RAX] = value % 2**64
        changed = ctypes.create_string_buffer(REGISTERS.pack(*values))
        _ptrace(SETREGS, process, ctypes.addressof(changed))

    def _change(self, process: int, number: int, arguments: tuple[int, ...]) -> Change | None:
        """What is about to change under the watched folder; None where nothing is."""
        if number in WRITES:
            return self._writing(process, number, arguments)
        if number in OPENS:
            return self._opening(process, number, arguments)
        if number in DESCRIPTORS:
            return self._on_descriptor(process, number, arguments)
        if number == MMAP:
            return self._mapping(process, arguments)
        kind, places = PATHS[number]
        found = []
        for folder, place in places:
            at = AT_FDCWD if folder is None else _signed(arguments[folder])
            path = self._inside(self._path(process, at, arguments[place]))
            if path is None:
                return None
            found.append(path)
        change = Change(0, kind, found[0], found[1] if len(found) > 1 else "")
        whole = Path(self.root, change.path)
        if kind == "creat":
            return self._created(whole, change.path)
        if kind == "truncate":
            change.size = arguments[1]
            change.inode = whole.stat().st_ino if whole.exists() else 0
        if kind == "symlink":
            change.to = self._text(process, arguments[0])
        return change

    def _writing(self, process: int, number: int, arguments: tuple[int, ...]) -> Change | None:
        # copy_file_range (input, its offset, output …) and sendfile (output, input …).
        descriptor = arguments[2] if number == 326 else arguments[0]
        path = self._open_file(process, descriptor)
        if path is None:
            return None
        about = os.stat(f"/proc/{process}/fd/{descriptor}")
        if number in (18, 296, 328):
            offset = arguments[3]
        else:
            offset = self._position(process, descriptor, about.st_size)
        if number in (1, 18):
            size = arguments[2]
        elif number in (40, 326):
            size = arguments[3] if number == 40 else arguments[4]
        else:
            size = 0  # of several pieces; known when they are written
        return Change(
            0,
            "write",
            path,
            offset=offset,
            size=size,
            inode=about.st_ino,
            descriptor=_signed(descriptor),
        )

    def _opening(self, process: int, number: int, arguments: tuple[int, ...]) -> Change | None:
        flags = arguments[OPENS[number]]
        at = AT_FDCWD if number == 2 else _signed(arguments[0])
        path = self._inside(self._path(process, at, arguments[OPENS[number] - 1]))
        if path is None:
            return None
        whole = Path(self.root, path)
        if not os.path.lexists(whole):
            return Change(0, "create", path) if flags & os.O_CREAT else None
        if flags & os.O_TRUNC and whole.is_file():
            return Change(0, "truncate", path, size=0, inode=whole.stat().st_ino)
        return None

    @staticmethod
    def _created(whole: Path, path: str) -> Change:
        if whole.exists():
            return Change(0, "truncate", path, inode=whole.stat().st_ino)
        return Change(0, "create", path)

    def _on_descriptor(
        self, process: int, number: int, arguments: tuple[int, ...]
    ) -> Change | None:
        path = self._open_file(process, arguments[0])
        if path is None:
            return None
        inode = os.stat(f"/proc/{process}/fd/{arguments[0]}").st_ino
        kind = DESCRIPTORS[number]
        if kind == "fsync":
            return Change(0, "fsync", path, inode=inode)
        if kind == "fallocate":
            return Change(0, "truncate", path, size=arguments[2] + arguments[3], inode=inode)
        return Change(0, "truncate", path, size=arguments[1], inode=inode)

    def _mapping(self, process: int, arguments: tuple[int, ...]) -> Change | None:
        if _signed(arguments[4]) < 0:
            return None
        path = self._open_file(process, arguments[4])
        if path is None:
            return None
        about = os.stat(f"/proc/{process}/fd/{arguments[4]}")
        self.mapped[about.st_ino] = about.st_size
        return Change(0, "mapped", path, inode=about.st_ino)

    # --- a system call has ended

    def _left(self, process: int) -> None:
        waiting = self.leaving.pop(process, None)
        if waiting is not None:
            change, number = waiting
            _ptrace(GET_SYSCALL_INFO, process, ctypes.addressof(self._info), 88)
            (value,) = struct.unpack_from("q", self._info, 24)
            if value < 0:
                change.failed = True
            elif number in WRITES:
                change.size = value
                change.data = self._written(process, change.descriptor, change)
            elif change.kind in ("create", "mkdir", "symlink"):
                change.inode = os.lstat(Path(self.root, change.path)).st_ino
            elif change.kind in ("rename", "link"):
                change.inode = os.lstat(Path(self.root, change.to)).st_ino
            self._done(change)
        _ptrace(CONT, process)

    def _done(self, change: Change) -> None:
        if not self.record:
            return
        if change.kind in ("create", "mkdir", "symlink"):
            self.made[change.inode] = self.made.get(change.inode, 0) + 1
        # A file system gives the number of a removed file to the next one.
        change.inode += self.made.get(change.inode, 0) << 48
        self.changes.append(change)

    def _written(self, process: int, descriptor: int, change: Change) -> bytes:
        # Read back from the file, whatever call wrote it and wherever its bytes were in memory.
        file = os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDONLY)
        try:
            return os.pread(file, change.size, change.offset)
        finally:
            os.close(file)

    def _snapshot(self, process: int, descriptor: int, change: Change) -> None:
        """A write of the whole file, in the place of what a mapping stored."""
        size = os.stat(f"/proc/{process}/fd/{descriptor}").st_size
        made = Change(self.count, "write", change.path, size=size, inode=change.inode)
        made.data = self._written(process, descriptor, made)
        self._done(made)

    def _write_first(
        self, process: int, arguments: tuple[int, ...], change: Change, first: int
    ) -> None:
        """The first bytes of a write that a kill interrupted."""
        if change.kind != "write":
            return
        with open(f"/proc/{process}/mem", "rb", buffering=0) as memory:
            memory.seek(arguments[1])
            try:
                content = memory.read(min(first, change.size))
            except OSError:  # a page that is not there any more: then nothing had been written yet
                return
        file = os.open(f"/proc/{process}/fd/{arguments[0]}", os.O_WRONLY)
        try:
            os.pwrite(file, content, change.offset)
        finally:
            os.close(file)

    # --- names

    def _inside(self, path: str) -> str | None:
        """A path relative to the watched folder; None outside of it."""
        if path == self.root:
            return "."
        return path[len(self.root) + 1 :] if path.startswith(self.root + os.sep) else None

    def _open_file(self, process: int, descriptor: int) -> str | None:
        try:
            path = os.readlink(f"/proc/{process}/fd/{_signed(descriptor)}")
        except OSError:
            return None
        return self._inside(path.removesuffix(" (deleted)"))

    @staticmethod
    def _position(process: int, descriptor: int, size: int) -> int:
        lines = Path(f"/proc/{process}/fdinfo/{descriptor}").read_text().split("\n")
        position = int(lines[0].split()[1])
        flags = int(lines[1].split()[1], 8)
        return size if flags & os.O_APPEND else position

    def _path(self, process: int, at: int, address: int) -> str:
        text = self._text(process, address)
        if not os.path.isabs(text):
            where = "cwd" if at == AT_FDCWD else f"fd/{at}"
            text = os.path.join(os.readlink(f"/proc/{process}/{where}"), text)
        folder, name = os.path.split(os.path.normpath(text))
        # The folder through its links; the last name itself, which rename and unlink do not follow.
        return os.path.join(os.path.realpath(folder), name)

    @staticmethod
    def _text(process: int, address: int) -> str:
        found = b""
        with open(f"/proc/{process}/mem", "rb", buffering=0) as memory:
            while b"\0" not in found:
                memory.seek(address + len(found))
                # Never past a page's end: the next one may not be there.
                found += memory.read(4096 - (address + len(found)) % 4096)
        return os.fsdecode(found.split(b"\0")[0])


def _signed(value: int) -> int:
    """A C int that arrived as an unsigned word."""
    value &= 0xFFFFFFFF
    return value - 2**32 if value >= 2**31 else value
