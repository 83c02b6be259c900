"""Wrong gripper labels: as many as asked, the same wherever a step is met, and nothing else
touched."""

import numpy as np
import pytest
import torch

from armlet.data.noise import flip_grippers


def chunks(episodes: int, steps: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    keys = torch.cartesian_prod(torch.arange(episodes), torch.arange(steps))
    return torch.rand(len(keys), length, 4) + 0.5, keys


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 1.0])
def test_the_share_asked_for_is_flipped_and_nothing_else_changes(share: float) -> None:
    actions, keys = chunks(300, 20, 1)
    flipped = flip_grippers(actions, keys, 3, share)
    assert torch.equal(flipped[..., :3], actions[..., :3])
    assert torch.equal(flipped[..., 3].abs(), actions[..., 3].abs())
    wrong = (flipped[:, 0, 3] < 0).float().view(300, 20)
    assert float(wrong.mean()) == pytest.approx(
        share, abs=4 * np.sqrt(share * (1 - share) / wrong.numel())
    )
    # neither along an episode nor between episodes does one say anything of the next
    centred = wrong - share
    for product in (centred[:, 1:] * centred[:, :-1], centred[1:] * centred[:-1]):
        assert float(product.mean()) == pytest.approx(
            0, abs=4 * share * (1 - share) / np.sqrt(wrong.numel()) + 1e-12
        )


def test_a_step_is_as_wrong_in_every_chunk_that_holds_it() -> None:
    actions, keys = chunks(50, 20, 6)
    wrong = (flip_grippers(actions, keys, 3, 0.3)[..., 3] < 0).view(50, 20, 6)
    for later in range(1, 6):
        assert torch.equal(wrong[:, later:, 0], wrong[:, :-later, later])
    some = torch.randperm(len(keys))[:64]  # and in whatever batch
    again = flip_grippers(actions[some], keys[some], 3, 0.3)[..., 3] < 0
    assert torch.equal(again, wrong.flatten(0, 1)[some])


def test_a_gripper_that_opens_at_one_and_closes_at_zero_is_told_the_other() -> None:
    actions, keys = chunks(20, 10, 2)
    actions[..., 3] = (actions[..., 3] > 1).float()
    assert torch.equal(
        flip_grippers(actions, keys, 3, 1.0, middle=0.5)[..., 3], 1 - actions[..., 3]
    )
