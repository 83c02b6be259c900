"""shorten: a policy → the same policy in fewer denoising steps, or one that looks again later. Nothing
is trained.

    armlet shorten POLICY --steps 1 --out DIR
    armlet shorten POLICY --steps 1 --execute 8 --out DIR

What a teacher can have for nothing, and so what a student has to beat. Whether it still succeeds,
`armlet evaluate --policies DIR` says; `armlet calibrate` looks for the longest `execute` that does.
"""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from armlet.data.files import refuse_existing
from armlet.lineage import SHORTENED
from armlet.policies.checkpoint import (
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
    weights: Literal["fp16", "fp32"] = "fp32",
) -> str:
    """Write a policy that decides in fewer denoising steps, or carries out more of what it decides.

    Args:
        place: the policy: its folder, its name on the hub, or a policy.toml.
        out: the folder to write.
        steps: denoising steps of a decision, fewer than its own.
        execute: actions of a chunk that are carried out before it looks again.
        weights: how its weights are kept; fp16 halves the file, and it runs in fp32 all the same.
    """
    if steps is None and execute is None:
        raise ValueError(
            "nothing to change: give --steps, the denoising steps of a decision, or --execute, the "
            "actions that are carried out before it looks again"
        )
    for option, value in (("--steps", steps), ("--execute", execute)):
        if value is not None and value < 1:
            raise ValueError(f"{option} is {value}, expected 1 or more")
    refuse_existing(out)
    policy = load_policy(place)
    made = read_provenance(place)
    before = {"policy": place, "fingerprint": policy_fingerprint(place)}
    if steps is not None:
        policy = in_steps(policy, steps)
    if execute is not None:
        policy = looking_after(policy, execute)
    asked = {"steps": steps, "execute": execute, "weights": None if weights == "fp32" else weights}
    told = {name: value for name, value in asked.items() if value is not None}
    # How it was trained stays told: students that differ in their seed alone still do.
    changes = [*made.get(SHORTENED, ()), {**before, **told}]
    save_policy(policy, out, provenance={**made, SHORTENED: changes}, weights=weights)
    return str(out)
