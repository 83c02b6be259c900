"""What is said to a policy's server, and how it answers, in the two protocols that are spoken.

openpi (openpi-client 0.1.2, openpi/serving/websocket_policy_server.py): the server says its
metadata first; then an observation is a flat map and its answer `{"actions": (k, a), …}`. A text is
a traceback, after which the server hangs up.

vla-eval (0.8.0, protocol version 1, model_servers/serve.py): every message is `{type, payload, seq,
timestamp}`. The client says HELLO, and the server answers with its specs. A server may keep a chunk
and hand out an action an observation, until the next EPISODE_START: so each observation is the
first of an episode of its own. It answers with `{"actions"}`, (k, a) or (a,), or with an ERROR.

Knows messages; opens no connection.
"""

import importlib.metadata
import time
from typing import Any, ClassVar, Protocol

Path = tuple[str, ...]  # of names, one in another, to an entry of a message
VERSION = 1  # of vla-eval's protocol


class DialectError(ValueError):
    """A server that answers, and not as its protocol says; or that says itself what is wrong."""


class Talk(Protocol):
    """A connection: whole messages, one after the other."""

    def send(self, message: dict[str, Any], *, bytes_keys: bool) -> None: ...

    def receive(self) -> Any:
        """The next message. Raises what the connection does, and DialectError for a text."""


class Dialect(Protocol):
    """One of the two."""

    state: Path
    prompt: Path
    batches: bool  # whether several observations may be asked in one message

    def image(self, camera: str) -> Path:
        """Where the picture of a camera stands, where nobody says otherwise."""

    def named_image(self, key: str) -> Path:
        """Where the picture of a camera stands that a user calls `key`."""

    def greet(self, talk: Talk) -> dict[str, Any]:
        """What the server says of itself, on a connection that has just been opened."""

    def ask(self, talk: Talk, observation: dict[str, Any]) -> dict[str, Any]:
        """What it answers to an observation."""


class Openpi:
    """See the module's docstring."""

    state: Path = ("observation/state",)
    prompt: Path = ("prompt",)
    batches = True

    def image(self, camera: str) -> Path:
        return (f"observation/{camera}",)

    def named_image(self, key: str) -> Path:
        return tuple(key.split("."))  # `images.cam_high`: one map in another

    def greet(self, talk: Talk) -> dict[str, Any]:
        return _map(talk.receive(), "its first message, metadata")

    def ask(self, talk: Talk, observation: dict[str, Any]) -> dict[str, Any]:
        talk.send(observation, bytes_keys=True)
        return _map(talk.receive(), "its answer")


class VlaEval:
    """See the module's docstring."""

    state: Path = ("state",)
    prompt: Path = ("task_description",)
    batches = False  # a server batches what several connections ask
    _types: ClassVar[tuple[str, ...]] = ("hello", "action", "error")

    def __init__(self) -> None:
        self._seq = 0

    def image(self, camera: str) -> Path:
        return ("images", camera)

    def named_image(self, key: str) -> Path:
        return ("images", key)

    def greet(self, talk: Talk) -> dict[str, Any]:
        payload = {
            "harness_version": f"armlet {importlib.metadata.version('armlet')}",
            "protocol_version": VERSION,
        }
        self._say(talk, "hello", payload)
        found = self._hear(talk, "hello")
        version = found.get("protocol_version")
        if version != VERSION:
            raise DialectError(
                f"speaks version {version!r} of vla-eval's protocol, expected {VERSION}"
            )
        return found

    def ask(self, talk: Talk, observation: dict[str, Any]) -> dict[str, Any]:
        words = observation.get(self.prompt[0], "")
        # Nothing is answered to this one, unless it fails.
        self._say(talk, "episode_start", {"task": {"name": words}})
        self._say(talk, "observation", observation)
        return self._hear(talk, "action")

    def _say(self, talk: Talk, kind: str, payload: dict[str, Any]) -> None:
        self._seq += 1
        message = {"type": kind, "payload": payload, "seq": self._seq, "timestamp": time.time()}
        talk.send(message, bytes_keys=False)

    def _hear(self, talk: Talk, kind: str) -> dict[str, Any]:
        """The payload of the answer to what was said last."""
        message = _map(talk.receive(), "its answer")
        payload = _map(message.get("payload"), "the payload of its answer")
        if message.get("type") == "error":
            raise DialectError(f"answers with an error: {payload.get('error', payload)!s:.300}")
        if message.get("type") != kind or message.get("seq") != self._seq:
            raise DialectError(
                f"answers with type {message.get('type')!r:.40} and seq {message.get('seq')!r:.20}, "
                f"expected {kind!r} and {self._seq}"
            )
        return payload


DIALECTS: dict[str, type[Openpi] | type[VlaEval]] = {"openpi": Openpi, "vla_eval": VlaEval}


def _map(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DialectError(f"sends {value!r:.60} as {what}, expected a map")
    return value


def put(message: dict[str, Any], path: Path, value: Any) -> None:
    """Set an entry of a message, maps in one another made on the way. Raises ValueError where
    something stands there."""
    *outer, last = path
    place = message
    for name in outer:
        place = place.setdefault(name, {})
        if not isinstance(place, dict):
            raise ValueError(f"two entries of an observation are both called {name!r}")
    if last in place:
        raise ValueError(f"two entries of an observation are both called {'.'.join(path)!r}")
    place[last] = value
