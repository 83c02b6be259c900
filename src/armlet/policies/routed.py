"""Any policy with a router in front of its layers: per observation, some layers run and the rest
are skipped.

While it trains, a skipped layer is computed and its result discarded by a hard gate, so that the
gradient reaches the router; when it acts, the layer does not run. The two give the same numbers,
bit for bit (recipes.md §1, error 1). Knows no particular network.
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from armlet import limits
from armlet.layers.router import (
    GateMode,
    Gates,
    Mixer,
    PublishedRouter,
    RandomRouter,
    Router,
    active_layers,
    gate_sample,
    hard_gates,
    mixer,
)
from armlet.limits import ABOVE_0
from armlet.policies.building import rebuild
from armlet.policies.contract import Backbone, Pass, State, Student, left_to, tuples
from armlet.policies.students import Fresh
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
    chooser: Literal["learned", "published", "random"] = "learned"
    """published: the router of the public code, which sees pictures and words alone (give it
    `use_state` and `use_previous_action` false; `hidden` was 512). random is a baseline: a share
    `initial_keep` of the layers, chosen at random."""

    def __post_init__(self) -> None:
        limits.positive(self, "hidden")
        limits.check(self, initial_keep=(ABOVE_0, 1), budget=(ABOVE_0, 1))
        if self.dial and self.budget is None:
            raise ValueError(
                "a router with a dial needs a `budget`, what it is told where nobody says otherwise"
            )
        if self.chooser == "published":
            read = [
                each for each in ("use_state", "use_previous_action", "dial") if getattr(self, each)
            ]
            if read:
                raise ValueError(
                    f"chooser is published and {', '.join(read)} true: the router of the public "
                    "code sees pictures and words, and nothing else; set them false, or let "
                    "chooser be learned"
                )

    def from_nothing(self) -> Student:
        return Fresh(self)  # a router chooses among whatever layers there are

    def build(self, teacher: Backbone, sample: Batch | None = None) -> Backbone:
        return Routed(copy.deepcopy(teacher), self)  # type: ignore[abstract]  # mypy sees no `left_to`


@dataclass(frozen=True)
class Calibration:
    """What a router has measured of itself: `threshold`, the logit from which on a layer runs;
    `calibration`, (budget, threshold) pairs; `only`, the route that all frames took when it was
    calibrated, if they took one."""

    threshold: float = 0.0
    calibration: tuple[tuple[float, float], ...] = ()
    only: tuple[int, ...] | None = None

    def at(self, budget: float) -> float:
        """The threshold at a budget, interpolated between those that were measured."""
        budgets, thresholds = zip(*self.calibration, strict=True)
        return float(np.interp(budget, budgets, thresholds))


@left_to(
    "inner",
    "body",
    "cameras",
    "chunk",
    "width",
    "text_tokens",
    "vision_tokens",
    "condition_width",
    "kept_layers",
    "of_layers",
    "execute",
    "history",
    "ensemble",
    "head",
    "layers",
    "blocks",
    "view",
    "inputs",
    "outputs",
    "embed",
    "run_layer",
    "skip_layer",
    "features",
    "decode",
    "decode_guided",
    "why_unguided",
    "loss",
    "classes",
    "signals",
    "keep_layers",
    "layer_costs",
    "loop",
)
class Routed(Backbone):
    """See the module's docstring. `inner` is the policy whose layers are routed; cut to some of
    them (`keep_layers`) it is the static network, and the router is gone."""

    told: str | None = None  # the route that it is told to take (`along`); None: its router's

    def __init__(
        self, inner: Backbone, routing: Routing, measured: Calibration | None = None
    ) -> None:
        super().__init__()
        self.inner = inner
        self.routing = routing
        self.measured = measured or Calibration()
        self.router = _make_router(inner, routing)

    @property
    def kept_weights(self) -> frozenset[str]:
        return frozenset(f"inner.{name}" for name in self.inner.kept_weights)

    @property
    def pretrained_weights(self) -> frozenset[str]:
        return frozenset(f"inner.{name}" for name in self.inner.pretrained_weights)

    def prepare(self, observations: Sequence[Observation]) -> Batch:
        batch = self.inner.prepare(observations)
        return replace(batch, budget=self.routing.budget) if self.routing.dial else batch

    def route(self, start: State, batch: Batch) -> Tensor:
        """The router's logits (b, l), in single precision whatever the rest runs in: a route must
        not hang on rounding.

        What it reads is detached, so that the budget's loss cannot train the vision tower.
        """
        seen = self.features(start)
        with torch.autocast(seen.hidden.device.type, enabled=False):
            state = batch.present.float()
            action = batch.previous_action.float()
            if isinstance(self.router, RandomRouter):
                return self.router(state, action)
            tokens = seen.hidden.detach().float()
            if isinstance(self.router, PublishedRouter):
                return self.router(tokens, seen.vision, seen.text)
            return self.router(tokens, seen.vision, seen.text, state, action, batch.budget)

    def run_layers(
        self, state: State, batch: Batch, *, watch: bool = False, exploration: float = 0.0
    ) -> Pass:
        if self.told is not None:
            ran = torch.tensor([float(each) for each in self.told], device=self.device)
            return self._running(state, ran.expand(len(batch), -1), {}, watch=watch)
        logits = self.route(state, batch) - self._threshold(batch)
        # At rest, or with a frozen router, there is nobody to tell what a skipped layer would do.
        if not logits.requires_grad:
            return self._skipping(state, logits, watch=watch)
        mode = self.routing.mode
        if mode == "straight_through" and exploration > 0:
            # Logistic noise, scaled: which layers run is drawn.
            # σ((logits / e + noise) · e) = σ(logits + e · noise): noise alone grows with e.
            gates = gate_sample(logits / exploration, "gumbel", temperature=1 / exploration)
        else:
            gates = gate_sample(logits, mode)
        return self._masked(state, logits, gates, watch=watch)

    def _threshold(self, batch: Batch) -> float:
        """The logit from which on a layer runs: by what a decision of this batch may cost, where
        the router has a dial."""
        asked = batch.budget
        # Its own budget has a threshold that was set for it; interpolating would round.
        if asked is None or asked == self.routing.budget or not self.measured.calibration:
            return self.measured.threshold
        return self.measured.at(asked)

    def _masked(self, start: State, logits: Tensor, gates: Gates, *, watch: bool) -> Pass:
        """Every layer is computed, so that the router learns what each would have done."""
        mix = mixer(self.routing.mode)
        state = start
        seen = []
        for index in range(len(self.layers)):
            join = partial(_mixed, mix, gates.hard[:, index], gates.soft[:, index])
            ran = self.through(index, state)
            state = self.skip_layer(index, state).blend(ran, join)  # before: skipped, after: ran
            if watch:
                seen.append(state)
        extras = {"router_logits": logits, "soft_gates": gates.soft}
        return Pass(start, state, tuple(seen), gates.straight_through, extras)

    def _skipping(self, start: State, logits: Tensor, *, watch: bool) -> Pass:
        """Only the layers run that the router chose."""
        extras = {"router_logits": logits}
        return self._running(start, hard_gates(logits), extras, watch=watch)

    def _running(self, start: State, gates: Tensor, extras: Trace, *, watch: bool) -> Pass:
        """Only the layers run that `gates` (b, l) say, which the host reads once."""
        plan = gates.tolist()
        state = start
        seen = []
        for index in range(len(self.layers)):
            rows = [row for row, chosen in enumerate(plan) if chosen[index]]
            if len(rows) == len(plan):  # nothing to select and put back
                state = self.through(index, state)
            else:
                skipped = self.skip_layer(index, state)
                if rows:
                    at = torch.tensor(rows, device=gates.device)
                    skipped = skipped.put(at, self.through(index, state.select(at)))
                state = skipped
            if watch:
                seen.append(state)
        first = tuple(map(int, plan[0]))  # for a single observation, the route that it took
        return Pass(start, state, tuple(seen), gates, extras, first)

    @torch.no_grad()
    def calibrate(self, batch: Batch) -> None:
        """Find, for each of `BUDGETS`, the threshold at which the layers that run on this batch
        cost that share of the backbone and no more, and set the threshold for this router's own
        budget, if it has one."""
        if self.routing.chooser == "random":  # its logits are 1 and −1, in a fixed number
            return
        start = self.embed(batch)
        costs = self.layer_costs()
        found = []
        for budget in BUDGETS:
            # A router with a dial answers each budget otherwise, and is asked anew.
            told = replace(batch, budget=budget) if self.routing.dial else batch
            logits = self.route(start, told).cpu()  # sorted there, beside the costs
            found.append((budget, _threshold(logits, costs, budget)))
        self.measured = replace(self.measured, calibration=tuple(found))
        if self.routing.budget is not None:
            self.measured = self.at(self.routing.budget).measured
        if not self.routing.dial:  # with one, another budget may take another route
            routes = self.gates(start, batch).unique(dim=0)
            only = active_layers(routes) if len(routes) == 1 else None
            self.measured = replace(self.measured, only=only)

    def at(self, budget: float) -> Self:
        """The same weights at another budget; between calibrated budgets the threshold is
        interpolated."""
        if not self.measured.calibration:
            raise ValueError(
                "this router has not been calibrated, so no threshold is known for a budget; "
                "distil it again"
            )
        lowest = self.measured.calibration[0][0]
        highest = self.measured.calibration[-1][0]
        if not lowest <= budget <= highest:
            raise ValueError(
                f"a budget of {budget}: this router is calibrated from {lowest} to {highest}"
            )
        other = copy.copy(self)  # the modules are shared, the setting is its own
        other.routing = replace(self.routing, budget=budget)
        other.measured = replace(self.measured, threshold=self.measured.at(budget), only=None)
        return other

    def along(self, route: str) -> Self:
        """The same weights taking one route, whatever the router would say, which is not asked:
        `route` has a character a layer, 1 where it runs. Raises ValueError for another text."""
        if len(route) != len(self.layers) or not set(route) <= {"0", "1"}:
            raise ValueError(
                f"the route is {route!r}, expected {len(self.layers)} characters, 1 where a layer "
                "runs and 0 where it does not"
            )
        other = copy.copy(self)  # the modules are shared, the setting is its own
        other.told = route
        return other

    def deployed(self) -> Backbone:
        """Without its router, if that took one route on all frames that it was calibrated on:
        deciding what is always the same costs time and changes nothing."""
        return self if not self.measured.only else self.keep_layers(self.measured.only)

    @torch.no_grad()
    def static(self, batch: Batch) -> Backbone:
        """The network without its router that always takes this router's commonest route on
        `batch`: for export."""
        routes, counts = self.gates(self.embed(batch), batch).unique(dim=0, return_counts=True)
        return self.keep_layers(active_layers(routes[counts.argmax()][None]))

    @torch.inference_mode()
    def layers_for(self, observation: Observation) -> tuple[int, ...]:
        if self.told is not None:
            return tuple(map(int, self.told))
        batch = self.prepare([observation])
        return tuple(map(int, self.gates(self.embed(batch), batch)[0].tolist()))

    def gates(self, start: State, batch: Batch) -> Tensor:
        """(b, l): what runs."""
        return hard_gates(self.route(start, batch) - self._threshold(batch))

    def to_json(self) -> dict[str, Any]:
        routing = {**asdict(self.routing), **asdict(self.measured)}
        return {"type": "routed", "routing": routing, "inner": self.inner.to_json()}


def from_json(description: dict[str, Any], tokenizer: Tokenizer) -> Routed:
    """The network that `to_json` described, with fresh weights."""
    routing = tuples(description["routing"])
    only = routing.pop("only", None)
    measured = Calibration(
        threshold=routing.pop("threshold"),
        calibration=tuple(map(tuple, routing.pop("calibration", ()))),
        only=only or None,
    )
    limits.typed(measured)
    asked = Routing(**routing)
    limits.typed(asked)
    inner = rebuild(description["inner"], tokenizer)
    return Routed(inner, asked, measured)  # type: ignore[abstract]  # as above


def _mixed(mix: Mixer, hard: Tensor, soft: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """A tensor of a state as it was before a layer and after it, as the gates (b,) say."""
    return mix(before, after, hard, soft)


def _make_router(inner: Backbone, routing: Routing) -> Router | PublishedRouter | RandomRouter:
    state_dims = len(inner.body.state.offset)
    action_dims = inner.body.action_spec.dims
    layers = len(inner.layers)
    if routing.chooser == "random":
        return RandomRouter(
            state_dims, action_dims, layers, count=round(routing.initial_keep * layers)
        )
    if routing.chooser == "published":
        return PublishedRouter(
            inner.width,
            layers,
            hidden=routing.hidden,
            initial_keep=routing.initial_keep,
            always_on=routing.always,
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
    can pay for; above all of them where it can pay for none. Equal logits run or are skipped
    together."""
    # The layers of all samples together, those first that the router wants most.
    values, order = logits.flatten().sort(descending=True)
    spent = costs.expand_as(logits).flatten()[order].cumsum(0) / (costs.sum() * len(logits))
    affordable = spent <= budget + 1e-6  # a budget of exactly 1 pays for all, however it rounds
    count = int(affordable.sum())
    if count == len(values):
        # With room to spare: all run, also where a logit is a little lower on other frames.
        return float(values[-1]) - 1
    # Between two logits, so that rounding moves none of them across; ties with the first that is
    # too dear stay out.
    above = values[:count][values[:count] > values[count]]
    return float((above[-1] + values[count]) / 2 if len(above) else values[0] + 1)
