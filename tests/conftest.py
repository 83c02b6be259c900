"""One thread a test process, and a process that it starts: what is compared to the bit must not
depend on how work was shared
out, and the tests run in two processes, where two threads each would wait for one another."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from multiprocessing.context import BaseContext
from pathlib import Path

import hypothesis
import pytest
import torch
from cputime import CpuTimes

HERE = Path(__file__).parent

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# A deadline for an example would say how busy the machine is.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


# Not armlet: the fork server does not look where the process that asks it does, and would import
# another copy.
HEAVY = (
    "torch", "transformers.models.llama.modeling_llama", "safetensors.torch", "scipy.stats",
    "mujoco", "av", "pyarrow.parquet", "PIL.Image", "jaxtyping", "einops",
)  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def spawned() -> Iterator[Callable]:
    """A process that would be spawned comes from the fork server, which has imported what takes
    seconds to import. It inherits as little as one from nothing, but these libraries are in its
    memory. Gives `multiprocessing.get_context` as it was."""
    multiprocessing.set_forkserver_preload(list(HEAVY))
    get_context = multiprocessing.get_context

    def quick(method: str | None = None) -> BaseContext:
        return get_context("forkserver" if method == "spawn" else method)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", quick)
        yield get_context


@pytest.fixture
def own_memory(spawned: Callable, monkeypatch) -> None:
    """Processes are spawned from nothing: for a test that asks what is in their memory."""
    monkeypatch.setattr(multiprocessing, "get_context", spawned)


@pytest.fixture
def no_fresh_process(monkeypatch) -> None:
    """Peak memory is not measured: for a test of an evaluation that asks about other things. It
    takes a process a policy."""
    monkeypatch.setattr("armlet.evaluation.measure.peak_memory_mb", lambda *asked: 1.0)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--lerobot-python", help="a Python that has the real lerobot (make test-lerobot)"
    )
    parser.addoption(
        "--cpu-times", action="store_true", help="end with what takes most of the processor's time"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--cpu-times"):
        config.pluginmanager.register(CpuTimes())


# What takes longest comes first, so that no worker is left with it while the other has nothing to do:
# `make test` gives whole files to whichever worker is free, in this order and then by name.
LONGEST = (
    "test_pipeline.py", "pretrained/test_training_options.py", "test_socket_teacher.py",
    "test_systems.py", "test_runtimes.py", "deploy/test_exports_table.py",
    "deploy/test_dynamic_routes.py", "deploy/test_plan.py", "test_training.py",
    "pretrained/test_lerobot_line.py", "deploy/test_export.py", "test_documents.py",
    "test_shipped_teacher.py", "pretrained/test_pi0.py", "policies/test_vla.py",
    "benchmarks/test_tabletop.py", "policies/test_clip_lora.py", "test_examples.py",
    "test_robots.py", "test_demo.py", "server/test_serve.py", "server/test_hostile.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {HERE / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))  # stable
