"""Action network: eight packed pictures of one camera in, one score per action out.

A frozen image trunk sees each picture; only how its features *change* within the clip is used, so that the place
where a clip was filmed, which few labelled clips would teach by heart, cancels out. What is trained is one linear
layer over instants, rows of the picture and channels.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from scene_edge.models.backbone import STAGES, Backbone

FRAMES = 8
WIDTH, HEIGHT = 160, 128
"""What the network sees, in luma samples; the picture is stretched to it."""

BANDS = 4
"""Horizontal bands in which changes are averaged: sitting down and jumping show in different ones."""

FEATURES = FRAMES * BANDS * 2 * (STAGES[1][0] + STAGES[2][0])

EXPOSURE = 0.35
MAX_GAIN = 6.0


class ActionNet(nn.Module):
    """Packed u8 [FRAMES, h, w, 24] of one clip -> logits [1, actions, 1, 1]."""

    def __init__(self, actions: int) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.classify = nn.Conv2d(FEATURES, actions, 1)

    def features(self, frames: Tensor) -> Tensor:
        """[1, FEATURES, 1, 1]: means over bands of what rose and what fell against the clip's mean, per instant."""
        parts = []
        for level in self.backbone(frames)[1:]:
            change = level - level.mean(0, keepdim=True)
            kernel = (level.shape[2] // BANDS, level.shape[3])
            parts += [F.avg_pool2d(F.relu(change), kernel), F.avg_pool2d(F.relu(-change), kernel)]
        return torch.cat(parts, 1).reshape(1, -1, 1, 1)

    def forward(self, frames: Tensor) -> Tensor:
        return self.classify(self.features(frames))


def expose(luma: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Dark clips made brighter by one gain for all their frames [T, ..]: mean level towards EXPOSURE, MAX_GAIN at most.

    The server does the same before it runs the network.
    """
    level = max(float(luma.mean()) - 16.0, 1.0) / 219.0
    gain = min(max(EXPOSURE / level, 1.0), MAX_GAIN)
    curve = np.clip((np.arange(256) - 16.0) * gain + 16.0, 0, 255).astype(np.uint8)
    return np.asarray(curve[luma], np.uint8)


def pack_frames(y: NDArray[np.uint8], u: NDArray[np.uint8], v: NDArray[np.uint8]) -> Tensor:
    """y [T, H, W], u and v [T, H/2, W/2] -> packed u8 [T, H/4, W/4, 24]."""

    def cells(plane: NDArray[np.uint8], block: int) -> NDArray[np.uint8]:
        count, height, width = plane.shape
        split = plane.reshape(count, height // block, block, width // block, block).transpose(0, 1, 3, 2, 4)
        return split.reshape(count, height // block, width // block, block * block)

    return torch.from_numpy(np.concatenate([cells(y, 4), cells(u, 2), cells(v, 2)], 3))
