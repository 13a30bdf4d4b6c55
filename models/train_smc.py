"""Training of SMC against the camera's own H.264: mine the residual semantics, code them, fuse; pay the codec's price.

Four stages over the time box, since a side stream that is rounded and taxed from the first step stays silent: the
Sem-Nets alone learn what a frozen detector sees; then everything, exact and free; then the latent is spread over some
steps and rounded, at a price that rises; then at its full price. The price is the base codec's own exchange rate:
measured loss per ln(bits) of x264 on the training clips. So training spends a bit on semantics exactly where it buys
more than a bit of video would.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scene_edge.models.data import ClipSampler, DataConfig, build_cache
from scene_edge.models.layers import conv
from scene_edge.models.loop import Progressed, RunConfig, Trainer, autocast, device
from scene_edge.models.objectives import LatentPrior, MachineDistance, rate_slope
from scene_edge.models.operating_point import choose_step, pictures
from scene_edge.models.smc import Smc, SmcConfig

GROUNDED, FREE, FULL_PRICE = 0.15, 0.35, 0.55
"""Fractions of the time box: Sem-Nets grounded; end of the free latent; the latent costs its full price."""


@dataclass
class SmcRun(RunConfig):
    """Weights of the objective's terms; see `SmcObjective`."""

    smc: SmcConfig = field(default_factory=SmcConfig)
    instrument: str = "models/yolox_nano.onnx"
    sample_weight: float = 8.0
    machine_weight: float = 1.0
    semantic_weight: float = 1.0
    rate_weight: float = 0.5
    drop: float = 0.15
    crop: int = 256
    length: int = 3


class SmcObjective(nn.Module):
    """Everything trained beside the networks that ship: the latent's prior and the head H that grounds S and S^.

    Loss = sample_weight * L1(fused, original) + machine_weight * MachineDistance(fused, original)
         + semantic_weight * (D(H(S), phi) + D(H(S^), phi) + |S~ - sg(S)|^2 + |S^ - sg(S)|^2)
         + rate_weight * slope * semantic bits / video bits,
    where phi is the detector's stride-16 feature of the original, each channel at unit spread, D the smooth L1
    distance and sg a stopped gradient. Only the semantic terms reach the Sem-Nets: through the others the noise of
    fusion shrinks S to nothing within a hundred steps. With probability `drop` a sample's latent is lost.
    """

    scaled: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(self, config: SmcRun) -> None:
        super().__init__()
        self.prior = LatentPrior(config.smc.latent)
        self.head = nn.Sequential(conv(config.smc.semantic, 96), nn.ReLU(), conv(96, PHI, 1))
        with torch.no_grad():
            self.head[2].weight.mul_(0.1)  # type: ignore[operator]
        self.register_buffer("scaled", torch.zeros(()))
        self.register_buffer("centre", torch.zeros(PHI, 1, 1))
        self.register_buffer("spread", torch.ones(PHI, 1, 1))


PHI = 128
"""Channels of the detector's feature that grounds the semantics."""

LATENT_STD = 0.7
"""Spread of each latent channel, in steps, when rounding begins: half of the values are zero, the strong ones speak."""


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
        if self.trainer.steps == 0:
            self._measure_semantics()

    @torch.no_grad()
    def _slope(self) -> float:
        """The base codec's loss per ln(bits), over crops at every CRF."""
        points = []
        for crf in self.sampler.crfs:
            batch = self.sampler.sample(8, crf)
            original = pictures(batch.original[:, -1])
            lossy = pictures(batch.lossy[:, -1])
            with autocast():
                seen, truth = self.machine.features(lossy), self.machine.features(original)
            loss = self.config.machine_weight * self.machine.distance(seen, truth)
            loss = loss + self.config.sample_weight * (lossy - original).abs().mean((1, 2, 3))
            points += [(float(rate), float(value)) for rate, value in zip(batch.video_bpp, loss, strict=True)]
        return rate_slope(points)

    @torch.no_grad()
    def _measure_semantics(self) -> None:
        """Before the first step: the mean and spread of phi, and unit spread for S and S~."""
        batch = self.sampler.sample(32)
        original, lossy = pictures(batch.original[:, -1]), pictures(batch.lossy[:, -1])
        phi = self.machine.features(original)[1]
        self.objective.centre.copy_(phi.mean((0, 2, 3))[:, None, None])
        self.objective.spread.copy_(phi.std((0, 2, 3))[:, None, None] + 1e-3)
        states = self.model.states(32, *original.shape[2:])
        for net, picture, key in ((self.model.sem_net, original, "sem"), (self.model.sem_net_s, lossy, "lossy")):
            net.head.weight.div_(net(picture, states[key])[0].std())

    @torch.no_grad()
    def _scale_latent(self) -> None:
        """Once, before the first rounding: spread every channel over some steps of the quantiser."""
        batch = self.sampler.sample(16)
        original, lossy = pictures(batch.original[:, -1]), pictures(batch.lossy[:, -1])
        states = self.model.states(16, *original.shape[2:])
        semantic, seen = self.model.sem_net(original, states["sem"])[0], self.model.sem_net_s(lossy, states["lossy"])[0]
        gain = LATENT_STD / self.model.sem_enc(semantic - seen).std((0, 2, 3)).clamp_min(1e-6)
        self.model.rescale_latent(gain)
        for key in ("sem_enc.head.weight", "sem_enc.head.bias", "sem_dec.stem.weight"):
            self.trainer.average[key].copy_(self.model.state_dict()[key])
        self.objective.prior.log_scale.fill_(0.0)
        self.objective.scaled.fill_(1.0)

    def step(self, progress: Progressed) -> tuple[Tensor, dict[str, float]]:
        config = self.config
        batch = self.sampler.sample(config.batch)
        video_bits = torch.from_numpy(batch.video_bpp).to(device()) * config.crop**2
        kept = (torch.rand(config.batch, 1, 1, 1, device=device()) >= config.drop).float()
        fusing, quantised = progress.fraction > GROUNDED, progress.fraction > FREE
        if quantised and not bool(self.objective.scaled):
            self._scale_latent()
        price = config.rate_weight * self.slope * min(1.0, max(0.0, (progress.fraction - FREE) / (FULL_PRICE - FREE)))
        states = self.model.states(config.batch, config.crop // 4, config.crop // 4)
        previous: Tensor | None = None
        total, figures = torch.zeros((), device=device()), {"pixel": 0.0, "machine": 0.0, "semantic": 0.0, "share": 0.0}
        for index in range(config.length):
            graded = index == config.length - 1
            pair = pictures(batch.original[:, index]), pictures(batch.lossy[:, index])
            terms, previous = self._frame(*pair, states, previous, kept, quantised, fusing, graded)
            share = (terms["bits"] / video_bits * kept[:, 0, 0, 0]).mean()
            total = total + (config.sample_weight * terms["pixel"] + price * share + terms["prior"]) / config.length
            total = total + config.semantic_weight * terms["semantic"] + config.machine_weight * terms["machine"]
            figures["pixel"] += float(terms["pixel"].detach()) / config.length
            figures["share"] += float(share.detach()) / config.length
        return total, figures | {key: float(terms[key].detach()) for key in ("machine", "semantic", "explained")}

    def _frame(
        self,
        original: Tensor,
        lossy: Tensor,
        states: dict[str, Tensor],
        previous: Tensor | None,
        kept: Tensor,
        quantised: bool,
        fusing: bool,
        graded: bool,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """One frame of the sequence; `states` is moved on in place. Returns the loss terms and the integer latent."""
        model = self.model
        with autocast():
            semantic, states["sem"] = model.sem_net(original, states["sem"])
            seen, states["lossy"] = model.sem_net_s(lossy, states["lossy"])
            nothing = torch.zeros((), device=lossy.device)
            terms = {"bits": nothing.expand(len(lossy)), "machine": nothing, "semantic": nothing, "pixel": nothing}
            terms |= {"explained": nothing, "prior": nothing}
            truth: list[Tensor] = []
            if graded:  # only the last frame has its whole memory; grading the others costs more than it teaches
                with torch.no_grad():
                    truth = self.machine.features(original)
                terms["semantic"] = self._grounded(semantic, truth[1]).mean() + _apart(seen, semantic).mean()
            if not fusing:
                return terms, torch.zeros(len(lossy), model.config.latent, *seen.shape[2:], device=lossy.device)
            latent = model.sem_enc((semantic - seen).detach()).float()
            # bits of the rounded values: noise would charge silence its own entropy, and price every latent out
            rounded = latent + (latent.round() - latent).detach()
            terms["bits"] = self.objective.prior.bits(rounded, previous)
            terms["prior"] = self.objective.prior.bits(rounded.detach(), previous).mean() / latent[0].numel()
            rounded = rounded if quantised else latent
            compensated = seen.detach() + model.sem_dec(rounded * kept)
            fused, states["fuse"] = model.f_net(lossy, compensated, states["fuse"])
            terms["pixel"] = (fused.float() - original).abs().mean()
            if graded:
                here = kept[:, 0, 0, 0]
                rest = _apart(compensated, semantic)
                terms["semantic"] = terms["semantic"] + ((self._grounded(compensated, truth[1]) + rest) * here).mean()
                terms["explained"] = 1.0 - (rest * here).sum() / (
                    _apart(seen.detach(), semantic) * here
                ).sum().clamp_min(1e-6)
                terms["machine"] = self.machine.distance(self.machine.features(fused), truth).mean()
        return terms, latent.detach().round()

    def _grounded(self, semantic: Tensor, truth: Tensor) -> Tensor:
        """How badly S, or S^, foretells the detector's feature of the original: [B]."""
        foretold = self.objective.head(semantic).float()
        wanted = (truth - self.objective.centre) / self.objective.spread
        return F.smooth_l1_loss(foretold, wanted, reduction="none").mean((1, 2, 3))


def _apart(first: Tensor, second: Tensor) -> Tensor:
    """Mean square distance of two semantic features, [B]; the second is the truth and learns nothing from it."""
    return (first.float() - second.detach().float()).square().mean((1, 2, 3))


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
    record |= choose_step(training.model, training.sampler, training.machine, training.slope, config.sample_weight)
    record["data"] = f"{len(training.sampler.entries)} clips, x264 superfast zerolatency at CRF {training.sampler.crfs}"
    return record
