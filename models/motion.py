"""Motion of 16x16 blocks by whole samples: a full search that chooses, and the prediction through which gradients flow.

Vectors say where in the reference a block is taken from. They are chosen without gradient, as any encoder chooses them;
the samples that they point at are ordinary tensors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MACROBLOCK = 16


def vector_bits(vectors: Tensor) -> Tensor:
    """What vectors [B, 2, r, c] cost: [B, r, c], nothing for no motion, else as Exp-Golomb codes grow."""
    return 2.0 * torch.log2(1.0 + vectors.abs()).sum(1)


@torch.no_grad()
def search(current: Tensor, reference: Tensor, reach: int, price: float) -> Tensor:
    """Full search: luma [B, 1, H, W] and its reference -> vectors (y, x) [B, 2, H/16, W/16] in whole samples.

    Minimises sum |difference| + `price` * bits of the vector over all displacements of at most `reach` samples, where
    every second row stands for two, as in encoders in a hurry. Beyond its edges the reference goes on as its outermost
    samples. H and W are multiples of 16.
    """
    batch, _, height, width = current.shape
    # three dimensions: one channel may be taken for channels-last, for which pooling is five times slower
    sparse = current[:, 0, ::2].contiguous()
    around = F.pad(reference[:, 0].contiguous(), (reach,) * 4, mode="replicate")
    best = current.new_full((batch, height // MACROBLOCK, width // MACROBLOCK), torch.inf)
    vectors = best.new_zeros(batch, 2, *best.shape[1:])
    for y in range(-reach, reach + 1):
        for x in range(-reach, reach + 1):
            there = around[:, reach + y : reach + y + height : 2, reach + x : reach + x + width]
            vector = vectors.new_tensor([y, x])[None, :, None, None]
            cost = F.avg_pool2d((sparse - there).abs_(), (MACROBLOCK // 2, MACROBLOCK)) * MACROBLOCK**2
            cost = cost + price * vector_bits(vector)
            vectors = torch.where((cost < best)[:, None], vector, vectors)
            best = torch.minimum(cost, best)
    return vectors


def compensate(plane: Tensor, vectors: Tensor) -> Tensor:
    """Prediction of a plane [B, 1, H, W] by vectors [B, 2, r, c] in its own samples, whole or half: the same shape.

    Half a sample is the mean of its neighbours, as H.264 takes it for chroma.
    """
    height, width = plane.shape[2:]
    size = height // vectors.shape[2]
    spread = vectors.repeat_interleave(size, 2).repeat_interleave(size, 3)
    rows = spread[:, 0] + torch.arange(height, device=plane.device)[:, None]
    columns = spread[:, 1] + torch.arange(width, device=plane.device)

    def taken(y: Tensor, x: Tensor) -> Tensor:
        index = y.clamp(0, height - 1).long() * width + x.clamp(0, width - 1).long()
        return plane.flatten(1).gather(1, index.flatten(1)).reshape(plane.shape)

    above, below = (taken(y, columns.floor()) + taken(y, columns.ceil()) for y in (rows.floor(), rows.ceil()))
    return (above + below) / 4.0
