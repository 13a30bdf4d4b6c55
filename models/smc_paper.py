"""SMC at its published size, 48.2 M parameters, behind the same packed pictures, states and latent as `smc-s`.

SMC (TPAMI 2025), sections 3.1 and 4.2, table 10. What the paper leaves open is chosen so that both its counts and
those of the released definition agree; parameters, and GMAC a frame at 1080p:

    part        published       here
    Sem-Net     12.2 M   91     12.3 M   91   ResNet-18 without batch norm; a 5x5 of stride 2 in place of max-pooling;
                                              /4 .. /32 joined (960) -> 640 -> 512
    Sem-Net_s    3.1 M   34      3.1 M   34   five 3x3 of stride 2, from /4 on a 7x7 of two channels a group behind them
    Sem-Enc                     11.4 M   23   three residual blocks of 512, 512, 256; a latent of 256 at stride 32
    Sem-Dec                     13.2 M   27   three residual blocks of 512
    F-Net        8.7 M  147      8.5 M  152   U-shaped, S^ fused at /16, /8, /4; 3, 2, 2 temporal residual blocks
    together    48.2 M          48.5 M

Six blocks of 512 throughout would make 52 M. The masked head and the factorised prior are trained beside the networks
and in neither count. Colours stay YUV. Nothing of it is made for cameras.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scene_edge.models.layers import CausalTemporal, conv, start_at_zero

STRIDE = 32
"""Luma samples between two semantic positions, in each direction; `codec.planes.ALIGN` is a multiple of it."""

GRID = 16
"""Luma samples between two positions of a state tensor: that of `smc-s`, so that both run in the same loop."""


@dataclass(frozen=True)
class SmcPaperConfig:
    """Widths at /4 .. /32 and where these are joined (Sem-Net), at /2 .. /16 (Sem-Net_s), and at /2 .. /16 (F-Net)."""

    semantic: int = 512
    latent: int = 256
    sem_widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    joined: int = 640
    lossy_widths: tuple[int, int, int, int] = (64, 128, 256, 384)
    fuse_widths: tuple[int, int, int, int] = (32, 64, 128, 256)

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.01)


def full_picture(packed: Tensor) -> Tensor:
    """Packed [B, 24, h, w] -> YUV at full size [B, 3, 4h, 4w]; chroma samples are repeated."""
    y = F.pixel_shuffle(packed[:, :16], 4)
    chroma = [F.pixel_shuffle(packed[:, at : at + 4], 2) for at in (16, 20)]
    return torch.cat([y, F.interpolate(torch.cat(chroma, 1), scale_factor=2.0, mode="nearest")], 1)


def packed_picture(full: Tensor) -> Tensor:
    """YUV at full size [B, 3, 4h, 4w] -> packed [B, 24, h, w]; chroma samples are averaged."""
    half = F.avg_pool2d(full[:, 1:], 2)
    return torch.cat([F.pixel_unshuffle(full[:, :1], 4), F.pixel_unshuffle(half, 2)], 1)


class Memory:
    """The states of temporal convolutions on several grids as one tensor [B, channels, h/4, w/4] of the packed size.

    `parts` are (channels, stride) of each convolution in its order; coarser grids are spread over positions, finer ones
    over channels, so that no value is lost or made.
    """

    def __init__(self, parts: Sequence[tuple[int, int]]) -> None:
        self.strides = [stride for _, stride in parts]
        self.sizes = [2 * channels * GRID * GRID // (stride * stride) for channels, stride in parts]
        self.channels = sum(self.sizes)

    def split(self, state: Tensor) -> list[Tensor]:
        """One tensor -> [B, 2C, rows, columns] of each convolution."""
        parts = torch.split(state, self.sizes, 1)
        return [
            F.pixel_unshuffle(part, stride // GRID) if stride > GRID else F.pixel_shuffle(part, GRID // stride)
            for part, stride in zip(parts, self.strides, strict=True)
        ]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of `split`."""
        spread = [
            F.pixel_shuffle(part, stride // GRID) if stride > GRID else F.pixel_unshuffle(part, GRID // stride)
            for part, stride in zip(parts, self.strides, strict=True)
        ]
        return torch.cat(spread, 1)


class TemporalBlock(nn.Module):
    """ResNet's basic block, a causal temporal convolution behind its first 3x3; x and state -> y and the next state."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = conv(inputs, outputs, stride=stride)
        self.temporal = CausalTemporal(outputs)
        self.second = conv(outputs, outputs)
        with torch.no_grad():  # without batch norm, eight loud branches would pile up
            self.second.weight.mul_(0.1)
        same = inputs == outputs and stride == 1
        self.skip: nn.Module = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, state = self.temporal(self.first(x), state)
        return leaky(self.skip(x) + self.second(leaky(y))), state


class SemNet(nn.Module):
    """Sem-Net: packed picture [B, 24, h, w] and state -> S [B, 512, h/8, w/8] and the next state."""

    def __init__(self, widths: tuple[int, int, int, int], joined: int, semantic: int) -> None:
        super().__init__()
        self.stem = conv(3, widths[0], 7, 2)
        self.pool = conv(widths[0], widths[0], 5, 2)
        blocks, inputs = [], widths[0]
        for level, outputs in enumerate(widths):
            blocks += [TemporalBlock(inputs, outputs, 1 if level == 0 else 2), TemporalBlock(outputs, outputs)]
            inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.memory = Memory([(width, 4 << level) for level, width in enumerate(widths) for _ in range(2)])
        self.join = conv(sum(widths), joined, 1)
        self.head = conv(joined, semantic, 1)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        x = leaky(self.pool(leaky(self.stem(full_picture(x) - 0.5))))
        states, levels = [], []
        for index, (block, past) in enumerate(zip(self.blocks, self.memory.split(state), strict=True)):
            x, following = block(x, past)
            states.append(following)
            if index % 2:
                levels.append(x)
        coarse = [F.avg_pool2d(level, 8 >> index) for index, level in enumerate(levels[:-1])]
        joined = leaky(self.join(torch.cat([*coarse, levels[-1]], 1)))
        return self.head(joined), self.memory.join(states)


class SemNetS(nn.Module):
    """Sem-Net_s: packed lossy picture and state [B, 768, h/4, w/4] -> S~ [B, 512, h/8, w/8] and the next state."""

    def __init__(self, widths: tuple[int, int, int, int], semantic: int) -> None:
        super().__init__()
        self.stem = conv(3, widths[0], stride=2)
        self.down = nn.ModuleList(conv(before, after, stride=2) for before, after in pairwise(widths))
        self.wide = nn.ModuleList(nn.Conv2d(width, width, 7, 1, 3, groups=width // 2) for width in widths[1:])
        self.temporal = CausalTemporal(widths[-1])
        self.head = conv(widths[-1], semantic, stride=2)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        x = leaky(self.stem(full_picture(x) - 0.5))
        for down, wide in zip(self.down, self.wide, strict=True):
            x = leaky(down(x))
            x = leaky(x + wide(x))
        x, state = self.temporal(x, state)
        return self.head(leaky(x)), state


class Residual(nn.Module):
    """A residual block of Basic-CM: [B, C, h, w] -> [B, D, h, w]; without biases, nothing comes of nothing."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.first = conv(inputs, outputs, bias=bias)
        self.second = conv(outputs, outputs, bias=bias)
        with torch.no_grad():
            self.second.weight.mul_(0.1)
        self.skip: nn.Module = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.skip(x) + self.second(leaky(self.first(x)))
        return out


class SemEnc(nn.Module):
    """Residual semantics [B, 512, h, w] -> latent [B, 256, h, w] in units of the quantiser's step."""

    def __init__(self, semantic: int, latent: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            Residual(semantic, semantic), Residual(semantic, semantic), Residual(semantic, latent)
        )
        self.head = conv(latent, latent, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


class SemDec(nn.Module):
    """Latent [B, 256, h, w] -> residual semantics [B, 512, h, w]; exactly nothing for a latent of zeros."""

    def __init__(self, semantic: int, latent: int) -> None:
        super().__init__()
        self.stem = conv(latent, latent, 1, bias=False)
        self.body = nn.Sequential(
            Residual(latent, semantic, False), Residual(semantic, semantic, False), Residual(semantic, semantic, False)
        )
        with torch.no_grad():  # S^ starts close to S~
            self.stem.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(self.stem(x))
        return out


class Fusion(nn.Module):
    """x [B, C, h, w] plus what it and the semantic feature at a `scale`-th of its size say together: the same shape."""

    def __init__(self, channels: int, semantic: int, scale: int) -> None:
        super().__init__()
        self.scale = float(scale)
        self.own = conv(channels, 2 * channels, 1)
        self.other = conv(semantic, 2 * channels, 1, bias=False)
        self.mix = nn.Conv2d(2 * channels, 2 * channels, 3, 1, 1, groups=4)
        self.out = conv(2 * channels, channels, 1)
        with torch.no_grad():
            self.out.weight.mul_(0.1)

    def forward(self, x: Tensor, semantic: Tensor) -> Tensor:
        # a 1x1 convolution of both side by side, but the semantic part of it at its own, smaller size
        other = F.interpolate(self.other(semantic), scale_factor=self.scale, mode="nearest")
        return x + self.out(leaky(self.mix(leaky(self.own(x) + other))))


class Up(nn.Module):
    """[B, C, h, w] -> [B, D, 2h, 2w]: a 3x3 convolution for each of the four new samples."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.spread = conv(inputs, 4 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.spread(x), 2)


class Down(nn.Module):
    """[B, C, h, w] -> [B, D, h/2, w/2]: a depth-wise 5x5 and a 5x5 of stride 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.near = nn.Conv2d(inputs, inputs, 5, 1, 2, groups=inputs)
        self.shrink = conv(inputs, outputs, 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return leaky(self.shrink(leaky(x + self.near(x))))


class FNet(nn.Module):
    """F-Net: packed lossy picture, S^ [B, 512, h/8, w/8], state -> fused packed picture and the next state."""

    BLOCKS = (3, 2, 2)
    """Temporal residual blocks at /16, /8, /4."""

    def __init__(self, widths: tuple[int, int, int, int], semantic: int) -> None:
        super().__init__()
        half, quarter, eighth, sixteenth = widths
        self.stem = conv(3, half, 7, 2)
        self.down4 = conv(half, quarter, 5, 2)
        self.down8, self.down16 = Down(quarter, eighth), Down(eighth, sixteenth)
        levels = (sixteenth, eighth, quarter)
        self.fusions = nn.ModuleList(Fusion(width, semantic, 2 << level) for level, width in enumerate(levels))
        self.bodies = nn.ModuleList(
            nn.ModuleList(TemporalBlock(width, width) for _ in range(count))
            for width, count in zip(levels, self.BLOCKS, strict=True)
        )
        self.memory = Memory(
            [(levels[level], 16 >> level) for level, count in enumerate(self.BLOCKS) for _ in range(count)]
        )
        self.ups = nn.ModuleList(
            Up(inputs, outputs) for inputs, outputs in ((sixteenth, eighth), (eighth, quarter), (quarter, half))
        )
        self.up1 = Up(half, half // 2)
        self.head = conv(half // 2, 3)
        start_at_zero(self.head)  # at first the fused picture is the lossy one

    def forward(self, lossy: Tensor, semantic: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        x2 = leaky(self.stem(full_picture(lossy) - 0.5))
        x4 = leaky(self.down4(x2))
        x8 = self.down8(x4)
        x = self.down16(x8)
        past, states = iter(self.memory.split(state)), []
        for fusion, body, up, passed in zip(self.fusions, self.bodies, self.ups, (x8, x4, x2), strict=True):
            x = fusion(x, semantic)
            for block in body:  # type: ignore[attr-defined]
                x, following = block(x, next(past))
                states.append(following)
            x = up(x) + passed
        fine = self.head(leaky(self.up1(leaky(x))))
        return lossy + packed_picture(fine), self.memory.join(states)


class SmcPaper(nn.Module):
    """All networks of the published SMC, in the interface of `scene_edge.models.smc.Smc`.

    Its states are `sem`, `lossy` and `fuse`, all [B, C, h/4, w/4] for a packed picture [B, 24, h, w]; S, S~ and the
    latent are [B, C, h/8, w/8]; h and w are multiples of 8.
    """

    stride = STRIDE

    def __init__(self, config: SmcPaperConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SmcPaperConfig()
        self.sem_net = SemNet(config.sem_widths, config.joined, config.semantic)
        self.sem_net_s = SemNetS(config.lossy_widths, config.semantic)
        self.sem_enc = SemEnc(config.semantic, config.latent)
        self.sem_dec = SemDec(config.semantic, config.latent)
        self.f_net = FNet(config.fuse_widths, config.semantic)

    def states(self, batch: int, rows: int, columns: int) -> dict[str, Tensor]:
        """Zero states for pictures of packed size rows x columns: what every key frame starts from."""
        device = next(self.parameters()).device
        channels = {
            "sem": self.sem_net.memory.channels,
            "lossy": 2 * self.config.lossy_widths[-1],
            "fuse": self.f_net.memory.channels,
        }
        cells = GRID // 4
        return {
            key: torch.zeros(batch, count, rows // cells, columns // cells, device=device)
            for key, count in channels.items()
        }

    def mine_lossy(self, lossy: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """S~ of the decoded frame [B, S, h/8, w/8], and the next state."""
        semantic: tuple[Tensor, Tensor] = self.sem_net_s(lossy, state)
        return semantic

    def mine_both(
        self, original: Tensor, lossy: Tensor, state_sem: Tensor, state_lossy: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """S of the original and S~ of the decoded frame [B, S, h/8, w/8], and the next states of both."""
        semantic, next_sem = self.sem_net(original, state_sem)
        seen, next_lossy = self.sem_net_s(lossy, state_lossy)
        return semantic, seen, next_sem, next_lossy

    def fuse(self, lossy: Tensor, seen: Tensor, restored: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Lossy picture, its S~, and R^ -> fused picture [B, 24, h, w], and the next state; S^ = S~ + R^."""
        fused: tuple[Tensor, Tensor] = self.f_net(lossy, seen + restored, state)
        return fused

    @torch.no_grad()
    def rescale_latent(self, gain: Tensor) -> None:
        """Multiply each latent channel by `gain` [C] where it is made, divide where it is read: nothing else moves."""
        self.sem_enc.head.weight.mul_(gain[:, None, None, None])
        self.sem_enc.head.bias.mul_(gain)  # type: ignore[union-attr]
        self.sem_dec.stem.weight.div_(gain[None, :, None, None])
