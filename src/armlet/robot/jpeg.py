"""What is left of a picture that was written as JPEG and read again: for policies whose pictures
went through one on their way, in training and in deployment.

Nothing is packed into bytes: what is lost is lost by colours, halved chroma and rounded cosines,
all of it integer arithmetic of libjpeg, done here to the bit. Written as Pillow and TensorFlow
write by default (quality 95, 4:2:0, the slow integer cosines: their files are the same bytes); read
as TensorFlow reads, with the *fast* integer cosines (JDCT_IFAST), of which Pillow knows nothing:
its own answer differs in two thirds of the values, by 12 levels at most. Chroma is brought back by
the triangle filter ("fancy upsampling") of both.

(libjpeg-turbo 2.1: jccolor.c, jcsample.c, jfdctint.c, jcdctmgr.c, jidctfst.c, jdsample.c,
jdcolor.c.) Knows arrays alone.
"""

import numpy as np

SMALLEST = 6  # pixels a side: the triangle filter wants three columns of chroma
QUALITY = 95
# The tables of the standard (ITU-T T.81, K.1 and K.2), for a quality of 50.
LUMA = (
    "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 "
    "14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62 "
    "18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 "
    "49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99 "
)
CHROMA = (
    "17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 "
    "24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99 "
    "99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 "
    "99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 "
)
# Scales of the fast cosines, of 2¹⁴ parts: cos(kπ/16) √2 for k > 0, of row and column.
FAST = (1.0, 1.387039845, 1.306562965, 1.175875602, 1.0, 0.785694958, 0.541196100, 0.275899379)
# Of colours, in 2¹⁶ parts.
HALF = 1 << 15
MIDDLE = 128 << 16
# Of the slow cosines, in 2¹³ parts.
CONST_BITS = 13
PASS1_BITS = 2


def written_and_read(picture: np.ndarray) -> np.ndarray:
    """A picture (h, w, 3) uint8, of 6 × 6 pixels at least, as it comes out of a JPEG."""
    height, width = picture.shape[:2]
    luma, blue, red = _to_ycc(picture)
    luma = _cosines_and_back(_whole_blocks(luma), _table(LUMA))[:height, :width]
    halves = -(-height // 2), -(-width // 2)  # rows and columns of chroma
    brought_back = []
    for plane in (blue, red):
        small = _cosines_and_back(_whole_blocks(_halved(plane)), _table(CHROMA))
        small = small[: halves[0], : halves[1]]
        brought_back.append(_doubled(small)[:height, :width])
    return _to_rgb(luma, *brought_back)


def _table(numbers: str) -> np.ndarray:
    """(8, 8): by how much the cosines are divided."""
    usual = np.array(numbers.split(), np.int32).reshape(8, 8)
    scale = 200 - 2 * QUALITY
    return ((usual * scale + 50) // 100).clip(1, 255)


def _to_ycc(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    red, green, blue = np.moveaxis(picture.astype(np.int32), -1, 0)
    luma = (19595 * red + 38470 * green + 7471 * blue + HALF) >> 16
    cb = (-11059 * red - 21709 * green + 32768 * blue + MIDDLE + HALF - 1) >> 16
    cr = (32768 * red - 27439 * green - 5329 * blue + MIDDLE + HALF - 1) >> 16
    return luma, cb, cr


def _to_rgb(luma: np.ndarray, cb: np.ndarray, cr: np.ndarray) -> np.ndarray:
    cb = cb - 128
    cr = cr - 128
    red = luma + ((91881 * cr + HALF) >> 16)
    green = luma + ((-22554 * cb - 46802 * cr + HALF) >> 16)
    blue = luma + ((116130 * cb + HALF) >> 16)
    return np.stack([red, green, blue], -1).clip(0, 255).astype(np.uint8)


def _halved(plane: np.ndarray) -> np.ndarray:
    """Means of 2 × 2 pixels; what is halfway is rounded down and up in turns, column by column."""
    height, width = plane.shape
    even = np.pad(plane, ((0, height % 2), (0, width % 2)), "edge")
    # Columns beyond the picture repeat its last one before they are halved, and rows after.
    wide = -(-even.shape[1] // 16) * 16 - even.shape[1]
    even = np.pad(even, ((0, 0), (0, wide)), "edge")
    total = even[0::2, 0::2] + even[0::2, 1::2] + even[1::2, 0::2] + even[1::2, 1::2]
    bias = np.arange(total.shape[1], dtype=np.int32) % 2 + 1
    return (total + bias) >> 2


def _whole_blocks(plane: np.ndarray) -> np.ndarray:
    """As many rows and columns as blocks of 8 have; those beyond repeat the last."""
    height, width = plane.shape
    return np.pad(plane, ((0, -height % 8), (0, -width % 8)), "edge")


def _cosines_and_back(plane: np.ndarray, table: np.ndarray) -> np.ndarray:
    """A plane (h, w) of whole blocks through rounded cosines."""
    rows = plane.shape[0] // 8
    columns = plane.shape[1] // 8
    # (8, 8, blocks): what is done is done along the first two axes, for all blocks at a time.
    blocks = plane.reshape(rows, 8, columns, 8).transpose(1, 3, 0, 2).reshape(8, 8, -1)
    found = _forward(blocks - 128)
    divisor = (table * 8)[:, :, None]  # the slow cosines come out eight times as large
    rounded = np.sign(found) * ((np.abs(found) + divisor // 2) // divisor)
    back = _inverse(rounded, table)
    return back.reshape(8, 8, rows, columns).transpose(2, 0, 3, 1).reshape(plane.shape)


def _forward(blocks: np.ndarray) -> np.ndarray:
    """The slow integer cosines: along rows, then along columns."""
    along = _forward_pass(blocks.transpose(1, 0, 2), first=True)
    return _forward_pass(along.transpose(1, 0, 2), first=False)


def _forward_pass(x: np.ndarray, *, first: bool) -> np.ndarray:
    """Cosines along the first axis (Loeffler, Ligtenberg and Moschytz, 1989)."""
    s0 = x[0] + x[7]
    s1 = x[1] + x[6]
    s2 = x[2] + x[5]
    s3 = x[3] + x[4]
    outer = s0 - s3
    inner = s1 - s2
    even = (outer + inner) * 4433
    bits = CONST_BITS - PASS1_BITS if first else CONST_BITS + PASS1_BITS
    d7 = x[0] - x[7]
    d6 = x[1] - x[6]
    d5 = x[2] - x[5]
    d4 = x[3] - x[4]
    both = (d4 + d6 + d5 + d7) * 9633
    a = (d4 + d7) * -7373
    b = (d5 + d6) * -20995
    c = (d4 + d6) * -16069 + both
    d = (d5 + d7) * -3196 + both
    return np.stack(
        [
            _of_sums(s0 + s3 + s1 + s2, first=first),
            _rounded(d7 * 12299 + a + d, bits),
            _rounded(even + outer * 6270, bits),
            _rounded(d6 * 25172 + b + c, bits),
            _of_sums(s0 + s3 - s1 - s2, first=first),
            _rounded(d5 * 16819 + b + d, bits),
            _rounded(even - inner * 15137, bits),
            _rounded(d4 * 2446 + a + c, bits),
        ]
    )


def _of_sums(x: np.ndarray, *, first: bool) -> np.ndarray:
    """What needs no factor: the first pass leaves two bits of fraction, the second takes them."""
    return x << PASS1_BITS if first else _rounded(x, PASS1_BITS)


def _rounded(x: np.ndarray, bits: int) -> np.ndarray:
    return (x + (1 << (bits - 1))) >> bits


def _inverse(cosines: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The fast integer cosines back: along columns, then along rows. Numbers have eight bits of
    fraction at most, and are rounded downwards."""
    scales = np.array(FAST)
    factors = np.floor(np.outer(scales, scales) * 2**14 + 0.5).astype(np.int32)
    factors = (table * factors + (1 << 11)) >> 12
    along = _inverse_pass(cosines * factors[:, :, None])
    found = _inverse_pass(along.transpose(1, 0, 2)).transpose(1, 0, 2)
    return ((found >> 5) + 128).clip(0, 255)


def _inverse_pass(x: np.ndarray) -> np.ndarray:
    """Back along the first axis (Arai, Agui and Nakajima, 1988)."""
    sum_04 = x[0] + x[4]
    difference_04 = x[0] - x[4]
    sum_26 = x[2] + x[6]
    turned_26 = ((x[2] - x[6]) * 362 >> 8) - sum_26
    e0 = sum_04 + sum_26
    e1 = difference_04 + turned_26
    e2 = difference_04 - turned_26
    e3 = sum_04 - sum_26
    sum_53 = x[5] + x[3]
    difference_53 = x[5] - x[3]
    sum_17 = x[1] + x[7]
    difference_17 = x[1] - x[7]
    both = (difference_53 + difference_17) * 473 >> 8
    o7 = sum_17 + sum_53
    o6 = (difference_53 * -669 >> 8) + both - o7
    o5 = ((sum_17 - sum_53) * 362 >> 8) - o6
    o4 = (difference_17 * 277 >> 8) - both + o5
    return np.stack([e0 + o7, e1 + o6, e2 + o5, e3 - o4, e3 + o4, e2 - o5, e1 - o6, e0 - o7])


def _doubled(plane: np.ndarray) -> np.ndarray:
    """Twice as many rows and columns: each pixel three parts of the nearer and one of the next."""
    above = np.concatenate([plane[:1], plane[:-1]])
    below = np.concatenate([plane[1:], plane[-1:]])
    rows = np.stack([3 * plane + above, 3 * plane + below], 1).reshape(-1, plane.shape[1])
    before = np.concatenate([rows[:, :1], rows[:, :-1]], 1)
    after = np.concatenate([rows[:, 1:], rows[:, -1:]], 1)
    left = (3 * rows + before + 8) >> 4
    right = (3 * rows + after + 7) >> 4
    return np.stack([left, right], 2).reshape(len(rows), -1)
