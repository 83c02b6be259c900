"""A policy → an exported folder: captured, written for a runtime, measured by three gates, and only
then in its place, whole.

    export("out/student", Path("out/exported"), How(runtime="openvino"), frames, world=Tabletop())

The folder acts wherever a policy does (`policies/exported.py`), and on a robot's computer without
torch (`robot/exported.py`).
"""

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch.export import ExportedProgram

from armlet import limits
from armlet.benchmarks import Benchmark, benchmark_robot
from armlet.data.files import atomic_folder
from armlet.deploy import fusing, gates, onnx, openvino, segments
from armlet.deploy.frames import texts_of
from armlet.deploy.graph import GraphError, Route, capture, route_of, single
from armlet.deploy.routes import capture_routes, states_on_route
from armlet.evaluation.measure import environment
from armlet.limits import ABOVE_0, MOST
from armlet.measuring import PARTS, Kept
from armlet.policies.acting import behind_socket
from armlet.policies.checkpoint import load_with_fingerprint
from armlet.policies.contract import Backbone
from armlet.policies.exported import ExportedPolicy
from armlet.policies.routed import Routed
from armlet.robot.exported import (
    FILE,
    REQUIREMENTS,
    TOKENIZER,
    VERSION,
    Description,
    GraphFile,
    load_exported,
    read_description,
)
from armlet.robot.fit import View
from armlet.robot.inputs import Inputs
from armlet.robot.observation import Observation
from armlet.robot.reading.own import NoWords
from armlet.robot.runtimes import LIBRARIES, OUTPUT, STATE, Runtime, feeds
from armlet.robot.segments import Parts
from armlet.robot.spec import CameraSpec, RobotSpec
from armlet.rollout.pool import threads

SUFFIX: dict[Runtime, str] = {"onnx": ".onnx", "openvino": ".xml"}
ROBOT = ("numpy", "pillow", "tokenizers")  # what armlet.robot reads beside the runtime
ROUTES = ("fixed", "dynamic")
CALIBRATED_ON = 64  # frames
# Where there are too few.
MORE = (
    "Of a data set the last tenth of the episodes is looked at: give a longer one, or a world "
    "(`--benchmark`)"
)


@dataclass(frozen=True)
class How:
    """How a policy is exported, and what its gates ask for."""

    runtime: Runtime = "onnx"
    """onnx: ONNX Runtime; openvino: OpenVINO."""
    precision: Kept = "fp32"
    """fp32; int8 (dynamic, onnx); int8_static (calibrated on frames, both); bf16 or fp16, whose
    weights take half the bytes (openvino)."""
    budget: tuple[float, ...] = ()
    """Of a policy with a dial, a graph for each; none: its own alone."""
    route: Literal["fixed", "dynamic"] = "fixed"
    """Of a policy with a router: fixed, the route that it takes most often, for all observations;
    dynamic, the router decides for every observation, as in PyTorch."""
    threads: int = 1
    """Of the processor, on which both are measured."""
    closed_loop: int = 100
    """Episodes that both run, where there is a world."""
    margin: float = 0.05
    """How much less often the exported policy may succeed, as a share of episodes; on held-out
    frames, how much larger its error may be, as a share."""
    calls: int = 300
    """Decisions that are timed."""
    portable: bool = False
    """onnx: only operators of the ONNX standard, for runtimes of other machines; slower."""
    slower: bool = False
    """Write the folder even where it is slower than PyTorch."""

    def __post_init__(self) -> None:
        limits.positive(self, "threads", "closed_loop", "calls")
        if len(set(self.budget)) < len(self.budget):
            raise ValueError(f"budget says a value twice: {' '.join(map(str, self.budget))}")
        limits.check(self, margin=(ABOVE_0, 1), budget=(ABOVE_0, 1), threads=(1, MOST))
        if self.runtime not in SUFFIX:
            raise ValueError(f"runtime is {self.runtime!r}, expected {' or '.join(SUFFIX)}")
        if self.route not in ROUTES:
            raise ValueError(f"route is {self.route!r}, expected {' or '.join(ROUTES)}")
        if self.portable and self.runtime != "onnx":
            raise ValueError(
                "portable would have no effect: only an ONNX file has operators to keep"
            )
        # What it really computes, or keeps: elsewhere a precision would be a word in a file.
        there = [kept for library, kept in PARTS.values() if library == self.runtime]
        if self.precision not in there:
            raise ValueError(
                f"precision is {self.precision!r}, and {LIBRARIES[self.runtime]} has "
                f"{', '.join(there)} on a CPU; with another it would compute as before"
            )


def export(
    place: Path | str,
    out: Path,
    how: How,
    frames: Sequence[Observation],
    world: Benchmark | None = None,
    *,
    expert: np.ndarray | None = None,
    texts: Sequence[str] = (),
    robot: RobotSpec | None = None,
    measured_elsewhere: bool = False,
    loaded: tuple[Backbone, str] | None = None,
) -> Path:
    """Export the policy at `place` into the folder `out`; returns it. `frames`: at least 100 real
    observations; `world`: where both are run in closed loop, or `expert` (n, a): what was done at the
    frames, in the robot's own numbers. `texts`: instructions that it may be told, so that every
    number of words is looked at; of a world they are asked for where none are given. `robot`: whose a
    checkpoint is that does not say it, the world's if not given. `measured_elsewhere`: whoever asks
    compares success itself, as an evaluation does, and the second gate is left out. `loaded`: what
    `load_to_export` gave for this place, from whoever needed the policy to find the frames.

    Raises `gates.GateError` where a gate is not passed, `graph.GraphError` where the policy cannot
    be captured, `onnx.MissingExporterError`, FileExistsError where `out` exists; then nothing is
    written.
    """
    if world is None and expert is None and not measured_elsewhere:
        raise ValueError(
            "export needs a world to act in, or an expert's actions at the frames: without one of "
            "them nothing says that the exported policy is as good"
        )
    if robot is None and world is not None:
        robot = benchmark_robot(world)
    policy, fingerprint = loaded or load_to_export(place, robot)
    if world is not None and not texts:
        texts = texts_of(world)
    frames = list(frames)
    if len(frames) < gates.FEWEST:
        raise ValueError(
            f"export: found {len(frames)} frames, expected {gates.FEWEST} or more: parity on a few "
            f"says nothing of the others. {MORE}"
        )
    with atomic_folder(out) as part, threads(how.threads):
        made = {
            "policy": {"fingerprint": fingerprint, "folder": Path(place).name, "kind": policy.kind},
            "made_with": {**environment(), **_versions(how.runtime), "threads": how.threads},
        }
        routes = assemble(policy, how, frames, part, made)
        acting_in = None if measured_elsewhere else world
        measured = _measure(policy, part, how, frames, routes, acting_in, expert, texts)
        said = {**read_description(part), "gates": measured}
        _write(part, said)
    return out


def assemble(
    policy: Backbone,
    how: How,
    frames: Sequence[Observation],
    part: Path,
    made: dict[str, Any],
    *,
    captured: Path | None = None,
) -> list[tuple[Backbone, Route]]:
    """An exported folder that has not been measured, in the folder `part`; returns what each graph
    is of: the policy at that budget, and the route that it was captured with. `made`: what it says
    of where it comes from. `captured`: a folder that keeps graphs before they are written for a
    runtime, for others of the same policy, budgets and frames: capturing takes the longest. Raises
    as `export` does, but for the gates."""
    inputs = _inputs(policy, frames[0])
    inputs.to_json()  # where its words cannot be written down, nothing else need be tried
    graphs, routes = _graphs(policy, how, frames, part, captured)
    description = Description(
        runtime=how.runtime,
        precision=how.precision,
        robot=_robot(policy, inputs),
        inputs=inputs,
        outputs=policy.outputs,
        execute=policy.execute,
        ensemble=policy.ensemble,
        graphs=graphs,
    )
    if not isinstance(inputs.words, NoWords):
        policy.body.tokenizer.save(str(part / TOKENIZER))
    (part / REQUIREMENTS).write_text(requirements(how.runtime), encoding="utf-8")
    _write(part, {"version": VERSION, **made, **description.to_json(), "gates": {}})
    return routes


def requirements(runtime: Runtime) -> str:
    """What a robot's computer installs beside armlet itself, in the versions of this one."""
    lines = []
    for name in (*ROBOT, LIBRARIES[runtime]):
        lines.append(f"{name}=={importlib.metadata.version(name)}\n")
    return "".join(lines)


def load_to_export(place: Path | str, robot: RobotSpec | None) -> tuple[Backbone, str]:
    """A policy with layers, and its fingerprint; `robot` is asked for what a checkpoint of another
    project does not say. Raises GraphError for one that cannot be captured whatever it is."""
    if behind_socket(place) is not None:
        raise GraphError(f"{place} is a policy behind a socket: its weights are not here to export")
    known = None if robot is None else lambda: robot
    policy, fingerprint = load_with_fingerprint(place, known=known)
    return single(policy), fingerprint


def _graphs(
    policy: Backbone,
    how: How,
    frames: Sequence[Observation],
    part: Path,
    captured: Path | None,
) -> tuple[tuple[GraphFile, ...], list[tuple[Backbone, Route]]]:
    """A graph on disk for every budget, and what each is of: the policy at that budget, and the
    route that it was captured with. Budgets of the same layers share a file."""
    if how.route == "dynamic" and not isinstance(policy, Routed):
        raise GraphError(
            f"--route dynamic would have no effect: {policy.kind} has no router, or one that took a "
            "single route and was left behind; leave it out"
        )
    graphs: list[GraphFile] = []
    routes: list[tuple[Backbone, Route]] = []
    written: dict[tuple[int, ...], GraphFile] = {}  # by the route that is fixed
    folder = captured or part / "captured"
    for budget in how.budget or (None,):
        dialled = policy if budget is None else policy.at(budget)
        own = budget
        if own is None and isinstance(policy, Routed):
            own = policy.routing.budget
        if how.route == "dynamic":
            assert isinstance(dialled, Routed)  # `at` gives the same kind
            name = f"routed-{len(graphs)}" if graphs else "routed"
            route = Route(dialled, None, 1.0)
            graph = _write_parts(dialled, how, frames, part, folder / name)
        else:
            route = route_of(dialled, frames)
            assert route.gates is not None  # it is fixed
            if route.gates not in written:
                name = f"model-{len(written)}" if written else "model"
                source = _captured(route.policy, frames[0], folder, name)
                fed = partial(_feeds, route.policy, frames)
                files = _write_graph(how, part, source, fed)
                written[route.gates] = GraphFile(None, route.gates, files)
            graph = written[route.gates]
        graphs.append(replace(graph, budget=own))
        routes.append((dialled, route))
    if captured is None:
        shutil.rmtree(part / "captured")
    if how.route == "dynamic":
        graphs = _without_copies(part, graphs)
    return tuple(graphs), routes


def _captured(policy: Backbone, frame: Observation, folder: Path, name: str) -> Path:
    """The graph in single precision and operators of the standard, in a folder of its own; captured
    unless it is there already."""
    source = folder / name / f"{name}.onnx"
    if not source.is_file():
        program, names = capture(policy, policy.inputs.arrays([frame]))
        with atomic_folder(source.parent) as made:
            _write_onnx(policy, program, names, made / source.name)
    return source


def _write_onnx(
    policy: Backbone,
    program: ExportedProgram,
    names: Sequence[str],
    path: Path,
    outputs: Sequence[str] = (OUTPUT,),
) -> None:
    """Raises GraphError where torch cannot write it."""
    try:
        onnx.write(program, names, path, outputs=outputs)
    except onnx.MissingExporterError:
        raise
    except Exception as error:  # torch raises what it likes, colours among it
        reason = " ".join(str(error.__cause__ or error).split())
        raise GraphError(
            f"{policy.kind} was captured as a graph and cannot be written as ONNX "
            f"({type(error).__name__}: {reason:.300}); it can act in PyTorch, and behind "
            "`armlet serve`"
        ) from error


def _captured_parts(policy: Routed, frame: Observation, folder: Path) -> segments.Boundaries:
    """The parts of a policy whose router decides, in single precision and operators of the
    standard, as files of the folder; captured unless they are there already."""
    if not folder.is_dir():
        program, names, between = capture_routes(policy, policy.inputs.arrays([frame]))
        with atomic_folder(folder) as made:
            whole = made / "whole.onnx"
            _write_onnx(policy, program, names, whole, between.outputs)
            try:
                segments.cut(whole, made, between, stem=folder.name)
            except segments.CutError as error:
                raise GraphError(
                    f"{policy.kind}: {error}; export it with `--route fixed`"
                ) from error
            for path in (whole, whole.with_name(whole.name + onnx.DATA)):
                path.unlink(missing_ok=True)
    return segments.Boundaries.load(folder)


def _write_parts(
    policy: Routed, how: How, frames: Sequence[Observation], part: Path, folder: Path
) -> GraphFile:
    """The files of a policy whose router decides."""
    between = _captured_parts(policy, frames[0], folder)
    doubled = [STATE + name for name in between.doubled]
    met: list[list[Mapping[str, np.ndarray]]] = []
    if how.precision == "int8_static":
        met = _on_routes(policy, frames)
    files: dict[str, int] = {}
    names: dict[str, str] = {}
    for each in between.parts:
        source = folder / f"{folder.name}-{each}.onnx"
        own = _write_graph(how, part, source, partial(_met, met, between, each), doubled)
        names[each] = next(iter(own))
        files |= own
    parts = Parts(
        start=names[segments.START],
        layers=tuple(names[f"layer-{index}"] for index in range(between.layers)),
        last=tuple(name for each, name in names.items() if each.startswith("last-")),
        end=names[segments.END],
    )
    return GraphFile(None, None, files, parts)


def _on_routes(
    policy: Routed, frames: Sequence[Observation]
) -> list[list[Mapping[str, np.ndarray]]]:
    """Of some frames what enters each part: the moment and what `states_on_route` says."""
    found: list[list[Mapping[str, np.ndarray]]] = []
    for fed, frame in zip(_feeds(policy, frames), _some(frames), strict=True):
        states = states_on_route(policy, policy.inputs.arrays([frame]))
        found.append([{**fed, **state} for state in states])
    return found


def _met(
    met: list[list[Mapping[str, np.ndarray]]], between: segments.Boundaries, part: str
) -> list[Mapping[str, np.ndarray]]:
    """What of these enters a part: `start` as layer 0, and the end behind them all."""
    if part == segments.END:
        at = between.layers
    else:
        at = 0 if part == segments.START else int(part.split("-")[1])
    return [moment[at] for moment in met]


def _some(frames: Sequence[Observation]) -> Sequence[Observation]:
    """The frames on which ranges are measured."""
    return frames[:: max(1, len(frames) // CALIBRATED_ON)]


def _feeds(policy: Backbone, frames: Sequence[Observation]) -> list[Mapping[str, np.ndarray]]:
    return [feeds(policy.inputs.arrays([each])) for each in _some(frames)]


def _without_copies(part: Path, graphs: Sequence[GraphFile]) -> list[GraphFile]:
    """The same graphs without the files that an earlier one has byte for byte: of several budgets
    the layers are the same."""
    first: dict[tuple[bytes, ...], list[str]] = {}  # a part's files' digests → their names
    found = []
    for graph in graphs:
        assert graph.parts is not None  # fixed graphs share files already
        renamed: dict[str, str] = {}
        files: dict[str, int] = {}
        for name in graph.parts.names:
            own = [
                each for each in graph.files if each.rpartition(".")[0] == name.rpartition(".")[0]
            ]
            key = tuple(hashlib.sha256((part / each).read_bytes()).digest() for each in own)
            kept = first.setdefault(key, own)
            renamed[name] = kept[0]
            for each, there in zip(own, kept, strict=True):
                files[there] = graph.files[each]
                if there != each:
                    (part / each).unlink()
        found.append(replace(graph, files=files, parts=graph.parts.renamed(renamed)))
    return found


def _write_graph(
    how: How,
    part: Path,
    source: Path,
    measured_on: Callable[[], list[Mapping[str, np.ndarray]]],
    doubled: Sequence[str] = (),
) -> dict[str, int]:
    """The files of one graph, the one that is loaded first, and their sizes. `measured_on`: what it
    is fed where ranges are measured; `doubled`: see `fusing.fuse`."""
    name = source.stem
    work = part / "work"
    work.mkdir()
    chosen = source
    if how.runtime == "onnx" and not how.portable:
        chosen = work / "fused" / f"{name}.onnx"
        chosen.parent.mkdir()
        fusing.fuse(source, chosen, doubled=doubled)
    single_precision = chosen
    if how.precision in ("int8", "int8_static"):
        chosen = work / "int8" / f"{name}.onnx"
        chosen.parent.mkdir()
        if how.precision == "int8":
            onnx.quantise(single_precision, chosen)
        else:
            onnx.calibrate(single_precision, chosen, measured_on())
    if how.runtime == "openvino":
        made = work / "openvino" / f"{name}.xml"
        made.parent.mkdir()
        openvino.write(chosen, made, half=how.precision == "fp16")
        chosen = made
    files = {}
    # The graph first: it is the one that is loaded, and what lies beside it is found from there.
    for path in sorted(chosen.parent.glob(f"{name}.*"), key=lambda each: each != chosen):
        move = shutil.copyfile if chosen == source else shutil.move
        move(path, part / path.name)
        files[path.name] = (part / path.name).stat().st_size
    shutil.rmtree(work)
    return files


def _inputs(policy: Backbone, frame: Observation) -> Inputs:
    """What the policy is told; one that takes pictures of any size takes those of the frames, as a
    graph has one size."""
    inputs = policy.inputs
    if inputs.view.fit != "any":
        return inputs
    sizes = {}
    for name in inputs.view.cameras:
        height, width = np.shape(frame.images[name])[:2]
        sizes[name] = (height, width)
    return replace(inputs, view=View(sizes, "exact"))


def _robot(policy: Backbone, inputs: Inputs) -> RobotSpec:
    cameras = {name: CameraSpec(*size) for name, size in inputs.view.cameras.items()}
    robot = policy.robot
    seen = replace(robot.observation, cameras=cameras, fit=inputs.view.fit)
    return replace(robot, observation=seen)


def _write(part: Path, said: dict[str, Any]) -> None:
    (part / FILE).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def _versions(runtime: Runtime) -> dict[str, str]:
    names = ("onnx", "onnxscript", LIBRARIES[runtime])
    return {name: importlib.metadata.version(name) for name in names}


def _measure(
    policy: Backbone,
    part: Path,
    how: How,
    frames: Sequence[Observation],
    routes: Sequence[tuple[Backbone, Route]],
    world: Benchmark | None,
    expert: np.ndarray | None,
    texts: Sequence[str],
) -> dict[str, Any]:
    """What each graph shows at the three gates. Raises GateError at the first that is not passed."""
    exported = load_exported(part, threads=how.threads)
    every: list[dict[str, Any]] = []
    inputs = policy.inputs

    def count(frame: Observation) -> int:
        return int(inputs.arrays([frame]).text_mask.sum())

    asked = gates.over_every_length(frames, texts, count)
    for graph, (dialled, route) in zip(exported.description.graphs, routes, strict=True):
        acting = exported if graph.budget is None else exported.at(graph.budget)
        found: dict[str, Any] = {"budget": graph.budget, "share_of_frames_on_route": route.share}
        compared = asked
        if route.gates is None:
            routed = gates.same_routes(
                dialled.decide, acting.decide, asked, precision=how.precision
            )
            found["routes"] = routed.to_json()
            # Another route is another network; how often that is has been counted.
            compared = [each for each, same in zip(asked, routed.same, strict=True) if same]
        found["parity"] = gates.parity(
            route.policy.infer,
            acting.infer,
            compared,
            count=count,
            spans=gates.spans(policy),
            precision=how.precision,
            chooses=gates.chooses(route.policy),
        ).to_json()
        # Whatever route the policy takes, in closed loop it is what is exported that is compared.
        if world is not None:
            found["closed_loop"] = gates.closed_loop(
                dialled,
                ExportedPolicy(acting),
                world,
                episodes=how.closed_loop,
                margin=how.margin,
            ).to_json()
        elif expert is not None:
            found["held_out"] = gates.held_out(
                dialled.infer,
                acting.infer,
                frames,
                expert,
                spans=gates.spans(policy),
                margin=how.margin,
            ).to_json()
        found["speed"] = gates.speed(
            dialled.infer,
            acting.infer,
            frames,
            calls=how.calls,
            threads=how.threads,
            slower=how.slower,
        ).to_json()
        every.append(found)
    return {"each": every}
