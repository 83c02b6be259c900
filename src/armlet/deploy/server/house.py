"""What all connections of a server share: the policy and how it is read and carried out, the log,
and the one way in which an observation becomes actions or an error. Knows no protocol."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from armlet.deploy.server.deciding import Decider, DecisionError
from armlet.deploy.server.metrics import Metrics
from armlet.deploy.server.observing import ObservationError, Reader, Told
from armlet.deploy.server.peers import Limits
from armlet.deploy.server.session import Course, Decided, GuardError, Session
from armlet.robot.client.wire import WireError, unpack
from armlet.robot.observation import Observation

ENTRIES = 2**15  # of lists and maps in a message: an observation has dozens
READERS = 2  # threads that unpack messages and pictures
LINES = 10  # of one kind that are logged in a minute
MINUTE = 60.0
LONGEST = 1000  # letters of an error


class MessageError(ValueError):
    """A message that the protocol does not have, or not here."""


KINDS: dict[type[Exception], str] = {
    WireError: "malformed",
    MessageError: "protocol",
    ObservationError: "observation",
    GuardError: "guard",
}
FAULTS: tuple[type[Exception], ...] = (*KINDS, DecisionError)


class Journal:
    """Lines of a log, of each kind a few a minute: a peer that does nothing but wrong must not fill
    a disk."""

    def __init__(self) -> None:
        self.logger = logging.getLogger("armlet.serve")
        self._begun: dict[str, float] = {}
        self._lines: dict[str, int] = {}

    def note(self, kind: str, text: str) -> None:
        self._say(logging.INFO, kind, text)

    def warn(self, kind: str, text: str) -> None:
        self._say(logging.WARNING, kind, text)

    def _say(self, level: int, kind: str, text: str) -> None:
        now = time.monotonic()
        if now - self._begun.get(kind, -MINUTE) >= MINUTE:
            left_out = self._lines.get(kind, 0) - LINES
            if left_out > 0:
                self.logger.log(level, "%s: %d more lines in that minute", kind, left_out)
            self._begun[kind] = now
            self._lines[kind] = 0
        self._lines[kind] += 1
        if self._lines[kind] <= LINES:
            self.logger.log(level, "%s: %s", kind, text)


class Overheard(logging.Filter):
    """Of another library's logger: what it says goes through the journal, a few lines a minute, as
    all else does. asyncio says a line for every message to a peer that is no longer there."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self.journal = journal

    def filter(self, record: logging.LogRecord) -> bool:
        self.journal.warn(record.name, logging.Formatter().format(record))  # with its traceback
        return False


class House:
    """See the module's docstring. `describe`: what the server says of itself."""

    def __init__(
        self,
        *,
        reader: Reader,
        course: Course,
        decider: Decider,
        metrics: Metrics,
        allowed: Limits,
        description: dict[str, Any],
    ) -> None:
        self.reader = reader
        self.course = course
        self.decider = decider
        self.metrics = metrics
        self.allowed = allowed
        self.description = description
        self.journal = Journal()
        self.stopping = asyncio.Event()
        self._unpacking = ThreadPoolExecutor(READERS, thread_name_prefix="unpack")
        self._ignored: set[tuple[str, ...]] = set()

    async def unpacked(self, frame: bytes | str) -> Any:
        """What stands in a message. Raises WireError."""
        if isinstance(frame, str):
            raise WireError(f"a text of {len(frame)} letters, expected a message of msgpack")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._unpacking, _unpack, frame)

    def told(self, message: Any) -> Told:
        """What an observation says. Raises ObservationError."""
        told = self.reader.read(message)
        # Once for each kind of client; a peer that makes up names does not fill memory with them.
        if told.ignored and told.ignored not in self._ignored and len(self._ignored) < LINES:
            self._ignored.add(told.ignored)
            self.journal.note("ignored", f"the policy takes no notice of {', '.join(told.ignored)}")
        return told

    async def given(
        self,
        protocol: str,
        session: Session,
        seen: Observation,
        take: Callable[[Decided, Observation], np.ndarray],
    ) -> np.ndarray:
        """What `take`, a session's, makes of the chunk that the policy decides; what holds the robot
        where the policy fails and the session has a guard. Raises DecisionError, GuardError."""
        decided: Decided
        try:
            decided = await self._decided(seen)
        except DecisionError as error:
            if error.kind == "observation" or not session.is_guarded:
                raise
            self.fault(protocol, error)
            decided = str(error)
        return take(decided, seen)

    async def _decided(self, seen: Observation) -> np.ndarray:
        chunk = await self.decider.decide(seen)
        execute = self.course.execute
        if len(chunk) < execute:
            raise DecisionError(
                "policy",
                f"the policy decided {len(chunk)} actions, and {execute} of each chunk are carried "
                "out",
            )
        return chunk

    def fault(self, protocol: str, error: Exception) -> str:
        """An error of one request, counted and logged; the line that its peer is told."""
        kind = error.kind if isinstance(error, DecisionError) else KINDS[type(error)]
        self.metrics.errors.add(kind)
        line = " ".join(str(error).split())[:LONGEST]
        trace = error.trace if isinstance(error, DecisionError) else ""
        self.journal.warn(f"{protocol} {kind}", f"{line}\n{trace}".strip())
        return line

    def close(self) -> None:
        self._unpacking.shutdown(wait=False, cancel_futures=True)


def _unpack(frame: bytes) -> Any:
    return unpack(frame, entries=ENTRIES)
