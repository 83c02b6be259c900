"""Policies and training states on disk. A policy is a folder: `config.json`, `model.safetensors`, `tokenizer.json`.

Files appear whole or not at all (written beside, then renamed), so a killed run leaves the last good one. Loading is
loud: a missing, unexpected or misshapen tensor is an error that names it.
"""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

from armlet.data.files import atomic_file, write_atomically
from armlet.policies import Policy, rebuild

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
LFS = b"version https://git-lfs"


def save_policy(
    policy: Policy, folder: Path, *, provenance: dict[str, Any] | None = None, weights: Literal["fp16", "fp32"] = "fp32"
) -> None:
    """Write a policy; `provenance` (the recipe, the data, the command) is kept in its config. With `weights` "fp16" the file is
    half as large; what is read from it runs in single precision again. Raises ValueError for a weight that fp16 cannot hold."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}
    if weights == "fp16":
        tensors = {name: _halved(name, tensor) for name, tensor in tensors.items()}
    with atomic_file(folder / WEIGHTS) as part:
        save_file(tensors, part)
    write_atomically(folder / TOKENIZER, policy.body.tokenizer.to_str(pretty=False).encode())
    # The config is written last and names the files that it belongs to: a save that dies half way is refused when it is loaded.
    digests = {name: _digest(folder / name) for name in (WEIGHTS, TOKENIZER)}
    config = {"armlet": 1, "policy": policy.to_json(), "files": digests, "provenance": provenance or {}}
    write_atomically(folder / CONFIG, json.dumps(config, indent=1).encode())


def _halved(name: str, tensor: torch.Tensor) -> torch.Tensor:
    half = tensor.half() if tensor.is_floating_point() else tensor
    if not half.isfinite().all():
        raise ValueError(f"{name} has weights up to {tensor.abs().max():g}, and fp16 holds 65504 at most; keep it in fp32")
    return half


def load_policy(folder: Path | str, *, device: str = "cpu") -> Policy:
    """Read a policy, in eval mode. Raises FileNotFoundError or ValueError, naming the file or tensor."""
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} is missing; a policy folder holds {CONFIG}, {WEIGHTS} and {TOKENIZER} "
                "(made by `armlet teach` or `armlet distil`)"
            )
    try:
        config = json.loads((folder / CONFIG).read_text())
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} is not JSON ({error}); copy the policy again") from error
    if "policy" not in config:
        raise ValueError(f"{folder / CONFIG} has no 'policy'; it was not written by armlet")
    weights = read_weights(folder / WEIGHTS)
    for name, digest in config.get("files", {}).items():  # policies saved before 2026-11-29 name none
        if _digest(folder / name) != digest:
            raise ValueError(
                f"{folder / name} is not the file that {folder / CONFIG} was written with: saving was interrupted, or files of two "
                "policies were mixed; copy the policy again, or run the command that makes it"
            )
    policy = rebuild(config["policy"], Tokenizer.from_file(str(folder / TOKENIZER)))
    load_weights(policy, weights, source=folder / WEIGHTS)
    return policy.to(device).eval()


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. Raises ValueError naming the file where it is none, or was cut short."""
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise ValueError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` where it came from")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or was cut short ({error}); copy it again") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_weights(module: nn.Module, weights: dict[str, torch.Tensor], *, source: Path) -> None:
    """Copy tensors into a module of exactly these names and shapes, or raise ValueError naming the differences."""
    own = module.state_dict()
    problems = [f"missing {name} {tuple(own[name].shape)}" for name in own.keys() - weights.keys()]
    problems += [f"unexpected {name} {tuple(weights[name].shape)}" for name in weights.keys() - own.keys()]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own.keys() & weights.keys()
        if own[name].shape != weights[name].shape
    ]
    if problems:
        shown = "\n  ".join(sorted(problems)[:12])
        raise ValueError(f"{source} does not fit its config ({len(problems)} tensors differ):\n  {shown}")
    module.load_state_dict(weights)


def policy_fingerprint(folder: Path | str) -> str:
    """A hash of what decides a policy's answers: its weights, words and network, not its provenance."""
    folder = Path(folder)
    config = json.loads((folder / CONFIG).read_text())["policy"]
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in (WEIGHTS, TOKENIZER):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]


def read_provenance(folder: Path | str) -> dict[str, Any]:
    """What `save_policy` was told of where a policy comes from; empty where it was told nothing."""
    return json.loads((Path(folder) / CONFIG).read_text()).get("provenance", {})


def save_state(path: Path, state: dict[str, Any]) -> None:
    """A training state: weights, optimiser, step, RNG. Renamed into place, so a kill leaves the previous one."""
    with atomic_file(path) as part:
        torch.save(state, part)


def load_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote. Raises ValueError naming the file where it is damaged."""
    try:
        return torch.load(path, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and this stage starts from its beginning") from error
