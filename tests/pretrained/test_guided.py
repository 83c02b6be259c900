"""Policies that go on from the actions under way (real-time chunking): flow policies of each kind
against their own unguided flow, and by name those that cannot."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from every_kind import MAKE
from tiny import make_policy

from armlet.deploy.moments import at_random
from armlet.layers.guidance import Guide
from armlet.policies.checkpoint import load_policy
from armlet.policies.contract import Backbone
from armlet.policies.exported import ExportedPolicy
from armlet.policies.routed import Routed, Routing
from armlet.policies.vla import VLA
from armlet.robot.exported import Exported
from armlet.robot.observation import Observation, Underway


def flow_vla(*, chunk: int = 6, steps: int = 5) -> VLA:
    base = make_policy()
    network = replace(base.network, head="flow", chunk=chunk, execute=2)
    network = replace(network, head_options={"hidden": 32, "steps": steps})
    torch.manual_seed(0)
    policy = VLA(network, base.cameras, base.body).eval()
    # A fresh DiT passes everything unchanged: give its blocks something to say.
    for block in policy.head.blocks:
        torch.nn.init.normal_(block.modulation.weight, std=0.05)
    return policy


def ours(place: Path) -> Backbone:
    return flow_vla()


def routed(place: Path) -> Backbone:
    return Routed(flow_vla(), Routing(initial_keep=0.5)).eval()  # type: ignore[abstract]


def of_kind(kind: str) -> Callable[[Path], Backbone]:
    return lambda place: load_policy(MAKE[kind](place))


FLOWS = {"vla": ours, "routed": routed}
FLOWS |= {kind: of_kind(kind) for kind in ("pi0", "pi05", "smolvla")}


def seen_by(policy: Backbone) -> Observation:
    moments, _ = at_random(policy, 0)
    return moments[0]


@pytest.mark.parametrize("kind", FLOWS)
def test_a_flow_policy_is_drawn_to_what_is_under_way_and_nowhere_else(
    kind: str, tmp_path: Path
) -> None:
    policy = FLOWS[kind](tmp_path)
    seen = seen_by(policy)
    free = policy.decide(seen)
    assert policy.why_unguided == ""
    with torch.no_grad():
        batch = policy.prepare([seen])
        run = policy.run_layers(policy.embed(batch), batch)
        decoded = policy.decode(run, batch)
        chunk, dims = decoded.shape[1:]
        # Without weight it is the policy's own flow: its time and its way, the right way round.
        nowhere = Guide(torch.full((1, chunk, dims), 9.0), torch.zeros(chunk))
        unmoved = policy.decode_guided(run, batch, nowhere)
    torch.testing.assert_close(unmoved, decoded, rtol=1e-5, atol=1e-5)
    # What is left of a chunk that lies half a unit beside: its first two are carried out meanwhile.
    state = policy.inputs.state_of(seen)
    beside = policy.outputs.denormalise(decoded[0].float().numpy() * 0.5 + 0.2, state)
    left = beside[: chunk - 2]
    guided = policy.decide(replace(seen, underway=Underway(left, 2)))
    frozen = np.abs(guided.actions[:2] - left[:2]).mean()
    assert frozen < 0.3 * np.abs(free.actions[:2] - left[:2]).mean()
    assert guided.gates == free.gates
    # And nothing of it is remembered: the next that stands alone has the bits of before.
    assert np.array_equal(policy.decide(seen).actions, free.actions)


def test_the_actions_under_way_are_those_of_the_robot() -> None:
    """Metres, relative to the state: what a policy is drawn to, it answers in the same numbers."""
    from armlet.policies.contract import Body
    from armlet.robot.normalise import Normaliser

    base = flow_vla(chunk=6)
    actions = Normaliser(np.full(4, 0.3, np.float32), np.full(4, 2.0, np.float32))
    wide = replace(base.body.action_spec, low=(-50.0,) * 4, high=(50.0,) * 4, grippers=())
    body = Body(wide, base.body.state, actions, base.body.tokenizer, relative=(0, 1))
    policy = VLA(base.network, base.cameras, body).eval()
    torch.nn.init.zeros_(policy.head.leave.weight)  # the same velocity everywhere, and 5 steps:
    seen = seen_by(policy)  # what is frozen is reached exactly
    left = np.random.default_rng(0).normal(0, 3, (4, 4)).astype(np.float32)
    guided = policy.decide(replace(seen, underway=Underway(left, 3))).actions
    np.testing.assert_allclose(guided[:3], left[:3], atol=1e-4)
    np.testing.assert_allclose(guided[4:], policy.decide(seen).actions[4:], atol=1e-5)


@pytest.mark.parametrize(
    ("left", "late", "says"),
    [
        (np.zeros((2, 3), np.float32), 1, r"found shape \(2, 3\).*expected \(m, 4\)"),
        (np.zeros(4, np.float32), 1, r"found shape \(4,\)"),
        (np.full((2, 4), np.nan, np.float32), 1, "not finite"),
        (np.zeros((2, 4), np.float32), 3, "3 of 2 are said to be carried out"),
    ],
)
def test_what_cannot_be_under_way_is_refused(left: np.ndarray, late: int, says: str) -> None:
    policy = flow_vla()
    with pytest.raises(ValueError, match=says):
        policy.decide(replace(seen_by(policy), underway=Underway(left, late)))


@pytest.mark.parametrize("kind", ["act", "diffusion", "cogact", "openvla_oft", "openvla_hf"])
def test_a_policy_without_a_flow_says_so(kind: str, tmp_path: Path) -> None:
    policy = load_policy(MAKE[kind](tmp_path))
    assert "no flow from noise to actions" in policy.why_unguided
    left = np.zeros((1, policy.dims), np.float32)
    with pytest.raises(ValueError, match="no flow from noise to actions that could be guided"):
        policy.decide(replace(seen_by(policy), underway=Underway(left, 1)))


def test_a_head_that_names_numbers_and_an_exported_graph_say_so() -> None:
    policy = make_policy()
    with pytest.raises(ValueError, match="RegressionHead has no flow"):
        policy.decide(replace(seen_by(policy), underway=Underway(np.zeros((1, 4), np.float32), 1)))
    exported = object.__new__(Exported)
    assert "no derivative" in ExportedPolicy(exported).why_unguided
    told = replace(seen_by(policy), underway=Underway(np.zeros((1, 4), np.float32), 1))
    with pytest.raises(ValueError, match="an exported graph has no derivative"):
        exported.decide(told)
