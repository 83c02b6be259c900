"""A state in shards says what lies where in JSON: it is read as it was written, and nothing of it is
run, whoever wrote it."""

import errno
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter

from armlet.data.files import FullDiskError
from armlet.training.distributed import World
from armlet.training.shard_files import LAYOUT, read_layout
from armlet.training.state import (
    POINTER,
    _digest,
    digest_of_pointer,
    found_state,
    load_shards,
    save_shards,
)

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
WEIGHTS = {"a": torch.arange(12.0).view(3, 4), "b": torch.randn(5).bfloat16()}
KEPT = {"step": torch.tensor(7.0), "exp_avg": torch.full((3, 4), 0.5)}
STATE = {
    "question": {"seed": 1},
    "step": 3,
    "learner": WEIGHTS,
    "masters": {"b": WEIGHTS["b"].float()},
    "average": {"a": WEIGHTS["a"] * 2},
    "optimisers": [{"state": {0: KEPT}}],
}


@pytest.fixture
def folder(tmp_path) -> Path:
    save_shards(tmp_path, STATE, World())
    return tmp_path


def loaded(folder: Path) -> dict:
    saved = found_state(folder)
    return load_shards(saved, WEIGHTS, WEIGHTS, [[WEIGHTS["a"]]])


def layout_of(folder: Path) -> Path:
    (path,) = folder.glob(f"state-*/{LAYOUT}")
    return path


def rewrite(folder: Path, content: bytes) -> None:
    """As somebody does who means harm: the pointer agrees."""
    layout_of(folder).write_bytes(content)
    pointer = json.loads((folder / POINTER).read_text())
    pointer["layout"] = _digest(layout_of(folder))
    pointer["digest"] = digest_of_pointer(pointer)
    (folder / POINTER).write_text(json.dumps(pointer))


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


def test_it_is_read_as_it_was_written(folder) -> None:
    found = loaded(folder)
    for part in ("learner", "masters", "average"):
        assert found[part].keys() == STATE[part].keys()
        for name, tensor in STATE[part].items():
            assert (
                torch.equal(found[part][name], tensor) and found[part][name].dtype == tensor.dtype
            )
    (state,) = found["optimisers"]
    assert all(torch.equal(state["state"][0][name], kept) for name, kept in KEPT.items())
    assert (found["step"], found["question"]) == (3, {"seed": 1})


def test_it_says_what_torchs_own_list_says(tmp_path, folder) -> None:
    import torch.distributed.checkpoint as dcp

    flat = {f"learner/{name}": tensor for name, tensor in WEIGHTS.items()}
    dcp.save(flat, storage_writer=FileSystemWriter(tmp_path / "torch"), no_dist=True)
    theirs = FileSystemReader(tmp_path / "torch").read_metadata().state_dict_metadata
    ours = read_layout(layout_of(folder).parent, fix="").state_dict_metadata
    for name, about in theirs.items():
        assert (ours[name].size, ours[name].chunks) == (about.size, about.chunks)
        assert ours[name].properties.dtype == about.properties.dtype


@pytest.mark.parametrize("name", [LAYOUT, ".metadata"])
def test_a_pickle_in_its_place_is_not_run(tmp_path, folder, name: str) -> None:
    """torch runs it, which shows that it would do harm."""
    harm = pickle.dumps(Harm(tmp_path / "harmed"))
    where = layout_of(folder).parent
    (where / ".metadata").write_bytes(harm)
    if name == LAYOUT:
        rewrite(folder, harm)
        with pytest.raises(ValueError, match=f"{where} is not a whole training state.*{LAYOUT}"):
            loaded(folder)
    else:  # nobody reads it
        loaded(folder)
        layout_of(folder).unlink()
        with pytest.raises(ValueError, match=f"{where} is not a whole .*{LAYOUT}.*delete it"):
            loaded(folder)
    assert not (tmp_path / "harmed").exists()
    with pytest.raises(AttributeError):
        FileSystemReader(where).read_metadata()
    assert (tmp_path / "harmed").exists()


def test_cut_short_or_with_a_flipped_bit_it_is_refused_by_name(folder) -> None:
    path = layout_of(folder)
    whole = path.read_bytes()
    damaged = [whole[:length] for length in range(0, len(whole), 37)]
    for at in range(0, len(whole), 23):
        damaged.append(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=f"{path.parent} is not a whole .*{LAYOUT} is not what"
        ):
            loaded(folder)
    path.write_bytes(whole)
    loaded(folder)


def test_no_flipped_bit_of_the_pointer_is_trusted(folder) -> None:
    """Every bit: a digit of the step would be a run that goes on elsewhere than its weights do."""
    path = folder / POINTER
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{path}.*delete it"):
            found_state(folder)
    path.write_bytes(whole)
    loaded(folder)


def test_a_pointer_of_before_it_had_a_digest_is_held_to_its_folders_name(folder) -> None:
    said = json.loads((folder / POINTER).read_text())
    del said["digest"], said["lines"]
    (folder / POINTER).write_text(json.dumps(said))
    assert loaded(folder)["step"] == 3
    (folder / POINTER).write_text(json.dumps({**said, "step": 2}))
    with pytest.raises(ValueError, match=rf"{POINTER} is damaged.*step 2, expected state-00000002"):
        found_state(folder)
    (folder / POINTER).write_text(json.dumps({**said, "folder": "state-00000004", "step": 4}))
    with pytest.raises(ValueError, match=rf"{POINTER} names state-00000004, which is not there"):
        found_state(folder)


def test_a_state_in_one_file_without_its_step_is_named(folder) -> None:
    torch.save({"question": {"seed": 1}}, folder / "state.pt")
    with pytest.raises(ValueError, match=r"state\.pt has the `step` None.*go on from step 3"):
        found_state(folder)
    (folder / POINTER).unlink()
    with pytest.raises(ValueError, match=r"state\.pt has the `step` None.*from its start"):
        found_state(folder)


def test_saved_again_at_its_step_a_state_counts_until_the_new_one_does(folder, monkeypatch) -> None:
    import torch.distributed.checkpoint as dcp

    before = layout_of(folder).parent
    half = folder / "state-00000003-again" / "__0_0.distcp"
    with monkeypatch.context() as disk:

        def full(*args, **settings) -> None:
            half.parent.mkdir()
            half.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        disk.setattr(dcp, "save", full)
        for _ in range(2):  # the half is no obstacle
            with pytest.raises(FullDiskError, match=half.parent.name):
                save_shards(folder, STATE, World())
            assert loaded(folder)["step"] == 3
    later = {**STATE, "average": {"a": WEIGHTS["a"] * 3}}
    for name in (half.parent.name, before.name):
        save_shards(folder, later, World())
        assert [path.name for path in folder.glob("state-*")] == [name]
        assert torch.equal(loaded(folder)["average"]["a"], WEIGHTS["a"] * 3)


def places_of(folder: Path) -> list[list]:
    """[file, begin, length, checksum] of every chunk."""
    tensors = json.loads(layout_of(folder).read_text())["tensors"]
    return [chunk[2:] for about in tensors.values() for chunk in about["chunks"]]


def test_no_flipped_bit_of_a_tensor_is_trained_on(folder) -> None:
    """At the beginning, in the middle and at the end of every chunk; and no byte is of none."""
    covered = 0
    for file, begin, length, _ in places_of(folder):
        covered += length
        path = layout_of(folder).parent / file
        whole = path.read_bytes()
        for at in (begin, begin + length // 2, begin + length - 1):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            with pytest.raises(ValueError, match=rf"not a whole .*{path} is damaged: .*delete it"):
                loaded(folder)
        path.write_bytes(whole[: begin + length - 1])
        with pytest.raises(ValueError, match=rf"{path} is damaged"):
            loaded(folder)
        path.write_bytes(whole)
    files = list(folder.glob("state-*/*.distcp"))
    assert covered == sum(path.stat().st_size for path in files)
    loaded(folder)
    files[0].unlink()
    with pytest.raises(ValueError, match=rf"not a whole .*No such file.*{files[0]}"):
        loaded(folder)


def test_a_state_of_before_there_were_checksums_is_read(folder) -> None:
    said = json.loads(layout_of(folder).read_text())
    for about in said["tensors"].values():
        for chunk in about["chunks"]:
            del chunk[5]
    rewrite(folder, json.dumps(said).encode())
    found = loaded(folder)
    assert torch.equal(found["learner"]["a"], WEIGHTS["a"])


def _file(said: dict) -> None:
    said["learner/a"]["chunks"][0][2] = "../../elsewhere"


def _beyond(said: dict) -> None:
    said["learner/a"]["chunks"][0][0] = [1, 0]


def _huge(said: dict) -> None:
    said["learner/a"]["size"] = [2**40, 2**40]


def _negative(said: dict) -> None:
    said["learner/a"]["chunks"][0][3] = -1


def _kind(said: dict) -> None:
    said["learner/a"]["dtype"] = "object"


def _few(said: dict) -> None:
    del said["learner/a"]["chunks"][0][4:]


def _checksum(said: dict) -> None:
    said["learner/a"]["chunks"][0][5] = 7


def _nobodys(said: dict) -> None:
    said["optimisers/0/9/exp_avg"] = said["learner/a"]


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (_file, "elsewhere'"),
        (_beyond, r"\(3, 4\) at \(1, 0\)"),
        (_huge, "expected .3, 4."),
        (_negative, "not negative"),
        (_kind, "object"),
        (_few, "not enough values"),
        (_checksum, "checksum 7, expected a text"),
        (_nobodys, "out of range"),
    ],
)
def test_what_cannot_be_is_refused_by_name(folder, lie: Callable[[dict], None], words: str) -> None:
    said = json.loads(layout_of(folder).read_text())
    lie(said["tensors"])
    rewrite(folder, json.dumps(said).encode())
    with pytest.raises(ValueError, match=f"{layout_of(folder).parent} is not a whole .*{words}"):
        loaded(folder)
