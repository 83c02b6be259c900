"""What would bring a policy's decisions below a time, before anybody trains: layers, denoising steps,
runtime, precision, and how much of a chunk is carried out.

The model is a line in the number of layers and of steps,

    ms = fixed + layers · layer + steps · (step + layers · step_layer)

whose four numbers are a profile's: `fixed` what happens once whatever is cut, `layer` the mean
layer while the network reads, `step` and `step_layer` of one pass of the loop in which it decodes.
Of another runtime the whole policy and a cut of it are timed, exported and untrained: where these
two lie gives one factor for what depends on layers, and one for the rest. No factor stands in the
code. How well the line holds is measured as well: an untrained cut costs no training, so it is
timed in PyTorch and compared.

Time follows from shapes. What a choice does to success, training shows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from armlet.deploy.profiling import Profile
from armlet.evaluation.measure import latency
from armlet.policies.contract import Backbone, Policy
from armlet.policies.routed import Routed, Routing
from armlet.robot.observation import Observation

VERSION = 1
EAGER = "eager"
# Shares of the layers, and of the steps, that are looked at beside the least of both.
SHARES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125)
CUT = 4  # an untrained cut has one layer of so many


@dataclass(frozen=True)
class Way:
    """How long decisions take in one runtime, in milliseconds; see the module's docstring.
    `router`: what choosing among layers costs at every decision."""

    runtime: str
    precision: str
    fixed: float
    layer: float
    step: float
    step_layer: float
    router: float = 0.0

    def ms(self, layers: float, steps: int) -> float:
        """Of a decision by so many layers in so many steps (0: it does not loop)."""
        passes = steps * (self.step + layers * self.step_layer)
        return self.fixed + layers * self.layer + passes

    def most_layers(self, target: float, steps: int, layers: int) -> int:
        """The most of `layers` with which a decision takes no longer than `target`; 0 where one is
        too many."""
        each = self.layer + steps * self.step_layer
        left = target - self.ms(0, steps)
        if left < 0:
            return 0
        return layers if each <= 0 else min(layers, math.floor(left / each + 1e-9))

    def scaled(self, runtime: str, precision: str, *, layers: float, rest: float) -> "Way":
        """The same in a runtime in which what depends on layers takes so many times as long, and
        the rest so many."""
        return Way(
            runtime,
            precision,
            fixed=self.fixed * rest,
            layer=self.layer * layers,
            step=self.step * rest,
            step_layer=self.step_layer * layers,
        )


@dataclass(frozen=True)
class Choice:
    """One thing that could be made: `ms` predicted for a decision, `ms_per_second` of motion where
    `execute` actions of a chunk are carried out. `commands` make it."""

    layers: int
    steps: int
    runtime: str
    precision: str
    routed: bool
    execute: int
    ms: float
    ms_per_second: float
    reaches: bool
    commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """How well the line held for a cut that nobody trained: predicted and measured milliseconds."""

    layers: int
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Of the prediction, as a share of what was measured."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class Plan:
    """`least_ms`: below it no choice gets."""

    policy: str
    fingerprint: str
    target_ms: float
    layers: int
    steps: int
    loop: str | None
    chunk: int
    execute: int
    hz: float
    moments: str
    threads: int
    device: str
    machine: dict[str, Any]
    ways: tuple[Way, ...]
    trial: Trial
    choices: tuple[Choice, ...]
    least_ms: float
    version: int = VERSION

    def way(self, runtime: str, precision: str) -> Way:
        """Raises KeyError for one that was not measured."""
        for way in self.ways:
            if (way.runtime, way.precision) == (runtime, precision):
                return way
        raise KeyError(f"{runtime} {precision}")

    def to_json(self) -> dict[str, Any]:
        """As it stands in plan.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> "Plan":
        """The inverse of `to_json`. Raises KeyError or TypeError for what it did not write."""
        fields = dict(said)
        fields.pop("checked", None)
        fields["ways"] = tuple(Way(**way) for way in fields["ways"])
        choices = []
        for choice in fields["choices"]:
            choices.append(Choice(**{**choice, "commands": tuple(choice["commands"])}))
        fields["choices"] = tuple(choices)
        fields["trial"] = Trial(**fields["trial"])
        return cls(**fields)


def eager_way(profile: Profile, *, router: float = 0.0) -> Way:
    """The line that a profile's parts give. What timers add is taken out in proportion."""
    honest = profile.whole_ms / profile.timed_ms
    reading = 0.0
    looping = 0.0
    for part in profile.parts:
        if part.kind == "layer":
            reading += part.ms
        elif part.kind == "decode" and part.layer is not None:
            looping += part.ms
    depth = profile.layers
    rest = profile.timed_ms - reading - looping
    step = 0.0
    steps = profile.steps
    if steps is not None and steps.ms is not None and steps.times > 1:
        # What of a pass is no layer's; of the whole loop it leaves the rest.
        step = max(0.0, steps.ms - looping / steps.times)
        rest -= step * steps.times
    passes = 1 if steps is None else steps.times
    return Way(
        EAGER,
        "fp32",
        fixed=honest * rest,
        layer=honest * reading / depth,
        step=honest * step,
        step_layer=honest * looping / depth / passes,
        router=honest * router,
    )


def other_way(
    eager: Way,
    runtime: str,
    precision: str,
    *,
    whole: tuple[int, float],
    cut: tuple[int, float],
    steps: int,
) -> Way:
    """The line of another runtime, from the milliseconds of the policy itself and of a cut of it:
    (layers, ms) each."""
    (depth, slow), (few, fast) = whole, cut
    slope = max(0.0, (slow - fast) / (depth - few))
    own_slope = eager.layer + steps * eager.step_layer
    own_rest = eager.ms(0, steps)
    rest = max(0.0, slow - depth * slope)
    return eager.scaled(
        runtime,
        precision,
        layers=slope / own_slope if own_slope else 0.0,
        rest=rest / own_rest if own_rest else 0.0,
    )


def few_layers(depth: int) -> int:
    """Of the cut that is timed."""
    return max(1, depth // CUT)


def cut_of(policy: Backbone) -> Backbone:
    """The policy's first layers, untrained: of a student's shape, and so of its time."""
    return policy.keep_layers(tuple(range(few_layers(len(policy.layers))))).eval()


@torch.inference_mode()
def router_ms(
    policy: Backbone, observations: Sequence[Observation], clock: Callable[[], float]
) -> float:
    """The median milliseconds of a router's choice among this policy's layers."""
    routed = Routed(policy, Routing()).eval()  # type: ignore[abstract]  # mypy sees no `left_to`
    times = []
    for observation in observations:
        batch = policy.prepare([observation])
        start = policy.embed(batch)
        begun = clock()
        routed.route(start, batch).tolist()
        times.append(1e3 * (clock() - begun))
    return float(np.median(times))


def tried(
    policy: Backbone, cut: Policy, way: Way, observations: Sequence[Observation], *, calls: int
) -> Trial:
    """The cut beside the policy itself, in turn; predicted is scaled by how fast the policy is now
    against then."""
    times = latency({"policy": policy, "cut": cut}, observations, calls=calls)
    steps = 0 if policy.loop is None else policy.loop.times
    now = times["policy"]["p50"] / way.ms(len(policy.layers), steps)
    layers = few_layers(len(policy.layers))
    return Trial(layers, now * way.ms(layers, steps), times["cut"]["p50"])


def enumerate_choices(
    ways: Sequence[Way], profile: Profile, *, target: float, can_step: bool
) -> tuple[Choice, ...]:
    """Every combination that is looked at, and in every runtime the most layers that reach the
    target; the fewest changes first."""
    depth = profile.layers
    own_steps = 0 if profile.steps is None else profile.steps.times
    found: dict[tuple[Any, ...], Choice] = {}
    for way in ways:
        for steps in _some(own_steps) if can_step else (own_steps,):
            numbers = {*_some(depth), way.most_layers(target, steps, depth)} - {0}
            for layers in sorted(numbers, reverse=True):
                for routed in (False, True) if way.router and layers < depth else (False,):
                    extra = way.router if routed else 0.0
                    ms = way.ms(layers, steps) + extra
                    for execute in sorted({profile.execute, profile.chunk}):
                        choice = Choice(
                            layers=layers,
                            steps=steps,
                            runtime=way.runtime,
                            precision=way.precision,
                            routed=routed,
                            execute=execute,
                            ms=ms,
                            ms_per_second=ms * profile.hz / execute,
                            reaches=ms <= target,
                        )
                        key = (way.runtime, way.precision, steps, layers, routed, execute)
                        found[key] = choice
    return tuple(found.values())


def _some(number: int) -> tuple[int, ...]:
    """A number and smaller ones, the largest first."""
    if not number:
        return (0,)
    found = {max(1, round(share * number)) for share in SHARES}
    return tuple(sorted({*found, 1}, reverse=True))


def best_of(plan: Plan) -> list[Choice]:
    """What to look at first: in every runtime, for every number of steps, the most layers that
    reach the target, with `execute` as it is."""
    best: dict[tuple[Any, ...], Choice] = {}
    for choice in plan.choices:
        if not choice.reaches or choice.execute != plan.execute:
            continue
        key = (choice.runtime, choice.precision, choice.steps, choice.routed)
        if key not in best or choice.layers > best[key].layers:
            best[key] = choice
    return sorted(best.values(), key=lambda each: (-each.layers, -each.steps, each.ms))


def with_commands(plan: Plan, make: Callable[[Choice], tuple[str, ...]]) -> Plan:
    """The plan with what makes each choice."""
    choices = tuple(replace(choice, commands=make(choice)) for choice in plan.choices)
    return replace(plan, choices=choices)


def least(ways: Sequence[Way], steps: int, *, can_step: bool) -> float:
    """The milliseconds below which no choice gets: one layer, and one pass where passes can be
    chosen."""
    fewest = min(steps, 1) if can_step else steps
    return min(way.ms(1, fewest) for way in ways)
