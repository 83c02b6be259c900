"""Locks against real processes: one that writes, one that waits, one that is killed."""

import signal
import subprocess
import sys
import time

import pytest

from armlet.data.files import BusyError, hold

HOLDS = """
import sys, time
from pathlib import Path
from armlet.data.files import hold
with hold(Path(sys.argv[1]), "baking"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_one_process_at_a_time_and_a_dead_one_holds_nothing(tmp_path, holder) -> None:
    with pytest.raises(BusyError, match="another process is baking here; wait for it, or stop it"):
        hold(tmp_path / "lock", "baking")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with hold(tmp_path / "lock", "baking"), pytest.raises(BusyError):
        hold(tmp_path / "lock", "baking")  # nor twice in one process
    hold(tmp_path / "lock", "baking").lock.release()


def test_one_that_waits_goes_on_when_the_other_ends(tmp_path, holder, capfd) -> None:
    killer = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(1); os.kill({holder.pid}, 9)"])
    started = time.monotonic()
    with hold(tmp_path / "lock", "baking", wait=True):
        assert time.monotonic() - started > 0.5
    killer.wait()
    assert "waiting for it" in capfd.readouterr().err
