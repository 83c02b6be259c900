"""What frames a stage learns from, as a hash. Knows frames; no training."""

import dataclasses

import numpy as np

from armlet.data.frames import Frames
from armlet.lineage import digest_arrays, digest_text


def digest_frames(frames: Frames) -> str:
    """A hash of every column of some frames; of pictures, which a data set's fingerprint covers,
    the number."""
    arrays: dict[str, np.ndarray] = {}
    texts: list[str] = []
    for field in dataclasses.fields(frames):
        value = getattr(frames, field.name)
        if field.name == "images":  # gigabytes: hashing them would take longer than a stage
            texts += [f"{name} {len(pictures)}" for name, pictures in sorted(value.items())]
        elif isinstance(value, np.ndarray):
            arrays[field.name] = value
        elif isinstance(value, dict):
            for name, array in value.items():
                arrays[f"{field.name}.{name}"] = array
        elif value is not None:
            texts += [field.name, *map(str, value)]
    return f"{digest_arrays(arrays)} {digest_text(texts)}"
