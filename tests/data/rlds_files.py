"""RLDS made by hand, in closed form: what a number or a pixel is says which step of which episode it
belongs to. Written without the reader: checksums bit by bit, protobuf by its rules.

Laid out after the folders of Open X-Embodiment and of LIBERO for OpenVLA.
"""

import io
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 16
WORDS = ("pick up the milk", "open the drawer")
CORE = "tensorflow_datasets.core.features."
Lists = Mapping[str, Sequence[Any] | np.ndarray]


def crc32c(content: bytes) -> int:
    """Bit by bit, as RFC 3720 has it."""
    register = 0xFFFFFFFF
    for byte in content:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 * (register & 1))
    return register ^ 0xFFFFFFFF


def marked(content: bytes) -> bytes:
    crc = crc32c(content)
    turned = ((crc >> 15) | (crc << 17)) & 0xFFFFFFFF
    return struct.pack("<I", (turned + 0xA282EAD8) % 2**32)


def framed(content: bytes) -> bytes:
    """A record of a TFRecord file."""
    length = struct.pack("<Q", len(content))
    return length + marked(length) + content + marked(content)


def varint(number: int) -> bytes:
    number %= 2**64
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


def message(number: int, content: bytes) -> bytes:
    """A field of protobuf that holds bytes, or another message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def feature(values: Sequence[Any] | np.ndarray, *, packed: bool = True) -> bytes:
    """A tf.train.Feature: texts and bytes, floats, or whole numbers."""
    if len(values) and isinstance(values[0], bytes | str):
        held = [each.encode() if isinstance(each, str) else each for each in values]
        return message(1, b"".join(message(1, each) for each in held))
    array = np.asarray(values)
    if array.dtype.kind == "f":
        each = [struct.pack("<f", value) for value in array.ravel()]
        inner = message(1, b"".join(each)) if packed else b"".join(b"\x0d" + one for one in each)
        return message(2, inner)
    each = [varint(int(value)) for value in array.ravel()]
    inner = message(1, b"".join(each)) if packed else b"".join(b"\x08" + one for one in each)
    return message(3, inner)


def entry(name: str, held: bytes) -> bytes:
    return message(1, message(1, name.encode()) + message(2, held))


def example(lists: Lists, *, packed: bool = True) -> bytes:
    entries = [entry(name, feature(values, packed=packed)) for name, values in lists.items()]
    return message(1, b"".join(entries))


def action(episode: int, step: int) -> np.ndarray:
    told = np.full(7, episode / 10 + step / 1000, np.float32)
    told[6] = float(step > 1)
    return told


def state(episode: int, step: int) -> np.ndarray:
    return np.arange(8, dtype=np.float32) + 100 * episode + step


def picture(episode: int, step: int, *, kind: str = "PNG", side: int = SIDE) -> bytes:
    shown = np.zeros((side, side, 3), np.uint8)
    shown[: side // 2] = (20 * episode + 3 * step, 120, 200)
    buffer = io.BytesIO()
    Image.fromarray(shown).save(buffer, kind)
    return buffer.getvalue()


def pixels(episode: int, step: int) -> np.ndarray:
    shown = np.zeros((SIDE, SIDE, 3), np.uint8)
    shown[: SIDE // 2] = (20 * episode + 3 * step, 120, 200)
    return shown


def episode(number: int, length: int) -> dict[str, Any]:
    """The flat lists of an episode, as tensorflow_datasets writes them."""
    steps = range(length)
    return {
        "episode_metadata/file_path": [f"/raw/{number}.hdf5"],
        "steps/action": np.concatenate([action(number, step) for step in steps]),
        "steps/discount": np.ones(length, np.float32),
        "steps/is_first": [int(step == 0) for step in steps],
        "steps/is_last": [int(step == length - 1) for step in steps],
        "steps/language_instruction": [WORDS[number % 2]] * length,
        "steps/observation/image": [picture(number, step, kind="JPEG") for step in steps],
        "steps/observation/joint": [-number - step for step in steps],
        "steps/observation/state": np.concatenate([state(number, step) for step in steps]),
        "steps/observation/wrist_image": [picture(number, step) for step in steps],
    }


def dictionary(features: dict[str, Any]) -> dict[str, Any]:
    return {
        "pythonClassName": CORE + "features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }


def tensor(*shape: int, dtype: str = "float32") -> dict[str, Any]:
    described = {"dimensions": [str(side) for side in shape]} if shape else {}
    return {
        "pythonClassName": CORE + "tensor_feature.Tensor",
        "tensor": {"shape": described, "dtype": dtype, "encoding": "none"},
    }


def image(*shape: int, dtype: str = "uint8", kind: str = "jpeg") -> dict[str, Any]:
    return {
        "pythonClassName": CORE + "image_feature.Image",
        "image": {
            "shape": {"dimensions": [str(side) for side in shape]},
            "dtype": dtype,
            "encodingFormat": kind,
        },
    }


def features() -> dict[str, Any]:
    """features.json, which lists more than is read: depth, and what is told about an episode."""
    text = {"pythonClassName": CORE + "text_feature.Text", "text": {}}
    seen = {
        "image": image(SIDE, SIDE, 3),
        "wrist_image": image(SIDE, SIDE, 3, kind="png"),
        "depth": image(SIDE, SIDE, 1, dtype="uint16", kind="png"),
        "joint": tensor(dtype="int64"),
        "state": tensor(8),
    }
    steps = {
        "action": tensor(7),
        "discount": tensor(),
        "is_first": tensor(dtype="bool"),
        "is_last": tensor(dtype="bool"),
        "language_instruction": text,
        "observation": dictionary(seen),
    }
    held = {
        "pythonClassName": CORE + "dataset_feature.Dataset",
        "sequence": {"feature": dictionary(steps), "length": "-1"},
    }
    return dictionary({"episode_metadata": dictionary({"file_path": text}), "steps": held})


def steps_of(described: dict[str, Any]) -> dict[str, Any]:
    """The features of the steps, to change them."""
    found = described["featuresDict"]["features"]["steps"]["sequence"]["feature"]
    return found["featuresDict"]["features"]


def folder(
    root: Path,
    shards: Sequence[Sequence[bytes]] | None = None,
    *,
    described: dict[str, Any] | None = None,
    hz: float = 10,
) -> Path:
    """A folder of one split, of two files unless it is said: episodes of 3 and 5, and of 4 steps."""
    if shards is None:
        shards = [[example(episode(0, 3)), example(episode(1, 5))], [example(episode(2, 4))]]
    root.mkdir(parents=True, exist_ok=True)
    for number, contents in enumerate(shards):
        name = f"milk_no_noops-train.tfrecord-{number:05d}-of-{len(shards):05d}"
        (root / name).write_bytes(b"".join(map(framed, contents)))
    split = {
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "name": "train",
        "numBytes": "1",
        "shardLengths": [str(len(contents)) for contents in shards],
    }
    about = {"fileFormat": "tfrecord", "name": "milk", "splits": [split], "version": "1.0.0"}
    (root / "dataset_info.json").write_text(json.dumps(about))
    (root / "features.json").write_text(json.dumps(described or features()))
    (root / "metadata.json").write_text(json.dumps({"control_hz": hz}))
    return root
