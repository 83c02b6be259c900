"""How fast a machine is, measured: multiplications a second, at any shape, and bytes a second. Knows no
network."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

SIDE = 768  # of the matrices that are multiplied to see how fast this machine is
STREAM = 2**26  # bytes that are read to see how fast its memory is
RUNS = 5  # of each measurement, of which the fastest counts
LONG = 0.02  # seconds after which a product is not measured more often than RUNS times


@functools.cache
def multiplies_bf16(device: str) -> bool:
    """Whether matrix products in bfloat16 are of use on a device (`cpu`, `cuda` …): a processor
    without instructions for them, as most laptops have, takes thirty times as long as in single
    precision."""
    if device != "cpu":
        return True
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@dataclass(frozen=True)
class Product:
    """`count` matrix products at a time, (m, k) times (k, n), of numbers of this type."""

    m: int
    k: int
    n: int
    count: int = 1
    dtype: str = "float32"

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * self.m * self.k * self.n * self.count


@dataclass(frozen=True)
class Machine:
    """How fast a machine is: multiplications and additions a second in single precision, and bytes
    read from memory a second, both on as many threads as torch uses."""

    flops: float
    bandwidth: float
    threads: int
    _products: dict[Product, float] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def measured(cls) -> "Machine":
        """This one, in about a third of a second."""
        square = torch.ones(SIDE, SIDE)
        seconds = best(lambda: square @ square)
        stream = torch.ones(STREAM // 4)
        return cls(2 * SIDE**3 / seconds, STREAM / best(stream.sum), torch.get_num_threads())

    def seconds(self, flops: float, fetched: float) -> float:
        """The least that so many multiplications and additions, of weights of so many bytes, can
        take: whichever of the two takes longer."""
        return max(flops / self.flops, fetched / self.bandwidth)

    def product_seconds(self, product: Product, *, device: str = "cpu") -> float:
        """The shortest time of `torch.mm` at this shape (`torch.bmm` of several), both operands
        where the last run has left them; measured once a shape."""
        if product not in self._products:
            self._products[product] = _timed(product, device)
        return self._products[product]


def best(work: Callable[[], object], *, runs: int = RUNS) -> float:
    """The shortest of several runs, in seconds: what else the machine does only adds."""
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return max(min(times), 1e-9)


def _timed(product: Product, device: str) -> float:
    dtype = getattr(torch, product.dtype)
    several = (product.count,) if product.count > 1 else ()
    left = torch.ones(*several, product.m, product.k, dtype=dtype, device=device)
    right = torch.ones(*several, product.k, product.n, dtype=dtype, device=device)
    multiply = torch.bmm if several else torch.mm

    def work() -> None:
        multiply(left, right)
        if left.device.type == "cuda":
            torch.cuda.synchronize(left.device)

    with torch.inference_mode():
        work()  # the first call chooses a kernel
        once = best(work)
        # Short ones are noisy: as many runs as fit into a few hundredths of a second.
        return min(once, best(work, runs=min(200, max(RUNS, int(LONG / once)))))
