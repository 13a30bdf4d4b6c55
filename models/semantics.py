"""What SMC calls meaning: Sem-Net, a pretrained detector's body, and the head that says what its feature S claims.

S is the last feature of a FastestDet (dog-qiuqiu, BSD-3-Clause) that all its verdicts are read from, at stride 16. So a
difference of two S is a difference of verdicts, one to one, and what the codec took from it is what a detector would
miss. Taught on 118,000 pictures, it knows far more than our few training scenes could teach.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scene_edge.models.backbone import STAGES, Backbone
from scene_edge.models.layers import CausalTemporal
from scene_edge.models.objectives import weighed

SEMANTIC = 96
"""Channels of S."""

CLASSES = 80
"""COCO's, in its order."""

CLAIMS = 5 + CLASSES
"""Channels of what an S claims: objectness, box, classes."""

_PYRAMID = ((0,), (1, 2), (3, 4, 5))
"""Depth-wise 5x5 convolutions of the three branches behind the joined features."""


class SemNet(nn.Module):
    """Picture [B, 24, h, w], state [B, 2 * SEMANTIC, h/4, w/4] -> S [B, SEMANTIC, h/4, w/4] and the next state.

    ShuffleNetV2 at half width, its three scales joined at stride 16, and a pyramid of 5x5 convolutions. The causal
    temporal convolution (SMC, section 4.1) comes last and starts as nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Backbone(exact=True)
        self.join = nn.Conv2d(sum(channels for channels, _ in STAGES), SEMANTIC, 1)
        self.pyramid = nn.ModuleList(nn.Conv2d(SEMANTIC, SEMANTIC, 5, 1, 2, groups=SEMANTIC) for _ in range(6))
        self.mix = nn.Conv2d(3 * SEMANTIC, SEMANTIC, 1)
        self.temporal = CausalTemporal(SEMANTIC)
        nn.init.zeros_(self.temporal.older.weight)
        nn.init.zeros_(self.temporal.newer.weight)

    def look(self, picture: Tensor) -> Tensor:
        """The feature of one picture, without memory: [B, SEMANTIC, h/4, w/4], none negative."""
        fine, middle, coarse = self.trunk.features(picture)
        joined = [F.avg_pool2d(fine, 3, 2, 1), middle, F.interpolate(coarse, scale_factor=2.0, mode="nearest")]
        y = F.relu(self.join(torch.cat(joined, 1)))
        branches = []
        for branch in _PYRAMID:
            part = y
            for index in branch:
                part = F.relu(self.pyramid[index](part))
            branches.append(part)
        return F.relu(y + self.mix(torch.cat(branches, 1)))

    def forward(self, picture: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        after: tuple[Tensor, Tensor] = self.temporal(self.look(picture), state)
        return after

    def convolutions(self) -> list[nn.Conv2d]:
        """Those behind the trunk, in the order in which FastestDet computes them."""
        return [layer for layer in (self.join, *self.pyramid, self.mix) if isinstance(layer, nn.Conv2d)]


class Branch(nn.Module):
    """A depth-wise 5x5 convolution and a 1x1."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.near = nn.Conv2d(SEMANTIC, SEMANTIC, 5, 1, 2, groups=SEMANTIC)
        self.out = nn.Conv2d(SEMANTIC, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(F.relu(self.near(x)))
        return out


class Verdicts(nn.Module):
    """S [B, SEMANTIC, h, w] -> objectness [B, 1, h, w], box [B, 4, h, w] raw, classes [B, CLASSES, h, w] as logits.

    The frozen head of the same detector: what S is measured by in training, and what F-Net is told.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(SEMANTIC, SEMANTIC, 1)
        self.objectness, self.box, self.classes = Branch(1), Branch(4), Branch(CLASSES)

    def forward(self, semantic: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = F.relu(self.shared(semantic))
        return self.objectness(y), self.box(y), self.classes(y)

    def claims(self, semantic: Tensor) -> Tensor:
        """[B, CLAIMS, h, w]: objectness 0..1, and, as far as there is an object, its box (`place`) and its classes."""
        objectness, box, classes = self(semantic)
        there = objectness.sigmoid()
        return torch.cat([there, there * place(box), there * classes.softmax(1)], 1)

    def convolutions(self) -> list[nn.Conv2d]:
        """In the order in which FastestDet computes them."""
        branches = (self.objectness, self.box, self.classes)
        return [self.shared, *(layer for branch in branches for layer in (branch.near, branch.out))]

    def distance(self, seen: Tensor, truth: Tensor) -> Tensor:
        """How far the verdicts of one S are from those of another: [B], 0 for the same.

        Excess cross entropy of objectness everywhere; of classes, and the boxes' L1, where the truth has objects.
        """
        objectness, box, classes = (value.float() for value in self(seen))
        with torch.no_grad():
            true_objectness, true_box, true_classes = (value.float() for value in self(truth))
            wanted = true_objectness.sigmoid()
            floor = F.binary_cross_entropy(wanted, wanted, reduction="none")
        excess = F.binary_cross_entropy_with_logits(objectness, wanted, reduction="none") - floor
        excess = weighed(excess, objectness.sigmoid(), wanted)
        where = wanted * (wanted > 0.05)
        divergence = F.kl_div(classes.log_softmax(1), true_classes.log_softmax(1), reduction="none", log_target=True)
        off = (place(box) - place(true_box)).abs().sum(1, keepdim=True)
        inside = (divergence.sum(1, keepdim=True) + off) * where
        total = (excess + inside).sum((1, 2, 3)) / (where.sum((1, 2, 3)) + 2.0)
        return torch.log1p(total.clamp_min(0.0))  # one hopeless crop must not outshout the batch


def place(box: Tensor) -> Tensor:
    """Raw boxes [B, 4, h, w] -> the centre's offset in cells, and the logarithms of the sides over 352 samples."""
    return torch.cat([torch.tanh(box[:, :2]), F.logsigmoid(box[:, 2:])], 1)


def load_fastestdet(sem_net: SemNet, verdicts: Verdicts, path: Path) -> None:
    """Fill both from a FastestDet ONNX file. Raises FormatError for another file."""
    sem_net.trunk.load_fastestdet(path, [*sem_net.convolutions(), *verdicts.convolutions()])
