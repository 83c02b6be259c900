"""Chunks that arrive late, and a robot that steps at its own rate.

`ChunkQueue` is the book-keeping, without a thread or a clock: it is told of control steps, and says
when to ask and what to carry out.

    queue = ChunkQueue(spec, execute=8, late="run_on")
    if queue.wants:
        ticket = queue.ask()          # what is seen now is what the chunk is decided from
        seen = queue.told(seen, ticket)
        …                             # steps go by: queue.take() at each
        queue.put(policy.infer(seen), ticket)
    action = queue.take()             # None: there is no action, the arm holds still

`AsyncActor` is the same with the policy in a thread of its own, behind a guard:

    with AsyncActor(policy.infer, guard, execute=8, late="blend") as actor:
        actor.reset()
        while …:                      # at the robot's rate
            given = actor.action(observation)
            if given.action is not None:
                send(given.action)

`late` is one of the rules of `robot.chunks`; guided is for flow policies alone, and others raise, or
their server refuses, what they are shown with the second question. With `ensemble` each chunk is first averaged with those
before it (`robot.memory.Overlap`).

A policy that fails: the arm holds still from the next control step on, nothing of the chunk before is
carried out any more, the error is an event of the guard, and the policy is asked again. One that
never answers is not asked a second time, as its thread cannot be stopped: the arm carries out what
`late` leaves it, and holds. For how long, the guard's watchdog says.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from armlet.robot.chunks import Late, check_blend, check_guided, follow, told_of
from armlet.robot.ensemble import Ensemble
from armlet.robot.guard import ActionGuard, Given
from armlet.robot.limiting import Action
from armlet.robot.memory import Overlap, Past
from armlet.robot.observation import Observation
from armlet.robot.spec import ActionSpec

LOGGER = logging.getLogger(__name__)
DELAYS = 100  # the last so many are remembered
RECENT = 10  # of them, the latest says how late the next is expected: an early outlier is forgotten
CLOSING_S = 1.0  # for a policy's last answer, when an actor is closed


@dataclass(frozen=True)
class Ticket:
    """A question that is not answered yet. `episode` and `step`: when it was asked; `done`: actions
    of the episode that had been carried out then; `left` (m, a): what was left of the chunk."""

    episode: int
    step: int
    done: int
    left: np.ndarray


class ChunkQueue:
    """What a robot of actions `spec` carries out, step by step. `execute`: actions of a chunk that
    are carried out before the next is asked for. `delays`: of the last chunks, how many steps each
    came after it was asked for.

    Raises ValueError for settings that this robot cannot have.
    """

    def __init__(
        self,
        spec: ActionSpec,
        *,
        execute: int,
        late: Late = "run_on",
        ensemble: Ensemble | None = None,
    ) -> None:
        if execute < 1:
            raise ValueError(f"execute is {execute}, expected 1 action of a chunk or more")
        if late == "blend":
            check_blend(spec)
        if late == "guided":
            check_guided(ensemble)
        self.spec = spec
        self.execute = execute
        self.late = late
        self.ensemble = ensemble
        self.delays: deque[int] = deque(maxlen=DELAYS)
        self.episode = 0
        self.reset()

    def reset(self) -> None:
        """An episode begins: nothing is left of the one before, and its questions are void."""
        self.episode += 1
        self._left = np.empty((0, self.spec.dims), np.float32)  # (m, a) to be carried out
        self._until = 0  # actions of the chunk until the next is asked for
        self._step = 0
        self._done = 0
        self._asked: Ticket | None = None
        self._overlap = Overlap(self.ensemble, self.spec)

    @property
    def wants(self) -> bool:
        """Whether it is time to look and ask: so much of the chunk has been carried out, or
        nothing is left."""
        return self._asked is None and (self._until <= 0 or not len(self._left))

    def ask(self) -> Ticket:
        """A chunk is going to be decided from what is seen now. Raises RuntimeError where one is
        being decided already."""
        if self._asked is not None:
            raise RuntimeError("a chunk is asked for already: put it, or drop it, first")
        self._asked = Ticket(self.episode, self._step, self._done, self._left)
        return self._asked

    def told(self, seen: Observation, ticket: Ticket) -> Observation:
        """What a policy is shown with a question: with `late` guided also what is left of the chunk,
        taken to come as late as the latest of the last ones did (arXiv 2506.07339, algorithm 1)."""
        if self.late != "guided" or not self.delays:
            return seen
        recent = list(self.delays)[-RECENT:]
        return told_of(seen, ticket.left, max(recent))

    def put(self, chunk: np.ndarray, ticket: Ticket) -> bool:
        """The answer (k, a) to a question; whether it is of use: one of an episode that is over, or
        that was dropped, is not. Raises ValueError for one that is no chunk of this robot; then the
        question is still open, and is to be dropped."""
        if ticket is not self._asked:
            return False
        joined = self._overlap.join(self._whole(chunk), ticket.done)
        self._asked = None
        since = self._done - ticket.done
        self._left = follow(joined, ticket.left, since, self.late, self.spec)
        self._until = self.execute
        self.delays.append(self._step - ticket.step)
        return True

    def drop(self, ticket: Ticket) -> None:
        """There will be no answer to a question: nothing of the chunk before is carried out any
        more, and the next may be asked."""
        if ticket is self._asked:
            self._asked = None
            self._left = self._left[:0]

    def _whole(self, chunk: np.ndarray) -> np.ndarray:
        new = np.asarray(chunk, np.float32)
        if new.ndim != 2 or new.shape[1] != self.spec.dims:
            raise ValueError(f"a chunk has shape {new.shape}, expected (k, {self.spec.dims})")
        if len(new) < self.execute:
            raise ValueError(
                f"{self.execute} actions of each chunk should be carried out, and this policy's "
                f"have {len(new)}"
            )
        # Averaged with others, it would spoil these too.
        if not np.isfinite(new).all():
            raise ValueError("a chunk with NaN or infinite actions")
        return new

    def take(self) -> Action | None:
        """What is carried out in this control step, (a,); None: there is no action. A step goes by
        either way."""
        self._step += 1
        waiting = self.late == "wait" and self._asked is not None
        if waiting or not len(self._left):
            return None
        action = self._left[0]
        self._left = self._left[1:]
        self._until -= 1
        self._done += 1
        return action


@dataclass(frozen=True)
class _Question:
    observation: Observation
    ticket: Ticket
    at: float  # when it was seen, by the guard's clock


class AsyncActor:
    """A policy in a thread of its own, and a control loop that never waits for it.

    `infer`: an observation → (k, a), a policy's, a client's or an exported folder's. Only one
    thread calls `action` and `reset`. Raises ValueError for settings that this robot cannot have.
    """

    def __init__(
        self,
        infer: Callable[[Observation], np.ndarray],
        guard: ActionGuard,
        *,
        execute: int,
        late: Late = "run_on",
        ensemble: Ensemble | None = None,
        history: int = 1,
    ) -> None:
        self.guard = guard
        self.queue = ChunkQueue(guard.spec, execute=execute, late=late, ensemble=ensemble)
        self._infer = infer
        self._history = history
        self._past = Past(history)
        self._previous = np.zeros(guard.spec.dims, np.float32)
        self._changed = threading.Condition()  # guards all that follows, and the queue
        self._question: _Question | None = None
        self._error = ""
        self._seen_at: float | None = None  # of the chunk that is carried out
        self._closed = False
        # A daemon: a policy that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="policy", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reset(self, *, state: np.ndarray | None = None, at: Action | None = None) -> None:
        """An episode begins; see `ActionGuard.reset`. An answer to the one before is thrown
        away."""
        with self._changed:
            self.queue.reset()
            self._question = None
            self._error = ""
            self._seen_at = None
        self._past = Past(self._history)
        self._previous = np.zeros(self.guard.spec.dims, np.float32)
        self.guard.reset(state=state, at=at)

    def action(self, observation: Observation) -> Given:
        """One control step: what is seen now → what goes to the motors now. `previous_action` is
        filled in. Returns at once, whatever the policy does; raises nothing of the policy's."""
        asked = None
        seen_at = None
        state = None
        try:
            asked, seen_at, error = self._asked(observation)
            state = observation.state
        except Exception as failed:  # the guard tells the motors what to do, whatever is wrong
            error = f"{type(failed).__name__}: {failed}"
        given = self.guard.step(asked, state=state, seen_at=seen_at, error=error)
        if given.action is not None:
            self._previous = given.action
        return given

    def _asked(self, observation: Observation) -> tuple[Action | None, float | None, str]:
        """What is to be carried out now, when what it was decided from was seen, and what went
        wrong."""
        seen = replace(self._past.see(observation), previous_action=self._previous)
        with self._changed:
            error, self._error = self._error, ""
            if self.queue.wants:
                ticket = self.queue.ask()
                told = self.queue.told(seen, ticket)
                self._question = _Question(told, ticket, self.guard.now())
                self._changed.notify()
            return self.queue.take(), self._seen_at, error

    def close(self) -> None:
        """Ends the thread, waiting a second for an answer that is on its way."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(CLOSING_S)
        if self._thread.is_alive():
            LOGGER.warning("the policy still has not answered; its thread is left behind")

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._question is not None)
                question, self._question = self._question, None
                if self._closed or question is None:
                    return
            try:
                chunk = self._infer(question.observation)
                with self._changed:
                    if self.queue.put(chunk, question.ticket):
                        self._seen_at = question.at
            except Exception as error:  # a policy may raise anything: the control loop goes on
                with self._changed:
                    # Of an episode that is over nobody need know.
                    if question.ticket.episode == self.queue.episode:
                        self._error = f"the policy: {type(error).__name__}: {error}"
                    self.queue.drop(question.ticket)
