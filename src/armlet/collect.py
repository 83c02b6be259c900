"""collect: a benchmark and its expert (or any policy) → episodes.

Many episodes are perturbed while they run: for a few steps the hand does not go where the expert said, and what
is recorded as the action is still what the expert answers in the state that results (DART, Laskey et al. 2017).
A policy cloned from such data has seen its own mistakes corrected. In others the hand is led to a wrong thing for a while;
without that, a hand near a thing always means that thing, and a policy learns to look at the hand and not at the words.
Only episodes that succeed are kept. Workers write what they made themselves; a killed run goes on with the attempts that are missing.
"""

import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from armlet.benchmarks import Benchmark, Task, World
from armlet.data.episodes import EpisodeFrames, Features
from armlet.data.writer import EpisodeWriter, stage_episode
from armlet.progress import Progress
from armlet.recipe import Collection, Recipe


def main(recipe: Recipe) -> Path:
    """Run the benchmark's expert; returns the folder of the episodes."""
    benchmark, collection = recipe.benchmark, recipe.collection
    tasks = benchmark.tasks()
    features = features_of(benchmark, benchmark.make(tasks[0], collection.seed))
    metadata = {"benchmark": benchmark.fingerprint(), **_how(collection)}
    hz = round(benchmark.action_spec.control_hz)
    writer = EpisodeWriter(recipe.episodes, features, fps=hz, robot=benchmark.name, metadata=metadata)
    finished = {info["attempt"] for info in writer.finished()}
    jobs = [
        (recipe.episodes, benchmark, tasks[attempt % len(tasks)], attempt, collection, features)
        for attempt in range(collection.episodes)
        if attempt not in finished
    ]
    progress = Progress(f"collect {benchmark.name}", total=collection.episodes, start=len(finished), unit="episode")
    kept = len(finished)
    with multiprocessing.get_context("spawn").Pool(collection.workers) as pool:
        for success in pool.imap_unordered(_work, jobs, chunksize=4):
            kept += success
            progress.advance(success=kept / (progress.done + 1))
    progress.close()
    writer.finalise()
    return recipe.episodes


def _how(collection: Collection) -> dict[str, float]:
    """What makes episodes of one collection differ from those of another."""
    return {"disturbed": collection.disturbed_share, "distracted": collection.distracted_share, "seed": collection.seed}


def features_of(benchmark: Benchmark, world: World) -> Features:
    """What a frame of this benchmark's episodes holds."""
    names = benchmark.action_spec.names
    extra = {f"privileged.{name}": len(values) for name, values in world.privileged().items()}
    cameras = {name: (size, size) for name, size in benchmark.cameras.items()}
    return Features(benchmark.state_names, names, cameras, {"executed": len(names), **extra})


def _work(job: tuple[Path, Benchmark, Task, int, Collection, Features]) -> bool:
    """One attempt, in a worker process; True where it succeeded and was written."""
    root, benchmark, task, attempt, collection, features = job
    perturbation = Perturbation(share=collection.disturbed_share, distracted=collection.distracted_share)
    rollout = roll_out(benchmark, task, collection.seed + attempt, perturbation)
    if not rollout.success:
        return False
    episode = EpisodeFrames(
        images=rollout.images,
        state=rollout.state,
        action=rollout.action,
        extra={"executed": rollout.executed, **{f"privileged.{name}": v for name, v in rollout.privileged.items()}},
        task=rollout.instruction,
        info={"attempt": attempt, "task": task.name, "family": task.family, "seed": collection.seed + attempt},
    )
    stage_episode(root, attempt, episode, features, fps=round(benchmark.action_spec.control_hz))
    return True


@dataclass(frozen=True)
class Perturbation:
    """How a share of the episodes is disturbed.

    `share` of episodes; in them `probability` per step of starting a disturbance that lasts 1–3 steps and adds a
    constant of up to `size` (in units of a full command) to every dimension but the gripper, which flips with
    probability `flip` instead.

    A share of `distracted` episodes has the hand go to another thing for up to `longest` steps, from the first step in
    half of them and from a later one in the others, if the world has such a thing.
    """

    share: float = 0.6
    probability: float = 0.25
    size: float = 0.7
    flip: float = 0.08
    distracted: float = 0.5
    longest: int = 8


@dataclass(frozen=True)
class Rollout:
    """One episode as arrays over T steps: what was seen, what the expert said, what was executed."""

    images: dict[str, np.ndarray]  # camera -> (T, h, w, 3) uint8
    state: np.ndarray  # (T, s) float32
    action: np.ndarray  # (T, a) float32, the expert's
    executed: np.ndarray  # (T, a) float32
    privileged: dict[str, np.ndarray]  # name -> (T, x) float32
    instruction: str
    success: bool


def roll_out(benchmark: Benchmark, task: Task, seed: int, perturbation: Perturbation, *, tail: int = 2) -> Rollout:
    """Run the expert once. `tail` steps are recorded after success, so that a policy learns to stay put."""
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
    """First and last (exclusive) step of a distraction, and the number of the thing; (0, 0, …) where there is none."""
    if rng.random() >= perturbation.distracted:
        return 0, 0, 0
    first = 0 if rng.random() < 0.5 else int(rng.integers(1, 8))
    return first, first + int(rng.integers(2, perturbation.longest + 1)), int(rng.integers(1000))


def _offset(rng: np.random.Generator, benchmark: Benchmark, perturbation: Perturbation, action: np.ndarray) -> np.ndarray:
    spec = benchmark.action_spec
    offset = rng.uniform(-perturbation.size, perturbation.size, spec.dims).astype(np.float32)
    if spec.gripper is not None:
        flips = rng.random() < perturbation.flip
        offset[spec.gripper] = -2 * action[spec.gripper] if flips else 0.0
    return offset


def _rollout(world: World, observations: list, actions: list, executed: list, privileged: list, *, success: bool) -> Rollout:
    world.close()
    return Rollout(
        images={name: np.stack([seen.images[name] for seen in observations]) for name in observations[0].images},
        state=np.stack([seen.state for seen in observations]),
        action=np.stack(actions),
        executed=np.stack(executed),
        privileged={name: np.stack([facts[name] for facts in privileged]) for name in privileged[0]},
        instruction=world.instruction,
        success=success,
    )
