"""One thread a test process, and a process that it starts: what is compared to the bit must not
depend on how work was shared
out, and the tests run in two processes, where two threads each would wait for one another."""

import os

import hypothesis
import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# A deadline for an example would say how busy the machine is.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


@pytest.fixture
def no_fresh_process(monkeypatch) -> None:
    """Peak memory is not measured: for a test of an evaluation that asks about other things. It
    takes a process a policy."""
    monkeypatch.setattr("armlet.evaluation.measure.peak_memory_mb", lambda *asked: 1.0)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--lerobot-python", help="a Python that has the real lerobot (make test-lerobot)"
    )
