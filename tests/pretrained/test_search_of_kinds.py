"""A set of layers of every kind of checkpoint answers in a search as the checkpoint cut to it."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from every_kind import MAKE

from armlet.deploy.moments import at_random
from armlet.policies.checkpoint import load_policy
from armlet.policies.layer_search import answers, search


@pytest.mark.parametrize("kind", list(MAKE))
@torch.inference_mode()
def test_a_set_answers_as_the_checkpoint_cut_to_it(kind: str, tmp_path: Path) -> None:
    policy = load_policy(MAKE[kind](tmp_path))
    moments, _ = at_random(policy, 0)
    batch = policy.prepare(moments[:2])
    depth = len(policy.layers)
    sets = list(itertools.combinations(range(depth), depth - 1))
    expected = {kept: policy.keep_layers(kept).eval()(batch) for kept in sets}
    for kept, found in zip(sets, answers(policy, batch, sets), strict=True):
        torch.testing.assert_close(found, expected[kept], atol=1e-5, rtol=1e-5)
    wanted = replace(batch, taught=expected[sets[-1]])
    best = search(policy, wanted, depth - 1).best[0]
    assert best.error < 1e-5
    assert best.layers in [kept for kept in sets if torch.equal(expected[kept], expected[sets[-1]])]
