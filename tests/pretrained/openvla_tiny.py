"""A tiny OpenVLA, as the original wrote it, for tests: its folder, loaded, changed, and as a run
folder."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from armlet.policies.pretrained import kinds
from armlet.policies.pretrained.files import Header, Tensors, open_sharded
from armlet.policies.pretrained.openvla import OpenVLA
from armlet.robot.observation import Observation

FIXTURE = Path(__file__).parent / "golden" / "openvla_hf" / "A"
CHECKPOINT = FIXTURE / "checkpoint"
KEY = "bridge_orig"
ROBOT = """
[robot]
mode = "delta"
rotation = "euler"
grippers = [6]
gripper_open = 1.0
gripper_closed = 0.0
control_hz = 5
"""
# Their names in a run folder, from those in Hugging Face's.
TO_RUN = (
    (r"^vision_backbone\.featurizer\.", "vision_backbone.dino_featurizer."),
    (r"^vision_backbone\.fused_featurizer\.", "vision_backbone.siglip_featurizer."),
    (r"scale_factor$", "gamma"),
    (r"^projector\.fc1\.", "projector.projector.0."),
    (r"^projector\.fc2\.", "projector.projector.2."),
    (r"^projector\.fc3\.", "projector.projector.4."),
    (r"^language_model\.", "llm_backbone.llm."),
)


def toml(place: Path, checkpoint: Path = CHECKPOINT, *, more: str = "", **options: Any) -> Path:
    """A `policy.toml` in a folder of its own, with a robot."""
    place.mkdir(parents=True, exist_ok=True)
    lines = [f"checkpoint = {json.dumps(str(checkpoint))}", more, "[options]"]
    for name, value in options.items():
        lines.append(f"{name} = {json.dumps(value)}")
    path = place / "policy.toml"
    path.write_text("\n".join(lines) + ROBOT)
    return path


def load(place: Path, checkpoint: Path = CHECKPOINT, *, more: str = "", **options: Any) -> OpenVLA:
    """The policy; `more`: lines above `[options]`."""
    options = {"unnorm_key": KEY, **options}
    policy = kinds.load(toml(place, checkpoint, more=more, **options))
    assert isinstance(policy, OpenVLA)
    return policy


def copied(place: Path) -> Path:
    """The checkpoint's folder, to be changed."""
    return Path(shutil.copytree(CHECKPOINT, place))


def change(path: Path, **entries: Any) -> None:
    """Entries of a JSON file; None takes one away."""
    said = json.loads(path.read_text())
    for name, value in entries.items():
        said[name] = value
        if value is None:
            del said[name]
    path.write_text(json.dumps(said))


def case(number: int) -> tuple[Observation, dict[str, np.ndarray]]:
    """What the original was shown, and the arrays that it answered with."""
    said = json.loads((FIXTURE / "golden.json").read_text())["cases"][number]
    picture = np.asarray(Image.open(FIXTURE / said["image"]).convert("RGB"))
    seen = Observation(
        {"image": picture},
        np.zeros(0, np.float32),
        said["instruction"],
        np.zeros(7, np.float32),
    )
    with np.load(FIXTURE / "golden.npz") as arrays:
        answers = {}
        for name in arrays.files:
            if name.startswith(f"case{number}__"):
                answers[name.removeprefix(f"case{number}__")] = arrays[name]
    return seen, answers


def as_run(place: Path, *, change_dtype: torch.dtype = torch.float32) -> Path:
    """The same weights as a run folder of the original's trainer, in single precision; its
    checkpoint is written by torch."""
    tensors = open_sharded(CHECKPOINT)
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for name in tensors:
        ours = name
        for pattern, replacement in TO_RUN:
            ours = re.sub(pattern, replacement, ours)
        module, _, rest = ours.partition(".")
        modules.setdefault(module, {})[rest] = tensors.read(name).to(change_dtype)
    (place / "checkpoints").mkdir(parents=True)
    torch.save({"model": modules}, place / "checkpoints" / "step-295000-epoch-40-loss=0.2200.pt")
    vla = {"base_vlm": "prism-dinosiglip-224px+7b", "vla_id": "prism-dinosiglip-224px+mx-bridge"}
    (place / "config.json").write_text(json.dumps({"run_id": "tiny", "vla": vla}))
    shutil.copy(CHECKPOINT / "dataset_statistics.json", place)
    return place


def llama_hub(place: Path, **entries: Any) -> Path:
    """What the original takes of Llama-2's folder on the hub: the tokenizer, and sizes."""
    place.mkdir(parents=True)
    shutil.copy(CHECKPOINT / "tokenizer.json", place)
    said = {"model_type": "llama", "num_attention_heads": 8, "rms_norm_eps": 1e-5, **entries}
    (place / "config.json").write_text(json.dumps(said))
    return place


def real_size(path: Path) -> Tensors:
    """The headers of a real model: lines of name (layers' numbers are N), shape, type and count."""
    headers = {}
    for line in path.read_text().splitlines():
        name, shape, dtype, count = line.split()
        sides = tuple(map(int, shape.split("x")))
        for number in range(int(count)):
            own = re.sub(r"\.N\.", f".{number}.", name)
            headers[own] = Header(sides, getattr(torch, dtype), path, own)
    return Tensors(headers)
