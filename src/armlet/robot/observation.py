"""What a robot knows at one moment, in numpy. Knows no world and no policy."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Observation:
    """What a robot knows at one moment, in numpy: what `Policy.infer` takes and `World.observe`
    gives.

    `images`: camera name -> (h, w, 3) uint8; `state` (s,) float32; `instruction` the words;
    `previous_action` (a,) float32, zeros at the start of an episode. `past`: earlier observations of
    the episode, oldest first, one a control step up to the one before this, for policies that look
    at more than the present (`Policy.history`); there are fewer, or none, at an episode's start.
    """

    images: dict[str, np.ndarray]
    state: np.ndarray
    instruction: str
    previous_action: np.ndarray
    past: tuple["Observation", ...] = ()


def history_of(actor: object) -> int:
    """How many observations a policy, or another actor, looks at, the present one among them. One
    that does not say `history` looks at the present alone."""
    return int(getattr(actor, "history", 1))


def recent(seen: Observation, history: int) -> tuple[Observation, ...]:
    """The last `history` observations, oldest first and `seen` last; where there are fewer, at an
    episode's start, the first is repeated."""
    known = (*seen.past, seen)[-history:]
    return (known[0],) * (history - len(known)) + known
