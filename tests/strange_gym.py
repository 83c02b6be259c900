"""Gymnasium environments for the tests: a cart that is pushed to a mark, in several dresses. The
package registers them when it is imported, as packages of environments do."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Cart(gymnasium.Env):
    """A place in −1…1, moved by at most a tenth a step; done at the mark. `dress` says in which
    form it tells what it sees; `falls`: over the left end it falls, and the episode ends so."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012

    def __init__(
        self, render_mode: str | None = None, dress: str = "keys", falls: bool = False
    ) -> None:
        self.render_mode, self.dress, self.falls = render_mode, dress, falls
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float64)
        number = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        picture = spaces.Box(0, 255, (20, 30, 3), np.uint8)
        self.observation_space: spaces.Space = {
            "keys": spaces.Dict(
                {
                    "pixels": spaces.Dict({"top": picture}),
                    "agent": number,
                    "speed": spaces.Box(-1, 1, (), np.float32),
                    "button": spaces.Discrete(2),
                }
            ),
            "numbers": number,
            "first": spaces.Dict({"eye": spaces.Box(0, 255, (3, 20, 30), np.uint8)}),
        }[dress]

    def picture(self) -> np.ndarray:
        image = np.zeros((20, 30, 3), np.uint8)
        image[:, int((self.at + 1) / 2 * 29)] = (255, 128, 0)
        image[:, int((self.mark + 1) / 2 * 29)] = (0, 0, 255)
        return image

    def seen(self) -> Any:
        numbers = np.array([self.at, self.mark])
        if self.dress == "numbers":
            return numbers
        if self.dress == "first":
            return {"eye": self.picture().transpose(2, 0, 1)}
        speed = np.float32(self.speed)
        return {
            "pixels": {"top": self.picture()},
            "agent": numbers,
            "speed": speed,
            "button": 0,
        }

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.at, self.speed = 0.0, 0.0
        self.mark = float(self.np_random.uniform(-0.9, 0.9))
        self.ended = False
        return self.seen(), {"instruction": "push the cart to the mark"}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        assert not self.ended, "stepped after its end"
        self.speed = 0.1 * float(action[0])
        self.at += self.speed
        reached = abs(self.at - self.mark) < 0.06
        fallen = self.falls and self.at < -0.5
        self.ended = reached or fallen
        return self.seen(), float(reached), self.ended, False, {"is_success": reached}

    def render(self) -> np.ndarray:
        return self.picture()


ID = "strange/Cart-v0"
if ID not in gymnasium.registry:
    gymnasium.register(ID, entry_point=Cart, max_episode_steps=25)
    gymnasium.register("strange/Endless-v0", entry_point=Cart)
