"""How much memory a robot's computer needs for an exported policy: asked in a process of its own, in
which nothing but numpy and the runtime is loaded. Knows no torch, which would be most of it."""

import resource
from pathlib import Path

from armlet.robot.exported import load_exported
from armlet.robot.observation import Observation


def peak_mb() -> float:
    """Peak resident memory of this process so far, in MB."""
    # Linux counts in `ru_maxrss` what a process had before it became another program, which is the
    # memory of the one that started it; this line of its own begins anew.
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024  # of KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2  # of bytes, on macOS


def deciding_mb(folder: Path, observation: Observation) -> float:
    """The same after the policy was loaded and decided ten times."""
    policy = load_exported(folder)
    for _ in range(10):
        policy.infer(observation)
    return peak_mb()
