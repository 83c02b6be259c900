"""What a name on the Hugging Face hub consists of. How one is written and read, and what folder it
stands for, is `hub`'s business.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

PREFIX = "hf:"
MAIN = "main"  # the revision where a name says none

Kind = Literal["dataset", "model"]

# Of SHA-1, as the hub's repositories all have.
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Name:
    """A repository, `user/name`; a folder in it, "" for all of it; and a revision."""

    repo: str
    folder: str = ""
    revision: str = MAIN

    def __str__(self) -> str:
        inside = f"/{self.folder}" if self.folder else ""
        at = "" if self.revision == MAIN else f"@{self.revision}"
        return f"{PREFIX}{self.repo}{inside}{at}"

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which always holds the same files."""
        return _COMMIT.fullmatch(self.revision) is not None

    def at(self, commit: str) -> "Name":
        return replace(self, revision=commit)
