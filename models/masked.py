"""Masked prediction of the decoded video, the objective with which SMC learns semantics without labels.

SMC (TPAMI 2025), section 3.2: the decoded video is cut into patches of 16x16 luma samples, each becomes a token by a
linear embedding whose tail rounds; most tokens are hidden, and a transformer foretells the hidden patches of the
*original* from the rest (equation 1). What a fused picture does not tell of its surroundings costs here. As in
VideoMAE, the hidden places are the same in all frames of a clip (a tube), so that nothing can be copied over time. The
motion term (equation 2) belongs to SMC++ and is not here. Only trained with; nothing of it ships.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scene_edge.codec.errors import ConfigError, FormatError
from scene_edge.codec.planes import PACKED_CHANNELS

CELL = 4
"""Packed cells on a side of a patch: 16 luma samples."""

PATCH = PACKED_CHANNELS * CELL * CELL
"""Values of a patch."""

TOKEN_SPREAD = 4.0
"""Spread of a token's values at birth, in steps of the quantiser: with less, rounding leaves only silence."""

PICTURE_GAIN = 4.0
"""What brings packed samples, centred on 0.5, to about unit spread."""


@dataclass(frozen=True)
class MaskedConfig:
    """Sizes of the transformer; the default is the paper's depth at ViT-S width (VideoMAE's small model)."""

    width: int = 384
    heads: int = 6
    decoder_width: int = 192
    decoder_heads: int = 3
    encoder_blocks: int = 6
    decoder_blocks: int = 2
    mask_ratio: float = 0.9
    foretold: float = 1.0
    """Share of the hidden places, drawn anew for each clip, that is foretold: less is the same loss, noisier."""

    def __post_init__(self) -> None:
        for name, width, heads in (
            ("encoder", self.width, self.heads),
            ("decoder", self.decoder_width, self.decoder_heads),
        ):
            if width % 4 or heads < 1 or width % heads:
                raise ConfigError(
                    f"the masked {name}'s width does not divide",
                    got=f"width {width}, {heads} heads",
                    allowed="a multiple of 4 and of the number of heads",
                )
        if not 0.0 < self.mask_ratio < 1.0:
            raise ConfigError("mask ratio out of range", got=self.mask_ratio, allowed="between 0 and 1")
        if not 0.0 < self.foretold <= 1.0:
            raise ConfigError("share of hidden patches out of range", got=self.foretold, allowed="0 < share <= 1")
        if min(self.encoder_blocks, self.decoder_blocks) < 1:
            raise ConfigError(
                "a masked transformer needs blocks", got=(self.encoder_blocks, self.decoder_blocks), allowed="1 or more"
            )


SMALL = MaskedConfig(width=64, heads=2, decoder_width=64, decoder_heads=2, foretold=0.35)
"""Of the same depth, for training on a processor."""


class MaskedPrediction(NamedTuple):
    """loss: mean L1 over the hidden patches, in samples of 0..1; tokens [B, T, V, width]: the rounded tokens of the
    visible patches; visible [B, V]: their places in the raster of patches."""

    loss: Tensor
    tokens: Tensor
    visible: Tensor


def tube_mask(batch: int, places: int, ratio: float, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Visible [B, V] and hidden [B, places - V] places of each clip in random order: round(ratio * places) are hidden.

    Drawn on the CPU, so that a seed hides the same places on every device. At least one place is on either side.
    """
    hidden = min(max(round(ratio * places), 1), places - 1)
    order = torch.rand(batch, places, generator=generator).argsort(1)
    return order[:, hidden:], order[:, :hidden]


def to_patches(clip: Tensor) -> Tensor:
    """Packed clip [B, T, 24, h, w] -> patches [B, T, h/4 * w/4, PATCH], in raster order. Raises FormatError."""
    if clip.dim() != 5 or clip.shape[2] != PACKED_CHANNELS or clip.shape[3] % CELL or clip.shape[4] % CELL:
        raise FormatError(
            "not a clip of whole patches",
            got=tuple(clip.shape),
            allowed=f"[B, T, {PACKED_CHANNELS}, h, w], h and w multiples of {CELL}",
        )
    batch, time, channels, rows, columns = clip.shape
    cells = clip.reshape(batch, time, channels, rows // CELL, CELL, columns // CELL, CELL)
    return cells.permute(0, 1, 3, 5, 2, 4, 6).reshape(batch, time, -1, PATCH)


def choose(values: Tensor, places: Tensor) -> Tensor:
    """values [B, T, P, D] at `places` [B, N] of every frame -> [B, T, N, D]."""
    batch, time, count, width = values.shape
    first = torch.arange(batch * time, device=places.device).reshape(batch, time, 1) * count
    rows = values.reshape(-1, width).index_select(0, (first + places[:, None]).flatten())  # gather is ten times slower
    return rows.reshape(batch, time, -1, width)


def straight_round(x: Tensor) -> Tensor:
    """Rounded going forward, the identity going back."""
    return x + (x.round() - x).detach()


def _waves(count: int, width: int) -> Tensor:
    """Sines and cosines of `count` places, [count, width]: where a token is, at any size of picture."""
    rates = torch.exp(torch.arange(width // 2) * (-math.log(10000.0) / (width // 2)))
    angles = torch.arange(count)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


def positions(time: int, rows: int, columns: int, width: int) -> Tensor:
    """What tells the tokens' places apart, [T, rows * columns, width]: time plus (row, column)."""
    row = _waves(rows, width // 2)[:, None].expand(-1, columns, -1)
    column = _waves(columns, width // 2)[None].expand(rows, -1, -1)
    return _waves(time, width)[:, None] + torch.cat([row, column], 2).reshape(1, rows * columns, width)


class Attention(nn.Module):
    """x + self-attention within each of N sets: [N, L, D] -> the same shape."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        sets, length, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(sets, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        # written out: sets are small, and torch's fused attention takes twice as long on a processor in bf16
        weights = torch.softmax(query @ key.transpose(2, 3) * (width // self.heads) ** -0.5, 3).to(value.dtype)
        mixed: Tensor = self.out((weights @ value).transpose(1, 2).reshape(sets, length, width))
        return x + mixed


class DividedBlock(nn.Module):
    """Attention along time at each place, then over the places of each frame (TimeSformer): [B, T, N, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.time = Attention(width, heads)
        self.space = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, time, places, width = x.shape
        along = self.time(x.transpose(1, 2).reshape(batch * places, time, width))
        x = along.reshape(batch, places, time, width).transpose(1, 2)
        x = self.space(x.reshape(batch * time, places, width)).reshape(batch, time, places, width)
        out: Tensor = x + self.mlp(x)
        return out


class MaskedVideo(nn.Module):
    """Decoded and original clip, packed [B, T, 24, h, w] in 0..1 -> the loss of foretelling what is hidden.

    L_MAE = 1 / |M| * sum over i in M of |phi(Tok)[i] - X[i]| (SMC, equation 1): M the hidden patches, Tok the visible
    tokens of the decoded video, X the original. Gradients reach the decoded clip through the visible patches alone.
    The encoder runs on visible tokens only, the decoder on all places.

    >>> clip = torch.rand(1, 2, 24, 16, 16)
    >>> MaskedVideo(SMALL)(clip, clip).tokens.shape
    torch.Size([1, 2, 2, 64])
    """

    def __init__(self, config: MaskedConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MaskedConfig()
        self.embed = nn.Linear(PATCH, config.width)
        self.encoder = nn.Sequential(*(DividedBlock(config.width, config.heads) for _ in range(config.encoder_blocks)))
        self.bridge = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, config.decoder_width))
        self.hidden = nn.Parameter(torch.randn(config.decoder_width) * 0.02)
        self.decoder = nn.Sequential(
            *(DividedBlock(config.decoder_width, config.decoder_heads) for _ in range(config.decoder_blocks))
        )
        self.head = nn.Sequential(nn.LayerNorm(config.decoder_width), nn.Linear(config.decoder_width, PATCH))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.embed.weight, std=TOKEN_SPREAD / math.sqrt(PATCH))
        nn.init.normal_(self.head[1].weight, std=0.01)  # type: ignore[arg-type]  # at first all is grey, not noise

    def forward(self, decoded: Tensor, original: Tensor, generator: torch.Generator | None = None) -> MaskedPrediction:
        if decoded.shape != original.shape:
            raise FormatError(
                "decoded and original clip differ in shape", got=tuple(decoded.shape), allowed=tuple(original.shape)
            )
        seen, truth = to_patches(decoded), to_patches(original)
        batch, time, places, _ = seen.shape
        rows, columns = decoded.shape[3] // CELL, decoded.shape[4] // CELL
        visible, hidden = (part.to(seen.device) for part in tube_mask(batch, places, self.config.mask_ratio, generator))
        hidden = hidden[:, : max(1, round(self.config.foretold * hidden.shape[1]))]
        # in float32: a bf16 token has no room for integers beyond 256
        with torch.autocast(seen.device.type, enabled=False):
            tokens = straight_round(self.embed((choose(seen, visible).float() - 0.5) * PICTURE_GAIN))
        foretold = self._foretell(tokens / TOKEN_SPREAD, visible, hidden, (time, rows, columns))
        loss = (foretold.float() + 0.5 - choose(truth, hidden).detach().float()).abs().mean()
        return MaskedPrediction(loss, tokens, visible)

    def _foretell(self, tokens: Tensor, visible: Tensor, hidden: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Visible tokens [B, T, V, width] -> hidden patches [B, T, P - V, PATCH], centred on zero."""
        batch = tokens.shape[0]
        where = positions(*grid, self.config.width).to(tokens)[None].expand(batch, -1, -1, -1)
        known = self.bridge(self.encoder(tokens + choose(where, visible)))
        unknown = self.hidden.to(known.dtype).expand(batch, grid[0], hidden.shape[1], -1)
        # where a token stands in the sequence does not matter to attention, only what its position says
        where = positions(*grid, self.config.decoder_width).to(known)[None].expand(batch, -1, -1, -1)
        whole = torch.cat([known, unknown], 2) + choose(where, torch.cat([visible, hidden], 1))
        out: Tensor = self.head(self.decoder(whole)[:, :, visible.shape[1] :])
        return out
