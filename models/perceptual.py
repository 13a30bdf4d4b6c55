"""What a picture must look like: its distance in a frozen classifier's features, and an adversary that tells it apart.

SMC (TPAMI 2025), equation 6: L_lpips + L_GAN, "following" Esser et al. (CVPR 2021), whose adversary judges patches and
learns by the hinge loss. LPIPS's own networks are larger and not at hand: here the features are those of a
ShuffleNetV2 (x0.5), and its learnt weights of channels are replaced by relative distances. Only trained with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm

from scene_edge.codec.errors import ConfigError, FormatError
from scene_edge.codec.planes import PACKED_CHANNELS
from scene_edge.models.backbone import Backbone, DownUnit, packed_stem

BATCH_NORM_EPS = 1e-5


def load_shufflenet(trunk: Backbone, path: Path) -> None:
    """Weights of a ShuffleNetV2 x0.5 state dict (BGR in 0..1, batch norms beside convolutions), folded into `trunk`.

    Raises ConfigError without the file, FormatError where it holds another network.
    """
    if not path.is_file():
        raise ConfigError("no such weights", got=str(path), hint="Turn the perceptual term off, or name another file.")
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        first = _folded(state, "first_conv.0", "first_conv.1")
        pairs = [_folded(state, *names) for names in _names(trunk)]
        weight, bias = packed_stem(*first)
        with torch.no_grad():
            trunk.stem.load_state_dict({"weight": weight, "bias": bias})
            for target, (kernel, offset) in zip(trunk.convolutions(), pairs, strict=True):
                target.load_state_dict({"weight": kernel, "bias": offset})
    except (KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise FormatError(
            f"{path} is no ShuffleNetV2 x0.5", got=str(error).splitlines()[0], allowed="first_conv, stage2 .. stage4"
        ) from error


def _names(trunk: Backbone) -> list[tuple[str, str]]:
    """Names of every convolution and its batch norm, in the order of `trunk.convolutions()`."""
    names = []
    for number, stage in enumerate(trunk.stages):
        for index, unit in enumerate(stage):
            prefix = f"stage{number + 2}.{index}"
            if isinstance(unit, DownUnit):
                names += [(f"{prefix}.branch_proj.{at}", f"{prefix}.branch_proj.{at + 1}") for at in (0, 2)]
            names += [(f"{prefix}.branch_main.{at}", f"{prefix}.branch_main.{at + 1}") for at in (0, 3, 5)]
    return names


def _folded(state: dict[str, Tensor], convolution: str, norm: str) -> tuple[Tensor, Tensor]:
    """A convolution's weight and bias with its batch norm's running statistics folded in."""
    gain = state[f"{norm}.weight"] * (state[f"{norm}.running_var"] + BATCH_NORM_EPS).rsqrt()
    bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
    return state[f"{convolution}.weight"] * gain[:, None, None, None], bias


class FeatureDistance(nn.Module):
    """Packed pictures [B, 24, h, w] in 0..1 -> their distance in the frozen features, 0 for the same picture.

    Mean over the strides 8, 16 and 32 of |f(picture) - f(original)| / |f(original)|, both averaged over the batch.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.trunk = Backbone()
        load_shufflenet(self.trunk, weights)
        self.trunk.requires_grad_(False)
        self.trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, picture: Tensor, original: Tensor) -> Tensor:
        with torch.no_grad():
            truths = self._features(original)
        seen = self._features(picture)
        distances = [
            (value.float() - truth.float()).abs().mean() / (truth.float().abs().mean() + 1e-6)
            for value, truth in zip(seen, truths, strict=True)
        ]
        return torch.stack(distances).mean()

    def _features(self, picture: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.trunk(picture.permute(0, 2, 3, 1) * 255.0)  # the trunk's input is u8 in shape
        return features


class Adversary(nn.Module):
    """A patch discriminator over packed pictures [B, 24, h, w], with the optimiser that only it uses.

    Its parameters receive gradients from `step` alone, so that an optimiser over a whole objective leaves them as they
    are. Spectral normalisation keeps its verdicts, [B, 1, h/8, w/8], in proportion to what it sees. The optimiser's
    state is part of `state_dict`.
    """

    def __init__(self, width: int = 32, learning_rate: float = 2e-4) -> None:
        super().__init__()
        sizes = ((PACKED_CHANNELS, width, 3, 2), (width, 2 * width, 3, 2), (2 * width, 2 * width, 3, 1))
        layers: list[nn.Module] = []
        for inputs, outputs, kernel, stride in sizes:
            convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
            layers += [spectral_norm(convolution), nn.LeakyReLU(0.2)]
        self.critic = nn.Sequential(*layers, spectral_norm(nn.Conv2d(2 * width, 1, 1)))
        self.optimiser = torch.optim.Adam(self.critic.parameters(), learning_rate, betas=(0.5, 0.9))

    def generator_loss(self, fused: Tensor) -> Tensor:
        """-mean verdict on the fused pictures; gradients reach `fused`, not the discriminator."""
        # copies: a step of the discriminator before the backward pass must not spoil the graph
        frozen = {name: value.detach().clone() for name, value in self.critic.named_parameters()}
        verdicts: Tensor = functional_call(self.critic, frozen, (fused - 0.5,))
        return -verdicts.float().mean()

    def discriminator_loss(self, original: Tensor, fused: Tensor) -> Tensor:
        """Hinge: mean max(0, 1 - D(original)) + mean max(0, 1 + D(fused)); nothing reaches `fused`."""
        verdicts: Tensor = self.critic(torch.cat([original, fused]).detach() - 0.5)
        real, made = verdicts.float().chunk(2)
        return F.relu(1.0 - real).mean() + F.relu(1.0 + made).mean()

    def step(self, original: Tensor, fused: Tensor) -> float:
        """One step of the discriminator by its own optimiser; returns its loss before the step."""
        loss = self.discriminator_loss(original, fused)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return float(loss.detach())

    def get_extra_state(self) -> dict[str, Any]:
        """The optimiser's state; torch keeps it in `state_dict`."""
        return self.optimiser.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.optimiser.load_state_dict(state)
