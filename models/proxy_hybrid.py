"""A differentiable stand-in for a hybrid video codec: motion, intra or inter, block transform, QP, loop filter.

Closer to H.264 than SCENE's JPEG proxy (arXiv 2601.22189, section 2.3), which knows no prediction in time: prediction
from the previous reconstruction by whole samples, one vector for 16x16 luma samples; for each 8x8 block the cheaper of
that and a mean predicted from its neighbours; at the end a deblocking filter inside the loop. Directional intra modes,
parts of samples, several references and entropy coding in contexts are left out. `benchmarks/proxy_fidelity.py` says
how well it ranks filters, `benchmarks/proxy_gradients.py` how well its gradient agrees with what x264 does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scene_edge.models.blocks import (
    BLOCK,
    dct_matrix,
    from_blocks,
    from_planes,
    quantiser_step,
    to_blocks,
    to_planes,
)
from scene_edge.models.motion import compensate, search, vector_bits

REACH = 7
"""Luma samples that a block may move in each direction between two frames."""

MODE_BITS = 0.25
"""What it costs to say how a block is coded."""


class HybridProxy(nn.Module):
    """Codes a sequence of packed pictures at a QP: `forward(frames, qp)` -> (reconstructions, bits [B, T]).

    `reach` 0 and no `deblocking` leave the plain block transform with the frame before as it stands.
    """

    dct: Tensor

    def __init__(self, reach: int = REACH, deblocking: bool = True) -> None:
        super().__init__()
        self.reach, self.deblocking = reach, deblocking
        self.register_buffer("dct", dct_matrix())

    def forward(self, frames: list[Tensor], qp: float) -> tuple[list[Tensor], Tensor]:
        """frames: packed float [B, 24, h, w] in 0..1 in display order, h and w multiples of 4; the first is intra."""
        step = quantiser_step(qp) / 255.0
        decoded: list[Tensor] = []
        bits: list[Tensor] = []
        previous: list[Tensor] | None = None
        for frame in frames:
            planes = to_planes(frame)
            predicted, vector_cost = self._predict(planes, previous, step) if previous else (None, None)
            rebuilt, costs = [], []
            for index, plane in enumerate(planes):
                inter = predicted[index] if predicted else None
                out, cost = self._plane(plane, inter, vector_cost if index == 0 else None, step, qp)
                rebuilt.append(out)
                costs.append(cost)
            previous = rebuilt
            decoded.append(from_planes(rebuilt))
            bits.append(torch.stack(costs).sum(0))
        return decoded, torch.stack(bits, 1)

    def _predict(self, planes: list[Tensor], previous: list[Tensor], step: float) -> tuple[list[Tensor], Tensor]:
        """Compensated planes, and what the vector costs each 8x8 luma block [B, H/8, W/8]."""
        # x264's exchange rate of absolute differences for bits, 0.92 * 2^((QP - 12) / 6), in terms of the step
        vectors = search(planes[0], previous[0], self.reach, 0.37 * step)
        predicted = [compensate(plane, vectors if index == 0 else vectors / 2) for index, plane in enumerate(previous)]
        shared = vector_bits(vectors) / 4.0  # by the four blocks that it moves
        return predicted, shared.repeat_interleave(2, 1).repeat_interleave(2, 2)

    def _plane(
        self, plane: Tensor, predicted: Tensor | None, vector_cost: Tensor | None, step: float, qp: float
    ) -> tuple[Tensor, Tensor]:
        """[B, 1, H, W] -> its reconstruction and bits [B]; without `predicted` all blocks are intra."""
        blocks = to_blocks(plane)
        rebuilt, bits, filtered = self._code(blocks, _neighbour_mean(plane), step, deadzone=1 / 3)
        filtered = torch.ones_like(filtered)  # whatever is intra is filtered
        if predicted is not None:
            inter, inter_bits, inter_filtered = self._code(blocks, to_blocks(predicted), step, deadzone=1 / 6)
            if vector_cost is not None:
                inter_bits = inter_bits + vector_cost
            chosen = inter_bits <= bits  # a hard choice; gradients flow through whichever won
            bits = torch.where(chosen, inter_bits, bits)
            rebuilt = torch.where(chosen[..., None, None], inter, rebuilt)
            filtered = torch.where(chosen, inter_filtered, filtered)
        out = from_blocks(rebuilt)
        if self.deblocking:
            out = deblock(out, filtered, qp)
        return out, bits.sum((1, 2))

    def _code(self, blocks: Tensor, prediction: Tensor, step: float, deadzone: float) -> tuple[Tensor, Tensor, Tensor]:
        """[B, r, c, 8, 8] -> reconstruction of the same shape, bits, and whether any level is not zero [B, r, c]."""
        levels = self.dct @ (blocks - prediction) @ self.dct.T / step
        rounded, likely = _quantised(levels, deadzone)
        coded = (rounded.detach().abs() > 0.5).flatten(3).any(3)
        return self.dct.T @ (rounded * step) @ self.dct + prediction, _level_bits(likely) + MODE_BITS, coded


def _quantised(levels: Tensor, deadzone: float) -> tuple[Tensor, Tensor]:
    """Quantised levels, and how large each is likely to be: what flows back through both is the latter's gradient.

    What is half a step below its first threshold is never coded, whatever its neighbours are: asking for more of it
    changes nothing. Above that a level counts as it is, as if rounded at random (dither).
    """
    magnitude = levels.abs()
    whole = levels.sign() * torch.floor(magnitude + deadzone)
    likely = F.relu(magnitude + deadzone - 0.5)
    soft = levels.sign() * likely
    return soft + (whole - soft).detach(), likely


def _level_bits(likely: Tensor) -> Tensor:
    """Bits of coefficients, [..., 8, 8] -> [...]: being there at all is dear, growing is cheap."""
    return (5.0 * likely.clamp(max=1.0) + 2.0 * torch.log2(1.0 + F.relu(likely - 1.0))).sum((-1, -2))


def deblock(plane: Tensor, filtered: Tensor, qp: float) -> Tensor:
    """Smooth the edges between 8x8 blocks where either is `filtered` [B, H/8, W/8]: [B, 1, H, W] -> the same.

    H.264's normal filter (ITU-T H.264, 8.7.2.3) on the two samples beside an edge, first across vertical edges. Steps
    higher than alpha, or in busy surroundings (beta), are taken for the picture's own. Thresholds are the closed forms
    of the standard's tables by List et al. (IEEE TCSVT 13(7), 2003); the clip is an eighth of the quantiser's step.
    """
    across = _across(plane, filtered, qp)
    return _across(across.transpose(2, 3), filtered.transpose(1, 2), qp).transpose(2, 3)


def _across(plane: Tensor, filtered: Tensor, qp: float) -> Tensor:
    """The filter across vertical edges."""
    alpha, beta = (max(0.0, value) / 255.0 for value in (0.8 * (2.0 ** (qp / 6.0) - 1.0), 0.5 * qp - 7.0))
    limit = quantiser_step(qp) / 8.0 / 255.0
    batch, _, height, width = plane.shape
    cells = plane.reshape(batch, height, width // BLOCK, BLOCK)
    p1, p0 = cells[:, :, :-1, -2], cells[:, :, :-1, -1]
    q0, q1 = cells[:, :, 1:, 0], cells[:, :, 1:, 1]
    edge = (filtered[:, :, :-1] | filtered[:, :, 1:]).repeat_interleave(BLOCK, 1)
    edge = edge & ((p0 - q0).abs() < alpha) & ((p1 - p0).abs() < beta) & ((q1 - q0).abs() < beta)
    delta = ((4.0 * (q0 - p0) + (p1 - q1)) / 8.0).clamp(-limit, limit) * edge
    moved = torch.cat(
        [
            cells[..., :1] - F.pad(delta, (1, 0))[..., None],
            cells[..., 1:-1],
            cells[..., -1:] + F.pad(delta, (0, 1))[..., None],
        ],
        3,
    )
    return moved.reshape(plane.shape)


def _neighbour_mean(plane: Tensor) -> Tensor:
    """Mean predicted from the blocks above and to the left, [B, H/8, W/8, 1, 1]."""
    means = F.avg_pool2d(plane, BLOCK)
    padded = F.pad(means, (1, 0, 1, 0), mode="replicate")
    predicted: Tensor = (padded[:, 0, 1:, :-1] + padded[:, 0, :-1, 1:])[..., None, None] / 2
    return predicted
