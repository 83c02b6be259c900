"""A policy of every kind that there is, small enough for every runtime to be tried on it: our own
with random weights and as they ship, and checkpoints of other projects as the tests make them.

`bench/exports.py` exports them, and a test holds the list to what armlet has.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from armlet.benchmarks.tabletop import Tabletop
from armlet.data.text import train_tokenizer
from armlet.deploy.moments import at_random
from armlet.layers.heads import HEADS
from armlet.policies.action_query import ActionQueryNetwork, llama
from armlet.policies.checkpoint import save_policy
from armlet.policies.clip_lora import ClipLoraNetwork
from armlet.policies.contract import Backbone, Body, Network
from armlet.policies.routed import Routed, Routing
from armlet.policies.two_tower import TwoTowerNetwork
from armlet.policies.vla import VLANetwork
from armlet.robot.normalise import Normaliser
from armlet.shipped import shipped

TESTS = Path(__file__).parents[1] / "tests"
sys.path += [str(TESTS), str(TESTS / "pretrained")]  # where checkpoints of every kind are made

import every_kind  # noqa: E402  # what the tests make is only found from there

WORLD = Tabletop(step_limit=40)
CAMERAS = {"scene": WORLD.scene_pixels, "wrist": WORLD.wrist_pixels}
TEXTS = ("touch the red cube", "put the blue cylinder into the white box", "open the green drawer")
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
# Of the heads that need to be told something: two primitives that differ in the gripper.
HEAD_OPTIONS: dict[str, dict[str, Any]] = {
    "codebook": {"primitives": [[0.5, 0, 0, -1.0], [0, -0.5, 0.2, 1.0], [-0.3, 0.4, 0, -1.0]]}
}


@dataclass(frozen=True)
class Kind:
    """One of the kinds. `type`: as a saved policy or a checkpoint's kind is called; `head`: of its
    actions, where it has one of ours; `make` writes one into an empty folder and says where it is;
    `acts`: whether it is for the robot of `WORLD`; `budgets`: at which it is exported."""

    type: str
    make: Callable[[Path], Path]
    head: str | None = None
    acts: bool = False
    budgets: tuple[float, ...] = ()


def of_network(network: Network, student: Callable[[Backbone], Backbone] | None = None) -> Any:
    """What writes a policy of this network, or the student that is made of it, with weights that are
    random and the same each time."""

    def make(folder: Path) -> Path:
        torch.manual_seed(0)
        same = Normaliser(np.zeros(4, np.float32), np.ones(4, np.float32))
        body = Body(WORLD.action_spec, same, same, train_tokenizer(TEXTS))
        policy = network.build(body, CAMERAS).eval()
        if student is not None:
            policy = student(policy).eval()
        save_policy(policy, folder / "policy")
        return folder / "policy"

    return make


def decided(routing: Routing, spread: float) -> Callable[[Backbone], Backbone]:
    """A router that decides by what it sees the more, the larger `spread` is; with 0 by nothing.
    One with a dial is calibrated on noise."""

    def make(policy: Backbone) -> Backbone:
        routed = routing.build(policy)
        assert isinstance(routed, Routed)
        torch.manual_seed(2)
        nn.init.zeros_(routed.router.leave.bias)
        if spread:
            nn.init.normal_(routed.router.leave.weight, std=spread)
        else:
            # The first two layers, whatever it sees.
            nn.init.zeros_(routed.router.leave.weight)
            with torch.no_grad():
                routed.router.leave.bias[:] = torch.tensor([1.0, 1.0, -1.0, -1.0])
        if routing.dial:
            routed.calibrate(routed.prepare(at_random(routed, 0)[0]))
        return routed

    return make


def named(name: str) -> Callable[[Path], Path]:
    return lambda folder: shipped(name)


SMALL = VLANetwork(
    width=32, depth=4, heads=2, chunk=3, execute=3, vision_channels=8, strides={"scene": 12}
)
TOWERS = TwoTowerNetwork(
    width=32,
    heads=2,
    vision_layers=2,
    text_layers=1,
    patch=12,
    chunk=3,
    goal=16,
    prototypes=5,
    embedding=8,
)
QUERIES = ActionQueryNetwork(
    language=llama(width=32, depth=3, heads=2), expert_width=16, channels=4
)
LORA = ClipLoraNetwork(
    image=24,
    patch=8,
    width=32,
    depth=3,
    heads=2,
    text_width=16,
    text_depth=2,
    text_heads=2,
    text_tokens=32,
    mlp=2,
    embed=16,
    chunk=3,
    execute=3,
    head_options={"hidden": 24},
    channels=4,
    use_state=True,
)


def _kinds() -> dict[str, Kind]:
    found: dict[str, Kind] = {}
    for head in HEADS:
        network = replace(SMALL, head=head, head_options=HEAD_OPTIONS.get(head, {}))  # type: ignore[arg-type]
        found[f"vla, {head}"] = Kind("vla", of_network(network), head, acts=True)
    two = of_network(SMALL, lambda policy: policy.keep_layers((0, 2)))
    found["vla, two of four layers"] = Kind("vla", two, "regression", acts=True)
    for name, make, budgets in (
        ("one route", decided(Routing(), 0), ()),
        ("routes that vary", decided(Routing(), 2.0), ()),
        ("two budgets", decided(Routing(dial=True, budget=0.5), 2.0), (0.5, 1.0)),
    ):
        routed = of_network(SMALL, make)
        found[f"routed, {name}"] = Kind("routed", routed, "regression", True, budgets)
    for early in (True, False):
        network = replace(TOWERS, early_words=early)
        words = "early" if early else "late"
        found[f"two_tower, words {words}"] = Kind(
            "two_tower", of_network(network), "regression", True
        )
    found["action_query"] = Kind("action_query", of_network(QUERIES), "arm_gripper", True)
    with_clip = replace(QUERIES, vision=CLIP)
    found["action_query, CLIP's eyes"] = Kind(
        "action_query", of_network(with_clip), "arm_gripper", True
    )
    for fusion in ("late", "early"):
        network = replace(LORA, fusion=fusion)
        found[f"clip_lora, {fusion}"] = Kind("clip_lora", of_network(network), "bins", True)
    found["vla, the shipped teacher"] = Kind("vla", named("tabletop-teacher"), "regression", True)
    found["two_tower, the shipped teacher"] = Kind(
        "two_tower", named("aed-teacher"), "codebook", True
    )
    for name, make in every_kind.MAKE.items():
        found[name] = Kind(name.split(",")[0].split(" ")[0], make)
    return found


KINDS = _kinds()
