"""π0 and π0.5: everything that LeRobot's own code computed of a variant, from raw observations to
actions in the robot's units and the loss, and the same weights as openpi saves them."""

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden import Golden, Line, equal, near
from safetensors.numpy import load_file
from torch import Tensor, nn

from armlet.policies.contract import Pass
from armlet.policies.pretrained import pi0, pi05
from armlet.policies.pretrained.lerobot import PICTURE, Folder, camera_name
from armlet.policies.pretrained.pi_network import Pi, PiState
from armlet.policies.pretrained.said import Kept, Said
from armlet.robot.description import Described
from armlet.robot.observation import Observation
from armlet.types import Batch

KINDS = {"pi0": pi0, "pi05": pi05}
# As the golden READMEs say.
PIXELS = 1e-6
HIDDEN = 1e-4  # relative
ONE = 1e-5
TEN = 1e-4
LOSS = 1e-5  # relative
HALF = 0.05  # actions in bfloat16
ROBOT = Described(mode="absolute", rotation="none", grippers=(), control_hz=10.0)


@dataclasses.dataclass
class Variant:
    """A folder of the fixtures, and what was put in."""

    layout: str
    folder: Path
    fixture: dict[str, Any]
    inputs: dict[str, np.ndarray]

    @classmethod
    def read(cls, layout: str, folder: Path) -> "Variant":
        fixture = json.loads((folder / "fixture.json").read_text())
        return cls(layout, folder, fixture, load_file(folder / "inputs.safetensors"))

    @property
    def pictures(self) -> dict[str, np.ndarray]:
        """The robot's camera → (b, h, w, 3) uint8."""
        found = {}
        for key, values in self.inputs.items():
            if key.startswith(PICTURE):
                found[camera_name(key)] = values
        return found

    def said(self, place: str = "pretrained_model", precision: Kept = "fp32", **more: Any) -> Said:
        """What the fixture says that the checkpoint does not."""
        root = self.folder / place
        options = {"vision_heads": self.fixture["vision"]["num_attention_heads"], **more}
        words = self.folder / self.fixture.get("tokenizer_folder", "tokenizer")
        return Said(
            root, root, precision=precision, tokenizer=str(words), options=options, robot=ROBOT
        )

    def load(self, **more: Any) -> Pi:
        """The policy of LeRobot's folder, with the cameras that the robot has; `more` as `said`
        has it."""
        said = self.said(**more)
        missing = []
        for ours, theirs in Folder.read(said.checkpoint).robots_cameras.items():
            if theirs not in self.pictures and not ours.startswith("empty_camera"):
                missing.append(ours)
        options = {**said.options, "missing": tuple(missing)}
        policy = KINDS[self.layout].load(dataclasses.replace(said, options=options), None)
        assert isinstance(policy, Pi)
        return policy

    def observations(self, policy: Pi) -> list[Observation]:
        """What the robot sees in each row."""
        states = self.inputs.get("observation.state")
        found = []
        for row, task in enumerate(self.fixture["tasks"]):
            state = np.zeros(0, np.float32) if states is None else states[row]
            found.append(
                Observation(
                    images={name: values[row] for name, values in self.pictures.items()},
                    state=state,
                    instruction=task,
                    previous_action=np.zeros(policy.dims, np.float32),
                )
            )
        return found


def compare(layout: str, folder: Path) -> Iterator[Line]:
    """A line for each quantity of the folder."""
    variant = Variant.read(layout, folder)
    golden = Golden(load_file(folder / "outputs.safetensors"))
    # A prompt that fills all its places may have been cut, as LeRobot does.
    cut = bool(golden.arrays["pre.observation.language.attention_mask"].all(1).any())
    policy = variant.load(too_long="cut" if cut else "refuse")
    with torch.inference_mode():
        batch = policy.prepare(variant.observations(policy))
        yield from before(variant, golden, policy, batch)
        state = policy.embed(batch)
        yield from prefix(golden, policy, batch, state)
        run = policy.run_layers(state, batch, watch=True)
        yield from layers(golden, policy, run, state)
        yield from expert(variant, golden, policy, run)
        yield from decisions(variant, golden, policy, batch, run)
        yield from alone(variant, golden, policy)
        yield from trained(variant, golden, policy, run)
    yield golden.rest()
    yield from others(variant, policy, golden)


def before(variant: Variant, golden: Golden, policy: Pi, batch: Batch) -> Iterator[Line]:
    tokens = "pre.observation.language.tokens"
    mask = "pre.observation.language.attention_mask"
    yield from equal_if(golden, tokens, batch.text)
    yield from equal_if(golden, mask, batch.text_mask)
    yield from near_if(golden, "pre.observation.state", batch.state, PIXELS)
    pictures = policy.pictures(batch)
    for index, mine in enumerate(pictures):
        name = f"model.image.{index}"
        yield from near_if(golden, name, mine, PIXELS)
        mask = f"model.image_mask.{index}"
        yield from equal_if(golden, mask, np.ones(len(batch), bool))
    for name in golden:
        # Cameras that are not there: LeRobot shows −1 and masks what is seen; here nothing is seen.
        kind, _, number = name.rpartition(".")
        if kind in ("model.image", "model.image_mask") and int(number) >= len(pictures):
            absent = -1 if kind == "model.image" else 0
            yield from equal_if(golden, name, np.full_like(golden[name], absent))


def prefix(golden: Golden, policy: Pi, batch: Batch, state: PiState) -> Iterator[Line]:
    yield from near_if(golden, "model.state", state.state, PIXELS)  # π0's, filled up
    places, real = placed(golden, policy, state)
    yield from near_rows("prefix.embeddings", state.hidden, golden, places, real)
    seen = state.attention[:, 0] == 0  # nothing is added to the scores of what may be seen
    positions = state.mask.long().cumsum(1) - 1
    for name, mine in (
        ("pad_mask", state.mask),
        ("att_mask", torch.zeros_like(state.mask)),  # all see all: shown by the next one
        ("position_ids", positions),
    ):
        if f"prefix.{name}" in golden:
            yield equal(f"prefix.{name}", mine, golden[f"prefix.{name}"][:, places])
    if "prefix.attention_2d" in golden:
        theirs = golden["prefix.attention_2d"][:, places][:, :, places]
        yield equal("prefix.attention_2d", seen, theirs)
    looked = policy.look(policy.pictures(batch)[:1])
    words = state.hidden[:, policy.vision_tokens :]
    for name, mine in (
        ("vision.last_hidden.image0", looked),
        ("vision.projected.image0", policy.projector(looked)),
        ("language.embedding_as_used", words),
    ):
        yield from near_if(golden, name, mine, HIDDEN, relative=True)


def blocks(seen: Tensor) -> Tensor:
    """Where a token begins that those ahead of it do not see: what LeRobot's block masks say.
    (b, n, n) bool → (b, n); the first is 1 by its own convention for the expert."""
    ahead = seen.diagonal(offset=1, dim1=1, dim2=2)  # whether token i sees i + 1
    first = torch.ones(len(seen), 1, dtype=torch.bool)
    return torch.cat([first, ~ahead], 1).float()


def placed(golden: Golden, policy: Pi, state: PiState) -> tuple[np.ndarray, np.ndarray]:
    """Which of LeRobot's tokens are here, too, all but those of missing cameras, and which rows of
    them are compared: with such cameras real ones only, since padding is a mean of all there is."""
    theirs = golden.arrays["prefix.pad_mask"].shape[1]
    seen = policy.vision_tokens
    words = state.hidden.shape[1] - seen
    places = np.r_[np.arange(seen), np.arange(theirs - words, theirs)]
    whole = len(places) == theirs
    return places, np.ones(state.mask.shape, bool) if whole else state.mask.numpy()


def near_rows(
    name: str, mine: Tensor, golden: Golden, places: np.ndarray, real: np.ndarray
) -> Iterator[Line]:
    """Of the tokens `places` (n,) of LeRobot's, where `real` (b, n)."""
    if name in golden:
        theirs = golden[name][:, places][real]
        yield near(name, mine.numpy()[real], theirs, HIDDEN, relative=True)


def near_if(
    golden: Golden, name: str, mine: Any, bound: float, *, relative: bool = False
) -> Iterator[Line]:
    """What a folder does not hold is not compared; what it does is, or `Golden.rest` says so."""
    if name in golden:
        yield near(name, mine, golden[name], bound, relative=relative)


def equal_if(golden: Golden, name: str, mine: Any) -> Iterator[Line]:
    if name in golden:
        yield equal(name, mine, golden[name])


def layers(golden: Golden, policy: Pi, run: Pass[PiState], start: PiState) -> Iterator[Line]:
    places, real = placed(golden, policy, start)
    entered = [start, *run.states[:-1]]
    for index, state in enumerate(entered):
        yield from near_rows(f"hidden.vlm.in.{index}", state.hidden, golden, places, real)
    yield from near_rows("hidden.vlm.out", run.state.hidden, golden, places, real)
    yield from near_rows("hidden.vlm.normed", policy.norm(run.state.hidden), golden, places, real)
    for index in range(len(policy.layers)):
        for name, parts in (("keys_after_rope", run.state.keys), ("values", run.state.values)):
            part = parts[index]
            assert part is not None
            yield from near_rows(
                f"cache.{index}.{name}", part[:, 0], squeezed(golden), places, real
            )


def squeezed(golden: Golden) -> Golden:
    """The same with caches (b, 1, n, h) as (b, n, h); what is used of it is used."""
    found = Golden({})
    found.used = golden.used
    for name, values in golden.arrays.items():
        found.arrays[name] = values[:, 0] if name.startswith("cache.") else values
    return found


def expert(variant: Variant, golden: Golden, policy: Pi, run: Pass[PiState]) -> Iterator[Line]:
    noise = torch.from_numpy(variant.inputs["noise"])
    suffix = policy.suffix(run.state)
    tokens, condition = policy.embed_suffix(run.state, noise, torch.ones(len(noise)))
    name = "suffix.embeddings_at_t1"
    yield from near_if(golden, name, tokens, HIDDEN, relative=True)
    if condition is not None:
        name = "suffix.adarms_cond_at_t1"
        yield from near_if(golden, name, condition, HIDDEN, relative=True)
    count = tokens.shape[1]
    yield from equal_if(golden, "suffix.pad_mask", np.ones(tokens.shape[:2], bool))
    own = suffix.attention[:, 0, :, -count:] == 0
    yield from equal_if(golden, "suffix.att_mask", blocks(own))
    name = "time_embedding_at_t1_and_t0.3"
    yield from near_if(golden, name, policy.embed_time(torch.tensor([1.0, 0.3])), PIXELS)


@contextmanager
def watched(policy: Pi) -> Iterator[list[Tensor]]:
    """What enters each layer of the expert, leaves the last, and its norm, of all steps in
    order."""
    seen: list[Tensor] = []
    hooks = []

    def entering(module: nn.Module, inputs: Any) -> None:
        seen.append(inputs[0])

    def leaving(module: nn.Module, inputs: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    for pair in policy.layers:
        hooks.append(pair.expert.register_forward_pre_hook(entering))
    hooks.append(policy.expert_norm.register_forward_pre_hook(entering))
    hooks.append(policy.expert_norm.register_forward_hook(leaving))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def decisions(
    variant: Variant, golden: Golden, policy: Pi, batch: Batch, run: Pass[PiState]
) -> Iterator[Line]:
    noise = torch.from_numpy(variant.inputs["noise"])
    counts = step_counts(golden)
    for steps in counts:
        bound = ONE if steps == 1 else TEN
        with watched(policy) as seen:
            found = denoised(policy, run, noise, steps)
        for name, mine in found.items():
            full = f"steps{steps}.{name}"
            yield from near_if(golden, full, mine, bound)
        with_noise(policy, noise, steps)
        decided = policy.decode(Pass(run.start, run.state, (), run.gates, {}, run.plan), batch)
        full = f"steps{steps}.actions_normalised"
        yield from near_if(golden, full, decided, bound)
        raw = variant.inputs.get("observation.state")
        full = f"steps{steps}.actions"
        told = policy.denormalise(decided.numpy(), raw)
        yield from near_if(golden, full, told, bound * _stretch(policy))
        names = [f"in.{index}" for index in range(len(policy.layers))] + ["out", "normed"]
        for step, many in (("first_step", seen[: len(names)]), ("last_step", seen[-len(names) :])):
            for name, mine in zip(names, many, strict=True):
                full = f"hidden.{step}.expert.{name}"
                if steps == max(counts):
                    yield from near_if(golden, full, mine, HIDDEN, relative=True)


def _stretch(policy: Pi) -> float:
    """What an error of normalised numbers grows by in those of a robot, which may be degrees."""
    normaliser = policy.body.actions
    one = np.ones(policy.dims, np.float32)
    return max(1.0, float(np.abs(normaliser.invert(one) - normaliser.invert(0 * one)).max()))


def step_counts(golden: Golden) -> list[int]:
    """The numbers of steps that a folder has answers of."""
    return sorted({int(name[5 : name.index(".")]) for name in golden if name.startswith("steps")})


def denoised(policy: Pi, run: Pass[PiState], noise: Tensor, steps: int) -> dict[str, Tensor]:
    """Every step of a decision that starts from this noise (b, k, slots)."""
    suffix = policy.suffix(run.state)
    x = noise
    found: dict[str, list[Tensor]] = {"times": [], "x_t": [], "v_t": []}
    for step in range(steps):
        time = torch.full((len(noise),), 1 - step / steps)
        velocity = policy.velocity(run, suffix, x, time)
        for name, value in (("times", time), ("x_t", x), ("v_t", velocity)):
            found[name].append(value)
        x = x - velocity / steps
    return {**{name: torch.stack(each) for name, each in found.items()}, "actions_padded": x}


def with_noise(policy: Pi, noise: Tensor, steps: int) -> None:
    """From here on decisions start from this noise, a sample's own (b, k, slots)."""
    policy.noise = noise
    policy.network = dataclasses.replace(policy.network, steps=steps)


def alone(variant: Variant, golden: Golden, policy: Pi) -> Iterator[Line]:
    """Each row by itself, as on a robot."""
    noise = torch.from_numpy(variant.inputs["noise"])
    for row, observation in enumerate(variant.observations(policy)):
        head = f"alone{row}."
        if f"{head}actions" not in golden:
            continue
        with_noise(policy, noise[row], max(step_counts(golden)))
        batch = policy.prepare([observation])
        for name, mine in (("tokens", batch.text), ("attention_mask", batch.text_mask)):
            full = f"{head}pre.observation.language.{name}"
            yield from equal_if(golden, full, mine)
        full = f"{head}pre.observation.state"
        yield from near_if(golden, full, batch.state, PIXELS)
        full = f"{head}actions"
        told = policy.infer(observation)[None]
        yield from near_if(golden, full, told, TEN * _stretch(policy))


def trained(variant: Variant, golden: Golden, policy: Pi, run: Pass[PiState]) -> Iterator[Line]:
    inputs = variant.inputs
    raw = inputs.get("observation.state")
    state = np.zeros((len(inputs["action"]), 0)) if raw is None else raw
    actions = policy.inputs.normalised(inputs["action"], state[:, None])
    yield from near_if(golden, "train.action_normalised", actions, ONE, relative=True)
    mine = torch.from_numpy(actions)
    # LeRobot masks no padding, and the fixture's is not the last action repeated.
    padded = policy.filled(mine, torch.ones(mine.shape[:2]))
    yield from near_if(golden, "train.action_padded", padded, ONE, relative=True)
    noise = torch.from_numpy(inputs["train.noise"])
    with watched(policy) as seen:
        errors = policy.errors(run, padded, noise, torch.from_numpy(inputs["train.time"]))
    name = "train.losses_elementwise_padded"
    yield from near_if(golden, name, errors, LOSS, relative=True)
    own = errors[..., : policy.dims]
    for name, value in (
        ("loss", own.mean()),
        ("loss_per_sample", own.mean((1, 2))),
        ("loss_per_dim", own.mean((0, 1))),
    ):
        yield from near_if(golden, f"train.{name}", value, LOSS, relative=True)
    names = [f"in.{index}" for index in range(len(policy.layers))] + ["out", "normed"]
    for name, value in zip(names, seen, strict=True):
        full = f"train.hidden.expert.{name}"
        yield from near_if(golden, full, value, HIDDEN, relative=True)
    # Prefix and expert together: padding is a mean of both there, so real tokens only.
    places, _ = placed(golden, policy, run.state)
    real = run.state.mask.numpy()
    entered = [run.start, *run.states]
    for name, each in zip(names[:-1], entered, strict=True):
        yield from near_rows(f"train.hidden.vlm.{name}", each.hidden, golden, places, real)
    normed = policy.norm(run.state.hidden)
    yield from near_rows("train.hidden.vlm.normed", normed, golden, places, real)


@torch.inference_mode()
def actions_of(variant: Variant, policy: Pi, steps: int) -> Tensor:
    """(b, k, a) normalised, from the fixture's noise."""
    with_noise(policy, torch.from_numpy(variant.inputs["noise"]), steps)
    return policy(policy.prepare(variant.observations(policy)))


def others(variant: Variant, policy: Pi, golden: Golden) -> Iterator[Line]:
    """What else a folder holds beside LeRobot's checkpoint and its answers."""
    known = {"fixture.json", "inputs.safetensors", "outputs.safetensors", "mistakes.json"}
    known |= {"pretrained_model", variant.fixture.get("tokenizer_folder", "tokenizer")}
    for place in sorted(variant.folder.iterdir()):
        if place.name in known:
            continue
        if place.name == "outputs_bfloat16.safetensors":
            yield from in_half(variant, golden, Golden(load_file(place)))
        elif place.name == "openpi":
            yield from openpi(variant, policy, golden)
        elif place.name.startswith("written_by"):
            yield from written_by(variant, place, golden)
        elif place.name.startswith("outputs") and "0.4" in place.name:
            yield from of_before(variant, place)
        else:
            yield Line(f"{place.name}: nothing is known of it", 1.0, 0.0)


def in_half(variant: Variant, whole: Golden, golden: Golden) -> Iterator[Line]:
    """For information: rounding in bfloat16 moves what is seen of the actions by a few hundredths,
    more where one step is all, so that the original's own distance from single precision counts."""
    policy = variant.load(precision="bf16")
    for name in golden:
        steps = int(name[5 : name.index(".")])
        moved = float(np.abs(golden[name] - whole[name]).max())
        bound = max(HALF, 2 * moved)
        yield near(f"bfloat16.{name}", actions_of(variant, policy, steps), golden[name], bound)


def written_by(variant: Variant, place: Path, golden: Golden) -> Iterator[Line]:
    """The same weights with config and processors as another version of LeRobot writes them."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        for file in place.iterdir():
            (folder / file.name).symlink_to(file)
        if not (folder / "model.safetensors").exists():
            weights = variant.folder / "pretrained_model" / "model.safetensors"
            (folder / "model.safetensors").symlink_to(weights)
        policy = variant.load(place=root)
        name = "steps10.actions_normalised"
        yield near(f"{place.name}.{name}", actions_of(variant, policy, 10), golden[name], TEN)


def of_before(variant: Variant, place: Path) -> Iterator[Line]:
    """Answers of LeRobot 0.4, which padded pictures with −3 and π0.5's state to all its places."""
    golden = Golden(load_file(place))
    more: dict[str, Any] = {"padded_state": True} if variant.layout == "pi05" else {}
    policy = variant.load(padding=-3.0, **more)
    for name in golden:
        if name.startswith("steps") and name.endswith((".actions", ".actions_normalised")):
            mine = actions_of(variant, policy, int(name[5 : name.index(".")])).numpy()
            if name.endswith(".actions"):
                mine = policy.denormalise(mine, variant.inputs.get("observation.state"))
            yield near(f"{place.name}.{name}", mine, golden[name], TEN)
        else:
            golden.leave_out([name], "the same quantity is compared for the newest version")
    yield golden.rest()


def openpi(variant: Variant, lerobots: Pi, golden: Golden) -> Iterator[Line]:
    """The same weights under openpi's names give the same network; its words and its 1e-6 are
    compared with their formulas, those of each set of statistics."""
    names = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
    robots = list(lerobots.network.cameras)
    assets = variant.folder / "openpi" / "assets"
    for file in sorted(assets.rglob("norm_stats.json")):
        asset = file.parent.relative_to(assets).as_posix()
        said = variant.said("openpi", missing=names[len(robots) :], norm_stats=asset)
        said = dataclasses.replace(said, cameras=dict(zip(names, robots, strict=False)))
        policy = KINDS[variant.layout].load(said, None)
        assert isinstance(policy, Pi)
        yield from openpis_network(variant, lerobots, policy, golden)
        yield from openpis_numbers(variant, policy, file)
        yield from openpis_words(variant, policy)


def openpis_network(variant: Variant, lerobots: Pi, policy: Pi, golden: Golden) -> Iterator[Line]:
    batch = lerobots.prepare(variant.observations(lerobots))
    noise = torch.from_numpy(variant.inputs["noise"])
    with torch.inference_mode():
        # LeRobot's pictures, ids and state: what openpi's network itself was checked with.
        pictures = lerobots.pictures(batch)
        state = policy.embed_parts(pictures, batch.text, batch.text_mask, batch.state)
        for steps, bound in ((1, ONE), (10, TEN)):
            with_noise(policy, noise, steps)
            decided = policy.decode(policy.run_layers(state, batch), batch)
            name = f"steps{steps}.actions_normalised"
            if name in golden:
                theirs = golden[name][..., : policy.dims]
                yield near(f"openpi.{name}", decided[..., : theirs.shape[-1]], theirs, bound)


def openpis_numbers(variant: Variant, policy: Pi, file: Path) -> Iterator[Line]:
    said = json.loads(file.read_text())["norm_stats"]
    for name, key, mine in (
        ("state", "observation.state", policy.body.state),
        ("actions", "action", policy.body.actions),
    ):
        values = variant.inputs[key].astype(np.float64)
        stats = {which: np.array(each) for which, each in said[name].items() if each is not None}
        if values.shape[-1] != len(stats["mean"]):
            continue  # of another robot's numbers
        if variant.layout == "pi0":
            wanted = (values - stats["mean"]) / (stats["std"] + 1e-6)
        else:
            width = stats["q99"] - stats["q01"] + 1e-6
            wanted = (values - stats["q01"]) / width * 2.0 - 1.0
        yield near(f"openpi.{name}", mine.apply(values), wanted, ONE, relative=True)
        yield near(f"openpi.{name}.back", mine.invert(wanted), values, ONE, relative=True)


def openpis_words(variant: Variant, policy: Pi) -> Iterator[Line]:
    reader = policy.network.prompts.reader(policy.body.tokenizer)
    if variant.inputs["observation.state"].shape[1] != len(policy.body.state.offset):
        return
    states = policy.body.state.apply(variant.inputs["observation.state"])
    edges = np.linspace(-1, 1, 257)[:-1]
    for row, task in enumerate(variant.fixture["tasks"]):
        text = task.strip().replace("_", " ").replace("\n", " ")
        words = policy.body.tokenizer
        if variant.layout == "pi0":
            wanted = words.encode(text).ids + words.encode("\n", add_special_tokens=False).ids
            ids, real = reader([task])
        else:
            numbers = " ".join(str(int((value >= edges).sum()) - 1) for value in states[row])
            wanted = words.encode(f"Task: {text}, State: {numbers};\nAction: ").ids
            ids, real = reader.with_state([task], states[row : row + 1])
        yield equal(f"openpi.tokens.{row}", ids[0][real[0]], wanted)
