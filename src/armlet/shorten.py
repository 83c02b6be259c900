"""shorten: a policy → the same policy in fewer denoising steps, or one that looks again later. Nothing
is trained.

    armlet shorten POLICY --steps 1 --out DIR
    armlet shorten POLICY --steps 1 --execute 8 --out DIR

What a teacher can have for nothing, and so what a student has to beat. Whether it still succeeds,
`armlet evaluate --policies DIR` says where there is a world; `armlet calibrate` looks for the longest
`execute` that does.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from armlet.data.files import atomic_folder, refuse_existing
from armlet.lineage import SHORTENED, shortenings
from armlet.policies.checkpoint import (
    CONFIG,
    kept_in,
    load_policy,
    policy_fingerprint,
    read_provenance,
    save_policy,
)
from armlet.policies.lighter import in_steps, looking_after


def main(
    place: Annotated[str, tyro.conf.Positional],
    /,
    *,
    out: Path,
    steps: int | None = None,
    execute: int | None = None,
    weights: Literal["fp16", "fp32"] | None = None,
) -> str:
    """Write a policy that decides in fewer denoising steps, or carries out more of what it decides.
    The same command again finds it done.

    Args:
        place: the policy: its folder, its name on the hub, or a policy.toml.
        out: the folder to write.
        steps: denoising steps of a decision, fewer than its own.
        execute: actions of a chunk that are carried out before it looks again.
        weights: how its weights are kept, as they are if not given; fp16 halves the file, and it runs
            in fp32 all the same.
    """
    if steps is None and execute is None:
        raise ValueError(
            "nothing to change: give --steps, the denoising steps of a decision, or --execute, the "
            "actions that are carried out before it looks again"
        )
    for option, value in (("--steps", steps), ("--execute", execute)):
        # From Python it may be anything, and 2.0 steps would be found out when it first decides.
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{option} is {value}, expected 1 or more, a whole number")
    place = str(place)
    made = read_provenance(place)
    before = {"policy": place, "fingerprint": policy_fingerprint(place)}
    asked = {"steps": steps, "execute": execute, "weights": weights}
    told = {name: value for name, value in asked.items() if value is not None}
    # How it was trained stays told: students that differ in their seed alone still do.
    provenance = {**made, SHORTENED: [*shortenings(made, place), {**before, **told}]}
    if _is_done(out, provenance):
        sys.stderr.write(f"{out} was shortened exactly so already\n")
        return str(out)
    refuse_existing(out)
    policy = load_policy(place)
    if steps is not None:
        policy = in_steps(policy, steps)
    if execute is not None:
        policy = looking_after(policy, execute)
    with atomic_folder(out) as part:
        save_policy(policy, part, provenance=provenance, weights=weights or kept_in(place))
    return str(out)


def _is_done(out: Path, provenance: Mapping[str, Any]) -> bool:
    """Whether a whole policy is there that was made by just this; by which path its own was named
    says nothing."""
    if not (out / CONFIG).is_file():
        return False
    found = read_provenance(out)
    if _unnamed(found) != _unnamed(json.loads(json.dumps(provenance))):
        return False
    load_policy(out)  # raises where a file of it is damaged
    return True


def _unnamed(provenance: Mapping[str, Any]) -> dict[str, Any]:
    changes = []
    for each in provenance.get(SHORTENED, ()):
        changes.append({name: value for name, value in each.items() if name != "policy"})
    return {**provenance, SHORTENED: changes}
