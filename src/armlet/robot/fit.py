"""How a picture of any shape becomes one of a stated size: the same arithmetic for training and for
a robot's pictures.

Pillow's triangle filter (BILINEAR) does the scaling. It is widened by the factor that a picture
shrinks, so it averages over all that falls into a pixel and fine patterns do not alias; enlarging,
it interpolates, where a box filter would repeat pixels. Its weights are normalised, symmetrical and
in fixed point: a uniform picture stays uniform, nothing shifts, and every machine gives the same
bits. It is also what openpi and torchvision scale with.

Knows arrays; knows no data set, no policy and no torch.
"""

from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
from PIL import Image

from armlet.robot import oft_pictures

Fit = Literal[
    "exact", "letterbox", "crop", "stretch", "bicubic", "openpi", "any", "oft", "oft_whole"
]
# Those that networks of our own are taught with; the others are how other projects' see.
Taught = Literal["exact", "letterbox", "crop", "stretch"]
VERSION = 2  # of the arithmetic below: raise it where a picture would be fitted to other bits
MOST = 8192  # pixels a side that a picture may be asked to have


class FitError(ValueError):
    """A picture, or a camera, that cannot be seen as a policy sees."""


def known_fit(name: str) -> Fit:
    """A fit by its name. Raises FitError where there is none of this name."""
    if name not in get_args(Fit):
        raise FitError(f"fit is {name!r}, expected {', '.join(get_args(Fit))}")
    return cast(Fit, name)


@dataclass(frozen=True)
class View:
    """What a policy sees: camera → (height, width) of its pictures in pixels, and how one of
    another shape is fitted to that."""

    cameras: dict[str, tuple[int, int]]
    fit: Fit = "exact"

    def of(self, found: dict[str, tuple[int, int]]) -> "View":
        """The sizes in which pictures of these cameras, name → (height, width), reach the policy:
        with the fit `any` their own, and else the policy's."""
        if self.fit != "any":
            return self
        return View({name: found[name] for name in self.cameras}, self.fit)

    def differences(self, found: dict[str, tuple[int, int]]) -> list[str]:
        """A line for every camera that some pictures, name → (height, width), lack or have in a
        size that is not taken."""
        lines = []
        for name, wanted in self.cameras.items():
            if name not in found:
                there = ", ".join(sorted(found)) or "none"
                lines.append(
                    f"camera {name!r}: the policy looks through it and there is {there}; rename "
                    "one, or record it"
                )
            elif self.fit == "exact" and tuple(found[name]) != tuple(wanted):
                lines.append(_another_size(name, found[name], wanted))
        return lines

    def check(self, found: dict[str, tuple[int, int]], *, whose: str) -> None:
        """Raises FitError where there are differences; `whose` the cameras are goes into the
        message."""
        lines = self.differences(found)
        if lines:
            raise FitError(f"{whose}: {'; '.join(lines)}")


def fit_picture(
    image: np.ndarray, size: int | tuple[int, int], fit: Fit, *, camera: str = ""
) -> np.ndarray:
    """A picture (h, w, 3) uint8 at `size`, (height, width) or the side of a square, in pixels. One
    that has it already is given back untouched.

    `any`: as it is, for a policy that brings pictures of any size to its own itself, in its own
    way; `size` says nothing then. `letterbox`: the whole picture, as large as fits, black bars evenly around (where the rows or
    columns left over are odd, the last bar has one more). `bicubic`: as `stretch`, with Pillow's
    bicubic filter, as OpenVLA. `oft`: as OpenVLA-OFT's evaluation prepares it, also where it is of
    that size, 224 × 224, already (see `oft_pictures`); `oft_whole`: the same without its crop.
    `openpi`: as `letterbox`, with sizes cut to whole pixels where that rounds, as openpi's client.
    `crop`: as small as fills, the middle of it. `stretch`: both axes scaled on their own. `exact`: raises FitError, naming `camera`, where
    the picture is not of that size.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        wanted = f"({height}, {width}, 3)" if fit == "exact" else "(h, w, 3)"
        raise FitError(
            f"camera {camera!r}: found {image.shape} {image.dtype}, expected {wanted} uint8, "
            "channels last"
        )
    found = image.shape[:2]
    if fit in ("oft", "oft_whole") and 0 not in found:
        return _as_oft(image, (height, width), middle=fit == "oft", camera=camera)
    if found == (height, width) or (
        fit == "any" and 0 not in found
    ):  # under every fit: what is of that size is as it should be
        return image
    if 0 in found:
        raise FitError(
            f"camera {camera!r}: found an empty picture, {image.shape}, expected ({height}, "
            f"{width}, 3) uint8"
        )
    if fit == "exact":
        raise FitError(_another_size(camera, found, (height, width)))
    if fit == "letterbox":
        return _letterbox(image, height, width)
    if fit == "openpi":
        return _boxed(image, height, width, *_cut(found, height, width))
    if fit == "crop":
        return _scaled(image, height, width, box=_middle(found, height, width))
    if fit == "stretch":
        return _scaled(image, height, width)
    if fit == "bicubic":
        return _scaled(image, height, width, by=Image.Resampling.BICUBIC)
    raise FitError(f"fit is {fit!r}, expected {', '.join(get_args(Fit))}")


def _as_oft(image: np.ndarray, size: tuple[int, int], *, middle: bool, camera: str) -> np.ndarray:
    side = oft_pictures.SIDE
    if size != (side, side):
        raise FitError(
            f"camera {camera!r}: OpenVLA-OFT sees {side} × {side} pixels, and {size[0]} × "
            f"{size[1]} are asked for"
        )
    if min(image.shape[:2]) < oft_pictures.SMALLEST:
        raise FitError(
            f"camera {camera!r}: found {image.shape}, expected at least {oft_pictures.SMALLEST} "
            "pixels a side"
        )
    return oft_pictures.prepared(image, middle=middle)


def _another_size(camera: str, found: tuple[int, ...], wanted: tuple[int, int]) -> str:
    return (
        f"camera {camera!r}: found ({found[0]}, {found[1]}, 3), expected ({wanted[0]}, "
        f"{wanted[1]}, 3) uint8: the policy takes pictures of that size as they are (fit exact); "
        "one taught with `--pictures.fit letterbox` (or crop, stretch) and `--pictures.size` takes "
        "any"
    )


def _letterbox(image: np.ndarray, height: int, width: int) -> np.ndarray:
    # The side that first touches the frame decides.
    scale = min(height / image.shape[0], width / image.shape[1])
    # At least a row and a column, of however thin a picture; never more than there is room for.
    inner_height = min(height, max(1, round(image.shape[0] * scale)))
    inner_width = min(width, max(1, round(image.shape[1] * scale)))
    return _boxed(image, height, width, inner_height, inner_width)


def _cut(found: tuple[int, ...], height: int, width: int) -> tuple[int, int]:
    """(height, width) of a picture in openpi's box (openpi_client/image_tools.py, in its order of
    operations: another one may lose a row to rounding)."""
    ratio = max(found[1] / width, found[0] / height)
    return max(1, int(found[0] / ratio)), max(1, int(found[1] / ratio))


def _boxed(
    image: np.ndarray, height: int, width: int, inner_height: int, inner_width: int
) -> np.ndarray:
    """A picture at its inner size in the middle of a black one."""
    top = (height - inner_height) // 2
    left = (width - inner_width) // 2
    inner = _scaled(image, inner_height, inner_width)
    whole = np.zeros((height, width, 3), np.uint8)  # black
    whole[top : top + inner_height, left : left + inner_width] = inner
    return whole


def _middle(found: tuple[int, ...], height: int, width: int) -> tuple[float, float, float, float]:
    """The largest part of the right shape around a picture's middle, (left, top, right, bottom), to
    a fraction of a pixel."""
    # The side that last fills the frame decides.
    scale = max(height / found[0], width / found[1])
    # Rounding must not leave the picture by a hair: Pillow refuses a box that does.
    half_height = min(height / scale / 2, found[0] / 2)
    half_width = min(width / scale / 2, found[1] / 2)
    middle_row = found[0] / 2
    middle_column = found[1] / 2
    return (
        middle_column - half_width,
        middle_row - half_height,
        middle_column + half_width,
        middle_row + half_height,
    )


def _scaled(
    image: np.ndarray,
    height: int,
    width: int,
    box: tuple[float, float, float, float] | None = None,
    by: Image.Resampling = Image.Resampling.BILINEAR,
) -> np.ndarray:
    """`box` of the picture, (left, top, right, bottom), or all of it, at this size. Without
    `reducing_gap`, which would be faster and not the same."""
    rows, columns = image.shape[:2]
    left, top, right, bottom = box or (0, 0, columns, rows)
    picture = Image.fromarray(np.ascontiguousarray(image))
    # Columns first, as Pillow did until 12 and torchvision with it: since 13 it begins with rows
    # where that is less work, and what is rounded in between gives other pixels (by 1 or 2).
    # Pillow counts (width, height), numpy (height, width).
    narrow = picture.resize((width, rows), by, box=(left, 0, right, rows))
    return np.asarray(narrow.resize((width, height), by, box=(0, top, width, bottom)))
