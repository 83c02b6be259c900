"""A hub on this machine for tests: what huggingface_hub asks a server for, over real HTTP. Files
above `LARGE` bytes are kept as a hub
keeps those of Git LFS: under another address, to which it sends whoever asks."""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import hub_writes

LARGE = 1500
PAGE = 5  # files of a listing at a time
Answer = tuple[int, dict[str, str], bytes]


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@dataclass
class Repository:
    """`commits` sha → files; `revisions` branch or tag → sha; `token`: who may read it, everybody
    where it is empty."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    token: str = ""
    gated: bool = False
    private: bool = False

    def commit(self, files: dict[str, bytes], *revisions: str) -> str:
        sha = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[sha] = files
        for revision in revisions or ("main",):
            self.revisions[revision] = sha
        return sha


@dataclass
class Hub:
    """`asked`: (method, path, Authorization) of every request. `breaks`: paths of files whose bytes
    stop half way, once each or, in
    `fails`, that are answered 500."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    breaks: set[str] = field(default_factory=set)
    fails: set[str] = field(default_factory=set)
    # For those who write: token → whose repositories it may write to; what was sent by Git LFS, by
    # its hash, and in which order; from how many bytes on a file goes that way.
    accounts: dict[str, set[str]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)
    large: int = LARGE
    answer: Callable[[str], Answer | None] = lambda path: None
    stop: Callable[[], None] = lambda: None

    def repository(self, kind: str, name: str) -> Repository:
        """That of a kind (datasets, models) and name; a new one where there is none."""
        return self.repositories.setdefault(f"{kind}/{name}", Repository())

    @property
    def elsewhere(self) -> str:
        """The address of large files: another host, which is to see no token."""
        return self.address.replace("127.0.0.1", "localhost")

    @property
    def fetched(self) -> list[str]:
        """The files that were fetched, by their names in the repository, since the last look."""
        found = []
        for method, path, _ in self.asked:
            for where in ("/resolve/", "/large/"):
                if method == "GET" and where in path:
                    found.append(unquote(path.split(where)[1].split("/", 1)[1]))
        self.asked.clear()
        return sorted(found)


def tags_of(readme: bytes) -> list[str]:
    """The tags of a card, as the hub reads them from its head."""
    head = hub_writes.CARD.match(readme)
    return re.findall(r"^- (\S+)$", head[1].decode(), re.MULTILINE) if head else []


def _refused(status: int, code: str = "", message: str = "no") -> Answer:
    return (
        status,
        {"X-Error-Code": code, "X-Error-Message": message},
        json.dumps({"error": message}).encode(),
    )


def _found(hub: Hub, path: str, query: dict[str, list[str]], authorization: str) -> Answer:
    parts = path.strip("/").split("/")
    if parts[0] == "large":
        content = next(
            content
            for each in hub.repositories.values()
            for files in each.commits.values()
            for content in files.values()
            if hashlib.sha256(content).hexdigest() == parts[1]
        )
        return 200, {"ETag": f'"{parts[1]}"'}, content
    api = parts[0] == "api"
    kind = parts.pop(1) if api else (parts.pop(0) if parts[0] == "datasets" else "models")
    parts = parts[1:] if api else parts
    name, rest = "/".join(parts[:2]), parts[2:]
    repository = hub.repositories.get(f"{kind}/{name}")
    if authorization == "Bearer stale":
        return _refused(401, message="Invalid credentials in Authorization header")
    if repository is None or (
        repository.token and authorization != f"Bearer {repository.token}" and not repository.gated
    ):
        return _refused(404 if authorization else 401, "RepoNotFound", "Repository not found")
    if rest == ["refs"]:
        refs = [
            {"name": each, "ref": f"refs/heads/{each}", "targetCommit": sha}
            for each, sha in repository.revisions.items()
        ]
        return 200, {}, json.dumps({"branches": refs, "tags": [], "converts": []}).encode()
    revision = unquote(rest[1]) if rest else "main"
    sha = revision if revision in repository.commits else repository.revisions.get(revision, "")
    if not sha:
        return _refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    files = repository.commits[sha]
    if api and rest[:1] != ["tree"]:
        return (
            200,
            {},
            json.dumps(
                {
                    "id": name,
                    "sha": sha,
                    "private": repository.private,
                    "tags": tags_of(files.get("README.md", b"")),
                    "siblings": [{"rfilename": each} for each in files],
                }
            ).encode(),
        )
    if api:
        return _tree(hub, path, files, int(query.get("cursor", ["0"])[0]))
    return _file(hub, repository, sha, "/".join(map(unquote, rest[2:])), authorization)


def _tree(hub: Hub, path: str, files: dict[str, bytes], first: int) -> Answer:
    entries = []
    for name, content in list(files.items())[first : first + PAGE]:
        entry = {
            "type": "file",
            "path": name,
            "size": len(content),
            "oid": hashlib.sha1(content).hexdigest(),
        }
        if len(content) > LARGE:
            entry["lfs"] = {
                "oid": hashlib.sha256(content).hexdigest(),
                "size": len(content),
                "pointerSize": 130,
            }
        entries.append(entry)
    following = (
        {"Link": f'<{hub.address}{path}?cursor={first + PAGE}>; rel="next"'}
        if first + PAGE < len(files)
        else {}
    )
    return 200, following, json.dumps(entries).encode()


def _file(hub: Hub, repository: Repository, sha: str, name: str, authorization: str) -> Answer:
    if repository.gated and authorization != f"Bearer {repository.token}":
        return _refused(403 if authorization else 401, "GatedRepo", "Access to this is restricted")
    content = repository.commits[sha].get(name)
    if content is None:
        return _refused(404, "EntryNotFound", "Entry not found")
    about = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
    if len(content) > LARGE:
        digest = hashlib.sha256(content).hexdigest()
        about |= {
            "X-Linked-Etag": f'"{digest}"',
            "X-Linked-Size": str(len(content)),
            "Location": f"{hub.elsewhere}/large/{digest}/{name}",
        }
        return 302, about, b""
    return 200, about, content


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        authorization = self.headers.get("Authorization", "")
        self.hub.asked.append((self.command, url.path, authorization))
        answer = self.hub.answer(url.path)
        if answer is None and any(url.path.endswith(file) for file in self.hub.fails):
            answer = _refused(500, message="something broke")
        status, headers, content = answer or _found(
            self.hub, url.path, parse_qs(url.query), authorization
        )
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if status == 200 and any(url.path.endswith(file) for file in self.hub.breaks):
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815 - as the class before it names them

    def do_POST(self) -> None:
        self._written(lambda path, who, body: hub_writes.posted(self.hub, path, who, body))

    def do_PUT(self) -> None:
        self._written(lambda path, who, body: hub_writes.put(self.hub, path, body))

    def _written(self, answer: Callable[[str, str, bytes], Answer]) -> None:
        path = urlsplit(self.path).path
        authorization = self.headers.get("Authorization", "")
        body = self._body()
        self.hub.asked.append((self.command, path, authorization))
        given = self.hub.answer(path)
        if given is None and any(path.endswith(file) for file in self.hub.fails):
            given = _refused(500, message="something broke")
        status, headers, content = given or answer(path, authorization, body)
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def log_message(self, *arguments: object) -> None:
        """Nothing: `Hub.asked` has it."""


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    hub.stop = stop
    try:
        yield hub
    finally:
        if thread.is_alive():
            stop()
