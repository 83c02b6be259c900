"""The benchmark contract: tasks, worlds and (where there is one) an expert. One file per benchmark.

`find` makes one by its name. Those of this folder are found by their module's name, one of
somebody's own as `package.module:Name`, a Gymnasium environment as `gym:ENV_ID`. Nothing has to be
registered, and nothing is imported before it is asked for.
"""

import importlib
import importlib.metadata
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from armlet import outside
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
    over: bool = False
    """True once the world has ended without success (a fall, a time limit of its own): it takes no
    further step. Most never do."""

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

    def other_instruction(self, number: int) -> str | None:
        """The same task's words for another thing that is there, number `number` of those there are
        (modulo): what a policy that listens would then do is something else. None where nothing
        else could be asked for, or the world cannot say it."""
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


def require_packages(benchmark: str, packages: Sequence[str]) -> None:
    """Raises ModuleNotFoundError, with the command that mends it, where the extra of this benchmark's
    name is not installed."""
    # Asked by name and not imported: that alone takes seconds.
    for package in packages:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise ModuleNotFoundError(
                f"the benchmark {benchmark} needs the package {package!r}: pip install -e "
                f"'.[{benchmark}]'"
            ) from None


@dataclass(frozen=True)
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
        """Camera name -> side of its square image in pixels; of another shape, the longer side."""

    @property
    def camera_sizes(self) -> dict[str, tuple[int, int]]:
        """Camera name -> (height, width) of its image in pixels."""
        return {name: (side, side) for name, side in self.cameras.items()}

    @property
    @abstractmethod
    def max_steps(self) -> int: ...

    @abstractmethod
    def tasks(self, split: str = "seen") -> tuple[Task, ...]: ...

    def check_split(self, split: str) -> None:
        """Raises ValueError naming the splits there are."""
        if split not in self.splits:
            raise ValueError(f"{self.name} has no split {split!r}; it has {', '.join(self.splits)}")

    def states(self, split: str) -> int | None:
        """In how many initial states a task of a split begins, whatever the seeds; None: each seed has
        its own. Where they are few, more episodes would be the same again, and whoever has chosen on
        some of them has seen those of a report."""
        return None

    @abstractmethod
    def make(self, task: Task, seed: int) -> World:
        """The world of (task, seed), reset and ready, the same to the bit every time."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Versions and settings that change pixels or physics (renderer, simulator version …),
        JSON-ready."""


def find(name: str, **options: Any) -> Benchmark:
    """A benchmark by its name: a module of this folder (`tabletop`), `package.module:Name` of a
    class or a function of one's own, or `gym:ENV_ID`. `options`: fields of it, where they are not
    to be its own.

    Raises ValueError that says what was not found, or what there is. Errors of a module that is
    found are its own.
    """
    if name.startswith("gym:"):
        from armlet.benchmarks.gymnasium import Gymnasium

        made: object = Gymnasium(name.removeprefix("gym:"), **options)
    elif ":" in name:
        made = _outside(name)(**options)
    else:
        made = _inside(name)(**options)
    if not isinstance(made, Benchmark):
        raise ValueError(
            f"benchmark {name!r} is a {type(made).__name__}, expected one that derives from "
            "armlet.benchmarks.Benchmark, or a function that returns one"
        )
    return made


def available() -> list[str]:
    """The names of the benchmarks in this folder."""
    return sorted(
        module.name
        for module in pkgutil.iter_modules(__path__)
        if module.name not in ("gymnasium", "motions", "rendering", "visual")
    )


def _inside(name: str) -> Any:
    """The class of this folder whose `name` it is."""
    if name not in available():
        raise ValueError(
            f"there is no benchmark {name!r}; there are {', '.join(available())}, a class of your "
            "own as package.module:Name, and a Gymnasium environment as gym:ENV_ID"
        )
    module = importlib.import_module(f"armlet.benchmarks.{name}")
    for value in vars(module).values():
        if _is_benchmark(value) and value.name == name:
            return value
    raise ValueError(f"armlet.benchmarks.{name} has no Benchmark whose `name` is {name!r}")


def _outside(name: str) -> Any:
    """What `package.module:Name` names."""
    place, _, attribute = name.partition(":")
    module = outside.module(place, whose=f"benchmark {name!r}")
    found = getattr(module, attribute, None)
    if not callable(found):
        there = [each for each, value in vars(module).items() if _is_benchmark(value)]
        raise ValueError(
            f"benchmark {name!r}: {place} has no {attribute!r} that can be called; its benchmarks "
            f"are {', '.join(sorted(there)) or 'none'}"
        )
    return found


def _is_benchmark(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Benchmark) and value is not Benchmark


def benchmark_robot(benchmark: Benchmark) -> RobotSpec:
    """The robot of a benchmark: what a policy that acts in it must agree with
    (`robot.agree.agree`)."""
    seen = ObservationSpec.of(benchmark.camera_sizes, state_names=benchmark.state_names)
    return RobotSpec(benchmark.action_spec, seen)


def native_robot(benchmark: Benchmark | None, robot_type: str) -> RobotSpec | None:
    """The benchmark's robot, for a data set that says by its `robot_type` that it is of this
    benchmark; None for any other."""
    if benchmark is None or robot_type != benchmark.name:
        return None
    return benchmark_robot(benchmark)
