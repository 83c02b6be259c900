"""What routes depend on, for policies of which that is known; who is timed after whom; operations
against a closed form."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import TEXTS, make_policy

from armlet.evaluation import measure
from armlet.evaluation.measure import WARM_UP, compute, latency, what_routes_depend_on
from armlet.policies.contract import Policy
from armlet.policies.routed import Routed, Routing
from armlet.robot.observation import Observation


def observations(count: int = 24) -> list[Observation]:
    rng = np.random.default_rng(0)
    pixels = {"scene": 24, "wrist": 16}
    return [
        Observation(
            {
                name: rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                for name, size in pixels.items()
            },
            rng.normal(size=4).astype(np.float32),
            TEXTS[index % 3],
            rng.uniform(-1, 1, 4).astype(np.float32),
        )
        for index in range(count)
    ]


def test_a_policy_without_a_router_depends_on_nothing() -> None:
    assert set(what_routes_depend_on(make_policy(), observations()).values()) == {0.0}


def reads_the_state_alone() -> Routed:
    policy = Routing(use_previous_action=False).build(make_policy()).eval()
    with torch.no_grad():
        torch.nn.init.normal_(policy.router.leave.weight, std=2.0)
        policy.router.leave.bias.zero_()
        policy.router.enter.weight[:, :-4] = 0  # the pooled tokens
    return policy


def test_a_router_that_reads_the_state_alone_depends_on_it_alone() -> None:
    policy = reads_the_state_alone()
    found = what_routes_depend_on(policy, observations())
    assert found["state"] == found["everything"] > 0.3
    assert found["images"] == found["instruction"] == found["previous_action"] == 0


def test_the_layers_that_would_run_are_those_that_do() -> None:
    routed = reads_the_state_alone()
    dialled = Routing(dial=True, budget=0.5).build(make_policy()).eval()
    for policy in (make_policy(), routed, dialled, routed.along("1001")):
        for moment in observations():
            assert policy.layers_for(moment) == policy.decide(moment).gates


def test_operations_of_a_backbone_are_those_of_its_matrices() -> None:
    policy = make_policy()
    (observation, *_) = observations()
    (_, n, width) = policy.embed(policy.prepare([observation])).hidden.shape
    matrices = sum(p.numel() for p in policy.blocks[0].parameters() if p.ndim == 2)
    multiplications = n * matrices + 2 * n * n * width  # the second term: q·k and p·v
    assert compute(policy, [observation])["backbone"] == 2 * multiplications * len(policy.layers)


def test_operations_are_the_mean_of_what_each_moment_takes() -> None:
    """Also where moments of one instruction take different routes, and one route serves
    instructions of different lengths."""
    policy = reads_the_state_alone()
    moments = observations()
    singly = [compute(policy, [moment]) for moment in moments]
    together = compute(policy, moments)
    assert len({one["backbone"] for one in singly}) > 3
    for name, mean in together.items():
        assert mean == pytest.approx(np.mean([one[name] for one in singly]), rel=1e-12)


def test_operations_are_counted_once_for_instructions_of_one_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = make_policy()
    count = measure._count
    lengths = []

    def counting(policy: Policy, observation: Observation) -> tuple[int, int]:
        lengths.append(len(observation.instruction.split()))
        return count(policy, observation)

    monkeypatch.setattr(measure, "_count", counting)
    words = TEXTS[0].split()
    said = (words, words[::-1], words[:-1], [*words[:-2], words[-1]])
    first = observations()[0]
    compute(policy, [replace(first, instruction=" ".join(each)) for each in said])
    assert lengths == [len(words), len(words) - 1]


class Recorded:
    """A policy that does nothing but write down that it was asked."""

    device = torch.device("cpu")

    def __init__(self, name: str, asked: list[tuple[str, str]]) -> None:
        self.name, self.asked = name, asked

    def infer(self, observation: Observation) -> None:
        self.asked.append((self.name, observation.instruction))


def test_every_policy_is_timed_on_the_same_observations_and_after_any_other() -> None:
    """One that always followed the largest would find its own weights gone from the caches, and
    look slower than its equal."""
    asked: list[tuple[str, str]] = []
    names, calls = ("large", "one", "other"), 120
    found = latency({name: Recorded(name, asked) for name in names}, observations(), calls=calls)
    assert list(found) == list(names)
    timed = asked[len(names) * WARM_UP :]
    seen = {name: [text for who, text in timed if who == name] for name in names}
    assert seen["large"] == seen["one"] == seen["other"] and len(seen["one"]) == calls
    before = [timed[index - 1][0] for index in range(1, len(timed)) if timed[index][0] == "one"]
    assert all(20 < before.count(name) < 60 for name in ("large", "other"))
