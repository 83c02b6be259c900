"""How a verb's work is divided among processes, on one machine or many: a part of a recipe that
changes nothing of what is made. Nothing here runs anything."""

from dataclasses import dataclass
from math import inf
from typing import Literal

from armlet import limits
from armlet.limits import ABOVE_0, MOST

VERBS = ("collect", "probe", "calibrate", "evaluate")  # whose work is done in shards
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
    """Episodes in a shard, or batches of frames (a teacher's traces); what a worker that dies was
    making is made anew by another."""
    lease: float = 60.0
    """Seconds without a sign of life after which a worker's shard is taken over."""
    tasks: int | None = None
    """Tasks of Ray that share the work; none: as many as the verb's workers, of which probe has
    none to say."""
    gpus: float = 0.0
    """GPUs of each task of Ray, which sees no others: 1, or 0.5 for two tasks on one."""

    def __post_init__(self) -> None:
        limits.positive(self, "size", "tasks")
        limits.check(self, lease=(ABOVE_0, inf), gpus=(0, MOST))
        if self.gpus > 1 and not self.gpus.is_integer():
            raise ValueError(
                f"--shards.gpus is {self.gpus}, expected a part of one GPU, or a whole number"
            )
        if self.on is None:
            self._refuse(
                ("at", "size", "lease", "tasks", "gpus"),
                "is about work that several processes share, and this one does it alone: give "
                "--shards.on processes as well",
            )
        elif self.on == "processes":
            self._refuse(
                ("tasks", "gpus"),
                "is about tasks of Ray, and plain processes are as many as are started: give "
                "--shards.on ray, or leave it out",
            )

    def _refuse(self, names: tuple[str, ...], why: str) -> None:
        """Raises ValueError where one of these fields is set, as it would have no effect."""
        for name in names:
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise ValueError(f"--shards.{name} {why}")
