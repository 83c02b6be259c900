"""A policy in a world, closed loop: look, decide, carry out some of the chunk, look again.

Episodes are fixed in advance as (task, seed); each runs in a world of its own, so none depends on
how another ended. Worker processes share nothing but the list.

**When thinking takes time.** Actions are sent at control ticks only, `hz` of them a second. A
policy that looks at one tick and needs δ milliseconds has its chunk ready at the first tick that is
not earlier than δ: `steps_late` = ⌈δ·hz / 1000⌉ ticks later, so that any time at all costs a whole
tick, and no time none. During these ticks the world goes on. What the arm does meanwhile is the
controller's rule, and a result is about policy and rule together:

    wait    it holds still, then carries out the new chunk from its start. Nothing of a chunk is
            lost, and time is.
    run_on  it carries out what is left of the chunk before, and holds still when nothing is left.
            Of the new chunk it then leaves out exactly as many actions, from its start, as it
            carried out of the old one meanwhile: these were meant for the same moments. Ticks in
            which it held still leave nothing out: the moves for them have not been made. Beware
            with relative moves: what a new chunk would correct in the actions that are left out is
            not corrected, so a policy whose first action makes up for all that went wrong (one
            cloned from a dead-beat expert) does worse by this rule than by waiting. That is a
            result about the rule.

Under both it holds still before the first chunk of an episode. (A third rule, to leave out an
action for every tick that passed, whether or not anything was done in it, is not offered: it throws
away relative moves that nobody made.)
"""

import functools
import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from armlet.benchmarks import Benchmark, Task, World
from armlet.policies.checkpoint import load_policy, policy_fingerprint
from armlet.policies.contract import Backbone, Policy
from armlet.robot.observation import Observation
from armlet.robot.spec import ActionSpec

Late = Literal["wait", "run_on"]


@dataclass(frozen=True)
class Result:
    """How one episode went. `steps` in all, those of waiting included; `waited`: in how many of
    them the arm held still because no action was there; `gates` (decisions, l) is what ran at each
    decision; `toggles` how often the gripper was sent the other way
    (None without one)."""

    task: Task
    seed: int
    success: bool
    steps: int
    waited: int
    toggles: int | None
    gates: tuple[tuple[int, ...], ...]


def plan(benchmark: Benchmark, split: str, episodes: int, seed: int) -> list[tuple[Task, int]]:
    """`episodes` pairs of task and seed, the tasks in turn."""
    tasks = benchmark.tasks(split)
    return [(tasks[index % len(tasks)], seed + index) for index in range(episodes)]


def steps_late(milliseconds: float, hz: float) -> int:
    """Control steps by which an action is late after so much thinking (see above). Raises
    ValueError for a negative time."""
    if milliseconds < 0:
        raise ValueError(f"a decision takes 0 ms or more, found {milliseconds:g}")
    return math.ceil(
        round(milliseconds * hz / 1e3, 9)
    )  # rounded: 0.1 s at 10 Hz is one step, not 1.0000000000000002


def run_episode(
    policy: Policy,
    benchmark: Benchmark,
    task: Task,
    seed: int,
    *,
    execute: int | None = None,
    lag: int = 0,
    late: Late = "wait",
    on_look: Callable[[Observation], object] = lambda observation: None,
    on_world: Callable[[World], object] = lambda world: None,
) -> Result:
    """One episode, closed loop. `execute`: actions of a chunk carried out before it looks again
    (None: the policy's own number). `lag` steps pass in the world while the policy thinks; `late`
    says what the arm does meanwhile (see above). `on_look` is given what the policy is about to
    see; `on_world` the world as it begins and after every step. Raises ValueError where a chunk has
    fewer actions
    than should be carried out."""
    execute = policy.execute if execute is None else execute
    spec = benchmark.action_spec
    world = benchmark.make(task, seed)
    on_world(world)
    success = False
    gates: list[tuple[int, ...]] = []
    done: list[np.ndarray] = []
    waited = 0
    left: list[np.ndarray] = []  # of the chunk before, what has not been carried out
    last: np.ndarray | None = None
    while len(done) < benchmark.max_steps and not success:
        observation = world.observe()
        on_look(observation)
        decision = policy.decide(observation)
        gates.append(decision.gates)
        chunk = list(decision.actions)
        if not 1 <= execute <= len(chunk):
            raise ValueError(
                f"{execute} actions of each chunk should be carried out, and this policy's have {len(chunk)}"
            )
        meanwhile: list[np.ndarray | None] = list(left[:lag]) if late == "run_on" else []
        fresh = chunk[
            len(meanwhile) :
        ]  # without those in whose place the old chunk's were carried out
        meanwhile += [None] * (lag - len(meanwhile))
        left = fresh[execute:]
        for wanted in (*meanwhile, *fresh[:execute]):
            last = still(spec, last, world) if wanted is None else wanted
            waited += wanted is None
            success = bool(world.step(last))
            done.append(last)
            on_world(world)
            if success or len(done) >= benchmark.max_steps:
                break
    world.close()
    toggles = gripper_toggles(spec, np.stack(done))
    return Result(task, seed, success, len(done), waited, toggles, tuple(gates))


def gripper_toggles(spec: ActionSpec, actions: np.ndarray) -> int | None:
    """How often, along an episode's actions (T, a), the gripper is commanded across the middle
    between open and closed."""
    if not spec.grippers:
        return None
    toggles = 0
    for index in spec.grippers:
        closed = actions[:, index] - (spec.gripper_open + spec.gripper_closed) / 2
        sides = np.sign(closed)[closed != 0]  # the middle itself is on no side
        toggles += int((sides[1:] != sides[:-1]).sum())
    return toggles


def still(spec: ActionSpec, last: np.ndarray | None, world: World) -> np.ndarray:
    """The action (a,) that holds an arm still after it was told `last` (None: nothing yet): no
    motion, the gripper as it was."""
    if spec.mode == "absolute":
        return world.holding_action() if last is None else last
    held = np.zeros(spec.dims, np.float32)
    for index in spec.grippers:
        held[index] = spec.gripper_open if last is None else last[index]
    return held


def film(
    policy: Policy,
    benchmark: Benchmark,
    task: Task,
    seed: int,
    *,
    execute: int | None = None,
    size: int = 224,
) -> tuple[np.ndarray, Result]:
    """Frames (T, size, size, 3) uint8 of one episode, its beginning and every step; and how it
    went."""
    frames: list[np.ndarray] = []

    def look(world: World) -> None:
        frames.append(world.render(size))

    result = run_episode(policy, benchmark, task, seed, execute=execute, on_world=look)
    return np.stack(frames), result


@dataclass(frozen=True)
class Contender:
    """A policy on disk and how it is run: at which budget (for one with a dial), how many actions
    it carries out before it looks again
    (None: its own number), how many steps late its actions come, and what the arm does
    meanwhile."""

    folder: Path
    budget: float | None = None
    execute: int | None = None
    lag: int = 0
    late: Late = "wait"

    def load(self) -> Backbone:
        policy = load_policy(self.folder)
        return policy if self.budget is None else policy.at(self.budget)

    @property
    def fingerprint(self) -> str:
        """Of the policy and its budget: what decides its answers."""
        return policy_fingerprint(self.folder) + (
            "" if self.budget is None else f"@{self.budget:g}"
        )

    def run(self, policy: Policy, benchmark: Benchmark, task: Task, seed: int) -> Result:
        """One episode of `policy`, which is this one loaded."""
        return run_episode(
            policy, benchmark, task, seed, execute=self.execute, lag=self.lag, late=self.late
        )


@functools.cache
def _loaded(folder: Path, budget: float | None) -> Backbone:
    """A worker's own copy, loaded once however it is run."""
    torch.set_num_threads(1)
    return Contender(folder, budget).load()


def _work(job: tuple[str, Contender, Benchmark, Task, int]) -> tuple[str, Result]:
    name, contender, benchmark, task, seed = job
    return name, contender.run(_loaded(contender.folder, contender.budget), benchmark, task, seed)


def run_all(
    contenders: dict[str, Contender],
    benchmark: Benchmark,
    episodes: Sequence[tuple[str, Task, int]],
    *,
    workers: int,
) -> Iterator[tuple[str, Result]]:
    """Run (policy name, task, seed) jobs in `workers` processes; results come as they finish."""
    jobs = [(name, contenders[name], benchmark, task, seed) for name, task, seed in episodes]
    if workers <= 1:
        _loaded.cache_clear()  # since this process last ran one, another policy may have been saved to its folder
        yield from map(_work, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap_unordered(_work, jobs, chunksize=4)
