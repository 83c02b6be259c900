"""Any benchmark through Gymnasium's own checker."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from armlet.benchmarks.tabletop import Tabletop
from armlet.gym import Environment


def test_gymnasium_accepts_it() -> None:
    check_env(Environment(Tabletop(scene_pixels=64, wrist_pixels=64)), skip_render_check=True)


def test_an_episode_ends_in_success_or_truncation() -> None:
    environment = Environment(Tabletop(step_limit=30))
    observation, info = environment.reset(seed=4, options={"task": "touch"})
    assert info["task"] == "touch" and environment.observation_space.contains(observation)
    for _ in range(30):
        observation, reward, terminated, _truncated, info = environment.step(
            environment._world.expert_action()
        )
        if terminated:
            break
    assert terminated and reward == 1 and info["success"]
    environment.reset(seed=5)
    ends = [environment.step(np.zeros(4, np.float32))[2:4] for _ in range(30)]
    assert ends[-1] == (False, True) and not any(any(end) for end in ends[:-1])
    assert environment.render().shape == (224, 224, 3)
    with pytest.raises(ValueError, match="no task 'dance'"):
        environment.reset(options={"task": "dance"})
