"""Policies and training states on disk. A policy is a folder: `config.json`, `model.safetensors`, `tokenizer.json`.

Files appear whole or not at all (written beside, then renamed), so a killed run leaves the last good one. Loading is
loud: a missing, unexpected or misshapen tensor is an error that names it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

from armlet.data.files import write_atomically
from armlet.policies import Policy, rebuild

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"


def save_policy(
    policy: Policy, folder: Path, *, provenance: dict[str, Any] | None = None, weights: Literal["fp16", "fp32"] = "fp32"
) -> None:
    """Write a policy; `provenance` (the recipe, the data, the command) is kept in its config. With `weights` "fp16" the file is
    half as large; what is read from it runs in single precision again. Raises ValueError for a weight that fp16 cannot hold."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}
    if weights == "fp16":
        tensors = {name: _halved(name, tensor) for name, tensor in tensors.items()}
    beside = folder / (WEIGHTS + ".part")
    save_file(tensors, beside)
    beside.replace(folder / WEIGHTS)
    write_atomically(folder / TOKENIZER, policy.body.tokenizer.to_str(pretty=False).encode())
    config = {"armlet": 1, "policy": policy.to_json(), "provenance": provenance or {}}
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
    config = json.loads((folder / CONFIG).read_text())
    if "policy" not in config:
        raise ValueError(f"{folder / CONFIG} has no 'policy'; it was not written by armlet")
    policy = rebuild(config["policy"], Tokenizer.from_file(str(folder / TOKENIZER)))
    load_weights(policy, load_file(folder / WEIGHTS), source=folder / WEIGHTS)
    return policy.to(device).eval()


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
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    torch.save(state, beside)
    beside.replace(path)


def load_state(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)
