"""What training minimises: the distance of two pictures in a frozen detector's eyes, and the bits of latents."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scene_edge.models.instruments import OnnxFeatures
from scene_edge.models.layers import packed_to_bgr

YOLOX_NANO_VALUES = ("input.175", "input.283", "onnx::Shape_1066", "onnx::Shape_1108")
"""Backbone at strides 8 and 16, and the heads at strides 8 and 16: [x, y, w, h, objectness, 80 classes]."""


class MachineDistance(nn.Module):
    """How much a frozen YOLOX sees of the original in another picture: 0 for the same picture.

    Relative L1 of the backbone's features, plus the cross entropy of the head's verdicts above its own floor, so
    that a person who melts into the wall costs more than the wall.
    """

    def __init__(self, onnx: Path) -> None:
        super().__init__()
        self.net = OnnxFeatures(onnx, YOLOX_NANO_VALUES)

    def features(self, picture: Tensor) -> list[Tensor]:
        """Packed float [B, 24, h, w] in 0..1 -> the detector's values."""
        bgr = packed_to_bgr(picture).contiguous(memory_format=torch.channels_last)
        return [value.float() for value in self.net(bgr)]

    def distance(self, seen: list[Tensor], truth: list[Tensor]) -> Tensor:
        """Per sample, [B]."""
        total = torch.zeros(seen[0].shape[0], device=seen[0].device)
        for value, target in zip(seen[:2], truth[:2], strict=True):
            total = total + (value - target).abs().mean((1, 2, 3)) / (target.abs().mean((1, 2, 3)) + 1e-6)
        for value, target in zip(seen[2:], truth[2:], strict=True):
            total = total + _verdicts(value, target)
        return total


def _verdicts(value: Tensor, target: Tensor) -> Tensor:
    """Excess cross entropy of objectness, and of the classes where there is an object: [B]."""
    value, target = value.clamp(1e-4, 1 - 1e-4), target.clamp(1e-4, 1 - 1e-4)
    objectness, wanted = value[:, 4:5], target[:, 4:5]
    excess = F.binary_cross_entropy(objectness, wanted, reduction="none")
    excess = excess - F.binary_cross_entropy(wanted, wanted, reduction="none")
    classes = F.binary_cross_entropy(value[:, 5:], target[:, 5:], reduction="none")
    classes = classes - F.binary_cross_entropy(target[:, 5:], target[:, 5:], reduction="none")
    mass = wanted.sum((1, 2, 3)) + 2.0
    total: Tensor = (excess.sum((1, 2, 3)) + (classes.sum(1, keepdim=True) * wanted).sum((1, 2, 3))) / mass
    return torch.log1p(total.clamp_min(0.0))  # one hopeless crop must not outshout the batch


class LatentPrior(nn.Module):
    """Factorised model of the integer latent: a logistic of its own for each channel and each of four contexts.

    The contexts are those of the shipped tables: no previous frame, or |previous value| at the same position of 0,
    1, or 2 and more. Only used to train; what is written comes from integer tables fitted afterwards.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor([-0.5, -1.0, 0.0, 0.7]).repeat(channels, 1))

    def bits(self, latent: Tensor, previous: Tensor | None) -> Tensor:
        """latent [B, C, h, w] (rounded or noisy), previous integers or None -> bits of each sample [B]."""
        if previous is None:
            scale = self.log_scale[None, :, 0, None, None].expand_as(latent)
        else:
            context = previous.abs().clamp(max=2).long() + 1
            table = self.log_scale[None, :, :, None, None].expand(*latent.shape[:2], 4, *latent.shape[2:])
            scale = table.gather(2, context[:, :, None])[:, :, 0]
        width = torch.exp(-scale.clamp(-4.0, 4.0))
        upper, lower = (latent.abs() - 0.5) * -width, (latent.abs() + 0.5) * -width
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


def rate_slope(points: list[tuple[float, float]]) -> float:
    """What the base codec pays: loss per natural logarithm of rate, by least squares over (bits, loss); positive.

    A side stream is worth its bits where it lowers the loss by more than this for the share that it adds to the rate.
    """
    logs = [math.log(bits) for bits, _ in points]
    mean_log, mean_loss = sum(logs) / len(logs), sum(loss for _, loss in points) / len(points)
    covariance = sum((log - mean_log) * (loss - mean_loss) for log, (_, loss) in zip(logs, points, strict=True))
    variance = sum((log - mean_log) ** 2 for log in logs)
    return max(1e-6, -covariance / max(variance, 1e-9))
