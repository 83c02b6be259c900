"""Running an evaluation's episodes, each once: what stands in the log is not run again.

The log, `episodes.jsonl`, keeps a line an episode, with everything that it was made from, so that a
killed evaluation goes on where it stopped, and one of another policy, world or armlet begins anew.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from armlet import source
from armlet.benchmarks import Benchmark, Task
from armlet.data.files import appending, hold, whole_lines
from armlet.evaluation.outcomes import DelayedRun, Run
from armlet.progress import Progress
from armlet.recipe import Evaluation
from armlet.rollout.loop import Episode, steps_late
from armlet.rollout.pool import THREADS, Attempt, Contender, run_all

LOG = "episodes.jsonl"
Row = dict[str, Any]
Key = tuple[str, str, str, int]


def run_episodes(
    field: dict[str, Contender],
    benchmark: Benchmark,
    planned: Sequence[tuple[Task, int]],
    out: Path,
    *,
    title: str,
    workers: int = 1,
    device: str = "cpu",
) -> dict[str, list[Row]]:
    """Every policy in every planned episode; its rows of the log, in the order of the plan."""
    made_from = {name: conditions(each, benchmark, device) for name, each in field.items()}
    log = out / LOG
    with hold(out / "evaluating.lock", "evaluating"):
        done = read_log(log)
        missing = []
        for task, seed in planned:
            for name in field:
                if key(made_from[name], task.split, task.name, seed) not in done:
                    missing.append(Attempt(name, task, seed))
        every = len(planned) * len(field)
        progress = Progress(title, total=every, start=every - len(missing), unit="episode")
        with appending(log) as add:
            for attempt, episode in run_all(
                field, benchmark, missing, workers=workers, device=device
            ):
                task = attempt.task
                own = made_from[attempt.name]
                row = {"made_from": own, **episode_row(task, attempt.seed, episode)}
                done[key(own, task.split, task.name, attempt.seed)] = row
                add(json.dumps(row))
                progress.advance()
        progress.close()
    return {
        name: [done[key(made_from[name], task.split, task.name, seed)] for task, seed in planned]
        for name in field
    }


def conditions(contender: Contender, benchmark: Benchmark, device: str = "cpu") -> Row:
    """Everything that decides how an episode (split, task, seed) goes: a row of the log is used
    again only where all of it is the same. `execute` None: the policy's own number, which its
    fingerprint covers."""
    return {
        "policy": contender.fingerprint,
        "execute": contender.execute,
        "lag": contender.lag,
        "late": contender.late if contender.lag else None,
        "benchmark": benchmark.fingerprint(),
        "armlet": source.identity(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": device,
        "threads": THREADS,
    }


def key(made_from: Row, split: str, task: str, seed: int) -> Key:
    """Under which an episode of the log is found."""
    return json.dumps(made_from, sort_keys=True), split, task, seed


def read_log(path: Path) -> dict[Key, Row]:
    """Finished episodes by key. A last line cut short by a kill is dropped; rows from before it was
    kept what they were made from stay in the file and are not used."""
    done: dict[Key, Row] = {}
    for line in whole_lines(path):
        row = json.loads(line)
        if "made_from" not in row:
            continue
        missing = [name for name in ("split", "task", "seed") if name not in row]
        if missing:
            raise ValueError(
                f"{path}: a line has no {', '.join(missing)}: {line[:60]}…; delete the line to run "
                "that episode again"
            )
        done[key(row["made_from"], row["split"], row["task"], row["seed"])] = row
    return done


def episode_row(task: Task, seed: int, episode: Episode) -> Row:
    """An episode as the log and a report say it."""
    return {
        "split": task.split,
        "family": task.family,
        "task": task.name,
        "seed": seed,
        "success": episode.success,
        "steps": episode.steps,
        "waited": episode.waited,
        "toggles": episode.toggles,
        "gates": ["".join(map(str, gates)) for gates in episode.gates],
    }


def run_of(rows: Iterable[Row]) -> Run:
    """The log's rows of one policy, in the order of the episodes, as outcomes."""
    rows = list(rows)
    toggles = [row["toggles"] for row in rows]
    return Run(
        success=tuple(row["success"] for row in rows),
        steps=tuple(row["steps"] for row in rows),
        decisions=tuple(len(row["gates"]) for row in rows),
        waited=tuple(row["waited"] for row in rows),
        toggles=None if None in toggles else tuple(toggles),
    )


def run_delayed(
    field: dict[str, Contender],
    benchmark: Benchmark,
    planned: Sequence[tuple[Task, int]],
    out: Path,
    *,
    setting: Evaluation,
    milliseconds: dict[str, float],
    title: str,
    device: str = "cpu",
) -> tuple[DelayedRun, ...]:
    """The first split's episodes again on computers `slower` times slower than this one, under each
    rule of acting `late`: what speed is worth. A decision is taken to need the `milliseconds` that
    it needs here times that factor (rollout.loop says what follows)."""
    first = [(task, seed) for task, seed in planned if task.split == setting.splits[0]]
    late: dict[str, Contender] = {}
    made: list[tuple[str, str, float, str, float]] = []
    for factor in setting.slower:
        for rule in setting.late:
            for name, contender in field.items():
                delay = factor * milliseconds[name]
                label = f"{name} {factor:g}× slower, {rule}"
                lag = steps_late(delay, benchmark.action_spec.control_hz)
                late[label] = replace(contender, lag=lag, late=rule)
                made.append((label, name, factor, rule, delay))
    if not late:
        return ()
    rows = run_episodes(
        late, benchmark, first, out, title=title, workers=setting.workers, device=device
    )
    return tuple(
        DelayedRun(name, factor, rule, delay, late[label].lag, run_of(rows[label]))
        for label, name, factor, rule, delay in made
    )
