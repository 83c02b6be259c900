"""evaluate: policies × benchmark → report.json, outcomes.json.gz, a table, a picture and videos.

Every policy meets the same episodes, fixed in advance as task × seed. What the report says of
episodes is computed from `outcomes.json.gz`, which lies beside it (`armlet.evaluation.outcomes`);
what decisions cost is measured here. A killed evaluation goes on where it stopped
(`armlet.evaluation.episodes`).
"""

import json
import platform
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from armlet import source
from armlet.data.files import write_atomically
from armlet.data.hub import is_name, local_folder
from armlet.evaluation import figures, measure
from armlet.evaluation import outcomes as kept
from armlet.evaluation.episodes import Row, run_delayed, run_episodes, run_of
from armlet.evaluation.films import make_film, sample_observations
from armlet.evaluation.outcomes import Outcomes, Planned, PolicyRun, Section
from armlet.evaluation.provenance import Curves, Provenance, curves, gripper_noise, seeds_of
from armlet.evaluation.report import Latency, Measured, OutcomesFile, Report
from armlet.evaluation.settings import check, contenders, planned
from armlet.policies.checkpoint import read_provenance
from armlet.policies.contract import Policy
from armlet.recipe import Recipe, at_hand, to_json
from armlet.robot.observation import Observation
from armlet.rollout.door import check_world
from armlet.rollout.pool import THREADS, Contender, threads

OUTCOMES = "outcomes.json.gz"


def main(recipe: Recipe) -> Path:
    """Evaluate the recipe's teacher, its student and `policies`; returns the report's path."""
    check(recipe)
    recipe = at_hand(recipe, reads=("teacher", "policies"))
    setting = recipe.evaluation
    benchmark = recipe.benchmark
    device = recipe.acting_device
    out = recipe.out / "evaluation"
    title = f"evaluate {recipe.name}"

    field = contenders(recipe)
    policies = {name: contender.load(device) for name, contender in field.items()}
    if recipe.pictures.asked:
        recipe.pictures.agree(policies["teacher"].view)
    for name, policy in policies.items():
        check_world(policy, benchmark, whose=f"policy {name!r}")

    episodes = planned(benchmark, setting)
    rows = run_episodes(
        field, benchmark, episodes, out, title=title, workers=setting.workers, device=device
    )
    made = {name: read_provenance(contender.folder) for name, contender in field.items()}
    with threads(THREADS):
        observations = sample_observations(policies["teacher"], benchmark, setting.seed)
        timings = measure.latency(policies, observations, calls=setting.latency_calls)
        delayed = run_delayed(
            field,
            benchmark,
            episodes,
            out,
            setting=setting,
            milliseconds={name: times["p50"] for name, times in timings.items()},
            title=title,
            device=device,
        )
        seeds = seeds_of(field, made)
        outcomes = Outcomes(
            hz=benchmark.action_spec.control_hz,
            limit=benchmark.max_steps,
            episodes=tuple(
                Planned(task.split, task.family, task.name, seed) for task, seed in episodes
            ),
            policies=tuple(
                policy_run(name, policies[name], field[name], rows[name], seeds.get(name))
                for name in field
            ),
            delayed=delayed,
        )
        sections = kept.recompute(outcomes)
        measurements = {}
        for row in sections["policies"]:
            name = row["name"]
            measurements[name] = measured(
                row, policies[name], field[name], observations, timings[name], made[name]
            )
        filmed = [each for each in episodes if each[0].split == setting.splits[0]]
        films = [
            make_film(policies, field, benchmark, task, seed, out)
            for task, seed in filmed[: setting.videos]
        ]
    report = Report(
        outcomes=OutcomesFile(OUTCOMES, kept.write(out / OUTCOMES, outcomes)),
        sections=sections,
        measured=measurements,
        films=tuple(films),
        training=training(field, made),
        fingerprint=fingerprint(recipe, field, made),
    )
    return write(report, field, out)


def write(report: Report, field: dict[str, Contender], out: Path) -> Path:
    """The report as JSON, as a table, which is printed, and as pictures; returns its path."""
    said = report.to_json()
    write_atomically(out / "report.json", json.dumps(said, indent=1).encode())
    table = figures.table(said)
    write_atomically(out / "table.md", table.encode())
    figures.success_against_latency(said, out / "success-latency.png")
    if any(contender.budget is not None for contender in field.values()):
        figures.success_against_budget(said, out / "success-budget.png")
    if any(policy["gripper_noise"] for policy in said["policies"][1:]):
        figures.success_against_noise(said, out / "success-noise.png")
    print(table)  # noqa: T201 - the verdict, for the person who ran it
    return out / "report.json"


# --- what the report says


def policy_run(
    name: str, policy: Policy, contender: Contender, rows: list[Row], seeds_of: str | None
) -> PolicyRun:
    """One policy's outcomes; its routes are counted in the first split. `seeds_of`: the students
    that it is one seed of."""
    routes: Counter[str] = Counter()
    for row in rows:
        if row["split"] == rows[0]["split"]:
            routes.update(row["gates"])
    return PolicyRun(
        name=name,
        fingerprint=contender.fingerprint,
        execute=contender.execute or policy.execute,
        layer_costs=tuple(policy.layer_costs().tolist()),
        routes=dict(sorted(routes.items())),
        run=run_of(rows),
        seeds_of=seeds_of,
    )


def measured(
    row: Section,
    policy: Policy,
    contender: Contender,
    observations: list[Observation],
    timing: dict[str, float],
    made: Provenance,
) -> Measured:
    """What a policy costs. `row`: what its outcomes say."""
    changes = None
    if row["routing"]["patterns"] > 1:  # one that always runs the same depends on nothing
        changes = measure.what_routes_depend_on(policy, observations)
    asked = row["decisions_per_second"]
    weights = local_folder(contender.folder, kind="model") / "model.safetensors"
    return Measured(
        layers=tuple(policy.layer_numbers),
        changes_with=changes,
        latency_ms=Latency(timing, THREADS, str(policy.device)),
        ms_per_second_of_motion=None if asked is None else timing["p50"] * asked,
        flops=measure.compute(policy, observations),
        params=measure.parameters(policy),
        peak_memory_mb=measure.peak_memory_mb(contender.folder, observations[0]),
        bytes_on_disk=weights.stat().st_size,
        gripper_noise=gripper_noise(made),
        budget=contender.budget,
    )


def training(field: dict[str, Contender], made: dict[str, Provenance]) -> dict[str, list[Curves]]:
    """Policy → its stages' loss curves, once a policy however often it is run."""
    found: dict[str, list[Curves]] = {}
    for name, contender in field.items():
        once = contender.budget is None and contender.execute is None
        if once and not is_name(contender.folder):
            stages = curves(contender.folder, made[name])
            if stages:
                found[name] = stages
    return found


def fingerprint(
    recipe: Recipe, field: dict[str, Contender], made: dict[str, Provenance]
) -> dict[str, Any]:
    """What this report was made with. `recipe` is the one that was given to `evaluate`; `evaluated`
    holds each policy's folder and the recipe that it was made by, where it says so."""
    armlet = source.identity()
    setting = recipe.evaluation
    evaluated = {}
    for name, contender in field.items():
        folder = contender.folder.as_posix()
        evaluated[name] = {"folder": folder, "recipe": made[name].get("recipe")}
    return {
        "armlet": armlet["version"],
        "commit": armlet["commit"],
        "dirty": armlet["dirty"],
        "files": armlet["files"],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "processor": measure.processor(),
        "device": recipe.acting_device,
        "threads": THREADS,
        "workers": setting.workers,
        "seeds": {
            "recipe": recipe.seed,
            "episodes": [setting.seed, setting.seed + setting.episodes - 1],
        },
        "benchmark": recipe.benchmark.fingerprint(),
        "recipe": to_json(recipe),
        "evaluation": asdict(setting),
        "evaluated": evaluated,
    }
