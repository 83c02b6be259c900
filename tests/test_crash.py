"""The crash campaign's own tools, against known answers; and ten of its points, on a small policy.
All of them: `make test-crash`."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_policy

sys.path.insert(0, str(Path(__file__).parent / "crash"))

import crashing
import power
from areas import AREAS, READERS, Area
from compare import difference, noise
from points import KINDS, SAME, Campaign, Point
from watch import LET, Change, Ended, Fail, Kill, supported, watched

from armlet.data.files import FullDiskError, write_atomically
from armlet.policies.checkpoint import load_policy, save_policy

pytestmark = pytest.mark.skipif(bool(supported()), reason=supported())


# --- the file layer


def everything(folder: Path) -> Ended:
    """Work that writes in every way there is."""

    def work() -> None:
        (folder / "a").mkdir()
        with (folder / "a/x").open("w") as file:
            file.write("hello" * 3000)
            file.flush()
            os.fsync(file.fileno())
        (folder / "a/x").replace(folder / "a/y")
        np.arange(5000).tofile(folder / "by-c")  # through stdio
        torch.save(torch.zeros(3), folder / "by-c++")
        mapped = np.memmap(folder / "mapped", np.uint8, "w+", shape=5)
        mapped[:] = 7
        mapped.flush()
        with (folder / "mapped").open("rb") as file:
            os.fsync(file.fileno())
        os.system(f"cp {folder}/by-c {folder}/copied")
        (folder / "a/y").unlink()

    return watched(work, folder, lambda change: LET, record=True)


def test_writes_of_every_kind_are_seen_and_replayed_to_the_bit(tmp_path) -> None:
    before = tmp_path / "before"
    before.mkdir()
    folder = tmp_path / "place"
    folder.mkdir()
    ended = everything(folder)
    assert ended.status == 0
    kinds = [change.kind for change in ended.changes]
    assert kinds[:5] == ["mkdir", "create", "write", "fsync", "rename"] and kinds[-1] == "unlink"
    count = len(ended.changes)
    state = power.after(before, ended.changes, count, power.all_of_it(ended.changes, count))
    power.write(state, tmp_path / "again")
    for name in ("by-c", "by-c++", "mapped", "copied"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name
    assert not list((tmp_path / "again/a").iterdir())


def test_a_kill_tears_a_write_and_a_full_disk_is_one(tmp_path) -> None:
    place = tmp_path / "x"

    def work() -> None:
        write_atomically(place, b"new" * 4000)

    def at_write(decision) -> object:
        return lambda change: decision if change.kind == "write" else LET

    place.write_bytes(b"old")
    assert watched(work, tmp_path, at_write(Kill(4096))).killed
    assert place.read_bytes() == b"old"
    assert [part.stat().st_size for part in tmp_path.glob("*.part")] == [4096]

    def full() -> None:
        with pytest.raises(FullDiskError, match="x could not be written"):
            work()

    assert watched(full, tmp_path, at_write(Fail(errno.ENOSPC))).status == 0
    assert place.read_bytes() == b"old"


def made(*told: tuple) -> list[Change]:
    return [Change(number, *each) for number, each in enumerate(told)]


def left(changes: list[Change], mode: str, before: Path, cut: int | None = None) -> dict:
    cut = len(changes) if cut is None else cut
    kept = power.keeping(mode, changes, cut, random.Random(0))
    state = power.after(before, changes, cut, kept)
    return {name: bytes(node.content) for name, node in state.names.items()}


def test_what_a_power_cut_leaves_of_a_file_that_was_not_synced(tmp_path) -> None:
    """The classic: a new file is renamed over an old one, and comes up empty."""
    (tmp_path / "a").write_bytes(b"old")
    changes = made(("create", "p"), ("write", "p"), ("rename", "p", "a"))
    for change in changes:
        change.inode = 9
    changes[1].data = b"new"
    assert left(changes, "nothing", tmp_path) == {"a": b"old"}
    assert left(changes, "names", tmp_path) == {"a": b""}
    assert left(changes, "lengths", tmp_path) == {"a": b"\0\0\0"}
    assert left(changes, "bytes", tmp_path) == {"a": b"old"}
    assert left(changes, "names", tmp_path, cut=2) == {"a": b"old", "p": b""}
    synced = [*changes[:2], *made(("fsync", "p"))]
    synced[2].inode = 9
    synced.append(changes[2])
    assert left(synced, "names", tmp_path) == {"a": b"new"}
    assert left(synced, "nothing", tmp_path) == {"a": b"old"}
    synced += made(("fsync", "."))
    for mode in power.MODES:
        assert left(synced, mode, tmp_path) == {"a": b"new"}


def test_a_write_is_torn_page_by_page(tmp_path) -> None:
    changes = made(("create", "a"), ("write", "a"))
    changes[1].data = b"x" * 3 * power.PAGE
    state = power.after(tmp_path, changes, 2, ({0, 1}, lambda place, page: page == 1))
    page = b"\0" * power.PAGE
    assert bytes(state.names["a"].content) == page + b"x" * power.PAGE + page


def test_only_what_differs_without_a_fault_is_left_out() -> None:
    first = {"r.json": b'{"ms": 1, "n": [{"a": 1}]}', "l.jsonl": b'{"s": 1}\n{"s": 2}\n'}
    again = {"r.json": b'{"ms": 2, "n": [{"a": 1}]}', "l.jsonl": b'{"s": 1}\n{"s": 2}\n'}
    known = noise(first, again)
    assert known == {"r.json": {".ms"}}
    third = {**first, "r.json": b'{"ms": 9, "n": [{"a": 1}]}'}
    assert difference(first, third, known) == ""
    assert difference(first, {**first, "r.json": b'{"ms": 1, "n": [{"a": 2}]}'}, known)
    assert difference(first, {**first, "l.jsonl": b'{"s": 1}\n'}, known) == "l.jsonl differs"
    assert difference(first, {**first, "x": b""}, known) == "x is there"


# --- points


def _first(root: Path) -> object:
    return save_policy(make_policy(depth=1), root / "policy")


def _second(root: Path) -> object:
    policy = make_policy(depth=1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.fill_(2)
    policy.body.state.offset[:] = 2
    return save_policy(policy, root / "policy")


def _policy(root: Path) -> frozenset[str]:
    policy = load_policy(root / "policy")
    number = float(next(policy.parameters()).view(-1)[0])
    return frozenset({f"{number} {policy.body.state.offset.tolist()}"})


SMALL = {
    "first": Area("first", _first, reads=("policy",)),
    "second": Area("second", _second, "first", ("policy",)),
}
TEN = [
    *[("kill", number) for number in range(3)],
    *[("power cut", number) for number in range(3)],
    ("disk full", 0),
    ("bit flip", 0),
    ("cut short", 0),
    ("two at once", 0),
]


@pytest.fixture(scope="module")
def campaign(tmp_path_factory) -> Campaign:
    make_policy(depth=1)  # imports here what every attempt would import
    return Campaign(tmp_path_factory.mktemp("crash"), SMALL, {"policy": _policy})


@pytest.mark.parametrize(("kind", "number"), TEN)
def test_ten_points(campaign: Campaign, kind: str, number: int) -> None:
    point = campaign.point("second", kind, number, seed=0)
    assert point.good, f"{point.outcome} at {point.where}: {point.said}"


def careless(root: Path) -> None:
    """As many programs save: a new file is renamed over the old one and never synced."""
    (root / "state.part").write_bytes(b"new" * 5000)
    (root / "state.part").replace(root / "state")


def _state(root: Path) -> frozenset[str]:
    return frozenset({(root / "state").read_bytes().decode()})


def test_careless_saving_is_found(tmp_path) -> None:
    area = Area("careless", careless, reads=("state",))
    campaign = Campaign(tmp_path, {"careless": area}, {"state": _state})
    outcomes = {campaign.point("careless", "power cut", number, 0).outcome for number in range(12)}
    assert {"lost", "served in part"} & outcomes


# --- the plan of a campaign


def test_points_are_shared_out_and_may_be_split(tmp_path) -> None:
    todo = crashing.planned(list(AREAS), list(KINDS), None, 0)
    assert len(todo) == len(set(todo)) == sum(KINDS.values())
    assert {each[0] for each in todo} == set(AREAS)
    assert len([each for each in todo if each[1] == "kill"]) == 200
    for area in AREAS.values():
        assert set(area.reads) <= READERS.keys() and (not area.after or area.after in AREAS)
    part = crashing.planned(["distil"], ["kill"], 7, 3)
    assert part == [("distil", "kill", number, 3) for number in range(7)]
    kept = tmp_path / "points.jsonl"
    kept.write_text('{"area": "distil", "kind": "kill", "number": 0, "seed": 3, "where": "w", ')
    assert crashing.read(kept) == []  # a line that a kill cut short


def test_the_table_counts_what_is_no_defect_apart() -> None:
    points = [
        Point("distil", "kill", 0, 0, "", SAME),
        Point("distil", "kill", 1, 0, "", "lost"),
        Point("teach", "bit flip", 0, 0, "", "refused by name"),
    ]
    assert "| kill | 2 | 1 | 0 | 0 | 0 | 1 | 0 | 0 |" in crashing.table(points)
    assert "| distil | 2 | 1 | 0 | 1 |" in crashing.by_area(points)


@pytest.mark.crash
def test_a_campaign_that_is_killed_goes_on(tmp_path) -> None:
    command = [sys.executable, str(Path(crashing.__file__)), "--area", "annotate", "--seed", "99"]
    command += ["--kind", "kill", "--points", "4", "--jobs", "1"]
    before = {point.key for point in crashing.read(crashing.KEPT)}

    def made() -> set:
        return {point.key for point in crashing.read(crashing.KEPT) if point.seed == 99} - before

    first = subprocess.Popen([*command, "--anew"], start_new_session=True)
    before = {key for key in before if key[3] != 99}
    while not made() and first.poll() is None:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert 1 <= len(made()) < 4
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    assert len(made()) == 4 and "0 made before" not in said.stdout
