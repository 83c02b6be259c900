"""The door between a policy and a world: every bend of the shipped teacher is refused before its
first episode, wherever a policy is about to act; and what differs without harm is not."""

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
from armlet.rollout import actors, loop
from armlet.rollout.door import check_world
from armlet.training import practice

SHIPPED = Path(__file__).parents[1] / "checkpoints" / "tabletop-teacher"
NAMES = ("x", "y", "z", "opening")  # of the state


@pytest.fixture(scope="module")
def teacher() -> Policy:
    return load_policy(SHIPPED)


def bent(policy: Policy, **changes) -> Policy:
    """The policy, with another body."""
    action = {name: changes.pop(name) for name in list(changes) if name in SPEC_FIELDS}
    body = dataclasses.replace(policy.body, **changes)
    body = dataclasses.replace(body, action_spec=dataclasses.replace(body.action_spec, **action))
    return Bent(policy, body)


SPEC_FIELDS = {field.name for field in dataclasses.fields(Tabletop().action_spec)}


class Bent:
    """A policy that says of itself that it has another body; it answers as before."""

    def __init__(self, policy: Policy, body) -> None:
        self._policy, self.body = policy, body
        self.view = dataclasses.replace(policy.view, fit=body.fit)

    def __getattr__(self, name: str):
        return getattr(self._policy, name)


Bend = Callable[[Policy], Policy]
BENDS: dict[str, tuple[Bend, str]] = {
    "gripper the other way": (
        lambda p: bent(p, gripper_open=1.0, gripper_closed=-1.0),
        r"opens it with 1 and closes it with -1, the world with -1 and 1 \(the other way round\)",
    ),
    "gripper from 0 to 1": (
        lambda p: bent(p, gripper_open=0.0),
        "opens it with 0 and closes it with 1, the world with -1 and 1;",
    ),
    "another gripper": (lambda p: bent(p, grippers=(2,)), r"grippers: the policy's is \(2,\)"),
    "no gripper": (lambda p: bent(p, grippers=()), r"grippers: the policy's is \(\)"),
    "centimetres": (
        lambda p: bent(p, translation_scale=0.01),
        "a command of 1 is 0.01 m to the policy and 0.05 m in the world",
    ),
    "another rate": (
        lambda p: bent(p, control_hz=80.0),
        "decides 80 actions a second and the world executes 10",
    ),
    "places for moves": (lambda p: bent(p, mode="absolute"), "mode: the policy's is 'absolute'"),
    "rotations": (lambda p: bent(p, rotation="euler"), "rotation: the policy's is 'euler'"),
    "names in another order": (
        lambda p: bent(p, names=("dy", "dx", "dz", "gripper")),
        "action names: .* y, x stand in another order",
    ),
    "degrees": (
        lambda p: bent(p, low=(-57.3,) * 4, high=(57.3,) * 4),
        "dx -57.3 to 57.3 where it takes -1 to 1",
    ),
    "a small part of the range": (
        lambda p: bent(p, low=(-0.02,) * 3 + (-1.0,), high=(0.02,) * 3 + (1.0,)),
        "within 0.02 of what the world takes, in every dimension",
    ),
    "fewer dimensions": (
        lambda p: bent(p, names=("dx", "dy", "dz"), low=(-1.0,) * 3, high=(1.0,) * 3, grippers=()),
        "the policy says 3 numbers .* and the world takes 4",
    ),
    "state in another order": (
        lambda p: bent(p, state_names=tuple(reversed(Tabletop().state_names))),
        "state names: .* stand in another order",
    ),
}
WORLDS = {
    "a camera that is missing": (
        lambda world: type("OneEyed", (type(world),), {"cameras": {"scene": 72}})(),
        "camera 'wrist': the policy looks through it and there is scene",
    ),
    "a camera of another size": (
        lambda world: dataclasses.replace(world, scene_pixels=96),
        r"camera 'scene': found \(96, 96, 3\), expected \(72, 72, 3\)",
    ),
    "another state": (
        lambda world: type("Blind", (type(world),), {"state_names": ("x",)})(),
        "state: the policy was taught with 4 numbers and the world says 1",
    ),
}


def test_the_shipped_teacher_may_enter(teacher: Policy) -> None:
    check_world(teacher, Tabletop())


@pytest.mark.parametrize("bend", BENDS)
def test_a_policy_of_another_robot_may_not(teacher: Policy, bend: str) -> None:
    bend_it, message = BENDS[bend]
    with pytest.raises(ValueError, match=message) as raised:
        check_world(bend_it(teacher), Tabletop(), whose="policy 'teacher'")
    assert "policy 'teacher' and benchmark 'tabletop' do not agree, and no episode" in str(raised)


@pytest.mark.parametrize("bend", WORLDS)
def test_nor_may_one_enter_another_world(teacher: Policy, bend: str) -> None:
    bend_it, message = WORLDS[bend]
    with pytest.raises(ValueError, match=message):
        check_world(teacher, bend_it(Tabletop()))


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
    with pytest.raises(ValueError, match="no episode was run") as raised:
        check_world(strange, Tabletop())
    for said in ("(1) mode", "(2) rotation", "(3) gripper", "(4) control_hz", "(5) translation"):
        assert said in str(raised.value)


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
    with pytest.raises(ValueError, match="decides 13 actions a second"):
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
        practice.practise(rounds, policies["student"], policies["teacher"], 0)
    assert not rounds.out.exists()
