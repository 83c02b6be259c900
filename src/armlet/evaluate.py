"""evaluate: policies × benchmark → report.json, a table, a picture and videos.

Every policy meets the same episodes, fixed in advance as task × seed. What has been run is kept line by line in
`episodes.jsonl` under the policy's fingerprint, so a killed evaluation goes on where it stopped.
"""

import dataclasses
import json
import platform
import re
import subprocess
from collections import defaultdict
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from armlet import figures, measure, stats
from armlet.benchmarks import Benchmark, Task
from armlet.checkpoint import read_provenance
from armlet.data.files import appending, hold, whole_lines, write_atomically
from armlet.data.video import write_video
from armlet.policies import Policy
from armlet.progress import Progress
from armlet.recipe import Recipe, to_json
from armlet.rollout import Contender, Result, film, plan, run_all, run_episode
from armlet.types import Observation

Row = dict[str, Any]


def main(recipe: Recipe) -> Path:
    """Evaluate the recipe's teacher, its student and `policies`; returns the report's path."""
    field = contenders(recipe)
    out = recipe.out / "evaluation"
    rows = run_episodes(recipe, field, out)
    torch.set_num_threads(1)
    policies = {name: contender.load() for name, contender in field.items()}
    observations = sample_observations(policies, recipe.benchmark, recipe.evaluation.seed)
    timings = measure.latency(policies, observations, calls=recipe.evaluation.latency_calls)
    delayed = run_delayed(recipe, field, timings, out)
    report: Row = {
        "policies": [summarise(name, policies[name], field[name], rows[name], observations, timings[name]) for name in field],
        "pairs": pairs(rows, recipe.evaluation.splits[0]),
        "pairs_by_split": {split: pairs(rows, split) for split in recipe.evaluation.splits[1:]},
        "seeds": over_seeds(rows, recipe.evaluation.splits[0]),
        "delayed": delayed,
        "rollouts": make_videos(recipe, policies, out),
        "training": training(field),
        "fingerprint": fingerprint(recipe),
    }
    out.mkdir(parents=True, exist_ok=True)
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


def contenders(recipe: Recipe) -> dict[str, Contender]:
    """Name → policy: the teacher first. Two students of one name are told apart by their folder."""
    folders = {"teacher": Contender(recipe.teacher)}
    if (recipe.student_folder / "config.json").exists():
        folders[recipe.name] = Contender(recipe.student_folder)
        budgets = recipe.evaluation.budgets
        folders |= {f"{recipe.name} at {budget:g}": Contender(recipe.student_folder, budget) for budget in budgets}
    for folder in recipe.policies:
        name = folder.parent.name if folder.name == "student" else folder.name
        if name in folders:
            name = folder.as_posix()
        folders[name] = Contender(folder)
    return folders


def run_episodes(recipe: Recipe, field: dict[str, Contender], out: Path) -> dict[str, list[Row]]:
    """Every policy on every episode of every split; what stands in `episodes.jsonl` is not run again."""
    setting, benchmark = recipe.evaluation, recipe.benchmark
    marks = {name: contender.fingerprint for name, contender in field.items()}
    wanted = [(task, seed) for split in setting.splits for task, seed in plan(benchmark, split, setting.episodes, setting.seed)]
    with hold(out / "evaluating.lock", "evaluating"):
        done = _run_missing(recipe, field, marks, wanted, out / "episodes.jsonl")
    return {name: [done[marks[name], task.split, task.name, seed] for task, seed in wanted] for name in field}


def _run_missing(
    recipe: Recipe, field: dict[str, Contender], marks: dict[str, str], wanted: list[tuple[Task, int]], log: Path
) -> dict[tuple[str, str, str, int], Row]:
    """What the log says once every wanted episode stands in it."""
    setup = json.dumps(recipe.benchmark.fingerprint(), sort_keys=True)
    done = read_log(log, setup)
    jobs = [
        (name, task, seed) for task, seed in wanted for name in field if (marks[name], task.split, task.name, seed) not in done
    ]
    every = len(wanted) * len(field)
    progress = Progress(f"evaluate {recipe.name}", total=every, start=every - len(jobs), unit="episode")
    with appending(log) as add:
        for name, result in run_all(field, recipe.benchmark, jobs, workers=recipe.evaluation.workers):
            row = {"policy": marks[name], "setup": setup, **episode_row(result)}
            done[marks[name], result.task.split, result.task.name, result.seed] = row
            add(json.dumps(row))
            progress.advance()
    progress.close()
    return done


def run_delayed(recipe: Recipe, field: dict[str, Contender], timings: dict[str, dict[str, float]], out: Path) -> list[Row]:
    """The first split again on computers `slower` times slower: what speed is worth. A decision's measured p50, times that,
    is rounded to control steps, and so long the world goes on without it."""
    setting = recipe.evaluation
    if not setting.slower:
        return []
    hz = recipe.benchmark.action_spec.control_hz
    delays = {(name, factor): factor * timings[name]["p50"] for name in field for factor in setting.slower}
    late = {f"{name} {factor:g}× slower": replace(field[name], lag=round(ms * hz / 1e3)) for (name, factor), ms in delays.items()}
    first = replace(recipe, evaluation=replace(setting, splits=setting.splits[:1]))
    rows = run_episodes(first, late, out)
    found = []
    for (name, factor), ms in delays.items():
        key = f"{name} {factor:g}× slower"
        successes = [row["success"] for row in rows[key]]
        ci95 = stats.wilson(sum(successes), len(successes))
        counts = {"successes": sum(successes), "episodes": len(successes), "ci95": ci95}
        found.append({"name": name, "slower": factor, "delay_ms": ms, "lag_steps": late[key].lag, **counts})
    return found


def read_log(path: Path, setup: str) -> dict[tuple[str, str, str, int], Row]:
    """Finished episodes by key. A last line cut short by a kill is dropped; other benchmarks' lines do not count."""
    done: dict[tuple[str, str, str, int], Row] = {}
    for line in whole_lines(path):
        row = json.loads(line)
        if row["setup"] == setup:
            done[row["policy"], row["split"], row["task"], row["seed"]] = row
    return done


def episode_row(result: Result) -> Row:
    return {
        "split": result.task.split,
        "family": result.task.family,
        "task": result.task.name,
        "seed": result.seed,
        "success": result.success,
        "steps": result.steps,
        "toggles": result.toggles,
        "gates": ["".join(map(str, gates)) for gates in result.gates],
        "loop_ms": [round(value, 3) for value in result.loop_ms],
    }


def summarise(
    name: str, policy: Policy, contender: Contender, rows: list[Row], observations: list[Observation], timing: dict[str, float]
) -> Row:
    """One policy's line of the report."""
    seen = [row for row in rows if row["split"] == rows[0]["split"]]
    successes = sum(row["success"] for row in seen)
    costs = policy.layer_costs().numpy()
    gates = np.array([[int(bit) for bit in gate] for row in seen for gate in row["gates"]])
    keep = gates @ costs / costs.sum()
    routed = routing(gates) | {"layers": policy.layer_numbers}
    if routed["patterns"] > 1:  # one that always runs the same depends on nothing
        routed["changes_with"] = measure.what_routes_depend_on(policy, observations)
    return {
        "name": name,
        "successes": successes,
        "episodes": len(seen),
        "ci95": stats.wilson(successes, len(seen)),
        "gripper_toggles": toggle_rates(seen),
        "gripper_noise": gripper_noise(contender.folder),
        "mean_steps": float(np.mean([row["steps"] for row in seen if row["success"]])) if successes else None,
        "latency_ms": {
            "policy": timing,
            "closed_loop": measure.percentiles([value for row in seen for value in row["loop_ms"]]),
            "threads": 1,
            "device": str(policy.device),
        },
        "flops": measure.compute(policy, observations),
        "params": measure.parameters(policy),
        "keep_ratio": float(keep.mean()),
        "routing": routed,
        "peak_memory_mb": measure.peak_memory_mb(contender.folder, observations[0]),
        "bytes_on_disk": (contender.folder / "model.safetensors").stat().st_size,
        "by_family": tally(seen, "family"),
        "by_task": tally(seen, "task"),
        "by_split": tally(rows, "split"),
        "budget": contender.budget,
        "fingerprint": contender.fingerprint,
    }


def routing(gates: np.ndarray) -> Row:
    """How often each layer runs, and whether the router ever changes its mind: (decisions, l) of 0 and 1."""
    patterns, counts = np.unique(gates, axis=0, return_counts=True)
    return {
        "activation": gates.mean(0).tolist(),
        "patterns": len(patterns),
        "commonest_pattern": "".join(map(str, patterns[counts.argmax()])),
        "commonest_share": float(counts.max() / counts.sum()),
    }


def toggle_rates(rows: list[Row]) -> Row | None:
    """How often the gripper is sent the other way; None without one, or where a log from before they were counted has none."""
    toggles = [row["toggles"] for row in rows if row.get("toggles") is not None]
    if len(toggles) < len(rows):
        return None
    steps = [row["steps"] for row in rows]
    interval = stats.ratio_ci95(np.array(toggles), np.array(steps))
    return {
        "per_episode": float(np.mean(toggles)),
        "per_100_steps": 100 * sum(toggles) / sum(steps),
        "per_100_steps_ci95": None if interval is None else [100 * bound for bound in interval],
    }


def gripper_noise(folder: Path) -> float | None:
    """The share of gripper commands that were flipped for a student, by the recipe that made it: the largest of its stages and
    rounds. None of a policy that does not say how it was made."""
    recipe = read_provenance(folder).get("recipe", {})
    stages = [*recipe.get("stages", ()), *(each["stage"] for each in recipe.get("rounds", ()))]
    return max((stage.get("gripper_noise", 0.0) for stage in stages), default=None)


def tally(rows: list[Row], field: str) -> dict[str, Row]:
    """Successes and their interval by the values of a field."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        groups[row[field]].append(row["success"])
    return {
        value: {"successes": sum(group), "episodes": len(group), "ci95": stats.wilson(sum(group), len(group))}
        for value, group in groups.items()
    }


def pairs(rows: dict[str, list[Row]], split: str) -> list[Row]:
    """Every policy against those before it, on one split's episodes."""
    found = outcomes(rows, split)
    return [
        {"a": a, "b": b, **stats.compare_paired(found[a], found[b]).to_json()}
        for index, a in enumerate(found)
        for b in list(found)[:index]
    ]


def outcomes(rows: dict[str, list[Row]], split: str) -> dict[str, np.ndarray]:
    """Which of one split's n episodes each policy succeeded in: (n,) bool."""
    return {name: np.array([row["success"] for row in found if row["split"] == split]) for name, found in rows.items()}


def over_seeds(rows: dict[str, list[Row]], split: str) -> Row:
    """Students that differ in their seed only, `name-0`, `name-1` …, taken together, and compared with each other and with the
    first policy, on one split's episodes. Empty where there are none."""
    found = outcomes(rows, split)
    groups: dict[str, list[str]] = {next(iter(rows)): [next(iter(rows))]}
    for name in rows:
        if match := re.fullmatch(r"(.+)-\d+", name):
            groups.setdefault(match[1], []).append(name)
    groups = {name: members for index, (name, members) in enumerate(groups.items()) if index == 0 or len(members) > 1}
    if len(groups) < 2:
        return {}
    together = {name: np.array([found[member] for member in members]) for name, members in groups.items()}
    names = list(together)
    return {
        "policies": [
            {"name": name, "seeds": len(values), "success": float(values.mean()), "each": values.mean(1).tolist()}
            for name, values in together.items()
        ],
        "pairs": [
            {"a": a, "b": b, **stats.compare_seeds(together[a], together[b]).to_json()}
            for index, a in enumerate(names)
            for b in names[:index]
        ],
    }


def sample_observations(policies: dict[str, Policy], benchmark: Benchmark, seed: int) -> list[Observation]:
    """Moments for timing and counting: the first policy's own, one whole episode of every task. Not only beginnings:
    what a router runs depends on the moment."""
    policy = next(iter(policies.values()))
    observations: list[Observation] = []
    for task in benchmark.tasks():
        run_episode(policy, benchmark, task, seed, on_look=observations.append)
    return observations


def make_videos(recipe: Recipe, policies: dict[str, Policy], out: Path) -> list[Row]:
    """The same episode by every policy, side by side, for the first episodes of the plan: the films' rows of the report."""
    found: list[Row] = []
    hz = round(recipe.benchmark.action_spec.control_hz)
    for task, seed in plan(recipe.benchmark, "seen", recipe.evaluation.videos, recipe.evaluation.seed):
        films = [film(policy, recipe.benchmark, task, seed) for policy in policies.values()]
        longest = max(len(frames) for frames, _ in films)
        padded = [np.concatenate([frames, frames[-1:].repeat(longest - len(frames), 0)]) for frames, _ in films]
        name = f"{task.name}-{seed}.mp4"
        write_video(out / name, np.concatenate(padded, 2), fps=hz)
        seen = [
            {"name": name, "execute": policies[name].execute, **{key: row[key] for key in ("success", "steps", "gates")}}
            for name, row in zip(policies, (episode_row(result) for _, result in films), strict=True)
        ]
        found.append({"task": task.name, "seed": seed, "video": name, "fps": hz, "policies": seen})
    return found


def training(field: dict[str, Contender]) -> dict[str, list[Row]]:
    """Policy → its stages' loss curves, column by column to five digits, where the logs of its training lie beside it."""
    found: dict[str, list[Row]] = {}
    for name, contender in field.items():
        ours = contender.folder.name == "student" and contender.budget is None
        logs = sorted(contender.folder.parent.glob("distil-*/metrics.jsonl")) if ours else []
        rows = [[json.loads(line) for line in log.read_text().splitlines()] for log in logs]
        stages = [{key: [_short(row[key]) for row in stage] for key in stage[0]} for stage in rows if stage]
        if stages:
            found[name] = stages
    return found


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def fingerprint(recipe: Recipe) -> Row:
    """What this report was made with."""
    here = str(Path(__file__).parent)  # the commit of armlet, wherever it was called from; None where it is installed
    commit = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "armlet": version("armlet"),
        "commit": commit or None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "threads": 1,
        "benchmark": recipe.benchmark.fingerprint(),
        "recipe": to_json(recipe),
        "evaluation": dataclasses.asdict(recipe.evaluation),
    }
