"""A process that dies before its n-th change of the disk, for every n: what stands there must be
whole each time.

The operations are those that Python announces to audit hooks. Between two of them a file that is
being written only grows, and that file is one that nobody reads yet, so these are all the moments
that differ.
"""

import itertools
import os
import sys
import traceback
from collections.abc import Callable, Iterator

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
KILLED, FAILED = 9, 1


def killed_everywhere(
    prepare: Callable[[], object], work: Callable[[], object], *, most: int = 400
) -> Iterator[int]:
    """Gives n after a run of `prepare`, and of `work` in a process that died before its n-th
    change; the last n is of a run that
    ended by itself."""
    for number in itertools.count():
        assert number < most, f"{work} changes the disk more than {most} times"
        prepare()
        child = os.fork()
        if child == 0:
            _run(work, number)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, KILLED), (
            f"the process that was to die at change {number} ended with {code}"
        )
        yield number
        if code == 0:
            return


def _run(work: Callable[[], object], number: int) -> None:
    left = number

    def hook(event: str, arguments: tuple) -> None:
        nonlocal left
        if event in CHANGES or (
            event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        ):
            if left == 0:
                os._exit(KILLED)
            left -= 1

    try:
        sys.addaudithook(hook)
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(FAILED)
    os._exit(0)
