"""Person and vehicle detector: anchor-free on three strides, packed YUV in, its targets and its loss.

Outputs follow YOLOX's box code: xy = (o + cell) * stride, wh = exp(o) * stride; the server decodes them. Targets are
assigned by how well a prediction already agrees with a label (task-aligned, Feng et al., ICCV 2021), scores learn
that agreement (varifocal loss, Zhang et al., CVPR 2021).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scene_edge.models.backbone import STAGES, Backbone
from scene_edge.models.teacher import CLASSES

STRIDES = (8, 16, 32)
WIDTH, HEIGHT = 512, 288
"""What the network sees, in luma samples; other multiples of 32 work as well."""

NECK = 64


class Head(nn.Module):
    """One stride's scores [B, classes, h, w] as logits and raw boxes [B, 4, h, w]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.score_feature = nn.Conv2d(NECK, NECK, 3, 1, 1)
        self.box_feature = nn.Conv2d(NECK, NECK, 3, 1, 1)
        self.score = nn.Conv2d(NECK, classes, 1)
        self.box = nn.Conv2d(NECK, 4, 1)
        with torch.no_grad():
            self.score.bias.fill_(-math.log(99))  # type: ignore[union-attr] # the rare-object prior: one cell in a hundred
            self.box.weight.mul_(0.1)
            self.box.bias.copy_(torch.tensor([0.5, 0.5, 1.2, 1.2]))  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.score(F.relu(self.score_feature(x))), self.box(F.relu(self.box_feature(x)))


class DetectorNet(nn.Module):
    """Packed u8 [B, h, w, 24] -> score8, box8, score16, box16, score32, box32, h and w multiples of 8."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.lateral = nn.ModuleList([nn.Conv2d(channels, NECK, 1) for channels, _ in STAGES])
        self.heads = nn.ModuleList([Head(len(CLASSES)) for _ in STRIDES])

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        levels = [lateral(x) for lateral, x in zip(self.lateral, self.backbone(picture), strict=True)]
        levels[1] = levels[1] + F.interpolate(levels[2], scale_factor=2.0, mode="nearest")
        levels[0] = levels[0] + F.interpolate(levels[1], scale_factor=2.0, mode="nearest")
        outputs: list[Tensor] = []
        for head, level in zip(self.heads, levels, strict=True):
            outputs += head(F.relu(level))
        return tuple(outputs)


def decode(outputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Graph outputs -> logits [B, N, classes], boxes [B, N, 4] in luma samples, centres [N, 2], strides [N]."""
    logits, boxes, centres, strides = [], [], [], []
    for stride, score, box in zip(STRIDES, outputs[0::2], outputs[1::2], strict=True):
        rows, columns = score.shape[2:]
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        cells = torch.stack([x.flatten(), y.flatten()], 1).float()
        raw = box.flatten(2).transpose(1, 2).float()
        centre = (raw[..., :2] + cells) * stride
        half = raw[..., 2:].clamp(max=6.0).exp() * (stride / 2)
        boxes.append(torch.cat([centre - half, centre + half], 2))
        logits.append(score.flatten(2).transpose(1, 2).float())
        centres.append((cells + 0.5) * stride)
        strides.append(torch.full((len(cells),), float(stride)))
    return torch.cat(logits, 1), torch.cat(boxes, 1), torch.cat(centres), torch.cat(strides)


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """[N, 4] x [M, 4] -> [N, M]."""
    sides = torch.minimum(first[:, None, 2:], second[None, :, 2:]) - torch.maximum(
        first[:, None, :2], second[None, :, :2]
    )
    overlap = sides.clamp(min=0).prod(2)
    areas = (first[:, 2:] - first[:, :2]).prod(1)[:, None] + (second[:, 2:] - second[:, :2]).prod(1)[None]
    return overlap / (areas - overlap).clamp(min=1e-6)


def generalised_iou(first: Tensor, second: Tensor) -> Tensor:
    """Of matching pairs [N, 4], [N, 4] -> [N], -1..1."""
    sides = torch.minimum(first[:, 2:], second[:, 2:]) - torch.maximum(first[:, :2], second[:, :2])
    overlap = sides.clamp(min=0).prod(1)
    union = (first[:, 2:] - first[:, :2]).prod(1) + (second[:, 2:] - second[:, :2]).prod(1) - overlap
    hull = (torch.maximum(first[:, 2:], second[:, 2:]) - torch.minimum(first[:, :2], second[:, :2])).prod(1)
    return overlap / union.clamp(min=1e-6) - (hull - union) / hull.clamp(min=1e-6)


@dataclass(frozen=True, slots=True)
class Truth:
    """Labels of one training picture in luma samples; inside `ignored` boxes the teacher was in doubt."""

    boxes: Tensor
    classes: Tensor
    ignored: Tensor


@torch.no_grad()
def assign(
    logits: Tensor, boxes: Tensor, centres: Tensor, strides: Tensor, truth: Truth, top: int = 9
) -> tuple[Tensor, Tensor, Tensor]:
    """For one picture: target scores [N, classes], matched label of each cell [N] or -1, its no-object weight [N].

    Each label takes the `top` cells near its centre whose prediction fits it best; a cell goes to the label that it
    overlaps most.
    """
    count, classes = logits.shape
    targets = torch.zeros(count, classes)
    matched = torch.full((count,), -1, dtype=torch.long)
    weight = torch.ones(count)
    if len(truth.ignored):
        inside = (centres[:, None] >= truth.ignored[None, :, :2]) & (centres[:, None] <= truth.ignored[None, :, 2:])
        weight[inside.all(2).any(1)] = 0.0
    if not len(truth.boxes):
        return targets, matched, weight
    middle = (truth.boxes[:, :2] + truth.boxes[:, 2:]) / 2
    inside = (centres[:, None] > truth.boxes[None, :, :2]) & (centres[:, None] < truth.boxes[None, :, 2:])
    near = (centres[:, None] - middle[None]).abs().amax(2) < 2.0 * strides[:, None]
    size = (truth.boxes[:, 2:] - truth.boxes[:, :2]).amax(1)
    fits = (size[None] < 12 * strides[:, None]) & (
        (size[None] > 2 * strides[:, None]) | (strides[:, None] == STRIDES[0])
    )
    allowed = (inside.all(2) | (near & (size[None] < 2 * strides[:, None]))) & near & (fits | (strides[:, None] == 32))
    overlap = pairwise_iou(boxes, truth.boxes)
    metric = logits.sigmoid()[:, truth.classes].sqrt() * overlap.pow(3) + 1e-9 * allowed
    metric = torch.where(allowed, metric, torch.zeros(()))
    best = metric.topk(min(top, count), 0)
    chosen = torch.zeros_like(metric).scatter_(0, best.indices, 1.0).bool() & (metric > 0)
    owner = torch.where(chosen, overlap, torch.full((), -1.0)).argmax(1)
    taken = chosen.any(1)
    matched[taken] = owner[taken]
    rows = taken.nonzero().flatten()
    for label in matched[rows].unique():
        mine = rows[matched[rows] == label]
        strength = metric[mine, label]
        share = strength / strength.max().clamp(min=1e-9) * overlap[mine, label].max().clamp(min=0.1)
        targets[mine, truth.classes[label]] = share
    weight[rows] = 1.0
    return targets, matched, weight


def detection_loss(outputs: tuple[Tensor, ...], truths: list[Truth]) -> tuple[Tensor, dict[str, float]]:
    """Varifocal score loss plus generalised-IoU box loss, both per unit of target score."""
    logits, boxes, centres, strides = decode(outputs)
    score_sum, box_sum, total = logits.new_zeros(()), logits.new_zeros(()), 0.0
    for index, truth in enumerate(truths):
        targets, matched, weight = assign(logits[index], boxes[index], centres, strides, truth)
        chance = logits[index].detach().sigmoid()
        focus = torch.where(targets > 0, targets, 0.75 * chance.square() * weight[:, None])
        score_sum = (
            score_sum + (F.binary_cross_entropy_with_logits(logits[index], targets, reduction="none") * focus).sum()
        )
        rows = (matched >= 0).nonzero().flatten()
        if len(rows):
            share = targets[rows].amax(1)
            quality = generalised_iou(boxes[index][rows], truth.boxes[matched[rows]])
            box_sum = box_sum + ((1 - quality) * share).sum()
        total += float(targets.sum())
    total = max(total, 1.0)
    loss = score_sum / total + 2.0 * box_sum / total
    return loss, {"score": float(score_sum.detach()) / total, "box": float(box_sum.detach()) / total}
