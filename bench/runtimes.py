"""What a runtime alone is worth: the shipped teacher, as it is and exported to every runtime and
precision, and its cut to two layers, each way.

    pip install 'armlet[export]'
    python bench/runtimes.py [--policy checkpoints/tabletop-teacher] [--student out/actdistill/student]
    [--out docs/machinery/runtimes.json]

A student that is faster than its teacher in PyTorch has to be compared with the teacher that was
only exported, which costs nobody a training. All are timed in turn, in an order drawn anew for
every observation, on one thread, batch 1, from observation to action: preparing the pictures, the
network, and the robot's own numbers. The two-layer cut is the *shape* of the students of
`actdistill`, `first_k` and `layer_drop` (2 of 8 layers); its weights are the teacher's own and
succeed in nothing: with `--student` it is a real one. How far the actions of each way lie from
PyTorch's is measured as well. Says nothing about success (`armlet export` does, in its gates), a GPU,
or several threads.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import tyro

from armlet.benchmarks.tabletop import Tabletop
from armlet.deploy.exporting import PRECISIONS, How, assemble, load_to_export
from armlet.deploy.onnx import MissingExporterError, library
from armlet.evaluation.measure import environment
from armlet.policies.checkpoint import policy_fingerprint
from armlet.policies.contract import Backbone
from armlet.robot.exported import load_exported
from armlet.robot.observation import Observation
from armlet.robot.runtimes import LIBRARIES, MissingRuntimeError
from armlet.rollout.loop import plan, run_task

WARM_UP = 50
CALLED = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}
Infer = Callable[[Observation], np.ndarray]


@dataclasses.dataclass
class Arguments:
    policy: Path = Path("checkpoints/tabletop-teacher")
    student: Path | None = None  # in place of the teacher's cut
    keep: tuple[int, ...] = (1, 6)
    calls: int = 3000
    blocks: int = 10  # for the spread of the ratios: the medians of as many parts of the run
    seed: int = 910_000_000
    beside: str = "other work on the same two cores"
    out: Path = Path("docs/machinery/runtimes.json")


def main(arguments: Arguments) -> None:
    torch.set_num_threads(1)
    teacher = load_to_export(arguments.policy, None)[0].eval()
    if arguments.student is None:
        small = teacher.keep_layers(arguments.keep).eval()
    else:
        small = load_to_export(arguments.student, None)[0].eval()
    frames = observations(teacher, arguments.seed)
    ways: dict[str, Infer] = {}
    apart = {}
    with TemporaryDirectory() as folder:
        for name, policy in (("teacher", teacher), ("two layers", small)):
            own = every_way(policy, frames, Path(folder) / name.replace(" ", "-"))
            for way, infer in own.items():
                ways[f"{name}, {way}"] = infer
                apart[f"{name}, {way}"] = furthest(own["PyTorch"], infer, frames)
        times = interleaved(ways, frames, arguments.calls)
    base = times["teacher, PyTorch"]
    blocks = arguments.blocks
    same_way = {}
    for way in own:
        slow = times[f"teacher, {way}"]
        same_way[way] = ratio(slow, times[f"two layers, {way}"], blocks)
    result = {
        "calls": arguments.calls,
        "frames": len(frames),
        "threads": 1,
        "timed_beside": arguments.beside,
        "versions": {name: library(name).__version__ for name in LIBRARIES.values()},
        **environment(),
        "policy": policy_fingerprint(arguments.policy),
        "student": None if arguments.student is None else policy_fingerprint(arguments.student),
        "kept_layers": list(small.layer_numbers),
        "largest_difference_of_actions": apart,
        "ms": {name: summary(values) for name, values in times.items()},
        "times_faster_than_the_teacher_in_pytorch": {
            name: ratio(base, own, blocks) for name, own in times.items()
        },
        "two_layers_over_the_teacher": same_way,
        "two_layers_over_the_teacher_both_exported": same_way["ONNX Runtime"],
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def every_way(policy: Backbone, frames: list[Observation], folder: Path) -> dict[str, Infer]:
    """A policy in PyTorch, and exported to every runtime in every precision that this has."""
    found: dict[str, Infer] = {"PyTorch": policy.infer}
    for runtime, precisions in PRECISIONS.items():
        for precision in precisions:
            part = folder / f"{runtime}-{precision}"
            part.mkdir(parents=True)
            assemble(policy, How(runtime=runtime, precision=precision), frames, part, {})
            said = CALLED[runtime] if precision == "fp32" else f"{CALLED[runtime]} {precision}"
            found[said] = load_exported(part).infer
    return found


def observations(policy: Backbone, seed: int, *, episodes: int = 28) -> list[Observation]:
    """What the policy sees in whole episodes, four of every task."""
    found: list[Observation] = []
    benchmark = Tabletop()
    for task, own in plan(benchmark, "seen", episodes, seed):
        run_task(policy, benchmark, task, own, on_look=found.append)
    return found


def furthest(one: Infer, other: Infer, frames: list[Observation]) -> float:
    """The largest difference between two ways' actions, over all frames, in the robot's numbers
    (range −1 to 1)."""
    return max(float(np.abs(one(frame) - other(frame)).max()) for frame in frames)


def interleaved(
    ways: dict[str, Infer], frames: list[Observation], calls: int
) -> dict[str, list[float]]:
    """Milliseconds of every way on every frame, in an order drawn anew."""
    for infer in ways.values():
        for index in range(WARM_UP):
            infer(frames[index % len(frames)])
    order = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for call in range(calls):
        frame = frames[call % len(frames)]
        for name in order.permutation(list(ways)):
            started = time.perf_counter()
            ways[name](frame)
            times[name].append((time.perf_counter() - started) * 1e3)
    return times


def summary(values: list[float]) -> dict[str, float]:
    return {
        "p50": float(np.percentile(values, 50)),
        "p95": float(np.percentile(values, 95)),
        "fastest": min(values),
    }


def ratio(slow: list[float], fast: list[float], blocks: int) -> dict[str, float]:
    """The ratio of the medians, and the smallest and largest that any tenth of the run has
    alone."""
    parts = []
    for ours, theirs in zip(
        np.array_split(slow, blocks), np.array_split(fast, blocks), strict=True
    ):
        parts.append(float(np.median(ours) / np.median(theirs)))
    whole = statistics.median(slow) / statistics.median(fast)
    return {"p50": whole, "least": min(parts), "most": max(parts)}


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments))
    except (MissingExporterError, MissingRuntimeError) as missing:
        sys.exit(f"bench/runtimes.py: {missing}")
