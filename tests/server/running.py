"""A server of armlet's as a process of its own, and peers that speak to it in bytes of their own."""

import asyncio
import base64
import contextlib
import os
import queue
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
MOODY = (str(HERE / "moody.py"),)
SERVE = ("-m", "armlet", "serve")
PATIENCE = 120.0  # seconds for a process to start on a machine that others use


@dataclass
class Running:
    """A server that listens: its process, its ports by protocol, what it has logged."""

    process: subprocess.Popen
    ports: dict[str, int] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    def address(self, protocol: str = "openpi") -> str:
        return f"ws://127.0.0.1:{self.ports[protocol]}"

    def page(self, path: str, protocol: str = "openpi", **headers: str) -> tuple[int, str]:
        """Status and text of a page."""
        url = f"http://127.0.0.1:{self.ports[protocol]}{path}"
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, headers=headers), timeout=30
            ) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str, **headers: str) -> float:
        """The sum of a metric over its labels."""
        total = 0.0
        for line in self.page("/metrics", **headers)[1].splitlines():
            if re.match(rf"armlet_{re.escape(name)}(\{{| )", line):
                total += float(line.rpartition(" ")[2])
        return total

    def memory(self) -> float:
        """MiB that the process holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def stop(self, number: int = signal.SIGTERM, timeout: float = 60.0) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout)


@contextlib.contextmanager
def running(*arguments: str, program: tuple[str, ...] = MOODY) -> Iterator[Running]:
    """A server started by a program of Python with these arguments, while it lasts, on free ports."""
    words = [sys.executable, *program, *arguments, "--port", "0", "--vla-eval-port", "0"]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    server = Running(process)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            server.log.append(line)
            lines.put(line)
        lines.put("")

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while len(server.ports) < 2:
            line = lines.get(timeout=PATIENCE)
            assert line, "".join(server.log)
            found = re.search(r"serving: (\w+) at ws://.*:(\d+)", line)
            if found:
                server.ports[found[1]] = int(found[2])
        yield server
    finally:
        process.kill()
        process.wait()
        reader.join(10)


# --- peers in bytes


def handshake(port: int, *headers: str) -> bytes:
    lines = [
        "GET / HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}",
        "Sec-WebSocket-Version: 13",
        *headers,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def framed(payload: bytes, opcode: int = 2, *, fin: bool = True) -> bytes:
    """A client's frame; masked with zeros, which leaves the payload as it is."""
    first = (0x80 if fin else 0) | opcode
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", first, 0x80 | size)
    elif size < 2**16:
        head = struct.pack("!BBH", first, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", first, 0x80 | 127, size)
    return head + bytes(4) + payload


class Raw:
    """A connection that does as it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int, *headers: str) -> "Raw":
        """Opened to the end of its handshake. Raises ConnectionError where it is refused."""
        raw = cls(*await asyncio.open_connection("127.0.0.1", port))
        raw.writer.write(handshake(port, *headers))
        said = await raw.reader.readuntil(b"\r\n\r\n")
        if b" 101 " not in said.partition(b"\r\n")[0]:
            raise ConnectionError(said.decode())
        return raw

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def frame(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame. Raises IncompleteReadError where there is none."""
        first, second = await self.reader.readexactly(2)
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", await self.reader.readexactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
        return first & 0x0F, await self.reader.readexactly(size)

    def vanish(self) -> None:
        """Without a word."""
        self.writer.transport.abort()


def until(true: Any, seconds: float = 30.0) -> None:
    """Waits for what comes in its time."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def observation(words: str = "go", seed: int = 0, **more: Any) -> dict[str, Any]:
    """What moody.py's robot sees, as an openpi client says it."""
    rng = np.random.default_rng(seed)
    return {
        "observation/eye": rng.integers(0, 256, (16, 16, 3), np.uint8),
        "observation/state": rng.normal(size=2).astype(np.float32),
        "prompt": words,
        **more,
    }
