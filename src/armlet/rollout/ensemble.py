"""Adaptive ensemble of action chunks, as CogACT evaluates (arXiv 2411.19650, §3.4): a policy is asked
at every step, and what is carried out is an average of what its last chunks say of this very step.

Of the chunk that was decided i steps ago, that is action i. Each is weighted by how much it is like
the newest, so that what was meant for another way of doing the task (a hand that would go left
around a thing, and now goes right) is not mixed in:

    w_i ∝ exp(α · cos(a_i, a_0)),  a_0 the newest,  cos of whole actions in the robot's own numbers

Knows policies by their contract, and no world.
"""

from collections import deque
from typing import Literal

import numpy as np

from armlet.policies.contract import Decision, Policy
from armlet.robot.observation import Observation
from armlet.robot.spec import RobotSpec

Gripper = Literal["decided", "averaged"]
ALPHA = 0.1  # CogACT's
SMALL = 1e-7  # beside two lengths, so that actions of zeros are like nothing, and not NaN


class AdaptiveEnsemble(Policy):
    """See the module's docstring. `window`: of how many decisions, this one among them (CogACT: 7
    for a Bridge robot at 5 Hz, 2 for Google's at 3 Hz), at most as many as a chunk has actions.
    `gripper`: with `decided` the average is brought to the nearer of a gripper's two ends, closed
    in the middle, as for a policy that knows only these; `averaged` leaves it.

    It remembers its decisions until `reset`, which the beginning of an episode calls.
    """

    execute = 1  # the next step is decided anew

    def __init__(
        self,
        policy: Policy,
        *,
        window: int,
        alpha: float = ALPHA,
        gripper: Gripper = "decided",
    ) -> None:
        if window < 1:
            raise ValueError(f"an ensemble of {window} decisions: expected 1 or more")
        self.policy = policy
        self.window = window
        self.alpha = alpha
        self.gripper = gripper
        self.chunks: deque[np.ndarray] = deque(maxlen=window)  # each (k, a), the newest last

    @property
    def robot(self) -> RobotSpec:
        return self.policy.robot

    @property
    def history(self) -> int:
        """Observations that the policy looks at, where it says so."""
        return int(getattr(self.policy, "history", 1))

    @property
    def kind(self) -> str:
        return f"an ensemble of {self.policy.kind}"

    def reset(self) -> None:
        self.chunks.clear()
        self.policy.reset()

    def infer(self, observation: Observation) -> np.ndarray:
        return self.decide(observation).actions

    def decide(self, observation: Observation) -> Decision:
        """A chunk of one action. Raises ValueError where chunks are shorter than the window."""
        decision = self.policy.decide(observation)
        chunk = np.asarray(decision.actions)
        if len(chunk) < self.window:
            raise ValueError(
                f"an ensemble of {self.window} decisions, and {self.policy.kind} decides "
                f"{len(chunk)} actions at a time, so the oldest says nothing of this step; take at "
                f"most {len(chunk)}"
            )
        self.chunks.append(chunk)
        # What each says of now: the newest its first action, the one before its second …
        said = np.stack([past[age] for age, past in enumerate(reversed(self.chunks))])  # (m, a)
        action = self._decided(weights(said, self.alpha) @ said)
        return Decision(action[None].astype(np.float32), decision.gates)

    def _decided(self, action: np.ndarray) -> np.ndarray:
        spec = self.robot.action
        if self.gripper == "averaged":
            return action
        for index in spec.grippers:
            to_open = abs(action[index] - spec.gripper_open)
            to_closed = abs(action[index] - spec.gripper_closed)
            action[index] = spec.gripper_open if to_open < to_closed else spec.gripper_closed
        return action


def weights(said: np.ndarray, alpha: float) -> np.ndarray:
    """How much each of m actions (m, a) counts, (m,) float64, 1 in all: by its likeness to the
    first, the newest."""
    said = said.astype(np.float64)
    lengths = np.linalg.norm(said, axis=1)
    likeness = said @ said[0] / (lengths * lengths[0] + SMALL)  # cosines (m,)
    found: np.ndarray = np.exp(alpha * likeness)
    return found / found.sum()
