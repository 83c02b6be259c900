"""Episodes made by acting: who acts, who says what would have been right, and how attempts become a
data set.

What acts is a callable from the number of an attempt to an episode, or to None where nothing is
kept: `ExpertActs`, with disturbances, or `StudentActs`, whose teacher labels every state that it
reaches. Workers write what they made themselves; a killed run goes on with the attempts that are
missing.
"""

import functools
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from armlet.benchmarks import Benchmark, Task, World
from armlet.data.digests import CACHE
from armlet.data.episodes import EpisodeFrames, Features
from armlet.data.files import hold, write_atomically
from armlet.data.writer import EpisodeWriter, stage_episode
from armlet.policies.checkpoint import load_policy
from armlet.policies.contract import Policy
from armlet.progress import Progress
from armlet.recipe import Collection
from armlet.robot.description import FILE as ROBOT_FILE
from armlet.robot.description import recorded_toml
from armlet.robot.observation import Observation

Acts = Callable[[int], EpisodeFrames | None]


def record(
    root: Path,
    benchmark: Benchmark,
    acts: Acts,
    *,
    episodes: int,
    workers: int,
    metadata: dict[str, Any],
    title: str,
) -> Path:
    """Attempts 0 to `episodes` that are not in the data set at `root` yet, in `workers` processes;
    returns `root`."""
    with hold(root / CACHE / "recording.lock", "recording episodes"):
        features = features_of(benchmark, benchmark.make(benchmark.tasks()[0], 0))
        hz = round(benchmark.action_spec.control_hz)
        writer = EpisodeWriter(root, features, fps=hz, robot=benchmark.name, metadata=metadata)
        finished = {info["attempt"] for info in writer.finished()}
        jobs = [
            (root, acts, attempt, features, hz)
            for attempt in range(episodes)
            if attempt not in finished
        ]
        progress = Progress(title, total=episodes, start=len(finished), unit="episode")
        kept = len(finished)
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            for made in pool.imap_unordered(_work, jobs, chunksize=4):
                kept += made
                progress.advance(kept=kept / (progress.done + 1))
        progress.close()
        writer.finalise()
        if not (root / ROBOT_FILE).exists():  # one that is there may have been corrected by hand
            described = recorded_toml(benchmark.action_spec, benchmark.state_names)
            write_atomically(root / ROBOT_FILE, described.encode())
    return root


def _work(job: tuple[Path, Acts, int, Features, int]) -> bool:
    """One attempt, in a worker process; True where there is something to keep and it was
    written."""
    root, acts, attempt, features, hz = job
    episode = acts(attempt)
    if episode is None:
        return False
    stage_episode(root, attempt, episode, features, fps=hz)
    return True


def features_of(benchmark: Benchmark, world: World) -> Features:
    """What a frame of this benchmark's episodes holds."""
    names = benchmark.action_spec.names
    extra = {f"privileged.{name}": len(values) for name, values in world.privileged().items()}
    cameras = {name: (size, size) for name, size in benchmark.cameras.items()}
    return Features(benchmark.state_names, names, cameras, {"executed": len(names), **extra})


@dataclass(frozen=True)
class ExpertActs:
    """The benchmark's expert, disturbed and distracted; only episodes that succeed are kept."""

    benchmark: Benchmark
    collection: Collection

    def __call__(self, attempt: int) -> EpisodeFrames | None:
        tasks, seed = self.benchmark.tasks(), self.collection.seed + attempt
        perturbation = Perturbation(
            share=self.collection.disturbed_share, distracted=self.collection.distracted_share
        )
        task = tasks[attempt % len(tasks)]
        rollout = roll_out(self.benchmark, task, seed, perturbation)
        return rollout.episode(task, attempt, seed) if rollout.success else None


@dataclass(frozen=True)
class TeacherActs:
    """A policy acts as it does when deployed, chunk by chunk; recorded is the first action that it
    would answer at each step. Only
    episodes that succeed are kept."""

    benchmark: Benchmark
    teacher: Path
    seed: int

    def __call__(self, attempt: int) -> EpisodeFrames | None:
        tasks, seed = self.benchmark.tasks(), self.seed + attempt
        task, teacher = tasks[attempt % len(tasks)], _loaded(self.teacher)
        rollout = practise(teacher, teacher, self.benchmark, task, seed)
        return rollout.episode(task, attempt, seed) if rollout.success else None


@dataclass(frozen=True)
class StudentActs:
    """A student acts, and at every step its teacher says what it would have done (DAgger, arXiv
    1011.0686). Episodes that
    fail are kept as well: they are where the student needs telling."""

    benchmark: Benchmark
    student: Path
    teacher: Path
    seed: int
    split: str = "seen"

    def __call__(self, attempt: int) -> EpisodeFrames:
        tasks, seed = self.benchmark.tasks(self.split), self.seed + attempt
        task = tasks[attempt % len(tasks)]
        return practise(
            _loaded(self.student), _loaded(self.teacher), self.benchmark, task, seed
        ).episode(task, attempt, seed)


@functools.cache
def _loaded(folder: Path) -> Policy:
    """A worker's own copy, loaded once."""
    torch.set_num_threads(1)
    return load_policy(folder)


def practise(
    student: Policy, teacher: Policy, benchmark: Benchmark, task: Task, seed: int
) -> "Rollout":
    """One episode in which the student's chunks are carried out and the teacher's first action is
    recorded at every step."""
    world = benchmark.make(task, seed)
    observations: list[Observation] = []
    actions: list[np.ndarray] = []
    executed: list[np.ndarray] = []
    privileged: list[dict[str, np.ndarray]] = []
    pending: list[np.ndarray] = []
    success = False
    while len(observations) < benchmark.max_steps and not success:
        observation = world.observe()
        observations.append(observation)
        privileged.append(world.privileged())
        actions.append(teacher.infer(observation)[0])
        pending = pending or list(student.infer(observation)[: student.execute])
        executed.append(pending.pop(0))
        success = bool(world.step(executed[-1]))
    return _rollout(world, observations, actions, executed, privileged, success=success)


@dataclass(frozen=True)
class Perturbation:
    """How a share of the episodes is disturbed.

    `share` of episodes; in them `probability` per step of starting a disturbance that lasts 1–3
    steps and adds a constant of up to `size` (in units of a full command) to every dimension but
    the gripper, which flips with probability `flip` instead.

    A share of `distracted` episodes has the hand go to another thing for up to `longest` steps,
    from the first step in half of them and from a later one in the others, if the world has such a
    thing.
    """

    share: float = 0.6
    probability: float = 0.25
    size: float = 0.7
    flip: float = 0.08
    distracted: float = 0.5
    longest: int = 8


@dataclass(frozen=True)
class Rollout:
    """One episode as arrays over T steps: what was seen, what the expert said, what was
    executed."""

    images: dict[str, np.ndarray]  # camera -> (T, h, w, 3) uint8
    state: np.ndarray  # (T, s) float32
    action: np.ndarray  # (T, a) float32, the expert's
    executed: np.ndarray  # (T, a) float32
    privileged: dict[str, np.ndarray]  # name -> (T, x) float32
    instruction: str
    success: bool

    def episode(self, task: Task, attempt: int, seed: int) -> EpisodeFrames:
        """As a data set keeps it."""
        return EpisodeFrames(
            images=self.images,
            state=self.state,
            action=self.action,
            extra={
                "executed": self.executed,
                **{f"privileged.{name}": values for name, values in self.privileged.items()},
            },
            task=self.instruction,
            info={
                "attempt": attempt,
                "task": task.name,
                "family": task.family,
                "seed": seed,
                "success": self.success,
            },
        )


def roll_out(
    benchmark: Benchmark, task: Task, seed: int, perturbation: Perturbation, *, tail: int = 2
) -> Rollout:
    """Run the expert once. `tail` steps are recorded after success, so that a policy learns to stay
    put."""
    rng = np.random.default_rng([seed, 1])
    world = benchmark.make(task, seed)
    disturbed = rng.random() < perturbation.share
    first, last, elsewhere = _detour(rng, perturbation)
    observations, actions, executed, privileged = [], [], [], []
    left, offset, success = 0, np.zeros(benchmark.action_spec.dims, np.float32), False
    for step in range(benchmark.max_steps):
        observations.append(world.observe())
        privileged.append(world.privileged())
        action = world.expert_action()
        if disturbed and left == 0 and rng.random() < perturbation.probability:
            left, offset = int(rng.integers(1, 4)), _offset(rng, benchmark, perturbation, action)
        away = world.distraction(elsewhere) if first <= step < last else None
        wanted = action if away is None else away
        done = wanted if left == 0 else np.clip(wanted + offset, -1, 1).astype(np.float32)
        left = max(left - 1, 0)
        actions.append(action)
        executed.append(done)
        success = bool(world.step(done)) or success
        if success:
            tail -= 1
            if tail < 0:
                break
    return _rollout(world, observations, actions, executed, privileged, success=success)


def _detour(rng: np.random.Generator, perturbation: Perturbation) -> tuple[int, int, int]:
    """First and last (exclusive) step of a distraction, and the number of the thing; (0, 0, …)
    where there is none."""
    if rng.random() >= perturbation.distracted:
        return 0, 0, 0
    first = 0 if rng.random() < 0.5 else int(rng.integers(1, 8))
    return first, first + int(rng.integers(2, perturbation.longest + 1)), int(rng.integers(1000))


def _offset(
    rng: np.random.Generator, benchmark: Benchmark, perturbation: Perturbation, action: np.ndarray
) -> np.ndarray:
    spec = benchmark.action_spec
    offset = rng.uniform(-perturbation.size, perturbation.size, spec.dims).astype(np.float32)
    for index in spec.grippers:
        flips = rng.random() < perturbation.flip
        offset[index] = -2 * action[index] if flips else 0.0
    return offset


def _rollout(
    world: World,
    observations: list,
    actions: list,
    executed: list,
    privileged: list,
    *,
    success: bool,
) -> Rollout:
    world.close()
    return Rollout(
        images={
            name: np.stack([seen.images[name] for seen in observations])
            for name in observations[0].images
        },
        state=np.stack([seen.state for seen in observations]),
        action=np.stack(actions),
        executed=np.stack(executed),
        privileged={
            name: np.stack([facts[name] for facts in privileged]) for name in privileged[0]
        },
        instruction=world.instruction,
        success=success,
    )
