"""An RLDS data set as tensorflow_datasets serialises it (made with 4.9.10, without TensorFlow, which
only frames the records; `rlds_files.framed` does that): see tests/data/test_rlds.py.

    pip install tensorflow-datasets pillow && python tests/data/golden/rlds/make.py
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

import rlds_files as made  # noqa: E402

features = tfds.features
described = features.FeaturesDict(
    {
        "episode_metadata": features.FeaturesDict({"file_path": features.Text()}),
        "steps": features.Dataset(
            {
                "observation": features.FeaturesDict(
                    {
                        "image": features.Image(shape=(16, 16, 3), encoding_format="png"),
                        "any": features.Image(shape=(None, None, 3), encoding_format="png"),
                        "state": features.Tensor(shape=(8,), dtype=np.float32),
                        "pose": features.Tensor(shape=(2, 3), dtype=np.float64),
                        "gripper": features.ClassLabel(names=["open", "closed"]),
                        "packed": features.Tensor(shape=(4,), dtype=np.float32, encoding="zlib"),
                    }
                ),
                "action": features.Tensor(shape=(7,), dtype=np.float32),
                "discount": features.Scalar(dtype=np.float32),
                "is_first": features.Scalar(dtype=np.bool_),
                "is_last": features.Scalar(dtype=np.bool_),
                "language_instruction": features.Text(),
            }
        ),
    }
)


def picture(episode: int, step: int) -> io.BytesIO:
    return io.BytesIO(made.picture(episode, step))


def step_of(episode: int, step: int, length: int) -> dict:
    return {
        "observation": {
            "image": picture(episode, step),
            "any": picture(episode, step),
            "state": made.state(episode, step),
            "pose": np.arange(6.0).reshape(2, 3) + step,
            "gripper": step % 2,
            "packed": np.ones(4, np.float32),
        },
        "action": made.action(episode, step),
        "discount": 1.0,
        "is_first": step == 0,
        "is_last": step == length - 1,
        "language_instruction": made.WORDS[episode % 2],
    }


serialiser = example_serializer.ExampleSerializer(described.get_serialized_info())
contents = []
for episode, length in enumerate((2, 3)):
    steps = [step_of(episode, step, length) for step in range(length)]
    whole = {"episode_metadata": {"file_path": "raw.hdf5"}, "steps": steps}
    contents.append(serialiser.serialize_example(described.encode_example(whole)))
described.save_config(str(HERE))
for names in HERE.glob("*.labels.txt"):
    names.unlink()
kept = json.loads((HERE / "features.json").read_text())
made.folder(HERE, [contents], described=kept)
