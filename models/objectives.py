"""What training minimises: the distance of two pictures in a frozen detector's eyes, and the bits of latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scene_edge.models.instruments import OnnxFeatures
from scene_edge.models.layers import packed_to_bgr

YOLOX_NANO_VALUES = ("input.175", "input.283", "onnx::Shape_1066", "onnx::Shape_1108", "output.1")
"""Backbone at strides 8 and 16, and the heads at strides 8, 16 and 32: [x, y, w, h, objectness, 80 classes]."""

BACKBONE = 2
"""How many of these values are the backbone's."""

FEATURES = 0.5
"""What a backbone's distance weighs beside a verdict's."""


class MachineDistance(nn.Module):
    """How much a frozen YOLOX sees of the original in another picture: 0 for the same picture.

    Relative L1 of the backbone's features, plus the cross entropy of the head's verdicts above its own floor, so
    that a person who melts into the wall costs more than the wall.
    """

    def __init__(self, onnx: Path) -> None:
        super().__init__()
        self.net = OnnxFeatures(onnx, YOLOX_NANO_VALUES)

    def features(self, picture: Tensor, side: int | None = None) -> list[Tensor]:
        """Packed float [B, 24, h, w] in 0..1 -> the detector's values, the picture scaled to `side` x `side` before.

        Detectors look at a scaled picture, and what only shows at full size does not help them.
        """
        bgr = packed_to_bgr(picture)
        if side is not None and (side, side) != tuple(bgr.shape[2:]):
            bgr = F.interpolate(bgr, (side, side), mode="bilinear", antialias=side < bgr.shape[2], align_corners=False)
        return [value.float() for value in self.net(bgr.contiguous(memory_format=torch.channels_last))]

    def distance(self, seen: list[Tensor], truth: list[Tensor]) -> Tensor:
        """Per sample, [B]."""
        total = torch.zeros(seen[0].shape[0], device=seen[0].device)
        for value, target in zip(seen[:BACKBONE], truth[:BACKBONE], strict=True):
            far = (value - target).abs().mean((1, 2, 3)) / (target.abs().mean((1, 2, 3)) + 1e-6)
            total = total + FEATURES * far
        for value, target in zip(seen[BACKBONE:], truth[BACKBONE:], strict=True):
            total = total + _verdicts(value, target)
        return total

    def missed(self, seen: list[Tensor], truth: list[Tensor]) -> Tensor:
        """1 - F1 of the positions that the detector claims with more than CLAIMED, softened to a slope: a number.

        Who reads a detector reads what it is surer of than that. In a picture from which much was lost, the likeliest
        value of most objects lies below: all of them are missed while hardly anything is found that is not there.
        """
        hits = claims = objects = torch.zeros((), device=seen[0].device)
        for value, target in zip(seen[BACKBONE:], truth[BACKBONE:], strict=True):
            best = target[:, 5:].max(1, keepdim=True)
            wanted = target[:, 4] * best.values[:, 0] > CLAIMED
            score = value[:, 4] * torch.where(wanted, value[:, 5:].gather(1, best.indices)[:, 0], value[:, 5:].amax(1))
            claimed = torch.sigmoid((score - CLAIMED) / SLOPE)
            hits, claims = hits + (claimed * wanted).sum(), claims + claimed.sum()
            objects = objects + wanted.sum()
        return 1.0 - 2.0 * hits / (claims + objects + 1.0)


CLAIMED = 0.5
SLOPE = 0.08
"""How sure a detector is where its claim counts, and over which range the count goes from nothing to whole."""

OBJECT = 0.02
"""From this objectness of the original on, classes and box of a position count: elsewhere nobody reads them."""


def _verdicts(value: Tensor, target: Tensor) -> Tensor:
    """Excess cross entropy of objectness, and of classes and box where there is an object: [B]."""
    wanted = target[:, 4].clamp(1e-4, 1 - 1e-4)
    excess = _excess(value[:, 4], wanted).sum((1, 2))
    where = (wanted > OBJECT).nonzero(as_tuple=True)
    there, asked = value.permute(0, 2, 3, 1)[where], target.permute(0, 2, 3, 1)[where]
    inside = _excess(there[:, 5:], asked[:, 5:].clamp(1e-4, 1 - 1e-4)).sum(1)
    inside = inside + (there[:, :4] - asked[:, :4]).abs().sum(1)
    excess = excess.index_add(0, where[0], inside * wanted[where])
    total: Tensor = excess / (wanted.sum((1, 2)) + 2.0)
    return torch.log1p(total.clamp_min(0.0))  # one hopeless crop must not outshout the batch


def _excess(value: Tensor, wanted: Tensor) -> Tensor:
    """Binary cross entropy above its own floor, `weighed`; 0 where both agree."""
    value = value.clamp(1e-4, 1 - 1e-4)
    floor = F.binary_cross_entropy(wanted, wanted, reduction="none")
    return weighed(F.binary_cross_entropy(value, wanted, reduction="none") - floor, value, wanted)


MISSED = 3.0
"""What it costs to be less sure of an object than the original allows, beside being too sure of something."""


def weighed(excess: Tensor, value: Tensor, wanted: Tensor) -> Tensor:
    """Excess cross entropies with misses made dear: value, wanted in 0..1.

    In terms of F1 an object had better count from a chance of about a third on (see `MachineDistance.missed`).
    """
    return excess * torch.where((value < wanted) & (wanted > 0.5), MISSED, 1.0)


class LatentPrior(nn.Module):
    """Factorised model of the integer latent: a logistic of its own for each quality, channel and context.

    The contexts tell what stood at the same place a frame before: nothing known, 0, or a magnitude of 1, or of 2 and
    more; in the last two the logistic leans towards the value before. Only used to train; what is written comes from
    integer tables fitted afterwards.
    """

    def __init__(self, channels: int, qualities: int = 1) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor([-0.5, -1.0, 0.0, 0.7]).repeat(qualities, channels, 1))
        self.lean = nn.Parameter(torch.full((qualities, channels, 1, 1), 0.5))

    def bits(self, latent: Tensor, previous: Tensor | None, quality: int = 0) -> Tensor:
        """latent [B, C, h, w] (rounded or noisy), previous integers or None -> bits of each sample [B]."""
        log_scale = self.log_scale[quality]
        if previous is None:
            scale, latent = log_scale[None, :, 0, None, None].expand_as(latent), latent.abs()
        else:
            context = previous.abs().clamp(max=2).long() + 1
            table = log_scale[None, :, :, None, None].expand(*latent.shape[:2], 4, *latent.shape[2:])
            scale = table.gather(2, context[:, :, None])[:, :, 0]
            latent = (latent - self.lean[quality] * previous).abs()
        width = torch.exp(-scale.clamp(-4.0, 4.0))
        upper, lower = (latent - 0.5) * -width, (latent + 0.5) * -width
        likelihood = torch.sigmoid(upper) - torch.sigmoid(lower)  # on the negative side, where it keeps its digits
        return -torch.log2(likelihood.clamp_min(1e-9)).sum((1, 2, 3))


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of two pictures [B, C, h, w] in 0..1 over 8x8 boxes: [B]."""

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 8, 4)

    mean_a, mean_b = mean(first), mean(second)
    var_a, var_b = mean(first * first) - mean_a**2, mean(second * second) - mean_b**2
    covariance = mean(first * second) - mean_a * mean_b
    score = ((2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)) / (
        (mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)
    )
    return score.mean((1, 2, 3))


def multi_scale_ssim(first: Tensor, second: Tensor, scales: int = 5) -> Tensor:
    """Mean of `ssim` over scales, each half as large as the one before, of pictures [B, C, h, w] in 0..1: [B].

    Scales at which less than a box is left are left out.
    """
    scores = [ssim(first, second)]
    while len(scores) < scales and min(first.shape[2:]) >= 16:
        first, second = (F.avg_pool2d(x, 2) for x in (first, second))
        scores.append(ssim(first, second))
    return torch.stack(scores).mean(0)


def rate_slope(points: list[list[tuple[float, float]]]) -> float:
    """What the base codec pays: loss per natural logarithm of rate, by least squares; positive.

    `points[quality][crop]` is (bits, loss) of the same crops at every quality: each crop has a level of its own, since
    busy pictures cost more and lose more, which would hide the slope. A side stream is worth its bits where it lowers
    the loss by more than this for the share that it adds to the rate.
    """
    logs = np.log([[bits for bits, _ in row] for row in points])
    losses = np.array([[loss for _, loss in row] for row in points])
    logs, losses = logs - logs.mean(0), losses - losses.mean(0)
    return max(1e-6, -float((logs * losses).sum()) / max(float((logs * logs).sum()), 1e-9))
