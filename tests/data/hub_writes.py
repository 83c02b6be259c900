"""What a hub answers whoever writes to it: a repository made, a card looked at, large files by Git
LFS, a commit. Part of `hub_server`; as the hub's library 2.4 asks (`_commit_api.py`, `lfs.py`)."""

import base64
import hashlib
import json
import re
from typing import Any
from urllib.parse import unquote

Answer = tuple[int, dict[str, str], bytes]
CARD = re.compile(rb"\A---\n(.*?)\n---\n", re.DOTALL)


def said(status: int, value: Any, **headers: str) -> Answer:
    return status, dict(headers), json.dumps(value).encode()


def refused(status: int, message: str, code: str = "") -> Answer:
    return said(status, {"error": message}, **{"X-Error-Message": message, "X-Error-Code": code})


def posted(hub: Any, path: str, authorization: str, body: bytes) -> Answer:
    token = authorization.removeprefix("Bearer ")
    if path == "/api/validate-yaml":
        return _validated(json.loads(body)["content"].encode())
    if token not in hub.accounts:
        return refused(401, "Invalid username or password.")
    if path == "/api/repos/create":
        return _created(hub, json.loads(body), hub.accounts[token])
    lfs = re.fullmatch(r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", path)
    if lfs:
        return _batch(hub, json.loads(body))
    if path == "/lfs/verify":
        wanted = json.loads(body)
        whole = len(hub.blobs.get(wanted["oid"], b"")) == wanted["size"]
        return said(200, {}) if whole else refused(404, "no such blob")
    found = re.fullmatch(r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<what>preupload|commit)/main", path)
    if found is None:
        return refused(404, f"nothing answers {path}")
    repo = found["repo"]
    if f"models/{repo}" not in hub.repositories:
        return refused(404, "Repository not found", "RepoNotFound")
    if repo.partition("/")[0] not in hub.accounts[token]:
        return refused(403, "you may not write here")
    repository = hub.repositories[f"models/{repo}"]
    if found["what"] == "preupload":
        return _modes(hub, repository, json.loads(body))
    return _committed(hub, repository, repo, body)


def put(hub: Any, path: str, body: bytes) -> Answer:
    oid = path.rpartition("/")[2]
    if hashlib.sha256(body).hexdigest() != oid:
        return refused(400, "these bytes have another hash")
    hub.blobs[oid] = body
    hub.sent.append(oid)
    return 200, {}, b""


def _validated(content: bytes) -> Answer:
    head = CARD.match(content)
    if head is None:
        return said(400, {"errors": [{"message": "no metadata"}], "warnings": []})
    return said(200, {"errors": [], "warnings": []})


def _created(hub: Any, asked: dict[str, Any], owns: set[str]) -> Answer:
    owner = asked["organization"]
    name = f"{owner}/{asked['name']}"
    if owner not in owns:
        return refused(403, f"You don't have the rights to create a model under {owner}")
    if f"models/{name}" in hub.repositories:
        return said(
            409, {"error": "You already created this model repo", "url": f"{hub.address}/{name}"}
        )
    repository = hub.repository("models", name)
    repository.private = asked.get("visibility") == "private" or bool(asked.get("private"))
    repository.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
    return said(200, {"url": f"{hub.address}/{name}"})


def _modes(hub: Any, repository: Any, asked: dict[str, Any]) -> Answer:
    here = repository.commits[repository.revisions["main"]]
    files = []
    for each in asked["files"]:
        large = each["size"] > hub.large
        content = here.get(each["path"])
        oid = None
        if content is not None:
            whole = b"blob %d\0" % len(content) + content
            oid = hashlib.sha256(content).hexdigest() if large else hashlib.sha1(whole).hexdigest()
        files.append(
            {
                "path": each["path"],
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": False,
                "oid": oid,
            }
        )
    return said(200, {"files": files})


def _batch(hub: Any, asked: dict[str, Any]) -> Answer:
    objects = []
    for each in asked["objects"]:
        about = {"oid": each["oid"], "size": each["size"]}
        if each["oid"] not in hub.blobs:  # what is here already need not be sent
            about["actions"] = {
                "upload": {"href": f"{hub.address}/lfs/{each['oid']}"},
                "verify": {"href": f"{hub.address}/lfs/verify"},
            }
        objects.append(about)
    return said(200, {"transfer": "basic", "objects": objects})


def _committed(hub: Any, repository: Any, repo: str, body: bytes) -> Answer:
    files = dict(repository.commits[repository.revisions["main"]])
    for line in body.splitlines():
        entry = json.loads(line)
        value = entry["value"]
        if entry["key"] == "header":
            parent = value.get("parentCommit")
            if parent is not None and parent != repository.revisions["main"]:
                return refused(412, "A commit has happened since. Please refresh and try again.")
        elif entry["key"] == "file":
            files[unquote(value["path"])] = base64.b64decode(value["content"])
        elif entry["key"] == "lfsFile":
            if value["oid"] not in hub.blobs:
                return refused(400, f"{value['path']} was never sent")
            files[value["path"]] = hub.blobs[value["oid"]]
        elif entry["key"] == "deletedFile":
            del files[value["path"]]
    sha = repository.commit(files)
    return said(200, {"commitUrl": f"{hub.address}/{repo}/commit/{sha}", "commitOid": sha})
