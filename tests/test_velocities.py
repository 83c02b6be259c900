"""Flow heads matched by their velocities: what is computed, that it leads where matching decoded
actions leads, and what a learner keeps of a teacher for it."""

import copy
from dataclasses import replace

import pytest
import torch
from test_discrete import make_other, two_moments, with_head
from tiny import tiny_recipe
from torch import Tensor

from armlet import collect, distil, probe, teach
from armlet.layers.heads import FlowHead
from armlet.policies.checkpoint import load_policy
from armlet.policies.routed import Routing
from armlet.policies.students import FirstK
from armlet.recipe import Recipe
from armlet.recipes.actdistill import ActDistill
from armlet.recipes.bases import MATCH_FLOW
from armlet.training.learner import Learner

SAMPLES, CHUNK, DIMS, WIDTH = 64, 5, 3, 8


def head(*, heard: bool = True) -> FlowHead:
    """A small one; `heard`: it hears its condition, which a fresh one does not (adaLN-Zero)."""
    torch.manual_seed(0)
    made = FlowHead(WIDTH, CHUNK, DIMS, hidden=32, blocks=1, steps=10)
    if heard:
        torch.nn.init.normal_(made.blocks[0].modulation.weight, std=0.3)
    return made


def moments() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    valid = torch.ones(SAMPLES, CHUNK)
    valid[::3, 3:] = 0
    return torch.randn(SAMPLES, WIDTH), torch.randn(SAMPLES, CHUNK, DIMS), valid


def test_a_constant_gap_is_its_square_at_steps_that_are_there() -> None:
    """A fresh head's velocity is a map of noise and place alone: biases are its only difference."""
    mine, theirs = head(heard=False), head(heard=False)
    condition, actions, valid = moments()
    gap = torch.tensor([0.5, -1.0, 0.0])
    with torch.no_grad():
        theirs.leave.bias += gap
    found = mine.distance(condition, theirs, condition, actions, valid)
    torch.testing.assert_close(found, gap.square().mean().expand(SAMPLES))
    with torch.no_grad():
        theirs.leave.bias -= gap
        theirs.position[3] += 1.0  # of the chunk's step 3 alone, which some do not have
    found = mine.distance(condition, theirs, condition, actions, valid)
    bent = float(mine.leave.weight.detach().sum(1).square().mean())  # the rows of W · 1
    per_step = torch.tensor([bent / CHUNK, 0.0])[(valid[:, 3] == 0).long()]
    torch.testing.assert_close(found, per_step)


def test_of_the_paths_own_velocities_it_is_the_loss() -> None:
    """Same noise, same times: only the target is another."""
    mine, theirs = head(), head()
    condition, actions, valid = moments()

    def straight(mixed: Tensor, t: Tensor, *_: Tensor) -> Tensor:
        return (actions - mixed) / (1 - t[:, None, None])  # actions − noise, as mixed was made

    theirs.velocity = straight  # type: ignore[method-assign]
    torch.manual_seed(7)
    loss = mine.loss(condition, actions, valid)
    torch.manual_seed(7)
    found = mine.distance(condition, theirs, condition, actions, valid)
    torch.testing.assert_close(found, loss, rtol=1e-3, atol=1e-4)


def test_equal_flows_are_at_distance_0_and_other_conditions_are_not() -> None:
    mine, theirs = head(), head()
    condition, actions, valid = moments()
    said = condition.clone().requires_grad_()
    found = mine.distance(said, theirs, condition, actions, valid)
    assert float(found.abs().max()) == 0
    (gradient,) = torch.autograd.grad(found.sum(), said)
    assert float(gradient.abs().max()) == 0
    other = mine.distance(condition, theirs, condition.flip(0), actions, valid)
    assert float(other.detach().min()) > 0
    other.sum().backward()
    assert all(each.grad is None for each in theirs.parameters()), "no gradient to the teacher"


def test_matched_velocities_decode_to_the_same_actions() -> None:
    """Where a condition is learnt by velocities alone, the decoded actions follow."""
    mine = head()
    condition, actions, valid = moments()
    own = torch.zeros_like(condition).requires_grad_()
    with torch.no_grad():
        wanted = mine(condition)
        before = float((mine(own) - wanted).abs().mean())
    optimiser = torch.optim.Adam([own], lr=0.1)
    for _ in range(150):
        optimiser.zero_grad()
        mine.distance(own, mine, condition, actions, valid).mean().backward()
        optimiser.step()
    with torch.no_grad():
        after = float((mine(own) - wanted).abs().mean())
    assert after < before / 5, (before, after)


def test_a_learner_keeps_its_teachers_head_and_neither_trains_nor_saves_it() -> None:
    student = with_head("flow")
    teacher = make_other(student)
    batch = two_moments(student)
    learner = Learner(student)
    names = set(learner.state_dict())
    with pytest.raises(ValueError, match="no such head here"):
        learner(batch, ["imitation.velocity"])
    learner.compare_velocities_with(teacher)
    assert names == set(learner.state_dict())
    assert {name for name, _ in learner.named_parameters()} <= names
    with torch.no_grad():
        told = Learner(teacher)(batch, ["condition"])["condition"]
    batch = replace(batch, taught_condition=told)
    torch.manual_seed(3)
    found = learner(batch, ["imitation.velocity", "condition"])
    torch.manual_seed(3)
    by_hand = student.head.distance(
        found["condition"], teacher.head, told, batch.actions, batch.actions_valid.float()
    )
    torch.testing.assert_close(found["imitation.velocity"], by_hand)
    kept = copy.deepcopy(by_hand.detach())
    with torch.no_grad():  # the copy is the learner's own
        for parameter in teacher.head.parameters():
            parameter.zero_()
    torch.manual_seed(3)
    torch.testing.assert_close(learner(batch, ["imitation.velocity"])["imitation.velocity"], kept)
    with pytest.raises(ValueError, match="only a flow head has velocities"):
        learner.compare_velocities_with(with_head("regression"))


@pytest.fixture(scope="module")
def flowing(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    base = tiny_recipe(tmp_path_factory.mktemp("flowing"))
    network = replace(base.network, head="flow", head_options={"steps": 10})
    made = replace(base, network=network)
    for verb in (collect, teach, probe):
        verb.main(made)
    return made


@pytest.mark.parametrize("student", [FirstK(2), Routing(budget=0.5)], ids=["first_k", "router"])
def test_students_of_a_flow_teacher_train(flowing: Recipe, tmp_path, student) -> None:
    objective = MATCH_FLOW if isinstance(student, FirstK) else ActDistill(output=MATCH_FLOW)
    stage = replace(flowing.stages[0], objective=objective, steps=2, freeze=())
    made = replace(
        flowing, out=tmp_path, shared=flowing.out, student=student, stages=(stage,), rounds=()
    )
    assert "velocities are compared" in made.why_teacher_is_needed
    student_head = load_policy(distil.main(made)).head
    teacher_head = load_policy(flowing.teacher).head
    assert student_head.leave.weight.shape == teacher_head.leave.weight.shape
    assert not torch.equal(student_head.leave.weight, teacher_head.leave.weight)
