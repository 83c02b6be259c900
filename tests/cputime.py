"""Where the tests' time goes: `pytest --cpu-times` ends with the files and the tests that take most
of it, in seconds of the processor. They say the same on a busy machine; what a test waits for is not
among them. Knows no test."""

import multiprocessing.forkserver
import os
import resource
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

SHOWN = 60
NAME = "cpu seconds"


def spent() -> float:
    """Seconds of this process, of those that it has waited for, and of its fork server's."""
    others = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + others.ru_utime + others.ru_stime
    server = multiprocessing.forkserver._forkserver._forkserver_pid
    told = Path(f"/proc/{server}/stat")  # nowhere but on Linux
    if told.is_file():
        # Its processes are its own, not this one's: utime, stime, cutime, cstime of proc(5).
        fields = told.read_text().rpartition(")")[2].split()
        total += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return total


class CpuTimes:
    """A plugin of pytest, in each worker and in the process that gives them work."""

    def __init__(self) -> None:
        self.tests: Counter[str] = Counter()
        self.began = 0.0

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self) -> Iterator[None]:
        self.began = spent()
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        found = yield
        item.user_properties.append((NAME, spent() - self.began))  # travels with the report
        return found

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            self.tests[report.nodeid] += dict(report.user_properties).get(NAME, 0.0)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        files: Counter[str] = Counter()
        for name, seconds in self.tests.items():
            files[name.partition("::")[0]] += seconds
        terminalreporter.section(f"{files.total():.0f} s of the processor")
        for counted in (files, self.tests):
            for name, seconds in counted.most_common(SHOWN):
                terminalreporter.line(f"{seconds:7.1f} s  {name}")
