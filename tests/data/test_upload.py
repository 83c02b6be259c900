"""Folders behind a URL that are written to: what a reader sees at every moment, what is left of a
writer that died at any request, and what two writers are told."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from armlet.data import moment, upload
from armlet.data.files import BusyError, write_atomically
from armlet.data.lines import appending
from armlet.data.mirror import InBlocks, mirrored, told
from armlet.data.object_storage import StorageError, StoredObjects
from armlet.data.store import Entry, Listing, Store, check_name, holding
from armlet.data.traces import StoreIdentity, TraceStore, TraceWriter
from armlet.data.upload import ConflictError, Upload
from armlet.progress import Progress, watching

STEPS = 3


class Died(BaseException):
    """As a kill does, it leaves no time for anything."""


class Thread:
    """What is done in a thread, done at once: requests come in one order."""

    def __init__(self, target, args, daemon) -> None:
        self.target = target
        self.args = args

    def start(self) -> None:
        self.target(*self.args)

    def is_alive(self) -> bool:
        return False

    def join(self) -> None:
        pass


@pytest.fixture
def url(request, monkeypatch) -> Iterator[str]:
    """A place of the test's own; uploads begin at every step, one request after the other."""
    monkeypatch.setattr(upload, "EVERY", 0.0)
    monkeypatch.setattr(upload, "SHARE", 1.0)
    monkeypatch.setattr(upload.threading, "Thread", Thread)
    for module in ("upload", "mirror"):
        monkeypatch.setattr(f"armlet.data.{module}.in_turn", lambda work, of: [*map(work, of)])
    yield f"memory://upload-{abs(hash(request.node.name))}/run"
    fsspec.filesystem("memory").rm(f"/upload-{abs(hash(request.node.name))}", recursive=True)


def stored(url: str) -> dict[str, bytes]:
    """Objects that stand there under the names of files."""
    objects = StoredObjects(url)
    found = {}
    for name in objects.entries():
        if not name.startswith(".armlet/"):
            found[name] = objects.read(name) or b""
    return found


def files_of(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.name != ".whole" and not path.name.endswith(".lock"):
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def work(folder: Path) -> None:
    """A verb: a log that grows, a state that is replaced, files that come and go, and what it is
    about at the end. Goes on from its state."""
    state = folder / "stage/state.json"
    begun = json.loads(state.read_bytes())["step"] if state.exists() else 0
    lines = (folder / "stage/log").read_bytes().splitlines() if begun else []
    write_atomically(folder / "stage/log", b"".join(line + b"\n" for line in lines[:begun]))
    progress = Progress("work", total=STEPS, start=begun)
    for step in range(begun + 1, STEPS + 1):
        with appending(folder / "stage/log") as add:
            add(json.dumps({"step": step}))
        write_atomically(folder / f"stage/left/{step}", b"x" * step)
        (folder / f"stage/left/{step - 1}").unlink(missing_ok=True)
        write_atomically(state, json.dumps({"step": step}).encode())
        progress.advance()
    progress.close()
    for name in ("one", "two"):
        write_atomically(folder / f"made/{name}", name.encode() * 100)


def session(url: str, cache: Path) -> None:
    with Upload(url, title="test", cache=cache) as run, watching(run):
        work(run.folder)


def check_moment(url: str, cache: Path) -> int:
    """What a reader sees is of one moment; returns the step of it."""
    try:
        folder = mirrored(url, cache=cache)
    except FileNotFoundError:
        return 0
    found = files_of(folder)
    if found == {"stage/log": b""}:
        return 0
    step = json.loads(found["stage/state.json"])["step"]
    lines = [json.loads(line)["step"] for line in found["stage/log"].splitlines()]
    made = {name for name in found if name.startswith("made/")}
    assert lines == [*range(1, step + 1)]
    assert {name for name in found if "left" in name} == {f"stage/left/{step}"}
    assert made in (set(), {"made/one", "made/two"})
    return step + (1 if made else 0)


def test_a_store_holds_what_a_verb_made(url, tmp_path, capsys) -> None:
    session(url, tmp_path / "cache")
    work(tmp_path / "alone")
    assert stored(url) == files_of(tmp_path / "alone"), "under their own names, for other tools"
    assert files_of(mirrored(url, cache=tmp_path / "other")) == stored(url)
    own = {name for name in StoredObjects(url).entries() if name.startswith(".armlet/")}
    assert own - {".armlet/once"} == {f".armlet/{each:06d}.json" for each in Store(url).numbers()}
    assert len(own) == 3
    assert f"test: {url} is written to from {tmp_path / 'cache'}" in capsys.readouterr().err
    # Again: nothing changes, here or there, and on another machine neither.
    for cache in ("cache", "second"):
        session(url, tmp_path / cache)
        assert stored(url) == files_of(tmp_path / "alone")


class Requests:
    """Counts what is asked of stores, and dies at one of these: before it is sent, or after."""

    def __init__(self, monkeypatch) -> None:
        self.count = 0
        self.at: tuple[int, str] | None = None
        ask = StoredObjects._ask

        def counted(objects, name, request):
            self.count += 1
            due = self.at is not None and self.at[0] == self.count
            if due and self.at[1] == "before":
                raise Died
            try:
                return ask(objects, name, request)
            finally:
                if due:
                    raise Died  # whatever was answered

        monkeypatch.setattr(StoredObjects, "_ask", counted)

    def dying(self, at: tuple[int, str] | None) -> "Requests":
        self.count = 0
        self.at = at
        return self


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_whoever_dies_at_any_request_leaves_one_moment_and_is_gone_on_from(
    every: int, url, tmp_path, monkeypatch
) -> None:
    requests = Requests(monkeypatch)
    session(f"{url}-whole", tmp_path / "whole")
    total = requests.count
    wanted = stored(f"{url}-whole")
    assert total > 40
    steps = set()
    for number in range(1, total + 1, every):
        place = f"{url}-{number}"
        mine, readers, other = (tmp_path / f"{number}-{name}" for name in "abc")
        requests.dying((number, "after" if number % 2 else "before"))
        with pytest.raises(Died):
            session(place, mine)
        requests.dying(None)
        steps.add(check_moment(place, readers))
        # On another machine, or where it was.
        elsewhere = number // 2 % 2 == 0
        session(place, other if elsewhere else mine)
        assert stored(place) == wanted, number
        assert files_of(mirrored(place, cache=readers)) == wanted
        if not elsewhere:
            left = [each for each in StoredObjects(place).entries() if "versions" in each]
            assert not left, "what was uploaded and not listed is removed"
    assert every > 1 or steps == set(range(STEPS + 2))


def test_what_was_uploaded_before_a_death_is_not_uploaded_again(url, tmp_path, monkeypatch) -> None:
    put = StoredObjects.put
    sent = []

    def dies(objects, name, path) -> None:
        put(objects, name, path)
        sent.append(path.read_bytes())
        if len(sent) == 3:
            raise Died

    monkeypatch.setattr(StoredObjects, "put", dies)

    def run_once() -> None:
        with Upload(url, title="test", cache=tmp_path) as run:
            for name in "abcd":
                write_atomically(run.folder / name, name.encode() * 9)

    with pytest.raises(Died):
        run_once()
    # `_finish` died: nothing is listed, three objects are there.
    with pytest.raises(FileNotFoundError, match="has not written this"):
        mirrored(url, cache=tmp_path / "reader")
    with Upload(url, title="test", cache=tmp_path) as run:
        assert (run.folder / "d").exists()
    assert len(sent) == 4 and len(stored(url)) == 4


def test_who_dies_between_its_list_and_its_note_goes_on_from_its_own_folder(
    url, tmp_path, monkeypatch
) -> None:
    create = Store.create

    def dies(store, listing) -> bool:
        create(store, listing)
        if listing.files:
            raise Died
        return True

    with Upload(url, title="test", cache=tmp_path) as run:
        write_atomically(run.folder / "a", b"before")
    monkeypatch.setattr(Store, "create", dies)
    with pytest.raises(Died):
        Upload(url, title="test", cache=tmp_path).__enter__()
    monkeypatch.setattr(Store, "create", create)
    run = Upload(url, title="test", cache=tmp_path).__enter__()
    write_atomically(run.folder / "a", b"after")
    monkeypatch.setattr(Store, "create", dies)
    with pytest.raises(Died):
        run.__exit__(None, None, None)
    monkeypatch.setattr(Store, "create", create)
    write_atomically(run.folder / "b", b"made before it died, and not uploaded")
    with Upload(url, title="test", cache=tmp_path) as run:
        assert len(files_of(run.folder)) == 2
    assert stored(url) == files_of(run.folder) and not [*tmp_path.glob("stores/*-kept-*")]


def test_a_part_of_what_is_written_is_read_by_its_own_url(url, tmp_path) -> None:
    session(url, tmp_path / "cache")
    assert files_of(mirrored(f"{url}/made", cache=tmp_path)) == {
        "one": b"one" * 100,
        "two": b"two" * 100,
    }
    with pytest.raises(FileNotFoundError, match=rf"nothing is at {url}/student yet: armlet writes"):
        mirrored(f"{url}/student", cache=tmp_path)
    # Not under way either: what stands there and is not listed is half of something.
    StoredObjects(url).write("student/config.json", b"{}")
    with pytest.raises(FileNotFoundError, match="yet"):
        mirrored(f"{url}/student", cache=tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"name {url}, which is there"):
        mirrored(url.rpartition("/")[0], cache=tmp_path)


def test_what_another_tool_damaged_or_took_away_is_named(url, tmp_path) -> None:
    session(url, tmp_path / "cache")
    objects = StoredObjects(url)
    objects.write("made/one", b"one" * 99 + b"owe")
    with pytest.raises(StorageError, match=rf"{url}/made/one: its checksum differs"):
        mirrored(f"{url}/made", cache=tmp_path)
    objects.write("made/one", b"one")
    with pytest.raises(StorageError, match=rf"{url}/made/one: 3 bytes arrived and 300 are listed"):
        mirrored(f"{url}/made", cache=tmp_path)
    objects.remove("made/one")
    with pytest.raises(FileNotFoundError):
        mirrored(f"{url}/made", cache=tmp_path)


def test_a_reader_whose_files_are_replaced_meanwhile_has_all_of_the_next(
    url, tmp_path, monkeypatch
) -> None:
    def write(value: bytes) -> None:
        with Upload(url, title="writer", cache=tmp_path / "writer") as run:
            for name in ("one", "two"):
                write_atomically(run.folder / name, value)

    write(b"before")
    get = StoredObjects.get
    asked = []

    def late(objects, name, path) -> None:
        asked.append(name)
        if len(asked) == 2:  # it has one file of those that were listed
            write(b"after it")
        get(objects, name, path)

    monkeypatch.setattr(StoredObjects, "get", late)
    found = files_of(mirrored(url, cache=tmp_path / "reader"))
    assert found == {"one": b"after it", "two": b"after it"} and len(asked) == 4


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", "a//b", "./a", "", ".", "a\0", "a/\ud800"]
)
def test_a_name_leads_into_no_other_folder(name: str, url, tmp_path) -> None:
    with pytest.raises(StorageError, match="is no name of a file"):
        check_name(name, url)
    entry = {"size": 1, "sha256": "0" * 64, "at": "a"}
    for files in ({name: entry}, {"a": {**entry, "at": name}}):
        said = {"writer": "w", "host": "h", "process": 1, "files": files}
        StoredObjects(url).write(".armlet/000001.json", json.dumps(said).encode())
        with pytest.raises(StorageError, match="is no name of a file"):
            mirrored(url, cache=tmp_path)


def test_a_list_that_is_none_is_named(url, tmp_path) -> None:
    objects = StoredObjects(url)
    for content in (
        b'{"files": {}}',
        b'{"files": {"a": 1}, "writer": "", "host": "", "process": 1}',
    ):
        objects.write(".armlet/000001.json", content)
        with pytest.raises(StorageError, match=r"000001\.json is no list of files"):
            holding(url)
    entry = {"size": 1, "sha256": "0" * 64, "at": "a"}
    about = {"writer": "w", "host": "h", "process": 1}
    for change in (
        {"process": "abc"},
        {"process": True},
        {"writer": 3},
        {"files": {"rows-000.bin": {**entry, "size": 2**60}}},
        {"files": {"rows-000.bin": {**entry, "size": -1}}},
        {"files": {"a": {**entry, "at": 1}}},
    ):
        said = {**about, "files": {"a": entry}, **change}
        objects.write(".armlet/000001.json", json.dumps(said).encode())
        with pytest.raises(StorageError, match=r"000001\.json is no list of files \(TypeError: "):
            holding(url)
    said = {**about, "files": {"a": entry, "a/b/c": entry}}
    objects.write(".armlet/000001.json", json.dumps(said).encode())
    with pytest.raises(StorageError, match=r"000001\.json: a is a file there, and a/b/c would lie"):
        holding(url)
    objects.write(".armlet/000001.json", b"[")
    with pytest.raises(ValueError, match=r"000001\.json .*is not JSON"):
        holding(url)


def test_two_at_once_on_one_machine_and_on_two(url, tmp_path) -> None:
    with Upload(url, title="one", cache=tmp_path / "a") as one:
        with pytest.raises(BusyError, match=f"another process is writing to {url}"):
            Upload(url, title="two", cache=tmp_path / "a").__enter__()
        write_atomically(one.folder / "traces/rows", b"1")
        # On another machine: a verb about another part of the run does no harm.
        with Upload(url, title="two", cache=tmp_path / "b") as two:
            write_atomically(two.folder / "evaluation/report.json", b"2")
            write_atomically(two.folder / "status/two", b"2")
        write_atomically(one.folder / "status/one", b"1")
    both = {"traces/rows": b"1", "evaluation/report.json": b"2"}
    assert stored(url) == {**both, "status/one": b"1", "status/two": b"2"}
    assert len(files_of(mirrored(url, cache=tmp_path))) == 4
    # About the same part: who comes second is told, and loses nothing.
    one = Upload(url, title="one", cache=tmp_path / "a").__enter__()
    with Upload(url, title="two", cache=tmp_path / "b") as two:
        write_atomically(two.folder / "traces/keys", b"2")
    write_atomically(one.folder / "traces/rows", b"11")
    with pytest.raises(ConflictError, match=r"process \d+ of .* has written traces/.* meanwhile"):
        one.__exit__(None, None, None)
    assert stored(url)["traces/rows"] == b"1" and stored(url)["traces/keys"] == b"2"
    assert (one.folder / "traces/rows").read_bytes() == b"11"


def test_a_conflict_is_told_in_the_middle_of_the_work(url, tmp_path) -> None:
    with Upload(url, title="one", cache=tmp_path / "a") as one, watching(one):
        progress = Progress("work", total=9)
        write_atomically(one.folder / "a/b", b"1")
        with Upload(url, title="two", cache=tmp_path / "b") as two:
            write_atomically(two.folder / "a/b", b"2")
        progress.advance()
        with pytest.raises(ConflictError):
            progress.advance()
        shutil.rmtree(one.folder / "a")
    assert progress.done == 2 and stored(url) == {"a/b": b"2"}


def test_of_processes_that_make_the_same_the_first_counts(url, tmp_path, capsys) -> None:
    how = {"title": "evaluate", "cache": tmp_path, "alike": True}
    with Upload(url, **how) as one, Upload(url, **how) as two:
        assert one.folder != two.folder, "each has a folder of its own"
        for run, seconds in ((one, b"1"), (two, b"2")):
            write_atomically(run.folder / "evaluation/report.json", b"the same")
            write_atomically(run.folder / "evaluation/log", seconds)
    # The inner one ended first.
    assert stored(url) == {"evaluation/report.json": b"the same", "evaluation/log": b"2"}
    with Upload(url, title="alone", cache=tmp_path) as run:
        assert (run.folder / "evaluation/log").read_bytes() == b"2"


def test_a_change_of_anothers_is_told_however_late(url, tmp_path) -> None:
    one = Upload(url, title="one", cache=tmp_path / "a").__enter__()
    write_atomically(one.folder / "traces/rows", b"1")
    one._commit(one._seen(lag=False))
    with Upload(url, title="two", cache=tmp_path / "b") as two:
        write_atomically(two.folder / "traces/rows", b"2")
    # Its next list has what the other made; that is no leave to undo it.
    write_atomically(one.folder / "log", b"1")
    one._commit(one._seen(lag=False))
    write_atomically(one.folder / "traces/rows", b"11")
    with pytest.raises(ConflictError, match="has written traces/rows meanwhile"):
        one.__exit__(None, None, None)
    assert stored(url)["traces/rows"] == b"2"


def test_what_one_has_uploaded_another_leaves_to_it(url, tmp_path) -> None:
    with Upload(url, title="one", cache=tmp_path / "a") as one:
        write_atomically(one.folder / "traces/first", b"the same")
        one._commit(one._seen(lag=False))
        with Upload(url, title="two", cache=tmp_path / "b") as two:
            write_atomically(two.folder / "evaluation/report", b"2")
        assert Store(url).listing().files["traces/first"].at == "traces/first"
        # Of this content an object is there already.
        write_atomically(one.folder / "traces/second", b"the same")
        one._commit(one._seen(lag=False))
        assert len(files_of(mirrored(url, cache=tmp_path / "reader"))) == 3
    assert set(stored(url).values()) == {b"the same", b"2"} and len(stored(url)) == 3
    assert not StoredObjects(url).names(".armlet/versions")


def test_who_settles_late_copies_over_nothing(url, tmp_path, monkeypatch) -> None:
    copy = StoredObjects.copy
    two: list[Upload] = []

    def late(objects, name, to) -> None:
        copy(objects, name, to)
        if not two:  # between the first of its copies and the second, another does all its work
            two.append(Upload(url, title="two", cache=tmp_path / "b"))
            with two[0] as run:
                write_atomically(run.folder / "made/two", b"newer")

    with Upload(url, title="one", cache=tmp_path / "a") as one:
        for name in ("one", "two"):
            write_atomically(one.folder / "made" / name, b"older")
        monkeypatch.setattr(StoredObjects, "copy", late)
    assert stored(url) == {"made/one": b"older", "made/two": b"newer"}
    assert files_of(mirrored(url, cache=tmp_path / "reader"))["made/two"] == b"newer"


def test_who_gets_no_answer_to_its_list_is_not_told_that_another_wrote(
    url, tmp_path, monkeypatch, capsys
) -> None:
    numbers = Store.numbers
    due = [False]

    def fails(store) -> list[int]:
        if due[0] and len(numbers(store)) and numbers(store)[-1] > 2:
            due[0] = False
            raise StorageError(5, "no answer")
        return numbers(store)

    with Upload(url, title="test", cache=tmp_path) as run, watching(run):
        progress = Progress("work", total=9)
        write_atomically(run.folder / "a/state", b"0")
        progress.advance()
        monkeypatch.setattr(Store, "numbers", fails)
        create = StoredObjects.create

        def created(objects, name, content) -> bool:
            due[0] = True
            return create(objects, name, content)

        monkeypatch.setattr(StoredObjects, "create", created)
        write_atomically(run.folder / "a/state", b"1")
        progress.advance()
        monkeypatch.setattr(StoredObjects, "create", create)
        assert "not uploaded now ([Errno 5] no answer)" in capsys.readouterr().err
        write_atomically(run.folder / "a/state", b"2")
        progress.advance()
    assert stored(url) == {"a/state": b"2"}


def test_what_was_deleted_in_the_store_begins_anew(url, tmp_path, capsys) -> None:
    session(url, tmp_path)
    fsspec.filesystem("memory").rm(f"/{url.removeprefix('memory://')}", recursive=True)
    with Upload(url, title="test", cache=tmp_path) as run:
        assert not run.folder.exists()
        write_atomically(run.folder / "new", b"1")
    assert stored(url) == {"new": b"1"}
    assert f"{url} was deleted since; what was made here is kept in" in capsys.readouterr().err
    (kept,) = (tmp_path / "stores").glob("*-kept-*")
    assert len(files_of(kept)) == 5


def test_a_store_that_creates_twice_and_a_disk_without_links_are_refused(
    url, tmp_path, monkeypatch
) -> None:
    def no_links(path, link) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(moment.os, "link", no_links)
        with pytest.raises(OSError, match="no hard links, by which a folder is uploaded as it was"):
            Upload(url, title="test", cache=tmp_path).__enter__()
    files = fsspec.filesystem("memory")
    pipe = files.pipe_file
    monkeypatch.setattr(
        type(files), "pipe_file", lambda self, path, value, mode="overwrite": pipe(path, value)
    )
    with pytest.raises(StorageError, match=r"creates an object that is there already .*If-None-M"):
        Upload(url, title="test", cache=tmp_path).__enter__()
    assert Store(url).numbers() == []


def test_what_was_not_uploaded_is_kept_where_another_went_on(url, tmp_path, capsys) -> None:

    def dies() -> None:
        with Upload(url, title="one", cache=tmp_path / "a") as one:
            write_atomically(one.folder / "stage/state", b"1")
            raise Died

    with pytest.raises(Died):
        dies()
    assert f"what was not uploaded to {url} yet is in" in capsys.readouterr().err
    with Upload(url, title="two", cache=tmp_path / "b") as two:
        assert not two.folder.exists()
        write_atomically(two.folder / "stage/state", b"2")
    with Upload(url, title="one", cache=tmp_path / "a") as one:
        assert (one.folder / "stage/state").read_bytes() == b"2"
    assert "was written by process" in capsys.readouterr().err
    (kept,) = (tmp_path / "a/stores").glob("*-kept-*")
    assert files_of(kept) == {"run/stage/state": b"1"} and stored(url) == {"stage/state": b"2"}


def test_a_folder_that_was_deleted_here_is_fetched_and_nothing_is_removed(url, tmp_path) -> None:
    session(url, tmp_path)
    before = stored(url)
    (folder,) = (tmp_path / "stores").glob("writing-*/run")
    shutil.rmtree(folder)
    with Upload(url, title="again", cache=tmp_path) as run:
        assert files_of(run.folder) == before
    assert stored(url) == before


def test_what_lies_there_already_is_gone_on_from(url, tmp_path) -> None:
    """Copied there with another tool, and beside it a store of armlet's own."""
    objects = StoredObjects(url)
    objects.write("stage/state.json", b'{"step": 2}')
    objects.write("stage/log", b'{"step": 1}\n{"step": 2}\n')
    session(f"{url}/other", tmp_path / "other")
    session(url, tmp_path / "cache")
    found = stored(url)
    assert json.loads(found["stage/state.json"]) == {"step": STEPS}
    listed = Store(url).listing().files
    assert "made/one" in listed and not any(name.startswith("other/") for name in listed)
    assert len(files_of(mirrored(f"{url}/other", cache=tmp_path))) == 5


def test_a_url_within_what_is_written_as_a_whole_is_refused(url, tmp_path) -> None:
    session(url, tmp_path)
    with pytest.raises(ValueError, match=rf"{url}/made is part of {url}, which armlet writes as a"):
        Upload(f"{url}/made", title="x", cache=tmp_path).__enter__()


def test_the_work_goes_on_while_a_store_does_not_answer(url, tmp_path, monkeypatch, capsys) -> None:
    put = StoredObjects.put
    fails = [True]

    def failing(objects, name, path) -> None:
        if fails[0]:
            raise StorageError(5, "it does not answer")
        put(objects, name, path)

    monkeypatch.setattr(StoredObjects, "put", failing)
    with Upload(url, title="test", cache=tmp_path) as run, watching(run):
        progress = Progress("work", total=3)
        for step in range(3):
            fails[0] = step < 2
            write_atomically(run.folder / "state", str(step).encode())
            progress.advance()
    said = capsys.readouterr().err
    assert said.count("test: not uploaded now (") == 2 and stored(url) == {"state": b"2"}
    fails[0] = True
    run = Upload(url, title="test", cache=tmp_path).__enter__()
    write_atomically(run.folder / "state", b"3")
    with pytest.raises(StorageError, match=r"all is made, .*; the same command uploads"):
        run.__exit__(None, None, None)
    assert stored(url) == {"state": b"2"}
    fails[0] = False
    with Upload(url, title="test", cache=tmp_path) as run:
        assert (run.folder / "state").read_bytes() == b"3"
    assert stored(url) == {"state": b"3"}


def test_a_file_that_grows_or_is_cut_while_it_is_uploaded(url, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(moment, "LARGE", 1000)
    put = StoredObjects.put
    sizes: list[int] = []
    meanwhile: list = []

    def watched(objects, name, path) -> None:
        if meanwhile:
            meanwhile.pop()()
        put(objects, name, path)
        sizes.append(path.stat().st_size)

    monkeypatch.setattr(StoredObjects, "put", watched)
    with Upload(url, title="test", cache=tmp_path) as run, watching(run):
        progress = Progress("work", total=9)
        path = run.folder / "rows.bin"

        def grow(count: int) -> None:
            with path.open("ab") as file:
                file.write(os.urandom(count))

        path.parent.mkdir(parents=True, exist_ok=True)
        grow(1200)
        progress.advance()
        grow(100)
        progress.advance()
        assert sizes == [1200], "not for a little more"
        os.utime(path, (time.time() - 100,) * 2)
        progress.advance()
        assert sizes == [1200, 1300], "but when there is no more to come"
        grow(700)
        # Grown after it was looked at: what was seen is sent.
        digest = upload.digest

        def late(path_of, size):
            if not meanwhile and len(sizes) == 2:
                with path.open("ab") as file:
                    file.write(b"more")
            return digest(path_of, size)

        monkeypatch.setattr(upload, "digest", late)
        progress.advance()
        monkeypatch.setattr(upload, "digest", digest)
        assert sizes == [1200, 1300, 2000]
        seen = mirrored(url, cache=tmp_path / "reader") / "rows.bin"
        assert seen.read_bytes() == path.read_bytes()[:2000]
        # Cut off while it is sent: it is not listed, and sent again later.
        grow(2000)
        meanwhile.append(lambda: os.truncate(path, 10))
        progress.advance()
        assert Store(url).listing().files["rows.bin"].size == 2000
    assert stored(url) == {"rows.bin": path.read_bytes()}


def test_a_writer_that_slept_while_others_wrote_is_told(url, monkeypatch) -> None:
    store = Store(url)
    for number in range(1, 6):
        assert store.create(Listing(number, {"a": Entry(1, "0" * 64, "a")}, "w", "h", 1))
    assert store.numbers() == [4, 5]
    assert not store.create(Listing(5)) and not store.create(Listing(2))
    assert store.numbers() == [4, 5] and store.listing().files["a"].size == 1


def test_a_list_of_which_another_made_the_next_at_once_counts(url, monkeypatch) -> None:
    numbers = Store.numbers

    def meanwhile(store) -> list[int]:
        monkeypatch.setattr(Store, "numbers", numbers)
        assert Store(url).create(Listing(2))
        return numbers(store)

    monkeypatch.setattr(Store, "numbers", meanwhile)
    assert Store(url).create(Listing(1)), "the next was made of this one"
    assert Store(url).numbers() == [1, 2]


def test_traces_of_a_run_are_read_in_blocks_and_written_whole(url, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("armlet.data.mirror.BLOCK", 1000)
    columns = {"answer": ((20,), "float32")}
    identity = StoreIdentity("d", "t", "p")
    keys = np.stack([np.zeros(90, np.int64), np.arange(90)], 1)
    values = {"answer": np.random.default_rng(0).normal(size=(90, 20)).astype(np.float32)}

    def append(root: Path, rows: slice) -> None:
        with TraceWriter(root, identity, columns, shard_bytes=80 * 40) as writer:
            writer.append(keys[rows], {"answer": values["answer"][rows]})

    with Upload(url, title="probe", cache=tmp_path / "a") as run:
        append(run.folder / "traces", slice(0, 50))
    reading = ("traces/rows-*.bin",)
    with Upload(url, title="distil", cache=tmp_path / "b", in_blocks=reading) as run:
        store = TraceStore(run.folder / "traces")
        assert InBlocks.of(run.folder / "traces") is not None
        assert (store.read(keys[40:42])["answer"].numpy() == values["answer"][40:42]).all()
        assert (run.folder / "traces/rows-000.bin.blocks").read_bytes().count(b"\0") == 4
        append(run.folder / "round-0/traces", slice(0, 90))
    # A probe on that machine, which had only blocks of them.
    with Upload(url, title="probe", cache=tmp_path / "b") as run:
        append(run.folder / "traces", slice(50, 90))
        assert InBlocks.of(run.folder / "traces") is None
    for folder in ("traces", "round-0/traces"):
        found = TraceStore(mirrored(f"{url}/{folder}", cache=tmp_path / "c")).read(keys)
        assert (found["answer"].numpy() == values["answer"]).all()


def test_blocks_are_found_when_their_object_has_got_another_name(
    url, tmp_path, monkeypatch
) -> None:
    """Begun to be read while their writer was at work, and read on when it had ended."""
    monkeypatch.setattr("armlet.data.mirror.BLOCK", 1000)
    identity = StoreIdentity("d", "t", "p")
    keys = np.stack([np.zeros(90, np.int64), np.arange(90)], 1)
    values = np.random.default_rng(0).normal(size=(90, 20)).astype(np.float32)
    reading = {"title": "distil", "cache": tmp_path / "b", "in_blocks": ("traces/rows-*.bin",)}

    def read(root: Path, rows: slice) -> None:
        found = TraceStore(root).read(keys[rows])["answer"].numpy()
        assert (found == values[rows]).all()

    with Upload(url, title="probe", cache=tmp_path / "a") as run:
        with TraceWriter(run.folder / "traces", identity, {"answer": ((20,), "float32")}) as writer:
            writer.append(keys, {"answer": values})
        run._commit(run._seen(lag=False))
        read(mirrored(f"{url}/traces", cache=tmp_path / "c"), slice(0, 9))
        with Upload(url, **reading) as other:
            read(other.folder / "traces", slice(0, 9))
    assert not StoredObjects(url).names(".armlet/versions")
    read(mirrored(f"{url}/traces", cache=tmp_path / "c"), slice(0, 90))
    with Upload(url, **reading) as other:
        read(other.folder / "traces", slice(0, 90))
    with Upload(url, title="probe", cache=tmp_path / "b") as run:
        read(run.folder / "traces", slice(0, 90))


def test_what_is_printed_and_recorded_says_the_url(url, tmp_path) -> None:
    with Upload(url, title="test", cache=tmp_path) as run:
        assert told(f"see {run.folder}/evaluation") == f"see {url}/evaluation"


def delete_all(url: str) -> None:
    fsspec.filesystem("memory").rm(f"/{url.removeprefix('memory://')}", recursive=True)


@pytest.mark.parametrize("when", ["between two uploads", "while it settles"])
def test_what_is_deleted_while_a_verb_writes_there_is_uploaded_anew(
    when: str, url, tmp_path, monkeypatch, capsys
) -> None:
    copy = StoredObjects.copy
    settles = when == "while it settles"
    deleted = []

    def late(objects, name, to) -> None:
        if settles and not deleted:
            deleted.append(name)
            delete_all(url)
        copy(objects, name, to)

    monkeypatch.setattr(StoredObjects, "copy", late)
    with Upload(url, title="test", cache=tmp_path) as run, watching(run):
        progress = Progress("work", total=3)
        for step in range(3):
            write_atomically(run.folder / f"made/{step}", b"x" * (step + 1))
            progress.advance()
            if step == 1 and not settles:
                delete_all(url)
    wanted = files_of(run.folder)
    assert stored(url) == wanted and len(wanted) == 3
    assert files_of(mirrored(url, cache=tmp_path / "reader")) == wanted
    said = capsys.readouterr().err
    assert ("was deleted meanwhile; all that is here is uploaded" in said) == (not settles)
    with Upload(url, title="test", cache=tmp_path) as run:
        assert files_of(run.folder) == wanted
    assert stored(url) == wanted


def test_what_was_deleted_and_listed_again_is_uploaded_by_the_same_command(
    url, tmp_path, capsys
) -> None:
    """As an upload between the deletion and the next list leaves it."""
    session(url, tmp_path)
    wanted = stored(url)
    latest = Store(url).listing()
    delete_all(url)
    assert Store(url).create(latest)
    session(url, tmp_path)
    assert stored(url) == wanted
    assert f"{url}/made/one was lost; it is uploaded again" in capsys.readouterr().err
    assert files_of(mirrored(url, cache=tmp_path / "reader")) == wanted


@pytest.mark.parametrize("content", [None, b"cut"])
def test_an_object_that_the_store_lost_is_uploaded_from_the_folder(
    content: bytes | None, url, tmp_path
) -> None:
    session(url, tmp_path / "cache")
    wanted = stored(url)
    objects = StoredObjects(url)
    objects.remove("made/one")
    if content is not None:
        objects.write("made/one", content)
    session(url, tmp_path / "cache")
    assert stored(url) == wanted and not objects.names(".armlet/versions")
    assert files_of(mirrored(url, cache=tmp_path / "reader")) == wanted


def test_an_object_that_the_store_lost_is_made_anew_on_another_machine(
    url, tmp_path, capsys
) -> None:
    session(url, tmp_path / "cache")
    wanted = stored(url)
    objects = StoredObjects(url)
    # One that is damaged, and may be whole elsewhere, is not made anew unless it is removed.
    objects.write("made/one", b"cut")
    with pytest.raises(
        StorageError, match=rf"{url}/made/one: 3 bytes are there and 300 are listed"
    ):
        session(url, tmp_path / "other")
    objects.remove("made/one")
    with pytest.raises(FileNotFoundError, match=rf"{url}/made/one is listed and is gone; run the"):
        mirrored(url, cache=tmp_path / "reader")
    session(url, tmp_path / "other")
    assert f"{url}/made/one was lost; it is made anew" in capsys.readouterr().err
    assert stored(url) == wanted
    assert files_of(mirrored(url, cache=tmp_path / "reader")) == wanted


def test_what_replaced_a_lost_file_here_is_kept(url, tmp_path) -> None:
    session(url, tmp_path)
    StoredObjects(url).remove("made/one")
    (folder,) = (tmp_path / "stores").glob("writing-*/run")
    write_atomically(folder / "made/one", b"newer")
    with Upload(url, title="test", cache=tmp_path) as run:
        assert (run.folder / "made/one").read_bytes() == b"newer"
    assert stored(url) == files_of(run.folder) and not [*tmp_path.glob("stores/*-kept-*")]


def test_what_is_being_moved_is_not_lost(url, tmp_path, monkeypatch, capsys) -> None:
    """Another ends between the list that is read and the look at its objects."""
    entries = StoredObjects.entries
    one = Upload(url, title="one", cache=tmp_path / "a").__enter__()
    write_atomically(one.folder / "made/one", b"1")
    one._commit(one._seen(lag=False))

    def late(objects) -> dict[str, tuple[int, str]]:
        monkeypatch.setattr(StoredObjects, "entries", entries)
        one.__exit__(None, None, None)
        return entries(objects)

    monkeypatch.setattr(StoredObjects, "entries", late)
    with Upload(url, title="two", cache=tmp_path / "b") as two:
        assert files_of(two.folder) == {"made/one": b"1"}
    assert "was lost" not in capsys.readouterr().err and stored(url) == {"made/one": b"1"}


def test_a_file_that_is_read_in_blocks_and_lost_is_not_uploaded_in_part(url, tmp_path) -> None:
    with Upload(url, title="one", cache=tmp_path / "a") as run:
        write_atomically(run.folder / "traces/rows-000.bin", b"1" * 100)
    reading = {"title": "two", "cache": tmp_path / "b", "in_blocks": ("traces/rows-*.bin",)}
    with Upload(url, **reading) as run:
        delete_all(url)
        write_atomically(run.folder / "made", b"2")
    assert stored(url) == {"made": b"2"}
    with Upload(url, title="one", cache=tmp_path / "a") as run:
        write_atomically(run.folder / "traces/rows-000.bin", b"1" * 100)
    with Upload(url, **reading) as run:
        StoredObjects(url).remove("traces/rows-000.bin")
    with Upload(url, **reading) as run:
        assert not (run.folder / "traces/rows-000.bin").exists()
    assert stored(url) == {"made": b"2"}


def test_a_damaged_note_of_what_is_uploaded_is_named(url, tmp_path) -> None:
    session(url, tmp_path)
    (path,) = (tmp_path / "stores").glob("writing-*/state.json")
    content = path.read_bytes()
    for whole, damaged in (
        (b'"token"', b'"tokeo"'),
        (b'"local"', b'"mocal"'),
        (b'"entry"', b'"entsy"'),
        (b'"size"', b'"sire"'),
        (b'"process": ', b'"process": -1.5e'),
        (b'"stamp": [', b'"stamp": [1, '),
        (b'"made/one": {', b'"/ade/one": {'),
    ):
        assert whole in content
        path.write_bytes(content.replace(whole, damaged, 1))
        with pytest.raises(
            ValueError, match=rf"{path} is damaged: .*; delete {path.parent}, and it"
        ):
            session(url, tmp_path)
    path.write_bytes(content)
    session(url, tmp_path)
