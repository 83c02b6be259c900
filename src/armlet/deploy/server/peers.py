"""Whoever connects: who is let in, and what one connection may cost.

Nothing here trusts a peer. Sockets, sessions, bytes of a message, frames and messages a second are
bounded; a handshake that does not end, a peer that says nothing for long, one that does not read
what it is sent, and one that has vanished without a word are hung up on. Knows HTTP requests and
websockets; knows no policy and no protocol.
"""

import asyncio
import contextlib
import hmac
import http
import ipaddress
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from armlet import limits
from armlet.deploy.server.metrics import TYPE, Metrics
from armlet.limits import ABOVE_0, MOST

try:
    from websockets.asyncio.server import Server, ServerConnection
    from websockets.exceptions import ConnectionClosed
    from websockets.http11 import Request, Response
    from websockets.server import ServerProtocol
except ImportError as error:
    raise ImportError(
        "armlet serve needs two libraries that are not installed: pip install 'armlet[socket]'"
    ) from error

SPARE = 16  # sockets beside the sessions': questions for health, handshakes under way
FRAMES = 64  # of a message, pings among them: clients send one
UNREAD = 2**20  # bytes sent to a peer that it has not read
PING = 20.0  # seconds between questions whether a peer is still there
CLOSING = 2.0  # seconds for a peer to say goodbye
HEALTH = ("/healthz", "/health")  # openpi's path, and vla-eval's
METRICS = "/metrics"
GOING_AWAY = 1001
IDLE = 1008  # a policy, in the words of websockets
# Codes with which the server ends a connection, in a word; others are for what is no websocket.
REASONS = {GOING_AWAY: "stopping", IDLE: "idle", 1009: "too_large", 1011: "silent"}


@dataclass(frozen=True)
class Limits:
    """What peers may cost."""

    sessions: int = 32
    """Robots that may be connected at the same time, over both ports; others are refused."""
    largest: int = 2**23
    """Bytes of a message. A session may take three times as much memory."""
    rate: float = 500.0
    """Messages a second from one robot; of one that sends more, they are read later."""
    handshake: float = 5.0
    """Seconds in which a connection must become a websocket."""
    idle: float = 600.0
    """Seconds without a message after which a robot is hung up on."""
    stalled: float = 60.0
    """Seconds after which a robot is hung up on that does not read its answers, or does not say
    that it is still there."""
    decision: float = 60.0
    """Seconds that a decision may take; then its robot is told so, and the server counts as
    unwell."""
    stopping: float = 10.0
    """Seconds for answers under way once the server is told to stop."""

    def __post_init__(self) -> None:
        limits.check(self, sessions=(1, 4096), largest=(1024, 2**30))
        seconds = ("handshake", "idle", "stalled", "decision")
        limits.check(self, rate=(ABOVE_0, MOST), **dict.fromkeys(seconds, (ABOVE_0, MOST)))
        limits.check(self, stopping=(0, MOST))


class Gate:
    """Who is let in, over all ports of a server."""

    def __init__(
        self, allowed: Limits, token: str | None, metrics: Metrics, is_well: Callable[[], bool]
    ) -> None:
        """`token`: what every peer has to bring, None: nothing; `is_well`: what `/healthz` says."""
        self.allowed = allowed
        self.metrics = metrics
        self.peers: set[Peer] = set()
        self._token = token
        self._is_well = is_well

    @property
    def sessions(self) -> "list[Peer]":
        return [peer for peer in self.peers if peer.is_session]

    def has_room(self) -> bool:
        return len(self.peers) < self.allowed.sessions + SPARE

    def look(self, peer: ServerConnection, request: Request) -> Response | None:
        """The answer to a request that shall not become a websocket; None where it may."""
        assert isinstance(peer, Peer)
        path = request.path.partition("?")[0]
        if path in HEALTH:
            if self._is_well():
                return _said(peer, http.HTTPStatus.OK, "OK")
            return _said(peer, http.HTTPStatus.SERVICE_UNAVAILABLE, "the policy does not answer")
        # Browsers say on whose page they are: no page may move an arm through its visitor.
        if "Origin" in request.headers:
            self.metrics.refused.add("origin")
            return _said(peer, http.HTTPStatus.FORBIDDEN, "not for web pages")
        if self._token is not None and not _brings(request, self._token):
            self.metrics.refused.add("token")
            response = _said(peer, http.HTTPStatus.UNAUTHORIZED, "a token is needed")
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        if path == METRICS:
            response = _said(peer, http.HTTPStatus.OK, self.metrics.text())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = TYPE
            return response
        if len(self.sessions) >= self.allowed.sessions:
            self.metrics.refused.add("full")
            return _said(peer, http.HTTPStatus.SERVICE_UNAVAILABLE, "every session is taken")
        # Counted before the handshake has ended: many may be under way.
        peer.is_session = True
        self.metrics.sessions.set(len(self.sessions))
        return None


def _said(peer: ServerConnection, status: http.HTTPStatus, text: str) -> Response:
    return peer.respond(status, text.rstrip("\n") + "\n")


def _brings(request: Request, token: str) -> bool:
    """Whether a request has the token: `Authorization: Api-Key …` as openpi's client sends it,
    `Bearer …`, or the password of `ws://any:TOKEN@host`, the one way that vla-eval's harness has."""
    # All of them: a request may have the header twice.
    for value in request.headers.get_all("Authorization"):
        scheme, _, given = value.partition(" ")
        if scheme.lower() == "basic":
            try:
                given = b64decode(given, validate=True).decode().partition(":")[2]
            except ValueError:
                continue
        elif scheme.lower() not in ("api-key", "bearer"):
            continue
        # In a time that does not depend on how much of it is right.
        if hmac.compare_digest(given.strip().encode(), token.encode()):
            return True
    return False


class Peer(ServerConnection):
    """A connection, counted from its first byte to its last."""

    def __init__(
        self, protocol: ServerProtocol, server: Server, *, gate: Gate, **settings: Any
    ) -> None:
        super().__init__(protocol, server, **settings)
        self.gate = gate
        self.is_session = False
        self.is_busy = False  # an answer is under way
        self.number = 0  # of the session, for the log
        self._pace = Pace(gate.allowed.rate)
        self._frames = Pace(gate.allowed.rate * FRAMES)
        self._dropped = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        room = self.gate.has_room()
        self.gate.peers.add(self)
        super().connection_made(transport)
        if not room:
            self.drop("sockets")

    def connection_lost(self, exc: Exception | None) -> None:
        if self.request is None and not self._dropped:
            self.gate.metrics.dropped.add("handshake")
        self.gate.peers.discard(self)
        self.gate.metrics.sessions.set(len(self.gate.sessions))
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Answers wait until there is room; what a websocket answers by itself, to pings, does not.
        if self.transport.get_write_buffer_size() > UNREAD:
            self.drop("unread")

    def process_event(self, event: Any) -> None:
        if self.request is not None and self._frames.delay():
            self.drop("frames")
        super().process_event(event)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """While an answer is under way: a server that is told to stop waits for it."""
        self.is_busy = True
        try:
            yield
        finally:
            self.is_busy = False

    def drop(self, reason: str) -> None:
        """Hang up at once, without a word."""
        if not self._dropped:
            self._dropped = True
            self.gate.metrics.dropped.add(reason)
        self.transport.abort()

    async def heard(self) -> bytes | str:
        """The next message, no sooner than the rate allows. Raises ConnectionClosed."""
        delay = self._pace.delay()
        while delay:
            await asyncio.sleep(delay)
            delay = self._pace.delay()
        try:
            async with asyncio.timeout(self.gate.allowed.idle):
                return await self.recv()
        except TimeoutError:
            await self.close(IDLE, f"nothing was said for {self.gate.allowed.idle:g} s")
            return await self.recv()  # raises ConnectionClosed

    async def say(self, frame: bytes | str) -> None:
        """Send a message; a peer that does not read is hung up on. Raises ConnectionClosed."""
        try:
            async with asyncio.timeout(self.gate.allowed.stalled):
                await self.send(frame)
        except TimeoutError:
            self.drop("stalled")
            await self.wait_closed()

    def ended(self, closed: ConnectionClosed) -> str:
        """Why a connection ended, in a word; counted where the server ended it."""
        ours = closed.sent
        if self._dropped:
            return "dropped"
        if closed.rcvd is not None and (ours is None or closed.rcvd_then_sent):
            return "closed"
        if ours is None:
            return "vanished"
        word = REASONS.get(ours.code, "malformed")
        self.gate.metrics.dropped.add(word)
        return word


class Pace:
    """So many a second, and at once as many as two seconds have."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._most = max(2 * rate, 1.0)
        self._room = self._most
        self._last = time.monotonic()

    def delay(self) -> float:
        """Takes one, and gives 0; where there is none, the seconds until there will be."""
        now = time.monotonic()
        self._room = min(self._room + (now - self._last) * self.rate, self._most)
        self._last = now
        if self._room < 1:
            # Not less than clocks can tell: the next time must find it.
            return max((1 - self._room) / self.rate, 1e-4)
        self._room -= 1
        return 0.0


def is_loopback(host: str) -> bool:
    """Whether nobody from another machine reaches a server there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
