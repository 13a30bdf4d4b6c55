"""SMC for cameras: Sem-Net, Basic-CM (Sem-Enc, Sem-Dec) and F-Net over packed YUV 4:2:0 pictures.

Semantic Mining then Compensation (ICCV 2023; TPAMI 2025, sections 3.1 and 3.2): the semantic feature S of the
original and S~ of the decoded H.264 frame differ by what the codec lost; only that residual is coded, and F-Net
fuses S~ and R^ = Sem-Dec(round(Sem-Enc(S - S~))) with the lossy frame. Unlike the paper's, one Sem-Net looks at both
pictures: two nets differ by their disagreement as well, and that noise would be coded. Everything is causal; the
memory of each network is an explicit tensor that is zero at a key frame. Sizes are ours, chosen for INT8 on small
boards.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scene_edge.models.layers import CausalTemporal, ResBlock, conv, from_packed, start_at_zero, to_packed
from scene_edge.models.semantics import CLAIMS, SEMANTIC, SemNet, Verdicts

if TYPE_CHECKING:
    from scene_edge.models.sizes import AnySmc

STRIDE = 16
"""Luma samples between two semantic positions, in each direction."""


@dataclass(frozen=True)
class SmcConfig:
    """Channels of the latent, of Sem-Enc's inside, and of F-Net at /4, /8 and /16; `smc-s` is the default."""

    latent: int = 16
    coder: int = 64
    fuse_widths: tuple[int, int, int] = (64, 96, 128)
    fuse_depths: tuple[int, int, int] = (1, 1, 2)
    """Residual blocks of F-Net on its way up, at /4, /8 and /16."""
    entry: int = 64
    """Channels in which F-Net takes up what Sem-Net and Sem-Dec say."""

    @property
    def semantic(self) -> int:
        return SEMANTIC

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class SemEnc(nn.Module):
    """Residual semantics [B, S, h, w] -> latent [B, C, h, w] in units of the quantiser's step."""

    def __init__(self, semantic: int, width: int, latent: int) -> None:
        super().__init__()
        self.stem = conv(semantic, width, 1)
        self.body = nn.Sequential(ResBlock(width), ResBlock(width), ResBlock(width))
        self.head = conv(width, latent, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(self.stem(x)))
        return out


class SemDec(nn.Module):
    """Latent [B, C, h, w] -> residual semantics [B, S, h, w]; exactly nothing for a latent of zeros.

    Without biases a lost or empty packet leaves S~ as it is: the lossy path needs no second network.
    """

    def __init__(self, semantic: int, latent: int) -> None:
        super().__init__()
        self.stem = conv(latent, semantic, bias=False)
        self.first = conv(semantic, semantic, bias=False)
        self.second = conv(semantic, semantic, bias=False)
        self.third = conv(semantic, semantic, bias=False)
        with torch.no_grad():  # S^ starts close to S~
            self.stem.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.second(F.relu(self.first(x)))
        out: Tensor = x + self.third(F.relu(x))
        return out


class FNet(nn.Module):
    """Lossy picture [B, 24, h, w], S~ and R^ [B, 2 * S, h/4, w/4], what S~ and S^ claim [B, 2 * CLAIMS, h/4, w/4],
    state [B, 2C, h/2, w/2] -> fused picture, next state.

    A U-shaped network that corrects the lossy picture; what is meant enters at /16 and, widened, at /8. Its way up is
    linear outside the residual blocks: behind a ReLU that dies, no semantics would ever reach the picture. Its memory
    is of the lossy pictures alone, so that a sequence can be taken up at its last frame.
    """

    def __init__(self, widths: tuple[int, int, int], depths: tuple[int, int, int], semantic: int, entry: int) -> None:
        super().__init__()
        quarter, eighth, sixteenth = widths
        self.stem = conv(24, quarter)
        self.down8 = conv(quarter, eighth, stride=2)
        self.temporal = CausalTemporal(eighth)
        self.down16 = conv(eighth, sixteenth, stride=2)
        self.read = conv(2 * CLAIMS, entry)
        self.feel = conv(2 * semantic, entry, 1)
        self.meant = conv(entry, entry)
        self.fuse16 = conv(sixteenth + entry, sixteenth, 1)
        self.body16 = nn.Sequential(*(ResBlock(sixteenth) for _ in range(depths[2])))
        self.up8 = conv(sixteenth + entry, eighth)
        self.body8 = nn.Sequential(*(ResBlock(eighth) for _ in range(depths[1])))
        self.up4 = conv(eighth, quarter)
        self.body4 = nn.Sequential(*(ResBlock(quarter) for _ in range(depths[0])))
        self.head = conv(quarter, 24)
        with torch.no_grad():  # quiet features: the first steps of a loud network spoil the picture for minutes
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d):
                    layer.weight.mul_(0.5)
        start_at_zero(self.head)  # at first the fused picture is the lossy one

    def look(self, lossy: Tensor) -> tuple[Tensor, Tensor]:
        """Features of one picture at /4 and /8, without memory."""
        x4 = F.relu(self.stem(lossy - 0.5))
        return x4, F.relu(self.down8(x4))

    def forward(self, lossy: Tensor, semantic: Tensor, claims: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        x4, x8 = self.look(lossy)
        x8, state = self.temporal(x8, state)
        meant = F.relu(self.meant(F.relu(self.read(claims) + self.feel(semantic))))
        x16 = F.relu(self.down16(F.relu(x8)))
        x16 = self.body16(self.fuse16(torch.cat([x16, meant], 1)))
        wide = F.interpolate(torch.cat([x16, meant], 1), scale_factor=2.0, mode="nearest")
        x8 = self.body8(self.up8(wide) + x8)
        x4 = self.body4(self.up4(F.interpolate(x8, scale_factor=2.0, mode="nearest")) + x4)
        return lossy + self.head(x4), state


class Smc(nn.Module):
    """All networks of SMC; `SmcEncoder` and `SmcDecoder` are the two graphs that are exported."""

    stride = STRIDE

    def __init__(self, config: SmcConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SmcConfig()
        self.sem_net = SemNet()
        self.sem_enc = SemEnc(config.semantic, config.coder, config.latent)
        self.sem_dec = SemDec(config.semantic, config.latent)
        self.verdicts = Verdicts().requires_grad_(False)
        self.f_net = FNet(config.fuse_widths, config.fuse_depths, config.semantic, config.entry)

    def states(self, batch: int, rows: int, columns: int) -> dict[str, Tensor]:
        """Zero states for pictures of packed size rows x columns: what every key frame starts from."""
        device = next(self.parameters()).device

        def zeros(channels: int, divisor: int) -> Tensor:
            return torch.zeros(batch, 2 * channels, rows // divisor, columns // divisor, device=device)

        mined = self.config.semantic
        return {"sem": zeros(mined, 4), "lossy": zeros(mined, 4), "fuse": zeros(self.config.fuse_widths[1], 2)}

    def mine_lossy(self, lossy: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """S~ of the decoded frame [B, S, h/4, w/4], and the next state."""
        semantic: tuple[Tensor, Tensor] = self.sem_net(lossy, state)
        return semantic

    def mine_both(
        self, original: Tensor, lossy: Tensor, state_sem: Tensor, state_lossy: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """S, S~ and the next states of both, in one pass: in INT8 as well, equal pictures then have equal features."""
        count = len(original)
        both, state = self.sem_net(torch.cat([original, lossy]), torch.cat([state_sem, state_lossy]))
        return both[:count], both[count:], state[:count], state[count:]

    def fuse(self, lossy: Tensor, seen: Tensor, restored: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Lossy picture, its S~, and R^ -> fused picture [B, 24, h, w], and the next state."""
        claims = torch.cat([self.verdicts.claims(seen), self.verdicts.claims(seen + restored)], 1)
        fused: tuple[Tensor, Tensor] = self.f_net(lossy, torch.cat([seen, restored], 1), claims, state)
        return fused

    @torch.no_grad()
    def rescale_latent(self, gain: Tensor) -> None:
        """Multiply each latent channel by `gain` [C] where it is made, divide where it is read: nothing else moves."""
        self.sem_enc.head.weight.mul_(gain[:, None, None, None])
        if self.sem_enc.head.bias is not None:
            self.sem_enc.head.bias.mul_(gain)
        self.sem_dec.stem.weight.div_(gain[None, :, None, None])


class SmcEncoder(nn.Module):
    """The camera's graph: x, lossy u8 [B, h, w, 24], states -> latent [B, C, h/4, w/4] and next states."""

    def __init__(self, smc: AnySmc) -> None:
        super().__init__()
        self.smc = smc

    def forward(
        self, x: Tensor, lossy: Tensor, state_sem: Tensor, state_lossy: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        semantic, seen, next_sem, next_lossy = self.smc.mine_both(
            from_packed(x), from_packed(lossy), state_sem, state_lossy
        )
        return self.smc.sem_enc(semantic - seen), next_sem, next_lossy


class SmcDecoder(nn.Module):
    """The server's graph: lossy u8, latent, states -> fused u8 [B, h, w, 24] and next states."""

    def __init__(self, smc: AnySmc) -> None:
        super().__init__()
        self.smc = smc

    def forward(
        self, lossy: Tensor, latent: Tensor, state_lossy: Tensor, state_fuse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        picture = from_packed(lossy)
        seen, next_lossy = self.smc.mine_lossy(picture, state_lossy)
        fused, next_fuse = self.smc.fuse(picture, seen, self.smc.sem_dec(latent), state_fuse)
        return to_packed(fused), next_lossy, next_fuse
