"""How much of this machine's matrix-multiplication limit the shipped teacher's backbone reaches, in
PyTorch and in the runtimes that are installed.

    python bench/limit.py [--policy checkpoints/tabletop-teacher] [--out docs/machinery/limit.json]

The limit is what the backbone's matrix products take when each is as fast as torch.mm is at its
shape here, single precision, one thread, the best of many runs with both operands in the cache. The
backbone's own time is a slope, so that nothing but layers is in it: the policy and an untrained cut
of it, each from observation to action, are timed in turn in every runtime, and what the layers that
are cut away took is scaled to all of them. Runtimes that compute in less than single precision are
told beside, without a share: they have another limit. Nothing else should run meanwhile.
"""

import dataclasses
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import tyro

from armlet.deploy import planning, ways
from armlet.deploy.meter import Watch
from armlet.deploy.moments import Where, meet
from armlet.deploy.operations import count
from armlet.evaluation.measure import environment, latency
from armlet.machine import Machine
from armlet.measuring import Runtime
from armlet.policies.contract import Backbone, Policy
from armlet.rollout.pool import threads

WANTED = 0.7  # of the limit, in the best runtime


@dataclasses.dataclass
class Arguments:
    policy: str = "checkpoints/tabletop-teacher"
    benchmark: str = "tabletop"
    runtimes: tuple[Runtime, ...] | None = None  # None: those that are installed
    calls: int = 1000
    threads: int = 1
    out: Path = Path("docs/machinery/limit.json")


def main(arguments: Arguments) -> None:
    with threads(arguments.threads):
        result = measured(arguments)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    best = result["best"]
    share = result["share_of_the_limit"][best]
    print(
        f"\nthe backbone reaches {share:.0%} of the matrix-multiplication limit in its best runtime, "
        f"{best} ({result['share_of_the_limit'][ways.EAGER]:.0%} in PyTorch); asked: {WANTED:.0%}"
    )


def measured(arguments: Arguments) -> dict:
    met = meet(arguments.policy, Where(benchmark=arguments.benchmark))
    policy = met.policy
    assert isinstance(policy, Backbone)
    cut = planning.cut_of(policy)
    asked = ways.at_hand() if arguments.runtimes is None else arguments.runtimes
    with TemporaryDirectory() as folder:
        field: dict[str, Policy] = {"eager whole": policy, "eager cut": cut}
        for name in asked:
            for what, network in (("whole", policy), ("cut", cut)):
                place = Path(folder) / f"{name}-{what}"
                field[f"{name} {what}"] = ways.exported(
                    network, name, met.observations, place, threads=arguments.threads
                )
        times = latency(field, met.observations, calls=arguments.calls)
    depth = len(policy.layers)
    few = planning.few_layers(depth)
    backbone = {}
    for name in (ways.EAGER, *asked):
        away = times[f"{name} whole"]["p50"] - times[f"{name} cut"]["p50"]
        backbone[name] = away * depth / (depth - few)
    flops, limit = of_layers(policy, met.observations)
    share = {}
    for name, milliseconds in backbone.items():
        if name == ways.EAGER or ways.parts(name)[1] == "fp32":
            share[name] = limit / milliseconds
    return {
        **environment(),
        "threads": arguments.threads,
        "policy": met.fingerprint,
        "layers": depth,
        "backbone_mflop": flops / 1e6,
        "limit_ms": limit,
        "limit_gflops": flops / limit / 1e6,
        "backbone_ms": backbone,
        "backbone_gflops": {name: flops / each / 1e6 for name, each in backbone.items()},
        "share_of_the_limit": share,
        "best": max(share, key=lambda name: share[name]),
        "decision_ms": {name: each["p50"] for name, each in times.items()},
    }


def of_layers(policy: Backbone, observations: list) -> tuple[float, float]:
    """Floating-point operations of the backbone, and the milliseconds that its products alone take:
    the mean over the moments, whose numbers of words differ."""
    machine = Machine.measured()
    counted = count(Watch(policy, observations[0]), observations)
    flops = 0.0
    limit = 0.0
    for (floor, _), work in counted.works.items():
        if floor == "layer":
            flops += work.flops
            limit += 1e3 * work.limit(machine)
    return flops / len(observations), limit / len(observations)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
