"""Where the milliseconds of one decision go, part by part, and how far each is from what this machine
can do.

Decisions are timed in turns with timers and without. Of those with timers the middle half (by how
long they took) is kept, and a part is its mean in these: parts of the same decisions sum to the
whole, where medians would not, and what else the machine did falls on the others. What the timers
themselves cost is the difference between the two turns. A policy that is no network of ours to look
into (behind a socket, exported) has its whole alone.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from armlet.deploy.meter import AROUND, Key, Meter, Watch, seconds
from armlet.deploy.operations import Counted, Work, count
from armlet.machine import Machine
from armlet.policies.contract import Backbone, Policy
from armlet.robot.observation import Observation

VERSION = 1
TURN = 10  # decisions with timers, then as many without
WARM_UP = 5
FEWEST = 4  # decisions
COUNTED = 8  # moments at which a routed policy's operations are counted, which is slow

Kind = Literal["pictures", "words", "eyes", "embed", "router", "layer", "decode", "out", "overhead"]
KINDS: dict[Kind, str] = {
    "pictures": "pictures and state, fitted and normalised",
    "words": "words",
    "eyes": "eyes",
    "embed": "the rest of what layers read",
    "router": "router",
    "layer": "layers",
    "decode": "decoding",
    "out": "the robot's own numbers",
    "overhead": "Python between them",
}


@dataclass(frozen=True)
class Part:
    """One part of a decision, in the mean: `ms` its own milliseconds, `runs` how often it ran,
    `flops` its multiplications and additions, `fetched` bytes of weights read, `limit_ms` the least
    that its products or its weights take on this machine. `layer`: the number, in the network as it
    is, of the layer that it is or belongs to; layers have a part while the network reads and,
    where they run again, one while it decodes."""

    name: str
    kind: Kind
    ms: float
    runs: float
    flops: float
    fetched: float
    limit_ms: float
    layer: int | None = None

    @property
    def of_limit(self) -> float | None:
        """The share of its time that this machine could not do without; None of what multiplies
        nothing."""
        return self.limit_ms / self.ms if self.limit_ms and self.ms else None


@dataclass(frozen=True)
class Steps:
    """The loop in which a policy decodes: how many times, what each of them is, and its `ms` (None:
    the passes could not be told apart)."""

    what: str
    times: int
    ms: float | None


@dataclass(frozen=True)
class Profile:
    """`parts` sum to `timed_ms`, a decision with timers; `whole_ms` is one without, `p50_ms` and
    `p95_ms` its percentiles. No parts: nobody can look inside."""

    policy: str  # where it is
    kind: str
    fingerprint: str
    layers: int
    chunk: int
    execute: int
    hz: float
    moments: str  # what was decided about, in words
    decisions: int
    whole_ms: float
    p50_ms: float
    p95_ms: float
    timed_ms: float
    parts: tuple[Part, ...]
    steps: Steps | None
    threads: int
    device: str
    machine: dict[str, Any]
    version: int = VERSION

    @property
    def residual_ms(self) -> float:
        """What the parts leave of a decision with timers: 0 but for rounding."""
        return self.timed_ms - sum(part.ms for part in self.parts)

    @property
    def timers_ms(self) -> float:
        """What timers add to a decision."""
        return self.timed_ms - self.whole_ms

    def of_kind(self, *kinds: Kind) -> float:
        """Milliseconds of all parts of these kinds."""
        return sum(part.ms for part in self.parts if part.kind in kinds)

    def to_json(self) -> dict[str, Any]:
        """As it stands in profile.json."""
        return asdict(self)


@dataclass(frozen=True)
class Setting:
    """How a policy is profiled: `place` where it is, `moments` what it decides about in words."""

    place: str
    fingerprint: str
    moments: str
    calls: int
    threads: int


def profile(policy: Policy, observations: Sequence[Observation], setting: Setting) -> Profile:
    """Measured on these observations, in turn; as many threads as torch has now. Raises ValueError for
    too few calls."""
    if setting.calls < FEWEST:
        raise ValueError(
            f"--calls {setting.calls}: expected at least {FEWEST}, of which the middle half counts"
        )
    if not isinstance(policy, Backbone):
        return _whole(policy, observations, setting)
    watch = Watch(policy, observations[0])
    clock = seconds(policy.device)
    timed: list[Meter] = []
    plain: list[float] = []
    for turn in _turns(observations, setting.calls):
        plain += _plain(policy, turn)
        for observation in turn:
            timed.append(watch.decide(observation, clock)[1])
    kept = _middle(timed, [sum(meter.own.values()) for meter in timed])
    machine = Machine.measured()
    # A router runs other layers at other moments.
    looked = observations[:COUNTED] if watch.routes else observations[:1]
    parts = _parts(watch, kept, count(watch, looked), machine)
    whole = float(np.mean(_middle(plain, plain)))
    return _described(
        policy,
        setting,
        plain,
        whole_ms=whole,
        timed_ms=1e3 * float(np.mean([sum(meter.own.values()) for meter in kept])),
        parts=parts,
        steps=_steps(policy, kept),
        device=str(policy.device),
        machine=_machine(machine),
    )


def _whole(policy: Policy, observations: Sequence[Observation], setting: Setting) -> Profile:
    """Of a policy that nobody can look into."""
    plain: list[float] = []
    for turn in _turns(observations, setting.calls):
        plain += _plain(policy, turn)
    whole = float(np.mean(_middle(plain, plain)))
    return _described(
        policy,
        setting,
        plain,
        whole_ms=whole,
        timed_ms=whole,
        parts=(),
        steps=None,
        device=policy.kind,
        machine=_machine(Machine.measured()),
    )


def _described(
    policy: Policy, setting: Setting, plain: list[float], *, whole_ms: float, **found: Any
) -> Profile:
    network = policy if isinstance(policy, Backbone) else None
    p50, p95 = np.percentile(plain, (50, 95))
    return Profile(
        policy=setting.place,
        kind=type(policy).__name__,
        fingerprint=setting.fingerprint,
        layers=0 if network is None else len(network.layers),
        chunk=getattr(policy, "chunk", policy.execute),
        execute=policy.execute,
        hz=policy.robot.action.control_hz,
        moments=setting.moments,
        decisions=len(plain),
        whole_ms=whole_ms,
        p50_ms=float(p50),
        p95_ms=float(p95),
        threads=setting.threads,
        **found,
    )


def _machine(machine: Machine) -> dict[str, Any]:
    from armlet.evaluation.measure import environment  # the same words as a report's

    return {
        **environment(),
        "gflops": machine.flops / 1e9,
        "gigabytes_per_second": machine.bandwidth / 1e9,
    }


# Timing


def _turns(observations: Sequence[Observation], calls: int) -> list[list[Observation]]:
    """So many observations, in turn, in portions."""
    every = [observations[index % len(observations)] for index in range(calls)]
    return [every[first : first + TURN] for first in range(0, calls, TURN)]


def _plain(policy: Policy, observations: Sequence[Observation]) -> list[float]:
    """Milliseconds of each decision, without timers inside, after a few that are not counted."""
    # What the timers left in caches is not this turn's.
    for observation in observations[:WARM_UP]:
        policy.decide(observation)
    found = []
    for observation in observations:
        begun = time.perf_counter()
        policy.decide(observation)  # ends in numpy: the device has finished
        found.append(1e3 * (time.perf_counter() - begun))
    return found


def _middle(values: Sequence[Any], lengths: Sequence[float]) -> list[Any]:
    """The middle half of some values, by their lengths."""
    order = np.argsort(lengths, kind="stable")
    quarter = len(order) // 4
    return [values[index] for index in order[quarter : len(order) - quarter]]


# What the parts are


ORDER = ("prepare", "embed", "run_layers", "router", "layer", "decode", "denormalise", "decide")


def _parts(
    watch: Watch, meters: list[Meter], counted: Counted, machine: Machine
) -> tuple[Part, ...]:
    """The mean part, in the order of a decision."""
    own: Counter[Key] = Counter()
    runs: Counter[Key] = Counter()
    for meter in meters:
        own.update(meter.own)
        runs.update(meter.runs)
    for index in range(len(watch.policy.layers)):
        own.setdefault(("layer", str(index)), 0)  # a layer that never ran is told, too
    device = str(watch.policy.device)
    found = []
    for key in sorted(own, key=lambda key: _place(watch, key)):
        kind, name, layer = _named(watch, key)
        work = counted.works.get(key, Work())
        often = runs[key] / len(meters)
        # Counted were other decisions than timed: by the run it is the same.
        share = often / max(counted.runs[key], 1)
        found.append(
            Part(
                name=name,
                kind=kind,
                ms=1e3 * own[key] / len(meters),
                runs=often,
                flops=work.flops * share,
                fetched=work.fetched * share,
                limit_ms=1e3 * work.limit(machine, device=device) * share,
                layer=layer,
            )
        )
    return tuple(found)


def _place(watch: Watch, key: Key) -> tuple[int, bool, int, str]:
    """Where a part stands: by kind, layers by their number; what is left of a floor comes behind its
    parts."""
    kind, name, layer = _named(watch, key)
    return list(KINDS).index(kind), not key[1], -1 if layer is None else layer, name


def _named(watch: Watch, key: Key) -> tuple[Kind, str, int | None]:
    """The kind of a part, its name for people, and its layer."""
    floor, part = key
    numbers = watch.policy.layer_numbers
    known: dict[Key, tuple[Kind, str]] = {
        ("prepare", ""): ("pictures", "pictures and state"),
        ("prepare", "words"): ("words", "tokenizer"),
        ("embed", ""): ("embed", "embed, the rest"),
        ("run_layers", ""): ("overhead", "between layers"),
        ("router", ""): ("router", "router"),
        ("decode", ""): ("decode", "decode, the rest"),
        ("denormalise", ""): ("out", "un-normalising"),
        AROUND: ("overhead", "Python, the rest"),
    }
    if key in known:
        kind, name = known[key]
        return kind, name, None
    if floor == "layer":
        return "layer", f"layer {numbers[int(part)]}", int(part)
    if floor == "embed":
        return ("eyes" if part in watch.eyes else "embed"), part, None
    if part.startswith("layers."):
        layer = int(part.removeprefix("layers."))
        return "decode", f"layer {numbers[layer]}, decoding", layer
    return "decode", part, None


def _steps(policy: Backbone, meters: Sequence[Meter]) -> Steps | None:
    loop = policy.loop
    if loop is None:
        return None
    periods = []
    for meter in meters:
        if len(meter.marks) > 1:
            periods.append((meter.marks[-1] - meter.marks[0]) / (len(meter.marks) - 1))
    return Steps(loop.what, loop.times, 1e3 * float(np.mean(periods)) if periods else None)
