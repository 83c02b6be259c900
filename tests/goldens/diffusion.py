"""Diffusion Policy: LeRobot's answers from the same checkpoint and noise, from raw pictures to actions
in the robot's units, through the U-Net, by each scheduler, in training and over an episode."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from golden import Golden, Line, equal, near

from armlet.policies.pretrained.diffusion_network import DiffusionPolicy
from armlet.types import Batch
from goldens.lerobot_kinds import Fixture, drive, hearing, held, tensor, training

BOUND = 1e-4
NETWORK = 1e-5  # of conditions and what the network says, which move actions only a little


def compare(folder: Path) -> Iterator[Line]:
    """A line for each quantity of a variant's folder."""
    fixture = Fixture.open(folder)
    policy = fixture.load()
    assert isinstance(policy, DiffusionPolicy)
    golden = fixture.outputs
    with torch.no_grad():
        yield from looking(policy, fixture)
        for run in sorted({name.split(".")[0] for name in golden if name.endswith(".timesteps")}):
            with scheduled(fixture, run) as other:
                yield from denoising(other, fixture, run)
        yield from sequence(policy, fixture)
        yield from trained(policy, fixture)
    expected = decided(policy, fixture)
    for name in fixture.rewrites():
        with fixture.rewritten(name) as place:
            again = fixture.load(place)
            assert isinstance(again, DiffusionPolicy)
            yield near(f"{name}: actions", decided(again, fixture), expected, 0.0)
    yield golden.rest()
    for version, differing in fixture.differing.items():
        rest = differing.rest()
        yield replace(rest, name=f"{version}: {rest.name}")


def hand_noise(policy: DiffusionPolicy, fixture: Fixture, rows: slice = slice(None)) -> None:
    """The noise that was drawn there, in place of the policy's own."""
    policy.noise = tensor(fixture.inputs["noise"])[rows]
    policy.step_noise = tensor(fixture.inputs["ddpm_step_noise"])[:, rows]


def decided(policy: DiffusionPolicy, fixture: Fixture) -> np.ndarray:
    """(b, k, a) in the robot's units."""
    hand_noise(policy, fixture)
    with torch.no_grad():
        actions = policy(policy.prepare(fixture.observations()))
    return policy.denormalise(actions.numpy())


@contextmanager
def scheduled(fixture: Fixture, run: str) -> Iterator[DiffusionPolicy]:
    """The policy with the options that a run is named by: `ddim10`, or its own."""
    with tempfile.TemporaryDirectory() as place:
        said = Path(place) / "policy.toml"
        text = f'checkpoint = "{fixture.checkpoint.resolve()}"\n'
        named = re.fullmatch(r"(ddpm|ddim)(\d+)", run)
        if named:
            text += f'[options]\nscheduler = "{named[1].upper()}"\nsteps = {named[2]}\n'
        said.write_text(text)
        policy = fixture.load(said)
        assert isinstance(policy, DiffusionPolicy)
        yield policy


def looking(policy: DiffusionPolicy, fixture: Fixture) -> Iterator[Line]:
    """Pictures and numbers as the network reads them, what becomes of them, and the first step."""
    golden = fixture.outputs
    hand_noise(policy, fixture)
    batch = policy.prepare(fixture.observations())
    for name, image in zip(policy.seen, policy.see(batch), strict=True):
        yield from held(golden, _key(golden, name), image, 1e-5)
    numbers = {
        "state": batch.state[..., : policy.sizes.state],
        "environment_state": batch.state[..., policy.sizes.state :],
    }
    for name, found in numbers.items():
        key = f"pre.observation.{name}"
        if key in golden:
            yield near(key, found.reshape(golden[key].shape), golden[key], 1e-5, relative=True)
    told = policy.body.actions.apply(fixture.inputs["action"])
    if "pre.action" in golden:
        yield near("pre.action", told, golden["pre.action"], 1e-5, relative=True)
    if "pre.action_is_pad" in golden:
        padded = fixture.inputs["action_is_pad"]
        yield equal("pre.action_is_pad", padded, golden["pre.action_is_pad"])
    places = {"step": policy.step_encoder}
    for index, eye in enumerate(policy.vision):
        places |= {f"backbone.{index}": eye.backbone, f"keypoints.{index}": eye.pool}
        places[f"rgb.{index}"] = eye
    with hearing(policy, places) as heard:
        passed = policy.run_layers(policy.embed(batch), batch, watch=True)
    for name, found in heard.items():
        key = f"hidden.{name}"
        if name == "step":
            key = "hidden.first_step.step_encoding"
            found = [each.expand(len(batch), -1) for each in found]
        bound = BOUND if name.startswith("backbone") else NETWORK
        yield from held(golden, key, found[0], bound, like=True)
    yield from held(golden, "global_cond", passed.start.condition, NETWORK, like=True)
    levels = len(policy.sizes.widths)
    names = [f"down.{index}" for index in range(levels)] + ["mid.0", "mid.1"]
    names += [f"up.{index}" for index in range(levels - 1)]
    for name, state in zip(names, passed.states, strict=True):
        key = f"hidden.first_step.{name}"
        yield from held(golden, key, state.hidden, BOUND, like=True)


def denoising(policy: DiffusionPolicy, fixture: Fixture, run: str) -> Iterator[Line]:
    """One scheduler's steps."""
    golden = fixture.outputs
    hand_noise(policy, fixture)
    batch = policy.prepare(fixture.observations())
    timesteps = policy.schedule.timesteps
    yield equal(f"{run}.timesteps", timesteps, golden[f"{run}.timesteps"])
    with hearing(policy, {"said": policy.final_conv}) as heard:
        horizon = policy.denoise(policy.run_layers(policy.embed(batch), batch))
    said = torch.stack(heard["said"]).transpose(2, 3)
    expected = golden[f"{run}.model_output"]
    yield near(f"{run}.model_output[0]", said[0], expected[0], NETWORK)
    yield near(f"{run}.model_output", said[: len(expected)], expected, BOUND)
    name = f"{run}.horizon_normalised"
    yield near(name, horizon, golden[name], BOUND)
    actions = policy(batch)[:, : policy.execute]
    name = f"{run}.actions_normalised"
    yield near(name, actions, golden[name], BOUND)
    expected = golden[f"{run}.actions"]
    found = policy.denormalise(actions.numpy())
    yield near(f"{run}.actions", found, expected, _bound(expected))


def sequence(policy: DiffusionPolicy, fixture: Fixture) -> Iterator[Line]:
    """Four observations in a row, through the closed loop, with the noise of the first sample."""
    golden = fixture.outputs
    if "sequence.actions" not in golden:
        return
    hand_noise(policy, fixture, slice(0, 1))
    expected = golden["sequence.actions"]
    found = drive(policy, fixture.observations("sequence."), fixture.robot().action)
    yield near("sequence.actions", found, expected, _bound(expected))


def trained(policy: DiffusionPolicy, fixture: Fixture) -> Iterator[Line]:
    """The loss, with the noise and levels that were drawn there."""
    golden = fixture.outputs
    name = "train.loss.network_in_eval_mode"
    if name in golden:
        yield from losses(policy, fixture, name)
    name = "train.loss.network_in_train_mode"
    if name in golden:
        with training(policy):
            yield from losses(policy, fixture, name)


def losses(policy: DiffusionPolicy, fixture: Fixture, name: str) -> Iterator[Line]:
    batch = batch_of(policy, fixture)
    told = tensor(policy.body.actions.apply(fixture.inputs["action"]).astype(np.float32))
    _, valid = policy.horizon(batch)
    passed = policy.run_layers(policy.embed(batch), batch)
    noise = tensor(fixture.inputs["train.noise"])
    levels = tensor(fixture.inputs["train.timesteps"])
    # The actions as they are, also past the end, where the policy's own loss repeats the last one.
    error = policy.errors(passed, told, noise, levels)
    # LeRobot 0.6 divides by the entries that are valid, 0.4 by all, where any are masked.
    counted = valid.float() if policy.sizes.masks else torch.ones_like(valid, dtype=torch.float)
    total = (error * counted[..., None]).sum() / error.shape[-1]
    yield near(name, total / counted.sum(), fixture.outputs[name], NETWORK)
    for version, differing in fixture.differing.items():
        if name in differing:
            yield near(f"{version}: {name}", total / counted.numel(), differing[name], NETWORK)


def batch_of(policy: DiffusionPolicy, fixture: Fixture) -> Batch:
    """The inputs, with the actions to be learned."""
    batch = policy.prepare(fixture.observations())
    told = tensor(policy.body.actions.apply(fixture.inputs["action"]).astype(np.float32))
    valid = tensor(~fixture.inputs["action_is_pad"])
    before = policy.history - 1
    return replace(
        batch,
        actions=told[:, before:],
        actions_valid=valid[:, before:],
        earlier_actions=told[:, :before],
        earlier_valid=valid[:, :before],
    )


def _key(golden: Golden, camera: str) -> str:
    key = f"pre.observation.images.{camera}"
    return key if key in golden else f"pre.observation.{camera}"


def _bound(expected: np.ndarray) -> float:
    """1e-4 of normalised actions is as much as they are un-normalised by."""
    return BOUND * max(1.0, float(np.abs(expected).max()))
