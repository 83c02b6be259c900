"""A decision as a CUDA graph, and the least time that a GPU's memory leaves for it.

Of one observation a GPU runs thousands of small kernels, and a host needs longer to launch them than
the GPU to run them. A graph is recorded once and launched whole. Nothing can be asked of the host on
the way, so what is recorded is one *route*: which layers run. All of them, or those that a router
would have chosen; whoever deploys a routed student keeps a graph of each route that it meets.

The limit: a decision of one observation reads every weight from memory as often as it multiplies by
it (an expert's once a denoising step, OpenVLA's layers once a word), since none of this fits into a
GPU's cache. So many bytes over what the memory was measured to give are the least it can take.

Knows policies by their contract; knows no kind of them. Needs CUDA, but for `Reads` and `along`.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from armlet.policies.contract import Backbone, Pass
from armlet.robot.observation import Observation
from armlet.types import Batch

WARM = 3  # runs ahead of a recording: libraries choose their kernels, which no graph may do
ROOM = 8  # tokens behind the words that a graph is recorded with, for longer instructions
STREAM = 2**30  # bytes that are read to see how fast the memory is: far more than any cache holds


# One route


def along(policy: Backbone, route: Sequence[int], batch: Batch, gates: Tensor) -> Tensor:
    """(1, k, a) normalised actions, where the layers `route` run; `gates` (1, l): 1 for those."""
    start = policy.embed(batch)
    state = start
    for index in range(len(policy.layers)):
        run = index in route
        state = policy.run_layer(index, state) if run else policy.skip_layer(index, state)
    plan = tuple(int(index in route) for index in range(len(policy.layers)))
    return policy.decode(Pass(start, state, (), gates, {}, plan), batch)


def gates_of(policy: Backbone, route: Sequence[int]) -> Tensor:
    """(1, l) on the policy's device."""
    plan = [[float(index in route) for index in range(len(policy.layers))]]
    return torch.tensor(plan, device=policy.device)


def with_room(batch: Batch, room: int = ROOM) -> Batch:
    """The same with some places behind the words, which are no tokens."""
    text = F.pad(batch.text, (0, room))
    return replace(batch, text=text, text_mask=F.pad(batch.text_mask, (0, room)))


# A graph of it


@dataclass
class Recorded:
    """A decision of one route as a graph, from observation to action."""

    policy: Backbone
    batch: Batch  # where the graph reads
    actions: Tensor  # where it writes
    graph: Any  # torch.cuda.CUDAGraph

    @classmethod
    def of(cls, policy: Backbone, route: Sequence[int], seen: Observation) -> "Recorded":
        """Raises whatever torch does where the policy asks the host something on the way."""
        # With words that are padding, so that what is warmed up is the way that is recorded: a
        # prompt that fills its places is one that a policy may treat otherwise, if it can ask.
        batch = with_room(policy.prepare([seen]))
        gates = gates_of(policy, route)
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM):
                along(policy, route, batch, gates)
        torch.cuda.current_stream().wait_stream(beside)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            actions = along(policy, route, batch, gates)
        return cls(policy, batch, actions, graph)

    def __call__(self, seen: Observation) -> np.ndarray:
        """(k, a) in the robot's own numbers."""
        fresh = self.policy.prepare([seen])
        lacking = self.batch.text.shape[1] - fresh.text.shape[1]
        if lacking < 0:
            raise ValueError(
                f"the instruction has {fresh.text.shape[1]} tokens, and the graph was recorded for "
                f"{self.batch.text.shape[1]}"
            )
        for ours, theirs in pairs(self.batch, with_room(fresh, lacking)):
            if ours.shape != theirs.shape:  # copying would repeat what is missing, silently
                raise ValueError(f"a tensor of {theirs.shape}, recorded was {ours.shape}")
            ours.copy_(theirs)
        self.graph.replay()
        actions = self.actions[0].float().cpu().numpy()  # waits for the graph
        return self.policy.denormalise(actions, self.policy.inputs.state_of(seen))


def pairs(ours: Batch, theirs: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """The tensors of two batches of observations, one beside the other."""
    for each in fields(Batch):
        one, other = getattr(ours, each.name), getattr(theirs, each.name)
        if isinstance(one, Tensor):
            yield one, other
        elif isinstance(one, Mapping):
            for name in one:
                yield one[name], other[name]


def routes_of(policy: Backbone, shares: Sequence[float]) -> dict[str, tuple[int, ...]]:
    """What is recorded, by name: all layers, and shares of them, evenly spread."""
    count = len(policy.layers)
    found = {"all layers": tuple(range(count))}
    for share in shares:
        some = max(1, round(share * count))
        name = f"{share:.0%} of the layers".replace("%", " %")
        found[name] = tuple(index * count // some for index in range(some))
    return found


# What memory allows


class Reads(TorchDispatchMode):
    """While it lasts, counts the bytes of a policy's parameters that operations read: `bytes`. Of a
    table of words the rows that are looked up; a view of a parameter reads nothing by itself."""

    def __init__(self, policy: torch.nn.Module) -> None:
        super().__init__()
        self.bytes = 0
        self._weights = {each.untyped_storage().data_ptr() for each in policy.parameters()}

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        found = operation(*arguments, **(named or {}))
        if operation.is_view:
            return found
        looked_up = operation.overloadpacket in (torch.ops.aten.embedding, torch.ops.aten.index)
        for each in tree_leaves((arguments, named)):
            if isinstance(each, Tensor) and self._is_weight(each):
                self.bytes += found.nbytes if looked_up else each.nbytes
        return found

    def _is_weight(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._weights


def bytes_read(policy: Backbone, route: Sequence[int], seen: Observation) -> int:
    """Of its weights, in one decision of this route."""
    batch = policy.prepare([seen])
    gates = gates_of(policy, route)
    with Reads(policy) as reads:
        along(policy, route, batch, gates)
    return reads.bytes


def bandwidth() -> float:
    """Bytes a second that the GPU's memory gives to whoever only reads: the best of some runs."""
    stream = torch.ones(STREAM // 4, device="cuda")
    stream.sum()
    times = []
    for _ in range(10):
        began = torch.cuda.Event(enable_timing=True)
        ended = torch.cuda.Event(enable_timing=True)
        began.record()
        stream.sum()
        ended.record()
        torch.cuda.synchronize()
        times.append(began.elapsed_time(ended) / 1000)  # milliseconds
    return STREAM / min(times)


# Both, for a report


def measured(
    policy: Backbone,
    seen: Observation,
    routes: Mapping[str, Sequence[int]],
    rounds: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Of each route: medians, least and most of a decision's milliseconds as a graph, or why it was
    not recorded; how far its actions are from those without a graph, of another picture than the
    one that it was recorded with; bytes of weights, and the milliseconds that the memory needs for
    them."""
    speed = bandwidth()
    other = darker(seen)
    rows = {}
    for name, route in routes.items():
        count = bytes_read(policy, route, seen)
        row: dict[str, Any] = {
            "layers": list(route),
            "gb_read": count / 1e9,
            "limit_ms": 1000 * count / speed,
        }
        try:
            graph = Recorded.of(policy, route, seen)
        except (RuntimeError, ValueError) as error:
            row["not_recorded"] = str(error).strip().split("\n")[0]
            torch.cuda.synchronize()
        else:
            row |= timed(graph, other, rounds)
            row["off_by"] = off_by(graph, route, other)
            del graph  # and its memory, before the next one's
        rows[name] = row
        say(f"  graph, {name}: {row}")
    return {"bandwidth_gb_s": speed / 1e9, "routes": rows}


def timed(graph: Recorded, seen: Observation, rounds: int) -> dict[str, Any]:
    graph(seen)
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        began = time.perf_counter()
        graph(seen)  # its actions are on the host when it returns
        times.append(1000 * (time.perf_counter() - began))
    median = float(np.median(times))
    return {"milliseconds": median, "least_and_most": [min(times), max(times)]}


def off_by(graph: Recorded, route: Sequence[int], seen: Observation) -> float:
    """The largest difference of normalised actions between the graph and the same without it."""
    policy = graph.policy
    graph(seen)
    plain = along(policy, route, policy.prepare([seen]), gates_of(policy, route))
    return float((plain.float() - graph.actions.float()).abs().max())


def darker(seen: Observation) -> Observation:
    """Another observation of the same size."""
    images = {name: picture // 2 for name, picture in seen.images.items()}
    return replace(seen, images=images)
