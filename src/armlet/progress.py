"""Progress of long work: a bar with rate and time left on a terminal, plain lines in a log, and word
of it to whoever watches the process (`armlet.logs.beats`). Knows no work."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Protocol

from tqdm import tqdm


class Watcher(Protocol):
    """Who is told of everything that is counted while it is `watching`. It is called for every step
    of a training, so it must return at once."""

    def begun(self, progress: "Progress") -> None: ...

    def advanced(self, progress: "Progress", values: Mapping[str, float]) -> None: ...

    def ended(self, progress: "Progress") -> None: ...


_watchers: list[Watcher] = []


@contextlib.contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """All that begins in this process while it lasts tells `watcher` how far it is."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


class Progress:
    """`total` steps of something called `title`; `start` steps were done by an earlier run."""

    def __init__(
        self, title: str, *, total: int, start: int = 0, unit: str = "step", every: float = 20.0
    ) -> None:
        self.title = title
        self.total = total
        self.done = start
        self.unit = unit
        self.every = every
        # What an earlier run did took none of this run's time, so it does not count for the rate.
        self._start = start
        self._begun = time.monotonic()
        self._said = time.monotonic()
        self._bar = None
        # A bar in a log would be one line of every state that it had.
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=start, desc=title, unit=unit)
        # The first step of some work takes minutes, in which an empty log would say that nothing runs.
        elif total > start:
            self._write(self._counted())
        self._watchers = tuple(_watchers)
        for watcher in self._watchers:
            watcher.begun(self)

    @property
    def rate(self) -> float:
        """Steps a second of this run, by a clock that nobody sets."""
        seconds = max(time.monotonic() - self._begun, 1e-9)  # the first step may come at once
        return (self.done - self._start) / seconds

    @property
    def left(self) -> float:
        """Seconds until all is done, at this rate; infinite where nothing has been done yet."""
        rate = self.rate
        return (self.total - self.done) / rate if rate else float("inf")

    def advance(self, count: int = 1, **values: float) -> None:
        """`count` more are done; `values` are shown beside the bar."""
        self.done += count
        for watcher in self._watchers:
            watcher.advanced(self, values)
        if self._bar is not None:
            self._bar.update(count)
            shown = {name: f"{value:.4g}" for name, value in values.items()}
            # No redrawing of its own: the bar decides how often a terminal is written to.
            self._bar.set_postfix(shown, refresh=False)
        # The last one always: a log must say that it is done.
        elif time.monotonic() - self._said > self.every or self.done == self.total:
            self._said = time.monotonic()
            self._line(values)

    def _counted(self) -> str:
        return f"{self.title}: {self.done}/{self.total} {self.unit}s"

    def _line(self, values: dict[str, float]) -> None:
        line = f"{self._counted()}, {self.rate:.3g}/s, {self.left:.0f} s left  "
        line += "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self._write(line)

    def _write(self, line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()  # a log that is followed should not lag behind

    def close(self) -> None:
        for watcher in self._watchers:
            watcher.ended(self)
        if self._bar is not None:
            self._bar.close()
