"""The stock clients of others against `armlet serve`, each in an environment of its own: what the
tests and `bench/serving.py` both do."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from armlet.benchmarks.tabletop import Tabletop
from armlet.policies.contract import Policy
from armlet.robot.observation import Observation
from armlet.rollout.loop import plan, run_task

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
OPENPI = ROOT / ".venv-openpi/bin/python"
VLA_EVAL = ROOT / ".venv-vla-eval/bin/vla-eval"


def looks(policy: Policy, rows: int, seed: int) -> list[Observation]:
    """What tabletop shows along an episode that the policy acts in."""
    benchmark = Tabletop()
    found: list[Observation] = []
    for task, number in plan(benchmark, "seen", 1 + rows // 10, seed):
        run_task(policy, benchmark, task, number, on_look=found.append)
    return found[:rows]


def save(seen: list[Observation], path: Path) -> None:
    """Observations as openpi_side.py reads them."""
    columns: dict[str, np.ndarray] = {}
    for name in seen[0].images:
        columns[name] = np.stack([each.images[name] for each in seen])
    columns["state"] = np.stack([each.state for each in seen])
    columns["prompt"] = np.array([each.instruction for each in seen])
    np.savez(path, **columns)


def openpi_side(*arguments: object) -> None:
    """Runs openpi_side.py. Raises RuntimeError with what it said."""
    words = [str(OPENPI), str(HERE / "openpi_side.py"), *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])


def harness(
    address: str, folder: Path, *, episodes: int, seed: int, **fields: Any
) -> list[tuple[bool, int]]:
    """The stock harness on so many episodes of tabletop: success and steps of each, in their order.
    `fields`: of its benchmark (mode, hz …). Raises RuntimeError with what it said."""
    entry = {
        "benchmark": "vla_eval_side:TabletopBenchmark",
        "params": {"episodes": episodes, "seed": seed},
        **fields,
    }
    config = folder / "config.yaml"
    config.write_text(
        yaml.safe_dump(
            {"server": {"url": address}, "output_dir": str(folder), "benchmarks": [entry]}
        )
    )
    done = subprocess.run(
        [str(VLA_EVAL), "run", "--config", str(config), "--no-docker", "--render", "cpu"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT / 'src'}:{HERE}"},
        check=False,
    )
    said = done.stdout[-2000:] + done.stderr[-3000:]
    if done.returncode:
        raise RuntimeError(said)
    found: dict[int, tuple[bool, int]] = {}
    for path in folder.glob("*.json"):
        for task in json.loads(path.read_text()).get("tasks", []):
            for each in task["episodes"]:
                if "failure_reason" in each:
                    raise RuntimeError(f"{each['failure_detail']}\n{said}")
                found[int(task["task"])] = (bool(each["metrics"]["success"]), int(each["steps"]))
    if len(found) != episodes:
        raise RuntimeError(f"{len(found)} of {episodes} episodes are in its report\n{said}")
    return [found[number] for number in range(episodes)]


def own_loop(policy: Policy, *, episodes: int, seed: int) -> list[tuple[bool, int]]:
    """The same episodes in armlet's own loop."""
    benchmark = Tabletop()
    found = []
    for task, number in plan(benchmark, "seen", episodes, seed):
        episode = run_task(policy, benchmark, task, number)
        found.append((episode.success, episode.steps))
    return found
