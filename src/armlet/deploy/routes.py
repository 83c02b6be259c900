"""A policy whose router decides for every observation, as a function of plain tensors that answers
with everything that any route needs: what runs, the state before the first layer, and what each
layer makes of the state that enters it. `deploy/segments.py` cuts that between the layers.

Knows no runtime and no file.
"""

import dataclasses
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from armlet.deploy.graph import GraphError, Moment, exported
from armlet.deploy.segments import Boundaries
from armlet.policies.contract import Backbone, Pass, State
from armlet.policies.routed import Routed
from armlet.robot.inputs import Arrays
from armlet.robot.runtimes import STATE
from armlet.types import Batch


class _Unrouted(Pass):
    """A pass whose actions must hang on its states alone, whatever the route was."""

    def gated(self, index: int, before: Tensor, after: Tensor) -> Tensor:
        raise GraphError(_AGAIN)

    def skips(self, index: int) -> bool:
        raise GraphError(_AGAIN)


_AGAIN = (
    "its layers run again while it decodes, so that its actions hang on the route in more ways than "
    "a graph can skip; export it with `--route fixed`"
)


class Every(nn.Module):
    """A routed policy as a function of the tensors of one moment (`robot.runtimes.feeds`): its gates
    (1, l) and, as if all layers ran, its actions and the states between (`Boundaries.outputs`)."""

    def __init__(self, policy: Routed, moment: Moment, boundaries: Boundaries) -> None:
        super().__init__()
        self.policy = policy
        self.moment = moment
        self.boundaries = boundaries

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        policy = self.policy
        inner = policy.inner
        between = self.boundaries
        batch = _told(policy, self.moment.batch(tensors))
        start: State = inner.embed(batch)
        found = leaves(start)
        states = [found[name] for name in between.start]
        state = start
        for index in range(between.layers):
            after = inner.run_layer(index, state)
            states += [leaves(after)[name] for name in between.changing]
            if between.last:
                short = leaves(inner.run_last(index, state))
                states += [short[name] for name in between.changing]
            state = after
        ran = torch.ones(1, between.layers)
        run = _Unrouted(start, state, (), ran, {}, (1,) * between.layers)
        actions = inner.decode(run, batch).float()
        return (policy.gates(start, batch), actions, *states)


def _told(policy: Routed, batch: Batch) -> Batch:
    """As `Routed.prepare` does."""
    return replace(batch, budget=policy.routing.budget) if policy.routing.dial else batch


def leaves(state: State) -> dict[str, Tensor]:
    """A state's tensors by name: `hidden`, and `rotary.0` of a tuple."""
    found: dict[str, Tensor] = {}
    for field in dataclasses.fields(state):
        _collect(field.name, getattr(state, field.name), found)
    return found


def _collect(name: str, value: Any, found: dict[str, Tensor]) -> None:
    if isinstance(value, tuple):
        for index, part in enumerate(value):
            _collect(f"{name}.{index}", part, found)
    elif value is not None:
        found[name] = value


@torch.no_grad()
def boundaries(policy: Routed, moment: Moment) -> Boundaries:
    """What lies between the layers of a policy. Raises GraphError where a layer that is skipped
    leaves something else than the state that it met: then routes differ in more than in layers."""
    inner = policy.inner
    if type(inner).skip_layer is not Backbone.skip_layer:
        raise GraphError(
            f"{inner.kind}: a layer of it that is skipped changes the state all the same, and no "
            "graph of routes is made of that; export it with `--route fixed`"
        )
    start: State = inner.embed(moment.batch(moment.example))
    before = leaves(start)
    after = leaves(inner.run_layer(0, start))
    if before.keys() != after.keys():
        raise GraphError(
            f"{inner.kind}: its layers leave {', '.join(sorted(after.keys() ^ before.keys()))} behind, "
            "so that what is decoded hangs on which of them ran; export it with `--route fixed`"
        )
    changing = []
    doubled = []
    for leaf, tensor in before.items():
        if leaf.partition(".")[0] in start.changing:
            changing.append(leaf)
        elif _repeats(tensor):
            doubled.append(leaf)
    return Boundaries(
        layers=len(inner.layers),
        start=tuple(before),
        changing=tuple(changing),
        doubled=tuple(doubled),
        last=type(inner).run_last is not Backbone.run_last,
    )


def _repeats(tensor: Tensor) -> bool:
    """Whether (1, n, c) floats consist of the same (1, n, c / 2) twice."""
    if tensor.ndim != 3 or tensor.shape[-1] % 2 or not tensor.is_floating_point():
        return False
    first, second = tensor.chunk(2, -1)
    return torch.equal(first, second)


def capture_routes(
    policy: Routed, example: Arrays
) -> tuple[torch.export.ExportedProgram, tuple[str, ...], Boundaries]:
    """A routed policy, on the CPU and in single precision → its program, the names of its inputs,
    and what its outputs are. `example`: one real moment. Raises GraphError as `graph.capture` does,
    and where the network cannot be cut between its layers."""
    moment = Moment(policy, example)
    between = boundaries(policy, moment)
    program = exported(policy, Every(policy, moment, between).eval(), moment)
    return program, moment.names, between


@torch.no_grad()
def states_on_route(policy: Routed, example: Arrays) -> list[dict[str, np.ndarray]]:
    """What enters each layer at one moment on the route that it takes, and at the end what is
    decoded, as the parts call it (`robot/segments.py`): for who measures ranges. What enters a layer
    that is skipped is what would."""
    moment = Moment(policy, example)
    batch = _told(policy, moment.batch(moment.tensors))
    inner = policy.inner
    state: State = inner.embed(batch)
    gates = policy.gates(state, batch)[0].tolist()
    found = [_named(state)]
    for index, gate in enumerate(gates):
        if gate:
            state = inner.run_layer(index, state)
        found.append(_named(state))
    return found


def _named(state: State) -> dict[str, np.ndarray]:
    return {STATE + name: tensor.numpy() for name, tensor in leaves(state).items()}
