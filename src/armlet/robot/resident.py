"""How much memory a robot's computer needs for an exported policy: asked in a process of its own, in
which nothing but numpy and the runtime is loaded. Knows no torch, which would be most of it."""

import resource
import sys
from pathlib import Path

from armlet.robot.exported import load_exported
from armlet.robot.observation import Observation


def peak_mb() -> float:
    """Peak resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # KiB on Linux, bytes on macOS.
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


def deciding_mb(folder: Path, observation: Observation) -> float:
    """The same after the policy was loaded and decided ten times."""
    policy = load_exported(folder)
    for _ in range(10):
        policy.infer(observation)
    return peak_mb()
