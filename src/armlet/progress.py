"""Progress of long work: a bar with rate and time left on a terminal, plain lines in a log. Knows
no work."""

import sys
import time

from tqdm import tqdm


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

    def advance(self, count: int = 1, **values: float) -> None:
        """`count` more are done; `values` are shown beside the bar."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
            shown = {name: f"{value:.4g}" for name, value in values.items()}
            # No redrawing of its own: the bar decides how often a terminal is written to.
            self._bar.set_postfix(shown, refresh=False)
        # The last one always: a log must say that it is done.
        elif time.monotonic() - self._said > self.every or self.done == self.total:
            self._said = time.monotonic()
            self._line(values)

    def _line(self, values: dict[str, float]) -> None:
        seconds = max(time.monotonic() - self._begun, 1e-9)  # the first line may come at once
        rate = (self.done - self._start) / seconds
        left = (self.total - self.done) / rate if rate else float("inf")
        line = f"{self.title}: {self.done}/{self.total} {self.unit}s, {rate:.3g}/s, "
        line += f"{left:.0f} s left  "
        line += "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()  # a log that is followed should not lag behind

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
