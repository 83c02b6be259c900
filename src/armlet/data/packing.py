"""Several files as one, and back: what a worker made of a shard is one object.

The same files give the same bytes, on every machine and at any time.
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import PurePosixPath

NEVER = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip file can name


def pack(files: Mapping[str, bytes]) -> bytes:
    """Files by their names, with `/` between folders; not compressed, as films and numbers are
    already."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, NEVER), files[name])
    return packed.getvalue()


def unpack(content: bytes) -> dict[str, bytes]:
    """The inverse, in the order of the names. Raises ValueError where it is damaged, or a name
    leads out of the folder that it is for."""
    files = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                parts = PurePosixPath(name).parts
                if not parts or name.startswith("/") or "\\" in name or ".." in parts:
                    raise ValueError(f"a packed file is called {name!r}, which is no name for one")
                files[name] = archive.read(name)
    except zipfile.BadZipFile as error:
        raise ValueError(f"packed files ({len(content)} bytes) are damaged: {error}") from error
    return files
