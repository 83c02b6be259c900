"""A tiny OpenVLA-OFT, as the original wrote it, for tests: an adapter that was never merged, its
side files, the OpenVLA that it was trained beside, and made from these what else there is: a
discrete policy, and one with FiLM."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from goldens import openvla_oft as golden
from torch import Tensor

from armlet.policies.pretrained import kinds
from armlet.policies.pretrained.files import Header, Tensors, open_sharded
from armlet.policies.pretrained.oft_network import OpenVLAOFT
from armlet.robot.observation import Observation
from armlet.types import Batch

ROOT = Path(__file__).parent / "golden"
FIXTURE = ROOT / "openvla_oft" / "A"
CHECKPOINT = FIXTURE / "checkpoint"
BASE = ROOT / "openvla_hf" / "A" / "checkpoint"
HEAD = "action_head--150000_checkpoint.pt"
PROPRIO = "proprio_projector--150000_checkpoint.pt"
ROBOT = """
[robot]
mode = "delta"
rotation = "axis_angle"
grippers = [6]
gripper_open = 0.0
gripper_closed = 1.0
control_hz = 10
"""
VIEWS = ("full_image", "wrist_image")


def toml(place: Path, checkpoint: Path = CHECKPOINT, *, more: str = "", **options: Any) -> Path:
    """A `policy.toml` in a folder of its own, with a robot; `more`: lines above `[options]`."""
    place.mkdir(parents=True, exist_ok=True)
    lines = [f"checkpoint = {json.dumps(str(checkpoint))}", more, "[options]"]
    for name, value in options.items():
        lines.append(f"{name} = {json.dumps(value)}")
    path = place / "policy.toml"
    path.write_text("\n".join(lines) + ROBOT)
    return path


def load(
    place: Path, checkpoint: Path = CHECKPOINT, *, more: str = "", **options: Any
) -> OpenVLAOFT:
    """The policy, its adapter merged into the base where nothing else is said."""
    if not (checkpoint / "config.json").is_file():
        options = {"base": str(BASE), **options}
    policy = kinds.load(toml(place, checkpoint, more=more, **options))
    assert isinstance(policy, OpenVLAOFT)
    return policy


def discrete(place: Path, **options: Any) -> OpenVLAOFT:
    """Whose words are its actions: the base itself, asked for a chunk."""
    told = {"unnorm_key": "bridge_orig", "platform": "bridge", **options}
    return load(place, BASE, more='kind = "openvla_oft"', **told)


def copied(place: Path) -> Path:
    """The checkpoint's folder, to be changed."""
    return Path(shutil.copytree(CHECKPOINT, place))


def change(path: Path, **entries: Any) -> None:
    """Entries of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def case(number: int) -> tuple[Observation, dict[str, np.ndarray]]:
    """What the original was shown, and the arrays that it answered with."""
    said = json.loads((FIXTURE / "golden.json").read_text())["cases"][number]
    pictures = golden.pictures_of(FIXTURE, said)
    answers = {}
    with np.load(FIXTURE / "golden.npz") as arrays:
        for name in arrays.files:
            if name.startswith(f"case{number}__"):
                answers[name.removeprefix(f"case{number}__")] = arrays[name]
    images = dict(zip(VIEWS, pictures, strict=True))
    previous = np.zeros(7, np.float32)
    return Observation(images, answers["proprio"], said["instruction"], previous), answers


@torch.inference_mode()
def moved(policy: OpenVLAOFT, batch: Batch | None = None) -> float:
    """The largest error of the normalised actions."""
    seen, answers = case(0)
    found = policy(policy.prepare([seen]) if batch is None else batch)[0].numpy()
    return float(np.abs(found - answers["normalized_action"]).max())


def towers_with_film(place: Path) -> tuple[Path, dict[str, Tensor]]:
    """The folder with a `vision_backbone--….pt`: the base's towers with new adapters beside them
    and FiLM, and the side file's tensors."""
    folder = copied(place)
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return (torch.randn(shape, generator=generator) * 0.1).to(dtype)

    base = open_sharded(BASE)
    found: dict[str, Tensor] = {}
    for name in base:
        if not name.startswith("vision_backbone."):
            continue
        ours = name
        parts = name.split(".")
        if "blocks" in parts:  # the wrapper around each block
            at = parts.index("blocks") + 2
            ours = ".".join([*parts[:at], "block", *parts[at:]])
        weight = base.read(name)
        layer, _, what = ours.rpartition(".")
        adapted = what == "weight" and weight.ndim > 1
        if not adapted and not (what == "bias" and f"{layer}.base_layer.weight" in found):
            found[ours] = weight
            continue
        found[f"{layer}.base_layer.{what}"] = weight
        if adapted:
            found[f"{layer}.lora_A.default.weight"] = drawn(4, *weight.shape[1:])
            ones = (1,) * (weight.ndim - 2)
            found[f"{layer}.lora_B.default.weight"] = drawn(weight.shape[0], 4, *ones)
    for tower, depth, width in (("featurizer", 4, 32), ("fused_featurizer", 3, 48)):
        for number in range(depth):
            for what in ("scale", "shift"):
                stem = f"vision_backbone.{tower}.blocks.{number}.{what}"
                found[f"{stem}.weight"] = drawn(width, 64, dtype=torch.float32)
                found[f"{stem}.bias"] = drawn(width, dtype=torch.float32)
    torch.save(found, folder / "vision_backbone--7_checkpoint.pt")
    return folder, found


def real_size(part: str) -> Tensors:
    """The headers of a real checkpoint's part."""
    path = FIXTURE.parent / "full_keys.txt"
    headers = {}
    for line in path.read_text().splitlines():
        where, name, shape, dtype, count = line.split()
        if where != part:
            continue
        sides = tuple(map(int, shape.split("x")))
        for number in range(int(count)):
            own = name.replace(".N.", f".{number}.")
            headers[own] = Header(sides, getattr(torch, dtype), path, own)
    return Tensors(headers)
