"""What the files of a finished data set were when they were laid out: `meta/SHA256SUMS`, lines that
`sha256sum -c` reads as well. Whoever reads a file of the data set finds out that it is another now.

A data set without that file, as other programs write them, is taken as it is; so is a file without
a line in it, which is how a change on purpose is accepted. Knows names and bytes; knows no format.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from armlet.data.digests import cache_folder, digests
from armlet.data.opening import EpisodeError, fault, read_text

MANIFEST = "meta/SHA256SUMS"
# Where episodes are being added: what the files will be that are moved in one after the other.
NEXT = f".append/ready/{MANIFEST}"
# The star: of a file that was read as bytes, as sha256sum --binary says it.
LINE = re.compile(r"(?P<digest>[0-9a-f]{64}) [ *](?P<name>[^/\\\0][^\\\0]*)")
FILMS = "videos/"


@dataclass(frozen=True)
class Manifest:
    """What the files of the data set at `root` may be: name → SHA-256 in hexadecimals, as they were
    `written` and, while episodes are being added, or where a run was killed that did, as they are
    `coming`. Either is right then, as they are moved in one after the other."""

    root: Path
    written: dict[str, str]
    coming: dict[str, str]

    @classmethod
    def of(cls, root: Path) -> Self:
        """That of a folder; one that names nothing where there is none. Raises EpisodeError naming
        file and line where it cannot be read."""
        # The second last: what is moved from there in between is read at its new place.
        coming = _read(root / NEXT)
        return cls(root, _read(root / MANIFEST), coming)

    def check(self, names: Iterable[str], *, keep: bool = True) -> None:
        """Raises EpisodeError naming the first of some files, by their names in the folder, that is
        not what was written. Each is read once for as long as it stays as it is (`digests`, which
        may `keep` a record); one that is missing, or no file of its own, is for its reader to
        name."""
        there = []
        for name in names:
            if self._allowed(name) and fault(self.root / name) is None:
                there.append(name)
        if there:
            paths = [self.root / name for name in there]
            found = digests(paths, cache_folder(self.root), keep=keep)
            self.compare(there, found)

    def check_tables(self, *, keep: bool = True) -> None:
        """The same of everything but films."""
        names = sorted({**self.written, **self.coming})
        self.check([name for name in names if not name.startswith(FILMS)], keep=keep)

    def compare(self, names: Iterable[str], found: Iterable[bytes]) -> None:
        """The same of files whose SHA-256 was `found`."""
        for name, digest in zip(names, found, strict=True):
            allowed = self._allowed(name)
            if not allowed or digest.hex() in allowed.values():
                continue
            expected = " or ".join(each[:12] for each in allowed.values())
            lines = " and in ".join(str(self.root / each) for each in allowed)
            raise EpisodeError(
                f"{self.root / name} is not what was written: its SHA-256 begins with "
                f"{digest.hex()[:12]}, expected {expected}. Copy it again from where it is whole; "
                f"where it was changed on purpose, delete its line in {lines} (or all of it, after "
                "many changes), and it is taken as it is"
            )

    def _allowed(self, name: str) -> dict[str, str]:
        """The digests that a file may have, by the list that says so."""
        found = {}
        for place, said in ((MANIFEST, self.written), (NEXT, self.coming)):
            if name in said:
                found[place] = said[name]
        return found


def listing(digests_by_name: Mapping[str, str]) -> str:
    """The text of `MANIFEST`."""
    lines = [f"{digest}  {name}\n" for name, digest in sorted(digests_by_name.items())]
    return "".join(lines)


def _read(path: Path) -> dict[str, str]:
    """Name → digest; nothing where there is no file."""
    try:
        text = read_text(path) if path.exists() or path.is_symlink() else ""
    except EpisodeError:
        # Moved to its place since it was looked for.
        if path.exists() or path.is_symlink():
            raise
        text = ""
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line.startswith("#"):
            continue
        said = LINE.fullmatch(line.removesuffix("\r"))
        if said is None or said["name"] in found:
            wrong = "is no digest and name" if said is None else "names a file a second time"
            raise EpisodeError(
                f"{path}, line {number} {wrong}: {line[:80]!r}; copy the file again, or delete it "
                "to take the data set as it is"
            )
        found[said["name"]] = said["digest"]
    return found
