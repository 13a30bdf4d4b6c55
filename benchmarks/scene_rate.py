"""What SCENE does to the bitrate at equal quality, clip by clip: never weakened, and held by `scene.max_rise`.

    python -m benchmarks.scene_rate --crfs 27,31,35

x264 at the camera's settings codes the first second of each clip as it is and filtered, on ONNX Runtime in INT8.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import track
from rich.table import Table

from benchmarks import _report
from benchmarks.clips import Clip, find_clips
from scene_edge.codec.bundle import Bundle
from scene_edge.codec.kernels import Kernels
from scene_edge.codec.media import read_video
from scene_edge.codec.planes import Planes
from scene_edge.edge.networks import open_prefilter
from scene_edge.edge.scene_guard import GuardSettings, RateGuard, coded_bytes
from scene_edge.inference.session import Session, open_session

EXAMPLE = "Example: python -m benchmarks.scene_rate --clips mot,vos --crfs 27 --bundle scene-machine"

GOP, PRESET = 30, "superfast"


def opened(bundle: Bundle, graph: str, height: int, width: int, kernels: Kernels | None = None, /) -> Session:
    """ONNX Runtime on one thread."""
    return open_session(bundle, graph, height=height, width=width, prefer=("onnx",), threads=1, kernels=kernels)


def ratio(
    clip: Clip, pictures: list[Planes], bundle: Bundle, crf: int, tune: str, max_rise: float | None
) -> tuple[float, float]:
    """Bytes with the filter over bytes without, and the strength at which it ended."""
    guard = None if max_rise is None else RateGuard(GuardSettings(max_rise, crf, PRESET, GOP, tune, clip.fps))
    scene = open_prefilter(bundle, opened, pictures[0].width, pictures[0].height, guard=guard, crf=float(crf))
    filtered = [scene.apply(planes, round(index * 1e9 / clip.fps)) for index, planes in enumerate(pictures)]
    strength = scene.strength
    scene.close()
    taken = [sum(coded_bytes(seen, crf, PRESET, GOP, clip.fps, tune)) for seen in (filtered, pictures)]
    return taken[0] / taken[1], strength


def run(
    clips: Annotated[str, typer.Option(help="Which clips.")] = "*",
    every: Annotated[int, typer.Option(min=1, help="Take each n-th of them.")] = 1,
    crfs: Annotated[str, typer.Option(help="Qualities of the video.")] = "27,35,43",
    width: Annotated[int, typer.Option(min=64, help="Wider clips are scaled down.")] = 960,
    frames: Annotated[int, typer.Option(min=2)] = GOP,
    max_rise: Annotated[float, typer.Option(help="As scene.max_rise.")] = 0.02,
    tune: Annotated[str, typer.Option(help="As video.tune: human or machine.")] = "human",
    bundle: Annotated[str, typer.Option(help="Name or folder.")] = "scene-s",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
) -> None:
    """Compare the bitrate with SCENE and without, at equal CRF."""
    report, shipped = _report.envelope("scene_rate"), Bundle.open(bundle)
    entries: list[dict[str, Any]] = []
    for clip in track(find_clips(clips.split(","))[::every], "clips"):
        size = min(width, clip.width) // 2 * 2
        pictures = [planes for planes, _ in read_video(clip.path, width=size, limit=frames)]
        for crf in _report.numbers(crfs):
            free, _ = ratio(clip, pictures, shipped, crf, tune, None)
            held, strength = ratio(clip, pictures, shipped, crf, tune, max_rise)
            entries.append({"clip": clip.name, "crf": crf, "free": free, "held": held, "strength": strength})
    table = Table(title="bytes with SCENE over bytes without, at equal CRF", title_justify="left")
    for name in (
        "CRF",
        "clips",
        "never weakened: mean",
        "most",
        "over bound",
        "held: mean",
        "most",
        "over",
        "strength",
    ):
        table.add_column(name, justify="right")
    for crf in _report.numbers(crfs):
        found = [entry for entry in entries if entry["crf"] == crf]
        cells = [str(crf), str(len(found))]
        for name in ("free", "held"):
            values = np.array([entry[name] for entry in found])
            cells += [f"{values.mean():.3f}", f"{values.max():.3f}", str(int((values > 1 + max_rise).sum()))]
        table.add_row(*cells, f"{np.mean([entry['strength'] for entry in found]):.2f}")
    _report.console().print(table)
    _report.write_json(json_file, report | {"max_rise": max_rise, "tune": tune, "rows": entries})


def main() -> None:
    _report.command(run, EXAMPLE)


if __name__ == "__main__":
    main()
