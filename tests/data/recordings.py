"""Recordings of robots nobody has heard of, made by simple models: arms that follow places, changes
or velocities, as numbers alone. Knows no file: `Recording` stands in for an EpisodeDataset."""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from armlet.robot.description import Described


@dataclass
class Recording:
    """What is asked of an EpisodeDataset but its pictures; `action` and `state` (N, x)."""

    action: np.ndarray
    state: np.ndarray
    starts: np.ndarray
    action_names: tuple[str, ...]
    state_names: tuple[str, ...]
    fps: float = 30.0
    robot_type: str = "nobody's"
    cameras: dict[str, tuple[int, int]] = field(default_factory=lambda: {"front": (48, 64)})
    tasks: tuple[str, ...] = ("pick it up",)
    root: str = "folder"
    name_remarks: tuple[str, ...] = ()
    described: Described = field(default_factory=Described)

    def __len__(self) -> int:
        return len(self.action)

    @property
    def episodes(self) -> range:
        return range(len(self.starts) - 1)

    def columns(self) -> dict[str, np.ndarray]:
        return {
            "observation.state": self.state.astype(np.float32),
            "action": self.action.astype(np.float32),
        }


def goals(rng: np.random.Generator, length: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(T, a): a few places, each held for a while, with smooth ways between."""
    knots = rng.uniform(low, high, (max(length // 15, 2), len(low)))
    at = np.linspace(0, len(knots) - 1, length)
    below = np.minimum(at.astype(int), len(knots) - 2)
    share = at - below
    smooth = share**2 * (3 - 2 * share)
    return knots[below] + smooth[:, None] * (knots[below + 1] - knots[below])


def follow(path: np.ndarray, rate: float = 0.5) -> np.ndarray:
    """(T, a) places asked for → (T, a) places reached, each before the command of its frame."""
    state = np.empty_like(path)
    state[0] = path[0]
    for step in range(1, len(path)):
        state[step] = state[step - 1] + rate * (path[step - 1] - state[step - 1])
    return state


def absolute(
    low: np.ndarray, high: np.ndarray, *, episodes: int = 12, length: int = 90, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(action, state, starts) of a robot that is told places."""
    rng = np.random.default_rng(seed)
    paths = [goals(rng, length, low, high) for _ in range(episodes)]
    states = [follow(path) + rng.normal(size=path.shape) * (high - low) * 1e-3 for path in paths]
    return np.concatenate(paths), np.concatenate(states), np.arange(episodes + 1) * length


def delta(
    dims: int,
    *,
    gain: float = 0.02,
    noise: float = 0.05,
    episodes: int = 12,
    length: int = 90,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(action, state, starts) of a hand that is moved by `gain` times the command, towards one
    place after the other; a person's hand shakes (`noise`)."""
    rng = np.random.default_rng(seed)
    actions, states = [], []
    for _ in range(episodes):
        place = rng.uniform(-0.3, 0.3, dims)
        goal = place
        for step in range(length):
            if step % 30 == 0:
                goal = rng.uniform(-0.3, 0.3, dims)
            command = np.clip(5 * (goal - place) + noise * rng.normal(size=dims), -1, 1)
            actions.append(command)
            states.append(place)
            place = place + gain * command + rng.normal(size=dims) * gain * 0.05
    return np.array(actions), np.array(states), np.arange(episodes + 1) * length


def switch(starts: np.ndarray, opened: float, closed: float, *, seed: int = 0) -> np.ndarray:
    """(N,): a gripper that begins open, closes, and opens again in half of the episodes."""
    rng = np.random.default_rng(seed)
    values = np.full(starts[-1], opened)
    for first, last in pairwise(starts):
        shut = first + rng.integers(20, 40)
        back = shut + rng.integers(20, 40) if rng.random() < 0.5 else last
        values[shut:back] = closed
    return values
