"""Objects on S3: a real server process on loopback, healthy and ill (`make test-s3`); and what needs
none."""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from armlet.data import object_storage
from armlet.data.claims import Claims, Worker
from armlet.data.mirror import mirrored
from armlet.data.object_storage import StorageError, StoredObjects
from armlet.data.objects import open_objects
from armlet.data.traces import StoreIdentity, TraceStore, TraceWriter

SERVER = Path(__file__).with_name("s3_server.py")


@pytest.mark.parametrize("url", ["gs://bucket/x", "https://host/x", "hf://user/set"])
def test_stores_that_create_without_condition_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"armlet knows this of s3://, memory:// and folders"):
        open_objects(url)


def test_a_missing_extra_is_named(monkeypatch) -> None:
    def missing(name: str):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(object_storage.importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r"s3://b/p needs .* pip install -e '\.\[s3\]'"):
        open_objects("s3://b/p")


def test_objects_in_memory_behave_as_those_in_a_folder(tmp_path: Path) -> None:
    for objects in (open_objects("memory://here"), open_objects(str(tmp_path))):
        behaves(objects)


def behaves(objects) -> None:
    assert objects.read("a/one") is None and objects.names("a") == []
    assert objects.create("a/one", b"1")
    assert not objects.create("a/one", b"2") and objects.read("a/one") == b"1"
    objects.write("a/one", b"3")
    objects.write("a/two", b"")
    assert objects.read("a/one") == b"3" and objects.read("a/two") == b""
    assert objects.names("a") == ["one", "two"]
    objects.remove("a/one")
    objects.remove("a/one")
    assert objects.names("a") == ["two"]


class S3:
    """The server; each test has a bucket of its own."""

    def __init__(self, port: str) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"

    def faults(self, *faults: tuple[str, str, str, int]) -> dict[str, int]:
        named = []
        for fault in faults:
            named.append(dict(zip(("method", "path", "do", "times"), fault, strict=True)))
        request = urllib.request.Request(
            f"{self.endpoint}/_faults", json.dumps(named).encode(), method="POST"
        )
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read())


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    process = subprocess.Popen(
        [sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # of another module's server
    with pytest.MonkeyPatch.context() as patch:
        s3 = S3(process.stdout.readline().strip())
        patch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield s3
    process.stdin.close()
    process.wait(20)


@pytest.fixture
def bucket(server: S3, request) -> Iterator[str]:
    import boto3

    name = f"b{abs(hash(request.node.name)) % 10**9}"
    boto3.client("s3").create_bucket(Bucket=name)
    yield f"s3://{name}/some/prefix"
    server.faults()


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(object_storage, "FIRST_PAUSE", 0.01)


@pytest.mark.s3
def test_objects_on_s3_behave_as_those_in_a_folder(bucket: str) -> None:
    behaves(open_objects(bucket))


@pytest.mark.s3
def test_of_many_that_create_an_object_on_s3_one_does(bucket: str) -> None:
    for number in range(5):
        told = []
        start = threading.Barrier(6)

        def create(mine: int, number=number, told=told, start=start) -> None:
            objects = open_objects(bucket)
            start.wait()
            told.append((objects.create(f"x/{number}", b"%d" % mine), b"%d" % mine))

        threads = [threading.Thread(target=create, args=(mine,)) for mine in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (content,) = [content for created, content in told if created]
        assert open_objects(bucket).read(f"x/{number}") == content


@pytest.mark.s3
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (("PUT", "x/a", "403 AccessDenied", 9), "may not do this here; allow them"),
        (("PUT", "x/a", "403 RequestTimeTooSkewed", 9), "clock is wrong"),
        (("PUT", "x/a", "403 InvalidAccessKeyId", 9), "does not take these credentials"),
        (("PUT", "x/a", "507 XMinioStorageFull", 9), "the store is full, .* free some room there"),
        (("PUT", "x/a", "403 QuotaExceeded", 9), "the store is full, .* free some room there"),
        (("PUT", "x/a", "503 SlowDown", 10**6), "asked 5 times; the store does not answer"),
        (("PUT", "x/a", "500 InternalError", 10**6), "asked 5 times; the store does not answer"),
    ],
)
def test_what_a_store_refuses_is_one_sentence(server: S3, bucket: str, fault, message) -> None:
    server.faults(fault)
    with pytest.raises(StorageError, match=f"{bucket}/x/a: .*{message}"):
        open_objects(bucket).create("x/a", b"1")
    server.faults()
    assert open_objects(bucket).read("x/a") is None


@pytest.mark.s3
def test_what_passes_is_waited_for(server: S3, bucket: str) -> None:
    objects = open_objects(bucket)
    server.faults(("PUT", "x/a", "503 SlowDown", 2), ("GET", "x/a", "500 InternalError", 2))
    assert objects.create("x/a", b"1") and objects.read("x/a") == b"1"
    server.faults(("PUT", "x/b", "409 ConditionalRequestConflict", 2))
    assert objects.create("x/b", b"1") and objects.read("x/b") == b"1"


@pytest.mark.s3
def test_a_create_whose_answer_was_lost_is_ours(server: S3, bucket: str) -> None:
    objects = open_objects(bucket)
    server.faults(("PUT", "x/a", "lost", 1))
    assert objects.create("x/a", b"mine")
    assert not objects.create("x/a", b"other") and objects.read("x/a") == b"mine"


@pytest.mark.s3
def test_a_body_that_is_cut_short_is_never_taken_for_whole(server: S3, bucket: str) -> None:
    claims = Claims(open_objects(bucket), 1)
    claims.publish(0, b"x" * 5000)
    server.faults(("GET", "results/000000", "cut", 1))
    assert claims.result(0) == b"x" * 5000, "asked again"
    server.faults(("GET", "results/000000", "cut", 10**6))
    with pytest.raises((StorageError, RuntimeError), match="results/000000"):
        claims.result(0)


@pytest.mark.s3
def test_a_bucket_that_is_not_there_and_credentials_that_are_missing(
    server: S3, bucket: str, monkeypatch
) -> None:
    for ask in (lambda each: each.create("a", b""), lambda each: each.read("a")):
        with pytest.raises(StorageError, match=r"s3://nobodys/x/a: there is no such bucket"):
            ask(open_objects("s3://nobodys/x"))
    with pytest.raises(StorageError, match="there is no such bucket"):
        open_objects("s3://nobodys/x").names("claims")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    with pytest.raises(StorageError, match="there are no credentials"):
        open_objects(bucket).create("a", b"")
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.s3
def test_workers_share_shards_on_s3_and_take_over_from_one_that_vanished(bucket: str) -> None:
    objects = open_objects(bucket)
    vanished = Worker(objects, lease=1.0)
    vanished._say()  # it lives, and is not heard of again
    said = json.loads(objects.read(f"workers/{vanished.name}.json"))
    objects.write(
        f"workers/{vanished.name}.json", json.dumps({**said, "computer": "another"}).encode()
    )
    assert Claims(objects, 6, vanished).next() is not None
    made: list[int] = []

    def work() -> None:
        with Worker(open_objects(bucket), lease=1.0) as worker:
            claims = Claims(open_objects(bucket), 6, worker)
            while not claims.all_finished:
                shard = claims.next()
                if shard is None:
                    time.sleep(0.1)
                elif claims.publish(shard, b"%d" % shard):
                    made.append(shard)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(made) == set(range(6))  # one may be made twice, where a sign of life was late
    assert list(Claims(objects, 6).results()) == [b"%d" % shard for shard in range(6)]


def test_requests_are_tried_again_a_bounded_number_of_times(monkeypatch) -> None:
    slept: list[float] = []
    objects = StoredObjects("memory://bounded", sleep=slept.append)
    tried = []

    def cat(path: str) -> bytes:
        tried.append(path)
        raise TimeoutError("no answer")

    monkeypatch.setattr(objects._files, "cat_file", cat)
    with pytest.raises(StorageError, match=r"memory://bounded/a: asked 5 times"):
        objects.read("a")
    assert len(tried) == 5 and slept == [0.01, 0.02, 0.04, 0.08]


def test_a_create_that_is_sent_again_meets_its_own_object(monkeypatch) -> None:
    """As above, without a server."""
    objects = StoredObjects("memory://again", sleep=lambda seconds: None)
    pipe = objects._files.pipe_file
    lost = [True]

    def lossy(path: str, content: bytes, **how) -> None:
        pipe(path, content, **how)
        if lost and lost.pop():
            raise ConnectionError("no answer")

    monkeypatch.setattr(objects._files, "pipe_file", lossy)
    assert objects.create("x/a", b"mine")
    assert not objects.create("x/a", b"other") and objects.read("x/a") == b"mine"


@pytest.mark.s3
def test_traces_on_s3_are_read_as_fast_as_here_after_the_first_epoch(
    bucket: str, tmp_path: Path, record_property
) -> None:
    """At least four fifths of the rows a second, in random batches, first reads of a process with
    their checksums; by processor time, as other processes are none of the store's."""
    import numpy as np
    import s3fs

    columns = {"answer": ((2048,), "float16")}  # 4 KB a row
    keys = np.stack([np.repeat(np.arange(80), 100), np.tile(np.arange(100), 80)], 1)
    rng = np.random.default_rng(0)
    with TraceWriter(tmp_path / "local", StoreIdentity("d", "t", "p"), columns) as writer:
        for some in np.array_split(np.arange(len(keys)), 20):
            writer.append(keys[some], {"answer": rng.normal(size=(len(some), 2048))})
    s3fs.S3FileSystem().put(f"{tmp_path}/local/", bucket.removeprefix("s3://"), recursive=True)
    there = mirrored(Path(bucket), cache=tmp_path / "cache")

    def epoch(root: Path) -> float:
        store = TraceStore(root)
        began = time.process_time()
        for batch in np.array_split(rng.permutation(len(keys)), 125):
            store.read(keys[batch])
        return len(keys) / (time.process_time() - began)

    began = time.perf_counter()
    epoch(there)
    first = len(keys) / (time.perf_counter() - began)
    rates = [(epoch(tmp_path / "local"), epoch(there)) for _ in range(5)]
    share = np.median([stored / local for local, stored in rates])
    record_property("share", float(share))
    print(f"rows a second: first epoch {first:.0f}, then (here, S3) {rates}, share {share:.3f}")  # noqa: T201
    assert share >= 0.8
