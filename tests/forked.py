"""Verbs as processes that may be killed, each forked from one that has imported what they need: to
import it takes longer than the work of a tiny recipe."""

import multiprocessing
import os
import sys
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
IMPORTED = ("outside", "s3fs", *(f"armlet.{verb}" for verb in ("collect", "teach", "probe", "distil", "evaluate")))  # fmt: skip
PATIENCE = 1800  # seconds, of a machine that does other things


class Verb:
    """A verb that has been started. `said`: the file that has what it writes to stderr."""

    def __init__(self, arguments: list[str], environment: dict[str, str], said: Path) -> None:
        CONTEXT.set_forkserver_preload(["forked", *IMPORTED])
        self._said = said
        self.process = CONTEXT.Process(target=_work, args=(arguments, environment, said))
        self.process.start()

    @property
    def runs(self) -> bool:
        return self.process.is_alive()

    def kill(self) -> None:
        self.process.kill()
        self.process.join(60)

    def ended(self) -> tuple[int, str]:
        """Its exit code, and what it said."""
        self.process.join(PATIENCE)
        code = self.process.exitcode
        assert code is not None, f"it still runs: {self._said.read_text()[-3000:]}"
        return code, self._said.read_text()


def _work(arguments: list[str], environment: dict[str, str], said: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    from armlet.__main__ import main
    from armlet.data import upload

    # At nearly every step: little is lost by a kill, and there is little to wait for.
    upload.EVERY = 0.2
    upload.SHARE = 0.9
    sys.argv = ["armlet", *arguments]
    main()
