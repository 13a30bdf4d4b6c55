"""Small networks of the shapes that ship: a filter whose kernels change, and an encoder with a state."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from scene_edge.codec.kernels import Kernel
from scene_edge.models.layers import CausalTemporal, ResBlock, from_packed, to_packed
from scene_edge.models.registry import GraphExport

WIDTH, LATENT = 16, 8


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """With torch's own initial weights: bounds in tests do not depend on how the real networks start."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)


class ToyFilter(nn.Module):
    """x u8 [1, h, w, 24] -> y u8: nearly the identity, as SCENE is. The kernels in its middle may be changed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(24, WIDTH)
        self.middle = conv(WIDTH, WIDTH)
        self.head = conv(WIDTH, 24)
        with torch.no_grad():
            self.head.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        picture = from_packed(x)
        feature = F.relu(self.stem(picture - 0.5))
        return to_packed(picture + self.head(F.relu(feature + self.middle(feature))))

    def kernels(self) -> dict[str, Kernel]:
        bias = self.middle.bias
        assert bias is not None
        return {"middle": Kernel(self.middle.weight.detach().numpy(), bias.detach().numpy())}


class ToyEncoder(nn.Module):
    """x, lossy u8 [1, h, w, 24], state_sem [1, 48, h/4, w/4] -> latent [1, 8, h/4, w/4], next_sem; as SMC's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(24, 16, stride=2)
        self.down = conv(16, 24, stride=2)
        self.temporal = CausalTemporal(24)
        self.body = ResBlock(24)
        self.mix = conv(48, 24, 1)
        self.head = conv(24, LATENT, 1)

    def forward(self, x: Tensor, lossy: Tensor, state_sem: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.down(F.relu(self.stem(from_packed(lossy) - 0.5)))
        feature, state = self.temporal(F.relu(self.down(F.relu(self.stem(from_packed(x) - 0.5)))), state_sem)
        wide = F.interpolate(torch.cat([feature - seen, feature], 1), scale_factor=2.0, mode="nearest")
        return self.head(self.body(F.avg_pool2d(self.mix(wide), 2))) * 20.0, state


def picture(random: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint8]:
    """A smooth packed picture with some noise."""
    ramp = np.linspace(30, 200, rows)[:, None, None] + np.linspace(-20, 20, columns)[None, :, None]
    noisy = ramp + random.normal(0, 12, (rows, columns, 24)) + random.normal(0, 20, (1, 1, 24))
    return np.asarray(np.clip(noisy, 0, 255), np.uint8)[None]


def filter_sample(seed: int, rows: int = 24, columns: int = 40) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(seed)
    return {"x": picture(random, rows, columns)}


def encoder_sample(seed: int, rows: int = 24, columns: int = 40) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(seed)
    x = picture(random, rows, columns)
    lossy = np.clip(x.astype(np.int16) + random.integers(-6, 7, x.shape), 0, 255).astype(np.uint8)
    state = np.abs(random.normal(0, 0.1, (1, 48, rows // 4, columns // 4))).astype(np.float32)
    return {"x": x, "lossy": lossy, "state_sem": state}


def toy_graphs(samples: int = 12) -> dict[str, GraphExport]:
    """Both graphs, seeded, with calibration samples and two sizes for LiteRT."""
    torch.manual_seed(3)
    graphs = {}
    for name, module, sample, outputs in (
        ("filter", ToyFilter(), filter_sample, ["y"]),
        ("encoder", ToyEncoder(), encoder_sample, ["latent", "next_sem"]),
    ):
        sizes = [{key: value.shape for key, value in sample(0, *size).items()} for size in ((24, 40), (32, 48))]
        calibration = [sample(seed) for seed in range(samples)]
        kernels = module.kernels() if isinstance(module, ToyFilter) else {}
        graphs[name] = GraphExport(module.eval(), list(sample(0).items()), outputs, calibration, sizes, kernels)
    return graphs
