"""Upload: files into a model's repository on the hub, all of them in one commit or none.

The hub's own library speaks to the server, so its settings hold (HF_ENDPOINT, HF_TOKEN, what `hf
auth login` keeps). Large files go up first and are kept by their hash: after a kill the same command
sends only those that are not there yet, and a repository never shows half a policy. Knows files and
names; knows no policy.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)

from armlet.data.download import HubError
from armlet.data.hub_name import MAIN, Name

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
MARK = "armlet"  # a tag of the card: armlet published what is there
# What a repository may hold before anybody has put something into it.
EMPTY = (".gitattributes", "README.md")


@dataclass(frozen=True)
class There:
    """What is at a name already: the commit, and the files of it; `ours`: armlet published it, or
    nothing has been published there yet."""

    commit: str | None
    files: tuple[str, ...]
    private: bool
    ours: bool


def upload(name: Name, files: Mapping[str, Path | bytes], *, private: bool, message: str) -> str:
    """Commit these files, path → where they are or what is in them, to a model's repository, which
    is made where there is none; what armlet published there before and is no longer among them
    goes. Returns the address of the commit.

    Raises ValueError where somebody else's files are there, or it is public and `private` is asked
    for; HubError saying in one line what the hub refused, and what to do.
    """
    api = HfApi()
    try:
        there = look(api, name)
        if there is not None:
            _check(name, there, private=private)
        api.create_repo(name.repo, repo_type="model", private=private or None, exist_ok=True)
        there = there or look(api, name)
        _check_visibility(name, there, private=private)
        operations: list[CommitOperationAdd | CommitOperationDelete] = []
        for path, content in files.items():
            given = content if isinstance(content, bytes) else str(content)
            operations.append(CommitOperationAdd(path_in_repo=path, path_or_fileobj=given))
        for path in _stale(there, files):
            operations.append(CommitOperationDelete(path_in_repo=path))
        done = api.create_commit(
            name.repo,
            operations,  # type: ignore[arg-type]  # a list of either, which it takes
            commit_message=message,
            repo_type="model",
            revision=MAIN,
            # Somebody who commits meanwhile is not written over.
            parent_commit=there.commit if there else None,
        )
    except (HubError, ValueError):
        raise
    except (HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OSError, RuntimeError) as error:
        raise HubError(_refusal(error, name)) from error
    return str(done.commit_url)


def look(api: HfApi, name: Name) -> There | None:
    """What is at a name on the hub; None where nothing is, or nothing that may be seen."""
    try:
        info = api.model_info(name.repo, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except RepositoryNotFoundError:
        return None
    files = tuple(each.rfilename for each in info.siblings or ())
    nothing = set(files) <= set(EMPTY)
    ours = nothing or MARK in (info.tags or ())
    return There(info.sha, files, bool(info.private), ours)


def _check(name: Name, there: There, *, private: bool) -> None:
    _check_visibility(name, there, private=private)
    if not there.ours:
        shown = ", ".join(there.files[:5])
        raise ValueError(
            f"{name}: there is a model of that name on {_host()} which armlet did not publish "
            f"({shown}); it is left as it is. Choose another name, or delete it there"
        )


def _check_visibility(name: Name, there: There | None, *, private: bool) -> None:
    if private and there is not None and not there.private:
        raise ValueError(
            f"{name} is there already and everybody may see it, and --private is asked for; make it "
            "private in its settings on the hub, or choose another name"
        )


def _stale(there: There | None, files: Mapping[str, Path | bytes]) -> list[str]:
    """What armlet published there before, and is none of the files any more."""
    if there is None:
        return []
    return [path for path in there.files if path not in files and path != ".gitattributes"]


def _refusal(error: Exception, name: Name) -> str:
    """What went wrong, in a line that quotes no address that may hold a secret."""
    again = "the same command goes on: what has gone up is kept"
    for cause in _causes(error):
        if isinstance(cause, LocalTokenNotFoundError):
            return f"{name}: publishing needs an account; {LOGIN}"
        if isinstance(cause, HfHubHTTPError):
            return _answered(cause.response.status_code, cause, name, again)
    first = re.sub(r"\S+://\S+", "…", str(error).strip().split("\n")[0])
    return f"{name}: {_host()} cannot be reached ({type(error).__name__}: {first}); {again}"


def _answered(status: int, error: HfHubHTTPError, name: Name, again: str) -> str:
    host = _host()
    if status == 401:
        known = huggingface_hub.get_token() is not None
        why = "does not accept the token in use" if known else "asks who you are"
        return f"{name}: {host} {why} (401); {LOGIN}, with a token that may write"
    if status == 403:
        owner = name.repo.partition("/")[0]
        return (
            f"{name}: the token in use may not write to what belongs to {owner} (403); take a token "
            f"that may write, or a name of your own; {LOGIN}"
        )
    if status == 412:
        return (
            f"{name}: somebody committed there meanwhile, and is not written over (412); look at "
            "it, and run the same again"
        )
    said = " ".join(str(error.server_message or "").split())
    said = re.sub(r"\S+://\S+", "…", said)[:200]
    reason = f": {said}" if said else ""
    if status >= 500:
        return f"{name}: {host} failed ({status}{reason}); {again}"
    return f"{name}: {host} refuses it ({status}{reason})"


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in found:
        found.append(cause)
        cause = cause.__cause__ or cause.__context__
    return found


def _host() -> str:
    parts = urlsplit(constants.ENDPOINT)
    return f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname or "the hub"


def say(text: str) -> None:
    """A remark on what is taken all the same."""
    sys.stderr.write(f"publish: {text}\n")
