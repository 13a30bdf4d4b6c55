"""How well the codec proxies that SCENE is trained through follow real codecs: over CRFs, and over filters at one CRF.

    python -m benchmarks.proxy_fidelity --clips vos,codec --limit 4 --out runs/proxy_fidelity

A proxy that is right over CRFs may still be wrong about what training asks it: which of two filters the codec likes
better. So every filter is coded at every CRF by every proxy and every codec, and for each clip and CRF the filters are
ranked by quality against the original, by bits, and by J = log D + mu log R, as training weighs them; mu is each
coder's own exchange rate over CRFs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks import _report
from benchmarks.clips import Clip, find_clips
from benchmarks.codecs import CODECS, code_video
from benchmarks.fidelity import CODEC_NAMES, MEASURES, PROXY_NAMES, Fidelity, Record, over_crfs, over_filters, rate_fit
from scene_edge.codec.media import read_video
from scene_edge.codec.planes import U8, Planes, pack
from scene_edge.models.blocks import to_planes
from scene_edge.models.data import GOP, x264_round_trip
from scene_edge.models.layers import from_packed
from scene_edge.models.objectives import ssim
from scene_edge.models.proxy_hybrid import HybridProxy
from scene_edge.models.proxy_jpeg import JpegProxy

EXAMPLE = "Example: python -m benchmarks.proxy_fidelity --clips vos --crfs 31,39 --limit 4 --json runs/fidelity.json"

console = _report.console()

PROXIES: dict[str, Callable[[], nn.Module]] = {
    "jpeg": JpegProxy,
    "block": lambda: HybridProxy(reach=0, deblocking=False),
    "hybrid": HybridProxy,
}
"""`block` is the hybrid without motion and loop filter: what these two are worth."""


def _smooth(luma: Tensor) -> Tensor:
    """Binomial 3x3."""
    kernel = torch.tensor([1.0, 2.0, 1.0])
    weight = (kernel[:, None] * kernel / 16.0)[None, None]
    return F.conv2d(F.pad(luma, (1, 1, 1, 1), mode="replicate"), weight)


def _median(luma: Tensor) -> Tensor:
    """3x3."""
    around = F.pad(luma, (1, 1, 1, 1), mode="replicate").unfold(2, 3, 1).unfold(3, 3, 1)
    return around.flatten(4).median(4).values


def _mean_in_time(luma: Tensor) -> Tensor:
    """Of what hardly changed since the frame before: noise goes, motion stays."""
    before = torch.cat([luma[:1], luma[:-1]])
    return torch.where((luma - before).abs() < 6 / 255, (luma + before) / 2, luma)


FILTERS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda luma: luma,
    "light blur": lambda luma: 0.6 * luma + 0.4 * _smooth(luma),
    "blur": _smooth,
    "light sharpening": lambda luma: luma + 0.3 * (luma - _smooth(luma)),
    "sharpening": lambda luma: luma + 0.8 * (luma - _smooth(luma)),
    "median": _median,
    "mean in time": _mean_in_time,
}
"""Filters of luma [T, 1, H, W] in 0..1."""


def read_clip(clip: Clip, width: int, frames: int) -> U8:
    """The first frames, packed [T, h, w, 24], scaled to at most `width` and cut to whole macroblocks."""
    found = [planes for planes, _ in read_video(clip.path, width=min(width, clip.width), limit=frames)]
    rows, columns = (side // 16 * 4 for side in (found[0].height, found[0].width))
    return np.stack([pack(planes)[:rows, :columns] for planes in found])


def filtered(packed: U8, name: str) -> list[Planes]:
    """The clip after a filter of its luma, rounded to eight bits as an encoder gets it."""
    y, u, v = to_planes(from_packed(torch.from_numpy(packed)))
    luma = FILTERS[name](y).clamp(0.0, 1.0)
    arrays = [(plane * 255.0 + 0.5).to(torch.uint8)[:, 0].numpy() for plane in (luma, u, v)]
    return [Planes(*(np.ascontiguousarray(plane[index]) for plane in arrays)) for index in range(len(packed))]


def code(name: str, pictures: Sequence[Planes], crf: int, fps: float) -> tuple[Tensor, float]:
    """What a proxy or codec makes of the pictures at a rung: luma [T, 1, H, W] in 0..1, and all bits."""
    if name in PROXIES:
        rows, columns = pictures[0].height // 4, pictures[0].width // 4
        frames = [from_packed(torch.from_numpy(pack(planes)[None, :rows, :columns])) for planes in pictures]
        with torch.no_grad():
            decoded, bits = PROXIES[name]()(frames, float(crf))
        return torch.cat([to_planes(frame)[0] for frame in decoded]).clamp(0.0, 1.0), float(bits.sum())
    if name == "x264":
        seen, sizes = x264_round_trip(list(pictures), crf, fps)
        return _luma(seen), float(sum(sizes))
    video = code_video(CODECS[name], pictures, fps, crf, GOP)
    return _luma(video.pictures), 8.0 * sum(len(unit.data) for unit in video.units)


def _luma(pictures: Sequence[Planes]) -> Tensor:
    return torch.from_numpy(np.stack([planes.y for planes in pictures]))[:, None].float() / 255.0


def measure(clip: Clip, packed: U8, crfs: Sequence[int], coders: Sequence[str]) -> list[Record]:
    """Every filter at every CRF through every coder, scored against the unfiltered clip."""
    original = to_planes(from_packed(torch.from_numpy(packed)))[0]
    records = []
    for name in FILTERS:
        pictures = filtered(packed, name)
        for crf in crfs:
            for coder in coders:
                luma, bits = code(coder, pictures, crf, clip.fps)
                psnr = -10.0 * torch.log10((luma - original).square().mean() + 1e-10)
                likeness = ssim(luma, original).mean()
                records.append(Record(clip.name, name, crf, coder, float(psnr), float(likeness), bits))
    return records


def show(rows: Sequence[Fidelity], fits: Sequence[dict[str, Any]], out: Console) -> None:
    for sweep in dict.fromkeys(row.sweep for row in rows):
        table = Table(title=f"correlation with real codecs {sweep}: Pearson / Spearman / pairs in order, %")
        for title in ("codec", "proxy", *MEASURES):
            table.add_column(title, justify="left" if title in ("codec", "proxy") else "right")
        for codec in CODEC_NAMES:
            for proxy in PROXY_NAMES:
                found = {row.measure: row for row in rows if (row.sweep, row.codec, row.proxy) == (sweep, codec, proxy)}
                if found:
                    table.add_row(codec, proxy, *(_cell(found.get(measure)) for measure in MEASURES))
        out.print(table)
    out.print("log(real bits) = a + b log(proxy bits); error: median over clips that the fit did not see;")
    out.print("elasticity: b over filters alone")
    table = Table()
    for title in ("codec", "proxy", "a", "b", "error, %", "elasticity"):
        table.add_column(title, justify="left" if title in ("codec", "proxy") else "right")
    for fit in fits:
        error = "-" if fit["error_percent"] is None else f"{fit['error_percent']:.0f}"
        elasticity = "-" if fit["elasticity"] is None else f"{fit['elasticity']:.2f}"
        table.add_row(fit["codec"], fit["proxy"], f"{fit['a']:.2f}", f"{fit['b']:.2f}", error, elasticity)
    out.print(table)


def _cell(row: Fidelity | None) -> str:
    return "-" if row is None else f"{row.pearson:+.2f} / {row.spearman:+.2f} / {100 * row.pairs:.0f}"


def draw(rows: Sequence[Fidelity], records: Sequence[Record], path: Path) -> None:
    """Bars of Spearman over filters for each codec, and bits of the proxies against the first codec's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    codecs = [name for name in CODEC_NAMES if any(row.codec == name for row in rows)]
    figure, axes = pyplot.subplots(1, len(codecs) + 1, figsize=(4.6 * (len(codecs) + 1), 3.8), layout="constrained")
    for axis, codec in zip(axes, codecs, strict=False):
        for index, proxy in enumerate(PROXY_NAMES):
            found = {
                row.measure: row.spearman
                for row in rows
                if (row.sweep, row.codec, row.proxy) == ("over filters", codec, proxy)
            }
            places = np.arange(len(MEASURES)) + 0.25 * (index - 1)
            axis.bar(places, [found.get(measure, 0.0) for measure in MEASURES], 0.23, label=proxy)
        axis.set_xticks(range(len(MEASURES)), MEASURES)
        axis.set_ylim(-0.2, 1.0)
        axis.set_title(f"filters at one CRF, Spearman with {codec}", fontsize=10)
        axis.grid(visible=True, axis="y", alpha=0.25)
    for proxy in PROXY_NAMES:
        pairs = {(r.clip, r.filter, r.crf): r.bits for r in records if r.coder == codecs[0]}
        points = [(r.bits, pairs[r.clip, r.filter, r.crf]) for r in records if r.coder == proxy]
        axes[-1].loglog(*zip(*points, strict=True), ".", markersize=3, label=proxy)
    axes[-1].set_xlabel("bits of the proxy")
    axes[-1].set_ylabel(f"bits of {codecs[0]}")
    axes[-1].grid(visible=True, alpha=0.25)
    axes[-1].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def run(
    clips: Annotated[str, typer.Option(help="Categories or patterns, comma separated.")] = (
        "mot,vos,traffic,pedestrian,natural,codec"
    ),
    crfs: Annotated[str, typer.Option(help="CRFs of x264; other codecs take what costs about as much.")] = "27,35,43",
    codecs: Annotated[str, typer.Option(help="Real codecs to compare with.")] = ",".join(CODEC_NAMES),
    limit: Annotated[int, typer.Option(min=2, help="Frames of each clip.")] = 4,
    width: Annotated[int, typer.Option(min=64, help="Wider clips are scaled down.")] = 352,
    out: Annotated[Path, typer.Option(help="Folder of report.json and plot.png.")] = Path("runs/proxy_fidelity"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here as well.")] = None,
) -> None:
    """Correlate proxies with codecs; print tables, write JSON and a plot."""
    torch.set_num_threads(1)
    report = _report.envelope("proxy_fidelity")
    chosen = find_clips([part.strip() for part in clips.split(",")])
    real = [name for name in CODEC_NAMES if name in {part.strip() for part in codecs.split(",")}]
    records: list[Record] = []
    for number, clip in enumerate(chosen, 1):
        records += measure(clip, read_clip(clip, width, limit), _report.numbers(crfs), [*PROXY_NAMES, *real])
        console.print(f"{number} of {len(chosen)} clips: {clip.name}", highlight=False)
    rows = over_crfs(records) + over_filters(records)
    fits = rate_fit(records)
    show(rows, fits, console)
    draw(rows, records, out / "plot.png")
    report |= {
        "settings": {"crfs": _report.numbers(crfs), "codecs": real, "limit": limit, "width": width},
        "clips": [clip.name for clip in chosen],
        "fidelity": [row.as_dict() for row in rows],
        "rate_fits": fits,
        "records": [record.as_dict() for record in records],
    }
    _report.write_all(out, json_file, report)
    console.print(f"written: {out / 'report.json'}, {out / 'plot.png'}")


def main() -> None:
    _report.command(run, EXAMPLE)


if __name__ == "__main__":
    main()
