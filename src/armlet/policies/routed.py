"""Any policy with a router in front of its layers: per observation, some layers run and the rest are skipped.

While it trains, a skipped layer is computed and its result discarded by a hard gate, so that the gradient
reaches the router; when it acts, the layer does not run. The two give the same numbers, bit for bit
(recipes.md §1, error 1). Knows no particular network.
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from armlet.layers.heads import ActionHead
from armlet.layers.router import GateMode, Gates, Router, gate_sample, hard_gates, mixer
from armlet.policies import Pass, Policy, Student, Tokens, rebuild
from armlet.types import Batch, Observation


@dataclass(frozen=True)
class Routing(Student):
    """How a router is made. `initial_keep`: how likely a layer is to run before training; `threshold`: the logit
    from which on it runs; `always`: layers that run whatever the router says; `mode`: how gates act while training
    (`layers.router.gate_sample`; anything but `straight_through` and `gumbel` is for comparison with the paper)."""

    hidden: int = 64
    use_state: bool = True
    use_previous_action: bool = True
    initial_keep: float = 0.8
    threshold: float = 0.0
    always: tuple[int, ...] = ()
    mode: GateMode = "straight_through"

    def build(self, teacher: Policy) -> Policy:
        return Routed(copy.deepcopy(teacher), self)


class Routed(Policy):
    """See the module's docstring. `inner` is the policy whose layers are routed."""

    def __init__(self, inner: Policy, routing: Routing) -> None:
        super().__init__()
        self.inner, self.routing, self.body = inner, routing, inner.body
        self.width, self.execute = inner.width, inner.execute
        self.vision_tokens, self.text_tokens = inner.vision_tokens, inner.text_tokens
        self.router = Router(
            inner.width,
            state_dims=len(inner.body.state.offset),
            action_dims=inner.body.action_spec.dims,
            layers=len(inner.layers),
            hidden=routing.hidden,
            use_state=routing.use_state,
            use_previous_action=routing.use_previous_action,
            initial_keep=routing.initial_keep,
            always_on=routing.always,
        )

    @property
    def layers(self) -> torch.nn.ModuleList:  # type: ignore[override]  # the inner one's own, not registered twice
        return self.inner.layers

    @property
    def head(self) -> ActionHead:  # type: ignore[override]
        return self.inner.head

    def prepare(self, observations: Sequence[Observation]) -> Batch:
        return self.inner.prepare(observations)

    def embed(self, batch: Batch) -> Tokens:
        return self.inner.embed(batch)

    def run_layer(self, index: int, hidden: Tensor, tokens: Tokens) -> Tensor:
        return self.inner.run_layer(index, hidden, tokens)

    def condition(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        return self.inner.condition(hidden, tokens)

    def keep_layers(self, kept: tuple[int, ...]) -> Policy:
        """The static network of these layers; the router is gone."""
        return self.inner.keep_layers(kept)

    def route(self, tokens: Tokens, batch: Batch) -> Tensor:
        """The router's logits (b, l), in single precision whatever the rest runs in: a route must not hang on rounding.

        The tokens are only read: a budget must not speak to the eyes.
        """
        with torch.autocast(tokens.hidden.device.type, enabled=False):
            return self.router(
                tokens.hidden.detach().float(), tokens.vision, tokens.text, batch.state.float(), batch.previous_action.float()
            )

    def backbone(self, tokens: Tokens, batch: Batch, *, watch: bool = False, exploration: float = 0.0) -> Pass:
        logits = self.route(tokens, batch)
        if not logits.requires_grad:  # at rest, or the router is frozen: there is nobody to tell what a skipped layer would do
            return self._skipping(tokens, logits, watch=watch)
        mode = self.routing.mode
        if mode == "straight_through" and exploration > 0:  # logistic noise, scaled: which layers run is drawn
            scaled = (logits - self.routing.threshold) / exploration
            gates = gate_sample(scaled, "gumbel", temperature=1 / exploration)
        else:
            gates = gate_sample(logits, mode, threshold=self.routing.threshold)
        return self._masked(tokens, logits, gates, watch=watch)

    def _masked(self, tokens: Tokens, logits: Tensor, gates: Gates, *, watch: bool) -> Pass:
        """Every layer is computed, so that the router learns what each would have done."""
        join = mixer(self.routing.mode)
        hidden, seen = tokens.hidden, []
        for index in range(len(self.layers)):
            out = self.run_layer(index, hidden, tokens)
            hidden = join(hidden, out, gates.hard[:, index], gates.soft[:, index])
            if watch:
                seen.append(hidden)
        return Pass(hidden, tuple(seen), gates.straight_through, {"router_logits": logits, "soft_gates": gates.soft})

    def _skipping(self, tokens: Tokens, logits: Tensor, *, watch: bool) -> Pass:
        """Only the chosen layers run. The gates are read by the host once."""
        gates = hard_gates(logits, self.routing.threshold)
        plan = gates.tolist()
        hidden, seen = tokens.hidden, []
        for index in range(len(self.layers)):
            rows = [row for row, chosen in enumerate(plan) if chosen[index]]
            if len(rows) == len(plan):
                hidden = self.run_layer(index, hidden, tokens)
            elif rows:
                at = torch.tensor(rows, device=hidden.device)
                hidden = hidden.index_copy(0, at, self.run_layer(index, hidden[at], tokens.select(at)))
            if watch:
                seen.append(hidden)
        return Pass(hidden, tuple(seen), gates, {"router_logits": logits}, tuple(map(int, plan[0])))

    def to_json(self) -> dict[str, Any]:
        return {"type": "routed", "routing": asdict(self.routing), "inner": self.inner.to_json()}


def from_json(description: dict[str, Any], tokenizer: Tokenizer) -> Routed:
    """The network that `to_json` described, with fresh weights."""
    routing = dict(description["routing"])
    routing["always"] = tuple(routing["always"])
    return Routed(rebuild(description["inner"], tokenizer), Routing(**routing))
