"""What `bench/captured.py` does without a GPU: a route is what a routed policy would run, weights are
counted as often as they are read, and nothing on the way asks the host."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HERE = Path(__file__).parent
sys.path += [str(HERE / "pretrained"), str(HERE.parent / "bench")]

import captured  # noqa: E402
from every_kind import MAKE  # noqa: E402

from armlet.policies.contract import Backbone  # noqa: E402
from armlet.policies.pretrained import kinds  # noqa: E402
from armlet.robot.observation import Observation  # noqa: E402


@pytest.fixture(scope="module", params=["openvla_hf", "pi0", "pi05", "smolvla"])
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return kinds.load(MAKE[request.param](tmp_path_factory.mktemp("kind")))


def seen(policy: Backbone) -> Observation:
    rng = np.random.default_rng(0)
    images = {}
    for name, (height, width) in policy.view.cameras.items():
        images[name] = rng.integers(0, 256, (height, width, 3), np.uint8)
    state = np.zeros(len(policy.body.state.offset), np.float32)
    return Observation(images, state, "pick up the cube", np.zeros(policy.dims, np.float32))


@torch.inference_mode()
def test_a_route_of_all_layers_is_a_decision(policy: Backbone) -> None:
    observation = seen(policy)
    batch = policy.prepare([observation])
    every = tuple(range(len(policy.layers)))
    found = captured.along(policy, every, batch, captured.gates_of(policy, every))
    assert torch.allclose(found, policy(batch), atol=1e-5)
    # Room for longer instructions changes nothing.
    roomy = captured.along(
        policy, every, captured.with_room(batch), captured.gates_of(policy, every)
    )
    assert torch.allclose(roomy, found, atol=1e-4)
    # A route of some layers is the network that is cut to them.
    some = (0,)
    cut = policy.keep_layers(some)(batch)
    assert torch.allclose(
        captured.along(policy, some, batch, captured.gates_of(policy, some)), cut, atol=1e-5
    )


class Asks(TorchDispatchMode):
    """Refuses what waits for a GPU, or sends it what the host made: neither can be recorded. A
    tensor on `meta` stands for one on the GPU."""

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        named = named or {}
        assert operation not in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.item.default,
        )
        flat = tree_leaves((arguments, named))
        made = [each for each in flat if isinstance(each, torch.Tensor)]
        there = {each.device.type for each in made if each.ndim}
        assert len(there) < 2, f"{operation}: {there}"
        found = operation(*arguments, **named)
        if isinstance(found, torch.Tensor) and there == {"cpu"}:
            assert found.device.type == "cpu", f"{operation} sends to the GPU what the host made"
        return found


@torch.inference_mode()
def test_nothing_on_the_way_asks_the_host(policy: Backbone) -> None:
    batch = captured.with_room(policy.prepare([seen(policy)]))
    every = tuple(range(len(policy.layers)))
    gates = captured.gates_of(policy, every)
    captured.along(policy, every, batch, gates)  # warm: what is kept is made
    if hasattr(policy.vision, "_places"):  # and there is what it would be on the GPU
        kept = policy.vision._places
        for (rows, columns, _), places in list(kept.items()):
            kept[rows, columns, torch.device("meta")] = places.to("meta")
    on_gpu = policy.to("meta")
    images = {name: each.to("meta") for name, each in batch.images.items()}
    fields = ("text", "text_mask", "state", "previous_action")
    moved = {name: getattr(batch, name).to("meta") for name in fields}
    there = replace(batch, images=images, **moved)
    asked = gates.to("meta")
    place = "armlet.policies.pretrained.dino_siglip._unpadded"
    recording = mock.patch(place, return_value=False)  # as it answers while one is recorded
    with recording, Asks():
        captured.along(on_gpu, every, there, asked)


def test_weights_count_as_often_as_they_are_read() -> None:
    network = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 4), nn.Linear(4, 4, bias=False))
    words = torch.tensor([[1, 2, 3]])
    with torch.inference_mode(), captured.Reads(network) as reads:
        hidden = network[1](network[0](words))
        network[2](network[2](hidden))
    assert reads.bytes == 4 * (3 * 8 + (8 * 4 + 4) + 2 * 16)


@torch.inference_mode()
def test_layers_are_read_once_a_step_and_less_where_some_are_skipped(tmp_path: Path) -> None:
    policy = kinds.load(MAKE["openvla_hf"](tmp_path))
    layer = sum(each.nbytes for each in policy.layers[0].parameters())
    both = captured.bytes_read(policy, (0, 1), seen(policy))
    one = captured.bytes_read(policy, (0,), seen(policy))
    assert both - one == policy.dims * layer  # for the prompt, and for every word but the last


def test_routes_are_spread_over_the_layers() -> None:
    layers = mock.Mock(layers=list(range(16)))
    found = captured.routes_of(layers, (0.5, 0.25))
    assert found["all layers"] == tuple(range(16))
    assert found["50 % of the layers"] == tuple(range(0, 16, 2))
    assert found["25 % of the layers"] == (0, 4, 8, 12)
