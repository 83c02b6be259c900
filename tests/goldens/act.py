"""ACT: LeRobot's answers from the same checkpoint, from raw pictures to actions in the robot's units,
through the layers, in training, and over an episode whose chunks overlap."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from golden import Golden, Line, near

from armlet.layers.detr import map_positions
from armlet.policies.pretrained.act_network import ACT
from armlet.types import Batch
from goldens.lerobot_kinds import Fixture, drive, hearing, held, tensor, training

BOUND = 1e-4


def compare(folder: Path) -> Iterator[Line]:
    """A line for each quantity of a variant's folder."""
    fixture = Fixture.open(folder)
    policy = fixture.load()
    assert isinstance(policy, ACT)
    with torch.no_grad():
        yield from acting(policy, fixture, fixture.outputs)
        yield from sequence(policy, fixture)
        if any(name.startswith("train.") for name in fixture.outputs):
            yield from trained(policy, fixture)
    yield from moved(policy, fixture)
    for name in fixture.rewrites():
        with fixture.rewritten(name) as other:
            again = fixture.load(other)
            yield near(f"{name}: actions", actions(again, fixture), actions(policy, fixture), 0.0)
    yield fixture.outputs.rest()
    for version, differing in fixture.differing.items():
        rest = differing.rest()
        yield replace(rest, name=f"{version}: {rest.name}")


def actions(policy: ACT, fixture: Fixture) -> np.ndarray:
    """(b, k, a) in the robot's units."""
    return np.stack([policy.infer(seen) for seen in fixture.observations()])


def batch_of(policy: ACT, fixture: Fixture) -> Batch:
    """The inputs, with the actions to be learned."""
    batch = policy.prepare(fixture.observations())
    told = policy.body.actions.apply(fixture.inputs["action"]).astype(np.float32)
    valid = ~fixture.inputs["action_is_pad"]
    return replace(batch, actions=tensor(told), actions_valid=tensor(valid))


def acting(policy: ACT, fixture: Fixture, golden: Golden) -> Iterator[Line]:
    """Pictures and numbers as the network reads them, each layer, and what is decided."""
    batch = policy.prepare(fixture.observations())
    yield from prepared(policy, batch, golden)
    maps = {"backbone": policy.vision} if policy.seen else {}
    with hearing(policy, {**maps, "decoder": policy.decoder.norm}) as heard:
        rows = {f"decoder.{index}": layer for index, layer in enumerate(policy.decoder.layers)}
        with hearing(policy, rows) as layers:
            state = policy.embed(batch)
            passed = policy.run_layers(state, batch, watch=True)
            decided = policy.decode(passed, batch)
    for number, features in enumerate(heard.get("backbone", [])):
        rows_, columns = features.shape[-2:]
        where = map_positions(rows_, columns, policy.width, features.device)
        shown = {
            "backbone": features,
            "camera_position": where.T.unflatten(-1, (rows_, columns))[None],
        }
        for name, found in shown.items():
            yield from held(golden, f"hidden.{name}.camera{number}", found, BOUND, like=True)
    yield from held(golden, "hidden.encoder.in", _tokens_first(state.hidden), BOUND, like=True)
    for number, after in enumerate(passed.states):
        name = f"hidden.encoder.{number}"
        yield from held(golden, name, _tokens_first(after.hidden), BOUND, like=True)
    memory = policy.encoder_norm(passed.state.hidden)
    yield from held(golden, "hidden.encoder.out", _tokens_first(memory), BOUND, like=True)
    for name, found in layers.items():
        yield from held(golden, f"hidden.{name}", _tokens_first(found[0]), BOUND, like=True)
    out = _tokens_first(heard["decoder"][0])
    yield from held(golden, "hidden.decoder.out", out, BOUND, like=True)
    yield from held(golden, "actions_normalised", decided, BOUND, like=True)
    yield from held(golden, "actions", actions(policy, fixture), BOUND, like=True)


def prepared(policy: ACT, batch: Batch, golden: Golden) -> Iterator[Line]:
    """What the network is given."""
    for name, image in zip(policy.seen, policy.see(batch), strict=True):
        yield from held(golden, _key(golden, name), image, 1e-5)
    robot, environment = batch.state.split([policy.sizes.state, policy.sizes.environment], -1)
    yield from held(golden, "pre.observation.state", robot, 1e-5, relative=True)
    name = "pre.observation.environment_state"
    yield from held(golden, name, environment, 1e-5, relative=True)


def sequence(policy: ACT, fixture: Fixture) -> Iterator[Line]:
    """Four observations in a row, through the closed loop."""
    golden = fixture.outputs
    if "sequence.actions" not in golden:
        return
    expected = golden["sequence.actions"]
    seen = fixture.observations("sequence.")
    found = drive(policy, seen, fixture.robot().action)
    yield near("sequence.actions", found, expected, _bound(expected))


def trained(policy: ACT, fixture: Fixture) -> Iterator[Line]:
    """The loss, with the noise of the latent that was drawn there."""
    golden = fixture.outputs
    batch = batch_of(policy, fixture)
    valid = batch.targets()[1]
    noise = fixture.inputs.get("train.latent_noise")
    with training(policy):
        vae = policy.sizes.vae
        rows = dict(enumerate(policy.vae_encoder.layers)) if vae else {}
        places = {f"train.hidden.vae.{index}": layer for index, layer in rows.items()}
        passed = policy.run_layers(policy.embed(batch), batch)
        with hearing(policy, places) as layers:
            if vae:
                mean, spread = policy.explain(batch)
        latent = None if noise is None else tensor(noise)
        with hearing(policy, {"out": policy.action_head}) as heard:
            error, divergence = policy.losses(passed, batch, latent)
    yield from held(golden, "train.action_normalised", batch.actions, 1e-4, like=True)
    for name, found in layers.items():
        yield from held(golden, name, _tokens_first(found[0]), BOUND, like=True)
    if vae:
        yield from held(golden, "train.mu", mean, BOUND, like=True)
        yield from held(golden, "train.log_sigma_x2", spread, BOUND, like=True)
    yield from held(golden, "train.actions_hat", heard["out"][0], BOUND, like=True)
    # LeRobot 0.6 divides by the entries that are valid, 0.4 by all.
    counts = valid.sum(1).float()
    total = (error * counts).sum()
    versions = {"": (golden, counts.sum())}
    for version, differing in fixture.differing.items():
        versions[f"{version}: "] = (differing, torch.tensor(float(valid.numel())))
    for prefix, (said, count) in versions.items():
        found = {
            "train.l1_loss": total / count,
            "train.kld_loss": divergence.mean(),
            "train.loss": total / count + policy.sizes.kl_weight * divergence.mean(),
        }
        for name, value in found.items():
            for line in held(said, name, value, 1e-5, relative=True):
                yield replace(line, name=f"{prefix}{line.name}")


def moved(policy: ACT, fixture: Fixture) -> Iterator[Line]:
    """Where a number that never moved in the data has moved: enormous inputs, and a constant back."""
    prefix = "constant_moved."
    names = [name for name in fixture.outputs if name.startswith(prefix)]
    if not names:
        return
    # The moved numbers stand among the inputs, or beside the answers.
    inputs = dict(fixture.inputs)
    for name, values in {**fixture.outputs.arrays, **fixture.inputs}.items():
        if name.startswith(f"{prefix}observation."):
            key = name.removeprefix(prefix)
            inputs[key] = values if values.ndim == fixture.inputs[key].ndim else values[None]
    seen = [values for name, values in inputs.items() if name.startswith("observation.")]
    rows = min(map(len, seen))
    for name in inputs:
        if name.startswith("observation."):
            inputs[name] = inputs[name][:rows]
    elsewhere = replace(fixture, inputs=inputs)
    batch = policy.prepare(elsewhere.observations())
    state, environment = batch.state.split([policy.sizes.state, policy.sizes.environment], -1)
    with torch.no_grad():
        decided = policy(batch)
    for name in names:
        expected = fixture.outputs[name]
        if name.startswith(f"{prefix}observation."):
            continue
        found = state
        bound = 1e-5 * max(1.0, float(np.abs(expected).max()))
        if "environment" in name:
            found = environment
        elif "action" in name:
            bound = _bound(expected)
            found = decided if "normalised" in name else tensor(actions(policy, elsewhere))
        yield near(name, np.asarray(found).reshape(expected.shape), expected, bound)


def _key(golden: Golden, camera: str) -> str:
    for key in (f"pre.observation.images.{camera}", f"pre.observation.{camera}"):
        if key in golden:
            return key
    return f"pre.observation.images.{camera}"


def _tokens_first(hidden: torch.Tensor) -> torch.Tensor:
    return hidden.transpose(0, 1)


def _bound(expected: np.ndarray) -> float:
    """1e-4 of normalised actions is as much as they are un-normalised by."""
    return BOUND * max(1.0, float(np.abs(expected).max()))
