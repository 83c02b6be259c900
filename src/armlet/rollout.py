"""A policy in a world, closed loop: look, decide, carry out some of the chunk, look again.

Episodes are fixed in advance as (task, seed); each runs in a world of its own, so none depends on how another
ended. Worker processes share nothing but the list.
"""

import functools
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from armlet.benchmarks import Benchmark, Task, World
from armlet.checkpoint import load_policy, policy_fingerprint
from armlet.policies import Policy
from armlet.types import ActionSpec, Observation


@dataclass(frozen=True)
class Result:
    """How one episode went. `gates` (decisions, l) is what ran at each decision; times are ms per decision; `toggles` how often the
    gripper was sent the other way (None without one)."""

    task: Task
    seed: int
    success: bool
    steps: int
    toggles: int | None
    gates: tuple[tuple[int, ...], ...]
    policy_ms: tuple[float, ...]
    loop_ms: tuple[float, ...]


def plan(benchmark: Benchmark, split: str, episodes: int, seed: int) -> list[tuple[Task, int]]:
    """`episodes` pairs of task and seed, the tasks in turn."""
    tasks = benchmark.tasks(split)
    return [(tasks[index % len(tasks)], seed + index) for index in range(episodes)]


def run_episode(
    policy: Policy,
    benchmark: Benchmark,
    task: Task,
    seed: int,
    *,
    lag: int = 0,
    on_look: Callable[[Observation], object] = lambda observation: None,
    on_world: Callable[[World], object] = lambda world: None,
) -> Result:
    """One episode, closed loop. `lag` steps pass in the world while the policy thinks: they carry out what is left of the chunk
    before, or hold still, and the new chunk goes on from where its own first steps have passed. `on_look` is given what the policy is about to see; `on_world` the world as it begins and
    after every step. Their time is in `loop_ms`, not in `policy_ms`."""
    world = benchmark.make(task, seed)
    on_world(world)
    steps, success = 0, False
    gates: list[tuple[int, ...]] = []
    policy_ms: list[float] = []
    loop_ms: list[float] = []
    pending: list[np.ndarray] = []  # of the chunk before, what nobody has carried out
    done: list[np.ndarray] = []
    last = _still(benchmark.action_spec, None)
    while steps < benchmark.max_steps and not success:
        began = time.perf_counter()
        observation = world.observe()
        on_look(observation)
        looked = time.perf_counter()
        decision = policy.decide(observation)
        policy_ms.append((time.perf_counter() - looked) * 1e3)
        gates.append(decision.gates)
        passed = min(lag, max(0, len(decision.actions) - policy.execute))
        now = list(decision.actions[passed : passed + policy.execute])
        meanwhile = pending[:lag] + [None] * (lag - len(pending))
        pending = list(decision.actions[passed + policy.execute :])
        for wanted in (*meanwhile, *now):
            last = _still(benchmark.action_spec, last) if wanted is None else wanted
            success = bool(world.step(last))
            done.append(last)
            on_world(world)
            steps += 1
            if success or steps >= benchmark.max_steps:
                break
        loop_ms.append((time.perf_counter() - began) * 1e3)
    world.close()
    toggles = gripper_toggles(benchmark.action_spec, np.stack(done))
    return Result(task, seed, success, steps, toggles, tuple(gates), tuple(policy_ms), tuple(loop_ms))


def gripper_toggles(spec: ActionSpec, actions: np.ndarray) -> int | None:
    """How often, along an episode's actions (T, a), the gripper is commanded across the middle between open and closed."""
    if spec.gripper is None:
        return None
    closed = actions[:, spec.gripper] - (spec.gripper_open + spec.gripper_closed) / 2
    sides = np.sign(closed)[closed != 0]  # the middle itself is on no side
    return int((sides[1:] != sides[:-1]).sum())


def _still(spec: ActionSpec, last: np.ndarray | None) -> np.ndarray:
    """The action of an arm that waits after `last`: no motion, the gripper as it was."""
    if last is None:
        still = np.zeros(spec.dims, np.float32)
        if spec.gripper is not None:
            still[spec.gripper] = spec.gripper_open
        return still
    if spec.mode == "absolute":
        return last
    still = np.zeros_like(last)
    if spec.gripper is not None:
        still[spec.gripper] = last[spec.gripper]
    return still


def film(policy: Policy, benchmark: Benchmark, task: Task, seed: int, *, size: int = 224) -> tuple[np.ndarray, Result]:
    """Frames (T, size, size, 3) uint8 of one episode, its beginning and every step; and how it went."""
    frames: list[np.ndarray] = []
    result = run_episode(policy, benchmark, task, seed, on_world=lambda world: frames.append(world.render(size)))
    return np.stack(frames), result


@dataclass(frozen=True)
class Contender:
    """A policy on disk; for one with a dial, the budget that it is run at; and how many steps late its actions come."""

    folder: Path
    budget: float | None = None
    lag: int = 0

    def load(self) -> Policy:
        policy = load_policy(self.folder)
        return policy if self.budget is None else policy.at(self.budget)

    @property
    def fingerprint(self) -> str:
        return (
            policy_fingerprint(self.folder)
            + ("" if self.budget is None else f"@{self.budget:g}")
            + (f"+{self.lag}" if self.lag else "")
        )


@functools.cache
def _loaded(contender: Contender) -> Policy:
    """A worker's own copy, loaded once."""
    torch.set_num_threads(1)
    return contender.load()


def _work(job: tuple[str, Contender, Benchmark, Task, int]) -> tuple[str, Result]:
    name, contender, benchmark, task, seed = job
    return name, run_episode(_loaded(contender), benchmark, task, seed, lag=contender.lag)


def run_all(
    contenders: dict[str, Contender], benchmark: Benchmark, episodes: Sequence[tuple[str, Task, int]], *, workers: int
) -> Iterator[tuple[str, Result]]:
    """Run (policy name, task, seed) jobs in `workers` processes; results come as they finish."""
    jobs = [(name, contenders[name], benchmark, task, seed) for name, task, seed in episodes]
    if workers <= 1:
        yield from map(_work, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap_unordered(_work, jobs, chunksize=4)
