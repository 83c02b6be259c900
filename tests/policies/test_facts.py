"""What is kept of a teacher says all that a student that takes none of its weights must know."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from tiny import make_frames, make_policy

from armlet.policies.action_query import ReuseDecoder
from armlet.policies.clip_lora import tiny
from armlet.policies.facts import FACTS, TeacherFacts
from armlet.policies.routed import Routing
from armlet.policies.students import FirstK, Fresh, Kept, LayerDrop, OtherNetwork
from armlet.policies.two_tower import TwoTowerStudent, small_student
from armlet.policies.vla import VLANetwork
from armlet.robot.normalise import Normaliser
from armlet.training.trainer import make_batches


def teacher():
    policy = make_policy()
    state = Normaliser(np.linspace(-1, 1, 4, dtype=np.float32) / 3, np.full(4, 0.7, np.float32))
    policy.body = dataclasses.replace(
        policy.body, state=state, state_names=("a", "b", "c", "d"), fit="letterbox"
    )
    return policy


@pytest.mark.parametrize("routed", [False, True])
def test_facts_are_read_as_they_were_written(tmp_path, routed: bool) -> None:
    policy = teacher()
    if routed:
        policy = Routing().build(policy)
    facts = TeacherFacts.of(policy, "0123")
    facts.write(tmp_path)
    read = TeacherFacts.read(tmp_path)
    assert read.body.tokenizer.to_str() == policy.body.tokenizer.to_str()
    assert read.body.to_json() == policy.body.to_json()
    for field in dataclasses.fields(TeacherFacts):
        if field.name != "body":
            assert getattr(read, field.name) == getattr(facts, field.name), field.name
    assert read.view == policy.view
    assert (read.chunk, read.execute, read.layers) == (3, policy.execute, 4)
    assert (read.vision_tokens, read.text_tokens) == (policy.vision_tokens, policy.text_tokens)


def test_a_stand_in_has_the_teachers_shape_and_no_weights(tmp_path) -> None:
    policy = teacher()
    TeacherFacts.of(policy, "0123").write(tmp_path)
    made = TeacherFacts.read(tmp_path).stand_in()
    assert made.to_json() == policy.to_json() and not made.training
    assert all(parameter.is_meta for parameter in made.parameters()), "nothing was drawn"
    mine, theirs = made.state_dict(), policy.state_dict()
    assert {name: tensor.shape for name, tensor in mine.items()} == {
        name: tensor.shape for name, tensor in theirs.items()
    }
    assert all(parameter.is_meta for parameter in made.keep_layers((0, 2)).parameters())
    assert made.layer_costs().tolist() == policy.layer_costs().tolist()


@pytest.mark.parametrize(
    "student",
    [
        Fresh(FirstK(2)),
        Fresh(Kept((0, 3))),
        Fresh(Routing()),
        OtherNetwork(VLANetwork(strides={"scene": 8, "wrist": 8}, width=32, depth=1, heads=2)),
    ],
    ids=lambda student: type(student).__name__,
)
def test_a_student_of_a_stand_in_is_the_one_that_the_teacher_would_get(student) -> None:
    """To the bit: what is drawn, and in which order, does not hang on the teacher's weights."""
    policy = teacher()
    stand_in = TeacherFacts.of(policy, "0123").stand_in()
    batch = make_batches(stand_in, make_frames(), torch.device("cpu")).batch(np.arange(4))
    assert batch.state.device.type == "cpu"
    made = []
    for source in (policy, stand_in):
        torch.manual_seed(7)
        made.append(student.build(source, batch))
    expected, found = (each.state_dict() for each in made)
    assert made[0].to_json() == made[1].to_json() and list(found) == list(expected)
    for name, tensor in found.items():
        assert not tensor.is_meta and torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    ("student", "needed"),
    [
        (FirstK(2), True),
        (Kept((0, 2)), True),
        (LayerDrop(2), True),
        (Routing(), True),
        (ReuseDecoder(), True),
        (Fresh(FirstK(2)), False),
        (Fresh(Kept((0, 1))), False),
        (Fresh(LayerDrop(2)), True),
        (Fresh(OtherNetwork(tiny())), False),
        (OtherNetwork(tiny()), False),
        (TwoTowerStudent(small_student()), False),
    ],
    ids=str,
)
def test_students_say_whether_they_take_the_teachers_weights(student, needed: bool) -> None:
    assert student.needs_teacher == needed


def broken(tmp_path, change) -> None:
    TeacherFacts.of(teacher(), "0123").write(tmp_path)
    said = json.loads((tmp_path / FACTS).read_text())
    change(said)
    (tmp_path / FACTS).write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda facts: facts.pop("chunk"), "does not describe a teacher .*chunk"),
        (lambda facts: facts.update(tokenizer={}), "does not describe a teacher"),
        (lambda facts: facts["body"].pop("actions"), "does not describe a teacher .*actions"),
        (lambda facts: facts.update(armlet=9), "`armlet` is 9, expected 1"),
    ],
)
def test_what_was_broken_is_refused_and_named(tmp_path, change, said: str) -> None:
    broken(tmp_path, change)
    with pytest.raises(ValueError, match=rf"{FACTS}.*{said}.*armlet probe"):
        TeacherFacts.read(tmp_path)


def test_what_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{FACTS}.*armlet probe"):
        TeacherFacts.read(tmp_path)
