"""A policy while it is trained or watched: the network, and the heads that exist only then.

`trace` answers any of the signals named in `types`; an objective says which it wants, and nothing
else is computed. Knows no recipe.
"""

from collections.abc import Collection
from contextlib import AbstractContextManager

import torch
from torch import nn

from armlet.layers.graph import ProbeHeads
from armlet.layers.named import Named
from armlet.layers.vision import Pointer
from armlet.policies.contract import Policy
from armlet.types import Batch, Precision, Trace


class Learner(nn.Module):
    """`probe` reads every layer (semantics and layer actions); `privileged` names the simulator
    facts that are guessed while a teacher learns, name → number of values: by a linear head from
    the condition
    (`privileged.x`), and by a pointer into the vision tokens before the backbone (`pointed.x`)."""

    def __init__(
        self,
        policy: Policy,
        *,
        probe: ProbeHeads | None = None,
        privileged: dict[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.policy, self.probe = policy, probe
        facts = privileged or {}
        self.privileged = Named(
            {name: nn.Linear(policy.condition_width, size) for name, size in facts.items()}
        )
        self.pointers = Named(
            {
                name: Pointer(policy.width, policy.vision_tokens, size)
                for name, size in facts.items()
            }
        )

    def autocast(self, precision: Precision) -> AbstractContextManager:
        """Matrix products in this precision while it lasts; weights and losses stay in single
        precision."""
        return torch.autocast(self.policy.device.type, torch.bfloat16, enabled=precision == "bf16")

    def trace(
        self, batch: Batch, want: Collection[str], *, exploration: float = 0.0, every: int = 1
    ) -> Trace:
        """The signals in `want`; those of single layers of every n-th sample only, where `every` is
        more than 1. Raises KeyError naming a signal that this learner does not have."""
        policy = self.policy
        watch = bool({"semantics", "layer_actions"} & set(want)) or any(
            name.startswith(("hidden.", "attention.")) for name in want
        )
        tokens = policy.embed(batch)
        run = policy.backbone(tokens, batch, watch=watch, exploration=exploration)
        condition = policy.condition(run.hidden, tokens).float()
        costs = policy.layer_costs().to(condition.device)
        trace: Trace = {
            "condition": condition,
            "gates": run.gates.float(),
            "costs": costs,
            **run.extras,
        }
        if "actions" in want:
            trace["actions"] = policy.head(condition)
        if "logits" in want and (logits := policy.head.logits(condition)) is not None:
            trace["logits"] = logits
        if "imitation" in want:
            actions, valid = batch.targets()
            trace["imitation"] = policy.head.loss(condition, actions, valid.float())
        if {"semantics", "layer_actions"} & set(want):
            if self.probe is None:
                raise KeyError(
                    "semantics and layer_actions come from probe heads, and this learner has none"
                )
            trace["semantics"], trace["layer_actions"] = self.probe(
                [hidden[::every].float() for hidden in run.hiddens], tokens.mask[::every]
            )
        for name, head in self.privileged.items():
            trace[f"privileged.{name}"] = head(condition)
        if any(name.startswith("pointed.") for name in want):
            seen = tokens.hidden[tokens.vision].unflatten(0, (len(batch), -1))
            trace |= {f"pointed.{name}": pointer(seen) for name, pointer in self.pointers.items()}
        for name in want:
            if name.startswith("hidden."):
                trace[name] = run.hiddens[int(name.removeprefix("hidden."))]
        trace |= policy.signals([name for name in want if name not in trace], batch, tokens, run)
        missing = [name for name in want if name not in trace]
        if missing:
            kind = (
                f"a policy of type {policy.to_json()['type']!r} with a {type(policy.head).__name__}"
            )
            facts = any(name.startswith(("privileged.", "pointed.")) for name in missing)
            fix = (
                "; facts are guessed where the episodes have them: leave `facts` of the objective empty otherwise"
                if facts
                else ""
            )
            raise KeyError(f"{kind} has no signal {missing}; it has {sorted(trace)}{fix}")
        return {name: trace[name] for name in want}


@torch.no_grad()
def watch(learner: Learner, batch: Batch, want: Collection[str]) -> Trace:
    """The trace of a policy at rest: eval mode, no gradient, repeatable to the bit (recipes.md §1,
    error 4)."""
    if learner.training:
        raise RuntimeError("a policy is watched in eval mode; call .eval() first")
    return learner.trace(batch, want)
