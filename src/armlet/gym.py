"""Any benchmark as a Gymnasium environment. Knows the benchmark contract; knows no benchmark.

Each `step` renders, which worlds themselves do only when looked at: for loops that carry out chunks
of actions use `Benchmark.make`, as `armlet.rollout.loop` does.
"""

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

from armlet.benchmarks import Benchmark, Task, World
from armlet.robot.observation import Observation


class Environment(gymnasium.Env):
    """One task of a benchmark, or (by default) all of a split in turn by the seed.

    Observations are dicts: one (h, w, 3) uint8 entry per camera, `state`, `previous_action` and the
    `instruction`. The reward is 1 on success, which ends the episode; `max_steps` truncates it.
    `reset(options={"task": name})` chooses a task.
    """

    # gymnasium declares no ClassVar.
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}  # type: ignore[misc]

    def __init__(
        self, benchmark: Benchmark, *, split: str = "seen", render_size: int = 224
    ) -> None:
        self.benchmark = benchmark
        self.render_mode = "rgb_array"
        self._render_size = render_size
        self._tasks = benchmark.tasks(split)
        self._world: World | None = None
        self._steps = 0
        spec = benchmark.action_spec
        self.action_space = spaces.Box(
            np.array(spec.low, np.float32), np.array(spec.high, np.float32)
        )
        cameras = {}
        for name, size in benchmark.camera_sizes.items():
            cameras[name] = spaces.Box(0, 255, (*size, 3), np.uint8)  # size: height, width
        self.observation_space = spaces.Dict(
            {
                **cameras,
                "state": spaces.Box(-np.inf, np.inf, (len(benchmark.state_names),), np.float32),
                "previous_action": spaces.Box(-np.inf, np.inf, (spec.dims,), np.float32),
                # Text is letters and digits alone by default; these are all that ASCII prints.
                "instruction": spaces.Text(512, charset=frozenset(map(chr, range(32, 127)))),
            }
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        # Without a seed worlds follow from the last one given, as Gymnasium asks for.
        number = int(self.np_random.integers(2**31)) if seed is None else seed
        task = self._task(number, (options or {}).get("task"))
        if self._world is not None:
            self._world.close()
        self._world = self.benchmark.make(task, number)
        self._steps = 0
        return self._observation(), {"task": task.name, "seed": number}

    def _task(self, number: int, name: str | None) -> Task:
        if name is None:
            return self._tasks[number % len(self._tasks)]
        for task in self._tasks:
            if task.name == name:
                return task
        names = ", ".join(task.name for task in self._tasks)
        raise ValueError(f"no task {name!r}; there are {names}")

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        if self._world is None:
            raise RuntimeError("call reset before step")
        success = bool(self._world.step(action))
        self._steps += 1
        ended = self._world.over or self._steps >= self.benchmark.max_steps
        # Gymnasium's two ends: success is a state of the task, running out of steps is none.
        truncated = not success and ended
        return self._observation(), float(success), success, truncated, {"success": success}

    def _observation(self) -> dict[str, Any]:
        assert self._world is not None
        seen: Observation = self._world.observe()
        return {
            **seen.images,
            "state": seen.state,
            "previous_action": seen.previous_action,
            "instruction": seen.instruction,
        }

    def render(self) -> np.ndarray:
        if self._world is None:
            raise RuntimeError("call reset before render")
        return self._world.render(self._render_size)

    def close(self) -> None:
        if self._world is not None:
            self._world.close()
