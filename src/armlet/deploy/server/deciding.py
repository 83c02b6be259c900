"""Decisions of one policy for many robots: one thread owns it, and whoever waits is asked about
together.

Each session has one request at a time in the line, and the line is first come, first served: a
robot that asks as fast as it can waits behind all others after every answer. A policy that fails at
several observations is asked about each alone, so that only the one at fault is told. Knows no
socket.
"""

import asyncio
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from armlet.deploy.server.metrics import Metrics
from armlet.evaluation.asking import decide_together
from armlet.policies.contract import Backbone, Policy
from armlet.robot.observation import Observation


class DecisionError(Exception):
    """The policy gave nothing that can be carried out. `kind`, a word for a metric; `trace`, where
    it raised what it should not, for the log alone."""

    def __init__(self, kind: str, text: str, trace: str = "") -> None:
        super().__init__(text)
        self.kind = kind
        self.trace = trace


@dataclass
class _Request:
    seen: Observation
    answered: asyncio.Future[np.ndarray]
    loop: asyncio.AbstractEventLoop
    since: float = field(default_factory=time.perf_counter)


class Decider:
    """The thread that owns a policy. `start` it, `decide` from an event loop, `stop` it."""

    def __init__(self, policy: Policy, *, batch: int, timeout: float, metrics: Metrics) -> None:
        """`batch`: at most so many observations in one pass; `timeout`: seconds after which whoever
        waits is told that the decision takes too long."""
        self.policy = policy
        self.batch = batch
        self.timeout = timeout
        self.metrics = metrics
        self._line: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._begun: float | None = None  # when the pass that runs began
        self._thread = threading.Thread(target=self._work, name="policy", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """No further pass is begun; whether the one that runs has ended within so many seconds."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def is_well(self) -> bool:
        """Whether the policy still answers: its thread lives, and no pass takes too long."""
        begun = self._begun
        hangs = begun is not None and time.perf_counter() - begun > self.timeout
        return self._thread.is_alive() and not hangs

    async def decide(self, seen: Observation) -> np.ndarray:
        """(k, a) float32: the policy's chunk. Raises DecisionError."""
        loop = asyncio.get_running_loop()
        request = _Request(seen, loop.create_future(), loop)
        with self._changed:
            self._line.append(request)
            self.metrics.waiting.set(len(self._line))
            self._changed.notify()
        try:
            return await asyncio.wait_for(request.answered, self.timeout)
        except TimeoutError as error:
            raise DecisionError(
                "timeout", f"the policy has not decided within {self.timeout:g} s"
            ) from error

    def _work(self) -> None:
        while True:
            requests = self._next()
            if not requests:
                return
            self._begun = time.perf_counter()
            found = decide_all(self.policy, [each.seen for each in requests])
            self.metrics.decided(len(requests), time.perf_counter() - self._begun)
            self._begun = None
            for request, answer in zip(requests, found, strict=True):
                # The loop has ended where the server was stopped meanwhile.
                if not request.loop.is_closed():
                    request.loop.call_soon_threadsafe(_answer, request, answer)

    def _next(self) -> list[_Request]:
        """Whoever waits, the first `batch` of them; empty once the decider is stopped."""
        with self._changed:
            while not self._stopping:
                requests: list[_Request] = []
                while self._line and len(requests) < self.batch:
                    request = self._line.popleft()
                    # Cancelled: its robot has hung up, or was told that it takes too long.
                    if not request.answered.cancelled():
                        requests.append(request)
                self.metrics.waiting.set(len(self._line))
                if requests:
                    return requests
                self._changed.wait()
        return []


def decide_all(policy: Policy, some: Sequence[Observation]) -> list[np.ndarray | DecisionError]:
    """What a policy decides at some moments, (k, a) each, or why it does not. A network is asked
    about all in one pass, others, and where one is guided, about one after the other."""
    guided = any(seen.underway is not None for seen in some)
    if isinstance(policy, Backbone) and len(some) > 1 and not guided:
        try:
            chunks, _ = decide_together(policy, some)
        except Exception:  # of whichever of them: each alone says whose
            pass
        else:
            return [_checked(chunk) for chunk in chunks]
    return [_alone(policy, seen) for seen in some]


def _alone(policy: Policy, seen: Observation) -> np.ndarray | DecisionError:
    try:
        return _checked(policy.infer(seen))
    except FloatingPointError as error:
        return DecisionError("nan", str(error))
    except ValueError as error:  # of the observation, as `Inputs` says it
        return DecisionError("observation", str(error))
    except Exception as error:  # a policy may raise anything; its server goes on
        return DecisionError("policy", f"{type(error).__name__}: {error}", traceback.format_exc())


def _checked(chunk: np.ndarray) -> np.ndarray | DecisionError:
    if not np.isfinite(chunk).all():
        return DecisionError("nan", "the policy answered with NaN or infinite actions")
    return np.asarray(chunk, np.float32)


def _answer(request: _Request, found: np.ndarray | DecisionError) -> None:
    """In the request's own loop: a future is not for other threads."""
    if request.answered.done():
        return
    if isinstance(found, DecisionError):
        request.answered.set_exception(found)
    else:
        request.answered.set_result(found)
