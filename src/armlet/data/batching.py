"""What a network is told, in numpy → a batch of torch's tensors. Knows no network and no file."""

import numpy as np
import torch
from torch import Tensor

from armlet.robot.inputs import Arrays
from armlet.types import Batch


def batch_of(arrays: Arrays, *, device: torch.device) -> Batch:
    """The same on a device. Pictures are moved as bytes, a quarter of the floats they become."""
    images = {}
    for name, pictures in arrays.pictures.items():
        on_device = torch.from_numpy(pictures).to(device)
        # (b[, o], 3, h, w), [0, 1]
        images[name] = on_device.movedim(-1, -3).float().div_(255)

    def moved(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device)

    return Batch(
        images=images,
        text=moved(arrays.text),
        text_mask=moved(arrays.text_mask),
        state=moved(arrays.state),
        previous_action=moved(arrays.previous_action),
    )
