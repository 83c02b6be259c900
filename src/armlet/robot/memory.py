"""What whoever drives a policy through an episode keeps for it: the observations before the present
one, and the chunks it decided before. A policy itself remembers nothing, so that it answers the same
observation the same way wherever it is asked.

    past = Past(policy.history)
    overlap = Overlap(policy.ensemble, policy.robot.action)
    chunk = overlap.join(policy.infer(past.see(observation)), done)

at every look, `done` actions of the episode carried out so far, with new ones of both when an
episode begins. The closed loop (`loop.run`) does so;
so must whoever drives a robot of their own, and with `history` 1 and no `ensemble` there is nothing
to keep.
"""

from collections import deque
from dataclasses import replace

import numpy as np

from armlet.robot.ensemble import Ensemble
from armlet.robot.observation import Observation
from armlet.robot.spec import ActionSpec


class Past:
    """The observations of an episode so far, as many as a policy of this `history` looks at. It has
    to be shown one every control step, also in steps in which nobody is asked: at least the last
    `history` before each decision."""

    def __init__(self, history: int) -> None:
        self.history = history
        self._seen: deque[Observation] = deque(maxlen=history - 1)

    def see(self, observation: Observation) -> Observation:
        """The present observation, with those before it as its `past`."""
        seen = self.peek(observation)
        if self.history > 1:
            self._seen.append(observation)
        return seen

    def peek(self, observation: Observation) -> Observation:
        """The same, and it is not remembered: for a question beside the episode."""
        if self.history == 1:
            return observation
        return replace(observation, past=tuple(self._seen))


class Overlap:
    """The chunks of an episode so far, of actions of `spec`, joined as `ensemble` says; None: each
    stands alone."""

    def __init__(self, ensemble: Ensemble | None, spec: ActionSpec) -> None:
        self.ensemble = ensemble
        self.spec = spec
        self._chunks: list[np.ndarray] = []  # of what is still to come, the oldest decision first
        self._done = 0

    def join(self, chunk: np.ndarray, done: int) -> np.ndarray:
        """A chunk (k, a) → the same moments' actions (k, a), each the weighted mean of what was
        decided for it so far. `done`: how many actions of the episode have been carried out. Raises
        ValueError where the oldest chunk that is kept would say nothing of this moment."""
        if self.ensemble is None:
            return chunk
        most = self.ensemble.chunks
        if most is not None and most > len(chunk):
            raise ValueError(
                f"an ensemble of {most} decisions, and the policy decides {len(chunk)} actions at a "
                f"time, so the oldest says nothing of this step; take at most {len(chunk)}"
            )
        moved = done - self._done
        self._done = done
        left = [each[moved:] for each in self._chunks]
        left = [each for each in left if len(each)]
        self._chunks = [*left, chunk][-most if most else 0 :]
        joined = np.empty_like(chunk)
        for step in range(len(chunk)):
            decided = np.stack([each[step] for each in self._chunks if step < len(each)])  # (m, a)
            weights = self.ensemble.weights(decided.astype(np.float64))  # (m,)
            joined[step] = self.ensemble.meant(weights @ decided / weights.sum(), self.spec)
        return joined
