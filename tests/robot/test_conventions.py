"""Control rates and conventions: what is conserved, there and back, and what is refused."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armlet.robot.conventions import convert, retime
from armlet.robot.spec import ActionSpec

DELTA = ActionSpec(
    names=("dx", "dy", "dz", "gripper"),
    mode="delta",
    rotation="none",
    low=(-4.0, -4.0, -4.0, -1.0),
    high=(4.0, 4.0, 4.0, 1.0),
    grippers=(3,),
    gripper_open=-1.0,
    gripper_closed=1.0,
    control_hz=10,
    translation_scale=0.05,
)
PLACES = dataclasses.replace(DELTA, names=("x", "y", "z", "gripper"), mode="absolute")
rates = st.sampled_from([3.0, 5.0, 10.0, 15.0, 20.0, 50.0])


def chunk(seed: int, steps: int, size: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.uniform(-size, size, (2, steps, 4))
    values[..., 3] = rng.choice([-1.0, 1.0], (2, steps))
    return values


# --- retime
# -------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), steps=st.integers(1, 12), there=rates, back=rates)
def test_deltas_move_as_far_and_the_gripper_is_never_blended(seed, steps, there, back) -> None:
    actions = chunk(seed, steps)
    once = retime(actions, 10.0, there, DELTA)
    twice = retime(once, there, back, DELTA)
    for made in (once, twice):
        assert np.allclose(made[..., :3].sum(1), actions[..., :3].sum(1), atol=1e-9)
        assert set(np.unique(made[..., 3])) <= {-1.0, 1.0}
        assert np.array_equal(made[:, -1, 3], actions[:, -1, 3])
    assert once.shape[1] == int(np.ceil(steps * there / 10 - 1e-9))


@given(seed=st.integers(0, 10**6), steps=st.integers(1, 12), times=st.integers(1, 5))
def test_a_multiple_of_the_rate_and_back_changes_nothing(seed, steps, times) -> None:
    for spec in (DELTA, PLACES):
        actions = chunk(seed, steps)
        assert np.allclose(
            retime(retime(actions, 10, 10.0 * times, spec), 10.0 * times, 10, spec), actions
        )


def test_retiming_against_the_closed_form() -> None:
    deltas = np.array([[1.0, 0, 0, -1], [3.0, 0, 0, 1]])
    assert retime(deltas, 10, 20, DELTA)[:, 0].tolist() == [0.5, 0.5, 1.5, 1.5]
    assert retime(deltas, 10, 20, DELTA)[:, 3].tolist() == [-1, -1, 1, 1]
    assert retime(deltas, 10, 5, DELTA).tolist() == [[4, 0, 0, 1]]
    assert np.allclose(retime(deltas, 10, 15, DELTA)[:, 0], [2 / 3, 1 / 3 + 1, 2])
    assert (
        len(retime(np.zeros((15, 4)), 3, 50, DELTA)) == 250
    )  # 15 * (50 / 3) is a little more in floating point
    places = np.array([[1.0, 0, 0, -1], [3.0, 0, 0, 1]])
    assert retime(places, 10, 20, PLACES)[:, 0].tolist() == [
        1,
        1,
        2,
        3,
    ]  # held until the first place is known
    assert retime(places, 10, 5, PLACES).tolist() == [[3, 0, 0, 1]]


def test_what_cannot_be_retimed_is_refused() -> None:
    with pytest.raises(ValueError, match="'quaternion' cannot be retimed"):
        retime(np.zeros((3, 4)), 10, 20, dataclasses.replace(DELTA, rotation="quaternion"))
    for rotation in ("euler", "axis_angle", "quaternion"):
        with pytest.raises(ValueError, match=f"absolute actions with rotation '{rotation}'"):
            retime(np.zeros((3, 4)), 10, 20, dataclasses.replace(PLACES, rotation=rotation))
    with pytest.raises(ValueError, match="0 and 20 Hz"):
        retime(np.zeros((3, 4)), 0, 20, DELTA)
    for shape in ((4,), (0, 4), (3, 5)):
        with pytest.raises(ValueError, match="expected"):
            retime(np.zeros(shape), 10, 20, DELTA)


# --- convert
# ------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 10**6),
    ends=st.sampled_from([(-1.0, 1.0), (1.0, -1.0), (0.0, 1.0), (1.0, 0.0), (0.08, 0.0)]),
    scale=st.floats(0.02, 0.2),
    times=st.integers(1, 4),
)
def test_there_and_back_is_the_identity(seed, ends, scale, times) -> None:
    other = dataclasses.replace(
        DELTA,
        low=(-40.0, -40.0, -40.0, min(ends)),
        high=(40.0, 40.0, 40.0, max(ends)),
        gripper_open=ends[0],
        gripper_closed=ends[1],
        translation_scale=scale,
        control_hz=10.0 * times,
    )
    actions = chunk(seed, 6)
    actions[..., 3] = np.random.default_rng(seed).uniform(
        -1, 1, 6
    )  # half open means half open on both sides
    there = convert(actions, DELTA, other)
    assert np.allclose(convert(there, other, DELTA), actions, atol=1e-5)
    metres = there[..., :3].sum(1) * scale
    assert np.allclose(metres, actions[..., :3].sum(1) * DELTA.translation_scale, atol=1e-5)


def test_the_gripper_s_sign_and_range() -> None:
    wide = dataclasses.replace(
        DELTA, low=(-4.0, -4, -4, 0), high=(4.0, 4, 4, 1), gripper_open=1.0, gripper_closed=0.0
    )
    actions = np.array([[1.0, 0, 0, -1], [1.0, 0, 0, 1], [1.0, 0, 0, 0]])
    assert convert(actions, DELTA, wide)[:, 3].tolist() == [1, 0, 0.5]
    assert np.array_equal(convert(actions, DELTA, DELTA), actions)


def test_an_action_that_the_other_robot_cannot_carry_out_is_an_error() -> None:
    slow = dataclasses.replace(DELTA, translation_scale=0.01)
    actions = np.array([1.0, 0, 0, -1])
    with pytest.raises(ValueError, match="'dx' is 5, outside -4 … 4"):
        convert(actions, DELTA, slow)
    assert convert(actions, DELTA, slow, clip=True).tolist() == [4, 0, 0, -1]
    with pytest.raises(ValueError, match="'dx' is 9"):
        convert(np.array([9.0, 0, 0, -1]), DELTA, DELTA)
    with pytest.raises(ValueError, match="a single action has no time"):
        convert(actions, DELTA, dataclasses.replace(DELTA, control_hz=20))


def test_all_that_cannot_be_converted_is_named() -> None:
    other = dataclasses.replace(PLACES, rotation="quaternion")
    with pytest.raises(
        ValueError,
        match=r"names is .*; mode is 'delta' .*; rotation is 'none' and should be 'quaternion'",
    ):
        convert(np.zeros((2, 4)), DELTA, other)
    with pytest.raises(ValueError, match="gripper is 1 both open and closed"):
        convert(np.zeros((2, 4)), DELTA, dataclasses.replace(DELTA, gripper_open=1.0))
    with pytest.raises(ValueError, match="counted from is not known"):
        convert(np.zeros((2, 4)), PLACES, dataclasses.replace(PLACES, translation_scale=1.0))
    joints = dataclasses.replace(DELTA, names=("j1", "j2", "j3", "gripper"))
    with pytest.raises(ValueError, match="no dimension is named x, y, z"):
        convert(np.zeros((2, 4)), joints, dataclasses.replace(joints, translation_scale=1.0))
    with pytest.raises(ValueError, match="translation_scale is 0, expected more than 0"):
        convert(np.zeros((2, 4)), DELTA, dataclasses.replace(DELTA, translation_scale=0))
    turned = dataclasses.replace(DELTA, rotation="quaternion")
    with pytest.raises(ValueError, match=r"control_hz is 10 and should be 20.*'quaternion'"):
        convert(np.zeros((2, 4)), turned, dataclasses.replace(turned, control_hz=20))
