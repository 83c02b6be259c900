"""Where a policy answers: `ws://host:port`, wherever a policy's folder is named.

Knows texts; opens no connection.
"""

import re
from pathlib import Path

PORT = 8000  # that openpi's and vla-eval's servers listen on where nobody says another
FORM = "expected ws://host:port, or wss://host:port where the server has a certificate"

# Through Path, as tyro makes one of every option, ws://host has become ws:/host.
_PARTS = re.compile(
    r"(?P<scheme>wss?):/+(?P<host>\[[^\]/]+\]|[^/:?#]+)(?::(?P<port>[^/]*))?(?P<rest>/.*)?"
)


def is_address(place: Path | str) -> bool:
    """Whether this is an address, not a folder."""
    return Path(place).as_posix().startswith(("ws:", "wss:"))


def address_of(place: Path | str) -> str:
    """The address, whole: `ws://host:port`, and a path behind it where there is one. Raises
    ValueError where it is none, or holds a secret, which would stand in every report."""
    text = Path(place).as_posix()
    if "@" in text or "?" in text:
        shown = re.sub(r"//?[^/]*@", "//…@", text.partition("?")[0])
        raise ValueError(
            f"{shown}: an address is kept in reports, so nothing secret may stand in it; write the "
            "key into a file, and name that as `api_key` in [options] of a policy.toml"
        )
    found = _PARTS.fullmatch(text)
    if found is None:
        raise ValueError(f"{text} is no address; {FORM}")
    port = found["port"] or str(PORT)
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{text}: the port is {port!r}; {FORM}")
    return f"{found['scheme']}://{found['host']}:{port}{found['rest'] or ''}"
