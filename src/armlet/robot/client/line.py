"""A connection to a policy's server: questions one after the other, each answered or an error.

A server that hangs up, or is not there, is called again, with waits that double. One that answers
nonsense is not asked twice: it would answer the same. Knows messages; knows no robot.
"""

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from armlet.robot.client.dialects import Dialect, DialectError
from armlet.robot.client.wire import ABSENT, WireError, pack, unpack

TOO_LARGE = 1009  # a websocket's word for a message that is too large
OPENING = 30.0  # seconds: a server that is there takes a call at once
REFUSED = (401, 403)  # HTTP: no key, or a wrong one


class ServerError(ConnectionError):
    """A server that cannot be reached, or does not answer."""


class AnswerError(ValueError):
    """A server that answers, and nothing that can be used."""


@dataclass(frozen=True)
class Calling:
    """How a server is called: `timeout` seconds for an answer, `retries` more calls where it is not
    there, the first after `wait` seconds; `largest` bytes of a message. `key`: sent where there is
    one. `fields`: where a user says these, for errors."""

    url: str
    timeout: float = 300.0
    retries: int = 6
    wait: float = 1.0
    largest: int = 2**24
    key: str | None = None
    fields: str = "[options] of a policy.toml"


class Line:
    """One connection, opened when it is first needed. Not for two threads at once."""

    def __init__(
        self, calling: Calling, dialect: Dialect, check: Callable[[dict[str, Any]], None]
    ) -> None:
        """`check` is told what the server says of itself, each time that it is called. Whoever
        wants to ask something first, then, sets `opened`."""
        self.calling = calling
        self.dialect = dialect
        self.check = check
        self.opened: Callable[[], None] = lambda: None
        self._socket: Any = None
        self._opened = contextlib.ExitStack()  # what hangs up

    def ask(self, observation: dict[str, Any], *, about: str) -> dict[str, Any]:
        """The server's answer to an observation; `about` names that, for an error.

        Raises ServerError where there is none, and AnswerError where it is not of the protocol.
        """
        return self._kept(lambda: self.dialect.ask(self, observation), about=about)

    def open(self) -> None:
        """Call the server, where that has not been done. Raises what `ask` does."""
        self._kept(dict, about="calling it")

    def close(self) -> None:
        self._socket = None
        self._opened.close()

    def _kept(self, work: Callable[[], dict[str, Any]], *, about: str) -> dict[str, Any]:
        """`work` on an open connection, which is opened again where it breaks."""
        calling = self.calling
        failed = 0
        while True:
            try:
                self._connect()
                return work()
            except (DialectError, WireError) as error:
                self.close()  # what else it may have sent answers nothing that is asked next
                raise AnswerError(f"{calling.url} {_said(error)} ({about})") from error
            except TimeoutError as error:
                self.close()
                raise ServerError(
                    f"{calling.url} did not answer within {calling.timeout:g} s ({about}); give it "
                    f"longer with `timeout` in {calling.fields}, or look whether it hangs"
                ) from error
            except _BrokenError as error:
                self.close()
                if failed == calling.retries:
                    raise ServerError(
                        f"{calling.url} cannot be reached: {error} ({about}; called "
                        f"{failed + 1} times). Nothing that it answered before is lost: start the "
                        "server, and run the same command again"
                    ) from error
                pause = calling.wait * 2**failed
                failed += 1
                sys.stderr.write(f"{calling.url}: {error}; called again in {pause:g} s\n")
                time.sleep(pause)

    def send(self, message: dict[str, Any], *, bytes_keys: bool) -> None:
        import websockets.exceptions as refused

        frame = pack(message, bytes_keys=bytes_keys)
        try:
            self._socket.send(frame)
        except (refused.ConnectionClosed, OSError) as error:
            raise self._ended(error) from error

    def receive(self) -> Any:
        import websockets.exceptions as refused

        try:
            frame = self._socket.recv(timeout=self.calling.timeout)
        except TimeoutError:
            raise
        except (refused.ConnectionClosed, OSError) as error:
            raise self._ended(error) from error
        if isinstance(frame, str):
            raise DialectError(f"answers with an error: {_last_line(frame)}")
        try:
            return unpack(frame)
        except WireError as error:
            raise WireError(f"answers what cannot be read: {error}") from error

    def _ended(self, error: Exception) -> Exception:
        """Why a connection broke; whether another call would help."""
        ours = getattr(error, "sent", None)
        theirs = getattr(error, "rcvd", None)
        if ours is not None and ours.code == TOO_LARGE:
            return DialectError(
                f"answers with more than {self.calling.largest} bytes in one message; `largest` in "
                f"{self.calling.fields} allows more"
            )
        if theirs is not None and theirs.code == TOO_LARGE:
            return DialectError("takes no message as large as an observation of this robot")
        return _BrokenError(f"it hung up ({_said(error)})")

    def _connect(self) -> None:
        if self._socket is not None:
            return
        try:
            import websockets.exceptions as refused
            from websockets.sync.client import connect
        except ImportError as error:
            raise ImportError(ABSENT) from error
        calling = self.calling
        headers = {"Authorization": f"Api-Key {calling.key}"} if calling.key else None
        try:
            call = connect(
                calling.url,
                additional_headers=headers,
                compression=None,
                proxy=None,  # it would be taken from the environment
                max_size=calling.largest,
                open_timeout=min(calling.timeout, OPENING),
                ping_interval=None,  # a server that computes may answer no ping for minutes
                close_timeout=1,
            )
            self._socket = self._opened.enter_context(call)
        except refused.InvalidStatus as error:
            status = error.response.status_code
            if status in REFUSED:
                what = "refuses the key" if calling.key else "asks for a key, and none is given"
                raise DialectError(
                    f"{what} (HTTP {status}); name the file that it stands in as `api_key` in "
                    f"{calling.fields}"
                ) from error
            if status < 500:
                raise DialectError(f"is no policy's server (HTTP {status})") from error
            raise _BrokenError(f"HTTP {status}") from error
        except (refused.InvalidHandshake, refused.InvalidURI) as error:
            # A server that is killed while it is called gives no answer either.
            if isinstance(error.__cause__, EOFError | OSError):
                raise _BrokenError("it hung up while it was called") from error
            raise DialectError(f"is no websocket's server ({_said(error)})") from error
        except TimeoutError:
            raise
        except (OSError, EOFError) as error:
            raise _BrokenError(_said(error)) from error
        self.check(self.dialect.greet(self))
        self.opened()


class _BrokenError(Exception):
    """There is no connection, and another call may help."""


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _last_line(text: str) -> str:
    """Of a traceback, what it ends with: the error itself."""
    lines = [line for line in text.splitlines() if line.strip()]
    return (lines[-1].strip() if lines else "an empty text")[:300]
