"""Traffic that means harm, or nothing: a million malformed messages, peers that stall and vanish,
frames that lie about their size. What the server must be afterwards: there, well, as large as
before, and of the same answers.

    python tests/server/hostile.py --messages 1000000 [--seed 0]
    python tests/server/hostile.py --seconds 60 --seed 7

The same seed sends the same bytes. It starts a server of its own (moody.py).
"""

import argparse
import asyncio
import contextlib
import io
import os
import pickle
import random
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from policy_server import packed, unpacked
from running import Raw, Running, framed, handshake, observation, running, until

from armlet.deploy.server.house import LINES, MINUTE

LARGEST = 2**20  # bytes of a message, as the server is told
SESSIONS = 24
PEERS = 8  # that are at it at the same time
FRAMES = 400  # of one connection
KINDS = 16  # of lines in the log: two protocols' faults, connections that come and go
GROWTH = 48.0  # MiB: of allocators, not of what peers sent
OPTIONS = (
    "--limits.sessions", str(SESSIONS), "--limits.largest", str(LARGEST), "--limits.rate", "1e6",
    "--limits.handshake", "2", "--limits.stalled", "10",
)  # fmt: skip


class Armed:
    """Unpickled, it leaves a trace."""

    def __init__(self, trace: str) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (self.trace,)


class Malice:
    """What is sent, drawn from a seed. `trace`: a folder that is made where code of a peer runs."""

    def __init__(self, seed: int, trace: str) -> None:
        self.rng = random.Random(seed)
        self.pickled = pickle.dumps(Armed(trace))
        self.good = [
            packed(observation(), as_bytes=True),
            packed(self._of_vla_eval(), as_bytes=False),
        ]
        self.kinds: tuple[Callable[[], bytes], ...] = (
            self.noise, self.broken, self.anything, self.lying_array, self.lying_picture,
            self.promise, self.deep, self.wide, self.swapped,
        )  # fmt: skip

        self.broken_frames = (
            framed(b"\xff\xfe", opcode=1),  # a text that is none
            framed(b"", opcode=3),
            framed(b"", opcode=11),
            b"\xf2" + framed(b"x")[1:],  # bits that nobody may set
            b"\x82\x03abc",  # not masked
            struct.pack("!BBQ", 0x82, 0xFF, 2**62) + bytes(40),
            struct.pack("!BBQ", 0x82, 0xFF, LARGEST + 1) + bytes(4) + b"abc",
            framed(b"\x00", opcode=8),
            framed(b"x" * 200, opcode=9),  # a ping that is too long
            framed(b"", fin=False) + framed(b"", opcode=0, fin=False) * 30,  # no end
        )

    def _of_vla_eval(self) -> dict[str, Any]:
        told = observation()
        payload = {"images": {"eye": told["observation/eye"]}, "states": [0.0, 1.0],
                   "task_description": "go"}  # fmt: skip
        return {"type": "observation", "payload": payload, "seq": 1, "timestamp": 0.0}

    def message(self) -> bytes:
        """A payload: malformed, or well formed and no observation."""
        return self.rng.choice(self.kinds)()

    def noise(self) -> bytes:
        return self.rng.randbytes(self.rng.choice((0, 1, 3, 40, 700)))

    def broken(self) -> bytes:
        """A good message, bits turned over, cut short or with more behind it."""
        data = bytearray(self.rng.choice(self.good))
        for _ in range(self.rng.randrange(1, 6)):
            data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
        way = self.rng.randrange(3)
        if way == 0:
            return bytes(data[: self.rng.randrange(len(data))])
        return bytes(data) + (self.rng.randbytes(9) if way == 1 else b"")

    def value(self, depth: int = 0) -> Any:
        rng = self.rng
        kind = rng.randrange(9 if depth < 3 else 7)
        if kind == 0:
            return rng.choice((0, -1, 2**63, -(2**63), 2**64 - 1))
        if kind == 1:
            return rng.choice((float("nan"), float("inf"), 1e308, -0.0))
        if kind == 2:
            return rng.choice(("", "go", "raise", "nan", "\x00", "eye", "x" * 300, "é" * 9))
        if kind == 3:
            return rng.randbytes(rng.randrange(20))
        if kind == 4:
            return rng.choice((None, True, False))
        if kind == 5:
            return msgpack.ExtType(rng.randrange(128), b"1234")
        if kind == 6:
            return msgpack.Timestamp(rng.randrange(2**30))
        if kind == 7:
            return [self.value(depth + 1) for _ in range(rng.randrange(5))]
        names = ("type", "payload", "seq", "images", "eye", "state", "prompt", "__ndarray__",
                 "__image__", "__npgeneric__", "data", "dtype", "shape", "reset", "a/b", "a.b")  # fmt: skip
        return {rng.choice(names): self.value(depth + 1) for _ in range(rng.randrange(6))}

    def anything(self) -> bytes:
        return msgpack.packb(self.value())

    def within(self, value: Any) -> bytes:
        """A message in which this stands where a picture, a state or words are expected."""
        told = {key: each.tolist() if isinstance(each, np.ndarray) else each
                for key, each in observation().items()}  # fmt: skip
        told[self.rng.choice(("observation/eye", "observation/state", "prompt", "more"))] = value
        if self.rng.random() < 0.5:
            told = {"type": "observation", "payload": told, "seq": 1, "timestamp": 0}
        return msgpack.packb(told)

    def lying_array(self) -> bytes:
        rng = self.rng
        dtype = rng.choice(("|O", "O", "<f4", "|u1", "<M8[s]", "|V9", "f4,O", "<U5", "c16", "(2,)f4",
                            "x" * 400, "f4," * 2000, "<f4\x00", "S2", b"|O", 3, None, ["<f4"]))  # fmt: skip
        shape = rng.choice(([1], [2**40, 2**40], [-1], [0], [0, 2**62], [1] * 65, [2**63] * 30000,
                            [1.5], "16", None, [], [True], [4, 4, 3]))  # fmt: skip
        data = rng.choice((b"", b"1234", self.pickled, bytes(48), "1234", None, 3, [1, 2]))
        name = rng.choice(("__ndarray__", "__npgeneric__"))
        said = {name: True, "dtype": dtype, "shape": shape, "data": data}
        for key in rng.sample(sorted(said), rng.choice((0, 0, 0, 1))):
            del said[key]
        if rng.random() < 0.3:
            said = {key.encode(): each for key, each in said.items()}
        return self.within(said)

    def lying_picture(self) -> bytes:
        rng = self.rng
        data = rng.choice((b"", rng.randbytes(60), self.pickled, bomb(rng), b"\x89PNG\r\n\x1a\n",
                           b"\xff\xd8\xff\xe0", b"%!PS-Adobe-3.0 EPSF-3.0\n", "text", None))  # fmt: skip
        form = rng.choice(("png", "jpeg", "raw", "eps", "gif", b"png", ["png"], None, 1, "PNG"))
        return self.within({"__image__": True, "format": form, "data": data, "shape": [16, 16, 3]})

    def promise(self) -> bytes:
        """A header that promises thousands of millions of entries or bytes."""
        head = self.rng.choice((b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9", b"\xdc", b"\xde"))
        return head + self.rng.choice(
            (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x01\x00\x00")
        )

    def deep(self) -> bytes:
        return (
            self.rng.choice((b"\x91", b"\x81\xa1a")) * self.rng.choice((40, 600, 30000)) + b"\xc0"
        )

    def wide(self) -> bytes:
        """Entries that take a byte here and hundreds there."""
        count = self.rng.choice((2000, 40000, 200000))
        return (
            b"\xdd"
            + struct.pack("!I", count)
            + self.rng.choice((b"\x80", b"\x90", b"\xc0")) * count
        )

    def swapped(self) -> bytes:
        """Well formed, and of a kind that is not expected here."""
        kind = self.rng.choice(("hello", "error", "episode_end", "action", "dance", 3, None, [1]))
        payload = self.rng.choice(({}, {"protocol_version": 9}, {"error": "x" * 99}, [], None, 1))
        seq = self.rng.choice((1, -1, 2**64 - 1, 1.5, "1", None, True))
        return msgpack.packb({"type": kind, "payload": payload, "seq": seq, "timestamp": None})

    def frame(self) -> tuple[bytes, bool]:
        """A websocket's frame, and whether the connection may go on behind it."""
        rng = self.rng
        way = rng.random()
        if way < 0.02:
            pings = framed(b"ping", opcode=9) * rng.choice((1, 50))
            return rng.choice((framed(b"words", opcode=1), pings)), True
        if way < 0.04:
            cut = framed(self.message())[: rng.randrange(1, 9)]  # and then silence
            return rng.choice((*self.broken_frames, cut)), False
        return framed(self.message()), True


def bomb(rng: random.Random) -> bytes:
    """A picture of a few hundred bytes and very many pixels."""
    side = rng.choice((300, 9000, 60000))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))
        )

    file = io.BytesIO()
    file.write(b"\x89PNG\r\n\x1a\n")
    file.write(chunk(b"IHDR", struct.pack("!IIBBBBB", side, side, 8, 2, 0, 0, 0)))
    file.write(chunk(b"IDAT", zlib.compress(bytes(3000))))
    file.write(chunk(b"IEND", b""))
    return file.getvalue()


async def attack(server: Running, malice: Malice, go_on: Callable[[int], bool]) -> int:
    """Peers that do wrong until `go_on` says no more; gives the messages that were sent."""
    sent = 0

    async def swallow(raw: Raw) -> None:
        while await raw.reader.read(2**16):
            pass

    async def peer(port: int) -> None:
        nonlocal sent
        while go_on(sent):
            try:
                if malice.rng.random() < 0.05:
                    sent += await half_open(port, malice)
                    continue
                raw = await Raw.open(port)
            except (OSError, ConnectionError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.01)
                continue
            swallowing = asyncio.create_task(swallow(raw))
            try:
                for _ in range(malice.rng.choice((1, 20, FRAMES))):
                    frame, goes_on = malice.frame()
                    raw.write(frame)
                    sent += 1
                    await raw.writer.drain()
                    if not goes_on or not go_on(sent):
                        break
            except OSError:
                pass  # the server has hung up
            finally:
                with_a_word = malice.rng.random() < 0.5
                if with_a_word:
                    raw.write(framed(b"\x03\xe8", opcode=8))
                    await asyncio.wait([swallowing], timeout=1)
                raw.vanish()
                swallowing.cancel()

    ports = list(server.ports.values())
    await asyncio.gather(*(peer(ports[number % len(ports)]) for number in range(PEERS)))
    return sent


async def half_open(port: int, malice: Malice) -> int:
    """A connection that becomes no websocket."""
    raw = Raw(*await asyncio.open_connection("127.0.0.1", port))
    head = handshake(port)
    ways = (
        b"",
        head[:40],
        b"\x00" * 300,
        b"GET /healthz HTTP/1.1\r\n" + b"a: b\r\n" * 500,
        b"GET " + b"/" * 20000 + b" HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
        b"GET /%00/../etc/passwd HTTP/1.1\r\n\r\n",
        head.replace(b"Version: 13", b"Version: 12"),
    )
    raw.write(malice.rng.choice(ways))
    with contextlib.suppress(TimeoutError, OSError):
        await asyncio.wait_for(raw.reader.read(2**16), malice.rng.choice((0.0, 0.05)))
    raw.vanish()
    return 1


async def is_as_before(server: Running) -> bytes:
    """The answer to a good observation."""
    raw = await Raw.open(server.ports["openpi"])
    await raw.frame()
    raw.write(framed(packed(observation(), as_bytes=True)))
    _, payload = await raw.frame()
    raw.vanish()
    return unpacked(payload)["actions"].tobytes()


def besiege(
    server: Running, seed: int, trace: Path, *, messages: int = 0, seconds: float = 0.0
) -> dict[str, float]:
    """All of it, and what the server is afterwards. Raises AssertionError."""
    malice = Malice(seed, str(trace))

    def go_on(sent: int) -> bool:
        return time.monotonic() < begun + seconds if seconds else sent < messages

    expected = asyncio.run(is_as_before(server))
    warm = Malice(seed + 1, str(trace))
    asyncio.run(attack(server, warm, lambda sent: sent < min(5000, messages or 5000)))
    before = server.memory()
    files = len(os.listdir(f"/proc/{server.process.pid}/fd"))
    begun = time.monotonic()
    sent = asyncio.run(attack(server, malice, go_on))
    took = time.monotonic() - begun
    assert server.process.poll() is None, "".join(server.log)[-3000:]
    until(lambda: server.metric("sessions") == 0, 60)
    assert server.page("/healthz") == (200, "OK\n")
    assert asyncio.run(is_as_before(server)) == expected
    assert not trace.exists(), "code of a peer has run"
    until(lambda: len(os.listdir(f"/proc/{server.process.pid}/fd")) <= files + 2, 60)
    assert 'kind="internal"' not in server.page("/metrics")[1], "".join(server.log)[-3000:]
    after = server.memory()
    assert after - before < GROWTH, f"{before:.0f} MiB before, {after:.0f} after"
    # Of each kind a few lines a minute and how many more there were, whatever the peers send.
    most = KINDS * (LINES + 1) * (took / MINUTE + 2)
    assert len(server.log) < most, "the log grows with what peers send"
    return {
        "messages": sent,
        "seconds": took,
        "MiB before": before,
        "MiB after": after,
        "lines": len(server.log),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(*OPTIONS) as server:
        trace = Path(folder) / "trace"
        found = besiege(server, told.seed, trace, messages=told.messages, seconds=told.seconds)
        counted = [line for line in server.page("/metrics")[1].splitlines() if "{kind" in line]
        assert server.stop() == 0
    words = ", ".join(f"{name} {value:.0f}" for name, value in found.items())
    sys.stdout.write(f"seed {told.seed}: {words}\n" + "\n".join(counted) + "\n")


if __name__ == "__main__":
    main()
