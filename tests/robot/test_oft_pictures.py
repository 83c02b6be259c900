"""OpenVLA-OFT's preparation of pictures: JPEG against libjpeg itself (through Pillow, in whose way
of reading alone the cosines are put back), the filter and the crop against their formulas in double
precision, and all of it against what TensorFlow made of a picture."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from armlet.robot import jpeg, oft_pictures
from armlet.robot.fit import FitError, fit_picture

GOLDEN = Path(__file__).parent / "golden"


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth shapes with hard edges and some noise: all frequencies, and values at both ends."""
    rng = np.random.default_rng([height, width, seed])
    rows, columns = np.mgrid[:height, :width]
    waves = np.stack([np.sin(rows / 7), np.cos(columns / 5), np.sin((rows + columns) / 11)], -1)
    image = 128 + 100 * waves + rng.normal(0, 12, (height, width, 3))
    image[height // 3 : height // 2, width // 4 : width // 2] = (255, 0, 40)
    return image.clip(0, 255).astype(np.uint8)


def through_pillow(image: np.ndarray) -> np.ndarray:
    written = io.BytesIO()
    Image.fromarray(image).save(written, "JPEG", quality=95, subsampling="4:2:0")
    return np.asarray(Image.open(written))


def slow_inverse(cosines: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The cosines back as Pillow's libjpeg does it (jidctint.c): along columns, then along rows."""

    def along(x: np.ndarray, bits: int) -> np.ndarray:
        even = (x[2] + x[6]) * 4433
        t2 = even - x[6] * 15137
        t3 = even + x[2] * 6270
        t0 = (x[0] + x[4]) << 13
        t1 = (x[0] - x[4]) << 13
        whole = [t0 + t3, t1 + t2, t1 - t2, t0 - t3]
        both = (x[7] + x[3] + x[5] + x[1]) * 9633
        a = (x[7] + x[1]) * -7373
        b = (x[5] + x[3]) * -20995
        c = (x[7] + x[3]) * -16069 + both
        d = (x[5] + x[1]) * -3196 + both
        odd = [
            x[1] * 12299 + a + d,
            x[3] * 25172 + b + c,
            x[5] * 16819 + b + d,
            x[7] * 2446 + a + c,
        ]
        pairs = list(zip(whole, odd, strict=True))
        found = [one + other for one, other in pairs] + [one - other for one, other in pairs[::-1]]
        return (np.stack(found) + (1 << (bits - 1))) >> bits

    columns = along(cosines * table[:, :, None], 11)
    return (along(columns.transpose(1, 0, 2), 18).transpose(1, 0, 2) + 128).clip(0, 255)


@pytest.mark.parametrize(
    ("height", "width"),
    [(64, 64), (256, 256), (48, 80), (17, 31), (33, 16), (30, 50), (100, 75), (8, 9), (6, 7)],
)
def test_jpeg_is_libjpegs_to_the_bit(
    height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture(height, width)
    theirs = through_pillow(image)
    fast = jpeg.written_and_read(image)
    monkeypatch.setattr(jpeg, "_inverse", slow_inverse)
    np.testing.assert_array_equal(jpeg.written_and_read(image), theirs)
    # The fast cosines are a little off the slow ones, as in TensorFlow: the README of the golden
    # files measured 12 levels at most.
    off = np.abs(fast.astype(int) - theirs)
    assert 0 < off.max() <= 16 and 0.3 < off.mean() < 2.5


@pytest.mark.parametrize("length", [80, 224, 256, 480, 640])
def test_the_filter_is_lanczos(length: int) -> None:
    places, weights = oft_pictures._taps(length)
    dense = np.zeros((224, length))
    np.add.at(dense, (np.arange(224)[:, None], places), weights)
    wide = max(length / 224, 1.0)
    centre = (np.arange(224) + 0.5) * length / 224
    x = (np.arange(length) + 0.5 - centre[:, None]) / wide
    expected = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(dense, expected, atol=5e-5)  # float32


def test_the_middle_is_nine_tenths_of_the_area_corner_to_corner() -> None:
    ramp = np.broadcast_to(np.arange(224, dtype=np.uint8)[None, :, None], (224, 224, 3))
    found = oft_pictures.cropped(ramp)
    side = 0.9**0.5
    place = (1 - side) / 2 * 223 + np.arange(224) * side
    # Cut off, and not rounded, of 255.5 parts.
    np.testing.assert_array_equal(found[0, :, 0], np.floor(place / 255 * 255.5).astype(np.uint8))
    turned = np.ascontiguousarray(ramp.transpose(1, 0, 2))
    np.testing.assert_array_equal(oft_pictures.cropped(turned), found.transpose(1, 0, 2))


def test_as_tensorflow_prepared_it() -> None:
    """Two pictures of 256 × 256 that the original's code prepared, to the bit. In the second,
    values lie so near to a half that the order of sums decides how they are rounded."""
    cases = (("oft", "resized", False), ("oft", "cropped", True), ("oft_wrist", "cropped", True))
    for name, what, middle in cases:
        raw = np.asarray(Image.open(GOLDEN / f"{name}_raw.png"))
        theirs = np.asarray(Image.open(GOLDEN / f"{name}_{what}.png"))
        np.testing.assert_array_equal(oft_pictures.prepared(raw, middle=middle), theirs)


def test_a_picture_of_the_networks_size_is_neither_written_nor_scaled() -> None:
    image = picture(224, 224)
    np.testing.assert_array_equal(fit_picture(image, 224, "oft_whole"), image)
    np.testing.assert_array_equal(fit_picture(image, 224, "oft"), oft_pictures.cropped(image))
    small = picture(64, 48)
    fitted = fit_picture(small, 224, "oft")
    assert fitted.shape == (224, 224, 3)
    np.testing.assert_array_equal(fitted, oft_pictures.prepared(small))


def test_what_cannot_be_prepared_says_so() -> None:
    with pytest.raises(FitError, match="'eye': OpenVLA-OFT sees 224 × 224 pixels, and 96 × 96"):
        fit_picture(picture(64, 64), 96, "oft", camera="eye")
    with pytest.raises(FitError, match="expected at least 6 pixels a side"):
        fit_picture(np.zeros((5, 64, 3), np.uint8), 224, "oft", camera="eye")
    with pytest.raises(FitError, match="an empty picture"):
        fit_picture(np.zeros((0, 64, 3), np.uint8), 224, "oft", camera="eye")
