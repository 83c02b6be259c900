"""What a large student needs of a GPU's memory while it trains, on paper: weights, gradients,
optimiser and activations of four teachers at real size, by what trains.

    python bench/memory.py [--batch 8] [--out docs/machinery/memory.json]

Weights are counted: the shapes of all tensors of the published checkpoints are in bench/shapes.json
(names with their layer numbers folded, a shape, how many). Activations are measured: one layer of
each kind (transformers' own, its linear layers in bfloat16 and the rest in single precision, as
`Stage.weights_precision` has them) at two small widths, with all the bytes that autograd keeps for
the way back; they are linear in width, and what lies at the real one follows. Nothing is run at
real size. Not counted: what a kernel needs for a moment, fragmentation, and CUDA itself (about 1 GB).
"""

import dataclasses
import fnmatch
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn

from armlet.recipe import LoRA
from armlet.training.lora import FACTORS, add_lora
from armlet.training.masters import halve

SHAPES = Path(__file__).with_name("shapes.json")
RANK = 32  # of the low-rank additions, on all linear layers of the backbone, as OpenVLA's own
GB = 1e9
Rows = list[tuple[str, list[int], int]]  # name, shape, how many


@dataclass(frozen=True)
class Block:
    """Layers of one kind: how many, and how many tokens of a sample go through each."""

    kind: str  # llama or siglip
    layers: int
    tokens: int
    width: int
    inner: int  # width of the MLP
    heads: int
    shared: int  # heads of keys and values
    head: int  # width of a head


@dataclass(frozen=True)
class Model:
    """A teacher at real size: patterns of the names of its backbone's layers and of its eyes, those
    that nothing reads, and its layers."""

    trunk: tuple[str, ...]
    eyes: tuple[str, ...]
    unread: tuple[str, ...]
    blocks: tuple[Block, ...]
    sight: tuple[Block, ...]


# Three cameras of 256 tokens, 48 or 200 words, a chunk of 50; the state is a token of pi0's chunk.
SO400M = Block("siglip", 27, 768, 1152, 4304, 16, 16, 72)
PI = Model(
    trunk=("*language_model.layers.*", "*gemma_expert.model.layers.*"),
    eyes=("*vision_tower*",),
    unread=("*lm_head*",),
    blocks=(
        Block("llama", 18, 816, 2048, 16384, 8, 1, 256),
        Block("llama", 18, 51, 1024, 4096, 8, 1, 256),
    ),
    sight=(SO400M,),
)
MODELS = {
    # 256 tokens of one picture, some 25 words, seven numbers.
    "OpenVLA": Model(
        trunk=("language_model.model.layers.*",),
        eyes=("vision_backbone.*",),
        unread=(),
        blocks=(Block("llama", 32, 288, 4096, 11008, 32, 32, 128),),
        sight=(
            Block("siglip", 24, 261, 1024, 4096, 16, 16, 64),
            dataclasses.replace(SO400M, tokens=256),
        ),
    ),
    "pi0": PI,
    "pi05": dataclasses.replace(
        PI,
        blocks=(
            dataclasses.replace(PI.blocks[0], tokens=968),
            dataclasses.replace(PI.blocks[1], tokens=50),
        ),
    ),
    # Three cameras of 64 tokens, 48 words and the state.
    "SmolVLA": Model(
        trunk=("*text_model.layers.*", "*lm_expert.layers.*"),
        eyes=("*vision_model*",),
        unread=("*lm_head*",),
        blocks=(
            Block("llama", 16, 241, 960, 2560, 15, 5, 64),
            Block("llama", 16, 50, 720, 2048, 15, 5, 64),
        ),
        sight=(Block("siglip", 12, 3072, 768, 3072, 12, 12, 64),),
    ),
}


@dataclass(frozen=True)
class Plan:
    """What trains, and how it is held."""

    trains: str = "layers"  # everything; layers: all but the eyes; lora
    half: bool = False  # half of the backbone's layers are left
    weights: str = "bf16"
    optimiser: str = "muon"  # of the backbone's matrices, and AdamW of the rest; or adamw
    recompute: bool = True


PLANS = {
    "everything_fp32_adamw": Plan("everything", weights="fp32", optimiser="adamw", recompute=False),
    "everything": Plan("everything"),
    "layers_kept": Plan(recompute=False),
    "layers": Plan(),
    "half_kept": Plan(half=True, recompute=False),
    "half": Plan(half=True),
    "lora_kept": Plan("lora", recompute=False),
    "lora": Plan("lora"),
    "half_lora": Plan("lora", half=True),
}


@dataclass
class Arguments:
    out: Path = Path("docs/machinery/memory.json")
    batch: int = 8


def _is(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def fixed_bytes(rows: Rows, model: Model, plan: Plan) -> dict[str, float]:
    """Bytes of weights (with masters, and the copies in bf16 that autocast makes of weights in single
    precision), gradients and optimiser."""
    found = dict.fromkeys(("weights", "gradients", "optimiser", "trained", "parameters"), 0.0)
    for name, shape, count in rows:
        if _is(name, model.unread):
            continue
        trunk = _is(name, model.trunk)
        number = math.prod(shape) * (count / 2 if trunk and plan.half else count)
        embedding = "embed" in name or "pos" in name
        matrix = len(shape) == 2 and not embedding  # of a linear layer
        trains = plan.trains == "everything" or not _is(name, model.eyes)
        if plan.trains == "lora":
            trains = False
            if trunk and matrix:  # two factors in single precision
                factors = RANK * sum(shape) * (count / 2 if plan.half else count)
                _train(found, factors, muon=False)
                found["weights"] += 4 * factors
                found["parameters"] += factors
        halved = matrix and plan.weights == "bf16"
        found["parameters"] += number
        found["weights"] += number * (2 if halved else 4)
        if matrix and not halved:
            found["weights"] += 2 * number
        if trains:
            _train(found, number, muon=plan.optimiser == "muon" and trunk and len(shape) == 2)
            found["weights"] += 4 * number if halved else 0  # its master
    return found


def _train(found: dict[str, float], number: float, *, muon: bool) -> None:
    """Gradients in single precision, and one average of them (Muon) or two (AdamW)."""
    found["trained"] += number
    found["gradients"] += 4 * number
    found["optimiser"] += (4 if muon else 8) * number


def layer(block: Block, share: int) -> tuple[nn.Module, Callable[[Tensor], Tensor], int]:
    """A layer of this kind whose width is a `share`-th, how to run it, and its width."""
    head = block.head // share
    width = block.width // share
    inner = block.inner // share
    if block.kind == "siglip":
        from transformers import SiglipVisionConfig
        from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

        eyes = SiglipVisionConfig(
            hidden_size=head * block.heads,
            intermediate_size=inner,
            num_attention_heads=block.heads,
            attn_implementation="sdpa",  # type: ignore[call-arg]
        )
        seen = SiglipEncoderLayer(eyes)
        return seen, lambda x: seen(x, attention_mask=None), head * block.heads
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=block.heads,
        num_key_value_heads=block.shared,
        head_dim=head,
        attn_implementation="sdpa",  # type: ignore[call-arg]
    )
    made = LlamaDecoderLayer(config, 0)
    rotary = LlamaRotaryEmbedding(config)

    def run(x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])[None]
        answer: Tensor = made(x, position_embeddings=rotary(x, places), attention_mask=None)
        return answer

    return made, run, width


def kept_bytes(block: Block, share: int, *, lora: bool) -> float:
    """Bytes that autograd keeps of a token in one layer of a `share`-th of the width."""
    torch.manual_seed(0)
    made, run, width = layer(block, share)
    halve(made)
    if lora:
        made.requires_grad_(False)
        add_lora(made, LoRA(rank=RANK, targets=("*",)))
        for name, parameter in made.named_parameters():
            parameter.requires_grad_(FACTORS in name)
    own = {each.untyped_storage().data_ptr() for each in made.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = 64
    x = torch.randn(1, tokens, width, requires_grad=True)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        answer = run(x)
    assert answer.requires_grad
    return sum(sizes.values()) / tokens


def token_bytes(block: Block, *, lora: bool) -> float:
    """Bytes that autograd keeps of a token in one layer of real width: what hangs on no width, and
    what grows with it, by two small widths."""
    small, large = (kept_bytes(block, share, lora=lora) for share in (8, 4))
    slope = (large - small) / (1 / 4 - 1 / 8)  # a whole width more
    return small + slope * (1 - 1 / 8)


def activations(model: Model, plan: Plan, batch: int, measured: dict[str, float]) -> float:
    """Bytes that are kept for the way back: in the backbone all, or, recomputed, what goes into each
    layer, the keys and values that later ones read, and all of one layer; in eyes that train all."""
    total = 0.0
    most = 0.0
    for block in model.blocks:
        layers = block.layers / 2 if plan.half else block.layers
        tokens = batch * block.tokens
        whole = tokens * measured[_name(block, lora=plan.trains == "lora")]
        if plan.recompute:
            # The stream in single precision, keys and values in bf16.
            total += layers * tokens * (4 * block.width + 2 * 2 * block.shared * block.head)
            most = max(most, whole)
        else:
            total += layers * whole
    if plan.trains == "everything":
        for block in model.sight:
            total += block.layers * batch * block.tokens * measured[_name(block, lora=False)]
    return total + most


def _name(block: Block, *, lora: bool) -> str:
    return f"{block.kind} {block.width} {block.inner}{' lora' if lora else ''}"


def measure() -> dict[str, float]:
    """Of every kind of layer: bytes a token."""
    found = {}
    for model in MODELS.values():
        for block in (*model.blocks, *model.sight):
            for lora in (False, True):
                name = _name(block, lora=lora)
                if name not in found:
                    found[name] = token_bytes(block, lora=lora)
    return found


def plans(
    rows: Rows, model: Model, batch: int, measured: dict[str, float]
) -> Iterator[tuple[str, dict[str, float]]]:
    """Every plan's parameters, in billions, and memory, in gigabytes."""
    for name, plan in PLANS.items():
        found = fixed_bytes(rows, model, plan)
        counted = {
            "parameters_billion": found["parameters"] / 1e9,
            "trained_billion": found["trained"] / 1e9,
        }
        parts = {
            "weights": found["weights"] / GB,
            "gradients": found["gradients"] / GB,
            "optimiser": found["optimiser"] / GB,
            "activations": activations(model, plan, batch, measured) / GB,
        }
        counted |= parts | {"total": sum(parts.values())}
        yield name, {key: round(value, 3) for key, value in counted.items()}


def main(arguments: Arguments) -> None:
    shapes = json.loads(SHAPES.read_text())
    measured = measure()
    models = {}
    for name, model in MODELS.items():
        models[name] = dict(plans(shapes[name], model, arguments.batch, measured))
    result = {
        "command": f"python bench/memory.py --batch {arguments.batch}",
        "batch": arguments.batch,
        "rank": RANK,
        "plans": {name: dataclasses.asdict(plan) for name, plan in PLANS.items()},
        "kilobytes_a_token_and_layer": {
            name: round(value / 1e3, 2) for name, value in measured.items()
        },
        "models": models,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, found in models.items():
        for plan, parts in found.items():
            print(f"{name:8} {plan:22}", *(f"{key} {value:7.2f}" for key, value in parts.items()))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
