"""SmolVLA against what LeRobot's own code answered from the same tiny folder (`golden/smolvla`:
random weights, lerobot 0.6.1; its README's traps are sprung one by one), and by properties where
there is no golden file."""

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from goldens import smolvla as golden
from safetensors.torch import load_file, save_file
from torch import Tensor

from armlet.policies.building import rebuild
from armlet.policies.checkpoint import load_policy, save_policy
from armlet.policies.pretrained import files, smolvla, smolvla_network
from armlet.policies.pretrained.said import read_said
from armlet.policies.pretrained.smolvla_network import SmolVLA, described
from armlet.policies.pretrained.smolvla_sizes import KNOWN, reads_of, text_of, vlm_of
from armlet.policies.routed import Routed, Routing
from armlet.robot.reading.smolvla import SmolPrompt
from armlet.types import Batch

HERE = Path(__file__).parent / "golden" / "smolvla"
FOLDER = HERE / "pretrained_model"
SMALL = 1e-6  # two ways to one answer, in single precision


@functools.cache
def teacher() -> SmolVLA:
    """Never changed by a test: see `fresh`."""
    return golden.loaded(HERE, FOLDER)


@pytest.fixture
def fresh() -> SmolVLA:
    """One of a test's own."""
    return golden.loaded(HERE, FOLDER)


@functools.cache
def inputs() -> dict[str, Tensor]:
    return load_file(HERE / "inputs.safetensors")


def batch_of(policy: SmolVLA) -> Batch:
    return golden.batch_of(policy, HERE, inputs())


def actions(policy: SmolVLA, batch: Batch | None = None, steps: int = 10) -> np.ndarray:
    """(b, k, a) normalised, from the golden noise."""
    batch = batch_of(policy) if batch is None else batch
    return golden.answer(policy, batch, inputs()["noise"], steps)["actions"].numpy()


@functools.cache
def right() -> np.ndarray:
    """The teacher's actions, of which LeRobot's differ by 1e-6."""
    return actions(teacher())


def copied(place: Path, **config: object) -> Path:
    """The folder, with other entries in its config."""
    folder = place / "folder"
    shutil.copytree(FOLDER, folder)
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | config))
    return folder


def largest(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first - second).max())


# What LeRobot answered


def test_all_that_lerobot_answered() -> None:
    lines = list(golden.compare(HERE))
    assert len(lines) > 15
    assert not [str(line) for line in lines if not line.holds]


def test_from_before_0_4_the_same_answers(tmp_path) -> None:
    """Statistics among the weights, no processors."""
    folder = old_layout(tmp_path)
    policy = golden.loaded(HERE, folder)
    assert np.array_equal(actions(policy), right())
    card = smolvla.describe(replace(read_said(folder), options={"vlm": str(HERE / "vlm")}))
    assert any("before LeRobot 0.4" in line for line in card.remarks)


def old_layout(place: Path) -> Path:
    """The folder as LeRobot 0.3.3 writes it."""
    folder = copied(place)
    weights = load_file(folder / "model.safetensors")
    (file,) = folder.glob("*unnormalizer_processor.safetensors")
    statistics = load_file(file)
    for room, key in (
        ("normalize_inputs", "observation.state"),
        ("normalize_targets", "action"),
        ("unnormalize_outputs", "action"),
    ):
        for name in ("mean", "std"):
            ours = f"{room}.buffer_{key.replace('.', '_')}.{name}"
            weights[ours] = statistics[f"{key}.{name}"].clone()
    for each in folder.glob("policy_*"):
        each.unlink()
    save_file(weights, folder / "model.safetensors")
    return folder


def test_a_robot_alone_gets_what_it_gets_in_a_batch() -> None:
    """Batch of two against each alone, the actions and the loss."""
    policy = teacher()
    both = batch_of(policy)
    found = actions(policy)
    for row, seen in enumerate(golden.observations_of(policy, HERE, inputs())):
        alone = policy.prepare([seen])
        one = golden.answer(policy, alone, inputs()["noise"][row : row + 1], 10)["actions"]
        assert largest(one[0].numpy(), found[row]) < 1e-5
    run = policy.run_layers(policy.embed(both), both)
    noise, time = inputs()["train.noise"], inputs()["train.time"]
    targets, valid = both.targets()
    together = policy.flow_loss(run, targets, valid.float(), noise, time)
    rows = torch.tensor([1])
    part = replace(run, state=run.state.select(rows), gates=run.gates[rows])
    single = policy.flow_loss(part, targets[rows], valid[rows].float(), noise[rows], time[rows])
    assert single.item() == pytest.approx(together[1].item(), rel=1e-5)


# The traps, each with the error that LeRobot's own code makes in it

Change = Callable[[SmolVLA, Batch, pytest.MonkeyPatch], Batch | None]
MISTAKES: dict[str, Change] = {}


def mistake(name: str) -> Callable[[Change], Change]:
    def keep(change: Change) -> Change:
        MISTAKES[name] = change
        return change

    return keep


@mistake("the last token (newline) left out")
def _(policy: SmolVLA, batch: Batch, patch: pytest.MonkeyPatch) -> Batch:
    last = batch.text_mask.sum(1, keepdim=True) - 1
    return replace(batch, text_mask=batch.text_mask.scatter(1, last, value=False))


@mistake("padding tokens not masked")
def _(policy: SmolVLA, batch: Batch, patch: pytest.MonkeyPatch) -> Batch:
    return replace(batch, text_mask=torch.ones_like(batch.text_mask))


def _pictures(policy: SmolVLA, patch: pytest.MonkeyPatch, change: Callable) -> None:
    real = policy.pictures
    patch.setattr(policy, "pictures", lambda batch: change(real(batch)))


@mistake("pictures left in 0..1")
def _(policy: SmolVLA, batch: Batch, patch: pytest.MonkeyPatch) -> None:
    _pictures(policy, patch, lambda found: [(each + 1) / 2 for each in found])


@mistake("red and blue exchanged")
def _(policy: SmolVLA, batch: Batch, patch: pytest.MonkeyPatch) -> None:
    _pictures(policy, patch, lambda found: [each.flip(1) for each in found])


@mistake("cameras exchanged")
def _(policy: SmolVLA, batch: Batch, patch: pytest.MonkeyPatch) -> None:
    _pictures(policy, patch, lambda found: found[::-1])


def _fitted(patch: pytest.MonkeyPatch, where: Callable, *, value: float = 0.0, **how: bool) -> None:
    def fitted(image: Tensor, width: int, height: int) -> Tensor:
        ratio = max(image.shape[-1] / width, image.shape[-2] / height)
        inner = (int(image.shape[-2] / ratio), int(image.shape[-1] / ratio))
        image = F.interpolate(image, inner, mode="bilinear", align_corners=False, **how)
        return F.pad(image, where(width - inner[1], height - inner[0]), value=value)

    patch.setattr(smolvla_network, "fitted", fitted)


def top_left(wide: int, high: int) -> tuple[int, ...]:
    return wide, 0, high, 0


@mistake("stretched to the square, not padded")
def _(policy: SmolVLA, batch: Batch, patch: pytest.MonkeyPatch) -> None:
    def fitted(image: Tensor, width: int, height: int) -> Tensor:
        return F.interpolate(image, (height, width), mode="bilinear", align_corners=False)

    patch.setattr(smolvla_network, "fitted", fitted)


@mistake("padded bottomright (topleft is right)")
def _(policy: SmolVLA, batch: Batch, patch: pytest.MonkeyPatch) -> None:
    _fitted(patch, lambda wide, high: (0, wide, 0, high))


@mistake("padded centre (topleft is right)")
def _(policy: SmolVLA, batch: Batch, patch: pytest.MonkeyPatch) -> None:
    _fitted(patch, lambda w, h: (w // 2, w - w // 2, h // 2, h - h // 2))


@mistake("padded with 0 (grey) instead of -1")
def _(policy: SmolVLA, batch: Batch, patch: pytest.MonkeyPatch) -> None:
    _fitted(patch, top_left, value=0.5)


@mistake("resized with antialiasing (PIL, torchvision)")
def _(policy: SmolVLA, batch: Batch, patch: pytest.MonkeyPatch) -> None:
    _fitted(patch, top_left, antialias=True)


@mistake("state not normalised")
def _(policy: SmolVLA, batch: Batch, patch: pytest.MonkeyPatch) -> Batch:
    return replace(batch, state=inputs()["observation.state"])


@mistake("state left out (zeros)")
def _(policy: SmolVLA, batch: Batch, patch: pytest.MonkeyPatch) -> Batch:
    return replace(batch, state=torch.zeros_like(batch.state))


@mistake("time reversed in the embedding")
def _(policy: SmolVLA, batch: Batch, patch: pytest.MonkeyPatch) -> None:
    real = policy.time_features
    patch.setattr(policy, "time_features", lambda time: real(1 - time))


@mistake("time embedding cos before sin")
def _(policy: SmolVLA, batch: Batch, patch: pytest.MonkeyPatch) -> None:
    real = policy.time_features
    patch.setattr(
        policy, "time_features", lambda time: torch.cat(real(time).chunk(2, -1)[::-1], -1)
    )


def _causal(policy: SmolVLA, patch: pytest.MonkeyPatch, sees: Callable[[Tensor], Tensor]) -> None:
    """Which tokens of the prefix see which, of (b, n) positions in the row."""
    real = policy._state

    def state(hidden: Tensor, mask: Tensor, kinds: list[str]) -> smolvla_network.PrefixState:
        made = real(hidden, mask, kinds)
        allowed = sees(torch.arange(mask.shape[1])) & mask[:, None] & mask[:, :, None]
        added = torch.zeros_like(hidden[:, :, :1] @ hidden[:, :, :1].mT)
        return replace(made, attention=added.masked_fill(~allowed, smolvla_network.HIDDEN)[:, None])

    patch.setattr(policy, "_state", state)


@mistake("everything causal")
def _(policy: SmolVLA, batch: Batch, patch: pytest.MonkeyPatch) -> None:
    _causal(policy, patch, lambda at: at[None, :] <= at[:, None])


def _all_actions(policy: SmolVLA, patch: pytest.MonkeyPatch) -> None:
    real = policy.memory

    def memory(run) -> smolvla_network.Memory:
        found = real(run)
        turn, mask = found.sights["self"]
        mask = mask.clone()
        mask[..., -policy.chunk :] = True
        return replace(found, sights={**found.sights, "self": (turn, mask)})

    patch.setattr(policy, "memory", memory)


@mistake("actions see all actions (they are causal in SmolVLA)")
def _(policy: SmolVLA, batch: Batch, patch: pytest.MonkeyPatch) -> None:
    _all_actions(policy, patch)


@mistake("everything sees everything (no block mask)")
def _(policy: SmolVLA, batch: Batch, patch: pytest.MonkeyPatch) -> None:
    _causal(policy, patch, lambda at: at[None, :] == at[None, :])
    _all_actions(policy, patch)


def _scaled(part: torch.nn.Module, factor: float) -> None:
    part.weight.data *= factor


@mistake("words not multiplied by sqrt(width)")
def _(policy: SmolVLA, batch: Batch, patch: pytest.MonkeyPatch) -> None:
    _scaled(policy.words, policy.width**-0.5)


@mistake("words multiplied twice")
def _(policy: SmolVLA, batch: Batch, patch: pytest.MonkeyPatch) -> None:
    _scaled(policy.words, policy.width**0.5)


@mistake("pictures not multiplied by sqrt(width)")
def _(policy: SmolVLA, batch: Batch, patch: pytest.MonkeyPatch) -> None:
    _scaled(policy.connector.proj, policy.width**-0.5)


@mistake("RoPE base 100000 (the VLM's rope_theta) instead of 10000")
def _(policy: SmolVLA, batch: Batch, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(smolvla_network, "BASE", 100_000.0)


SHIFTED = "vision positions shifted by one, as transformers 4.55.1 to 4.57 in single precision"


@mistake(SHIFTED)
def _(policy: SmolVLA, batch: Batch, patch: pytest.MonkeyPatch) -> None:
    policy.vision.shifted = True


@mistake("action positions start after the padded prefix, not after its valid tokens")
def _(policy: SmolVLA, batch: Batch, patch: pytest.MonkeyPatch) -> None:
    real = policy._sights

    def sights(state: smolvla_network.PrefixState) -> dict:
        found = real(state)
        places = torch.arange(policy.chunk).expand(len(state.mask), -1) + state.mask.shape[1]
        turn = policy._rotary(places, policy.sizes.text.head, smolvla_network.BASE)
        return {**found, "self": (turn, found["self"][1])}

    patch.setattr(policy, "_sights", sights)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_trap_that_is_sprung_makes_the_error_that_it_makes_in_lerobot(
    name: str, fresh: SmolVLA, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = json.loads((HERE / "mistakes.json").read_text())[name]
    right()  # before anything is patched
    batch = batch_of(fresh)
    batch = MISTAKES[name](fresh, batch, monkeypatch) or batch
    assert expected > 250 * golden.STEPS  # none of them would pass the comparison
    assert largest(actions(fresh, batch), right()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("steps", [1, 9])
def test_other_numbers_of_steps(steps: int) -> None:
    name = f"{steps} step{'s' * (steps > 1)} instead of 10"
    expected = json.loads((HERE / "mistakes.json").read_text())[name]
    found = largest(actions(teacher(), steps=steps), right())
    assert found == pytest.approx(expected, rel=1e-3)


def test_time_is_embedded_in_double_precision(fresh: SmolVLA) -> None:
    name = "time embedding in single instead of double precision"
    expected = json.loads((HERE / "mistakes.json").read_text())[name]
    fresh.frequencies = fresh.frequencies.float()
    fresh.time_features = lambda time: torch.cat(  # type: ignore[method-assign]
        [(time[:, None] * fresh.frequencies).sin(), (time[:, None] * fresh.frequencies).cos()], -1
    )
    assert expected / 4 < largest(actions(fresh), right()) < 4 * expected


def test_where_positions_restart(fresh: SmolVLA, monkeypatch: pytest.MonkeyPatch) -> None:
    """In layers that read the language model alone, actions count from 0."""
    right()
    real = fresh._sights

    def sights(state: smolvla_network.PrefixState) -> dict:
        found = real(state)
        return {**found, "cross": (found["self"][0], found["cross"][1])}

    monkeypatch.setattr(fresh, "_sights", sights)
    assert largest(actions(fresh), right()) > 0.1


# What it is made of


def test_every_tensor_at_real_size_has_its_place() -> None:
    """The names and shapes of a whole checkpoint against the network that its config describes, on
    `meta`: layers' numbers are folded in the file."""
    (name,) = KNOWN
    text = text_of(vlm_of(KNOWN[name], name), 0.75)
    reads = reads_of(16, 16, 2, "cross_attn", "")
    network = replace(
        teacher().sizes,
        text=text,
        eye=vlm_of(KNOWN[name], name).eye,
        shuffle=4,
        layers=reads,
        picture=(512, 512),
    )
    policy = rebuild(described(network, teacher().body), teacher().body.tokenizer, empty=True)
    headers = {}
    for entry in json.loads((HERE / "full_keys.json").read_text()):
        for number in entry[2] if len(entry) > 2 else [0]:
            key = entry[0].replace("layers.N.", f"layers.{number}.")
            headers[key] = files.Header(tuple(entry[1]), torch.float32, Path("x"), key)
    assert len(headers) == 500
    assert sum(header.numel for header in headers.values()) == 450_046_176
    own = {key: tuple(each.shape) for key, each in policy.state_dict().items()}
    tensors = files.Tensors(headers)
    found = files.match(own, tensors, smolvla._names(reads, tensors))
    assert len(found.matched) == 498 == len(own) and not found.tied
    assert sorted(each.split(".")[-2] for each in found.unused) == ["lm_head", "norm"]
    assert all(each.is_meta for each in policy.parameters())
    assert network.prefix_tokens == 2 * 64 + 48 + 1


@pytest.mark.parametrize(
    ("layers", "experts", "every", "mode", "expected"),
    [
        (4, 4, 2, "cross_attn", ("self", "cross", "self", "cross")),
        (4, 4, -1, "cross_attn", ("cross",) * 4),
        (4, 2, -1, "cross_attn", ("cross", "nothing", "cross", "nothing")),
        (4, 2, 4, "cross_attn", ("self", "nothing", "cross", "nothing")),
        (3, 3, 2, "self_attn", ("self",) * 3),
        (6, 2, 2, "cross_attn", "layer 2 should attend to the actions"),
        (4, 2, 2, "cross_attn", "layer 1 of the expert is shaped to read beside"),
        (4, 3, -1, "cross_attn", "expected a divisor of the 4 layers"),
        (4, 2, -1, "self_attn", "layer 1 should attend to the actions"),
    ],
)
def test_which_layer_of_the_expert_reads_what(layers, experts, every, mode, expected) -> None:
    """And what LeRobot itself cannot run is refused."""
    if isinstance(expected, tuple):
        assert reads_of(layers, experts, every, mode, "config.json") == expected
        return
    with pytest.raises(ValueError, match=f"config.json: .*{expected}"):
        reads_of(layers, experts, every, mode, "config.json")


def small(**change: object) -> SmolVLA:
    """A network with fresh weights, three layers of which the expert has two."""
    torch.manual_seed(0)
    sizes = replace(teacher().sizes, layers=("self", "nothing", "cross"), steps=3)
    policy = SmolVLA(replace(sizes, **change), teacher().body)  # type: ignore[arg-type]
    for parameter in policy.parameters():  # fresh ones are so small that nothing is seen
        torch.nn.init.normal_(parameter, std=0.2)
    return policy.eval()


def test_padding_changes_nothing() -> None:
    """Of words, and behind the state."""
    policy = small()
    right_answer = actions(policy, steps=3)
    sizes = policy.sizes
    for change in ({"padded": False}, {"prefix_length": 70}):
        policy.sizes = replace(sizes, **change)
        batch = batch_of(policy)
        assert policy.embed(batch).hidden.shape[1] in (8 + 1 + batch.text.shape[1], 70)
        assert largest(actions(policy, batch, 3), right_answer) < 1e-5


def test_words_that_are_padded_to_the_longest(tmp_path) -> None:
    """As `pad_language_to` says through the processor: shorter, and the same answers."""
    folder = copied(tmp_path)
    file = folder / "policy_preprocessor.json"
    file.write_text(file.read_text().replace('"padding": "max_length"', '"padding": "longest"'))
    policy = load(tmp_path, folder)
    batch = batch_of(policy)
    assert batch.text.shape[1] == batch.text_mask.sum(1).max() < 48
    assert largest(actions(policy, batch), right()) < 1e-5


def test_a_camera_that_nobody_has_is_not_attended_to(tmp_path) -> None:
    """Black and masked where the config counts it among its empty cameras, left out where not: the
    same answers, which are others than with it."""
    options = 'missing = ["wrist"]'
    found = []
    for number in (0, 1):
        folder = copied(tmp_path / str(number), empty_cameras=number)
        policy = load(tmp_path, folder, options)
        assert list(policy.view.cameras) == ["front"] and policy.sizes.blanks == number
        batch = batch_of(policy)
        start = policy.embed(batch)
        assert start.hidden.shape[1] == 4 * (1 + number) + 48 + 1
        assert start.mask.sum(1).tolist() == [4 + each + 1 for each in batch.text_mask.sum(1)]
        found.append(actions(policy, batch))
    assert largest(*found) < 1e-5 < 0.1 < largest(found[0], right())
    card = smolvla.describe(read_said(tmp_path / "policy.toml"))
    assert any("nobody has wrist" in line for line in card.remarks)


def load(place: Path, folder: Path, options: str = "", more: str = "") -> SmolVLA:
    said = golden.SAID.format(checkpoint=folder, vlm=HERE / "vlm", options=options)
    (place / "policy.toml").write_text(more + said)
    policy = load_policy(place / "policy.toml")
    assert isinstance(policy, SmolVLA)
    return policy


def test_tokens_around_pictures_are_not_scaled(tmp_path) -> None:
    folder = copied(tmp_path, add_image_special_tokens=True)
    policy = load(tmp_path, folder)
    batch = batch_of(policy)
    start = policy.embed(batch)
    plain = teacher().embed(batch)
    assert start.hidden.shape[1] == plain.hidden.shape[1] + 2 * 3
    fake, whole = policy.words.weight[3], policy.words.weight[6]
    for first in (0, 7):
        assert torch.equal(start.hidden[0, first], fake)
        assert torch.equal(start.hidden[0, first + 1], whole)
        assert torch.equal(start.hidden[0, first + 6], fake)
    assert torch.equal(start.hidden[:, start.vision[0]], plain.hidden[:, :8])
    assert start.mask[:, :14].all() and not start.text[:, :14].any()


def test_pictures_of_any_size_and_as_they_are() -> None:
    """`resize_imgs_with_padding`: (width, height), and None for pictures as they are."""
    image = torch.rand(1, 3, 30, 50)
    wide = smolvla_network.fitted(image, 96, 64)
    assert wide.shape == (1, 3, 64, 96)
    # 50 × 30 becomes 96 × 57: seven rows are left, all at the top.
    assert not wide[:, :, :7].any() and wide[:, :, 7].any()
    tall = smolvla_network.fitted(image, 64, 96)
    assert tall.shape == (1, 3, 96, 64) and not tall[:, :, : 96 - 38].any()
    assert torch.equal(smolvla_network.fitted(image, 50, 30), image)
    sides = small(picture=(96, 64)).pictures(batch_of(teacher()))
    assert [tuple(each.shape[2:]) for each in sides] == [(64, 96)] * 2
    policy = small(picture=None, cameras={"front": (64, 64), "wrist": (64, 64)})
    batch = replace(
        batch_of(teacher()), images={n: torch.rand(2, 3, 64, 64) for n in ("front", "wrist")}
    )
    assert torch.equal(policy.pictures(batch)[0], batch.images["front"] * 2 - 1)
    assert policy.vision_tokens == 0 and policy(batch).shape == (2, 10, 7)


def test_pictures_that_were_normalised(tmp_path) -> None:
    """VISUAL MEAN_STD: a channel at a time, before they are fitted."""
    folder = copied(tmp_path)
    file = folder / "policy_preprocessor.json"
    file.write_text(file.read_text().replace('"VISUAL": "IDENTITY"', '"VISUAL": "MEAN_STD"'))
    policy = load(tmp_path, folder)
    statistics = load_file(next(folder.glob("*_normalizer_processor.safetensors")))
    mean, std = (statistics[f"observation.images.wrist.{name}"] for name in ("mean", "std"))
    batch = batch_of(policy)
    expected = ((batch.images["wrist"] - mean) / (std + 1e-8)) * 2 - 1
    assert torch.allclose(policy.pictures(batch)[1], expected, atol=1e-5)
    assert largest(actions(policy), right()) > 0.1


def test_a_renamed_camera(tmp_path) -> None:
    """A processor's own renaming, and over it what the robot's owner says."""
    folder = copied(tmp_path)
    file = folder / "policy_preprocessor.json"
    rename = {"observation.images.gripper": "observation.images.wrist"}
    file.write_text(
        file.read_text().replace('"rename_map": {}', f'"rename_map": {json.dumps(rename)}')
    )
    policy = load(tmp_path, folder)
    assert list(policy.view.cameras) == ["front", "gripper"]
    batch = batch_of(teacher())
    images = {"front": batch.images["front"], "gripper": batch.images["wrist"]}
    assert np.array_equal(actions(policy, replace(batch, images=images)), right())
    policy = load(tmp_path, folder, more="", options="[cameras]\nwrist = 'hand'")
    assert list(policy.view.cameras) == ["front", "hand"]


# How it reads


def test_how_an_instruction_is_read() -> None:
    tokenizer = teacher().body.tokenizer
    prompt = SmolPrompt(tokenizer, 12, 2, padded=True, new_line=True)
    ids, real = prompt(["Pick  up", "Pick  up\n", "x" * 99, ""])
    assert ids.shape == (4, 12) and np.array_equal(ids[0], ids[1])
    assert tokenizer.decode(ids[0][real[0]].tolist()) == "Pick  up\n"  # no case, no spaces changed
    assert real[2].all()  # cut, as the original does, not refused
    assert real[3].sum() == 1  # the line break
    assert set(ids[0][~real[0]]) == {2}
    assert prompt([], any_length=True)[0].shape == (0, 12)
    with pytest.raises(ValueError, match="the instruction is empty"):
        SmolPrompt(tokenizer, 12, 2, padded=False, new_line=False)([""])


# As a teacher: watched, routed, cut, saved


def deployed_and_trained(student: Routed, batch: Batch, noise: bool = False) -> None:
    student.eval()
    with torch.no_grad():
        resting = student(batch)
    training = student.run_layers(student.embed(batch), batch)
    assert training.extras["router_logits"].requires_grad
    assert torch.equal(student.decode(training, batch), resting)


def routed(policy: SmolVLA, *running: int) -> Routed:
    """A router that runs these layers, whatever it sees."""
    student = Routing(initial_keep=0.5).build(policy)
    assert isinstance(student, Routed)
    bias = torch.full((len(policy.layers),), -3.0)
    bias[list(running)] = 3.0
    student.router.leave.bias.data = bias
    return student


@pytest.mark.parametrize("running", [(0, 1, 2, 3), (0, 3), (1,), ()])
def test_routed_training_is_deployment_and_what_is_skipped_does_not_run(
    running: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = teacher()
    student = routed(policy, *running)
    for observation in golden.observations_of(policy, HERE, inputs()):
        batch = student.prepare([observation])
        deployed_and_trained(student, batch)
        kept = policy.keep_layers(running) if running else None
        calls = []
        with torch.inference_mode():
            for index, pair in enumerate(student.layers):
                for part in (pair.prefix, pair.expert):
                    part.register_forward_pre_hook(lambda *_, i=index, to=calls: to.append(i))
            answer = student.decide(observation)
        assert set(calls) == set(running) and len(calls) == 11 * len(running)
        assert answer.gates == tuple(int(i in running) for i in range(4))
        if kept is not None:  # skipped is cut
            assert np.array_equal(answer.actions, kept.infer(observation))
        student = routed(policy, *running)  # without the hooks


def test_samples_of_a_batch_may_take_their_own_ways() -> None:
    """Two samples with routes of their own in one batch, each as alone."""
    policy = teacher()
    batch = batch_of(policy)
    student = routed(policy)
    plans = torch.tensor([[5.0, -5, 5, -5], [-5, 5, 5, -5]])
    run = student._skipping(policy.embed(batch), plans, watch=False)
    together = policy.decode(run, batch)
    assert not run.state.keys[0][1].any() and run.state.keys[3] is None
    for row, observation in enumerate(golden.observations_of(policy, HERE, inputs())):
        alone = policy.prepare([observation])
        one = student._skipping(policy.embed(alone), plans[row : row + 1], watch=False)
        assert torch.allclose(policy.decode(one, alone)[0], together[row], atol=1e-5)
        kept = policy.keep_layers(((0, 2), (1, 2))[row])
        assert torch.equal(policy.decode(one, alone), kept(alone))


def test_saved_and_loaded_again_it_answers_to_the_bit(tmp_path) -> None:
    observation = golden.observations_of(teacher(), HERE, inputs())[0]
    for number, policy in enumerate(
        (teacher(), routed(teacher(), 0, 2), teacher().keep_layers((1, 3)))
    ):
        save_policy(policy, tmp_path / str(number))
        again = load_policy(tmp_path / str(number))
        assert np.array_equal(again.infer(observation), policy.infer(observation))
        assert again.to_json() == policy.to_json()
    assert again.layer_numbers == (1, 3)


@pytest.mark.parametrize("precision", ["bf16", "as_saved"])
def test_other_precisions(precision: str, tmp_path) -> None:
    """In bfloat16, and with a VLM in bfloat16 beside an expert in single precision, as it is saved
    where the VLM's weights were loaded; nearly the same answers, and saved to the bit."""
    folder = copied(tmp_path)
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        if ".vlm." in name:
            weights[name] = tensor.bfloat16()
    save_file(weights, folder / "model.safetensors")
    policy = load(tmp_path, folder, more=f'precision = "{precision}"\n')
    kinds_there = {str(each.dtype) for each in policy.parameters()}
    assert kinds_there == {"torch.bfloat16"} | ({"torch.float32"} if precision != "bf16" else set())
    assert policy.frequencies.dtype == torch.float64
    assert largest(actions(policy), right()) < 0.5
    observation = golden.observations_of(policy, HERE, inputs())[0]
    for each in (policy, policy.keep_layers((0, 1))):
        save_policy(each, tmp_path / "saved")
        assert np.array_equal(
            load_policy(tmp_path / "saved").infer(observation), each.infer(observation)
        )


def test_gradients_reach_everything_and_noise_is_repeatable() -> None:
    policy = small()
    batch = batch_of(policy)
    policy.train()
    run = policy.run_layers(policy.embed(batch), batch)
    torch.manual_seed(1)
    (policy.loss(run, batch).sum() + policy.decode(run, batch).square().sum()).backward()
    untouched = {n for n, p in policy.named_parameters() if p.grad is None or not p.grad.any()}
    # The last layer of the language model is read for its keys and values alone, and one without
    # an expert beside it only by those behind it.
    last = {n for n in untouched if n.startswith("layers.2.prefix.")}
    assert untouched == last and len(last) == 6
    torch.manual_seed(1)
    first = policy.loss(run, batch)
    torch.manual_seed(1)
    assert torch.equal(first, policy.loss(run, batch))
    policy.eval()
    assert torch.equal(policy(batch), policy(batch))
    assert torch.equal(small().noise, policy.noise) and not torch.equal(
        small(seed=1).noise, policy.noise
    )


def test_in_half_precision_padding_is_no_nan() -> None:
    """A token of padding sees nothing: in bfloat16, too, what is added to its scores is finite."""
    policy = small(prefix_length=70)
    batch = batch_of(policy)
    with torch.autocast("cpu", torch.bfloat16):
        run = policy.run_layers(policy.embed(batch), batch)
        loss = policy.loss(run, batch)
        answer = policy.decode(run, batch)
    assert run.state.hidden.isfinite().all() and answer.dtype == torch.float32
    loss.sum().backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert largest(answer.detach().numpy(), policy(batch).detach().numpy()) < 0.3


def test_past_the_end_the_last_action_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the loss counts it, as LeRobot's loader has it; elsewhere it reaches no other step."""
    policy = small(loss="padded")
    batch = batch_of(policy)
    run = policy.run_layers(policy.embed(batch), batch)
    told = []
    monkeypatch.setattr(policy, "flow_loss", lambda *each: told.append(each[1]))
    policy.loss(run, batch)
    targets, valid = batch.targets()
    assert valid.sum(1).tolist() == [10, 7]
    assert torch.equal(told[0][0], targets[0]) and torch.equal(told[0][1, :7], targets[1, :7])
    assert torch.equal(told[0][1, 7:], targets[1, 6:7].expand(3, -1))
    monkeypatch.undo()
    noise, time = inputs()["train.noise"], inputs()["train.time"]
    other = torch.where(valid[..., None], targets, torch.full_like(targets, 9.0))
    masked = small()
    first = masked.flow_loss(run, targets, valid.float(), noise, time)
    assert torch.allclose(first, masked.flow_loss(run, other, valid.float(), noise, time))


def test_times_are_drawn_from_the_beta_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean 0.6 and variance 0.0686 of Beta(1.5, 1), squeezed into 0.001 … 1."""
    policy = small()
    batch = batch_of(policy)
    run = policy.run_layers(policy.embed(batch), batch)
    drawn = []
    monkeypatch.setattr(policy, "flow_loss", lambda *told: drawn.append(told[-1]))
    torch.manual_seed(0)
    for _ in range(5000):
        policy.loss(run, batch)
    times = torch.cat(drawn)
    assert times.mean().item() == pytest.approx(0.001 + 0.999 * 0.6, abs=0.01)
    assert times.var().item() == pytest.approx(0.0686, abs=0.003)
    assert times.min() >= 0.001 and times.max() <= 1


def test_the_loss_is_the_squared_error_of_the_velocity(monkeypatch: pytest.MonkeyPatch) -> None:
    """0 for whoever knows the noise, whatever is past the end of an episode."""
    policy = teacher()
    batch = batch_of(policy)
    run = policy.run_layers(policy.embed(batch), batch)
    noise, time = inputs()["train.noise"], inputs()["train.time"]
    targets, valid = batch.targets()
    truth = noise - F.pad(targets, (0, 25))
    truth[~valid] += 100
    truth[..., 7:] += 100
    monkeypatch.setattr(SmolVLA, "answer", lambda *told: None)
    monkeypatch.setattr(SmolVLA, "moved", lambda *told: truth)
    assert policy.flow_loss(run, targets, valid.float(), noise, time).abs().max() < 1e-9
    older = small(loss="padded").flow_loss(run, targets, valid.float(), noise, time)
    assert older.min() > 100


def test_what_its_layers_cost() -> None:
    """By hand: 2 · 4 + 48 + 1 tokens of prefix, ten actions in three steps."""
    policy = small()
    sizes = policy.sizes
    assert sizes.prefix_tokens == 57
    costs = policy.layer_costs().tolist()
    prefix = 48 * 48 * 2 + 48 * 16 * 2 + 3 * 48 * 96 + 2 * 48
    expert = 36 * 48 * 2 + 36 * 16 * 2 + 3 * 36 * 256 + 2 * 36
    assert costs[0] == 57 * prefix + 30 * expert and costs[1] == 57 * prefix
    cross = expert - 36 * 16 * 2
    assert costs[2] == pytest.approx(57 * (prefix + 2 * 16 * 16) + 30 * cross)
