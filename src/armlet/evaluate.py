"""evaluate: policies × benchmark → report.json, outcomes.json.gz, a table, a picture and videos.

Every policy meets the same episodes, fixed in advance as task × seed. What has been run is kept
line by line in `episodes.jsonl` under everything that it was made from, so a killed evaluation goes
on where it stopped, and a changed one begins anew. What the report says of episodes is computed
from `outcomes.json.gz` (`armlet.evaluation.outcomes`), which lies beside it.
"""

import json
import platform
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from armlet import source
from armlet.benchmarks import Benchmark, Task
from armlet.data.files import appending, hold, whole_lines, write_atomically
from armlet.data.hub import is_name, local_folder, without_revision
from armlet.data.video import write_video
from armlet.evaluation import figures, measure
from armlet.evaluation import outcomes as kept
from armlet.evaluation.outcomes import DelayedRun, Episode, Outcomes, PolicyRun, Run
from armlet.policies.checkpoint import read_provenance
from armlet.policies.contract import Policy
from armlet.progress import Progress
from armlet.recipe import Recipe, at_hand, to_json
from armlet.robot.observation import Observation
from armlet.rollout.loop import Contender, Result, film, plan, run_all, run_episode, steps_late
from armlet.training.practice import TRIAL, first_seed

VERSION = 2  # of report.json; 1 had no outcomes beside it
OUTCOMES = "outcomes.json.gz"
Row = dict[str, Any]


def main(recipe: Recipe) -> Path:
    """Evaluate the recipe's teacher, its student and `policies`; returns the report's path."""
    check(recipe)
    recipe = at_hand(recipe, reads=("teacher", "policies"))
    field = contenders(recipe)
    if recipe.pictures.asked:
        recipe.pictures.agree(field["teacher"].load().view)
    out = recipe.out / "evaluation"
    rows = run_episodes(recipe, field, out)
    torch.set_num_threads(1)
    policies = {name: contender.load() for name, contender in field.items()}
    observations = sample_observations(policies, recipe.world("evaluate"), recipe.evaluation.seed)
    timings = measure.latency(policies, observations, calls=recipe.evaluation.latency_calls)
    outcomes = Outcomes(
        hz=recipe.world("evaluate").action_spec.control_hz,
        limit=recipe.world("evaluate").max_steps,
        episodes=tuple(
            Episode(task.split, task.family, task.name, seed) for task, seed in planned(recipe)
        ),
        policies=tuple(policy_run(name, policies[name], field[name], rows[name]) for name in field),
        delayed=run_delayed(recipe, field, timings, out),
    )
    sections = kept.recompute(outcomes)
    report: Row = {
        "version": VERSION,
        "outcomes": {"file": OUTCOMES, "sha256": kept.write(out / OUTCOMES, outcomes)},
        **sections,
        "policies": [
            {
                **row,
                **measured(
                    row,
                    policies[row["name"]],
                    field[row["name"]],
                    observations,
                    timings[row["name"]],
                ),
            }
            for row in sections["policies"]
        ],
        "rollouts": make_videos(recipe, field, policies, out),
        "training": training(field),
        "fingerprint": fingerprint(recipe, field),
    }
    write_atomically(out / "report.json", json.dumps(report, indent=1).encode())
    table = figures.table(report)
    write_atomically(out / "table.md", table.encode())
    figures.success_against_latency(report, out / "success-latency.png")
    if any(contender.budget is not None for contender in field.values()):
        figures.success_against_budget(report, out / "success-budget.png")
    if any(policy["gripper_noise"] for policy in report["policies"][1:]):
        figures.success_against_noise(report, out / "success-noise.png")
    print(table)  # noqa: T201 - the verdict, for the person who ran it
    return out / "report.json"


def check(recipe: Recipe) -> None:
    """Raises ValueError for settings that contradict each other or would have no effect."""
    setting = recipe.evaluation
    if not setting.splits:
        raise ValueError(
            "--evaluation.splits is empty; name at least one split, the benchmark's are "
            + ", ".join(recipe.world("evaluate").splits)
        )
    ranges = seeds(recipe)
    ours = ranges.pop("evaluation")
    for what, theirs in ranges.items():
        if ours.start < theirs.stop and theirs.start < ours.stop:
            raise ValueError(
                f"evaluation has the seeds {ours.start} to {ours.stop - 1}, and {what} has {theirs.start} to {theirs.stop - 1}: policies "
                "would be tested on worlds that they were trained on; give --evaluation.seed another range"
            )
    if setting.slower and not setting.late:
        raise ValueError(
            "--evaluation.slower needs a rule for acting late: --evaluation.late wait run_on"
        )
    if setting.late != ("wait",) and not setting.slower:
        raise ValueError(
            "--evaluation.late is about policies on a slower computer, and none is asked for: --evaluation.slower 20"
        )
    for name in ("splits", "budgets", "execute", "slower", "late"):
        values = getattr(setting, name)
        if len(set(values)) < len(values):
            raise ValueError(
                f"--evaluation.{name} says a value twice: {' '.join(map(str, values))}"
            )


def seeds(recipe: Recipe) -> dict[str, range]:
    """Whose worlds are made from which seeds, by what they are for. A world belongs to its task,
    split and seed."""
    setting = recipe.evaluation
    found = {
        "collection": range(
            recipe.collection.seed, recipe.collection.seed + recipe.collection.episodes
        )
    }
    for number, each in enumerate(recipe.rounds):
        first = first_seed(recipe, number)
        found[f"rounds.{number}"] = range(first, first + each.episodes)
        found[f"rounds.{number}, its trial"] = range(first + TRIAL, first + TRIAL + each.trial)
    found["evaluation"] = range(setting.seed, setting.seed + setting.episodes)
    return found


def contenders(recipe: Recipe) -> dict[str, Contender]:
    """Name → policy: the teacher first. Two students of one name are told apart by their folder, or
    the whole name on the hub. After them the same policies again,
    once for each number of actions that `execute` asks for."""
    folders = {"teacher": Contender(recipe.teacher)}
    if (recipe.student_folder / "config.json").exists():
        folders[recipe.name] = Contender(recipe.student_folder)
        budgets = recipe.evaluation.budgets
        folders |= {
            f"{recipe.name} at {budget:g}": Contender(recipe.student_folder, budget)
            for budget in budgets
        }
    elif recipe.evaluation.budgets:
        raise ValueError(
            f"--evaluation.budgets are those of the recipe's student, and there is none in {recipe.student_folder}; "
            "run `armlet distil` first, or leave the option out"
        )
    elif recipe.student is not None:
        sys.stderr.write(
            f"evaluate {recipe.name}: there is no student in {recipe.student_folder} yet (`armlet distil` makes it); only the teacher and "
            "`--policies` are run\n"
        )
    for folder in recipe.policies:
        called = without_revision(folder)
        name = called.parent.name if called.name == "student" else called.name
        if name in folders:
            name = folder.as_posix()
        twin = next(
            (each for each, contender in folders.items() if _same_place(contender.folder, folder)),
            None,
        )
        if twin is not None:
            raise ValueError(
                f"--policies names {folder}, which is evaluated already, as {twin!r}: each policy is run once"
            )
        folders[name] = Contender(folder)
    again = {}
    for execute in recipe.evaluation.execute:
        for name, contender in folders.items():
            again[f"{name} execute {execute}"] = replace(contender, execute=execute)
    return folders | again


def _same_place(one: Path, other: Path) -> bool:
    """Whether two places are one folder, or one name on the hub."""
    if is_name(one) or is_name(other):
        return one == other
    return one.resolve() == other.resolve()


def planned(recipe: Recipe) -> list[tuple[Task, int]]:
    """Every episode of every split, in order."""
    setting = recipe.evaluation
    found = []
    for split in setting.splits:
        found += plan(recipe.world("evaluate"), split, setting.episodes, setting.seed)
    return found


# --- running what has not been run
# --------------------------------------------------------------------------


def run_episodes(recipe: Recipe, field: dict[str, Contender], out: Path) -> dict[str, list[Row]]:
    """Every policy on every episode of every split; what stands in `episodes.jsonl` is not run
    again."""
    wanted = planned(recipe)
    made_from = {
        name: conditions(contender, recipe.world("evaluate")) for name, contender in field.items()
    }
    with hold(out / "evaluating.lock", "evaluating"):
        done = _run_missing(recipe, field, made_from, wanted, out / "episodes.jsonl")
    return {
        name: [done[key(made_from[name], task.split, task.name, seed)] for task, seed in wanted]
        for name in field
    }


def _run_missing(
    recipe: Recipe,
    field: dict[str, Contender],
    made_from: dict[str, Row],
    wanted: list[tuple[Task, int]],
    log: Path,
) -> dict[tuple[str, str, str, int], Row]:
    """What the log says once every wanted episode stands in it."""
    done = read_log(log)
    jobs = []
    for task, seed in wanted:
        for name in field:
            if key(made_from[name], task.split, task.name, seed) not in done:
                jobs.append((name, task, seed))
    every = len(wanted) * len(field)
    progress = Progress(
        f"evaluate {recipe.name}", total=every, start=every - len(jobs), unit="episode"
    )
    with appending(log) as add:
        for name, result in run_all(
            field, recipe.world("evaluate"), jobs, workers=recipe.evaluation.workers
        ):
            row = {"made_from": made_from[name], **episode_row(result)}
            done[key(made_from[name], result.task.split, result.task.name, result.seed)] = row
            add(json.dumps(row))
            progress.advance()
    progress.close()
    return done


def conditions(contender: Contender, benchmark: Benchmark) -> Row:
    """Everything that decides how an episode (split, task, seed) goes: a row of the log is used
    again only where all of it is the same.
    `execute` None: the policy's own number, which its fingerprint covers."""
    return {
        "policy": contender.fingerprint,
        "execute": contender.execute,
        "lag": contender.lag,
        "late": contender.late if contender.lag else None,
        "benchmark": benchmark.fingerprint(),
        "armlet": source.identity(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def key(made_from: Row, split: str, task: str, seed: int) -> tuple[str, str, str, int]:
    """Under which an episode of the log is found."""
    return json.dumps(made_from, sort_keys=True), split, task, seed


def read_log(path: Path) -> dict[tuple[str, str, str, int], Row]:
    """Finished episodes by key. A last line cut short by a kill is dropped; rows from before it was
    kept what they were made from
    stay in the file and are not used."""
    done: dict[tuple[str, str, str, int], Row] = {}
    for line in whole_lines(path):
        row = json.loads(line)
        if "made_from" in row:
            missing = [name for name in ("split", "task", "seed") if name not in row]
            if missing:
                raise ValueError(
                    f"{path}: a line has no {', '.join(missing)}: {line[:60]}…; delete the line to run that episode again"
                )
            done[key(row["made_from"], row["split"], row["task"], row["seed"])] = row
    return done


def episode_row(result: Result) -> Row:
    return {
        "split": result.task.split,
        "family": result.task.family,
        "task": result.task.name,
        "seed": result.seed,
        "success": result.success,
        "steps": result.steps,
        "waited": result.waited,
        "toggles": result.toggles,
        "gates": ["".join(map(str, gates)) for gates in result.gates],
    }


def run_delayed(
    recipe: Recipe, field: dict[str, Contender], timings: dict[str, dict[str, float]], out: Path
) -> tuple[DelayedRun, ...]:
    """The first split again on computers `slower` times slower than this one, under each rule of
    acting `late`: what speed is worth. A
    decision is taken to need its measured p50 times that factor (rollout says what follows)."""
    setting = recipe.evaluation
    if not setting.slower:
        return ()
    hz = recipe.world("evaluate").action_spec.control_hz
    late: dict[str, Contender] = {}
    found: dict[str, DelayedRun] = {}
    for factor in setting.slower:
        for rule in setting.late:
            for name, contender in field.items():
                delay = factor * timings[name]["p50"]
                label = f"{name} {factor:g}× slower, {rule}"
                late[label] = replace(contender, lag=steps_late(delay, hz), late=rule)
                found[label] = DelayedRun(name, factor, rule, delay, late[label].lag, NOTHING)
    first = replace(recipe, evaluation=replace(setting, splits=setting.splits[:1]))
    rows = run_episodes(first, late, out)
    return tuple(replace(each, run=run_of(rows[label])) for label, each in found.items())


# --- what the report says
# -----------------------------------------------------------------------------------

NOTHING = Run(success=(), steps=(), decisions=(), waited=(), toggles=None)


def run_of(rows: list[Row]) -> Run:
    """The log's rows of one policy, in the order of the episodes, as outcomes."""
    toggles = [row["toggles"] for row in rows]
    return Run(
        success=tuple(row["success"] for row in rows),
        steps=tuple(row["steps"] for row in rows),
        decisions=tuple(len(row["gates"]) for row in rows),
        waited=tuple(row["waited"] for row in rows),
        toggles=None if None in toggles else tuple(toggles),
    )


def policy_run(name: str, policy: Policy, contender: Contender, rows: list[Row]) -> PolicyRun:
    """One policy's outcomes; its routes are counted in the first split."""
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
    )


def measured(
    row: Row,
    policy: Policy,
    contender: Contender,
    observations: list[Observation],
    timing: dict[str, float],
) -> Row:
    """What a policy's row says beside its outcomes: milliseconds, operations, memory, and how it
    was made. `ms_per_second_of_motion`:
    p50 × how often it is asked in a second in which the arm moves."""
    routed = row["routing"] | {"layers": policy.layer_numbers}
    if routed["patterns"] > 1:  # one that always runs the same depends on nothing
        routed["changes_with"] = measure.what_routes_depend_on(policy, observations)
    asked = row["decisions_per_second"]
    return {
        "routing": routed,
        "latency_ms": {"policy": timing, "threads": 1, "device": str(policy.device)},
        "ms_per_second_of_motion": None if asked is None else timing["p50"] * asked,
        "flops": measure.compute(policy, observations),
        "params": measure.parameters(policy),
        "peak_memory_mb": measure.peak_memory_mb(contender.folder, observations[0]),
        "bytes_on_disk": (local_folder(contender.folder, kind="model") / "model.safetensors")
        .stat()
        .st_size,
        "gripper_noise": gripper_noise(contender.folder),
        "budget": contender.budget,
    }


def gripper_noise(folder: Path) -> float | None:
    """The share of gripper commands that were flipped for a student, by the recipe that made it:
    the largest of its stages and
    rounds. None of a policy that does not say how it was made."""
    recipe = read_provenance(folder).get("recipe", {})
    stages = [*recipe.get("stages", ()), *(each["stage"] for each in recipe.get("rounds", ()))]
    return max((stage.get("gripper_noise", 0.0) for stage in stages), default=None)


def sample_observations(
    policies: dict[str, Policy], benchmark: Benchmark, seed: int
) -> list[Observation]:
    """Moments for timing and counting: the first policy's own, one whole episode of every task. Not
    only beginnings:
    what a router runs depends on the moment."""
    policy = next(iter(policies.values()))
    observations: list[Observation] = []
    for task in benchmark.tasks():
        run_episode(policy, benchmark, task, seed, on_look=observations.append)
    return observations


def make_videos(
    recipe: Recipe, field: dict[str, Contender], policies: dict[str, Policy], out: Path
) -> list[Row]:
    """The same episode by every policy, side by side, for the first episodes of the plan: the
    films' rows of the report."""
    found: list[Row] = []
    hz = round(recipe.world("evaluate").action_spec.control_hz)
    for task, seed in plan(
        recipe.world("evaluate"),
        recipe.evaluation.splits[0],
        recipe.evaluation.videos,
        recipe.evaluation.seed,
    ):
        films = [
            film(policy, recipe.world("evaluate"), task, seed, execute=field[name].execute)
            for name, policy in policies.items()
        ]
        longest = max(len(frames) for frames, _ in films)
        padded = [
            np.concatenate([frames, frames[-1:].repeat(longest - len(frames), 0)])
            for frames, _ in films
        ]
        name = f"{task.name}-{seed}.mp4"
        write_video(out / name, np.concatenate(padded, 2), fps=hz)
        seen = [
            {
                "name": name,
                "execute": field[name].execute or policies[name].execute,
                **{key: row[key] for key in ("success", "steps", "gates")},
            }
            for name, row in zip(
                policies, (episode_row(result) for _, result in films), strict=True
            )
        ]
        found.append({"task": task.name, "seed": seed, "video": name, "fps": hz, "policies": seen})
    return found


def training(field: dict[str, Contender]) -> dict[str, list[Row]]:
    """Policy → its stages' loss curves, column by column to five digits, where the logs of its
    training lie beside it."""
    found: dict[str, list[Row]] = {}
    for name, contender in field.items():
        beside = contender.folder.name == "student" and not is_name(contender.folder)
        ours = beside and contender.budget is None and contender.execute is None
        logs = sorted(contender.folder.parent.glob("distil-*/metrics.jsonl")) if ours else []
        rows = [[json.loads(line) for line in log.read_text().splitlines()] for log in logs]
        stages = [
            {key: [_short(row[key]) for row in stage] for key in stage[0]}
            for stage in rows
            if stage
        ]
        if stages:
            found[name] = stages
    return found


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def fingerprint(recipe: Recipe, field: dict[str, Contender]) -> Row:
    """What this report was made with. `recipe` is the one that was given to `evaluate`; `evaluated`
    holds each policy's folder and the
    recipe that it was made by, where it says so."""
    made_by = {
        name: read_provenance(contender.folder).get("recipe") for name, contender in field.items()
    }
    armlet = source.identity()
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
        "threads": 1,
        "workers": recipe.evaluation.workers,
        "seeds": {
            "recipe": recipe.seed,
            "episodes": [
                recipe.evaluation.seed,
                recipe.evaluation.seed + recipe.evaluation.episodes - 1,
            ],
        },
        "benchmark": recipe.world("evaluate").fingerprint(),
        "recipe": to_json(recipe),
        "evaluation": asdict(recipe.evaluation),
        "evaluated": {
            name: {"folder": field[name].folder.as_posix(), "recipe": made_by[name]}
            for name in field
        },
    }
