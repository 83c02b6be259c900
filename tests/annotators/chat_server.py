"""A real HTTP server on loopback that speaks the chat-completions wire format, and misbehaves as
told."""

import base64
import hashlib
import io
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

GOOD = '{"element": "red drawer", "direction": "pull"}'


@dataclass(frozen=True)
class Reply:
    """`text` what the model says; or a `status` other than 200; or raw `body`; `reset`: the
    connection is torn down."""

    text: str = GOOD
    status: int = 200
    body: bytes | None = None
    reset: bool = False
    delay: float = 0.0


@dataclass
class Chat:
    """What was asked so far, as the server saw it, and what it answers: (number of the request,
    body) → Reply."""

    answer: Callable[[int, dict[str, Any]], Reply]
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    url: str = ""
    busy: int = 0
    most_busy: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def questions(self) -> list[str]:
        """One hash for every request, the same for the same question."""
        return [
            hashlib.sha256(json.dumps(each["messages"]).encode()).hexdigest()
            for each in self.requests
        ]


def pictures(request: dict[str, Any]) -> list[np.ndarray]:
    """The pictures of a request, decoded."""
    urls = [
        part["image_url"]["url"]
        for part in request["messages"][1]["content"]
        if part["type"] == "image_url"
    ]
    assert all(url.startswith("data:image/png;base64,") for url in urls)
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1])))) for url in urls
    ]


def words(request: dict[str, Any]) -> str:
    return request["messages"][1]["content"][0]["text"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    chat: Chat

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        assert self.path == "/v1/chat/completions"
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chat = self.chat
        with chat.lock:
            number = len(chat.requests)
            chat.requests.append(request)
            chat.keys.append(self.headers["Authorization"])
            chat.busy += 1
            chat.most_busy = max(chat.most_busy, chat.busy)
        reply = chat.answer(number, request)
        time.sleep(reply.delay)
        with chat.lock:
            chat.busy -= 1
        if reply.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        message = {"role": "assistant", "content": reply.text}
        completion = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": request["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
        }
        if reply.status != 200:
            completion = {"error": {"message": "not now", "type": "test"}}
        body = reply.body if reply.body is not None else json.dumps(completion).encode()
        try:
            self.send_response(reply.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header(
                "retry-after-ms", "20"
            )  # what a server may say, and tests have no time for less
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


@contextmanager
def serve(answer: Callable[[int, dict[str, Any]], Reply] = lambda number, request: Reply()):
    """A server, until the block ends."""
    chat = Chat(answer)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"chat": chat}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    chat.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield chat
    finally:
        server.shutdown()
        server.server_close()
