"""Labels that are wrong on purpose, to see what a student makes of a teacher whose gripper cannot
be trusted (VLA-AD's study, arXiv 2605.16241). Knows actions and where they stand; knows no
network."""

import numpy as np
import torch
from torch import Tensor


def flip_grippers(
    actions: Tensor, keys: Tensor, gripper: int, share: float, *, middle: float = 0.0
) -> Tensor:
    """Normalised chunks (b, k, a) beginning at `keys` (b, 2), episode and step → the same, in which
    that share of all gripper commands says the opposite, as far on the other side of `middle`,
    which is half way between open and closed.

    Which ones depends on episode and step alone: a step that is in several chunks, or drawn again
    an epoch later, is wrong each time. What is drawn anew each time would average out.
    """
    steps = keys[:, 1:].cpu().numpy() + np.arange(actions.shape[1])  # (b, k)
    wrong = _uniform(keys[:, :1].cpu().numpy(), steps) < share
    flipped = actions.clone()
    said = actions[..., gripper]
    opposite = 2 * middle - said
    flipped[..., gripper] = torch.where(torch.from_numpy(wrong).to(said.device), opposite, said)
    return flipped


def _uniform(episode: np.ndarray, step: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each episode and step (Steele et al. 2014, SplitMix64: the
    finaliser)."""
    with np.errstate(over="ignore"):  # it is arithmetic modulo 2⁶⁴
        # Two multipliers, so that episode and step count apart.
        z = episode.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = z + step.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) / 2**53  # the 53 bits that a float64 holds
