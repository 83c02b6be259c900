"""Who makes an attempt at an episode for a data set, and which attempts are kept.

What acts is a callable from the number of an attempt to an episode, or to None where nothing is
kept: `ExpertActs`, with disturbances; `TeacherActs`; or `StudentActs`, whose teacher labels every
state that it reaches. All run in the one loop. Knows no data set on disk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from armlet.benchmarks import Benchmark, Task, World, benchmark_robot
from armlet.data.episodes import EpisodeFrames
from armlet.recipe import Collection
from armlet.robot.observation import Observation
from armlet.robot.outputs import Decision
from armlet.robot.spec import RobotSpec
from armlet.rollout.disturbance import Disturbance, Perturbation
from armlet.rollout.loop import Episode, run
from armlet.rollout.pool import loaded

Acts = Callable[[int], EpisodeFrames | None]
TAIL = 2  # steps of the expert that are recorded after success, so that a policy learns to stay put


@dataclass(frozen=True)
class Expert:
    """A world's scripted expert as an actor: it answers from the world's own state, one action at
    a time, and what is seen does not matter to it."""

    world: World
    execute: int = 1  # it looks again after every action

    def infer(self, observation: Observation) -> np.ndarray:
        return self.world.expert_action()[None]  # (a,) → (1, a): a chunk of one

    def decide(self, observation: Observation) -> Decision:
        return Decision(self.infer(observation), ())

    def reset(self) -> None:
        """Nothing: what it answers is in the world's state."""


def run_expert(
    benchmark: Benchmark, task: Task, seed: int, perturbation: Perturbation, *, tail: int = TAIL
) -> Episode:
    """The expert's episode of (task, seed), recorded: the label is always what the expert says,
    whatever was carried out."""
    world = benchmark.make(task, seed)
    return run(
        world,
        Expert(world),
        spec=benchmark.action_spec,
        limit=benchmark.max_steps,
        disturb=Disturbance(perturbation, world, benchmark.action_spec, seed),
        tail=tail,
        record=True,
    )


@dataclass(frozen=True)
class ExpertActs:
    """The benchmark's expert, disturbed and distracted; only episodes that succeed are kept."""

    benchmark: Benchmark
    collection: Collection

    def __call__(self, attempt: int) -> EpisodeFrames | None:
        task, seed = _attempted(self.benchmark, "seen", self.collection.seed, attempt)
        perturbation = Perturbation(
            share=self.collection.disturbed_share, distracted=self.collection.distracted_share
        )
        # Disturbed but labelled as if it were not: see `run_expert`.
        episode = run_expert(self.benchmark, task, seed, perturbation)
        return _frames(episode, task, attempt, seed) if episode.success else None


@dataclass(frozen=True)
class TeacherActs:
    """A policy acts as it does when deployed, chunk by chunk; recorded is the first action that it
    would answer at each step. Only episodes that succeed are kept."""

    benchmark: Benchmark
    teacher: Path
    seed: int
    device: str = "cpu"

    def __call__(self, attempt: int) -> EpisodeFrames | None:
        task, seed = _attempted(self.benchmark, "seen", self.seed, attempt)
        # By its folder: a worker loads it once, and a policy is not sent between processes.
        teacher = loaded(self.teacher, device=self.device, known=self._robot)
        episode = run(
            self.benchmark.make(task, seed),
            teacher,
            spec=self.benchmark.action_spec,
            limit=self.benchmark.max_steps,
            label=teacher,
            record=True,
        )
        return _frames(episode, task, attempt, seed) if episode.success else None

    def _robot(self) -> RobotSpec:
        return benchmark_robot(self.benchmark)


@dataclass(frozen=True)
class StudentActs:
    """A student acts, and at every step its teacher says what it would have done (DAgger, arXiv
    1011.0686). Episodes that fail are kept as well: they are where the student needs telling."""

    benchmark: Benchmark
    student: Path
    teacher: Path
    seed: int
    split: str = "seen"
    device: str = "cpu"

    def __call__(self, attempt: int) -> EpisodeFrames:
        task, seed = _attempted(self.benchmark, self.split, self.seed, attempt)
        episode = run(
            self.benchmark.make(task, seed),
            loaded(self.student, device=self.device),
            spec=self.benchmark.action_spec,
            limit=self.benchmark.max_steps,
            label=loaded(self.teacher, device=self.device, known=self._robot),
            record=True,
        )
        return _frames(episode, task, attempt, seed)

    def _robot(self) -> RobotSpec:
        return benchmark_robot(self.benchmark)


def _attempted(benchmark: Benchmark, split: str, first: int, attempt: int) -> tuple[Task, int]:
    """The task and seed of attempt number `attempt`, the tasks in turn."""
    tasks = benchmark.tasks(split)
    return tasks[attempt % len(tasks)], first + attempt  # a seed of its own for every attempt


def _frames(episode: Episode, task: Task, attempt: int, seed: int) -> EpisodeFrames:
    info = {
        "attempt": attempt,
        "task": task.name,
        "family": task.family,
        "seed": seed,
        "success": episode.success,
    }
    return episode.frames(info)
