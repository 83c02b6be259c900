"""How often the scripted expert of LIBERO succeeds, by suite and task, from the official initial
states.

    python bench/libero_expert.py [--suites libero_object libero_spatial] [--episodes 20]

Needs the extra: `make test-libero` makes an environment with it, .venv-libero. Episodes are kept
one by one, so that it goes on where it was stopped; an episode is about two seconds of one core,
without pictures. Writes `libero_expert.json` and, from it, a page with the table.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from armlet.benchmarks import Task
from armlet.benchmarks.libero import Libero
from armlet.data.files import write_atomically

SPLIT = "official"


@dataclasses.dataclass
class Arguments:
    suites: tuple[str, ...] = ("libero_object", "libero_spatial")
    """Which suites."""
    tasks: tuple[str, ...] = ()
    """Of one suite, some of its tasks; empty: all."""
    episodes: int = 20
    """A task: the first so many of its fifty official states."""
    out: Path = Path("docs/machinery/libero_expert.json")
    """Where what is known is kept; the page stands beside it."""


def main(arguments: Arguments) -> None:
    known: dict[str, Any] = {"steps": {}}
    if arguments.out.exists():
        known = json.loads(arguments.out.read_text())
    for suite in arguments.suites:
        benchmark = Libero(suite=suite, task_names=arguments.tasks)
        fingerprint = benchmark.fingerprint()
        # The expert sees no pictures.
        for unseen in ("renderer", "cameras"):
            fingerprint.pop(unseen)
        before = known.setdefault("fingerprints", {}).setdefault(suite, fingerprint)
        if before != fingerprint:
            raise SystemExit(
                f"{arguments.out} has episodes of {before}, and these would be of {fingerprint}; "
                "name another file with --out"
            )
        for task in benchmark.tasks(SPLIT):
            steps = known["steps"].setdefault(suite, {}).setdefault(task.name, [])
            while len(steps) < arguments.episodes:
                began = time.process_time()
                # One official state after the other: see LiberoWorld.
                steps.append(episode(benchmark, task, len(steps) * len(benchmark.tasks())))
                seconds = time.process_time() - began
                print(suite, task.name, len(steps), steps[-1], f"{seconds:.1f} s", flush=True)
                write(arguments.out, known)
            print(suite, task.name, summary(steps), flush=True)
    write(arguments.out, known)
    print(arguments.out.with_suffix(".md").read_text())


def episode(benchmark: Libero, task: Task, seed: int) -> int | None:
    """The steps that the expert needed; None where it failed."""
    world = benchmark.make(task, seed)
    try:
        for step in range(benchmark.max_steps):
            if world.step(world.expert_action()):
                return step + 1
        return None
    finally:
        world.close()


def write(out: Path, known: dict[str, Any]) -> None:
    known["success"] = {}
    for suite, tasks in known["steps"].items():
        rates = {}
        for name, steps in tasks.items():
            if steps:
                rates[name] = float(np.mean([each is not None for each in steps]))
        if rates:
            known["success"][suite] = {"tasks": rates, "mean": float(np.mean(list(rates.values())))}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, (json.dumps(known, indent=1) + "\n").encode())
    write_atomically(out.with_suffix(".md"), page(known).encode())


def summary(steps: list[int | None]) -> str:
    done = [each for each in steps if each is not None]
    pace = f"{np.mean(done):.0f} steps" if done else "–"
    return f"{len(done)}/{len(steps)}, {pace}"


def page(known: dict[str, Any]) -> str:
    lines = [
        "# LIBERO's scripted expert",
        "",
        "Made by `python bench/libero_expert.py`; every episode is in "
        "[libero_expert.json](libero_expert.json). Official initial states, at most 280 steps of "
        "50 ms an episode; steps are those of episodes that succeeded.",
        "",
        "<!-- source: libero_expert.json -->",
        "",
        "| suite | task | succeeded of episodes | steps |",
        "|---|---|---|---|",
    ]
    for suite, tasks in known["steps"].items():
        for name, steps in tasks.items():
            if not steps:
                continue
            succeeded, pace = summary(steps).split(", ")
            done, of = succeeded.split("/")
            lines.append(f"| {suite} | {name} | {done} of {of} | {pace.removesuffix(' steps')} |")
        if suite in known["success"]:
            mean = known["success"][suite]["mean"]
            lines.append(f"| {suite} | **mean of its tasks** | **{100 * mean:.1f} %** | |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(tyro.cli(Arguments))
