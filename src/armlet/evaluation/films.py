"""Films of one episode by every policy, side by side; and the observations on which policies are
timed. Runs worlds; knows no report."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from armlet.benchmarks import Benchmark, Task
from armlet.data.files import atomic_file
from armlet.data.video import write_video
from armlet.evaluation.episodes import episode_row
from armlet.evaluation.rerun_file import Told, Watched
from armlet.evaluation.rerun_file import write as write_rerun
from armlet.policies.contract import Policy
from armlet.robot.observation import Observation
from armlet.rollout.loop import film, run_task
from armlet.rollout.pool import Contender


@dataclass(frozen=True)
class Film:
    """A film beside the report, and how the episode in it went for each policy, from left to
    right."""

    task: str
    seed: int
    video: str  # the file's name
    fps: int  # the control frequency: one picture a control step, at the speed of life
    policies: tuple[dict[str, Any], ...]  # name, execute, success, steps, gates


def make_film(
    policies: Mapping[str, Policy],
    field: Mapping[str, Contender],
    benchmark: Benchmark,
    task: Task,
    seed: int,
    out: Path,
    *,
    rerun: bool = False,
) -> Film:
    """One episode by every policy; one that ends first stands still until the last has ended.
    `rerun`: kept for that viewer as well, beside the film."""
    hz = round(benchmark.action_spec.control_hz)
    pictures: list[np.ndarray] = []  # of each policy (steps + 1, h, w, 3)
    seen: list[dict[str, Any]] = []
    told: list[Told] = []
    for name, policy in policies.items():
        contender = field[name]
        execute = contender.looks_after
        watched = Watched(policy)
        frames, episode = film(
            watched if rerun else policy,
            benchmark,
            task,
            seed,
            execute=execute,
            ensemble=contender.joined,
        )
        pictures.append(frames)
        every = execute or policy.execute
        told.append(Told(name, frames, episode.executed, watched.looks, every))
        row = episode_row(task, seed, episode)
        seen.append(
            {
                "name": name,
                "execute": every,
                "success": row["success"],
                "steps": row["steps"],
                "gates": row["gates"],
            }
        )
    longest = max(map(len, pictures))
    padded = []
    for frames in pictures:
        standing = frames[-1:].repeat(longest - len(frames), 0)
        padded.append(np.concatenate([frames, standing]))
    video = f"{_file_name(task.name)}-{seed}.mp4"
    with atomic_file(out / video) as part:
        write_video(part, np.concatenate(padded, 2), fps=hz)  # axis 2: beside each other
    if rerun:
        write_rerun((out / video).with_suffix(".rrd"), video, benchmark.action_spec, told)
    return Film(task.name, seed, video, hz, tuple(seen))


def _file_name(task: str) -> str:
    """A task's name, without what a file system would read as a folder or a drive."""
    return task.replace("/", "-").replace(":", "-")


def sample_observations(policy: Policy, benchmark: Benchmark, seed: int) -> list[Observation]:
    """Moments for timing and counting: the policy's own, one whole episode of every task. Not only
    beginnings: what a router runs depends on the moment."""
    observations: list[Observation] = []
    for task in benchmark.tasks():
        run_task(policy, benchmark, task, seed, on_look=observations.append)
    return observations
