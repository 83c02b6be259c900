"""SmolVLA: LeRobot's answers against armlet's, from the same folder. A variant holds a policy
folder (`pretrained_model`, its config and processors once more as 0.4.4 wrote them), the VLM's own
folder, and what 0.6.1 and 0.4.4 answered; a folder from before 0.4 holds the weights alone and
answers as the variant that it is of."""

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
OLDER = 'vision_positions = "shifted"\nloss = "padded"'  # what 0.4.4 does otherwise
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
    if (folder / "written_by_0.4.4").is_dir():
        with tempfile.TemporaryDirectory() as place:
            again = Path(place) / "written_by_0.4.4"
            shutil.copytree(folder / "written_by_0.4.4", again)
            weights = folder / "pretrained_model" / "model.safetensors"
            (again / "model.safetensors").symlink_to(weights.resolve())
            yield from _same(loaded(folder, again), policy, folder, inputs, "written by 0.4.4")
    shifted = loaded(folder, folder / "pretrained_model", OLDER)
    for file in sorted(folder.glob("outputs_lerobot_0.4.4*.safetensors")):
        others = Golden(_arrays(file))
        for line in _older(shifted, folder, inputs, others):
            yield replace(line, name=f"0.4.4: {line.name}")
        yield replace(others.rest(), name="0.4.4: quantities left out")


def loaded(
    folder: Path, checkpoint: Path, options: str = "", variant: Path | None = None
) -> SmolVLA:
    """A checkpoint of a variant through the real loader; cameras that its inputs lack are missing."""
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
    real = policy.answer

    def watched(run: Any, memory: Any, x: Tensor, time: Tensor) -> Tensor:
        kept["expert"].append([])
        found = real(run, memory, x, time)
        kept["x_t"].append(x)
        kept["v_t"].append(policy.moved(found))
        kept["times"].append(time)
        return found

    hooks = _watch_expert(policy, kept)
    policy.answer = watched  # type: ignore[method-assign]
    try:
        with torch.inference_mode():
            run = policy.run_layers(policy.embed(batch), batch, watch=True)
            kept["actions"] = policy.decode(run, batch)
    finally:
        policy.sizes = plain
        policy.noise = drawn
        del policy.answer
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
    yield from _near(theirs, "pre.observation.state", batch.state, PIXELS * 10)
    tokens = "pre.observation.language.tokens"
    yield from _equal(theirs, tokens, batch.text)
    mask = "pre.observation.language.attention_mask"
    yield from _equal(theirs, mask, batch.text_mask)
    pictures = policy.pictures(batch)
    real = len(pictures)
    pictures += [torch.full_like(pictures[-1], -1)] * policy.sizes.blanks
    for index, picture in enumerate(pictures):
        yield from _near(theirs, f"model.image.{index}", picture, PIXELS)
        mask = np.full(len(batch), index < real)
        yield from _equal(theirs, f"model.image_mask.{index}", mask)
    lacking = policy.sizes.state_room - batch.state.shape[1]
    state = torch.nn.functional.pad(batch.state, (0, lacking))
    yield from _near(theirs, "model.state", state, PIXELS * 10)


def _prefix(policy: SmolVLA, batch: Batch, start: PrefixState, theirs: Golden) -> Iterator[Line]:
    for index, picture in enumerate(policy.pictures(batch)):
        last = f"vision.last_hidden.image{index}"
        if last not in theirs:
            continue  # of the first picture only
        with torch.inference_mode():
            patches = policy.vision(picture)
            tokens = policy.connector(patches)
        yield from _near(theirs, last, patches, HIDDEN, relative=True)
        connected = f"vision.connector.image{index}"
        yield from _near(theirs, connected, tokens, HIDDEN, relative=True)
    name = "prefix.embeddings"
    yield from _near(theirs, name, start.hidden, HIDDEN, relative=True)
    yield from _equal(theirs, "prefix.pad_mask", start.mask)
    yield from _equal(theirs, "prefix.att_mask", start.own)
    yield from _equal(theirs, "prefix.attention_2d", start.attention[:, 0] == 0)
    yield from _equal(theirs, "prefix.position_ids", start.positions)


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
        yield from _near(theirs, name, hidden, HIDDEN, relative=True, rows=rows)
    if room:
        return
    for index in range(len(policy.layers)):
        for kept, name in (
            (run.state.keys[index], f"cache.{index}.keys_after_rope"),
            (run.state.values[index], f"cache.{index}.values"),
        ):
            yield from _near(theirs, name, kept, HIDDEN, relative=True)


def _suffix(
    policy: SmolVLA, inputs: dict[str, Tensor], steps: dict[str, Any], theirs: Golden
) -> Iterator[Line]:
    count = len(inputs["noise"])
    with torch.inference_mode():
        tokens = policy.suffix(inputs["noise"], torch.ones(count))
        times = policy.time_features(torch.tensor([1.0, 0.3]))
        memory = policy.memory(steps["run"])
    name = "suffix.embeddings_at_t1"
    yield from _near(theirs, name, tokens, HIDDEN, relative=True)
    name = "time_embedding_at_t1_and_t0.3"
    yield from _near(theirs, name, times, PIXELS)
    # Masks of theirs in one dimension, of ours in two: who sees whom must come out alike.
    if "suffix.att_mask" in theirs:
        block = theirs["suffix.att_mask"].cumsum(1)
        real = theirs["suffix.pad_mask"]
        sees = (block[:, None] <= block[:, :, None]) & real[:, None] & real[:, :, None]
        mask = memory.sights["self"][1][:, 0, :, -policy.chunk :]
        yield equal("suffix: which actions see which", mask, sees)


def _expert(steps: dict[str, Any], which: int, room: str, theirs: Golden) -> Iterator[Line]:
    *entering, out = steps["expert"][which]  # of each layer that the expert has
    for index, hidden in enumerate(entering):
        name = f"{room}.expert.in.{index}"
        yield from _near(theirs, name, hidden, HIDDEN, relative=True)
    name = f"{room}.expert.out"
    yield from _near(theirs, name, out, HIDDEN, relative=True)
    name = f"{room}.expert.normed"
    yield from _near(theirs, name, steps["normed"][which], HIDDEN, relative=True)


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
        if what == "actions" and name in theirs:  # in the robot's numbers, of any size
            most = _scaled(theirs[name], most)
        yield from _near(theirs, name, values, most)


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
    yield from _near(theirs, "train.action_normalised", actions, STEP)
    yield from _near(theirs, "train.action_padded", padded, STEP)
    name = "train.losses_elementwise_padded"
    yield from _near(theirs, name, errors, HIDDEN, relative=True)
    weights = valid.sum(1)
    for name, each, mean in (
        ("masked", masked, (masked * weights).sum() / weights.sum()),
        ("unmasked", every, every.mean()),
    ):
        one = f"train.loss_per_sample.{name}"
        yield from _near(theirs, one, each, LOSS, relative=True)
        yield from _near(theirs, f"train.loss.{name}", mean, LOSS, relative=True)
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
    yield from _near(theirs, name, batch.state, PIXELS * 10)
    for name, values in (("tokens", batch.text), ("attention_mask", batch.text_mask)):
        full = f"{room}.pre.observation.language.{name}"
        yield from _equal(theirs, full, values)
    drawn = policy.noise
    policy.noise = inputs["noise"][row]
    try:
        actions = policy.infer(seen)
    finally:
        policy.noise = drawn
    name = f"{room}.actions"
    yield from _near(theirs, name, actions[None], _scaled(theirs[name], STEPS))


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
        patches = policy.vision(picture)
    name = "vision.last_hidden.image0"
    yield from _near(theirs, name, patches, HIDDEN, relative=True)
    name = "prefix.embeddings"
    yield from _near(theirs, name, ten["run"].start.hidden, HIDDEN, relative=True)
    for number, steps in ((10, ten), (1, answer(policy, batch, inputs["noise"], 1))):
        bound = STEPS if number > 1 else STEP
        yield from _steps(policy, inputs, steps, number, bound, theirs)
    actions, valid = batch.targets()
    noise, time = inputs["train.noise"], inputs["train.time"]
    with torch.inference_mode():
        errors = policy.flow_errors(ten["run"], actions, noise, time)
        loss = policy.flow_loss(ten["run"], actions, valid.float(), noise, time)
    padded = torch.nn.functional.pad(actions, (0, policy.sizes.action_room - policy.dims))
    yield from _near(theirs, "train.action_padded", padded, STEP)
    name = "train.losses_elementwise_padded"
    yield from _near(theirs, name, errors, HIDDEN, relative=True)
    name = "train.loss_per_sample.masked"
    yield from _near(theirs, name, loss, LOSS, relative=True)
    yield from _near(theirs, "train.loss.masked", loss.mean(), LOSS, relative=True)


def _before(folder: Path) -> Iterator[Line]:
    """A folder from before 0.4: the answers of the variant beside it that it is of."""
    variant = folder.with_name(folder.name.removesuffix("_layout_before_0.4"))
    inputs = load_file(variant / "inputs.safetensors")
    theirs = Golden(_arrays(variant / "outputs.safetensors"))
    policy = loaded(folder, folder, variant=variant)
    yield from _whole(policy, variant, inputs, theirs)
    yield theirs.rest()


def _near(
    theirs: Golden, name: str, found: Any, bound: float, *, relative: bool = False, rows: Any = None
) -> Iterator[Line]:
    """One quantity, if the variant holds it; of all that it holds `Golden.rest` says whether it was
    compared. `rows` (b, n) bool: which count."""
    if name not in theirs:
        return
    expected = theirs[name]
    if rows is not None:
        found = found[rows]
        expected = expected[rows.numpy()]
    yield near(name, found, expected, bound, relative=relative)


def _equal(theirs: Golden, name: str, found: Any) -> Iterator[Line]:
    if name in theirs:
        yield equal(name, found, theirs[name])


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
