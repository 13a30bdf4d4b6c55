"""Pictures of SMC at work: what x264 leaves, what fusion makes of it, what was lost in meaning, where the bits go.

    python -m benchmarks.visuals runs/smc-s

Takes a training run (its averaged weights). One GOP of each clip is coded; its last frame is
shown, in the window on which the semantics spend most. Networks run in PyTorch, so that a run can be looked at before
it is exported; bits are those of the integer tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.progress import track

from benchmarks import _report
from benchmarks.clips import Clip, find_clips
from scene_edge.codec.contexts import QUARTERS, Memory, symbolise
from scene_edge.codec.errors import ConfigError, FormatError
from scene_edge.codec.latents import I16, LatentTables
from scene_edge.codec.media import read_video
from scene_edge.codec.planes import U8, pack
from scene_edge.models.data import x264_round_trip
from scene_edge.models.layers import packed_to_bgr
from scene_edge.models.loop import autocast, device
from scene_edge.models.operating_point import QUALITY_STEPS, pictures
from scene_edge.models.registry import load_average
from scene_edge.models.sizes import SIZES, build_smc

EXAMPLE = "Example: python -m benchmarks.visuals runs/smc-s --clips vos/park*,mot --crf 43"

F32 = NDArray[np.float32]

WIDTH_PX, DPI = 1600, 100

ROWS = ("original", "lossy", "without", "with", "energy", "bits")

console = _report.console()


@dataclass(frozen=True)
class Network:
    """An SMC to look at, and its quantiser's step."""

    model: Any
    name: str
    step: float


@dataclass(frozen=True)
class Coded:
    """One GOP of a clip through SMC, its last frame as pictures.

    `pictures`: RGB u8 [H, W, 3] by the name of its row; `energy` [h, w]: mean square of S - S~ over channels, of the
    last frame; `bits` [h, w]: bits a frame at each position, mean of the GOP; `kbps`: of video and of semantics.
    """

    pictures: Mapping[str, U8]
    energy: F32
    bits: F32
    kbps: tuple[float, float]
    stride: int


def load_network(source: str, size: str, quality: int) -> Network:
    """From the folder of a training run.

    Raises ConfigError for a quality or a run that there is not, FormatError for weights that today's networks cannot
    take.
    """
    model = build_smc(size)
    try:
        record = load_average(Path(source), model)
    except RuntimeError as error:
        raise _unfit(source, error) from error
    steps = [float(step) for step in record.get("quality_steps", QUALITY_STEPS)]
    if not 0 <= quality < len(steps):
        raise ConfigError("no such quality", got=quality, allowed=f"0..{len(steps) - 1}")
    return Network(model.to(device()).eval(), Path(source).name, steps[quality])


def _unfit(source: str, error: RuntimeError) -> FormatError:
    return FormatError(
        f"the weights of {source} are of another network",
        got=str(error).splitlines()[0],
        hint="Give --size as it was trained, or train it again.",
    )


def position_bits(tables: LatentTables, gop: I16) -> F32:
    """Ideal bits a frame that each position of latents [T, C, h, w] costs, [h, w]: the mean over the GOP.

    Flags of whole frames and the tails of escaped values belong to no position and are left out.
    """
    shape = gop.shape[2:]
    order = np.concatenate([np.arange(shape[0] * shape[1]).reshape(shape)[quarter].ravel() for quarter in QUARTERS])
    total = np.zeros(shape[0] * shape[1])
    memory: Memory | None = None
    for z in gop:
        frame = symbolise(memory, z, tables.max_abs)
        if frame.flag:
            total[order] += tables.places.costs[frame.place_rows, frame.places]
            costs = tables.values.costs[frame.value_rows, frame.values].reshape(len(z), -1)
            total[np.flatnonzero(z.any(axis=0))] += costs.sum(axis=0)
        memory = Memory.after(memory, z)
    return (total / len(gop)).reshape(shape).astype(np.float32)


@torch.no_grad()
def code(network: Network, clip: Clip, width: int, frames: int, crf: int) -> Coded:
    """One GOP of the clip at a CRF of x264, with and without latent."""
    model, step = network.model, network.step
    planes = [planes for planes, _ in read_video(clip.path, width=min(width, clip.width) // 2 * 2, limit=frames)]
    decoded, video_bits = x264_round_trip(planes, crf, clip.fps)
    rows, columns = pack(planes[0]).shape[:2]
    states = model.states(1, rows, columns)
    states["alone"] = states["fuse"]
    latents, energy, fused, alone = [], np.zeros(0), torch.zeros(0), torch.zeros(0)
    for original, lossy in zip(planes, decoded, strict=True):
        x, seen_picture = pictures(pack(original)[None]), pictures(pack(lossy)[None])
        with autocast():
            semantic, seen, states["sem"], states["lossy"] = model.mine_both(
                x, seen_picture, states["sem"], states["lossy"]
            )
            integers = (model.sem_enc(semantic - seen).float() / step).round()
            restored = model.sem_dec(integers * step)
            fused, states["fuse"] = model.fuse(seen_picture, seen, restored, states["fuse"])
            alone, states["alone"] = model.fuse(seen_picture, seen, torch.zeros_like(restored), states["alone"])
        energy = (semantic - seen).float().square().mean(1)[0].cpu().numpy()
        latents.append(integers[0].cpu().numpy().astype(np.int16))
    gop = np.stack(latents)
    tables = LatentTables.fit([gop])
    shown = {"original": x, "lossy": seen_picture, "without": alone, "with": fused}
    size = planes[0].height, planes[0].width
    seconds = len(planes) / clip.fps
    return Coded(
        {name: _rgb(picture, *size) for name, picture in shown.items()},
        energy.astype(np.float32),
        position_bits(tables, gop),
        (sum(video_bits) / seconds / 1000, tables.estimate_bits(gop) / seconds / 1000),
        model.stride,
    )


def _rgb(packed: torch.Tensor, height: int, width: int) -> U8:
    bgr = packed_to_bgr(packed.float().clamp(0, 1))[0, :, :height, :width]
    rgb: U8 = bgr.flip(0).round().byte().permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(rgb)


def busiest(bits: F32, stride: int, size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
    """Top and left luma sample of the window (height, width) that costs most of a picture (height, width)."""
    tall, wide = (min(whole, part) // stride for whole, part in zip(size, window, strict=True))
    rows, columns = size[0] // stride, size[1] // stride
    sums = np.pad(bits[:rows, :columns].astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    windows = sums[tall:, wide:] - sums[:-tall, wide:] - sums[tall:, :-wide] + sums[:-tall, :-wide]
    top, left = np.unravel_index(windows.argmax(), windows.shape)
    return int(top) * stride, int(left) * stride


def draw(columns: Sequence[tuple[str, Coded]], window: tuple[int, int], crf: int, path: Path) -> None:
    """Write the PNG: a column for each clip (its caption, its GOP), a row for each picture and map."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    each = WIDTH_PX / DPI / len(columns)
    height = len(ROWS) * (each * window[0] / window[1] + 0.42)
    figure, axes = pyplot.subplots(
        len(ROWS), len(columns), figsize=(WIDTH_PX / DPI, height), squeeze=False, layout="constrained"
    )
    for column, (caption, coded) in enumerate(columns):
        video, semantics = coded.kbps
        titles = {
            "original": f"{caption}: original",
            "lossy": f"x264 at CRF {crf}, {video:.1f} kbit/s",
            "without": f"fused without latent, {video:.1f} kbit/s",
            "with": f"fused with latent, {video:.1f} + {semantics:.2f} kbit/s",
            "energy": "what the codec took: mean square of S - S~",
            "bits": "where the latent's bits go: bits a frame, tables fitted to this clip",
        }
        size = coded.pictures["original"].shape[:2]
        top, left = busiest(coded.bits, coded.stride, (size[0], size[1]), window)
        for row, name in enumerate(ROWS):
            axis = axes[row, column]
            if name in coded.pictures:
                axis.imshow(coded.pictures[name][top : top + window[0], left : left + window[1]])
            else:
                whole, step = getattr(coded, name), coded.stride
                area = np.s_[top // step : (top + window[0]) // step, left // step : (left + window[1]) // step]
                shown = axis.imshow(whole[area], cmap="magma", vmin=0.0)
                figure.colorbar(shown, ax=axis, fraction=0.03, pad=0.01)
            axis.set_title(titles[name], fontsize=13, loc="left")
            axis.set_xticks([])
            axis.set_yticks([])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)


def parse_window(text: str) -> tuple[int, int]:
    """ "400x208" -> (208, 400), height first, in whole semantic positions. Raises ConfigError."""
    try:
        wide, tall = (int(part) // 16 * 16 for part in text.split("x"))
    except ValueError as error:
        raise ConfigError("not a window", got=text, allowed="WIDTHxHEIGHT, such as 400x208") from error
    if min(tall, wide) < 16:
        raise ConfigError("the window is too small", got=text, allowed="16x16 and larger")
    return tall, wide


def run(
    source: Annotated[str, typer.Argument(help="Folder of a training run of SMC.")],
    clips: Annotated[str, typer.Option(help="Patterns, comma separated; the first clip of each is shown.")] = "mot,vos",
    size: Annotated[str, typer.Option(help=f"What the run trained: {', '.join(SIZES)}.")] = "smc-s",
    quality: Annotated[int, typer.Option(min=0, help="Which quantiser step, finest first.")] = 2,
    crf: Annotated[int, typer.Option(min=0, max=51, help="Constant quality of x264.")] = 43,
    frames: Annotated[int, typer.Option(min=1, max=30, help="Of the GOP; the last one is shown.")] = 30,
    width: Annotated[int, typer.Option(min=64, help="Wider clips are scaled down before coding.")] = 960,
    window: Annotated[str, typer.Option(help="What is shown of a picture, in luma samples.")] = "480x256",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    out: Annotated[Path, typer.Option(help="The PNG.")] = Path("docs/smc_visuals.png"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write rates and settings here.")] = None,
) -> None:
    """Draw what SMC does to one GOP of some development clips."""
    report = _report.envelope("visuals")
    torch.set_num_threads(threads)
    part, network = parse_window(window), load_network(source, size, quality)
    chosen = [find_clips([pattern])[0] for pattern in clips.split(",")]
    coded = [code(network, clip, width, frames, crf) for clip in track(chosen, "clips", console=console)]
    least = min(min(one.pictures["original"].shape[:2]) for one in coded)
    if min(part) > least:
        raise ConfigError("the window is larger than a picture", got=window, allowed=f"sides of at most {least}")
    names = [f"{clip.name}, frame {frames}" for clip in chosen]
    draw(list(zip(names, coded, strict=True)), part, crf, out)
    results = [
        {"clip": clip.name, "video_kbps": one.kbps[0], "semantic_kbps": one.kbps[1]}
        for clip, one in zip(chosen, coded, strict=True)
    ]
    for row in results:
        console.print(
            f"{row['clip']}: x264 {row['video_kbps']:.1f} kbit/s, semantics {row['semantic_kbps']:.2f} kbit/s"
        )
    settings = {"crf": crf, "frames": frames, "width": width, "step": network.step}
    _report.write_json(json_file, report | {"network": network.name, "settings": settings, "results": results})
    console.print(f"wrote {out}", highlight=False)


def main() -> None:
    _report.command(run, EXAMPLE)


if __name__ == "__main__":
    main()
