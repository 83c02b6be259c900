"""A server whose policy does what the instruction says: answers a formula of all that it is shown,
raises, answers NaN, or takes its time.

    python tests/server/moody.py [options of armlet serve]
"""

import sys
import time
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent))

from armlet.policies.contract import Policy
from armlet.robot.observation import Observation
from armlet.robot.spec import ActionSpec, ObservationSpec, RobotSpec
from armlet.serve import Serving, serve

CHUNK = 4
DIMS = 3


def formula(seen: Observation) -> np.ndarray:
    """(k, a): small numbers that depend on everything, and change from step to step."""
    told = float(np.float64(seen.state).sum() + seen.images["eye"].mean() / 50)
    told += len(seen.instruction) + sum(float(each.state.sum()) for each in seen.past)
    base = 0.3 * np.sin(told)
    steps = np.arange(CHUNK)[:, None] * 0.01
    return (base + steps + 0.5 * np.float64(seen.previous_action)[None]).astype(np.float32)


class Moody(Policy):
    execute = 2

    def __init__(self) -> None:
        self.history = 1

    @property
    def robot(self) -> RobotSpec:
        action = ActionSpec(
            ("dx", "dy", "gripper"), "delta", "none", (-9.0,) * 3, (9.0,) * 3, (2,), 1.0, -1.0, 10.0
        )
        return RobotSpec(action, ObservationSpec.of({"eye": (16, 16)}, state_names=("x", "y")))

    def infer(self, seen: Observation) -> np.ndarray:
        found = formula(seen)
        words = seen.instruction
        if words == "raise":
            raise RuntimeError("the model ran out of memory\nand more")
        if words == "exit":
            raise SystemExit(3)
        if words == "nan":
            found[1, 0] = np.nan
        if words == "short":
            return found[:1]
        if words.startswith("sleep "):
            time.sleep(float(words.removeprefix("sleep ")))
        return found


def main() -> None:
    serving = tyro.cli(Serving)
    sys.stdout.write(serve(Moody(), serving, name="moody", fingerprint="f") + "\n")


if __name__ == "__main__":
    main()
