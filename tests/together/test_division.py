"""A batch in parts is the whole batch: its numbers, its loss, its gradient."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from processes import STAGE, assert_same_gradients, train
from tiny import make_frames, make_policy
from torch import nn

from armlet.layers import draws
from armlet.recipe import Stage
from armlet.recipes.bases import Imitate
from armlet.training.distributed import World
from armlet.training.division import Division, places
from armlet.training.learner import Learner
from armlet.training.trainer import Trainer, make_batches

REPOSITORY = Path(__file__).parent.parent.parent


@given(some.integers(0, 70), some.integers(1, 9), some.integers(1, 5))
def test_pieces_are_the_whole_and_begin_where_every_nth_sample_is(
    count: int, pieces: int, every: int
) -> None:
    found = places(count, pieces, every)
    assert len(found) == pieces
    joined = np.concatenate([np.arange(count)[each] for each in found])
    np.testing.assert_array_equal(joined, np.arange(count))
    read = np.concatenate([np.arange(count)[each][::every] for each in found])
    np.testing.assert_array_equal(read, np.arange(count)[::every])
    sizes = [-(-(each.stop - each.start) // every) for each in found]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 5, 8])
def test_every_sample_is_in_one_pass_of_one_process(size: int, count: int) -> None:
    seen = []
    for rank in range(size):
        division = Division.of(count, World(rank, size), passes=2, every=1)
        samples = [np.arange(count)[each] for each in division.passes]
        np.testing.assert_array_equal(np.concatenate(samples), np.arange(count)[division.own])
        assert division.seen.stop > division.seen.start
        seen += samples
    np.testing.assert_array_equal(np.concatenate(seen), np.arange(count))


def test_parts_draw_what_the_whole_batch_draws() -> None:
    """Also numbers that stand there several times over, and those that all samples share."""
    like = torch.zeros(6, 3)
    twice = torch.zeros(12, 2)
    torch.manual_seed(5)
    expected = [torch.randn(6, 3), torch.rand(()), torch.randn(12, 2).view(2, 6, 2)]
    for rows in (slice(0, 2), slice(2, 6)):
        torch.manual_seed(5)
        with draws.divided(rows, 6, like.device):
            normal = draws.normal_like(like[rows])
            one = draws.shared(lambda: torch.rand(()))
            repeated = draws.normal_like(twice.view(2, 6, 2)[:, rows].flatten(0, 1), times=2)
        assert torch.equal(normal, expected[0][rows])
        assert torch.equal(one, expected[1])
        assert torch.equal(repeated.view(2, -1, 2), expected[2][:, rows])


def test_numbers_that_hang_on_the_division_are_noticed() -> None:
    with (
        pytest.raises(draws.UndividedDrawError, match="dropout"),
        draws.divided(slice(0, 2), 4, torch.device("cpu")),
    ):
        torch.rand(2)


@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, accumulate: int) -> None:
    """Of a loss that couples samples, with drawn routes, noise and moved pictures."""
    expected, _ = train(tmp_path / "whole", steps=2)
    found, _ = train(tmp_path / "parts", steps=2, accumulate=accumulate)
    assert_same_gradients(found, expected)


def test_what_cannot_be_divided_is_refused_by_name(tmp_path) -> None:
    def run(learner: Learner, stage: Stage) -> None:
        batches = make_batches(learner.policy, make_frames())
        Trainer(learner, stage, batches, folder=tmp_path, seed=0, title="test").run()

    plain = Stage(Imitate(), steps=1, batch_size=4, accumulate=2)
    with pytest.raises(ValueError, match=r"parallel is fsdp.*torchrun"):
        run(Learner(make_policy()), dataclasses.replace(plain, parallel="fsdp", accumulate=1))
    with pytest.raises(ValueError, match=r"batch_size 8 is divided into 5 parts"):
        train(tmp_path / "few", STAGE, accumulate=5)
    for part, said in ((nn.Dropout(0.1), "dropout"), (nn.BatchNorm1d(3), "its batch")):
        learner = Learner(make_policy())
        learner.policy.extra = part
        with pytest.raises(ValueError, match=rf"policy\.extra .*{said}"):
            run(learner, plain)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"offload": True}, "offload has no effect"),
        ({"parallel": "fsdp", "weights_precision": "bf16"}, "their own masters"),
        ({"parallel": "fsdp", "compile": True}, "compile true"),
        ({"parallel": "fsdp", "offload": True, "optimiser": "muon"}, "muon"),
        ({"accumulate": 0}, "accumulate"),
    ],
)
def test_stages_in_shards_say_what_they_cannot_do(changed: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Stage(Imitate(), steps=1, **changed)


def test_the_table_on_paper_is_what_its_formulae_give() -> None:
    place = REPOSITORY / "bench" / "scaling.py"
    loaded = importlib.util.spec_from_file_location("scaling", place)
    assert loaded is not None and loaded.loader is not None
    scaling = importlib.util.module_from_spec(loaded)
    sys.modules["scaling"] = scaling  # dataclasses look their module up
    loaded.loader.exec_module(scaling)
    page = (REPOSITORY / "docs" / "several-machines.md").read_text()
    assert "\n".join(scaling.table()) in page
    # By hand: 7,541,237,184 weights of 16 bytes; an all-reduce over 8 sends 2 · 7/8 of 4 bytes each.
    network = scaling.openvla()
    assert network.parameters == 7_541_237_184
    copies = scaling.Paper(network, 8, "ddp")
    assert copies.state == 16 * 7_541_237_184
    assert copies.traffic == pytest.approx(2 * 7 / 8 * 4 * 7_541_237_184)
    shards = scaling.Paper(network, 64, "fsdp")
    assert shards.state == copies.state / 64
    assert shards.passes == 1
