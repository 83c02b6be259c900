"""What a robot says of itself is checked before a policy acts on it: number, kind, shape,
finiteness."""

import dataclasses
import json

import pytest
import torch
from tiny import make_policy

from armlet.robot.observation import Observation
from armlet.robot.spec import CameraSpec, RobotSpec


def observe() -> Observation:
    generator = torch.Generator().manual_seed(0)
    images = {
        name: torch.randint(0, 256, (size, size, 3), dtype=torch.uint8, generator=generator).numpy()
        for name, size in (("scene", 24), ("wrist", 16))
    }
    return Observation(images, torch.zeros(4).numpy(), "touch the red cube", torch.zeros(4).numpy())


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ([0.7], r"state: found shape \(1,\), expected \(4,\)"),
        ([[0.7] * 4], r"state: found shape \(1, 4\)"),
        ([0, 0, float("nan"), 0], r"state: NaN or infinite at \[2\]"),
        (None, "state: found object"),
        ([True] * 4, "state: found bool"),
        (["0"] * 4, "state: found <U1"),
    ],
)
def test_a_state_that_is_no_state_is_refused_by_name(state, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_policy().infer(dataclasses.replace(observe(), state=state))


def test_numbers_of_any_kind_are_taken() -> None:
    policy, seen = make_policy(), observe()
    wanted = policy.infer(seen)
    for state in ([0, 0, 0, 0], (0.0,) * 4, seen.state.astype("float64"), torch.zeros(4)):
        assert (
            policy.infer(dataclasses.replace(seen, state=state, previous_action=state)) == wanted
        ).all()


def test_a_policy_says_what_robot_it_acts_for() -> None:
    policy = make_policy()
    policy.body = dataclasses.replace(policy.body, state_names=("a", "b", "c", "d"), fit="crop")
    robot = policy.robot
    assert robot.action == policy.body.action_spec
    assert robot.observation.cameras == {"scene": CameraSpec(24, 24), "wrist": CameraSpec(16, 16)}
    assert robot.observation.state_names == ("a", "b", "c", "d")
    assert (robot.observation.state_dims, robot.observation.fit) == (4, "crop")
    assert RobotSpec.from_json(json.loads(json.dumps(robot.to_json()))) == robot
