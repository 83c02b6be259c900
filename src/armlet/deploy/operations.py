"""What a decision multiplies and reads, counted part by part while it runs once: floating-point
operations, the shapes of its matrix products, and the bytes of weights that these read.

Convolutions count as the products they are computed by (im2col), attention as its two. Reading
activations is not counted: those of one observation mostly stay in a cache. Knows no kind of
network.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from armlet.deploy.meter import Key, Meter, Watch
from armlet.machine import Machine, Product
from armlet.robot.observation import Observation

aten = torch.ops.aten
ATTENTION = (
    aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_efficient_attention,
    aten._scaled_dot_product_cudnn_attention,
)
LOOKED_UP = (aten.embedding, aten.index, aten.index_select, aten.gather)


@dataclass
class Work:
    """Of one part: `flops`, multiplications and additions; `fetched`, bytes of weights read, as
    often as they are; `products`, how often each shape."""

    flops: float = 0.0
    fetched: float = 0.0
    products: Counter[Product] = field(default_factory=Counter)

    def limit(self, machine: Machine, *, device: str = "cpu") -> float:
        """The seconds that its products alone take on this machine, one after the other, or that
        its memory needs to hand over the weights, where that is more."""
        multiplied = 0.0
        for product, count in self.products.items():
            multiplied += count * machine.product_seconds(product, device=device)
        return max(multiplied, machine.seconds(0, self.fetched))


@dataclass
class Counted:
    """What parts did in some decisions together, and how often they ran in them."""

    works: dict[Key, Work] = field(default_factory=dict)
    runs: Counter[Key] = field(default_factory=Counter)

    def of(self, key: Key) -> Work:
        return self.works.setdefault(key, Work())


def count(watch: Watch, observations: Sequence[Observation]) -> Counted:
    """What every part does for decisions about these."""
    found = Counted()
    trained = [each for each in watch.policy.parameters() if each.requires_grad]
    # The counter follows gradients through modules, and fails on one that answers with a bare
    # parameter, as the state's of a robot without a state does.
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        for observation in observations:
            _flops(watch, observation, found)
            _shapes(watch, observation, found)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    return found


def _flops(watch: Watch, observation: Observation, found: Counted) -> None:
    counter = FlopCounterMode(display=False)
    with counter:
        _, meter = watch.decide(observation, lambda: float(counter.get_total_flops()))
    found.runs.update(meter.runs)
    for key, own in meter.own.items():
        found.of(key).flops += own


def _shapes(watch: Watch, observation: Observation, found: Counted) -> None:
    weights = set()
    for tensor in (*watch.policy.parameters(), *watch.policy.buffers()):
        weights.add(tensor.untyped_storage().data_ptr())
    # The clock is of no interest: the meter is asked which part is at work.
    meter = Meter(lambda: 0.0)
    with watch.on(meter), _Shapes(lambda: found.of(meter.current), weights):
        watch.decide_on(meter, observation)


class _Shapes(TorchDispatchMode):
    """Sees every operation; writes it down for the part that `of` gives."""

    def __init__(self, of: Callable[[], Work], weights: set[int]) -> None:
        super().__init__()
        self._of = of
        self._weights = weights

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet not in KNOWN and packet not in ATTENTION:
            # In inference mode an operation made of others arrives whole.
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        out = func(*args, **kwargs)
        work = self._of()
        if packet in KNOWN:
            work.products[KNOWN[packet](args, kwargs, out)] += 1
        elif packet in ATTENTION:
            for product in _attention(args):
                work.products[product] += 1
        work.fetched += self._read(packet, args, kwargs, out)
        return out

    def _read(self, packet: Any, args: Any, kwargs: Any, out: Any) -> int:
        """Bytes of weights that an operation reads; of a table those of the rows that it takes."""
        if packet in VIEWS or not isinstance(out, Tensor | tuple | list):
            return 0
        read = 0
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() in self._weights:
                if packet in LOOKED_UP and isinstance(out, Tensor):
                    read += out.nbytes
                else:
                    read += value.nbytes
        return read


VIEWS = (
    aten.t, aten.transpose, aten.view, aten._unsafe_view, aten.expand, aten.unsqueeze, aten.squeeze,
    aten.slice, aten.select, aten.permute, aten.detach, aten.alias, aten.split, aten.unbind,
    aten.as_strided, aten.split_with_sizes, aten.chunk,
)  # fmt: skip


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _mm(left: Tensor, right: Tensor) -> Product:
    return Product(left.shape[0], left.shape[1], right.shape[1], 1, _dtype(left))


def _bmm(left: Tensor, right: Tensor) -> Product:
    count, m, k = left.shape
    return Product(m, k, right.shape[2], count, _dtype(left))


def _convolved(args: tuple[Any, ...], kwargs: Any, out: Tensor) -> Product:
    """(b, c, …) by weights (d, c / groups, …): as many rows as there are places in the answer."""
    weight = args[1]
    groups = args[8] if len(args) > 8 else kwargs.get("groups", 1)
    places = out.shape[0] * math.prod(out.shape[2:])
    inner = math.prod(weight.shape[1:])
    if args[6] if len(args) > 6 else False:  # transposed: weights (c, d / groups, …)
        places = args[0].shape[0] * math.prod(args[0].shape[2:])
        return Product(places, weight.shape[0] // groups, inner, groups, _dtype(weight))
    return Product(places, inner, weight.shape[0] // groups, groups, _dtype(weight))


def _attention(args: tuple[Any, ...]) -> tuple[Product, Product]:
    """Queries (b, h, q, d), keys and values (b, h, k, d): scores, and what they mix."""
    query, key = args[0], args[1]
    count = query.shape[0] * query.shape[1]
    rows, width = query.shape[2:]
    seen = key.shape[2]
    kind = _dtype(query)
    return Product(rows, width, seen, count, kind), Product(rows, seen, width, count, kind)


KNOWN: dict[Any, Callable[[Any, Any, Any], Product]] = {
    aten.mm: lambda args, kwargs, out: _mm(args[0], args[1]),
    aten.addmm: lambda args, kwargs, out: _mm(args[1], args[2]),
    aten.bmm: lambda args, kwargs, out: _bmm(args[0], args[1]),
    aten.baddbmm: lambda args, kwargs, out: _bmm(args[1], args[2]),
    aten.convolution: _convolved,
    aten._convolution: _convolved,
}
