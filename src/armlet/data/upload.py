"""A URL that is written to: a local folder stands for it, in which a verb works as in any other, and
what it keeps there is uploaded while it works and when it has ended.

The folder is looked at between two steps of the work, when nothing is half written, and every file
that changed gets a second name (a hard link) at that moment; these are uploaded meanwhile, and then
listed at once (`data/store.py`). So what the store holds is what a kill at that moment would have
left on a disk, from which every verb goes on; and a verb that is killed on one machine goes on from
it on another. Where a store does not answer, the work goes on, and what it lacks is uploaded later.
"""

import errno
import hashlib
import json
import operator
import os
import re
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
from typing import Any

from filelock import AcquireReturnProxy

from armlet.data.digests import HOME
from armlet.data.files import BusyError, hold, make_folder, read_json, write_atomically
from armlet.data.mirror import (
    CHANGES,
    ORIGIN,
    blocks_of,
    fetch,
    fetched,
    fill,
    in_turn,
    is_in_blocks,
    matches,
    stands_for,
)
from armlet.data.moment import Kept, Seen, Stamp, digest, link_to, look, put, stamp_of
from armlet.data.object_storage import StorageError
from armlet.data.store import (
    OWN,
    VERSIONS,
    Entry,
    Listing,
    Store,
    check_name,
    entry_of,
    holding,
    listing_of,
)
from armlet.progress import Progress

STATE = "state.json"
LOCK = "writing.lock"
EVERY = 10.0  # seconds between two uploads, at least
SHARE = 0.2  # of the time, at most, is spent uploading while a verb works
TOKEN = re.compile(r"[0-9a-f]{16}")
APART = ("status",)  # folders whose files are each of one process

NONE = Listing()


class ConflictError(StorageError):
    """Another writer has changed what this one changed."""


class DeletedError(StorageError):
    """All that was behind the URL was deleted while this wrote there."""


@dataclass(frozen=True)
class State:
    """What is known beside the folder. `token`: this folder's, in the names of objects and lists;
    `listing`: the one that its next is made of; `local`: the folder's files, as they were when they
    were uploaded or fetched."""

    token: str
    listing: Listing = NONE
    local: Mapping[str, Kept] = field(default_factory=dict)


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
            for attempt in range(CHANGES):
                try:
                    self._commit(self._seen(lag=False))
                    self._settle()
                    break
                except DeletedError:
                    if attempt + 1 == CHANGES:
                        raise
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
        self._refuse_without_links()
        self.store.check_creates()
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
        self._publish(self._state.local, always=True)
        self._alone = True

    def _refuse_without_links(self) -> None:
        link = self._room / "link"
        link.unlink(missing_ok=True)
        link_to(self._room / STATE, link)
        link.unlink()

    def _go_on_from(self, found: Listing) -> None:
        if not found.number:
            if self._state.listing.number:
                self._set_aside("was deleted")
            found = self._adopted()
        self._note_own(found)
        if found.number:
            found = self._mended(found)
        if _differing(_entries(self._state.local), found.files):
            if self._changed():
                self._set_aside(f"was written by {found.who}")
            self._bring(found)
        self._keep(replace(self._state, listing=found, local=_placed(self._state.local, found)))
        in_blocks = {}
        for name, kept in self._state.local.items():
            if is_in_blocks(self.folder / name):
                in_blocks[name] = kept.entry
        fill(self.folder, in_blocks, self.store.objects, in_blocks=self.in_blocks)
        self._make_whole()

    def _mended(self, found: Listing) -> Listing:
        """The list that counts, once what the store has lost of this one is uploaded from the folder
        or, where the folder does not have it, is no longer listed: the verb makes it anew. Raises
        StorageError where an object is of another size and nothing here replaces it."""
        there = self.store.objects.entries()
        lost = {}
        for name, entry in found.files.items():
            size, _ = there.get(entry.at, (None, ""))
            if size != entry.size:
                lost[name] = entry
        if not lost:
            return found
        # Objects are removed after the next list is made: then they are not lost.
        self._refuse_another(found)
        files = dict(found.files)
        local = dict(self._state.local)
        for name, entry in lost.items():
            place = f"{self.url}/{entry.at}"
            mended = self._uploaded_again(name, entry)
            if mended is not None:
                files[name] = mended
                sys.stderr.write(f"{self.title}: {place} was lost; it is uploaded again\n")
                continue
            noted = name in local and local[name].entry.same(entry)
            in_blocks = is_in_blocks(self.folder / name)
            if entry.at in there and (in_blocks or not noted):
                raise StorageError(
                    errno.EIO,
                    f"{place}: {there[entry.at][0]} bytes are there and {entry.size} are listed; run "
                    "this where it was made, and it is uploaded again, or remove it there, and it is "
                    "made anew",
                )
            if noted:
                del local[name]  # what the folder has in its place is uploaded as something new
            if in_blocks:
                _remove(self.folder / name)
            del files[name]
            sys.stderr.write(f"{self.title}: {place} was lost; it is made anew\n")
        if not self._create(found, files, local):
            self._refuse_another(found)
        return self._state.listing

    def _refuse_another(self, found: Listing) -> None:
        """Raises StorageError where another list counts by now."""
        if self.store.numbers()[-1:] != [found.number]:
            raise StorageError(errno.EAGAIN, f"{self.url}: another writer was faster; try again")

    def _uploaded_again(self, name: str, entry: Entry) -> Entry | None:
        """An object that the store has lost, from the folder's file; None where that is another."""
        path = self.folder / name
        if not path.is_file() or is_in_blocks(path):
            return None
        if digest(path, entry.size) != (entry.size, entry.sha256):
            return None
        links = self._room / "links"
        make_folder(links)
        link = links / "lost"
        link.unlink(missing_ok=True)
        link_to(path.resolve(), link)
        again = replace(entry, at=self._version(entry.sha256))
        put(self.store.objects, again, link)
        return again

    def _note_own(self, found: Listing) -> None:
        """Note what this writer has listed, where it was killed, or got no answer, before it could."""
        last = self._state.listing
        if found.writer != self._state.token or found.number != last.number + 1:
            return
        local = dict(self._state.local)
        for name in _differing(last.files, found.files):
            local.pop(name, None)
            if name in found.files:
                local[name] = Kept(found.files[name], None)
        self._keep(State(self._state.token, found, local))

    def _read_state(self) -> State:
        path = self._room / STATE
        # Without its folder what is noted of it is worth nothing: all would be taken for removed.
        if path.exists() and self.folder.is_dir():
            fix = f"delete {self._room}, and it is fetched again"
            said = read_json(path, fix=fix)
            try:
                return _state_of(said, str(path))
            except (StorageError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{path} is damaged: it does not say which files are uploaded "
                    f"({type(error).__name__}: {error}); {fix}"
                ) from error
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
            local[name] = Kept(Entry(*digest(path, size), name), stamp_of(path))
        self._keep(replace(self._state, local=local))
        return Listing(0, {name: kept.entry for name, kept in local.items()})

    def _changed(self) -> bool:
        """Whether the folder has changed since it was noted."""
        if not self.folder.exists():
            return False
        seen = self._seen(lag=False)
        if seen.same.keys() | seen.links.keys() != self._state.local.keys():
            return True
        for name, (link, stamp) in seen.links.items():
            size, sha256 = digest(link, stamp[0])
            if not Entry(size, sha256, "").same(self._state.local[name].entry):
                return True
        return False

    def _set_aside(self, why: str) -> None:
        """Go on without what is in the folder, which is kept."""
        if self.folder.exists():
            aside = self._room.with_name(f"{self._room.name}-kept-{secrets.token_hex(4)}")
            make_folder(aside)
            self.folder.rename(aside / self.folder.name)
            sys.stderr.write(
                f"{self.title}: {self.url} {why} since; what was made here is kept in {aside}, and "
                "this goes on from what is there\n"
            )
        self._keep(State(self._state.token))

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
            local[name] = Kept(entry, stamp_of(self.folder / name))
        self._keep(replace(self._state, local=local))

    def _make_whole(self) -> None:
        """Fetch all of a file that an earlier verb only read in blocks, where this one writes it."""
        local = dict(self._state.local)
        for name, kept in self._state.local.items():
            path = self.folder / name
            if not is_in_blocks(path) or matches(name, self.in_blocks):
                continue
            fetch(self.store.objects, kept.entry, path)
            blocks_of(path).unlink()
            path.with_name(ORIGIN).unlink(missing_ok=True)
            local[name] = Kept(kept.entry, stamp_of(path))
        self._keep(replace(self._state, local=local))

    def _own_versions(self) -> set[str]:
        names = self.store.objects.names(VERSIONS)
        return {f"{VERSIONS}/{name}" for name in names if self._is_own(name)}

    # While it is written.

    def _seen(self, *, lag: bool) -> Seen:
        return look(self.folder, self._state.local, self._room / "links", lag=lag)

    def _commit(self, seen: Seen) -> None:
        """Upload what changed, and list it."""

        def uploaded(item: tuple[str, tuple[Path, Stamp]]) -> tuple[str, Kept]:
            name, (link, stamp) = item
            size, sha256 = digest(link, stamp[0])
            if size != stamp[0]:
                raise StorageError(errno.EAGAIN, f"{name} was cut off before it was uploaded")
            kept = self._state.local.get(name)
            entry = Entry(size, sha256, self._version(sha256))
            if kept is not None and entry.same(kept.entry):
                return name, Kept(kept.entry, stamp)
            if entry.at not in self._uploaded:
                put(self.store.objects, entry, link)
                self._uploaded.add(entry.at)
            return name, Kept(entry, stamp)

        self._publish({**seen.same, **dict(in_turn(uploaded, seen.links.items()))})

    def _publish(self, local: Mapping[str, Kept], *, always: bool = False) -> None:
        """List these files of this folder, beside what others have listed; `always`: even where
        nothing is new. Raises ConflictError."""
        while True:
            latest = self._latest()
            files = self._merged(_entries(local), latest)
            if files == latest.files and not always:
                self._keep(State(self._state.token, latest, _placed(local, latest)))
                return
            if self._create(latest, files, local):
                return

    def _latest(self) -> Listing:
        latest = self.store.listing()
        if latest.number < self._state.listing.number:
            self._uploaded.clear()
            self._keep(State(self._state.token))
            raise DeletedError(
                errno.EAGAIN, f"{self.url} was deleted meanwhile; all that is here is uploaded anew"
            )
        if latest.writer != self._state.token:
            self._alone = False
        self._note_own(latest)
        return latest

    def _version(self, sha256: str) -> str:
        """The object for a file's content while the verb is under way."""
        return f"{VERSIONS}/{sha256[:32]}-{self._state.token}"

    def _is_own(self, at: str) -> bool:
        return at.endswith(f"-{self._state.token}")

    def _create(self, latest: Listing, files: dict[str, Entry], local: Mapping[str, Kept]) -> bool:
        """The next list, and away with objects that only the one before names; False where another
        writer was faster. `local`: the folder's files, if they are listed."""
        # By which the next list is known as its own, should it die before that is noted.
        self._keep(replace(self._state, listing=latest))
        token = self._state.token
        listing = Listing(latest.number + 1, files, token, socket.gethostname(), os.getpid())
        if not self.store.create(listing):
            return False
        self._keep(State(token, listing, _placed(local, listing)))
        gone = set()
        for at in {entry.at for entry in latest.files.values()}:
            # What another has uploaded it may still count on.
            if self._is_own(at) or not at.startswith(VERSIONS):
                gone.add(at)
        gone -= {entry.at for entry in files.values()}
        in_turn(self.store.objects.remove, gone)
        self._uploaded -= gone
        return True

    def _merged(self, local: Mapping[str, Entry], latest: Listing) -> dict[str, Entry]:
        """The files of the next list. Raises ConflictError where another has changed what this
        folder has, too."""
        if not latest.number:
            return dict(local)
        noted = _entries(self._state.local)
        ours = _differing(noted, local)
        new = {name for name in ours if not _same(local.get(name), latest.files.get(name))}
        theirs = _differing(noted, latest.files)
        parts = {_part(name) for name in theirs}.difference(APART)
        clashing = {name for name in new if name in theirs or _part(name) in parts}
        if clashing and not self.alike:
            raise ConflictError(
                errno.EBUSY,
                f"{self.url}: {latest.who} has written {sorted(clashing)[0]} meanwhile, which this "
                f"one writes, too; what was made here is in {self.folder}. Give each a URL of its "
                "own, or start this again when the other has ended",
            )
        files = dict(latest.files)
        for name in new - clashing:
            if name in local:
                files[name] = local[name]
            else:
                del files[name]
        return files

    # When it has ended.

    def _settle(self) -> None:
        """Give every file its own name in the store, for whoever copies it with another tool."""
        while True:
            latest = self._latest()
            files = dict(latest.files)
            moves = []
            for name, entry in latest.files.items():
                # Where others write, theirs is for them to move.
                if entry.at != name and (self._alone or self._is_own(entry.at)):
                    moves.append((entry.at, name))
                    files[name] = replace(entry, at=name)
            if not moves:
                break
            if self._copied(moves, latest) and self._create(latest, files, self._state.local):
                break
        in_turn(self.store.objects.remove, self._own_versions())
        self._uploaded.clear()

    def _copied(self, moves: list[tuple[str, str]], latest: Listing) -> bool:
        """Whether all are copied, and nobody has listed anything since `latest`: the next list names
        what the object under a file's own name then holds."""

        def copy(move: tuple[str, str]) -> bool:
            if self.store.numbers()[-1:] != [latest.number]:
                return False
            try:
                self.store.objects.copy(*move)
            except FileNotFoundError:  # another writer has moved it meanwhile
                if self.store.numbers()[-1:] == [latest.number]:
                    raise
                return False
            return True

        return all(in_turn(copy, moves))


def _state_of(said: Any, place: str) -> State:
    """Raises as `store.listing_of` does where JSON holds something else."""
    if not isinstance(said["token"], str) or TOKEN.fullmatch(said["token"]) is None:
        raise TypeError(f"the token is {said['token']!r:.80}")
    local = {}
    for name, kept in said["local"].items():
        stamp = kept["stamp"]
        if stamp is not None:
            if not isinstance(stamp, list) or len(stamp) != 3:
                raise TypeError(f"the stamp of {name} is {stamp!r:.80}")
            size, modified, inode = stamp
            stamp = (operator.index(size), operator.index(modified), operator.index(inode))
        local[check_name(name, place)] = Kept(entry_of(kept["entry"], place), stamp)
    return State(said["token"], listing_of(said["listing"], place), local)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    blocks_of(path).unlink(missing_ok=True)


def _part(name: str) -> str:
    """The part of a store that one writer at a time changes: a folder of its root, or a file."""
    return name.partition("/")[0]


def _same(one: Entry | None, other: Entry | None) -> bool:
    return one is other if one is None or other is None else one.same(other)


def _differing(one: Mapping[str, Entry], other: Mapping[str, Entry]) -> set[str]:
    """Names of files that only one of both has, or each as something else."""
    return {name for name in one.keys() | other.keys() if not _same(one.get(name), other.get(name))}


def _placed(local: Mapping[str, Kept], listing: Listing) -> dict[str, Kept]:
    """The files of a folder, with the objects that a list names for them."""
    placed = dict(local)
    for name, kept in local.items():
        entry = listing.files.get(name)
        if entry is not None and entry.same(kept.entry):
            placed[name] = Kept(entry, kept.stamp)
    return placed


def _entries(local: Mapping[str, Kept]) -> dict[str, Entry]:
    return {name: kept.entry for name, kept in local.items()}
