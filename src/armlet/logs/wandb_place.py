"""W&B: one run for all verbs, resumed by its id. Each series has an axis of its own, `SERIES/step`:
W&B's own counts points of all series together."""

from collections.abc import Mapping
from typing import Any

from armlet.logs import Run


class Wandb:
    """See the module's docstring."""

    def __init__(self, run: Run) -> None:
        import wandb

        self._run: Any = wandb.init(
            project=run.project,
            name=run.name,
            id=run.id,
            resume="allow",
            dir=str(run.folder),
            config=run.config,
            mode="offline" if run.offline else None,  # None: as the user has set W&B up
            # A verb's output is its own: the page that it prints, the path in the last line.
            settings=wandb.Settings(console="off"),
        )
        self._axes: set[str] = set()

    def point(self, series: str, step: int, values: Mapping[str, float]) -> None:
        axis = f"{series}/step"
        if series not in self._axes:
            self._axes.add(series)
            self._run.define_metric(axis)
            self._run.define_metric(f"{series}/*", step_metric=axis)
        named: dict[str, float] = {axis: step}
        for name, value in values.items():
            named[f"{series}/{name}"] = value
        self._run.log(named)

    def close(self) -> None:
        self._run.finish()


def opened(run: Run) -> Wandb:
    return Wandb(run)
