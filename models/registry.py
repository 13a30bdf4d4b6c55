"""From a trained checkpoint to the graphs that are exported: modules, example inputs, calibration, tables, record."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor, nn

from scene_edge.codec.errors import ConfigError
from scene_edge.codec.kernels import WEIGHTS, Kernel
from scene_edge.codec.latents import LatentTables
from scene_edge.codec.planes import ALIGN
from scene_edge.codec.quality import tensors_of
from scene_edge.models import keepsake
from scene_edge.models.cards import CARD
from scene_edge.models.data import GOP, ClipSampler, DataConfig, build_cache
from scene_edge.models.layers import from_packed
from scene_edge.models.operating_point import FUSED_FROM_QP, HOLD, MAX_SIDE_SEEN
from scene_edge.models.scene import (
    CENTRE,
    COARSENESS,
    THUMB,
    UNIT,
    FoldedScene,
    SceneFilterGraph,
    SceneNet,
    ScenePriorGraph,
)
from scene_edge.models.sizes import SCENE_CAMERA_SIZES, AnySmc, build_smc
from scene_edge.models.smc import Smc, SmcDecoder, SmcEncoder
from scene_edge.models.train_scene import thumbnail

Sample = dict[str, NDArray[Any]]

LITERT_SIZES = ((96, 160), (136, 240))
"""Packed sizes for which fixed-shape artefacts are made: 640x360 and 960x540, padded."""


GIVEN = ("sem_net.trunk.", "sem_net.join.", "sem_net.pyramid.", "sem_net.mix.", "verdicts.")
"""Weights of SMC for cameras that every run takes from the teacher's file: no bundle keeps them."""


@dataclass
class GraphExport:
    """One graph of a bundle: `module(*inputs) -> outputs`, in the order in which they are named."""

    module: nn.Module
    inputs: list[tuple[str, NDArray[Any]]]
    outputs: list[str]
    calibration: list[Sample]
    litert_shapes: list[dict[str, tuple[int, ...]]] = field(default_factory=list)
    kernels: dict[str, Kernel] = field(default_factory=dict)
    """Of convolutions whose kernels a camera may change, as the module has them now."""


@dataclass
class BundleExport:
    """Everything of a bundle that the model knows; `quantize` adds artefacts, goldens and reports."""

    name: str
    kind: str
    graphs: dict[str, GraphExport]
    parameters: dict[str, Any]
    training: dict[str, Any]
    extra_files: dict[str, bytes]


def load_average(run: Path, model: nn.Module) -> dict[str, Any]:
    """Load the averaged weights of a training run into `model`; returns the run's record."""
    state_path, record_path = run / "state.pt", run / "record.json"
    if not state_path.exists():
        raise ConfigError(
            "no checkpoint there", got=str(run), hint="Train first: scene-edge train smc-s --out runs/smc-s"
        )
    state = torch.load(state_path, weights_only=True, map_location="cpu")
    model.load_state_dict(state["average"])
    model.eval()
    record: dict[str, Any] = json.loads(record_path.read_text()) if record_path.exists() else {}
    return {"steps": state["steps"], "minutes": round(state["seconds"] / 60, 1), **record}


def _sequences(folder: Path, seed: int, count: int, length: int) -> list[dict[str, NDArray[np.uint8]]]:
    """Whole pictures (padded to ALIGN) of consecutive frames: `original` and `lossy`, each [T, h, w, 24]."""
    sampler = ClipSampler(folder, seed, length=length)
    chosen = []
    for number in range(count):
        index = int(sampler.random.choice(len(sampler.arrays), p=sampler.weights))
        clip, crf = sampler.arrays[index], sampler.crfs[number % len(sampler.crfs)]
        start = int(sampler.random.integers(clip["original"].shape[0] - length + 1))
        pair = {
            key: np.array(clip[name][start : start + length])
            for key, name in (("original", "original"), ("lossy", f"crf{crf}"))
        }
        chosen.append({key: _aligned(picture) for key, picture in pair.items()})
    return chosen


def _gops(folder: Path, seed: int, count: int) -> list[dict[str, NDArray[np.uint8]]]:
    """Every HOLD-th frame of the first GOPs of clips, from the keyframe on, in the form of `_sequences`."""
    sampler = ClipSampler(folder, seed)
    chosen = []
    for number in range(count):
        clip = sampler.arrays[int(sampler.random.choice(len(sampler.arrays), p=sampler.weights))]
        pair = {"original": clip["original"], "lossy": clip[f"crf{sampler.crfs[number % len(sampler.crfs)]}"]}
        chosen.append({key: _aligned(np.array(frames[:GOP:HOLD])) for key, frames in pair.items()})
    return chosen


def _aligned(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    grid = ALIGN // 4
    pad = [(-side) % grid for side in pictures.shape[1:3]]
    return np.pad(pictures, ((0, 0), (0, pad[0]), (0, pad[1]), (0, 0)), mode="edge")


def _whole_range(picture: torch.Tensor) -> torch.Tensor:
    """A copy with the least and the largest sample in a corner, so that INT8 takes the input's 8 bits as they are.

    Sem-Net's first layer tells edges apart that are a few grey levels high.
    """
    marked = picture.clone()
    marked[:, 0, 0], marked[:, 0, 1] = 0, 255
    return marked


def _arrays(**inputs: torch.Tensor) -> Sample:
    return {name: value.numpy() for name, value in inputs.items()}


@torch.no_grad()
def smc_export(
    run: Path, data: Path, cache: Path, *, name: str = "smc-s", sequences: int = 40, keep: bool = True
) -> BundleExport:
    """SMC's two graphs, with calibration on real states and latents, and integer tables for each quality.

    As on a camera, the encoder sees every HOLD-th frame and its memory is of those; the decoder's calibration takes
    these frames as well. The qualities are the record's `quality_steps`. Tables are fitted to the latents of all
    sequences; the decoder is calibrated with one quality after the other. With `keep` the bundle holds the learnt
    weights as well, for a later run to start from.
    """
    model = build_smc(name)
    record = load_average(run, model)
    steps = [float(step) for step in record.get("quality_steps", [1.0])]
    folder = build_cache(DataConfig(data), cache)
    encoder, decoder = SmcEncoder(model), SmcDecoder(model)
    encoder_samples: list[Sample] = []
    decoder_samples: list[Sample] = []
    gops = []
    for number, sequence in enumerate(_gops(folder, 11, sequences)):
        latents, step, taken = [], steps[number % len(steps)], (0, 1 + number % 4)
        states = model.states(1, *sequence["original"].shape[1:3])
        for index, (original, lossy) in enumerate(zip(sequence["original"], sequence["lossy"], strict=True)):
            x, seen = torch.from_numpy(original[None]), torch.from_numpy(lossy[None])
            latent, next_sem, next_lossy = encoder(x, seen, states["sem"], states["lossy"])
            z = (latent / step).round()
            if index in taken:
                marked, mined = _whole_range(seen), states["lossy"]
                encoder_samples.append(
                    _arrays(x=_whole_range(x), lossy=marked, state_sem=states["sem"], state_lossy=mined)
                )
                decoder_samples.append(
                    _arrays(lossy=marked, latent=z * step, state_lossy=mined, state_fuse=states["fuse"])
                )
            if index < max(taken):  # later states of F-Net are asked for by nothing
                states["fuse"] = decoder(seen, z * step, states["lossy"], states["fuse"])[2]
            states |= {"sem": next_sem, "lossy": next_lossy}
            latents.append(latent[0].numpy())
        gops.append(np.stack(latents))
    tables, mean_bits = _fit_tables(gops, steps)
    parameters = {
        "channels": model.config.latent,
        "stride": model.stride,
        "tables": "tables.safetensors",
        "quality_steps": steps,
        "hold": HOLD,
        "fused_from_qp": FUSED_FROM_QP,
        "max_side": MAX_SIDE_SEEN,
        "config": model.config.as_dict(),
        "weights": sum(value.numel() for value in model.parameters()),
        "mean_bits_per_frame": mean_bits,
    }
    sizes = [{"rows": rows, "columns": columns} for rows, columns in LITERT_SIZES[1:]]  # the Raspberry Pi's
    graphs = {
        "encoder": GraphExport(
            encoder,
            list(encoder_samples[1].items()),
            ["latent", "next_sem", "next_lossy"],
            encoder_samples,
            [_smc_shapes(model, "encoder", **size) for size in sizes],
        ),
        "decoder": GraphExport(
            decoder,
            list(decoder_samples[1].items()),
            ["fused", "next_lossy", "next_fuse"],
            decoder_samples,
            [_smc_shapes(model, "decoder", **size) for size in sizes],
        ),
    }
    given = GIVEN if isinstance(model, Smc) else ()
    learnt = {key: value for key, value in model.state_dict().items() if not key.startswith(given)}
    extra = {"tables.safetensors": save(tensors_of(tables)), **card_of(run)}
    if keep:
        extra[keepsake.FILE] = keepsake.to_bytes(learnt)
    return BundleExport(name, "smc", graphs, parameters, record, extra)


def _fit_tables(gops: list[NDArray[np.float32]], steps: list[float]) -> tuple[list[LatentTables], list[float]]:
    """Entropy tables of each quality from latents [T, C, h, w], each of which stands for HOLD frames; bits a frame."""
    tables, mean_bits = [], []
    for step in steps:
        integers = [np.rint(gop / step).astype(np.int16) for gop in gops]
        tables.append(LatentTables.fit(integers))
        bits = sum(tables[-1].estimate_bits(gop) for gop in integers)
        mean_bits.append(round(bits / sum(map(len, gops)) / HOLD, 1))
    return tables, mean_bits


def _smc_shapes(model: AnySmc, graph: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    states = {f"state_{key}": tuple(value.shape) for key, value in model.states(1, rows, columns).items()}
    picture = (1, rows, columns, 24)
    if graph == "encoder":
        return {"x": picture, "lossy": picture, "state_sem": states["state_sem"], "state_lossy": states["state_lossy"]}
    latent = (1, model.config.latent, 4 * rows // model.stride, 4 * columns // model.stride)
    return {
        "lossy": picture,
        "latent": latent,
        "state_lossy": states["state_lossy"],
        "state_fuse": states["state_fuse"],
    }


@torch.no_grad()
def scene_export(run: Path, data: Path, cache: Path, *, name: str = "scene-s", sequences: int = 96) -> BundleExport:
    """SCENE's two graphs: the filter of each frame, and the prior that sets its coefficients."""
    model = SceneNet(SCENE_CAMERA_SIZES[name])
    record = load_average(run, model)
    folder = build_cache(DataConfig(data), cache)
    prior, thumbs, frames, coefficients = ScenePriorGraph(model), [], [], []
    for sequence in _sequences(folder, 13, sequences, 1):
        picture = torch.from_numpy(sequence["original"])
        thumb = (thumbnail(from_packed(picture)) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        thumbs.append({"thumb": thumb.numpy()})
        frames.append({"x": picture.numpy()})
        coefficients.append(prior(thumb))
    usual = FoldedScene(model, model.controls(torch.cat(coefficients).mean(0, keepdim=True), CENTRE)).eval()
    shapes: list[dict[str, tuple[int, ...]]] = [{"x": (1, rows, columns, 24)} for rows, columns in LITERT_SIZES]
    kernels = {name: _kernel(layer) for name, layer in usual.kernels().items()}
    graphs = {
        "filter": GraphExport(SceneFilterGraph(usual), list(frames[0].items()), ["y"], frames, shapes, kernels),
        "prior": GraphExport(prior, list(thumbs[0].items()), ["coefficients"], thumbs, [{"thumb": (1, *THUMB, 24)}]),
    }
    parameters = {
        "grid": 4,
        "prior_period_ms": 1000,
        "prior_size": [THUMB[0] * 4, THUMB[1] * 4],
        "config": model.config.as_dict(),
        "kernels": [[f"assembled{index}", f"assembled.{index}.base"] for index in range(model.config.blocks)],
        "residual": ["head", "head"],
        "coarseness": {"slopes": "coarseness.slopes", "centre": CENTRE, "unit": UNIT, "range": list(COARSENESS)},
    }
    extra = {WEIGHTS: _weights(model), **card_of(run)}
    return BundleExport(name, "scene", graphs, parameters, record, extra)


def _kernel(layer: nn.Conv2d) -> Kernel:
    return Kernel(layer.weight.detach().numpy(), cast(Tensor, layer.bias).detach().numpy())


def card_of(run: Path) -> dict[str, bytes]:
    """The model card of a training run, as a file of the bundle; nothing for a run that has none."""
    path = run / CARD
    return {CARD: path.read_bytes()} if path.is_file() else {}


def _weights(model: nn.Module) -> bytes:
    """All weights in half precision: enough to go on training from, half the size."""
    return save({key: value.half().numpy() for key, value in model.state_dict().items()})


EXPORTS: dict[str, Callable[[Path, Path, Path], BundleExport]] = {
    "smc-s": smc_export,
    "smc-m": partial(smc_export, name="smc-m", keep=False),  # it starts from smc-s, and all bundles must stay small
    "smc-paper": partial(smc_export, name="smc-paper", sequences=8),  # its states are 30 MB a frame
    "scene-s": scene_export,
    "scene-m": partial(scene_export, name="scene-m"),
}
"""Model name -> its export."""


def build_export(name: str, run: Path, data: Path, cache: Path) -> BundleExport:
    """The export of a trained model by name. Raises ConfigError for a name or checkpoint that is not there."""
    from scene_edge.models.task_exports import TASK_EXPORTS

    exports = {**EXPORTS, **TASK_EXPORTS}
    if name not in exports:
        raise ConfigError("no such model to export", got=name, allowed=", ".join(sorted(exports)))
    return exports[name](run, data, cache)
