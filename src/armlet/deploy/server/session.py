"""What is kept of one robot while it is served: the action before, the observations before, the
chunks that overlap, and what is left of a chunk that is handed out action by action.

A policy itself remembers nothing, so that one policy serves many robots. A session begins with a
connection, and begins again with every episode: `EPISODE_START` and `EPISODE_END` of vla-eval's
protocol, an observation with `reset` in openpi's, which has no word for it. Knows no socket and no
policy.
"""

from dataclasses import dataclass

import numpy as np

from armlet.deploy.server.observing import Told
from armlet.robot.ensemble import Ensemble
from armlet.robot.memory import Overlap, Past
from armlet.robot.observation import Observation
from armlet.robot.spec import ActionSpec


@dataclass(frozen=True)
class Course:
    """How a policy is carried out: `execute` actions of a chunk before it is asked again, `history`
    observations looked at, chunks joined as `ensemble` says, of actions of `spec`."""

    execute: int
    history: int
    ensemble: Ensemble | None
    spec: ActionSpec


class Session:
    """One episode of one robot. Not for two threads at once."""

    def __init__(self, course: Course) -> None:
        self.course = course
        self.reset()

    def reset(self) -> None:
        """An episode begins: nothing of the one before is remembered."""
        course = self.course
        self._past = Past(course.history)
        self._overlap = Overlap(course.ensemble, course.spec)
        self._previous = np.zeros(course.spec.dims, np.float32)
        self._left: list[np.ndarray] = []
        self._done = 0  # actions of this episode

    def see(self, told: Told) -> Observation:
        """What the policy is shown. Where a robot does not say which action it carried out last, it
        is taken to be the last that it was given."""
        previous = self._previous if told.previous_action is None else told.previous_action
        seen = Observation(told.images, told.state, told.instruction, previous)
        return self._past.see(seen)

    def whole(self, chunk: np.ndarray) -> np.ndarray:
        """A decided chunk (k, a) → what the robot is given of it at once, all of it. It is taken to
        carry out `execute` actions until it asks again."""
        joined = self._overlap.join(chunk, self._done)
        self._done += self.course.execute
        self._previous = joined[self.course.execute - 1]
        return joined

    def left(self) -> np.ndarray | None:
        """The next action (a,) of a chunk that was decided before; None where a new one is due."""
        return self._handed(self._left.pop(0)) if self._left else None

    def first(self, chunk: np.ndarray) -> np.ndarray:
        """A decided chunk (k, a) → its first action (a,); `left` gives the others, `execute` in
        all."""
        joined = self._overlap.join(chunk, self._done)
        self._left = list(joined[: self.course.execute])
        return self._handed(self._left.pop(0))

    def _handed(self, action: np.ndarray) -> np.ndarray:
        self._done += 1
        self._previous = action
        return action
