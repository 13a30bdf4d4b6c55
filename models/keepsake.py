"""Weights of a training run as a bundle keeps them to go on from: 8 bits a value and a scale for each output channel.

A quarter of the size of floats, and within half a step of them: enough to start from where the run itself is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from scene_edge.codec.errors import FormatError

FILE = "weights.safetensors"
_SCALE = ".scale"


def to_bytes(weights: Mapping[str, Tensor]) -> bytes:
    """Weights by name -> the file. What has one dimension stays in half precision."""
    kept: dict[str, Tensor] = {}
    for name, value in weights.items():
        if value.dim() < 2:
            kept[name] = value.half()
            continue
        rows = value.float().flatten(1)
        scale = (rows.abs().amax(1) / 127).clamp_min(1e-12)
        kept[name] = (rows / scale[:, None]).round().to(torch.int8).view(value.shape)
        kept[name + _SCALE] = scale
    return save(kept)


def from_file(path: Path) -> dict[str, Tensor]:
    """The weights as float32. Raises FormatError for any other file."""
    try:
        kept = load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise FormatError(f"{path} holds no weights", got=str(error).splitlines()[0]) from error
    weights = {}
    for name, value in kept.items():
        if name.endswith(_SCALE):
            continue
        weights[name] = value.float()
        if value.dtype == torch.int8:
            if name + _SCALE not in kept:
                raise FormatError(f"{path} lacks a scale", got=name)
            weights[name] *= kept[name + _SCALE].view(-1, *[1] * (value.dim() - 1))
    return weights
