"""Running an evaluation's episodes, each once: what stands in the log is not run again.

The log, `episodes.jsonl`, keeps a line an episode, with everything that it was made from, so that a
killed evaluation goes on where it stopped, and one of another policy, world or armlet begins anew.
Where processes share the work, each has the whole log in the end.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from armlet import source
from armlet.benchmarks import Benchmark, Task
from armlet.data.files import hold
from armlet.data.lines import appending, read_lines, whole_lines
from armlet.evaluation.outcomes import DelayedRun, Run
from armlet.lineage import digest_text
from armlet.progress import Progress
from armlet.recipe import Evaluation
from armlet.rollout.loop import Episode, steps_late
from armlet.rollout.pool import THREADS, Attempt, Contender, run_all, run_here
from armlet.rollout.together import SharedWork, Together, sharded

LOG = "episodes.jsonl"
Row = dict[str, Any]  # a line of the log
Key = tuple[str, str, str, int]  # (conditions as JSON, split, task, seed)


def run_episodes(
    field: Mapping[str, Contender],
    benchmark: Benchmark,
    planned: Sequence[tuple[Task, int]],
    out: Path,
    *,
    title: str,
    workers: int = 1,
    device: str = "cpu",
    together: Together | None = None,
) -> dict[str, list[Row]]:
    """Every policy in every planned episode; its rows of the log, in the order of the plan.
    `together`: where other processes share the work, and have the same rows in the end."""
    made_from = {}
    for name, contender in field.items():
        made_from[name] = conditions(contender, benchmark, device)
    log = out / LOG
    if together is not None:
        acting = _Act(field, benchmark, device, made_from, log)
        _share(acting, planned, together, workers=workers, title=title)
    # Two evaluations into one folder would each run what the other is running; those that share the
    # work come here one after the other, and find nothing left to run.
    with hold(out / "evaluating.lock", "evaluating", wait=together is not None):
        done = continue_log(log)
        missing = []
        # Episode by episode, not policy by policy: a log that was cut short still has pairs.
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
                # At once: a kill loses only the episodes that are running.
                add(json.dumps(row))
                progress.advance()
        progress.close()
    found: dict[str, list[Row]] = {}
    for name in field:
        # In the order of the plan, which pairs the policies; workers finish in any order.
        found[name] = []
        for task, seed in planned:
            found[name].append(done[key(made_from[name], task.split, task.name, seed)])
    return found


@dataclass(frozen=True)
class _Act:
    """What a worker makes of a shard of attempts: their rows, as the log has them. Episodes that
    stand in this machine's log are not run again."""

    field: Mapping[str, Contender]
    benchmark: Benchmark
    device: str
    made_from: Mapping[str, Row]
    log: Path

    def __call__(self, shard: Sequence[Attempt]) -> bytes:
        done = read_log(self.log)
        rows = []
        for attempt in shard:
            row = done.get(self.key(attempt))
            if row is None:
                ((_, episode),) = run_here(self.field, self.benchmark, [attempt], self.device)
                row = {
                    "made_from": self.made_from[attempt.name],
                    **episode_row(attempt.task, attempt.seed, episode),
                }
            rows.append(json.dumps(row))
        return "\n".join(rows).encode()

    def key(self, attempt: Attempt) -> Key:
        made_from = self.made_from[attempt.name]
        return key(made_from, attempt.task.split, attempt.task.name, attempt.seed)


def _share(
    acting: _Act,
    planned: Sequence[tuple[Task, int]],
    together: Together,
    *,
    workers: int,
    title: str,
) -> None:
    """Every planned episode of every policy, made by whoever shares the work, into this machine's
    log."""
    shards: list[tuple[Attempt, ...]] = []
    # Of one policy each: a worker that makes one has to load that one alone.
    for block in sharded(planned, together.size):
        for name in acting.field:
            shards.append(tuple(Attempt(name, task, seed) for task, seed in block))
    listed = [(task.split, task.name, seed) for task, seed in planned]
    question = {"made_from": dict(acting.made_from), "episodes": listed, "size": together.size}
    work = SharedWork(together, "episodes", question, tuple(shards))
    work.run(acting, workers=workers, title=title)
    # Workers that share a disk share the log as well: one after the other adds what is missing.
    with hold(acting.log.parent / "evaluating.lock", "evaluating", wait=True):
        done = continue_log(acting.log)
        with appending(acting.log) as add:
            for shard, content in zip(shards, work.results(), strict=True):
                for attempt, line in zip(shard, content.decode().split("\n"), strict=True):
                    if acting.key(attempt) not in done:
                        add(line)


def conditions(contender: Contender, benchmark: Benchmark, device: str = "cpu") -> Row:
    """Everything that decides how an episode (split, task, seed) goes: a row of the log is used
    again only where all of it is the same. `execute` None: the policy's own number, which its
    fingerprint covers."""
    made_from = {
        "policy": contender.fingerprint,  # of weights and settings, not the folder's name
        "execute": contender.execute,
        "lag": contender.lag,
        # Without a lag no rule applies, and rows are shared whatever the rule says.
        "late": contender.late if contender.lag else None,
        "benchmark": benchmark.fingerprint(),
        "armlet": source.identity(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": device,
        "threads": THREADS,
    }
    # Nothing is added where there is none: rows of before there was a choice stay good.
    if contender.ensemble is not None:
        made_from["ensemble"] = contender.ensemble
    if contender.guard is not None:
        made_from["guard"] = asdict(contender.guard)
    if contender.routes is not None:
        # A digest: there may be thousands, and every row would repeat them.
        made_from["routes"] = digest_text([json.dumps(asdict(contender.routes))])
    if contender.change is not None:
        made_from["change"] = asdict(contender.change)
    return made_from


def key(made_from: Row, split: str, task: str, seed: int) -> Key:
    """Under which an episode of the log is found."""
    # Sorted: a row read from disk may have its fields in another order.
    return json.dumps(made_from, sort_keys=True), split, task, seed


def read_log(path: Path) -> dict[Key, Row]:
    """Finished episodes by key, none where there is no file. Reads only: a last line without an end
    is left out, and stays, for another process may be writing it. Rows from before it was kept what
    they were made from are not used."""
    return _by_key(read_lines(path), path)


def continue_log(path: Path) -> dict[Key, Row]:
    """The same, for who holds the lock and goes on writing: a last line without an end was cut short
    by a kill, and is cut off the file."""
    return _by_key(whole_lines(path), path)


def _by_key(lines: Iterable[str], path: Path) -> dict[Key, Row]:
    done: dict[Key, Row] = {}
    for line in lines:
        row = json.loads(line)
        if "made_from" not in row:
            continue
        missing = [name for name in ("split", "task", "seed") if name not in row]
        if missing:
            raise ValueError(
                f"{path}: a line has no {', '.join(missing)}: {line[:60]}…; delete the line to run "
                "that episode again"
            )
        # Of two lines about one episode the later one counts.
        done[key(row["made_from"], row["split"], row["task"], row["seed"])] = row
    return done


def episode_row(task: Task, seed: int, episode: Episode) -> Row:
    """An episode as the log and a report say it."""
    gates = []
    for ran in episode.gates:
        gates.append("".join(map(str, ran)))  # a text of l characters a decision
    row = {
        "split": task.split,
        "family": task.family,
        "task": task.name,
        "seed": seed,
        "success": episode.success,
        "steps": episode.steps,
        "waited": episode.waited,  # control steps, as are `steps`
        "toggles": episode.toggles,  # None: no gripper
        "gates": gates,
    }
    if episode.guarded is not None:
        row["guarded"] = episode.guarded  # control steps, too
    return row


def run_of(rows: Iterable[Row]) -> Run:
    """The log's rows of one policy, in the order of the episodes, as outcomes."""
    success: list[bool] = []
    steps: list[int] = []
    decisions: list[int] = []
    waited: list[int] = []
    toggles: list[int | None] = []
    guarded: list[int] = []
    for row in rows:
        success.append(row["success"])
        steps.append(row["steps"])
        decisions.append(len(row["gates"]))  # gates are kept once a decision
        waited.append(row["waited"])
        toggles.append(row["toggles"])
        if "guarded" in row:
            guarded.append(row["guarded"])
    known = tuple(each for each in toggles if each is not None)
    return Run(
        success=tuple(success),
        steps=tuple(steps),
        decisions=tuple(decisions),
        waited=tuple(waited),
        toggles=known if len(known) == len(toggles) else None,  # None: a robot without a gripper
        guarded=tuple(guarded) or None,  # None: without a guard
    )


def run_delayed(
    field: Mapping[str, Contender],
    benchmark: Benchmark,
    planned: Sequence[tuple[Task, int]],
    out: Path,
    *,
    setting: Evaluation,
    milliseconds: Mapping[str, float],
    guided_milliseconds: Mapping[str, float],
    title: str,
    device: str = "cpu",
    together: Together | None = None,
) -> tuple[DelayedRun, ...]:
    """The first split's episodes again on computers `slower` times slower than this one, under each
    rule of acting `late`: what speed is worth. A decision is taken to need the `milliseconds` that
    it needs here times that factor (rollout.loop says what follows); one that is guided, the
    `guided_milliseconds`, and who has none of these cannot be guided and is not run so."""
    first = [(task, seed) for task, seed in planned if task.split == setting.splits[0]]
    late: dict[str, Contender] = {}
    made: list[tuple[str, str, float, str, float]] = []  # label, policy, factor, rule, delay in ms
    for factor in setting.slower:
        for rule in setting.late:
            needed = guided_milliseconds if rule == "guided" else milliseconds
            for name, contender in field.items():
                if name not in needed:
                    continue
                delay = factor * needed[name]
                label = f"{name} {factor:g}× slower, {rule}"
                # Milliseconds as control steps: a world moves on in whole ones.
                lag = steps_late(delay, benchmark.action_spec.control_hz)
                late[label] = replace(contender, lag=lag, late=rule)
                made.append((label, name, factor, rule, delay))
    if not late:
        return ()
    rows = run_episodes(
        late,
        benchmark,
        first,
        out,
        title=title,
        workers=setting.workers,
        device=device,
        together=together,
    )
    found = []
    for label, name, factor, acting, delay in made:
        lag = late[label].lag
        found.append(DelayedRun(name, factor, acting, delay, lag, run_of(rows[label])))
    return tuple(found)
