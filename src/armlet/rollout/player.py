"""A policy that is asked for one action at a time, by loops that are not ours: LeRobot's among them.

What `loop.run` keeps for an episode is kept here: what is left of the chunk, the action before, the
observations and chunks before where the policy looks at several or joins them. One `Player` is one
robot's episode; several robots have one each. Knows no world.
"""

from collections import deque
from collections.abc import Mapping

import numpy as np

from armlet.policies.contract import Policy
from armlet.robot.memory import Overlap, Past
from armlet.robot.observation import Observation


class Player:
    """Plays a policy action by action, the same actions to the bit as `loop.run` without a lag.
    `execute`: actions of a chunk that are carried out before it looks again (None: the policy's own
    number)."""

    def __init__(self, policy: Policy, *, execute: int | None = None) -> None:
        self.policy = policy
        self.execute = policy.execute if execute is None else execute
        self.reset()

    def reset(self) -> None:
        """An episode begins."""
        spec = self.policy.robot.action
        self._commands: deque[np.ndarray] = deque()  # of (a,), what is left of the chunk
        self._previous = np.zeros(spec.dims, np.float32)
        self._past = Past(self.policy.history)
        self._overlap = Overlap(self.policy.ensemble, spec)
        self._done = 0

    def observation(
        self, images: Mapping[str, np.ndarray], state: np.ndarray, instruction: str
    ) -> Observation:
        """What the policy would be shown now, which changes nothing: see `Observation` for the
        shapes; the action before, and what was seen before, are this player's."""
        return self._past.peek(Observation(dict(images), state, instruction, self._previous))

    def act(
        self, images: Mapping[str, np.ndarray], state: np.ndarray, instruction: str
    ) -> np.ndarray:
        """The action (a,) of this control step. It has to be asked every step, with what is seen
        then. Raises ValueError where a chunk has fewer actions than should be carried out, and what
        the policy raises."""
        seen = self._past.see(Observation(dict(images), state, instruction, self._previous))
        if not self._commands:
            chunk = self._overlap.join(self.policy.decide(seen).actions, self._done)  # (k, a)
            if not 1 <= self.execute <= len(chunk):
                raise ValueError(
                    f"{self.execute} actions of each chunk should be carried out, and this "
                    f"policy's have {len(chunk)}"
                )
            self._commands += list(chunk[: self.execute])
        action = self._commands.popleft()
        self._previous = np.asarray(action, np.float32)
        self._done += 1
        return action
