"""A profile looks into checkpoints of every kind: parts sum to the whole, operations are those that
are counted elsewhere, and the passes of the loop in which a kind decodes are told apart."""

from pathlib import Path

import numpy as np
import pytest
from every_kind import MAKE

from armlet.deploy.meter import Watch
from armlet.deploy.moments import at_random
from armlet.deploy.planning import eager_way
from armlet.deploy.profiling import Setting, profile
from armlet.evaluation.measure import compute
from armlet.policies.checkpoint import load_policy
from armlet.policies.pretrained import kinds

WRITING = ("openvla_hf", "prismatic_openvla")  # one token after the other, and no denoising


@pytest.mark.parametrize("kind", list(MAKE))
def test_a_profile_of_every_kind(kind: str, tmp_path: Path) -> None:
    place = MAKE[kind](tmp_path)
    said, found = kinds.find(place)
    card = found.describe(said)
    policy = load_policy(place)
    moments, _ = at_random(policy, 0)
    wanted = policy.decide(moments[0])
    watch = Watch(policy, moments[0])
    timed = profile(policy, moments[:2], Setting("p", "f", "m", calls=4, threads=1))
    assert np.array_equal(policy.decide(moments[0]).actions, wanted.actions)
    assert abs(timed.residual_ms) < 1e-9 * timed.timed_ms
    assert sum(part.flops for part in timed.parts) == pytest.approx(
        compute(policy, moments[:1])["total"]
    )
    assert timed.of_kind("eyes") > 0 and len(timed.parts) > timed.layers
    if card.steps:
        assert timed.steps.what == "denoising step" and timed.steps.times == card.steps
    elif card.kind in WRITING:
        assert timed.steps.what == "token" and timed.steps.times == card.action_dims
    else:
        assert timed.steps is None
    if timed.steps is not None and timed.steps.times > 2:
        assert watch.looping
        assert 0 < timed.steps.ms * (timed.steps.times - 1) < timed.timed_ms
    steps = 0 if timed.steps is None else timed.steps.times
    # The line goes through the point that it was made of.
    assert eager_way(timed).ms(timed.layers, steps) == pytest.approx(timed.whole_ms, rel=0.02)
