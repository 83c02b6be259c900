"""Work that several processes share: every shard is made, counts once, and is the same whoever made
it; whoever dies, and whenever."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from armlet.data import claims as module
from armlet.data import files
from armlet.data.claims import Claims, ShardError, Watch, Worker, begin, end, seal, unseal
from armlet.data.files import create_file
from armlet.data.objects import FolderObjects, open_objects
from armlet.data.packing import pack, unpack


def made(shard: int) -> bytes:
    return f"shard {shard}".encode() * 50


def clock_at(now: list[float]):
    return lambda: now[0]


class Kept:
    """Objects in memory: a property needs many, and none of them a disk."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def read(self, name: str) -> bytes | None:
        return self.objects.get(name)

    def create(self, name: str, content: bytes) -> bool:
        return self.objects.setdefault(name, content) is content

    def write(self, name: str, content: bytes) -> None:
        self.objects[name] = content

    def names(self, folder: str) -> list[str]:
        inside = [name for name in self.objects if name.startswith(f"{folder}/")]
        return sorted(name.removeprefix(f"{folder}/") for name in inside)

    def remove(self, name: str) -> None:
        self.objects.pop(name, None)


def say(objects, worker: str, count: int, **more) -> None:
    """As a worker on another computer says that it lives."""
    said = {"computer": "another", "process": 1, "count": count, "lease": 10.0, **more}
    objects.write(f"workers/{worker}.json", json.dumps(said).encode())


def test_of_many_that_create_an_object_one_does_and_it_is_whole(tmp_path: Path) -> None:
    for number in range(8):
        path = tmp_path / "folder" / f"{number}"
        start = threading.Barrier(8)
        told = []

        def create(mine: int, path=path, start=start, told=told) -> None:
            content = bytes([mine]) * 10_000
            start.wait()
            told.append((create_file(path, content), content))

        threads = [threading.Thread(target=create, args=(mine,)) for mine in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (content,) = [content for created, content in told if created]
        assert path.read_bytes() == content
    assert {path.name for path in (tmp_path / "folder").iterdir()} == set(map(str, range(8)))


def test_a_link_that_a_network_disk_made_and_forgot_to_say_is_ours(tmp_path, monkeypatch) -> None:
    link = os.link

    def lost(source, target) -> None:
        link(source, target)
        raise FileExistsError(target)

    monkeypatch.setattr(os, "link", lost)
    assert create_file(tmp_path / "a", b"mine")
    monkeypatch.setattr(os, "link", link)
    assert not create_file(tmp_path / "a", b"other") and (tmp_path / "a").read_bytes() == b"mine"


def test_of_two_that_say_they_are_the_same_process_one_creates(tmp_path, monkeypatch) -> None:
    """As on two machines of one hostname, both of which were just started."""
    path = tmp_path / "a"
    told = []
    link = os.link

    def linked(source, target) -> None:
        link(source, target)
        monkeypatch.setattr(os, "link", link)
        monkeypatch.setattr(files, "_numbers", itertools.count())
        told.append(create_file(path, b"other"))

    monkeypatch.setattr(os, "link", linked)
    monkeypatch.setattr(files, "_numbers", itertools.count())
    assert create_file(path, b"mine") and told == [False]
    assert path.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [path]


def test_a_disk_without_links_is_refused_by_name(tmp_path, monkeypatch) -> None:
    def link(*_) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(OSError, match=r"no hard links.*s3://.*'.*/a'"):
        create_file(tmp_path / "a", b"mine")
    assert not list(tmp_path.iterdir())


class Drawn:
    """Workers in one thread, in an order that is drawn: between any two steps of one (claim,
    publish) another acts, dies without a word, stalls for longer than its lease, wakes, or comes."""

    def __init__(self, seed: int, count: int) -> None:
        self.rng = random.Random(seed)
        self.objects = Kept()
        self.count = count
        self.now = [0.0]
        self.published: list[int] = []
        self.shards: dict[str, int | None] = {}
        self.claims: dict[str, Claims] = {}
        self.beats = 0
        self.living: list[str] = []
        self.stalled: list[str] = []
        self.deaths = module.TAKEN - 1  # one more over a single shard would be the shard's fault
        for _ in range(3):
            self.come()

    def come(self) -> None:
        worker = Worker(self.objects, lease=10.0)
        worker.name = f"drawn-{len(self.claims)}"
        clock = clock_at(self.now)
        self.claims[worker.name] = Claims(self.objects, self.count, worker, clock=clock)
        self.shards[worker.name] = None
        self.living.append(worker.name)

    def go(self) -> str:
        return self.living.pop(self.rng.randrange(len(self.living)))

    def act(self, name: str) -> None:
        shard = self.shards[name]
        if shard is None:
            self.shards[name] = self.claims[name].next()
            return
        self.shards[name] = None
        if self.claims[name].publish(shard, made(shard)):
            self.published.append(shard)

    def step(self) -> None:
        self.now[0] += self.rng.uniform(0, 3)
        self.beats += 1
        for name in self.living:
            say(self.objects, name, self.beats)
        drawn = self.rng.random()
        if drawn < 0.03 and self.deaths and len(self.living) > 1:
            self.deaths -= 1
            self.go()
        elif drawn < 0.06 and len(self.living) > 1:
            self.stalled.append(self.go())
        elif drawn < 0.09 and self.stalled:
            self.living.append(self.stalled.pop())
        elif drawn < 0.1:
            self.come()
        else:
            self.act(self.rng.choice(self.living))


@pytest.mark.parametrize("seed", range(20))
def test_however_workers_take_turns_die_and_stall_each_shard_counts_once(seed: int) -> None:
    count = 12
    drawn = Drawn(seed, count)
    looks_on = Claims(drawn.objects, count)
    for _ in range(2000):
        drawn.step()
        if looks_on.all_finished:
            break
    assert sorted(drawn.published) == list(range(count))
    for name in drawn.stalled:  # whoever wakes up when all is done changes nothing
        if drawn.shards[name] is not None:
            drawn.act(name)
    assert sorted(drawn.published) == list(range(count))
    assert list(looks_on.results()) == [made(shard) for shard in range(count)]


def test_a_shard_of_one_who_lives_is_not_taken_however_long_it_needs(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path)
    now = [0.0]
    objects.create("claims/000000.00", b"slow")
    with Worker(objects, lease=10.0) as worker:
        claims = Claims(objects, 1, worker, clock=clock_at(now))
        for count in range(20):
            say(objects, "slow", count, time=1e12 * (-1) ** count)  # its clock is mad
            now[0] += 9.0
            assert claims.next() is None
        # Its number stands still from here on.
        now[0] += 9.9
        assert claims.next() is None
        now[0] += 0.2
        assert claims.next() == 0
        assert claims.next() is None, "and now it is this worker's own"
    assert objects.names("claims") == ["000000.00", "000000.01"]


def test_a_process_of_this_computer_that_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    watch = Watch(objects, clock=lambda: 0.0)
    say(objects, "gone", 1, computer=module.computer(), process=gone.pid)
    say(objects, "here", 1, computer=module.computer(), process=os.getpid())
    say(objects, "elsewhere", 1, process=gone.pid)
    say(objects, "left", 1, left=True)
    assert [watch.is_dead(name, 10.0) for name in ("gone", "here", "elsewhere", "left")] == [
        True,
        False,
        False,
        True,
    ]


def test_a_worker_that_never_said_a_word_is_given_the_lease(tmp_path: Path) -> None:
    now = [0.0]
    watch = Watch(FolderObjects(tmp_path), clock=clock_at(now))
    assert not watch.is_dead("nobody", 10.0)
    now[0] = 9.9
    assert not watch.is_dead("nobody", 10.0)
    now[0] = 10.1
    assert watch.is_dead("nobody", 10.0)


def test_a_flipped_bit_in_what_a_worker_says_stops_nobody(capsys) -> None:
    objects = Kept()
    say(objects, "w", 7, computer=module.computer(), process=os.getpid())
    whole = objects.objects["workers/w.json"]
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        objects.write("workers/w.json", bytes(flipped))
        now = [0.0]
        watch = Watch(objects, clock=clock_at(now))
        if not watch.is_dead("w", 10.0):  # else it is another process's number
            now[0] = 99.0  # a digit of the lease may be another
            assert watch.is_dead("w", 10.0)
    assert "workers/w.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'{"compu', "is not JSON"),
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "holds a JSON list"),
        (b"{}", "computer is None"),
        (b'{"computer": "c", "process": "1", "count": 1, "lease": 9.0}', "process is '1'"),
        (b'{"computer": "c", "process": -1, "count": 1, "lease": 9.0}', "process is -1"),
        (b'{"computer": "c", "process": 1, "count": 1, "lease": [9]}', "lease is"),
        (b'{"computer": "c", "process": 1, "count": 1, "lease": 9.0, "why": 1}', "why is 1"),
    ],
)
def test_a_damaged_worker_is_as_one_that_says_nothing(capsys, content: bytes, what: str) -> None:
    objects = Kept()
    objects.write("workers/w.json", content)
    now = [0.0]
    watch = Watch(objects, clock=clock_at(now))
    assert not watch.is_dead("w", 10.0)
    now[0] = 9.9
    assert not watch.is_dead("w", 10.0)
    now[0] = 10.1
    assert watch.is_dead("w", 10.0)
    told = capsys.readouterr().err
    assert "workers/w.json" in told and what in told and told.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a\0b", b"../../about", b"a" * 500])
def test_a_damaged_claim_is_waited_for_and_then_taken_over(tmp_path, capsys, content) -> None:
    objects = FolderObjects(tmp_path)
    now = [0.0]
    for shard in range(2):
        objects.create(f"claims/{shard:06d}.00", content)
    with Worker(objects, lease=10.0) as worker:
        claims = Claims(objects, 2, worker, lease=10.0, clock=clock_at(now))
        assert claims.next() is None, "whoever made it may live"
        now[0] = 9.9
        assert claims.next() is None
        now[0] = 10.1
        taken = {claims.next(), claims.next()}
        assert taken == {0, 1} and claims.next() is None
        for shard in taken:
            assert claims.publish(shard, made(shard))
        assert not claims.publish(0, made(0)), "who made it after all changes nothing"
    assert list(claims.results()) == [made(0), made(1)]
    assert "claims/000000.00 is damaged" in capsys.readouterr().err


def test_a_shard_that_workers_die_over_is_named_with_what_they_died_of(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path)

    def die() -> None:
        with Worker(objects, lease=10.0) as worker:
            assert Claims(objects, 1, worker).next() == 0
            raise ZeroDivisionError("no ratio")

    for _ in range(module.TAKEN):
        with pytest.raises(ZeroDivisionError):
            die()
    with Worker(objects, lease=10.0) as worker:
        claims = Claims(objects, 1, worker)
        with pytest.raises(
            ShardError, match=r"shard 0 of 1: 5 workers died.*ZeroDivisionError: no ratio"
        ):
            claims.next()


def test_a_worker_says_that_it_lives_and_that_it_left(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path)
    watch = Watch(objects)
    with Worker(objects, lease=0.04) as worker:
        first = watch.said(worker.name)["count"]
        for _ in range(200):
            if watch.said(worker.name)["count"] > first + 2:
                break
            time.sleep(0.01)
        assert watch.said(worker.name)["count"] > first + 2
    assert watch.said(worker.name)["left"] and watch.said(worker.name)["why"] == ""


def test_two_results_that_differ_are_told(tmp_path: Path, capsys) -> None:
    claims = Claims(FolderObjects(tmp_path), 1)
    assert claims.publish(0, b"a")
    assert not claims.publish(0, b"a") and capsys.readouterr().err == ""
    assert not claims.publish(0, b"b")
    assert "made twice, and not the same" in capsys.readouterr().err
    assert claims.result(0) == b"a"


@pytest.mark.parametrize("cut", [0, 1, 30, 64, 65, 70])
def test_a_result_that_is_cut_short_or_flipped_is_named(tmp_path: Path, cut: int) -> None:
    sealed = seal(b"something made")
    assert unseal(sealed, "x") == b"something made"
    with pytest.raises(ShardError, match=r"results/000003 .* is damaged"):
        unseal(sealed[:cut], "results/000003")
    flipped = bytearray(sealed)
    flipped[cut] ^= 1
    with pytest.raises(ShardError, match="is damaged"):
        unseal(bytes(flipped), "results/000003")


def test_another_work_in_the_same_place_is_refused_and_one_that_was_used_is_over(tmp_path) -> None:
    objects = open_objects(str(tmp_path))
    begin(objects, {"a": 1})
    begin(objects, {"a": 1})
    with pytest.raises(ShardError, match="another work stands in its place"):
        begin(objects, {"a": 2})
    with Worker(objects, lease=10.0) as worker:
        claims = Claims(objects, 2, worker)
        claims.publish(claims.next(), b"x")
        assert not claims.all_finished
        end(objects)
        assert claims.all_finished, "nobody makes it again whose results went"
    assert objects.names("results") == objects.names("claims") == []


def test_packed_files_come_back_and_none_leads_elsewhere() -> None:
    files = {"b/two": b"2" * 1000, "a": b"", "b/c/d": bytes(range(256))}
    packed = pack(files)
    assert unpack(packed) == files
    assert pack(dict(reversed(files.items()))) == packed, "in whatever order they come"
    for name in ("/etc/passwd", "../x", "a/../../x", "a\\b"):
        with pytest.raises(ValueError, match="no name for one"):
            unpack(pack({name: b""}))
    with pytest.raises(ValueError, match="damaged"):
        unpack(packed[:-20])
    broken = bytearray(packed)
    broken[packed.index(b"2222")] ^= 1
    with pytest.raises(ValueError, match="damaged"):
        unpack(bytes(broken))


KILLED = """
import sys, time, random
from armlet.data.claims import Claims, Worker
from armlet.data.objects import FolderObjects
from pathlib import Path
objects = FolderObjects(Path(sys.argv[1]))
rng = random.Random(int(sys.argv[2]))
with Worker(objects, lease=0.4) as worker:
    claims = Claims(objects, 24, worker)
    print("ready", flush=True)
    while not claims.all_finished:
        shard = claims.next()
        time.sleep(rng.uniform(0, 0.02))
        if shard is not None:
            claims.publish(shard, f"shard {shard}".encode() * 50)
"""


def test_processes_that_are_killed_at_any_moment_lose_nothing(tmp_path: Path) -> None:
    """Five real processes, three of them killed while they work."""
    rng = random.Random(0)
    running = []
    for number in range(5):
        command = [sys.executable, "-c", KILLED, str(tmp_path), str(number)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE))
    for process in running:
        assert process.stdout.readline() == b"ready\n"
    for process in running[:3]:
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
    for process in running[3:]:
        assert process.wait(60) == 0
    for process in running[:3]:
        process.wait()
    claims = Claims(FolderObjects(tmp_path), 24)
    assert list(claims.results()) == [made(shard) for shard in range(24)]


class Raced(Kept):
    """Somebody else claims every shard between the look at the claims and one's own claim."""

    def names(self, folder: str) -> list[str]:
        found = super().names(folder)
        if folder == "claims":
            for shard in range(3):
                self.create(f"claims/{shard:06d}.{len(found) // 3:02d}", b"faster")
        return found


def test_who_comes_second_to_a_claim_does_not_have_it() -> None:
    objects = Raced()
    worker = Worker(objects, lease=10.0)
    now = [0.0]
    claims = Claims(objects, 3, worker, clock=clock_at(now))
    assert claims.next() is None
    say(objects, "faster", 1, left=True)
    assert claims.next() is None, "nor to one that takes over"
    assert objects.names("claims")[:2] == ["000000.00", "000000.01"]
    assert {claims.owner(shard, 0) for shard in range(3)} == {"faster"}
