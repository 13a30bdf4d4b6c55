"""SCENE at its published size, 1.3 M parameters, behind the same packed pictures as `scene-s`; and its baseline.

SCENE (arXiv 2601.22189): PixelUnshuffle, 3x3, two assembled blocks, 3x3, PixelShuffle. Each output channel c of an
assembled convolution has the kernel K_c = sum_i a_{c,i} k_i over E = 4 base kernels. Block 1 takes its coefficients
from the frozen SigLIP 2 So400M embedding of the scene (1152 values), block 2 from its own features; both through a
control module of two 1x1 convolutions with ReLU between them. The baseline, after AsConvSR (NTIRE 2023), is the same
network with coefficients from its own features in both blocks: its first control module is made wide enough that both
have the same size. What the paper leaves open is chosen so that the count agrees with its 1.4 M:

    stem and head                      7 k   3x3, 6 <-> 64 channels
    assembled blocks        2 x  443 k   three 3x3 of 64 channels each, as in AsConvSR, with the same coefficients
    control of block 1                406 k   1152 -> 288 -> 256 (baseline: 64 -> 1264 -> 256)
    control of block 2                 21 k   64 -> 64 -> 256, from the mean over the picture
    together                        1,320 k

Colours stay YUV: 4:2:0 is six channels at half size, Y unshuffled by 2 beside U and V, where the paper has twelve of
RGB. Nothing of it is made for cameras.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scene_edge.models.blocks import from_planes, to_planes
from scene_edge.models.layers import conv, start_at_zero

EMBEDDING = 1152
"""Values of SigLIP 2 So400M's pooled output."""


@dataclass(frozen=True)
class ScenePaperConfig:
    """Width, base kernels E, convolutions of a block, widths of the control modules; `semantic` False: the baseline."""

    semantic: bool = True
    width: int = 64
    bases: int = 4
    convolutions: int = 3
    embedding: int = EMBEDDING
    semantic_hidden: int = 288
    own_hidden: int = 64
    baseline_hidden: int = 1264

    @property
    def coefficients(self) -> int:
        """Coefficients of one block: E for each output channel."""
        return self.bases * self.width

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def half_picture(packed: Tensor) -> Tensor:
    """Packed [B, 24, h, w] -> six channels at half the picture's size [B, 6, 2h, 2w]: Y unshuffled by 2, U, V."""
    y, u, v = to_planes(packed)
    return torch.cat([F.pixel_unshuffle(y, 2), u, v], 1)


def packed_from_half(half: Tensor) -> Tensor:
    """The inverse of `half_picture`."""
    return from_planes([F.pixel_shuffle(half[:, :4], 2), half[:, 4:5], half[:, 5:]])


class Control(nn.Module):
    """The control module: [B, C, 1, 1] -> 1x1, ReLU, 1x1 -> coefficients [B, E * width, 1, 1]."""

    def __init__(self, inputs: int, hidden: int, config: ScenePaperConfig) -> None:
        super().__init__()
        self.hidden = conv(inputs, hidden, 1)
        self.head = conv(hidden, config.coefficients, 1)
        with torch.no_grad():  # at first every scene gets the plain sum of the base kernels, at unit variance
            self.head.weight.mul_(0.1)
            self.head.bias.fill_(config.bases**-0.5)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.relu(self.hidden(x)))
        return out


class FoldedConv(nn.Module):
    """3x3 convolution whose kernels are assembled before they are used, for each sample: the paper's K_c.

    At this width the picture is far larger than the kernels, so it is cheaper to assemble those than to convolve with
    every base as `scene.AssembledConv` does, whose coefficients stay an input of an exported graph.
    """

    def __init__(self, width: int, bases: int) -> None:
        super().__init__()
        plain = conv(width, bases * width, bias=False)
        self.weight, self.bias = plain.weight, nn.Parameter(torch.zeros(bases * width))

    def forward(self, x: Tensor, coefficients: Tensor) -> Tensor:
        """x [B, C, h, w], coefficients [B, E * C, 1, 1], base by base -> [B, C, h, w]."""
        batch, width = x.shape[:2]
        mixed = coefficients.reshape(batch, -1, width)
        weight = torch.einsum("bec,ecikl->bcikl", mixed, self.weight.unflatten(0, (-1, width))).to(x.dtype)
        bias = torch.einsum("bec,ec->bc", mixed, self.bias.unflatten(0, (-1, width))).to(x.dtype)
        side_by_side = x.reshape(1, -1, *x.shape[2:])  # each sample is a group, with kernels of its own
        y = F.conv2d(side_by_side, weight.flatten(0, 1), bias.flatten(), padding=1, groups=batch)
        return y.reshape(x.shape)


class AssembledBlock(nn.Module):
    """Assembled convolutions with the same coefficients, ReLU between them, around a residual: the same shape."""

    def __init__(self, config: ScenePaperConfig) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(FoldedConv(config.width, config.bases) for _ in range(config.convolutions))
        with torch.no_grad():  # the residual starts small
            self.convolutions[-1].weight.mul_(0.1)  # type: ignore[operator]

    def forward(self, x: Tensor, coefficients: Tensor) -> Tensor:
        inner = x
        for index, layer in enumerate(self.convolutions):
            inner = layer(F.relu(inner) if index else inner, coefficients)
        return F.relu(x + inner)


class ScenePaper(nn.Module):
    """The published SCENE, or with `semantic` False its baseline; starts as the identity.

    Used as `scene.SceneNet`: `prior` makes coefficients of what is known of the scene, `forward` filters.
    """

    def __init__(self, config: ScenePaperConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ScenePaperConfig()
        self.stem = conv(6, config.width)
        self.first, self.second = AssembledBlock(config), AssembledBlock(config)
        if config.semantic:
            self.prior = Control(config.embedding, config.semantic_hidden, config)
        else:
            self.own = Control(config.width, config.baseline_hidden, config)
        self.control = Control(config.width, config.own_hidden, config)
        self.head = conv(config.width, 6)
        start_at_zero(self.head)

    def forward(self, x: Tensor, coefficients: Tensor | None) -> Tensor:
        """Packed [B, 24, h, w] in 0..1 and block 1's coefficients [B or 1, 256, 1, 1] -> packed [B, 24, h, w].

        The baseline is given no coefficients.
        """
        feature = F.relu(self.stem(half_picture(x) - 0.5))
        if coefficients is None:
            coefficients = self.own(feature.mean((2, 3), keepdim=True))
        feature = self.first(feature, coefficients.expand(len(x), -1, -1, -1))
        feature = self.second(feature, self.control(feature.mean((2, 3), keepdim=True)))
        return x + packed_from_half(self.head(feature))
