"""The door between a policy and a world: it stands before the first episode, wherever a policy is
about to act, and lets through what differs without harm. Every bend: tests/robot/test_doors.py."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from test_evaluate import dots_policy

from armlet import collect, evaluate
from armlet.benchmarks.tabletop import Tabletop
from armlet.policies.checkpoint import load_policy, save_policy
from armlet.policies.contract import Policy
from armlet.recipe import Collection, Evaluation, Recipe
from armlet.recipes import make
from armlet.robot.agree import DisagreementError
from armlet.rollout import actors, loop
from armlet.rollout.door import check_world
from armlet.training import practice

SHIPPED = Path(__file__).parents[1] / "checkpoints" / "tabletop-teacher"


@pytest.fixture(scope="module")
def teacher() -> Policy:
    return load_policy(SHIPPED)


def bent(policy: Policy, **changes) -> Policy:
    """The policy, with another body."""
    action = {name: changes.pop(name) for name in list(changes) if name in SPEC_FIELDS}
    body = dataclasses.replace(policy.body, **changes)
    body = dataclasses.replace(body, action_spec=dataclasses.replace(body.action_spec, **action))
    other = copy.copy(policy)  # the network is the same, and answers as before
    other.body = body
    return other


SPEC_FIELDS = {field.name for field in dataclasses.fields(Tabletop().action_spec)}
Bend = Callable[[Policy], Policy]


def test_the_shipped_teacher_may_enter(teacher: Policy) -> None:
    check_world(teacher, Tabletop())


def test_all_that_differs_is_said_at_once(teacher: Policy) -> None:
    """The case that once ran a whole evaluation without a word."""
    strange = bent(
        teacher,
        gripper_open=1.0,
        gripper_closed=-1.0,
        mode="absolute",
        rotation="euler",
        translation_scale=0.01,
        control_hz=80.0,
    )
    with pytest.raises(DisagreementError, match="the policy and benchmark 'tabletop'") as raised:
        check_world(strange, Tabletop())
    fields = [each.field for each in raised.value.differences]
    assert sorted(fields) == ["gripper ends", "mode", "rate", "rotation", "translation_scale"]


HARMLESS: dict[str, Bend] = {
    "nobody knows the scale": lambda p: bent(p, translation_scale=None),
    "nobody knows the state's names": lambda p: bent(p, state_names=()),
    "other words for the same": lambda p: bent(p, names=("delta_X", "Y", "dz", "gripper")),
    "names of one's own": lambda p: bent(p, names=("forth", "left", "up", "grasp")),
    "a range that recordings reach": lambda p: bent(
        p, low=(-0.8, -0.9, -0.4, -1.0), high=(0.9, 0.7, 0.5, 1.0)
    ),
    "pictures that it fits": lambda p: bent(p, fit="letterbox"),
}


@pytest.mark.parametrize("bend", HARMLESS)
def test_what_differs_without_harm_is_let_through(teacher: Policy, bend: str) -> None:
    world = Tabletop(scene_pixels=96) if "pictures" in bend else Tabletop()
    check_world(HARMLESS[bend](teacher), world)


def test_a_rate_may_stand_rounded_as_data_sets_keep_it(teacher: Policy) -> None:
    world = Tabletop()
    odd = dataclasses.replace(world.action_spec, control_hz=12.5)
    slow = type("Odd", (Tabletop,), {"action_spec": odd})()
    check_world(bent(teacher, control_hz=12.0), slow)
    with pytest.raises(ValueError, match="the policy 13"):
        check_world(bent(teacher, control_hz=13.0), slow)


# --- who asks


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch) -> Recipe:
    """Its teacher is one for the dots; no episode may be run."""
    save_policy(dots_policy(0), tmp_path / "other")
    ran = pytest.fail
    monkeypatch.setattr(loop, "run", lambda *_, **__: ran("an episode was run"))
    monkeypatch.setattr(actors, "run", lambda *_, **__: ran("an episode was run"))
    return dataclasses.replace(
        make("actdistill_tabletop"),
        episodes=tmp_path / "episodes",
        teacher=tmp_path / "other",
        out=tmp_path / "out",
        shared=None,
        student=None,
        collection=Collection(episodes=2, workers=1, actor="teacher"),
        evaluation=Evaluation(episodes=2, workers=1),
    )


def test_an_evaluation_asks_for_every_policy(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match=r"policy 'teacher' and benchmark 'tabletop' do not agree"):
        evaluate.main(recipe)
    second = dataclasses.replace(recipe, teacher=SHIPPED, policies=(recipe.teacher,))
    with pytest.raises(ValueError, match=r"policy 'other' and benchmark 'tabletop' do not agree"):
        evaluate.main(second)
    assert not (recipe.out / "evaluation" / "episodes.jsonl").exists()


def test_a_collection_asks_for_its_teacher_and_writes_nothing(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match=r"the teacher .*other and benchmark 'tabletop' do not ag"):
        collect.main(recipe)
    assert not recipe.episodes.exists()


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_round_asks_for_both_and_writes_nothing(
    recipe: Recipe, teacher: Policy, who: str
) -> None:
    stage = make("actdistill_tabletop").stages[0]
    rounds = dataclasses.replace(recipe, rounds=(practice.Round(stage, episodes=2, workers=1),))
    policies = {"student": teacher, "teacher": teacher, who: dots_policy(1)}
    with pytest.raises(ValueError, match=f"the {who} .*do not agree"):
        practice.practise(rounds, 0, policies["student"], policies["teacher"], "0" * 16)
    assert not rounds.out.exists()
