"""Training of SMC against the camera's own H.264: mine the residual semantics, code them, fuse; pay the codec's price.

Three stages over the time box, since a side stream that is rounded and taxed from the first step stays silent:
noisy and free, so that it must speak up to be heard; rounded, at a price that rises; and at its full price. The price
is the base codec's own exchange rate: measured loss per ln(bits) of x264 on the training clips. So training
spends a bit on semantics exactly where it buys more than a bit of video would.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scene_edge.codec.planes import U8
from scene_edge.models.data import ClipSampler, DataConfig, build_cache
from scene_edge.models.layers import conv, from_packed
from scene_edge.models.loop import Progressed, RunConfig, Trainer, autocast, device
from scene_edge.models.objectives import LatentPrior, MachineDistance, rate_slope
from scene_edge.models.smc import Smc, SmcConfig

FREE, FULL_PRICE = 0.15, 0.4
"""Fractions of the time box at which the latent begins to be rounded and paid for, and costs its full price."""


@dataclass
class SmcRun(RunConfig):
    """Weights of the objective's terms; see `SmcObjective`."""

    smc: SmcConfig = field(default_factory=SmcConfig)
    instrument: str = "models/yolox_nano.onnx"
    sample_weight: float = 8.0
    machine_weight: float = 1.0
    semantic_weight: float = 0.5
    rate_weight: float = 1.0
    drop: float = 0.15
    crop: int = 256
    length: int = 3


class SmcObjective(nn.Module):
    """Everything trained beside the networks that ship: the latent's prior and the head that grounds S and S^.

    Loss = sample_weight * L1(fused, original) + machine_weight * MachineDistance(fused, original)
         + semantic_weight * (|H(S) - phi| + |H(S^) - phi|) + rate_weight * slope * semantic bits / video bits,
    where phi is the detector's stride-16 feature of the original. With probability `drop` a sample's latent is lost.
    """

    def __init__(self, config: SmcRun) -> None:
        super().__init__()
        self.prior = LatentPrior(config.smc.latent)
        self.head = nn.Sequential(conv(config.smc.semantic, 96), nn.ReLU(), conv(96, 128, 1))


class SmcTraining:
    """One training run of SMC; `train` below is the way in."""

    def __init__(self, config: SmcRun, folder: Path) -> None:
        self.config = config
        self.sampler = ClipSampler(folder, config.seed, size=config.crop, length=config.length)
        self.model = Smc(config.smc).to(device()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objective = SmcObjective(config).to(device())
        self.machine = MachineDistance(config.data / config.instrument).to(device())
        self.trainer = Trainer(config, self.model, self.objective, faster=list(self.objective.prior.parameters()))
        self.sampler.random = torch_seeded(config.seed + self.trainer.steps)
        self.slope = self._slope()

    @torch.no_grad()
    def _slope(self) -> float:
        """The base codec's loss per ln(bits), over crops at every CRF."""
        points = []
        for crf in self.sampler.crfs:
            batch = self.sampler.sample(8, crf)
            original = _pictures(batch.original[:, -1])
            lossy = _pictures(batch.lossy[:, -1])
            with autocast():
                seen, truth = self.machine.features(lossy), self.machine.features(original)
            loss = self.config.machine_weight * self.machine.distance(seen, truth)
            loss = loss + self.config.sample_weight * (lossy - original).abs().mean((1, 2, 3))
            points += [(float(rate), float(value)) for rate, value in zip(batch.video_bpp, loss, strict=True)]
        return rate_slope(points)

    def step(self, progress: Progressed) -> tuple[Tensor, dict[str, float]]:
        config = self.config
        batch = self.sampler.sample(config.batch)
        video_bits = torch.from_numpy(batch.video_bpp).to(device()) * config.crop**2
        kept = (torch.rand(config.batch, 1, 1, 1, device=device()) >= config.drop).float()
        quantised = progress.fraction > FREE
        price = config.rate_weight * self.slope * min(1.0, max(0.0, (progress.fraction - FREE) / (FULL_PRICE - FREE)))
        states = self.model.states(config.batch, config.crop // 4, config.crop // 4)
        previous: Tensor | None = None
        total, figures = torch.zeros((), device=device()), {"pixel": 0.0, "machine": 0.0, "semantic": 0.0, "share": 0.0}
        for index in range(config.length):
            graded = index == config.length - 1
            pair = _pictures(batch.original[:, index]), _pictures(batch.lossy[:, index])
            terms, previous = self._frame(*pair, states, previous, kept, quantised, graded)
            share = (terms["bits"] / video_bits * kept[:, 0, 0, 0]).mean()
            total = total + (config.sample_weight * terms["pixel"] + price * share + terms["prior"]) / config.length
            total = total + config.semantic_weight * terms["semantic"] + config.machine_weight * terms["machine"]
            figures["pixel"] += float(terms["pixel"].detach()) / config.length
            figures["share"] += float(share.detach()) / config.length
        return total, figures | {key: float(terms[key].detach()) for key in ("machine", "semantic")}

    def _frame(
        self,
        original: Tensor,
        lossy: Tensor,
        states: dict[str, Tensor],
        previous: Tensor | None,
        kept: Tensor,
        quantised: bool,
        graded: bool,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """One frame of the sequence; `states` is moved on in place. Returns the loss terms and the integer latent."""
        model = self.model
        with autocast():
            semantic, states["sem"] = model.sem_net(original, states["sem"])
            seen, states["lossy"] = model.sem_net_s(lossy, states["lossy"])
            latent = model.sem_enc(semantic - seen).float()
            noisy = latent + torch.rand_like(latent) - 0.5
            rounded = latent + (latent.round() - latent).detach() if quantised else noisy
            bits = self.objective.prior.bits(noisy, previous)
            fitted = self.objective.prior.bits(noisy.detach(), previous).mean() / latent[0].numel()
            compensated = seen + model.sem_dec(rounded * kept)
            fused, states["fuse"] = model.f_net(lossy, compensated, states["fuse"])
            terms = {"bits": bits, "prior": fitted, "pixel": (fused.float() - original).abs().mean()}
            nothing = torch.zeros((), device=fused.device)
            terms |= {"semantic": nothing, "machine": nothing}
            if graded:  # only the last frame has its whole memory; grading the others costs more than it teaches
                with torch.no_grad():
                    truth = self.machine.features(original)
                terms["semantic"] = self._grounding(semantic, compensated, truth[1], kept)
                terms["machine"] = self.machine.distance(self.machine.features(fused), truth).mean()
        return terms, latent.detach().round()

    def _grounding(self, semantic: Tensor, compensated: Tensor, truth: Tensor, kept: Tensor) -> Tensor:
        """How badly S, and S^ where its packet arrived, foretell the detector's stride-16 feature of the original."""
        foretold = self.objective.head(torch.cat([semantic, compensated])).float()
        error = (foretold - torch.cat([truth, truth])).abs().mean((1, 2, 3)) / (truth.abs().mean() + 1e-6)
        return (error * torch.cat([torch.ones_like(kept[:, 0, 0, 0]), kept[:, 0, 0, 0]])).mean()

    @torch.no_grad()
    def evaluate(self, batches: int = 12) -> dict[str, float]:
        """Machine distance on fresh crops: lossy, fused without the latent, fused with it; and the latent's share."""
        sums = {"lossy": 0.0, "fused_without_latent": 0.0, "fused": 0.0, "share": 0.0}
        model = self.model
        for number in range(batches):
            crf = self.sampler.crfs[number % len(self.sampler.crfs)]
            batch = self.sampler.sample(8, crf)
            for kept in (0.0, 1.0):
                states = model.states(8, self.config.crop // 4, self.config.crop // 4)
                previous = None
                for index in range(self.config.length):
                    original = _pictures(batch.original[:, index])
                    lossy = _pictures(batch.lossy[:, index])
                    mask = torch.full((8, 1, 1, 1), kept, device=device())
                    terms, previous = self._frame(
                        original, lossy, states, previous, mask, True, index == self.config.length - 1
                    )
                sums["fused" if kept else "fused_without_latent"] += float(terms["machine"]) / batches
            video_bits = torch.from_numpy(batch.video_bpp).to(device()) * self.config.crop**2
            sums["share"] += float((terms["bits"] / video_bits).mean()) / batches
            with autocast():
                seen, truth = self.machine.features(lossy), self.machine.features(original)
            sums["lossy"] += float(self.machine.distance(seen, truth).mean()) / batches
        return {key: round(value, 4) for key, value in sums.items()}


def _pictures(packed: U8) -> Tensor:
    """Packed u8 [B, h, w, 24] as a float batch on the training device."""
    return from_packed(torch.from_numpy(np.ascontiguousarray(packed)).to(device()))


def torch_seeded(seed: int) -> Any:
    """Seed torch, and return numpy's generator for the same seed."""
    torch.manual_seed(seed)
    return np.random.default_rng(seed)


def train(config: SmcRun) -> dict[str, Any]:
    """Train (or go on training) SMC; returns the training record. Raises ConfigError where the data is missing."""
    torch.set_num_threads(config.threads)
    torch_seeded(config.seed)
    folder = build_cache(DataConfig(config.data), config.out.parent / "cache")
    training = SmcTraining(config, folder)
    record = training.trainer.run(training.step)
    training.model.load_state_dict(training.trainer.average)
    record["slope"] = round(training.slope, 5)
    record["training_clips_check"] = training.evaluate()
    record["data"] = f"{len(training.sampler.entries)} clips, x264 superfast zerolatency at CRF {training.sampler.crfs}"
    return record
