"""SmolVLA against what LeRobot's own code answered from the same tiny folder (`golden/smolvla`: random
weights, lerobot 0.6.1; its README's traps are sprung one by one), and by properties where there is
no golden file."""

import functools
import json
import math
import re
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

from armlet.policies.checkpoint import load_policy, policy_fingerprint, save_policy
from armlet.policies.contract import Body, rebuild
from armlet.policies.pretrained import files, kinds, smolvla, smolvla_network
from armlet.policies.pretrained.said import Said, read_said
from armlet.policies.pretrained.smolvla_network import Prompt, SmolVLA, described
from armlet.policies.pretrained.smolvla_sizes import KNOWN, Sizes, reads_of, text_of, vlm_of
from armlet.policies.routed import Routed, Routing
from armlet.robot.normalise import Normaliser
from armlet.robot.spec import ActionSpec
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
    _scaled(policy.tower.connector, policy.width**-0.5)


@mistake("RoPE base 100000 (the VLM's rope_theta) instead of 10000")
def _(policy: SmolVLA, batch: Batch, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(smolvla_network, "BASE", 100_000.0)


SHIFTED = "vision positions shifted by one, as transformers 4.55.1 to 4.57 in single precision"


@mistake(SHIFTED)
def _(policy: SmolVLA, batch: Batch, patch: pytest.MonkeyPatch) -> None:
    policy.tower.shifted = True


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
