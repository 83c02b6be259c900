"""Training on several processes: what it costs on paper, and steps a second on this machine.

    python bench/scaling.py --paper
    python bench/scaling.py [--steps 40] [--out docs/machinery/scaling.json]

On paper: memory and traffic of a step of a student of OpenVLA's size, all of it trained, for 1, 8 and
64 GPUs, from the shapes of its weights (bench/shapes.json, read from the real checkpoint) and the
formulae in `Paper`. Measured: the small VLA, the same global batch on one process and on two, as
copies and in shards, with torchrun and gloo; an efficiency of two processes is steps a second over
twice those of one. What limits it is measured too: half a batch takes more than half of the time, and
two processes that do not know of each other share caches and memory; the rest is what they say to
each other. It is the efficiency of this machine and no network's. Nothing else should run.
"""

import argparse
import dataclasses
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
GB = 1e9
BATCH = 64  # samples a step, of all processes together
PATCHES = 256  # of a picture


@dataclasses.dataclass(frozen=True)
class Network:
    """What of a network the formulae read: parameters, those of its largest and of all layers that
    are gathered one by one, matrices that Muon steps, and the sizes of the language model."""

    parameters: int
    largest_layer: int
    in_layers: int
    matrices: int
    layers: int
    width: int
    seen: int  # tokens times channels of a sample in all layers of the vision towers
    tokens: int  # of a sample: 256 of a picture, a prompt, seven of an action


def openvla() -> Network:
    """From the shapes of its checkpoint: (name, shape, how many layers have it)."""
    parameters = 0
    groups: dict[str, int] = {}  # of one layer of each kind
    in_layers = 0
    matrices = 0
    layers = 0
    width = 0
    seen = 0
    for name, shape, count in json.loads((HERE / "shapes.json").read_text())["OpenVLA"]:
        size = math.prod(shape)
        parameters += size * count
        if "*" not in name:
            continue
        kind = name.partition("*")[0]
        groups[kind] = groups.get(kind, 0) + size
        in_layers += size * count
        if kind.startswith("vision") and name.endswith("norm1.weight"):
            seen += PATCHES * math.prod(shape) * count
        if kind.startswith("language_model"):
            layers = count
            width = shape[-1] if name.endswith("input_layernorm.weight") else width
            matrices += size * count if len(shape) == 2 else 0
    return Network(
        parameters,
        max(groups.values()),
        in_layers,
        matrices,
        layers,
        width,
        seen,
        tokens=PATCHES + 32 + 7,
    )


@dataclasses.dataclass(frozen=True)
class Paper:
    """A step of `batch` samples on `gpus`, of which one has `at_once` in a pass; weights, gradients
    and AdamW's two averages in single precision, matrix products in bf16, layers computed again on
    the way back (`recompute`)."""

    network: Network
    gpus: int
    parallel: str
    batch: int = 512
    at_once: int = 8

    @property
    def samples(self) -> int:
        """Of one GPU."""
        return self.batch // self.gpus

    @property
    def passes(self) -> int:
        """`accumulate`: passes with a way back. All but the last run forward once more."""
        return -(-self.samples // self.at_once)

    @property
    def share(self) -> float:
        """The part of weights, gradients and averages that a GPU keeps."""
        return 1 / self.gpus if self.parallel == "fsdp" else 1.0

    @property
    def state(self) -> float:
        """Bytes kept: 4 of a weight, 4 of its gradient, 8 of AdamW."""
        return 16 * self.network.parameters * self.share

    @property
    def gathered(self) -> float:
        """Bytes of what is whole for a while: what is in no layer, the layer at work and the next,
        each with its gradient on the way back. Copies: DDP's buckets, a gradient once more."""
        if self.parallel == "ddp":
            return 4.0 * self.network.parameters if self.gpus > 1 else 0.0
        outside = self.network.parameters - self.network.in_layers
        return 4.0 * 2 * (outside + 2 * self.network.largest_layer)

    @property
    def activations(self) -> float:
        """Bytes: of every layer of the language model what goes into it (bf16), and of one layer
        all that it keeps, 34 bytes a token and channel without the scores of attention, which are
        computed again (Korthikanti et al. 2022, arXiv 2205.05198, equation 2); of the vision
        towers, which `recompute` leaves alone, all that every layer keeps."""
        samples = min(self.samples, self.at_once)
        told = (2 * self.network.layers + 34) * self.network.tokens * self.network.width
        return samples * (told + 34.0 * self.network.seen)

    @property
    def memory(self) -> float:
        return self.state + self.gathered + self.activations

    @property
    def traffic(self) -> float:
        """Bytes that one GPU sends in a step. A ring sends (n − 1)/n of what it gathers or reduces,
        an all-reduce twice that. Shards gather every weight on the way forth and, those of layers,
        on the way back, and reduce its gradient there: once a pass. Copies reduce once a step."""
        if self.gpus == 1:
            return 0.0
        ring = (self.gpus - 1) / self.gpus
        weights = 4.0 * self.network.parameters
        if self.parallel == "ddp":
            return 2 * ring * weights
        forth = (2 * self.passes - 1) * weights
        back = self.passes * 4.0 * self.network.in_layers
        return ring * (forth + back + self.passes * weights)

    @property
    def muon(self) -> float:
        """Bytes more that one GPU sends for Muon of shards: every matrix of a layer gathered, and
        its step sent to all."""
        if self.gpus == 1 or self.parallel == "ddp":
            return 0.0
        return 2 * (self.gpus - 1) / self.gpus * 4.0 * self.network.matrices

    @property
    def operations(self) -> float:
        """Of one GPU: 2 a weight and token forth, 4 back, 2 for the layers again; 2 more in passes
        that are computed twice."""
        again = 2 * (self.passes - 1) / self.passes
        return (8 + again) * self.network.parameters * self.samples * self.network.tokens


def table() -> list[str]:
    """The table in docs/several-machines.md."""
    network = openvla()
    lines = [
        "| GPUs | held as | samples each (passes) | weights, gradients, AdamW | gathered | activations "
        "| together | sent a step | Muon sends more | PFLOP a step |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for gpus, parallel in ((1, "ddp"), (8, "ddp"), (8, "fsdp"), (64, "ddp"), (64, "fsdp")):
        case = Paper(network, gpus, parallel)
        sizes = (case.state, case.gathered, case.activations, case.memory, case.traffic, case.muon)
        said = " | ".join(f"{size / GB:.1f} GB" for size in sizes)
        held = "copies" if parallel == "ddp" else "shards"
        lines.append(
            f"| {gpus} | {held} | {case.samples} ({case.passes}) | {said} | "
            f"{case.operations / 1e15:.1f} |"
        )
    return lines


# Measured

WORK = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
import scaling
scaling.one_run(Path({folder!r}), {parallel!r}, {steps}, {batch})
"""


def one_run(folder: Path, parallel: str, steps: int, batch: int) -> None:
    """Trains some steps in this process, or in all that torchrun started; the first writes how long
    each took."""
    import numpy as np
    import torch

    from armlet.data.frames import Frames
    from armlet.policies.checkpoint import load_policy
    from armlet.recipe import Stage
    from armlet.recipes.bases import Imitate
    from armlet.training.distributed import joined
    from armlet.training.learner import Learner
    from armlet.training.trainer import Trainer, make_batches

    torch.set_num_threads(1)
    policy = load_policy(HERE.parent / "checkpoints" / "tabletop-teacher")
    rng = np.random.default_rng(0)
    count = 512
    dims = policy.dims
    actions = rng.uniform(-1, 1, (count, dims)).astype(np.float32)
    states = policy.body.state.invert(rng.uniform(-1, 1, (count, len(policy.body.state.offset))))
    images = {}
    for name, side in policy.cameras.items():
        images[name] = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    frames = Frames(
        images=images,
        state=states.astype(np.float32),
        actions=actions,
        executed=actions,
        privileged={},
        texts=("push the red cube",),
        asked=np.zeros(count, np.int64),
        starts=np.arange(0, count + 1, 64),
    )
    objective = Imitate(facts=())
    stage = Stage(
        objective,
        steps=steps,
        batch_size=batch,
        log_every=1,
        precision="fp32",
        parallel=parallel,
    )
    with joined():
        learner = Learner(policy)
        batches = make_batches(policy, frames)
        Trainer(learner, stage, batches, folder=folder, seed=0, title="scaling").run()


@dataclasses.dataclass(frozen=True)
class Asked:
    """A training: in how many processes, how the weights are held, and samples a step of all."""

    processes: int = 1
    parallel: str = "ddp"
    batch: int = BATCH


def seconds_a_step(steps: int, *trainings: Asked) -> float:
    """The median of the steps after the first five; of trainings that are under way at the same time
    and know nothing of each other, the slowest's."""
    with tempfile.TemporaryDirectory() as place:
        runs = []
        for number, asked in enumerate(trainings):
            folder = Path(place, str(number))
            folder.mkdir()
            script = folder / "run.py"
            said = {"here": str(HERE), "folder": str(folder), "parallel": asked.parallel}
            script.write_text(WORK.format(**said, steps=steps, batch=asked.batch))
            command = [sys.executable]
            if asked.processes > 1:
                command += ["-m", "torch.distributed.run", "--standalone"]
                command += ["--nproc-per-node", str(asked.processes)]
            runs.append((folder, subprocess.Popen([*command, str(script)])))
        medians = []
        for folder, run in runs:
            if run.wait():
                raise RuntimeError(f"a training ended with {run.returncode}; its error is above")
            lines = (folder / "metrics.jsonl").read_text().splitlines()
            seconds = [json.loads(line)["seconds"] for line in lines[5:]]
            medians.append(statistics.median(seconds))
        return max(medians)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    asked.add_argument(
        "--paper", action="store_true", help="the table of formulae, measuring nothing"
    )
    asked.add_argument("--steps", type=int, default=40)
    asked.add_argument("--out", type=Path, default=Path("docs/machinery/scaling.json"))
    options = asked.parse_args()
    if options.paper:
        print("\n".join(table()))
        return
    half = Asked(batch=BATCH // 2)
    alone = seconds_a_step(options.steps, Asked())
    found = {
        "measured": time.strftime("%Y-%m-%d"),
        "samples": BATCH,
        "seconds_alone": alone,
        "seconds_half": seconds_a_step(options.steps, half),
        "seconds_half_beside_another": seconds_a_step(options.steps, half, half),
    }
    for parallel in ("ddp", "fsdp"):
        two = seconds_a_step(options.steps, Asked(2, parallel))
        found[f"seconds_{parallel}"] = two
        found[f"efficiency_{parallel}"] = alone / (2 * two)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
