"""trackio: `trackio show --project PROJECT`. It keeps runs on this machine, by their names; ours ends
with the run's id, so that a resumed one is the same."""

import contextlib
import sys
from collections.abc import Mapping
from typing import Any

from armlet.logs import Run


class Trackio:
    """See the module's docstring."""

    def __init__(self, run: Run) -> None:
        import trackio

        self._library: Any = trackio
        # What it says of itself is no part of what a verb prints.
        with contextlib.redirect_stdout(sys.stderr):
            self._run: Any = trackio.init(
                project=run.project,
                name=f"{run.name}-{run.id}",
                config=run.config,
                resume="allow",
            )

    def point(self, series: str, step: int, values: Mapping[str, float]) -> None:
        named: dict[str, float] = {f"{series}/step": step}
        for name, value in values.items():
            named[f"{series}/{name}"] = value
        self._run.log(named)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._library.finish()  # the run's own would be called once more at the exit


def opened(run: Run) -> Trackio:
    return Trackio(run)
