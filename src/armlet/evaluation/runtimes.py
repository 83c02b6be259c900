"""Every contender in every runtime that is asked for: exported once, and used again only for what
it was made from.

Exporting itself is passed in (`Export`), so this file knows no graph and no runtime. What was
exported lies in OUT/evaluation/exported/NAME-RUNTIME, and beside it, in NAME-RUNTIME.json, what it
was made from and how that went. One that a gate refuses is not made and not tried again; it has a
row in the report that says why.
"""

import functools
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from armlet.benchmarks import Benchmark
from armlet.data.files import hold, read_json, write_atomically
from armlet.lineage import Question, as_json, short
from armlet.measuring import EAGER, PARTS, Runtime
from armlet.policies.acting import behind_socket
from armlet.policies.contract import Policy
from armlet.progress import Progress
from armlet.robot.exported import is_exported
from armlet.robot.observation import Observation
from armlet.rollout.loop import plan, run_task
from armlet.rollout.pool import Contender

FRAMES = 100  # moments, at least, on which what is exported is compared with what it was made from
MOST = 300  # of them, about; more say nothing that these do not

# Where the policy is, the folder that is to be written, in which runtime, at which budgets, and the
# moments to compare at. Returns why it was refused; None: the folder is there.
Export = Callable[[Path, Path, Runtime, tuple[float, ...], Sequence[Observation]], str | None]


@dataclass(frozen=True)
class Refused:
    """A policy that was not run in a runtime that was asked for: a row of the report."""

    name: str  # as it would be called
    policy: str  # whose it is
    runtime: str  # the library
    precision: str
    why: str


@dataclass(frozen=True)
class Exporting:
    """How policies are exported for an evaluation. `made_with`: what else decides what comes out,
    versions of libraries and the origin of the moments among it."""

    export: Export
    out: Path  # the folder in which each has its own
    frames: Callable[[], Sequence[Observation]]  # asked for only where something is exported
    made_with: dict[str, Any]
    title: str


@dataclass(frozen=True)
class Job:
    """One policy to be exported to one runtime."""

    name: str
    contender: Contender  # as it is run in eager, nothing else said
    runtime: Runtime
    budgets: tuple[float, ...]  # at which it is run


def exported_contenders(
    field: Mapping[str, Contender], runtimes: Sequence[Runtime], how: Exporting
) -> tuple[dict[str, Contender], tuple[Refused, ...]]:
    """The same contenders in the runtimes beside eager, runtime by runtime, and which of them were
    refused. A folder that holds an exported policy already is in its own runtime, and left out."""
    jobs = _jobs(field, runtimes)
    found: dict[str, Contender] = {}
    refused = []
    if not jobs:
        return found, ()
    # All are compared at the same moments, whose episodes take minutes on fifty tasks.
    how = replace(how, frames=functools.cache(how.frames))
    progress = Progress(how.title, total=len(jobs), unit="export")
    # Two evaluations into one folder would each write what the other reads.
    with hold(how.out / "exporting.lock", "exporting"):
        names = _folder_names(jobs)
        for job, called in zip(jobs, names, strict=True):
            folder = how.out / called
            why = _export(job, folder, how)
            for name, contender in field.items():
                if contender.folder != job.contender.folder:
                    continue
                label = f"{name} {job.runtime}"
                if why is None:
                    found[label] = replace(contender, folder=folder, runtime=job.runtime)
                else:
                    library, precision = PARTS[job.runtime]
                    refused.append(Refused(label, job.name, library, precision, why))
            progress.advance()
    progress.close()
    return found, tuple(refused)


def _jobs(field: Mapping[str, Contender], runtimes: Sequence[Runtime]) -> list[Job]:
    """Each folder once a runtime, whatever `execute` and budgets it is run with."""
    first: dict[Path, str] = {}
    budgets: dict[Path, list[float]] = {}
    for name, contender in field.items():
        if is_exported(contender.folder):
            continue
        first.setdefault(contender.folder, name)
        dials = budgets.setdefault(contender.folder, [])
        if contender.budget is not None and contender.budget not in dials:
            dials.append(contender.budget)
    jobs = []
    for runtime in runtimes:
        if runtime == EAGER:
            continue
        for folder, name in first.items():
            jobs.append(Job(name, field[name], runtime, tuple(budgets[folder])))
    return jobs


def _folder_names(jobs: Sequence[Job]) -> list[str]:
    """NAME-RUNTIME as a name on disk; of two that come out alike with a digest of their own."""
    plain = []
    for job in jobs:
        plain.append(re.sub(r"[^\w.-]+", "-", f"{job.name}-{job.runtime}"))
    names = []
    for job, name in zip(jobs, plain, strict=True):
        alike = plain.count(name) > 1
        names.append(f"{name}-{short({'name': job.name})}" if alike else name)
    return names


def _export(job: Job, folder: Path, how: Exporting) -> str | None:
    """Export, unless that was done or refused before; returns why it is refused."""
    if behind_socket(job.contender.folder) is not None:
        return "its weights are behind a socket, and nothing of it can be exported"
    question = as_json(
        {
            "policy": job.contender.fingerprint,
            "runtime": job.runtime,
            "budgets": list(job.budgets),
            **how.made_with,
        }
    )
    beside = folder.with_name(f"{folder.name}.json")
    before = _before(beside, folder)
    if before is not None and before["question"] == question:
        if before["state"] == "refused":
            return str(before["why"])
        if before["state"] == "exported" and is_exported(folder):
            return None
    # Of something else, or half made: made by this function, and made again by it.
    if folder.exists():
        shutil.rmtree(folder)
    _say(beside, question, "begun")
    why = how.export(job.contender.folder, folder, job.runtime, job.budgets, how.frames())
    if why is not None:
        _say(beside, question, "refused", why)
        return why
    _say(beside, question, "exported")
    return None


def _before(beside: Path, folder: Path) -> dict[str, Any] | None:
    """What is said beside a folder. Raises ValueError where something lies there that this
    evaluation did not make: it is never removed."""
    if not beside.is_file():
        if folder.exists():
            raise ValueError(
                f"{folder} is there, and {beside.name} beside it is not: it was not exported by an "
                "evaluation, which would write there; move it, or give another --out"
            )
        return None
    return read_json(beside, fix=f"delete it and {folder}, to have that exported anew")


def _say(beside: Path, question: Question, state: str, why: str | None = None) -> None:
    said = {"question": question, "state": state, "why": why}
    write_atomically(beside, json.dumps(said, indent=1).encode())


def frames_of_world(
    teacher: Policy, benchmark: Benchmark, splits: Sequence[str], seed: int
) -> list[Observation]:
    """Moments at which an exported policy is compared with what it was made from: the teacher's
    own, in whole episodes of every task of every split, at least FRAMES of them; of many more every
    n-th of each episode. `seed`: of worlds that no report is about, since precisions may be chosen
    on these."""
    found: list[list[Observation]] = []
    total = 0
    episodes = 0
    least = 0
    for split in splits:
        least = max(least, len(benchmark.tasks(split)))
    # Of as many episodes as there are tasks: how many more short ones take is not known.
    progress = Progress("moments to compare at", total=least * len(splits), unit="episode")
    while episodes < least or total < FRAMES:
        for split in splits:
            (task, own) = plan(benchmark, split, episodes + 1, seed)[-1]
            seen: list[Observation] = []
            run_task(teacher, benchmark, task, own, on_look=seen.append)
            found.append(seen)
            total += len(seen)
            if progress.done < progress.total:
                progress.advance()
        episodes += 1
    progress.close()
    # Fifty tasks have a thousand looks, and each takes both policies.
    step = 1 + total // MOST
    return [look for seen in found for look in seen[::step]]
