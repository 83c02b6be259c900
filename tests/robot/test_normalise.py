"""Statistics against numpy's on all the values at once, and what a normaliser makes of them."""

import numpy as np
import pytest

from armlet.data.statistics import combine, of_images, of_values
from armlet.robot.normalise import Normaliser, check_sane


def skewed(count: int = 4000, seed: int = 0) -> np.ndarray:
    """Three dimensions, none symmetric about 0 and each of another size."""
    rng = np.random.default_rng(seed)
    return np.stack(
        [rng.gamma(2, 3, count), -50 + rng.exponential(0.1, count), rng.uniform(2, 9, count)], 1
    )


def test_statistics_are_numpys() -> None:
    values = skewed()
    found = of_values(values)
    for name, expected in (
        ("min", values.min(0)),
        ("max", values.max(0)),
        ("mean", values.mean(0)),
        ("std", values.std(0)),
    ):
        assert found[name] == pytest.approx(expected), name
    for name, share in (("q01", 1), ("q10", 10), ("q50", 50), ("q90", 90), ("q99", 99)):
        assert found[name] == pytest.approx(np.percentile(values, share, axis=0)), name
    assert found["count"] == [4000]


def test_statistics_of_parts_are_those_of_all_whatever_their_lengths() -> None:
    values = skewed()
    values[:40] += 100
    parts = [values[:40], values[40:1000], values[1000:]]
    together, whole = combine([of_values(part) for part in parts]), of_values(values)
    for name in ("min", "max", "mean", "std", "count"):
        assert together[name] == pytest.approx(whole[name]), name
    even = [skewed(3000, seed) for seed in range(3)]
    assert combine([of_values(part) for part in even])["q90"] == pytest.approx(
        np.quantile(np.concatenate(even), 0.9, axis=0), rel=0.02
    )


def test_statistics_of_pictures_are_a_channels_own() -> None:
    frames = np.zeros((50, 4, 6, 3), np.uint8)
    frames[..., 0], frames[..., 1], frames[25:, :, :, 2] = 255, 51, 255
    found = of_images(frames)
    assert np.shape(found["mean"]) == (3, 1, 1) and np.ravel(found["mean"]) == pytest.approx(
        [1, 0.2, 0.5]
    )
    assert np.ravel(found["std"]) == pytest.approx([0, 0, 0.5]) and found["count"] == [20]


def test_quantiles_go_to_minus_one_and_one() -> None:
    values = skewed()
    made = Normaliser.from_statistics(of_values(values), "quantiles", what="action", dims=3)
    low, middle, high = np.quantile(values, [0.01, 0.5, 0.99], axis=0)
    np.testing.assert_allclose(made.apply(low), [-1, -1, -1], atol=1e-4)
    np.testing.assert_allclose(made.apply(high), [1, 1, 1], atol=1e-4)
    assert (np.abs(made.apply(middle)) < 1).all()
    assert (made.apply(high + 1) > made.apply(high)).all(), "more stays more"


def test_mean_and_deviation_become_zero_and_one() -> None:
    values = skewed()
    made = Normaliser.from_statistics(of_values(values), "mean_std", what="state", dims=3)
    np.testing.assert_allclose(made.apply(values).mean(0), 0, atol=2e-3)
    np.testing.assert_allclose(made.apply(values).std(0), 1, atol=1e-3)


@pytest.mark.parametrize("mode", ["identity", "mean_std", "quantiles"])
def test_what_is_kept_passes_as_it_is_and_everything_comes_back(mode: str) -> None:
    values = skewed(100).astype(np.float32)
    made = Normaliser.from_statistics(of_values(values), mode, what="action", dims=3, keep=(2,))
    np.testing.assert_array_equal(made.apply(values)[:, 2], values[:, 2])
    assert mode == "identity" or np.abs(made.apply(values)[:, :2] - values[:, :2]).min() > 0.1
    np.testing.assert_allclose(made.invert(made.apply(values)), values, rtol=1e-5, atol=1e-5)
    again = Normaliser.from_json(made.to_json())
    np.testing.assert_array_equal(again.apply(values), made.apply(values))


def test_statistics_that_are_missing_or_another_robots_are_named() -> None:
    found = of_values(skewed())
    with pytest.raises(ValueError, match="'action' lack 'q99'"):
        Normaliser.from_statistics({"q01": found["q01"]}, "quantiles", what="action", dims=3)
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \(4,\)"):
        Normaliser.from_statistics(found, "mean_std", what="action", dims=4)


@pytest.mark.parametrize("mode", ["mean_std", "quantiles"])
def test_a_constant_dimension_passes_through_and_a_small_one_does_not(mode: str) -> None:
    """A joint that stood still, exactly or but for float32's rounding, passes in its own unit, or
    in that of its place where this is
    larger than 1; a tenth of a millimetre about 0, in metres, is a range."""
    rng = np.random.default_rng(0)
    noise = np.float32(1e6) + rng.integers(0, 2, 500) * np.spacing(np.float32(1e6))
    small = rng.uniform(-5e-5, 5e-5, 500)
    values = np.stack([np.full(500, 0.1), np.zeros(500), noise, small], 1)
    made = Normaliser.from_statistics(of_values(values), mode, what="state", dims=4)
    assert made.scale[:3] == pytest.approx([1, 1, 1e6])
    assert made.apply(np.array([0.101, 0.02, 1e6, 0], np.float32))[:2] == pytest.approx(
        [0.001, 0.02], abs=1e-5
    )
    assert np.ptp(made.apply(small[:, None] * np.ones(4))[:, 3]) > 1.9
    changed = made.apply(values)
    np.testing.assert_allclose(made.invert(changed), values, rtol=1e-6)


STATISTICS = {
    "mean": [0.5, -20.0, 3.0],
    "std": [0.25, 4.0, 1e-4],
    "min": [-1.0, -40.0, 2.0],
    "max": [2.0, 5.0, 2.5],
    "q01": [-0.9, -35.0, 2.1],
    "q99": [1.9, 4.0, 2.4],
    "q10": [-0.5, -30.0, 2.2],
    "q90": [1.5, 0.0, 2.3],
}
BOUNDS = {"min_max": ("min", "max"), "quantiles": ("q01", "q99"), "quantile10": ("q10", "q90")}
X = np.array([0.7, -3.0, 2.25], np.float32)


@pytest.mark.parametrize("mode", ["mean_std", *BOUNDS])
@pytest.mark.parametrize("variant", ["armlet", "lerobot", "openpi"])
def test_each_library_is_followed_to_its_own_formula(variant: str, mode: str) -> None:
    """The formulas as those libraries' documentation gives them, written out a dimension at a time
    in double precision."""
    if variant == "openpi" and mode in ("min_max", "quantile10"):
        with pytest.raises(ValueError, match=f"openpi has no normalisation '{mode}'"):
            Normaliser.from_statistics(STATISTICS, mode, what="action", dims=3, variant=variant)
        return
    made = Normaliser.from_statistics(STATISTICS, mode, what="action", dims=3, variant=variant)
    epsilon = {"armlet": 0.0, "lerobot": 1e-8, "openpi": 1e-6}[variant]
    for index, value in enumerate(X.astype(float)):
        if mode == "mean_std":
            spread = STATISTICS["std"][index] + epsilon
            if variant == "armlet" and index == 2:
                spread = 3e-3  # it hardly moved: a thousandth of where it stands is one unit
            expected = (value - STATISTICS["mean"][index]) / spread
        else:
            low, high = (STATISTICS[name][index] for name in BOUNDS[mode])
            width = high - low + (epsilon if variant == "openpi" else 0)
            expected = 2 * (value - low) / width - 1
        assert made.apply(X)[index] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    loss = (
        1e-3 if (variant, mode) == ("lerobot", "mean_std") else 1e-5
    )  # lerobot leaves its 1e-8 out on the way back
    np.testing.assert_allclose(made.invert(made.apply(X)), X, rtol=loss)
    again = Normaliser.from_json(made.to_json())
    np.testing.assert_array_equal(again.apply(X), made.apply(X))
    np.testing.assert_array_equal(again.invert(X), made.invert(X))


@pytest.mark.parametrize("mode", ["quantiles", "min_max"])
@pytest.mark.parametrize(("variant", "back"), [("openvla", 0.0), ("openvla_oft", 1e-8)])
def test_openvlas_formulas(variant: str, back: float, mode: str) -> None:
    """There with 1e-8, back without it or with it; seen where the range itself is as small."""
    low, high = (np.array(STATISTICS[name], np.float64) for name in BOUNDS[mode])
    low[0] = high[0] = 0.5  # it never moved
    high[1] = low[1] + 3e-8
    low[1:], high[1:] = low[1:] - low[1:], high[1:] - low[1:]  # about 0, where 1e-8 is seen
    statistics = dict(zip(BOUNDS[mode], (low.tolist(), high.tolist()), strict=True))
    made = Normaliser.from_statistics(statistics, mode, what="action", dims=3, variant=variant)
    numbers = np.array([0.3, -0.5, 0.9])
    expected = 0.5 * (numbers + 1) * (high - low + back) + low
    np.testing.assert_allclose(made.invert(numbers)[1:], expected[1:], rtol=1e-6)
    # What never moved is 0, as the original sets it, and comes back to where it stood.
    assert made.apply(np.full(3, 0.5))[0] == 0 and made.invert(numbers)[0] == pytest.approx(0.5)
    values = np.array([0.5, 1e-8, 0.2])
    there = 2 * (values - low) / (high - low + 1e-8) - 1
    np.testing.assert_allclose(made.apply(values)[1:], there[1:], rtol=1e-5)
    with pytest.raises(ValueError, match=f"{variant} has no normalisation 'mean_std'"):
        Normaliser.from_statistics(STATISTICS, "mean_std", what="x", dims=3, variant=variant)


def test_values_that_statistics_make_absurd_are_named() -> None:
    made = Normaliser.from_statistics(
        {"mean": [0.0, 5.0], "std": [1.0, 0.5]}, "mean_std", what="state", dims=2
    )
    values = np.zeros((200, 2), np.float32) + [0, 5]
    check_sane("state", values, made, ["x", "y"])
    values[7, 1] = 5 + 0.5 * 60
    check_sane("state", values, made, ["x", "y"])  # one of 200 rows
    values[8:13, 1] = values[7, 1]
    with pytest.raises(
        ValueError,
        match=r"state, dimension 1 \(y\): 35 in row 7 is 60 when normalised .* 3.0% of the rows",
    ):
        check_sane("state", values, made, ["x", "y"])
    values[7:13, 1] = 5
    values[150, 0] = -1001
    with pytest.raises(ValueError, match=r"dimension 0 \(x\): -1001 in row 150"):
        check_sane("state", values, made, ["x", "y"])
