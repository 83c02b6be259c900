"""What transforms do to a batch, against what the training loop did in their place before there
were any; and that each leaves alone what is not its own."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from armlet.data.augment import Augment
from armlet.data.noise import flip_grippers
from armlet.data.transforms import (
    Balance,
    BatchTransform,
    DrawBudget,
    Explore,
    GripperNoise,
    Moment,
    ShuffledTeacher,
    ShuffledWords,
    TeacherTells,
)
from armlet.robot.normalise import Normaliser
from armlet.robot.spec import ActionSpec
from armlet.types import Batch, Trace

SPEC = ActionSpec(("x", "grip"), "delta", "none", (-1.0, 0.0), (1.0, 1.0), (1,), 0.0, 1.0, 10, 0.01)
NORMALISER = Normaliser(np.array([0.1, 0.2], np.float32), np.array([2.0, 3.0], np.float32))


def batch_of(rng: np.random.Generator, size: int = 5) -> Batch:
    actions = NORMALISER.apply(rng.integers(0, 2, (size, 3, 2)).astype(np.float32))
    keys = np.stack([rng.integers(0, 9, size), rng.integers(0, 50, size)], 1)
    nothing = torch.zeros(size, 1)
    return Batch(
        {"eye": torch.from_numpy(rng.random((size, 3, 6, 6), np.float32))},
        nothing.long(),
        nothing.bool(),
        nothing,
        nothing,
        actions=torch.from_numpy(actions.astype(np.float32)),
        actions_valid=torch.ones(size, 3, dtype=torch.bool),
        keys=torch.from_numpy(keys),
    )


def moment(seed: int = 0, step: int = 3, steps: int = 7) -> Moment:
    return Moment(step, steps, np.random.default_rng([seed, step, 1]), SPEC, NORMALISER)


def untouched(before: Batch, after: Batch, *but: str) -> bool:
    """Whether all other fields are the very same objects."""
    return all(
        getattr(before, field.name) is getattr(after, field.name)
        for field in dataclasses.fields(Batch)
        if field.name not in but
    )


@given(st.integers(0, 999), st.integers(0, 20))
def test_a_list_of_them_does_what_the_loop_did_itself(seed: int, step: int) -> None:
    """Pictures first, then the budget, from one generator a step; exploration along a line; the
    gripper in what expert and teacher say."""
    batch = batch_of(np.random.default_rng(seed))
    teacher = {"actions": batch.actions + 0.5, "condition": torch.ones(5, 2)}
    augment, share = Augment(brightness=0.2, crop=1), 0.4
    told, answered = batch, teacher
    now = moment(seed, step, 21)
    for transform in (augment, DrawBudget(0.2, 0.9), Explore(1.0, 0.6), GripperNoise(share)):
        told, answered = transform(told, answered, now)

    rng = np.random.default_rng([seed, step, 1])
    images = augment.pictures(batch.images, rng)
    budget = float(rng.uniform(0.2, 0.9))
    middle = float(NORMALISER.apply(np.full(2, 0.5, np.float32))[1])
    assert torch.equal(told.images["eye"], images["eye"]) and told.budget == budget
    assert told.exploration == 1.0 + (0.6 - 1.0) * step / 21
    for found, said in ((told.actions, batch.actions), (answered["actions"], teacher["actions"])):
        wanted = flip_grippers(said, batch.keys, 1, share, middle=middle)
        assert torch.equal(found, wanted)
    assert answered["condition"] is teacher["condition"]
    assert untouched(batch, told, "images", "budget", "exploration", "actions")


@pytest.mark.parametrize(
    ("transform", "own"),
    [
        (BatchTransform(), ()),
        (Balance(1.0), ()),
        (Augment(), ("images",)),
        (Explore(), ("exploration",)),
        (DrawBudget(), ("budget",)),
        (GripperNoise(0.5), ("actions",)),
        (GripperNoise(0.0), ()),
        (TeacherTells(0.5), ("actions",)),
    ],
    ids=str,
)
def test_each_leaves_alone_what_is_not_its_own(transform: BatchTransform, own: tuple) -> None:
    batch = batch_of(np.random.default_rng(0))
    before = {name: pixels.clone() for name, pixels in batch.images.items()}
    actions = batch.actions.clone()
    teacher: Trace = {"condition": torch.ones(5, 2)}
    for name in transform.needs:
        teacher[name] = torch.ones(5, 3, 2)
    told, answered = transform(batch, teacher, moment())
    assert untouched(batch, told, *own) and answered == teacher
    assert torch.equal(batch.images["eye"], before["eye"]), "changed, not changed in place"
    assert torch.equal(batch.actions, actions)
    for name in own:
        assert getattr(told, name) is not getattr(batch, name)
    if not isinstance(transform, Balance):
        rows = np.array([4, 2, 2])
        assert transform.choose(rows, lambda: None) is rows


def test_only_what_changes_along_the_way_depends_on_how_many_steps_there_are() -> None:
    assert Explore(1.0, 0.5).depends_on_steps
    steady = (Explore(0.5, 0.5), Augment(), DrawBudget(), GripperNoise(0.1), Balance())
    assert not any(each.depends_on_steps for each in steady)


def test_a_head_that_does_not_choose_has_no_rare_actions() -> None:
    with pytest.raises(ValueError, match=r"Balance\(power=0\.5\): .*leave Balance out"):
        Balance().choose(np.arange(3), lambda: None)


def test_where_no_gripper_is_told_wrong_none_is_needed() -> None:
    bare = dataclasses.replace(moment(), spec=dataclasses.replace(SPEC, grippers=()))
    batch = batch_of(np.random.default_rng(0))
    assert GripperNoise(0.0)(batch, {}, bare) == (batch, {})
    with pytest.raises(ValueError, match="this robot's actions have no gripper"):
        GripperNoise(0.1)(batch, {}, bare)


def test_a_share_of_the_frames_is_told_what_the_teacher_does() -> None:
    """Whole chunks of a frame, the expert's or the teacher's; over many frames, the share."""
    batch = batch_of(np.random.default_rng(1), size=4000)
    assert batch.actions is not None
    teacher = {"actions": torch.full_like(batch.actions, 7.0)}
    told, answered = TeacherTells(0.3)(batch, teacher, moment(3, 5, 9))
    theirs = (told.actions == 7).all((1, 2))
    assert abs(theirs.float().mean() - 0.3) < 0.03
    assert torch.equal(told.actions[~theirs], batch.actions[~theirs])
    assert answered is teacher
    other, _ = TeacherTells(0.3)(batch, teacher, moment(3, 6, 9))
    assert not torch.equal(told.actions, other.actions), "drawn anew at every step"
    all_told, _ = TeacherTells(1.0)(batch, teacher, moment(3, 5, 9))
    assert torch.equal(all_told.actions, teacher["actions"])


@given(st.integers(2, 30), st.integers(0, 50))
def test_a_shuffled_teacher_answers_every_frame_with_anothers_answer(size: int, seed: int) -> None:
    """All signals of one frame stay together, each frame's answer stands once, and at no frame its
    own; another step draws another order."""
    batch = batch_of(np.random.default_rng(seed), size)
    numbers = torch.arange(size)
    teacher = {"actions": numbers[:, None].float(), "condition": numbers[:, None] * 10.0}
    after, told = ShuffledTeacher()(batch, teacher, moment(seed))
    assert after is batch and torch.equal(teacher["actions"][:, 0].long(), numbers)
    order = told["actions"][:, 0].long()
    assert torch.equal(order.sort().values, numbers) and not bool((order == numbers).any())
    assert torch.equal(told["condition"][:, 0], order * 10.0)
    assert torch.equal(ShuffledTeacher()(batch, teacher, moment(seed))[1]["actions"][:, 0], order)
    orders = set()
    for step in range(20):
        drawn = ShuffledTeacher()(batch, teacher, moment(seed, step))[1]["actions"]
        orders.add(tuple(drawn[:, 0].tolist()))
    assert len(orders) > 1 or size == 2


def test_of_one_frame_there_is_no_other() -> None:
    with pytest.raises(ValueError, match="a batch of 1 has no other frame"):
        ShuffledTeacher()(batch_of(np.random.default_rng(0), 1), {}, moment())


@given(st.integers(2, 30), st.integers(0, 50))
def test_shuffled_words_are_all_there_and_at_no_frame_its_own(size: int, seed: int) -> None:
    numbers = torch.arange(size)
    batch = dataclasses.replace(
        batch_of(np.random.default_rng(seed), size),
        description=numbers[:, None].expand(-1, 3),
        description_mask=torch.ones(size, 3, dtype=torch.bool),
        labels={"phase": numbers % 9, "direction": numbers},
    )
    after, told = ShuffledWords()(batch, {"actions": numbers}, moment(seed))
    assert torch.equal(told["actions"], numbers), "the teacher's answers stay"
    order = after.labels["direction"]
    assert torch.equal(order.sort().values, numbers) and not bool((order == numbers).any())
    assert torch.equal(after.description[:, 0], order) and torch.equal(
        after.labels["phase"], order % 9
    )
    assert untouched(batch, after, "description", "description_mask", "labels")


def test_words_that_are_not_there_cannot_be_shuffled() -> None:
    with pytest.raises(ValueError, match="this batch has no words; give the recipe an `annotator`"):
        ShuffledWords()(batch_of(np.random.default_rng(0)), {}, moment())
