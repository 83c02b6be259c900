"""What a runtime alone is worth: the shipped teacher, as it is and exported to ONNX, and its cut to
two layers, both ways.

    pip install onnxruntime onnxscript      # of no extra of armlet's: only this bench reads them
    python bench/runtimes.py [--policy checkpoints/tabletop-teacher] [--keep 1 6] [--out
    docs/machinery/runtimes.json]

A student that is faster than its teacher in PyTorch has to be compared with the teacher that was
only exported, which costs nobody a training. All are timed in turn, in an order drawn anew for
every observation, on one thread, batch 1, from observation to action: preparing the pictures, the
network, and the robot's own numbers. The two-layer cut is the *shape* of the students of
`actdistill`, `first_k` and `layer_drop` (2 of 8 layers); its weights are the teacher's own and
succeed in nothing. Both ways must answer the same, which is measured as well. Says nothing about
success, a GPU, or several threads.

The exported graph takes an instruction of any length, unpadded. Policies other than our VLA are not
exported here.
"""

import dataclasses
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from armlet.benchmarks.tabletop import Tabletop
from armlet.policies.checkpoint import load_policy, policy_fingerprint
from armlet.policies.tokens import TokenState
from armlet.policies.vla import VLA
from armlet.robot.observation import Observation
from armlet.rollout.loop import plan, run_task

try:
    import onnxruntime
    import onnxscript  # noqa: F401 - torch.onnx.export needs it, and says so only in the middle of the work
except ModuleNotFoundError as missing:
    sys.exit(
        f"bench/runtimes.py: {missing.name} is not installed, and nothing can be exported: pip install onnxruntime onnxscript"
    )

WARM_UP = 50


@dataclasses.dataclass
class Arguments:
    policy: Path = Path("checkpoints/tabletop-teacher")
    keep: tuple[int, ...] = (1, 6)
    calls: int = 3000
    blocks: int = 10  # for the spread of the ratios: the medians of as many parts of the run
    seed: int = 910_000_000
    beside: str = "other work on the same two cores"
    out: Path = Path("docs/machinery/runtimes.json")


class Graph(nn.Module):
    """A VLA as a function of tensors, for one observation whose words are not padded: scene and
    wrist pictures (1, 3, h, w) in [0, 1], token ids (1, n), state (1, s) → normalised actions (1,
    k, a).

    `VLA.embed` builds a mask for words that may be padding; here none is, by construction."""

    def __init__(self, policy: VLA) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, scene: Tensor, wrist: Tensor, text: Tensor, state: Tensor) -> Tensor:
        policy = self.policy
        words = policy.words(text)
        asked = policy.ask(words, torch.ones_like(text, dtype=torch.bool))
        eyes = [policy.vision["scene"](scene, asked), policy.vision["wrist"](wrist, asked)]
        query = policy.query.expand(1, policy.head.vectors, -1)
        hidden = torch.cat([*eyes, words, policy.state(state).unsqueeze(1), query], 1)
        real = torch.ones_like(hidden[..., 0], dtype=torch.bool)
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        rotary = policy.rotary(hidden, positions)
        tokens = TokenState(hidden, real, real, real, rotary=rotary)
        for index in range(len(policy.layers)):
            tokens = policy.run_layer(index, tokens)
        return policy.head(policy.condition(tokens))


def exported(policy: VLA, example: Observation, path: Path) -> Callable[[Observation], np.ndarray]:
    """The policy by ONNX Runtime on one thread: observation → (k, a) actions in the robot's own
    numbers."""
    batch = policy.prepare([example])
    inputs = (batch.images["scene"], batch.images["wrist"], batch.text, batch.state)
    length = torch.export.Dim("words", min=2, max=policy.text_tokens)
    with torch.no_grad():
        torch.onnx.export(
            Graph(policy).eval(),
            inputs,
            str(path),
            input_names=["scene", "wrist", "text", "state"],
            dynamic_shapes=(None, None, {1: length}, None),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def infer(observation: Observation) -> np.ndarray:
        batch = policy.prepare([observation])
        fed = {
            "scene": batch.images["scene"].numpy(),
            "wrist": batch.images["wrist"].numpy(),
            "text": batch.text.numpy(),
            "state": batch.state.numpy(),
        }
        (actions,) = session.run(None, fed)
        return policy.denormalise(actions[0])

    return infer


def main(arguments: Arguments) -> None:
    torch.set_num_threads(1)
    teacher = load_policy(arguments.policy).eval()
    assert isinstance(teacher, VLA)
    cut = teacher.keep_layers(arguments.keep).eval()
    frames = observations(teacher, arguments.seed)
    with TemporaryDirectory() as folder:
        ways = {
            "teacher, PyTorch": teacher.infer,
            "teacher, ONNX Runtime": exported(teacher, frames[0], Path(folder) / "teacher.onnx"),
            "two layers, PyTorch": cut.infer,
            "two layers, ONNX Runtime": exported(cut, frames[0], Path(folder) / "cut.onnx"),
        }
        parity = {
            kind: furthest(ways[f"{kind}, PyTorch"], ways[f"{kind}, ONNX Runtime"], frames)
            for kind in ("teacher", "two layers")
        }
        times = interleaved(ways, frames, arguments.calls)
    base, export = times["teacher, PyTorch"], times["teacher, ONNX Runtime"]
    result = {
        "calls": arguments.calls,
        "frames": len(frames),
        "threads": 1,
        "processor": processor(),
        "timed_beside": arguments.beside,
        "versions": {
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "python": platform.python_version(),
        },
        "policy": policy_fingerprint(arguments.policy),
        "kept_layers": arguments.keep,
        "largest_difference_of_actions": parity,
        "ms": {name: summary(values) for name, values in times.items()},
        "times_faster_than_the_teacher_in_pytorch": {
            name: ratio(base, own, arguments.blocks) for name, own in times.items()
        },
        "two_layers_over_the_teacher_both_exported": ratio(
            export, times["two layers, ONNX Runtime"], arguments.blocks
        ),
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def observations(policy: VLA, seed: int, *, episodes: int = 28) -> list[Observation]:
    """What the policy sees in whole episodes, four of every task."""
    found: list[Observation] = []
    benchmark = Tabletop()
    for task, own in plan(benchmark, "seen", episodes, seed):
        run_task(policy, benchmark, task, own, on_look=found.append)
    return found


def furthest(one: Callable, other: Callable, frames: list[Observation]) -> float:
    """The largest difference between two ways' actions, over all frames, in the robot's numbers
    (range −1 to 1)."""
    return max(float(np.abs(one(frame) - other(frame)).max()) for frame in frames)


def interleaved(
    ways: dict[str, Callable], frames: list[Observation], calls: int
) -> dict[str, list[float]]:
    """Milliseconds of every way on every frame, in an order drawn anew."""
    for infer in ways.values():
        for index in range(WARM_UP):
            infer(frames[index % len(frames)])
    order = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for call in range(calls):
        frame = frames[call % len(frames)]
        for name in order.permutation(list(ways)):
            started = time.perf_counter()
            ways[name](frame)
            times[name].append((time.perf_counter() - started) * 1e3)
    return times


def summary(values: list[float]) -> dict[str, float]:
    return {
        "p50": float(np.percentile(values, 50)),
        "p95": float(np.percentile(values, 95)),
        "fastest": min(values),
    }


def ratio(slow: list[float], fast: list[float], blocks: int) -> dict[str, float]:
    """The ratio of the medians, and the smallest and largest that any tenth of the run has
    alone."""
    parts = []
    for ours, theirs in zip(
        np.array_split(slow, blocks), np.array_split(fast, blocks), strict=True
    ):
        parts.append(float(np.median(ours) / np.median(theirs)))
    whole = statistics.median(slow) / statistics.median(fast)
    return {"p50": whole, "least": min(parts), "most": max(parts)}


def processor() -> str:
    """The model's name as Linux has it; the platform's own word elsewhere."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main(tyro.cli(Arguments))
