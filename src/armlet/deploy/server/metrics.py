"""What a server has done, as numbers that Prometheus reads (text format 0.0.4).

Labels are words of ours alone, never a peer's: nobody outside makes this page grow. Whoever counts
from another thread only adds to numbers of its own. Knows no socket and no policy.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)
TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Gauge:
    """A number that goes up and down."""

    def __init__(self) -> None:
        self.value = 0.0

    def set(self, value: float) -> None:
        self.value = value


class Histogram:
    """How many of some numbers were at most each of `bounds`."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str) -> Iterator[str]:
        total = 0
        for bound, count in zip((*self.bounds, math.inf), self.counts, strict=True):
            total += count
            said = "+Inf" if math.isinf(bound) else f"{bound:g}"
            yield f'{name}_bucket{{le="{said}"}} {total}'
        yield f"{name}_sum {self.sum:.9g}"
        yield f"{name}_count {total}"


class Counter:
    """Events by a word that says which."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.counts: dict[str, int] = {}

    def add(self, which: str) -> None:
        self.counts[which] = self.counts.get(which, 0) + 1

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def lines(self, name: str) -> Iterator[str]:
        # A copy: the other thread may count while this one writes.
        for which, count in sorted(dict(self.counts).items()):
            yield f'{name}{{{self.label}="{which}"}} {count}'


class Metrics:
    """Of one server."""

    def __init__(self) -> None:
        self.requests = Counter("protocol")
        self.errors = Counter("kind")
        self.dropped = Counter("reason")
        self.refused = Counter("reason")
        self.sessions = Gauge()
        self.waiting = Gauge()
        self.answers = Histogram(SECONDS)
        self.passes = Histogram(SECONDS)
        self.batches = Histogram(SIZES)

    def decided(self, rows: int, seconds: float) -> None:
        """The policy was asked about so many observations in one pass."""
        self.batches.observe(rows)
        self.passes.observe(seconds)

    def text(self) -> str:
        """The page that `/metrics` gives."""
        told = (
            ("requests_total", "counter", "Observations received.", self.requests),
            ("errors_total", "counter", "Observations answered with an error.", self.errors),
            ("dropped_total", "counter", "Connections that the server ended.", self.dropped),
            ("refused_total", "counter", "Connections that were not let in.", self.refused),
            ("sessions", "gauge", "Robots connected.", self.sessions),
            ("waiting", "gauge", "Observations that wait for the policy.", self.waiting),
            ("answer_seconds", "histogram", "From observation to answer.", self.answers),
            ("pass_seconds", "histogram", "One pass of the policy.", self.passes),
            ("batch_size", "histogram", "Observations in one pass.", self.batches),
        )
        lines = []
        for short, kind, text, metric in told:
            name = f"armlet_{short}"
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            if isinstance(metric, Gauge):
                lines.append(f"{name} {metric.value:g}")
            else:
                lines += metric.lines(name)
        return "\n".join(lines) + "\n"
