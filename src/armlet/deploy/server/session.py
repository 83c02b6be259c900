"""What is kept of one robot while it is served: the action before, the observations before, the
chunks that overlap, and what is left of a chunk that is handed out action by action.

A policy itself remembers nothing, so that one policy serves many robots. A session begins with a
connection, and begins again with every episode: `EPISODE_START` and `EPISODE_END` of vla-eval's
protocol, an observation with `reset` in openpi's, which has no word for it.

With a guard (robot/guard.py) every action is held within its limits before it leaves, as if each of
a chunk were sent a control period after the one before. Its watchdog is for who carries out: a robot
that hears nothing must know itself what to do. Knows no socket and no policy.
"""

from dataclasses import dataclass, replace

import numpy as np

from armlet.deploy.server.observing import Told
from armlet.robot.bounds import Bounds
from armlet.robot.ensemble import Ensemble
from armlet.robot.guard import ActionGuard
from armlet.robot.memory import Overlap, Past
from armlet.robot.observation import Observation
from armlet.robot.spec import ActionSpec

Decided = np.ndarray | str  # a chunk (k, a); or, for a guard, why there is none


class GuardError(Exception):
    """A guard lets nothing pass, and does not know how to hold the robot."""


@dataclass(frozen=True)
class Course:
    """How a policy is carried out: `execute` actions of a chunk before it is asked again, `history`
    observations looked at, chunks joined as `ensemble` says, of actions of `spec`, held within
    `bounds` (None: no guard); `state_names` say where an absolute robot stands."""

    execute: int
    history: int
    ensemble: Ensemble | None
    spec: ActionSpec
    bounds: Bounds | None = None
    state_names: tuple[str, ...] = ()


class Session:
    """One episode of one robot. Not for two threads at once."""

    def __init__(self, course: Course) -> None:
        self.course = course
        self._guard: ActionGuard | None = None
        if course.bounds is not None:
            self._guard = ActionGuard(course.spec, course.bounds, state_names=course.state_names)
        self.reset()

    @property
    def is_guarded(self) -> bool:
        return self._guard is not None

    def reset(self) -> None:
        """An episode begins: nothing of the one before is remembered."""
        course = self.course
        self._past = Past(course.history)
        self._overlap = Overlap(course.ensemble, course.spec)
        self._previous = np.zeros(course.spec.dims, np.float32)
        self._left: list[np.ndarray] = []
        self._done = 0  # actions of this episode
        self.interventions: tuple[str, ...] = ()
        """What the guard did to the chunk that was decided last."""
        if self._guard is not None:
            self._guard.reset()

    def see(self, told: Told) -> Observation:
        """What the policy is shown. Where a robot does not say which action it carried out last, it
        is taken to be the last that it was given."""
        previous = self._previous if told.previous_action is None else told.previous_action
        seen = Observation(told.images, told.state, told.instruction, previous)
        return replace(self._past.see(seen), underway=told.underway)

    def whole(self, decided: Decided, seen: Observation) -> np.ndarray:
        """What was decided at `seen` → what the robot is given of it at once (k, a), all of it. It
        is taken to carry out `execute` actions until it asks again. Raises GuardError."""
        given = self._given(decided, seen)
        self._done += self.course.execute
        self._previous = given[self.course.execute - 1]
        return given

    def left(self) -> np.ndarray | None:
        """The next action (a,) of a chunk that was decided before; None where a new one is due."""
        return self._handed(self._left.pop(0)) if self._left else None

    def first(self, decided: Decided, seen: Observation) -> np.ndarray:
        """What was decided at `seen` → its first action (a,); `left` gives the others, `execute` in
        all. Raises GuardError."""
        self._left = list(self._given(decided, seen)[: self.course.execute])
        return self._handed(self._left.pop(0))

    def _given(self, decided: Decided, seen: Observation) -> np.ndarray:
        """(k, a): joined with what was decided before, and held within limits."""
        chunk = None if isinstance(decided, str) else self._overlap.join(decided, self._done)
        if self._guard is None:
            assert chunk is not None  # only a guard is told why there is none
            return chunk
        # At the start of an episode zeros stand for nothing; an absolute robot is not there.
        moved = self._done > 0 or bool(np.any(seen.previous_action))
        given = self._guard.chunk(
            chunk,
            state=seen.state if len(seen.state) else None,
            previous=seen.previous_action if moved else None,
            error=decided if isinstance(decided, str) else "",
        )
        self.interventions = tuple(str(event) for event in given.events)
        actions = given.actions
        if actions is None:
            raise GuardError(given.stopped or "; ".join(self.interventions) or "nothing may pass")
        # Where there was no chunk, what holds the robot is one action.
        missing = self.course.execute - len(actions)
        if missing > 0:
            actions = np.concatenate([actions, np.repeat(actions[-1:], missing, axis=0)])
        return actions

    def _handed(self, action: np.ndarray) -> np.ndarray:
        self._done += 1
        self._previous = action
        return action
