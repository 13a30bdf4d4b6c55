"""SCENE's kernels: how far scenes differ, how steady one scene is, what folding is worth in INT8, and what it takes.

    python -m benchmarks.scene_kernels --plot docs/scene_kernels.png

For each clip: the prior's coefficients once a second; then the first picture through the float filter with that scene's
kernels, and through each engine's INT8 with the bundle's own kernels (the usual scene's) and with the scene's.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import track
from rich.table import Table

from benchmarks import _report
from benchmarks.clips import Clip, find_clips
from scene_edge.codec.bundle import Bundle
from scene_edge.codec.kernels import KernelBank, Kernels
from scene_edge.codec.media import read_video
from scene_edge.codec.planes import aligned, pack
from scene_edge.edge.scene import REFOLD, thumbnail
from scene_edge.inference.session import Session, open_session

EXAMPLE = "Example: python -m benchmarks.scene_kernels --clips mot,vos --engines openvino"

WIDTH = 640


def coefficients_of(clip: Clip, bundle: Bundle, prior: Session) -> NDArray[np.float32]:
    """[seconds, K] of a clip, its first picture's first."""
    rows, columns = bundle.parameters["prior_size"]
    every = max(1, round(clip.fps))
    found = [
        prior.run({"thumb": thumbnail(planes, rows, columns)[None]})["coefficients"].ravel()
        for index, (planes, _) in enumerate(read_video(clip.path, limit=5 * every))
        if index % every == 0
    ]
    return np.stack(found).astype(np.float32)


def errors_of(clip: Clip, bundle: Bundle, kernels: Kernels, engines: list[str]) -> dict[str, float]:
    """Mean difference in levels from the float filter of this scene, and ms to open a filter with new kernels."""
    width = min(WIDTH, clip.width) // 2 * 2
    planes = next(iter(read_video(clip.path, width=width, limit=1)))[0]
    packed = pack(planes)[None]
    rows, columns = aligned(planes.height) // 4, aligned(planes.width) // 4

    def filtered(engine: str, precision: str, changed: Kernels | None) -> tuple[NDArray[np.float64], float]:
        started = time.perf_counter()
        session = open_session(
            bundle,
            "filter",
            height=rows,
            width=columns,
            prefer=(engine,),
            precision=precision,
            threads=1,
            kernels=changed,
        )
        opened_ms = 1e3 * (time.perf_counter() - started)
        out = session.run({"x": packed})["y"].astype(np.float64)
        session.close()
        return out, opened_ms

    wanted, _ = filtered("onnx", "fp32", kernels)
    found = {"filter moves": float(np.abs(wanted - packed).mean())}
    for engine in engines:
        for name, changed in (("usual", None), ("folded", kernels)):
            out, opened_ms = filtered(engine, "int8", changed)
            found[f"{engine} {name}"] = float(np.abs(out - wanted).mean())
        found[f"{engine} ms"] = opened_ms
    return found


def draw(values: NDArray[np.float32], names: list[str], path: Path) -> None:
    """A row for each clip, a column for each coefficient, as differences from the mean of all clips."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    relative = (values - values.mean(0)) / np.sqrt(np.square(values).mean())
    figure, axes = pyplot.subplots(figsize=(11, 1.5 + 0.16 * len(names)))
    image = axes.imshow(100 * relative, aspect="auto", cmap="RdBu_r", vmin=-12, vmax=12, interpolation="nearest")
    axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.set_xlabel("coefficient: block, base kernel, output channel")
    axes.set_title("how SCENE mixes its base kernels, scene by scene")
    figure.colorbar(image, label="% of the root mean square")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def run(
    clips: Annotated[str, typer.Option(help="Which clips.")] = "*",
    every: Annotated[int, typer.Option(min=1, help="Take each n-th of them.")] = 8,
    engines: Annotated[str, typer.Option(help="Whose INT8.")] = "openvino,onnx",
    bundle: Annotated[str, typer.Option(help="Name or folder.")] = "scene-s",
    crf: Annotated[int, typer.Option(help="The video's quality, which kernels follow as well.")] = 35,
    plot: Annotated[Path | None, typer.Option(help="Write a picture of the coefficients here.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
) -> None:
    """Look at the kernels that each scene gets."""
    report, opened = _report.envelope("scene_kernels"), Bundle.open(bundle)
    rows, columns = opened.parameters["prior_size"]
    prior = open_session(opened, "prior", height=rows // 4, width=columns // 4, threads=1)
    bank, chosen = KernelBank(opened), find_clips(clips.split(","))[::every]
    values, entries = [], []
    for clip in track(chosen, "clips"):
        found = coefficients_of(clip, opened, prior)
        scale = float(np.sqrt(np.square(found).mean()))
        drift = float(np.abs(np.diff(found, axis=0)).max() / scale) if len(found) > 1 else 0.0
        values.append(found[0])
        errors = errors_of(clip, opened, bank.assemble(found[0], crf=float(crf)), engines.split(","))
        entries.append({"clip": clip.name, "drift_percent": 100 * drift, **errors})
    spread = np.std(values, axis=0) / np.sqrt(np.mean(np.square(values)))
    summary: dict[str, Any] = {
        "clips": len(chosen),
        "spread_percent_mean": 100 * float(spread.mean()),
        "spread_percent_most": 100 * float(spread.max()),
        "drift_percent_most": max(entry["drift_percent"] for entry in entries),
        "refold_percent": 100 * REFOLD,
    }
    table = Table(
        title="mean difference from the float filter with the scene's kernels, in levels", title_justify="left"
    )
    for name in entries[0]:
        table.add_column(name, justify="left" if name == "clip" else "right")
    for entry in entries:
        table.add_row(*(value if isinstance(value, str) else f"{value:.3g}" for value in entry.values()))
    mean = {name: float(np.mean([entry[name] for entry in entries])) for name in entries[0] if name != "clip"}
    table.add_row("mean", *(f"{value:.3g}" for value in mean.values()), style="bold")
    console = _report.console()
    console.print(table)
    console.print(
        f"between scenes a coefficient differs by {summary['spread_percent_mean']:.1f} % (standard deviation; at most "
        f"{summary['spread_percent_most']:.1f} %), from second to second within one by at most "
        f"{summary['drift_percent_most']:.1f} %; kernels are made anew from {summary['refold_percent']:g} % on"
    )
    if plot is not None:
        draw(np.stack(values), [clip.name for clip in chosen], plot)
    _report.write_json(json_file, report | {"crf": crf, "summary": summary, "rows": entries, "mean": mean})


def main() -> None:
    _report.command(run, EXAMPLE)


if __name__ == "__main__":
    main()
