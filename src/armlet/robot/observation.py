"""What a robot knows at one moment, in numpy. Knows no world and no policy."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Underway:
    """What a robot carries out while a policy decides. `actions` (m, a), in the robot's own numbers:
    what is left of the chunk before, the first of them for now; `late`: how many of them will have
    been carried out when the new chunk is there, as far as anybody knows."""

    actions: np.ndarray
    late: int


@dataclass(frozen=True)
class Observation:
    """What a robot knows at one moment, in numpy: what `Policy.infer` takes and `World.observe`
    gives.

    `images`: camera name -> (h, w, 3) uint8; `state` (s,) float32; `instruction` the words;
    `previous_action` (a,) float32, zeros at the start of an episode. `past`: earlier observations of
    the episode, oldest first, one a control step up to the one before this, for policies that look
    at more than the present (`Policy.history`); there are fewer, or none, at an episode's start.
    `underway`: for policies that are guided by it (`Policy.why_unguided`); others refuse it. None: the
    chunk is to stand alone.
    """

    images: dict[str, np.ndarray]
    state: np.ndarray
    instruction: str
    previous_action: np.ndarray
    past: tuple["Observation", ...] = ()
    underway: Underway | None = None


def history_of(actor: object) -> int:
    """How many observations a policy, or another actor, looks at, the present one among them. One
    that does not say `history` looks at the present alone."""
    return int(getattr(actor, "history", 1))


def recent(seen: Observation, history: int) -> tuple[Observation, ...]:
    """The last `history` observations, oldest first and `seen` last; where there are fewer, at an
    episode's start, the first is repeated."""
    known = (*seen.past, seen)[-history:]
    return (known[0],) * (history - len(known)) + known
