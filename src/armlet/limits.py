"""Values that a user may set, or that come from a file, held to where they mean something. Knows
dataclasses and numbers; nothing of what they are for."""

import dataclasses
import math
import numbers
import sys
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Range = tuple[float, float]  # lowest and highest, both included
ABOVE_0 = math.ulp(0.0)  # the lowest of a range that leaves out 0
BELOW_1 = math.nextafter(1, 0)  # the highest of one that leaves out 1
MOST = sys.float_info.max  # of any finite number


def check(value: Any, /, **ranges: Range) -> None:
    """Raises ValueError naming the first field of a dataclass that lies outside its range; every
    number of a tuple must lie in it, and None, where somebody said nothing, lies in all."""
    for name, (low, high) in ranges.items():
        for number in _numbers(getattr(value, name)):
            if low <= number <= high:  # NaN is in no range
                continue
            raise ValueError(
                f"{type(value).__name__}.{name} is {number}, expected {_said(low, high)}"
            )


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, tuple):
        for each in value:
            yield from _numbers(each)
    elif value is not None:
        yield value


def _said(low: float, high: float) -> str:
    least = "more than 0" if low == ABOVE_0 else f"at least {low:g}"
    if math.isinf(high):
        return least
    if high == MOST:
        return f"{least} and finite"
    return f"{least} and less than 1" if high == BELOW_1 else f"{least} and at most {high:g}"


def positive(value: Any, /, *names: str) -> None:
    """Raises ValueError where one of these fields is less than 1."""
    assert dataclasses.is_dataclass(value)
    check(value, **dict.fromkeys(names, (1, math.inf)))


def typed(value: Any, /) -> None:
    """Raises ValueError naming the first field of a dataclass whose value is not of the field's
    type. For what comes from JSON, which Python takes as it is: a text for a list of texts, true
    for 1, NaN for a number."""
    hints = get_type_hints(type(value))
    for field in dataclasses.fields(value):
        found = getattr(value, field.name)
        if not _is(found, hints[field.name]):
            raise ValueError(
                f"{type(value).__name__}.{field.name} is {found!r:.60}, expected "
                f"{_words(hints[field.name])}"
            )


def _is(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    arguments = get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_is(value, each) for each in arguments)
    if origin is Literal:
        return any(value is each or value == each for each in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if Ellipsis in arguments:  # tuple[int, ...]
            return all(_is(each, arguments[0]) for each in value)
        return len(value) == len(arguments) and all(map(_is, value, arguments))
    if origin is dict:
        if not isinstance(value, dict):
            return False
        return all(map(_is, value, [arguments[0]] * len(value))) and all(
            map(_is, value.values(), [arguments[1]] * len(value))
        )
    if kind in (int, float):
        wanted = numbers.Integral if kind is int else numbers.Real
        # Python's True is an int. NaN alone is not equal to itself.
        return isinstance(value, wanted) and not isinstance(value, bool) and value == value
    return isinstance(value, kind)


def _words(kind: Any) -> str:
    """A type as an error says it."""
    arguments = get_args(kind)
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_words, arguments))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple:
        inner = [_words(each) for each in arguments if each is not Ellipsis]
        return f"a list ({', '.join(inner)})"
    if origin is dict:
        return "an object"
    said = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    said[type(None)] = "null"
    return said.get(kind, getattr(kind, "__name__", str(kind)))
