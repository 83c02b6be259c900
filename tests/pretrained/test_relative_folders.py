"""ACT, Diffusion Policy and SmolVLA whose LeRobot folders say that actions are relative to the state
(`relative_actions_processor`): by LeRobot's formulas (processor/relative_action_processor.py),
action − state before normalising, and back."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from every_kind import MAKE
from safetensors.torch import load_file, save_file

from armlet.data.frames import BatchMaker, Frames
from armlet.policies.checkpoint import load_policy, save_policy
from armlet.policies.contract import Backbone
from armlet.policies.pretrained import kinds
from armlet.policies.students import FirstK
from armlet.robot.observation import Observation

BEFORE = "policy_preprocessor.json"
AFTER = "policy_postprocessor.json"
KINDS = ("act", "diffusion", "smolvla")
NAMES = ["shoulder.pos", "elbow.pos", "Gripper.pos", "d", "e", "f", "gripper_2"]


def folder_of(place: Path) -> Path:
    return kinds.find(place)[0].checkpoint


def edited(file: Path, change: Callable[[dict], None]) -> None:
    said = json.loads(file.read_text())
    change(said)
    file.unlink()  # it may be a link
    file.write_text(json.dumps(said))


def make_relative(folder: Path, *, where: str = "right", **config: object) -> None:
    """Steps as LeRobot 0.6 writes them: ahead of what normalises, behind what takes it back."""
    on = {"enabled": True, "exclude_joints": ["gripper"], "action_names": NAMES, **config}
    step = {"registry_name": "relative_actions_processor", "config": on}
    back = {"registry_name": "absolute_actions_processor", "config": {"enabled": True}}

    def first(said: dict) -> None:
        said["steps"].insert(0 if where == "right" else len(said["steps"]), step)

    def last(said: dict) -> None:
        said["steps"].append(back)

    edited(folder / BEFORE, first)
    edited(folder / AFTER, last)


def seen_by(policy: Backbone, seed: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    images = {}
    for name, size in policy.view.cameras.items():
        images[name] = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    state = policy.body.state.invert(rng.uniform(-0.5, 0.5, len(policy.body.state.offset)))
    return Observation(
        images=images,
        state=state.astype(np.float32),
        instruction="pick up the block",
        previous_action=np.zeros(policy.dims, np.float32),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_added_to_what_it_decides(kind: str, tmp_path: Path) -> None:
    place = MAKE[kind](tmp_path)
    if kind == "diffusion":
        one_moment(folder_of(place))
    plain = load_policy(place)
    make_relative(folder_of(place))
    policy = load_policy(place)
    dims = tuple(index for index in range(policy.dims) if index not in (2, 6))
    assert policy.body.relative == dims and plain.body.relative == ()
    seen = seen_by(policy)
    added = np.zeros(policy.dims, np.float32)
    added[list(dims)] = seen.state[list(dims)]
    np.testing.assert_allclose(policy.infer(seen), plain.infer(seen) + added, atol=1e-5, rtol=1e-5)
    said, found = kinds.find(place)
    assert any("relative to the state" in each for each in found.describe(said).remarks)
    student = FirstK(1).build(policy).eval()
    save_policy(student, tmp_path / "student")
    again = load_policy(tmp_path / "student")
    assert again.body.relative == dims
    assert np.array_equal(again.infer(seen), student.infer(seen))


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_is_taught_is_relative_to_the_state_at_the_beginning(
    kind: str, tmp_path: Path
) -> None:
    place = MAKE[kind](tmp_path)
    if kind == "diffusion":
        one_moment(folder_of(place))
    make_relative(folder_of(place))
    policy = load_policy(place)
    rng = np.random.default_rng(1)
    rows = policy.chunk + 2
    images = {}
    for name, size in policy.view.cameras.items():
        images[name] = rng.integers(0, 256, (rows, *size, 3), dtype=np.uint8)
    frames = Frames(
        images=images,
        state=rng.normal(size=(rows, len(policy.body.state.offset))).astype(np.float32),
        actions=rng.normal(size=(rows, policy.dims)).astype(np.float32),
        executed=np.zeros((rows, policy.dims), np.float32),
        privileged={},
        texts=("pick up the block",),
        asked=np.zeros(rows, np.int64),
        starts=np.array([0, rows]),
    )
    batch = BatchMaker(frames, policy.inputs, device=torch.device("cpu")).batch(np.array([1]))
    wanted = frames.actions[1 : 1 + policy.chunk].astype(np.float64)
    dims = list(policy.body.relative)
    wanted[:, dims] -= frames.state[1, dims]
    expected = policy.body.actions.apply(wanted)
    np.testing.assert_allclose(batch.targets()[0][0], expected, atol=1e-4, rtol=1e-4)
    run = policy.run_layers(policy.embed(batch), batch)
    assert policy.loss(run, batch).isfinite().all()


def one_moment(folder: Path) -> None:
    """The same network as if it had been made for the present moment alone: what it is told is the
    step, and of two moments the first."""
    edited(folder / "config.json", lambda said: said.update(n_obs_steps=1))
    step = json.loads((folder / "config.json").read_text())["diffusion_step_embed_dim"]
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if name.endswith("cond_encoder.1.weight"):
            tensors[name] = tensor[:, : (step + tensor.shape[1]) // 2].contiguous()
    file.unlink()
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("kind", "change", "expected"),
    [
        ("act, rare options", {}, "temporal_ensemble_coeff is .* which is not done here"),
        ("diffusion", {}, r"n_obs_steps is 2 .* oldest .* expected n_obs_steps 1"),
        ("act", {"where": "wrong"}, "stands ahead of normalizer_processor"),
        ("act", {"action_names": "elbow"}, "action_names is 'elbow', expected a list of texts"),
        ("act", {"enabled": 2}, "enabled is 2, expected true or false"),
    ],
)
def test_what_is_not_done_is_refused(
    kind: str, change: dict, expected: str, tmp_path: Path
) -> None:
    place = MAKE[kind](tmp_path)
    make_relative(folder_of(place), **change)
    with pytest.raises(ValueError, match=expected):
        load_policy(place)


def test_a_state_of_fewer_numbers_than_what_is_relative_to_it(tmp_path: Path) -> None:
    place = MAKE["smolvla"](tmp_path)
    make_relative(folder_of(place), action_names=None)  # then all seven are
    with pytest.raises(ValueError, match=r"actions 6 are relative to the state's .* has 6"):
        load_policy(place)
