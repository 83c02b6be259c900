"""The door between a policy and a world: whether what one says is what the other means.

`check_world` stands before the first episode of everything that has a policy act: `evaluate`,
`collect` by a teacher, `practise`. A policy whose gripper is the other way round, whose moves are
centimetres, or whose cameras are others, acts without complaint and fails; so it is asked first.
"""

import sys

from armlet.benchmarks import Benchmark, benchmark_robot
from armlet.policies.contract import Policy
from armlet.robot.agree import agree


def check_world(policy: Policy, benchmark: Benchmark, *, whose: str = "the policy") -> None:
    """Raises DisagreementError naming everything in which a policy and a world differ, with a fix
    each; what may differ without harm is a line on stderr."""
    world = f"benchmark {benchmark.name!r}"
    # Remarks only: what must not differ has been raised.
    for line in agree(policy.robot, benchmark_robot(benchmark), whose=(whose, world)):
        sys.stderr.write(f"{whose}: {line}\n")
