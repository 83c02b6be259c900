"""What a decision costs: milliseconds, multiplications, parameters, memory. Knows policies, no
benchmark and no file.

Latency is wall time from an observation in numpy to actions in numpy, batch 1, after warm-up,
synchronised; the policies of one table are timed in turn on the same observations, so drift of the
machine falls on all alike, and in an order drawn anew for each, so that none always finds the
caches as the largest one left them.
"""

import multiprocessing
import platform
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from armlet import source
from armlet.data.hub import local_folder
from armlet.policies.acting import load_actor
from armlet.policies.checkpoint import WEIGHTS
from armlet.policies.contract import Backbone, Policy
from armlet.policies.pretrained import kinds
from armlet.policies.remote.policy import SocketPolicy
from armlet.robot import resident
from armlet.robot.exported import is_exported
from armlet.robot.observation import Observation
from armlet.robot.spec import RobotSpec

WARM_UP = 20  # decisions before timing: first calls allocate, choose kernels, fill caches


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """Percentiles, not a mean: a robot's control loop waits for the slow decisions as well."""
    p50, p95, p99 = np.percentile(milliseconds, (50, 95, 99))
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99)}


def latency(
    policies: Mapping[str, Policy], observations: Sequence[Observation], *, calls: int
) -> dict[str, dict[str, float]]:
    """p50, p95, p99 in ms of `infer`, every policy on every observation, in an order drawn anew."""
    ways = {name: policy.infer for name, policy in policies.items()}
    times = in_turn(ways, observations, calls=calls, before=lambda name: wait_for(policies[name]))
    found = {}
    for name, values in times.items():
        found[name] = percentiles(values)
    return found


def in_turn(
    ways: Mapping[str, Callable[[Observation], object]],
    observations: Sequence[Observation],
    *,
    calls: int,
    before: Callable[[str], object] = lambda name: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Milliseconds of `calls` decisions in each of several ways, by its name, after warming up.
    `before` is called with that name ahead of each, outside of its time. `clock`: seconds; with
    `time.process_time` what other processes take of the machine does not count."""
    for infer in ways.values():
        for index in range(WARM_UP):
            infer(observations[index % len(observations)])
    order = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for call in range(calls):
        observation = observations[call % len(observations)]
        # In turn on this observation, so that a machine that slows down slows all alike.
        for name in order.permutation(list(ways)):
            before(name)
            started = clock()
            ways[name](observation)  # ends in numpy: the device has finished
            times[name].append((clock() - started) * 1e3)
    return times


def device_of(policy: Policy) -> str:
    """Where it decides: a device of this machine, or behind a socket."""
    if isinstance(policy, Backbone):
        return str(policy.device)
    if isinstance(policy, SocketPolicy):
        return f"{policy.kind}, the network included"
    return "cpu"  # where graphs that were exported run


def wait_for(policy: Policy) -> None:
    if isinstance(policy, Backbone) and policy.device.type == "cuda":
        # What was queued before must not be in the time of what follows.
        torch.cuda.synchronize(policy.device)


@torch.inference_mode()
def compute(policy: Backbone, observations: Sequence[Observation]) -> dict[str, float]:
    """Mean floating-point operations of a decision, counted from what ran, in all and in the
    backbone. Moments with as many tokens, the same layers and pictures of the same sizes run the same
    operations: one of them is counted, which is slow."""
    counted: dict[Hashable, tuple[int, int]] = {}
    counts = []
    for observation in observations:
        shapes = []
        for name, image in observation.images.items():
            shapes.append((name, image.shape))
        mask = policy.prepare([observation]).text_mask
        words = (mask.shape[1], int(mask.sum()))
        kind = (words, tuple(shapes), policy.layers_for(observation))
        if kind not in counted:
            counted[kind] = _count(policy, observation)
        counts.append(counted[kind])
    total, backbone = np.mean(counts, axis=0)
    return {"total": float(total), "backbone": float(backbone)}


def _count(policy: Backbone, observation: Observation) -> tuple[int, int]:
    batch = policy.prepare([observation])
    # The counter follows gradients through modules, and fails on one that answers with a bare
    # parameter, as the state's of a robot without a state does.
    trained = []
    for parameter in policy.parameters():
        if parameter.requires_grad:
            trained.append(parameter)
            parameter.requires_grad_(False)
    with FlopCounterMode(display=False) as whole:
        policy(batch)
    state = policy.embed(batch)
    with FlopCounterMode(display=False) as backbone:
        policy.run_layers(state, batch)
    for parameter in trained:
        parameter.requires_grad_(True)
    return whole.get_total_flops(), backbone.get_total_flops()


def what_routes_depend_on(
    policy: Backbone, observations: Sequence[Observation], *, seed: int = 0
) -> dict[str, float]:
    """The share of decisions whose route changes when one thing is replaced by that of another
    moment, drawn at random: the images, the instruction, the robot's state, its previous action, or
    everything. Routes that never change are no routing, whatever the router was trained for."""
    others = np.random.default_rng(seed).permutation(len(observations))
    routes = [policy.layers_for(observation) for observation in observations]

    def changed(*names: str) -> float:
        """The share of routes that change when these fields are another moment's."""
        differs = []
        for observation, other, route in zip(observations, others, routes, strict=True):
            mixed = _mixed(observation, observations[other], names)
            differs.append(policy.layers_for(mixed) != route)
        return float(np.mean(differs))

    names = ("images", "instruction", "state", "previous_action")
    shares = {}
    for name in names:
        shares[name] = changed(name)
    # Everything at once is the other moment itself: how often two moments' routes differ at all.
    shares["everything"] = changed(*names)
    return shares


def _mixed(seen: Observation, other: Observation, names: Sequence[str]) -> Observation:
    """An observation with these fields of another; so are the observations before it, each with
    those of the other that is as long ago, or of its first."""
    past = []
    theirs = (*other.past, other)
    for ago, before in enumerate(reversed(seen.past), start=2):
        taken = {name: getattr(theirs[-min(ago, len(theirs))], name) for name in names}
        past.append(replace(before, **taken))
    taken = {name: getattr(other, name) for name in names}
    return replace(seen, **taken, past=tuple(reversed(past)))


def parameters(policy: Backbone) -> dict[str, int]:
    """Counts of parameters: of the whole policy as it is deployed, and of its layers, the part that
    students cut or skip."""
    return {
        "total": sum(map(torch.Tensor.numel, policy.parameters())),
        "backbone": sum(map(torch.Tensor.numel, policy.layers.parameters())),
    }


def environment() -> dict[str, Any]:
    """What a report was made with, whatever it is about: armlet, the libraries, the machine."""
    armlet = source.identity()  # version, commit, and a digest of the sources as they are
    return {
        "armlet": armlet["version"],
        "commit": armlet["commit"],
        "dirty": armlet["dirty"],
        "files": armlet["files"],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "processor": processor(),
    }


def processor() -> str:
    """The processor's model, as Linux names it, or what Python knows of it; "unknown" where neither
    does."""
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        for line in listed.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            # "model name" on x86; "Model" or "Hardware" on ARM boards, the Raspberry Pi among them.
            if name.strip() in ("model name", "Model", "Hardware") and value.strip():
                return value.strip()
    return platform.processor() or "unknown"


def bytes_on_disk(folder: Path) -> int:
    """Of a policy's weights; of what was exported, and of another project's checkpoint, of all that
    decides its answers."""
    if is_exported(folder):
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    place = folder if folder.suffix == ".toml" else local_folder(folder, kind="model")
    if kinds.is_pretrained(place):
        said, kind = kinds.find(place)
        return sum(path.stat().st_size for path in kind.files(said))
    return (place / WEIGHTS).stat().st_size


def peak_memory_mb(folder: Path, observation: Observation, robot: RobotSpec) -> float:
    """Peak resident memory, in MB, of a fresh process that loads the policy, of this robot, and
    decides ten times: what a robot's computer must have, libraries included. Of what was exported
    without torch, as a robot runs it."""
    # Spawned, not forked: a fork would count what this process has in memory.
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        if is_exported(folder):
            return pool.apply(resident.deciding_mb, (folder, observation))
        return pool.apply(_peak, (folder, observation, robot))


def _peak(folder: Path, observation: Observation, robot: RobotSpec) -> float:
    torch.set_num_threads(1)
    policy = load_actor(folder, known=lambda: robot)
    for _ in range(10):
        policy.infer(observation)
    return resident.peak_mb()
