"""What a name on the Hugging Face hub stands for, fetched once: a commit, and of its files those
that reading needs.

The hub's own library speaks to the server and keeps its cache, so its settings hold: HF_HOME,
HF_ENDPOINT, HF_TOKEN and what `hf auth login` keeps, HF_HUB_OFFLINE. Two things are added. A commit
counts as being here only where every file that reading needs is, in the size that the hub's listing
of it says, for which the listing must be here too. And a branch or tag stands for the last commit
that was here whole, when there is no asking. An error is one line, and quotes nothing that may hold
a token.

Knows the file names of a data set and a policy; opens none but meta/info.json.
"""

import contextlib
import errno
import json
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import constants

try:
    # HTTPError is that of whichever HTTP library this version of the hub's is built on.
    from huggingface_hub.errors import (
        CachedRepoTreeNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
except ImportError as error:  # LeRobot's environments hold an older one, which does for folders
    raise ImportError(
        "names on the hub (hf:…) need huggingface_hub 2.4 or newer, which keeps the listing of a "
        f"commit, and {huggingface_hub.__version__} is here: `hf download user/name --local-dir DIR`, "
        "and give the folder; or install a newer one"
    ) from error
from huggingface_hub.utils import logging
from tqdm import tqdm

from armlet.data.files import FULL, FullDiskError, write_atomically
from armlet.data.hub_name import PREFIX, Kind, Name
from armlet.data.opening import EpisodeError, read_object
from armlet.progress import Progress

# The file without which a repository is no data set, or no policy.
FIRST: dict[Kind, str] = {"dataset": "meta/info.json", "model": "config.json"}
CALLED: dict[Kind, str] = {"dataset": "data set", "model": "policy"}
OTHER: dict[Kind, Kind] = {"dataset": "model", "model": "dataset"}
FOLDERS = ("meta", "data", "videos", "images")  # of a LeRobotDataset
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
# Network, weights, words; never a pickle, which can run what it likes.
OF_A_POLICY = (".json", ".safetensors", ".txt", ".model")
WORKERS = 8  # files at a time, as the hub's own library does
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
# Names of which it was said already that nobody knows whether there is something newer.
_said: set[str] = set()


class HubError(OSError):
    """The hub does not give what was named, and it is not here."""


class _StoppedError(Exception):
    """Another file could not be fetched, so this one need not be."""


def find(name: Name, kind: Kind) -> tuple[str, Path]:
    """The commit that a name stands for, and the folder with its files, fetched where they are not
    here. Raises HubError, FullDiskError, EpisodeError."""
    cache = _Cache(name, kind)
    if name.is_pinned and cache.missing(name.revision) == {}:
        return name.revision, cache.folder(name.revision)
    with _quiet():
        commit, why = _ask(cache)
        if commit is None:
            commit = cache.fall_back(why)
        else:
            if cache.missing(commit) != {}:
                _fetch(cache, commit)
            cache.remember(commit)
    return commit, cache.folder(commit)


class _Cache:
    """What is here of a repository, in the layout that the hub's library documents: refs/<revision>
    holds a commit, and snapshots/<commit> links to its files."""

    def __init__(self, name: Name, kind: Kind) -> None:
        self.name = name
        self.kind = kind
        # The layout that the library documents
        # (https://huggingface.co/docs/huggingface_hub/guides/manage-cache): its functions find
        # single files, and whether a commit is whole it does not say.
        self.root = (
            Path(constants.HF_HUB_CACHE).expanduser() / f"{kind}s--{name.repo.replace('/', '--')}"
        )

    def folder(self, commit: str) -> Path:
        return self.root / "snapshots" / commit / self.name.folder

    def listing(self, commit: str) -> dict[str, int] | None:
        """Every file of a commit below the folder that is named, and its size in bytes; None where
        no listing was kept."""
        try:
            files = huggingface_hub.get_cached_repo_tree(
                self.name.repo, repo_type=self.kind, revision=commit
            )
        except CachedRepoTreeNotFoundError:
            return None
        inside = f"{self.name.folder}/" if self.name.folder else ""
        found = {}
        for file in files:
            if file.path.startswith(inside):
                found[file.path.removeprefix(inside)] = file.size
        return found

    def missing(self, commit: str) -> dict[str, int] | None:
        """The files that are needed and not here in full, with their sizes; None where it is not
        known which are needed."""
        listing = self.listing(commit)
        folder = self.folder(commit)
        first = FIRST[self.kind]
        if listing is None or first not in listing or not _is_whole(folder / first, listing[first]):
            return None
        found = {}
        for file in needed(self.kind, listing, folder):
            if not _is_whole(folder / file, listing[file]):
                found[file] = listing[file]
        return found

    def last(self) -> str | None:
        """The commit that the name stood for last, as far as is known here."""
        if self.name.is_pinned:
            return self.name.revision
        kept = self.root / "refs" / self.name.revision
        return kept.read_text().strip() if kept.is_file() else None

    def remember(self, commit: str) -> None:
        """That the name stands for this commit, which is here whole."""
        if self.last() == commit:
            return
        # A cache that is shared may be read-only; only a look without network needs this.
        with contextlib.suppress(OSError):
            write_atomically(self.root / "refs" / self.name.revision, commit.encode())

    def fall_back(self, why: str) -> str:
        """The last commit that the name stood for, as the hub cannot be asked; says so once a
        process. Raises HubError where it is not here whole."""
        commit = self.last()
        if constants.HF_HUB_OFFLINE:
            offline = "unset HF_HUB_OFFLINE"
        else:
            offline = "check the network (and HF_ENDPOINT, if it is set)"
        if commit is None or not self.folder(commit).exists():
            raise HubError(
                f"{self.name}: {why}, and it was never fetched in full to {self.root.parent}; "
                f"{offline}"
            )
        missing = self.missing(commit)
        if missing != {}:
            if missing is None:
                lacks = "it is not known which files it lacks"
            else:
                lacks = f"{_files(len(missing))} of it are missing"
            raise HubError(
                f"{self.name}: {why}, and commit {commit[:12]} is here only in part ({lacks}); "
                f"{offline}, and the rest is fetched"
            )
        if not self.name.is_pinned and str(self.name) not in _said:
            _said.add(str(self.name))
            sys.stderr.write(
                f"{self.name}: {why}; commit {commit[:12]} is used, which is here, and whether "
                "there is a newer one is not known\n"
            )
        return commit


def _is_whole(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:  # it is missing, or a link to nothing
        return False


def needed(kind: Kind, files: dict[str, int], folder: Path) -> list[str]:
    """Of the files of a data set or policy, by their paths in its `folder`, those that reading it
    needs. A data set's meta/info.json must be there: it may say that rows and films are in other
    folders. Raises EpisodeError where that file cannot be read."""
    if kind == "model":
        found = []
        for file in files:
            # At the top only: a repository of a policy may hold its checkpoints in folders.
            if "/" not in file and PurePosixPath(file).suffix in OF_A_POLICY:
                found.append(file)
        return found
    info = read_object(folder / FIRST[kind])
    patterns = [f"{each}/*" for each in FOLDERS]
    for field in ("data_path", "video_path"):
        if isinstance(info.get(field), str):
            # data/chunk-{episode_chunk:03d}/… → data/chunk-*/…
            literal = re.split(r"\{[^}]*\}", info[field])
            patterns.append("*".join(map(escape, literal)))
    if "image" in _dtypes(info):  # a table may name a picture file anywhere
        patterns += [f"*{suffix}" for suffix in PICTURES]
    return [file for file in files if _matches_any(file, patterns)]


def _dtypes(info: dict[str, Any]) -> set[Any]:
    """Those of the features in a meta/info.json that nobody has checked yet."""
    features = info.get("features")
    found = set()
    if isinstance(features, dict):
        for feature in features.values():
            if isinstance(feature, dict):
                found.add(feature.get("dtype"))
    return found


def _matches_any(file: str, patterns: list[str]) -> bool:
    # fnmatchcase, whose `*` also stands for slashes: data/* is all that lies below data.
    return any(fnmatchcase(file, pattern) for pattern in patterns)


# Asking and fetching


def _ask(cache: _Cache) -> tuple[str | None, str]:
    """The commit that the hub says a name stands for; None, and why, where it cannot be asked.
    Raises HubError where it refuses."""
    name = cache.name
    kind = cache.kind
    try:
        found = huggingface_hub.HfApi().repo_info(
            name.repo, repo_type=kind, revision=name.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
    # The HTTP library's errors are not ours to list; what is not understood is raised as it is.
    except Exception as error:  # raised again, or told in words
        why = _unreachable(error)
        if why is not None:
            return None, why
        refusal = _refusal(error, name, kind)
        if refusal is None:
            raise
        last = cache.last()
        if last is not None and cache.missing(last) == {}:
            refusal += (
                f". What was fetched before is here, and is used without asking as {name.at(last)}"
            )
        raise HubError(refusal) from error
    assert found.sha is not None  # where the hub answers, it says which commit that is
    return found.sha, ""


def _fetch(cache: _Cache, commit: str) -> None:
    """Everything that is needed of a commit and not here. Raises HubError, FullDiskError."""
    name = cache.name
    kind = cache.kind
    first = f"{name.folder}/{FIRST[kind]}" if name.folder else FIRST[kind]
    try:
        # For one file, but it brings the listing of all of them too, and keeps it.
        huggingface_hub.snapshot_download(
            name.repo,
            repo_type=kind,
            revision=commit,
            allow_patterns=[escape(first)],
            tqdm_class=_silent(lambda count: None),
        )
        listing = cache.listing(commit)
        if listing is None:  # the library passes over either
            raise HubError(
                f"{name}: the listing of commit {commit[:12]} could not be had, or not be kept in "
                f"{cache.root}: try again, and see that this can be written to (HF_HOME gives the "
                "hub another cache)"
            )
        if FIRST[kind] not in listing:
            raise HubError(_something_else(cache, commit, listing))
        # The library takes a file that is there as it is; a truncated one must be forced.
        if not _is_whole(cache.folder(commit) / FIRST[kind], listing[FIRST[kind]]):
            huggingface_hub.hf_hub_download(
                name.repo, first, repo_type=kind, revision=commit, force_download=True
            )
        missing = cache.missing(commit)
        if missing:
            _download(cache, commit, missing)
        missing = cache.missing(commit)
    except (
        HubError,
        FullDiskError,
        EpisodeError,
        TypeError,
        LookupError,
        AttributeError,
        AssertionError,
    ):
        raise  # said already, or a mistake of ours
    except Exception as error:  # of the HTTP library, of the one for large files, of the system
        raise _broken_off(error, cache, commit) from error
    if missing != {}:
        lacks = "the listing of its files" if missing is None else ", ".join(sorted(missing)[:3])
        raise HubError(
            f"{name}: what the hub sent of commit {commit[:12]} is not what it lists ({lacks}); "
            "try again"
        )


def _download(cache: _Cache, commit: str, files: dict[str, int]) -> None:
    """Fetch files side by side; those that are whole stay whatever happens to the others."""
    name = cache.name
    folder = cache.folder(commit)
    size = sum(files.values())
    free = _free_bytes(cache)
    if free < size:
        raise FullDiskError(errno.ENOSPC, _too_large(cache, size, free))
    sys.stderr.write(
        f"{name}: fetching {_files(len(files))}, {_megabytes(size)}, of commit {commit[:12]}\n"
    )
    progress = Progress(f"fetch {name}", total=size, unit="byte")
    stopped = threading.Event()
    lock = threading.Lock()

    def fetch(file: str) -> None:
        left = files[file]

        def count(bytes_: int) -> None:
            nonlocal left
            if stopped.is_set():
                raise _StoppedError
            more = max(0, min(left, bytes_))  # a connection that broke may send some of them twice
            left -= more
            with lock:
                progress.advance(more)

        # It is there in another size, and would be taken as it is.
        huggingface_hub.hf_hub_download(
            name.repo,
            f"{name.folder}/{file}" if name.folder else file,
            repo_type=cache.kind,
            revision=commit,
            force_download=(folder / file).exists(),
            tqdm_class=_silent(count),
        )
        count(left)

    # Not snapshot_download: it cannot be stopped by a file that fails, nor say how many bytes of
    # all have come.
    pool = ThreadPoolExecutor(WORKERS)
    try:
        running = [pool.submit(fetch, file) for file in files]
        for future in wait(running, return_when=FIRST_EXCEPTION).done:
            future.result()
    finally:
        stopped.set()  # where all went well, nothing is running any more
        pool.shutdown(cancel_futures=True)
        progress.close()
    sys.stderr.write(f"{name}: fetched to {folder}\n")


def _free_bytes(cache: _Cache) -> int:
    """On the disk where the cache is, or will be: its folder may not be there yet."""
    there = next(each for each in (cache.root, *cache.root.parents) if each.exists())
    return shutil.disk_usage(there).free


def _silent(count: Any) -> type[tqdm]:
    """A bar that shows nothing, for the hub's library to tell how many bytes have come."""

    class Silent(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            # tqdm itself calls nothing where it is disabled, so this is the library speaking.
            count(int(n or 0))

        def update_transfer(self, n: float | None = 1) -> None:
            """Bytes of a compressed transfer, which are not those of the file."""

        def set_transfer_postfix_str(self, postfix: str, refresh: bool = False) -> None:
            """How fast they come."""

    return Silent


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The hub's library says nothing of its own while we use it, as we do, in a line, and without
    addresses that are signed; where a user has asked it to say more, it does."""
    before = logging.get_verbosity()
    if before == logging.WARNING:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


# What went wrong, in a line


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those that led to it, the last one first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _unreachable(error: Exception) -> str | None:
    """Why the hub could not be asked; None where it answered."""
    for cause in _causes(error):
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set"
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            # 408: took too long, 429: asked too often; both pass, as a server's own errors do.
            passes = status >= 500 or status in (408, 429)
            return f"{_host()} answered {status}" if passes else None
        if isinstance(cause, HTTPError):
            return f"{_host()} cannot be reached ({type(cause).__name__})"
        if isinstance(cause, json.JSONDecodeError):
            return (
                f"{_host()} answers, and not as a hub does (is a login page or a proxy in between?)"
            )
    return None


def _refusal(error: Exception, name: Name, kind: Kind) -> str | None:
    """What the hub refused, and what to do; None where it did not."""
    answer = next((cause for cause in _causes(error) if isinstance(cause, HfHubHTTPError)), None)
    if answer is None:
        return None
    status = answer.response.status_code
    # Gated first: for the library it is a kind of missing repository.
    if isinstance(answer, GatedRepoError):
        address = constants.ENDPOINT.rsplit("@", 1)[-1]  # without what may be a password
        inside = "datasets/" if kind == "dataset" else ""
        return (
            f"{name}: its owner decides who may read this {CALLED[kind]}; ask for access at "
            f"{address}/{inside}{name.repo}, and {LOGIN}"
        )
    if isinstance(answer, RevisionNotFoundError):
        return f"{name}: there is no revision {name.revision!r}; {_revisions(name, kind)}"
    if isinstance(answer, RepositoryNotFoundError):
        if _exists(name, OTHER[kind]):
            return (
                f"{name}: there is no {CALLED[kind]} of this name on {_host()}, but a "
                f"{CALLED[OTHER[kind]]}; were two options confused? A {CALLED[kind]} is expected "
                "here"
            )
        # The hub does not say whether a private repository exists.
        if huggingface_hub.get_token() is not None:
            private = "if it is private, the token in use may not read it"
        else:
            private = f"if it is private, {LOGIN}"
        return (
            f"{name}: there is no {CALLED[kind]} of this name on {_host()} that everybody may "
            f"see; check the name, or {private}"
        )
    if status == 401:
        return f"{name}: {_host()} does not accept the token in use (401); {LOGIN}"
    if status == 403:
        return (
            f"{name}: {_host()} refuses it (403): the token in use may not read it; {LOGIN}, "
            "with one that may"
        )
    return f"{name}: {_host()} refuses it ({status})"


def _revisions(name: Name, kind: Kind) -> str:
    """Which revisions there are, for an error."""
    try:
        found = huggingface_hub.HfApi().list_repo_refs(name.repo, repo_type=kind)
    except (HTTPError, OSError, ValueError):  # what is to be said is worse than this
        return "give a branch, a tag or a commit"
    there = [each.name for each in (*found.branches, *found.tags)]
    more = " and more" if len(there) > 12 else ""
    return f"there are {', '.join(there[:12])}{more}, and commits"


def _exists(name: Name, kind: Kind) -> bool:
    """Whether a repository of that kind is there, as far as the hub says."""
    try:
        huggingface_hub.HfApi().repo_info(
            name.repo, repo_type=kind, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
    except (HTTPError, OSError, ValueError):
        return False
    return True


def _broken_off(error: Exception, cache: _Cache, commit: str) -> OSError:
    """What stopped a download."""
    name = cache.name
    host = _host()
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in FULL:
            missing = cache.missing(commit) or {}
            size = sum(missing.values())
            return FullDiskError(cause.errno, _too_large(cache, size, _free_bytes(cache)))
        if isinstance(cause, PermissionError):
            return HubError(
                f"{name}: {cause.filename or cache.root} cannot be written; give the hub another "
                "cache with HF_HOME"
            )
    refusal = None if _unreachable(error) else _refusal(error, name, cache.kind)
    if refusal is not None:
        return HubError(refusal)
    # Large files come from addresses that are signed: whoever reads one in a log may fetch it.
    first = re.sub(r"\S+://\S+", "…", str(error).strip().split("\n")[0])
    why = _unreachable(error) or f"{host}: {type(error).__name__}: {first}"
    return HubError(
        f"{name}: fetching commit {commit[:12]} broke off ({why}); the same again goes on with "
        "the files that are not here yet"
    )


def _too_large(cache: _Cache, size: int, free: int) -> str:
    return (
        f"{cache.name}: {_megabytes(size)} are to be fetched to {cache.root.parent}, and "
        f"{_megabytes(free)} are free there; free some room, or give the hub another cache with "
        "HF_HOME"
    )


def _something_else(cache: _Cache, commit: str, listing: dict[str, int]) -> str:
    """That a repository holds no data set or policy where one was looked for; where it does, for
    the likely fix."""
    name = cache.name
    first = FIRST[cache.kind]
    whole = _Cache(Name(name.repo), cache.kind).listing(commit) or {}
    wanted = "LeRobot data set" if cache.kind == "dataset" else "policy of armlet"
    if name.folder and not listing:
        what = f"{name}: there is no folder {name.folder!r} in {name.repo}"
    else:
        what = f"{name} is no {wanted}: it has no {first}"
    at = "" if name.revision == "main" else f"@{name.revision}"
    others = []  # as the user would name them
    for file in sorted(whole):
        if file.endswith(f"/{first}"):
            others.append(f"{PREFIX}{name.repo}/{file.removesuffix(f'/{first}')}{at}")
    if others:
        return f"{what}; there is one in {', '.join(others[:3])}"
    there = sorted({file.partition("/")[0] for file in whole})  # files and folders at the top
    return f"{what}; it has {', '.join(there[:8]) or 'no files'}"


def _host() -> str:
    """The hub's address without what may be secret in it."""
    parts = urlsplit(constants.ENDPOINT)
    return f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname or "the hub"


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
