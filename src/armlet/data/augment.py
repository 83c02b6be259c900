"""Pictures as they might as well have been: brighter, paler, moved a little. Knows pixels, no words
and no robot.

Nothing here changes what an instruction means: hues stay, since words name colours, and no picture
is mirrored or turned, since words name sides and the robot's actions have directions. All cameras
of a moment change alike in light.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from armlet.data.transforms import BatchTransform, Moment
from armlet.types import Batch, Trace


@dataclass(frozen=True)
class Augment(BatchTransform):
    """Changes the light of the pictures, and where they lie. 0 leaves a thing alone."""

    brightness: float = 0.1
    """Brightness is scaled by a factor drawn from 1 ± this, picture by picture."""
    contrast: float = 0.0
    """Contrast is scaled by a factor drawn from 1 ± this."""
    saturation: float = 0.0
    """Saturation is scaled by a factor drawn from 1 ± this."""
    crop: int = 0
    """Pixels by which a picture is moved at most, each way, its edge repeated."""

    def __call__(self, batch: Batch, teacher: Trace, moment: Moment) -> tuple[Batch, Trace]:
        here = moment.pictures or slice(0, len(batch))
        changed = self.pictures(batch.images, moment.rng, of=(here, len(batch)))
        return replace(batch, images=changed), teacher

    def pictures(
        self,
        images: dict[str, Tensor],
        rng: np.random.Generator,
        *,
        of: tuple[slice, int] | None = None,
    ) -> dict[str, Tensor]:
        """Pictures by camera, (b, 3, h, w) in [0, 1], or (b, o, 3, h, w) of o moments, → the same,
        changed sample by sample as `rng` says; all moments of a sample alike. `of`: which samples
        these are of a batch of how many; each is changed as it would be among all."""
        if not images:  # a policy of numbers alone
            return {}
        first = next(iter(images.values()))
        here, count = of or (slice(0, len(first)), len(first))
        device = first.device

        def factors(spread: float) -> Tensor | None:
            if not spread:
                return None
            drawn = rng.uniform(1 - spread, 1 + spread, count).astype(np.float32)
            mine = torch.from_numpy(drawn[here])
            return mine.to(device).view(-1, *[1] * (first.ndim - 1))

        # Drawn once for all cameras: a lamp lights them all.
        gain = factors(self.brightness)
        contrast = factors(self.contrast)
        saturation = factors(self.saturation)
        changed = {}
        for name, pixels in images.items():
            if gain is not None:
                pixels = (pixels * gain).clamp_(0, 1)
            if contrast is not None:
                # Between the picture's mean grey (0) and the picture itself (1), or beyond.
                pixels = pixels.mean((-3, -2, -1), keepdim=True).lerp(pixels, contrast).clamp_(0, 1)
            if saturation is not None:
                # The same with the grey of every pixel.
                pixels = pixels.mean(-3, keepdim=True).lerp(pixels, saturation).clamp_(0, 1)
            if self.crop:
                places = rng.integers(0, 2 * self.crop + 1, (2, count))
                pixels = _moved(pixels, self.crop, places[:, here])
            changed[name] = pixels
        return changed


def _moved(pixels: Tensor, most: int, places: np.ndarray) -> Tensor:
    """Each picture moved by whole pixels, up to `most` each way, its edge repeated; `places` (2, b):
    where it begins in the picture with that edge, from the top and from the left."""
    count, *_, height, width = pixels.shape
    # Moments and channels in one axis: torch pads no five axes so.
    flat = pixels.flatten(1, -3)
    padded = F.pad(flat, (most,) * 4, mode="replicate")
    down, right = places
    moved = []
    for index in range(count):  # `most` down and to the right is where it was
        top = down[index]
        left = right[index]
        moved.append(padded[index, :, top : top + height, left : left + width])
    return torch.stack(moved).view(pixels.shape)
