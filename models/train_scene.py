"""Training of SCENE through a codec: the same quality for fewer bits, as a machine and as a metric see it.

The loss is a BD-rate in miniature. For each quality k the distortion D_k is compared in logarithms, and bits are
charged at the codec's own exchange rate: J = sum_k w_k log D_k + mu log R, with mu = -sum_k w_k dlogD_k / dlogR
measured by coding the *unfiltered* picture at neighbouring QPs. A filter that lowers J beats turning the QP. What it
raises the rate by, beside the unfiltered picture at the same QP, is charged once more: a camera's uplink is what it is.
Which codec the recipe says: a differentiable proxy, or real x264 with the proxy's gradient (`models.proxy`).
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
from scene_edge.models.data import GOP, Batch, ClipSampler, DataConfig, build_cache, x264_round_trip
from scene_edge.models.detail import DetailLoss
from scene_edge.models.layers import from_packed, to_packed
from scene_edge.models.loop import Progressed, Trainer, autocast, device
from scene_edge.models.objectives import MachineDistance, multi_scale_ssim
from scene_edge.models.proxy import build_codec
from scene_edge.models.recipes import SceneRun
from scene_edge.models.scene import COARSENESS, THUMB, SceneNet
from scene_edge.models.scene_paper import ScenePaper
from scene_edge.models.siglip import clip_embeddings
from scene_edge.models.sizes import build_scene
from scene_edge.models.start import load_start

IMITATED = 2
"""Times as many pictures in a step that meets no codec."""

PRICE_BIN = 6
"""QPs that share an exchange rate."""


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
        self.taken: set[str] = set() if config.start is None else load_start(self.model, config.start)
        if config.teacher is not None and not config.imitated:
            raise ConfigError("that recipe imitates nobody", got=config.size, hint="Leave out --teacher.")
        self.teacher = None if config.teacher is None else _taught(config.teacher_size, config.teacher)
        self.embeddings = self._embeddings(folder)
        self.codec = build_codec(config.proxy, config.real_codec).to(device())
        self.detail = DetailLoss().to(device())
        self.machine = MachineDistance(config.data / config.instrument).to(device())
        self.trainer = Trainer(config, self.model)
        self.random = np.random.default_rng(config.seed + self.trainer.steps)
        self.sampler.random = self.random
        self.prices: dict[int, float] = {}
        self.gain: dict[str, float] = {}

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

    def controls(self, clips: Sequence[int], wholes: Sequence[U8], qp: float) -> Tensor | None:
        """What the filter is told of clips, by number and a whole packed picture of each; none for the baseline."""
        if self.embeddings is not None:
            known = self.embeddings[list(clips)]
        elif isinstance(self.model, SceneNet):
            known = _thumbnails(wholes)
            if self.config.prior != "scene":
                known = torch.rand_like(known) if self.config.prior == "noise" else torch.full_like(known, 0.5)
        else:
            return None
        coefficients: Tensor = self.model.prior(known).float()
        return self.model.controls(coefficients, qp) if isinstance(self.model, SceneNet) else coefficients

    def filtered(self, frames: Sequence[Tensor], controls: Tensor | None) -> list[Tensor]:
        """A sequence through the filter, in order."""
        out: list[Tensor] = []
        for frame in frames:
            if isinstance(self.model, SceneNet) and self.model.config.temporal:
                out.append(self.model(frame, controls, out[-1] if out else None).float())
            else:
                out.append(self.model(frame, controls).float())
        return out

    def frames(self, batch: Batch) -> list[Tensor]:
        """Frames [B, 24, h, w] of a batch of crops."""
        return [
            from_packed(torch.from_numpy(batch.original[:, index]).to(device())) for index in range(self.config.length)
        ]

    def qualities(self, decoded: list[Tensor], original: list[Tensor], truth: list[Tensor]) -> Tensor:
        """Weighted sum of log distortions, [B]; what is dear to compute looks at the last frame alone."""
        config = self.config
        sample = torch.stack([(a - b).abs().mean((1, 2, 3)) for a, b in zip(decoded, original, strict=True)]).mean(0)
        total: Tensor = config.sample_weight * torch.log(sample + 1e-3)
        luma, known = _luma(decoded[-1]), _luma(original[-1])
        if config.ssim_weight:
            total = total + config.ssim_weight * torch.log(1.0 - multi_scale_ssim(luma, known) + 5e-3)
        if config.detail_weight:
            total = total + config.detail_weight * torch.log(self.detail(luma, known) + 1e-2)
        if config.machine_weight:
            with autocast():
                machine = self.machine.distance(self.machine.features(decoded[-1]), truth)
            total = total + config.machine_weight * torch.log(machine + 0.05)
        return total

    @torch.no_grad()
    def _measure_price(self, frames: list[Tensor], truth: list[Tensor], qp: float) -> float:
        """Follow mu, near this QP: how much log distortion the codec itself buys for one unit of log rate."""
        fine, fine_bits = self.codec(frames, qp - 3)
        coarse, coarse_bits = self.codec(frames, qp + 3)
        gain = (self.qualities(coarse, frames, truth) - self.qualities(fine, frames, truth)).mean()
        spent = (torch.log(of_gop(fine_bits)) - torch.log(of_gop(coarse_bits))).mean()
        near, measured = round(qp / PRICE_BIN), float(gain / spent.clamp_min(1e-3))
        self.prices[near] = 0.9 * self.prices.get(near, measured) + 0.1 * measured
        return self.prices[near]

    def step(self, progress: Progressed) -> tuple[Tensor, dict[str, float]]:
        if self.teacher is not None and progress.fraction < self.config.imitated:
            return self._imitation(self.teacher)
        batch = self.sampler.sample(self.config.batch)
        frames = self.frames(batch)
        qp = float(self.random.integers(round(COARSENESS[0]), round(COARSENESS[1]) + 1))
        with torch.no_grad(), autocast():
            truth = self.machine.features(frames[-1]) if self.config.machine_weight else []
        price = self.prices.get(round(qp / PRICE_BIN))
        if price is None or progress.step % 8 == 0:
            price = self._measure_price(frames, truth, qp)
        with autocast():
            controls = self.controls(batch.clips.tolist(), batch.whole, qp)
            filtered = self.filtered(frames, controls)
        rounded = [frame + ((frame * 255).round().clamp(0, 255) / 255 - frame).detach() for frame in filtered]
        decoded, bits = self.codec(rounded, qp)
        with torch.no_grad():
            plain, plain_bits = self.codec(frames, qp)
        quality = self.qualities(decoded, frames, truth).mean()
        rise = torch.log(of_gop(bits)) - torch.log(of_gop(plain_bits))
        moved = torch.stack([(a - b).abs().mean() for a, b in zip(filtered, frames, strict=True)]).mean()
        loss = quality + price * rise.mean() + self.config.rise_weight * F.relu(rise).mean()
        loss = loss + self.config.pre_proxy_weight * moved
        figures = {"rise": rise.mean(), "risen": F.relu(rise).mean(), "moved": moved}
        if progress.step % 10 == 0:
            self.gain = self._gain(plain, frames, truth, float(quality.detach()), price * float(rise.detach().mean()))
        return loss, {**{key: float(value.detach()) for key, value in figures.items()}, "price": price, **self.gain}

    def _imitation(self, teacher: SceneNet) -> tuple[Tensor, dict[str, float]]:
        """What of the change that a taught filter makes to single pictures this one does not make, in energy."""
        batch = self.sampler.sample(IMITATED * self.config.batch)
        picture = from_packed(torch.from_numpy(batch.original[:, 0]).to(device()))
        qp = float(self.random.uniform(*COARSENESS))
        with torch.no_grad(), autocast():
            controls = teacher.controls(teacher.prior(_thumbnails(batch.whole)).float(), qp)
            wanted = teacher(picture, controls).float() - picture
        with autocast():
            made = self.model(picture, self.controls(batch.clips.tolist(), batch.whole, qp)).float() - picture
        unlike = (made - wanted).square().mean((1, 2, 3)) / wanted.square().mean((1, 2, 3)).clamp_min(1e-8)
        loss = unlike.mean()
        return loss, {"unlike": float(loss.detach())}

    @torch.no_grad()
    def _gain(
        self, plain: list[Tensor], frames: list[Tensor], truth: list[Tensor], quality: float, cost: float
    ) -> dict[str, float]:
        """How far the quality lies below that of the unfiltered frames, and J: positive is better."""
        better = float(self.qualities(plain, frames, truth).mean()) - quality
        return {"better": better, "gain": better - cost}

    @torch.no_grad()
    def evaluate(self, clips: int = 8) -> dict[str, float]:
        """Real x264 on training clips: bits with the filter over bits without, and likewise the machine distance."""
        bits, machine = [], []
        for index in np.linspace(0, len(self.sampler.arrays) - 1, clips).astype(int):
            whole = np.array(self.sampler.arrays[index]["original"][:12])
            picture = from_packed(torch.from_numpy(whole)).to(device())
            for crf in (27, 35, 43):
                controls = self.controls([int(index)], [whole[0]], crf)
                seen = self.filtered(picture.split(1), controls)
                filtered = np.concatenate([to_packed(frame).cpu().numpy() for frame in seen])
                results = [x264_round_trip([_exact(frame) for frame in frames], crf) for frames in (whole, filtered)]
                far = [self._seen(result[0][-1], picture[-1:]) for result in results]
                bits.append(sum(results[1][1]) / sum(results[0][1]))
                machine.append((far[1] + 0.05) / (far[0] + 0.05))
        return {"bits_ratio": round(float(np.mean(bits)), 4), "machine_ratio": round(float(np.mean(machine)), 4)}

    def _seen(self, decoded: Planes, original: Tensor) -> float:
        rows, columns = original.shape[2:]
        lossy = from_packed(torch.from_numpy(pack(decoded)[None, :rows, :columns])).to(device())
        size = [side // 8 * 8 for side in (rows, columns)]  # the detector halves the picture five times
        pair = [x[:, :, : size[0], : size[1]] for x in (lossy, original)]
        return float(self.machine.distance(self.machine.features(pair[0]), self.machine.features(pair[1])))


def _thumbnails(wholes: Sequence[U8]) -> Tensor:
    return torch.cat([thumbnail(from_packed(torch.from_numpy(whole)[None].to(device()))) for whole in wholes])


def _taught(size: str, path: Path) -> SceneNet:
    """A network for cameras that another run has taught. Raises ConfigError for one of another kind."""
    teacher = build_scene(size)
    if not isinstance(teacher, SceneNet) or teacher.config.temporal:
        raise ConfigError("no filter that could be imitated", got=size, allowed="scene-m, scene-s")
    missing = set(teacher.state_dict()) - load_start(teacher, path)
    if missing:
        raise ConfigError(f"{path} is no {size}", got=f"without {', '.join(sorted(missing)[:3])}")
    return teacher.to(device()).to(memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]


def of_gop(bits: Tensor) -> Tensor:
    """Bits of a keyframe and a few frames after it [B, T] -> of a whole GOP that goes on like them [B]."""
    following = bits[:, 1:].mean(1) if bits.shape[1] > 1 else torch.zeros_like(bits[:, 0])
    return bits[:, 0] + (GOP - 1) * following


def _luma(picture: Tensor) -> Tensor:
    return F.pixel_shuffle(picture[:, :16], 4)[:, 0].contiguous()[:, None]  # not channels-last, for speed


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
    if training.taken:
        record["start"] = f"{len(training.taken)} of {len(training.model.state_dict())} weights of another run"
    if training.teacher is not None:
        record["teacher"] = f"{config.teacher_size}, imitated for the first {config.imitated:.0%} of the time"
    record["recipe"] = config.as_dict()
    through = "x264 with the gradient of the " if config.real_codec else "the "
    qps = f"QP {COARSENESS[0]:.0f} to {COARSENESS[1]:.0f}"
    record["data"] = f"{len(training.sampler.entries)} clips through {through}{config.proxy} proxy, {qps}"
    return record
