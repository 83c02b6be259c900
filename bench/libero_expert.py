"""How often the scripted expert of LIBERO succeeds, by suite and task, from the official initial
states.

    python bench/libero_expert.py [--suites libero_object libero_spatial] [--episodes 20]

Needs the extra: `make test-libero` makes an environment with it, .venv-libero. Episodes are kept
one by one, so that it goes on where it was stopped; an episode is about two seconds of one core,
without pictures. Writes a file a suite and, from
them, a page with the tables.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from armlet.benchmarks import Task, libero
from armlet.benchmarks.libero import Libero
from armlet.data.files import write_atomically

SPLIT = "official"
FEW = 3


@dataclasses.dataclass
class Arguments:
    suites: tuple[str, ...] = ("libero_object", "libero_spatial")
    """Which suites."""
    tasks: tuple[str, ...] = ()
    """Of one suite, some of its tasks; empty: all."""
    episodes: int = 20
    """A task: the first so many of its fifty official states."""
    out: Path = Path("docs/machinery/libero_expert")
    """Where a file a suite is kept; the page stands beside this folder."""


def main(arguments: Arguments) -> None:
    for suite in arguments.suites:
        run(arguments, suite)
    write_page(arguments.out)
    print(arguments.out.with_suffix(".md").read_text())


def run(arguments: Arguments, suite: str) -> None:
    """The episodes of a suite that are not known yet, the tasks in turn."""
    benchmark = Libero(suite=suite, task_names=arguments.tasks)
    fingerprint = benchmark.fingerprint()
    # The expert sees no pictures.
    for unseen in ("renderer", "cameras"):
        fingerprint.pop(unseen)
    file = arguments.out / f"{suite}.json"
    known: dict[str, Any] = {"fingerprint": fingerprint, "steps": {}}
    if file.exists():
        known = json.loads(file.read_text())
    if known["fingerprint"] != fingerprint:
        raise SystemExit(
            f"{file} has episodes of {known['fingerprint']}, and these would be of {fingerprint}; "
            "name another folder with --out"
        )
    tasks = benchmark.tasks(SPLIT)
    # A few of every task first, so that what is wrong is seen early.
    for enough in (min(FEW, arguments.episodes), arguments.episodes):
        for task in tasks:
            steps = known["steps"].setdefault(task.name, [])
            while len(steps) < enough:
                # One official state after the other: see LiberoWorld.
                steps.append(episode(benchmark, task, len(steps) * len(tasks)))
                print(suite, task.name, len(steps), steps[-1], flush=True)
                write(file, known)
            libero.forget()  # 0.6 GB each


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


def write(file: Path, known: dict[str, Any]) -> None:
    rates = {}
    for name, steps in known["steps"].items():
        if steps:
            rates[name] = float(np.mean([each is not None for each in steps]))
    known["success"] = {"tasks": rates, "mean": float(np.mean(list(rates.values())))}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, (json.dumps(known, indent=1) + "\n").encode())


def write_page(folder: Path) -> None:
    found = {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
    write_atomically(folder.with_suffix(".md"), page(found).encode())


def page(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "# LIBERO's scripted expert",
        "",
        "Made by `python bench/libero_expert.py`, which keeps every episode in a file a suite beside "
        "this page. Official initial states, at most 280 steps of 50 ms an episode; steps are those "
        "of episodes that succeeded. <!-- source: setting -->",
        "",
    ]
    for suite, known in found.items():
        lines += [
            f"## {suite}",
            "",
            f"<!-- source: libero_expert/{suite}.json -->",
            "| task | succeeded | episodes | steps |",
            "|---|---|---|---|",
        ]
        for name, steps in known["steps"].items():
            done = [each for each in steps if each is not None]
            pace = f"{np.mean(done):.0f}" if done else "–"
            lines.append(f"| {name} | {len(done)} | {len(steps)} | {pace} |")
        lines += [f"| **mean of its tasks** | **{100 * known['success']['mean']:.1f} %** | | |", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
