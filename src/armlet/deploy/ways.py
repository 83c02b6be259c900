"""The runtimes in which a policy can be timed here before anybody exports it for good."""

from collections.abc import Sequence
from pathlib import Path

from armlet.policies.contract import Backbone, Policy
from armlet.robot.observation import Observation


def at_hand() -> tuple[tuple[str, str], ...]:
    """(runtime, precision) of every way beside PyTorch that is installed; none: there is no
    exporter here yet."""
    return ()


def exported(
    policy: Backbone,
    runtime: str,
    precision: str,
    observations: Sequence[Observation],
    folder: Path,
    *,
    threads: int,
) -> Policy:
    """The policy in another runtime, written into `folder` without the gates of `armlet export`:
    to be timed, and not to act."""
    raise ValueError(f"{runtime} {precision}: nothing can be exported here yet")
