"""Messages of arrays as bytes: msgpack, with arrays as openpi and vla-eval write them.

    array     {"__ndarray__": True, "data": bytes, "dtype": "<f4", "shape": [k, a]}
    number    {"__npgeneric__": True, "data": 1.5, "dtype": "<f4"}        openpi alone
    picture   {"__image__": True, "format": "png", "data": bytes, …}      vla-eval alone

openpi's names are bytes, vla-eval's are texts (openpi-client 0.1.2, msgpack_numpy.py; vla-eval
0.8.0, protocol/numpy_codec.py and image_codec.py); both are read, and arrays written in either.
Nothing that comes in is executed: arrays are numbers and texts, never objects, and no larger than
the frame that they came in; of pictures, which may be, so many bytes are unpacked and no more.
Knows no policy.
"""

import contextlib
import io
import math
import re
from typing import Any

import numpy as np
from PIL import Image

NUMBERS = "biuf"  # kinds of numpy that are taken: booleans, integers, floats
DEPTH = 32  # of lists and maps in one another
ENTRIES = 2**20  # of lists and maps: each takes a byte of the frame and many times that in memory
AXES = 32  # of an array
# Of a type: as numpy writes it ("<f4"), or by its name.
PLAIN = re.compile(r"[<>=|]?[biuf]\d\d?|bool|u?int(8|16|32|64)|float(16|32|64)")
PIXELS = 2**26  # bytes that all pictures of a message take, unpacked
MODES = ("L", "RGB", "RGBA")  # Pillow's, of the pictures that vla-eval packs
ABSENT = (
    "a policy behind a socket needs two libraries that are not installed: pip install "
    "'armlet[socket]'"
)


class WireError(ValueError):
    """Bytes that are no message."""


def pack(message: dict[str, Any], *, bytes_keys: bool) -> bytes:
    """A message as bytes; `bytes_keys`: the names in an array's map are bytes, as openpi's."""
    msgpack = _library()

    def encode(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            if value.dtype.kind not in NUMBERS:
                raise TypeError(f"an array of {value.dtype} is not sent; expected numbers")
            said = {
                "__ndarray__": True,
                "data": np.ascontiguousarray(value).tobytes(),
                "dtype": value.dtype.str,
                "shape": list(value.shape),
            }
            return {key.encode(): item for key, item in said.items()} if bytes_keys else said
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"a {type(value).__name__} is not sent")

    packed: bytes = msgpack.packb(message, default=encode)
    return packed


def unpack(frame: bytes, *, entries: int = ENTRIES) -> Any:
    """What stands in a frame. Raises WireError where that is no message, holds an array of anything
    but numbers, or one that is not of the size that it says, or more than so many `entries` of
    lists and maps."""
    msgpack = _library()
    most = min(len(frame), entries)
    room = _Room(entries, PIXELS)
    try:
        # No part of it can be larger than all of it: a header that promises more is refused early.
        found = msgpack.unpackb(
            frame,
            object_hook=room.of_map,
            list_hook=room.of_list,
            max_str_len=len(frame),
            max_bin_len=len(frame),
            max_array_len=most,
            max_map_len=most,
            max_ext_len=0,
        )
    except WireError:
        raise
    # The library raises these, ValueErrors of its own, and a UnicodeDecodeError for a bad text;
    # numpy an OverflowError for a number that its type does not hold.
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(
            f"{len(frame)} bytes that are no message of msgpack ({type(error).__name__}: "
            f"{str(error)[:80]})"
        ) from error
    return _named(found, 0)


class _Room:
    """What there is room for while a message is unpacked: `entries` of lists and maps, and bytes of
    pictures. Counted as they are read, so that what is too large is not read to its end."""

    def __init__(self, entries: int, pixels: int) -> None:
        self.entries = entries
        self.pixels = pixels

    def of_list(self, value: list[Any]) -> list[Any]:
        self._take(len(value))
        return value

    def of_map(self, value: dict[Any, Any]) -> Any:
        """A map, or the array, number or picture that it stands for."""
        self._take(len(value))
        if b"__image__" in value or "__image__" in value:
            return self._picture(value)
        return _decoded(value)

    def _take(self, entries: int) -> None:
        self.entries -= 1 + entries
        if self.entries < 0:
            raise WireError("a message with too many entries of lists and maps")

    def _picture(self, value: dict[Any, Any]) -> np.ndarray:
        """(h, w, c) uint8, as vla-eval packs one."""
        said = _entry(value, "format")
        if said in ("raw", b"raw"):
            return _array(value)
        kind = {"png": "PNG", b"png": "PNG", "jpeg": "JPEG", b"jpeg": "JPEG"}.get(said)
        if kind is None:
            raise WireError(f"a picture's format is {said!r:.40}, expected raw, png or jpeg")
        data = _entry(value, "data")
        if not isinstance(data, bytes):
            raise WireError(f"a picture's data are a {type(data).__name__}, expected bytes")
        try:
            # Of this kind alone: others of Pillow's readers start programs.
            with Image.open(io.BytesIO(data), formats=(kind,)) as picture:
                if picture.mode not in MODES:
                    raise WireError(f"a picture of mode {picture.mode}, expected {MODES}")
                # Before anything is unpacked: a few bytes may be a picture of many.
                self.pixels -= picture.width * picture.height * len(picture.getbands())
                if self.pixels < 0:
                    raise WireError(f"pictures of more than {PIXELS} bytes in one message")
                return np.asarray(picture)
        except WireError:
            raise
        except Exception as error:  # whatever its readers meet in bytes that are no picture
            raise WireError(
                f"{len(data)} bytes that are no {said!s:.10} picture ({type(error).__name__})"
            ) from error


def _decoded(value: dict[Any, Any]) -> Any:
    """A map, or the array or number that it stands for."""
    if b"__ndarray__" in value or "__ndarray__" in value:
        return _array(value)
    if b"__npgeneric__" in value or "__npgeneric__" in value:
        dtype = _dtype(_entry(value, "dtype"))
        data = _entry(value, "data")
        if not isinstance(data, bool | int | float):
            raise WireError(f"a number of {dtype} is {data!r:.40}")
        return dtype.type(data)
    return value


def _array(value: dict[Any, Any]) -> np.ndarray:
    dtype = _dtype(_entry(value, "dtype"))
    shape = _entry(value, "shape")
    data = _entry(value, "data")
    # So many axes and no more: their product is a number of as many digits.
    whole = isinstance(shape, list) and len(shape) <= AXES
    if not whole or not all(type(each) is int and each >= 0 for each in shape):
        raise WireError(f"an array's shape is {shape!r:.80}, expected whole numbers")
    if not isinstance(data, bytes):
        raise WireError(f"an array's data are a {type(data).__name__}, expected bytes")
    # As Python counts: numpy's product of a shape may overflow.
    promised = math.prod(shape) * dtype.itemsize
    if promised != len(data):
        raise WireError(
            f"an array of shape {shape} and {dtype} has {len(data)} bytes, expected {promised}"
        )
    return np.frombuffer(data, dtype).reshape(shape)


def _dtype(said: Any) -> np.dtype:
    """A type of numbers by its name. Raises WireError for any other: objects would be unpickled."""
    name = said.decode("ascii", "replace") if isinstance(said, bytes) else said
    dtype = None
    # Only a plain name: numpy reads others as Python would, and "O" as objects.
    if isinstance(name, str) and PLAIN.fullmatch(name):
        with contextlib.suppress(TypeError):  # f1, b8: of no such size
            dtype = np.dtype(name)
    if dtype is None or dtype.kind not in NUMBERS or dtype.hasobject:
        raise WireError(f"an array of type {said!r:.40}, and only numbers are taken")
    return dtype


def _entry(value: dict[Any, Any], name: str) -> Any:
    found = value.get(name, value.get(name.encode()))
    if found is None:
        raise WireError(f"an array lacks {name!r}")
    return found


def _named(value: Any, depth: int) -> Any:
    """The same with texts for the bytes that some servers have as names."""
    if depth > DEPTH:
        raise WireError(f"a message with more than {DEPTH} maps and lists in one another")
    if isinstance(value, list):
        return [_named(each, depth + 1) for each in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for key, each in value.items():
        name = key.decode("utf-8", "replace") if isinstance(key, bytes) else key
        found[name] = _named(each, depth + 1)
    return found


def _library() -> Any:
    try:
        import msgpack
    except ImportError as error:
        raise ImportError(ABSENT) from error
    return msgpack
