"""What a trained SMC buys at each of its qualities, against itself without a latent; rates by the integer tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scene_edge.codec.latents import LatentTables
from scene_edge.codec.planes import U8
from scene_edge.models.data import Batch, ClipSampler
from scene_edge.models.layers import from_packed
from scene_edge.models.loop import autocast, device
from scene_edge.models.objectives import MachineDistance, rate_slope
from scene_edge.models.sizes import AnySmc

QUALITY_STEPS = (4.0, 5.66, 8.0, 11.3, 16.0, 22.6)
"""Quantiser steps of the operating points, finest first, in units of the latent as trained."""

MAX_SIDE_SEEN = 960
"""Luma samples on the longer side of the largest picture that SMC looks at whole: training clips are no larger."""

HOLD = 4
"""Frames for which a latent of SMC stands."""

FUSED_FROM_QP = 33
"""Mean QP of a picture's macroblocks from which on it is fused: below, a detector sees the lossy picture no worse.

Chosen on the development clips between two wrongs: lower, and good pictures come to harm; higher, and the gain at CRF
35 is lost. README has what is left of either.
"""


def pictures(packed: U8) -> Tensor:
    """Packed u8 [B, h, w, 24] as a float batch on the training device."""
    return from_packed(torch.from_numpy(np.array(packed)).to(device()))


@torch.no_grad()
def price_of_bits(
    sampler: ClipSampler, machine: MachineDistance, sample_weight: float, machine_weight: float, seed: int
) -> float:
    """What x264 pays on the sampler's clips: distance per ln(bits), from the same 24 crops at every CRF."""
    points: list[list[tuple[float, float]]] = []
    for crf in sampler.crfs:
        sampler.random = np.random.default_rng(seed)
        batch = sampler.sample(24, crf)
        original, lossy = pictures(batch.original[:, -1]), pictures(batch.lossy[:, -1])
        with autocast():
            distance = machine_weight * machine.distance(machine.features(lossy), machine.features(original))
        distance = distance + sample_weight * (lossy - original).abs().mean((1, 2, 3))
        points.append([(float(rate), float(value)) for rate, value in zip(batch.video_bpp, distance, strict=True)])
    return rate_slope(points)


@torch.no_grad()
def measure_qualities(
    model: AnySmc, sampler: ClipSampler, machine: MachineDistance, slope: float, sample_weight: float, batch: int = 6
) -> dict[str, Any]:
    """Compare the operating points on training crops at every CRF; returns the whole table as `qualities`.

    Of each step: `distance` of the fused picture (machine, plus weighted L1), `share` of semantic in video bits when a
    latent stands for HOLD frames, with tables fitted to these very latents, and `cost` = distance + slope *
    ln(1 + share): a BD-rate in miniature.
    `None` stands for no latent at all, so what the latent itself gains is told apart from plain enhancement.
    """
    batches = [sampler.sample(batch, crf) for crf in sampler.crfs]
    rows = [_row(model, batches, machine, step, sample_weight) for step in (None, *QUALITY_STEPS)]
    for row in rows:
        row["cost"] = round(row["distance"] + slope * row.pop("log_share"), 5)
    lossy = float(np.mean([_distance(machine, pictures(b.lossy[:, -1]), b, sample_weight) for b in batches]))
    return {"qualities": rows, "lossy_distance": round(lossy, 5)}


def _row(
    model: AnySmc, batches: list[Batch], machine: MachineDistance, step: float | None, sample_weight: float
) -> dict[str, Any]:
    gops: list[NDArray[np.int16]] = []
    video_bits: list[float] = []
    distances = []
    for batch in batches:
        fused, latents = _fuse(model, batch, step)
        distances.append(_distance(machine, fused, batch, sample_weight))
        gops += list(latents[:, None])
        video_bits += [float(bpp) * fused[0, 0].numel() * 16 * HOLD for bpp in batch.video_bpp]
    shares = np.zeros(len(gops))
    if step is not None:
        tables = LatentTables.fit(gops)
        shares = np.array([tables.estimate_bits(gop) / bits for gop, bits in zip(gops, video_bits, strict=True)])
    return {
        "step": step,
        "distance": round(float(np.mean(distances)), 5),
        "share": round(float(shares.mean()), 5),
        "log_share": float(np.log1p(shares).mean()),
    }


def _fuse(model: AnySmc, batch: Batch, step: float | None) -> tuple[Tensor, NDArray[np.int16]]:
    """The last fused frame of each sequence, and the integers [B, C, h, w] of its first, which stand for all of it."""
    count, length, rows, columns = batch.original.shape[:4]
    states = model.states(count, rows, columns)
    integers = fused = torch.zeros(0)
    for index in range(length):
        original, lossy = pictures(batch.original[:, index]), pictures(batch.lossy[:, index])
        with autocast():
            semantic, seen, states["sem"], states["lossy"] = model.mine_both(
                original, lossy, states["sem"], states["lossy"]
            )
            if index == 0:
                integers = (model.sem_enc(semantic - seen).float() / (step or 1.0)).round() * (step is not None)
            restored = model.sem_dec(integers * (step or 1.0))
            fused, states["fuse"] = model.fuse(lossy, seen, restored, states["fuse"])
    return fused.float().clamp(0, 1), integers.clamp(-32768, 32767).cpu().numpy().astype(np.int16)


def _distance(machine: MachineDistance, picture: Tensor, batch: Batch, sample_weight: float) -> float:
    original = pictures(batch.original[:, -1])
    with autocast():
        far = machine.distance(machine.features(picture), machine.features(original)).mean()
    return float(far) + sample_weight * float((picture - original).abs().mean())
