"""Armlet's worlds as environments of LeRobot: `lerobot-eval --env.type=armlet`.

Episode number i of an evaluation that begins with `--seed=S` is that of `armlet evaluate` with
`--evaluation.seed S`, the same task and seed, where `--env.first_seed=S` too (`rollout.loop.plan`).
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig

from armlet.benchmarks import Benchmark, Task, World, find
from armlet.deploy.lerobot import PICTURES, STATE

ID = "lerobot_policy_armlet/World-v0"


@EnvConfig.register_subclass("armlet")
@dataclass
class ArmletEnv(EnvConfig):
    """`benchmark`: as `armlet` names one (tabletop, `package.module:Name`), `options` its fields;
    `split` of its tasks; `task`: one of them by name (None: all in turn); `first_seed`: the seed at
    which the first task's turn is."""

    task: str | None = None
    fps: int = 0
    benchmark: str = "tabletop"
    options: dict[str, Any] = field(default_factory=dict)
    split: str = "seen"
    first_seed: int = 0

    def __post_init__(self) -> None:
        world = find(self.benchmark, **self.options)
        self.fps = self.fps or round(world.action_spec.control_hz)
        state = PolicyFeature(FeatureType.STATE, (len(world.state_names),))
        self.features = {"agent_pos": state}
        self.features_map = {"agent_pos": STATE}
        for camera, (height, width) in world.camera_sizes.items():
            self.features[f"pixels/{camera}"] = PolicyFeature(
                FeatureType.VISUAL, (height, width, 3)
            )
            self.features_map[f"pixels/{camera}"] = f"{PICTURES}{camera}"
        self.features["action"] = PolicyFeature(FeatureType.ACTION, (world.action_spec.dims,))
        self.features_map["action"] = "action"

    @property
    def package_name(self) -> str:
        return __name__

    @property
    def gym_id(self) -> str:
        return ID

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {
            "benchmark": self.benchmark,
            "options": dict(self.options),
            "split": self.split,
            "first_seed": self.first_seed,
            "task": self.task,
        }

    def create_envs(
        self, n_envs: int, use_async_envs: bool = False
    ) -> dict[str, dict[int, VectorEnv]]:
        """As 0.6 asks for them; 0.4 makes them by `gym_id` itself."""
        # Not by `gym_id`: another process, where an environment may run, has nothing registered.
        makers = [partial(WorldEnvironment, **self.gym_kwargs) for _ in range(n_envs)]
        mode = AutoresetMode.SAME_STEP
        made: VectorEnv
        if use_async_envs and n_envs > 1:
            made = AsyncVectorEnv(makers, autoreset_mode=mode, context="forkserver")
        else:
            made = SyncVectorEnv(makers, autoreset_mode=mode)
        return {self.type: {0: made}}


class WorldEnvironment(gymnasium.Env):
    """A benchmark's worlds in the shape that LeRobot reads: `pixels` by camera, `agent_pos`."""

    # gymnasium declares no ClassVar.
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}  # type: ignore[misc]
    render_mode = "rgb_array"

    def __init__(
        self,
        *,
        benchmark: str,
        options: dict[str, Any],
        split: str,
        first_seed: int,
        task: str | None,
        render_size: int = 224,
        **others: Any,
    ) -> None:
        self.benchmark: Benchmark = find(benchmark, **options)
        self.tasks = self.benchmark.tasks(split)
        if task is not None:
            self.tasks = tuple(each for each in self.tasks if each.name == task)
            if not self.tasks:
                names = ", ".join(each.name for each in self.benchmark.tasks(split))
                raise ValueError(f"--env.task={task}: there are {names}")
        self.first_seed = first_seed
        self.render_size = render_size
        self.task_description = ""
        self.task = ""
        self._max_episode_steps = self.benchmark.max_steps
        self._world: World | None = None
        self._steps = 0
        spec = self.benchmark.action_spec
        self.action_space = spaces.Box(
            np.array(spec.low, np.float32), np.array(spec.high, np.float32)
        )
        pixels = {}
        for name, size in self.benchmark.camera_sizes.items():
            pixels[name] = spaces.Box(0, 255, (*size, 3), np.uint8)  # size: height, width
        dims = len(self.benchmark.state_names)
        state = spaces.Box(-np.inf, np.inf, (dims,), np.float32)
        self.observation_space = spaces.Dict({"pixels": spaces.Dict(pixels), "agent_pos": state})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        number = int(self.np_random.integers(2**31)) if seed is None else seed
        task: Task = self.tasks[(number - self.first_seed) % len(self.tasks)]
        self.close()
        self._world = self.benchmark.make(task, number)
        self._steps = 0
        self.task = task.name
        self.task_description = self._world.instruction
        return self._seen(), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        assert self._world is not None, "reset comes before step"
        success = bool(self._world.step(action))
        self._steps += 1
        ended = self._world.over or self._steps >= self.benchmark.max_steps
        told = {"is_success": success}
        return self._seen(), float(success), success, not success and ended, told

    def render(self) -> np.ndarray:
        assert self._world is not None, "reset comes before render"
        return self._world.render(self.render_size)

    def close(self) -> None:
        if self._world is not None:
            self._world.close()
            self._world = None

    def _seen(self) -> dict[str, Any]:
        assert self._world is not None
        seen = self._world.observe()
        return {"pixels": dict(seen.images), "agent_pos": seen.state}


if ID not in gymnasium.registry:
    # No wrappers: LeRobot asks the environment itself for its task and its longest episode.
    gymnasium.register(
        ID, entry_point=WorldEnvironment, order_enforce=False, disable_env_checker=True
    )
