"""Meta-World (Yu et al. 2019; version 3.1.1) with its own scripted experts: a Sawyer arm and fifty
tasks.

Needs `pip install -e '.[metaworld]'`; importing this file does not. What is ours: the words
(`language`), the cheap pictures (`visual`), and a blue ball where the goal of a task is a mere
point in space; what a task asks for is otherwise to be seen, and the state a policy gets says
nothing of objects or goals. Everything random comes from (task, seed): positions are drawn from
Meta-World's own ranges, not from its fifty fixed goals per task.

Native control is 80 Hz, each command moving the hand's target by up to 1 cm. Here a command is
carried out `action_repeat` times, and the robot acts and is recorded at 80 / `action_repeat` Hz.
"""

import importlib.metadata
import pickle
import warnings
import weakref
import zlib
from dataclasses import dataclass
from typing import Any, ClassVar

import mujoco
import numpy as np

from armlet.benchmarks import Benchmark, Task, World, require_packages
from armlet.benchmarks.metaworld.language import WORDINGS, say
from armlet.benchmarks.rendering import Camera, make_camera, resolve_renderer
from armlet.benchmarks.visual import Marker, VisualCopy
from armlet.robot.observation import Observation
from armlet.robot.spec import ActionSpec

NATIVE_HZ = 80.0  # frame_skip 5 × 2.5 ms
NATIVE_STEP = 0.01  # metres that a command of 1.0 moves the hand's target
NATIVE_LIMIT = 500  # commands, after which Meta-World refuses to go on
PACKAGES = ("metaworld", "packaging", "fast-simplification")
GOAL = "goal"
BLUE_BALL = Marker(rgba=(0.05, 0.15, 1.0, 1.0), radius=0.03)
# Meta-World's own benchmarks (Yu et al. 2019): ten tasks to be taught together, and the five that
# nobody is taught where forty-five are.
MT10 = (
    "reach-v3", "push-v3", "pick-place-v3", "door-open-v3", "drawer-open-v3", "drawer-close-v3",
    "button-press-topdown-v3", "peg-insert-side-v3", "window-open-v3", "window-close-v3",
)  # fmt: skip
HELD_OUT = ("bin-picking-v3", "box-close-v3", "hand-insert-v3", "door-lock-v3", "door-unlock-v3")
# Tasks whose goal is a mere point in space, which Meta-World shows as a site only.
BARE_GOALS = frozenset(
    f"{name}-v3"
    for name in (
        "coffee-pull", "hand-insert", "pick-out-of-hole", "pick-place", "pick-place-wall", "plate-slide-back",
        "plate-slide-back-side", "push", "push-back", "push-wall", "reach", "reach-wall", "shelf-place", "stick-pull",
        "stick-push",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Metaworld(Benchmark):
    """`task_names` out of Meta-World's fifty. `renderer` `ray` (anywhere), `egl`, or `auto`.
    `scene_view` and `wrist_view` are Meta-World's names of cameras; the first is turned upright and
    narrowed to `scene_fov` degrees. `action_repeat` native commands a step; `step_limit` steps an
    episode, at most 500 native commands."""

    name: ClassVar[str] = "metaworld"
    splits: ClassVar[tuple[str, ...]] = ("seen", "unseen_wordings", "unseen_tasks")
    task_names: tuple[str, ...] = ("reach-v3", "drawer-open-v3", "button-press-topdown-v3")
    """Out of Meta-World's fifty."""
    scene_pixels: int = 72
    """Pixels a side of the camera that sees the scene."""
    wrist_pixels: int = 48
    """The same of the one on the hand."""
    renderer: str = "ray"
    """ray (anywhere), egl, or auto."""
    scene_view: str = "corner4"
    """Meta-World's name of the first camera, which is turned upright."""
    wrist_view: str = "gripperPOV"
    """Meta-World's name of the second."""
    scene_fov: float = 48.0
    """Degrees to which the first is narrowed."""
    action_repeat: int = 4
    """Native commands a step."""
    step_limit: int = 80
    """Steps after which an episode has failed; at most 500 native commands."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.task_names if name not in WORDINGS]
        if unknown:
            raise ValueError(f"Meta-World has no task {unknown}; it has {', '.join(WORDINGS)}")
        if self.action_repeat < 1 or self.step_limit * self.action_repeat > NATIVE_LIMIT:
            raise ValueError(
                f"step_limit × action_repeat must be 1 to {NATIVE_LIMIT}, Meta-World's longest "
                f"episode; found {self.step_limit} × {self.action_repeat}"
            )

    @property
    def action_spec(self) -> ActionSpec:
        return ActionSpec(
            names=("dx", "dy", "dz", "gripper"),
            mode="delta",
            rotation="none",
            low=(-1.0,) * 4,
            high=(1.0,) * 4,
            grippers=(3,),
            gripper_open=-1.0,
            gripper_closed=1.0,
            control_hz=NATIVE_HZ / self.action_repeat,
            translation_scale=NATIVE_STEP * self.action_repeat,
        )

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("x", "y", "z", "gap")

    @property
    def cameras(self) -> dict[str, int]:
        return {"scene": self.scene_pixels, "wrist": self.wrist_pixels}

    @property
    def views(self) -> dict[str, str]:
        """Our name of a camera → Meta-World's."""
        return {"scene": self.scene_view, "wrist": self.wrist_view}

    @property
    def max_steps(self) -> int:
        return self.step_limit

    def tasks(self, split: str = "seen") -> tuple[Task, ...]:
        self.check_split(split)
        names = self.task_names
        if split == "unseen_tasks":  # none is left of them where all are taught
            names = tuple(name for name in HELD_OUT if name not in self.task_names)
        # Families by the first word, which is what is done: button, door, drawer, reach …
        return tuple(Task(name, name.split("-")[0], split) for name in names)

    def make(self, task: Task, seed: int) -> "MetaworldWorld":
        return MetaworldWorld(self, task, seed)

    def fingerprint(self) -> dict[str, Any]:
        require_extra()
        return {
            "benchmark": self.name,
            "renderer": resolve_renderer(self.renderer),
            "mujoco": mujoco.__version__,
            # The experts and the meshes; `packaging` only tells versions apart.
            "metaworld": importlib.metadata.version("metaworld"),
            "fast-simplification": importlib.metadata.version("fast-simplification"),
            "cameras": self.cameras,
            "views": self.views,
            "scene_fov": self.scene_fov,
            "action_repeat": self.action_repeat,
            "step_limit": self.step_limit,
        }


def require_extra() -> None:
    """Raises ModuleNotFoundError where the extra is not installed."""
    require_packages("metaworld", PACKAGES)


class MetaworldWorld(World):
    """One episode. Success is Meta-World's own, at any native command of the episode."""

    def __init__(self, benchmark: Metaworld, task: Task, seed: int) -> None:
        # crc32, as Python's own hash of a text differs from process to process. The scene does not
        # depend on the split, the words do.
        keys = [seed, zlib.crc32(task.name.encode())]
        unseen = task.split == "unseen_wordings"
        self.instruction = say(
            task.name,
            np.random.default_rng([*keys, benchmark.splits.index(task.split)]),
            unseen=unseen,
        )
        self._sizes = benchmark.cameras
        self._repeat = benchmark.action_repeat
        stage = _borrow(benchmark, task.name)
        self._stage: _Stage | None = stage
        # Also when a world is forgotten without being closed; not at exit, when it is of no use.
        self._give_back = weakref.finalize(self, _FREE[benchmark, task.name].append, stage)
        self._give_back.atexit = False
        self._seen = stage.reset(int(np.random.default_rng(keys).integers(2**62)))
        self._previous = np.zeros(4, np.float32)
        self._succeeded = False

    @property
    def stage(self) -> "_Stage":
        """What this world runs on, until it is closed and another world runs on it."""
        if self._stage is None:
            raise RuntimeError("this world is closed; make another")
        return self._stage

    def observe(self) -> Observation:
        images = {name: self.stage.picture(name, size) for name, size in self._sizes.items()}
        return Observation(
            images, self._seen[:4].astype(np.float32), self.instruction, self._previous.copy()
        )

    def render(self, size: int) -> np.ndarray:
        return self.stage.picture("scene", size)

    def step(self, action: np.ndarray) -> bool:
        action = np.asarray(action, np.float32)
        if action.shape != (4,) or not np.isfinite(action).all():
            raise ValueError(f"metaworld takes a finite action of shape (4,), found {action}")
        self._previous = np.clip(action, -1, 1)
        # All of them, also after success: an episode's length does not hang on when it is noticed.
        for _ in range(self._repeat):
            self._seen, _, _, _, info = self.stage.env.step(self._previous)
            self._succeeded |= bool(info["success"])
        return self._succeeded

    def expert_action(self) -> np.ndarray:
        """Meta-World's scripted policy, a function of the present state, within the range of an
        action."""
        with warnings.catch_warnings():
            # It asks for more than the range, to be clipped.
            warnings.filterwarnings("ignore", message="Constant")
            action = self.stage.expert.get_action(self._seen)
        # As Meta-World itself would clip it: what is recorded is what is done.
        return np.clip(action, -1, 1).astype(np.float32)

    def privileged(self) -> dict[str, np.ndarray]:
        """`subject` and `target`: where the (first) object is and where the goal is now (3,)
        metres."""
        return {
            "subject": self._seen[4:7].astype(np.float32),
            "target": self._seen[36:39].astype(np.float32),
        }

    def close(self) -> None:
        self._stage = None
        self._give_back()


class _Stage:
    """A Meta-World environment, its expert and its cameras: slow to build, so kept and reset for
    every episode."""

    def __init__(self, benchmark: Metaworld, task_name: str) -> None:
        require_extra()
        import metaworld
        from metaworld.policies import ENV_POLICY_MAP

        self._benchmark = benchmark
        self._task_name = task_name
        self.env = metaworld.ALL_V3_ENVIRONMENTS[task_name]()
        self.expert: Any = ENV_POLICY_MAP[task_name]()  # type: ignore[abstract]
        self._visual: VisualCopy | None = None
        self._cameras: dict[tuple[str, int], Camera] = {}

    def reset(self, seed: int) -> np.ndarray:
        """Draw the positions of a seed, then start an episode with them: Meta-World's own order
        (`_make_tasks`).

        Two resets, because places that follow from the drawn ones are right only at the second.
        Returns the 39 numbers the expert reads.
        """
        import metaworld

        # Private names, as its own benchmark classes use them: there is no public way to draw the
        # positions of one seed.
        env = self.env
        env._set_task_called = True
        env._freeze_rand_vec = False
        env.seeded_rand_vec = True
        env.seed(seed)
        env.reset()
        data = {"env_cls": type(env), "rand_vec": env._last_rand_vec, "partially_observable": False}
        env.set_task(metaworld.Task(env_name=self._task_name, data=pickle.dumps(data)))
        env.reset()
        # The task window-close moves its window last, and answers as if it had not.
        mujoco.mj_forward(env.model, env.data)
        env._prev_obs = env._get_curr_obs_combined_no_goal()
        return env._get_obs()

    def picture(self, camera: str, size: int) -> np.ndarray:
        """(size, size, 3) uint8 of the present state."""
        places = {GOAL: np.asarray(self.env._target_pos)} if self._task_name in BARE_GOALS else {}
        visual = self._copy()
        data = visual.follow(self.env.model, self.env.data, places)
        if (camera, size) not in self._cameras:
            view = self._benchmark.views[camera]
            self._cameras[camera, size] = make_camera(
                visual.model, view, size, resolve_renderer(self._benchmark.renderer)
            )
        return self._cameras[camera, size].render(data)

    def _copy(self) -> VisualCopy:
        if self._visual is None:
            self._visual = VisualCopy(
                mujoco.MjSpec.from_file(self.env.model_name),
                self.env.model,
                markers={GOAL: BLUE_BALL} if self._task_name in BARE_GOALS else {},
                fov={self._benchmark.scene_view: self._benchmark.scene_fov},
                flat=resolve_renderer(self._benchmark.renderer) == "ray",
            )
        return self._visual


# A process's own stages that no world uses at the moment.
_FREE: dict[tuple[Metaworld, str], list[_Stage]] = {}


def _borrow(benchmark: Metaworld, task_name: str) -> _Stage:
    """A stage of this process that is free, or a new one. Worlds give theirs back when closed or
    forgotten."""
    free = _FREE.setdefault((benchmark, task_name), [])
    return free.pop() if free else _Stage(benchmark, task_name)
