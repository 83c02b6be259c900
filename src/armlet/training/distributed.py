"""The processes that train together: who this one is, and what all of them say.

`torchrun` starts them and tells torch who they are; torch's process group joins them. A process
that was started alone is a world of one, for which nothing here communicates. What stops a run of
several is said with the step that each process had reached. Knows processes; no network, no data.
"""

import contextlib
import datetime
import io
import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from armlet.data.files import hold
from armlet.logs import Logging

PATIENCE = 30.0  # minutes that a process waits for the others: the first may be writing 30 GB


class RankError(RuntimeError):
    """The processes of a run do not agree, or one of them is gone."""


@dataclass(frozen=True)
class World:
    """The processes of a run. `rank`: which of `size` this one is. `launched`: torchrun started
    them, be it only one."""

    rank: int = 0
    size: int = 1
    launched: bool = False

    @property
    def first(self) -> bool:
        """Whether it is this process that writes and speaks for all."""
        return self.rank == 0

    @property
    def me(self) -> str:
        return f"rank {self.rank} of {self.size}"

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def said(self, value: Any) -> list[Any]:
        """What each process says, by rank; any value that can be pickled."""
        if self.size == 1:
            return [value]
        answers: list[Any] = [None] * self.size
        dist.all_gather_object(answers, value)
        return answers

    def agree(self, what: str, value: Any, *, fix: str) -> None:
        """Raises RankError, on every process, where they do not all say the same; `value` is JSON."""
        answers = [json.dumps(each, sort_keys=True) for each in self.said(value)]
        for rank, answer in enumerate(answers):
            if answer != answers[0]:
                raise RankError(
                    f"{what}: rank 0 has {answers[0]:.200} and rank {rank} {answer:.200}; {fix}"
                )

    def rows(self, mine: Tensor, counts: list[int]) -> list[Tensor]:
        """Each process's rows (counts[rank], …), by rank; `mine` are this one's. Without
        gradients."""
        if self.size == 1:
            return [mine]
        # Collectives want equal sizes: filled up to the largest part, and cut again.
        room = mine.new_zeros(max(counts), *mine.shape[1:])
        room[: len(mine)] = mine.detach()
        # No collective has booleans.
        sent = room.to(torch.uint8) if room.dtype == torch.bool else room
        found = [torch.empty_like(sent) for _ in counts]
        dist.all_gather(found, sent)
        return [each[:count].to(mine.dtype) for each, count in zip(found, counts, strict=True)]

    def reached(self, step: int) -> None:
        """Notes for the others which step this process begins."""
        if self.size > 1:
            dist.distributed_c10d._get_default_store().set(f"armlet/{self.rank}", str(step))

    def lost(self, title: str, step: int, error: Exception, *, kept: str) -> RankError:
        """What to say where the processes have lost each other; `kept`: what they go on from."""
        first = str(error).strip().split("\n")[0]
        return RankError(
            f"{title}: {self.me}, step {step}: the other processes did not answer ({first:.300}). "
            f"Steps reached: {self._steps()}; the one that is behind, or was ended, has stopped "
            "the others: look at its own output (torchrun --redirects 3 --log-dir LOGS keeps each "
            f"rank's) and at the memory of its machine. {kept}; the same command goes on from there"
        )

    def _steps(self) -> str:
        store = dist.distributed_c10d._get_default_store()
        found = []
        for rank in range(self.size):
            key = f"armlet/{rank}"
            try:
                step = store.get(key).decode() if store.check([key]) else "none"
            except (RuntimeError, OSError):  # the process that keeps the store is gone as well
                return "unknown, rank 0 is gone"
            found.append(f"rank {rank} {step}")
        return ", ".join(found)


def world() -> World:
    """The processes that were `joined`, or this one alone."""
    if not dist.is_initialized():
        return World()
    return World(dist.get_rank(), dist.get_world_size(), launched=True)


@contextlib.contextmanager
def joined(*, patience: float = PATIENCE) -> Iterator[World]:
    """The processes that torchrun started, joined while it lasts; only the first of them writes to
    stderr. A process that was started alone stays so. `patience`: minutes after which a process
    that waits for the others gives up. Raises RankError for more processes than GPUs, ahead of what
    NCCL would say."""
    if dist.is_initialized() or not dist.is_torchelastic_launched():
        yield world()
        return
    backend = "gloo"
    if torch.cuda.is_available():
        local = dist.get_node_local_rank()
        there = torch.cuda.device_count()
        if local >= there:
            raise RankError(
                f"process {local + 1} on a machine with {there} GPUs; give torchrun "
                f"--nproc-per-node {there}"
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=datetime.timedelta(minutes=patience))
    found = world()
    said = sys.stderr if found.first else io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield found
    finally:
        # A process that leaves with an error must not wait for the others: they may wait for it.
        dist.destroy_process_group()


def held(lock: Path, doing: str) -> AbstractContextManager[Any]:
    """As `files.hold`; of several processes the first holds it for all."""
    return hold(lock, doing) if world().first else contextlib.nullcontext()


def log_of(asked: Logging) -> Logging:
    """Where this process logs: of several the first, as is asked, and the others nowhere."""
    return asked if world().first else Logging()


def is_of_others(error: BaseException) -> bool:
    """Whether an error says that the other processes did not answer. torch has a type of its own
    for some of these only."""
    if isinstance(error, RankError | torch.OutOfMemoryError):
        return False
    if isinstance(error, dist.DistError):
        return True
    said = str(error)
    return any(each in said for each in ("gloo", "NCCL", "Connection closed", "Connection reset"))


@contextlib.contextmanager
def said_by(who: World) -> Iterator[None]:
    """What goes wrong in one of several processes is said with its rank."""
    try:
        yield
    except RankError:
        raise
    except Exception as error:  # of any kind: the command line says it in one line
        if who.size == 1:
            raise
        raise RankError(f"{who.me}: {type(error).__name__}: {error}") from error


def refuse_several(what: str, *, fix: str) -> None:
    """Raises RankError where several processes train together: `what` takes one."""
    found = world()
    if found.size > 1:
        raise RankError(f"{what} and {found.size} processes train together; {fix}")
