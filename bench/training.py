"""Training steps a second of the small VLA: plain fine-tuning, output matched, router, and every
layer supervised.

    python bench/training.py [--steps 60] [--out docs/machinery/training.json]

Frames and traces are noise of the real sizes: what is timed is the step, not the learning. The
kinds take turns, five steps each, so that what drifts on the machine is in all of them alike.
"""

import contextlib
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import tyro

from armlet import recipes
from armlet.benchmarks.tabletop import Tabletop
from armlet.data.frames import Frames
from armlet.policies.checkpoint import load_policy
from armlet.policies.routed import Routing
from armlet.recipe import Objective
from armlet.recipes.actdistill import ActDistill
from armlet.recipes.bases import MatchOutput
from armlet.training.learner import Learner
from armlet.training.supervision import make_heads
from armlet.training.trainer import Trainer, make_batches

TURN = 5  # steps


@dataclasses.dataclass
class Arguments:
    teacher: Path = Path("checkpoints/tabletop-teacher")
    out: Path = Path("docs/machinery/training.json")
    steps: int = 60


@dataclasses.dataclass(frozen=True)
class Clone(Objective):
    wants: ClassVar[frozenset[str]] = frozenset({"imitation"})

    def __call__(self, student, teacher, batch):
        return {"imitation": student["imitation"].mean()}


def noise(teacher) -> Frames:
    rng = np.random.default_rng(0)
    total, benchmark = 2048, Tabletop()
    actions = rng.uniform(-1, 1, (total, benchmark.action_spec.dims)).astype(np.float32)
    return Frames(
        images={
            name: rng.integers(0, 256, (total, size, size, 3), dtype=np.uint8)
            for name, size in benchmark.cameras.items()
        },
        state=rng.normal(size=(total, len(teacher.body.state.offset))).astype(np.float32),
        actions=actions,
        executed=actions,
        privileged={},
        texts=("put the red cube into the white box",),
        asked=np.zeros(total, np.int64),
        starts=np.arange(0, total + 1, 16),
    )


def main(arguments: Arguments) -> None:
    torch.set_num_threads(2)
    recipe = recipes.make("actdistill_tabletop")
    stage = dataclasses.replace(recipe.stages[0], checkpoint_every=10**9, steps=10**9)
    teacher = load_policy(arguments.teacher)
    heads = make_heads(teacher, recipe.probe)
    batches = make_batches(teacher, noise(teacher))
    learned = Learner(teacher, probe=heads).eval()
    with torch.no_grad():
        row = learned(
            batches.batch(np.arange(1)), ["actions", "condition", "semantics", "layer_actions"]
        )

    def traces(keys):
        return {name: value.expand(len(keys), *value.shape[1:]) for name, value in row.items()}

    plain = dataclasses.replace(stage, freeze=("policy.vision.*",), objective=Clone())
    kinds = {
        "plain fine-tuning": (lambda: Learner(load_policy(arguments.teacher)), plain),
        "output matched": (
            lambda: Learner(load_policy(arguments.teacher)),
            dataclasses.replace(plain, objective=MatchOutput()),
        ),
        "router, output matched": (
            lambda: Learner(Routing().build(teacher)),
            dataclasses.replace(stage, objective=MatchOutput()),
        ),
        "router, every layer supervised": (
            lambda: Learner(Routing().build(teacher), probe=make_heads(teacher, recipe.probe)),
            dataclasses.replace(stage, objective=ActDistill(keep=0.3, every=1)),
        ),
        "router, every layer of every eighth sample supervised": (
            lambda: Learner(Routing().build(teacher), probe=make_heads(teacher, recipe.probe)),
            dataclasses.replace(stage, objective=ActDistill(keep=0.3)),
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in kinds}
    with contextlib.ExitStack() as stack:
        updates = {}
        for name, (make, setting) in kinds.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            trainer = Trainer(
                make(), setting, batches, folder=folder, seed=0, title=name, teacher=traces
            )
            trainer.learner.train()
            updates[name] = stack.enter_context(trainer._compiled())
        for turn in range(1 + arguments.steps // TURN):
            for name, update in updates.items():
                for _ in range(TURN):
                    started = time.perf_counter()
                    update()
                    if turn:  # the first compiles
                        times[name].append(time.perf_counter() - started)
    seconds = {name: float(np.median(values)) for name, values in times.items()}
    for name, value in seconds.items():
        print(f"{name}: {1e3 * value:.0f} ms a step of {stage.batch_size}")
    plain_seconds = seconds["plain fine-tuning"]
    result = {
        "batch_size": stage.batch_size,
        "threads": 2,
        "ms_a_step": {name: 1e3 * value for name, value in seconds.items()},
        "over_plain": {name: value / plain_seconds - 1 for name, value in seconds.items()},
        # what the layers' supervision itself adds, as a share of a plain step: the same router with
        # and without it
        "supervision_adds": {
            name: (value - seconds["router, output matched"]) / plain_seconds
            for name, value in seconds.items()
            if name.endswith("supervised")
        },
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
