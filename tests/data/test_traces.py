"""The trace store: joined by key, crash-safe, checked, and refused when stale."""

import errno
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from armlet.data.files import BusyError, is_held
from armlet.data.traces import (
    KEYS,
    LOCK,
    StaleTraceError,
    StoreIdentity,
    TraceError,
    TraceStore,
    TraceWriter,
)

IDENTITY = StoreIdentity(data="d1", teacher="t1", preprocessing="p1")
COLUMNS = {"semantics": ((3, 5), "float16"), "actions": ((2, 4), "float16"), "phase": ((), "int64")}


def values_of(keys: np.ndarray) -> dict[str, torch.Tensor]:
    """A row's content follows from its key, so any misjoined row shows."""
    mark = torch.from_numpy(keys[:, 0] * 10 + keys[:, 1]).float()
    return {
        "semantics": mark[:, None, None].expand(-1, 3, 5) / 8,
        "actions": -mark[:, None, None].expand(-1, 2, 4) / 8,
        "phase": mark.long(),
    }


def every_key(episodes: int = 6, steps: int = 9) -> np.ndarray:
    return np.array(
        [(episode, step) for episode in range(episodes) for step in range(steps)], np.int64
    )


def fill(root: Path, keys: np.ndarray, **options) -> None:
    with TraceWriter(root, IDENTITY, COLUMNS, **options) as writer:
        for start in range(0, len(keys), 7):
            writer.append(keys[start : start + 7], values_of(keys[start : start + 7]))


def assert_joined(store: TraceStore, keys: np.ndarray) -> None:
    read, wanted = store.read(keys), values_of(keys)
    for name, tensor in read.items():
        assert torch.equal(tensor, wanted[name].to(tensor.dtype)), name


@settings(deadline=None, max_examples=15)
@given(
    order=st.permutations(range(54)),
    size=st.integers(1, 54),
    shard=st.sampled_from([90, 500, 2**20]),
)
def test_rows_are_joined_by_key(tmp_path_factory, order, size, shard) -> None:
    root, keys = tmp_path_factory.mktemp("store"), every_key()
    fill(root, keys[list(order)], shard_bytes=shard)
    assert_joined(
        TraceStore(root, IDENTITY), keys[np.random.default_rng(size).permutation(54)[:size]]
    )


def test_gaps_and_subsets_of_columns(tmp_path) -> None:
    keys = every_key()[::3]
    fill(tmp_path, keys)
    store = TraceStore(tmp_path)
    assert_joined(store, keys[::-1])
    assert store.read(keys[:2], want=["phase"]).keys() == {"phase"}
    with pytest.raises(KeyError, match="episode 0, step 1"):
        store.read([(0, 1)])
    with pytest.raises(KeyError, match="episode 99"):
        store.read([(99, 0)])
    with pytest.raises(KeyError, match="no column"):
        store.read(keys[:1], want=["gates"])


@pytest.mark.parametrize(
    ("field", "word"),
    [("data", "the episodes"), ("teacher", "the teacher"), ("preprocessing", "the preproc")],
)
def test_a_stale_store_is_refused_and_says_why(tmp_path, field: str, word: str) -> None:
    fill(tmp_path, every_key())
    other = replace(IDENTITY, **{field: "new"})
    with pytest.raises(StaleTraceError, match=f"{word}.*changed"):
        TraceStore(tmp_path, other)
    with pytest.raises(StaleTraceError, match=f"{word}.*changed"):
        TraceWriter(tmp_path, other, COLUMNS)


def test_what_does_not_belong_is_refused(tmp_path) -> None:
    keys = every_key()[:4]
    with TraceWriter(tmp_path, IDENTITY, COLUMNS) as writer:
        good = values_of(keys)
        with pytest.raises(TraceError, match=r"missing column\(s\) \['phase'\]"):
            writer.append(keys, {name: good[name] for name in ("semantics", "actions")})
        with pytest.raises(TraceError, match=r"unknown column\(s\) \['gates'\]"):
            writer.append(keys, {**good, "gates": good["phase"]})
        with pytest.raises(TraceError, match="shape"):
            writer.append(keys, {**good, "actions": good["semantics"]})
        for bad in (float("nan"), float("inf"), 1e6):
            broken = good["semantics"].clone()
            broken[2, 1, 1] = bad
            with pytest.raises(TraceError, match="semantics of episode 0, step 2"):
                writer.append(keys, {**good, "semantics": broken})
        twice = np.asarray(keys)[[0, 1, 0]]
        with pytest.raises(TraceError, match="a key stands twice in one batch"):
            writer.append(twice, values_of(twice))
        writer.append(keys, good)
        with pytest.raises(TraceError, match="stored already"):
            writer.append(keys[:1], values_of(keys[:1]))
    assert_joined(TraceStore(tmp_path), keys)


def test_damage_is_found(tmp_path) -> None:
    keys = every_key()
    fill(tmp_path, keys)
    shard = tmp_path / "rows-000.bin"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(TraceError, match="checksum"):
        TraceStore(tmp_path).read(keys)
    shard.write_bytes(content[:-5])
    with pytest.raises(TraceError, match="truncated"):
        TraceStore(tmp_path)
    shard.unlink()
    with pytest.raises(TraceError, match="missing"):
        TraceStore(tmp_path)
    with pytest.raises(TraceError, match="armlet probe"):
        TraceStore(tmp_path / "nowhere")


@pytest.mark.parametrize("left", [0, 1, 19, 20, 599, 580])
def test_keys_that_were_cut_off_are_named_and_stored_again(tmp_path, left: int) -> None:
    keys = every_key()[:30]
    fill(tmp_path, keys, shard_bytes=500)
    os.truncate(tmp_path / KEYS, left)
    with pytest.raises(TraceError, match=rf"keys\.bin has {left} bytes.*there are 30 rows"):
        TraceStore(tmp_path)
    with TraceWriter(tmp_path, IDENTITY, COLUMNS) as writer:
        lacking = keys[len(writer.done()) :]
        assert len(lacking) == 30 - left // 20
        writer.append(lacking, values_of(lacking))
    assert_joined(TraceStore(tmp_path), keys)


def test_a_key_that_became_another_is_refused_and_nothing_is_lost(tmp_path) -> None:
    keys = every_key()[:9]
    fill(tmp_path, keys, shard_bytes=400)
    path = tmp_path / KEYS
    content = bytearray(path.read_bytes())
    content[5 * 20 + 8] ^= 1  # step 5 becomes step 4
    path.write_bytes(content)
    before = {each: each.read_bytes() for each in tmp_path.glob("*.bin")}
    with pytest.raises(
        TraceError, match=r"keys\.bin has episode 0, step 4 twice, as keys 4 and 5"
    ) as said:
        TraceWriter(tmp_path, IDENTITY, COLUMNS)
    assert {each: each.read_bytes() for each in tmp_path.glob("*.bin")} == before
    # What the message says helps: the rows before stay, the others are stored again.
    assert f"`truncate -s 80 {path}`" in str(said.value)
    os.truncate(path, 80)
    with TraceWriter(tmp_path, IDENTITY, COLUMNS) as writer:
        assert writer.done().tolist() == keys[:4].tolist()
        writer.append(keys[4:], values_of(keys[4:]))
    assert_joined(TraceStore(tmp_path), keys)


def test_rows_go_behind_those_that_are_there(tmp_path) -> None:
    """As many as the file of keys has, whatever this process remembers of them."""
    keys = every_key()[:9]
    with TraceWriter(tmp_path, IDENTITY, COLUMNS, shard_bytes=400) as writer:
        writer.append(keys[:5], values_of(keys[:5]))
        writer._keys.pop()
        writer.append(keys[5:], values_of(keys[5:]))
    assert_joined(TraceStore(tmp_path), keys)


def test_a_reader_is_told_that_a_writer_is_at_work(tmp_path) -> None:
    keys = every_key()[:6]
    with TraceWriter(tmp_path, IDENTITY, COLUMNS) as writer:
        writer.append(keys[:3], values_of(keys[:3]))
        assert_joined(TraceStore(tmp_path), keys[:3])
        # As it is between the rows of an append and their keys.
        os.truncate(tmp_path / KEYS, 40)
        with pytest.raises(TraceError, match="is being written: it has 2 keys, and 3 rows"):
            TraceStore(tmp_path)
    with pytest.raises(TraceError, match="cut short"):
        TraceStore(tmp_path)
    assert not is_held(tmp_path / LOCK)


def test_a_writer_that_ends_while_a_reader_looks(tmp_path) -> None:
    keys = every_key()[:6]
    fill(tmp_path, keys[:3])

    class Late(TraceStore):
        def _read_keys(self) -> np.ndarray:
            found = super()._read_keys()
            fill(tmp_path, keys[3:])  # which lets go of the lock again
            return found

    with pytest.raises(TraceError, match="is being written: it has 3 keys, and 6 rows"):
        Late(tmp_path)
    assert_joined(TraceStore(tmp_path), keys)


def test_a_copy_that_a_tool_left_is_no_shard(tmp_path) -> None:
    keys = every_key()[:6]
    fill(tmp_path, keys[:3])
    for name in ("rows-000 (1).bin", "rows-0000.bin", "rows-.bin", "rows-²00.bin"):
        (tmp_path / name).write_bytes((tmp_path / "rows-000.bin").read_bytes())
    assert_joined(TraceStore(tmp_path), keys[:3])
    with TraceWriter(tmp_path, IDENTITY, COLUMNS) as writer:
        writer.append(keys[3:], values_of(keys[3:]))
    assert_joined(TraceStore(tmp_path), keys)


def test_a_store_without_its_keys_says_what_to_do(tmp_path) -> None:
    keys = every_key()[:3]
    fill(tmp_path, keys)
    (tmp_path / KEYS).unlink()
    with pytest.raises(
        TraceError, match=r"keys\.bin is missing.*copy .* again, or run `armlet probe`"
    ):
        TraceStore(tmp_path)
    fill(tmp_path, keys)
    assert_joined(TraceStore(tmp_path), keys)


@pytest.mark.parametrize("cut", [1, 19, 21, 60])
def test_torn_writes_are_cut_off_and_done_again(tmp_path, cut: int) -> None:
    keys = every_key()
    fill(tmp_path, keys[:30], shard_bytes=500)
    for name in (KEYS, "rows-000.bin"):
        path = tmp_path / name
        if name == KEYS or cut > 20:
            os.truncate(path, path.stat().st_size - cut)
    with TraceWriter(tmp_path, IDENTITY, COLUMNS) as writer:
        done = {tuple(key) for key in writer.done().tolist()}
        assert len(done) < 30
        left = np.array([key for key in keys.tolist() if tuple(key) not in done])
        writer.append(left, values_of(left))
    assert_joined(TraceStore(tmp_path), keys)


def test_kill_and_resume(tmp_path) -> None:
    script = f"""
import sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_traces import *
writer = TraceWriter({str(tmp_path)!r}, IDENTITY, COLUMNS)
keys = every_key(400)
for start in range(0, len(keys), 3):
    writer.append(keys[start:start + 3], values_of(keys[start:start + 3]))
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 120
    while (
        not ((tmp_path / KEYS).exists() and (tmp_path / KEYS).stat().st_size > 600)
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    keys = every_key(400)
    with TraceWriter(tmp_path, IDENTITY, COLUMNS) as writer:
        done = {tuple(key) for key in writer.done().tolist()}
        assert 0 < len(done) < len(keys)
        left = np.array([key for key in keys.tolist() if tuple(key) not in done])
        writer.append(left, values_of(left))
    assert_joined(TraceStore(tmp_path, IDENTITY), keys[::-1])


def _fill_disk(root: str) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = TraceWriter(root, IDENTITY, COLUMNS)
    keys = every_key(40)
    writer.append(keys[:100], values_of(keys[:100]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))
    with pytest.raises(OSError, match="make room") as caught:
        writer.append(keys[100:300], values_of(keys[100:300]))
    os._exit(7 if caught.value.errno in (errno.EFBIG, errno.ENOSPC) else 1)


def test_a_full_disk_loses_nothing(tmp_path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_fill_disk, args=(str(tmp_path),))
    process.start()
    process.join(120)
    assert process.exitcode == 7
    keys = every_key(40)
    assert_joined(TraceStore(tmp_path, IDENTITY), keys[:100])
    with TraceWriter(tmp_path, IDENTITY, COLUMNS) as writer:
        writer.append(keys[100:], values_of(keys[100:]))
    assert_joined(TraceStore(tmp_path, IDENTITY), keys)


def test_two_writers_are_one_too_many(tmp_path) -> None:
    fill(tmp_path, every_key()[:3])
    with (
        TraceWriter(tmp_path, IDENTITY, COLUMNS),
        pytest.raises(BusyError, match="another process is writing traces"),
    ):
        TraceWriter(tmp_path, IDENTITY, COLUMNS)
    with pytest.raises(
        TraceError, match="this run would write"
    ) as kept:  # one that may not write holds nothing
        TraceWriter(tmp_path, IDENTITY, {"other": ((1,), "float16")})
    TraceWriter(tmp_path, IDENTITY, COLUMNS).close()
    assert kept.tb is not None


class Rows(Dataset):
    def __init__(self, store: TraceStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        key = self.store.keys[index]
        return {
            "key": torch.from_numpy(key.copy()),
            **{name: value[0] for name, value in self.store.read(key).items()},
        }


def test_worker_processes_and_shuffling(tmp_path) -> None:
    fill(tmp_path, every_key())
    store = pickle.loads(pickle.dumps(TraceStore(tmp_path)))
    seen = 0
    for rows in DataLoader(Rows(store), batch_size=8, shuffle=True, num_workers=2):
        wanted = values_of(rows["key"].numpy())
        assert all(torch.equal(rows[name], wanted[name].to(rows[name].dtype)) for name in wanted)
        seen += len(rows["key"])
    assert seen == 54


def test_a_row_of_a_large_teacher_fits_the_budget(tmp_path) -> None:
    columns = {"semantics": ((32, 512), "float16"), "layer_actions": ((32, 1, 7), "float16")}
    keys = every_key(2, 10)
    with TraceWriter(tmp_path, IDENTITY, columns) as writer:
        writer.append(
            keys,
            {"semantics": torch.randn(20, 32, 512), "layer_actions": torch.randn(20, 32, 1, 7)},
        )
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) / 20 <= 36_000


def test_a_whole_number_that_does_not_fit_is_refused(tmp_path) -> None:
    """A byte would keep 256 as 0, and a text one letter short as another text."""
    with TraceWriter(
        tmp_path, IDENTITY, {"phase": ((), "uint8"), "text": ((4,), "uint8")}
    ) as writer:
        writer.append(
            np.array([[0, 0]]),
            {"phase": np.array([255]), "text": np.frombuffer(b"ab\0\0", np.uint8)[None]},
        )
        for phase in (256, -1):
            with pytest.raises(
                TraceError, match=rf"phase of episode 0, step 1 is {phase}, which uint8 cannot hold"
            ):
                writer.append(
                    np.array([[0, 1]]),
                    {"phase": np.array([phase]), "text": np.zeros((1, 4), np.uint8)},
                )
    row = TraceStore(tmp_path, IDENTITY).read([[0, 0]])
    assert row["phase"].item() == 255 and bytes(row["text"][0].tolist()) == b"ab\0\0"
