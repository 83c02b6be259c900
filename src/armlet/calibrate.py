"""calibrate: the longest `execute` of the teacher, and of the student, that is non-inferior to its own
→ calibration.json and a table.

A chunk carried out further is a decision saved, for any policy and without training. So before a
student is called faster, its teacher gets the same: `armlet evaluate` gives every policy a row with
the number that was found here. It is found on episodes of its own, which nobody trains on and no
report is about. A killed calibration goes on where it stopped: finished episodes are kept, as those
of an evaluation are, in OUT/calibration.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from armlet.benchmarks import Benchmark, Task, benchmark_robot
from armlet.evaluation import calibration, measure, outcomes, stats
from armlet.evaluation.calibration import (
    FILE,
    Calibrated,
    CalibrationReport,
    Rate,
    longest,
    search,
    values_for,
)
from armlet.evaluation.episodes import run_episodes, run_of
from armlet.evaluation.settings import (
    apart,
    check_calibration_states,
    choose_elsewhere,
    contenders,
    seeds,
)
from armlet.evaluation.stats import PairedComparison
from armlet.measuring import Calibration
from armlet.policies.acting import behind_socket
from armlet.policies.contract import Backbone, Policy
from armlet.recipe import Recipe, at_hand, to_json
from armlet.robot.observation import Observation
from armlet.rollout.door import check_world
from armlet.rollout.loop import plan, run_task
from armlet.rollout.pool import THREADS, Contender
from armlet.rollout.together import Together

EPISODES = "calibration"  # a folder of OUT, with a log of every finished one


def main(recipe: Recipe) -> Path:
    """Look for the longest `execute` of the recipe's teacher, its student where there is one, and
    `policies`; returns the path of calibration.json."""
    benchmark = recipe.world("calibrate")
    # Refused before the first episode: hours come after it.
    apart("calibration", seeds(recipe))
    choose_elsewhere(recipe)
    check_calibration_states(recipe)
    recipe = at_hand(recipe, reads=("teacher", "policies"))
    field = {}
    for name, contender in contenders(recipe).items():
        # Budgets and numbers of actions that are asked for are those of an evaluation.
        if contender != Contender(contender.folder):
            continue
        if behind_socket(contender.folder) is not None:
            contender = replace(contender, robot=benchmark_robot(benchmark))
        policy = contender.load(recipe.acting_device, lambda: benchmark_robot(benchmark))
        check_world(policy, benchmark, whose=f"policy {name!r}")
        field[name] = Candidate(contender, policy.execute, chunk_of(policy, benchmark, recipe))
    check_values(field, recipe.calibration)
    together = Together.of(recipe.shards, recipe.out / EPISODES / "shards")
    found = []
    for name, candidate in field.items():
        found.append(calibrated(recipe, benchmark, name, candidate, together))
    report = CalibrationReport(
        benchmark=benchmark.fingerprint(),
        split=recipe.evaluation.splits[0],
        seeds=(recipe.calibration.seed, recipe.calibration.seed + recipe.calibration.episodes - 1),
        setting=recipe.calibration,
        policies=tuple(found),
        fingerprint={
            **measure.environment(),
            "device": recipe.acting_device,
            "threads": THREADS,
            "recipe": to_json(recipe),
        },
    )
    path = recipe.out / FILE
    # Whoever shared the episodes says the same of them, each in its own file.
    print(calibration.write(path, report))  # noqa: T201 - for the person who ran it
    return path


@dataclass(frozen=True)
class Candidate:
    """A policy whose longest `execute` is looked for."""

    contender: Contender
    execute: int  # its own
    chunk: int  # actions that it decides at a time


def chunk_of(policy: Policy, benchmark: Benchmark, recipe: Recipe) -> int:
    """How many actions a policy decides at a time; of one that does not say, by its first answer."""
    if isinstance(policy, Backbone):
        return policy.chunk
    task, seed = planned(benchmark, recipe)[0]
    seen: list[Observation] = []
    run_task(policy, benchmark, task, seed, on_look=seen.append)
    return len(policy.infer(seen[0]))


def planned(benchmark: Benchmark, recipe: Recipe) -> list[tuple[Task, int]]:
    """The episodes, of the split that an evaluation is about."""
    how = recipe.calibration
    return plan(benchmark, recipe.evaluation.splits[0], how.episodes, how.seed)


def check_values(field: dict[str, Candidate], how: Calibration) -> None:
    """Raises ValueError for a number of actions that would be tried for nobody."""
    for value in how.execute:
        # Longer than a policy's own number, and no longer than its chunk.
        if not any(value in values_for(each.execute, each.chunk, how) for each in field.values()):
            limits = []
            for name, each in field.items():
                limits.append(f"{name} carries out {each.execute} of {each.chunk}")
            raise ValueError(
                f"--calibration.execute {value} would be tried for no policy: {', '.join(limits)}; "
                "longer numbers than a policy's own are looked for, up to its chunk"
            )


def calibrated(
    recipe: Recipe,
    benchmark: Benchmark,
    name: str,
    candidate: Candidate,
    together: Together | None = None,
) -> Calibrated:
    """What is found of one policy. `together`: where other processes share its episodes; what is
    tried next follows from these, so all of them try the same."""
    how = recipe.calibration
    episodes = planned(benchmark, recipe)
    own = candidate.contender

    def run(field: dict[str, Contender]) -> dict[str, outcomes.Run]:
        rows = run_episodes(
            field,
            benchmark,
            episodes,
            recipe.out / EPISODES,
            title=f"calibrate {recipe.name}: {' and '.join(field)}",
            workers=how.workers,
            device=recipe.acting_device,
            together=together,
        )
        return {label: run_of(each) for label, each in rows.items()}

    def compare(value: int) -> tuple[Rate, PairedComparison]:
        label = f"{name} execute {value}"
        runs = run({name: own, label: replace(own, execute=value)})
        pair = stats.compare_paired(
            np.array(runs[label].success, bool), np.array(runs[name].success, bool)
        )
        return _rate(value, runs[label], benchmark), pair

    first = run({name: own})[name]
    tried = search(values_for(candidate.execute, candidate.chunk, how), compare, how)
    return Calibrated(
        name=name,
        folder=own.folder.as_posix(),
        fingerprint=own.fingerprint,
        chunk=candidate.chunk,
        own=_rate(candidate.execute, first, benchmark),
        tried=tried,
        longest=longest(candidate.execute, tried),
    )


def _rate(execute: int, run: outcomes.Run, benchmark: Benchmark) -> Rate:
    counted = outcomes.tally(run.success)
    hz = benchmark.action_spec.control_hz
    return Rate(
        execute=execute,
        successes=counted["successes"],
        episodes=counted["episodes"],
        ci95=counted["ci95"],
        decisions_per_second=outcomes.decisions_per_second(run, hz),
    )
