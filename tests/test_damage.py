"""Bits that a disk gives back otherwise than they were written: in training states, probe heads,
traces and staged episodes each of them is noticed, or changes nothing. Found by the crash campaign
(docs/crash.md)."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import make_policy

from armlet.data.episodes import EpisodeError
from armlet.data.files import hold, write_atomically
from armlet.data.traces import HEADER, KEY, KEYS, StoreIdentity, TraceStore, TraceWriter
from armlet.data.writer import SUMS, check_staged
from armlet.lineage import PROVENANCE, is_finished
from armlet.policies.checkpoint import CONFIG, TOKENIZER, WEIGHTS, load_policy, save_policy
from armlet.training.state import load_state, save_state
from armlet.training.supervision import load_heads, save_heads


def flipped(path: Path, count: int) -> Iterator[int]:
    """Each time one bit of the file is another; gives the byte in which."""
    content = path.read_bytes()
    rng = random.Random(0)
    for _ in range(count):
        changed = bytearray(content)
        place = rng.randrange(len(changed))
        changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        yield place
    path.write_bytes(content)


def test_no_flipped_bit_of_a_training_state_is_trained_on(tmp_path) -> None:
    torch.manual_seed(0)
    state = {"step": 3, "learner": {"a": torch.randn(30, 50)}, "average": {"a": torch.randn(9)}}
    path = tmp_path / "state.pt"
    save_state(path, state)
    refused = 0
    for _ in flipped(path, 150):
        said = ""
        try:
            found = load_state(path)
        except ValueError as error:
            said = str(error)
        if said:
            assert "state.pt" in said and "delete it to train this stage" in said
            refused += 1
            continue
        assert found["step"] == 3
        for part, name in (("learner", "a"), ("average", "a")):
            assert torch.equal(found[part][name], state[part][name])
    assert refused > 100  # torch itself notices one in ten


def test_no_flipped_bit_of_probe_heads_is_probed_with(tmp_path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "heads.safetensors"
    heads = torch.nn.Linear(20, 20)
    wanted = {name: value.clone() for name, value in heads.state_dict().items()}
    save_heads(heads, path)
    content = path.read_bytes()
    first = content.index(b"}}") + 2  # of the tensors; the header has its own checks
    for place in range(first + 40, len(content), 97):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match="safetensors is damaged"):
            load_heads(torch.nn.Linear(20, 20), path)
    save_file(wanted, path)  # as before heads said what they are
    load_heads(heads, path)
    assert all(torch.equal(value, wanted[name]) for name, value in heads.state_dict().items())


def store(root: Path) -> tuple[np.ndarray, torch.Tensor]:
    keys = np.array([[episode, step] for episode in range(4) for step in range(3)])
    values = torch.arange(24).reshape(12, 2).float()
    with TraceWriter(root, StoreIdentity("d", "t", "p"), {"a": ((2,), "float32")}) as writer:
        writer.append(keys, {"a": values})
    return keys, values


def test_a_damaged_key_is_not_taken_for_another_row(tmp_path) -> None:
    keys, values = store(tmp_path)
    for _ in flipped(tmp_path / KEYS, 150):
        with pytest.raises((ValueError, KeyError), match=rf"{tmp_path}"):
            TraceStore(tmp_path).read(keys)
    assert torch.equal(TraceStore(tmp_path).read(keys)["a"], values)
    # Two keys change places: no row is missing then, and none stands twice.
    entries = np.fromfile(tmp_path / KEYS, KEY)
    entries["step"][[0, 1]] = entries["step"][[1, 0]]
    entries.tofile(tmp_path / KEYS)
    with pytest.raises(ValueError, match="checksum differs"):
        TraceStore(tmp_path).read(keys)


def test_a_store_of_before_keys_had_checksums_is_read_and_continued(tmp_path) -> None:
    import zlib

    keys, values = store(tmp_path)
    header = json.loads((tmp_path / HEADER).read_text())
    del header["keys_checked"]
    (tmp_path / HEADER).write_text(json.dumps(header))
    entries = np.fromfile(tmp_path / KEYS, KEY)
    entries["crc"] = [zlib.crc32(row.numpy().tobytes()) for row in values]
    entries.tofile(tmp_path / KEYS)
    with TraceWriter(tmp_path, StoreIdentity("d", "t", "p"), {"a": ((2,), "float32")}) as writer:
        writer.append(np.array([[9, 0]]), {"a": torch.ones(1, 2)})
    found = TraceStore(tmp_path).read(np.concatenate([keys, [[9, 0]]]))["a"]
    assert torch.equal(found, torch.cat([values, torch.ones(1, 2)]))


@pytest.mark.parametrize("name", ["about.json", "eye.mp4"])
def test_what_lay_staged_and_was_damaged_is_named(tmp_path, name: str) -> None:
    import hashlib

    sums = {}
    for each in ("about.json", "eye.mp4"):
        (tmp_path / each).write_text(each)
        sums[each] = hashlib.sha256(each.encode()).hexdigest()
    check_staged(tmp_path)  # of an older armlet, which kept no sums
    (tmp_path / SUMS).write_text(json.dumps(sums))
    check_staged(tmp_path)
    (tmp_path / name).write_text("x")
    with pytest.raises(EpisodeError, match=f"{name} is damaged.*delete {tmp_path}"):
        check_staged(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(EpisodeError, match=f"{name} is missing"):
        check_staged(tmp_path)


def test_a_save_that_was_killed_after_its_commit_is_settled_when_it_is_asked_for(tmp_path) -> None:
    question = {"seed": 3}
    save_policy(make_policy(depth=1), tmp_path / "p", provenance={PROVENANCE: question})
    for name in (WEIGHTS, TOKENIZER):
        (tmp_path / "p" / name).rename(tmp_path / "p" / f"{name}.next")
    assert is_finished(tmp_path / "p", question, fixes="-")
    names = {path.name for path in (tmp_path / "p").iterdir()}
    assert names == {CONFIG, WEIGHTS, TOKENIZER}
    load_policy(tmp_path / "p")


def test_the_folder_of_a_lock_outlasts_a_power_cut(tmp_path, monkeypatch) -> None:
    synced = []
    monkeypatch.setattr("armlet.data.files.make_durable", synced.append)
    with hold(tmp_path / "new/deep/a.lock", "writing"):
        write_atomically(tmp_path / "new/deep/report", b"done")
    assert {tmp_path, tmp_path / "new", tmp_path / "new/deep"} <= set(synced)
