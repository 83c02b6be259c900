"""The arm-and-gripper head against its closed form, and the ways in which it must respect a robot's
conventions."""

import dataclasses

import pytest
import torch
from torch import Tensor

from armlet.benchmarks.tabletop import Tabletop
from armlet.layers.heads import HEADS, ArmGripperHead, RegressionHead

WIDTH, CHUNK, DIMS = 8, 3, 4


def make(**options) -> ArmGripperHead:
    torch.manual_seed(0)
    return ArmGripperHead(WIDTH, CHUNK, DIMS, **options)


def by_hand(head: ArmGripperHead, vector: Tensor) -> tuple[Tensor, Tensor]:
    """One step (width,) → arm (a − 1,), probability of a closed gripper; layer by layer."""
    hidden = torch.relu(head.net[0].weight @ vector + head.net[0].bias)
    hidden = torch.relu(head.net[2].weight @ hidden + head.net[2].bias)
    return torch.tanh(head.arm.weight @ hidden + head.arm.bias), torch.sigmoid(
        head.gripper(hidden)
    )[0]


def test_it_has_the_layers_of_the_paper() -> None:
    head = make()
    shapes = [
        tuple(layer.weight.shape) for layer in (head.net[0], head.net[2], head.arm, head.gripper)
    ]
    assert shapes == [(4, 8), (4, 4), (3, 4), (1, 4)]


@pytest.mark.parametrize("index", [0, 2, 3, -1])
def test_each_step_is_decoded_by_the_same_network_from_its_own_vector(index: int) -> None:
    head, condition = (
        make(gripper=index, gripper_open=0.5, gripper_closed=-0.25),
        torch.randn(5, CHUNK * WIDTH),
    )
    actions = head(condition)
    assert actions.shape == (5, CHUNK, DIMS)
    for sample in range(5):
        for step in range(CHUNK):
            arm, closed = by_hand(head, condition[sample, step * WIDTH : (step + 1) * WIDTH])
            found = actions[sample, step]
            assert found[index] == (-0.25 if closed >= 0.5 else 0.5)
            torch.testing.assert_close(torch.cat([found[:index], found[index % DIMS + 1 :]]), arm)


@pytest.mark.parametrize(("opened", "closed"), [(-1.0, 1.0), (1.0, 0.0)])
def test_the_loss_is_mae_of_the_arm_and_a_hundredth_of_bce_of_the_gripper(
    opened: float, closed: float
) -> None:
    head, condition = (
        make(gripper=1, gripper_open=opened, gripper_closed=closed),
        torch.randn(6, CHUNK * WIDTH),
    )
    actions = torch.rand(6, CHUNK, DIMS) * 2 - 1
    actions[..., 1] = torch.where(torch.rand(6, CHUNK) < 0.5, opened, closed)
    valid = torch.arange(CHUNK) < torch.tensor([3, 2, 1, 3, 3, 0])[:, None]
    found = head.loss(condition, actions, valid.float())
    for sample in range(6):
        arms, grippers = [], []
        for step in range(int(valid[sample].sum())):
            arm, probability = by_hand(head, condition[sample, step * WIDTH : (step + 1) * WIDTH])
            target = actions[sample, step]
            arms.append((arm - target[[0, 2, 3]]).abs().mean())
            grippers.append(-torch.log(probability if target[1] == closed else 1 - probability))
        expected = (
            torch.stack(arms).mean() + 0.01 * torch.stack(grippers).mean()
            if arms
            else torch.tensor(0.0)
        )
        torch.testing.assert_close(found[sample], expected)


def test_the_gripper_learns_from_the_loss_and_ends_where_it_is_told() -> None:
    head = make(gripper=3, gripper_weight=1.0)
    condition = torch.randn(16, CHUNK * WIDTH)
    actions = torch.rand(16, CHUNK, DIMS) * 1.6 - 0.8
    actions[..., 3] = condition.unflatten(-1, (CHUNK, WIDTH))[..., 0].sign()
    optimiser = torch.optim.Adam(head.parameters(), lr=3e-2)
    for _ in range(300):
        optimiser.zero_grad()
        head.loss(condition, actions, torch.ones(16, CHUNK)).mean().backward()
        optimiser.step()
    assert (head(condition)[..., 3] == actions[..., 3]).float().mean() > 0.9


def test_a_robot_without_a_gripper_has_an_arm_only() -> None:
    head = make(gripper=None, gripper_open=0.0, gripper_closed=0.0)  # as a robot without one says
    assert head.arm.out_features == DIMS and head.gripper is None
    actions = head(torch.randn(2, CHUNK * WIDTH))
    condition = torch.randn(2, CHUNK * WIDTH)
    torch.testing.assert_close(
        head.loss(condition, actions, torch.ones(2, CHUNK)),
        (head(condition) - actions).abs().mean((1, 2)),
    )


def test_the_robot_says_which_number_is_its_gripper() -> None:
    spec = dataclasses.replace(
        Tabletop().action_spec, grippers=(1,), gripper_open=1.0, gripper_closed=0.0
    )
    head = HEADS["arm_gripper"](
        WIDTH, CHUNK, DIMS, **ArmGripperHead.fitted(spec, {"gripper_weight": 0.5})
    )
    assert head.options == {
        "gripper": [1],
        "gripper_open": 1.0,
        "gripper_closed": 0.0,
        "gripper_weight": 0.5,
    }
    assert ArmGripperHead(WIDTH, CHUNK, DIMS, **head.options).options == head.options
    assert RegressionHead.fitted(spec, {"hidden": 3}) == {"hidden": 3}


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="3 steps of 8 each, 24 in all"):
        make()(torch.randn(2, WIDTH))
    with pytest.raises(ValueError, match="gripper=4: there are 4 action dimensions"):
        make(gripper=4)
    with pytest.raises(ValueError, match="must differ"):
        make(gripper_open=1.0)


def test_two_grippers_stand_where_the_robot_has_them_and_learn_apart() -> None:
    head = make(gripper=(2, 0), gripper_open=0.0)
    condition = torch.randn(5, CHUNK * WIDTH)
    arm, logits = head._decode(condition)
    actions = head(condition)
    torch.testing.assert_close(actions[..., [1, 3]], arm)
    torch.testing.assert_close(actions[..., [0, 2]], (logits >= 0).float())
    wanted = torch.rand(5, CHUNK, DIMS)
    shut = wanted[..., [0, 2]]
    likely = torch.sigmoid(logits)
    entropy = -(shut * likely.log() + (1 - shut) * (1 - likely).log()).mean((1, 2))
    error = (arm - wanted[..., [1, 3]]).abs().mean((1, 2))
    loss = head.loss(condition, wanted, torch.ones(5, CHUNK))
    torch.testing.assert_close(loss, error + 0.01 * entropy)
