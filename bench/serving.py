"""What `armlet serve` does for the stock clients of others, on this machine.

    python bench/serving.py [--seconds 600] [--connections 32] [--episodes 200] [--live 50]
                            [--policy checkpoints/tabletop-teacher] [--out docs/machinery/serving.json]

Three things: many stock openpi clients at once, each as fast as it is answered, with a histogram
of the waits; the stock vla-eval harness on episodes of tabletop against our own loop, by outcome
and steps; and its live mode, in which the world does not wait. Needs the environments that `make
test-peers` makes. Nothing else should run meanwhile.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent / "tests/interop"))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests/server"))

from peers import ROOT, harness, looks, openpi_side, own_loop, save
from running import SERVE, running

from armlet.evaluation.stats import wilson
from armlet.policies.checkpoint import load_policy


@dataclass(frozen=True)
class Arguments:
    policy: Path = ROOT / "checkpoints/tabletop-teacher"
    """Who is served: a policy of tabletop's robot."""
    seconds: float = 600.0
    """In which the openpi clients ask; 0: they do not."""
    connections: int = 32
    """Stock openpi clients."""
    episodes: int = 200
    """Of the harness, and of our own loop; 0: none."""
    live: int = 50
    """Of the harness's live mode; 0: none."""
    seed: int = 700_000
    """Of the first episode."""
    out: Path = ROOT / "docs/machinery/serving.json"


def main(told: Arguments) -> None:
    torch.set_num_threads(1)
    policy = load_policy(told.policy)
    report: dict[str, Any] = {"policy": told.policy.name, "machine": machine()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if told.seconds:
            save(looks(policy, 64, told.seed), folder / "in.npz")
            report["openpi"] = openpi(told, folder)
            print(json.dumps(report["openpi"], indent=1))
        own = own_loop(policy, episodes=max(told.episodes, told.live), seed=told.seed)
        if told.episodes:
            report["vla_eval"] = compared(told, folder / "sync", own[: told.episodes], {})
            print(json.dumps(report["vla_eval"], indent=1))
        if told.live:
            report["vla_eval_live"] = compared(
                told, folder / "live", own[: told.live], {"mode": "live", "hz": 10.0}
            )
            print(json.dumps(report["vla_eval_live"], indent=1))
    told.out.parent.mkdir(parents=True, exist_ok=True)
    told.out.write_text(json.dumps(report, indent=1) + "\n")
    print(told.out)


def openpi(told: Arguments, folder: Path) -> dict[str, Any]:
    options = ("--limits.sessions", str(told.connections + 1))
    with running(str(told.policy), *options, program=SERVE) as server:
        out = folder / "load.json"
        port = server.ports["openpi"]
        openpi_side("load", port, folder / "in.npz", 1, min(told.seconds, 10), out)
        alone = json.loads(out.read_text())
        before = server.memory()
        openpi_side("load", port, folder / "in.npz", told.connections, told.seconds, out)
        together = json.loads(out.read_text())
        passes = server.metric("pass_seconds_count") - alone["answers"]
        together["memory_mib"] = {"before": before, "after": server.memory()}
        together["observations_a_pass"] = together["answers"] / max(passes, 1)
        together["server_errors"] = server.metric("errors_total")
        together["alone"] = {key: alone[key] for key in ("answers_a_second", "wait_ms")}
        return together


def compared(
    told: Arguments, folder: Path, own: list[tuple[bool, int]], fields: dict[str, Any]
) -> dict[str, Any]:
    """The harness's episodes beside our own loop's."""
    folder.mkdir()
    with running(str(told.policy), program=SERVE) as server:
        address = server.address("vla_eval")
        theirs = harness(address, folder, episodes=len(own), seed=told.seed, **fields)
    won = sum(success for success, _ in theirs)
    return {
        "episodes": len(own),
        "same_outcome": sum(a[0] == b[0] for a, b in zip(own, theirs, strict=True)),
        "same_outcome_and_steps": sum(a == b for a, b in zip(own, theirs, strict=True)),
        "success": {"own_loop": sum(success for success, _ in own), "harness": won},
        "harness_interval": list(wilson(won, len(own))),
    }


def machine() -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return {"torch": torch.__version__, "commit": commit.stdout.strip(), "threads": 1}


if __name__ == "__main__":
    main(tyro.cli(Arguments))
