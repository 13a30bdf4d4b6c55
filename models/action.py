"""Action network: eight packed pictures of one camera in, one score per action out; a shifted 2D network (TSM)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from scene_edge.models.backbone import STAGES, Backbone

FRAMES = 8
WIDTH, HEIGHT = 128, 96
"""What the network sees, in luma samples; the picture is stretched to it."""

EXPOSURE = 0.35
MAX_GAIN = 6.0


class ActionNet(nn.Module):
    """Packed u8 [T * clips, h, w, 24], time-major -> logits [clips, actions, 1, 1], averaged over T."""

    def __init__(self, actions: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = Backbone(motion=True)
        self.dropout = dropout
        self.classify = nn.Conv2d(STAGES[-1][0], actions, 1)

    def forward(self, frames: Tensor, clips: int = 1) -> Tensor:
        feature = self.backbone(frames, clips)[-1].mean((2, 3), keepdim=True)
        logits = self.classify(F.dropout(feature, self.dropout, self.training))
        if clips == 1:
            return logits.mean(0, keepdim=True)
        return logits.reshape(-1, clips, logits.shape[1], 1, 1).mean(0)


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
