"""What SCENE's codec proxies promise for a small change of the picture, and what x264 keeps of it.

    python -m benchmarks.proxy_gradients --clips vos,natural

A filter learns from a proxy's gradient. So each clip's luma gets a little more, and a little less, of each octave of
its detail, and of its edges alone; real x264 says by how much the logarithms of what is lost (multi-scale SSIM, VIF and
DLM) and of the bits of a GOP change, and each proxy's gradient says by how much they ought to. Pictures are x264's in
both cases, as in training. `slope` is what is left, by least squares, of a change that the proxy promises: it ought to
be as large for what is lost as for bits, or a filter is taught to sharpen, or to blur.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from benchmarks import _report
from benchmarks.clips import find_clips
from benchmarks.proxy_fidelity import PROXIES, read_clip
from scene_edge.models.blocks import from_planes, to_planes
from scene_edge.models.detail import DetailLoss
from scene_edge.models.layers import from_packed
from scene_edge.models.objectives import multi_scale_ssim
from scene_edge.models.proxy import coded_by_x264
from scene_edge.models.train_scene import of_gop

EXAMPLE = "Example: python -m benchmarks.proxy_gradients --clips vos --crfs 27,39 --json runs/gradients.json"

STEP = 0.15
"""By which part of itself an octave is raised and lowered."""

EDGE = 0.03
"""Detail counts as an edge's where its mean size around is more than this part of full scale."""

WHAT = ("lost", "bits")

console = _report.console()


@dataclass(frozen=True)
class Derivative:
    """d log(what) for a whole more of `direction`, of one clip at one CRF, as one coder has it."""

    clip: str
    crf: int
    direction: str
    what: str
    coder: str
    value: float


def directions(frames: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """Octaves of the luma's detail, the finest first, and its edges: changes of every packed frame [1, 24, h, w]."""
    found: dict[str, list[Tensor]] = {}
    for frame in frames:
        luma, u, v = to_planes(frame)
        parts, seen = {}, luma
        for octave in range(4):
            coarse = F.avg_pool2d(seen, 2)
            detail = seen - F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
            for _ in range(octave):
                detail = F.interpolate(detail, scale_factor=2, mode="bilinear", align_corners=False)
            parts[f"octave {octave + 1}"], seen = detail, coarse
        fine = parts["octave 1"] + parts["octave 2"]
        parts["edges"] = fine * (F.avg_pool2d(fine.abs(), 9, 1, 4) > EDGE)
        for name, part in parts.items():
            packed = from_planes([part, torch.zeros_like(u), torch.zeros_like(v)])
            found.setdefault(name, []).append(packed)
    return found


class Judge:
    """log of what is lost of the last frame, against the original."""

    def __init__(self, original: Tensor) -> None:
        self._detail, self._truth = DetailLoss(), to_planes(original)[0].contiguous()

    def lost(self, decoded: Tensor) -> Tensor:
        luma = to_planes(decoded)[0].contiguous()
        unlike = torch.log(1.0 - multi_scale_ssim(luma, self._truth) + 5e-3)
        return 0.5 * (unlike + torch.log(self._detail(luma, self._truth) + 1e-2)).sum()


Found: TypeAlias = dict[tuple[str, str], float]
"""By (direction, what)."""


def measured(frames: list[Tensor], ways: dict[str, list[Tensor]], crf: int, judge: Judge) -> Found:
    """Central differences through x264."""
    found = {}
    for name, way in ways.items():
        ends = []
        for sign in (1.0, -1.0):
            changed = [(frame + sign * STEP * part).clamp(0.0, 1.0) for frame, part in zip(frames, way, strict=True)]
            decoded, bits = coded_by_x264(changed, crf)
            ends.append((float(judge.lost(decoded[-1])), float(torch.log(of_gop(bits)))))
        for what, above, below in zip(WHAT, *ends, strict=True):
            found[name, what] = (above - below) / (2 * STEP)
    return found


def promised(proxy: nn.Module, frames: list[Tensor], ways: dict[str, list[Tensor]], crf: int, judge: Judge) -> Found:
    """What the gradient of a proxy says, at x264's pictures."""
    real, real_bits = coded_by_x264(frames, crf)
    given = [frame.clone().requires_grad_() for frame in frames]
    decoded, bits = proxy(given, float(crf))
    last = decoded[-1] + (real[-1] - decoded[-1]).detach()
    values = (judge.lost(last), torch.log(of_gop(real_bits * (bits / bits.detach()))).sum())
    found = {}
    for what, value in zip(WHAT, values, strict=True):
        gradients = torch.autograd.grad(value, given, retain_graph=True, allow_unused=True)
        for name, way in ways.items():
            products = [(a * b).sum() for a, b in zip(gradients, way, strict=True) if a is not None]
            found[name, what] = float(sum(products))
    return found


def slope_and_correlation(found: Sequence[Derivative], proxy: str, what: str) -> tuple[float, float]:
    """What is left of a promise, by least squares through nothing; Pearson's correlation."""

    def values(coder: str) -> np.ndarray:
        mine = {(d.clip, d.crf, d.direction): d.value for d in found if d.coder == coder and d.what == what}
        return np.array([mine[key] for key in sorted(mine)])

    real, near = values("x264"), values(proxy)
    return float((real * near).sum() / (near * near).sum()), float(np.corrcoef(real, near)[0, 1])


def show(found: Sequence[Derivative]) -> None:
    coders = ["x264", *PROXIES]
    for what in WHAT:
        table = Table(title=f"d log({what}) for a whole more of each octave, mean over clips", title_justify="left")
        for title in ("CRF", "direction", *coders):
            table.add_column(title, justify="left" if title == "direction" else "right")
        for crf, way in dict.fromkeys((d.crf, d.direction) for d in found):
            mine = [d for d in found if (d.crf, d.direction, d.what) == (crf, way, what)]
            means = [float(np.mean([d.value for d in mine if d.coder == coder])) for coder in coders]
            table.add_row(str(crf), way, *(f"{value:+.3f}" for value in means))
        console.print(table)
    table = Table(title="what x264 keeps of a proxy's promise, and how well they agree", title_justify="left")
    for title in ("proxy", "slope: lost", "bits", "correlation: lost", "bits"):
        table.add_column(title, justify="left" if title == "proxy" else "right")
    for proxy in PROXIES:
        pairs = [slope_and_correlation(found, proxy, what) for what in WHAT]
        table.add_row(proxy, *(f"{pair[0]:.2f}" for pair in pairs), *(f"{pair[1]:.2f}" for pair in pairs))
    console.print(table)


def draw(found: Sequence[Derivative], path: Path) -> None:
    """Promised against kept, a panel for what is lost and one for bits."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6))
    for axis, what in zip(axes, WHAT, strict=True):
        real = {(d.clip, d.crf, d.direction): d.value for d in found if d.coder == "x264" and d.what == what}
        for proxy in PROXIES:
            mine = [d for d in found if d.coder == proxy and d.what == what]
            kept = [real[d.clip, d.crf, d.direction] for d in mine]
            axis.scatter([d.value for d in mine], kept, s=7, alpha=0.5, label=proxy)
        low, high = axis.get_xlim()
        axis.plot([low, high], [low, high], color="grey", linewidth=0.8)
        axis.set_xlabel(f"d log({what}) that a proxy promises")
        axis.set_ylabel("d log that x264 keeps")
    axes[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def run(
    clips: Annotated[str, typer.Option(help="Categories or patterns, comma separated.")] = (
        "mot,vos,traffic,pedestrian,natural,codec"
    ),
    crfs: Annotated[str, typer.Option(help="CRFs of x264.")] = "27,33,39,45",
    limit: Annotated[int, typer.Option(min=2, help="Frames of each clip.")] = 3,
    width: Annotated[int, typer.Option(min=128, help="Wider clips are scaled down.")] = 352,
    out: Annotated[Path, typer.Option(help="Folder of report.json and plot.png.")] = Path("runs/proxy_gradients"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here as well.")] = None,
) -> None:
    """Hold proxies' gradients against differences of x264; print tables, write JSON and a plot."""
    torch.set_num_threads(1)
    report = _report.envelope("proxy_gradients")
    chosen = find_clips([part.strip() for part in clips.split(",")])
    found: list[Derivative] = []
    for clip in track(chosen, "clips", console=console):
        frames = list(from_packed(torch.from_numpy(read_clip(clip, width, limit))).split(1))
        ways, judge = directions(frames), Judge(frames[-1])
        for crf in _report.numbers(crfs):
            coders = {"x264": measured(frames, ways, crf, judge)}
            coders |= {name: promised(build(), frames, ways, crf, judge) for name, build in PROXIES.items()}
            for coder, values in coders.items():
                found += [Derivative(clip.name, crf, *key, coder, value) for key, value in values.items()]
    show(found)
    draw(found, out / "plot.png")
    report |= {
        "settings": {"crfs": _report.numbers(crfs), "limit": limit, "width": width},
        "clips": [clip.name for clip in chosen],
        "kept": {f"{proxy} {what}": slope_and_correlation(found, proxy, what) for proxy in PROXIES for what in WHAT},
        "derivatives": [asdict(entry) for entry in found],
    }
    _report.write_all(out, json_file, report)
    console.print(f"written: {out / 'report.json'}, {out / 'plot.png'}")


def main() -> None:
    _report.command(run, EXAMPLE)


if __name__ == "__main__":
    main()
