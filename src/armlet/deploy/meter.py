"""A reading of any clock, shared out among the parts of a decision, so that they sum to the whole.

A part owns what passes while it runs and nothing inside it does: at every moment one part is open
and charged. The parts are the floors of the policy contract (`prepare`, `embed`, `run_layer`,
`decode`, …) and, within a floor, the outermost modules that it calls. Clocks are seconds, counted
operations, whatever grows. Knows no kind of network.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from armlet.policies.contract import Backbone
from armlet.policies.routed import Routed
from armlet.robot.observation import Observation
from armlet.robot.outputs import Decision

Key = tuple[str, str]  # a floor, and the part of it: of modules their name, of a layer its number
Clock = Callable[[], float]
# What a decision is outside of every floor: Python that holds them together.
AROUND: Key = ("decide", "")
# Modules that only hold others, and are never called.
HOLDERS = (nn.ModuleDict, nn.ModuleList)


@dataclass
class Meter:
    """`own` what each part was charged, `runs` how often each began, `marks` what the clock showed
    when a module that was to be marked was called."""

    clock: Clock
    own: Counter[Key] = field(default_factory=Counter)
    runs: Counter[Key] = field(default_factory=Counter)
    marks: list[float] = field(default_factory=list)
    _open: list[Key] = field(default_factory=list)
    _since: float = 0.0

    @property
    def current(self) -> Key:
        """The part that is charged now; what is outside of all is nobody's."""
        return self._open[-1] if self._open else ("", "")

    @property
    def floor(self) -> str:
        return self.current[0]

    @property
    def inside(self) -> bool:
        """Whether a part of a floor runs, and not the floor itself."""
        return bool(self.current[1])

    def enter(self, key: Key) -> None:
        self._charge()
        self._open.append(key)
        self.runs[key] += 1

    def leave(self) -> None:
        self._charge()
        self._open.pop()

    def mark(self) -> None:
        self.marks.append(self.clock())

    def _charge(self) -> None:
        now = self.clock()  # one reading ends a part and begins the next, so that nothing is lost
        if self._open:
            self.own[self._open[-1]] += now - self._since  # type: ignore[assignment]  # of floats
        self._since = now

    def wraps(self, key: Key, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same work, charged to `key`."""

        def charged(*arguments: Any, **named: Any) -> Any:
            self.enter(key)
            try:
                return work(*arguments, **named)
            finally:
                self.leave()

        return charged


def seconds(device: torch.device) -> Clock:
    """Seconds, once the device has done what it was given."""
    if device.type != "cuda":
        return time.perf_counter

    def waited() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return waited


class Watch:
    """A policy whose decisions can be shared out. `eyes`: the parts of `embed` that are given
    pictures. `looping`: whether the passes of the loop in which it decodes can be told apart."""

    def __init__(self, policy: Backbone, example: Observation) -> None:
        """One decision about `example` is made, to find which modules its floors call."""
        self.policy = policy
        # A router leaves most floors to the network within it, where they have to be met.
        self.network: Backbone = policy.inner if isinstance(policy, Routed) else policy
        self.eyes: set[str] = set()
        self._parts: dict[nn.Module, str] = {}
        self._marked: nn.Module | None = None
        self._find(example)

    @property
    def routes(self) -> bool:
        return self.policy is not self.network

    @property
    def looping(self) -> bool:
        return self._marked is not None

    def decide(self, observation: Observation, clock: Clock) -> tuple[Decision, Meter]:
        """One decision, and what its parts were charged."""
        meter = Meter(clock)
        with self.on(meter):
            return self.decide_on(meter, observation), meter

    def decide_on(self, meter: Meter, observation: Observation) -> Decision:
        """One decision, where `on` holds."""
        meter.enter(AROUND)
        try:
            return self.policy.decide(observation)
        finally:
            meter.leave()

    @contextmanager
    def on(self, meter: Meter) -> Iterator[None]:
        """While it lasts, the policy's floors and modules are charged."""
        with ExitStack() as stack:
            self._floors(stack, meter)
            for module, name in self._parts.items():
                self._hook(stack, meter, module, name)
            if self._marked is not None:
                handle = self._marked.register_forward_pre_hook(_marking(meter))
                stack.callback(handle.remove)
            yield

    def _floors(self, stack: ExitStack, meter: Meter) -> None:
        network = self.network

        def run_layer(index: int, state: Any) -> Any:
            meter.enter(("layer", str(index)))
            try:
                return plain(index, state)
            finally:
                meter.leave()

        plain = network.run_layer
        _put(stack, network, "run_layer", run_layer)
        _put(stack, network, "prepare", meter.wraps(("prepare", ""), self._prepare(meter)))
        for name in ("embed", "decode"):
            _put(stack, network, name, meter.wraps((name, ""), getattr(network, name)))
        for name in ("run_layers", "denormalise"):
            _put(stack, self.policy, name, meter.wraps((name, ""), getattr(self.policy, name)))
        if isinstance(self.policy, Routed):
            _put(stack, self.policy, "route", meter.wraps(("router", ""), self.policy.route))

    def _prepare(self, meter: Meter) -> Callable[..., Any]:
        """`Backbone.prepare`, with the reading of words told apart."""
        network = self.network
        if type(network).prepare is not Backbone.prepare:
            return network.prepare
        words = ("prepare", "words")

        def prepare(observations: Any) -> Any:
            inputs = network.inputs  # made anew at every call, as it is without timers
            prompt = None if inputs.prompt is None else meter.wraps(words, inputs.prompt)
            told = replace(inputs, words=meter.wraps(words, inputs.words), prompt=prompt)
            reads: Any = SimpleNamespace(inputs=told, device=network.device)
            return Backbone.prepare(reads, observations)  # these two are all that it reads

        return prepare

    def _hook(self, stack: ExitStack, meter: Meter, module: nn.Module, name: str) -> None:
        entered: list[bool] = []  # a module may be called within itself

        def before(*given: Any) -> None:
            # A layer is one part, and within a part no other is told apart.
            entered.append(meter.floor in ("embed", "decode") and not meter.inside)
            if entered[-1]:
                meter.enter((meter.floor, name))

        def after(*given: Any) -> None:
            if entered.pop():
                meter.leave()

        stack.callback(module.register_forward_pre_hook(before).remove)
        stack.callback(module.register_forward_hook(after, always_call=True).remove)

    def _find(self, example: Observation) -> None:
        """Which modules are the outermost that `embed` and `decode` call, and which is called once
        a pass of the loop."""
        network = self.network
        meter = Meter(time.perf_counter)
        calls: Counter[str] = Counter()
        open_modules: list[str] = []
        outermost: dict[str, nn.Module] = {}
        modules = {name: module for name, module in network.named_modules() if name}

        def before(name: str, inputs: tuple[Any, ...]) -> None:
            if meter.floor == "decode":
                calls[name] += 1
            if meter.floor in ("embed", "decode") and not open_modules:
                outermost[name] = modules[name]
            if meter.floor == "embed" and any(map(_is_picture, inputs)):
                self.eyes.add(self._part(name))
            open_modules.append(name)

        with ExitStack() as stack:
            self._floors(stack, meter)
            for name, module in modules.items():
                begin = module.register_forward_pre_hook(
                    lambda module, inputs, name=name: before(name, inputs)
                )
                end = module.register_forward_hook(
                    lambda *given: open_modules.pop() and None, always_call=True
                )
                stack.callback(begin.remove)
                stack.callback(end.remove)
            self.decide_on(meter, example)
        self._parts = {module: self._part(name) for name, module in outermost.items()}
        loop = network.loop
        if loop is not None and loop.times > 1:
            once = [name for name, count in calls.items() if count == loop.times]
            # Some kinds make the first pass ahead of decoding, with the layers themselves.
            once += [name for name, count in calls.items() if count == loop.times - 1 > 1]
            self._marked = modules[once[0]] if once else None

    def _part(self, name: str) -> str:
        """The part that a module belongs to, by its name in the network: vision.scene of
        `vision.scene.blocks.0`, where `vision` only holds others."""
        first, _, rest = name.partition(".")
        if rest and isinstance(getattr(self.network, first), HOLDERS):
            return f"{first}.{rest.partition('.')[0]}"
        return first


def _put(stack: ExitStack, owner: nn.Module, name: str, work: Callable[..., Any]) -> None:
    """`work` for a method of this one policy, until the stack is left."""
    owner.__dict__[name] = work
    stack.callback(owner.__dict__.pop, name)


def _marking(meter: Meter) -> Callable[..., None]:
    def mark(*given: Any) -> None:
        if meter.floor == "decode":
            meter.mark()

    return mark


def _is_picture(value: Any) -> bool:
    """Whether these are pictures, (b, 3, h, w), or several stacked by channel."""
    if not isinstance(value, Tensor) or value.ndim != 4:
        return False
    return value.shape[1] % 3 == 0 and value.is_floating_point()
