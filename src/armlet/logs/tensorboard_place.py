"""TensorBoard: `tensorboard --logdir OUT/tensorboard`. A folder a run, a file a process; a series is
told apart by the first part of its names."""

import json
from collections.abc import Mapping
from typing import Any

from armlet.logs import Run


class TensorBoard:
    """See the module's docstring."""

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter  # it brings tensorboard

        folder = run.folder / "tensorboard" / f"{run.name}-{run.id}"
        begun = folder.is_dir()
        self._writer: Any = SummaryWriter(str(folder))
        if not begun:
            text = json.dumps(run.config, indent=1)
            self._writer.add_text("recipe", f"```json\n{text}\n```")

    def point(self, series: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{series}/{name}", value, step)
        # At once: what waits in memory would be lost with the process, and it counts as sent.
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def opened(run: Run) -> TensorBoard:
    return TensorBoard(run)
