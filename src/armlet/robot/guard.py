"""Between a policy and the motors: an action goes in, and what comes out is finite, of the right
shape, and within range, speed and workspace; or the robot is held.

    guard = ActionGuard(spec, Bounds.read(path, spec, state_names), state_names=state_names)
    guard.reset(state=state)                     # an episode begins
    given = guard.step(action, state=state)      # at every control step; None: there is no action
    if given.action is not None:
        send(given.action)                       # `given.events`: what was done to it, and why

*Held* is a delta robot by a move of 0, an absolute one by the position that it was last sent to
(before the first: where its state says that it is), the gripper kept as it was. `given.action` is
None where nobody knows where an absolute robot is: then nothing is to be sent. *Stopped* is held
until `reset`, whatever arrives.

What is asked, in this order: is the clock going; has a fresh action come in time (watchdog); is the
action whole and finite; does it ask for the gripper's other side, often enough in a row; range,
speed, speeding up, workspace. Every intervention is an `Event`, returned and logged (logger
`armlet.robot.guard`, at most a line a second and kind).

Speeds are those of a control period, however long ago the step before was: who comes late may not
make up for it at once, and who comes too early may only move by what has passed.

Fail-safe: whatever goes wrong in here stops the robot. It is no substitute for the robot's own
limits or for a stop button. Knows no policy and no thread: one guard, one control loop.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from armlet.robot.bounds import Bounds
from armlet.robot.limiting import Action, Event, Limiter, numbers
from armlet.robot.spec import ActionSpec

LOGGER = logging.getLogger(__name__)
LOG_EVERY_S = 1.0  # a line of a kind
ON_TIME = 0.9  # of a control period: a step that comes so much after the last has a whole one


@dataclass(frozen=True)
class Given:
    """What goes to the motors: `action` (a,) float32, None: nothing is to be sent; `events`, what
    was done to what was asked; `held`: the robot stands still in this step; `stopped`: why it does
    so until the guard is reset."""

    action: Action | None
    events: tuple[Event, ...] = ()
    held: bool = False
    stopped: str | None = None


@dataclass(frozen=True)
class GivenChunk:
    """The same of a whole chunk: `actions` (k, a) float32, or None."""

    actions: np.ndarray | None
    events: tuple[Event, ...] = ()
    stopped: str | None = None


class ActionGuard:
    """Holds the actions of a robot `spec` within `bounds` (None: its own range). `state_names` say
    which number of a state is where an absolute robot stands; `clock` gives seconds that only go
    forward. `counts`: interventions since it was made, by kind.

    Raises ValueError where the bounds are not of such a robot.
    """

    def __init__(
        self,
        spec: ActionSpec,
        bounds: Bounds | None = None,
        *,
        state_names: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec = spec
        self.bounds = Bounds.of(spec) if bounds is None else bounds
        self.counts: Counter[str] = Counter()
        self._clock = clock
        self._limiter = Limiter(spec, self.bounds, state_names)
        self._period = self._limiter.period
        self._logged: dict[str, tuple[float, int]] = {}  # kind → when, and how many since
        self._stopped: str | None = None
        self._told = False  # that it is stopped
        self._memory = self._limiter.nothing_known()
        self._before: float | None = None  # when the last step was
        self._fresh: float | None = None  # when an action was last carried out
        self._silent = False

    @property
    def stopped(self) -> str | None:
        """Why it gives no more than holding, until it is reset; None: it does not."""
        return self._stopped

    def reset(self, *, state: np.ndarray | None = None, at: Action | None = None) -> None:
        """An episode begins: nothing of the one before holds, a stop neither, and the watchdog
        begins to count at the first step. `state` (s,): where the robot is; `at` (a,): the action
        that holds it, where an absolute robot's state does not say it. Raises ValueError where `at`
        is no action."""
        self._stopped = None
        self._told = False
        self._memory = self._limiter.nothing_known()
        self._before = None
        self._fresh = None
        self._silent = False
        if at is not None:
            known = numbers(at)
            if known.shape != (self.spec.dims,) or not np.isfinite(known).all():
                raise ValueError(
                    f"at has shape {known.shape}, expected {self.spec.dims} finite numbers"
                )
            self._memory = self._limiter.sent(known)
        if state is not None:
            self._memory = self._limiter.seen(self._memory, state)

    def stop(self, why: str) -> None:
        """From the next step on it only holds, until it is reset. May be called by another
        thread."""
        self._stopped = why

    def step(
        self,
        asked: object,
        *,
        state: np.ndarray | None = None,
        seen_at: float | None = None,
        error: str = "",
    ) -> Given:
        """One control step. `asked` (a,): what a policy wants; None: it has not answered. `state`
        (s,) as measured now, where it was; `seen_at`: when what the action was decided from was
        seen, in seconds of the clock; `error`: what went wrong where the action should have come
        from, which makes it nonsense. Raises nothing."""
        try:
            return self._step(asked, state, seen_at, error)
        except Exception as fault:  # the motors are told something, whatever went wrong in here
            return self._faulted(fault)

    def chunk(
        self,
        asked: object,
        *,
        state: np.ndarray | None = None,
        previous: Action | None = None,
        error: str = "",
    ) -> GivenChunk:
        """A chunk (k, a), each action as if sent a control period after the one before. For who
        sees a robot only when it asks, and not what it carries out: what was sent last is
        `previous` (None: nothing), where it is `state`. The watchdog is for who carries out.
        From an action that is held on all the others are; where nobody knows how, they are left
        out. Raises nothing."""
        try:
            return self._chunk(asked, state, previous, error)
        except Exception as fault:  # as in `step`
            given = self._faulted(fault)
            actions = None if given.action is None else given.action[None]
            return GivenChunk(actions, given.events, given.stopped)

    # --- one step

    def _step(
        self, asked: object, state: np.ndarray | None, seen_at: float | None, error: str
    ) -> Given:
        now = self.now()
        events: list[Event] = []
        if state is not None:
            self._memory = self._limiter.seen(self._memory, state)
        if self._stopped is not None:
            if not self._told:
                self._told = True
                events.append(Event("stopped", now, self._stopped))
            return self._holding(events, now)
        on_time, passed = self._passed(now, events)
        action = self._fresh_action(asked, now, seen_at, error, events)
        if self._stopped is not None or action is None or not on_time:
            return self._holding(events, now)
        memory, given, found = self._limiter.limited(self._memory, action, passed, now)
        events += found
        self._obey(found)
        if given is None or self._stopped is not None:
            # The gripper's count of steps goes on; nothing else of what was asked is kept.
            self._memory = replace(self._memory, turned=memory.turned)
            return self._holding(events, now)
        self._memory = memory
        self._fresh = now
        self._silent = False
        self._report(events)
        return Given(given, tuple(events))

    def now(self) -> float:
        """Seconds of its clock. Raises ValueError where that is no time."""
        now = float(self._clock())
        if not math.isfinite(now):
            raise ValueError(f"the clock says {now}")
        return now

    def _passed(self, now: float, events: list[Event]) -> tuple[bool, float]:
        """Whether this step came when it may act, and the seconds for which it may move."""
        before = self._before
        self._before = now
        if before is None:  # the first step
            self._fresh = now
            return True, self._period
        passed = now - before
        if passed < 0:
            events.append(Event("clock", now, f"it went back by {-passed:g} s"))
            self._fresh = now  # the watchdog counts on from here
            return False, 0.0
        # What is asked may be as old as the pause: one step of standing still.
        if passed > self.bounds.silence_s:
            events.append(Event("clock", now, f"no control step for {passed:.3g} s"))
            return False, 0.0
        if passed >= ON_TIME * self._period:
            return True, self._period
        return True, passed

    def _fresh_action(
        self,
        asked: object,
        now: float,
        seen_at: float | None,
        error: str,
        events: list[Event],
    ) -> np.ndarray | None:
        """What was asked as (a,) float64, if it is there, whole and fresh."""
        action = None
        if error:
            events.append(Event("nonsense", now, error))
        elif asked is not None:
            action = self._limiter.whole(asked, now, events)
        if any(event.kind == "nonsense" for event in events) and self.bounds.on_nonsense == "stop":
            self._stopped = str(events[-1])
        if action is not None and seen_at is not None and not self._recent(now, seen_at, events):
            action = None
        # Asked after the rest, so that it is told even if what came was of no use.
        assert self._fresh is not None
        quiet = now - self._fresh
        if quiet > self.bounds.silence_s and not self._silent:
            self._silent = True
            events.append(Event("silence", now, f"nothing to carry out for {quiet:.3g} s"))
            if self.bounds.on_silence == "stop":
                self._stopped = str(events[-1])
        return action

    def _recent(self, now: float, seen_at: float, events: list[Event]) -> bool:
        age = now - seen_at
        if -self._period <= age <= self.bounds.age_s:  # NaN is neither
            return True
        events.append(Event("stale", now, f"decided from what was seen {age:.3g} s ago"))
        return False

    def _holding(self, events: list[Event], now: float) -> Given:
        """Nothing is moved, and what comes next starts from standing still."""
        memory = self._memory
        action = self._limiter.hold(memory)
        self._memory = replace(memory, speed=np.zeros(self.spec.dims))
        self._report(events)
        return Given(action, tuple(events), held=True, stopped=self._stopped)

    def _faulted(self, fault: Exception) -> Given:
        """An error in the guard: stopped, and told what held the robot before it."""
        self._stopped = f"fault: {type(fault).__name__}: {fault}"
        event = Event("fault", math.nan, f"{type(fault).__name__}: {fault}")
        self.counts["fault"] += 1
        if not self._told:  # once: a clock that is broken is so at every step
            LOGGER.error("stopped: %s", event)
        self._told = True
        action = self._limiter.hold(self._memory)
        return Given(action, (event,), held=True, stopped=self._stopped)

    def _obey(self, events: Sequence[Event]) -> None:
        """Stops where what happened is to stop the robot."""
        for event in events:
            if self._limiter.response(event.kind) == "stop":
                self._stopped = str(event)
                return

    # --- a whole chunk

    def _chunk(
        self, asked: object, state: np.ndarray | None, previous: Action | None, error: str
    ) -> GivenChunk:
        now = self.now()
        memory = self._limiter.nothing_known()
        if previous is not None:
            memory = self._limiter.sent(numbers(previous))
            # Of positions the speed takes two of them: the first step may be of any acceleration.
            moved = np.where(self._limiter.moves, memory.last / self._period, np.nan)
            memory = replace(memory, speed=moved)
        if state is not None:
            memory = self._limiter.seen(memory, state)
        events: list[Event] = []
        rows = [] if error else self._rows(asked, now, events)
        if error:
            events.append(Event("nonsense", now, error))
        given: list[Action] = []
        for row in rows:
            action = self._limiter.whole(row, now, events)
            if action is None or self._stopped is not None:
                break
            memory, carried, found = self._limiter.limited(memory, action, self._period, now)
            events += found
            self._obey(found)
            if carried is None or self._stopped is not None:
                break
            given.append(carried)
        if self.bounds.on_nonsense == "stop":
            nonsense = [event for event in events if event.kind == "nonsense"]
            if nonsense:
                self._stopped = str(nonsense[0])
        self._report(events)
        rest = max(len(rows), 1) - len(given)
        hold = self._limiter.hold(memory)
        if hold is not None:
            given += [hold] * rest
        actions = np.stack(given) if given else None
        return GivenChunk(actions, tuple(events), self._stopped)

    def _rows(self, asked: object, now: float, events: list[Event]) -> list[np.ndarray]:
        try:
            rows = list(numbers(asked))
        except Exception as error:  # whatever is raised by what is no array
            events.append(Event("nonsense", now, f"no chunk of actions (k, a): {error}"))
            return []
        if not rows:
            events.append(Event("nonsense", now, "a chunk without actions"))
        return rows

    # --- what is said

    def _report(self, events: Sequence[Event]) -> None:
        """Counted and logged: of a kind a line a second."""
        for event in events:
            self.counts[event.kind] += 1
            before, missed = self._logged.get(event.kind, (-math.inf, 0))
            if before <= event.time < before + LOG_EVERY_S:
                self._logged[event.kind] = (before, missed + 1)
                continue
            more = f" (and {missed} more since the last line)" if missed else ""
            LOGGER.warning("%s%s", event, more)
            self._logged[event.kind] = (event.time, 0)
