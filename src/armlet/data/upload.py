"""A URL that is written to: a local folder stands for it, in which a verb works as in any other, and
what it keeps there is uploaded while it works and when it has ended.

The folder is looked at between two steps of the work, when nothing is half written, and every file
that changed gets a second name (a hard link) at that moment; these are uploaded meanwhile, and then
listed at once (`data/store.py`). So what the store holds is what a kill at that moment would have
left on a disk, from which every verb goes on; and a verb that is killed on one machine goes on from
it on another. Where a store does not answer, the work goes on, and what it lacks is uploaded later.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path

from filelock import AcquireReturnProxy

from armlet.data.digests import CACHE, HOME
from armlet.data.files import PART, BusyError, hold, make_folder, read_json, write_atomically
from armlet.data.mirror import (
    BLOCKS,
    CHANGES,
    ORIGIN,
    fetch,
    fetched,
    fill,
    in_turn,
    matches,
    stands_for,
)
from armlet.data.object_storage import StorageError, StoredObjects
from armlet.data.store import OWN, VERSIONS, Entry, Listing, Store, check_name, holding
from armlet.progress import Progress

STATE = "state.json"
LOCK = "writing.lock"
EVERY = 10.0  # seconds between two uploads, at least
SHARE = 0.2  # of the time, at most, is spent uploading while a verb works
LARGE = 2**26  # bytes; a file that grows is uploaded again only when it is half as large again
YOUNG = 2.0  # seconds: a file may change again within its clock's granularity
APART = ("status",)  # folders whose files are each of one process

NONE = Listing()
Stamp = tuple[int, int, int]  # size, time of modification (ns), inode


class ConflictError(StorageError):
    """Another writer has changed what this one changed."""


@dataclass(frozen=True)
class Kept:
    """A file as it was uploaded, or fetched; `stamp`: by which a change is seen, None where it is
    hashed again."""

    entry: Entry
    stamp: Stamp | None


@dataclass(frozen=True)
class State:
    """What is known beside the folder. `token`: this folder's, in the names of objects and lists;
    `listing`: the last that was seen; `local`: the folder's files as they are in it."""

    token: str
    listing: Listing = NONE
    local: Mapping[str, Kept] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """The folder at one moment: files that are as they were uploaded, and links to all others."""

    same: dict[str, Kept]
    links: dict[str, tuple[Path, Stamp]]


class Upload:
    """From `with` on, `folder` stands for a URL. It is a `progress.Watcher`: at each step of the
    work it may begin an upload, in a thread.

    `alike`: several processes make the same of it (`--shards.on`); each uploads at its end, and the
    first counts. `in_blocks`: files like these patterns are only read, and fetched block by block.
    Entering raises StorageError, ValueError or BusyError where the URL cannot be written to.
    """

    def __init__(
        self,
        url: str,
        *,
        title: str,
        alike: bool = False,
        in_blocks: Sequence[str] = (),
        cache: Path = HOME,
    ) -> None:
        self.store = Store(url)
        self.url = self.store.url
        self.title = title
        self.alike = alike
        self.in_blocks = in_blocks
        self._stores = cache.expanduser() / "stores"
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None
        self._next = time.monotonic() + EVERY
        self._uploaded: set[str] = set()  # objects of this folder's that are in the store
        self._alone = True  # nobody else has written since this one began

    def __enter__(self) -> "Upload":
        self._refuse_inside()
        self._room, self._held = self._free_room()
        try:
            # A name that says something, as it stands in what verbs print.
            self.folder = self._room / (self.url.rpartition("/")[2] or "bucket")
            stands_for(self.folder, self.url)
            self._prepare()
        except BaseException:
            self._held.lock.release()
            raise
        sys.stderr.write(f"{self.title}: {self.url} is written to from {self.folder}\n")
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._finish()
            elif self.folder.exists():
                sys.stderr.write(
                    f"{self.title}: what was not uploaded to {self.url} yet is in {self.folder}, "
                    "and the same command goes on from it\n"
                )
        finally:
            # Who presses Ctrl-C does not wait for an upload.
            if self._thread is not None and kind is not KeyboardInterrupt:
                self._thread.join()
            self._held.lock.release()

    # What `Progress` tells.

    def begun(self, progress: Progress) -> None:
        self._look()

    def advanced(self, progress: Progress, values: Mapping[str, float]) -> None:
        self._look()

    def ended(self, progress: Progress) -> None:
        self._look()

    def _look(self) -> None:
        """Between two steps: begin an upload, where it is time for one."""
        if self._thread is not None and self._thread.is_alive():
            return
        failed, self._failed = self._failed, None
        if isinstance(failed, ConflictError):
            raise failed
        if self.alike or time.monotonic() < self._next:
            return
        seen = self._seen(lag=True)
        self._thread = threading.Thread(target=self._in_thread, args=(seen,), daemon=True)
        self._thread.start()

    def _in_thread(self, seen: Seen) -> None:
        began = time.monotonic()
        try:
            self._commit(seen)
        except Exception as error:  # of the store, or the disk: the work need not end for it
            self._failed = error
            if not isinstance(error, ConflictError):
                sys.stderr.write(
                    f"{self.title}: not uploaded now ({error}); the work goes on, and it is tried "
                    "again\n"
                )
        took = time.monotonic() - began
        self._next = time.monotonic() + max(EVERY, took * (1 - SHARE) / SHARE)

    def _finish(self) -> None:
        """All that the verb has made, under its own names."""
        if self._thread is not None:
            self._thread.join()
        try:
            self._commit(self._seen(lag=False))
            self._settle()
        except ConflictError:
            raise
        except OSError as error:
            raise StorageError(
                error.errno or errno.EIO,
                f"all is made, and kept in {self._room}, but not uploaded ({error}); the same "
                "command uploads it",
            ) from error

    # Before the work.

    def _refuse_inside(self) -> None:
        """Raises ValueError where the URL lies in what another store has."""
        found = holding(self.url)
        if found is None or not found[2]:
            return
        store, listing, inside = found
        if any(name.startswith(inside) for name in listing.files):
            raise ValueError(
                f"{self.url} is part of {store.url}, which armlet writes as a whole: give a URL "
                f"outside of it, or {store.url} to the option that wrote it"
            )

    def _free_room(self) -> tuple[Path, AcquireReturnProxy]:
        """A folder of this process's own, in which what stands for the URL is."""
        digest = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        for number in count(1):
            room = self._stores / (f"writing-{digest}" + (f"-{number}" if number > 1 else ""))
            try:
                return room, hold(room / LOCK, f"writing to {self.url}")
            except BusyError:
                if not self.alike:
                    raise
        raise AssertionError("one of all numbers is free")

    def _prepare(self) -> None:
        """Bring the folder to what the store has, and be sure that it can be written to."""
        self._state = self._read_state()
        for attempt in range(CHANGES):
            found = self.store.listing()
            try:
                self._go_on_from(found)
                break
            except (StorageError, FileNotFoundError):
                # What was listed may have made room for the next.
                if attempt + 1 == CHANGES or self.store.listing().number == found.number:
                    raise
        self._uploaded = self._own_versions()
        # Whoever else writes here learns of it now, and so does this one of what it may not do.
        self._publish({name: kept.entry for name, kept in self._state.local.items()}, always=True)
        self._alone = True

    def _go_on_from(self, found: Listing) -> None:
        if not found.number:
            found = self._adopted()
        ours = (
            found.writer == self._state.token and found.number == self._state.listing.number + 1
        )  # killed after its list was there, and before that was noted
        if not ours and self._differs(found):
            if self._changed():
                self._set_aside(found)
            self._bring(found)
        self._make_whole()
        self._keep(replace(self._state, listing=found))

    def _read_state(self) -> State:
        path = self._room / STATE
        # Without its folder what is noted of it is worth nothing: all would be taken for removed.
        if path.exists() and self.folder.is_dir():
            said = read_json(path, fix=f"delete {self._room}, and it is fetched again")
            local = {}
            for name, kept in said["local"].items():
                stamp = kept["stamp"]
                local[name] = Kept(Entry(**kept["entry"]), None if stamp is None else tuple(stamp))
            listing = said["listing"]
            files = {name: Entry(**entry) for name, entry in listing["files"].items()}
            return State(said["token"], Listing(**{**listing, "files": files}), local)
        if self.folder.exists():
            shutil.rmtree(self.folder)  # killed while it was fetched: nobody has worked in it
        state = State(secrets.token_hex(8))
        self._write_state(state)
        return state

    def _keep(self, state: State) -> None:
        self._state = state
        self._write_state(state)

    def _write_state(self, state: State) -> None:
        write_atomically(self._room / STATE, json.dumps(asdict(state)).encode())

    def _adopted(self) -> Listing:
        """What other tools have put there, as if it were listed; it is fetched."""
        objects = self.store.objects
        entries = objects.entries()
        nested = set()
        for name in entries:
            inside, own, _ = f"/{name}".rpartition(f"/{OWN}/")
            if own and inside:
                nested.add(f"{inside.removeprefix('/')}/")
        local = {}
        for name, (size, said) in entries.items():
            # A store below this one stays one of its own.
            if name.startswith((f"{OWN}/", *nested)):
                continue
            path = self.folder / check_name(name, self.url)
            write_atomically(path, fetched(objects, name, size, said))
            local[name] = Kept(Entry(*_digest(path, size), name), _stamp(path))
        self._keep(replace(self._state, local=local))
        return Listing(0, {name: kept.entry for name, kept in local.items()})

    def _differs(self, found: Listing) -> bool:
        """Whether the store has other files than the folder had when it was noted last."""
        if found.files.keys() != self._state.local.keys():
            return True
        return not all(
            entry.same(self._state.local[name].entry) for name, entry in found.files.items()
        )

    def _changed(self) -> bool:
        """Whether the folder has changed since it was noted."""
        if not self.folder.exists():
            return False
        seen = self._seen(lag=False)
        if seen.same.keys() | seen.links.keys() != self._state.local.keys():
            return True
        for name, (link, stamp) in seen.links.items():
            size, sha256 = _digest(link, stamp[0])
            if not Entry(size, sha256, "").same(self._state.local[name].entry):
                return True
        return False

    def _set_aside(self, found: Listing) -> None:
        """Keep what this machine has made and not uploaded, where another has gone on since."""
        aside = self._room.with_name(f"{self._room.name}-kept-{secrets.token_hex(4)}")
        make_folder(aside)
        self.folder.rename(aside / self.folder.name)
        sys.stderr.write(
            f"{self.title}: {self.url} was written by {found.who} since; what was made here after "
            f"that is kept in {aside}, and this goes on from what is there\n"
        )
        self._keep(replace(self._state, local={}))

    def _bring(self, found: Listing) -> None:
        """Make the folder what the store has."""
        local = dict(self._state.local)
        for name, kept in self._state.local.items():
            entry = found.files.get(name)
            if entry is None or not entry.same(kept.entry):
                _remove(self.folder / name)
                del local[name]
        wanted = {}
        for name, entry in found.files.items():
            if name not in local:
                _remove(self.folder / name)  # half of it: nobody has noted it
                wanted[name] = entry
        self._keep(replace(self._state, local=local))
        fill(self.folder, wanted, self.store.objects, in_blocks=self.in_blocks)
        for name, entry in wanted.items():
            local[name] = Kept(entry, _stamp(self.folder / name))
        self._keep(replace(self._state, local=local))

    def _make_whole(self) -> None:
        """Fetch all of a file that an earlier verb only read in blocks, where this one writes it."""
        local = dict(self._state.local)
        for name, kept in self._state.local.items():
            path = self.folder / name
            if not _in_blocks(path) or matches(name, self.in_blocks):
                continue
            fetch(self.store.objects, kept.entry, path)
            _blocks(path).unlink()
            path.with_name(ORIGIN).unlink(missing_ok=True)
            local[name] = Kept(kept.entry, _stamp(path))
        self._keep(replace(self._state, local=local))

    def _own_versions(self) -> set[str]:
        names = self.store.objects.names(VERSIONS)
        ours = f"-{self._state.token}"
        return {f"{VERSIONS}/{name}" for name in names if name.endswith(ours)}

    # While it is written.

    def _seen(self, *, lag: bool) -> Seen:
        """The folder as it is now. `lag`: a large file that grows may stay as it was uploaded."""
        links = self._room / "links"
        shutil.rmtree(links, ignore_errors=True)
        make_folder(links)
        now = time.time_ns()
        seen = Seen({}, {})
        for name in _names(self.folder):
            path = self.folder / name
            kept = self._state.local.get(name)
            if kept is not None and _in_blocks(path):
                seen.same[name] = kept
                continue
            link = links / str(len(seen.links))
            with contextlib.suppress(FileNotFoundError):  # it went while we looked
                stamp = _stamp(path)
                if kept is not None and (stamp == kept.stamp or (lag and _grows(kept, stamp))):
                    seen.same[name] = kept
                    continue
                os.link(path.resolve(), link)
                stamp = _stamp(link)
                if now - stamp[1] < YOUNG * 1e9:
                    stamp = (stamp[0], 0, stamp[2])  # never that of a file: it is hashed again
                seen.links[name] = (link, stamp)
        return seen

    def _commit(self, seen: Seen) -> None:
        """Upload what changed, and list it."""

        def uploaded(item: tuple[str, tuple[Path, Stamp]]) -> tuple[str, Kept]:
            name, (link, stamp) = item
            size, sha256 = _digest(link, stamp[0])
            kept = self._state.local.get(name)
            stamp = (size, *stamp[1:])
            entry = Entry(size, sha256, f"{VERSIONS}/{sha256[:32]}-{self._state.token}")
            if kept is not None and entry.same(kept.entry):
                return name, Kept(kept.entry, stamp)
            if entry.at not in self._uploaded:
                _put(self.store.objects, entry, link)
                self._uploaded.add(entry.at)
            return name, Kept(entry, stamp)

        local = {**seen.same, **dict(in_turn(uploaded, seen.links.items()))}
        self._publish({name: kept.entry for name, kept in local.items()})
        listed = self._state.listing.files
        for name, kept in local.items():
            entry = listed.get(name)
            if entry is not None and entry.same(kept.entry):
                local[name] = Kept(entry, kept.stamp)  # where it is may have changed
        self._keep(replace(self._state, local=local))

    def _publish(self, local: Mapping[str, Entry], *, always: bool = False) -> None:
        """List these files of this folder, beside what others have listed; `always`: even where
        nothing is new. Raises ConflictError."""
        while True:
            latest = self._latest()
            files = self._merged(local, latest)
            listed = latest.writer == self._state.token and files == latest.files
            if listed and not always:
                self._keep(replace(self._state, listing=latest))
                return
            if self._create(latest, files):
                return

    def _latest(self) -> Listing:
        latest = self.store.listing()
        if latest.writer != self._state.token:
            self._alone = False
        return latest

    def _is_ours(self, at: str) -> bool:
        """Whether an object is for this writer to remove: where others write, they may count on
        having uploaded theirs."""
        return self._alone or not at.startswith(VERSIONS) or at.endswith(f"-{self._state.token}")

    def _create(self, latest: Listing, files: dict[str, Entry]) -> bool:
        """The next list, and away with objects that only the one before names; False where another
        writer was faster."""
        listing = Listing(
            latest.number + 1, files, self._state.token, socket.gethostname(), os.getpid()
        )
        if not self.store.create(listing):
            return False
        self._keep(replace(self._state, listing=listing))
        named = {entry.at for entry in files.values()}
        before = {entry.at for entry in latest.files.values()}
        gone = {at for at in before - named if self._is_ours(at)}
        in_turn(self.store.objects.remove, gone)
        self._uploaded -= gone
        return True

    def _merged(self, local: Mapping[str, Entry], latest: Listing) -> dict[str, Entry]:
        before = self._state.listing.files
        ours = set()
        for name in local.keys() | self._state.local.keys():
            kept = self._state.local.get(name)
            if not _same(local.get(name), None if kept is None else kept.entry):
                ours.add(name)
        if not latest.number:  # what was there before there were lists
            return {**before, **local}
        theirs = set()
        if latest.writer != self._state.token or latest.number > self._state.listing.number + 1:
            for name in before.keys() | latest.files.keys():
                if not _same(before.get(name), latest.files.get(name)):
                    theirs.add(name)
        differing = {
            name for name in ours & theirs if not _same(local.get(name), latest.files.get(name))
        }
        parts = {_part(name) for name in ours} & {_part(name) for name in theirs}
        differing |= {name for name in ours if _part(name) in parts.difference(APART)}
        if differing and not self.alike:
            raise ConflictError(
                errno.EBUSY,
                f"{self.url}: {latest.who} has written {sorted(differing)[0]} meanwhile, which this "
                f"one writes, too; what was made here is in {self.folder}. Give each a URL of its "
                "own, or start this again when the other has ended",
            )
        files = dict(latest.files)
        for name in ours - differing:
            if name not in local:
                files.pop(name, None)
            elif not _same(local[name], files.get(name)):
                files[name] = local[name]
        return files

    # When it has ended.

    def _settle(self) -> None:
        """Give every file its own name in the store, for whoever copies it with another tool."""
        while True:
            latest = self._latest()
            files = dict(latest.files)
            moves = []
            for name, entry in latest.files.items():
                if entry.at != name and self._is_ours(entry.at):
                    moves.append((entry.at, name))
                    files[name] = replace(entry, at=name)
            try:
                in_turn(self._copy, moves)
            except FileNotFoundError:  # another writer has moved it meanwhile
                if self.store.listing().number == latest.number:
                    raise
                continue
            if not moves or self._create(latest, files):
                break
        in_turn(self.store.objects.remove, self._own_versions())
        self._uploaded.clear()
        local = {}
        for name, kept in self._state.local.items():
            listed = files.get(name)
            if listed is not None and listed.same(kept.entry):
                kept = replace(kept, entry=listed)
            local[name] = kept
        self._keep(replace(self._state, local=local))

    def _copy(self, move: tuple[str, str]) -> None:
        self.store.objects.copy(*move)


def _names(folder: Path) -> list[str]:
    """Files that are kept: no locks, nothing half written, nothing that is derived."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != CACHE and not PART.search(name)]
        for name in files:
            if name == ORIGIN or name.endswith((".lock", BLOCKS)) or PART.search(name):
                continue
            found.append(Path(place, name).relative_to(folder).as_posix())
    return sorted(found)


def _stamp(path: Path) -> Stamp:
    about = path.stat()
    return about.st_size, about.st_mtime_ns, about.st_ino


def _grows(kept: Kept, stamp: Stamp) -> bool:
    """Whether a large file is the one that was uploaded, with a little more at its end."""
    if kept.stamp is None or kept.entry.size < LARGE or kept.stamp[2] != stamp[2]:
        return False
    return kept.entry.size < stamp[0] < 1.5 * kept.entry.size


def _blocks(path: Path) -> Path:
    return path.with_name(f"{path.name}{BLOCKS}")


def _in_blocks(path: Path) -> bool:
    return _blocks(path).exists()


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    _blocks(path).unlink(missing_ok=True)


def _digest(path: Path, size: int) -> tuple[int, str]:
    """Of the first `size` bytes: how many there are, and their SHA-256."""
    made = hashlib.sha256()
    left = size
    with path.open("rb") as file:
        while left:
            block = file.read(min(left, 2**20))
            if not block:
                break
            made.update(block)
            left -= len(block)
    return size - left, made.hexdigest()


def _put(objects: StoredObjects, entry: Entry, link: Path) -> None:
    """The first bytes of a file, as many as were seen: it may have grown since."""
    part = link
    if link.stat().st_size != entry.size:
        part = link.with_name(f"{link.name}-part")
        with link.open("rb") as whole, part.open("wb") as file:
            left = entry.size
            while left:
                block = whole.read(min(left, 2**20))
                if not block:
                    break
                file.write(block)
                left -= len(block)
    objects.put(entry.at, part)
    # Of what was cut off or written over in place meanwhile something else was sent.
    if _digest(part, entry.size) != (entry.size, entry.sha256):
        objects.remove(entry.at)
        raise StorageError(errno.EAGAIN, f"{link} changed while it was uploaded")


def _part(name: str) -> str:
    """The part of a store that one writer at a time changes: a folder of its root, or a file."""
    return name.partition("/")[0]


def _same(one: Entry | None, other: Entry | None) -> bool:
    return one is other if one is None or other is None else one.same(other)
