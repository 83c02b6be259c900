"""What is left of the gain where a router decides for every observation, in ONNX Runtime on one
thread.

    pip install 'armlet[export]'
    python bench/routes.py [--out docs/machinery/routes.json]

The shipped student's router takes one route, and was left behind; so the router here stands before
the shipped teacher's layers, with random weights and a threshold calibrated to a quarter of the
backbone: routes that vary, and nothing that could be said of success. Four ways of the same layers:

    all       every layer, one graph: what is to be gained from
    fixed     the commonest route, one graph: another policy, on the frames of another route
    dynamic   `armlet export --route dynamic`: a graph a part, of which those run that are chosen
    joined    the same parts in one graph, each layer behind an `If`

`gain_kept`: of the milliseconds that the fixed route saves, as if it had as many layers as run in the
mean. Milliseconds of the processor, from observation to actions, all in turn on the same frames; they
do not count what other processes take, but these take room in the caches too (`--beside`).
"""

import dataclasses
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import tyro

from armlet.benchmarks.tabletop import Tabletop
from armlet.data.files import write_atomically
from armlet.deploy.exporting import How, assemble
from armlet.deploy.frames import from_world
from armlet.evaluation.measure import environment, in_turn, percentiles
from armlet.policies.checkpoint import load_policy
from armlet.policies.contract import Backbone
from armlet.policies.routed import Routed, Routing
from armlet.robot.exported import Exported, load_exported
from armlet.robot.observation import Observation
from armlet.robot.runtimes import GATES, OUTPUT, feeds, load_graph
from armlet.rollout.pool import threads

sys.path.append(str(Path(__file__).parent))

from joined import join  # it lies beside this file

BUDGET = 0.25
Row = dict[str, Any]


@dataclasses.dataclass
class Arguments:
    teacher: Path = Path("checkpoints/tabletop-teacher")
    frames: int = 100
    calls: int = 600
    beside: str = "nothing"
    out: Path = Path("docs/machinery/routes.json")


def main(arguments: Arguments) -> None:
    with threads(1), TemporaryDirectory() as name:
        found = measured(arguments, Path(name))
    write_atomically(arguments.out, (json.dumps(found, indent=1) + "\n").encode())
    print(json.dumps(found, indent=1))


def measured(arguments: Arguments, folder: Path) -> Row:
    teacher = load_policy(arguments.teacher)
    frames = list(from_world(teacher, Tabletop(), arguments.frames).frames)
    policy = varying(teacher, frames)
    exported: dict[str, Exported] = {}
    for name, source, how in (
        ("all", teacher, How()),
        ("fixed", policy, How()),
        ("dynamic", policy, How(route="dynamic")),
    ):
        print(name, flush=True)
        (folder / name).mkdir()
        assemble(source, how, frames, folder / name, {})
        exported[name] = load_exported(folder / name)
    ways: dict[str, Callable[[Observation], np.ndarray]] = {}
    for name, acting in exported.items():
        ways[name] = acting.infer
    ways["joined"] = joined(exported["dynamic"], folder / "joined.onnx")
    routes = [policy.decide(frame).gates for frame in frames]
    counts = [sum(route) for route in routes]
    fixed = exported["fixed"].gates
    assert fixed is not None  # it is said to be
    times = in_turn(ways, frames, calls=arguments.calls, clock=time.process_time)
    ms = {name: percentiles(values) for name, values in times.items()}
    means = {name: over_frames(values, len(frames)) for name, values in times.items()}
    # What one layer saves, times those that the router skips in the mean.
    layer = (means["all"].mean() - means["fixed"].mean()) / (len(policy.layers) - sum(fixed))
    gain = layer * (len(policy.layers) - np.mean(counts))
    apart = {}
    for name in ("dynamic", "joined"):
        apart[name] = max(float(np.abs(ways[name](f) - policy.infer(f)).max()) for f in frames)
    same = [exported["dynamic"].decide(f).gates == r for f, r in zip(frames, routes, strict=True)]
    return {
        **environment(),
        "threads": 1,
        "calls": arguments.calls,
        "timed_beside": arguments.beside,
        "frames": len(frames),
        "layers": len(policy.layers),
        "routes": len(set(routes)),
        "layers_that_run": float(np.mean(counts)),
        "fixed_layers": sum(fixed),
        "fixed_share_of_frames": routes.count(fixed) / len(routes),
        "same_routes": float(np.mean(same)),
        "furthest_from_pytorch": apart,
        "ms": ms,
        "mean_ms": {name: float(values.mean()) for name, values in means.items()},
        "mean_ms_by_layers": {name: by_layers(means[name], counts) for name in means},
        "gain_kept": {
            name: float((means["all"].mean() - means[name].mean()) / gain)
            for name in ("dynamic", "joined")
        },
    }


def varying(teacher: Backbone, frames: list[Observation]) -> Routed:
    """The teacher's layers behind a router that decides by what it sees, at `BUDGET`."""
    torch.manual_seed(2)
    policy = Routing(budget=BUDGET).build(teacher)
    assert isinstance(policy, Routed)
    torch.nn.init.normal_(policy.router.leave.weight, std=2.0)
    torch.nn.init.zeros_(policy.router.leave.bias)
    policy.eval().calibrate(policy.prepare(frames))
    return policy


def joined(acting: Exported, path: Path) -> Callable[[Observation], np.ndarray]:
    """The exported policy in one graph, and what stands around it there."""
    parts = acting.description.graphs[0].parts
    assert parts is not None  # it is dynamic
    join(acting.folder, parts, path)
    graph = load_graph(path, "onnx", "fp32")
    inputs = acting.description.inputs

    def infer(seen: Observation) -> np.ndarray:
        found = graph.run(feeds(inputs.arrays([seen])))
        assert len(found[GATES][0]) == len(parts.layers)
        return acting.description.outputs.denormalise(found[OUTPUT][0], inputs.state_of(seen))

    return infer


def over_frames(values: list[float], frames: int) -> np.ndarray:
    """(frames,): the median of each frame's calls, so that every frame weighs alike."""
    each = defaultdict(list)
    for call, value in enumerate(values):
        each[call % frames].append(value)
    return np.array([np.median(each[frame]) for frame in range(frames)])


def by_layers(values: np.ndarray, counts: list[int]) -> dict[str, float]:
    """Number of layers that the router runs → mean of the frames on which it does."""
    found = {}
    for count in sorted(set(counts)):
        found[str(count)] = float(values[np.array(counts) == count].mean())
    return found


if __name__ == "__main__":
    main(tyro.cli(Arguments))
