"""What a decision costs: milliseconds, multiplications, parameters, memory. Knows policies, no
benchmark and no file.

Latency is wall time from an observation in numpy to actions in numpy, batch 1, after warm-up,
synchronised; the policies of one table are timed in turn on the same observations, so drift of the
machine falls on all alike, and in an order drawn anew for each, so that none always finds the
caches as the largest one left them.
"""

import multiprocessing
import platform
import resource
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from armlet.policies.checkpoint import load_policy
from armlet.policies.contract import Backbone, Policy
from armlet.robot.observation import Observation

WARM_UP = 20


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(milliseconds, q)) for q in (50, 95, 99)}


def latency(
    policies: Mapping[str, Policy], observations: Sequence[Observation], *, calls: int
) -> dict[str, dict[str, float]]:
    """p50, p95, p99 in ms of `infer`, every policy on every observation, in an order drawn anew."""
    for policy in policies.values():
        for index in range(WARM_UP):
            policy.infer(observations[index % len(observations)])
    order = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in policies}
    for call in range(calls):
        observation = observations[call % len(observations)]
        for name in order.permutation(list(policies)):
            times[name].append(_time_once(policies[name], observation))
    return {name: percentiles(values) for name, values in times.items()}


def _time_once(policy: Policy, observation: Observation) -> float:
    if isinstance(policy, Backbone) and policy.device.type == "cuda":
        torch.cuda.synchronize(policy.device)
    started = time.perf_counter()
    policy.infer(observation)  # ends in numpy: the device has finished
    return (time.perf_counter() - started) * 1e3


@torch.inference_mode()
def compute(policy: Backbone, observations: Sequence[Observation]) -> dict[str, float]:
    """Mean floating-point operations of a decision, counted from what ran, in all and in the
    backbone. Moments with the same
    instruction and the same layers, from the same cameras, run the same operations: one of them is
    counted, which is slow."""
    counted: dict[Hashable, tuple[int, int]] = {}
    counts = []
    for observation in observations:
        shapes = tuple((name, image.shape) for name, image in observation.images.items())
        kind = (observation.instruction, shapes, policy.decide(observation).gates)
        if kind not in counted:
            counted[kind] = _count(policy, observation)
        counts.append(counted[kind])
    total, backbone = np.mean(counts, axis=0)
    return {"total": float(total), "backbone": float(backbone)}


def _count(policy: Backbone, observation: Observation) -> tuple[int, int]:
    batch = policy.prepare([observation])
    # The counter follows gradients through modules, and fails on one that answers with a bare
    # parameter, as the state's of a robot without a state does.
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    for parameter in trained:
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
    policy: Policy, observations: Sequence[Observation], *, seed: int = 0
) -> dict[str, float]:
    """The share of decisions whose route changes when one thing is replaced by that of another
    moment, drawn at random: the
    images, the instruction, the robot's state, its previous action, or everything."""
    others = np.random.default_rng(seed).permutation(len(observations))
    routes = [policy.decide(observation).gates for observation in observations]

    def changed(*names: str) -> float:
        mixed = [
            replace(observation, **{name: getattr(observations[other], name) for name in names})
            for observation, other in zip(observations, others, strict=True)
        ]
        return float(
            np.mean(
                [
                    policy.decide(seen).gates != route
                    for seen, route in zip(mixed, routes, strict=True)
                ]
            )
        )

    names = ("images", "instruction", "state", "previous_action")
    return {**{name: changed(name) for name in names}, "everything": changed(*names)}


def parameters(policy: Backbone) -> dict[str, int]:
    """Counts of parameters: of the whole policy as it is deployed, and of its layers, the part that
    students cut or skip."""
    return {
        "total": sum(parameter.numel() for parameter in policy.parameters()),
        "backbone": sum(parameter.numel() for parameter in policy.layers.parameters()),
    }


def processor() -> str:
    """The processor's model, as Linux names it, or what Python knows of it; "unknown" where neither
    does."""
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        for line in listed.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model", "Hardware") and value.strip():
                return value.strip()
    return platform.processor() or "unknown"


def peak_memory_mb(folder: Path, observation: Observation) -> float:
    """Peak resident memory, in MB, of a fresh process that loads the policy and decides ten times:
    what a robot's
    computer must have, libraries included."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        return pool.apply(_peak, (folder, observation))


def _peak(folder: Path, observation: Observation) -> float:
    torch.set_num_threads(1)
    policy = load_policy(folder)
    for _ in range(10):
        policy.infer(observation)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
