"""What codecs lose of an expert's actions, and how often the expert succeeds when it can only act
through one.

    python bench/codebook.py [--episodes 700] [--out docs/machinery/codebook.json]

Errors are over recorded episodes, in which the expert is disturbed and distracted; k-means is
fitted on the same. Success is in closed loop, undisturbed, on seeds that nothing was fitted on:
every expert action is encoded and decoded before the world sees it.

Chunks: what a perfect imitator of encoded episodes would do that carries out two or three actions
before it looks again. Recorded from the expert itself and then encoded, the actions of a chunk
follow from states that primitives do not reach; recorded from the expert acting through the codec,
they follow from one another.
"""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from armlet.benchmarks import Task, World
from armlet.benchmarks.tabletop import Tabletop
from armlet.data.codec import Bins, Codebook, codec_error
from armlet.evaluation.stats import wilson
from armlet.progress import Progress
from armlet.rollout.actors import run_expert
from armlet.rollout.disturbance import Perturbation

Codec = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass
class Arguments:
    episodes: int = 700
    recorded: int = 280
    seed: int = 600_000_000
    out: Path = Path("docs/machinery/codebook.json")


def recorded_actions(benchmark: Tabletop, episodes: int, seed: int) -> np.ndarray:
    """(N, a): what the expert says in `episodes` disturbed episodes."""
    tasks, progress = benchmark.tasks(), Progress("recording", total=episodes, unit="episode")
    actions = []
    for index in range(episodes):
        task = tasks[index % len(tasks)]
        episode = run_expert(benchmark, task, seed + index, Perturbation())
        actions.append(episode.frames({}).action)
        progress.advance()
    progress.close()
    return np.concatenate(actions)


@dataclasses.dataclass(frozen=True)
class Chunks:
    """`execute` actions between two looks; `through`: they were recorded of an expert that acts
    through the codec."""

    execute: int = 1
    through: bool = True

    def foresee(self, world: World, codec: Codec) -> list[np.ndarray]:
        """The next actions, encoded and decoded, from a copy of the world."""
        if self.execute == 1:
            return [codec(world.expert_action())]
        world, actions = copy.deepcopy(world), []
        for _ in range(self.execute):
            wanted = world.expert_action()
            actions.append(codec(wanted))
            world.step(actions[-1] if self.through else wanted)
        return actions


def attempt(
    benchmark: Tabletop, task: Task, seed: int, codec: Codec, chunks: Chunks
) -> tuple[bool, int]:
    """One episode of the expert through `codec`: whether it succeeded, and after how many steps it
    ended."""
    world, pending = benchmark.make(task, seed), []
    for step in range(1, benchmark.max_steps + 1):
        pending = pending or chunks.foresee(world, codec)
        if world.step(pending.pop(0)):
            return True, step
    return False, benchmark.max_steps


def success(
    benchmark: Tabletop,
    codec: Codec,
    episodes: int,
    seed: int,
    title: str,
    chunks: Chunks = Chunks(),
) -> dict[str, Any]:
    tasks, progress = benchmark.tasks(), Progress(title, total=episodes, unit="episode")
    ended = []
    for index in range(episodes):
        ended.append(attempt(benchmark, tasks[index % len(tasks)], seed + index, codec, chunks))
        progress.advance()
    progress.close()
    done = np.array([succeeded for succeeded, _ in ended])
    return {
        "success": float(done.mean()),
        "interval": wilson(int(done.sum()), episodes),
        "steps": float(np.mean([steps for _, steps in ended])),
        "success_by_task": {
            task.name: float(done[index :: len(tasks)].mean()) for index, task in enumerate(tasks)
        },
    }


def main(arguments: Arguments) -> None:
    benchmark = Tabletop()
    spec = benchmark.action_spec
    actions = recorded_actions(benchmark, arguments.recorded, arguments.seed)
    bins, clusters = Bins.from_spec(spec), Codebook.fit(actions, spec)
    codecs: dict[str, Codec] = {
        "none": lambda action: action,
        "256 bins": lambda action: bins.decode(bins.encode(action)),
        "24 primitives, k-means": lambda action: clusters.decode(clusters.encode(action)),
    }
    for steps in ((1.0, 0.25), (0.8, 0.3), (0.7, 0.2), (1.0, 0.1), (1.0, 0.5)):
        book = Codebook.axes(spec, steps)
        codecs[f"24 primitives, axes {steps[0]:g} and {steps[1]:g}"] = lambda action, book=book: (
            book.decode(book.encode(action))
        )
    found = {}
    for name, codec in codecs.items():
        closed_loop = success(
            benchmark, codec, arguments.episodes, arguments.seed + arguments.recorded, name
        )
        found[name] = {**closed_loop, "error": codec_error(actions, codec(actions), spec)}
    default, chunked = codecs["24 primitives, axes 1 and 0.25"], {}
    for execute in (2, 3):
        for through in (False, True):
            name = f"{execute} at a time, recorded {'through the codec' if through else 'of the expert itself'}"
            first = arguments.seed + arguments.recorded
            chunked[name] = success(
                benchmark, default, arguments.episodes, first, name, Chunks(execute, through)
            )
    result = {
        "benchmark": benchmark.name,
        "episodes": arguments.episodes,
        "actions": len(actions),
        "codecs": found,
        "chunks_of_axes_1_and_0.25": chunked,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, row in (found | chunked).items():
        low, high = row["interval"]
        print(
            f"{name}: success {row['success']:.3f} ({low:.3f}–{high:.3f}), {row['steps']:.1f} steps"
        )
    for name, row in found.items():
        error = {part: f"{1e3 * value:.1f}" for part, value in row["error"]["metres"].items()}
        print(f"{name}: error {error['mean']} mm, p95 {error['p95']}, max {error['max']}")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
