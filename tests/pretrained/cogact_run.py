"""A tiny run folder of CogACT for tests: language model and action model are the golden fixture's,
to the bit; towers and projector, which stand in no file here, are drawn."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from armlet.policies.pretrained.said import Said, read_said

GOLDEN = Path(__file__).parent / "golden" / "cogact"
NAME = "step-000001-epoch-00-loss=0.1000.pt"
Modules = dict[str, dict[str, Tensor]]
ROBOT = 'mode = "delta"\nrotation = "euler"\ncontrol_hz = 10\n'


def modules() -> Modules:
    """Module → its tensors, as the fixture's checkpoint has them."""
    weights = np.load(GOLDEN / "weights.npz")
    generator = torch.Generator().manual_seed(0)
    found: Modules = {}
    for module, entries in json.loads((GOLDEN / "keys.json").read_text()).items():
        tensors = found.setdefault(module, {})
        for name, (shape, _) in entries.items():
            key = f"{module}.{name}"
            if key in weights:
                tensors[name] = torch.from_numpy(weights[key])
            else:
                tensors[name] = torch.randn(shape, generator=generator) * 0.05
    return found


def averaged(found: Modules) -> None:
    """With an averaged action model beside the plain one, which answers otherwise."""
    own = found["action_model"]
    found["ema_diffusion"] = {name: tensor * 0.9 for name, tensor in own.items()}


def write_run(
    folder: Path,
    *,
    change: Callable[[Modules], None] = lambda found: None,
    config: dict[str, Any] | None = None,
    statistics: dict[str, Any] | None = None,
) -> Path:
    """A run folder, with a trainer's state beside the weights."""
    (folder / "checkpoints").mkdir(parents=True)
    found = modules()
    change(found)
    torch.save({"model": found}, folder / "checkpoints" / NAME)
    (folder / "checkpoints" / NAME).with_suffix(".optimizer").write_bytes(b"no zip, nor a pickle")
    said = json.loads((GOLDEN / "config.json").read_text())
    said.update(config or {})
    (folder / "config.json").write_text(json.dumps(said))
    if statistics is None:
        statistics = json.loads((GOLDEN / "dataset_statistics.json").read_text())
    (folder / "dataset_statistics.json").write_text(json.dumps(statistics))
    if not (folder.parent / "llama").exists():
        shutil.copytree(GOLDEN / "llama_hub", folder.parent / "llama")
    return folder


def say(folder: Path, options: str = 'unnorm_key = "bridge_orig"', more: str = "") -> Path:
    """What the run folder at `folder` does not say, in a file beside it; its path."""
    file = folder / "policy.toml"
    lines = ['tokenizer = "../llama"', more, "[options]", options, "[robot]", ROBOT]
    file.write_text("\n".join(lines))
    return file


def said_of(folder: Path, options: str = 'unnorm_key = "bridge_orig"', more: str = "") -> Said:
    return read_said(say(folder, options, more))
