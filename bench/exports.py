"""What comes of every kind of policy in every runtime: whether it is exported and loads, how far its
actions lie from PyTorch's, what it does in closed loop, and how fast it is; or why it is refused.

    pip install 'armlet[export]'
    python bench/exports.py [--kinds vla routed] [--runtimes onnx openvino_bf16]
    [--out docs/machinery/exports.json]

A row is a kind and a runtime. Every row is written when it is done; a run that was stopped goes on
with those that are missing, as long as it asks the same of the same libraries (`--again`: makes those
that are asked for anew). Beside the JSON stands a page with the table.

    loads        the folder, in a process in which importing torch fails; it must answer there as here
    parity       the largest and the mean difference of actions, as a share of the robot's range, over
                 frames of every number of words that the world's instructions have
    closed loop  for those that act in tabletop: the same episodes by both, PyTorch and the runtime;
                 which succeed, and how far apart the robots' states lie at the same look
    speed        PyTorch's median milliseconds over the runtime's, timed in turn

The kinds are small, most with random weights (`bench/export_kinds.py`): a table of what can be
exported, and no promise of speed for networks of a real size. Nothing else should run meanwhile.
"""

import dataclasses
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tyro

from armlet.benchmarks import Benchmark, benchmark_robot
from armlet.data.files import write_atomically
from armlet.deploy import gates
from armlet.deploy.exporting import How, assemble, load_to_export
from armlet.deploy.frames import from_world, texts_of
from armlet.deploy.graph import GraphError, Route
from armlet.deploy.moments import at_random
from armlet.deploy.onnx import MissingExporterError, library
from armlet.evaluation.measure import environment
from armlet.measuring import PARTS, Runtime
from armlet.policies.contract import Backbone
from armlet.policies.exported import ExportedPolicy
from armlet.progress import Progress
from armlet.robot.exported import Exported, load_exported
from armlet.robot.observation import Observation
from armlet.robot.runtimes import LIBRARIES, MissingRuntimeError
from armlet.rollout.loop import plan, run_task
from armlet.rollout.pool import threads

sys.path.append(str(Path(__file__).parent))

import export_kinds  # it lies beside this file

SEED = 940_000_000  # of the first episode: a range of worlds that nothing else runs in
WITHOUT_TORCH = """
import pickle, sys
for name in ("torch", "transformers", "safetensors", "onnx"):
    sys.modules[name] = None  # importing one of them is an error
from armlet.robot.exported import load_exported
with open(sys.argv[2], "rb") as file:
    observation = pickle.load(file)
print(load_exported(sys.argv[1]).infer(observation).tobytes().hex())
"""
# Instructions of several lengths, for those that act in no world here.
TOLD = (
    "lift",
    "open it",
    "pick up the red block",
    "put the white cup on the plate",
    "pick up the red block and put it into the bowl beside the plate",
)
SOURCE = "<!-- source: exports.json -->"  # stands in every block of the page (docs/recount.py)
Row = dict[str, Any]
Save = Callable[[], None]


@dataclasses.dataclass
class Arguments:
    kinds: tuple[str, ...] = ()  # all whose names begin so; none: every kind
    runtimes: tuple[Runtime, ...] = tuple(PARTS)
    frames: int = 100  # of a world; of those that act in none, half as many are drawn
    episodes: int = 7  # paired
    calls: int = 100
    beside: str = "other work on the same two cores"
    again: bool = False
    out: Path = Path("docs/machinery/exports.json")


@dataclasses.dataclass(frozen=True)
class Met:
    """A policy to export, and what it is measured on. `count`: how many words it reads of a
    frame."""

    policy: Backbone
    frames: list[Observation]
    asked: list[Observation]  # the frames, and others for lengths that no frame has
    count: Callable[[Observation], int]
    world: Benchmark | None


def main(arguments: Arguments) -> None:
    kinds = chosen(arguments.kinds)
    found = begun(arguments)

    def save() -> None:
        write_atomically(arguments.out, (json.dumps(found, indent=1) + "\n").encode())
        write_atomically(arguments.out.with_suffix(".md"), page(found).encode())

    progress = Progress("exports", total=len(kinds) * len(arguments.runtimes), unit="row", every=0)
    with threads(1):
        for name, kind in kinds.items():
            own = found["kinds"].setdefault(name, {**about(kind), "runtimes": {}})
            missing = [each for each in arguments.runtimes if each not in own["runtimes"]]
            progress.advance(len(arguments.runtimes) - len(missing))
            for runtime, row in rows_of(kind, missing, arguments):
                own["runtimes"][runtime] = row
                own["runtimes"] = in_order(own["runtimes"], PARTS)
                found["kinds"] = in_order(found["kinds"], export_kinds.KINDS)
                save()
                progress.advance()
    progress.close()
    save()
    print(page(found))


def chosen(names: Sequence[str]) -> dict[str, export_kinds.Kind]:
    """The kinds whose names begin so; all of them where none is named."""
    if not names:
        return export_kinds.KINDS
    found = {}
    for name, kind in export_kinds.KINDS.items():
        if name.startswith(tuple(names)):
            found[name] = kind
    if not found:
        raise ValueError(f"--kinds {' '.join(names)}: there are {', '.join(export_kinds.KINDS)}")
    return found


def about(kind: export_kinds.Kind) -> Row:
    return {"type": kind.type, "head": kind.head, "acts": kind.acts}


def in_order(rows: dict[str, Row], order: Any) -> dict[str, Row]:
    """As they stand in `order`; those that are there no longer are left out."""
    return {name: rows[name] for name in order if name in rows}


def begun(arguments: Arguments) -> Row:
    """What an earlier run left, where it asked the same with the same libraries; else what a run
    begins with."""
    versions = {name: library(name).__version__ for name in ("onnx", *LIBRARIES.values())}
    question = {
        "frames": arguments.frames,
        "episodes": arguments.episodes,
        "calls": arguments.calls,
        "threads": 1,
        "timed_beside": arguments.beside,
        "versions": versions,
    }
    kept: dict[str, Row] = {}
    if arguments.out.is_file():
        before = json.loads(arguments.out.read_text())
        if {name: before.get(name) for name in question} == question:
            kept = before["kinds"]
    if arguments.again:
        for name in chosen(arguments.kinds):
            for runtime in arguments.runtimes:
                kept.get(name, {"runtimes": {}})["runtimes"].pop(runtime, None)
    return {**environment(), **question, "kinds": kept}


def rows_of(kind: export_kinds.Kind, runtimes: Sequence[Runtime], arguments: Arguments) -> Any:
    """(runtime, row), one after the other. What cannot be captured is tried once."""
    if not runtimes:
        return
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "kind").mkdir()
        met = meet(kind, folder / "kind", arguments)
        refused = None
        for runtime in runtimes:
            if refused is None:
                part = folder / runtime
                part.mkdir()
                try:
                    row = row_of(met, runtime, kind.budgets, part, folder / "captured", arguments)
                except GraphError as error:
                    refused = {"captured": False, "refused": one_line(error)}
            yield runtime, refused or row


def meet(kind: export_kinds.Kind, folder: Path, arguments: Arguments) -> Met:
    world = export_kinds.WORLD if kind.acts else None
    robot = None if world is None else benchmark_robot(world)
    policy, _ = load_to_export(kind.make(folder), robot)
    inputs = policy.inputs

    def count(frame: Observation) -> int:
        return int(inputs.arrays([frame]).text_mask.sum())

    if world is not None:
        frames = list(from_world(policy, world, arguments.frames).frames)
        return Met(
            policy, frames, gates.over_every_length(frames, texts_of(world), count), count, world
        )
    frames = []
    seed = 0
    while len(frames) < arguments.frames // 2:
        frames += at_random(policy, seed)[0]
        seed += 1
    told = []
    for place, frame in enumerate(frames):
        told.append(dataclasses.replace(frame, instruction=TOLD[place % len(TOLD)]))
    return Met(policy, told, told, count, None)


def row_of(
    met: Met,
    runtime: Runtime,
    budgets: tuple[float, ...],
    folder: Path,
    captured: Path,
    arguments: Arguments,
) -> Row:
    """What is measured of one runtime, at the last of the budgets' graphs. Raises GraphError where it
    cannot be captured; any other refusal stands in the row."""
    where, precision = PARTS[runtime]
    how = How(runtime=where, precision=precision, budget=budgets)  # type: ignore[arg-type]
    row: Row = {"captured": False, "loads": False}
    try:
        routes = assemble(met.policy, how, met.frames, folder, {}, captured=captured)
        row["captured"] = True
        exported = load_exported(folder)
        row["loads"] = loads_without_torch(folder, exported, met.frames[0])
    except (GraphError, MissingExporterError, MissingRuntimeError):
        raise
    except Exception as error:  # a runtime's own, and what is no way of `armlet.robot` to read
        return {**row, "refused": one_line(error)}
    acting = exported if not budgets else exported.at(budgets[-1])
    row["graphs"] = len({graph.name for graph in exported.description.graphs})
    dialled, route = routes[-1]
    row["share_of_frames_on_route"] = route.share
    return {**row, **measured(met, dialled, route, acting, precision, arguments)}


def measured(
    met: Met,
    dialled: Backbone,
    route: Route,
    acting: Exported,
    precision: str,
    arguments: Arguments,
) -> Row:
    """Parity, closed loop and speed. Where the gate of parity is not passed its numbers stand here all
    the same, beside what `armlet export` says."""
    found: Row = {}
    judge = partial(
        gates.parity,
        route.policy.infer,
        acting.infer,
        met.asked,
        count=met.count,
        spans=gates.spans(met.policy),
        precision=precision,
        chooses=gates.chooses(route.policy),
    )
    try:
        found["parity"] = judge().to_json()
    except gates.GateError as error:
        found["parity"] = error.found.to_json()
        found["refused"] = one_line(error)
    if met.world is not None:
        found["closed_loop"] = closed_loop(dialled, acting, met.world, arguments.episodes)
    found["speed"] = gates.speed(
        dialled.infer,
        acting.infer,
        met.frames,
        calls=arguments.calls,
        threads=1,
        slower=True,
    ).to_json()
    return found


def loads_without_torch(folder: Path, exported: Exported, frame: Observation) -> bool:
    """Whether the folder answers in a process without torch as it does here. Raises ValueError with
    what that process says where it fails."""
    asked = folder.with_name(f"{folder.name}.pickle")
    asked.write_bytes(pickle.dumps(frame))
    command = [sys.executable, "-c", WITHOUT_TORCH, str(folder), str(asked)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"without torch: {done.stderr.strip().splitlines()[-1]:.300}")
    return done.stdout.strip() == exported.infer(frame).tobytes().hex()


def closed_loop(policy: Backbone, acting: Exported, world: Benchmark, episodes: int) -> Row:
    """The same episodes by both: outcomes, in how many both take as many steps, and the largest
    difference of the robot's state at the same look, in the state's own numbers."""
    found = dict.fromkeys(("both", "only_pytorch", "only_exported", "neither"), 0)
    same_steps = 0
    apart = 0.0
    names = {(True, True): "both", (True, False): "only_pytorch", (False, True): "only_exported"}
    for task, seed in plan(world, world.splits[0], episodes, SEED):
        seen: list[list[np.ndarray]] = [[], []]
        ends = []
        for actor, states in zip((policy, ExportedPolicy(acting)), seen, strict=True):
            look = partial(_keep_state, states)
            ends.append(run_task(actor, world, task, seed, on_look=look))
        mine, theirs = ends
        found[names.get((mine.success, theirs.success), "neither")] += 1
        same_steps += mine.steps == theirs.steps
        for ours, others in zip(*seen, strict=False):  # the shorter episode's
            apart = max(apart, float(np.abs(ours - others).max()))
    return {"episodes": episodes, **found, "same_steps": same_steps, "state_apart": apart}


def _keep_state(states: list[np.ndarray], observation: Observation) -> None:
    states.append(np.array(observation.state))


def one_line(error: Exception) -> str:
    """What an error says, in a line."""
    return " ".join(str(error).split()) or type(error).__name__


# --- the page


def page(found: Row) -> str:
    """The table of what was measured, and every refusal, as Markdown."""
    runtimes = [
        each for each in PARTS if any(each in own["runtimes"] for own in found["kinds"].values())
    ]
    lines = [
        "# Every kind of policy in every runtime",
        "",
        SOURCE,
        "Made by `make bench-exports` (`bench/exports.py`, which says what is measured, and how) from "
        f"[exports.json](exports.json); timed beside: {found['timed_beside']}. In each cell: the largest "
        "difference of an action from PyTorch's, as a share of the robot's range; of the paired "
        "episodes those that end the same in both (– where the kind acts in no world here); PyTorch's "
        "milliseconds over the runtime's. Small networks, most of them untrained: what is said of "
        "speed holds for their sizes. `r`: refused, as said below the table; a coarser precision may be "
        "refused for weights that were never trained. A router that varies is compared with the graph "
        "of its commonest route, and in closed loop with the router itself.",
        "",
        SOURCE,
        f"| kind | {' | '.join(runtimes)} |",
        f"|---|{'---|' * len(runtimes)}",
    ]
    whys: dict[str, list[str]] = {}
    for name, own in found["kinds"].items():
        cells = []
        for runtime in runtimes:
            row = own["runtimes"].get(runtime)
            cells.append("" if row is None else cell(row))
            if row is not None and "refused" in row:
                whys.setdefault(row["refused"], []).append(f"{name} in {runtime}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    missing = [name for name in export_kinds.KINDS if len(runtimes_of(found, name)) < len(PARTS)]
    if missing:
        lines += ["", f"Not measured yet, or not in every runtime: {'; '.join(missing)}."]
    if whys:
        lines += ["", "## Refused", ""]
    for why, where in whys.items():
        lines += [f"- {grouped(where)}: {why} {SOURCE}", ""]
    return "\n".join(lines).rstrip() + "\n"


def runtimes_of(found: Row, name: str) -> dict[str, Row]:
    """The rows of a kind that have been measured."""
    rows: dict[str, Row] = found["kinds"].get(name, {"runtimes": {}})["runtimes"]
    return rows


def grouped(where: Sequence[str]) -> str:
    """`a in x, a in y, b in x` → `a in x, y; b in x`."""
    kinds: dict[str, list[str]] = {}
    for each in where:
        kind, _, runtime = each.rpartition(" in ")
        kinds.setdefault(kind, []).append(runtime)
    return "; ".join(f"{kind} in {', '.join(runtimes)}" for kind, runtimes in kinds.items())


def cell(row: Row) -> str:
    """What of a row stands in the table."""
    if "parity" not in row:
        return "r" if row["captured"] is False or "refused" in row else "?"
    parts = [f"{row['parity']['furthest']:.0e}"]
    ran = row.get("closed_loop")
    if ran is None:
        parts.append("–")
    else:
        parts.append(f"{ran['both'] + ran['neither']}/{ran['episodes']}")
    parts.append(f"{row['speed']['times_faster']:.1f}×")
    if not row["loads"]:
        parts.append("answers otherwise without torch")
    if "refused" in row:
        parts.append("r")
    return ", ".join(parts)


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments))
    except (MissingExporterError, MissingRuntimeError) as missing:
        sys.exit(f"bench/exports.py: {missing}")
