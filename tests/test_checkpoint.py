"""Policies on disk: kept in half precision they are half as large and answer as their rounded weights do."""

import dataclasses

import pytest
import torch
from tiny import make_policy

from armlet.checkpoint import WEIGHTS, load_policy, load_state, save_policy, save_state
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


def test_files_that_do_not_belong_together_are_refused_by_name(tmp_path) -> None:
    """New weights under the old config, as a save that dies half way leaves them; a pointer and half a file in the weights' place."""
    policy = make_policy()
    save_policy(policy, tmp_path)
    weights = tmp_path / WEIGHTS
    whole = weights.read_bytes()
    with torch.no_grad():
        next(policy.parameters()).view(-1)[0] += 1
    save_policy(policy, tmp_path / "other")
    wrong = {
        "not the file that .*config": (tmp_path / "other" / WEIGHTS).read_bytes(),
        "git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n",
        "was cut short": whole[:3000],
    }
    for said, content in wrong.items():
        weights.write_bytes(content)
        with pytest.raises(ValueError, match=rf"model\.safetensors.*{said}"):
            load_policy(tmp_path)
    weights.write_bytes(whole)
    load_policy(tmp_path)


def test_a_damaged_training_state_is_named(tmp_path) -> None:
    path = tmp_path / "state.pt"
    save_state(path, {"step": 3, "weights": torch.arange(3000)})
    assert load_state(path)["step"] == 3
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"state\.pt is damaged .* delete it"):
        load_state(path)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ([0.7], r"state: found shape \(1,\), expected \(4,\)"),
        ([[0.7] * 4], r"state: found shape \(1, 4\)"),
        ([0, 0, float("nan"), 0], r"state: NaN or infinite at \[2\]"),
        (None, "state: found object"),
        ([True] * 4, "state: found bool"),
        (["0"] * 4, "state: found <U1"),
    ],
)
def test_a_state_that_is_no_state_is_refused_by_name(state, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_policy().infer(dataclasses.replace(observe(), state=state))


def test_numbers_of_any_kind_are_taken() -> None:
    policy, seen = make_policy(), observe()
    wanted = policy.infer(seen)
    for state in ([0, 0, 0, 0], (0.0,) * 4, seen.state.astype("float64"), torch.zeros(4)):
        assert (policy.infer(dataclasses.replace(seen, state=state, previous_action=state)) == wanted).all()
