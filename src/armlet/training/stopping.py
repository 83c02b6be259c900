"""Ctrl-C while a loop runs whose steps must not be cut in two. Knows signals; knows no training."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Stop:
    """Whether somebody has asked to stop."""

    asked: bool = False


@contextlib.contextmanager
def waiting_stop(title: str) -> Iterator[Stop]:
    """While it lasts the first Ctrl-C is only noted, so that a loop can end between two steps; the
    KeyboardInterrupt is raised when the block ends. A second Ctrl-C interrupts at once.

    Signals reach the main thread alone: in another, and where the process ignores Ctrl-C, nothing
    is changed.
    """
    stop = Stop()
    # Python's own handler is what raises KeyboardInterrupt; any other belongs to who started us.
    before = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or before is not signal.default_int_handler:
        yield stop
        return

    def note(number: int, frame: object) -> None:
        stop.asked = True
        signal.signal(signal.SIGINT, before)  # so the second Ctrl-C interrupts at once
        sys.stderr.write(
            f"\n{title}: stops after this step and keeps what was learnt; Ctrl-C again stops at "
            "once, and goes on later from what was saved last\n"
        )

    signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
    # Not in `finally`: an error of the block itself is the one to be seen.
    if stop.asked:
        raise KeyboardInterrupt
