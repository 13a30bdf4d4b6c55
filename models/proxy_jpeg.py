"""A differentiable JPEG, SCENE's codec proxy: block transform and quantisation, no prediction from other pictures.

SCENE (arXiv 2601.22189, section 2.3). Tables and their scaling are those of libjpeg (ITU-T T.81, annex K), so that its
pictures can be held against a real JPEG's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scene_edge.models.blocks import (
    code_length,
    dct_matrix,
    from_blocks,
    from_planes,
    quantiser_step,
    rounded_through,
    to_blocks,
    to_planes,
)

LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *(((99,) * 8,) * 4),
)
"""Quantiser steps at quality 50, vertical frequency by horizontal frequency (T.81, tables K.1 and K.2)."""

END_OF_BLOCK = 3.0
"""Bits that say that nothing more comes, of each block: 4 for luma and 2 for chroma in the usual Huffman tables."""


def scaled_table(table: Tensor, quality: float) -> Tensor:
    """A table at a quality of 1..100, as libjpeg scales it: whole steps from 1 to 255."""
    percent = 5000.0 / quality if quality < 50 else 200.0 - 2.0 * quality
    return torch.floor((table * percent + 50.0) / 100.0).clamp(1.0, 255.0)


def quality_at(qp: float) -> float:
    """The quality at which JPEG's step for the mean of a luma block is H.264's at that QP."""
    percent = 100.0 * quantiser_step(qp) / LUMA[0][0]
    quality = 5000.0 / percent if percent > 100.0 else (200.0 - percent) / 2.0
    return min(100.0, max(1.0, quality))


class JpegProxy(nn.Module):
    """Codes packed pictures one by one: `forward(frames, qp)` -> (reconstructions, bits [B, T])."""

    dct: Tensor
    luma: Tensor
    chroma: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("dct", dct_matrix())
        self.register_buffer("luma", torch.tensor(LUMA, dtype=torch.float32))
        self.register_buffer("chroma", torch.tensor(CHROMA, dtype=torch.float32))

    def forward(self, frames: list[Tensor], qp: float) -> tuple[list[Tensor], Tensor]:
        """frames: packed float [B, 24, h, w] in 0..1, h and w multiples of 4; bits of each frame."""
        quality = quality_at(qp)
        coded = [self.code(frame, quality) for frame in frames]
        return [decoded for decoded, _ in coded], torch.stack([bits for _, bits in coded], 1)

    def code(self, frame: Tensor, quality: float) -> tuple[Tensor, Tensor]:
        """One packed picture [B, 24, h, w] at a quality of 1..100 -> its reconstruction and bits [B]."""
        tables = [self.luma, self.chroma, self.chroma]
        parts = [
            self._plane(plane, scaled_table(table, quality) / 255.0)
            for plane, table in zip(to_planes(frame), tables, strict=True)
        ]
        return from_planes([plane for plane, _ in parts]), torch.stack([bits for _, bits in parts]).sum(0)

    def _plane(self, plane: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 1, H, W] -> the same and bits [B]."""
        levels = self.dct @ (to_blocks(plane) - 128.0 / 255.0) @ self.dct.T / steps
        rebuilt = self.dct.T @ (rounded_through(levels) * steps) @ self.dct + 128.0 / 255.0
        return from_blocks(rebuilt), (code_length(_mean_predicted(levels)) + END_OF_BLOCK).sum((1, 2))


def _mean_predicted(levels: Tensor) -> Tensor:
    """Levels as they are written: a block's mean as the difference from the block to the left."""
    means = levels[..., 0, 0]
    difference = means - F.pad(means[:, :, :-1], (1, 0))
    return torch.cat([difference[..., None], levels.flatten(3)[..., 1:]], 3).unflatten(3, levels.shape[3:])
