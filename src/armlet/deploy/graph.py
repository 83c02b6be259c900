"""A policy as a function of plain tensors: one moment, none of whose words is padding → normalised
actions (1, k, a), captured by `torch.export` with a free number of words.

Loops (denoising steps, words that are written one after the other) are unrolled. Which layers run
stands fixed in a graph; a router that takes more than one route is a graph for its commonest one,
which is another policy than the router: whoever exports it says so and measures it. One that decides
for every observation is captured otherwise (`deploy/routes.py`). Knows no runtime and no file.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from armlet.data.batching import batch_of
from armlet.layers.router import active_layers
from armlet.policies.contract import Backbone, Pass
from armlet.policies.routed import Routed
from armlet.robot.inputs import Arrays
from armlet.robot.observation import Observation
from armlet.robot.runtimes import IMAGE, feeds
from armlet.types import Batch

# Words of the example that is traced: torch takes an axis of length 1 for a constant, and some prompts
# are cut in front of their first word.
FEWEST = 3
AT_ONCE = 64  # frames whose routes are asked for in one pass


class GraphError(ValueError):
    """A policy whose decision cannot be captured as one graph."""


@dataclass(frozen=True)
class Route:
    """The layers that a graph runs. `policy`: the network of these alone; `gates` (l,) of the
    policy it was made from, None where its router decides for every observation; `share`: of the
    frames on which a router was asked, those on which it takes this route; 1 where nobody routes."""

    policy: Backbone
    gates: tuple[int, ...] | None
    share: float


class Moment:
    """One moment as plain tensors, in the order of `names` (`robot.runtimes.feeds`), and back.
    `tensors`: of a real one; `example`: the same of words enough to be traced."""

    def __init__(self, policy: Backbone, example: Arrays) -> None:
        fed = feeds(example)
        self.names = tuple(fed)
        self.tensors = tuple(torch.from_numpy(np.ascontiguousarray(each)) for each in fed.values())
        enough = []
        for name, tensor in zip(self.names, self.tensors, strict=True):
            short = name == "text" and tensor.shape[1] < FEWEST
            enough.append(tensor.repeat_interleave(FEWEST, 1) if short else tensor)
        self.example = tuple(enough)
        # What is empty is no input: a robot without a state, a policy that is told nothing.
        batch = batch_of(example, device=policy.device)
        self.no_text = batch.text[:, :0]
        self.no_state = batch.state[..., :0]
        self.no_action = batch.previous_action[:, :0]

    def batch(self, tensors: Sequence[Tensor]) -> Batch:
        told = dict(zip(self.names, tensors, strict=True))
        text = told.get("text", self.no_text)
        images = {}
        for name, tensor in told.items():
            if name.startswith(IMAGE):
                images[name.removeprefix(IMAGE)] = tensor
        return Batch(
            images=images,
            text=text,
            text_mask=torch.ones_like(text, dtype=torch.bool),
            state=told.get("state", self.no_state),
            previous_action=told.get("previous_action", self.no_action),
            unpadded=True,
        )


class Graph(nn.Module):
    """A policy of fixed layers as a function of the tensors of a moment."""

    def __init__(self, policy: Backbone, moment: Moment) -> None:
        super().__init__()
        self.policy = policy
        self.moment = moment

    def forward(self, *tensors: Tensor) -> Tensor:
        """(1, k, a) float32."""
        batch = self.moment.batch(tensors)
        policy = self.policy
        last = len(policy.layers) - 1
        start = policy.embed(batch)
        state = start
        for index in range(last):
            state = policy.run_layer(index, state)
        state = policy.run_last(last, state)
        # All layers run, and a network whose layers run again while it decodes need not ask.
        gates = torch.ones(1, last + 1)
        run = Pass(start, state, (), gates, {}, (1,) * (last + 1))
        return policy.decode(run, batch).float()


def capture(
    policy: Backbone, example: Arrays
) -> tuple[torch.export.ExportedProgram, tuple[str, ...]]:
    """A policy of fixed layers, on the CPU and in single precision → its program and the names of
    the inputs. `example`: one real moment. Raises GraphError where its decision hangs on what is in
    the tensors, or on how many words there are, in another way than by arithmetic."""
    moment = Moment(policy, example)
    return exported(policy, Graph(policy, moment).eval(), moment), moment.names


def exported(policy: Backbone, function: nn.Module, moment: Moment) -> torch.export.ExportedProgram:
    """A function of one moment's tensors as a program of any number of words. Raises GraphError as
    `capture` does."""
    shapes: list[dict[int, torch.export.Dim] | None] = []
    for name in moment.names:
        words = torch.export.Dim("words", min=FEWEST, max=max(policy.text_tokens, FEWEST + 1))
        shapes.append({1: words} if name == "text" else None)
    try:
        with torch.no_grad():
            return torch.export.export(
                function, moment.example, dynamic_shapes=(tuple(shapes),), strict=False
            )
    except GraphError:
        raise  # what a part of the function says of itself
    except Exception as error:  # torch raises what it likes
        first = str(error).strip().splitlines()[0]
        raise GraphError(
            f"{policy.kind} cannot be captured as a graph ({type(error).__name__}: {first:.300}); "
            "it can act in PyTorch, and behind `armlet serve`"
        ) from error


def single(policy: Backbone) -> Backbone:
    """The policy on the CPU in single precision, in which graphs are captured; itself where it is
    that already."""
    for tensor in (*policy.parameters(), *policy.buffers()):
        half = tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64)
        if half or tensor.device.type != "cpu":
            raise GraphError(
                f"{policy.kind} has weights in {tensor.dtype} on {tensor.device}; graphs are "
                'captured in single precision on a CPU: load it with `precision = "fp32"` in '
                "policy.toml"
            )
    return policy


def route_of(policy: Backbone, frames: Sequence[Observation]) -> Route:
    """The network that a graph is made of. Of a routed policy that of the route which it takes most
    often on `frames`, at its budget; `deployed` policies of one route are that already."""
    if not isinstance(policy, Routed):
        return Route(policy, (1,) * len(policy.layers), 1.0)
    routes: Counter[tuple[int, ...]] = Counter()
    for start in range(0, len(frames), AT_ONCE):
        batch = policy.prepare(frames[start : start + AT_ONCE])
        with torch.inference_mode():
            gates = policy.gates(policy.embed(batch), batch)
        routes.update(tuple(map(int, row)) for row in gates.tolist())
    commonest, count = routes.most_common(1)[0]
    kept = active_layers(torch.tensor([commonest], dtype=torch.float32))
    if not kept:
        raise GraphError(
            f"{policy.kind}: on most frames its router runs no layer at all; distil it again, or "
            "export it at a larger budget"
        )
    return Route(policy.keep_layers(kept), commonest, count / len(frames))
