"""How our networks are built, and what becomes of them elsewhere: read without being drawn first,
imported without their libraries, exported as a graph.

References: the network as it was saved; the network run eagerly.
"""

import ast
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_frames, make_policy
from torch import Tensor, nn

import armlet
from armlet.layers.heads import HEADS
from armlet.policies.action_query import ActionQueryNetwork, llama
from armlet.policies.building import rebuild
from armlet.policies.checkpoint import load_policy, save_policy
from armlet.policies.clip_lora import ClipLoraNetwork
from armlet.policies.contract import Backbone, Network
from armlet.policies.routed import Routed, Routing
from armlet.policies.two_tower import TwoTowerNetwork
from armlet.policies.vla import VLANetwork
from armlet.training.trainer import make_batches
from armlet.types import Batch

CAMERAS = {"scene": 24, "wrist": 24}
STRIDES = {"scene": 8, "wrist": 8}
CLIP = ClipLoraNetwork(
    image=24, patch=8, width=16, depth=2, heads=2, text_width=16, text_depth=2, text_heads=2,
    text_tokens=32, embed=16, chunk=3, execute=2, head_options={"hidden": 8, "bins": 8},
    strides=STRIDES, channels=4, pointers=2, use_state=True,
)  # fmt: skip
OURS: dict[str, Network] = {
    "vla": VLANetwork(
        width=16, depth=2, heads=2, chunk=3, strides=STRIDES, vision_channels=4, head="flow",
        head_options={"hidden": 32},
    ),
    "two_tower": TwoTowerNetwork(
        width=16, heads=2, vision_layers=1, text_layers=1, patch=8, channels=4, chunk=3, goal=8,
        prototypes=4, embedding=8,
    ),
    "action_query": ActionQueryNetwork(
        language=llama(16, 2, 2), expert_width=16, channels=4, strides=STRIDES
    ),
    "clip_lora": dataclasses.replace(CLIP, lora_rank=2, aux_heads=True),
    "clip_early": dataclasses.replace(CLIP, fusion="early"),
}  # fmt: skip


def build(name: str) -> Backbone:
    torch.manual_seed(0)
    return OURS[name].build(make_policy().body, CAMERAS).eval()


def batch_for(policy: Backbone, rows: int = 3) -> Batch:
    frames = make_frames()
    pictures = {"scene": frames.images["scene"], "wrist": frames.images["scene"]}
    batches = make_batches(policy, dataclasses.replace(frames, images=pictures))
    return batches.batch(np.arange(rows) * 9)


@pytest.mark.parametrize("name", OURS)
def test_a_network_is_read_without_being_drawn_first(name: str, tmp_path) -> None:
    policy = Routing(budget=0.5).build(build(name)) if name == "vla" else build(name)
    empty = rebuild(policy.to_json(), policy.body.tokenizer, empty=True)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert not any(buffer.is_meta for buffer in empty.buffers())
    save_policy(policy, tmp_path)
    again = load_policy(tmp_path)
    for kind in ("named_parameters", "named_buffers"):
        mine, theirs = dict(getattr(policy, kind)()), dict(getattr(again, kind)())
        assert mine.keys() == theirs.keys()
        for key, tensor in mine.items():
            assert torch.equal(theirs[key], tensor) and theirs[key].dtype == tensor.dtype, key
            assert theirs[key].requires_grad == tensor.requires_grad, key
    batch = batch_for(policy)
    with torch.no_grad():
        assert torch.equal(again(batch), policy(batch))
    fresh = rebuild(policy.to_json(), policy.body.tokenizer)
    assert not any(parameter.is_meta for parameter in fresh.parameters())


def test_policies_are_read_by_several_threads_at_once(tmp_path) -> None:
    policy = make_policy(depth=1)
    save_policy(policy, tmp_path)
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda _: load_policy(tmp_path), range(12)))
    wanted = policy.state_dict()["words.weight"]
    assert all(torch.equal(each.words.weight, wanted) for each in read)
    assert not nn.Linear(1, 1).weight.is_meta


def test_half_precision_on_disk_is_single_precision_in_the_network(tmp_path) -> None:
    policy = build("vla")
    save_policy(policy, tmp_path, weights="fp16")
    again = load_policy(tmp_path)
    for name, parameter in again.named_parameters():
        wanted = policy.state_dict()[name].half().float()
        assert parameter.dtype == torch.float32 and torch.equal(parameter, wanted), name


DERIVED = {"policies/pretrained/smolvla_layers.py"}
LATE = {"smolvla_layers"}


def test_naming_a_recipe_imports_no_network_library() -> None:
    """They take seconds to import, and only a network that is built needs them: no module does so
    at its top."""
    source = Path(armlet.__file__).parent
    for path in source.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                names = [name.name for name in node.names]
            else:
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            heavy = {name.partition(".")[0] for name in names} & {
                "transformers",
                "peft",
                "accelerate",
            }
            place = path.relative_to(source).as_posix()
            # Layers that derive from the library's: nothing imports that file at its top either.
            assert not heavy or place in DERIVED, f"{place}: {heavy}"
            assert not any(name.split(".")[-1] in LATE for name in names), f"{place}: {names}"


class Graph(nn.Module):
    """A policy as a function of tensors."""

    def __init__(self, policy: Backbone) -> None:
        super().__init__()
        self.policy = policy

    def forward(
        self, images: dict[str, Tensor], text: Tensor, mask: Tensor, state: Tensor, action: Tensor
    ) -> Tensor:
        return self.policy(Batch(images, text, mask, state, action))


@torch.no_grad()
@pytest.mark.parametrize("name", OURS)
def test_a_graph_asks_its_batch_nothing(name: str) -> None:
    """One observation, of which eager code asks whether its words are padded, or which of them
    differ."""
    policy = build(name)
    whole = batch_for(policy)
    assert len(whole.text.unique(dim=0)) > 1
    one = {camera: image[:1] for camera, image in whole.images.items()}
    row = (whole.text[:1], whole.text_mask[:1], whole.state[:1], whole.previous_action[:1])
    graph = torch.export.export(Graph(policy).eval(), (one, *row))
    for number in range(3):
        own = slice(number, number + 1)
        images = {camera: image[own] for camera, image in whole.images.items()}
        rest = (whole.text[own], whole.text_mask[own], whole.state[own], whole.previous_action[own])
        wanted = policy(Batch(images, *rest))
        torch.testing.assert_close(graph.module()(images, *rest), wanted, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_padding_that_is_not_there_changes_nothing_whoever_asks() -> None:
    """With a mask or without: to the bit."""
    policy = build("vla")
    batch = batch_for(policy, 1)
    words = int(batch.text_mask.sum())
    bare = dataclasses.replace(
        batch, text=batch.text[:, :words], text_mask=batch.text_mask[:, :words]
    )
    assert policy.embed(bare).attention is None
    twice = Batch(
        images={name: image.repeat(2, 1, 1, 1) for name, image in bare.images.items()},
        text=bare.text.repeat(2, 1),
        text_mask=bare.text_mask.repeat(2, 1),
        state=bare.state.repeat(2, 1),
        previous_action=bare.previous_action.repeat(2, 1),
    )
    assert policy.embed(twice).attention is not None
    torch.testing.assert_close(policy(twice)[0], policy(bare)[0])


def test_what_was_measured_is_no_option_and_on_disk_as_it_was() -> None:
    policy = Routing(budget=0.5).build(build("vla"))
    assert isinstance(policy, Routed)
    options = {field.name for field in dataclasses.fields(Routing)}
    measured = {"threshold", "calibration", "only"}
    assert not options & measured
    assert policy.to_json()["routing"].keys() == options | measured
    for network in OURS.values():
        assert "kept_layers" not in {field.name for field in dataclasses.fields(network)}
    cut = build("clip_early").keep_layers((1,))
    assert cut.to_json()["network"]["kept_layers"] == (1,)


def test_a_network_of_another_robot_is_named() -> None:
    policy = make_policy()
    told = policy.to_json()
    told["network"]["state_dims"] = 9
    with pytest.raises(ValueError, match=r"network\.state_dims is 9, and .* have 4"):
        rebuild(told, policy.body.tokenizer)


def test_a_head_says_itself_what_it_must_know_of_a_robot() -> None:
    spec = make_policy().body.action_spec
    gripper = {"gripper": list(spec.grippers)}
    ends = {"gripper_open": spec.gripper_open, "gripper_closed": spec.gripper_closed}
    found = {name: head.fitted(spec, {}) for name, head in HEADS.items()}
    assert found == {
        "regression": {},
        "bins": {},
        "flow": {},
        "diffusion": {},
        "codebook": gripper,
        "arm_gripper": gripper | ends,
    }
    assert HEADS["arm_gripper"].fitted(spec, {"gripper": [0]})["gripper"] == [0]
