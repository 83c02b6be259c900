"""Flow policies of other projects in fewer denoising steps, against Euler's method by hand along the
flow of the policy as it was; and by name those that cannot."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from every_kind import MAKE
from torch import Tensor

from armlet.deploy.moments import at_random
from armlet.layers.guidance import Guide
from armlet.policies.checkpoint import load_policy
from armlet.policies.contract import Backbone
from armlet.shorten import main as shorten
from armlet.types import Batch

Velocity = Callable[[Tensor, float], Tensor]


def flow_of(
    policy: Backbone, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> tuple[Velocity, Tensor]:
    """The velocity (x (b, k, w), time from 0, noise, to 1) that a policy follows, and its noise."""
    found: list[tuple[Velocity, Tensor]] = []

    def taken(velocity: Velocity, noise: Tensor, steps: int, guide: Guide) -> Tensor:
        found.append((velocity, noise))
        return noise

    module = sys.modules[type(policy).__module__]
    with monkeypatch.context() as patch:
        patch.setattr(module, "guided_flow", taken)
        run = policy.run_layers(policy.embed(batch), batch)
        nowhere = Guide(torch.zeros(1, policy.chunk, policy.dims), torch.zeros(policy.chunk))
        policy.decode_guided(run, batch, nowhere)
    return found[0]


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", ["pi0", "pi05", "smolvla"])
def test_fewer_steps_go_along_the_same_flow(
    kind: str, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = MAKE[kind](tmp_path)
    policy = load_policy(place)
    shorten(str(place), out=tmp_path / "fewer", steps=steps)
    fewer = load_policy(tmp_path / "fewer")
    assert fewer.loop is not None and fewer.loop.times == steps
    moments, _ = at_random(policy, 0)
    batch = policy.prepare(moments[:1])
    velocity, x = flow_of(policy, batch, monkeypatch)
    for step in range(steps):
        x = x + velocity(x, step / steps) / steps
    found = fewer(batch)
    torch.testing.assert_close(found, x[..., : policy.dims], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, policy(batch), atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("act", "takes no denoising steps"),
        ("openvla_hf", "takes no denoising steps"),
        ("diffusion", "has no action head that could be made lighter"),
    ],
)
def test_others_say_why_not(kind: str, says: str, tmp_path: Path) -> None:
    place = MAKE[kind](tmp_path)
    with pytest.raises(ValueError, match=says):
        shorten(str(place), out=tmp_path / "fewer", steps=1)
    assert not (tmp_path / "fewer").exists()
