"""Policies on disk. A policy is a folder: `config.json`, `model.safetensors`,
`tokenizer.json`.

The three are one commit. `config.json`, which holds network and statistics, says which weights and
words it belongs to: by their fingerprint, which stands in `model.safetensors` too, and by a hash of
the words. A save writes new weights and words beside the old (`….next`), then renames the new
`config.json` into place, and only then gives weights and words their names. Whoever reads, at
whatever moment and also after a kill, takes the weights and words that the config names, under
either name; a folder in which there are none was mixed by hand, and is refused. Policies that
armlet 0.1 saved before carry no fingerprint, and are read as they are.

Loading is loud: a missing, unexpected or misshapen tensor is an error that names it.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn

from armlet.data.bounded import safetensors_header
from armlet.data.files import (
    atomic_file,
    check_is_here,
    hold_and_remove,
    make_durable,
    make_folder,
    parse_json,
    read_json,
    read_whole,
    write_atomically,
)
from armlet.data.hub import local_folder, refuse_writing
from armlet.policies.building import rebuild
from armlet.policies.contract import Backbone, Body
from armlet.policies.precisions import IN_HEADERS
from armlet.policies.pretrained import kinds
from armlet.robot.agree import agree
from armlet.robot.client.address import address_of, is_address
from armlet.robot.exported import is_exported
from armlet.robot.spec import SLACK, RobotSpec

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
MANIFEST = "distill_manifest.json"  # the provenance, in LeRobot's layout (deploy/lerobot.py)
# Entries of the config; the first stands in the weights' metadata, too.
FINGERPRINT = "fingerprint"
WORDS = "tokenizer"
NEXT = ".next"  # a file of the newest save until it has its name
VERSION = 1  # of the config, as its entry `armlet`
LOCK = ".saving.lock"  # there while a policy is being saved
UNKNOWN = "0" * 16  # in the weights' metadata until the fingerprint is known; as long as one
FIX = (
    f"a policy folder holds {CONFIG}, {WEIGHTS} and {TOKENIZER} (made by `armlet teach` or `armlet "
    "distil`): copy all three again, or make it anew"
)
# Times that an unchanged config may not find its weights: a save may give them their name in
# between.
PATIENCE = 3
BLOCK = 2**20  # bytes read at a time
T = TypeVar("T")


def save_policy(
    policy: Backbone,
    folder: Path,
    *,
    provenance: dict[str, Any] | None = None,
    weights: Literal["fp16", "fp32"] = "fp32",
    beside: dict[str, Any] | None = None,
) -> str:
    """Write a policy; returns its fingerprint. `provenance` (the recipe, the data, the command) is
    kept in its config, and `beside`, entries for other readers. With `weights` "fp16" the file is
    half as large; what is read from it runs in single precision again.

    A policy of armlet that is there is replaced, in one step: where anything fails, it is what it
    was. Other files of the folder stay. Raises ValueError for a weight that fp16 cannot hold,
    FileExistsError where somebody else's model is in the folder, FullDiskError.
    """
    tensors = {}
    for name, tensor in policy.state_dict().items():
        whole = tensor.detach().cpu().contiguous()  # safetensors writes no views
        tensors[name] = _halved(name, whole) if weights == "fp16" else whole
    description = json.loads(json.dumps(policy.to_json()))
    tokenizer = policy.body.tokenizer.to_str(pretty=False).encode()
    refuse_writing(folder)
    make_folder(folder)
    with hold_and_remove(folder / LOCK, "saving a policy"):
        _refuse_foreign(folder)
        _finish(folder)  # what a save that was killed left
        try:
            fingerprint = _write_weights(tensors, folder, description, tokenizer)
            write_atomically(folder / (TOKENIZER + NEXT), tokenizer)
            config = {
                **(beside or {}),
                "armlet": VERSION,
                FINGERPRINT: fingerprint,
                WORDS: _hash(tokenizer),
                "policy": description,
                "provenance": provenance or {},
            }
            # The commit: from here on the folder is the new policy, before it is the old one.
            write_atomically(folder / CONFIG, json.dumps(config, indent=1).encode())
        finally:
            _finish(folder)
    return fingerprint


def _halved(name: str, tensor: torch.Tensor) -> torch.Tensor:
    half = tensor.half() if tensor.is_floating_point() else tensor
    if not tensor.isfinite().all():
        raise ValueError(f"{name} has weights that are NaN or infinite: the policy is broken")
    if not half.isfinite().all():  # what is too large for fp16 becomes infinite
        raise ValueError(
            f"{name} has weights up to {tensor.abs().max():g}, and fp16 holds 65504 at most; keep "
            "it in fp32"
        )
    return half


def _refuse_foreign(folder: Path) -> None:
    """Raises FileExistsError where the folder has a file of these names that armlet did not write,
    as other libraries do too."""
    foreign = _foreign(folder)
    if foreign is not None:
        raise FileExistsError(
            f"{foreign} is there already, and is not part of a policy that armlet wrote; it is "
            "left as it is. Choose another folder, or move it away"
        )


def _foreign(folder: Path) -> Path | None:
    # lexists: a link whose target is away is somebody's file all the same.
    config = folder / CONFIG
    if os.path.lexists(config):
        # No JSON, or a dead link, is not ours.
        with contextlib.suppress(ValueError, FileNotFoundError):
            if "policy" in read_json(config, fix=FIX):
                return None
        return config
    for name in (WEIGHTS, TOKENIZER):
        if os.path.lexists(folder / name):
            return folder / name
    return None


def _write_weights(
    tensors: dict[str, torch.Tensor], folder: Path, description: dict[str, Any], tokenizer: bytes
) -> str:
    """Write the weights as those of the next policy; returns its fingerprint, which stands in their
    metadata."""
    size = sum(tensor.nbytes for tensor in tensors.values())
    with atomic_file(folder / (WEIGHTS + NEXT), size=size, apart=True) as part:
        # The fingerprint is a hash of the file, so the file is written without it, then marked.
        save_file(tensors, part, metadata={FINGERPRINT: UNKNOWN})
        digest = _digest(description, part)[1]
        digest.update(tokenizer)
        fingerprint = digest.hexdigest()[:16]
        unmarked = f'"{FINGERPRINT}":"{UNKNOWN}"'
        with part.open("r+b") as file:  # the fingerprint is as long, so nothing moves
            # A safetensors file: 8 bytes that say how long the header is, the header, the tensors.
            header = file.read(8 + int.from_bytes(file.read(8), "little"))
            file.seek(8 + header.index(unmarked.encode()))
            file.write(unmarked.replace(UNKNOWN, fingerprint).encode())
    return fingerprint


def settle(folder: Path) -> None:
    """Give the files of a policy their names where a save was killed after its commit: armlet reads
    them as they are, others would find a file missing."""
    if any((folder / (name + NEXT)).exists() for name in (WEIGHTS, TOKENIZER)):
        with hold_and_remove(folder / LOCK, "saving a policy"):
            _finish(folder)


def _finish(folder: Path) -> None:
    """Give the weights and words that the config names their names, and remove those of a save that
    did not get so far."""
    config: dict[str, Any] = (
        read_json(folder / CONFIG, fix=FIX) if (folder / CONFIG).exists() else {}
    )
    weights = folder / (WEIGHTS + NEXT)
    words = folder / (TOKENIZER + NEXT)
    if weights.exists():
        named = FINGERPRINT in config and _tensors(weights, fix=FIX)[0] == config[FINGERPRINT]
        _settle(weights, folder / WEIGHTS, belongs=named)
    if words.exists():
        named = WORDS in config and _hash(words.read_bytes()) == config[WORDS]
        _settle(words, folder / TOKENIZER, belongs=named)


def _settle(following: Path, path: Path, *, belongs: bool) -> None:
    if belongs:
        following.replace(path)
    else:
        following.unlink()
    make_durable(path.parent)  # a rename is in the folder, which must reach the disk, too


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def load_policy(
    folder: Path | str,
    *,
    device: str = "cpu",
    robot: RobotSpec | None = None,
    known: Callable[[], RobotSpec] | None = None,
) -> Backbone:
    """Read a policy from a folder, or by its name on the hub (`hf:user/name`, see data.hub), in
    eval mode; also one that another project saved, or the `policy.toml` that names it
    (policies/pretrained). `robot`: the one it is to act on, which it must have been made for.
    `known` gives the robot from which is taken what another project's checkpoint does not say; it
    is `robot` where nothing else is given, and is asked for such a checkpoint only.

    Raises FileNotFoundError or ValueError, naming the file or tensor; DisagreementError, a
    ValueError, where it was made for another robot; and what `data.hub.local_folder` raises.
    """
    return load_with_fingerprint(folder, device=device, robot=robot, known=known)[0]


def load_with_fingerprint(
    folder: Path | str,
    *,
    device: str = "cpu",
    robot: RobotSpec | None = None,
    known: Callable[[], RobotSpec] | None = None,
) -> tuple[Backbone, str]:
    """What `load_policy` reads, and its `policy_fingerprint`, both of one reading of the file: a
    save in between cannot give the weights of one policy and the fingerprint of the next."""
    _check_device(device)
    folder = _place(folder)
    if kinds.is_pretrained(folder):
        foreign = kinds.load(folder, known or (None if robot is None else lambda: robot))
        if robot is not None:
            agree(foreign.robot, robot, whose=(f"the policy {folder}", "the robot"))
        return foreign.to(device).eval(), kinds.fingerprint(folder)
    config, (tensors, digest), tokenizer = _read(folder, _tensors_and_digest)
    digest.update(tokenizer)
    # A policy of before there were fingerprints names none, and is read as it is.
    found = digest.hexdigest()[:16]
    if config.get(FINGERPRINT, found) != found:
        raise ValueError(
            f"{folder}: `policy` in {CONFIG}, or {WEIGHTS}, was changed after the policy was "
            f"saved: together they are {found} and not {config[FINGERPRINT]}; {FIX}. What is "
            "changed on purpose is saved again, with armlet.policies.checkpoint.save_policy"
        )
    words = _tokenizer(tokenizer, folder / TOKENIZER)
    try:
        policy = rebuild(config["policy"], words, empty=True)
    except Exception as error:  # torch, and what reads a library's own sizes, raise what they like
        raise ValueError(
            f"{folder / CONFIG}: `policy` does not describe a policy ({type(error).__name__}: "
            f"{error}); it was changed by hand, or written by another version of armlet; {FIX}"
        ) from error
    wrong = contradictions(policy.body) + _unread(config["policy"], policy.to_json())
    wrong += _kept_by_none(policy)
    if wrong:
        raise ValueError(
            f"{folder / CONFIG}: `policy` contradicts itself: {'; '.join(wrong)}; {FIX}"
        )
    if robot is not None:
        agree(policy.robot, robot, whose=(f"the policy {folder}", "the robot"))
    load_weights(policy, tensors, source=folder / WEIGHTS)
    return policy.to(device).eval(), found


def _check_device(name: str) -> None:
    """Raises ValueError where torch knows no such device, or has none."""
    try:
        torch.empty(0, device=name)
    # An AssertionError is torch's word for one that it was built without.
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {name!r} cannot be used ({str(error).splitlines()[0]:.120}); expected cpu or, where there "
            "is a GPU and torch is built for it, cuda (`--device`; of a recipe `--acting-device`)"
        ) from error


def contradictions(body: Body) -> list[str]:
    """What a description of a policy says of its robot in two places, and differently."""
    spec = body.action_spec
    lines = []
    for what, normaliser, dims in (
        ("actions", body.actions, spec.dims),
        ("state", body.state, len(body.state_names) or len(body.state.offset)),
    ):
        if len(normaliser.offset) != dims:
            lines.append(
                f"{what} has statistics of {len(normaliser.offset)} numbers and {dims} names"
            )
    scale = spec.translation_scale
    if scale is not None and not scale > 0:
        lines.append(f"a command of 1 moves the hand by {scale:g} m, expected more than 0")
    ends = spec.gripper_open, spec.gripper_closed
    if spec.grippers and ends[0] == ends[1]:
        lines.append(f"the gripper is {ends[0]:g} both open and closed")
    for index in spec.grippers:
        low = spec.low[index]
        high = spec.high[index]
        if min(ends) < low - SLACK * abs(low) or max(ends) > high + SLACK * abs(high):
            lines.append(
                f"{spec.names[index]} goes from {low:g} to {high:g}, and its gripper from "
                f"{min(ends):g} to {max(ends):g}"
            )
    return lines


def _kept_by_none(policy: Backbone) -> list[str]:
    """A line where the layers that a policy kept of another are not as many as it has."""
    kept = policy.kept_layers
    if kept is None:
        return []
    numbers = isinstance(kept, tuple) and all(type(each) is int and each >= 0 for each in kept)
    if numbers and sorted(set(kept)) == list(kept) and len(kept) == len(policy.layers):
        return []
    return [
        f"kept_layers is {kept!r:.60}, expected the numbers of its {len(policy.layers)} layers in "
        "the network that it was cut from, in order"
    ]


def _unread(said: dict[str, Any], read: dict[str, Any], where: str = "") -> list[str]:
    """A line for each entry of a description that the policy made from it does not have: nobody
    read it, and whoever wrote it meant something."""
    found = []
    for name, value in said.items():
        if name in ("fit", "state_names"):  # `Body` writes them only where they say something
            continue
        if name not in read:
            found.append(f"{where}{name} is no entry of a policy of type {read.get('type')!r}")
        elif name == "inner":  # a policy within a policy
            found += _unread(value, read[name], f"{where}inner.")
    return found


def _tensors_and_digest(
    path: Path, config: dict[str, Any]
) -> tuple[str | None, tuple[dict[str, torch.Tensor], Any]]:
    with _opened(path, fix=FIX):  # the library says whether the file is whole
        pass
    tensors: dict[str, torch.Tensor] = {}
    marked, digest = _digest(config["policy"], path, tensors)
    return marked, (tensors, digest)


def _types(path: Path, config: dict[str, Any]) -> tuple[str | None, set[str]]:
    with _opened(path, fix=FIX) as file:  # of its header alone
        types = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - no dict
        return (file.metadata() or {}).get(FINGERPRINT), types


def _read(
    folder: Path, look: Callable[[Path, dict[str, Any]], tuple[str | None, T]]
) -> tuple[dict[str, Any], T, bytes]:
    """The config, what `look` finds in the weights, and the words, all of one policy, whoever saves
    another meanwhile.

    `look` takes the weights' file and the config, and gives the fingerprint in that file and what
    it found there.
    """
    if folder.is_file():
        raise ValueError(f"{folder} is a file, expected a folder; {FIX}")
    patience = PATIENCE
    content = b""
    while True:
        before = content
        content = read_whole(folder / CONFIG, fix=FIX)
        # Each new config is a save that went through, so this ends when the saves do.
        patience = patience - 1 if content == before else PATIENCE
        config = parse_json(content, folder / CONFIG, fix=FIX)
        if not isinstance(config.get("policy"), dict):
            raise ValueError(f"{folder / CONFIG} has no 'policy'; it was not written by armlet")
        if config.get("armlet") != VERSION:
            raise ValueError(
                f"{folder / CONFIG}: `armlet` is {config.get('armlet')!r}, expected {VERSION}: "
                "another version of armlet wrote it, which can read it"
            )
        try:
            _named(folder / TOKENIZER)  # that a file is missing comes before what the others say
            weights = _find_weights(folder, config, look)
            tokenizer = _find_words(folder, config)
            if read_whole(folder / CONFIG, fix=FIX) == content:  # a save changes this file first
                return config, weights, tokenizer
        except (FileNotFoundError, ValueError):
            if patience == 0:
                raise


def _find_weights(
    folder: Path,
    config: dict[str, Any],
    look: Callable[[Path, dict[str, Any]], tuple[str | None, T]],
) -> T:
    wanted = config.get(FINGERPRINT)
    found = None
    for path in _named(folder / WEIGHTS):
        found, value = look(path, config)
        if found == wanted:
            return value
    raise ValueError(
        f"{folder / WEIGHTS} holds {_called(found)}, and {folder / CONFIG} describes "
        f"{_called(wanted)}: the folder is a mixture of two policies. Copy {CONFIG}, {WEIGHTS} and "
        f"{TOKENIZER} of one of them again{_differing(folder, config)}"
    )


def _called(fingerprint: str | None) -> str:
    return "a policy without a fingerprint" if fingerprint is None else f"policy {fingerprint}"


def _differing(folder: Path, config: dict[str, Any]) -> str:
    """Which tensors of the weights do not fit the config, for an error; nothing where all do."""
    try:
        words = _tokenizer(_find_words(folder, config), folder / TOKENIZER)
        policy = rebuild(config["policy"], words, empty=True)
        load_weights(policy, read_tensors(folder / WEIGHTS, fix=FIX), source=folder / WEIGHTS)
    except (
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        ValueError,
        FileNotFoundError,
    ) as error:
        return f". {error}"
    return ""


def _find_words(folder: Path, config: dict[str, Any]) -> bytes:
    for path in _named(folder / TOKENIZER):
        content = read_whole(path, fix=FIX)
        if WORDS not in config or _hash(content) == config[WORDS]:
            return content
    raise ValueError(
        f"{folder / TOKENIZER} holds other words than {folder / CONFIG} was saved with: the folder "
        f"is a mixture of two policies, or the file was changed. Copy {CONFIG}, {WEIGHTS} and "
        f"{TOKENIZER} of one policy again"
    )


def _named(path: Path) -> list[Path]:
    """The file, and that of a save which has not given it its name. Raises FileNotFoundError where
    there is neither."""
    found = [each for each in (path, path.with_name(path.name + NEXT)) if each.exists()]
    if not found:
        check_is_here(path, fix=FIX)
    return found


def _tokenizer(content: bytes, path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises nothing more special
        raise ValueError(
            f"{path} ({len(content)} bytes) is not a tokenizer ({error}); {FIX}"
        ) from error


def read_tensors(path: Path, *, fix: str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. Raises FileNotFoundError or ValueError naming the file;
    `fix` says what to do."""
    return _tensors(path, fix=fix)[1]


def _tensors(path: Path, *, fix: str) -> tuple[str | None, dict[str, torch.Tensor]]:
    """The fingerprint that stands in a safetensors file, if one does, and its tensors."""
    with _opened(path, fix=fix) as file:
        metadata = file.metadata() or {}
        tensors = {}
        for name in file.keys():  # noqa: SIM118 - the library's file is no dict
            tensors[name] = file.get_tensor(name)
        return metadata.get(FINGERPRINT), tensors


@contextlib.contextmanager
def _opened(path: Path, *, fix: str) -> Iterator[Any]:
    """A safetensors file. Raises FileNotFoundError or ValueError naming it."""
    safetensors_header(path, fix=fix)  # the library would read one of any length
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is no whole safetensors file ({error}): it was "
            f"cut short, or is something else; {fix}"
        ) from error
    except RuntimeError as error:  # from torch, which opens the file
        # A save may have given it its name between our look and this: then it is missing, and
        # `_read` looks again.
        check_is_here(path, fix=fix)
        raise ValueError(f"{path} cannot be opened ({error}); {fix}") from error


def load_weights(module: nn.Module, weights: dict[str, torch.Tensor], *, source: Path) -> None:
    """Copy tensors into a module of exactly these names and shapes, or raise ValueError naming the
    differences. A module that was built without weights takes the tensors themselves, each in the
    precision that the module says; they leave `weights`, so that none is there twice."""
    own = module.state_dict()
    problems = []
    for name in own.keys() | weights.keys():
        if name not in weights:
            problems.append(f"missing {name} {tuple(own[name].shape)}")
        elif name not in own:
            problems.append(f"unexpected {name} {tuple(weights[name].shape)}")
        elif own[name].shape != weights[name].shape:
            found = tuple(weights[name].shape)
            problems.append(f"{name} has shape {found}, expected {tuple(own[name].shape)}")
    if problems:
        shown = "; ".join(sorted(problems)[:12])
        raise ValueError(
            f"{source} does not fit its config ({len(problems)} tensors differ): {shown}"
        )
    if not any(tensor.is_meta for tensor in own.values()):
        module.load_state_dict(weights)
        return
    taken = {}
    for name, tensor in own.items():
        taken[name] = weights.pop(name).to(tensor.dtype)  # fp16 on disk runs in single precision
    module.load_state_dict(taken, assign=True)


def _place(folder: Path | str) -> Path:
    """The folder of a policy, fetched where it is a name on the hub; or a `policy.toml`. Raises
    ValueError for an address, and for an exported policy."""
    if is_address(folder):
        raise ValueError(
            f"{address_of(folder)} is a policy behind a socket, of which nobody here has weights or "
            "layers; it can teach by its actions (`armlet probe`), and be evaluated"
        )
    if Path(folder).suffix == ".toml" and Path(folder).is_file():
        return Path(folder)
    found = local_folder(folder, kind="model")
    if is_exported(found):
        raise ValueError(
            f"{folder} is an exported policy: it acts, also in `armlet evaluate --policies`, and "
            "has no weights or layers to be taught, watched or cut; give the policy that it was "
            "made from"
        )
    return found


def policy_fingerprint(folder: Path | str) -> str:
    """A hash of what decides a policy's answers: its weights, words and network, not its
    provenance."""
    folder = _place(folder)
    if kinds.is_pretrained(folder):
        return kinds.fingerprint(folder)
    _, digest, tokenizer = _read(folder, lambda path, config: _digest(config["policy"], path))
    digest.update(tokenizer)
    return digest.hexdigest()[:16]


def _digest(
    description: dict[str, Any], weights: Path, tensors: dict[str, torch.Tensor] | None = None
) -> tuple[str | None, Any]:
    """The fingerprint that stands in the weights' file, if one does, and the hash of network and
    weights, for which it does not count: it is made from them. Where `tensors` are given, the file's
    are put there: read once, into memory of their own."""
    check_is_here(weights, fix=FIX)
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, weights.stat().st_size))
        described = parse_json(header, weights, fix=FIX)
        marked = described.get("__metadata__", {}).pop(FINGERPRINT, None)
        if marked is not None:
            # The header as the library would write it if nobody gave a fingerprint: the hash of a
            # policy is the same whether its file carries one or not.
            if not described["__metadata__"]:
                del described["__metadata__"]
            header = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
            header += b" " * (-len(header) % 8)  # the library aligns tensors to 8 bytes
        digest.update(len(header).to_bytes(8, "little") + header)
        body = 0
        if tensors is not None:
            for name, entry in _in_file(described):
                tensors[name] = _empty(entry, weights)
                body += _fill(file, tensors[name], digest)
        while block := file.read(BLOCK):  # all of it, or what lies behind the last tensor
            digest.update(block)
            body += len(block)
    wanted = 0  # where the last tensor ends
    for _, entry in _in_file(described):
        wanted = max(wanted, entry["data_offsets"][1])
    if body != wanted:
        raise ValueError(
            f"{weights} holds {body} bytes of tensors, and its header promises {wanted}: it was "
            f"cut short; {FIX}"
        )
    return marked, digest


def _in_file(header: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The tensors that a header names, as they follow one another."""
    entries = [item for item in header.items() if item[0] != "__metadata__"]
    return sorted(entries, key=lambda item: item[1]["data_offsets"])


def _empty(entry: dict[str, Any], weights: Path) -> torch.Tensor:
    if entry["dtype"] not in IN_HEADERS:
        raise ValueError(
            f"{weights} holds numbers of type {entry['dtype']}, expected {', '.join(IN_HEADERS)}; {FIX}"
        )
    return torch.empty(entry["shape"], dtype=IN_HEADERS[entry["dtype"]])


def _fill(file: BinaryIO, tensor: torch.Tensor, digest: Any) -> int:
    """The next bytes of a file into a tensor and a hash; returns how many there were."""
    room = memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)
    filled = 0
    while filled < len(room):
        # typeshed's BinaryIO lacks readinto, which needs no second copy of a tensor.
        count = file.readinto(room[filled : filled + BLOCK])  # type: ignore[attr-defined]
        if not count:  # the file is too short: the caller counts, and says so
            break
        digest.update(room[filled : filled + count])
        filled += count
    return filled


def read_provenance(folder: Path | str) -> dict[str, Any]:
    """What `save_policy` was told of where a policy comes from; empty where it was told nothing,
    and for a checkpoint of another project."""
    folder = _place(folder)
    if kinds.is_pretrained(folder):
        return {}
    file = folder / (MANIFEST if (folder / MANIFEST).is_file() else CONFIG)
    found = read_json(file, fix=FIX).get("provenance", {})
    if not isinstance(found, dict):
        raise ValueError(f"{file}: provenance is {json.dumps(found)}, expected an object; {FIX}")
    return found


def kept_in(folder: Path | str) -> Literal["fp16", "fp32"]:
    """How the weights of a policy are kept: fp16 where all are, else as armlet keeps them unasked."""
    folder = _place(folder)
    types: set[str] = set() if kinds.is_pretrained(folder) else _read(folder, _types)[1]
    floats = {each for each in types if each.startswith(("F", "BF"))}
    return "fp16" if floats == {"F16"} else "fp32"
