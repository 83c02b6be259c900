"""A `guard.toml` made from recordings: nothing in it was ever exceeded in them by much.

Of every dimension the 99.9th percentile of its speed, as glitches are no motion, with a margin; of
delta actions whose state says where the robot is, the box that it was in, a little wider. What a
command of 1 moves is the robot's `translation_scale`, or fitted. It is a proposal: whoever knows
the robot and the table it stands on knows better. Knows no data set: arrays come in, text goes out.
"""

import re
from collections.abc import Sequence

import numpy as np

from armlet.robot.bounds import Bounds, is_rotation, state_of
from armlet.robot.description import as_toml
from armlet.robot.spec import ActionSpec

QUANTILE = 0.999  # of a dimension's speeds
FASTER = 1.5  # times that may be asked for
WIDER = 0.05  # of the box's width, on each side
EXPLAINED = 0.7  # of the state's changes, at least, for a fitted scale to be one
PERIODS = 5  # control periods of silence, and not under half a second
SHORTEST_S = 0.5


def propose(
    spec: ActionSpec,
    state_names: Sequence[str],
    actions: np.ndarray,
    state: np.ndarray,
    starts: np.ndarray,
) -> str:
    """The text of a `guard.toml`. `actions` (N, a) and `state` (N, s) are rows of episodes, one
    after the other, of which each begins at one of `starts` (e + 1,), the last of which is N."""
    actions = np.asarray(actions, np.float64)
    state = np.asarray(state, np.float64)
    before = _followed(starts)
    lines = [
        "# What a guard lets pass to the motors, as far as recordings can say. Look at every line:",
        "# nobody but you knows the robot's own limits, and the table it stands on.",
        "# In braces: what the recordings had.",
        f"mode = {as_toml(spec.mode)}",
    ]
    lines += _speeds(spec, actions, before)
    if spec.mode == "delta":
        lines += _box(spec, state_names, actions, state, before)
    else:
        lines += ["", "# [workspace]: positions are kept within [range], which is the robot's own"]
    if spec.grippers:
        lines += ["", "[gripper]", "steps = 2  # in a row, that must ask for the other side"]
        lines.append("band = 0.1  # of its travel, about the middle, that is on neither side")
    seconds = max(SHORTEST_S, PERIODS / spec.control_hz)
    lines += ["", "[watchdog]", f"seconds = {as_toml(_short(seconds))}"]
    usual = Bounds.of(spec)
    lines += ["", "[on]  # clip, hold or stop"]
    for name in ("range", "velocity", "workspace", "nonsense", "silence"):
        lines.append(f"{name} = {as_toml(getattr(usual, f'on_{name}'))}")
    return "\n".join(lines) + "\n"


def _followed(starts: np.ndarray) -> np.ndarray:
    """Rows that another of the same episode comes after."""
    rows = np.ones(int(starts[-1]), bool)
    rows[np.asarray(starts[1:]) - 1] = False
    return np.flatnonzero(rows)


def _speeds(spec: ActionSpec, actions: np.ndarray, before: np.ndarray) -> list[str]:
    """The tables of velocity and, as a comment, of acceleration."""
    if spec.mode == "delta":
        speed = actions * spec.control_hz  # (N, a) a second
        change = speed[before + 1] - speed[before]
    else:
        speed = (actions[before + 1] - actions[before]) * spec.control_hz
        change = np.diff(speed, axis=0) if len(speed) > 1 else speed
    lines = ["", "[velocity]  # a second, in the action's unit"]
    quicker = ["", "# [acceleration]  # a second, a second; a robot that is held brakes at once"]
    for index, name in enumerate(spec.names):
        turning = spec.mode == "absolute" and spec.rotation != "none" and is_rotation(name)
        if index in spec.grippers or turning:
            continue
        fast = float(np.quantile(np.abs(speed[:, index]), QUANTILE)) if len(speed) else 0.0
        if fast == 0:
            lines.append(f"# {_key(name)}: never moves")
            continue
        lines.append(f"{_key(name)} = {as_toml(_short(FASTER * fast))}  # {{{_short(fast)}}}")
        sudden = float(np.quantile(np.abs(change[:, index]), QUANTILE)) * spec.control_hz
        if sudden > 0:
            quicker.append(f"# {_key(name)} = {as_toml(_short(FASTER * sudden))}")
    return lines + quicker


def _box(
    spec: ActionSpec,
    state_names: Sequence[str],
    actions: np.ndarray,
    state: np.ndarray,
    before: np.ndarray,
) -> list[str]:
    """The tables of workspace and scale, where the state says where the robot is."""
    walls = []
    scales = []
    for index, name in enumerate(spec.names):
        if index in spec.grippers or is_rotation(name):
            continue
        try:
            at = state_of(index, spec, state_names)
        except ValueError:  # the state has no such number: nothing is proposed
            continue
        change = state[before + 1, at] - state[before, at]
        scale = _fitted(actions[before, index], change)
        known = spec.translation_scale if index in spec.translation else None
        if known is None and scale is None:
            walls.append(f"# {_key(name)}: its actions do not explain how its state changes")
            continue
        low = float(state[:, at].min())
        high = float(state[:, at].max())
        margin = WIDER * (high - low)
        if margin == 0:
            walls.append(f"# {_key(name)}: never moves")
            continue
        ends = [_short(low - margin), _short(high + margin)]
        walls.append(f"{_key(name)} = {as_toml(ends)}  # {{{_short(low)} to {_short(high)}}}")
        if known is None and scale is not None:
            scales.append(f"{_key(name)} = {as_toml(_short(scale))}")
    found = []
    if walls:
        found += ["", "[workspace]  # a box, in the state's unit", *walls]
    if scales:
        title = "[scale]  # how far a command of 1 moves the state's number, as fitted"
        found += ["", title, *scales]
    return found


def _fitted(moves: np.ndarray, change: np.ndarray) -> float | None:
    """How far a command of 1 moves the state, by least squares; None where that explains little.
    `moves` and `change` are (n,)."""
    total = float(moves @ moves)
    if total == 0 or not change.any():
        return None
    slope = float(moves @ change) / total
    left = change - slope * moves
    explained = 1 - float(left @ left) / float(change @ change)
    return slope if explained >= EXPLAINED else None


def _key(name: str) -> str:
    """A name as a key of TOML."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else as_toml(name)


def _short(value: float) -> float:
    """Four digits are enough for a limit with a margin."""
    return float(f"{value:.4g}")
