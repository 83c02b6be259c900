"""The benchmark contract: tasks, worlds and (where there is one) an expert. One file per benchmark.

A benchmark is found by being in this folder: every frozen dataclass here that derives from
`Benchmark`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from armlet.robot.observation import Observation
from armlet.robot.spec import ActionSpec, ObservationSpec, RobotSpec


@dataclass(frozen=True)
class Task:
    """One thing to do. `name` is unique in its benchmark; `family` groups tasks in reports; `split`
    is the
    condition it is run under (`seen`, or one of the benchmark's generalisation splits)."""

    name: str
    family: str
    split: str = "seen"


class World(ABC):
    """One running episode. Rendering happens in `observe` only, so steps inside an action chunk
    cost no image."""

    instruction: str

    @abstractmethod
    def observe(self) -> Observation: ...

    @abstractmethod
    def step(self, action: np.ndarray) -> bool:
        """Execute one action (a,) at the control rate; True once the task has succeeded."""

    def expert_action(self) -> np.ndarray:
        """The scripted expert's action (a,) in the present state."""
        raise NotImplementedError(
            f"{type(self).__name__} has no scripted expert; bring episodes instead of `collect`"
        )

    def holding_action(self) -> np.ndarray:
        """The action (a,) that holds the arm where it is as the episode begins. Only for robots
        that are told absolute positions: no
        motion is zero for the others."""
        raise ValueError(
            f"{type(self).__name__} takes absolute positions and does not say which of them holds its arm still before the first; "
            "a delayed evaluation needs that: give it `holding_action`"
        )

    def distraction(self, number: int) -> np.ndarray | None:
        """The action (a,) of a hand that goes to some other thing, number `number` of those there
        are (modulo), whatever
        was asked; None where there is nothing else to go to."""
        return None

    def expert_phase(self) -> str:
        """The expert's own name for what it is doing now."""
        return ""

    def privileged(self) -> dict[str, np.ndarray]:
        """Simulator facts (name -> float32 vector of fixed length), stored beside the episode,
        never shown to a policy
        that acts."""
        return {}

    def render(self, size: int) -> np.ndarray:
        """A (size, size, 3) uint8 picture for people, by the first camera."""
        raise NotImplementedError

    def close(self) -> None:  # noqa: B027 - most worlds hold nothing to close
        """Give back what the world holds."""


class Benchmark(ABC):
    """Subclasses are frozen dataclasses whose fields are everything that changes a result."""

    name: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ("seen",)

    @property
    @abstractmethod
    def action_spec(self) -> ActionSpec: ...

    @property
    @abstractmethod
    def state_names(self) -> tuple[str, ...]: ...

    @property
    @abstractmethod
    def cameras(self) -> dict[str, int]:
        """Camera name -> side of its square image in pixels."""

    @property
    @abstractmethod
    def max_steps(self) -> int: ...

    @abstractmethod
    def tasks(self, split: str = "seen") -> tuple[Task, ...]: ...

    def check_split(self, split: str) -> None:
        """Raises ValueError naming the splits there are."""
        if split not in self.splits:
            raise ValueError(f"{self.name} has no split {split!r}; it has {', '.join(self.splits)}")

    @abstractmethod
    def make(self, task: Task, seed: int) -> World:
        """The world of (task, seed), reset and ready, the same to the bit every time."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Versions and settings that change pixels or physics (renderer, simulator version …),
        JSON-ready."""


def benchmark_robot(benchmark: Benchmark) -> RobotSpec:
    """The robot of a benchmark: what a policy that acts in it must agree with
    (`robot.agree.agree`)."""
    cameras = {name: (side, side) for name, side in benchmark.cameras.items()}
    seen = ObservationSpec.of(cameras, state_names=benchmark.state_names)
    return RobotSpec(benchmark.action_spec, seen)


def native_robot(benchmark: Benchmark | None, robot_type: str) -> RobotSpec | None:
    """The benchmark's robot, for a data set that says by its `robot_type` that it is of this
    benchmark; None for any other."""
    if benchmark is None or robot_type != benchmark.name:
        return None
    return benchmark_robot(benchmark)
