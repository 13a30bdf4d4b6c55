"""Going on from what another run has learnt."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from scene_edge.codec.errors import ConfigError, FormatError
from scene_edge.models import keepsake
from scene_edge.models.layers import ResBlock, start_at_zero


def load_start(model: nn.Module, path: Path) -> set[str]:
    """Take over the averaged weights of a run, as far as names and shapes agree; returns the names.

    Residual blocks that the other run had not begin as nothing, so that a deeper network is first as good as it was.
    `path` is the folder of a run, or of a bundle that was made of one. Raises ConfigError without a checkpoint,
    FormatError where nothing fits.
    """
    state, kept = path / "state.pt", path / keepsake.FILE
    if state.is_file():
        found = torch.load(state, weights_only=True, map_location="cpu")["average"]
    elif kept.is_file():
        found = keepsake.from_file(kept)
    else:
        raise ConfigError(
            "no checkpoint to start from", got=str(path), hint="Give the folder of a run or of its bundle."
        )
    own = model.state_dict()
    fitting = {key: value for key, value in found.items() if key in own and own[key].shape == value.shape}
    if not fitting:
        raise FormatError(
            f"nothing of {path} fits", got=", ".join(list(found)[:3]), hint="Is it a run of another network?"
        )
    model.load_state_dict({**own, **fitting})
    for name, block in model.named_modules():
        if isinstance(block, ResBlock) and f"{name}.second.weight" not in fitting:
            start_at_zero(block.second)
    return set(fitting)
