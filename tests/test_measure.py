"""What routes depend on, for policies of which that is known; who is timed after whom."""

import numpy as np
import torch
from tiny import TEXTS, make_policy

from armlet.measure import WARM_UP, latency, what_routes_depend_on
from armlet.policies.routed import Routing
from armlet.types import Observation


def observations(count: int = 24) -> list[Observation]:
    rng = np.random.default_rng(0)
    pixels = {"scene": 24, "wrist": 16}
    return [
        Observation(
            {name: rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for name, size in pixels.items()},
            rng.normal(size=4).astype(np.float32),
            TEXTS[index % 3],
            rng.uniform(-1, 1, 4).astype(np.float32),
        )
        for index in range(count)
    ]


def test_a_policy_without_a_router_depends_on_nothing() -> None:
    assert set(what_routes_depend_on(make_policy(), observations()).values()) == {0.0}


def test_a_router_that_reads_the_state_alone_depends_on_it_alone() -> None:
    policy = Routing(use_previous_action=False).build(make_policy()).eval()
    with torch.no_grad():
        torch.nn.init.normal_(policy.router.leave.weight, std=2.0)
        policy.router.leave.bias.zero_()
        policy.router.enter.weight[:, :-4] = 0  # the pooled tokens
    found = what_routes_depend_on(policy, observations())
    assert found["state"] == found["everything"] > 0.3
    assert found["images"] == found["instruction"] == found["previous_action"] == 0


class Recorded:
    """A policy that does nothing but write down that it was asked."""

    device = torch.device("cpu")

    def __init__(self, name: str, asked: list[tuple[str, str]]) -> None:
        self.name, self.asked = name, asked

    def infer(self, observation: Observation) -> None:
        self.asked.append((self.name, observation.instruction))


def test_every_policy_is_timed_on_the_same_observations_and_after_any_other() -> None:
    """One that always followed the largest would find its own weights gone from the caches, and look slower than its equal."""
    asked: list[tuple[str, str]] = []
    names, calls = ("large", "one", "other"), 120
    found = latency({name: Recorded(name, asked) for name in names}, observations(), calls=calls)
    assert list(found) == list(names)
    timed = asked[len(names) * WARM_UP :]
    seen = {name: [text for who, text in timed if who == name] for name in names}
    assert seen["large"] == seen["one"] == seen["other"] and len(seen["one"]) == calls
    before = [timed[index - 1][0] for index in range(1, len(timed)) if timed[index][0] == "one"]
    assert all(20 < before.count(name) < 60 for name in ("large", "other"))
