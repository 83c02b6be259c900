"""The graph extractor against a full-width GATConv of PyTorch Geometric over the same graph: time
and memory.

    python bench/graph.py [--out docs/machinery/graph.json]          needs torch_geometric (make
    bench installs it)

Batch 8, 292 tokens, width 4096, 8 neighbours; forward and backward. Each side runs in a process of
its own, so that its peak of memory is its own.
"""

import dataclasses
import json
import multiprocessing
import resource
import time
from pathlib import Path

import torch
import tyro

BATCH, TOKENS, WIDTH, NEIGHBOURS = 8, 292, 4096, 8


@dataclasses.dataclass
class Arguments:
    out: Path = Path("docs/machinery/graph.json")
    threads: int = 2
    repeats: int = 3


def ours() -> torch.nn.Module:
    from armlet.layers.graph import SemanticHead

    head = SemanticHead(WIDTH, neighbours=NEIGHBOURS)
    mask = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    return lambda hidden: head(hidden, mask).square().mean()


def geometric() -> torch.nn.Module:
    """Two graph-attention layers at full width, four heads averaged, as published; the graph is
    given to it."""
    from torch_geometric.nn import GATConv

    layers = [GATConv(WIDTH, WIDTH, heads=4, concat=False) for _ in range(2)]
    senders = (
        torch.randint(0, TOKENS, (BATCH, TOKENS, NEIGHBOURS))
        + TOKENS * torch.arange(BATCH)[:, None, None]
    )
    receivers = torch.arange(BATCH * TOKENS).repeat_interleave(NEIGHBOURS)
    edges = torch.stack([senders.flatten(), receivers])

    def run(hidden: torch.Tensor) -> torch.Tensor:
        nodes = hidden.flatten(0, 1)
        for layer in layers:
            nodes = torch.nn.functional.elu(layer(nodes, edges))
        return nodes.square().mean()

    return run


def alone(which: str, threads: int, repeats: int) -> tuple[float, float]:
    """Best seconds of forward and backward, and MB above what the process had before."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    run = {"ours": ours, "geometric": geometric}[which]()
    hidden = torch.randn(BATCH, TOKENS, WIDTH, requires_grad=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run(hidden).backward()
        seconds.append(time.perf_counter() - started)
    return min(seconds), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main(arguments: Arguments) -> None:
    context = multiprocessing.get_context("spawn")
    found = {}
    for which in ("ours", "geometric"):
        with context.Pool(1) as pool:
            found[which] = pool.apply(alone, (which, arguments.threads, arguments.repeats))
    result = {
        "shape": [BATCH, TOKENS, WIDTH],
        "neighbours": NEIGHBOURS,
        "threads": arguments.threads,
        "seconds": {name: seconds for name, (seconds, _) in found.items()},
        "extra_memory_mb": {name: memory for name, (_, memory) in found.items()},
        "share_of_time": found["ours"][0] / found["geometric"][0],
        "share_of_memory": found["ours"][1] / found["geometric"][1],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
