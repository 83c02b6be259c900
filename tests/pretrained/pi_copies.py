"""The small golden checkpoints of π0 and π0.5, and copies of them to be changed."""

import dataclasses
import json
import shutil
from pathlib import Path

from goldens.pi import Variant
from safetensors.torch import load_file, save_file
from torch import Tensor

from armlet.policies.pretrained import pi0, pi05
from armlet.policies.pretrained.said import Said

HERE = Path(__file__).parent / "golden"
LAYOUTS = ("pi0", "pi05")
KINDS = {"pi0": pi0, "pi05": pi05}
VLM = "model.paligemma_with_expert.paligemma."
EMBEDDED = f"{VLM}model.language_model.embed_tokens.weight"
LM_HEAD = f"{VLM}lm_head.weight"


def variant_of(layout: str) -> Variant:
    return Variant.read(layout, HERE / layout / "A")


def copied(variant: Variant, root: Path) -> Variant:
    """The same in a folder of its own, to be changed."""
    folder = root / "copy"
    shutil.copytree(variant.folder, folder)
    return Variant.read(variant.layout, folder)


def rewritten(variant: Variant, change: dict[str, Tensor | None]) -> None:
    """Other tensors in LeRobot's file; None: without that one."""
    file = variant.folder / "pretrained_model" / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in change.items():
        del tensors[name]
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, file)


def as_openpi(variant: Variant, *, asset: str = "golden/arm") -> Path:
    """LeRobot's folder as openpi would have saved the same network."""
    root = variant.folder / "openpi"
    (root / "assets" / asset).mkdir(parents=True)
    renamed = {}
    for name, tensor in load_file(
        variant.folder / "pretrained_model" / "model.safetensors"
    ).items():
        if name == LM_HEAD:
            continue
        # openpi has no embedding beside the head: one tensor, under that name.
        renamed[(LM_HEAD if name == EMBEDDED else name).removeprefix("model.")] = tensor
    save_file(renamed, root / "model.safetensors")
    config = {
        "action_dim": 32,
        "action_horizon": 10,
        "paligemma_variant": "gemma_2b",
        "action_expert_variant": "gemma_300m",
        "precision": "float32",
    }
    (root / "config.json").write_text(json.dumps(config))
    statistics = {}
    files = (variant.folder / "pretrained_model").glob("policy_pre*.safetensors")
    for name, tensor in load_file(next(files)).items():
        key, _, which = name.rpartition(".")
        ours = {"observation.state": "state", "action": "actions"}.get(key)
        if ours and which in ("mean", "std", "q01", "q99"):
            statistics.setdefault(ours, {})[which] = tensor.tolist()
    file = root / "assets" / asset / "norm_stats.json"
    file.write_text(json.dumps({"norm_stats": statistics}))
    return root


def said_of(folder: Path, variant: Variant, **more: object) -> Said:
    said = variant.said(str(folder))
    return dataclasses.replace(said, options={**said.options, **more})
