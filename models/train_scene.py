"""Training of SCENE through the codec proxy: the same quality for fewer bits, as a machine and as a metric see it.

The loss is a BD-rate in miniature. For each quality k the distortion D_k is compared in logarithms, and bits are
charged at the codec's own exchange rate: J = sum_k w_k log D_k + mu log R, with mu = -sum_k w_k dlogD_k / dlogR
measured by coding the *unfiltered* picture at neighbouring QPs. A filter that lowers J beats turning the QP.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scene_edge.codec.planes import Planes, pack, unpack
from scene_edge.models.data import ClipSampler, DataConfig, build_cache, x264_round_trip
from scene_edge.models.layers import from_packed, to_packed
from scene_edge.models.loop import Progressed, RunConfig, Trainer, autocast, device
from scene_edge.models.objectives import MachineDistance, ssim
from scene_edge.models.proxy import CodecProxy
from scene_edge.models.scene import THUMB, SceneConfig, SceneNet


@dataclass
class SceneRun(RunConfig):
    """Weights of the qualities in J, and of the L1 distance before the proxy that keeps the filter modest."""

    scene: SceneConfig = field(default_factory=SceneConfig)
    instrument: str = "models/yolox_nano.onnx"
    machine_weight: float = 0.5
    sample_weight: float = 0.25
    ssim_weight: float = 0.25
    pre_proxy_weight: float = 2.0
    crop: int = 256
    length: int = 2


def thumbnail(picture: Tensor) -> Tensor:
    """Packed float [1, 24, h, w] -> packed float [1, 24, 18, 32] by area averaging of each plane."""
    rows, columns = THUMB
    y = F.adaptive_avg_pool2d(F.pixel_shuffle(picture[:, :16], 4), (rows * 4, columns * 4))
    u = F.adaptive_avg_pool2d(F.pixel_shuffle(picture[:, 16:20], 2), (rows * 2, columns * 2))
    v = F.adaptive_avg_pool2d(F.pixel_shuffle(picture[:, 20:], 2), (rows * 2, columns * 2))
    return torch.cat([F.pixel_unshuffle(y, 4), F.pixel_unshuffle(u, 2), F.pixel_unshuffle(v, 2)], 1)


class SceneTraining:
    """One training run of SCENE; `train` below is the way in."""

    def __init__(self, config: SceneRun, folder: Path) -> None:
        self.config = config
        self.sampler = ClipSampler(folder, config.seed, size=config.crop, length=config.length)
        self.model = SceneNet(config.scene).to(device()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.proxy = CodecProxy().to(device())
        self.machine = MachineDistance(config.data / config.instrument).to(device())
        self.trainer = Trainer(config, self.model)
        self.random = np.random.default_rng(config.seed + self.trainer.steps)
        self.sampler.random = self.random
        self.price: float | None = None
        self.gain = 0.0

    def _frames(self) -> tuple[list[Tensor], Tensor]:
        """Frames [B, 24, h, w] of a batch of crops, and the thumbnails of the whole pictures."""
        batch = self.sampler.sample(self.config.batch)
        frames = [
            from_packed(torch.from_numpy(batch.original[:, index]).to(device())) for index in range(self.config.length)
        ]
        thumbs = [thumbnail(from_packed(torch.from_numpy(whole)[None].to(device()))) for whole in batch.whole]
        return frames, torch.cat(thumbs)

    def _qualities(self, decoded: list[Tensor], original: list[Tensor], truth: list[Tensor]) -> Tensor:
        """Weighted sum of log distortions, [B]; the machine looks at the last frame."""
        config = self.config
        with autocast():
            machine = self.machine.distance(self.machine.features(decoded[-1]), truth)
        sample = torch.stack([(a - b).abs().mean((1, 2, 3)) for a, b in zip(decoded, original, strict=True)]).mean(0)
        likeness = torch.stack([ssim(_luma(a), _luma(b)) for a, b in zip(decoded, original, strict=True)]).mean(0)
        total: Tensor = config.machine_weight * torch.log(machine + 0.05) + config.sample_weight * torch.log(
            sample + 1e-3
        )
        return total + config.ssim_weight * torch.log(1.0 - likeness + 1e-2)

    @torch.no_grad()
    def _measure_price(self, frames: list[Tensor], truth: list[Tensor], qp: float) -> None:
        """Follow mu: how much log distortion the codec itself buys for one unit of log rate."""
        fine, fine_bits = self.proxy(frames, qp - 3)
        coarse, coarse_bits = self.proxy(frames, qp + 3)
        gain = (self._qualities(coarse, frames, truth) - self._qualities(fine, frames, truth)).mean()
        spent = (torch.log(fine_bits) - torch.log(coarse_bits)).mean()
        measured = float(gain / spent.clamp_min(1e-3))
        self.price = measured if self.price is None else 0.9 * self.price + 0.1 * measured

    def step(self, progress: Progressed) -> tuple[Tensor, dict[str, float]]:
        frames, thumbs = self._frames()
        qp = float(self.random.uniform(26, 46))
        with torch.no_grad(), autocast():
            truth = self.machine.features(frames[-1])
        if self.price is None or progress.step % 5 == 0:
            self._measure_price(frames, truth, qp)
        with autocast():
            coefficients = self.model.prior(thumbs).float()
            filtered = [self.model(frame, coefficients).float() for frame in frames]
        rounded = [frame + ((frame * 255).round().clamp(0, 255) / 255 - frame).detach() for frame in filtered]
        decoded, bits = self.proxy(rounded, qp)
        quality = self._qualities(decoded, frames, truth).mean()
        rate = torch.log(bits).mean()
        moved = torch.stack([(a - b).abs().mean() for a, b in zip(filtered, frames, strict=True)]).mean()
        loss = quality + float(self.price or 0.0) * rate + self.config.pre_proxy_weight * moved
        figures = {"bits": float(rate.detach()), "moved": float(moved.detach()), "price": float(self.price or 0.0)}
        if progress.step % 10 == 0:
            self.gain = self._gain(frames, truth, qp, float(quality.detach()), float(rate.detach()))
        return loss, {**figures, "gain": self.gain}

    @torch.no_grad()
    def _gain(self, frames: list[Tensor], truth: list[Tensor], qp: float, quality: float, rate: float) -> float:
        """How far J lies below that of the unfiltered frames; positive is better."""
        plain, plain_bits = self.proxy(frames, qp)
        plain_quality = float(self._qualities(plain, frames, truth).mean())
        return plain_quality - quality + float(self.price or 0.0) * (float(torch.log(plain_bits).mean()) - rate)

    @torch.no_grad()
    def evaluate(self, clips: int = 8) -> dict[str, float]:
        """Real x264 on training clips: bits with the filter over bits without, and likewise the machine distance."""
        bits, machine = [], []
        for index in np.linspace(0, len(self.sampler.arrays) - 1, clips).astype(int):
            whole = np.array(self.sampler.arrays[index]["original"][:12])
            picture = from_packed(torch.from_numpy(whole))
            coefficients = self.model.prior(thumbnail(picture[:1]))
            filtered = to_packed(self.model(picture, coefficients)).numpy()
            for crf in (35, 43):
                results = [x264_round_trip([_exact(frame) for frame in frames], crf) for frames in (whole, filtered)]
                seen = [self._seen(result[0][-1], picture[-1:]) for result in results]
                bits.append(sum(results[1][1]) / sum(results[0][1]))
                machine.append((seen[1] + 0.05) / (seen[0] + 0.05))
        return {"bits_ratio": round(float(np.mean(bits)), 4), "machine_ratio": round(float(np.mean(machine)), 4)}

    def _seen(self, decoded: Planes, original: Tensor) -> float:
        rows, columns = original.shape[2:]
        lossy = from_packed(torch.from_numpy(pack(decoded)[None, :rows, :columns]))
        size = [side // 8 * 8 for side in (rows, columns)]  # the detector halves the picture five times
        pair = [x[:, :, : size[0], : size[1]] for x in (lossy, original)]
        return float(self.machine.distance(self.machine.features(pair[0]), self.machine.features(pair[1])))


def _luma(picture: Tensor) -> Tensor:
    return F.pixel_shuffle(picture[:, :16], 4)


def _exact(packed: np.ndarray[Any, np.dtype[np.uint8]]) -> Planes:
    return unpack(packed, packed.shape[1] * 4, packed.shape[0] * 4)


def train(config: SceneRun) -> dict[str, Any]:
    """Train (or go on training) SCENE; returns the training record. Raises ConfigError where the data is missing."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    folder = build_cache(DataConfig(config.data), config.out.parent / "cache")
    training = SceneTraining(config, folder)
    record = training.trainer.run(training.step)
    training.model.load_state_dict(training.trainer.average)
    record["training_clips_check"] = training.evaluate()
    record["data"] = f"{len(training.sampler.entries)} clips through the block-transform proxy, QP 26 to 46"
    return record
