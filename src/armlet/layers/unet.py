"""Blocks of a one-dimensional U-Net over time that is told something (Diffusion Policy, arXiv
2303.04137; FiLM, arXiv 1709.07871), and where the keypoints of a feature map lie.

Tensors are (b, c, t): channels, then time. Knows no policy.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """Convolution, group normalisation, Mish; time keeps its length."""

    def __init__(self, enters: int, leaves: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(enters, leaves, kernel, padding=kernel // 2),
            nn.GroupNorm(groups, leaves),
            nn.Mish(),
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.block(x)
        return found


class ToldBlock(nn.Module):
    """Two convolutions beside what enters; between them what is told (b, told) moves each channel
    and, with `scales`, scales it first."""

    def __init__(
        self, enters: int, leaves: int, told: int, *, kernel: int, groups: int, scales: bool
    ) -> None:
        super().__init__()
        self.scales = scales
        self.conv1 = ConvBlock(enters, leaves, kernel, groups)
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(told, leaves * (1 + scales)))
        self.conv2 = ConvBlock(leaves, leaves, kernel, groups)
        self.residual_conv: nn.Module = nn.Identity()
        if enters != leaves:
            self.residual_conv = nn.Conv1d(enters, leaves, 1)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        said = self.cond_encoder(told).unsqueeze(-1)  # (b, c or 2 c, 1)
        inner = self.conv1(x)
        if self.scales:
            scale, shift = said.chunk(2, 1)
            inner = scale * inner + shift
        else:
            inner = inner + said
        found: Tensor = self.conv2(inner) + self.residual_conv(x)
        return found


class StepEncoding(nn.Module):
    """Levels of noise (b,) → sines, then cosines (b, dims)."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, levels: Tensor) -> Tensor:
        half = self.dims // 2
        steps = torch.arange(half, device=levels.device)
        frequencies = torch.exp(steps * -(math.log(10000) / (half - 1)))
        angles = levels[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], -1)


class StepEncoder(nn.Sequential):
    """Levels of noise (b,) → (b, dims), in the precision of its weights."""

    def __init__(self, dims: int) -> None:
        super().__init__(
            StepEncoding(dims), nn.Linear(dims, 4 * dims), nn.Mish(), nn.Linear(4 * dims, dims)
        )

    def forward(self, levels: Tensor) -> Tensor:
        x = self[0](levels).to(self[1].weight.dtype)
        for layer in list(self)[1:]:
            x = layer(x)
        return x


class SpatialSoftmax(nn.Module):
    """Where on a feature map (b, c, h, w) each of some keypoints is expected: (b, keypoints, 2), x
    then y, −1 … 1 (Finn et al. 2016, arXiv 1509.06113)."""

    pos_grid: Tensor

    def __init__(self, channels: int, keypoints: int, height: int, width: int) -> None:
        super().__init__()
        self.nets = nn.Conv2d(channels, keypoints, 1)
        columns = torch.linspace(-1, 1, width).expand(height, width)
        rows = torch.linspace(-1, 1, height)[:, None].expand(height, width)
        self.register_buffer("pos_grid", torch.stack([columns, rows], -1).flatten(0, 1))

    def forward(self, features: Tensor) -> Tensor:
        likely = F.softmax(self.nets(features).flatten(2), -1)  # (b, keypoints, h · w)
        return likely @ self.pos_grid
