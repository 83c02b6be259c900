"""Tabletop as a benchmark of the stock vla-eval harness, which runs it by this module's name in an
environment of its own, without torch (`test_peers.py`, `bench/serving.py`)."""

from typing import Any

import numpy as np
from vla_eval.benchmarks.base import StepBenchmark, StepResult
from vla_eval.specs import IMAGE_RGB, LANGUAGE, RAW, DimSpec

from armlet.benchmarks.tabletop import Tabletop


class TabletopBenchmark(StepBenchmark):
    """`episodes` worlds of `split`, with seeds from `seed` on: those that `armlet.rollout.loop.plan`
    plans. Each is a task of its own, so that a report names every one."""

    render_backends = frozenset({"cpu", "gpu"})

    @classmethod
    def configure_render(cls, mode: str) -> dict[str, str]:
        return {}

    def __init__(self, episodes: int = 4, seed: int = 0, split: str = "seen") -> None:
        super().__init__()
        self.episodes = episodes
        self.seed = seed
        self.split = split
        self.tabletop = Tabletop()

    def get_tasks(self) -> list[dict[str, Any]]:
        tasks = self.tabletop.tasks(self.split)
        found = []
        for index in range(self.episodes):
            name = f"{index}"
            found.append({"name": name, "index": index % len(tasks), "seed": self.seed + index})
        return found

    def reset(self, task: dict[str, Any]) -> Any:
        where = self.tabletop.tasks(self.split)[task["index"]]
        self.world = self.tabletop.make(where, task["seed"])
        return self.world.observe()

    def step(self, action: dict[str, Any]) -> StepResult:
        done = bool(self.world.step(np.asarray(action["actions"])))
        return StepResult(None, float(done), done, {"success": done})

    async def get_observation(self) -> dict[str, Any]:
        return self.make_obs(self.world.observe(), self._task)

    def make_obs(self, raw_obs: Any, task: dict[str, Any]) -> dict[str, Any]:
        return {
            "images": raw_obs.images,
            "states": raw_obs.state,
            "task_description": raw_obs.instruction,
        }

    def get_step_result(self, step_result: StepResult) -> dict[str, Any]:
        return {"success": step_result.done}

    def get_hold_action(self, last_action: dict[str, Any] | None) -> dict[str, Any]:
        held = np.zeros(4, np.float32)
        # No motion, and the gripper as it was.
        held[3] = -1.0 if last_action is None else last_action["actions"][3]
        return {"actions": held}

    def get_metadata(self) -> dict[str, Any]:
        return {"max_steps": self.tabletop.max_steps}

    def get_action_spec(self) -> dict[str, DimSpec]:
        return {
            "position": DimSpec("position", 3, "delta_xyz"),
            "gripper": DimSpec("gripper", 1, "binary_close_positive"),
        }

    def get_observation_spec(self) -> dict[str, DimSpec]:
        return {"image": IMAGE_RGB, "language": LANGUAGE, "state": RAW}
