"""Training of SMC against the camera's own H.264: mine the semantics, code what was lost of them, fuse; pay for bits.

Four stages over the time box, since a side stream that is rounded and taxed from the first step stays silent:
Sem-Net alone learns what a frozen detector sees, then stands still; then Sem-Enc, Sem-Dec and F-Net, with an exact and
free latent; then the latent is spread over some steps and rounded, at a price that rises; then at its full price. The
price is the base codec's own exchange rate: measured loss per ln(bits) of x264 on the training clips. So training
spends a bit on semantics exactly where it buys more than a bit of video would.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scene_edge.models.data import Batch, ClipSampler, DataConfig, build_cache
from scene_edge.models.instruments import OnnxFeatures
from scene_edge.models.layers import packed_to_bgr
from scene_edge.models.loop import Progressed, Trainer, autocast, device
from scene_edge.models.objectives import LatentPrior, MachineDistance
from scene_edge.models.operating_point import QUALITY_STEPS, measure_qualities, pictures, price_of_bits
from scene_edge.models.recipes import SmcRun
from scene_edge.models.semantic_objective import SemanticTerms
from scene_edge.models.sizes import build_smc

PHI_VALUE, PHI = "input.283", 128
"""The detector's value that Sem-Net learns to foretell (backbone, stride 16), and its channels."""

LATENT_STD = 0.4
"""Spread of each latent channel, in steps, when rounding begins: nearly all values are zero, the strong ones speak."""


class SmcObjective(nn.Module):
    """What is trained or measured beside the networks that ship: the latent's prior, and what S should be.

    S is to foretell the leading principal components of the detector's stride-16 feature phi, of the original and of
    the decoded frame alike: so S - S~ is what the codec took from a detector, not from a pixel.
    """

    scaled: Tensor
    centre: Tensor
    basis: Tensor

    def __init__(self, semantic: int, latent: int, terms: SemanticTerms) -> None:
        super().__init__()
        self.terms = terms
        self.prior = LatentPrior(latent, len(QUALITY_STEPS))
        self.register_buffer("scaled", torch.zeros(()))
        self.register_buffer("centre", torch.zeros(PHI))
        self.register_buffer("basis", torch.zeros(semantic, PHI))

    @torch.no_grad()
    def fit_basis(self, phi: Tensor) -> float:
        """Principal components of phi [B, 128, h, w], scaled to unit mean square; returns the share they explain.

        Every channel of phi counts alike: the detector's own scales say little about what matters to it.
        """
        rows = phi.permute(0, 2, 3, 1).reshape(-1, PHI)
        self.centre.copy_(rows.mean(0))
        spread = rows.std(0) + 1e-3
        rows = (rows - self.centre) / spread
        values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
        count = len(self.basis)
        leading = vectors[:, -count:].flip(1).T
        scale = (values[-count:].sum() / count).sqrt()
        self.basis.copy_(leading / spread / scale)
        return float(values[-count:].sum() / values.sum())

    def wanted(self, phi: Tensor) -> Tensor:
        """phi [B, 128, h, w] -> what S should be there [B, S, h, w]."""
        return F.conv2d(phi - self.centre[:, None, None], self.basis[:, :, None, None])


class SmcTraining:
    """One training run of SMC; `train` below is the way in.

    First stage: smooth L1 of S to phi(original), of S~ to phi(lossy), and, twice, of S - S~ to the difference. Then

        sample_weight * L1(fused, original) + machine_weight * MachineDistance(fused, original)
        + semantic_weight * |R^ - (S - S~)|^2 / |S - S~|^2 + rate_weight * slope * semantic bits / video bits
        + the terms of the paper's own objective that the recipe switches on (`SemanticTerms`),

    of the last frame of a sequence: the frames before only fill the memories. With probability `drop` a sample's
    latent is lost on all frames; the quantiser's step is drawn from QUALITY_STEPS for each batch.
    """

    def __init__(self, config: SmcRun, folder: Path) -> None:
        self.config = config
        self.sampler = ClipSampler(folder, config.seed, size=config.crop, length=config.length, relit=True)
        self.model = build_smc(config.size).to(device())
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        sizes = self.model.config
        terms = SemanticTerms(config.terms, sizes.semantic, config.data)
        self.objective = SmcObjective(sizes.semantic, sizes.latent, terms).to(device())
        self.machine = MachineDistance(config.data / config.instrument).to(device())
        self.teacher = OnnxFeatures(config.data / config.instrument, (PHI_VALUE,)).to(device())
        self.trainer = Trainer(config, self.model, self.objective, faster=list(self.objective.prior.parameters()))
        self.slope = price_of_bits(self.sampler, self.machine, config.sample_weight, config.machine_weight, config.seed)
        self.sampler.random = torch_seeded(config.seed + self.trainer.steps)
        if self.trainer.steps == 0 and config.mined:
            self._measure_semantics()

    @torch.no_grad()
    def _phi(self, picture: Tensor) -> Tensor:
        bgr = packed_to_bgr(picture).contiguous(memory_format=torch.channels_last)
        with autocast():
            (value,) = self.teacher(bgr)
        phi: Tensor = value.float()
        return phi

    @torch.no_grad()
    def _measure_semantics(self) -> None:
        """Before the first step: phi's principal components."""
        phi = torch.cat([self._phi(pictures(self.sampler.sample(8).original[:, -1])) for _ in range(12)])
        self.objective.fit_basis(phi)

    @torch.no_grad()
    def _scale_latent(self) -> None:
        """Once, before the first rounding: spread every channel over some steps of the quantiser."""
        latents = []
        for _ in range(4):
            semantic, seen = self._mined(self.sampler.sample(8))
            with autocast():
                latents.append(self.model.sem_enc(self._coded(semantic, seen)).float())
        gain = LATENT_STD / torch.cat(latents).std((0, 2, 3)).clamp_min(1e-6)
        self.model.rescale_latent(gain)
        for key in ("sem_enc.head.weight", "sem_enc.head.bias", "sem_dec.stem.weight"):
            self.trainer.average[key].copy_(self.model.state_dict()[key])
        self.objective.scaled.fill_(1.0)

    def _coded(self, semantic: Tensor, seen: Tensor) -> Tensor:
        """What Sem-Enc gets: what was lost, or, in open loop, all."""
        coded = (semantic - seen) if self.config.residual else semantic
        return coded.contiguous(memory_format=torch.channels_last)

    def _mined(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """S and S~ of the last frame, memories filled by those before."""
        states = self.model.states(len(batch.original), *batch.original.shape[2:4])
        with autocast():
            for index in range(batch.original.shape[1]):
                pair = pictures(batch.original[:, index]), pictures(batch.lossy[:, index])
                semantic, seen, states["sem"], states["lossy"] = self.model.mine_both(
                    *pair, states["sem"], states["lossy"]
                )
        return semantic, seen

    def step(self, progress: Progressed) -> tuple[Tensor, dict[str, float]]:
        batch = self.sampler.sample(self.config.batch)
        if progress.fraction < self.config.mined:
            return self._mine(batch)
        if progress.fraction >= self.config.free and not bool(self.objective.scaled):
            self._scale_latent()
        return self._compensate(batch, progress.fraction)

    def _mine(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """First stage: Sem-Net alone."""
        wanted = self.objective.wanted(self._phi(pictures(batch.original[:, -1])))
        wanted_lossy = self.objective.wanted(self._phi(pictures(batch.lossy[:, -1])))
        semantic, seen = self._mined(batch)
        semantic, seen = semantic.float(), seen.float()
        here = F.smooth_l1_loss(semantic, wanted) + F.smooth_l1_loss(seen, wanted_lossy)
        lost, wanted_lost = semantic - seen, wanted - wanted_lossy
        difference = F.smooth_l1_loss(lost, wanted_lost)
        explained = 1.0 - (lost - wanted_lost).square().sum() / wanted_lost.square().sum().clamp_min(1e-6)
        return here + 2.0 * difference, {"mined": float(here.detach()), "lost": float(explained.detach())}

    def _compensate(self, batch: Batch, fraction: float) -> tuple[Tensor, dict[str, float]]:
        """The other stages: everything but a Sem-Net that was taught, which stands still."""
        config, model, last = self.config, self.model, self.config.length - 1
        quality = int(torch.randint(len(QUALITY_STEPS), ()))
        step = QUALITY_STEPS[quality]
        kept = (torch.rand(config.batch, 1, 1, 1, device=device()) >= config.drop).float() * config.compensated
        states = model.states(config.batch, *batch.original.shape[2:4])
        previous: Tensor | None = None
        clip: dict[str, list[Tensor]] = {"original": [], "fused": [], "compensated": []}
        for index in range(config.length):
            original, lossy = pictures(batch.original[:, index]), pictures(batch.lossy[:, index])
            with autocast(), torch.set_grad_enabled(index == last and config.mined == 0.0):
                semantic, seen, states["sem"], states["lossy"] = model.mine_both(
                    original, lossy, states["sem"], states["lossy"]
                )
                residual = self._coded(semantic, seen)
            with autocast(), torch.set_grad_enabled(index == last):
                exact = model.sem_enc(residual).float() / step
                # rates of rounded values: noise would charge silence its own entropy, and price every latent out
                rounded = exact + (exact.round() - exact).detach()
                restored = model.sem_dec((rounded if fraction >= config.free else exact) * step * kept)
                fused, states["fuse"] = model.fuse(lossy, seen, restored, states["fuse"])
            compensated = (seen + restored) if config.residual else restored
            for key, value in (("original", original), ("fused", fused), ("compensated", compensated)):
                clip[key].append(value.float())
            if index < last:
                previous = rounded.detach()
        terms = self._terms(original, fused.float(), residual.float(), restored.float(), kept) | self._paper(clip)
        bits = self.objective.prior.bits(rounded, previous, quality)
        modelled = self.objective.prior.bits(rounded.detach(), previous, quality).mean() / exact[0].numel()
        video_bits = torch.from_numpy(batch.video_bpp).to(device()) * config.crop**2
        share = (bits / video_bits * kept[:, 0, 0, 0]).mean()
        ramp = min(1.0, max(0.0, (fraction - config.free) / max(1e-6, config.full_price - config.free)))
        total = sum(terms.values()) - terms["explained"] + modelled
        total = total + config.semantic_weight * (1.0 - terms["explained"])
        total = total + config.rate_weight * self.slope * ramp * share
        return total, {key: float(value.detach()) for key, value in {**terms, "share": share}.items()}

    def _terms(
        self, original: Tensor, fused: Tensor, residual: Tensor, restored: Tensor, kept: Tensor
    ) -> dict[str, Tensor]:
        """Weighted terms of the last frame; beside them `explained`, the share of the residual that is restored."""
        config = self.config
        rest = ((restored - residual).square() * kept).sum()
        terms = {"explained": 1.0 - rest / (residual.square() * kept).sum().clamp_min(1e-6)}
        terms["pixel"] = config.sample_weight * (fused - original).abs().mean()
        if config.machine_weight:
            with autocast():
                with torch.no_grad():
                    truth = self.machine.features(original)
                distance = self.machine.distance(self.machine.features(fused), truth).mean()
            terms["machine"] = config.machine_weight * distance
        return terms

    def _paper(self, clip: dict[str, list[Tensor]]) -> dict[str, Tensor]:
        """The paper's own terms over the whole sequence, as far as the recipe has them."""
        if self.config.terms.is_off:
            return {}
        original, fused, compensated = (torch.stack(clip[key], 1) for key in ("original", "fused", "compensated"))
        terms = self.objective.terms
        terms.discriminate(fused.detach(), original)
        with autocast():
            return dict(terms(fused, original, compensated))


def torch_seeded(seed: int) -> Any:
    """Seed torch, and return numpy's generator for the same seed."""
    torch.manual_seed(seed)
    return np.random.default_rng(seed)


def train(config: SmcRun) -> dict[str, Any]:
    """Train (or go on training) SMC; returns the training record, which names the recipe.

    Raises ConfigError where the data is missing.
    """
    torch.set_num_threads(config.threads)
    torch_seeded(config.seed)
    folder = build_cache(DataConfig(config.data), config.out.parent / "cache")
    training = SmcTraining(config, folder)
    record = training.trainer.run(training.step)
    training.model.load_state_dict(training.trainer.average)
    record["slope"] = round(training.slope, 5)
    record["quality_steps"] = list(QUALITY_STEPS)
    record |= measure_qualities(
        training.model, training.sampler, training.machine, training.slope, config.sample_weight
    )
    record["recipe"] = config.as_dict()
    record["data"] = f"{len(training.sampler.entries)} clips, x264 superfast zerolatency at CRF {training.sampler.crfs}"
    return record
