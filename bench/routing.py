"""What skipping saves and what deciding costs, at batch 1 on one thread.

    python bench/routing.py [--teacher checkpoints/tabletop-teacher] [--out
    docs/machinery/routing.json]

The teacher's backbone with all layers, and with every second one skipped by a router; the router
alone.
"""

import dataclasses
import json
from pathlib import Path

import torch
import tyro
from torch.utils.benchmark import Timer

from armlet.benchmarks.tabletop import Tabletop
from armlet.layers.router import FORCED
from armlet.policies.checkpoint import load_policy
from armlet.policies.routed import Routed, Routing


@dataclasses.dataclass
class Arguments:
    teacher: Path = Path("checkpoints/tabletop-teacher")
    out: Path = Path("docs/machinery/routing.json")
    seconds: float = 4


def main(arguments: Arguments) -> None:
    torch.set_num_threads(1)
    teacher = load_policy(arguments.teacher)
    student = Routing().build(teacher).eval()
    assert isinstance(student, Routed)
    layers = len(teacher.layers)
    world = Tabletop().make(Tabletop().tasks()[0], 0)
    batch = student.prepare([world.observe()])
    with torch.no_grad():
        student.router.leave.bias.copy_(
            torch.tensor([FORCED if index % 2 else -FORCED for index in range(layers)])
        )

    def time(function) -> float:
        with torch.inference_mode():
            tokens = student.embed(batch)
            return (
                1e3
                * Timer("f(t)", globals={"f": function, "t": tokens})
                .blocked_autorange(min_run_time=arguments.seconds)
                .median
            )

    whole = time(lambda tokens: teacher.run_layers(tokens, batch))
    half = time(lambda tokens: student.run_layers(tokens, batch))
    routing = time(lambda tokens: student.route(tokens, batch))
    network = time(lambda tokens: teacher(batch))
    skipped = whole * (layers // 2) / layers
    result = {
        "layers": layers,
        "backbone_ms": whole,
        "backbone_half_skipped_ms": half,
        "router_ms": routing,
        "network_ms": network,
        "share_of_the_skipped_time_that_is_saved": (whole - half) / skipped,
        "the_same_without_the_router": (whole - (half - routing)) / skipped,
        "router_share_of_the_network": routing / network,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
