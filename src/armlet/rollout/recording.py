"""How attempts at episodes become a data set.

Workers write what they made themselves; a killed run goes on with the attempts that are missing.
Who acts is an argument (`actors`).
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armlet.benchmarks import Benchmark
from armlet.data.digests import CACHE
from armlet.data.episodes import Features
from armlet.data.files import hold, write_atomically
from armlet.data.writer import EpisodeWriter, stage_episode
from armlet.progress import Progress
from armlet.robot.description import FILE as ROBOT_FILE
from armlet.robot.description import recorded_toml
from armlet.rollout.actors import Acts
from armlet.rollout.pool import work_through


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
        features = features_of(benchmark)
        hz = round(benchmark.action_spec.control_hz)  # a data set keeps a whole number
        writer = EpisodeWriter(root, features, fps=hz, robot=benchmark.name, metadata=metadata)
        describe_robot(root, benchmark)
        # By attempt and not by count: those that were not kept are missing, and are made again.
        finished = {info["attempt"] for info in writer.finished()}
        missing = [attempt for attempt in range(episodes) if attempt not in finished]
        progress = Progress(title, total=episodes, start=len(finished), unit="episode")
        kept = len(finished)
        attempt_at = _Attempt(root, acts, features, hz)
        # Never in this process: whoever acts must not draw from the random numbers of a training.
        for made in work_through(attempt_at, missing, workers=workers, here=False):
            kept += made  # True counts 1
            progress.advance(kept=kept / (progress.done + 1))
        progress.close()
        writer.finalise()
    return root


def acted_on(device: str) -> dict[str, str]:
    """What a data set says of the device that its policies acted on. One that says nothing was
    made on the CPU: so were all before this was said, and they can be added to."""
    return {} if device == "cpu" else {"device": device}


def describe_robot(root: Path, benchmark: Benchmark) -> None:
    """Write what robot the episodes at `root` are of beside them, as `robot.toml`."""
    path = root / ROBOT_FILE
    if path.exists():  # it may have been corrected by hand
        return
    described = recorded_toml(benchmark.action_spec, benchmark.state_names)
    write_atomically(path, described.encode())


@dataclass(frozen=True)
class _Attempt:
    """One attempt, in a worker process; True where there is something to keep and it was
    written."""

    root: Path
    acts: Acts
    features: Features
    hz: int

    def __call__(self, attempt: int) -> bool:
        episode = self.acts(attempt)
        if episode is None:
            return False
        stage_episode(self.root, attempt, episode, self.features, fps=self.hz)
        return True


def features_of(benchmark: Benchmark) -> Features:
    """What a frame of this benchmark's episodes holds."""
    names = benchmark.action_spec.names
    extra = {"executed": len(names)}
    # Facts have the same names and sizes in all of a benchmark's tasks.
    with contextlib.closing(benchmark.make(benchmark.tasks()[0], 0)) as world:
        for name, values in world.privileged().items():
            extra[f"privileged.{name}"] = len(values)
    return Features(benchmark.state_names, names, benchmark.camera_sizes, extra)
