"""How a verb's work is divided among processes, on one machine or many: a part of a recipe that
changes nothing of what is made. Nothing here runs anything."""

from dataclasses import dataclass
from math import inf
from typing import Literal

from armlet import limits
from armlet.limits import ABOVE_0

VERBS = ("collect", "probe", "evaluate")  # whose work is done in shards
Engine = Literal["processes", "ray"]


@dataclass(frozen=True)
class Shards:
    """Work in shards, which any number of processes claim one after the other
    (docs/several-workers.md)."""

    on: Engine | None = None
    """processes: this one shares the work with all that are started with the same command, here or
    on other machines; ray: with tasks of a Ray cluster. None: it does all of the work alone."""
    at: str | None = None
    """The folder or URL (s3://bucket/prefix) in which all of them meet; none: beside the result."""
    size: int = 8
    """Episodes in a shard, or batches of frames (probe); what a worker that dies was making is made
    anew by another."""
    lease: float = 60.0
    """Seconds without a sign of life after which a worker's shard is taken over."""

    def __post_init__(self) -> None:
        limits.positive(self, "size")
        limits.check(self, lease=(ABOVE_0, inf))
        if self.on is not None:
            return
        for name in ("at", "size", "lease"):
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise ValueError(
                    f"--shards.{name} is about work that several processes share, and this one "
                    "does it alone: give --shards.on processes as well"
                )
