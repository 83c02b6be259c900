"""Policies on disk: kept in half precision they are half as large and answer as their rounded weights do."""

import pytest
import torch
from tiny import make_policy

from armlet.checkpoint import WEIGHTS, load_policy, save_policy
from armlet.types import Observation


def observe() -> Observation:
    generator = torch.Generator().manual_seed(0)
    images = {
        name: torch.randint(0, 256, (size, size, 3), dtype=torch.uint8, generator=generator).numpy()
        for name, size in (("scene", 24), ("wrist", 16))
    }
    return Observation(images, torch.zeros(4).numpy(), "touch the red cube", torch.zeros(4).numpy())


def test_half_precision_halves_the_file_and_nothing_else(tmp_path) -> None:
    policy = make_policy()
    save_policy(policy, tmp_path / "whole")
    save_policy(policy, tmp_path / "half", weights="fp16")
    sizes = [(tmp_path / name / WEIGHTS).stat().st_size for name in ("whole", "half")]
    assert 0.5 * sizes[0] < sizes[1] < 0.55 * sizes[0]
    read = load_policy(tmp_path / "half")
    assert {parameter.dtype for parameter in read.parameters()} == {torch.float32}
    policy.load_state_dict({name: tensor.half().float() for name, tensor in policy.state_dict().items()})
    assert (read.infer(observe()) == policy.infer(observe())).all()


def test_what_half_precision_cannot_hold_is_named_and_nothing_is_written(tmp_path) -> None:
    policy = make_policy()
    save_policy(policy, tmp_path)
    before = (tmp_path / WEIGHTS).read_bytes()
    with torch.no_grad():
        next(policy.parameters()).view(-1)[0] = 1e6
    with pytest.raises(ValueError, match=r"has weights up to 1e\+06, and fp16 holds 65504 at most"):
        save_policy(policy, tmp_path, weights="fp16")
    assert (tmp_path / WEIGHTS).read_bytes() == before
