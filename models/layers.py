"""Building blocks of every network for the camera: packed pictures in and out, ReLU convolutions, causal state.

Only operations that all engines quantise well: 4-D tensors, 3x3 and 1x1 convolutions, ReLU, addition,
concatenation, nearest upsampling. No transposed convolution, no GDN, no normalisation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def from_packed(picture: Tensor) -> Tensor:
    """Packed u8 [B, h, w, 24] -> float [B, 24, h, w] in 0..1."""
    return picture.permute(0, 3, 1, 2).float() * (1.0 / 255.0)


def to_packed(picture: Tensor) -> Tensor:
    """Float [B, 24, h, w] in 0..1 -> packed u8 [B, h, w, 24], rounded."""
    return (picture * 255.0 + 0.5).clamp(0.0, 255.0).to(torch.uint8).permute(0, 2, 3, 1)


def packed_to_bgr(picture: Tensor) -> Tensor:
    """Float packed [B, 24, h, w] in 0..1 -> BGR [B, 3, 4h, 4w] in 0..255 (BT.601, limited range)."""
    y = F.pixel_shuffle(picture[:, :16], 4) * 255.0 - 16.0
    u = F.interpolate(F.pixel_shuffle(picture[:, 16:20], 2), scale_factor=2.0, mode="nearest") * 255.0 - 128.0
    v = F.interpolate(F.pixel_shuffle(picture[:, 20:], 2), scale_factor=2.0, mode="nearest") * 255.0 - 128.0
    luma = 1.164383 * y
    blue = luma + 2.017232 * u
    green = luma - 0.391762 * u - 0.812968 * v
    red = luma + 1.596027 * v
    return torch.cat([blue, green, red], 1).clamp(0.0, 255.0)


def start_at_zero(layer: nn.Conv2d) -> None:
    """Zero weights and biases: a residual branch that at first adds nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """A convolution that keeps the variance of what ReLU lets through (He); torch's default fades over ten layers."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ResBlock(nn.Module):
    """x + conv(relu(conv(x))): [B, C, h, w] -> the same shape; starts close to the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv(channels, channels)
        self.second = conv(channels, channels)
        with torch.no_grad():
            self.second.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))


class CausalTemporal(nn.Module):
    """Depth-wise causal convolution over three frames, 3x3 in space (SMC, section 4.1: k = 3, history only).

    The state is the feature of the two frames before, [B, 2C, h, w], oldest first; zeros at a key frame. It starts
    as the identity on the present frame, so that a network is first as good as one without memory.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.older = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False)
        self.newer = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False)
        nn.init.normal_(self.older.weight, std=0.01)
        nn.init.normal_(self.newer.weight, std=0.01)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        older, newer = state[:, : self.channels], state[:, self.channels :]
        return x + self.older(older) + self.newer(newer), torch.cat([newer, x], 1)
