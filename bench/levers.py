"""Where a decision's milliseconds go in a policy of mt50's shape, and what each lever of `flagship` can
take of them, in PyTorch and exported, on one thread.

    pip install 'armlet[export]'
    python bench/levers.py [--out docs/machinery/levers.json]

Time follows from shapes, so weights are random and pictures are noise: nothing is said of success.
Each way differs from another in one lever: layers of the backbone, denoising steps, blocks and width
of the flow head, a head that names the actions outright. Milliseconds are of the processor, in turn
on the same frames; what other processes take is not counted, but they take room in the caches.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import tyro

from armlet.benchmarks.metaworld.language import WORDINGS
from armlet.data.files import write_atomically
from armlet.data.text import train_tokenizer
from armlet.deploy.exporting import How, assemble
from armlet.evaluation.measure import environment, in_turn, percentiles
from armlet.policies.contract import Backbone, Body
from armlet.policies.vla import VLANetwork
from armlet.recipes.bases import mt50
from armlet.robot.exported import load_exported
from armlet.robot.normalise import Normaliser
from armlet.robot.observation import Observation
from armlet.rollout.pool import threads

KEPT = 4  # layers, of sixteen
FRAMES = 32


@dataclass(frozen=True)
class Way:
    """A network: so many layers, and a head with these options."""

    layers: int = 16
    head: str = "flow"
    steps: int | None = 10
    blocks: int | None = 2
    hidden: int | None = 128


FEW = Way(layers=KEPT)
ONE_STEP = replace(FEW, steps=1)
WAYS = {
    "teacher": Way(),
    "one step": Way(steps=1),
    "few layers": FEW,
    "few layers, one step": ONE_STEP,
    "few layers, one step, one block": replace(ONE_STEP, blocks=1),
    "few layers, one step, one block of 64": replace(ONE_STEP, blocks=1, hidden=64),
    "few layers, named outright": Way(KEPT, "regression", None, None, None),
    "one layer, named outright": Way(1, "regression", None, None, None),
}


@dataclass
class Arguments:
    calls: int = 400
    runtimes: tuple[str, ...] = ("eager", "fp32", "int8")
    """eager, and precisions of ONNX Runtime."""
    ways: tuple[str, ...] = tuple(WAYS)
    """Which of them."""
    beside: str = "nothing"
    """What else the machine did meanwhile."""
    out: Path = Path("docs/machinery/levers.json")


def main(arguments: Arguments) -> None:
    with threads(1), TemporaryDirectory() as name:
        found = measured(arguments, Path(name))
    write_atomically(arguments.out, (json.dumps(found, indent=1) + "\n").encode())
    print(json.dumps(found["ms"], indent=1))


def measured(arguments: Arguments, folder: Path) -> dict[str, Any]:
    body = body_of_metaworld()
    frames = noise(body)
    ways: dict[str, Callable[[Observation], np.ndarray]] = {}
    parameters = {}
    for name in arguments.ways:
        way = WAYS[name]
        policy = network(way).build(body, mt50().world("bench").cameras).eval()
        parameters[name] = sum(each.numel() for each in policy.parameters())
        for runtime in arguments.runtimes:
            print(name, runtime, flush=True)
            label = f"{name}, {runtime}"
            ways[label] = policy.infer
            if runtime != "eager":
                ways[label] = exported(policy, runtime, frames, folder / label)
    times = in_turn(ways, frames, calls=arguments.calls, clock=time.process_time)
    return {
        **environment(),
        "threads": 1,
        "calls": arguments.calls,
        "timed_beside": arguments.beside,
        "ways": {name: asdict(WAYS[name]) for name in arguments.ways},
        "parameters": parameters,
        "ms": {name: percentiles(values) for name, values in times.items()},
    }


def body_of_metaworld() -> Body:
    texts = [text for seen, unseen in WORDINGS.values() for text in (*seen, *unseen)]
    world = mt50().world("bench")
    plain = Normaliser(np.zeros(4, np.float32), np.ones(4, np.float32))
    return Body(world.action_spec, plain, plain, train_tokenizer(texts), world.state_names)


def network(way: Way) -> VLANetwork:
    """mt50's, but for what is asked for."""
    theirs = mt50().network
    assert isinstance(theirs, VLANetwork)
    options = {"steps": way.steps, "blocks": way.blocks, "hidden": way.hidden}
    said = {name: value for name, value in options.items() if value is not None}
    return replace(theirs, depth=way.layers, head=way.head, head_options=said)


def noise(body: Body) -> list[Observation]:
    """Moments with pictures of noise; all are told what a task of usual length is."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    cameras = mt50().world("bench").cameras
    found = []
    for _ in range(FRAMES):
        images = {}
        for name, side in cameras.items():
            images[name] = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        state = rng.normal(size=4).astype(np.float32)
        text = WORDINGS["peg-insert-side-v3"][0][0]
        found.append(Observation(images, state, text, np.zeros(4, np.float32)))
    return found


def exported(
    policy: Backbone, precision: str, frames: list[Observation], folder: Path
) -> Callable[[Observation], np.ndarray]:
    folder.mkdir()
    assemble(policy, How(precision=precision), frames, folder, {})
    return load_exported(folder).infer


if __name__ == "__main__":
    main(tyro.cli(Arguments))
