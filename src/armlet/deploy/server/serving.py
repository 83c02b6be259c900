"""A server from its first socket to its last: it listens, hands each connection to its protocol, and
stops when it is told to (SIGTERM, SIGINT), answers under way first.

A second signal does not wait for them. Knows sockets and signals; knows no policy.
"""

import asyncio
import contextlib
import errno
import functools
import logging
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from websockets.asyncio.server import Server, serve
from websockets.exceptions import ConnectionClosed

from armlet.deploy.server.house import House, Overheard
from armlet.deploy.server.peers import CLOSING, GOING_AWAY, PING, Gate, Peer

Speak = Callable[[Peer, House], Awaitable[None]]
INTERNAL = 1011
LOOK = 0.02  # seconds between looks whether a session has ended


@dataclass(frozen=True)
class Port:
    """Where a protocol is spoken, and how; `port` 0: one that is free."""

    name: str
    port: int
    speak: Speak


def run(house: House, gate: Gate, host: str, ports: Sequence[Port]) -> None:
    """Serve until a signal says to stop. Raises OSError naming a port that cannot be had."""
    spoken = logging.getLogger("asyncio")
    overheard = Overheard(house.journal)
    spoken.addFilter(overheard)
    try:
        asyncio.run(_run(house, gate, host, ports))
    finally:
        spoken.removeFilter(overheard)


async def _run(house: House, gate: Gate, host: str, ports: Sequence[Port]) -> None:
    hurry = asyncio.Event()
    _on_signals(house.stopping, hurry)
    servers = []
    for port in ports:
        server = await _listening(house, gate, host, port)
        servers.append(server)
        said = f"[{host}]" if ":" in host else host
        number = server.sockets[0].getsockname()[1]
        house.journal.note("serving", f"{port.name} at ws://{said}:{number}")
    await house.stopping.wait()
    house.journal.note("stopping", f"{len(gate.sessions)} robots are connected")
    for server in servers:
        server.close(close_connections=False)
    await _ended(gate, hurry, house.allowed.stopping)
    for server in servers:
        await server.wait_closed()


def _on_signals(stopping: asyncio.Event, hurry: asyncio.Event) -> None:
    def stop() -> None:
        (hurry if stopping.is_set() else stopping).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


async def _listening(house: House, gate: Gate, host: str, port: Port) -> Server:
    numbers = iter(range(1, sys.maxsize))

    async def handle(peer: Peer) -> None:
        peer.number = next(numbers)
        where = f"{port.name} {peer.number}"
        house.journal.note("connected", f"{where} from {_address(peer)}")
        why = "closed"
        try:
            await port.speak(peer, house)
            # Its loop has ended: the server stops.
            await peer.close(GOING_AWAY, "the server stops")
        except ConnectionClosed as closed:
            why = peer.ended(closed)
        except Exception:  # a fault of ours: it ends this connection and no other
            house.metrics.errors.add("internal")
            house.journal.warn("internal", traceback.format_exc())
            why = "a fault of the server"
            await peer.close(INTERNAL, why)
        house.journal.note("disconnected", f"{where}, {why}")

    quiet = logging.getLogger("armlet.serve.websockets")
    quiet.setLevel(logging.CRITICAL)  # what it would say of peers, the journal says
    try:
        return await serve(
            handle,  # type: ignore[arg-type]  # its connections are peers, as `create_connection` says
            host,
            port.port,
            compression=None,  # of a few bytes it would make many
            process_request=gate.look,
            open_timeout=house.allowed.handshake,
            ping_interval=min(PING, house.allowed.stalled),
            ping_timeout=house.allowed.stalled,
            close_timeout=CLOSING,
            max_size=house.allowed.largest,
            max_queue=1,
            logger=quiet,
            create_connection=functools.partial(Peer, gate=gate),  # type: ignore[arg-type]
        )
    except OSError as error:
        fix = (
            "another server is there; give another port" if error.errno == errno.EADDRINUSE else ""
        )
        raise OSError(
            error.errno,
            f"{host}:{port.port} for {port.name} cannot be had ({error.strerror or error})"
            + (f": {fix}" if fix else ""),
        ) from error


async def _ended(gate: Gate, hurry: asyncio.Event, timeout: float) -> None:
    """Sessions without an answer under way end now, the others after it, or after `timeout`."""
    closing = []
    for peer in gate.sessions:
        if not peer.is_busy:
            closing.append(asyncio.create_task(peer.close(GOING_AWAY, "the server stops")))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            while gate.peers and not hurry.is_set():
                await asyncio.sleep(LOOK)
    for peer in list(gate.peers):
        peer.drop("stopping")
    await asyncio.gather(*closing, return_exceptions=True)


def _address(peer: Peer) -> str:
    address = peer.remote_address
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "nobody knows where"
