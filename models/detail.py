"""What VMAF NEG is made of, differentiable: VIF and DLM with no reward for what the original has not.

VIF: visual information fidelity over four scales (Sheikh and Bovik, IEEE TIP 15(2), 2006); DLM: detail loss over four
scales of a db2 wavelet, weighed by contrast sensitivity and masked by what was added (Li et al., IEEE TMM 13(5), 2011).
Windows, noise, pooling and the cap on gains are those of libvmaf's float features (vif, adm2; egl = 1), so that a
filter cannot raise them by sharpening what it is given. libvmaf is the oracle of `tests/models/test_detail.py`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VIF_WINDOWS = (17, 9, 5, 3)
"""Taps of the Gaussian at each scale; its standard deviation is a fifth of them."""

NOISE = 2.0
"""Variance of the visual noise, in squared grey levels."""

DB2 = (0.482962913144690, 0.836516303737469, 0.224143868041857, -0.129409522550921)
"""The wavelet's low-pass filter."""

AMPLITUDES = (
    (0.67234, 0.72709, 0.67234),
    (0.41317, 0.49428, 0.41317),
    (0.22727, 0.28688, 0.22727),
    (0.11792, 0.15214, 0.11792),
)
"""Amplitudes of basis functions by scale: horizontal, diagonal, vertical (Watson et al., IEEE TIP 6(8), 1997)."""

PIXELS_PER_DEGREE = 3.0 * 1080 * math.pi / 180
"""At three picture heights from a screen of 1080 rows."""

BORDER = 0.1
"""The part at each edge that DLM leaves out."""


class DetailLoss(nn.Module):
    """Detail lost: `forward(luma, truth)` in 0..1, both [B, 1, H, W] with sides of at least 64 -> [B], 0 for the same.

    The mean of 1 - DLM and 1 - VIF (itself the mean over its scales).
    """

    wavelet: Tensor
    sensitivity: Tensor
    around: Tensor

    def __init__(self) -> None:
        super().__init__()
        for taps in VIF_WINDOWS:
            self.register_buffer(f"window{taps}", _gaussian(taps), persistent=False)
        low = torch.tensor(DB2)
        high = torch.tensor([DB2[3], -DB2[2], DB2[1], -DB2[0]])
        kernels = [torch.outer(*pair) for pair in ((low, low), (high, low), (high, high), (low, high))]
        self.register_buffer("wavelet", torch.stack(kernels)[:, None], persistent=False)
        self.register_buffer("sensitivity", torch.tensor(_sensitivities()), persistent=False)
        around = torch.full((1, 3, 3, 3), 1 / 30)
        around[:, :, 1, 1] = 1 / 15
        self.register_buffer("around", around, persistent=False)

    def forward(self, luma: Tensor, truth: Tensor) -> Tensor:
        vif = torch.stack(self.vif(luma, truth)).mean(0)
        return 1.0 - 0.5 * (vif + self.dlm(luma, truth))

    def vif(self, luma: Tensor, truth: Tensor) -> list[Tensor]:
        """VIF [B] of each scale, the finest first."""
        seen, known = luma.float() * 255.0 - 128.0, truth.float() * 255.0 - 128.0
        scores = []
        for scale, taps in enumerate(VIF_WINDOWS):
            window: Tensor = getattr(self, f"window{taps}")
            if scale:
                seen, known = (_blurred(x, window)[:, :, ::2, ::2] for x in (seen, known))
            scores.append(_information(seen, known, window))
        return scores

    def dlm(self, luma: Tensor, truth: Tensor) -> Tensor:
        """DLM [B], libvmaf's adm2."""
        seen, known = luma.float() * 255.0, truth.float() * 255.0
        kept = wanted = torch.zeros(luma.shape[0], device=luma.device)
        for weights in self.sensitivity:
            seen, known = (F.conv2d(F.pad(x, (1, 2, 1, 2), "reflect"), self.wavelet, stride=2) for x in (seen, known))
            there, asked = seen[:, 1:], known[:, 1:]
            restored = asked * (there / torch.where(asked.abs() < 1e-6, 1e-6, asked)).clamp(0.0, 1.0)
            scale = weights[:, None, None]
            added = ((there - restored) * scale).abs()
            mask = F.conv2d(F.pad(added, (1, 1, 1, 1), "reflect"), self.around)
            kept = kept + _pooled(((restored * scale).abs() - mask).clamp_min(0.0))
            wanted = wanted + _pooled((asked * scale).abs())
            seen, known = seen[:, :1], known[:, :1]
        return kept / wanted


def _gaussian(taps: int) -> Tensor:
    at = torch.arange(taps, dtype=torch.float32) - taps // 2
    weights = torch.exp(-0.5 * (at / (taps / 5.0)) ** 2)
    return weights / weights.sum()


def _blurred(x: Tensor, window: Tensor) -> Tensor:
    """[B, C, H, W] -> the same shape."""
    channels, reach = x.shape[1], len(window) // 2
    rows = window[:, None].expand(channels, 1, -1, 1)
    x = F.conv2d(F.pad(x, (0, 0, reach, reach), "reflect"), rows, groups=channels)
    return F.conv2d(F.pad(x, (reach, reach, 0, 0), "reflect"), rows.transpose(2, 3), groups=channels)


def _information(seen: Tensor, known: Tensor, window: Tensor) -> Tensor:
    """The share of the original's information that is still there, of one scale: [B]."""
    moments = _blurred(torch.cat([known, seen, known * known, seen * seen, known * seen], 1), window)
    mean_known, mean_seen, square_known, square_seen, product = moments.split(1, 1)
    var_known = (square_known - mean_known**2).clamp_min(0.0)
    var_seen = (square_seen - mean_seen**2).clamp_min(0.0)
    covariance = product - mean_known * mean_seen
    gain = (covariance / (var_known + 1e-10)).clamp_min(0.0)
    rest = (var_seen - gain * covariance).clamp_min(1e-10)
    gain = gain.clamp_max(1.0)  # NEG: more contrast than the original's is no gain
    kept = torch.log2(1.0 + gain**2 * var_known / (rest + NOISE))
    whole = torch.log2(1.0 + var_known / NOISE)
    flat = var_known < NOISE  # where the original shows nothing, the less is invented the better
    kept = torch.where(flat, 1.0 - var_seen * 4.0 / 255.0**2, kept)
    whole = torch.where(flat, torch.ones_like(whole), whole)
    return kept.sum((1, 2, 3)) / whole.sum((1, 2, 3))


def _pooled(x: Tensor) -> Tensor:
    """Cube root of summed cubes of each orientation, without the border: [B, 3, h, w] -> [B]."""
    height, width = x.shape[2:]
    top, left = int(height * BORDER + 0.5), int(width * BORDER + 0.5)
    inner = x[:, :, top : height - top, left : width - left]
    floor = (inner.shape[2] * inner.shape[3] / 32.0) ** (1.0 / 3.0)
    return ((inner**3).sum((2, 3)).clamp_min(1e-9) ** (1.0 / 3.0) + floor).sum(1)


def _sensitivities() -> list[list[float]]:
    """1 over the quantiser step that is just visible, by scale and orientation: Watson's model for luma."""
    found = []
    for scale, amplitudes in enumerate(AMPLITUDES):
        row = []
        for turned, amplitude in zip((1.0, 0.534, 1.0), amplitudes, strict=True):
            octaves = math.log10(2.0 ** (scale + 1) * 0.401 * turned / PIXELS_PER_DEGREE)
            row.append(amplitude / (2.0 * 0.495 * 10.0 ** (0.466 * octaves**2)))
        found.append(row)
    return found
