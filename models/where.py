"""Where something is that a task needs: a soft map for SCENE's machine variant, distilled from detectors.

The body is Sem-Net, a frozen FastestDet taught on 118,000 pictures; a small head says of each cell of 16 x 16 samples
how sure it is that an object covers it. What it is taught is what two detectors of different make are sure of: persons
and vehicles of YOLOX-nano, and whatever FastestDet itself claims in the same picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scene_edge.models.detector import Truth
from scene_edge.models.layers import conv, from_packed
from scene_edge.models.semantics import SEMANTIC, SemNet, Verdicts

CELL = 16
"""Luma samples on a side of a cell of the map."""

CLAIMED = 0.65
"""From this score on FastestDet's own boxes are labels, as its authors say; it is objectness ** 0.6 * class ** 0.4."""

FASTESTDET_SIDE = 352
"""Samples that its sides are parts of."""

GROWN = 0.1
"""By which part of its longer side a box is grown, and by LEAST_GROWN samples at least: its border counts too."""

LEAST_GROWN = 6.0

SMALL_CELLS = 8.0
"""An object of so many cells weighs as much again as its cells alone: a small one that is missed costs a whole one."""


class WhereNet(nn.Module):
    """Picture float [B, 24, h, w] -> logits [B, 1, h/4, w/4] of what covers each cell. Only the head learns."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.sem_net, self.verdicts = SemNet(), Verdicts()
        self.sem_net.requires_grad_(False)
        self.verdicts.requires_grad_(False)
        self.inner = conv(SEMANTIC, width, 1)
        self.near = nn.ModuleList(nn.Conv2d(width, width, 5, 1, 2, groups=width) for _ in range(2))
        self.mix = nn.ModuleList(conv(width, width, 1) for _ in range(2))
        self.out = conv(width, 1, 1)

    def head(self, semantic: Tensor) -> Tensor:
        """S [B, SEMANTIC, h, w] -> logits [B, 1, h, w]."""
        y = F.relu(self.inner(semantic))
        for near, mix in zip(self.near, self.mix, strict=True):
            y = F.relu(y + mix(F.relu(near(y))))
        out: Tensor = self.out(y)
        return out

    def forward(self, picture: Tensor) -> Tensor:
        return self.head(self.sem_net.look(picture))


class WhereGraph(nn.Module):
    """The graph run on every few frames: x u8 [B, h, w, 24] -> there [B, 1, h/4, w/4] in 0..1."""

    def __init__(self, net: WhereNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.net(from_packed(x)))


@torch.no_grad()
def claimed_boxes(verdicts: Verdicts, semantic: Tensor) -> list[Tensor]:
    """What FastestDet is sure of in each picture, in samples: [N, 4] as x1, y1, x2, y2, overlaps still in."""
    objectness, box, classes = (value.float() for value in verdicts(semantic))
    scores = objectness.sigmoid()[:, 0] ** 0.6 * classes.softmax(1).amax(1) ** 0.4
    rows, columns = torch.meshgrid(*(torch.arange(side, device=box.device) for side in box.shape[2:]), indexing="ij")
    centre = (torch.stack([columns, rows]) + torch.tanh(box[:, :2])) * CELL
    half = box[:, 2:].sigmoid() * FASTESTDET_SIDE / 2
    corners = torch.cat([centre - half, centre + half], 1).permute(0, 2, 3, 1)
    return [boxes[score >= CLAIMED] for boxes, score in zip(corners, scores, strict=True)]


def covered(boxes: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """By how much grown boxes [N, 4] cover each cell, 0..1, and what the cell weighs: two of [rows, columns]."""
    if not len(boxes):
        return torch.zeros(rows, columns), torch.ones(rows, columns)
    sides = boxes[:, 2:] - boxes[:, :2]
    grown = (GROWN * sides.amax(1) / 2).clamp_min(LEAST_GROWN)[:, None]
    low, high = boxes[:, :2] - grown, boxes[:, 2:] + grown
    shares = []
    for axis, count in enumerate((columns, rows)):
        edges = torch.arange(count) * float(CELL)
        inside = torch.minimum(high[:, axis, None], edges + CELL) - torch.maximum(low[:, axis, None], edges)
        shares.append((inside / CELL).clamp(0.0, 1.0))
    cover = shares[1][:, :, None] * shares[0][:, None, :]
    weight = 1.0 + (SMALL_CELLS / cover.sum((1, 2)).clamp_min(1.0))[:, None, None] * cover
    return cover.amax(0), weight.amax(0)


def targets(truths: Sequence[Truth], claims: Sequence[Tensor], rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """What the map is to be, and what each cell weighs: two of [B, 1, rows, columns].

    Cells that only a doubtful box of the teacher covers weigh nothing.
    """
    wanted, weights = [], []
    for truth, claim in zip(truths, claims, strict=True):
        cover, weight = covered(torch.cat([truth.boxes.float(), claim.cpu()]), rows, columns)
        doubtful, _ = covered(truth.ignored.float(), rows, columns)
        wanted.append(cover)
        weights.append(weight * (1.0 - (doubtful - cover).clamp_min(0.0)))
    return torch.stack(wanted)[:, None], torch.stack(weights)[:, None]


def where_loss(logits: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross entropy over its floor: 0 where the map is what it is to be."""
    floor = F.binary_cross_entropy(wanted, wanted, reduction="none")
    excess = F.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none") - floor
    return (excess * weights).sum() / weights.sum()
