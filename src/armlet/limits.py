"""Numbers that a user may set, held to where they mean something. Knows dataclasses and numbers;
nothing of what they are for."""

import dataclasses
import math
import sys
from collections.abc import Iterator
from typing import Any

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
