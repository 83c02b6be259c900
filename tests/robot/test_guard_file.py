"""`guard.toml`: what may stand in it, what is refused, and one that is made from recordings."""

import math
from pathlib import Path

import numpy as np
import pytest

from armlet.robot.bounds import Bounds, Wall
from armlet.robot.guard import ActionGuard
from armlet.robot.proposal import propose
from armlet.robot.spec import ActionSpec

DELTA = ActionSpec(
    ("dx", "dy", "dyaw", "gripper"), "delta", "euler", (-1.0,) * 4, (1.0,) * 4, (3,), 1.0, -1.0,
    10, 0.05,
)  # fmt: skip
STATE = ("x", "y", "yaw", "opening")
WHOLE = """
mode = "delta"
[range]
dx = [-0.5, 0.8]
[velocity]
dx = 6
dyaw = 3.5
[acceleration]
dy = 40.0
[workspace]
x = [0.1, 0.6]
dyaw = [-1.0, 1.0]
[scale]
yaw = 0.2
[gripper]
steps = 3
band = 0.2
[watchdog]
seconds = 0.25
age = 2.0
[on]
range = "hold"
velocity = "stop"
workspace = "clip"
nonsense = "stop"
silence = "stop"
"""


def read(tmp_path: Path, text: str, spec: ActionSpec = DELTA, names=STATE) -> Bounds:
    path = tmp_path / "guard.toml"
    path.write_text(text)
    return Bounds.read(path, spec, names)


def test_everything_that_may_stand_in_it_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, WHOLE) == Bounds(
        low=(-0.5, -1, -1, -1),
        high=(0.8, 1, 1, 1),
        velocity=(6, math.inf, 3.5, math.inf),
        acceleration=(math.inf, 40, math.inf, math.inf),
        walls=(Wall(0, 0.1, 0.6, 0, 0.05), Wall(2, -1, 1, 2, 0.2)),
        gripper_steps=3,
        gripper_band=0.2,
        silence_s=0.25,
        age_s=2,
        on_range="hold",
        on_velocity="stop",
        on_workspace="clip",
        on_nonsense="stop",
        on_silence="stop",
    )
    assert read(tmp_path, 'mode = "delta"') == Bounds.of(DELTA)


WRONG = {
    "speed = 1": "speed limits nothing; expected mode, range, velocity",
    "mode = 'absolute'": "mode is 'absolute', and the robot's actions are 'delta'",
    "range = 1": r"range is 1, expected a table: \[range\]",
    "[range]\ndz = [0, 1]": "range.dz: no dimension is called that; an action has dx, dy",
    "[range]\ndx = 1": "range.dx is 1, expected two numbers",
    "[range]\ndx = [0, true]": "range.dx is True, expected a finite number",
    "[range]\ndx = [-2, 1]": "a guard narrows this and cannot widen it",
    "[range]\ndx = [0.5, 0.2]": "a range of 0.5 to 0.2: give the smaller number first",
    "[range]\ndx = [0.5, 0.8]": "range.dx is 0.5 to 0.8, without 0",
    "[velocity]\ndx = 0": "velocity is 0, expected more than 0",
    "[velocity]\ndx = inf": "velocity.dx is inf, expected a finite number",
    "[velocity]\ndx = 1\nx = 2": "velocity: dx and x are one dimension; say it once",
    "[acceleration]\ndx = -1": "acceleration is -1, expected more than 0",
    "[workspace]\nx = [1, 0]": "a workspace of 1 to 0: give the smaller number first",
    "[workspace]\ngripper = [0, 1]": r"workspace.gripper is a gripper; limit it in \[range\]",
    "[workspace]\ndyaw = [0, 1]": "workspace.dyaw: how far a command of 1 moves it nobody said",
    "[workspace]\nx = [0, 1]\n[scale]\nx = 0": "a command of 1 moves the state by 0: expected",
    "[scale]\nx = 1": "scale.x would have no effect",
    "[gripper]\nsteps = 0": "gripper steps is 0, expected 1 or more",
    "[gripper]\nsteps = 1.5": "gripper.steps is 1.5, expected a whole number",
    "[gripper]\nband = 1": "gripper band is 1, expected a share",
    "[gripper]\nstep = 1": "gripper.step limits nothing; expected steps, band",
    "[watchdog]\nseconds = 0": "watchdog seconds is 0, expected more than 0 and finite",
    "[watchdog]\nage = 0": "watchdog age is 0 s, expected more than 0",
    "[watchdog]\nwait = 1": "watchdog.wait limits nothing; expected seconds, age",
    "[on]\nrange = 'pass'": "on.range is 'pass', expected clip or hold or stop",
    "[on]\nsilence = 'clip'": "on.silence is 'clip', expected hold or stop",
    "[on]\ngripper = 'hold'": "on.gripper limits nothing; expected range, velocity",
    "[on": "is not TOML",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text.replace("\n", " "))
def test_what_will_not_do_is_refused_by_name(tmp_path: Path, text: str) -> None:
    whole = text if text.startswith("mode") else f"mode = 'delta'\n{text}"
    with pytest.raises(ValueError, match=WRONG[text]) as error:
        read(tmp_path, whole)
    assert str(error.value).startswith(str(tmp_path / "guard.toml"))


def test_a_file_that_is_not_there_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="armlet inspect EPISODES --guard"):
        Bounds.read(tmp_path / "none.toml", DELTA)
    with pytest.raises(ValueError, match="is a folder"):
        Bounds.read(tmp_path, DELTA)


def test_a_state_without_the_name_has_no_workspace(tmp_path: Path) -> None:
    text = 'mode = "delta"\n[workspace]\nx = [0, 1]'
    for names in ((), ("a", "b"), ("x", "delta_x")):
        with pytest.raises(ValueError, match=r"is read from its state, which has"):
            read(tmp_path, text, names=names)


def test_a_rotation_given_as_a_position_is_not_clipped_in_part(tmp_path: Path) -> None:
    turning = ActionSpec(
        ("x", "left.roll"), "absolute", "euler", (-3.0,) * 2, (3.0,) * 2, (), 0, 0, 10
    )
    text = 'mode = "absolute"\n[velocity]\n"left.roll" = 1'
    with pytest.raises(ValueError, match=r"velocity.left.roll: a rotation .* is another rotation"):
        read(tmp_path, text, turning)
    assert read(tmp_path, text + '\n[on]\nvelocity = "hold"', turning).on_velocity == "hold"
    assert read(tmp_path, text.replace('"left.roll"', "x"), turning).velocity == (1, math.inf)
    none = 'mode = "absolute"\n[workspace]\nx = [0, 1]\n[scale]\nx = 1'
    with pytest.raises(ValueError, match=r"scale\.x would have no effect"):
        read(tmp_path, none, turning)
    without = 'mode = "absolute"\n[gripper]\nsteps = 2'
    with pytest.raises(ValueError, match="the robot has none"):
        read(tmp_path, without, turning)


# --- from recordings


def walk(spec: ActionSpec, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Actions, states and starts of four episodes of a robot that does as it is told: a command of
    1 moves x and y by 0.05, and yaw by 0.3."""
    draw = np.random.default_rng(seed)
    actions = draw.uniform(-0.6, 0.6, (400, 4))
    actions[:, 3] = np.where(draw.random(400) < 0.5, -1, 1)
    state = np.zeros((400, 4))
    starts = np.arange(0, 401, 100)
    for first in starts[:-1]:
        moved = np.cumsum(actions[first : first + 99] * (0.05, 0.05, 0.3, 0), axis=0)
        state[first + 1 : first + 100] = moved
    return actions, state, starts


def test_what_is_proposed_lets_the_recordings_pass(tmp_path: Path) -> None:
    actions, state, starts = walk(DELTA)
    text = propose(DELTA, STATE, actions, state, starts)
    bounds = read(tmp_path, text)
    # No faster than 6 a second were they, and 1.5 times that is allowed.
    assert bounds.velocity[:2] == pytest.approx((9, 9), rel=0.01)
    assert bounds.velocity[3] == math.inf and bounds.acceleration == (math.inf,) * 4
    wall = bounds.walls[0]
    assert (wall.state, wall.scale) == (0, 0.05)
    assert wall.low == pytest.approx(state[:, 0].min() - 0.05 * np.ptp(state[:, 0]), rel=1e-3)
    assert (bounds.gripper_steps, bounds.silence_s) == (2, 0.5)
    guard = ActionGuard(DELTA, bounds, state_names=STATE, clock=iter(np.arange(500) / 10).__next__)
    counts = {}
    for first in starts[:-1]:
        guard.reset()
        for row in range(first, first + 100):
            guard.step(actions[row], state=state[row])
    counts = dict(guard.counts)
    counts.pop("gripper")  # these ones chatter
    assert counts == {}


def test_a_scale_that_nobody_said_is_fitted(tmp_path: Path) -> None:
    spec = ActionSpec(
        ("dx", "dy", "dz", "gripper"), "delta", "none", (-1.0,) * 4, (1.0,) * 4, (3,), 1.0, -1.0, 10
    )
    actions, state, starts = walk(spec)
    state[:, 1] = np.random.default_rng(1).normal(size=400)  # not moved by what is asked
    text = propose(spec, ("x", "y", "z", "opening"), actions, state, starts)
    assert "# dy: its actions do not explain how its state changes" in text
    walls = read(tmp_path, text, spec, ("x", "y", "z", "opening")).walls
    assert [(wall.dimension, round(wall.scale, 3)) for wall in walls] == [(0, 0.05), (2, 0.3)]


def test_positions_are_proposed_by_how_they_change(tmp_path: Path) -> None:
    spec = ActionSpec(
        ("j0", "hand.x", "yaw", "gripper"), "absolute", "euler", (-2.0,) * 4, (2.0,) * 4, (3,), 1.0,
        -1.0, 50,
    )  # fmt: skip
    rows = np.zeros((100, 4))
    rows[:50, 0] = np.linspace(0, 0.49, 50)  # 0.01 a step, 0.5 a second
    rows[50:, 0] = 1.5  # another episode: no jump of this one
    starts = np.array([0, 50, 100])
    text = propose(spec, (), rows, np.zeros((100, 0)), starts)
    bounds = read(tmp_path, text, spec, ())
    assert bounds.velocity == pytest.approx((0.75, math.inf, math.inf, math.inf))
    assert '# "hand.x": never moves' in text and "yaw" not in text and not bounds.walls
