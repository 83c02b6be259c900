"""Verbs that read and write URLs: what becomes of their fields and arguments; and the whole line on
S3, a server process on loopback, with real processes that are killed (`make test-s3`)."""

# ruff: noqa: F811 - fixtures are named as arguments

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from forked import PATIENCE, Verb
from outside import reaching
from test_object_storage import S3, bucket, server  # noqa: F401 - fixtures

from armlet import stores
from armlet.data.mirror import mirrored
from armlet.data.object_storage import StorageError, StoredObjects
from armlet.data.store import Store
from armlet.data.traces import TraceStore
from armlet.evaluation.settings import contenders
from armlet.policies.checkpoint import policy_fingerprint
from armlet.recipe import at_hand, to_json
from armlet.shards import Shards

TESTS = Path(__file__).parent


@pytest.fixture
def place(request, tmp_path, monkeypatch):
    """A URL in the memory of this process."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    name = f"stores-{abs(hash(request.node.name))}"
    yield f"memory://{name}"
    files = fsspec.filesystem("memory")
    if files.exists(f"/{name}"):
        files.rm(f"/{name}", recursive=True)


def test_fields_that_a_verb_writes_to_become_folders(place: str, tmp_path) -> None:
    local = reaching()
    with stores.written(local, "teach") as recipe:
        assert recipe is local and not stores.is_written_to(local, "teach")
    asked = dataclasses.replace(
        local, out=Path(f"{place}/run"), teacher=Path(f"{place}/run/teacher")
    )
    assert stores.is_written_to(asked, "teach") and not stores.is_written_to(local, "collect")
    with stores.written(asked, "teach") as recipe:
        assert recipe.teacher == recipe.out / "teacher" and recipe.out.name == "run"
        assert to_json(recipe)["out"] == f"{place}/run", "as it was asked for"
        recipe.teacher.mkdir(parents=True)
        (recipe.teacher / "config.json").write_text("{}")
    assert list(Store(f"{place}/run").listing().files) == ["teacher/config.json"]
    # The teacher is read there from now on, by a verb that writes elsewhere.
    read = at_hand(dataclasses.replace(asked, out=tmp_path), reads=("teacher",))
    assert (read.teacher / "config.json").read_text() == "{}"
    asked = dataclasses.replace(local, episodes=Path(f"{place}/set"), shared=Path(f"{place}/all"))
    with stores.written(asked, "collect") as recipe:
        assert recipe.episodes.name == "set" and recipe.shared == asked.shared


def test_a_program_that_calls_a_verb_itself_is_told_how(place: str) -> None:
    asked = dataclasses.replace(reaching(), out=Path(f"{place}/run"))
    with pytest.raises(ValueError, match=r"--out memory:.*with armlet\.stores\.written\(recipe"):
        at_hand(asked, reads=())


def test_processes_that_share_the_work_meet_where_it_is_written(place: str) -> None:
    asked = dataclasses.replace(reaching(), out=Path(f"{place}/run"), shards=Shards("processes"))
    with stores.written(asked, "evaluate") as one, stores.written(asked, "evaluate") as two:
        assert one.shards.at == two.shards.at == f"{place}/run/.armlet/shards"
        assert one.out != two.out


def test_policies_are_called_by_their_urls(place: str, tmp_path) -> None:
    urls = []
    for name in ("one/student", "two/student", "second/one"):
        StoredObjects(f"{place}/{name}").write("config.json", name.encode())
        urls.append(Path(f"{place}/{name}"))
    asked = dataclasses.replace(reaching(), policies=tuple(urls), teacher=tmp_path, out=tmp_path)
    read = at_hand(asked, reads=("policies",))
    assert [*contenders(read)][-3:] == ["one", "two", f"{place}/second/one"]


def page(policy: str, /, *, out: Path | None = None, others: tuple[str, ...] = ()) -> str:
    """As the verbs about places are."""
    (out or Path("beside")).mkdir(parents=True, exist_ok=True)
    (out or Path("beside")).joinpath("page").write_text(Path(policy, "config.json").read_text())
    return str(out)


def test_verbs_about_folders_take_urls(place: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(stores.READS_PLACES, "plan", ("policy", "others"))
    StoredObjects(f"{place}/student").write("config.json", b"{}")
    plan = stores.of_places(page, "plan")
    plan(f"{place}/student", out=Path(f"{place}/plan"), others=(f"{place}/student",))
    assert StoredObjects(f"{place}/plan").read("page") == b"{}"
    plan(f"{place}/student", out=tmp_path / "plan")
    assert (tmp_path / "plan/page").read_text() == "{}"
    for verb, message in (
        ("export", r"export writes beside what it reads, .* say where, with --out"),
        ("status", r"armlet status takes no URL of a store as --policy .* give a folder here"),
    ):
        monkeypatch.setitem(stores.READS_PLACES, "export", ("policy",))
        with pytest.raises(ValueError, match=message):
            stores.of_places(page, verb)(f"{place}/student")
    with pytest.raises(ValueError, match=r"armlet report takes no URL of a store as --out"):
        stores.of_places(page, "report")("here", out=Path(f"{place}/page.html"))


def test_places_that_are_named_are_arguments_of_their_verbs() -> None:
    import importlib
    import inspect

    for table in (stores.READS_PLACES, stores.WRITES_PLACES):
        for verb, names in table.items():
            there = inspect.signature(importlib.import_module(f"armlet.{verb}").main).parameters
            assert {names} if isinstance(names, str) else set(names) <= there.keys(), verb


# On S3.


class Line:
    """The whole line, each verb a process of its own, with a home of its own: as on as many
    machines."""

    def __init__(self, folder: Path, where: str) -> None:
        self.folder = folder
        self.where = where
        self.homes = 0

    def options(self, *more: str) -> list[str]:
        return [
            "--episodes", f"{self.where}/episodes", "--teacher", f"{self.where}/teacher",
            "--out", f"{self.where}/run", "--collection.episodes", "12",
            "--teach.checkpoint-every", "4", "--teach.steps", "24",
            "--stages.0.steps", "24", "--stages.0.checkpoint-every", "4",
            "--evaluation.videos", "1", *more,
        ]  # fmt: skip

    def start(self, verb: str, *, home: str = "") -> Verb:
        self.homes += 1
        environment = dict(os.environ)
        environment["HOME"] = str(self.folder / (home or f"home-{self.homes}"))
        environment["MPLCONFIGDIR"] = str(
            self.folder.parent / "fonts"
        )  # found once, not in each home
        arguments = [verb, "outside:reaching", *self.options(), "--debug"]
        return Verb(arguments, environment, self.folder / f"said-{self.homes}")

    def run(self, verb: str, *, home: str = "") -> str:
        code, said = self.start(verb, home=home).ended()
        assert code == 0, said[-3000:]
        return said

    def killed(self, verb: str, when: Callable[[], bool], *, home: str = "") -> None:
        """Kill a verb as soon as something is so, which it must not be too late for."""
        started = self.start(verb, home=home)
        end = time.monotonic() + PATIENCE
        while not when():
            assert started.runs and time.monotonic() < end, started.ended()[1][-3000:]
            time.sleep(0.02)
        started.kill()


@pytest.fixture(scope="module", autouse=True)
def imports() -> Iterator[None]:
    """What is forked finds the tests' own modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{TESTS}:{os.environ.get('PYTHONPATH', '')}")
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """What the line makes in folders of one machine."""
    folder = tmp_path_factory.mktemp("alone")
    line = Line(folder, str(folder))
    for verb in ("collect", "teach", "probe", "distil", "evaluate"):
        line.run(verb)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and ".cache" not in name and name != ".whole" and "lock" not in name:
            found[name] = path.read_bytes()
    return found


def listed(url: str) -> set[str]:
    try:
        return set(Store(url).listing().files)
    except StorageError:  # it is being made
        return set()


@pytest.mark.s3
@pytest.mark.timeout(3600)
def test_the_whole_line_on_s3_killed_in_every_verb_makes_what_folders_do(
    alone,
    bucket,
    server,
    tmp_path,
) -> None:
    line = Line(tmp_path, bucket)
    run = f"{bucket}/run"

    def reader(place: str) -> Path:
        return mirrored(place, cache=tmp_path / "reader")

    line.killed("collect", lambda: any(".staging" in name for name in listed(f"{bucket}/episodes")))
    assert "meta/info.json" not in listed(f"{bucket}/episodes"), "half a set is none"
    line.run("collect")
    assert files_of(reader(f"{bucket}/episodes")) == files_of(alone / "episodes")

    line.killed("teach", lambda: "teach/state.pt" in listed(run))
    assert listed(f"{bucket}/teacher") == set()
    with pytest.raises(FileNotFoundError, match=r"nothing is at .*/teacher"):
        reader(f"{bucket}/teacher")
    line.run("teach")
    assert policy_fingerprint(reader(f"{bucket}/teacher")) == policy_fingerprint(alone / "teacher")

    line.killed("probe", lambda: "probe/stage.json" in listed(run))
    line.run("probe")
    store = TraceStore(reader(f"{run}/traces"))
    wanted = TraceStore(alone / "run/traces")
    assert (store.keys == wanted.keys).all()
    rows = store.read(store.keys)
    for name, values in wanted.read(store.keys).items():
        assert (rows[name] == values).all(), name
    for name in ("keys.bin", "rows-000.bin", "header.json"):
        there = StoredObjects(run).read(f"traces/{name}")
        assert there == (alone / "run/traces" / name).read_bytes()

    line.killed("distil", lambda: "distil-0/state.pt" in listed(run))
    with pytest.raises(FileNotFoundError, match=rf"nothing is at {run}/student yet"):
        reader(f"{run}/student")
    line.run("distil")
    student = policy_fingerprint(reader(f"{run}/student"))
    assert student == policy_fingerprint(alone / "run/student")

    line.killed("evaluate", lambda: "evaluation/episodes.jsonl" in listed(run))
    # Where it is done, and gives its files their names: one of them is not taken.
    server.faults(("PUT", r"run/evaluation/report\.json", "503 SlowDown", 10**6))
    log = "evaluation/episodes.jsonl"
    line.killed("evaluate", lambda: StoredObjects(run).read(log) is not None, home="settling")
    server.faults()
    entries = Store(run).listing().files
    assert entries[log].at != log, "what has its name is not listed by it yet"
    assert (reader(run) / log).is_file()
    line.run("evaluate")
    name = "evaluation/outcomes.json.gz"
    assert (reader(run) / name).read_bytes() == (alone / "run" / name).read_bytes()
    report = (reader(run) / "evaluation/report.json").read_text()
    assert "/stores/" not in report and f"{bucket}/episodes" in report

    # All under its own name, for any tool; and again, nothing is made anew.
    objects = StoredObjects(run)
    assert all(entry.at == name for name, entry in Store(run).listing().files.items())
    before = objects.entries()["student/model.safetensors"]
    assert "was distilled exactly so already" in line.run("distil")
    assert objects.entries()["student/model.safetensors"] == before
    server.faults()


@pytest.mark.s3
@pytest.mark.timeout(3600)
def test_what_a_store_refuses_is_said_before_the_work(
    bucket,
    server,
    tmp_path,
) -> None:
    code, said = Line(tmp_path, "s3://nobodys/x").start("collect").ended()
    assert code and "there is no such bucket" in said
    for fault, message in (
        ("403 AccessDenied", "may not do this here"),
        ("403 SignatureDoesNotMatch", "does not take these credentials"),
        ("507 XMinioStorageFull", "the store is full"),
        ("unconditional", "it does not know If-None-Match"),
    ):
        server.faults(("PUT", r"\.armlet", fault, 99))
        code, said = Line(tmp_path, bucket).start("collect").ended()
        assert code and message in said and "episode" not in said, said
    server.faults()


# A verb that is told by its standard input what to write next.
SMALL_VERB = """
import sys
from armlet.data import upload
from armlet.data.files import write_atomically
with upload.Upload(sys.argv[1], title="small") as run:
    for line in sys.stdin:
        if line == "upload\\n":
            run._commit(run._seen(lag=False))
        else:
            name, content = line.split()
            write_atomically(run.folder / name, content.encode())
        print("done", flush=True)
"""


class Small:
    """A process that runs it, with a home of its own."""

    def __init__(self, url: str, home: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SMALL_VERB, url],
            env={**os.environ, "HOME": str(home)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def does(self, *lines: str) -> "Small":
        for line in lines:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
            assert self.process.stdout.readline() == "done\n", self.process.stderr.read()
        return self

    def ended(self) -> tuple[int, str]:
        said = self.process.communicate(timeout=PATIENCE)[1]
        return self.process.returncode, said


@pytest.mark.s3
@pytest.mark.timeout(3600)
def test_who_is_killed_while_files_get_their_names_leaves_one_moment(
    bucket, server: S3, tmp_path
) -> None:
    Small(bucket, tmp_path / "home").does("a/one 1", "a/two 1").ended()
    small = Small(bucket, tmp_path / "home").does("a/one 2", "a/two 2")
    server.faults(("PUT", "/a/two", "503 SlowDown", 10**6))
    small.process.stdin.close()
    objects = StoredObjects(bucket)
    while objects.read("a/one") != b"2":
        assert small.process.poll() is None, small.process.stderr.read()
    small.process.kill()
    small.process.wait()
    server.faults()
    assert objects.read("a/two") != b"2", "objects of two moments"
    for home in ("reader", "home", "elsewhere"):
        if home != "reader":
            code, said = Small(bucket, tmp_path / home).ended()
            assert code == 0, said
        found = files_of(mirrored(bucket, cache=tmp_path / "reader"))
        assert found == {"a/one": b"2", "a/two": b"2"}
    assert objects.read("a/two") == b"2" and objects.names(".armlet/versions") == []


@pytest.mark.s3
@pytest.mark.timeout(3600)
def test_a_second_process_at_once_is_refused_or_told(bucket, tmp_path) -> None:
    first = Small(bucket, tmp_path / "here").does("a/one 1", "upload")
    code, said = Small(bucket, tmp_path / "here").ended()
    assert code and f"another process is writing to {bucket}" in said
    # On another machine: another part of the run, and then the same.
    assert Small(bucket, tmp_path / "there").does("b/one 2").ended()[0] == 0
    second = Small(bucket, tmp_path / "there").does("a/two 2")
    first.does("a/two 1", "upload")
    code, said = second.ended()
    assert code and "has written a/two meanwhile, which this one writes, too" in said
    assert first.ended()[0] == 0
    found = files_of(mirrored(bucket, cache=tmp_path / "reader"))
    assert found == {"a/one": b"1", "a/two": b"1", "b/one": b"2"}


@pytest.mark.s3
@pytest.mark.timeout(3600)
def test_uploads_outlast_a_store_that_fails_and_loses_answers(
    bucket,
    server: S3,
    tmp_path,
    monkeypatch,
) -> None:
    from armlet.data.upload import Upload

    server.faults(
        ("PUT", "versions", "503 SlowDown", 2),
        ("PUT", r"000002\.json", "lost", 1),
        ("PUT", "made/", "500 InternalError", 2),
        ("GET", "made/", "cut", 1),
    )
    with Upload(bucket, title="test", cache=tmp_path) as run:
        for name in ("one", "two"):
            path = run.folder / "made" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.urandom(20 * 2**20))  # in several parts
    found = mirrored(bucket, cache=tmp_path / "reader")
    assert files_of(found) == files_of(run.folder)
    assert len(Store(bucket).listing().files) == 2
