"""A ShuffleNetV2 (x0.5) trunk on packed YUV pictures, shared by the detector and the action networks.

Differences from Ma et al., ECCV 2018: the input is a packed picture, so that the stem is one convolution on the
quarter grid, of four phases of the half grid, and batch norms are folded. The original pools these 3x3 with stride 2;
an `exact` trunk does just that, and repeats the picture's border where the original sees black. Without it only the
four phases of a cell are maximised, which is cheaper and costs the pretrained weights much of what they know (agreement
of FastestDet's boxes with YOLOX-nano's on seven clips, seen once: F1 0.81 exact, 0.69 not).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from scene_edge.codec.errors import FormatError
from scene_edge.models.layers import from_packed

STEM, STAGES = 24, ((48, 4), (96, 8), (192, 4))
"""Channels of the stem, then (channels, blocks) of the stages at strides 8, 16 and 32."""


class Unit(nn.Module):
    """A basic unit: every second channel passes, the others go through 1x1, depth-wise 3x3, 1x1.

    They are told apart by 1x1 convolutions of ones and zeros: engines have no fast way to take every second channel
    (OpenVINO runs it by its reference code).
    """

    passing: Tensor
    changing: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        chosen = torch.eye(channels)[:, :, None, None]
        self.register_buffer("passing", chosen[0::2].clone(), persistent=False)
        self.register_buffer("changing", chosen[1::2].clone(), persistent=False)
        self.expand = nn.Conv2d(half, half, 1)
        self.depthwise = nn.Conv2d(half, half, 3, 1, 1, groups=half)
        self.project = nn.Conv2d(half, half, 1)

    def forward(self, x: Tensor) -> Tensor:
        passed, main = F.conv2d(x, self.passing), F.conv2d(x, self.changing)
        main = F.relu(self.project(self.depthwise(F.relu(self.expand(main)))))
        return torch.cat([passed, main], 1)


class DownUnit(nn.Module):
    """The first unit of a stage: both branches see all channels at stride 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.side_depthwise = nn.Conv2d(inputs, inputs, 3, 2, 1, groups=inputs)
        self.side = nn.Conv2d(inputs, half, 1)
        self.expand = nn.Conv2d(inputs, half, 1)
        self.depthwise = nn.Conv2d(half, half, 3, 2, 1, groups=half)
        self.project = nn.Conv2d(half, half, 1)

    def forward(self, x: Tensor) -> Tensor:
        side = F.relu(self.side(self.side_depthwise(x)))
        main = F.relu(self.project(self.depthwise(F.relu(self.expand(x)))))
        return torch.cat([side, main], 1)


def bordered(picture: Tensor) -> Tensor:
    """[B, C, h, w] with its border repeated once on each side; of slices, since LiteRT knows no such padding.

    Zeros would be a green frame, and a shift of the samples to make them black would cost INT8 the samples' own grid.
    """
    picture = torch.cat([picture[:, :, :1], picture, picture[:, :, -1:]], 2)
    return torch.cat([picture[..., :1], picture, picture[..., -1:]], 3)


def pooled(phases: Tensor) -> Tensor:
    """The four phases [B, 4 * C, h, w] of a picture at half size, none negative -> its 3x3 maxima at stride 2.

    A cell's neighbours above and to the left have the row and column that its own phases lack.
    """
    both, left, above, corner = phases.chunk(4, 1)
    left = F.max_pool2d(F.pad(left, (1, 0, 0, 0)), (1, 2), 1)
    above = F.max_pool2d(F.pad(above, (0, 0, 1, 0)), (2, 1), 1)
    corner = F.max_pool2d(F.pad(corner, (1, 0, 1, 0)), 2, 1)
    return torch.maximum(torch.maximum(both, left), torch.maximum(above, corner))


class Backbone(nn.Module):
    """Packed u8 [B, h, w, 24] -> features at strides 8, 16 and 32 of the picture: 48, 96 and 192 channels."""

    def __init__(self, exact: bool = False) -> None:
        super().__init__()
        self.exact = exact
        self.stem = nn.Conv2d(24, 4 * STEM, 3, 1, 0 if exact else 1)
        stages, inputs = [], STEM
        for outputs, units in STAGES:
            stages.append(nn.ModuleList([DownUnit(inputs, outputs), *(Unit(outputs) for _ in range(units - 1))]))
            inputs = outputs
        self.stages: Any = nn.ModuleList(stages)

    def forward(self, picture: Tensor) -> list[Tensor]:
        return self.features(from_packed(picture))

    def features(self, picture: Tensor) -> list[Tensor]:
        """The same from a packed float picture [B, 24, h, w] in 0..1."""
        if self.exact:
            y = pooled(F.relu(self.stem(bordered(picture))))
        else:
            one, two, three, four = self.stem(picture).chunk(4, 1)
            y = F.relu(torch.maximum(torch.maximum(one, two), torch.maximum(three, four)))
        features = []
        for stage in self.stages:
            for unit in stage:
                y = unit(y)
            features.append(y)
        return features

    def convolutions(self) -> Iterator[nn.Conv2d]:
        """Those of the stages, in the order in which the original network computes them."""
        for stage in self.stages:
            for unit in stage:
                if isinstance(unit, DownUnit):
                    yield from (unit.side_depthwise, unit.side)
                yield from (unit.expand, unit.depthwise, unit.project)

    @torch.no_grad()
    def load_fastestdet(self, path: Path, behind: Sequence[nn.Conv2d] = ()) -> None:
        """Start from the trunk of a FastestDet ONNX file (BSD-3-Clause), its stem rewritten for packed YUV.

        `behind`: the convolutions that follow the trunk there, in order, to be filled as well. Raises FormatError.
        """
        graph = onnx.load(str(path)).graph
        values = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in graph.initializer}
        nodes = [node for node in graph.node if node.op_type == "Conv"]
        pairs = [(values[node.input[1]], values[node.input[2]]) for node in nodes]
        targets = [*self.convolutions(), *behind]
        if len(pairs) <= len(targets):
            raise FormatError(f"{path} is no FastestDet", got=f"{len(pairs)} convolutions", allowed=f"> {len(targets)}")
        first = [torch.from_numpy(np.asarray(array)) for array in pairs[0]]
        if tuple(first[0].shape) != (STEM, 3, 3, 3):
            raise FormatError(f"{path} is no FastestDet", got=tuple(first[0].shape), allowed=(STEM, 3, 3, 3))
        weight, bias = packed_stem(*first)
        self.stem.weight.copy_(weight)
        self.stem.bias.copy_(bias)  # type: ignore[union-attr]
        for target, (kernel, offset) in zip(targets, pairs[1:], strict=False):
            if tuple(target.weight.shape) != kernel.shape:
                raise FormatError(f"{path} is no FastestDet", got=kernel.shape, allowed=tuple(target.weight.shape))
            target.weight.copy_(torch.from_numpy(kernel))
            target.bias.copy_(torch.from_numpy(offset))  # type: ignore[union-attr]


def linear_bgr(packed: Tensor) -> Tensor:
    """Packed floats [B, 24, h, w] in 0..1 -> BGR [B, 3, 4h, 4w] in 0..1, not clipped: BT.601, limited range."""
    y = (F.pixel_shuffle(packed[:, :16], 4) - 16 / 255) * 1.164383
    u = F.interpolate(F.pixel_shuffle(packed[:, 16:20], 2), scale_factor=2.0) - 128 / 255
    v = F.interpolate(F.pixel_shuffle(packed[:, 20:], 2), scale_factor=2.0) - 128 / 255
    return torch.cat([y + 2.017232 * u, y - 0.391762 * u - 0.812968 * v, y + 1.596027 * v], 1)


def packed_stem(kernel: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A 3x3 stride-2 convolution on BGR -> the same on packed YUV: weight [4 * C, 24, 3, 3], bias [4 * C].

    Everything up to the first activation is linear, so that impulses tell the whole. Output channel p * C + c is
    channel c at phase p of the 2x2 phases in a quarter-grid cell.
    """
    channels = kernel.shape[0]

    def respond(packed: Tensor) -> Tensor:
        fine = F.conv2d(linear_bgr(packed), kernel, bias, stride=2, padding=1)
        phases = F.pixel_unshuffle(fine, 2)
        count, _, height, width = phases.shape
        return phases.reshape(count, channels, 4, height, width).transpose(1, 2).reshape(count, -1, height, width)

    rest = respond(torch.zeros(1, 24, 7, 7))
    impulses = torch.zeros(24, 24, 7, 7)
    impulses[torch.arange(24), torch.arange(24), 3, 3] = 1.0
    response = respond(impulses) - rest
    weight = response[:, :, 2:5, 2:5].flip(2, 3).transpose(0, 1).contiguous()
    return weight, rest[0, :, 3, 3].contiguous()
