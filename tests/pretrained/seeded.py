"""Weights that need not be carried: each tensor is drawn from its name, the same here as where the
originals were asked with them.

A fixture holds `weights.json` (names and shapes, and the tensors that the network computes), the
checkpoint's other files, inputs and answers; `checkpoint` puts the weights beside them.
"""

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

GOLDEN = Path(__file__).parent / "golden"


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor's numbers, by its name."""
    if name.endswith("num_batches_tracked"):
        return np.array(7, np.int64)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = rng.standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        return values / np.float32(np.sqrt(max(int(np.prod(shape[1:])), 1)))
    if name.endswith("running_var"):
        return (1 + 0.1 * np.abs(values)).astype(np.float32)
    if name.endswith("weight"):
        return (1 + 0.1 * values).astype(np.float32)
    return (0.1 * values).astype(np.float32)


def checkpoint(kind: str, variant: str, root: Path) -> Path:
    """A fixture's folder in `root`, whole."""
    folder = root / variant
    shutil.copytree(GOLDEN / kind / variant, folder)
    said = json.loads((folder / "weights.json").read_text())
    tensors = {}
    for name, shape in said["shapes"].items():
        tensors[name] = drawn(name, tuple(shape))
    for name, values in said["computed"].items():
        tensors[name] = np.array(values, np.float32)
    save_file(tensors, folder / "pretrained_model" / "model.safetensors")
    return folder
