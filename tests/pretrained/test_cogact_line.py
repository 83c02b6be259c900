"""From CogACT's run folder to students, by command line: inspect, probe, distil, evaluate."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from cogact_run import say, write_run

from armlet import __main__ as command_line
from armlet.data.episodes import EpisodeDataset
from armlet.data.layout import Columns
from armlet.data.traces import TraceStore
from armlet.evaluation import offline_report
from armlet.policies.checkpoint import load_policy
from armlet.policies.contract import Backbone
from armlet.robot.observation import Observation

EPISODES = Path(__file__).parents[1] / "data" / "golden" / "d44_v21_no_state"
ROBOT = (
    "--robot.mode delta --robot.rotation euler --robot.grippers 6 --robot.gripper-open 1 "
    "--robot.gripper-closed 0 --columns.state None"
)
CAMERA = '[cameras]\nimage = "front"'


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


@pytest.mark.parametrize(
    ("recipe", "stages", "more"),
    [("actdistill", 2, []), ("first_k", 1, ["--student.layers", "1"]), ("published", 1, [])],
)
def test_the_whole_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recipe: str, stages: int, more: list[str]
) -> None:
    folder = write_run(tmp_path / "run")
    teacher = say(folder, f'unnorm_key = "bridge_orig"\n{CAMERA}')
    run(monkeypatch, "inspect", str(folder))
    episodes = tmp_path / "episodes"
    shutil.copytree(EPISODES, episodes)  # what is derived of them is written beside them
    out = tmp_path / "out"
    options = ["--episodes", str(episodes), "--teacher", str(teacher), "--out", str(out)]
    options += [*ROBOT.split(), "--outside-range", "1", "--evaluation.latency-calls", "2", *more]
    options += short("probe.stage")
    for number in range(stages):
        options += short(f"stages.{number}")
    for verb in ("probe", "distil", "evaluate"):
        run(monkeypatch, verb, recipe, *options)
    traces = TraceStore(out / "traces")
    assert traces.columns["condition"][0] == (64,) and traces.columns["actions"][0] == (16, 7)
    report = offline_report.read(out / "evaluation" / "report.json")
    assert [row.name for row in report.policies][:2] == ["teacher", recipe]
    student = load_policy(out / "student")
    assert isinstance(student, Backbone)
    assert not any("probe" in name for name in student.state_dict())
    frames = EpisodeDataset(episodes, Columns(state=None)).pictures_of("front", np.arange(2))
    for frame in frames:
        look = Observation({"front": frame}, np.zeros(0), "pick up the bowl", np.zeros(7))
        actions = student.infer(look)
        assert actions.shape == (16, 7) and np.isfinite(actions).all()
        assert set(np.unique(actions[:, 6])) <= {0.0, 1.0}
        np.testing.assert_array_equal(actions, load_policy(out / "student").infer(look))
