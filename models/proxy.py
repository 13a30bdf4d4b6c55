"""A differentiable stand-in for H.264: block transform, QP, and per block the cheaper of intra and previous frame.

Closer to a video codec than SCENE's JPEG proxy (arXiv 2601.22189, section 2.3), which knows no prediction in time;
still without motion search and loop filter. It ranks filters by direction of change, not by absolute bits.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 8


def dct_matrix(size: int = BLOCK) -> Tensor:
    """Orthonormal DCT-II, [size, size]."""
    k = torch.arange(size, dtype=torch.float32)[:, None]
    n = torch.arange(size, dtype=torch.float32)[None, :]
    matrix = torch.cos(math.pi * (n + 0.5) * k / size) * math.sqrt(2.0 / size)
    matrix[0] /= math.sqrt(2.0)
    return matrix


def quantiser_step(qp: float) -> float:
    """H.264's step for 8-bit samples: 0.625 at QP 0, doubling every six."""
    return float(0.625 * 2.0 ** (qp / 6.0))


class CodecProxy(nn.Module):
    """Codes a sequence of packed pictures at a QP: `forward(frames, qp)` -> (reconstructions, bits [B])."""

    dct: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("dct", dct_matrix())

    def forward(self, frames: list[Tensor], qp: float) -> tuple[list[Tensor], Tensor]:
        """frames: packed float [B, 24, h, w] in 0..1, in display order; the first is intra only."""
        step = quantiser_step(qp) / 255.0
        decoded: list[Tensor] = []
        bits = torch.zeros(frames[0].shape[0], device=frames[0].device)
        previous: list[Tensor] | None = None
        for frame in frames:
            planes = [
                F.pixel_shuffle(frame[:, :16], 4),
                F.pixel_shuffle(frame[:, 16:20], 2),
                F.pixel_shuffle(frame[:, 20:], 2),
            ]
            rebuilt = []
            for index, plane in enumerate(planes):
                out, cost = self._plane(plane, previous[index] if previous else None, step)
                rebuilt.append(out)
                bits = bits + cost
            previous = rebuilt
            decoded.append(
                torch.cat(
                    [
                        F.pixel_unshuffle(rebuilt[0], 4),
                        F.pixel_unshuffle(rebuilt[1], 2),
                        F.pixel_unshuffle(rebuilt[2], 2),
                    ],
                    1,
                )
            )
        return decoded, bits

    def _plane(self, plane: Tensor, reference: Tensor | None, step: float) -> tuple[Tensor, Tensor]:
        blocks = _blocks(plane)
        intra, intra_bits = self._code(blocks, _neighbour_mean(plane), step, deadzone=1 / 3)
        if reference is None:
            return _plane(intra, plane), intra_bits.sum((1, 2))
        inter, inter_bits = self._code(blocks, _blocks(reference), step, deadzone=1 / 6)
        choose = (inter_bits <= intra_bits).float()  # a hard choice; gradients flow through whichever won
        bits = choose * inter_bits + (1 - choose) * intra_bits
        mask = choose[..., None, None]
        return _plane(mask * inter + (1 - mask) * intra, plane), bits.sum((1, 2))

    def _code(self, blocks: Tensor, prediction: Tensor, step: float, deadzone: float) -> tuple[Tensor, Tensor]:
        """[B, r, c, 8, 8] -> reconstruction of the same shape and bits [B, r, c]."""
        levels = self.dct @ (blocks - prediction) @ self.dct.T / step
        rounded = levels.sign() * torch.floor(levels.abs() + deadzone)
        rounded = levels + (rounded - levels).detach()
        # log2(1 + |level|) grows as the length of Exp-Golomb codes; the soft level keeps a slope inside the dead zone
        bits = 1.7 * torch.log2(1.0 + levels.abs() ** 1.5).sum((-1, -2)) + 0.25
        return (self.dct.T @ (rounded * step) @ self.dct) + prediction, bits


def _blocks(plane: Tensor) -> Tensor:
    """[B, 1, H, W] -> [B, H/8, W/8, 8, 8]."""
    batch, _, height, width = plane.shape
    return plane.reshape(batch, height // BLOCK, BLOCK, width // BLOCK, BLOCK).transpose(2, 3)


def _plane(blocks: Tensor, like: Tensor) -> Tensor:
    return blocks.transpose(2, 3).reshape(like.shape)


def _neighbour_mean(plane: Tensor) -> Tensor:
    """DC prediction from the blocks above and to the left, [B, H/8, W/8, 1, 1]."""
    means = F.avg_pool2d(plane, BLOCK)
    padded = F.pad(means, (1, 0, 1, 0), mode="replicate")
    predicted: Tensor = (padded[:, 0, 1:, :-1] + padded[:, 0, :-1, 1:])[..., None, None] / 2
    return predicted
