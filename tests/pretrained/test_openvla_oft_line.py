"""From OpenVLA-OFT's folder to students, by command line: probe, distil, evaluate; and a
batch in training is what a robot's observation becomes."""

import shutil
import sys
from pathlib import Path

import numpy as np
import openvla_oft_tiny as tiny
import pytest
import torch

from armlet import __main__ as command_line
from armlet import inspect
from armlet.data.episodes import EpisodeDataset
from armlet.data.frames import BatchMaker, load_frames
from armlet.data.layout import Columns
from armlet.data.traces import TraceStore
from armlet.evaluation import offline_report
from armlet.policies.checkpoint import load_policy
from armlet.policies.contract import Backbone
from armlet.robot.observation import Observation

COLUMNS = Columns(state="state", action="actions")
GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "d14_openpi_names"
CAMERAS = '[cameras]\nfull_image = "image"\nwrist_image = "wrist_image"\n'


def short(stage: str) -> list[str]:
    words = f"--{stage}.steps 2 --{stage}.batch-size 2 --{stage}.warmup 1 --{stage}.ema None"
    return [*words.split(), f"--{stage}.no-compile"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """`armlet …` in this process; fails with what a user would read."""
    monkeypatch.setattr(sys, "argv", ["armlet", *arguments])
    try:
        command_line.main()
    except SystemExit as left:
        if left.code:
            pytest.fail(f"armlet {' '.join(arguments)}: {left.code}")


@pytest.fixture
def episodes(tmp_path: Path) -> Path:
    """A copy: decoded pictures are kept beside the data."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "episodes"))


def said(place: Path) -> Path:
    path = tiny.toml(place, base=str(tiny.BASE))
    path.write_text(path.read_text() + CAMERAS)
    return path


@pytest.mark.parametrize(
    ("recipe", "stages", "more"),
    [
        ("actdistill", 2, []),
        pytest.param("first_k", 1, ["--student.layers", "1"], marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("no_fresh_process")
def test_the_whole_line(
    monkeypatch: pytest.MonkeyPatch,
    episodes: Path,
    tmp_path: Path,
    recipe: str,
    stages: int,
    more: list[str],
) -> None:
    teacher = said(tmp_path)
    page = inspect.main(str(teacher), episodes=episodes, columns=COLUMNS)
    assert "a checkpoint of kind openvla_oft" in page and f"beside {episodes}" in page
    assert "full_image           any size, the robot's image" in page
    assert "cameras: the checkpoint looks" not in page
    out = tmp_path / "out"
    options = ["--episodes", str(episodes), "--teacher", str(teacher), "--out", str(out)]
    options += ["--robot.mode", "delta", "--robot.rotation", "axis_angle", "--robot.grippers", "6"]
    options += ["--robot.gripper-open", "0", "--robot.gripper-closed", "1"]
    options += ["--columns.state", "state", "--columns.action", "actions"]
    options += ["--outside-range", "1", "--evaluation.latency-calls", "2", *more]
    options += short("probe.stage")
    for number in range(stages):
        options += short(f"stages.{number}")
    for verb in ("probe", "distil", "evaluate"):
        run(monkeypatch, verb, recipe, *options)
    traces = TraceStore(out / "traces")
    assert traces.columns["condition"][0] == (64,) and traces.columns["actions"][0] == (8, 7)
    report = offline_report.read(out / "evaluation" / "report.json")
    assert [row.name for row in report.policies][:2] == ["teacher", recipe]
    student = load_policy(out / "student")
    assert isinstance(student, Backbone)
    assert not any("probe" in name for name in student.state_dict())
    seen = observations(EpisodeDataset(episodes, COLUMNS))[0]
    actions = student.infer(seen)
    assert actions.shape == (8, 7) and np.isfinite(actions).all()
    np.testing.assert_array_equal(actions, load_policy(out / "student").infer(seen))


def observations(data: EpisodeDataset) -> list[Observation]:
    columns = data.columns()
    found = []
    for row in range(len(data)):
        images = {name: next(data.pictures_of(name, np.array([row]))) for name in data.cameras}
        words = data.tasks[data.asked[row]]
        found.append(
            Observation(images, columns["observation.state"][row], words, np.zeros(7, np.float32))
        )
    return found


def test_a_batch_in_training_is_what_an_observation_becomes(episodes: Path, tmp_path: Path) -> None:
    """Pictures of 64 × 64, prepared as the data are read, and as a robot's are."""
    data = EpisodeDataset(episodes, COLUMNS)
    policy = load_policy(said(tmp_path))
    taught = BatchMaker(load_frames(data, policy.view), policy.inputs, device=torch.device("cpu"))
    batch = taught.batch(np.arange(len(data)))
    told = policy.prepare(observations(data))
    for name in policy.cameras:
        assert torch.equal(batch.images[name], told.images[name])
    assert torch.equal(batch.state, told.state) and torch.equal(batch.text, told.text)
    with torch.inference_mode():
        assert torch.equal(policy(batch), policy(told))
