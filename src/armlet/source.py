"""Which armlet ran: its commit where there is one, whether anything in it differs from that, and a
digest of its files. Knows git and the package's own folder; works without either git or a
repository."""

import functools
import hashlib
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent


@functools.cache  # once a process: what was imported is what runs, whatever is edited meanwhile
def identity() -> dict[str, Any]:
    """`version`; `commit` (None where the package is installed, or there is no git); `dirty`:
    whether a file of the package differs from the commit or is unknown to it (None without one);
    `files`: a digest of the package's files, which tells two states of the code apart with and
    without a commit."""
    commit = _commit(PACKAGE)
    dirty = None
    if commit is not None:
        # Of the package only: notes and results beside it change nothing that runs.
        dirty = bool(_git(PACKAGE, "status", "--porcelain", "--", "."))
    return {
        "version": version("armlet"),
        "commit": commit,
        "dirty": dirty,
        "files": digest(PACKAGE),
    }


def digest(folder: Path) -> str:
    """Of the names and bytes of all files below `folder`, without what Python compiles."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or "__pycache__" in path.parts:
            continue
        # With the length, so that no byte can move from one file to the next unnoticed.
        content = path.read_bytes()
        found.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode())
        found.update(content)
    return found.hexdigest()[:16]


def _commit(package: Path) -> str | None:
    """None where git does not know the package, though it may know the folder around it: an
    environment inside another project."""
    if _git(package, "ls-files", "--error-unmatch", "--", "__init__.py") is None:
        return None
    return _git(package, "rev-parse", "HEAD")


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers; None where it has none, or is not there."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:  # no git on this machine
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
