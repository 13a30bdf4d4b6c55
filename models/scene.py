"""SCENE for cameras: a pre-filter over packed YUV 4:2:0 whose kernels are assembled from a semantic prior.

After SCENE (arXiv 2601.22189): each output channel c of an assembled convolution has the kernel
K_c = sum_i a_{c,i} k_i over E base kernels; the coefficients come from a scene embedding through two 1x1 layers.
Ours works on planes at a quarter of the size, takes its embedding from a thumbnail through a small network of its
own, and lets both blocks follow it: the embedding is refreshed about once a second, the filter runs on each frame.
They follow the codec's quantiser as well, which SCENE's do not: what is worth bringing out at one is lost at another.
Since a convolution is linear, sum_i a_{c,i} (k_i * x) equals K_c * x: training keeps the sum outside, where the
coefficients are an input; a camera folds them into the kernels (`FoldedScene`), which it changes with the scene.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scene_edge.models.layers import conv, from_packed, start_at_zero, to_packed

THUMB = (18, 32)
"""Packed rows and columns of the thumbnail: 128 x 72 luma samples."""


CENTRE, UNIT = 35.0, 10.0
COARSENESS = (23.0, 47.0)
"""Quantisers (CRF) that the filter knows: what lies beyond is taken for the nearest."""

PACKED = 24
"""Channels of a packed picture."""


@dataclass(frozen=True)
class SceneConfig:
    """Width of the filter, number of base kernels E, size of the embedding; `scene-m` is the default.

    For comparison alone: the last `own` blocks take their coefficients from their own features, one as in SCENE, both
    as in AsConvSR; `temporal`: the filter sees its last output as well. No bundle is made of these.
    """

    width: int = 32
    bases: int = 4
    blocks: int = 2
    embedding: int = 64
    own: int = 0
    temporal: bool = False

    @property
    def coefficients(self) -> int:
        return self.blocks * self.bases * self.width

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class AssembledConv(nn.Module):
    """3x3 convolution with kernels assembled per output channel: x [B, C, h, w], a [B, E * C, 1, 1] -> [B, C, h, w]."""

    mix: Tensor

    def __init__(self, width: int, bases: int) -> None:
        super().__init__()
        self.base = conv(width, width * bases)
        # the sum over the bases as a 1x1 convolution: every engine runs it faster than slices and additions
        self.register_buffer("mix", torch.eye(width).repeat(1, bases)[..., None, None], persistent=False)

    def forward(self, x: Tensor, coefficients: Tensor) -> Tensor:
        return F.conv2d(self.base(x) * coefficients, self.mix)


class ScenePrior(nn.Module):
    """Thumbnail [B, 24, 18, 32] -> coefficients [B, K, 1, 1]: embedding, then 1x1 - ReLU - 1x1 (the control module)."""

    def __init__(self, config: SceneConfig) -> None:
        super().__init__()
        self.stem = conv(24, 32, stride=2)
        self.body = conv(32, 48, stride=2)
        self.embed = conv(48, config.embedding)
        self.hidden = conv(config.embedding, config.embedding, 1)
        self.head = conv(config.embedding, config.coefficients, 1)
        _start_as_sum(self.head, config)

    def forward(self, thumb: Tensor) -> Tensor:
        x = F.relu(self.body(F.relu(self.stem(thumb - 0.5))))
        x = F.relu(self.embed(x)).mean((2, 3), keepdim=True)
        out: Tensor = self.head(F.relu(self.hidden(x)))
        return out


class Coarseness(nn.Module):
    """What the codec's quantiser adds to a scene's coefficients: q -> controls [1, K + 24, 1, 1].

    A polynomial of second degree in q, so that a camera needs no network for it. The last 24 are by what the residual
    of each packed channel is multiplied, less 1.
    """

    def __init__(self, config: SceneConfig) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.zeros(2, config.coefficients + PACKED))

    def forward(self, crf: float) -> Tensor:
        far = (min(max(crf, COARSENESS[0]), COARSENESS[1]) - CENTRE) / UNIT
        return (far * self.slopes[0] + far * far * self.slopes[1])[None, :, None, None]


class OwnControl(nn.Module):
    """Coefficients of one block from the mean of its own features: [B, C, 1, 1] -> [B, E * C, 1, 1] (AsConvSR)."""

    def __init__(self, config: SceneConfig) -> None:
        super().__init__()
        self.hidden = conv(config.width, config.embedding, 1)
        self.head = conv(config.embedding, config.bases * config.width, 1)
        _start_as_sum(self.head, config)

    def forward(self, mean: Tensor) -> Tensor:
        out: Tensor = self.head(F.relu(self.hidden(mean)))
        return out


def _start_as_sum(head: nn.Conv2d, config: SceneConfig) -> None:
    """At first every scene gets the plain sum of the base kernels, at unit variance."""
    with torch.no_grad():
        head.weight.mul_(0.1)
        cast(Tensor, head.bias).fill_(config.bases**-0.5)


class SceneNet(nn.Module):
    """Picture [B, 24, h, w] in 0..1 and controls [B, K + 24, 1, 1] -> filtered picture; starts as the identity."""

    def __init__(self, config: SceneConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SceneConfig()
        self.prior = ScenePrior(config)
        self.coarseness = Coarseness(config)
        self.stem = conv(PACKED * (1 + config.temporal), config.width)
        self.assembled = nn.ModuleList(AssembledConv(config.width, config.bases) for _ in range(config.blocks))
        self.plain = nn.ModuleList(conv(config.width, config.width) for _ in range(config.blocks))
        self.head = conv(config.width, PACKED)
        start_at_zero(self.head)
        self.own = nn.ModuleList(OwnControl(config) for _ in range(config.own))

    def controls(self, coefficients: Tensor, crf: float) -> Tensor:
        """The scene's coefficients [B, K, 1, 1], from `prior`, and the codec's CRF -> controls [B, K + 24, 1, 1]."""
        known = (self.config.blocks - self.config.own) * self.config.bases * self.config.width
        coefficients = F.pad(coefficients[:, :known], (0, 0, 0, 0, 0, coefficients.shape[1] - known))
        return F.pad(coefficients, (0, 0, 0, 0, 0, PACKED), value=1.0) + self.coarseness(crf)

    def forward(self, x: Tensor, controls: Tensor, before: Tensor | None = None) -> Tensor:
        """`before` is the last output, where the network is `temporal`; at first, when there is none, x stands in."""
        given = torch.cat([x, x if before is None else before], 1) if self.config.temporal else x
        feature = F.relu(self.stem(given - 0.5))
        size = self.config.bases * self.config.width
        for index, (assembled, plain) in enumerate(zip(self.assembled, self.plain, strict=True)):
            part = controls[:, index * size : (index + 1) * size]
            if (own := index - self.config.blocks + self.config.own) >= 0:
                part = part + self.own[own](feature.mean((2, 3), keepdim=True))
            feature = F.relu(feature + plain(F.relu(assembled(feature, part))))
        out: Tensor = x + self.head(feature) * controls[:, -PACKED:]
        return out


class FoldedScene(nn.Module):
    """SceneNet for one scene: with `controls` [1, K + 24, 1, 1] known, assembled convolutions are plain ones.

    A quarter of the work for E = 4. What changes from scene to scene is `kernels()`, and nothing else.
    """

    def __init__(self, net: SceneNet, controls: Tensor) -> None:
        super().__init__()
        self.stem, self.plain, self.head = net.stem, net.plain, conv(net.config.width, PACKED)
        coefficients, gains = controls[:, :-PACKED], controls.flatten()[-PACKED:]
        with torch.no_grad():
            self.head.weight.copy_(net.head.weight * gains[:, None, None, None])
            cast(Tensor, self.head.bias).copy_(cast(Tensor, net.head.bias) * gains)
        width, bases = net.config.width, net.config.bases
        self.assembled = nn.ModuleList()
        for layer, part in zip(net.assembled, coefficients.reshape(-1, bases, width), strict=True):
            base = cast(AssembledConv, layer).base
            folded = conv(width, width)
            with torch.no_grad():
                weights = base.weight.reshape(bases, width, *base.weight.shape[1:])
                folded.weight.copy_((weights * part[..., None, None, None]).sum(0))
                cast(Tensor, folded.bias).copy_((cast(Tensor, base.bias).reshape(bases, width) * part).sum(0))
            self.assembled.append(folded)

    def forward(self, x: Tensor) -> Tensor:
        feature = F.relu(self.stem(x - 0.5))
        for assembled, plain in zip(self.assembled, self.plain, strict=True):
            feature = F.relu(feature + plain(F.relu(assembled(feature))))
        out: Tensor = x + self.head(feature)
        return out

    def kernels(self) -> dict[str, nn.Conv2d]:
        """The convolutions that follow the scene, and the last, which says how strong the filter is; by the names of
        their layers in a bundle."""
        following = {f"assembled{index}": cast(nn.Conv2d, layer) for index, layer in enumerate(self.assembled)}
        return {**following, "head": self.head}


class SceneFilterGraph(nn.Module):
    """The graph run on each frame: x u8 [B, h, w, 24] -> y u8 [B, h, w, 24]."""

    def __init__(self, net: FoldedScene) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return to_packed(self.net(from_packed(x)))


class ScenePriorGraph(nn.Module):
    """The graph run about once a second: thumb u8 [B, 18, 32, 24] -> coefficients [B, K, 1, 1]."""

    def __init__(self, net: SceneNet) -> None:
        super().__init__()
        self.prior = net.prior

    def forward(self, thumb: Tensor) -> Tensor:
        out: Tensor = self.prior(from_packed(thumb))
        return out
