"""Networks and students that fit a robot nobody described: a chunk is a time, patches divide the
pictures, and primitives are actions that the robot does."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny import TEXTS, identity

from armlet.data.text import train_tokenizer
from armlet.policies.action_query import ActionQueryNetwork, ReuseDecoder
from armlet.policies.clip_lora import small
from armlet.policies.contract import Body, Policy
from armlet.policies.fitting import (
    Alike,
    Choosing,
    FitsPictures,
    FitsRobot,
    SameChoices,
    fitted,
    gripper_state,
    patch_for,
    primitives,
)
from armlet.policies.two_tower import TwoTowerNetwork
from armlet.policies.vla import VLANetwork
from armlet.robot.normalise import Normaliser
from armlet.robot.spec import ActionSpec
from armlet.types import Batch

VLA = VLANetwork(width=16, depth=2, heads=2, vision_channels=4)
TOWERS = TwoTowerNetwork(
    width=16, heads=2, vision_layers=1, text_layers=1, channels=4, goal=8, embedding=8
)


def robot(dims: int = 4, hz: float = 10.0, grippers: tuple[int, ...] = (3,)) -> ActionSpec:
    return ActionSpec(
        names=tuple(f"joint{index}" for index in range(dims)),
        mode="absolute",
        rotation="none",
        low=(-180.0,) * dims,
        high=(180.0,) * dims,
        grippers=grippers,
        gripper_open=100.0,
        gripper_closed=0.0,
        control_hz=hz,
        translation_scale=1.0,
    )


def body(spec: ActionSpec, state: int = 3) -> Body:
    return Body(spec, identity(state), identity(spec.dims), train_tokenizer(TEXTS))


def sample(policy: Policy, cameras: dict[str, int], rows: int = 2) -> Batch:
    text = torch.ones(rows, 3, dtype=torch.int64)
    dims = policy.body.action_spec.dims
    return Batch(
        images={name: torch.rand(rows, 3, side, side) for name, side in cameras.items()},
        text=text,
        text_mask=text.bool(),
        state=torch.zeros(rows, len(policy.body.state.offset)),
        previous_action=torch.zeros(rows, dims),
    )


@pytest.mark.parametrize(
    ("hz", "chunk", "execute"), [(50, 30, 10), (10, 6, 2), (5, 3, 1), (1, 1, 1), (200, 120, 40)]
)
def test_a_chunk_is_a_time(hz: float, chunk: int, execute: int) -> None:
    policy = FitsRobot(VLA).build(body(robot(hz=hz)), {"front": 32})
    assert (policy.head.chunk, policy.execute) == (chunk, execute)


def test_at_ten_hertz_it_is_what_tabletop_has() -> None:
    policy = FitsRobot(VLANetwork()).build(body(robot(hz=10)), {"front": 96})
    ours = VLANetwork().build(body(robot(hz=10)), {"front": 96})
    assert policy.to_json() == ours.to_json()


@pytest.mark.parametrize("side", range(8, 230, 4))
def test_a_patch_divides_the_pictures(side: int) -> None:
    if any(side % patch == 0 for patch in (16, 12, 8)):
        assert side % patch_for([side]) == 0
        assert not any(side % patch == 0 for patch in (16, 12, 8) if patch > patch_for([side]))
    else:
        with pytest.raises(ValueError, match=f"{side} pixels a side"):
            patch_for([side])


def test_each_camera_has_its_own_patch_and_one_that_is_named_stays() -> None:
    cameras = {"front": 48, "left": 24, "top": 40}
    made = FitsRobot(dataclasses.replace(VLA, strides={"front": 8})).build(body(robot()), cameras)
    assert made.network.strides == {"front": 8, "left": 12, "top": 8}


def moves(spec: ActionSpec, rows: int = 400) -> np.ndarray:
    rng = np.random.default_rng(0)
    actions = rng.normal(0, 30, (rows, spec.dims))
    for gripper in spec.grippers:
        actions[:, gripper] = rng.choice([0.0, 100.0], rows)
    return actions


@pytest.mark.parametrize(("dims", "grippers"), [(4, (3,)), (1, ()), (14, (6, 13)), (6, ())])
def test_primitives_are_near_what_the_robot_does(dims: int, grippers: tuple[int, ...]) -> None:
    spec = robot(dims, grippers=grippers)
    actions = moves(spec)
    scale = np.full(dims, 50.0, np.float32)
    seen = dataclasses.replace(
        body(spec), actions=Normaliser(np.full(dims, 10.0, np.float32), scale)
    )
    found = np.array(primitives(seen, actions, 24))
    assert found.shape == (24, dims)
    values = (actions - 10) / 50
    near = np.linalg.norm(values[:, None] - found[None], axis=2).min(1).mean()
    rng = np.random.default_rng(1)
    strangers = rng.uniform(values.min(0), values.max(0), (24, dims))
    assert near < 0.9 * np.linalg.norm(values[:, None] - strangers[None], axis=2).min(1).mean()
    for gripper in grippers:
        assert set(np.round(found[:, gripper], 5)) == {
            round((end - 10) / 50, 5) for end in (0, 100)
        }


def test_a_dimension_that_never_moves_is_no_obstacle() -> None:
    spec = robot(3, grippers=())
    actions = moves(spec)
    actions[:, 1] = 7.0
    assert {row[1] for row in np.round(primitives(body(spec), actions, 8), 4).tolist()} == {7.0}


def test_a_student_chooses_among_its_teachers_primitives() -> None:
    spec = robot(hz=5)
    network = Choosing(TOWERS).suited(body(spec), moves(spec))
    cameras = {"front": 48, "wrist": 32}
    teacher = network.build(body(spec), cameras)
    small_one = dataclasses.replace(TOWERS, width=8, patch=8, chunk=9, execute=9)
    student = SameChoices(small_one).build(teacher, sample(teacher, cameras))
    assert torch.equal(student.head.primitives, teacher.head.primitives)
    assert (student.head.chunk, student.execute, student.grids) == (3, 1, teacher.grids)
    assert student.width == 8
    other = FitsRobot(VLA).build(body(spec), cameras)
    with pytest.raises(ValueError, match="does not choose among primitives"):
        SameChoices(small_one).build(other, sample(other, cameras))
    with pytest.raises(ValueError, match="suited"):
        Choosing(TOWERS).build(body(spec), cameras)


def test_another_kind_of_network_fits_its_teacher() -> None:
    cameras = {"front": 48, "wrist": 40}
    teacher = FitsRobot(VLA).build(body(robot(7, hz=30, grippers=())), cameras)
    student = Alike(dataclasses.replace(small(), strides={})).build(
        teacher, sample(teacher, cameras)
    )
    assert (student.head.chunk, student.execute) == (18, 6)
    expert = dataclasses.replace(VLA, head="arm_gripper")
    teacher = FitsRobot(expert).build(body(robot(hz=30)), cameras)
    made = FitsPictures(ReuseDecoder(ActionQueryNetwork(channels=4))).build(
        teacher, sample(teacher, cameras)
    )
    assert (made.head.chunk, made.execute) == (18, 6)
    assert made.network.strides == {"front": 16, "wrist": 8}


@pytest.mark.parametrize(
    ("names", "grippers", "expected"),
    [
        (("a", "Joint3", "b"), (3,), (1,)),
        (("a", "b", "c"), (3,), ()),
        (("joint3",), (3,), ()),  # nothing would be left for the arm
        (("joint1", "joint3", "joint2"), (2, 3), (1, 2)),
        ((), (3,), ()),
        (("joint3", "b"), (), ()),
    ],
)
def test_the_grippers_numbers_of_the_state_are_those_of_its_name(
    names: tuple[str, ...], grippers: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    made = dataclasses.replace(body(robot(grippers=grippers), state=len(names)), state_names=names)
    assert gripper_state(made) == expected


@pytest.mark.parametrize(
    "sizes",
    [
        {"chunk_seconds": 0.0},
        {"chunk_seconds": 61.0},
        {"chunk_seconds": float("inf")},
        {"execute_seconds": 1.0},
        {"execute_seconds": -1.0},
    ],
)
def test_times_that_mean_nothing_are_refused(sizes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"FitsRobot.{next(iter(sizes))} is"):
        FitsRobot(VLA, **sizes)


def test_a_chunk_of_absurdly_many_actions_is_refused() -> None:
    whole = FitsRobot(VLA, chunk_seconds=20.0).build(body(robot(hz=50)), {"front": 32})
    assert whole.head.chunk == 1000
    long = FitsRobot(VLA, chunk_seconds=21.0)
    with pytest.raises(ValueError, match=r"a chunk of 1050 actions at 50 Hz.* at most 20, or"):
        long.build(body(robot(hz=50)), {"front": 32})
    assert long.build(body(robot(hz=1)), {"front": 32}).head.chunk == 21


@pytest.mark.parametrize("number", [1, 10**8])
def test_primitives_that_mean_nothing_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match=r"Choosing\.primitives is .*, expected"):
        Choosing(TOWERS, primitives=number)


def test_strides_of_a_camera_that_is_not_there_are_refused() -> None:
    network = dataclasses.replace(VLA, strides={"front": 8})
    assert fitted(network, {"front": 32}).strides == {"front": 8}
    with pytest.raises(ValueError, match="name front, and the policy looks through top; name one"):
        fitted(network, {"top": 32})
