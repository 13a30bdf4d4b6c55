"""The codec through which a pre-filter is trained: a differentiable proxy, by itself or behind the real x264.

Neural wrapping (CVPR 2025, equation 8): what the loss sees is the real codec's picture, what flows back is the proxy's
gradient, I = sg(I_x264 - I_proxy) + I_proxy. Without that a filter learns to please the proxy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from scene_edge.codec.errors import ConfigError
from scene_edge.codec.planes import pack, unpack
from scene_edge.models.data import x264_round_trip
from scene_edge.models.layers import from_packed, to_packed
from scene_edge.models.proxy_hybrid import HybridProxy
from scene_edge.models.proxy_jpeg import JpegProxy

PROXIES: dict[str, type[nn.Module]] = {"jpeg": JpegProxy, "hybrid": HybridProxy}
"""Every proxy is `forward(frames, qp) -> (reconstructions, bits [B, T])`, on packed floats [B, 24, h, w] in
0..1; bits are of each frame."""


class Slopes(NamedTuple):
    """How much of what a proxy promises x264 keeps, for small changes of a picture: of a change of the decoded picture,
    as far as qualities see it, and of the logarithm of bits."""

    pictures: float
    bits: float


ALL = Slopes(1.0, 1.0)

SLOPES = {"jpeg": Slopes(0.56, 0.81), "hybrid": Slopes(0.62, 0.53)}
"""On training crops, once; `benchmarks/proxy_gradients.py` measures the same on development clips. Promising more of
one than of the other, a proxy would teach a filter to sharpen, or to blur."""


class RealCodec(nn.Module):
    """x264 at the camera's settings with the gradient of a proxy: the interface of a proxy, the values of x264.

    CRF and QP are taken for each other, rounded to a whole number.
    """

    def __init__(self, proxy: nn.Module, slopes: Slopes = ALL) -> None:
        super().__init__()
        self.proxy, self.slopes = proxy, slopes

    def forward(self, frames: list[Tensor], qp: float) -> tuple[list[Tensor], Tensor]:
        """frames: packed float [B, 24, h, w] in 0..1; bits [B, T] are of each frame.

        x264 sees the frames in eight bits. Bits are multiplied by what the proxy's change by, not added to: the proxy
        counts on a scale of its own, and what matters is by which factor the rate changes, to the power of its slope.
        """
        crf = round(qp)
        real, real_bits = coded_by_x264(frames, crf)
        if not torch.is_grad_enabled():
            return real, real_bits
        decoded, bits = self.proxy(frames, float(crf))
        kept = self.slopes.pictures
        through = [true + kept * (near - near.detach()) for near, true in zip(decoded, real, strict=True)]
        return through, real_bits * (bits / bits.detach()) ** self.slopes.bits


@torch.no_grad()
def coded_by_x264(frames: list[Tensor], crf: int) -> tuple[list[Tensor], Tensor]:
    """Packed float frames [B, 24, h, w] in 0..1 -> what x264 makes of each sample's sequence, and the bits of each
    frame [B, T]."""
    rows, columns = frames[0].shape[2:]
    sequences = np.stack([to_packed(frame).cpu().numpy() for frame in frames], 1)
    pictures, bits = [], []
    for sequence in sequences:
        planes = [unpack(np.ascontiguousarray(picture), columns * 4, rows * 4) for picture in sequence]
        seen, spent = x264_round_trip(planes, crf)
        pictures.append(np.stack([pack(picture)[:rows, :columns] for picture in seen]))
        bits.append([float(count) for count in spent])
    device = frames[0].device
    stacked = torch.from_numpy(np.stack(pictures)).to(device)
    return [from_packed(stacked[:, index]) for index in range(len(frames))], torch.tensor(bits, device=device)


def build_codec(proxy: str, real_codec: bool) -> nn.Module:
    """The proxy of that name, alone or behind real x264. Raises ConfigError for a name there is not."""
    if proxy not in PROXIES:
        raise ConfigError("no such codec proxy", got=proxy, allowed=", ".join(PROXIES))
    built = PROXIES[proxy]()
    return RealCodec(built, SLOPES[proxy]) if real_codec else built
