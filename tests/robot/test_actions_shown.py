"""What a network is shown of a robot's actions: about -1 to 1 in every dimension, grippers too."""

from dataclasses import replace

import numpy as np
import pytest

from armlet.data.statistics import of_values
from armlet.layers.heads import ArmGripperHead
from armlet.robot.normalise import Mode, Normaliser, normalised
from armlet.robot.spec import ActionSpec

RNG = np.random.default_rng(0)
DEGREES = RNG.uniform(-90, 90, 500)


def robot(opened: float, closed: float) -> tuple[ActionSpec, np.ndarray]:
    """Two joints in degrees, and a gripper at one of these ends."""
    gripper = np.where(RNG.random(500) < 0.7, opened, closed)
    values = np.stack([DEGREES, DEGREES[::-1] / 100, gripper], 1)
    ends = values.min(0), values.max(0)
    spec = ActionSpec(
        ("a", "b", "grip"),
        "absolute",
        "none",
        tuple(ends[0]),
        tuple(ends[1]),
        (2,),
        opened,
        closed,
        30,
    )
    return spec, values


@pytest.mark.parametrize("mode", ["min_max", "quantiles"])
@pytest.mark.parametrize(
    ("ends", "shown"),
    [
        ((100.0, 0.0), (1, -1)),
        ((0.0, 0.08), (-1, 1)),
        ((-20.0, 35.0), (-1, 1)),
        ((1.0, 0.0), (1, 0)),
        ((-1.0, 1.0), (-1, 1)),
    ],
)
def test_every_dimension_is_about_one(
    mode: Mode, ends: tuple[float, float], shown: tuple[float, float]
) -> None:
    """A gripper by its ends, however often it closes; the others by statistics."""
    spec, values = robot(*ends)
    made = Normaliser.of_actions(of_values(values), mode, spec)
    seen = made.apply(values)
    assert np.abs(seen).max() <= (1 + 1e-6 if mode == "min_max" else 1.1)
    assert np.ptp(seen[:, :2], axis=0).min() > 1.9
    assert sorted(set(np.round(seen[:, 2], 5))) == sorted(shown)
    np.testing.assert_allclose(made.invert(seen), values, atol=1e-4)
    told = normalised(spec, made)
    assert (told.gripper_open, told.gripper_closed) == pytest.approx(shown)
    np.testing.assert_allclose(
        (told.low[:2], told.high[:2]),
        made.apply(values[[0]] * 0 + np.array([spec.low, spec.high]))[:, :2],
    )


def test_identity_shows_numbers_as_they_are() -> None:
    spec, values = robot(100.0, 0.0)
    made = Normaliser.of_actions(of_values(values), "identity", spec)
    np.testing.assert_array_equal(made.apply(values), values)
    assert normalised(spec, made).gripper_open == 100


def test_all_grippers_are_shown_alike() -> None:
    spec, values = robot(100.0, 0.0)
    both = replace(
        spec,
        names=(*spec.names, "other"),
        low=(*spec.low, 0.0),
        high=(*spec.high, 100.0),
        grippers=(2, 3),
    )
    values = np.c_[values, np.full(500, 100.0)]  # it never closed
    made = Normaliser.of_actions(of_values(values), "mean_std", both)
    assert made.apply(np.full(4, 0.0))[2:].tolist() == [-1, -1]
    assert made.apply(np.full(4, 100.0))[2:].tolist() == [1, 1]


def test_what_moves_seldom_is_shown_by_its_ends() -> None:
    spec, values = robot(1.0, 0.0)
    values[:, 1] = 0.0
    values[7, 1] = 45.0  # in one of 500 frames: q01 and q99 are both 0
    made = Normaliser.of_actions(of_values(values), "quantiles", spec)
    assert sorted(set(made.apply(values)[:, 1].tolist())) == [-1, 1]


def test_heads_are_told_the_grippers_ends_as_they_see_them() -> None:
    spec, values = robot(100.0, 0.0)
    made = Normaliser.of_actions(of_values(values), "min_max", spec)
    options = ArmGripperHead.fitted(normalised(spec, made), {})
    assert options == {"gripper": [2], "gripper_open": 1.0, "gripper_closed": -1.0}
