"""The stock openpi-client and the stock vla-eval harness, unmodified, drive `armlet serve` (make
test-peers)."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "server"))
from peers import OPENPI, ROOT, VLA_EVAL, harness, looks, openpi_side, own_loop, save
from running import SERVE, Running, running

from armlet.policies.checkpoint import load_policy
from armlet.policies.contract import Policy
from armlet.robot.observation import Observation

TEACHER = ROOT / "checkpoints/tabletop-teacher"
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(
        not (OPENPI.exists() and VLA_EVAL.exists()),
        reason="no environments of the stock clients; make test-peers makes them",
    ),
]


@pytest.fixture(scope="module")
def policy() -> Policy:
    torch.set_num_threads(1)
    return load_policy(TEACHER)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(str(TEACHER), program=SERVE) as started:
        yield started


def test_the_stock_openpi_client(server: Running, policy: Policy, tmp_path: Path) -> None:
    """What the policy answers here, the action before as a session counts it."""
    seen = looks(policy, 12, seed=3)
    save(seen, tmp_path / "in.npz")
    openpi_side("ask", server.ports["openpi"], tmp_path / "in.npz", tmp_path / "out.npz")
    found = np.load(tmp_path / "out.npz")
    assert json.loads(str(found["metadata"]))["policy"] == "tabletop-teacher"
    previous = np.zeros(4, np.float32)
    for each, answer in zip(seen, found["actions"], strict=True):
        told = Observation(each.images, each.state, each.instruction, previous)
        np.testing.assert_allclose(answer, policy.infer(told), atol=1e-6)
        previous = answer[policy.execute - 1]


def test_many_stock_openpi_clients_at_once(server: Running, policy: Policy, tmp_path: Path) -> None:
    save(looks(policy, 12, seed=4), tmp_path / "in.npz")
    port = server.ports["openpi"]
    openpi_side("load", port, tmp_path / "in.npz", 16, 5, tmp_path / "out.json")
    report = json.loads((tmp_path / "out.json").read_text())
    assert not report["failed"] and report["answers_a_connection"]["fewest"] > 0
    # Whoever waited together was decided together.
    assert server.metric("pass_seconds_count") < server.metric("batch_size_sum")


def test_the_stock_harness_sees_what_our_own_loop_sees(
    server: Running, policy: Policy, tmp_path: Path
) -> None:
    asked = {"episodes": 3, "seed": 900}
    assert harness(server.address("vla_eval"), tmp_path, **asked) == own_loop(policy, **asked)


def test_the_stock_harness_in_real_time(server: Running, tmp_path: Path) -> None:
    """Its live mode runs through; how well is measured where nothing else runs (bench/serving.py)."""
    found = harness(
        server.address("vla_eval"), tmp_path, episodes=1, seed=900, mode="live", hz=10.0
    )
    assert found[0][1] > 0
