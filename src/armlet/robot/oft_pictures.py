"""How OpenVLA-OFT's evaluation prepares a picture: what TensorFlow does there, in numpy.

    not 224 × 224   written as JPEG and read again, scaled with the Lanczos filter of three lobes
                    (widened where a picture shrinks), rounded
    then            the middle nine tenths of its area, scaled back to 224 × 224, between four
                    pixels, whose corners are the corners of that middle; cut off to whole numbers

in float32, tap by tap, as TensorFlow adds them up: measured on the original's own pictures, all
750,000 values are equal. With Pillow's JPEG 70 % of the values differ, by 12 levels at most; with
its crop by 50.

(openvla-oft 213c5ff, experiments/robot/openvla_utils.py; TensorFlow 2.15, scale_and_translate_op.cc
and crop_and_resize_op.cc.) Knows arrays alone.
"""

import functools

import numpy as np

from armlet.robot import jpeg

SIDE = 224  # pixels, of what the network sees
AREA = 0.9  # of a picture that is left of it, as the random crops in training left
LOBES = 3  # of the Lanczos filter
# glibc's polynomials for a quarter of a turn about 0 (sysdeps/ieee754/flt-32/sincosf_data.c).
SINE = tuple(
    map(float.fromhex, ("-0x1.555545995a603p-3", "0x1.1107605230bc4p-7", "-0x1.994eb3774cf24p-13"))
)
COSINE = tuple(
    map(
        float.fromhex,
        (
            "0x1p0",
            "-0x1.ffffffd0c621cp-2",
            "0x1.55553e1068f19p-5",
            "-0x1.6c087e89a359dp-10",
            "0x1.99343027bf8c3p-16",
        ),
    )
)
SMALLEST = jpeg.SMALLEST  # pixels a side of a picture that can be prepared


def prepared(picture: np.ndarray, *, middle: bool = True) -> np.ndarray:
    """A picture (h, w, 3) uint8 → (224, 224, 3) uint8; without `middle` its margin stays, for a
    policy that was trained without random crops."""
    if picture.shape[:2] != (SIDE, SIDE):
        picture = resized(jpeg.written_and_read(picture))
    return cropped(picture) if middle else picture


def resized(picture: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 → (224, 224, 3) uint8, whatever its shape was."""
    rows = _along_rows(picture.astype(np.float32))
    columns = _along_rows(rows.transpose(1, 0, 2)).transpose(1, 0, 2)
    return np.round(columns).clip(0, 255).astype(np.uint8)


def _along_rows(values: np.ndarray) -> np.ndarray:
    """(n, …) float32 → (224, …): the Lanczos filter along the first axis."""
    places, weights = _taps(len(values))
    found = np.zeros((SIDE, *values.shape[1:]), np.float32)
    for place, weight in zip(places.T, weights.T, strict=True):
        found += weight[:, None, None] * values[place]
    return found


@functools.lru_cache(maxsize=32)
def _taps(length: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of 224 places: which of `length` values count there, and how much, (224, taps)
    each."""
    step = np.float32(1) / (np.float32(SIDE) / np.float32(length))
    wide = max(step, np.float32(1))  # shrinking, the filter averages over all that falls in
    reach = np.float32(LOBES) * wide
    centre = (np.arange(SIDE, dtype=np.float32) + np.float32(0.5)) * step
    first = np.ceil(centre - reach - np.float32(0.5)).clip(0, length - 1).astype(int)
    last = np.floor(centre + reach - np.float32(0.5)).clip(0, length - 1).astype(int)
    places = first[:, None] + np.arange((last - first).max() + 1)
    away = (places.astype(np.float32) + np.float32(0.5) - centre[:, None]) * (np.float32(1) / wide)
    weights = np.where(places <= last[:, None], _lanczos(np.abs(away)), np.float32(0))
    total = np.zeros(SIDE, np.float32)
    for weight in weights.T:  # one after the other: in float32 the order counts
        total += weight
    weights = weights * (np.float32(1) / total)[:, None]
    return places.clip(0, length - 1), weights


def _lanczos(x: np.ndarray) -> np.ndarray:
    """sinc(x) · sinc(x / 3) for 0 ≤ x ≤ 3, float32."""
    pi = np.float32(np.pi)
    lobes = np.float32(LOBES)
    safe = np.maximum(x, np.float32(1e-3))
    found = lobes * _sine(pi * safe) * _sine(pi * safe / lobes) / (pi * pi * safe * safe)
    return np.where(x <= np.float32(1e-3), np.float32(1), np.where(x > lobes, 0, found))


def _sine(x: np.ndarray) -> np.ndarray:
    """The sine of 0 ≤ x < 120, float32, as glibc's `sinf` gives it (2.28 and later): a polynomial
    in double precision, rounded. One of eighty differs from the true sine's nearest number, and by
    these a value near a half is rounded to another whole number than TensorFlow's."""
    wide = x.astype(np.float64)
    quarter = np.where(x < np.float32(np.pi / 4), 0, np.floor(wide * 2 / np.pi + 0.5)).astype(int)
    rest = wide - quarter * (np.pi / 2)
    square = rest * rest
    cube = rest * square
    odd = cube * square * (SINE[1] + square * SINE[2]) + (rest + cube * SINE[0])
    fourth = square * square
    even = COSINE[0] + square * COSINE[1] + fourth * COSINE[2]
    even = even + fourth * square * (COSINE[3] + square * COSINE[4])
    found = np.where(quarter % 2, even, odd) * np.where(quarter & 2, -1, 1)
    return found.astype(np.float32)


def cropped(picture: np.ndarray) -> np.ndarray:
    """The middle of a picture (224, 224, 3) uint8, at its size."""
    whole = picture.astype(np.float32) * np.float32(1 / 255)
    below, above, share = _between()
    across = share[None, :, None]
    left = whole[:, below]
    upper = left[below]
    upper = upper + (whole[:, above][below] - upper) * across
    lower = left[above]
    lower = lower + (whole[:, above][above] - lower) * across
    found = upper + (lower - upper) * share[:, None, None]
    # TensorFlow's way to whole numbers: 256 steps of equal width, and the rest cut off.
    return (found.clip(0, 1) * np.float32(255.5)).astype(np.uint8)


@functools.cache
def _between() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of 224 places in the middle: the pixels before and after it, and how far it is
    between them."""
    last = np.float32(SIDE - 1)
    side = np.sqrt(np.float32(AREA))
    begins = (np.float32(1) - side) / np.float32(2)
    step = (begins + side - begins) * last / last
    place = begins * last + np.arange(SIDE, dtype=np.float32) * step
    below = np.floor(place).astype(int)
    return below, np.ceil(place).astype(int), place - below.astype(np.float32)
