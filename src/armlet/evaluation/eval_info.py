"""Outcomes as `lerobot-eval` writes them, `eval_info.json`, for whoever has tools that read that.

LeRobot knows one policy a file, so each has a folder of its own:

    lerobot/NAME/eval_info.json

A group of tasks is a split, and a task's number is its place among those of the split, in the order
of the plan; its name stands beside, where LeRobot has nothing. Our worlds give a reward of 1 with
success and end with it. What LeRobot measures and we do not, how long the evaluation took, is null.
Layout of LeRobot 0.6.1 (`lerobot_eval.eval_policy_all`); 0.4.4 has no `predicted_video_paths`. Neither
ships a tool that compares such files. Knows outcomes; imports nothing of LeRobot.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from armlet.data.files import write_atomically
from armlet.evaluation.outcomes import Outcomes, PolicyRun

FOLDER = "lerobot"
FILE = "eval_info.json"
Info = dict[str, Any]


def eval_info(outcomes: Outcomes, policy: PolicyRun) -> Info:
    """One policy's outcomes, of all splits."""
    rows: dict[tuple[str, str], list[bool]] = {}  # (split, task) → successes, in the plan's order
    for episode, success in zip(outcomes.episodes, policy.run.success, strict=True):
        rows.setdefault((episode.split, episode.task), []).append(success)
    per_task = []
    groups: dict[str, list[bool]] = {}
    tasks: dict[str, int] = {}  # of a split, how many are told already
    for (split, task), successes in rows.items():
        number = tasks.get(split, 0)
        tasks[split] = number + 1
        groups.setdefault(split, []).extend(successes)
        rewards = [float(success) for success in successes]
        metrics = {"sum_rewards": rewards, "max_rewards": rewards, "successes": successes}
        per_task.append(
            {
                "task_group": split,
                "task_id": number,
                "task": task,
                "metrics": {**metrics, **_no_films()},
            }
        )
    per_group = {}
    for split, successes in groups.items():
        per_group[split] = {**_aggregated(successes), **_no_films()}
    overall = {**_aggregated(policy.run.success), "eval_s": None, "eval_ep_s": None, **_no_films()}
    return {"per_task": per_task, "per_group": per_group, "overall": overall}


def _aggregated(successes: Sequence[bool]) -> Info:
    share = float(np.mean(successes))
    return {
        "avg_sum_reward": share,
        "avg_max_reward": share,
        "pc_success": 100 * share,
        "n_episodes": len(successes),
    }


def _no_films() -> Info:
    # Ours are of all policies side by side, and lie beside report.json.
    return {"video_paths": [], "predicted_video_paths": []}


def write(outcomes: Outcomes, out: Path) -> dict[str, Path]:
    """A file for each policy, below `out`; returns where each is."""
    found: dict[str, Path] = {}
    for policy in outcomes.policies:
        path = out / FOLDER / folder_name(policy.name) / FILE
        if path in found.values():  # names that differ in what a folder cannot be called
            path = out / FOLDER / f"{folder_name(policy.name)}-{len(found)}" / FILE
        write_atomically(path, json.dumps(eval_info(outcomes, policy), indent=1).encode())
        found[policy.name] = path
    return found


def folder_name(name: str) -> str:
    """A policy's name as a folder may be called: `a/b execute 4` → `a_b_execute_4`."""
    return re.sub(r"[^\w.@+-]+", "_", name)
