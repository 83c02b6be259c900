"""Any policy with a router in front of its layers: per observation, some layers run and the rest
are skipped.

While it trains, a skipped layer is computed and its result discarded by a hard gate, so that the
gradient reaches the router; when it acts, the layer does not run. The two give the same numbers,
bit for bit (recipes.md §1, error 1). Knows no particular network.
"""

import copy
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from armlet.layers.heads import ActionHead
from armlet.layers.router import (
    GateMode,
    Gates,
    RandomRouter,
    Router,
    active_layers,
    gate_sample,
    hard_gates,
    mixer,
)
from armlet.policies.contract import Pass, Policy, Student, Tokens, rebuild
from armlet.robot.observation import Observation
from armlet.types import Batch, Trace

BUDGETS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)  # where a dial is calibrated


@dataclass(frozen=True)
class Routing(Student):
    """How a router is made."""

    hidden: int = 64
    """Width inside the router."""
    use_state: bool = True
    """It sees the robot's state."""
    use_previous_action: bool = True
    """It sees the action before."""
    initial_keep: float = 0.8
    """How likely a layer is to run before training; of a random router, always."""
    threshold: float = 0.0
    """The logit from which on a layer runs; set by calibration where there is a budget."""
    always: tuple[int, ...] = ()
    """Layers that run whatever the router says, by number from 0."""
    mode: GateMode = "straight_through"
    """How gates act while training (armlet/layers/router.py); all but the first two are for
    comparison with the paper."""
    dial: bool = False
    """The router is told the budget as well: one student for all of them."""
    budget: float | None = None
    """The share of the backbone that decisions may cost in the mean, set after each stage
    (`Routed.calibrate`); none leaves the threshold alone."""
    calibration: tuple[tuple[float, float], ...] = ()
    """(budget, threshold) pairs, as measured."""
    only: tuple[int, ...] | None = None
    """The route that all frames took when it was calibrated, if they took one."""
    chooser: Literal["learned", "random"] = "learned"
    """random is a baseline: a share `initial_keep` of the layers, chosen at random."""

    def __post_init__(self) -> None:
        if self.dial and self.budget is None:
            raise ValueError(
                "a router with a dial needs a `budget`, what it is told where nobody says otherwise"
            )

    def build(self, teacher: Policy, sample: Batch | None = None) -> Policy:
        return Routed(copy.deepcopy(teacher), self)


class Routed(Policy):
    """See the module's docstring. `inner` is the policy whose layers are routed."""

    def __init__(self, inner: Policy, routing: Routing) -> None:
        super().__init__()
        self.inner, self.routing, self.body = inner, routing, inner.body
        self.cameras = inner.cameras
        self.width, self.execute = inner.width, inner.execute
        self.kept_layers = inner.kept_layers
        self.vision_tokens, self.text_tokens = inner.vision_tokens, inner.text_tokens
        self.router = _make_router(inner, routing)

    @property
    def layers(self) -> torch.nn.ModuleList:  # type: ignore[override]  # the inner one's own, not registered twice
        return self.inner.layers

    @property
    def blocks(self) -> list[torch.nn.Module]:
        return self.inner.blocks

    @property
    def head(self) -> ActionHead:  # type: ignore[override]
        return self.inner.head

    @property
    def condition_width(self) -> int:
        return self.inner.condition_width

    def prepare(self, observations: Sequence[Observation]) -> Batch:
        batch = self.inner.prepare(observations)
        return replace(batch, budget=self.routing.budget) if self.routing.dial else batch

    def embed(self, batch: Batch) -> Tokens:
        return self.inner.embed(batch)

    def run_layer(self, index: int, hidden: Tensor, tokens: Tokens) -> Tensor:
        return self.inner.run_layer(index, hidden, tokens)

    def condition(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        return self.inner.condition(hidden, tokens)

    def signals(self, names: Collection[str], batch: Batch, tokens: Tokens, run: Pass) -> Trace:
        return self.inner.signals(names, batch, tokens, run)

    def keep_layers(self, kept: tuple[int, ...]) -> Policy:
        """The static network of these layers; the router is gone."""
        return self.inner.keep_layers(kept)

    def route(self, tokens: Tokens, batch: Batch) -> Tensor:
        """The router's logits (b, l), in single precision whatever the rest runs in: a route must
        not hang on rounding.

        The tokens are only read: a budget must not speak to the eyes.
        """
        with torch.autocast(tokens.hidden.device.type, enabled=False):
            state, action = batch.state.float(), batch.previous_action.float()
            if isinstance(self.router, RandomRouter):
                return self.router(state, action)
            return self.router(
                tokens.hidden.detach().float(),
                tokens.vision,
                tokens.text,
                state,
                action,
                batch.budget,
            )

    def backbone(
        self, tokens: Tokens, batch: Batch, *, watch: bool = False, exploration: float = 0.0
    ) -> Pass:
        logits = self.route(tokens, batch) - self._threshold(batch)
        if not logits.requires_grad:  # at rest, or the router is frozen: there is nobody to tell what a skipped layer would do
            return self._skipping(tokens, logits, watch=watch)
        mode = self.routing.mode
        if mode == "straight_through" and exploration > 0:
            # Logistic noise, scaled: which layers run is drawn.
            gates = gate_sample(logits / exploration, "gumbel", temperature=1 / exploration)
        else:
            gates = gate_sample(logits, mode)
        return self._masked(tokens, logits, gates, watch=watch)

    def _threshold(self, batch: Batch) -> float:
        """The logit from which on a layer runs: by what a decision of this batch may cost, where
        the router has a dial."""
        if not self.routing.calibration or batch.budget in (None, self.routing.budget):
            return self.routing.threshold
        budgets, thresholds = zip(*self.routing.calibration, strict=True)
        return float(np.interp(batch.budget, budgets, thresholds))

    def _masked(self, tokens: Tokens, logits: Tensor, gates: Gates, *, watch: bool) -> Pass:
        """Every layer is computed, so that the router learns what each would have done."""
        join = mixer(self.routing.mode)
        hidden, seen = tokens.hidden, []
        for index in range(len(self.layers)):
            out = self.run_layer(index, hidden, tokens)
            hidden = join(hidden, out, gates.hard[:, index], gates.soft[:, index])
            if watch:
                seen.append(hidden)
        return Pass(
            hidden,
            tuple(seen),
            gates.straight_through,
            {"router_logits": logits, "soft_gates": gates.soft},
        )

    def _skipping(self, tokens: Tokens, logits: Tensor, *, watch: bool) -> Pass:
        """Only the chosen layers run. The gates are read by the host once."""
        gates = hard_gates(logits)
        plan = gates.tolist()
        hidden, seen = tokens.hidden, []
        for index in range(len(self.layers)):
            rows = [row for row, chosen in enumerate(plan) if chosen[index]]
            if len(rows) == len(plan):
                hidden = self.run_layer(index, hidden, tokens)
            elif rows:
                at = torch.tensor(rows, device=hidden.device)
                hidden = hidden.index_copy(
                    0, at, self.run_layer(index, hidden[at], tokens.select(at))
                )
            if watch:
                seen.append(hidden)
        return Pass(hidden, tuple(seen), gates, {"router_logits": logits}, tuple(map(int, plan[0])))

    @torch.no_grad()
    def calibrate(self, batch: Batch) -> None:
        """Find, for each of `BUDGETS`, the threshold at which the layers that run on this batch
        cost that share of the backbone
        and no more, and set the threshold for this router's own budget, if it has one."""
        if self.routing.chooser == "random":
            return
        tokens, costs = self.embed(batch), self.layer_costs()
        found = []
        for budget in BUDGETS:
            told = replace(batch, budget=budget) if self.routing.dial else batch
            logits = self.route(tokens, told).cpu()
            found.append((budget, _threshold(logits, costs, budget)))
        self.routing = replace(self.routing, calibration=tuple(found))
        if self.routing.budget is not None:
            self.routing = self.at(self.routing.budget).routing
        if not self.routing.dial:
            routes = self._gates(tokens, batch).unique(dim=0)
            self.routing = replace(
                self.routing, only=active_layers(routes) if len(routes) == 1 else None
            )

    def at(self, budget: float) -> "Routed":
        """The same weights at another budget; between calibrated budgets the threshold is
        interpolated."""
        if not self.routing.calibration:
            raise ValueError(
                "this router has not been calibrated, so no threshold is known for a budget; distil it again"
            )
        budgets, thresholds = zip(*self.routing.calibration, strict=True)
        if not budgets[0] <= budget <= budgets[-1]:
            raise ValueError(
                f"a budget of {budget}: this router is calibrated from {budgets[0]} to {budgets[-1]}"
            )
        other = copy.copy(self)  # the modules are shared, the setting is its own
        threshold = float(np.interp(budget, budgets, thresholds))
        other.routing = replace(self.routing, budget=budget, threshold=threshold, only=None)
        return other

    def deployed(self) -> Policy:
        """Without its router, if that took one route on all frames that it was calibrated on:
        deciding what is always the same
        costs time and changes nothing."""
        return self if not self.routing.only else self.keep_layers(self.routing.only)

    @torch.no_grad()
    def static(self, batch: Batch) -> Policy:
        """The network without its router that always takes this router's commonest route on
        `batch`: for export."""
        routes, counts = self._gates(self.embed(batch), batch).unique(dim=0, return_counts=True)
        return self.keep_layers(active_layers(routes[counts.argmax()][None]))

    def _gates(self, tokens: Tokens, batch: Batch) -> Tensor:
        """(b, l): what runs."""
        return hard_gates(self.route(tokens, batch) - self._threshold(batch))

    def to_json(self) -> dict[str, Any]:
        return {"type": "routed", "routing": asdict(self.routing), "inner": self.inner.to_json()}


def from_json(description: dict[str, Any], tokenizer: Tokenizer) -> Routed:
    """The network that `to_json` described, with fresh weights."""
    routing = dict(description["routing"])
    routing["always"] = tuple(routing["always"])
    routing["calibration"] = tuple(map(tuple, routing.get("calibration", ())))
    routing["only"] = routing.get("only") and tuple(routing["only"])
    return Routed(rebuild(description["inner"], tokenizer), Routing(**routing))


def _make_router(inner: Policy, routing: Routing) -> Router | RandomRouter:
    state_dims, action_dims, layers = (
        len(inner.body.state.offset),
        inner.body.action_spec.dims,
        len(inner.layers),
    )
    if routing.chooser == "random":
        return RandomRouter(
            state_dims, action_dims, layers, count=round(routing.initial_keep * layers)
        )
    return Router(
        inner.width,
        state_dims=state_dims,
        action_dims=action_dims,
        layers=layers,
        hidden=routing.hidden,
        use_state=routing.use_state,
        use_previous_action=routing.use_previous_action,
        dial=routing.dial,
        initial_keep=routing.initial_keep,
        always_on=routing.always,
    )


def _threshold(logits: Tensor, costs: Tensor, budget: float) -> float:
    """The lowest logit that the budget, a share of the cost of all layers of all samples (b, l),
    can pay for; above all of
    them where it can pay for none. Equal logits run or are skipped together."""
    values, order = logits.flatten().sort(descending=True)
    spent = costs.expand_as(logits).flatten()[order].cumsum(0) / (costs.sum() * len(logits))
    affordable = spent <= budget + 1e-6
    count = int(affordable.sum())
    if count == len(values):
        return (
            float(values[-1]) - 1
        )  # with room to spare: all run, also where a logit is a little lower
    above = values[:count][values[:count] > values[count]]
    return float((above[-1] + values[count]) / 2 if len(above) else values[0] + 1)
