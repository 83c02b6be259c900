"""Several processes train as one does: the same gradients, and after a kill the same weights."""

import dataclasses
import os

import pytest
import torch
from processes import STAGE, assert_same_gradients, together, train

from armlet.training.trainer import Trainer


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_have_one_processs_gradients(tmp_path, parallel: str) -> None:
    """Of a loss that couples the samples of the whole batch, with numbers drawn for each."""
    expected, _ = train(tmp_path / "one", steps=1)
    stage = dataclasses.replace(STAGE, steps=1, parallel=parallel)
    work = lambda rank: train(tmp_path / "two", stage)  # noqa: E731
    for found in together(2, work, tmp_path):
        assert not isinstance(found, Exception), found
        assert_same_gradients(found[0], expected)
    lines = [(tmp_path / each / "metrics.jsonl").read_text().count("\n") for each in ("one", "two")]
    assert lines == [1, 1]  # one log


def test_a_killed_process_ends_the_others_and_the_same_command_goes_on(tmp_path) -> None:
    stage = dataclasses.replace(STAGE, steps=3)
    whole = together(2, lambda rank: train(tmp_path / "whole", stage), tmp_path)
    update = Trainer._update

    def dies(trainer: Trainer) -> dict[str, float]:
        if trainer.step == 2 and trainer.world.rank == 1:
            os._exit(9)
        return update(trainer)

    def killed(rank: int) -> object:
        Trainer._update = dies
        return train(tmp_path / "parts", stage)

    first, second = together(2, killed, tmp_path)
    assert second is None
    assert isinstance(first, RuntimeError)
    for said in ("RankError: test: rank 0 of 2, step 2", "rank 1 1", "last saved state"):
        assert said in str(first)
    resumed = together(2, lambda rank: train(tmp_path / "parts", stage), tmp_path)
    for (_, expected), (_, found) in zip(whole, resumed, strict=True):
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name
