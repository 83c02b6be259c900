"""Modules by names that torch forbids, and a robot without a state: every network is built,
trained, saved and loaded with both."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import TEXTS, identity, make_frames
from torch import nn

from armlet.benchmarks.tabletop import Tabletop
from armlet.data.text import train_tokenizer
from armlet.layers.named import Named, NoState, state_layer
from armlet.policies.action_query import ActionQueryNetwork
from armlet.policies.checkpoint import load_policy, save_policy
from armlet.policies.clip_lora import ClipLoraNetwork
from armlet.policies.contract import Body, Network
from armlet.policies.two_tower import TwoTowerNetwork
from armlet.policies.vla import VLANetwork
from armlet.training.trainer import make_batches

NAMES = [
    "scene",
    "observation.image",
    "arm.left",
    "keys",
    "type",
    "50%",
    "observation%2Eimage",
    "%6Beys",
    "a/b",
    "é 立方",
]


def test_names_of_any_kind() -> None:
    modules = {name: nn.Linear(1, place + 1) for place, name in enumerate(NAMES)}
    named = Named(modules)
    assert list(named) == list(named.keys()) == NAMES and dict(named.items()) == modules
    assert all(named[name] is module and name in named for name, module in modules.items())
    assert "nose" not in named and len(dict(named.named_parameters())) == 2 * len(NAMES)
    assert "scene.weight" in named.state_dict(), (
        "plain names stay as they are: weights on disk have them"
    )


@given(st.lists(st.text(min_size=1, max_size=6), unique=True, max_size=6))
def test_no_two_names_are_one(names: list[str]) -> None:
    named = Named({name: nn.Identity() for name in names})
    assert list(named) == names


def test_without_a_state_the_same_token_for_all() -> None:
    assert isinstance(state_layer(3, 4), nn.Linear)
    layer = state_layer(0, 4)
    assert isinstance(layer, NoState)
    nn.init.normal_(layer.bias)
    assert torch.equal(layer(torch.zeros(2, 0)), layer.bias.expand(2, 4))


LANGUAGE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
STRIDES = {"scene.left": 8, "keys": 8}
CLIP = ClipLoraNetwork(
    image=24, patch=8, width=32, depth=2, heads=2, text_width=32, text_depth=1, text_heads=2, text_tokens=32, embed=32, chunk=3, execute=3,
    channels=8, strides=STRIDES, use_state=True, head="regression", head_options={},
)  # fmt: skip
NETWORKS: dict[str, Network] = {
    "vla": VLANetwork(width=32, depth=2, heads=2, chunk=3, vision_channels=8, strides=STRIDES),
    "two_tower": TwoTowerNetwork(
        width=32, heads=2, vision_layers=1, text_layers=1, patch=8, chunk=3, goal=16, prototypes=5
    ),
    "action_query": ActionQueryNetwork(
        language=LANGUAGE, expert_width=16, channels=4, strides=STRIDES
    ),
    "clip_lora early": dataclasses.replace(CLIP, fusion="early"),
    "clip_lora late": CLIP,
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_networks_with_such_cameras_and_no_state(name: str, tmp_path) -> None:
    network = NETWORKS[name]
    frames = make_frames(episodes=3)
    images = {"scene.left": frames.images["scene"], "keys": frames.images["wrist"]}
    frames = dataclasses.replace(
        frames, images=images, state=np.zeros((len(frames), 0), np.float32)
    )
    spec = Tabletop().action_spec
    body = Body(spec, identity(0), identity(4), train_tokenizer(TEXTS))
    torch.manual_seed(0)
    policy = network.build(body, {"scene.left": 24, "keys": 16})
    batch = make_batches(policy, frames).batch(np.arange(4))
    policy.train()(batch).square().mean().backward()
    given = [name for name, parameter in policy.named_parameters() if parameter.numel() == 0]
    assert not given, "empty matrices are nothing an optimiser can take"
    save_policy(policy.eval(), tmp_path / "p")
    again = load_policy(tmp_path / "p")
    torch.testing.assert_close(again(batch), policy(batch))
