"""What block transform codecs have in common: planes cut into 8x8 blocks, their DCT, and what levels cost in bits."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 8


def dct_matrix(size: int = BLOCK) -> Tensor:
    """Orthonormal DCT-II, [size, size]: M @ block @ M.T has the energy of the block."""
    k = torch.arange(size, dtype=torch.float32)[:, None]
    n = torch.arange(size, dtype=torch.float32)[None, :]
    matrix = torch.cos(math.pi * (n + 0.5) * k / size) * math.sqrt(2.0 / size)
    matrix[0] /= math.sqrt(2.0)
    return matrix


def quantiser_step(qp: float) -> float:
    """H.264's step in grey levels of 8-bit samples: 0.625 at QP 0, doubling every six."""
    return float(0.625 * 2.0 ** (qp / 6.0))


def code_length(levels: Tensor) -> Tensor:
    """Bits of quantised coefficients before rounding, [..., 8, 8] -> [...].

    log2(1 + |level|) grows as the length of Exp-Golomb codes; the power makes what is far below a level cheap, and what
    is not rounded keeps a slope inside the dead zone.
    """
    return 1.7 * torch.log2(1.0 + levels.abs() ** 1.5).sum((-1, -2))


def rounded_through(levels: Tensor, deadzone: float = 0.5) -> Tensor:
    """Quantised levels, with the gradient of what was not quantised (straight through): |level| + deadzone, cut off."""
    whole = levels.sign() * torch.floor(levels.abs() + deadzone)
    return levels + (whole - levels).detach()


def to_planes(packed: Tensor) -> list[Tensor]:
    """Packed [B, 24, h, w] -> Y [B, 1, 4h, 4w], U and V [B, 1, 2h, 2w]."""
    return [
        F.pixel_shuffle(packed[:, :16], 4),
        F.pixel_shuffle(packed[:, 16:20], 2),
        F.pixel_shuffle(packed[:, 20:], 2),
    ]


def from_planes(planes: list[Tensor]) -> Tensor:
    """The inverse of `to_planes`."""
    y, u, v = planes
    return torch.cat([F.pixel_unshuffle(y, 4), F.pixel_unshuffle(u, 2), F.pixel_unshuffle(v, 2)], 1)


def to_blocks(plane: Tensor) -> Tensor:
    """[B, 1, H, W] -> [B, H/8, W/8, 8, 8]."""
    batch, _, height, width = plane.shape
    return plane.reshape(batch, height // BLOCK, BLOCK, width // BLOCK, BLOCK).transpose(2, 3)


def from_blocks(blocks: Tensor) -> Tensor:
    """The inverse of `to_blocks`."""
    batch, rows, columns = blocks.shape[:3]
    return blocks.transpose(2, 3).reshape(batch, 1, rows * BLOCK, columns * BLOCK)
