"""Data sets and policies by their names on the Hugging Face hub: `hf:user/name`, wherever a folder
is named.

A name may say a folder in the repository and a revision: `hf:user/name/sub/folder@revision`. The
revision is a branch, a tag or a commit, and whatever follows the first `@`, as branches have
slashes; without one it is the branch `main`, which for a data set may be newer than the tags
(`v2.1`, `v3.0`) by which lerobot chooses what it can read: armlet reads all of these formats.

A name becomes a folder in the hub's cache, the one that every library of the hub shares
(`HF_HOME`): the files of one commit, as links. Nothing is ever written there: what is derived is
kept elsewhere, as for a folder that is read-only.

Knows names and folders; asks no server (`download` does), and opens no file.
"""

import re
from pathlib import Path

from armlet.data.hub_name import MAIN, PREFIX, Kind, Name

FORM = "expected hf:user/name, hf:user/name@revision or hf:user/name/folder@revision"
# What addresses of the hub begin with, and names here do not.
KINDS = ("datasets", "models", "spaces", "buckets")

_PARTS = re.compile(r"hf:(?P<repo>[^/@]+/[^/@]+)(?P<folder>(?:/[^/@]+)*)(?:@(?P<revision>.+))?")
# What git takes for a name of a branch or tag.
_REVISION = re.compile(r"[^\s~^:?*\[\\/]+(?:/[^\s~^:?*\[\\/]+)*")
_SNAPSHOT = re.compile(r"/(?:models|datasets|spaces)--[^/]+/snapshots/[0-9a-f]{40}(?:/|$)")


def is_name(place: Path | str) -> bool:
    """Whether this is a name on the hub, not a folder."""
    return Path(place).as_posix().startswith(PREFIX)


def parse(place: Path | str) -> Name:
    """A name taken apart. Raises ValueError where it is none, and where a folder here is called so:
    which is meant is not guessed."""
    # Here, not above: who names no repository need not wait for the library.
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    # Through Path, as tyro makes one of every option: hf:a//b has become hf:a/b by then.
    text = Path(place).as_posix()
    found = _PARTS.fullmatch(text)
    if found is None:
        raise ValueError(f"{text} is no name on the hub; {FORM}")
    repo = found["repo"]
    folder = found["folder"].removeprefix("/")
    revision = found["revision"] or MAIN
    user, _, rest = repo.partition("/")
    if user in KINDS:
        shorter = "/".join(filter(None, (rest, folder)))
        raise ValueError(
            f"{text}: leave out {user!r}, the option says which kind it is: {PREFIX}{shorter}"
        )
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"{text}: {error} {FORM}") from error
    if {".", ".."} & set(folder.split("/")):
        raise ValueError(f"{text}: {folder!r} is no folder in a repository; {FORM}")
    if ".." in revision or _REVISION.fullmatch(revision) is None:
        raise ValueError(f"{text}: {revision!r} is no branch, tag or commit; {FORM}")
    # To the system "hf:user" is a name of a folder like any other.
    if Path(text).exists():
        raise ValueError(
            f"{text} is a name on the hub, and a folder here is called so too: rename the folder, "
            f"or give its whole path, {Path(text).absolute()}"
        )
    return Name(repo, folder, revision)


def local_folder(place: Path | str, *, kind: Kind) -> Path:
    """The folder that holds a data set or a policy ("model"): the one that is named or, for a name
    on the hub, where its files are.

    What is not there yet is fetched. Where the hub cannot be reached, the commit that a name stood
    for last is used, and one line says so; a commit that is there whole is used without asking.
    Raises ValueError for a name that is none, FullDiskError, and `download.HubError`, an OSError,
    saying in one line what the hub refused and what to do.
    """
    if not is_name(place):
        return Path(place)
    from armlet.data.download import find  # with it comes the hub's library, a third of a second

    return find(parse(place), kind)[1]


def pinned(place: Path | str, *, kind: Kind) -> Path:
    """The same place, and for a name on the hub the commit that it stands for now,
    `hf:user/name@<commit>`, its files fetched.

    Whoever begins long work does it under such a name: a branch that moves meanwhile changes
    nothing, other processes need no network, and what is written about the work says what it was
    about. Raises as `local_folder` does.
    """
    if not is_name(place):
        return Path(place)
    from armlet.data.download import find

    name = parse(place)
    return Path(str(name.at(find(name, kind)[0])))


def without_revision(place: Path) -> Path:
    """A name on the hub without its revision; folders as they are."""
    return Path(place.as_posix().partition("@")[0]) if is_name(place) else place


def in_cache(folder: Path | str) -> bool:
    """Whether a folder is, or lies in, what the hub's libraries fetched: the files of one commit,
    which are to stay as they are."""
    return _SNAPSHOT.search(Path(folder).resolve().as_posix()) is not None


def refuse_writing(place: Path | str) -> None:
    """Raises ValueError where a folder to write into is a name on the hub, or lies in the hub's
    cache."""
    if is_name(place):
        raise ValueError(
            f"{Path(place).as_posix()} is a name on the hub, and this is written to: give a "
            "folder of your own"
        )
    if in_cache(place):
        raise ValueError(
            f"{place} belongs to the hub's cache, where files stay as they were fetched: copy it "
            "to a folder of your own (cp -rL), and give that"
        )
