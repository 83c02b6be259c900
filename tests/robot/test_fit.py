"""How pictures of any shape are brought to a stated size: against torch's own scaling, and by what
must hold of any."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from armlet.robot.fit import FitError, View, fit_picture, known_fit

FITS = ("letterbox", "crop", "stretch")
Filter = Callable[[np.ndarray], np.ndarray]  # of distances from the middle, in widths


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def torch_scaled(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The same filter by another hand."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    scaled = interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
    return scaled[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("found", [(48, 64), (30, 31), (7, 9), (16, 16)])
@pytest.mark.parametrize("wanted", [(24, 24), (13, 40)])
def test_stretched_as_torch_scales(found: tuple[int, int], wanted: tuple[int, int]) -> None:
    image = noise(*found)
    assert (
        np.abs(fit_picture(image, wanted, "stretch") - torch_scaled(image, wanted)).max() <= 1.01
    )  # two roundings to bytes


def triangle(x: np.ndarray) -> np.ndarray:
    return np.where(x < 1, 1 - x, 0)


def bicubic(x: np.ndarray) -> np.ndarray:
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0))


REACH = {triangle: 1.0, bicubic: 2.0}
BITS = 22  # of a weight's fraction in Pillow's C


def along_rows(image: np.ndarray, size: int, by: Filter, first: float, last: float) -> np.ndarray:
    """The first axis from `first` to `last` at another size, as Pillow's Resample.c computes it: the
    filter widened where it shrinks, weights in fixed point, the sum rounded to bytes."""
    scale = float(np.float32(last) - np.float32(first)) / size  # single precision, as there
    wide = max(scale, 1.0)
    found = []
    for index in range(size):
        centre = first + (index + 0.5) * scale
        low = max(int(centre - REACH[by] * wide + 0.5), 0)
        high = min(int(centre + REACH[by] * wide + 0.5), len(image))
        weights = by(np.abs((np.arange(low, high) - centre + 0.5) / wide))
        exact = weights / weights.sum() * 2**BITS
        fixed = np.trunc(exact + np.copysign(0.5, exact)).astype(np.int64)
        total = np.tensordot(fixed, image[low:high].astype(np.int64), 1) + 2 ** (BITS - 1)
        found.append(np.clip(total >> BITS, 0, 255))
    return np.array(found, np.uint8)


def columns_first(
    image: np.ndarray, size: tuple[int, int], by: Filter, box: tuple[float, ...] | None = None
) -> np.ndarray:
    """As Pillow scaled until 12: along rows, and what that leaves along columns."""
    # Single precision, as Pillow has it.
    edges = np.float32(box or (0, 0, image.shape[1], image.shape[0])).tolist()
    left, top, right, bottom = edges
    if (left, right, size[1]) != (0, image.shape[1], image.shape[1]):
        image = along_rows(image.transpose(1, 0, 2), size[1], by, left, right).transpose(1, 0, 2)
    if (top, bottom, size[0]) == (0, image.shape[0], image.shape[0]):
        return image
    return along_rows(image, size[0], by, top, bottom)


MANY = [
    (48, 64),
    (64, 48),
    (300, 200),
    (200, 300),
    (480, 640),
    (100, 90),
    (24, 90),
    (7, 9),
    (40, 24),
]


@pytest.mark.parametrize("found", MANY)
@pytest.mark.parametrize("wanted", [(24, 24), (13, 40), (96, 72)])
def test_columns_are_scaled_first_to_the_bit(
    found: tuple[int, int], wanted: tuple[int, int]
) -> None:
    """Whichever Pillow is installed: from 13 on its own order hangs on the sizes, and of some pixels
    in thirty it makes others."""
    image = noise(*found)
    for fit, by in (("stretch", triangle), ("bicubic", bicubic)):
        expected = columns_first(image, wanted, by)
        np.testing.assert_array_equal(fit_picture(image, wanted, fit), expected)
    scale = max(wanted[0] / found[0], wanted[1] / found[1])
    high = min(wanted[0] / scale, found[0]) / 2
    broad = min(wanted[1] / scale, found[1]) / 2
    middle = found[0] / 2, found[1] / 2
    box = middle[1] - broad, middle[0] - high, middle[1] + broad, middle[0] + high
    expected = columns_first(image, wanted, triangle, box)
    np.testing.assert_array_equal(fit_picture(image, wanted, "crop"), expected)


@pytest.mark.parametrize(
    ("found", "wanted", "inner", "top", "left"),
    [
        ((48, 64), (32, 32), (24, 32), 4, 0),  # bars above and below
        ((64, 48), (32, 32), (32, 24), 0, 4),  # at the sides
        ((10, 20), (41, 40), (20, 40), 10, 0),  # 21 rows are left over: the last bar has one more
        ((480, 640), (224, 224), (168, 224), 28, 0),
        ((1, 300), (16, 16), (1, 16), 7, 0),  # a line stays a line
    ],
)
def test_letterbox_shows_all_of_it_between_even_bars(found, wanted, inner, top, left) -> None:
    image = np.maximum(noise(*found), 1)  # black is what the bars are
    boxed = fit_picture(image, wanted, "letterbox")
    assert boxed.shape == (*wanted, 3)
    inside = boxed[top : top + inner[0], left : left + inner[1]].copy()
    np.testing.assert_array_equal(inside, fit_picture(image, inner, "stretch"))
    boxed[top : top + inner[0], left : left + inner[1]] = 0
    assert not boxed.any()


@pytest.mark.parametrize(
    ("found", "inner", "top", "left"),
    [
        ((10, 31), (7, 24), 8, 0),  # 7.74 rows, of which `letterbox` would make 8
        ((31, 10), (24, 7), 0, 8),
        ((72, 96), (18, 24), 3, 0),
    ],
)
def test_openpis_box_cuts_to_whole_pixels(found, inner, top, left) -> None:
    image = np.maximum(noise(*found), 1)
    boxed = fit_picture(image, 24, "openpi")
    inside = boxed[top : top + inner[0], left : left + inner[1]].copy()
    np.testing.assert_array_equal(inside, fit_picture(image, inner, "stretch"))
    boxed[top : top + inner[0], left : left + inner[1]] = 0
    assert boxed.shape == (24, 24, 3) and not boxed.any()
    assert fit_picture(noise(24, 24), 24, "openpi").any()


@pytest.mark.parametrize(
    ("found", "whole", "part"),
    [((48, 64), (24, 32), np.s_[:, 4:28]), ((72, 48), (36, 24), np.s_[6:30, :])],
)
def test_crop_shows_the_middle_of_the_whole_scaled_to_fill(found, whole, part) -> None:
    image = noise(*found)
    cropped = fit_picture(image, 24, "crop")
    np.testing.assert_array_equal(cropped, fit_picture(image, whole, "stretch")[part])
    assert np.abs(cropped - torch_scaled(image, whole)[part]).max() <= 1.01


@pytest.mark.parametrize("fit", FITS)
def test_nothing_shifts(fit: str) -> None:
    image = noise(60, 80)
    for axis in (0, 1):  # 32 and 24 leave bars of an even height
        mirrored = fit_picture(np.ascontiguousarray(np.flip(image, axis)), 32, fit)
        np.testing.assert_array_equal(mirrored, np.flip(fit_picture(image, 32, fit), axis))


@given(
    st.sampled_from(FITS),
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 255),
)
def test_one_grey_stays_that_grey_whatever_the_sizes(
    fit: str, height: int, width: int, to: int, wide: int, level: int
) -> None:
    image = np.full((height, width, 3), level, np.uint8)
    fitted = fit_picture(image, (to, wide), fit)
    assert fitted.shape == (to, wide, 3) and fitted.dtype == np.uint8
    assert (
        set(np.unique(fitted)) <= ({0, level} if fit == "letterbox" else {level})
        and fitted.max() == level
    )


@pytest.mark.parametrize("fit", ["exact", *FITS])
def test_one_of_that_size_is_untouched(fit: str) -> None:
    image = noise(24, 24)
    assert fit_picture(image, 24, fit) is image


def test_what_is_no_picture_or_of_another_size_is_named() -> None:
    with pytest.raises(
        FitError,
        match=r"camera 'eye': found \(20, 24, 3\), expected \(24, 24, 3\) uint8.*--pictures\.fit letterbox",
    ):
        fit_picture(noise(20, 24), 24, "exact", camera="eye")
    for wrong in (
        noise(20, 24).astype(np.float32),
        noise(20, 24)[..., 0],
        noise(20, 24)[..., :1],
        noise(20, 24)[None],
    ):
        with pytest.raises(
            FitError, match=r"camera 'eye': found .*, expected \(h, w, 3\) uint8, channels last"
        ):
            fit_picture(wrong, 24, "letterbox", camera="eye")
    with pytest.raises(FitError, match="camera 'eye': found an empty picture"):
        fit_picture(np.zeros((0, 24, 3), np.uint8), 24, "letterbox", camera="eye")
    with pytest.raises(FitError, match="fit is 'pad', expected exact, letterbox, crop, stretch"):
        known_fit("pad")


def test_a_view_says_what_some_pictures_lack() -> None:
    view = View({"eye": (24, 24), "hand": (16, 16)})
    assert view.differences({"eye": (24, 24), "hand": (16, 16), "more": (9, 9)}) == []
    lines = view.differences({"eye": (24, 20)})
    assert (
        len(lines) == 2
        and "camera 'eye'" in lines[0]
        and "camera 'hand'" in lines[1]
        and "there is eye" in lines[1]
    )
    assert View(view.cameras, "crop").differences({"eye": (24, 20), "hand": (99, 1)}) == [], (
        "any size is taken"
    )
    with pytest.raises(FitError, match=r"here: camera 'eye'.*; camera 'hand'"):
        view.check({"eye": (24, 20)}, whose="here")
