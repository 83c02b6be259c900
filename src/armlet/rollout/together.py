"""Work in shards that any number of processes share: each claims one after the other
(`data/claims.py`), and all of them, at the end, have all results.

Who starts the processes does not matter: a shell loop, Slurm, Kubernetes. A process of ours makes
shards in `workers` processes of its own, or has tasks of a Ray cluster make them.
"""

import contextlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from armlet.data.claims import DONE, Claims, ShardError, Watch, Worker, begin, end
from armlet.data.objects import open_objects
from armlet.lineage import Question, as_json, short
from armlet.progress import Progress
from armlet.rollout.pool import THREADS, work_through
from armlet.shards import Engine, Shards

Job = TypeVar("Job")
PAUSE = 1.0  # seconds between two looks at what others have made, at most
RETRIES = 5  # of a task of Ray whose process or node died


@dataclass(frozen=True)
class Together:
    """How, and where, processes do one verb's work together: `place` is a folder or a URL."""

    place: str
    size: int
    lease: float
    engine: Engine = "processes"
    tasks: int | None = None  # of Ray; None: as many as who asks has workers
    gpus: float = 0.0  # of a task of Ray

    @classmethod
    def of(cls, shards: Shards, beside: Path) -> "Together | None":
        """As a recipe says it, beside the result where it does not say where; None: one process
        does all alone."""
        if shards.on is None:
            return None
        place = shards.at or str(beside)
        return cls(place, shards.size, shards.lease, shards.on, shards.tasks, shards.gpus)

    @property
    def pause(self) -> float:
        return min(PAUSE, self.lease / 20)

    def at(self, name: str, question: Question) -> str:
        """Where the work of this name that answers this question is."""
        return f"{self.place}/{name}-{short(question)}"

    def once(self, name: str, question: Question, make: Callable[[], bytes]) -> bytes:
        """What one of all processes makes, here in this one or in another; the others wait for
        it."""
        question, place = self._of_one(name, question)
        begin(open_objects(place), question)
        # With this process's own number of threads: who asks has said what `make` needs.
        _Loop(place, 1, self.lease, self.pause, _Once(make))(0)
        return Claims(open_objects(place), 1).result(0)

    def made(self, name: str, question: Question) -> bytes | None:
        """What `once` gives, where it was made already; None where nobody has."""
        _, place = self._of_one(name, question)
        claims = Claims(open_objects(place), 1)
        return claims.result(0) if claims.all_finished else None

    def _of_one(self, name: str, question: Question) -> tuple[Question, str]:
        """The question of what one of all processes makes, and where they meet over it."""
        question = as_json({"once": name, **question})
        return question, self.at(name, question)


@dataclass(frozen=True)
class _Once:
    make: Callable[[], bytes]

    def __call__(self, shard: int) -> bytes:
        return self.make()


@dataclass(frozen=True)
class _Sharded(Generic[Job]):
    """What a worker makes of a shard: `work` of its jobs."""

    work: Callable[[Sequence[Job]], bytes]
    shards: tuple[tuple[Job, ...], ...]

    def __call__(self, shard: int) -> bytes:
        return self.work(self.shards[shard])


@dataclass(frozen=True)
class _Loop:
    """One worker: claims shards and makes them until all are finished, by it or by others; sent to
    a process. Returns how many it made."""

    place: str
    count: int
    lease: float
    pause: float
    make: Callable[[int], bytes]

    def __call__(
        self,
        number: int,
        *,
        tell: Callable[[int], object] = lambda count: None,
        goes_on: Callable[[], bool] = lambda: True,
    ) -> int:
        """`tell` is told how many are finished, each time that somebody looks; `goes_on` is asked
        before each shard, whether to make more."""
        objects = open_objects(self.place)
        made = 0
        with Worker(objects, lease=self.lease) as worker:
            claims = Claims(objects, self.count, worker, lease=self.lease)
            while True:
                finished = len(claims.finished())
                tell(finished)
                if finished >= self.count or not goes_on():
                    return made
                shard = claims.next()
                if shard is None:
                    time.sleep(self.pause)  # the rest is others'; one of them may die
                    continue
                made += claims.publish(shard, self.make(shard))


def once(
    together: Together | None,
    name: str,
    question: Callable[[], Question],
    make: Callable[[], bytes],
) -> bytes:
    """What `make` makes: where processes share the work, once in one of them, for all that ask the
    same `question`."""
    return make() if together is None else together.once(name, question(), make)


def sharded(jobs: Sequence[Job], size: int) -> tuple[tuple[Job, ...], ...]:
    """The jobs in order, `size` to a shard."""
    return tuple(tuple(jobs[start : start + size]) for start in range(0, len(jobs), size))


class SharedWork(Generic[Job]):
    """The shards of some work, which are made together with whoever else asks the same
    `question`."""

    def __init__(
        self,
        together: Together,
        name: str,
        question: Question,
        shards: tuple[tuple[Job, ...], ...],
    ) -> None:
        question = as_json({"work": name, "shards": len(shards), **question})
        self.together = together
        self.shards = shards
        self.place = together.at(name, question)
        self.objects = open_objects(self.place)
        begin(self.objects, question)
        self._claims = Claims(self.objects, len(shards))

    @property
    def was_used(self) -> bool:
        """Whether somebody said so (`end`)."""
        return self.objects.read(DONE) is not None

    def run(
        self,
        work: Callable[[Sequence[Job]], bytes],
        *,
        workers: int,
        title: str,
        here: bool = True,
    ) -> None:
        """`work` of every shard that is not finished, here or elsewhere, until all are. It has to
        be importable, and to make the same of a shard whoever asks it. One worker is this process
        itself, unless `here` is False."""
        if self._claims.all_finished:
            return
        loop = self._loop(work, title)
        if self.together.engine == "ray":
            self._on_ray(loop, self.together.tasks or workers, THREADS, title)
        elif workers <= 1 and here:
            with contextlib.closing(self._shown(title)) as shown:
                list(work_through(partial(loop, tell=shown.tell), [0], workers=1))
        else:
            self._in_processes(loop, workers, title)

    def run_as_it_is(
        self,
        work: Callable[[Sequence[Job]], bytes],
        *,
        elsewhere: Callable[[Sequence[Job]], bytes],
        title: str,
    ) -> None:
        """The same in this process alone, with its own number of threads and what it has loaded; or
        in tasks of Ray, each with as many threads, of what they load themselves (`elsewhere`, which
        is sent to them)."""
        if self._claims.all_finished:
            return
        if self.together.engine == "ray":
            assert self.together.tasks is not None, "whoever has no workers says how many"
            loop = self._loop(elsewhere, title)
            self._on_ray(loop, self.together.tasks, torch.get_num_threads(), title)
            return
        loop = self._loop(work, title)
        with contextlib.closing(self._shown(title)) as shown:
            loop(0, tell=shown.tell)

    def results(self) -> Iterator[bytes]:
        """Of every shard, in order."""
        return self._claims.results()

    def end(self) -> None:
        """The results were used, and may go."""
        end(self.objects)

    def _loop(self, work: Callable[[Sequence[Job]], bytes], title: str) -> _Loop:
        """One worker of this work, once it is said where the work is."""
        sys.stderr.write(f"{title}: shared in {self.place}\n")
        together = self.together
        make = _Sharded(work, self.shards)
        return _Loop(self.place, len(self.shards), together.lease, together.pause, make)

    def _in_processes(self, loop: _Loop, workers: int, title: str) -> None:
        # No pool: it would wait for ever for a process that is killed, and here the others go on.
        context = multiprocessing.get_context("spawn")
        running: list[BaseProcess] = []
        for number in range(workers):
            process: BaseProcess = context.Process(
                target=_run, args=(loop, number, os.getpid()), daemon=True
            )
            process.start()
            running.append(process)
        try:
            for finished in self._until_finished(title):
                alive = any(process.is_alive() for process in running)
                if not alive and not finished and not self._claims.all_finished:
                    raise ShardError(self._why(running))
        finally:
            for process in running:
                if not self._claims.all_finished:
                    process.terminate()
                process.join()

    def _until_finished(self, title: str) -> Iterator[bool]:
        """Whether all is finished, each time that somebody should look."""
        with contextlib.closing(self._shown(title)) as shown:
            while not self._claims.all_finished:
                yield False
                time.sleep(self.together.pause)
                shown.tell(len(self._claims.finished()))
        yield True

    def _shown(self, title: str) -> "_Shown":
        return _Shown(title, self._claims.count, len(self._claims.finished()))

    def _why(self, running: Sequence[BaseProcess]) -> str:
        """What processes of this one that all ended said before they did."""
        watch = Watch(self.objects)
        ours = {str(process.pid) for process in running}
        said = []
        for name in self.objects.names("workers"):
            worker = name.removesuffix(".json")
            if worker.rsplit("-", 2)[1] in ours and watch.said(worker).get("why"):
                said.append(watch.said(worker)["why"])
        codes = ", ".join(str(process.exitcode) for process in running)
        why = "; ".join(dict.fromkeys(said)) or "they said nothing"
        return (
            f"all {len(running)} workers of this process ended (exit codes {codes}) before the work "
            f"in {self.place} was finished: {why}"
        )

    def _on_ray(self, loop: _Loop, tasks: int, threads: int, title: str) -> None:
        try:
            import ray
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "--shards.on ray needs the package ray: pip install -e '.[ray]'"
            ) from error
        # A cluster that this process is a job of, or a small one on this machine.
        if not ray.is_initialized():
            ray.init(log_to_driver=False, include_dashboard=False)
        gpus = self.together.gpus
        there = ray.cluster_resources()
        # A cluster that grows may have them later; Ray itself would wait without a word.
        if threads > there.get("CPU", 0) or gpus > there.get("GPU", 0):
            sys.stderr.write(
                f"{title}: a task wants {threads} CPUs and {gpus:g} GPUs, and all of this Ray cluster "
                f"has {there.get('CPU', 0):g} and {there.get('GPU', 0):g}; waiting for more\n"
            )
        wanted = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=RETRIES)
        task: Any = wanted(_on_a_node)
        asked = [task.remote(loop, number, threads) for number in range(tasks)]
        for finished in self._until_finished(title):
            ended, _ = ray.wait(asked, num_returns=len(asked), timeout=0)
            if not finished and len(ended) == len(asked):
                ray.get(asked)  # raises what they died of


class _Shown:
    """Progress of shards, whoever makes them."""

    def __init__(self, title: str, count: int, finished: int) -> None:
        self._finished = finished
        self._progress = Progress(title, total=count, start=finished, unit="shard")

    def tell(self, finished: int) -> None:
        if finished > self._finished:
            self._progress.advance(finished - self._finished)
            self._finished = finished

    def close(self) -> None:
        self._progress.close()


def _run(loop: _Loop, number: int, parent: int) -> None:
    """A process of its own, which process `parent` has started."""
    torch.set_num_threads(THREADS)
    # Where that is killed nobody ends this one, and it would work on unseen. Windows still says its
    # number then.
    loop(number, goes_on=lambda: os.getppid() == parent)


def _on_a_node(loop: _Loop, number: int, threads: int) -> int:
    """A task of Ray: its process may have run another before."""
    torch.set_num_threads(threads)
    return loop(number)


def to_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()
