"""The closed loop with a policy that thinks while the world moves, against a timetable written by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from armlet.benchmarks.tabletop import Tabletop
from armlet.policies import Decision
from armlet.rollout import gripper_toggles, run_episode
from armlet.types import ActionSpec

CHUNK = 6


class World:
    """Never done; remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[float, float]] = []

    def observe(self) -> int:
        return len(self.told)

    def step(self, action: np.ndarray) -> bool:
        self.told.append((float(action[0]), float(action[1])))
        return False

    def close(self) -> None:
        pass


class Clock:
    """Answers, for each step ahead, the time at which it should be carried out."""

    execute = 2

    def decide(self, now: int) -> Decision:
        times = [(now + step + 1, 0.5) for step in range(CHUNK)]
        return Decision(np.array(times, np.float32), (1,))


def told(lag: int, mode: str = "delta", steps: int = 12) -> list[tuple[float, float]]:
    spec = ActionSpec(("x", "gripper"), mode, "none", (-99.0,) * 2, (99.0,) * 2, 1, -1.0, 1.0, 10, 0.05)
    world = World()
    benchmark = SimpleNamespace(make=lambda task, seed: world, max_steps=steps, action_spec=spec)
    result = run_episode(Clock(), benchmark, None, 0, lag=lag)
    assert result.steps == steps == len(world.told)
    return world.told


def test_without_delay_every_action_comes_when_it_was_meant() -> None:
    assert [x for x, _ in told(0)] == list(range(1, 13))


@pytest.mark.parametrize("lag", [1, 2])
def test_a_chunk_that_is_long_enough_bridges_the_delay(lag: int) -> None:
    """What is left after `lag` steps have passed lasts for the next `lag` + 2: the arm waits once, at the beginning, and then
    carries out what was meant for that moment."""
    times = [x for x, _ in told(lag)]
    assert times[:lag] == [0] * lag and times[lag:] == list(range(lag + 1, 13))


def test_longer_delays_leave_the_arm_waiting_with_its_gripper_as_it_was() -> None:
    seen = told(6, steps=16)
    assert seen[:6] == [(0.0, -1.0)] * 6, "open, before anything was decided"
    assert seen[6:8] == [(5.0, 0.5), (6.0, 0.5)], "the last of a chunk whose time has passed"
    assert seen[8:14] == [(0.0, 0.5)] * 6, "no motion, the gripper kept"
    assert told(6, "absolute", steps=16)[8:14] == [(6.0, 0.5)] * 6, "an arm told positions stays at its last"


@pytest.mark.parametrize(
    ("commands", "toggles"),
    [([-1, -1, 1, 1], 1), ([-1, 1, -1, 1], 3), ([-1, 0, -1, 0, 1], 1), ([0, 0, 0], 0), ([0.2, 0.9, 0.1], 0), ([1], 0)],
)
def test_a_gripper_toggles_when_it_is_sent_across_the_middle(commands: list[float], toggles: int) -> None:
    spec = Tabletop().action_spec
    actions = np.zeros((len(commands), spec.dims), np.float32)
    actions[:, spec.gripper] = commands
    assert gripper_toggles(spec, actions) == toggles
    assert gripper_toggles(replace(spec, gripper=None), actions) is None
    turned = replace(spec, gripper_open=spec.gripper_closed, gripper_closed=spec.gripper_open)
    assert gripper_toggles(turned, actions) == toggles
