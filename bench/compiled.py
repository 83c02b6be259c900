"""Compilers other than the runtimes that `armlet export` writes for, beside these: AOTInductor, which
is in torch and needs a C++ compiler, and ExecuTorch with XNNPACK.

    make bench-compiled                # an environment with ExecuTorch; without it its rows are left out
    python bench/compiled.py [--policies checkpoints/tabletop-teacher …]
    [--out docs/machinery/compiled.json]

The same captured graph in every way, on one thread: milliseconds of the processor from an
observation to the robot's actions, all ways in turn on the same frames, and how far the actions lie
from PyTorch's. `seconds` is what making it took. Processor time does not count what other processes
take, but these take room in the caches too: what ran meanwhile is said by `--beside`.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import tyro

from armlet.benchmarks.tabletop import Tabletop
from armlet.data.files import write_atomically
from armlet.deploy.exporting import How, assemble, load_to_export
from armlet.deploy.frames import from_world
from armlet.deploy.graph import capture
from armlet.evaluation.measure import environment, in_turn, percentiles
from armlet.policies.contract import Backbone
from armlet.robot.exported import load_exported
from armlet.robot.observation import Observation
from armlet.robot.runtimes import feeds
from armlet.rollout.pool import threads

Row = dict[str, Any]
Infer = Callable[[Observation], np.ndarray]


@dataclasses.dataclass
class Arguments:
    policies: tuple[Path, ...] = (
        Path("checkpoints/tabletop-teacher"),
        Path("checkpoints/tabletop-student"),
    )
    frames: int = 100
    calls: int = 300
    beside: str = "nothing"
    out: Path = Path("docs/machinery/compiled.json")


def main(arguments: Arguments) -> None:
    found: Row = {
        **environment(),
        "libraries": versions(),
        "threads": 1,
        "calls": arguments.calls,
        "timed_beside": arguments.beside,
        "policies": {},
    }
    for place in arguments.policies:
        with threads(1), TemporaryDirectory() as name:
            found["policies"][place.name] = measured(place, Path(name), arguments)
        write_atomically(arguments.out, (json.dumps(found, indent=1) + "\n").encode())
    print(json.dumps(found, indent=1))


def versions() -> dict[str, str]:
    names = [name for name in ("onnxruntime", "executorch") if importlib.util.find_spec(name)]
    return {name: importlib.metadata.version(name) for name in names}


def measured(place: Path, folder: Path, arguments: Arguments) -> Row:
    """One policy in every way."""
    policy, _ = load_to_export(place, None)
    frames = from_world(policy, Tabletop(), arguments.frames).frames
    makers: dict[str, Callable[[Backbone, list[Observation], Path], Infer]] = {
        "eager": lambda policy, frames, folder: policy.infer,
        "onnx": onnx_runtime,
        "aotinductor": aot_inductor,
    }
    if importlib.util.find_spec("executorch"):
        makers["executorch"] = executorch
    ways: dict[str, Infer] = {}
    rows: dict[str, Row] = {}
    for name, make in makers.items():
        started = time.perf_counter()
        ways[name] = make(policy, list(frames), folder)
        rows[name] = {"seconds": round(time.perf_counter() - started, 1)}
        print(f"{place.name}: {name} made in {rows[name]['seconds']} s", flush=True)
    times = in_turn(ways, frames, calls=arguments.calls, clock=time.process_time)
    onnx_ms = float(np.median(times["onnx"]))
    for name, row in rows.items():
        row["ms"] = percentiles(times[name])
        row["times_faster_than_onnx"] = onnx_ms / float(np.median(times[name]))
        apart = [np.abs(ways[name](frame) - policy.infer(frame)).max() for frame in frames[:20]]
        row["furthest_from_eager"] = float(max(apart))
    return rows


def onnx_runtime(policy: Backbone, frames: list[Observation], folder: Path) -> Infer:
    (folder / "onnx").mkdir()
    assemble(policy, How(), frames, folder / "onnx", {})
    return load_exported(folder / "onnx").infer


def aot_inductor(policy: Backbone, frames: list[Observation], folder: Path) -> Infer:
    program, names = capture(policy, policy.inputs.arrays(frames[:1]))
    package = torch._inductor.aoti_compile_and_package(
        program, package_path=str(folder / "policy.pt2")
    )
    compiled = torch._inductor.aoti_load_package(package)

    def run(tensors: list[torch.Tensor]) -> torch.Tensor:
        with torch.inference_mode():
            return compiled(*tensors)

    return around(policy, names, run)


def executorch(policy: Backbone, frames: list[Observation], folder: Path) -> Infer:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    program, names = capture(policy, policy.inputs.arrays(frames[:1]))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    portable_lib._unsafe_reset_threadpool(1)
    # The loaded program is kept: its method reads from it.
    loaded = Runtime.get().load_program(lowered.to_executorch().buffer)
    method = loaded.load_method("forward")

    def run(tensors: list[torch.Tensor], loaded: Any = loaded) -> torch.Tensor:
        return method.execute(tensors)[0]

    return around(policy, names, run)


def around(
    policy: Backbone, names: tuple[str, ...], run: Callable[[list[torch.Tensor]], torch.Tensor]
) -> Infer:
    """What an exported folder does around its graph."""

    def infer(seen: Observation) -> np.ndarray:
        fed = feeds(policy.inputs.arrays([seen]))
        tensors = [torch.from_numpy(np.ascontiguousarray(fed[name])) for name in names]
        actions = run(tensors)[0].numpy()
        return policy.outputs.denormalise(actions, policy.inputs.state_of(seen))

    return infer


if __name__ == "__main__":
    main(tyro.cli(Arguments))
