"""Milliseconds of real-size checkpoints: SmolVLA (0.45 B), π0.5 (4.1 B) and OpenVLA (7.5 B), with
random weights, read by the loaders that read trained ones.

    python bench/real_size.py [--kinds openvla_hf pi05 smolvla] [--folder DIR] [--device cpu]
        [--out docs/machinery/real_size.json]

A checkpoint of each kind is written to `folder` in the layout, with the names, shapes and types of
the real one (tests/pretrained/golden: what the original projects' code has on torch's `meta`
device); its numbers are random, so its answers mean nothing. **Weights do not change
milliseconds.** Then, in one run, in an order drawn anew for every round, one decision is timed from
observation to action: all layers, three quarters, half, a quarter and one of them, chosen by a
router that draws them; all of them with a learned router in front, which is what routing costs; and
where the network denoises, ten steps and one.

On a GPU (`runs/gpu.sh`) also the same routes as CUDA graphs, beside the least that reading the weights
can take there (`captured.py`).

Says nothing about success. A policy needs its weights in memory, in the precision that is on disk
(15 GB for OpenVLA); what is written is deleted afterwards unless `--keep`.
"""

import dataclasses
import json
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import captured
import numpy as np
import torch
import tyro
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from armlet import source
from armlet.evaluation.measure import processor
from armlet.policies.checkpoint import load_policy
from armlet.policies.contract import Backbone
from armlet.policies.precisions import long_name, most_of
from armlet.policies.routed import Calibration, Routed, Routing
from armlet.robot.observation import Observation

LISTS = Path(__file__).parents[1] / "tests" / "pretrained" / "golden"
SHARES = (0.75, 0.5, 0.25)
SHARD = 4 * 10**9  # bytes of a file
ROBOT = """
[robot]
mode = "delta"
rotation = "none"
grippers = []
control_hz = 10
"""
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "int64": torch.int64}


@dataclasses.dataclass
class Arguments:
    kinds: tuple[str, ...] = ("openvla_hf", "pi05", "smolvla")
    folder: Path = Path("out/real-size")
    device: str = "cpu"
    threads: int = 2
    rounds: int = 5
    out: Path = Path("docs/machinery/real_size.json")
    keep: bool = False
    beside: str = "nothing else on the machine"
    """What else ran meanwhile, for the report."""


Shapes = Iterator[tuple[str, tuple[int, ...], torch.dtype]]


def main(asked: Arguments) -> None:
    torch.set_num_threads(asked.threads)
    rows = []
    for kind in asked.kinds:
        folder = asked.folder / kind
        say(f"{kind}: writing random weights to {folder}")
        began = time.perf_counter()
        teacher = MAKERS[kind](folder)
        say(f"{kind}: written in {time.perf_counter() - began:.0f} s; loading")
        began = time.perf_counter()
        policy = load_policy(teacher, device=asked.device)
        loading = time.perf_counter() - began
        say(f"{kind}: loaded in {loading:.1f} s")
        rows.append({"kind": kind, "loading_s": loading, **measured(policy, asked)})
        del policy
        if not asked.keep:
            shutil.rmtree(folder)
        report(rows, asked)


# Timing


def measured(policy: Backbone, asked: Arguments) -> dict[str, Any]:
    """Medians in milliseconds, by name, of decisions that are timed in turn."""
    seen = observation(policy)
    ways = dict(variants(policy))
    with torch.inference_mode():
        times: dict[str, list[float]] = {name: [] for name in ways}
        first = timed(ways["all layers"], seen, asked.device)
        say(f"  warming up: {1000 * first:.0f} ms")
        for number in range(1, asked.rounds + 1):
            order = list(ways)
            random.Random(number).shuffle(order)
            for name in order:
                took = timed(ways[name], seen, asked.device)
                times[name].append(took)
                say(f"  round {number} {name}: {1000 * took:.0f} ms")
        graphs = on_gpu(policy, seen, asked) if asked.device != "cpu" else None
    medians = {name: 1000 * statistics.median(each) for name, each in times.items()}
    spread = {name: [1000 * min(each), 1000 * max(each)] for name, each in times.items()}
    full = medians["all layers"]
    count = len(policy.layers)
    layer = (full - medians["one layer"]) / (count - 1)  # what one costs
    ran = round(count / 2)  # as RandomRouter rounds
    saved = full - medians["50 % of the layers"]
    found = {
        "parameters": sum(each.numel() for each in policy.parameters()),
        "dtype": long_name(most_of(policy)),
        "layers": count,
        "layer_ms": layer,
        "milliseconds": medians,
        "least_and_most": spread,
        # Of what the skipped half of the layers costs, the share that skipping them saves.
        "saved_of_half": saved / ((count - ran) * layer) if layer > 0 else None,
        "routing": medians["all layers, with a router"] / full - 1,
    }
    return found if graphs is None else {**found, "graphs": graphs}


def on_gpu(policy: Backbone, seen: Observation, asked: Arguments) -> dict[str, Any]:
    """Decisions as CUDA graphs, with as many steps of denoising as usual, and with one."""
    routes = captured.routes_of(policy, SHARES)
    found = captured.measured(policy, seen, routes, asked.rounds, say)
    if steps_of(policy) is not None:
        with few_steps(policy, 1):
            fewer = captured.measured(policy, seen, routes, asked.rounds, say)
        for name, row in fewer["routes"].items():
            found["routes"][f"{name}, 1 step"] = row
    return found


def variants(policy: Backbone) -> Iterator[tuple[str, Callable[[Observation], Any]]]:
    """Ways to decide with the same weights; nothing is copied."""
    yield "all layers", policy.decide
    for share in SHARES:
        yield f"{share:.0%} of the layers".replace("%", " %"), routed(policy, share).decide
    yield "one layer", routed(policy, 1 / len(policy.layers)).decide
    # A learned router whose threshold lets every layer run: what asking it costs.
    calm = Routed(policy, Routing(), Calibration(threshold=-1e9))  # type: ignore[abstract]
    yield "all layers, with a router", calm.to(policy.device).eval().decide
    if steps_of(policy) is not None:
        yield "all layers, 1 step", lambda seen: with_steps(policy, policy, 1, seen)
        half = routed(policy, 0.5)
        yield "50 % of the layers, 1 step", lambda seen: with_steps(half, policy, 1, seen)


def routed(policy: Backbone, share: float) -> Backbone:
    """The policy with so many of its layers, drawn at random for each observation."""
    routing = Routing(chooser="random", initial_keep=share)
    wrapped = Routed(policy, routing)  # type: ignore[abstract]
    return wrapped.to(policy.device).eval()


def steps_of(policy: Backbone) -> int | None:
    """Of denoising, where there are any."""
    place = sizes_of(policy)
    return None if place is None else getattr(policy, place).steps


def sizes_of(policy: Backbone) -> str | None:
    """The attribute in which a network keeps its sizes, where steps of denoising are among them."""
    for name in ("sizes", "network"):
        if isinstance(getattr(getattr(policy, name, None), "steps", None), int):
            return name
    return None


def with_steps(way: Backbone, policy: Backbone, steps: int, seen: Observation) -> Any:
    with few_steps(policy, steps):
        return way.decide(seen)


@contextmanager
def few_steps(policy: Backbone, steps: int) -> Iterator[None]:
    """So many steps of denoising while it lasts."""
    place = sizes_of(policy)
    assert place is not None  # `steps_of` found them
    before = getattr(policy, place)
    setattr(policy, place, dataclasses.replace(before, steps=steps))
    try:
        yield
    finally:
        setattr(policy, place, before)


def timed(way: Callable[[Observation], Any], seen: Observation, device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    began = time.perf_counter()
    way(seen)
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def observation(policy: Backbone) -> Observation:
    """Random pictures of the cameras' sizes, a state of zeros, and words."""
    random_numbers = np.random.default_rng(0)
    images = {}
    for name, (height, width) in policy.view.cameras.items():
        images[name] = random_numbers.integers(0, 256, (height, width, 3), np.uint8)
    state = np.zeros(len(policy.body.state.offset), np.float32)
    done = np.zeros(policy.dims, np.float32)
    return Observation(images, state, "pick up the red block and put it into the bowl", done)


# Checkpoints of random numbers in the real layout


def smolvla(folder: Path) -> Path:
    cameras = {f"observation.images.camera{number}": [3, 256, 256] for number in (1, 2, 3)}
    said = lerobot_config("smolvla", cameras, state=6, action=6)
    said |= {
        "chunk_size": 50,
        "n_action_steps": 50,
        "max_state_dim": 32,
        "max_action_dim": 32,
        "resize_imgs_with_padding": [512, 512],
        "empty_cameras": 0,
        "tokenizer_max_length": 48,
        "num_steps": 10,
        "use_cache": True,
        "vlm_model_name": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        "add_image_special_tokens": False,
        "attention_mode": "cross_attn",
        "prefix_length": -1,
        "pad_language_to": "longest",
        "num_expert_layers": -1,
        "num_vlm_layers": 16,
        "self_attn_every_n_layers": 2,
        "expert_width_multiplier": 0.75,
        "min_period": 0.004,
        "max_period": 4.0,
    }
    tokenizer = {
        "tokenizer_name": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        "max_length": 48,
        "padding": "max_length",
        "padding_side": "right",
        "truncation": True,
        "task_key": "task",
    }
    steps = [("smolvla_new_line_processor", {}), ("tokenizer_processor", tokenizer)]
    write_lerobot(folder, said, steps, smolvla_shapes())
    return write_toml(folder, words(folder / "words", 49280, "<|im_end|>"))


def pi05(folder: Path) -> Path:
    cameras = {}
    for name in ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"):
        cameras[f"observation.images.{name}"] = [3, 224, 224]
    said = lerobot_config("pi05", cameras, state=8, action=7)
    said |= {
        "paligemma_variant": "gemma_2b",
        "action_expert_variant": "gemma_300m",
        "dtype": "bfloat16",
        "chunk_size": 50,
        "n_action_steps": 50,
        "max_state_dim": 32,
        "max_action_dim": 32,
        "num_inference_steps": 10,
        "min_period": 0.004,
        "max_period": 4.0,
        "use_relative_actions": False,
        "relative_exclude_joints": ["gripper"],
        "image_resolution": [224, 224],
        "empty_cameras": 0,
        "tokenizer_max_length": 200,
    }
    tokenizer = {
        "tokenizer_name": "google/paligemma-3b-pt-224",
        "max_length": 200,
        "padding": "max_length",
        "padding_side": "right",
        "truncation": True,
        "task_key": "task",
    }
    steps = [
        ("pi05_prepare_state_tokenizer_processor_step", {}),
        ("tokenizer_processor", tokenizer),
    ]
    write_lerobot(folder, said, steps, pi05_shapes())
    return write_toml(folder, words(folder / "words", 257152, "<eos>"))


def openvla_hf(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    statistics_of = {}
    for name, values in (("q01", [-1.0] * 7), ("q99", [1.0] * 7), ("mask", [True] * 6 + [False])):
        statistics_of[name] = values
    for name, value in (("min", -1.0), ("max", 1.0), ("mean", 0.0), ("std", 1.0)):
        statistics_of[name] = [value] * 7
    said = {
        "architectures": ["OpenVLAForActionPrediction"],
        "model_type": "openvla",
        "arch_specifier": "no-align+fused-gelu-mlp",
        "hf_llm_id": "meta-llama/Llama-2-7b-hf",
        "llm_backbone_id": "llama2-7b-pure",
        "image_resize_strategy": "resize-naive",
        "image_sizes": [224, 224],
        "llm_max_length": 2048,
        "n_action_bins": 256,
        "norm_stats": {"random": {"action": statistics_of}},
        "pad_to_multiple_of": 64,
        "pad_token_id": 32000,
        "text_config": {"model_type": "llama", "vocab_size": 32064, "pad_token_id": 32000},
        "timm_model_ids": [
            "vit_large_patch14_reg4_dinov2.lvd142m",
            "vit_so400m_patch14_siglip_224",
        ],
        "timm_override_act_layers": [None, None],
        "torch_dtype": "bfloat16",
        "use_fused_vision_backbone": True,
        "vision_backbone_id": "dinosiglip-vit-so-224px",
    }
    (folder / "config.json").write_text(json.dumps(said))
    pixels = {
        "image_resize_strategy": "resize-naive",
        "input_sizes": [[3, 224, 224], [3, 224, 224]],
        "interpolations": ["bicubic", "bicubic"],
        "means": [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]],
        "stds": [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    write_tensors(folder, openvla_shapes())
    options = '[options]\nunnorm_key = "random"\n'
    return write_toml(folder, words(folder / "words", 32000, "</s>"), options)


def lerobot_config(
    kind: str, cameras: dict[str, list[int]], *, state: int, action: int
) -> dict[str, Any]:
    inputs = {key: {"type": "VISUAL", "shape": shape} for key, shape in cameras.items()}
    inputs["observation.state"] = {"type": "STATE", "shape": [state]}
    return {
        "type": kind,
        "n_obs_steps": 1,
        "input_features": inputs,
        "output_features": {"action": {"type": "ACTION", "shape": [action]}},
        "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
    }


def write_lerobot(
    folder: Path, said: dict[str, Any], prompt: list[tuple[str, dict[str, Any]]], shapes: Shapes
) -> None:
    """A policy folder of LeRobot: its config, processors with statistics of mean 0 and deviation 1,
    and weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(said))
    features = {**said["input_features"], **said["output_features"]}
    norms = {"eps": 1e-8, "features": features, "norm_map": said["normalization_mapping"]}
    numbers = {}
    for key in ("observation.state", "action"):
        count = features[key]["shape"][0]
        numbers[f"{key}.mean"] = torch.zeros(count)
        numbers[f"{key}.std"] = torch.ones(count)
    for name in ("policy_preprocessor", "policy_postprocessor"):
        save_file(numbers, folder / f"{name}_statistics.safetensors")
    before: list[dict[str, Any]] = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
    ]
    normalise = {"registry_name": "normalizer_processor", "config": norms}
    before.append({**normalise, "state_file": "policy_preprocessor_statistics.safetensors"})
    for step, config in prompt:
        before.append({"registry_name": step, "config": config})
    back = {"registry_name": "unnormalizer_processor", "config": norms}
    after = [{**back, "state_file": "policy_postprocessor_statistics.safetensors"}]
    for name, steps in (("policy_preprocessor", before), ("policy_postprocessor", after)):
        text = json.dumps({"name": name, "steps": steps})
        (folder / f"{name}.json").write_text(text)
    write_tensors(folder, shapes, sharded=False)


def write_tensors(folder: Path, shapes: Shapes, *, sharded: bool = True) -> None:
    """Random weights, small enough that nothing overflows; those of norms are 1."""
    numbers = torch.randn(2**20, generator=torch.Generator().manual_seed(0)) * 0.02
    places = {}
    shard: dict[str, torch.Tensor] = {}
    size = 0
    count = 0

    def save() -> None:
        nonlocal count, size
        count += 1
        name = f"model-{count:05d}.safetensors" if sharded else "model.safetensors"
        save_file(shard, folder / name)
        places.update(dict.fromkeys(shard, name))
        shard.clear()
        size = 0

    for name, shape, dtype in shapes:
        wanted = int(np.prod(shape))
        if len(shape) == 1 and name.endswith("weight"):  # of a norm
            tensor = torch.ones(shape, dtype=dtype)
        else:
            # The same million numbers again and again: what they are changes no millisecond.
            repeated = numbers.to(dtype).repeat(-(-wanted // len(numbers)))
            tensor = repeated[:wanted].reshape(shape).clone()
        shard[name] = tensor
        size += tensor.nbytes
        if sharded and size > SHARD:
            save()
    if shard:
        save()
    if sharded:
        index = json.dumps({"metadata": {}, "weight_map": places})
        (folder / "model.safetensors.index.json").write_text(index)


def words(folder: Path, vocabulary: int, end: str) -> Path:
    """A tokenizer of so many entries that reads letter by letter: which words are ids does not
    matter here."""
    special = ["<unk>", "<s>", "</s>", "<pad>", "<bos>", "<eos>", "▁", "\n", end]
    letters = [chr(number) for number in range(32, 127)]
    entries = list(dict.fromkeys([*special, *letters]))
    filler = [f"<extra {number}>" for number in range(vocabulary - len(entries))]
    names = {name: number for number, name in enumerate([*entries, *filler])}
    tokenizer = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_toml(folder: Path, tokenizer: Path, options: str = "") -> Path:
    path = folder / "policy.toml"
    said = f'precision = "as_saved"\ntokenizer = {json.dumps(tokenizer.name)}\n'
    path.write_text(said + options + ROBOT)
    return path


def openvla_shapes() -> Shapes:
    for line in (LISTS / "openvla_hf" / "full_keys.txt").read_text().splitlines():
        name, shape, dtype, count = line.split()
        sides = tuple(map(int, shape.split("x")))
        for number in range(int(count)):
            yield name.replace(".N.", f".{number}."), sides, DTYPES[dtype]


def pi05_shapes() -> Shapes:
    said = json.loads((LISTS / "pi05" / "full_keys.json").read_text())
    for name, (count, dtype, shape) in said.items():
        for number in range(count):
            yield name.replace(".#.", f".{number}."), tuple(shape), DTYPES[dtype]


def smolvla_shapes() -> Shapes:
    for name, shape, *numbers in json.loads((LISTS / "smolvla" / "full_keys.json").read_text()):
        for number in numbers[0] if numbers else [0]:
            yield name.replace(".N.", f".{number}."), tuple(shape), torch.bfloat16


MAKERS: dict[str, Callable[[Path], Path]] = {
    "smolvla": smolvla,
    "pi05": pi05,
    "openvla_hf": openvla_hf,
}


def report(rows: list[dict[str, Any]], asked: Arguments) -> None:
    said = {
        "random_weights": True,
        "device": torch.cuda.get_device_name() if asked.device != "cpu" else processor(),
        "threads": asked.threads,
        "rounds": asked.rounds,
        "torch": torch.__version__,
        "beside": asked.beside,
        "armlet": source.identity(),
        "kinds": rows,
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(said, indent=1) + "\n")


def say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
