"""What `test_lerobot_policy.py` has the interpreter of LeRobot's environment do.

python policy_side.py eval ARGUMENTS…       LeRobot's own lerobot-eval
python policy_side.py train ARGUMENTS…      LeRobot's own lerobot-train
python policy_side.py play FOLDER SEED EPISODES OUT.jsonl      armlet's closed loop, in there
"""

import hashlib
import importlib.metadata
import json
import os
import re
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from lerobot_side import define_torchvision_operators


def torchvision_is_anothers() -> bool:
    """Whether torchvision was compiled for another torch, and brings no operators."""
    # `torch==2.10.0`, or `torch (==2.10.0)`.
    asked = importlib.metadata.requires("torchvision") or ()
    wanted = [each for each in asked if re.match(r"torch\b.*==", each)]
    return bool(wanted) and torch.__version__.partition("+")[0] not in wanted[0]


def play(folder: str, seed: str, episodes: str, out: str) -> None:
    from armlet.benchmarks.tabletop import Tabletop
    from armlet.policies.checkpoint import load_policy
    from armlet.rollout.loop import plan, run_task

    torch.set_num_threads(1)
    policy = load_policy(folder)
    benchmark = Tabletop()
    lines = []
    for task, number in plan(benchmark, "seen", int(episodes), int(seed)):
        episode = run_task(policy, benchmark, task, number)
        actions = hashlib.sha256(episode.executed.astype("float32").tobytes()).hexdigest()[:16]
        line = {
            "task": task.name,
            "seed": number,
            "success": episode.success,
            "steps": episode.steps,
            "actions": actions,
        }
        lines.append(json.dumps(line))
    Path(out).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if torchvision_is_anothers():
        define_torchvision_operators()  # transformers asks for them as well
    verb = sys.argv.pop(1)
    if verb == "play":
        play(*sys.argv[1:])
    elif verb == "eval":
        from lerobot.scripts import lerobot_eval

        lerobot_eval.main()
    else:
        from lerobot.scripts import lerobot_train

        lerobot_train.main()
