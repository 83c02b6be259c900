"""Phases by rule against the expert's own names for what it is doing, on tabletop.

    python bench/phases.py [--episodes 700] [--out docs/machinery/phases.json]

Every task in turn; one half of the episodes is undisturbed, in the other every episode is disturbed
as `collect` disturbs a share of them. The rules were set on seeds from 300, 310 and 700 millions
on; these are others. They see state and command, never the simulator; the expert's names come from
what is true in it. The expert knows neither of regrasping (it says grasping) nor of having
finished, so steps after success, of which an episode records two, are counted apart.
"""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import tyro

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from armlet.annotators import PHASES
from armlet.annotators.phase_rules import PhaseRules
from armlet.benchmarks import Task, World
from armlet.benchmarks.tabletop import Tabletop
from armlet.data.episodes import EpisodeFrames
from armlet.progress import Progress
from armlet.robot.observation import Observation
from armlet.rollout.actors import run_expert
from armlet.rollout.disturbance import Perturbation

CALM, DISTURBED = Perturbation(share=0.0, distracted=0.0), Perturbation(share=1.0)
OF_THE_EXPERT = ("approaching", "grasping", "transporting", "placing", "operating")
BESIDE = {"regrasping": "grasping"}  # what the expert calls it


Recorded = tuple[str, bool, EpisodeFrames]  # task, disturbed, episode
Step = tuple[
    str, bool, str, str, bool
]  # task, disturbed, the expert's phase, the rules' phase, after success


@dataclasses.dataclass
class Arguments:
    episodes: int = 700
    seed: int = 710_000_000
    out: Path = Path("docs/machinery/phases.json")


class Watched(World):
    """A world without cameras, whose facts are the expert's phase and whether the task has
    succeeded before this step."""

    def __init__(self, world: World) -> None:
        self.world, self.instruction, self.succeeded = world, world.instruction, False
        world._sizes = {}  # no cameras, no pictures

    def observe(self) -> Observation:
        return self.world.observe()

    def step(self, action: np.ndarray) -> bool:
        self.succeeded |= self.world.step(action)
        return self.succeeded

    def expert_action(self) -> np.ndarray:
        return self.world.expert_action()

    def distraction(self, number: int) -> np.ndarray | None:
        return self.world.distraction(number)

    def privileged(self) -> dict[str, np.ndarray]:
        return {
            "phase": np.array(PHASES.index(self.world.expert_phase())),
            "succeeded": np.array(self.succeeded),
        }


class WatchedTabletop(Tabletop):
    def make(self, task: Task, seed: int) -> Watched:
        return Watched(super().make(task, seed))


def record(episodes: int, seed: int) -> list[Recorded]:
    benchmark, recorded = WatchedTabletop(), []
    tasks = benchmark.tasks()
    progress = Progress("phases", total=episodes, unit="episode")
    for number in range(episodes):
        task, disturbed = tasks[number % len(tasks)], number // len(tasks) % 2 == 1
        episode = run_expert(benchmark, task, seed + number, DISTURBED if disturbed else CALM)
        recorded.append((task.name, disturbed, episode.frames({})))
        progress.advance()
    progress.close()
    return recorded


def label(recorded: list[Recorded], *, flipped: float = 0.0) -> list[Step]:
    """Every step as expert and rules have it; a share `flipped` of the gripper commands says the
    opposite."""
    rules, rng, steps = PhaseRules(), np.random.default_rng(0), []
    for task, disturbed, episode in recorded:
        action = episode.action.copy()
        action[rng.random(len(action)) < flipped, rules.embodiment.gripper] *= -1
        labels = rules.annotate(
            dataclasses.replace(episode, action=action), Tabletop().action_spec.control_hz
        )
        expert, after = (episode.extra[f"privileged.{name}"] for name in ("phase", "succeeded"))
        for said, found, late in zip(expert, labels.phase, after, strict=True):
            steps.append((task, disturbed, PHASES[said], PHASES[found], bool(late)))
    return steps


def agreement(steps: list[Step], *, strict: bool = False) -> float:
    same = [
        expert == (found if strict else BESIDE.get(found, found))
        for _, _, expert, found, _ in steps
    ]
    return float(np.mean(same))


def draw(matrix: np.ndarray, shown: tuple[str, ...], title: str, path: Path) -> None:
    """Counts; the colour is the share of the row."""
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    axes.imshow(
        matrix / np.maximum(matrix.sum(1, keepdims=True), 1),
        cmap="Blues",
        vmin=0,
        vmax=1,
        aspect="auto",
    )
    for (row, column), count in np.ndenumerate(matrix):
        dark = count > 0.5 * matrix[row].sum()
        axes.text(
            column,
            row,
            f"{count}" if count else "·",
            ha="center",
            va="center",
            color="white" if dark else "black",
        )
    axes.set_xticks(range(len(shown)), shown, rotation=30, ha="right")
    axes.set_yticks(range(len(OF_THE_EXPERT)), OF_THE_EXPERT)
    axes.set(xlabel="the rules say", ylabel="the expert says", title=title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Arguments) -> None:
    recorded = record(arguments.episodes, arguments.seed)
    steps = label(recorded)
    before = [step for step in steps if not step[-1]]
    counts = Counter((expert, found) for _, _, expert, found, _ in before)
    groups = {"undisturbed": False, "disturbed": True}
    tasks = sorted({task for task, *_ in steps})
    result = {
        "episodes": arguments.episodes,
        "seed": arguments.seed,
        "steps": len(before),
        "agreement": agreement(before),
        "agreement_where_regrasping_is_an_error": agreement(before, strict=True),
        "agreement_with_steps_after_success": agreement(steps),
        **{
            name: agreement([step for step in before if step[1] == which])
            for name, which in groups.items()
        },
        "with_flipped_gripper_commands": {
            share: agreement([step for step in label(recorded, flipped=share) if not step[-1]])
            for share in (0.02, 0.05, 0.1)
        },
        "tasks": {
            task: {
                name: agreement([step for step in before if step[0] == task and step[1] == which])
                for name, which in groups.items()
            }
            for task in tasks
        },
        "confusion": {
            expert: {found: counts[expert, found] for found in PHASES if counts[expert, found]}
            for expert in OF_THE_EXPERT
        },
        "after_success_the_rules_say": dict(Counter(found for *_, found, late in steps if late)),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    shown = tuple(
        found for found in PHASES if any(counts[expert, found] for expert in OF_THE_EXPERT)
    )
    matrix = np.array([[counts[expert, found] for found in shown] for expert in OF_THE_EXPERT])
    title = f"{len(before)} steps of {arguments.episodes} episodes, {100 * result['agreement']:.1f} % agree"
    draw(matrix, shown, title, arguments.out.with_suffix(".png"))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
