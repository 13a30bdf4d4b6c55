"""Training of SMC against the camera's own H.264: mine the semantics, code what was lost of them, fuse; pay for bits.

For cameras, two stages. Sem-Net starts as a pretrained detector's body and stands still. First Sem-Enc and Sem-Dec
learn to code its residual so that the detector's verdicts come back, at the price at which x264 sells verdicts: no
picture is made for that, so steps are cheap. Then they stand still too, and F-Net learns what to make of a lossy
picture when it is told what was lost of it. The paper's way, all networks at once from nothing, is the other recipe.
In both, a side stream that is rounded and taxed from the first step would stay silent: so the latent is exact and free
at first, then spread over some steps and rounded, at a price that rises.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from scene_edge.codec.errors import ConfigError
from scene_edge.models.data import Batch, ClipSampler, DataConfig, build_cache
from scene_edge.models.loop import Progressed, Trainer, autocast, device
from scene_edge.models.objectives import LatentPrior, MachineDistance, rate_slope
from scene_edge.models.operating_point import QUALITY_STEPS, measure_qualities, pictures, price_of_bits
from scene_edge.models.recipes import SmcRun
from scene_edge.models.semantic_objective import SemanticTerms
from scene_edge.models.semantics import load_fastestdet
from scene_edge.models.sizes import build_smc
from scene_edge.models.smc import Smc
from scene_edge.models.start import load_start

LATENT_STD = 0.1
"""Spread of each latent channel when rounding begins: at all QUALITY_STEPS only the few strong values are not zero."""


SURE = 0.4
"""From this objectness on there is an object that training attends to."""


class SmcObjective(nn.Module):
    """What is trained or measured beside the networks that ship: the latent's prior and the paper's terms."""

    scaled: Tensor
    given: Tensor
    """1 where Sem-Enc and Sem-Dec came trained from another run: then their stage is left out."""

    def __init__(self, latent: int, terms: SemanticTerms) -> None:
        super().__init__()
        self.terms = terms
        self.prior = LatentPrior(latent, len(QUALITY_STEPS))
        self.register_buffer("scaled", torch.zeros(()))
        self.register_buffer("given", torch.zeros(()))


class SmcTraining:
    """One training run of SMC; `train` below is the way in.

    While `fraction` < `coded`, Sem-Enc, Sem-Dec and Sem-Net's temporal convolution minimise, over a sequence,

        verdicts(S~ + R^, S of one frame) + semantic_weight * |R^ - (S - S~)|^2 / |S - S~|^2
        + rate_weight * slope * semantic bits / video bits,

    where `slope` is what x264 pays in verdicts for ln(bits). Then, or throughout where `coded` is 0,

        sample_weight * L1(fused, original) + machine_weight * MachineDistance(fused, original)
        + missed_weight * MachineDistance.missed(fused, original) + verdict_weight * verdicts(Sem-Net(fused), S)

    of the last frame of a sequence: the frames before only fill the memories. F-Net learns that alone; where `coded`
    is 0 or the paper's own objective (`SemanticTerms`) is on, all networks that do not stand still learn it together
    with that objective, and with the terms on R^ and bits. With probability `drop` a sample's latent is lost on all
    frames; the quantiser's step is drawn from QUALITY_STEPS for each batch, the side at which the detector looks from
    `judged`, times the crop's.
    """

    def __init__(self, config: SmcRun, folder: Path) -> None:
        self.config = config
        self.sampler = ClipSampler(folder, config.seed, size=config.crop, length=config.length, relit=True)
        model = build_smc(config.size)
        if config.coded and not isinstance(model, Smc):
            raise ConfigError("only SMC for cameras learns to code first", got=config.size, hint="Use coded: 0.")
        self.model = cast(Any, model.to(device()))
        terms = SemanticTerms(config.terms, self.model.config.semantic, config.data)
        self.objective = SmcObjective(self.model.config.latent, terms).to(device())
        self.taken: set[str] = set() if config.start is None else load_start(self.model, config.start)
        if "sem_enc.head.weight" in self.taken:
            self.objective.scaled.fill_(1.0)
            self.objective.given.fill_(1.0)
        if config.coded:
            load_fastestdet(self.model.sem_net, self.model.verdicts, config.data / config.teacher)
            self.model.sem_net.requires_grad_(False)
            self.model.sem_net.temporal.requires_grad_(True)
        self.model.to(memory_format=torch.channels_last)
        self.machine = MachineDistance(config.data / config.instrument).to(device())
        self.trainer = Trainer(config, self.model, self.objective, faster=list(self.objective.prior.parameters()))
        if config.coded:
            self.sampler.attend(self._objects())
        self.slope = price_of_bits(self.sampler, self.machine, config.sample_weight, config.machine_weight, config.seed)
        self.verdict_slope = self._price_of_verdicts() if config.coded else 0.0
        self.sampler.random = torch_seeded(config.seed + self.trainer.steps)

    @torch.no_grad()
    def _objects(self) -> list[NDArray[np.bool_]]:
        """Where Sem-Net sees objects in each clip's original frames; kept beside the clips, since it takes minutes."""
        found = []
        teacher = hashlib.sha256((self.config.data / self.config.teacher).read_bytes()).hexdigest()[:8]
        for entry, arrays in zip(self.sampler.entries, self.sampler.arrays, strict=True):
            path = self.sampler.folder / f"{entry['number']:03d}.objects-{teacher}.npy"
            if not path.is_file():
                seen = []
                for picture in arrays["original"]:
                    with autocast():
                        semantic = self.model.sem_net.look(_whole(pictures(picture[None])))
                        seen.append(self.model.verdicts(semantic)[0][0, 0].float().sigmoid() > SURE)
                np.save(path, torch.stack(seen).cpu().numpy())
            found.append(np.load(path))
        return found

    @torch.no_grad()
    def _price_of_verdicts(self) -> float:
        """What x264 pays: distance of S~'s verdicts from S's per ln(bits), from the same 24 crops at every CRF."""
        points: list[list[tuple[float, float]]] = []
        for crf in self.sampler.crfs:
            self.sampler.random = np.random.default_rng(self.config.seed)
            batch = self.sampler.sample(24, crf)
            both = torch.cat([pictures(batch.original[:, -1]), pictures(batch.lossy[:, -1])])
            with autocast():
                semantic, seen = self.model.sem_net.look(both).float().chunk(2)
            distance = self.model.verdicts.distance(seen, semantic)
            points.append([(float(rate), float(far)) for rate, far in zip(batch.video_bpp, distance, strict=True)])
        return rate_slope(points)

    @torch.no_grad()
    def _scale_latent(self) -> None:
        """Once, before the first rounding: spread every channel over some steps of the quantiser."""
        latents = []
        for _ in range(4):
            batch = self.sampler.sample(8)
            semantic, seen = (self._looked(batch) if self.config.coded else self._mined(batch))[-1][:2]
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

    def _mined(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """S and S~ of each frame of a sequence that starts with a key frame."""
        states = self.model.states(len(batch.original), *batch.original.shape[2:4])
        mined = []
        for index in range(batch.original.shape[1]):
            pair = pictures(batch.original[:, index]), pictures(batch.lossy[:, index])
            with autocast():
                semantic, seen, states["sem"], states["lossy"] = self.model.mine_both(
                    *pair, states["sem"], states["lossy"]
                )
            mined.append((semantic, seen))
        return mined

    def _looked(self, batch: Batch) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The same for a Sem-Net that stands still, in one pass; third, what it sees of the original without memory.

        That alone is the truth: a temporal convolution that was its own judge would learn to say nothing.
        """
        count, length = batch.original.shape[:2]
        both = np.concatenate([batch.original, batch.lossy]).swapaxes(0, 1)
        with torch.no_grad(), autocast():
            looks = self.model.sem_net.look(pictures(both.reshape(-1, *both.shape[2:])))
        looks = looks.float().unflatten(0, (length, 2 * count))
        state = torch.zeros_like(looks[0]).repeat(1, 2, 1, 1)
        mined = []
        for look in looks:
            remembered, state = self.model.sem_net.temporal(look, state)
            mined.append((remembered[:count], remembered[count:], look[:count]))
        return mined

    def step(self, progress: Progressed) -> tuple[Tensor, dict[str, float]]:
        config = self.config
        if progress.fraction >= config.free and not bool(self.objective.scaled):
            self._scale_latent()
        if progress.fraction < config.coded and not bool(self.objective.given):
            return self._code(self.sampler.sample(config.coder_batch), progress.fraction)
        batch = self.sampler.sample(config.batch)
        if config.coded and config.terms.is_off:
            return self._fuse(batch)
        return self._compensate(batch, progress.fraction)

    def _taxed(self, fraction: float) -> float:
        """How much of the price of bits is asked: 0 while they are free, then rising to 1."""
        config = self.config
        return min(1.0, max(0.0, (fraction - config.free) / max(1e-6, config.full_price - config.free)))

    def _drawn_step(self) -> tuple[int, float]:
        quality = int(torch.randint(len(QUALITY_STEPS), ()))
        return quality, QUALITY_STEPS[quality]

    def _code(self, batch: Batch, fraction: float) -> tuple[Tensor, dict[str, float]]:
        """First stage: what Sem-Net lost, there and back. All frames of the sequence count."""
        config, model = self.config, self.model
        quality, step = self._drawn_step()
        previous: Tensor | None = None
        sums: dict[str, Tensor] = {}
        for semantic, seen, truth in self._looked(batch):
            residual = self._coded(semantic, seen)
            with autocast():
                exact = model.sem_enc(residual).float() / step
                rounded = exact + (exact.round() - exact).detach()
                restored = model.sem_dec((rounded if fraction >= config.free else exact) * step)
                compensated = (seen + restored) if config.residual else restored
                far = model.verdicts.distance(compensated, truth).mean()
            rest = (restored.float() - residual.float()).square().sum()
            terms = {"verdicts": far, "explained": 1.0 - rest / residual.float().square().sum().clamp_min(1e-6)}
            with torch.no_grad(), autocast():
                terms["lost"] = model.verdicts.distance(seen, truth).mean()
            terms["share"], terms["modelled"] = self._rates(batch, rounded, previous, quality)
            previous = rounded.detach()
            sums = {key: sums.get(key, 0.0) + value / config.length for key, value in terms.items()}
        total = sums["verdicts"] + config.semantic_weight * (1.0 - sums["explained"]) + sums["modelled"]
        total = total + config.rate_weight * self.verdict_slope * self._taxed(fraction) * sums["share"]
        return total, {key: float(value.detach()) for key, value in sums.items()}

    def _rates(
        self, batch: Batch, rounded: Tensor, previous: Tensor | None, quality: int, kept: Tensor | float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Semantic bits as a share of the video's, and bits per latent by which the prior itself learns.

        Rates of rounded values: noise would charge silence its own entropy, and price every latent out.
        """
        prior = self.objective.prior
        video_bits = torch.from_numpy(batch.video_bpp).to(device()) * self.config.crop**2
        share = (prior.bits(rounded, previous, quality) / video_bits * kept).mean()
        return share, prior.bits(rounded.detach(), previous, quality).mean() / rounded[0].numel()

    def _fuse(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Second stage: F-Net alone, on the last frame. Its memory is of the lossy frames before.

        What it is told may be of an earlier frame of the sequence: in use a latent stands for some frames.
        """
        config, model = self.config, self.model
        _, step = self._drawn_step()
        kept = (torch.rand(config.batch, 1, 1, 1, device=device()) >= config.drop).float() * config.compensated
        with torch.no_grad():
            looked = self._looked(batch)
            age = int(torch.randint(config.length, ()))
            semantic, seen_then, _ = looked[-1 - age]
            _, seen, truth = looked[-1]
            with autocast():
                residual = self._coded(semantic, seen_then)
                restored = model.sem_dec((model.sem_enc(residual).float() / step).round() * step)
                told = (restored if config.residual else restored - seen_then) * kept
                before = [model.f_net.look(pictures(batch.lossy[:, index]))[1] for index in range(config.length - 1)]
        lossy = pictures(batch.lossy[:, -1]).contiguous(memory_format=torch.channels_last)
        with autocast():
            fused, _ = model.fuse(lossy, seen, told, torch.cat(before[-2:], 1))
        terms = self._judged(fused.float(), pictures(batch.original[:, -1]))
        with autocast():
            own = model.verdicts.distance(model.sem_net.look(fused.float()), truth).mean()
        terms["verdicts"] = config.verdict_weight * own
        return torch.stack(list(terms.values())).sum(), {key: float(value.detach()) for key, value in terms.items()}

    def _compensate(self, batch: Batch, fraction: float) -> tuple[Tensor, dict[str, float]]:
        """The paper's way: all networks at once."""
        config, model, last = self.config, self.model, self.config.length - 1
        quality, step = self._drawn_step()
        kept = (torch.rand(config.batch, 1, 1, 1, device=device()) >= config.drop).float() * config.compensated
        states = model.states(config.batch, *batch.original.shape[2:4])
        previous: Tensor | None = None
        clip: dict[str, list[Tensor]] = {"original": [], "fused": [], "compensated": []}
        for index in range(config.length):
            original, lossy = pictures(batch.original[:, index]), pictures(batch.lossy[:, index])
            with autocast(), torch.set_grad_enabled(index == last):
                semantic, seen, states["sem"], states["lossy"] = model.mine_both(
                    original, lossy, states["sem"], states["lossy"]
                )
                residual = self._coded(semantic, seen)
                exact = model.sem_enc(residual).float() / step
                rounded = exact + (exact.round() - exact).detach()
                restored = model.sem_dec((rounded if fraction >= config.free else exact) * step * kept)
                told = restored if config.residual else (restored - seen) * kept
                fused, states["fuse"] = model.fuse(lossy, seen, told, states["fuse"])
            compensated = seen + told
            for key, value in (("original", original), ("fused", fused), ("compensated", compensated)):
                clip[key].append(value.float())
            if index < last:
                previous = rounded.detach()
        rest = ((restored.float() - residual.float()).square() * kept).sum()
        explained = 1.0 - rest / (residual.float().square() * kept).sum().clamp_min(1e-6)
        terms = self._judged(fused.float(), original) | self._paper(clip)
        share, modelled = self._rates(batch, rounded, previous, quality, kept[:, 0, 0, 0])
        total = torch.stack(list(terms.values())).sum() + modelled + config.semantic_weight * (1.0 - explained)
        total = total + config.rate_weight * self.slope * self._taxed(fraction) * share
        terms |= {"explained": explained, "share": share}
        return total, {key: float(value.detach()) for key, value in terms.items()}

    def _judged(self, fused: Tensor, original: Tensor) -> dict[str, Tensor]:
        """The weighted distances of a fused picture from its original."""
        config = self.config
        terms = {"pixel": config.sample_weight * (fused - original).abs().mean()}
        if config.machine_weight:
            drawn = config.judged[int(torch.randint(len(config.judged), ()))]
            side = max(1, round(config.crop * drawn / 32)) * 32
            with autocast():
                with torch.no_grad():
                    truth = self.machine.features(original, side)
                seen = self.machine.features(fused, side)
                distance = self.machine.distance(seen, truth).mean()
            terms["machine"] = config.machine_weight * distance
            terms["missed"] = config.missed_weight * self.machine.missed(seen, truth)
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


def _whole(picture: Tensor) -> Tensor:
    """Padded at the bottom and on the right to whole positions at stride 32."""
    rows, columns = (-side % 8 for side in picture.shape[2:])
    return F.pad(picture, (0, columns, 0, rows), mode="replicate")


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
    if training.taken:
        kept = ", its coder as it is" if bool(training.objective.given) else ""
        record["start"] = f"{len(training.taken)} of {len(training.model.state_dict())} weights of another run{kept}"
    record["recipe"] = config.as_dict()
    record["data"] = f"{len(training.sampler.entries)} clips, x264 superfast zerolatency at CRF {training.sampler.crfs}"
    return record
