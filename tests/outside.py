"""A benchmark and a recipe in one file outside the package: a dot on a line, to be reached by its
colour's name."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from armlet import recipes
from armlet.benchmarks import Benchmark, Task, World
from armlet.policies.vla import VLANetwork
from armlet.recipe import Collection, Evaluation, Recipe
from armlet.recipes.bases import Imitate
from armlet.robot.observation import Observation
from armlet.robot.spec import ActionSpec

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


class DotWorld(World):
    def __init__(self, colour: str, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.instruction = f"go to the {colour} dot"
        self.places = dict(zip(COLOURS, rng.permutation([-0.8, 0.8]), strict=True))
        self.goal, self.at = self.places[colour], 0.0
        self.previous = np.zeros(1, np.float32)

    def observe(self) -> Observation:
        return Observation(
            {"eye": self.render(32)},
            np.array([self.at], np.float32),
            self.instruction,
            self.previous,
        )

    def render(self, size: int) -> np.ndarray:
        image = np.zeros((size, size, 3), np.uint8)
        for colour, place in self.places.items():
            middle = int((place + 1) / 2 * (size - 1))
            image[size // 3 : 2 * size // 3, max(middle - 3, 0) : middle + 3] = COLOURS[colour]
        return image

    def step(self, action: np.ndarray) -> bool:
        self.previous = np.asarray(action, np.float32)
        self.at = float(np.clip(self.at + 0.2 * np.clip(action[0], -1, 1), -1, 1))
        return abs(self.at - self.goal) < 0.1

    def expert_action(self) -> np.ndarray:
        return np.clip([(self.goal - self.at) / 0.2], -1, 1).astype(np.float32)


@dataclass(frozen=True)
class Dots(Benchmark):
    name: ClassVar[str] = "dots"

    @property
    def action_spec(self) -> ActionSpec:
        return ActionSpec(
            ("dx",),
            "delta",
            "none",
            (-1.0,),
            (1.0,),
            (),
            0.0,
            0.0,
            control_hz=5,
            translation_scale=0.2,
        )

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("x",)

    @property
    def cameras(self) -> dict[str, int]:
        return {"eye": 32}

    @property
    def max_steps(self) -> int:
        return 10

    def tasks(self, split: str = "seen") -> tuple[Task, ...]:
        return tuple(Task(colour, "dots", split) for colour in COLOURS)

    def make(self, task: Task, seed: int) -> DotWorld:
        return DotWorld(task.name, seed)

    def fingerprint(self) -> dict[str, Any]:
        return {"benchmark": self.name}


def reaching() -> Recipe:
    """A recipe of one's own."""
    base = recipes.make("actdistill_tabletop")
    short = {"steps": 5, "batch_size": 8, "compile": False}
    return dataclasses.replace(
        base,
        name="reaching",
        benchmark=Dots(),
        episodes=Path("episodes"),
        teacher=Path("teacher"),
        out=Path("out"),
        shared=None,
        collection=Collection(episodes=6, workers=1),
        network=VLANetwork(width=32, depth=3, heads=2, chunk=2, vision_channels=8),
        teach=dataclasses.replace(base.teach, objective=Imitate(facts=()), **short),
        probe=dataclasses.replace(base.probe, stage=dataclasses.replace(base.probe.stage, **short)),
        stages=tuple(dataclasses.replace(stage, **short) for stage in base.stages),
        evaluation=Evaluation(episodes=4, workers=1, latency_calls=4),
    )
