"""From OpenVLA's checkpoint to a measured student, by command line: probe, distil, evaluate."""

import sys
from pathlib import Path

import numpy as np
import openvla_tiny as tiny
import pytest
import torch
from robots import SEVEN

from armlet import __main__ as command_line
from armlet import inspect, recipes
from armlet.data.episodes import EpisodeDataset
from armlet.data.frames import load_frames
from armlet.evaluation import offline_report
from armlet.policies.checkpoint import load_policy, save_policy
from armlet.robot.observation import Observation
from armlet.training.trainer import make_batches

SAID = """
[cameras]
image = "front"
[robot]
control_hz = 15
mode = "delta"
rotation = "axis_angle"
grippers = ["gripper"]
gripper_open = 1.0
gripper_closed = 0.0
names = ["dx", "dy", "dz", "drx", "dry", "drz", "gripper"]
"""


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("line") / "episodes"
    SEVEN.write(root, episodes=3)
    return root


def run(monkeypatch: pytest.MonkeyPatch, verb: str, recipe: str, options: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["armlet", verb, recipe, *options])
    try:
        command_line.main()
    except SystemExit as left:
        pytest.fail(f"armlet {verb} {recipe}: {left.code}")


def short(stage: str) -> list[str]:
    return [
        *(f"--{stage}.steps", "2"),
        *(f"--{stage}.batch-size", "3"),
        *(f"--{stage}.warmup", "1"),
        *(f"--{stage}.ema", "None"),
        f"--{stage}.no-compile",
    ]


@pytest.mark.parametrize("recipe", ["actdistill", pytest.param("first_k", marks=pytest.mark.slow)])
def test_a_student_of_openvla(
    monkeypatch: pytest.MonkeyPatch, episodes: Path, tmp_path: Path, recipe: str
) -> None:
    place = tiny.toml(tmp_path / "teacher", unnorm_key=tiny.KEY)
    place.write_text(place.read_text().partition("[robot]")[0] + SAID)
    page = inspect.main(str(place), episodes=episodes)
    assert "a checkpoint of kind openvla_hf" in page and f"beside {episodes}" in page
    assert "cameras: the checkpoint looks" not in page
    made = recipes.make(recipe)
    options = ["--episodes", str(episodes), "--teacher", str(place), "--out", str(tmp_path)]
    options += [*SEVEN.arguments, "--evaluation.latency-calls", "2"]
    if made.probe is not None:
        options += short("probe.stage")
    for number in range(len(made.stages)):
        options += short(f"stages.{number}")
    if recipe == "first_k":
        options += ["--student.layers", "1"]
    for verb in ("probe", "distil", "evaluate"):
        run(monkeypatch, verb, recipe, options)
    report = offline_report.read(tmp_path / "evaluation" / "report.json")
    teacher, student = report.policies[:2]
    assert (teacher.name, student.name) == ("teacher", recipe)
    assert len(student.expert.by_dimension) == 7 and student.cost.latency_ms["p50"] > 0
    _check_student(tmp_path / "student", episodes, tmp_path)


def _check_student(folder: Path, episodes: Path, out: Path) -> None:
    """It answers without its teacher, saved again too, and as it was trained to the bit."""
    student = load_policy(folder)
    frames = load_frames(EpisodeDataset(episodes), student.view)
    data = make_batches(student, frames).batch(np.array([4]))
    picture = (data.images["front"][0].permute(1, 2, 0) * 255).round().byte().numpy()
    assert picture.shape == (224, 224, 3)
    words = frames.texts[frames.asked[4]]
    before = student.body.actions.invert(data.previous_action[0].numpy()).astype(np.float32)
    seen = Observation({"front": picture}, np.zeros(0, np.float32), words, before)
    decided = student.decide(seen)
    save_policy(student.deployed(), out / "again")
    again = load_policy(out / "again").decide(seen)
    assert np.array_equal(again.actions, decided.actions)
    student.train().requires_grad_(True)
    batch = student.prepare([seen])
    trained = student.run_layers(student.embed(batch), batch)
    actions = student.decode(trained, batch)[0].detach().numpy()
    assert np.array_equal(student.denormalise(actions), decided.actions)
    assert trained.gates.shape == (1, len(student.layers))
    assert torch.equal(trained.gates.detach()[0], torch.tensor(decided.gates, dtype=torch.float32))
