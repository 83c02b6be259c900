"""A student with a lighter head: one step is what the teacher's own velocity says at its noise, all but
the head stays the teacher's, and what would have no effect is refused."""

import dataclasses
from typing import Any

import pytest
import torch
from tiny import TEXTS, identity

from armlet.benchmarks.tabletop import Tabletop
from armlet.data.text import train_tokenizer
from armlet.layers.heads import FlowHead, RegressionHead
from armlet.policies.checkpoint import load_policy, save_policy
from armlet.policies.contract import Body, Student
from armlet.policies.layer_search import LayerSearch
from armlet.policies.lighter import LighterHead
from armlet.policies.routed import Routing
from armlet.policies.students import FirstK, OtherNetwork
from armlet.policies.vla import VLA, VLANetwork
from armlet.recipes.flagship import MatchEndpoint
from armlet.types import Batch

SIDES = {"scene": 16, "wrist": 16}
HEADS: dict[str, dict[str, Any]] = {
    "flow": {"steps": 10, "hidden": 64, "blocks": 2},
    "diffusion": {"hidden": 32, "depth": 1},
    "regression": {},
}


def teacher(head: str = "flow") -> VLA:
    torch.manual_seed(0)
    network = VLANetwork(
        width=16,
        depth=3,
        heads=2,
        chunk=3,
        vision_channels=4,
        strides=dict.fromkeys(SIDES, 8),
        head=head,
        head_options=HEADS[head],
    )
    body = Body(Tabletop().action_spec, identity(4), identity(4), train_tokenizer(TEXTS))
    policy = network.build(body, SIDES).eval()
    for name, parameter in policy.head.named_parameters():
        if "modulation" in name:  # which begins at nothing
            torch.nn.init.normal_(parameter, std=0.2)
    return policy


def moments(policy: VLA, count: int = 5) -> Batch:
    draw = torch.Generator().manual_seed(1)
    text = torch.full((count, policy.text_tokens), 5)
    return Batch(
        images={
            name: torch.rand(count, 3, side, side, generator=draw) for name, side in SIDES.items()
        },
        text=text,
        text_mask=torch.ones_like(text, dtype=torch.bool),
        state=torch.randn(count, 4, generator=draw),
        previous_action=torch.zeros(count, 4),
        actions=torch.rand(count, 3, 4, generator=draw),
        actions_valid=torch.ones(count, 3, dtype=torch.bool),
    )


@torch.no_grad()
def test_one_step_is_the_teachers_velocity_at_its_own_noise(tmp_path) -> None:
    whole = teacher()
    batch = moments(whole)
    before = whole(batch)
    student = LighterHead(FirstK(2)).build(whole)
    assert isinstance(student, VLA) and student.loop is not None and student.loop.times == 1
    condition = student._condition(student.run_layers(student.embed(batch), batch))
    noise = whole.head.noise.expand(5, -1, -1)
    by_hand = noise + whole.head.velocity(noise, torch.zeros(5), condition)
    assert torch.equal(student(batch), by_hand)
    theirs = whole.keep_layers((0, 1)).state_dict()
    assert all(torch.equal(theirs[name], each) for name, each in student.state_dict().items())
    assert torch.equal(whole(batch), before) and whole.loop.times == 10, "the teacher stays"
    save_policy(student, tmp_path / "student")
    assert torch.equal(load_policy(tmp_path / "student")(batch), by_hand)


@torch.no_grad()
def test_other_heads_begin_as_they_can_and_all_else_is_the_teachers() -> None:
    whole = teacher()
    batch = moments(whole)
    narrow = LighterHead(FirstK(3), hidden=32, blocks=1).build(whole)
    assert isinstance(narrow.head, FlowHead) and len(narrow.head.blocks) == 1
    assert narrow.head.enter.out_features == 32 and narrow(batch).shape == (5, 3, 4)
    outright = LighterHead(FirstK(3), steps=None, head="regression").build(whole)
    assert isinstance(outright.head, RegressionHead) and outright.loop is None
    for student in (narrow, outright):
        for name, tensor in whole.state_dict().items():
            if not name.startswith("head."):
                assert torch.equal(student.state_dict()[name], tensor), name
    routed = LighterHead(Routing(budget=0.5), shortcut=True, steps=2).build(whole)
    assert routed.inner.head.steps == 2 and routed.inner.head.span is not None
    # Guided as CogACT's, its network is asked twice a step; unguided once.
    diffusing = LighterHead(FirstK(3), guidance=1.0).build(teacher("diffusion"))
    assert diffusing.loop.times == 1 and diffusing.head.guidance == 1
    asked = []
    diffusing.head.net.register_forward_hook(lambda *_: asked.append(1))
    assert diffusing(batch).shape == (5, 3, 4) and len(asked) == 1


@pytest.mark.parametrize("head", ["flow", "diffusion"])
def test_its_end_is_taught_through_the_steps_that_it_has(head: str) -> None:
    """One step from the noise learns where ten arrive; no loss of the head itself is asked."""
    whole = teacher(head)
    batch = moments(whole)
    with torch.no_grad():
        ends = whole(batch)
    student = LighterHead(FirstK(3), guidance=1.0 if head == "diffusion" else None).build(whole)
    objective = MatchEndpoint(expert=0, condition=0)
    trained = student.head.parameters()
    optimiser = torch.optim.AdamW(trained, lr=3e-3)
    errors = []
    for _ in range(60):
        terms = objective({"actions": student(batch)}, {"actions": ends}, batch)
        errors.append(float(terms["teacher"].detach()))
        optimiser.zero_grad()
        sum(terms.values()).backward()
        optimiser.step()
    assert errors[-1] < errors[0] / 4


def test_layers_are_searched_with_the_teachers_own_head() -> None:
    whole = teacher()
    student = LighterHead(LayerSearch(2))
    assert student.reads == {"actions"} and student.looks_at == LayerSearch(2).looks_at
    chosen, found = student.choose(whole, moments(whole))
    by_itself, alone = LayerSearch(2).choose(whole, moments(whole))
    assert chosen == LighterHead(by_itself) and found == alone
    assert len(chosen.build(whole).layers) == 2


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"steps": None}, "changes nothing of the head"),
        ({"hidden": 40}, "hidden is 40, expected a multiple of 32"),
        ({"head": "regression"}, "names the actions outright, and takes no steps"),
        ({"student": OtherNetwork(VLANetwork())}, "around OtherNetwork has no effect"),
        ({"steps": 0}, "steps"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], why: str) -> None:
    told: dict[str, Any] = {"student": FirstK(2), **options}
    with pytest.raises(ValueError, match=why):
        LighterHead(**told)


@pytest.mark.parametrize(
    ("head", "student", "why"),
    [
        ("regression", LighterHead(FirstK(2)), "'regression' has no steps: its options are hidden"),
        ("diffusion", LighterHead(FirstK(2), hidden=64), "DiffusionHead cannot be made narrower"),
        ("flow", LighterHead(FirstK(2), guidance=1.0), "'flow' has no guidance"),
        ("flow", LighterHead(FirstK(2), steps=10), "the teacher's head has steps 10 already"),
        ("flow", LighterHead(FirstK(2), steps=3, shortcut=True), "steps is 3, and a head with"),
    ],
)
def test_what_the_teacher_does_not_have_is_said(head: str, student: Student, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        student.build(teacher(head))
    routed = Routing(budget=0.5).build(teacher())
    with pytest.raises(ValueError, match="has no action head that could be made lighter"):
        student.build(routed)


def test_an_end_that_is_the_teachers_costs_nothing_and_one_beside_it_its_distance() -> None:
    batch = moments(teacher())
    expert, _ = batch.targets()
    ends = {"actions": expert, "condition": torch.ones(5, 16)}
    beside = {"actions": expert + 0.5, "condition": torch.ones(5, 16)}
    objective = MatchEndpoint(teacher=2.0)
    same = objective(ends, ends, batch)
    assert same.keys() == {"expert", "teacher", "condition"}
    assert sum(same.values()) == pytest.approx(0, abs=1e-6)
    found = objective(ends, beside, dataclasses.replace(batch, actions=expert + 0.25))
    assert float(found["teacher"]) == pytest.approx(1.0)
    assert float(found["expert"]) == pytest.approx(0.25)
