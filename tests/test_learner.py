"""Signals of a policy that is watched, against what its parts give when they are run one by one."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_frames, make_policy

from armlet.layers.graph import ProbeHeads
from armlet.machine import multiplies_bf16
from armlet.training.learner import Learner, watch
from armlet.training.trainer import make_batches


def probed() -> Learner:
    policy = make_policy()
    heads = ProbeHeads(4, 32, chunk=3, dims=4, graph_width=16, semantic_width=16, hidden=16)
    return Learner(policy, probe=heads, privileged={"subject": 3}).eval()


@torch.no_grad()
def test_signals_are_those_of_the_parts() -> None:
    learner = probed()
    policy, frames = learner.policy, make_frames()
    batch = make_batches(policy, frames).batch(np.arange(len(frames)))
    assert not batch.actions_valid.all(), "some steps lie past the end"
    state = tokens = policy.embed(batch)
    hiddens = []
    for index in range(4):
        state = policy.run_layer(index, state)
        hiddens.append(state.hidden)
    condition = policy.condition(state)
    want = [
        "condition",
        "actions",
        "imitation",
        "gates",
        "costs",
        "semantics",
        "layer_actions",
        "privileged.subject",
    ]
    found = watch(learner, batch, [*want, "hidden.0", "hidden.2", "pointed.subject"])
    torch.testing.assert_close(found["condition"], condition)
    torch.testing.assert_close(found["actions"], policy.head(condition))
    error = (policy.head(condition) - batch.actions).abs().mean(-1) * batch.actions_valid
    torch.testing.assert_close(found["imitation"], error.sum(1) / batch.actions_valid.sum(1))
    for index in (0, 2):
        torch.testing.assert_close(found[f"hidden.{index}"], hiddens[index])
    semantics, actions = learner.probe(hiddens, tokens.mask)
    torch.testing.assert_close(found["semantics"], semantics)
    torch.testing.assert_close(found["layer_actions"], actions)
    torch.testing.assert_close(
        found["privileged.subject"], learner.privileged["subject"](condition)
    )
    seen = tokens.hidden[:, : policy.vision_tokens]
    torch.testing.assert_close(found["pointed.subject"], learner.pointers["subject"](seen))
    assert (found["gates"] == 1).all() and found["costs"].tolist() == policy.layer_costs().tolist()


@torch.no_grad()
@pytest.mark.parametrize("every", [2, 5])
def test_layers_of_every_nth_sample_are_rows_of_all(every: int) -> None:
    """The words differ in length, so that another sample's mask would give another vector."""
    learner, frames = probed(), make_frames()
    batch = make_batches(learner.policy, frames).batch(np.arange(len(frames)))
    assert len({tuple(mask) for mask in batch.text_mask.tolist()}) > 1
    whole = learner(batch, ["semantics", "layer_actions", "actions"])
    some = learner(batch, ["semantics", "layer_actions", "actions"], every=every)
    for name in ("semantics", "layer_actions"):
        torch.testing.assert_close(some[name], whole[name][::every])
    assert torch.equal(some["actions"], whole["actions"])


def test_what_several_read_is_made_once(monkeypatch) -> None:
    """The condition, by head, loss, facts and whoever wants it: their gradients are summed there."""
    learner, made = probed(), []
    batch = make_batches(learner.policy, make_frames()).batch(np.arange(3))
    condition = learner.policy.condition
    monkeypatch.setattr(
        learner.policy, "condition", lambda state: made.append(state) or condition(state)
    )
    learner(batch, ["condition", "actions", "imitation", "privileged.subject"])
    assert len(made) == 1
    learner(batch, ["layer_actions", "gates"])
    assert len(made) == 1, "and not at all where nobody reads it"


def test_exploration_reaches_the_network_that_decides() -> None:
    learner, frames, told = probed(), make_frames(), []
    run_layers = learner.policy.run_layers

    def listening(*arguments, **options):
        told.append(options["exploration"])
        return run_layers(*arguments, **options)

    learner.policy.run_layers = listening
    learner(make_batches(learner.policy, frames).batch(np.arange(3)), ["actions"], exploration=0.7)
    assert told == [0.7]


def test_a_signal_that_is_not_there_is_named() -> None:
    learner = Learner(make_policy()).eval()
    batch = make_batches(learner.policy, make_frames()).batch(np.arange(2))
    with pytest.raises(KeyError, match="this learner has none"):
        learner(batch, ["semantics"])
    with pytest.raises(KeyError, match=r"no signal \['goal'\]"):
        learner(batch, ["goal"])
    with pytest.raises(ValueError, match="no actions to compare with"):
        learner(dataclasses.replace(batch, actions=None), ["imitation"])
    with pytest.raises(RuntimeError, match="eval mode"):
        watch(learner.train(), batch, ["actions"])


@pytest.mark.parametrize(("has", "held"), [(True, False), (False, False), (False, True)])
def test_products_are_in_bf16_where_the_processor_has_them(monkeypatch, has, held) -> None:
    monkeypatch.setattr("armlet.training.learner.multiplies_bf16", lambda device: has)
    learner = probed()
    if held:  # weights in bf16 are multiplied as they are, wherever
        learner.policy.to(torch.bfloat16)
    square = torch.ones(2, 2)
    with learner.autocast("bf16"):
        found = (square @ square).dtype
    assert found == (torch.bfloat16 if has or held else torch.float32)
    with learner.autocast("fp32"):
        assert (square @ square).dtype == torch.float32


def test_whether_the_processor_has_bf16_is_what_its_flags_say() -> None:
    flags = Path("/proc/cpuinfo")
    if not flags.is_file() or "flags" not in flags.read_text():
        pytest.skip("needs Linux on x86")
    said = flags.read_text()
    # oneDNN takes AVX-512 with words and doubles as enough: it widens in registers.
    assert multiplies_bf16("cpu") == all(
        f" {name}" in said for name in ("avx512f", "avx512bw", "avx512vl", "avx512dq")
    )
    assert multiplies_bf16("cuda")
