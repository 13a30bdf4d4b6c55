"""Training of SCENE through a codec: the same quality for fewer bits, as a machine and as a metric see it.

The loss is a BD-rate in miniature. For each quality k the distortion D_k is compared in logarithms, and bits are
charged at the codec's own exchange rate: J = sum_k w_k log D_k + mu log R, with mu = -sum_k w_k dlogD_k / dlogR
measured by coding the *unfiltered* picture at neighbouring QPs. A filter that lowers J beats turning the QP. Which
codec the recipe says: a differentiable proxy, or real x264 with the proxy's gradient (`models.proxy`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scene_edge.codec.errors import ConfigError
from scene_edge.codec.planes import U8, Planes, pack, unpack
from scene_edge.models.blocks import from_planes, to_planes
from scene_edge.models.data import Batch, ClipSampler, DataConfig, build_cache, x264_round_trip
from scene_edge.models.layers import from_packed, to_packed
from scene_edge.models.loop import Progressed, Trainer, autocast, device
from scene_edge.models.objectives import MachineDistance, ssim
from scene_edge.models.proxy import build_codec
from scene_edge.models.recipes import SceneRun
from scene_edge.models.scene import THUMB, SceneNet
from scene_edge.models.scene_paper import ScenePaper
from scene_edge.models.siglip import clip_embeddings
from scene_edge.models.sizes import build_scene


def thumbnail(picture: Tensor) -> Tensor:
    """Packed float [1, 24, h, w] -> packed float [1, 24, 18, 32] by area averaging of each plane."""
    rows, columns = THUMB
    scales = (4, 2, 2)
    return from_planes(
        [
            F.adaptive_avg_pool2d(plane, (rows * scale, columns * scale))
            for plane, scale in zip(to_planes(picture), scales, strict=True)
        ]
    )


class SceneTraining:
    """One training run of SCENE; `train` below is the way in."""

    def __init__(self, config: SceneRun, folder: Path) -> None:
        self.config = config
        self.sampler = ClipSampler(folder, config.seed, size=config.crop, length=config.length)
        self.model = build_scene(config.size).to(device()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.embeddings = self._embeddings(folder)
        self.codec = build_codec(config.proxy, config.real_codec).to(device())
        self.machine = MachineDistance(config.data / config.instrument).to(device())
        self.trainer = Trainer(config, self.model)
        self.random = np.random.default_rng(config.seed + self.trainer.steps)
        self.sampler.random = self.random
        self.price: float | None = None
        self.gain = 0.0

    def _embeddings(self, folder: Path) -> Tensor | None:
        """SigLIP 2's embedding of every clip [clips, 1152, 1, 1], where the network asks for it."""
        if not (isinstance(self.model, ScenePaper) and self.model.config.semantic):
            return None
        originals = [array["original"] for array in self.sampler.arrays]
        found = clip_embeddings(folder, originals, self.config.data / self.config.siglip)
        if found.shape[1] != self.model.config.embedding:
            raise ConfigError(
                "that SigLIP is of another size",
                got=f"embeddings of {found.shape[1]}",
                allowed=f"{self.model.config.embedding}, as So400M's",
            )
        return torch.from_numpy(found)[..., None, None].to(device())

    def _coefficients(self, clips: Sequence[int], wholes: Sequence[U8]) -> Tensor | None:
        """Coefficients [B, K, 1, 1] of clips, by number and a whole packed picture of each; none for the baseline."""
        if self.embeddings is not None:
            known = self.embeddings[list(clips)]
        elif isinstance(self.model, SceneNet):
            known = torch.cat([thumbnail(from_packed(torch.from_numpy(whole)[None].to(device()))) for whole in wholes])
        else:
            return None
        coefficients: Tensor = self.model.prior(known).float()
        return coefficients

    def _frames(self, batch: Batch) -> list[Tensor]:
        """Frames [B, 24, h, w] of a batch of crops."""
        return [
            from_packed(torch.from_numpy(batch.original[:, index]).to(device())) for index in range(self.config.length)
        ]

    def _qualities(self, decoded: list[Tensor], original: list[Tensor], truth: list[Tensor]) -> Tensor:
        """Weighted sum of log distortions, [B]; the machine looks at the last frame, and only where it has a weight."""
        config = self.config
        sample = torch.stack([(a - b).abs().mean((1, 2, 3)) for a, b in zip(decoded, original, strict=True)]).mean(0)
        likeness = torch.stack([ssim(_luma(a), _luma(b)) for a, b in zip(decoded, original, strict=True)]).mean(0)
        total: Tensor = config.sample_weight * torch.log(sample + 1e-3)
        total = total + config.ssim_weight * torch.log(1.0 - likeness + 1e-2)
        if config.machine_weight:
            with autocast():
                machine = self.machine.distance(self.machine.features(decoded[-1]), truth)
            total = total + config.machine_weight * torch.log(machine + 0.05)
        return total

    @torch.no_grad()
    def _measure_price(self, frames: list[Tensor], truth: list[Tensor], qp: float) -> None:
        """Follow mu: how much log distortion the codec itself buys for one unit of log rate."""
        fine, fine_bits = self.codec(frames, qp - 3)
        coarse, coarse_bits = self.codec(frames, qp + 3)
        gain = (self._qualities(coarse, frames, truth) - self._qualities(fine, frames, truth)).mean()
        spent = (torch.log(fine_bits) - torch.log(coarse_bits)).mean()
        measured = float(gain / spent.clamp_min(1e-3))
        self.price = measured if self.price is None else 0.9 * self.price + 0.1 * measured

    def step(self, progress: Progressed) -> tuple[Tensor, dict[str, float]]:
        batch = self.sampler.sample(self.config.batch)
        frames = self._frames(batch)
        qp = float(self.random.uniform(26, 46))
        with torch.no_grad(), autocast():
            truth = self.machine.features(frames[-1]) if self.config.machine_weight else []
        if self.price is None or progress.step % 5 == 0:
            self._measure_price(frames, truth, qp)
        with autocast():
            coefficients = self._coefficients(batch.clips.tolist(), batch.whole)
            filtered = [self.model(frame, coefficients).float() for frame in frames]
        rounded = [frame + ((frame * 255).round().clamp(0, 255) / 255 - frame).detach() for frame in filtered]
        decoded, bits = self.codec(rounded, qp)
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
        plain, plain_bits = self.codec(frames, qp)
        plain_quality = float(self._qualities(plain, frames, truth).mean())
        return plain_quality - quality + float(self.price or 0.0) * (float(torch.log(plain_bits).mean()) - rate)

    @torch.no_grad()
    def evaluate(self, clips: int = 8) -> dict[str, float]:
        """Real x264 on training clips: bits with the filter over bits without, and likewise the machine distance."""
        bits, machine = [], []
        for index in np.linspace(0, len(self.sampler.arrays) - 1, clips).astype(int):
            whole = np.array(self.sampler.arrays[index]["original"][:12])
            picture = from_packed(torch.from_numpy(whole)).to(device())
            coefficients = self._coefficients([int(index)], [whole[0]])
            filtered = to_packed(self.model(picture, coefficients)).cpu().numpy()
            for crf in (35, 43):
                results = [x264_round_trip([_exact(frame) for frame in frames], crf) for frames in (whole, filtered)]
                seen = [self._seen(result[0][-1], picture[-1:]) for result in results]
                bits.append(sum(results[1][1]) / sum(results[0][1]))
                machine.append((seen[1] + 0.05) / (seen[0] + 0.05))
        return {"bits_ratio": round(float(np.mean(bits)), 4), "machine_ratio": round(float(np.mean(machine)), 4)}

    def _seen(self, decoded: Planes, original: Tensor) -> float:
        rows, columns = original.shape[2:]
        lossy = from_packed(torch.from_numpy(pack(decoded)[None, :rows, :columns])).to(device())
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
    record["recipe"] = config.as_dict()
    through = "x264 with the gradient of the " if config.real_codec else "the "
    record["data"] = f"{len(training.sampler.entries)} clips through {through}{config.proxy} proxy, QP 26 to 46"
    return record
