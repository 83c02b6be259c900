"""The whole line, by command line, on robots that nobody has heard of: teach, probe, distil, evaluate,
and a report of each.

`make test` takes one robot and one recipe through it; `make robots` five robots, and sets that the
real lerobot wrote, and every kind of recipe for one's own robot. What must be learnt is not much, so
it is asked for only where a teacher is given the steps.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from robots import DEGREES, ROBOTS, Robot

from armlet import __main__ as command_line
from armlet import recipes
from armlet import report as report_page
from armlet.data.layout import STATS
from armlet.evaluation import offline_report
from armlet.evaluation.action_errors import CHUNK, EPISODE, MEAN, REPEAT
from armlet.evaluation.offline_report import OfflineReport
from armlet.policies.checkpoint import load_policy
from armlet.policies.fitting import FitsRobot
from armlet.policies.students import FirstK, Fresh, LayerDrop
from armlet.policies.vla import VLANetwork
from armlet.recipe import Recipe

LINE = ("teach", "probe", "distil", "evaluate")
OWN = (
    *("actdistill", "first_k", "vla_ad", "aed", "vita_vla"),
    *("layer_drop", "random_skip", "bc", "action_kd", "dial"),
)
GOLDEN = Path(__file__).parent / "data" / "golden"
MORE = Path(__file__).parents[1] / ".." / "shared" / "golden" / "datasets"
LEROBOT = {  # sets that the real lerobot wrote, and what each cannot say of its robot
    "d28_four_joints": ("--robot.mode absolute --robot.rotation none --robot.grippers", 4),
    "d44_v21_no_state": (
        "--robot.mode delta --robot.rotation euler --robot.grippers 6 --robot.gripper-open 1 "
        "--robot.gripper-closed 0 --columns.state None",
        7,
    ),
    # Its numbers are drawn at random, the gripper's too: its ends are where they reach.
    "d01_two_cameras_h264": (
        "--robot.mode delta --robot.rotation euler --robot.grippers 6 --robot.gripper-open 3.5 "
        "--robot.gripper-closed -1",
        7,
    ),
    "d10_one_number": ("--robot.mode absolute --robot.rotation none --robot.grippers", 1),
}
pytestmark = pytest.mark.skipif(
    "robot" not in Recipe.__dataclass_fields__ or not set(OWN) <= recipes.available().keys(),
    reason="no recipes for one's own robot yet, or none that is told what its data cannot say",
)


def run(monkeypatch: pytest.MonkeyPatch, verb: str, recipe: str, options: list[str]) -> None:
    """`armlet VERB RECIPE …` in this process; fails with what a user would read."""
    monkeypatch.setattr(sys, "argv", ["armlet", verb, recipe, *options])
    try:
        command_line.main()
    except SystemExit as left:
        pytest.fail(f"armlet {verb} {recipe}: {left.code}")


def few_steps(
    recipe: str, *, teach: int = 2, distil: int = 2, batch: int = 4, width: int = 32, depth: int = 4
) -> list[str]:
    """Options that make a recipe small, the same for every verb: few steps of small networks."""
    made = recipes.make(recipe)
    assert isinstance(made.network, FitsRobot)

    def short(stage: str, steps: int) -> list[str]:
        return [
            *(f"--{stage}.steps", str(steps)),
            *(f"--{stage}.batch-size", str(batch)),
            *(f"--{stage}.warmup", "1"),
            *(f"--{stage}.ema", "None"),
            f"--{stage}.no-compile",
        ]

    found = short("teach", teach)
    if isinstance(made.network.network, VLANetwork):
        found += ["--network.network.width", str(width), "--network.network.heads", "2"]
        found += ["--network.network.depth", str(depth), "--network.network.vision-channels", "8"]
    else:
        found += ["--network.network.width", "24", "--network.network.heads", "2"]
        found += ["--network.network.vision-layers", "1", "--network.primitives", "8"]
    if isinstance(made.student, FirstK | LayerDrop):
        found += ["--student.layers", str(depth // 2)]
    if isinstance(made.student, Fresh):
        found += ["--student.student.layers", str(depth // 2)]
    if made.probe is not None:
        found += short("probe.stage", 2)
    for number in range(len(made.stages)):
        found += short(f"stages.{number}", distil)
    return [*found, "--evaluation.latency-calls", "4"]


def whole_line(
    monkeypatch: pytest.MonkeyPatch,
    recipe: str,
    episodes: Path,
    out: Path,
    options: list[str],
) -> OfflineReport:
    """All four verbs with the same options; the report that they end in."""
    places = ["--episodes", str(episodes), "--out", str(out), "--teacher", str(out / "teacher")]
    for verb in LINE:
        run(monkeypatch, verb, recipe, [*places, *options])
    return offline_report.read(out / "evaluation" / "report.json")


def check(report: OfflineReport, out: Path, *, recipe: str, dims: int, grippers: int) -> None:
    """What every report must have, whatever the robot."""
    names = [row.name for row in report.policies]
    assert names == ["teacher", recipe, REPEAT, MEAN, CHUNK, EPISODE]
    teacher, student = report.policies[:2]
    for row in (teacher, student):
        assert row.seen.verdict == "unseen", row.seen.why
        assert len(row.expert.by_dimension) == dims and len(row.grippers) == grippers
        said = [value for step in row.expert.by_step for value in step if value is not None]
        assert said and np.isfinite(said).all()
        assert row.cost.latency_ms["p50"] > 0 and 0 < row.cost.keep_ratio <= 1
    assert student.teacher is not None and student.teacher.share.mean >= 0
    (mean,) = [row for row in report.policies if row.name == MEAN]
    assert mean.expert.share.mean == pytest.approx(1) or not report.compared.moving
    assert report.compared.frames and len(report.compared.robot.names) == dims
    folder = out / "evaluation"
    assert offline_report.NO_SUCCESS_RATE in (folder / "table.md").read_text()
    assert (folder / "error-by-step.png").stat().st_size > 5_000
    assert "no success rate" in report_page.main((folder,)).read_text()


@pytest.fixture(scope="module")
def episodes(tmp_path_factory) -> Path:
    """Robot's name → its data set, each written once."""
    root = tmp_path_factory.mktemp("robots")
    for name, robot in ROBOTS.items():
        robot.write(root / name)
    return root


def test_a_stranger_goes_the_whole_line_and_its_teacher_learns(monkeypatch, tmp_path) -> None:
    """Four joints in degrees at 50 Hz: what is taught and what is distilled are both nearer to the
    expert than every mean, in episodes that neither has seen."""
    DEGREES.write(tmp_path / "episodes")
    out = tmp_path / "out"
    small = few_steps("first_k", teach=100, distil=50, batch=16, width=64, depth=4)
    options = [*DEGREES.arguments, *small, "--held-out", "0.25", "--evaluation.frames", "25"]
    report = whole_line(monkeypatch, "first_k", tmp_path / "episodes", out, options)
    check(report, out, recipe="first_k", dims=4, grippers=0)
    assert report.compared.episodes == (12, 13, 14, 15) and report.compared.frames == 25
    teacher, student, *nothing = report.policies
    means = min(row.expert.share.mean for row in nothing if row.name != REPEAT)
    assert max(teacher.expert.share.mean, student.expert.share.mean) < 0.8 * means
    assert len(student.cost.layers) < len(teacher.cost.layers)
    assert report.compared.hz == DEGREES.hz


def test_options_of_a_simulator_are_refused_by_the_command_line(
    monkeypatch, tmp_path, capsys
) -> None:
    monkeypatch.setattr(
        sys,
        "argv",
        ["armlet", "evaluate", "first_k", "--episodes", str(tmp_path), "--evaluation.slower", "20"],
    )
    with pytest.raises(SystemExit) as left:
        command_line.main()
    assert "evaluation.slower" in str(left.value.code)


@pytest.mark.robots
@pytest.mark.parametrize("recipe", OWN)
@pytest.mark.parametrize("name", list(ROBOTS))
def test_every_strange_robot_goes_the_whole_line_of_every_recipe(
    name: str, recipe: str, episodes: Path, monkeypatch, tmp_path
) -> None:
    robot: Robot = ROBOTS[name]
    options = [*robot.arguments, *few_steps(recipe)]
    options += ["--held-out", "0.2", "--evaluation.frames", "12"]
    report = whole_line(monkeypatch, recipe, episodes / name, tmp_path, options)
    dims, grippers = len(robot.action), len(robot.grippers)
    check(report, tmp_path, recipe=recipe, dims=dims, grippers=grippers)


SIZES = (  # the smallest and the largest of what is promised
    Robot(
        name="one_number",
        hz=5,
        mode="absolute",
        action=("x",),
        state=(),
        cameras={f"camera_{number}": (24 + 8 * number, 40) for number in range(6)},
        across=((1, 0),),
        options={"--columns.state": "None"},
    ),
    Robot(
        name="sixty_four",
        hz=20,
        mode="delta",
        action=tuple(f"joint_{number}" for number in range(64)),
        state=tuple(f"joint_{number}" for number in range(64)),
        cameras={"top": (48, 48)},
        across=tuple((np.cos(number), np.sin(number)) for number in range(64)),
    ),
)


@pytest.mark.robots
@pytest.mark.parametrize("robot", SIZES, ids=lambda robot: robot.name)
def test_one_number_and_sixty_four_one_camera_and_six(robot: Robot, monkeypatch, tmp_path) -> None:
    robot.write(tmp_path / "episodes", episodes=6)
    options = [*robot.arguments, *few_steps("actdistill")]
    options += ["--held-out", "0.4", "--evaluation.frames", "8"]
    out = tmp_path / "out"
    report = whole_line(monkeypatch, "actdistill", tmp_path / "episodes", out, options)
    check(report, out, recipe="actdistill", dims=len(robot.action), grippers=0)
    assert set(load_policy(out / "student").view.cameras) == set(robot.cameras)


@pytest.mark.robots
@pytest.mark.parametrize("name", list(LEROBOT))
def test_what_the_real_lerobot_wrote_goes_the_whole_line(name: str, monkeypatch, tmp_path) -> None:
    places = [place / name for place in (GOLDEN, MORE) if (place / name).is_dir()]
    if not places:
        pytest.skip(f"{name} is not in tests/data/golden, and the whole collection is not at hand")
    root = tmp_path / "episodes"
    shutil.copytree(places[0], root, copy_function=shutil.copyfile)
    root.chmod(0o755)
    said, dims = LEROBOT[name]
    options = [*said.split(), *few_steps("actdistill")]
    options += ["--held-out", "0.4", "--evaluation.frames", "8"]
    out = tmp_path / "out"
    report = whole_line(monkeypatch, "actdistill", root, out, options)
    grippers = int("gripper-open" in said)
    check(report, out, recipe="actdistill", dims=dims, grippers=grippers)


@pytest.mark.robots
def test_the_same_from_a_shell(episodes: Path, tmp_path) -> None:
    """One verb in a process of its own: what is printed is the report's path."""
    out = tmp_path / "out"
    options = ["--episodes", str(episodes / "pusher"), "--out", str(out)]
    options += ["--teacher", str(out / "teacher"), *ROBOTS["pusher"].arguments]
    for verb in LINE:
        command = [sys.executable, "-m", "armlet", verb, "bc", *options, *few_steps("bc")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith(str(out / "evaluation" / "report.json"))
    assert "| teacher |" in done.stdout


@pytest.mark.robots
def test_data_set_s_own_statistics_are_not_needed(episodes: Path, monkeypatch, tmp_path) -> None:
    """A data set whose meta/stats.json was lost is measured."""
    root = tmp_path / "episodes"
    shutil.copytree(episodes / "pusher", root)
    (root / STATS).unlink()
    options = [*ROBOTS["pusher"].arguments, *few_steps("bc"), "--held-out", "0.2"]
    report = whole_line(monkeypatch, "bc", root, tmp_path / "out", options)
    assert json.dumps(report.to_json())
