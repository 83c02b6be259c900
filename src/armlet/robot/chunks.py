"""What is carried out of a new chunk of actions, where the robot went on while it was decided.

    wait    it stood still meanwhile: the new chunk from its start
    run_on  it carried out what was left of the chunk before: of the new one it leaves out exactly
            as many actions as it carried out meanwhile, as these were meant for the same moments
    blend   the same, and as far as the old chunk reaches, what is carried out goes over from the
            old actions to the new ones: after real-time chunking (arXiv 2506.07339)
    guided  as run_on, of a chunk that was decided as one that goes on from the old: real-time
            chunking as published

Real-time chunking as published asks a flow policy for a chunk that goes on from the old one, by
guiding its denoising towards it (the paper's eq. 2; `layers/guidance.py`): the policy has to be told
what is under way (`Observation.underway`), and to be one that can (`Policy.why_unguided`). `blend` is
for any policy: it takes the chunk as it comes and mixes with the paper's soft mask (eq. 5). Where the
two chunks are of two ways around an obstacle, the mean of both is neither: that is what the guidance
is for, and no mixing can do it. Knows no policy and no clock.
"""

import math
from dataclasses import replace
from typing import Literal

import numpy as np

from armlet.robot.ensemble import Ensemble
from armlet.robot.observation import Observation, Underway
from armlet.robot.spec import ActionSpec

Late = Literal["wait", "run_on", "blend", "guided"]


def soft_mask(frozen: int, overlap: int, chunk: int) -> np.ndarray:
    """How much the old chunk counts at each of `chunk` actions of the new one, (k,) in 0 … 1: 1 of
    the first `frozen`, which are carried out before the new chunk is there; 0 from `overlap` on,
    where the old one ends; exponentially less between (eq. 5 of arXiv 2506.07339, its H − s being
    `overlap`)."""
    place = np.arange(chunk)
    # c of eq. 5: falls from just below 1 at the first that is not frozen to just above 0.
    left = (overlap - place) / (overlap - frozen + 1)
    weights = left * np.expm1(left) / (math.e - 1)
    weights[place < frozen] = 1.0
    weights[place >= overlap] = 0.0
    return weights


def check_blend(spec: ActionSpec) -> None:
    """Raises ValueError where two actions of a robot have no mean that is an action between."""
    if spec.mode == "absolute" and spec.rotation != "none":
        raise ValueError(
            f"blend mixes actions number by number, and between two rotations ({spec.rotation}) "
            "given as positions that is another rotation; use run_on"
        )


def check_guided(ensemble: Ensemble | None, why_not: str = "") -> None:
    """Raises ValueError where a policy says why it cannot be guided, or chunks that are guided would
    be joined a second time."""
    if why_not:
        raise ValueError(f"late = 'guided': {why_not}; take run_on or blend")
    if ensemble is not None:
        raise ValueError(
            "guided chunks go on from those before, and an ensemble would average them with those "
            "again; take one of the two"
        )


def told_of(observation: Observation, left: np.ndarray, late: int) -> Observation:
    """An observation for a policy that is guided by what is `left` (m, a) of the chunk before, of
    which `late` actions will be carried out meanwhile. As it is where nothing is: a policy that
    answers at once, or the first chunk."""
    late = min(late, len(left))
    return replace(observation, underway=Underway(left, late)) if late else observation


def follow(new: np.ndarray, old: np.ndarray, done: int, late: Late, spec: ActionSpec) -> np.ndarray:
    """What of a new chunk (k, a) is still to be carried out, (k', a). `old` (m, a): what was left
    of the chunk before when the new one was asked for, of which `done` have been carried out since.

    Raises ValueError where the robot's actions cannot be blended.
    """
    if late == "wait":
        return new
    done = min(done, len(old))  # standing still leaves nothing out: those moves have not been made
    if late in ("run_on", "guided"):
        return new[done:]
    check_blend(spec)
    overlap = min(len(old), len(new))
    weights = soft_mask(min(done, overlap), overlap, len(new))[:overlap, None]  # (m', 1)
    mixed = new.copy()
    mixed[:overlap] = weights * old[:overlap] + (1 - weights) * new[:overlap]
    # Between open and closed a gripper is half open: it does what the weightier of the two says.
    for index in spec.grippers:
        weightier = weights[:, 0] >= 0.5
        mixed[:overlap, index] = np.where(weightier, old[:overlap, index], new[:overlap, index])
    return mixed[done:]
