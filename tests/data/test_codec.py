"""Bins and codebooks: there and back by property, against numpy's digitize and scipy's cdist, and
what they refuse."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from armlet.benchmarks.tabletop import Tabletop
from armlet.data.codec import Bins, Codebook, codec_error, squared_distances
from armlet.robot.spec import ActionSpec, within

SPEC = Tabletop().action_spec
WIDE = ActionSpec(  # six dimensions that move in ranges of their own, and a gripper whose open end is the higher
    names=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
    mode="delta",
    rotation="euler",
    low=(-2.0, -1.0, -1.0, -0.5, -0.5, -0.5, 0.0),
    high=(2.0, 1.0, 1.0, 0.5, 0.5, 0.5, 1.0),
    grippers=(6,),
    gripper_open=1.0,
    gripper_closed=0.0,
    control_hz=20,
    translation_scale=0.01,
)
BINS = Bins(("x", "turn"), (-0.3, 0.0), (0.5, 6.0), bins=50)
specs = st.sampled_from([SPEC, WIDE])
seeds = st.integers(0, 2**32 - 1)


def draw(spec: ActionSpec, seed: int, count: int = 200) -> np.ndarray:
    return (
        np.random.default_rng(seed)
        .uniform(spec.low, spec.high, (count, spec.dims))
        .astype(np.float32)
    )


def book(spec: ActionSpec, kind: str = "axes") -> Codebook:
    return (
        Codebook.axes(spec, (1.0, 0.25))
        if kind == "axes"
        else Codebook.fit(draw(spec, 0, 500), spec)
    )


# --- bins
# ---------------------------------------------------------------------------------------------------


@given(seed=seeds, bins=st.integers(2, 300), digitised=st.booleans())
def test_what_comes_back_from_bins_is_within_half_a_bin(seed, bins, digitised) -> None:
    codec = Bins(WIDE.names, WIDE.low, WIDE.high, bins + digitised, digitised)
    actions = draw(WIDE, seed)
    back = codec.decode(codec.encode(actions))
    assert (np.abs(back - actions) <= codec.half_bin + 1e-5).all()


@given(low=st.floats(-100, 100), size=st.floats(1e-3, 1e3), bins=st.integers(2, 1000))
def test_every_bin_comes_back_as_itself(low, size, bins) -> None:
    codec = Bins(("x",), (low,), (low + size,), bins)
    numbers = np.arange(bins)[:, None]
    middles = low + size * (numbers + 0.5) / bins  # decode itself answers in single precision
    assert np.allclose(codec.decode(numbers), middles, rtol=1e-5, atol=1e-4)
    assert np.array_equal(codec.encode(middles), numbers)


@given(seed=seeds)
def test_openvla_numbers_are_those_of_its_tokenizer(seed) -> None:
    """Reference: np.digitize of the edges np.linspace(−1, 1, 256), and the middles of the 255
    intervals between them."""
    rng = np.random.default_rng(seed)
    actions = np.concatenate([rng.uniform(-1, 1, (100, 3)), [[-1.0, 0.9999, 1.0]]])
    edges = np.linspace(-1, 1, 256)
    digitised = np.digitize(actions, edges)
    middles = (edges[:-1] + edges[1:]) / 2
    codec = Bins.openvla(("x", "y", "z"))
    assert np.array_equal(codec.encode(actions), digitised - 1)
    assert codec.encode(actions).max() == 255
    assert np.allclose(codec.decode(digitised - 1), middles[np.clip(digitised - 1, 0, 254)])


def test_ranges_come_from_quantiles_or_extremes() -> None:
    statistics = {"q01": [-1.0, 0.0], "q99": [1.0, 2.0], "min": [-3.0, -3.0], "max": [3.0, 3.0]}
    assert Bins.from_statistics(statistics, ("x", "y")).high == (1.0, 2.0)
    assert Bins.from_statistics(statistics, ("x", "y"), ends=("min", "max"), bins=8) == Bins(
        ("x", "y"), (-3, -3), (3, 3), 8
    )
    assert Bins.from_spec(SPEC).low == SPEC.low
    with pytest.raises(ValueError, match=r"lack 'q10'"):
        Bins.from_statistics(statistics, ("x", "y"), ends=("q10", "q99"))
    with pytest.raises(ValueError, match="another robot"):
        Bins.from_statistics(statistics, ("x", "y", "z"))
    with pytest.raises(ValueError, match=r"'y' has the range 2 … 2.*by hand"):
        Bins.from_statistics(statistics | {"q01": [-1.0, 2.0]}, ("x", "y"))


def test_outside_the_range_is_an_error_that_says_where_or_saturates_when_asked() -> None:
    actions = np.array([[0.0, 1.0], [0.0, 7.0], [-1.0, 1.0]])
    with pytest.raises(ValueError, match=r"'turn' is 7, outside 0 … 6 \(2 of 6 numbers"):
        BINS.encode(actions)
    assert BINS.encode(actions, clip=True).tolist()[1:] == [[18, 49], [0, 8]]
    assert BINS.encode(np.float32([0.5, 6.0])).tolist() == [
        49,
        49,
    ]  # the end of a range, in single precision, is inside
    with pytest.raises(ValueError, match=r"'turn' is NaN or infinite at \(1,\)"):
        BINS.encode(np.array([[0.0, 1.0], [0.0, np.nan]]), clip=True)
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \(…, 2\): x, turn"):
        BINS.encode(np.zeros(3))
    with pytest.raises(ValueError, match="numbered 0 to 49, found 0 to 50"):
        BINS.decode(np.array([0, 50]))
    with pytest.raises(ValueError, match="expected 2 or more"):
        Bins(("x",), (0.0,), (1.0,), bins=1)
    with pytest.raises(ValueError, match="one entry a dimension"):
        Bins(("x", "y"), (0.0,), (1.0,))


@given(seed=seeds, digitised=st.booleans())
def test_two_hot_labels_mean_exactly_the_value(seed, digitised) -> None:
    codec = Bins(WIDE.names, WIDE.low, WIDE.high, 31, digitised)
    outermost = codec.half_bin + 1e-9
    actions = np.random.default_rng(seed).uniform(
        np.array(WIDE.low) + outermost, np.array(WIDE.high) - outermost, (2, 9, 7)
    )
    labels = codec.two_hot(torch.from_numpy(actions))
    assert labels.shape == (2, 9, 7, 31)
    assert ((labels > 0).sum(-1) <= 2).all() and torch.allclose(
        labels.sum(-1), torch.ones(2, 9, 7).double()
    )
    assert torch.allclose(codec.expectation(labels), torch.from_numpy(actions), atol=1e-7)


def test_two_hot_labels_beyond_the_outermost_middles_are_the_outermost_bin() -> None:
    labels = BINS.two_hot(torch.tensor([[0.5, 6.0], [-0.3, 0.0], [9.0, -9.0]]))
    assert (
        labels.argmax(-1).tolist() == [[49, 49], [0, 0], [49, 0]]
        and labels.max(-1).values.eq(1).all()
    )


def test_gaussian_labels_against_the_formula() -> None:
    codec = Bins(("x",), (0.0,), (4.0,), bins=4)  # middles 0.5, 1.5, 2.5, 3.5
    labels = codec.gaussian(torch.tensor([1.0]), temperature=0.5)
    wanted = np.exp(-((np.array([0.5, 1.5, 2.5, 3.5]) - 1) ** 2) / 0.5)
    assert torch.allclose(labels, torch.from_numpy(wanted / wanted.sum()).float())
    cold = codec.gaussian(torch.tensor([1.2]), temperature=1e-4)
    assert codec.encode(codec.expectation(cold).numpy()) == codec.encode(np.array([1.2]))
    with pytest.raises(ValueError, match="temperature is 0"):
        codec.gaussian(torch.tensor([1.0]), temperature=0)


# --- codebooks
# ----------------------------------------------------------------------------------------------


@given(spec=specs, kind=st.sampled_from(["axes", "fit"]))
@settings(max_examples=6, deadline=None)
def test_every_primitive_comes_back_as_itself(spec, kind) -> None:
    codec = book(spec, kind)
    codes = np.arange(len(codec.primitives))
    assert np.array_equal(codec.encode(codec.decode(codes)), codes)


@given(spec=specs, seed=seeds)
@settings(deadline=None)
def test_the_nearest_on_the_gripper_s_own_side(spec, seed) -> None:
    """Reference: scipy's distances in half ranges, among the primitives whose gripper is on the
    same side."""
    codec, actions = book(spec), draw(spec, seed)
    moving = [index for index in range(spec.dims) if index not in spec.grippers]
    half = (np.array(spec.high) - np.array(spec.low))[moving] / 2
    distances = cdist(actions[:, moving] / half, codec.array[:, moving] / half)
    middle = (spec.gripper_open + spec.gripper_closed) / 2
    same = (actions[:, spec.grippers] >= middle) == (codec.array[:, spec.grippers[0]] >= middle)
    chosen = codec.encode(actions)
    wanted = np.where(same, distances, np.inf)
    assert np.allclose(wanted[np.arange(len(actions)), chosen], wanted.min(1), atol=1e-6)
    decoded = codec.decode(chosen)
    assert np.array_equal(
        decoded[:, spec.grippers[0]] >= middle, actions[:, spec.grippers[0]] >= middle
    )
    assert codec.error(actions)["grippers_flipped"] == 0


def test_axes_are_twenty_four_for_a_hand_with_or_without_rotation() -> None:
    assert len(Codebook.axes(SPEC).primitives) == 24
    wide = Codebook.axes(WIDE, steps=(0.5,))
    assert len(wide.primitives) == 24 and not (wide.array[:, :6] == 0).all(1).any()
    assert sorted({abs(value) for value in wide.array[:, 0]}) == [0, 1] and sorted(
        set(wide.array[:, 6])
    ) == [0, 1]
    none = dataclasses.replace(SPEC, names=("dx", "dy", "dz", "yaw"), grippers=())
    assert len(Codebook.axes(none).primitives) == 16
    with pytest.raises(ValueError, match="mode is 'absolute', expected 'delta'; use fit"):
        Codebook.axes(dataclasses.replace(SPEC, mode="absolute"))
    with pytest.raises(ValueError, match=r"0 inside; it is not in that of \['dx'\]"):
        Codebook.axes(dataclasses.replace(SPEC, low=(0.0, -1.0, -1.0, -1.0)))


def test_fitted_primitives_find_the_clusters_and_are_the_same_every_time() -> None:
    rng = np.random.default_rng(3)
    truth = book(SPEC).array
    actions = np.repeat(truth, 20, 0)
    actions[:, :3] = np.clip(actions[:, :3] + rng.normal(0, 0.01, (480, 3)), -1, 1)
    found = Codebook.fit(actions, SPEC, size=24, seed=1)
    assert found == Codebook.fit(actions, SPEC, size=24, seed=1)
    assert (
        found.error(actions)["dimensions"]["dx"]["mean"]
        < Codebook.fit(actions, SPEC, size=8).error(actions)["dimensions"]["dx"]["mean"]
    )
    assert np.median(cdist(truth, found.array).min(1)) < 0.01
    for closed in (
        -1.0,
        1.0,
    ):  # what is done with an open hand is not what is done with a closed one
        seldom = actions.copy()
        seldom[:, 0] = np.abs(seldom[:, 0]) * seldom[:, 3]
        turned = dataclasses.replace(SPEC, gripper_open=-closed, gripper_closed=closed)
        again = Codebook.fit(seldom, turned)
        assert (again.array[:, 0] * again.array[:, 3] > -0.01).all() and again.error(seldom)[
            "grippers_flipped"
        ] == 0
    with pytest.raises(ValueError, match="12 primitives are to be found among 3 different actions"):
        Codebook.fit(np.repeat(truth[[0, 1, 2, 12, 13, 14]], 9, 0), SPEC)
    with pytest.raises(ValueError, match="1 primitives are to be found among 0"):
        Codebook.fit(truth[:12], SPEC, size=8)  # the gripper never closes


def test_a_codebook_refuses_what_it_cannot_keep() -> None:
    codec = book(SPEC)
    with pytest.raises(ValueError, match=r"'dz' is -1.5, outside -1 … 1"):
        codec.encode(np.array([0.0, 0.0, -1.5, 1.0]))
    assert codec.decode(codec.encode(np.array([0.0, 0.0, -1.5, 1.0]), clip=True)).tolist() == [
        0,
        0,
        -1,
        1,
    ]
    with pytest.raises(ValueError, match="numbered 0 to 23, found -1 to 3"):
        codec.decode(np.array([-1, 3]))
    with pytest.raises(ValueError, match=r"grippers of primitives are \[-1.0, 0.5\]"):
        Codebook(SPEC, ((0.0, 0.0, 0.0, -1.0), (0.0, 0.0, 0.0, 0.5)))
    with pytest.raises(ValueError, match="1 of 3 primitives are repeated"):
        Codebook(SPEC, ((0.0, 0.0, 0.0, -1.0), (0.0, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0, 1.0)))
    with pytest.raises(ValueError, match="'dx' is 2, outside"):
        Codebook(SPEC, ((2.0, 0.0, 0.0, -1.0), (0.0, 0.0, 0.0, 1.0)))
    with pytest.raises(ValueError, match="no primitives"):
        Codebook(SPEC, ())


@pytest.mark.parametrize("spec", [SPEC, WIDE])
def test_a_codebook_survives_json(spec) -> None:
    codec = book(spec)
    assert Codebook.from_json(json.loads(json.dumps(codec.to_json()))) == codec


@given(spec=specs, seed=seeds, temperature=st.floats(0.01, 10))
@settings(deadline=None)
def test_soft_primitives_keep_to_their_side_and_prefer_the_nearest(spec, seed, temperature) -> None:
    codec, actions = book(spec), draw(spec, seed, 20)
    labels = codec.soft(torch.from_numpy(actions).double(), temperature=temperature)
    chosen = torch.from_numpy(codec.encode(actions))
    assert torch.allclose(labels.gather(1, chosen[:, None])[:, 0], labels.max(1).values)
    middle = (spec.gripper_open + spec.gripper_closed) / 2
    other = (actions[:, spec.grippers] >= middle) != (codec.array[:, spec.grippers[0]] >= middle)
    assert labels.numpy()[other].max() == 0
    gripper = codec.expectation(labels)[:, spec.grippers[0]]
    ends = sorted((spec.gripper_open, spec.gripper_closed))
    assert np.allclose(gripper, np.where(actions[:, spec.grippers[0]] >= middle, ends[1], ends[0]))


def test_cold_soft_primitives_are_the_nearest_one() -> None:
    codec, actions = book(SPEC), draw(SPEC, 0)
    expected = codec.expectation(codec.soft(torch.from_numpy(actions), temperature=1e-6))
    assert np.abs(expected.numpy() - codec.decode(codec.encode(actions))).mean() < 1e-3
    with pytest.raises(ValueError, match="temperature is -1"):
        codec.soft(torch.zeros(4), temperature=-1)


def test_the_error_is_also_in_metres() -> None:
    actions, decoded = np.zeros((4, 4)), np.zeros((4, 4))
    decoded[0, :2] = 3, 4
    decoded[1, 3] = -1.0
    found = codec_error(actions, decoded, SPEC)
    assert found["dimensions"]["dx"] == pytest.approx({"mean": 0.75, "p95": 2.55, "max": 3})
    assert found["metres"]["max"] == pytest.approx(5 * SPEC.translation_scale)
    assert found["grippers_flipped"] == 0.25


def test_within_returns_what_it_was_given() -> None:
    values = np.array([[0.25, -1.0]])
    assert np.array_equal(within(values, ("x", "y"), (-1, -1), (1, 1)), values)


def test_the_expert_succeeds_through_the_codebook() -> None:
    """Two episodes of every task; bench/codebook.py measures hundreds."""
    benchmark, codec = Tabletop(), book(SPEC)
    done = []
    for seed in range(14):
        world = benchmark.make(benchmark.tasks()[seed % 7], seed)
        done.append(
            any(
                world.step(codec.decode(codec.encode(world.expert_action())))
                for _ in range(benchmark.max_steps)
            )
        )
    assert sum(done) >= 13


def test_the_middle_between_open_and_closed_counts_as_the_higher() -> None:
    primitives = np.array([[0.1, -1.0], [0.1, 1.0]], np.float32)
    for gripper, nearest in ((-0.01, 0), (0.0, 1), (0.01, 1)):
        assert (
            squared_distances(np.array([[0.1, gripper]], np.float32), primitives, (1,)).argmin()
            == nearest
        )


def test_of_two_arms_each_gripper_keeps_its_side() -> None:
    names = ("left", "left_gripper", "right", "right_gripper")
    spec = dataclasses.replace(
        SPEC,
        names=names,
        low=(-1.0, 0.0, -1.0, 0.0),
        high=(1.0,) * 4,
        grippers=(1, 3),
        gripper_open=1.0,
        gripper_closed=0.0,
    )
    book = Codebook.axes(spec, steps=(1.0,))
    assert len(book.primitives) == 2 * 2 * 2 * 2  # two moving dimensions, both ways, four hands
    rng = np.random.default_rng(0)
    actions = rng.uniform(spec.low, spec.high, (400, 4))
    fitted = Codebook.fit(actions, spec, size=12)
    assert len(fitted.primitives) == 12
    for codec in (book, fitted):
        decoded = codec.decode(codec.encode(actions))
        for gripper in spec.grippers:
            assert np.array_equal(decoded[:, gripper], actions[:, gripper] >= 0.5)
        assert codec.error(actions)["grippers_flipped"] == 0
