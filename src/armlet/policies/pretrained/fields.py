"""Fields of a checkpoint's JSON files, each of the type that it should have, or an error that names
file and field, says what was found and what was expected. What JSON holds may be anything: a text
for a number, a list for a table, NaN, a million layers.

Knows types and ranges; knows no kind of checkpoint.
"""

import contextlib
import math
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armlet.policies.pretrained.files import COPY

# Of widths, chunks and the like: the largest published have 16,384, and more asks for more memory
# than there is.
MOST = 2**17


@dataclass(frozen=True)
class Fields:
    """A table of a JSON file. `place`: the file; `inside`: where in it the table stands, `""` for
    the whole."""

    values: Mapping[str, Any]
    place: Path | str
    inside: str = ""

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def whole(
        self, name: str, usual: int | None = None, *, least: int = 1, most: int = MOST
    ) -> int:
        """A whole number. `usual`: what is taken where the field is not there; without, it must be."""
        value = self._get(name, usual)
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(name, value, f"a whole number of {least} to {most}")
        return value

    def whole_or_none(self, name: str, *, least: int = 1, most: int = MOST) -> int | None:
        """The same; None where the field is null, or is not there."""
        if self.values.get(name) is None:
            return None
        return self.whole(name, least=least, most=most)

    def real(
        self,
        name: str,
        usual: float | None = None,
        *,
        above: float = -math.inf,
        least: float = -math.inf,
        most: float = math.inf,
    ) -> float:
        """A finite number above `above`, of `least` to `most`."""
        value = self._get(name, usual)
        # Python's whole numbers may be beyond any float.
        finite = type(value) in (int, float) and abs(value) <= sys.float_info.max
        if not finite or not above < value or not least <= value <= most:
            said = "a finite number"
            if above > -math.inf:
                said += f" above {above:g}"
            if least > -math.inf:
                said += f" of {least:g} or more"
            if most < math.inf:
                said += f", {most:g} at most"
            raise self.wrong(name, value, said)
        return float(value)

    def flag(self, name: str, usual: bool | None = None) -> bool:
        """True or false; older versions of LeRobot wrote 0 and 1."""
        value = self._get(name, usual)
        if type(value) not in (bool, int) or value not in (0, 1):
            raise self.wrong(name, value, "true or false")
        return bool(value)

    def text(self, name: str, usual: str | None = None, *, known: Collection[str] = ()) -> str:
        """A text, one of `known` where there are any."""
        value = self._get(name, usual)
        if not isinstance(value, str) or (known and value not in known):
            raise self.wrong(name, value, ", ".join(known) if known else "a text")
        return value

    def table(self, name: str) -> "Fields":
        value = self._get(name, None)
        if not isinstance(value, Mapping):
            raise self.wrong(name, value, "an object")
        return Fields(value, self.place, self._path(name))

    def table_or_empty(self, name: str) -> "Fields":
        """The same; one without fields where it is null, or is not there."""
        if self.values.get(name) is None:
            return Fields({}, self.place, self._path(name))
        return self.table(name)

    def wholes(self, name: str, *, count: int | None = None, most: int = MOST) -> tuple[int, ...]:
        """A list of whole numbers of 1 to `most`, `count` of them."""
        value = self._get(name, None)
        many = f"{count} " if count is not None else ""
        good = isinstance(value, list) and len(value) > 0 and count in (None, len(value))
        if not good or not all(type(each) is int and 1 <= each <= most for each in value):
            raise self.wrong(name, value, f"a list of {many}whole numbers of 1 to {most}")
        return tuple(value)

    def texts_or_none(self, name: str) -> tuple[str, ...] | None:
        """A list of texts; None where it is null, or is not there."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.wrong(name, value, "a list of texts")
        return tuple(value)

    def wrong(self, name: str, value: Any, expected: str) -> ValueError:
        """The error about a field; raised by whoever finds it wrong."""
        return ValueError(
            f"{self.place}: {self._path(name)} is {value!r:.80}, expected {expected}; {COPY}"
        )

    def _get(self, name: str, usual: Any) -> Any:
        """A field's value; without a usual one it must be there."""
        if name in self.values:
            return self.values[name]
        if usual is None:
            raise ValueError(f"{self.place} has no {self._path(name)!r}; {COPY}")
        return usual

    def _path(self, name: str) -> str:
        return f"{self.inside}.{name}" if self.inside else name


@contextlib.contextmanager
def sizes_from(place: Path | str) -> Iterator[None]:
    """Whatever a network that is built in the block raises about its sizes becomes a ValueError
    naming the file that they are from."""
    try:
        yield
    except (
        ValueError,
        AssertionError,
        RuntimeError,
        ArithmeticError,
        LookupError,
        TypeError,
    ) as error:
        said = str(error).strip().split("\n")[0] or type(error).__name__
        if str(place) in said:
            raise
        raise ValueError(
            f"{place}: no network can be built of the sizes that it gives ({said:.300}); {COPY}"
        ) from error
