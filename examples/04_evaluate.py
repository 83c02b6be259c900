"""Run the student of 03_distil.py once, closed loop, and count the layers it ran at each decision.

python examples/04_evaluate.py out/example
"""

import sys
from pathlib import Path

from armlet import load_policy
from armlet.benchmarks.tabletop import Tabletop
from armlet.rollout.loop import plan, run_task


def main(out: Path) -> None:
    benchmark, student = Tabletop(), load_policy(out / "student")
    for task, seed in plan(benchmark, "seen", episodes=3, seed=500_000_000):
        result = run_task(student, benchmark, task, seed)
        ran = sum(map(sum, result.gates)) / sum(map(len, result.gates))
        verdict = "succeeded" if result.success else "failed"
        print(
            f"{task.name}: {verdict} after {result.steps} steps; {100 * ran:.0f} % of the layers ran"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/example"))
