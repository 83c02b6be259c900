"""CogACT: a run folder, from the picture to the chunk in the robot's units."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden import Golden, Line, equal, near
from PIL import Image
from torch import Tensor

from armlet.layers.action_dit import betas, kept_signal, spaced
from armlet.policies.contract import Backbone, Pass
from armlet.policies.pretrained import cogact
from armlet.policies.pretrained.cogact_network import GRIPPER, CogACT
from armlet.policies.pretrained.said import Said
from armlet.robot.description import Described
from armlet.robot.observation import Observation
from armlet.robot.outputs import decided
from armlet.types import Batch

FEATURE = 1e-4  # bound of tokens and features, as the README suggests
ACTION = 5e-5  # of samples and actions
NOTHING = np.zeros(7, np.float32)


def compare(folder: Path) -> Iterator[Line]:
    """Every quantity of a variant."""
    golden = Golden(dict(np.load(folder / "golden.npz")))
    said = json.loads((folder / "golden.json").read_text())
    policies = Policies(folder)
    yield from _keys(folder, policies)
    yield from _sizes(said["sizes"], policies)
    yield from _schedule(golden)
    for case in said["cases"]:
        yield from _case(golden, case, folder, policies)
    yield from _first(golden, said["cases"][0], folder, policies)
    yield from _batch(golden, said["cases"], folder, policies)
    golden.leave_out(
        [name for name in golden if name.endswith("__bf16_vlm_action")],
        "information: the original on a GPU, whose rounding is its own",
    )
    yield golden.rest()


class Policies:
    """The variant's checkpoint by its options, each loaded once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._loaded: dict[str, CogACT] = {}

    def said(self, **options: Any) -> Said:
        run = self.folder / "run"
        tokenizer = str(self.folder / "llama_hub")
        robot = Described(mode="delta", rotation="euler", control_hz=5.0)
        return Said(run, run, tokenizer=tokenizer, options=options, robot=robot)

    def of(self, **options: Any) -> CogACT:
        name = json.dumps(options, sort_keys=True)
        if name not in self._loaded:
            policy = cogact.load(self.said(**options), None)
            assert isinstance(policy, CogACT)
            self._loaded[name] = policy
        return self._loaded[name]

    def any_set(self) -> str:
        statistics = json.loads((self.folder / "run" / "dataset_statistics.json").read_text())
        return str(next(iter(statistics)))


def seen(case: dict[str, Any], folder: Path) -> Observation:
    picture = np.asarray(Image.open(folder / case["image"]).convert("RGB"))
    return Observation({"image": picture}, np.zeros(0, np.float32), case["instruction"], NOTHING)


def _keys(folder: Path, policies: Policies) -> Iterator[Line]:
    """Names, shapes and types of the checkpoint are those that are listed, and all find a place."""
    run = cogact.read(policies.said(unnorm_key=policies.any_set()))
    listed = {}
    for module, entries in json.loads((folder / "keys.json").read_text()).items():
        if module.startswith("_"):
            continue
        for name, (shape, dtype) in entries.items():
            listed[f"{module}.{name}"] = (tuple(shape), dtype)
    found = {}
    for name, header in run.tensors.items():
        found[name] = (header.shape, str(header.dtype).removeprefix("torch."))
    differing = set(listed.items()) ^ set(found.items())
    yield Line("names, shapes and types", len(differing), 0, f"{len(found)} tensors")


def _sizes(sizes: dict[str, Any], policies: Policies) -> Iterator[Line]:
    """What no shape tells, as far as the fixture says it."""
    policy = policies.of(unnorm_key=policies.any_set())
    llama, tokens, dit = sizes["llm"], sizes["tokens"], sizes["dit"]
    theirs = [
        *(sizes["dino"][name] for name in ("embed_dim", "depth", "num_heads")),
        *(sizes["siglip"][name] for name in ("embed_dim", "depth", "num_heads")),
        llama["num_attention_heads"],
        llama["num_key_value_heads"],
        llama["rms_norm_eps"],
        llama["tokenizer_vocab"],
        dit["num_heads"],
        dit["chunk"],
        tokens["empty"],
        tokens["eos"],
    ]
    ours = policy.sizes
    head = policy.head
    prompt = policy.inputs.words(["go"])[0][0]
    mine = [
        *(ours.dino.width, ours.dino.depth, ours.dino.heads),
        *(ours.siglip.width, ours.siglip.depth, ours.siglip.heads),
        ours.llama.heads,
        ours.llama.kv_heads,
        ours.llama.eps,
        ours.llama.vocabulary,
        head.net.blocks[0].attn.heads,
        head.chunk,
        prompt[-2],
        prompt[-1],
    ]
    yield equal("heads, eps, vocabulary, tokens", mine, theirs)


def _schedule(golden: Golden) -> Iterator[Line]:
    yield near("diffusion__betas", betas(), golden["diffusion__betas"], 1e-14)
    alphas = golden["diffusion__alphas_cumprod"]
    yield near("diffusion__alphas_cumprod", kept_signal(), alphas, 1e-14)
    ten = list(spaced(10))
    yield equal("diffusion__ddim10_timestep_map", ten, golden["diffusion__ddim10_timestep_map"])
    theirs = golden["diffusion__ddim10_alphas_cumprod"]
    yield near("diffusion__ddim10_alphas_cumprod", kept_signal()[ten], theirs, 1e-14)


@torch.no_grad()
def _case(golden: Golden, case: dict[str, Any], folder: Path, policies: Policies) -> Iterator[Line]:
    """One observation, every stage of the way."""
    prefix = f"case{case['case']}__"
    key = {"unnorm_key": case["unnorm_key"]}
    policy = policies.of(**key)
    observation = seen(case, folder)
    batch = policy.prepare([observation])
    resized = (batch.images["image"][0] * 255).round().byte().permute(1, 2, 0)
    yield equal(prefix + "resized_uint8", resized, golden[prefix + "resized_uint8"])
    yield equal(prefix + "input_ids", batch.text, golden[prefix + "input_ids"])
    run, tokens = _hidden(policy, batch)
    last = torch.stack([hidden[0, -1] for hidden in tokens])  # (l + 1, d)
    theirs = golden[prefix + "hidden_last_token"]
    yield near(prefix + "hidden_last_token", last, theirs, FEATURE)
    told = policy.signals(["condition"], batch, run)["condition"]
    yield near(prefix + "cognition", told[0], golden[prefix + "cognition"], FEATURE)
    untold = policy.head.net.z_embedder.uncondition[0]
    yield near(prefix + "uncondition", untold, golden[prefix + "uncondition"], 0.0)
    yield from _denoising(golden, prefix, policy, told)

    raw, actions = _answer(policy, observation, golden[prefix + "noise"])
    yield near(prefix + "raw_sample", raw[0], golden[prefix + "raw_sample"], ACTION)
    theirs = golden[prefix + "normalized_action"]
    yield near(prefix + "normalized_action", decided(raw[0].numpy(), GRIPPER), theirs, ACTION)
    yield near(prefix + "action", actions, golden[prefix + "action"], ACTION)
    yield equal(prefix + "gripper", actions[:, 6], golden[prefix + "action"][:, 6])
    plain = policies.of(**key, guidance=1.0)
    raw, actions = _answer(plain, observation, golden[prefix + "noise"])
    theirs = golden[prefix + "normalized_action_cfg1"]
    yield near(prefix + "normalized_action_cfg1", decided(raw[0].numpy(), GRIPPER), theirs, ACTION)
    yield near(prefix + "action_cfg1", actions, golden[prefix + "action_cfg1"], ACTION)


@torch.no_grad()
def _first(
    golden: Golden, case: dict[str, Any], folder: Path, policies: Policies
) -> Iterator[Line]:
    """What only the first case has."""
    prefix = f"case{case['case']}__"
    key = {"unnorm_key": case["unnorm_key"]}
    policy = policies.of(**key)
    observation = seen(case, folder)
    batch = policy.prepare([observation])
    every = slice(None, None, 16)
    pixels = policy.vision.pixels(batch.images["image"])
    for name, values in zip(("dino", "siglip"), pixels, strict=True):
        what = f"{prefix}pixel_values_{name}_every16th"
        yield near(what, values[0, :, every, every], golden[what], 1e-5)
    patches = policy.vision(batch.images["image"])
    theirs = golden[prefix + "vision_patches"]
    yield near(prefix + "vision_patches", patches[0], theirs, FEATURE)
    projected = policy.projector(patches)
    theirs = golden[prefix + "projected_patches"]
    yield near(prefix + "projected_patches", projected[0], theirs, FEATURE)
    _, tokens = _hidden(policy, batch)
    theirs = golden[prefix + "hidden_states"]
    yield near(prefix + "hidden_states", torch.cat(tokens), theirs, FEATURE)

    noise = golden[prefix + "noise"]
    fewer = policies.of(**key, steps=5)
    visited = fewer.head.visited[::-1]
    yield equal(prefix + "ddim5_timesteps", visited, golden[prefix + "ddim5_timesteps"])
    _, actions = _answer(fewer, observation, noise)
    yield near(prefix + "action_ddim5", actions, golden[prefix + "action_ddim5"], ACTION)
    if prefix + "action_ema" in golden:
        _, actions = _answer(policies.of(**key, use_ema=True), observation, noise)
        yield near(prefix + "action_ema", actions, golden[prefix + "action_ema"], ACTION)
        yield equal(prefix + "gripper, ema", actions[:, 6], golden[prefix + "action_ema"][:, 6])


@torch.no_grad()
def _batch(
    golden: Golden, cases: list[dict[str, Any]], folder: Path, policies: Policies
) -> Iterator[Line]:
    """All observations at once, each with its own noise, by the first one's statistics."""
    policy = policies.of(unnorm_key=cases[0]["unnorm_key"])
    batch = policy.prepare([seen(case, folder) for case in cases])
    noise = [golden[f"case{case['case']}__noise"] for case in cases]
    before = policy.head.noise
    policy.head.noise = torch.from_numpy(np.concatenate(noise)[None])  # (1, b, k, a)
    raw = policy(batch).numpy()
    policy.head.noise = before
    theirs = golden["batch__normalized_action"]
    yield near("batch__normalized_action", decided(raw.copy(), GRIPPER), theirs, ACTION)
    actions = policy.denormalise(raw)
    yield near("batch__action", actions, golden["batch__action"], ACTION)


def _hidden(policy: CogACT, batch: Batch) -> tuple[Pass, list[Tensor]]:
    """A pass, and the tokens (b, n, d) ahead of the first layer and behind each, the last after the
    final norm."""
    run = policy.run_layers(policy.embed(batch), batch, watch=True)
    tokens = [run.start.hidden, *(state.hidden for state in run.states)]
    tokens[-1] = policy.norm(tokens[-1])
    return run, tokens


def _denoising(golden: Golden, prefix: str, policy: CogACT, told: Tensor) -> Iterator[Line]:
    """The noise that is seen at each step, in what the original was fed there."""
    steps = golden[prefix + "ddim_timesteps"]
    yield equal(prefix + "ddim_timesteps", policy.head.visited[::-1], steps)
    fed = torch.from_numpy(golden[prefix + "ddim_x"])
    with_feature = []
    without = []
    for index, step in enumerate(steps.tolist()):
        found, untold = policy.head.epsilon(fed[index : index + 1], step, told)
        assert untold is not None
        with_feature.append(found[0])
        without.append(untold[0])
    expected = golden[prefix + "ddim_eps_cond"]
    yield near(prefix + "ddim_eps_cond", torch.stack(with_feature), expected, FEATURE)
    expected = golden[prefix + "ddim_eps_uncond"]
    yield near(prefix + "ddim_eps_uncond", torch.stack(without), expected, FEATURE)
    path = _path(policy, told, golden[prefix + "noise"])
    yield near(prefix + "ddim_x", path, golden[prefix + "ddim_x"], ACTION)


def _path(policy: CogACT, told: Tensor, noise: np.ndarray) -> Tensor:
    """What the network is fed at each step on its own way, (steps, k, a)."""
    fed: list[Tensor] = []
    guided = policy.head.guided

    def watched(noisy: Tensor, step: int, condition: Tensor) -> Tensor:
        fed.append(noisy[0])
        return guided(noisy, step, condition)

    policy.head.guided = watched  # type: ignore[method-assign]
    before = policy.head.noise
    policy.head.noise = torch.from_numpy(noise)
    policy.head(told)
    del policy.head.guided  # the class's own again
    policy.head.noise = before
    return torch.stack(fed)


def _answer(
    policy: Backbone, observation: Observation, noise: np.ndarray
) -> tuple[Tensor, np.ndarray]:
    """The sample (1, k, a), and the chunk (k, a) as the robot is told it."""
    assert isinstance(policy, CogACT)
    before = policy.head.noise
    policy.head.noise = torch.from_numpy(noise)
    batch = policy.prepare([replace(observation)])
    with torch.no_grad():
        raw = policy(batch)
    actions = policy.infer(observation)
    policy.head.noise = before
    return raw, actions
