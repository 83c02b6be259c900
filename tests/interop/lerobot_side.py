"""What the real lerobot does in `test_lerobot.py`, run by the interpreter of its own environment.

python lerobot_side.py read ROOT OUT.npz     every item of a data set, as lerobot gives it
python lerobot_side.py write ROOT IN.npz     a data set as lerobot records one
python lerobot_side.py robot ROOT IN.npz     the same of any robot, which IN.npz describes
python lerobot_side.py speak ROOT OUT.npz    the language columns, as lerobot 0.6 has the `datasets`
library read them
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch

CHUNK = 4


def define_torchvision_operators() -> None:
    """A torchvision without its compiled part (there is none for this torch) still wants these two
    to be known."""
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    define_torchvision_operators.library = library  # definitions last as long as the library


def read(root: Path, out: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    hz = LeRobotDataset("local/armlet", root=root, video_backend="pyav").fps
    ahead = {"action": [step / hz for step in range(CHUNK)]}
    data = LeRobotDataset("local/armlet", root=root, video_backend="pyav", delta_timestamps=ahead)
    items = [data[index] for index in range(len(data))]
    columns = {
        name: np.stack([item[name].numpy() for item in items])
        for name in items[0]
        if isinstance(items[0][name], torch.Tensor)
    }
    stats = {
        f"stats/{name}/{kind}": np.asarray(v)
        for name, kinds in data.meta.stats.items()
        for kind, v in kinds.items()
    }
    tasks = np.array([item["task"] for item in items])
    np.savez(out, task=tasks, episodes=data.num_episodes, fps=data.fps, **columns, **stats)


def write(root: Path, source: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    given = dict(np.load(source))
    height, width = given["scene"].shape[2:4]
    features = {
        "observation.images.scene": {
            "dtype": "video",
            "shape": (height, width, 3),
            "names": ["height", "width", "channels"],
        },
        "observation.state": {
            "dtype": "float32",
            "shape": (given["state"].shape[-1],),
            "names": None,
        },
        "action": {
            "dtype": "float32",
            "shape": (given["action"].shape[-1],),
            "names": ["dx", "gripper"],
        },
    }
    data = LeRobotDataset.create(
        "local/lerobot", fps=10, features=features, root=root, robot_type="test", use_videos=True
    )
    for episode in range(len(given["scene"])):
        for step in range(given["scene"].shape[1]):
            data.add_frame(
                {
                    "observation.images.scene": given["scene"][episode, step],
                    "observation.state": given["state"][episode, step],
                    "action": given["action"][episode, step],
                    "task": str(given["tasks"][episode]),
                }
            )
        data.save_episode(parallel_encoding=False)
    data.finalize()


def robot(root: Path, source: Path) -> None:
    """`about` is JSON: fps, names of state and action, camera → (height, width), tasks; the arrays
    of episode n are `n/state`, `n/action` and `n/CAMERA`."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    given = dict(np.load(source))
    about = json.loads(str(given["about"]))
    features = {}
    for camera, (height, width) in about["cameras"].items():
        features[f"observation.images.{camera}"] = {
            "dtype": "video",
            "shape": (height, width, 3),
            "names": ["height", "width", "channels"],
        }
    for name in ("observation.state", "action"):
        if about[name]:  # a robot may have no state
            features[name] = {
                "dtype": "float32",
                "shape": (len(about[name]),),
                "names": about[name],
            }
    data = LeRobotDataset.create(
        "local/robot",
        fps=about["fps"],
        features=features,
        root=root,
        robot_type="strange",
        use_videos=True,
    )
    for episode, task in enumerate(about["tasks"]):
        for step in range(len(given[f"{episode}/action"])):
            frame = {"task": task}
            for name in features:
                frame[name] = given[f"{episode}/{name.rpartition('.')[2]}"][step]
            data.add_frame(frame)
        data.save_episode(parallel_encoding=False)
    data.finalize()


def speak(root: Path, out: Path) -> None:
    """This lerobot is older than the columns, so the features stand here as
    `language_persistent_row_feature` and
    `language_event_row_feature` of lerobot 0.6.2 (src/lerobot/datasets/language.py) build them."""
    import datasets

    text, calls = datasets.Value("string"), datasets.List(datasets.Json())
    event = {"role": text, "content": text, "style": text, "camera": text, "tool_calls": calls}
    persistent = {
        "role": text,
        "content": text,
        "style": text,
        "timestamp": datasets.Value("float32"),
        "camera": text,
    }
    columns = {"language_persistent": persistent | {"tool_calls": calls}, "language_events": event}
    features = datasets.Features({name: datasets.List(row) for name, row in columns.items()})
    paths = [str(path) for path in sorted((root / "data").glob("*/*.parquet"))]
    items = datasets.Dataset.from_parquet(paths, features=features, columns=list(columns))
    np.savez(out, **{name: json.dumps(list(items[name])) for name in columns})


if __name__ == "__main__":
    define_torchvision_operators()
    {"read": read, "write": write, "robot": robot, "speak": speak}[sys.argv[1]](
        Path(sys.argv[2]), Path(sys.argv[3])
    )
