"""The frozen SigLIP 2 image tower that SCENE takes its semantic prior from: a local folder, one embedding a clip.

SCENE (arXiv 2601.22189) uses SigLIP 2 So400M. Nothing is ever fetched: the folder holds `config.json` and
`model.safetensors` as `transformers` writes them, of the whole model or of its image tower alone. Its checkpoints of
fixed size (patch14-224, patch14-384, patch16-256 .. 512) are meant; NaFlex ones are another class.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from scene_edge.codec.errors import ConfigError, FormatError
from scene_edge.models.layers import from_packed, packed_to_bgr

WEIGHTS = "model*.safetensors"


class Siglip(nn.Module):
    """Packed float picture [B, 24, h, w] in 0..1 -> pooled embedding [B, `width`]; frozen."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError where `transformers` or the folder is missing, FormatError for another model in it."""
        super().__init__()
        self.tower = _load(folder)
        self.width: int = self.tower.config.hidden_size
        self.side: int = self.tower.config.image_size

    @torch.no_grad()
    def forward(self, picture: Tensor) -> Tensor:
        embedding: Tensor = self.tower(pixel_values=self.pixels(picture)).pooler_output
        return embedding.float()

    def pixels(self, picture: Tensor) -> Tensor:
        """RGB in -1..1, [B, 3, side, side]: the whole picture, squeezed into a square as the model was trained."""
        rgb = packed_to_bgr(picture).flip(1)
        scaled = F.interpolate(rgb, (self.side, self.side), mode="bilinear", antialias=True, align_corners=False)
        return scaled / 127.5 - 1.0


def _load(folder: Path) -> Any:
    """The image tower, in evaluation mode and without gradients."""
    if not (folder / "config.json").is_file() or not sorted(folder.glob(WEIGHTS)):
        raise ConfigError(
            "no SigLIP 2 there",
            got=str(folder),
            allowed=f"a folder with config.json and {WEIGHTS}",
            hint="Copy a SigLIP 2 So400M checkpoint to that folder; nothing is downloaded.",
        )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported
    try:
        from transformers import SiglipVisionModel
        from transformers.utils import logging
    except ImportError as error:
        raise ConfigError(
            "SigLIP 2 needs transformers", got=str(error), hint="Install it: pip install 'scene-edge[siglip]'"
        ) from error
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        tower, report = SiglipVisionModel.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise FormatError(f"{folder} is no SigLIP checkpoint", got=str(error).splitlines()[0]) from error
    if report["missing_keys"]:  # they would be random
        raise FormatError(f"{folder} lacks weights of SigLIP's image tower", got=min(report["missing_keys"]))
    return tower.eval().requires_grad_(False)


def clip_embeddings(cache: Path, clips: list[NDArray[np.uint8]], folder: Path) -> NDArray[np.float32]:
    """One embedding for each clip [clips, width], of its middle frame; kept in the folder `cache` beside the clips.

    `clips` are packed u8 [T, h, w, 24], in the order of the cache's index. Other weights have another file. Raises as
    `Siglip` does.
    """
    path = cache / f"siglip-{_digest(folder)}.npy"
    if path.is_file():
        kept: NDArray[np.float32] = np.load(path)
        if len(kept) == len(clips):
            return kept
    model = Siglip(folder)
    middle = [torch.from_numpy(np.array(clip[len(clip) // 2])[None]) for clip in clips]
    found = np.concatenate([model(from_packed(picture)).numpy() for picture in middle])
    partial = path.with_suffix(".part.npy")
    np.save(partial, found)
    partial.replace(path)
    return found


def _digest(folder: Path) -> str:
    """Of the configuration and all weights; that of a folder without any is refused when it is loaded."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("config.json"), *folder.glob(WEIGHTS)]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:12]
