"""Demonstrations in HDF5 made by hand, in closed form: what a number or a pixel is says which step
of which demonstration it belongs to.

Laid out after what LIBERO's scripts/create_dataset.py and robomimic's documentation say.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 6
JOINTS = 7
CONTROLLER = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "control_delta": True,
}
KWARGS = {"robots": ["Panda"], "control_freq": 20, "controller_configs": CONTROLLER}
WORDS = "pick up the milk and place it in the basket"


def number(demo: int, step: int) -> float:
    return 100.0 * demo + step


def state(demo: int, step: int) -> np.ndarray:
    """(1 + joints + 2 + speeds,): the simulator before the action of a step is carried out."""
    places = number(demo, step) / 1000 + np.arange(JOINTS + 2) / 10
    return np.concatenate([[step / 20], places, np.zeros(8)])


def picture(demo: int, step: int) -> np.ndarray:
    """(h, w, 3), as one sees it: each quarter another colour, the first of which says what it is
    of."""
    shown = np.zeros((SIDE, SIDE, 3), np.uint8)
    half = SIDE // 2
    shown[:half, :half] = (40 * demo + step) % 200
    shown[:half, half:] = 210
    shown[half:, :half] = 230
    shown[half:, half:] = 250
    return shown


def action(demo: int, step: int) -> np.ndarray:
    told = np.full(7, number(demo, step) / 1000)
    told[6] = -1.0 if step < 2 else 1.0
    return told


def libero(
    path: Path, lengths: Sequence[int] = (5, 4), *, words: str = WORDS, first: int = 0
) -> Path:
    """As LIBERO publishes them: what was seen after each action beside it, pictures upside down."""
    with _file(path) as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": words})
        data.attrs["env_args"] = json.dumps({"type": 1, "env_kwargs": KWARGS})
        data.attrs["macros_image_convention"] = "opengl"
        data.attrs["bddl_file_name"] = f"bddl_files/libero_object/{words.replace(' ', '_')}.bddl"
        for index, length in enumerate(lengths):
            demo = first + index
            after = range(1, length + 1)
            joints = [state(demo, step)[1 : 1 + JOINTS] for step in after]
            hand = [np.arange(6) + number(demo, step) for step in after]
            seen = {
                "agentview_rgb": np.stack([picture(demo, step)[::-1] for step in after]),
                "eye_in_hand_rgb": np.stack([picture(demo, step)[::-1] for step in after]),
                "ee_states": np.array(hand),
                "gripper_states": np.full((length, 2), 0.04),
                "joint_states": np.array(joints),
            }
            group = _demo(data, index, demo, length, seen)
            group.attrs["model_file"] = "<mujoco/>"
    return path


def robomimic(path: Path, lengths: Sequence[int] = (5, 4), *, words: str | None = WORDS) -> Path:
    """As robomimic's dataset_states_to_obs.py writes them: what was seen before each action beside
    it, pictures upright."""
    with _file(path) as file:
        data = file.create_group("data")
        env: dict[str, Any] = {"type": 1, "env_name": "Lift", "env_kwargs": KWARGS}
        if words is not None:
            env["lang"] = words
        data.attrs["env_args"] = json.dumps(env)
        data.attrs["total"] = sum(lengths)
        file.create_group("mask").create_dataset("train", data=[b"demo_0"])
        for demo, length in enumerate(lengths):
            steps = range(length)
            joints = [state(demo, step)[1 : 1 + JOINTS] for step in steps]
            seen = {
                "agentview_image": np.stack([picture(demo, step) for step in steps]),
                "agentview_depth": np.zeros((length, SIDE, SIDE, 1), np.float32),
                "robot0_eef_pos": np.array([np.arange(3) + number(demo, step) for step in steps]),
                "robot0_eef_quat": np.tile([0.0, 1.0, 0.0, 0.0], (length, 1)),
                "robot0_gripper_qpos": np.full((length, 2), 0.04),
                "robot0_joint_pos": np.array(joints),
            }
            _demo(data, demo, demo, length, seen)
    return path


def _file(path: Path) -> Any:
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    return h5py.File(path, "w")


def _demo(data: Any, index: int, demo: int, length: int, seen: dict[str, np.ndarray]) -> Any:
    group = data.create_group(f"demo_{index}")
    group.attrs["num_samples"] = length
    group.create_dataset("actions", data=np.array([action(demo, step) for step in range(length)]))
    group.create_dataset("states", data=np.array([state(demo, step) for step in range(length)]))
    group.create_dataset("dones", data=np.arange(length) == length - 1)
    observed = group.create_group("obs")
    for name, values in seen.items():
        observed.create_dataset(name, data=values)
    return group
