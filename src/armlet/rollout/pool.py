"""Work in several processes, each of which loads a policy once; and evaluations as such work.

On which device policies run and how many threads a process has is said by who asks, and goes into
what is made. The number of threads of the process that asks is never changed for longer than a job
takes. Workers share nothing but the list of jobs.
"""

import contextlib
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from armlet.benchmarks import Benchmark, Task, benchmark_robot
from armlet.measuring import EAGER, Runtime
from armlet.policies.acting import Known, actor_fingerprint, load_actor
from armlet.policies.contract import Policy
from armlet.robot.bounds import Bounds
from armlet.robot.chunks import Late
from armlet.robot.ensemble import Adaptive, Ensemble
from armlet.robot.spec import RobotSpec
from armlet.rollout.changes import Change, in_episode
from armlet.rollout.loop import Episode, run_task
from armlet.rollout.routes import Routes

Job = TypeVar("Job")
Made = TypeVar("Made")
THREADS = 1  # of a worker: as many workers as cores run more in an hour than as many threads
CHUNK = 4  # jobs that a worker is given at a time


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """As many threads for torch in this process; as many as before when it is left."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_LOADED: dict[tuple[Path, float | None, str], Policy] = {}


def loaded(
    folder: Path, budget: float | None = None, device: str = "cpu", known: Known | None = None
) -> Policy:
    """This process's own copy of a policy, loaded once however it is run. `known`: see
    `load_policy`."""
    key = (folder, budget, device)
    if key not in _LOADED:
        _LOADED[key] = Contender(folder, budget).load(device, known)
    return _LOADED[key]


def work_through(
    work: Callable[[Job], Made], jobs: Sequence[Job], *, workers: int, here: bool = True
) -> Iterator[Made]:
    """`work(job)` for every job, in `workers` processes of one thread each, as they finish.

    One worker is this process itself, with one thread while a job runs, unless `here` is False:
    then even one is a process of its own, whose policies and random numbers are not this one's.
    `work` has to be importable: a function of a module, or a frozen dataclass.
    """
    if workers <= 1 and here:
        yield from _here(work, jobs)
        return
    # spawn: a forked process would inherit torch's threads and locks, and may hang on them.
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, initializer=torch.set_num_threads, initargs=(THREADS,)) as pool:
        # Unordered: episodes differ in length, and who asks knows each result by its attempt.
        yield from pool.imap_unordered(work, jobs, chunksize=CHUNK)


def _here(work: Callable[[Job], Made], jobs: Iterable[Job]) -> Iterator[Made]:
    try:
        for job in jobs:
            # As many as a worker has, so that results do not hang on how many workers there are.
            with threads(THREADS):
                made = work(job)
            # Outside the `with`: whoever reads on has their own number of threads back.
            yield made
    finally:
        # Before this process runs one again, another policy may be saved to its folder.
        _LOADED.clear()


@dataclass(frozen=True)
class Contender:
    """A policy on disk and how it is run: at which budget (for one with a dial), how many actions
    it carries out before it looks again (None: its own number), how many steps late its actions
    come, and what the arm does meanwhile; or averaged over an `ensemble` of its last decisions
    (robot/ensemble.py), looking again at every step; or behind a `guard` with these bounds; or with
    one of its inputs changed (rollout/changes.py)."""

    folder: Path
    budget: float | None = None
    execute: int | None = None
    lag: int = 0
    late: Late = "wait"
    ensemble: int | None = None
    guard: Bounds | None = None
    change: Change | None = None
    runtime: Runtime = EAGER  # in which the policy of its folder was exported
    routes: Routes | None = None  # that are taken in the place of its router's
    # The robot for which it is asked who it is, where it says that by its answers alone.
    robot: RobotSpec | None = field(default=None, compare=False)

    def load(self, device: str = "cpu", known: Known | None = None) -> Policy:
        """`known`: see `load_policy`."""
        policy = load_actor(self.folder, device=device, known=known)
        return policy if self.budget is None else policy.at(self.budget)

    @property
    def fingerprint(self) -> str:
        """Of the policy and its budget: what decides its answers."""
        dial = "" if self.budget is None else f"@{self.budget:g}"
        robot = self.robot
        return actor_fingerprint(self.folder, None if robot is None else lambda: robot) + dial

    @property
    def looks_after(self) -> int | None:
        """Actions that are carried out before it looks again; None: its own number. An ensemble is
        of what is decided at every step."""
        return 1 if self.ensemble is not None and self.execute is None else self.execute

    @property
    def joined(self) -> Ensemble | None:
        """How its chunks are joined; None: as the policy says itself."""
        if self.ensemble is None:
            return None
        return Adaptive(horizon=self.ensemble, gripper="decided")

    def run(self, policy: Policy, benchmark: Benchmark, task: Task, seed: int) -> Episode:
        """One episode of `policy`, which is this one loaded."""
        acting = policy if self.routes is None else self.routes.told(policy, task, seed)
        if self.change is not None:
            acting = in_episode(acting, self.change, benchmark, task, seed)
        return run_task(
            acting,
            benchmark,
            task,
            seed,
            execute=self.looks_after,
            ensemble=self.joined,
            lag=self.lag,
            late=self.late,
            bounds=self.guard,
        )


@dataclass(frozen=True)
class Attempt:
    """One contender in one episode: what is run in a worker, and by what its result is known."""

    name: str
    task: Task
    seed: int


@dataclass(frozen=True)
class _Evaluate:
    """Runs attempts; sent to the workers."""

    contenders: Mapping[str, Contender]
    benchmark: Benchmark
    device: str

    def __call__(self, attempt: Attempt) -> tuple[Attempt, Episode]:
        contender = self.contenders[attempt.name]
        policy = loaded(
            contender.folder, contender.budget, self.device, lambda: benchmark_robot(self.benchmark)
        )
        return attempt, contender.run(policy, self.benchmark, attempt.task, attempt.seed)


def run_all(
    contenders: Mapping[str, Contender],
    benchmark: Benchmark,
    attempts: Sequence[Attempt],
    *,
    workers: int,
    device: str = "cpu",
) -> Iterator[tuple[Attempt, Episode]]:
    """Every attempt in `workers` processes, with the policies on `device`; episodes come as they
    finish."""
    yield from work_through(_Evaluate(contenders, benchmark, device), attempts, workers=workers)


def run_here(
    contenders: Mapping[str, Contender],
    benchmark: Benchmark,
    attempts: Sequence[Attempt],
    device: str = "cpu",
) -> Iterator[tuple[Attempt, Episode]]:
    """The same, by a worker that is this process already: policies stay loaded, and threads are as
    they are."""
    yield from map(_Evaluate(contenders, benchmark, device), attempts)
