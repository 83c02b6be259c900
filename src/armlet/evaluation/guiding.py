"""Who can act late by real-time chunking (`--evaluation.late guided`), and what a guided decision
costs: it differentiates the policy's flow, so it takes longer than one that is not."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from armlet.evaluation.field import Field
from armlet.evaluation.measure import in_turn, percentiles, wait_for
from armlet.policies.contract import Policy
from armlet.recipe import Evaluation
from armlet.robot.observation import Observation, Underway


def guided(field: Field, setting: Evaluation) -> tuple[str, ...]:
    """Who of a field is run guided where that is asked for; who cannot be is said on stderr. Raises
    ValueError, with each one's reason, where nobody can be."""
    if "guided" not in setting.late:
        return ()
    able = []
    reasons = []
    for name in field.contenders:
        why = why_unguided(field, name)
        if why:
            reasons.append(f"{name}: {why}")
        else:
            able.append(name)
    if not able:
        said = "; ".join(reasons)
        raise ValueError(
            f"--evaluation.late guided is for flow policies, and none can be guided: {said}; leave "
            "it out, or take blend"
        )
    for reason in reasons:
        sys.stderr.write(f"not run with --evaluation.late guided: {reason}\n")
    return tuple(able)


def why_unguided(field: Field, name: str) -> str:
    """Why this one cannot be guided, as it is run here; empty: it can."""
    policy = field.policies[name]
    contender = field.contenders[name]
    if policy.why_unguided:
        return policy.why_unguided
    if contender.joined is not None or policy.ensemble is not None:
        return "an ensemble would average its chunks, which go on from one another, once more"
    chunk = getattr(policy, "chunk", None)
    execute = contender.looks_after or policy.execute
    if execute == chunk:
        return (
            f"it carries out all {chunk} actions of a chunk before it looks again, so nothing is left "
            f"to be guided by; --evaluation.execute {max(1, execute // 2)} leaves some"
        )
    return ""


def guided_latency(
    field: Field, names: Sequence[str], observations: Sequence[Observation], *, calls: int
) -> dict[str, dict[str, float]]:
    """p50, p95, p99 in ms of guided decisions, as `measure.latency` has them of others."""
    ways = {}
    for name in names:
        policy = field.policies[name]
        execute = field.contenders[name].looks_after or policy.execute
        # Its own: how long it takes does not depend on what the numbers are.
        left = policy.infer(observations[0])[execute:]
        ways[name] = _guided(policy, left)
    if not ways:
        return {}
    times = in_turn(
        ways, observations, calls=calls, before=lambda name: wait_for(field.policies[name])
    )
    return {name: percentiles(values) for name, values in times.items()}


def _guided(policy: Policy, left: np.ndarray) -> Callable[[Observation], np.ndarray]:
    def infer(observation: Observation) -> np.ndarray:
        return policy.infer(replace(observation, underway=Underway(left, 1)))

    return infer
