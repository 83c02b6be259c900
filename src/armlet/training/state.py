"""A training state on disk: what a stage goes on from when it was killed. Knows no policy.

One process writes one file, `state.pt`. A network in shards is written by all processes at once, each
its own part (torch's distributed checkpoint), into a folder of that step; `state.json`, written
after it, says which folder counts, so that half a folder is never read, and the digest of its list
of what lies where, and of itself. Either is read by any number of processes, and nothing of it is
unpickled. What was written before, in either way, is removed once the new one counts, and not earlier.
"""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from armlet.data.files import (
    atomic_file,
    check_is_here,
    make_durable,
    make_folder,
    naming_a_full_disk,
    read_json,
    write_atomically,
)
from armlet.training.distributed import World
from armlet.training.spread import is_shard

STATE = "state.pt"
POINTER = "state.json"
OF_BEFORE = {"question", "step", "layout", "folder"}  # in a pointer that has no digest of itself
FIX = "delete it to train this stage from its start, nothing else is lost; or copy it again"


class SavedShards(dict[str, Any]):
    """What `state.json` says of a state in shards, its question and step; `folder`: where they
    are."""

    def __init__(self, folder: Path, said: Mapping[str, Any]) -> None:
        super().__init__(said)
        self.folder = folder


def save_state(path: Path, state: dict[str, Any]) -> None:
    """A training state: weights, optimiser, step, RNG. Renamed into place, so a kill leaves the
    previous one. Raises FullDiskError, or another OSError, naming the file."""
    with atomic_file(path) as part:
        try:
            torch.save(state, part)
        except RuntimeError as error:  # torch's word for a write that failed: a position in a zip
            raise OSError(f"{path} could not be written; torch says: {error}") from error
    pointer = path.with_name(POINTER)
    if pointer.exists():
        pointer.unlink()
        _remove_shards(path.parent, keep=None)


def load_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote. Raises FileNotFoundError or ValueError naming the file."""
    check_is_here(path, fix=FIX)
    try:
        # torch reads the zip file that it writes without a look at its checksums.
        with zipfile.ZipFile(path) as parts:
            damaged = parts.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} differs")
        state = torch.load(path, weights_only=True)
    except OSError:  # a disk that fails is no damaged file
        raise
    except Exception as error:  # a damaged pickle fails in every way there is
        first = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is not a whole training state "
            f"({type(error).__name__}: {first}); {FIX}"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, expected a training state; {FIX}")
    return state


def found_state(folder: Path) -> dict[str, Any] | SavedShards | None:
    """The state that a stage's folder holds, however it was written, of shards what is said of
    them; None where there is none. Raises ValueError naming the file."""
    one = load_state(folder / STATE) if (folder / STATE).exists() else None
    saved = _read_pointer(folder) if (folder / POINTER).exists() else None
    if one is None:
        return saved
    step = one.get("step")
    if type(step) is not int:
        fix = FIX
        if saved is not None:
            fix = f"delete it to go on from step {saved['step']}, whose state {POINTER} names"
        raise ValueError(f"{folder / STATE} has the `step` {step!r}, expected a number; {fix}")
    # Killed before the older was removed: then there are both.
    if saved is None or step >= saved["step"]:
        return one
    return saved


def _read_pointer(folder: Path) -> SavedShards:
    """What `state.json` says. Raises ValueError, naming it, where it is not what was written, or
    what it names is not there."""
    pointer = folder / POINTER
    said = read_json(pointer, fix=FIX)
    named = said.get("folder")
    step = said.get("step")
    if "digest" in said:
        if said["digest"] != digest_of_pointer(said):
            raise ValueError(f"{pointer} is not what was written (its digest differs); {FIX}")
    elif said.keys() - OF_BEFORE:  # a digest whose own name was damaged would be none
        unknown = ", ".join(sorted(said.keys() - OF_BEFORE))
        raise ValueError(f"{pointer} has no digest, and {unknown} in it is unknown; {FIX}")
    if "question" not in said or type(step) is not int:
        raise ValueError(f"{pointer} lacks `question`, or its `step` {step!r} is none; {FIX}")
    if named not in _names(step):
        raise ValueError(
            f"{pointer} is damaged: it names the folder {named!r} for step {step}, expected "
            f"{_names(step)[0]}; {FIX}"
        )
    if not (folder / named).is_dir():
        raise ValueError(f"{pointer} names {named}, which is not there; {FIX}")
    return SavedShards(folder / named, said)


def digest_of_pointer(said: Mapping[str, Any]) -> str:
    """The SHA-256 of what `state.json` says, whatever it says its digest is."""
    rest = {name: each for name, each in said.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _names(step: int) -> tuple[str, str]:
    """What the folder of a step may be called: the other one where the first is what counts."""
    name = f"state-{step:08d}"
    return name, f"{name}-again"


def save_shards(folder: Path, state: dict[str, Any], world: World) -> None:
    """A training state whose tensors lie in shards; every process calls this."""
    said = {"question": state["question"], "step": state["step"], "lines": state.get("lines")}
    # The first decides for all, who might still see an older pointer; nobody writes before it has.
    name = world.said(_free_name(folder, state["step"]) if world.first else None)[0]
    target = folder / name
    import torch.distributed.checkpoint as dcp  # slow to import, and seldom needed

    from armlet.training.shard_files import LAYOUT, ShardWriter

    with naming_a_full_disk(target):
        dcp.save(dict(_flat(state)), storage_writer=ShardWriter(target))  # durable when it returns
    if world.first:
        said["layout"] = _digest(target / LAYOUT)
        said["folder"] = target.name
        said["digest"] = digest_of_pointer(said)
        make_durable(target)
        make_durable(folder)
        write_atomically(folder / POINTER, json.dumps(said).encode())
        (folder / STATE).unlink(missing_ok=True)
        _remove_shards(folder, keep=target)
    world.wait()


def _free_name(folder: Path, step: int) -> str:
    """The name of a folder to write a step into, made free; what the pointer names stays. Raises
    ValueError where it cannot be read: any of the folders may be the one that counts."""
    make_folder(folder)
    name, other = _names(step)
    if (folder / POINTER).exists() and read_json(folder / POINTER, fix=FIX).get("folder") == name:
        name = other
    if (folder / name).exists():  # half of one, of a run that was killed
        shutil.rmtree(folder / name)
    return name


def _remove_shards(folder: Path, *, keep: Path | None) -> None:
    for each in folder.glob("state-*"):
        if each != keep and each.is_dir():
            shutil.rmtree(each)


def _flat(state: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a state by the names that they have on disk: `optimisers/0/12/exp_avg`."""
    for part in ("learner", "masters", "average"):
        for name, tensor in state[part].items():
            yield f"{part}/{name}", tensor
    for which, optimiser in enumerate(state["optimisers"]):
        for number, kept in optimiser["state"].items():
            for name, tensor in kept.items():
                yield f"optimisers/{which}/{number}/{name}", tensor


def load_shards(
    saved: SavedShards,
    network: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    numbered: Sequence[Sequence[Tensor]],
) -> dict[str, Any]:
    """The state that `save_shards` wrote, in the shards of those who read it: as `network` lies,
    what is trained of it, `parameters`, and the same as the optimisers have `numbered` it. Raises
    ValueError naming the folder where it is damaged."""
    import torch.distributed.checkpoint as dcp  # as above
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    from armlet.training.shard_files import LAYOUT, ShardReader, read_layout

    try:
        if _digest(saved.folder / LAYOUT) != saved.get("layout"):
            raise ValueError(f"{LAYOUT} is not what {POINTER} was written for, it was damaged")
        layout = read_layout(saved.folder, fix=FIX)
        wanted = {}
        for name, about in layout.state_dict_metadata.items():
            assert isinstance(about, TensorStorageMetadata)  # `_flat` gave tensors alone
            like = _belongs(name, network, parameters, numbered)
            dtype = about.properties.dtype
            if about.size not in (like.shape, torch.Size([])):  # a counter of steps has no sides
                raise ValueError(
                    f"{name} is {tuple(about.size)} there, expected {tuple(like.shape)}"
                )
            if is_shard(like) and like.shape == about.size:
                wanted[name] = torch.zeros_like(like, dtype=dtype)
            else:
                wanted[name] = torch.zeros(about.size, dtype=dtype)
        alone = not torch.distributed.is_initialized()
        dcp.load(wanted, storage_reader=ShardReader(saved.folder, layout), no_dist=alone)
    except (CheckpointException, OSError, RuntimeError, LookupError, ValueError, EOFError) as error:
        cause: BaseException = error
        if isinstance(error, CheckpointException) and error.failures:
            # What the first process met that met anything: torch's own words name no file.
            cause = min(error.failures.items())[1][0]
        first = str(cause).strip().split("\n")[0]
        raise ValueError(
            f"{saved.folder} is not a whole training state in shards "
            f"({type(cause).__name__}: {first:.400}); {FIX}, with {POINTER} beside it"
        ) from error
    return {**saved, **_nested(wanted, len(numbered))}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _belongs(
    name: str,
    network: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    numbered: Sequence[Sequence[Tensor]],
) -> Tensor:
    """The tensor of the network that a stored one is, or is kept of."""
    part, _, rest = name.partition("/")
    if part == "learner":
        return network[rest].detach()
    if part == "optimisers":
        which, number, _ = rest.split("/")
        return numbered[int(which)][int(number)].detach()
    return parameters[rest].detach()


def _nested(tensors: Mapping[str, Tensor], optimisers: int) -> dict[str, Any]:
    """What `_flat` was given."""
    state: dict[str, Any] = {"learner": {}, "masters": {}, "average": {}, "teacher": {}}
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in range(optimisers)]
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        if part == "optimisers":
            which, number, kept = rest.split("/")
            states[int(which)].setdefault(int(number), {})[kept] = tensor
        else:
            state[part][rest] = tensor
    return {**state, "optimisers": [{"state": each} for each in states]}
