"""Residual networks over pictures (He et al. 2015, arXiv 1512.03385), as torchvision names and
computes them (v1.5: a stride stands in a block's 3 × 3 convolution), down to the last feature map.

(b, 3, h, w) → (b, c, h/32, w/32), rounded up; c is 8 `width` for blocks of two convolutions and 32
`width` for bottlenecks. Which normalisation follows a convolution is a choice: `batch`; `frozen`,
the same with statistics and weights that no training changes; `group`, of 16 channels each.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["batch", "frozen", "group"]
GROUP = 16  # channels
# Blocks a stage, and whether they are bottlenecks.
DEPTHS: dict[str, tuple[tuple[int, int, int, int], bool]] = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}
WIDER = 4  # a bottleneck gives as many times the channels that it works with


class FrozenBatchNorm(nn.Module):
    """Batch normalisation by what it was given, in training too."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


def norm_layer(kind: Norm, channels: int) -> nn.Module:
    if kind == "frozen":
        return FrozenBatchNorm(channels)
    if kind == "group":
        return nn.GroupNorm(channels // GROUP, channels)
    return nn.BatchNorm2d(channels)


class Basic(nn.Module):
    """Two 3 × 3 convolutions beside what enters."""

    def __init__(self, enters: int, width: int, stride: int, norm: Norm, dilation: int = 1) -> None:
        super().__init__()
        if dilation != 1:
            raise ValueError("blocks of two convolutions are not dilated; bottlenecks are")
        self.conv1 = nn.Conv2d(enters, width, 3, stride, 1, bias=False)
        self.bn1 = norm_layer(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = norm_layer(norm, width)
        self.downsample = _shortcut(enters, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        beside = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + beside)


class Bottleneck(nn.Module):
    """1 × 1, 3 × 3 and 1 × 1 convolutions beside what enters."""

    def __init__(self, enters: int, width: int, stride: int, norm: Norm, dilation: int = 1) -> None:
        super().__init__()
        leaves = WIDER * width
        self.conv1 = nn.Conv2d(enters, width, 1, bias=False)
        self.bn1 = norm_layer(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = norm_layer(norm, width)
        self.conv3 = nn.Conv2d(width, leaves, 1, bias=False)
        self.bn3 = norm_layer(norm, leaves)
        self.downsample = _shortcut(enters, leaves, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        beside = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + beside)


def _shortcut(enters: int, leaves: int, stride: int, norm: Norm) -> nn.Sequential | None:
    if stride == 1 and enters == leaves:
        return None
    return nn.Sequential(nn.Conv2d(enters, leaves, 1, stride, bias=False), norm_layer(norm, leaves))


class ResNet(nn.Module):
    """`name` says how deep; `dilated`: the last stage keeps the size of what enters it, and its
    convolutions look further apart."""

    def __init__(self, name: str, *, width: int = 64, norm: Norm, dilated: bool = False) -> None:
        super().__init__()
        if name not in DEPTHS:
            raise ValueError(f"no image network {name!r}; there are {', '.join(DEPTHS)}")
        depths, is_bottleneck = DEPTHS[name]
        block = Bottleneck if is_bottleneck else Basic
        self.stride = 16 if dilated else 32  # pixels a side of what one number of the map is for
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = norm_layer(norm, width)
        enters = width
        for stage, depth in enumerate(depths):
            inner = width * 2**stage
            is_dilated = dilated and stage == 3
            stride = 1 if stage == 0 or is_dilated else 2
            blocks = []
            for index in range(depth):
                # The first block of a dilated stage sees as before: only what follows it looks
                # further apart (torchvision's `_make_layer`).
                dilation = 2 if is_dilated and index else 1
                blocks.append(block(enters, inner, 1 if index else stride, norm, dilation))
                enters = inner * (WIDER if is_bottleneck else 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.channels = enters

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return x

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the map of a picture."""
        return -(-height // self.stride), -(-width // self.stride)
