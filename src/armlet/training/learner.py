"""A policy while it is trained or watched: the network, and the heads that exist only then.

Called with a batch, a learner answers any of the signals named in `types`; an objective says which
it wants, and nothing else is computed. Knows no recipe.
"""

import copy
import functools
import sys
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from armlet.data.frames import BatchMaker
from armlet.layers.graph import ProbeHeads
from armlet.layers.heads import FlowHead
from armlet.layers.named import Named
from armlet.layers.vision import Pointer
from armlet.machine import multiplies_bf16
from armlet.policies.contract import Backbone, Features, Pass
from armlet.recipe import Recipe
from armlet.types import LAYERS, Batch, Precision, Trace

# Signals that are computed from the condition, where a policy has one.
READ_CONDITION = frozenset(
    {"condition", "actions", "logits", "imitation", "imitation.teacher", "imitation.velocity"}
)


class Learner(nn.Module):
    """`probe` reads every layer (semantics and layer actions); `privileged` names the simulator
    facts that are guessed while a teacher learns, name → number of values: by a linear head from
    the condition, or from the mean of the last tokens where a policy has none (`privileged.x`), and
    by a pointer into the vision tokens before the backbone, where it has those (`pointed.x`)."""

    def __init__(
        self,
        policy: Backbone,
        *,
        probe: ProbeHeads | None = None,
        privileged: dict[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.probe = probe
        # In a tuple, so that torch does not count it among what trains and is saved.
        self._teacher_head: tuple[FlowHead, ...] = ()
        facts = privileged or {}
        read = policy.condition_width or policy.width
        seen = policy.vision_tokens
        # All linear heads ahead of all pointers: fresh weights are drawn in this order.
        self.privileged = Named()
        for name, size in facts.items():
            self.privileged[name] = nn.Linear(read, size)
        self.pointers = Named()
        if seen:
            for name, size in facts.items():
                self.pointers[name] = Pointer(policy.width, seen, size)

    def autocast(self, precision: Precision) -> AbstractContextManager:
        """Matrix products in this precision while it lasts; weights and losses stay in single
        precision. On a processor that has no products in bf16 they are in single precision, which
        is finer and faster there; not of weights that are held in bf16."""
        device = self.policy.device.type
        half = precision == "bf16" and (multiplies_bf16(device) or self._is_halved())
        if precision == "bf16" and not half:
            _say_single()
        return torch.autocast(device, torch.bfloat16, enabled=half)

    def _is_halved(self) -> bool:
        """Whether weights are held in bf16."""
        return any(weight.dtype == torch.bfloat16 for weight in self.parameters())

    def forward(
        self, batch: Batch, want: Collection[str], *, exploration: float = 0.0, every: int = 1
    ) -> Trace:
        """The signals in `want`; those of single layers of every n-th sample only, where `every` is
        more than 1. Raises KeyError naming a signal that this learner does not have.

        What reads the same tensor comes in one fixed order: their gradients are summed in its
        reverse, and another order rounds otherwise.
        """
        policy = self.policy
        wanted = set(want)
        if wanted & LAYERS and self.probe is None:
            raise KeyError(
                "semantics and layer_actions come from probe heads, and this learner has none"
            )
        # States after every layer cost memory, so they are kept only where a signal reads them.
        watched = bool(wanted & LAYERS) or any(name.startswith(policy.of_layers) for name in want)
        run = policy.run_layers(policy.embed(batch), batch, watch=watched, exploration=exploration)
        facts = _among(self.privileged, "privileged", wanted)
        # The condition first of all that read it: see the docstring. It stays in `run.extras`.
        if policy.condition_width is not None and (facts or wanted & READ_CONDITION):
            policy.signals(["condition"], batch, run)
        trace: Trace = {
            "gates": run.gates.float(),
            "costs": policy.layer_costs().to(run.gates.device),
            # What the network says of itself: a router's logits, soft gates.
            **run.extras,
        }
        if "actions" in wanted:
            trace["actions"] = policy.decode(run, batch)
        if "logits" in wanted:
            trace |= policy.signals(["logits"], batch, run)
        if "imitation" in wanted:
            trace["imitation"] = policy.loss(run, batch)
        if "imitation.teacher" in wanted:
            trace["imitation.teacher"] = self._taught(run, batch)
        if "imitation.velocity" in wanted:
            trace["imitation.velocity"] = self._velocities(run, batch)
        if wanted & LAYERS:
            trace["semantics"], trace["layer_actions"] = self._probed(run, every)
        trace |= self._guesses(run, facts)
        trace |= self._points(run, _among(self.pointers, "pointed", wanted))
        for name in want:
            if name.startswith("hidden."):
                state = run.states[int(name.removeprefix("hidden."))]
                trace[name] = policy.features(state).hidden  # (b, n, d) after that layer
        # Whatever is left only this network can know.
        trace |= policy.signals([name for name in want if name not in trace], batch, run)
        self._check(want, trace)
        return {name: trace[name] for name in want}

    def _taught(self, run: Pass, batch: Batch) -> Tensor:
        """(b,): the policy's own loss against its teacher's actions."""
        if batch.taught is None:
            raise ValueError(
                "imitation.teacher compares with the teacher's actions, and this batch has none; "
                "name `actions` in the objective's `needs`"
            )
        # Of what the pass has computed only the condition hangs on no target: a network that writes
        # word by word keeps what it was told to write.
        kept = {name: run.extras[name] for name in ("condition",) if name in run.extras}
        return self.policy.loss(replace(run, extras=kept), replace(batch, actions=batch.taught))

    def compare_velocities_with(self, teacher: Backbone) -> None:
        """Keep a copy of the teacher's head, for `imitation.velocity`. Raises ValueError where the
        teacher's head or the student's has no velocities."""
        _flow_head(self.policy, "the student")
        head = copy.deepcopy(_flow_head(teacher, "the teacher")).to(self.policy.device).eval()
        self._teacher_head = (head.requires_grad_(False),)

    def _velocities(self, run: Pass, batch: Batch) -> Tensor:
        """(b,): how far the velocities of its head are from those of its teacher's."""
        if batch.taught_condition is None or not self._teacher_head:
            raise ValueError(
                "imitation.velocity compares with the velocities of the teacher's head, and there "
                "is no such head here, or nothing that it read: name `condition` in the "
                "objective's `needs`, and give the learner the teacher (compare_velocities_with)"
            )
        actions, valid = batch.targets()
        (theirs,) = self._teacher_head
        own = run.extras["condition"]  # of all that read it, it is made first
        mine = _flow_head(self.policy, "the student")
        return mine.distance(own, theirs, batch.taught_condition, actions, valid.float())

    def _probed(self, run: Pass, every: int) -> tuple[Tensor, Tensor]:
        """What the probe's heads read of every layer, in every n-th sample."""
        assert self.probe is not None  # looked at before
        layers = list(map(self.policy.features, run.states))
        hiddens = [layer.hidden[::every].float() for layer in layers]
        # Which tokens are real is decided before the first layer, so any layer's mask will do.
        return self.probe(hiddens, layers[0].mask[::every])

    def _guesses(self, run: Pass, facts: list[str]) -> Trace:
        """Guesses of simulator facts, from the condition or, where there is none, the mean
        token."""
        if not facts:
            return {}
        told = run.extras.get("condition")  # (b, c)
        if told is None:
            told = _mean(self.policy.features(run.state)).float()  # (b, d)
        guesses: Trace = {}
        for name in facts:
            guesses[f"privileged.{name}"] = self.privileged[name](told)
        return guesses

    def _points(self, run: Pass, facts: list[str]) -> Trace:
        """The same, from the vision tokens alone."""
        if not facts:
            return {}
        first = self.policy.features(run.start)
        # Selecting by a mask flattens; every sample has as many vision tokens: → (b, v, d).
        seen = first.hidden[first.vision].unflatten(0, (len(first.hidden), -1))
        guesses: Trace = {}
        for name in facts:
            guesses[f"pointed.{name}"] = self.pointers[name](seen)
        return guesses

    def _check(self, want: Collection[str], trace: Trace) -> None:
        missing = [name for name in want if name not in trace]
        if not missing:
            return
        fix = ""
        if "condition" in missing:
            fix = (
                "; leave `condition` out of `--traced`, and give the objective's `condition` the "
                "weight 0"
            )
        # The one signal that a recipe asks for and data may lack; other names are the recipe's own.
        if any(name.startswith(("privileged.", "pointed.")) for name in missing):
            fix = (
                "; facts are guessed where the episodes have them: leave `facts` of the objective "
                "empty otherwise"
            )
        raise KeyError(f"{self.policy.kind} has no signal {missing}; it has {sorted(trace)}{fix}")


@functools.cache
def _say_single() -> None:
    """Once a process."""
    sys.stderr.write(
        "this processor has no matrix products in bf16, which would take many times as long: "
        "computing in single precision\n"
    )


def _flow_head(policy: Backbone, whose: str) -> FlowHead:
    """The policy's head. Raises ValueError where it has no velocities."""
    head = getattr(policy, "head", None)
    if not isinstance(head, FlowHead):
        raise ValueError(
            f"{whose} is {policy.kind}, and only a flow head has velocities that could be "
            "compared; set `objective.by` of the stage to actions"
        )
    return head


def _among(facts: Iterable[str], kind: str, wanted: set[str]) -> list[str]:
    """The facts whose signal of this kind, `privileged` or `pointed`, is wanted."""
    return [name for name in facts if f"{kind}.{name}" in wanted]


def _mean(features: Features) -> Tensor:
    """(b, d): of the real tokens."""
    real = features.mask[..., None].to(features.hidden.dtype)  # (b, n, 1)
    return (features.hidden * real).sum(1) / real.sum(1).clamp(min=1)


def chooses(policy: Backbone, batch: Batch) -> tuple[bool, bool]:
    """Whether a policy chooses its actions among classes, so that no gradient goes through what it
    decides, and whether it has their logits as a signal. Asked on a batch of a few samples, at
    rest."""
    training = policy.training
    policy.eval()
    batch = replace(batch, budget=1.0)  # a router with a dial must be told one
    # A policy that is frozen has no gradients anywhere: then its logits alone can say.
    trains = any(parameter.requires_grad for parameter in policy.parameters())
    with torch.random.fork_rng(devices=[]):  # nothing that is drawn later hangs on being asked
        run = policy.run_layers(policy.embed(batch), batch)
        logits = "logits" in policy.signals(["logits"], batch, run)
        chosen = trains and not logits and not policy.decode(run, batch).requires_grad
    policy.train(training)
    return logits or chosen, logits


def with_logits(recipe: Recipe, teacher: Backbone, batches: BatchMaker) -> Recipe:
    """The recipe with the teacher's logits among what is `traced`, where its students are cut from
    a teacher that chooses its actions among classes, and an objective would learn from them how
    likely it found each."""
    if recipe.student is None or not recipe.student.needs_teacher or not recipe.may_read_logits:
        return recipe
    if "logits" in recipe.traced or not chooses(teacher, batches.batch(np.arange(2)))[1]:
        return recipe
    return replace(recipe, traced=(*recipe.traced, "logits"))


@torch.no_grad()
def watch(learner: Learner, batch: Batch, want: Collection[str]) -> Trace:
    """The trace of a policy at rest: eval mode, no gradient, repeatable to the bit (recipes.md §1,
    error 4)."""
    if learner.training:
        raise RuntimeError("a policy is watched in eval mode; call .eval() first")
    trace: Trace = learner(batch, want)
    return trace
