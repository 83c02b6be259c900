"""A real S3 server on loopback, in a process of its own: moto's, one request at a time, so that
conditional writes are atomic as they are on S3; and with faults that a test asks for.

    python tests/s3_server.py          prints the port; ends with its standard input

`POST /_faults`, a JSON list: each of {"method", "path" (a pattern), "do", "times"}. do: a status of
HTTP with an error's code ("503 SlowDown"); "cut", the body ends half way; "lost", the request is
carried out and the connection dies before the answer; "unconditional", it is carried out whatever
is there, as by a store that knows no `If-None-Match`.
"""

import json
import re
import sys
import threading
from collections.abc import Iterable

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


class Server:
    """The application: moto's behind faults."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.faults: list[dict] = []
        self.counted: dict[str, int] = {}
        self.moto = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict, start_response) -> Iterable[bytes]:
        with self.lock:
            path = environ["PATH_INFO"]
            if path == "/_faults":
                size = int(environ.get("CONTENT_LENGTH") or 0)
                self.faults = json.loads(environ["wsgi.input"].read(size) or b"[]")
                start_response("200 OK", [])
                return [json.dumps(self.counted).encode()]
            method = environ["REQUEST_METHOD"]
            self.counted[method] = self.counted.get(method, 0) + 1
            fault = self._due(method, path)
            if fault is not None and fault["do"][0].isdigit():
                status, code = fault["do"].split()
                start_response(f"{status} {code}", [("Content-Type", "application/xml")])
                return [f"<Error><Code>{code}</Code><Message>asked for</Message></Error>".encode()]
            if fault is not None and fault["do"] == "unconditional":
                environ.pop("HTTP_IF_NONE_MATCH", None)
            answered = []

            def answer(status, headers, *_):
                answered.append((status, headers))

            body = b"".join(self.moto(environ, answer))
            if fault is not None and fault["do"] == "lost":
                raise ConnectionResetError("lost, as a test asked for")
            start_response(*answered[0])
            cut = fault is not None and fault["do"] == "cut"
            return [body[: len(body) // 2] if cut else body]

    def _due(self, method: str, path: str) -> dict | None:
        for fault in self.faults:
            if fault["times"] and fault["method"] == method and re.search(fault["path"], path):
                fault["times"] -= 1
                return fault
        return None


def main() -> None:
    server = make_server("127.0.0.1", 0, Server(), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
