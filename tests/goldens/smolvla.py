"""SmolVLA: LeRobot's answers against armlet's, from the same folder. A variant holds a policy folder
(`pretrained_model`, its config and processors once more as 0.4.4 wrote them), the VLM's own folder,
and what 0.6.1 and 0.4.4 answered; a folder from before 0.4 holds the weights alone and answers as
the variant that it is of."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden import Golden, Line, equal, near
from safetensors.torch import load_file
from torch import Tensor

from armlet.policies.contract import Pass
from armlet.policies.pretrained import kinds
from armlet.policies.pretrained.files import open_safetensors
from armlet.policies.pretrained.lerobot import Folder, camera_name
from armlet.policies.pretrained.smolvla_network import PrefixState, SmolVLA
from armlet.robot.observation import Observation
from armlet.types import Batch

PIXELS = 1e-6
HIDDEN = 1e-4  # relative
STEP = 1e-5  # of a velocity, and of one denoising step
STEPS = 2e-4  # of ten
LOSS = 1e-5  # relative
SAID = """
checkpoint = "{checkpoint}"
[options]
vlm = "{vlm}"
{options}
[robot]
mode = "absolute"
rotation = "none"
grippers = []
control_hz = 10.0
"""


def compare(folder: Path) -> Iterator[Line]:
    """All lines of a variant."""
    if not (folder / "pretrained_model").is_dir():
        yield from _before(folder)
        return
    inputs = load_file(folder / "inputs.safetensors")
    theirs = Golden(_arrays(folder / "outputs.safetensors"))
    policy = loaded(folder, folder / "pretrained_model")
    yield from _whole(policy, folder, inputs, theirs)
    yield theirs.rest()
    with tempfile.TemporaryDirectory() as place:
        again = Path(place) / "written_by_0.4.4"
        shutil.copytree(folder / "written_by_0.4.4", again)
        (again / "model.safetensors").symlink_to(
            (folder / "pretrained_model" / "model.safetensors").resolve()
        )
        yield from _same(loaded(folder, again), policy, folder, inputs, "written by 0.4.4")
        options = 'vision_positions = "shifted"\nloss = "padded"'
        shifted = loaded(folder, again, options)
    for file in sorted(folder.glob("outputs_lerobot_0.4.4*.safetensors")):
        others = Golden(_arrays(file))
        for line in _older(shifted, folder, inputs, others):
            yield replace(line, name=f"0.4.4: {line.name}")
        yield replace(others.rest(), name="0.4.4: quantities left out")


def loaded(
    folder: Path, checkpoint: Path, options: str = "", variant: Path | None = None
) -> SmolVLA:
    """A checkpoint of a variant through the real loader. Cameras that its inputs lack are missing."""
    there = load_file((variant or folder) / "inputs.safetensors")
    read = Folder.read(checkpoint)
    missing = []
    for name, key in read.camera_keys.items():
        back = {ours: theirs for theirs, ours in read.renamed.items()}
        if back.get(key, key) not in there:
            missing.append(name)
    said = SAID.format(
        checkpoint=checkpoint.resolve(),
        vlm=((variant or folder) / "vlm").resolve(),
        options=f"{options}\nmissing = {json.dumps(missing)}",
    )
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "policy.toml"
        file.write_text(said)
        policy = kinds.load(file)
    assert isinstance(policy, SmolVLA)
    return policy


def batch_of(policy: SmolVLA, folder: Path, inputs: dict[str, Tensor]) -> Batch:
    """The inputs as a robot would give them, with what is to be imitated."""
    observations = observations_of(policy, folder, inputs)
    batch = policy.prepare(observations)
    actions = policy.body.actions.apply(inputs["action"].numpy()).astype(np.float32)
    return replace(batch, actions=torch.from_numpy(actions), actions_valid=~inputs["action_is_pad"])


def observations_of(policy: SmolVLA, folder: Path, inputs: dict[str, Tensor]) -> list[Observation]:
    tasks = json.loads((folder / "fixture.json").read_text())["tasks"]
    pictures = {}
    for key, values in inputs.items():
        if key.startswith("observation.image"):
            pictures[camera_name(key)] = values.numpy()
    found = []
    for row, task in enumerate(tasks):
        seen = {name: pictures[name][row] for name in policy.view.cameras}
        state = inputs["observation.state"][row].numpy()
        before = np.zeros(policy.dims, np.float32)
        found.append(
            Observation(images=seen, state=state, instruction=task, previous_action=before)
        )
    return found


def answer(policy: SmolVLA, batch: Batch, noise: Tensor, steps: int) -> dict[str, Any]:
    """The actions from some noise (b, k, A), and everything on the way."""
    kept: dict[str, Any] = {"x_t": [], "v_t": [], "times": [], "expert": [], "normed": []}
    plain = policy.sizes
    policy.sizes = replace(plain, steps=steps)
    drawn = policy.noise
    policy.noise = noise
    real = policy.velocity

    def watched(run: Any, memory: Any, x: Tensor, time: Tensor) -> Tensor:
        kept["expert"].append([])
        velocity = real(run, memory, x, time)
        kept["x_t"].append(x)
        kept["v_t"].append(velocity)
        kept["times"].append(time)
        return velocity

    hooks = _watch_expert(policy, kept)
    policy.velocity = watched  # type: ignore[method-assign]
    try:
        with torch.inference_mode():
            run = policy.run_layers(policy.embed(batch), batch, watch=True)
            kept["actions"] = policy.decode(run, batch)
    finally:
        policy.sizes = plain
        policy.noise = drawn
        del policy.velocity
        for hook in hooks:
            hook.remove()
    kept["run"] = run
    step = -1 / steps
    kept["padded"] = kept["x_t"][-1] + step * kept["v_t"][-1]
    return kept


def _watch_expert(policy: SmolVLA, kept: dict[str, Any]) -> list[Any]:
    """What enters each layer of the expert, leaves the last, and that normed, a list a step."""

    def entering(_: Any, arguments: Any) -> None:
        kept["expert"][-1].append(arguments[0])

    def normed(_: Any, arguments: Any, result: Tensor) -> None:
        kept["expert"][-1].append(arguments[0])
        kept["normed"].append(result)

    hooks = [policy.norm.register_forward_hook(normed)]
    for pair in policy.layers:
        if pair.expert is not None:
            hooks.append(pair.expert.register_forward_pre_hook(entering))
    return hooks


def _whole(
    policy: SmolVLA, folder: Path, inputs: dict[str, Tensor], theirs: Golden
) -> Iterator[Line]:
    """Everything that 0.6.1 answered."""
    batch = batch_of(policy, folder, inputs)
    yield from _prepared(policy, batch, theirs)
    ten = answer(policy, batch, inputs["noise"], 10)
    run: Pass[PrefixState] = ten["run"]
    yield from _prefix(policy, batch, run.start, theirs)
    final = _final_norm(folder)
    yield from _language(policy, run, final, theirs, "")
    yield from _suffix(policy, inputs, ten, theirs)
    for which, name in ((0, "first_step"), (-1, "last_step")):
        yield from _expert(ten, which, f"hidden.{name}", theirs)
    for number, steps in ((10, ten), (1, answer(policy, batch, inputs["noise"], 1))):
        bound = STEPS if number > 1 else STEP
        yield from _steps(policy, inputs, steps, number, bound, theirs)
    yield from _trained(policy, batch, inputs, run, final, theirs)
    for row in range(len(batch)):
        yield from _alone(policy, folder, inputs, row, theirs)


def _prepared(policy: SmolVLA, batch: Batch, theirs: Golden) -> Iterator[Line]:
    yield near("pre.observation.state", batch.state, theirs["pre.observation.state"], PIXELS * 10)
    tokens = "pre.observation.language.tokens"
    yield equal(tokens, batch.text, theirs[tokens])
    mask = "pre.observation.language.attention_mask"
    yield equal(mask, batch.text_mask, theirs[mask])
    pictures = policy.pictures(batch)
    real = len(pictures)
    pictures += [torch.full_like(pictures[-1], -1)] * policy.sizes.blanks
    for index, picture in enumerate(pictures):
        yield near(f"model.image.{index}", picture, theirs[f"model.image.{index}"], PIXELS)
        mask = np.full(len(batch), index < real)
        yield equal(f"model.image_mask.{index}", mask, theirs[f"model.image_mask.{index}"])
    lacking = policy.sizes.state_room - batch.state.shape[1]
    state = torch.nn.functional.pad(batch.state, (0, lacking))
    yield near("model.state", state, theirs["model.state"], PIXELS * 10)


def _prefix(policy: SmolVLA, batch: Batch, start: PrefixState, theirs: Golden) -> Iterator[Line]:
    for index, picture in enumerate(policy.pictures(batch)):
        last = f"vision.last_hidden.image{index}"
        if last not in theirs:
            continue
        with torch.inference_mode():
            patches = policy.tower.patches(picture)
            tokens = policy.tower.connect(patches)
        yield near(last, patches, theirs[last], HIDDEN, relative=True)
        connected = f"vision.connector.image{index}"
        yield near(connected, tokens, theirs[connected], HIDDEN, relative=True)
    name = "prefix.embeddings"
    yield near(name, start.hidden, theirs[name], HIDDEN, relative=True)
    yield equal("prefix.pad_mask", start.mask, theirs["prefix.pad_mask"])
    yield equal("prefix.att_mask", start.own, theirs["prefix.att_mask"])
    yield equal("prefix.attention_2d", start.attention[:, 0] == 0, theirs["prefix.attention_2d"])
    yield equal("prefix.position_ids", start.positions, theirs["prefix.position_ids"])


def _language(
    policy: SmolVLA,
    run: Pass[PrefixState],
    final: Callable[[Tensor], Tensor],
    theirs: Golden,
    room: str,
) -> Iterator[Line]:
    """What enters and leaves each layer of the language model, and what these keep."""
    entering = [state.hidden for state in (run.start, *run.states)]
    found = {}
    for index in range(len(policy.layers)):
        found[f"{room}hidden.vlm.in.{index}"] = entering[index]
    found[f"{room}hidden.vlm.out"] = entering[-1]
    found[f"{room}hidden.vlm.normed"] = final(entering[-1])
    # A token of padding sees nothing and has the mean of all; while it trains, the original runs
    # prefix and actions together, and that is a mean over the actions, too. Nobody reads it.
    rows = run.start.mask if room else torch.ones_like(run.start.mask)
    for name, hidden in found.items():
        yield near(name, hidden[rows], theirs[name][rows.numpy()], HIDDEN, relative=True)
    if room:
        return
    for index in range(len(policy.layers)):
        for kept, name in (
            (run.state.keys[index], f"cache.{index}.keys_after_rope"),
            (run.state.values[index], f"cache.{index}.values"),
        ):
            yield near(name, kept, theirs[name], HIDDEN, relative=True)


def _suffix(
    policy: SmolVLA, inputs: dict[str, Tensor], steps: dict[str, Any], theirs: Golden
) -> Iterator[Line]:
    count = len(inputs["noise"])
    with torch.inference_mode():
        tokens = policy.suffix(inputs["noise"], torch.ones(count))
        times = policy.time_features(torch.tensor([1.0, 0.3]))
        memory = policy.memory(steps["run"])
    name = "suffix.embeddings_at_t1"
    yield near(name, tokens, theirs[name], HIDDEN, relative=True)
    name = "time_embedding_at_t1_and_t0.3"
    yield near(name, times, theirs[name], PIXELS)
    # Masks of theirs in one dimension, of ours in two: who sees whom must come out alike.
    block = theirs["suffix.att_mask"].cumsum(1)
    real = theirs["suffix.pad_mask"]
    sees = (block[:, None] <= block[:, :, None]) & real[:, None] & real[:, :, None]
    mask = memory.sights["self"][1][:, 0, :, -policy.chunk :]
    yield equal("suffix: which actions see which", mask, sees)


def _expert(steps: dict[str, Any], which: int, room: str, theirs: Golden) -> Iterator[Line]:
    *entering, out = steps["expert"][which]
    for index, hidden in enumerate(entering):
        name = f"{room}.expert.in.{index}"
        yield near(name, hidden, theirs[name], HIDDEN, relative=True)
    name = f"{room}.expert.out"
    yield near(name, out, theirs[name], HIDDEN, relative=True)
    name = f"{room}.expert.normed"
    yield near(name, steps["normed"][which], theirs[name], HIDDEN, relative=True)


def _steps(
    policy: SmolVLA,
    inputs: dict[str, Tensor],
    steps: dict[str, Any],
    number: int,
    bound: float,
    theirs: Golden,
) -> Iterator[Line]:
    room = f"steps{number}"
    state = inputs["observation.state"].numpy()
    found = {
        "times": (torch.stack(steps["times"]), PIXELS),
        "x_t": (torch.stack(steps["x_t"]), bound),
        "v_t": (torch.stack(steps["v_t"]), bound),
        "actions_padded": (steps["padded"], bound),
        "actions_normalised": (steps["actions"], bound),
        "actions": (policy.denormalise(steps["actions"].numpy(), state), bound),
    }
    for what, (values, most) in found.items():
        name = f"{room}.{what}"
        if name in theirs:
            # Only the last are in the robot's numbers, which may be of any size.
            scaled = _scaled(theirs[name], most) if what == "actions" else most
            yield near(name, values, theirs[name], scaled)


def _scaled(values: np.ndarray, bound: float) -> float:
    """A bound for numbers of about 1, for those of a robot."""
    return bound * max(1.0, float(np.abs(values).max()))


def _trained(
    policy: SmolVLA,
    batch: Batch,
    inputs: dict[str, Tensor],
    run: Pass[PrefixState],
    final: Callable[[Tensor], Tensor],
    theirs: Golden,
) -> Iterator[Line]:
    """The training loss, masked and not, and the pass that made it."""
    kept: dict[str, Any] = {"expert": [[]], "normed": []}
    hooks = _watch_expert(policy, kept)
    noise, time = inputs["train.noise"], inputs["train.time"]
    actions, valid = batch.targets()
    with torch.inference_mode():
        errors = policy.flow_errors(run, actions, noise, time)
        for hook in hooks:
            hook.remove()
        masked = policy.flow_loss(run, actions, valid.float(), noise, time)
        every = policy.flow_loss(run, actions, torch.ones_like(valid).float(), noise, time)
    lacking = policy.sizes.action_room - policy.dims
    padded = torch.nn.functional.pad(actions, (0, lacking))
    yield near("train.action_normalised", actions, theirs["train.action_normalised"], STEP)
    yield near("train.action_padded", padded, theirs["train.action_padded"], STEP)
    name = "train.losses_elementwise_padded"
    yield near(name, errors, theirs[name], HIDDEN, relative=True)
    weights = valid.sum(1)
    for name, each, mean in (
        ("masked", masked, (masked * weights).sum() / weights.sum()),
        ("unmasked", every, every.mean()),
    ):
        one = f"train.loss_per_sample.{name}"
        yield near(one, each, theirs[one], LOSS, relative=True)
        yield near(f"train.loss.{name}", mean, theirs[f"train.loss.{name}"], LOSS, relative=True)
    yield from _language(policy, run, final, theirs, "train.")
    yield from _expert(kept, 0, "train.hidden", theirs)


def _alone(
    policy: SmolVLA, folder: Path, inputs: dict[str, Tensor], row: int, theirs: Golden
) -> Iterator[Line]:
    """A row alone, as a robot asks: its own answer, and through `infer`."""
    room = f"alone{row}"
    if f"{room}.actions" not in theirs:
        return
    seen = observations_of(policy, folder, inputs)[row]
    batch = policy.prepare([seen])
    name = f"{room}.pre.observation.state"
    yield near(name, batch.state, theirs[name], PIXELS * 10)
    for name, values in (("tokens", batch.text), ("attention_mask", batch.text_mask)):
        full = f"{room}.pre.observation.language.{name}"
        yield equal(full, values, theirs[full])
    drawn = policy.noise
    policy.noise = inputs["noise"][row]
    try:
        actions = policy.infer(seen)
    finally:
        policy.noise = drawn
    name = f"{room}.actions"
    yield near(name, actions[None], theirs[name], _scaled(theirs[name], STEPS))


def _same(
    policy: SmolVLA, other: SmolVLA, folder: Path, inputs: dict[str, Tensor], what: str
) -> Iterator[Line]:
    """Two loaded alike, through the actions of a robot."""
    noise = inputs["noise"]
    found = []
    for each in (policy, other):
        batch = batch_of(each, folder, inputs)
        found.append(each.denormalise(answer(each, batch, noise, 10)["actions"].numpy()))
    yield near(f"{what}: actions", found[0], found[1], 0.0)


def _older(
    policy: SmolVLA, folder: Path, inputs: dict[str, Tensor], theirs: Golden
) -> Iterator[Line]:
    """What 0.4.4 answered: positions shifted, another loss."""
    batch = batch_of(policy, folder, inputs)
    picture = policy.pictures(batch)[0]
    ten = answer(policy, batch, inputs["noise"], 10)
    with torch.inference_mode():
        patches = policy.tower.patches(picture)
    name = "vision.last_hidden.image0"
    yield near(name, patches, theirs[name], HIDDEN, relative=True)
    name = "prefix.embeddings"
    yield near(name, ten["run"].start.hidden, theirs[name], HIDDEN, relative=True)
    for number, steps in ((10, ten), (1, answer(policy, batch, inputs["noise"], 1))):
        bound = STEPS if number > 1 else STEP
        yield from _steps(policy, inputs, steps, number, bound, theirs)
    actions, valid = batch.targets()
    noise, time = inputs["train.noise"], inputs["train.time"]
    with torch.inference_mode():
        errors = policy.flow_errors(ten["run"], actions, noise, time)
        loss = policy.flow_loss(ten["run"], actions, valid.float(), noise, time)
    padded = torch.nn.functional.pad(actions, (0, policy.sizes.action_room - policy.dims))
    yield near("train.action_padded", padded, theirs["train.action_padded"], STEP)
    name = "train.losses_elementwise_padded"
    yield near(name, errors, theirs[name], HIDDEN, relative=True)
    name = "train.loss_per_sample.masked"
    yield near(name, loss, theirs[name], LOSS, relative=True)
    yield near("train.loss.masked", loss.mean(), theirs["train.loss.masked"], LOSS, relative=True)


def _before(folder: Path) -> Iterator[Line]:
    """A folder from before 0.4: the answers of the variant beside it that it is of."""
    variant = folder.with_name(folder.name.removesuffix("_layout_before_0.4"))
    inputs = load_file(variant / "inputs.safetensors")
    theirs = Golden(_arrays(variant / "outputs.safetensors"))
    policy = loaded(folder, folder, variant=variant)
    yield from _whole(policy, variant, inputs, theirs)
    yield theirs.rest()


def _final_norm(folder: Path) -> Callable[[Tensor], Tensor]:
    """The language model's last norm: no action hangs on it, so the network leaves it out."""
    tensors = open_safetensors(folder / "pretrained_model" / "model.safetensors")
    weight = tensors.read("model.vlm_with_expert.vlm.model.text_model.norm.weight")
    epsilon = json.loads((folder / "vlm" / "config.json").read_text())["text_config"]

    def normed(hidden: Tensor) -> Tensor:
        size = hidden.square().mean(-1, keepdim=True) + epsilon.get("rms_norm_eps", 1e-5)
        return hidden * size.rsqrt() * weight

    return normed


def _arrays(path: Path) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in load_file(path).items()}
