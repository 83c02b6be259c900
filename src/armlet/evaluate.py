"""evaluate: policies × benchmark → report.json, outcomes.json.gz, a table, a picture and videos.

Every policy meets the same episodes, fixed in advance as task × seed. What the report says of
episodes is computed from `outcomes.json.gz`, which lies beside it (`armlet.evaluation.outcomes`);
what decisions cost is measured here. A killed evaluation goes on where it stopped
(`armlet.evaluation.episodes`).
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from armlet.benchmarks import Task, benchmark_robot
from armlet.data.episodes import EpisodeDataset
from armlet.data.files import write_atomically
from armlet.data.hub import is_name
from armlet.evaluation import figures, measure, offline
from armlet.evaluation import outcomes as kept
from armlet.evaluation.episodes import Row, run_delayed, run_episodes, run_of
from armlet.evaluation.films import make_film, sample_observations
from armlet.evaluation.outcomes import Outcomes, Planned, PolicyRun, Section
from armlet.evaluation.provenance import Curves, Provenance, curves, gripper_noise, seeds_of
from armlet.evaluation.report import Latency, Measured, OutcomesFile, Report
from armlet.evaluation.settings import check, contenders, planned
from armlet.policies.acting import Known, actor_provenance, behind_socket
from armlet.policies.contract import Backbone, Policy
from armlet.recipe import Recipe, at_hand, check_episodes, robot_of_episodes, suited, to_json
from armlet.robot.observation import Observation
from armlet.rollout.door import check_world
from armlet.rollout.loop import plan
from armlet.rollout.pool import THREADS, Contender, threads

OUTCOMES = "outcomes.json.gz"


@dataclass(frozen=True)
class Field:
    """Who is compared, by name; the teacher first."""

    contenders: dict[str, Contender]  # where each is on disk, and how it is run
    policies: dict[str, Policy]  # the same, loaded where policies act
    made: dict[str, Provenance]  # what each says of how it was made


def main(recipe: Recipe) -> Path:
    """Evaluate the recipe's teacher, its student and `policies`; returns the report's path."""
    benchmark = recipe.benchmark
    if benchmark is None:
        return compare_with_held_out(recipe)
    # Everything that can be refused is refused before the first episode: hours come after it.
    check(recipe)
    recipe = at_hand(recipe, reads=("teacher", "policies"))
    field = load(recipe, known=lambda: benchmark_robot(benchmark))
    teacher = field.policies["teacher"]
    # The world draws pictures as the policies want them; whoever asks for others is told so.
    if recipe.pictures.asked and isinstance(teacher, Backbone):
        recipe.agree_on_pictures(teacher.view)
    for name, policy in field.policies.items():
        check_world(policy, benchmark, whose=f"policy {name!r}")
    out = recipe.out / "evaluation"
    episodes = planned(benchmark, recipe.evaluation)
    rows = run_episodes(
        field.contenders,
        benchmark,
        episodes,
        out,
        title=f"evaluate {recipe.name}",
        workers=recipe.evaluation.workers,
        device=recipe.acting_device,
    )
    # As many threads as episodes were run with, whatever this process was started with: times
    # depend on it.
    with threads(THREADS):
        report = summarise(recipe, field, episodes, rows, out)
    return write(report, out)


def compare_with_held_out(recipe: Recipe) -> Path:
    """The same policies where there is no world to act in: against the episodes that nobody was
    trained on."""
    offline.check(recipe.evaluation)
    recipe = at_hand(recipe, reads=("episodes", "teacher", "policies"))
    data = EpisodeDataset(recipe.episodes, recipe.columns)
    field = load(recipe, known=lambda: robot_of_episodes(recipe, data))
    for name, policy in field.policies.items():
        # Of another robot's policy an error would be a number without meaning.
        title = f"evaluate {name}"
        check_episodes(
            recipe,
            data,
            policy.robot,
            state=policy.body.state if isinstance(policy, Backbone) else None,
            title=title,
            whose=f"policy {name!r}",
        )
    recipe = suited(recipe, field.policies["teacher"].robot.action)
    return offline.run(recipe, data, field.policies, field.contenders)


def load(recipe: Recipe, known: Known) -> Field:
    """The contenders, where policies act; `known`: see `load_policy`."""
    found = contenders(recipe)
    policies = {}
    made = {}
    for name, contender in found.items():
        if behind_socket(contender.folder) is not None:
            found[name] = replace(contender, robot=known())
        policies[name] = contender.load(recipe.acting_device, known)
        made[name] = actor_provenance(contender.folder)
    return Field(found, policies, made)


def summarise(
    recipe: Recipe,
    field: Field,
    episodes: list[tuple[Task, int]],
    rows: dict[str, list[Row]],
    out: Path,
) -> Report:
    """The report: policies are timed, run late and filmed, and all is put together. `rows`: what
    each policy did in the episodes."""
    benchmark = recipe.world("evaluate")
    setting = recipe.evaluation
    # The teacher's episodes, and each policy timed on them all: on their own episodes policies
    # would be timed on different pictures.
    observations = sample_observations(field.policies["teacher"], benchmark, setting.seed)
    timings = measure.latency(field.policies, observations, calls=setting.latency_calls)
    # A policy acts late by its median time: what it needs most of the time.
    milliseconds = {name: times["p50"] for name, times in timings.items()}
    delayed = run_delayed(
        field.contenders,
        benchmark,
        episodes,
        out,
        setting=setting,
        milliseconds=milliseconds,
        title=f"evaluate {recipe.name}",
        device=recipe.acting_device,
    )
    met = []
    for task, seed in episodes:
        met.append(Planned(task.split, task.family, task.name, seed))
    outcomes = Outcomes(
        hz=benchmark.action_spec.control_hz,
        limit=benchmark.max_steps,
        episodes=tuple(met),
        policies=policy_runs(field, rows),
        delayed=delayed,
    )
    # The same function that recomputes a report from the file: the two cannot disagree.
    sections = kept.recompute(outcomes)
    measurements = {}
    for row in sections["policies"]:
        name = row["name"]
        measurements[name] = measured(row, field, observations, timings[name])
    # The first episodes of the first split, not the best ones.
    films = []
    for task, seed in plan(benchmark, setting.splits[0], setting.videos, setting.seed):
        films.append(make_film(field.policies, field.contenders, benchmark, task, seed, out))
    return Report(
        outcomes=OutcomesFile(OUTCOMES, kept.write(out / OUTCOMES, outcomes)),
        sections=sections,
        measured=measurements,
        films=tuple(films),
        training=training(field),
        fingerprint=fingerprint(recipe, field),
    )


def write(report: Report, out: Path) -> Path:
    """The report as JSON, as a table, which is printed, and as pictures; returns its path."""
    said = report.to_json()
    write_atomically(out / "report.json", json.dumps(said, indent=1).encode())
    table = figures.table(said)
    write_atomically(out / "table.md", table.encode())
    figures.success_against_latency(said, out / "success-latency.png")
    if any(each.budget is not None for each in report.measured.values()):
        figures.success_against_budget(said, out / "success-budget.png")
    if any(policy["gripper_noise"] for policy in said["policies"][1:]):
        figures.success_against_noise(said, out / "success-noise.png")
    print(table)  # noqa: T201 - the verdict, for the person who ran it
    return out / "report.json"


# --- what the report says


def policy_runs(field: Field, rows: dict[str, list[Row]]) -> tuple[PolicyRun, ...]:
    """The policies' outcomes; their routes are counted in the first split."""
    together = seeds_of(field.contenders, field.made)
    found = []
    for name, contender in field.contenders.items():
        # A decision's route is a text of l characters, 1: the layer ran.
        routes: Counter[str] = Counter()
        for row in rows[name]:
            if row["split"] == rows[name][0]["split"]:
                routes.update(row["gates"])
        policy = field.policies[name]
        run = PolicyRun(
            name=name,
            fingerprint=contender.fingerprint,
            execute=contender.looks_after or policy.execute,
            layer_costs=_layer_costs(policy),
            routes=dict(sorted(routes.items())),  # sorted: the file's sha256 is compared
            run=run_of(rows[name]),
            seeds_of=together.get(name),
        )
        found.append(run)
    return tuple(found)


def _layer_costs(policy: Policy) -> tuple[float, ...]:
    """None of a policy whose layers nobody knows."""
    return tuple(policy.layer_costs().tolist()) if isinstance(policy, Backbone) else ()


def measured(
    row: Section, field: Field, observations: list[Observation], timing: dict[str, float]
) -> Measured:
    """What a policy costs. `row`: what its outcomes say."""
    contender = field.contenders[row["name"]]
    policy = field.policies[row["name"]]
    asked = row["decisions_per_second"]  # None: the arm never moved
    motion = None if asked is None else timing["p50"] * asked
    noise = gripper_noise(field.made[row["name"]])
    if not isinstance(policy, Backbone):
        # What it is made of nobody here knows, and its time is that of its machine and the network.
        where = Latency(timing, THREADS, measure.device_of(policy))
        return Measured(
            layers=(),
            changes_with=None,
            latency_ms=where,
            ms_per_second_of_motion=motion,
            flops=dict.fromkeys(("total", "backbone")),
            params=dict.fromkeys(("total", "backbone")),
            peak_memory_mb=None,
            bytes_on_disk=None,
            gripper_noise=noise,
            budget=None,
        )
    changes = None
    # A policy that always runs the same layers depends on nothing, and need not be asked.
    if row["routing"]["patterns"] > 1:
        changes = measure.what_routes_depend_on(policy, observations)
    return Measured(
        layers=tuple(policy.layer_numbers),
        changes_with=changes,
        latency_ms=Latency(timing, THREADS, measure.device_of(policy)),
        ms_per_second_of_motion=motion,
        flops=measure.compute(policy, observations),
        params=measure.parameters(policy),
        peak_memory_mb=measure.peak_memory_mb(contender.folder, observations[0], policy.robot),
        bytes_on_disk=measure.bytes_on_disk(contender.folder),
        gripper_noise=noise,
        budget=contender.budget,
    )


def training(field: Field) -> dict[str, list[Curves]]:
    """Backbone → its stages' loss curves, once a policy however often it is run."""
    found: dict[str, list[Curves]] = {}
    for name, contender in field.contenders.items():
        once = contender == Contender(contender.folder)
        # The hub keeps policies, not the logs beside them.
        if once and not is_name(contender.folder):
            stages = curves(contender.folder, field.made[name])
            if stages:
                found[name] = stages
    return found


def fingerprint(recipe: Recipe, field: Field) -> dict[str, Any]:
    """What this report was made with. `recipe` is the one that was given to `evaluate`; `evaluated`
    holds each policy's folder and the recipe that it was made by, where it says so."""
    setting = recipe.evaluation
    evaluated = {}
    for name, contender in field.contenders.items():
        made_by = field.made[name].get("recipe")
        evaluated[name] = {"folder": contender.folder.as_posix(), "recipe": made_by}
    return {
        **measure.environment(),
        "device": recipe.acting_device,
        "threads": THREADS,
        "workers": setting.workers,
        "seeds": {
            "recipe": recipe.seed,
            "episodes": [setting.seed, setting.seed + setting.episodes - 1],
        },
        "benchmark": recipe.world("evaluate").fingerprint(),
        "recipe": to_json(recipe),
        "evaluation": asdict(setting),
        "evaluated": evaluated,
    }
