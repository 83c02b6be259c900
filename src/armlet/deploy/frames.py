"""What an exported policy is measured on: real observations, and a world to act in or an expert to
be compared with. From a world, from episodes, or from what a policy says of how it was made."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from armlet import benchmarks
from armlet.benchmarks import Benchmark
from armlet.data.episodes import EpisodeDataset
from armlet.data.pictures import Pictures
from armlet.data.splits import parts
from armlet.evaluation.action_errors import Recording, choose_rows, moments_at
from armlet.evaluation.asking import Asker
from armlet.policies.contract import Policy, tuples
from armlet.robot.observation import Observation, history_of
from armlet.rollout.loop import plan, run_task

FRAMES = (
    920_000_000  # seed of the first episode whose frames are looked at; nothing else runs there
)
TEXTS = 930_000_000  # of the first world that is asked for its instruction
HELD_OUT = 0.1  # of the episodes, the last ones, where a policy does not say how they were cut


@dataclass(frozen=True)
class Material:
    """`frames`: observations; `world`: to act in, or `expert` (n, a): what was done at the frames,
    in the robot's own numbers; `texts`: instructions that the policy may be told."""

    frames: tuple[Observation, ...]
    texts: tuple[str, ...]
    world: Benchmark | None = None
    expert: np.ndarray | None = None


def from_world(policy: Policy, world: Benchmark, count: int) -> Material:
    """What a policy sees in whole episodes, the tasks in turn: `count` observations or more, and an
    episode of every task."""
    found: list[Observation] = []
    tasks = world.tasks(world.splits[0])
    number = 0
    while len(found) < count or number < len(tasks):
        task = tasks[number % len(tasks)]
        run_task(policy, world, task, FRAMES + number, on_look=found.append)
        number += 1
    return Material(tuple(found), tuple(texts_of(world)), world)


def texts_of(world: Benchmark) -> list[str]:
    """An instruction of every task of every split, each once."""
    found: dict[str, None] = {}
    for split in world.splits:
        for task, seed in plan(world, split, len(world.tasks(split)), TEXTS):
            made = world.make(task, seed)
            found[made.instruction] = None
            made.close()
    return list(found)


def from_episodes(
    policy: Policy, data: EpisodeDataset, count: int, *, held_out: float = HELD_OUT
) -> Material:
    """`count` frames of the last episodes of a data set, evenly over them, and what was done
    there."""
    columns = data.columns()
    actions = columns["action"]
    recording = Recording(actions, columns.get("executed", actions), data.starts, data.runs)
    left = parts(data, "last", held_out, reported=True).held_out
    rows = choose_rows(recording, left, count)
    asker = Asker(data, recording, columns["observation.state"], Pictures())
    images = asker.pictures_as(policy.robot.observation.view)
    frames = asker.observations(rows, images, history_of(policy))
    expert = moments_at(recording, rows, 1).actions[:, 0]  # (n, 1, a) → (n, a)
    return Material(tuple(frames), tuple(data.tasks), expert=expert)


def world_of(provenance: dict[str, Any]) -> Benchmark | None:
    """The world that a policy says it was made in; None where it says none, or one that is not of
    armlet's own."""
    said = provenance.get("recipe", {}).get("benchmark")
    if not isinstance(said, dict):
        return None
    name = str(said.get("class", "")).lower()
    if name not in benchmarks.available():
        return None
    fields = {field: value for field, value in said.items() if field != "class"}
    return benchmarks.find(name, **tuples(fields))
