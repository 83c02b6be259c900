"""What routes depend on, for policies of which that is known."""

import numpy as np
import torch
from tiny import TEXTS, make_policy

from armlet.measure import what_routes_depend_on
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
