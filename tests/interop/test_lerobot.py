"""The real lerobot reads what we write, and we read what it writes (make test-lerobot)."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from robots import ROBOTS

from armlet.data.episodes import EpisodeDataset, EpisodeFrames, Features
from armlet.data.language import remark, write_persistent
from armlet.data.layout import Columns
from armlet.data.writer import EpisodeWriter
from armlet.evaluation.action_errors import Recording, moments_at

HERE = Path(__file__).parent
LEROBOT = HERE.parent.parent / ".venv-lerobot/bin/python"
FEATURES = Features(
    ("x", "y", "gap"),
    ("dx", "gripper"),
    {"scene": (48, 48), "wrist": (32, 32)},
    {"privileged.goal": 3},
)
TASKS = ("open the red drawer", "push the blue cube", "lift it")
pytestmark = [
    pytest.mark.lerobot,
    pytest.mark.skipif(
        not LEROBOT.exists(), reason="no environment with lerobot; make test-lerobot makes it"
    ),
]


def lerobot(verb: str, root: Path, arrays: Path) -> None:
    done = subprocess.run(
        [str(LEROBOT), str(HERE / "lerobot_side.py"), verb, str(root), str(arrays)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def moving_square(length: int, size: int, seed: int) -> np.ndarray:
    """(length, size, size, 3): a square that moves 2 pixels a frame, so that a frame read in the
    wrong place shows."""
    frames = np.full((length, size, size, 3), 90, np.uint8)
    for step in range(length):
        frames[step, 6:20, 2 + 2 * step : 12 + 2 * step] = [
            [250, 20, 20],
            [20, 30, 240],
            [20, 200, 60],
        ][seed % 3]
    return frames


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(np.mean((a.astype(float) - b.astype(float)) ** 2), 1e-9))


def ours(root: Path, lengths: list[int], *, episodes_per_file: int) -> EpisodeDataset:
    writer = EpisodeWriter(
        root, FEATURES, fps=10, robot="test", metadata={}, episodes_per_file=episodes_per_file
    )
    for index, length in enumerate(lengths):
        rng = np.random.default_rng(index)
        numbers = [rng.normal(size=(length, dims)).astype(np.float32) for dims in (3, 2, 3)]
        images = {
            name: moving_square(length, size, index) for name, (size, _) in FEATURES.cameras.items()
        }
        writer.add(
            EpisodeFrames(
                images,
                *numbers[:2],
                {"privileged.goal": numbers[2]},
                TASKS[index % 3],
                {"attempt": index},
            )
        )
    return writer.finalise()


@pytest.mark.parametrize("episodes_per_file", [2, 100])
def test_lerobot_reads_ours(tmp_path, episodes_per_file: int) -> None:
    lengths = [9, 6, 12, 7, 10]
    data = ours(tmp_path / "ours", lengths, episodes_per_file=episodes_per_file)
    lerobot("read", tmp_path / "ours", tmp_path / "seen.npz")
    seen, columns = dict(np.load(tmp_path / "seen.npz")), data.columns()
    assert (int(seen["episodes"]), float(seen["fps"])) == (5, 10)
    assert np.array_equal(seen["observation.state"], columns["observation.state"])
    assert np.array_equal(seen["privileged.goal"], columns["privileged.goal"])
    assert np.array_equal(seen["index"], np.arange(sum(lengths)))
    assert seen["task"].tolist() == [
        TASKS[index % 3] for index, length in enumerate(lengths) for _ in range(length)
    ]
    for position, (start, end) in enumerate(zip(data.starts[:-1], data.starts[1:], strict=True)):
        for step in range(start, end):
            rows = np.minimum(
                np.arange(step, step + 4), end - 1
            )  # its chunks repeat an episode's last action, and say so
            assert np.array_equal(seen["action"][step], columns["action"][rows])
            assert np.array_equal(seen["action_is_pad"][step], np.arange(step, step + 4) >= end)
        for camera, frames in data.images(position).items():
            theirs = np.moveaxis(seen[f"observation.images.{camera}"][start:end], 1, -1) * 255
            assert psnr(theirs, frames) > 45, (
                "the same decoder, so the same pixels but for rounding"
            )
    for kind in ("mean", "std", "min", "max", "q01", "q99", "count"):
        assert np.allclose(seen[f"stats/action/{kind}"], data.stats["action"][kind])
    assert seen["stats/observation.images.scene/mean"].shape == (3, 1, 1)


def test_lerobot_reads_what_is_said(tmp_path) -> None:
    lengths = [4, 6, 3]
    said = [
        [remark("subtask", f"episode {number}", 0.0), remark("plan", "é 立方", 0.0)]
        for number in range(3)
    ]
    write_persistent(ours(tmp_path / "ours", lengths, episodes_per_file=2), tmp_path / "copy", said)
    lerobot("speak", tmp_path / "copy", tmp_path / "heard.npz")
    heard = {name: json.loads(str(text)) for name, text in np.load(tmp_path / "heard.npz").items()}
    assert heard["language_persistent"] == [
        said[number] for number, length in enumerate(lengths) for _ in range(length)
    ]
    assert heard["language_events"] == [[]] * sum(lengths)


def test_we_read_lerobots(tmp_path) -> None:
    rng = np.random.default_rng(0)
    frames = np.stack([moving_square(8, 64, seed) for seed in range(4)])
    state, action = (
        rng.normal(size=(4, 8, 3)).astype(np.float32),
        rng.normal(size=(4, 8, 2)).astype(np.float32),
    )
    tasks = [TASKS[index % 3] for index in range(4)]
    np.savez(tmp_path / "given.npz", scene=frames, state=state, action=action, tasks=tasks)
    lerobot("write", tmp_path / "theirs", tmp_path / "given.npz")
    data = EpisodeDataset(tmp_path / "theirs")
    assert [episode.task for episode in data.episodes] == tasks and data.fps == 10
    columns = data.columns()
    assert np.array_equal(columns["observation.state"].reshape(4, 8, 3), state)
    assert np.array_equal(columns["action"].reshape(4, 8, 2), action)
    for position in range(4):
        assert psnr(data.images(position)["scene"], frames[position]) > 25
    stacked = data.all_images("scene").reshape(4, 8, 64, 64, 3)
    assert all(psnr(stacked[position], frames[position]) > 25 for position in range(4))


@pytest.mark.parametrize("name", ["two_arms", "degrees", "blind_to_itself"])
def test_a_strange_robot_that_lerobot_recorded_is_compared_with(name: str, tmp_path) -> None:
    """Its numbers, names and words are those that were recorded, and from them an oracle of the
    held-out episodes errs by nothing. (`make robots` takes such sets through the whole line.)"""
    robot = ROBOTS[name]
    episodes = [robot.episode(number) for number in range(4)]
    about = {
        "fps": robot.hz,
        "observation.state": list(robot.state),
        "action": list(robot.action),
        "cameras": robot.cameras,
        "tasks": [episode.task for episode in episodes],
    }
    arrays = {"about": np.array(json.dumps(about))}
    for number, episode in enumerate(episodes):
        arrays[f"{number}/action"] = episode.action
        if robot.state:
            arrays[f"{number}/state"] = episode.state
        arrays |= {f"{number}/{camera}": film for camera, film in episode.images.items()}
    np.savez(tmp_path / "given.npz", **arrays)
    lerobot("robot", tmp_path / "data", tmp_path / "given.npz")

    data = EpisodeDataset(tmp_path / "data", None if robot.state else Columns(state=None))
    assert (data.fps, data.action_names, data.state_names) == (robot.hz, robot.action, robot.state)
    assert data.cameras == robot.cameras and set(data.tasks) == {each.task for each in episodes}
    actions = data.columns()["action"]
    np.testing.assert_array_equal(actions, np.concatenate([each.action for each in episodes]))
    recording = Recording(actions, actions, data.starts, data.runs)
    moments = moments_at(recording, recording.rows_of([3]), 5)
    wanted = episodes[3].action
    for step in range(5):
        told = np.nonzero(moments.valid[:, step])[0]
        np.testing.assert_array_equal(moments.actions[told, step], wanted[told + step])
    assert moments.valid.sum() == sum(min(5, len(wanted) - row) for row in range(len(wanted)))
