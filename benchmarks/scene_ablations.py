"""What SCENE's parts, proxies and terms are worth: filters trained alike but for one thing, judged through x264.

    python -m benchmarks.scene_ablations --minutes 30

All have the same seed, time and thread, start from nothing (or from `--start`) and go on where they were stopped; one
that is cheaper takes more steps in its time. All are judged by one yardstick, on crops of development clips that real
x264 codes with the filter and without: how much less is lost (the recipe's own qualities), by how much a GOP's bits
change, and what that is in rate at equal quality, at x264's own exchange rate: a BD-rate in miniature.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from rich.table import Table
from torch import Tensor

from benchmarks import _report
from benchmarks.ablations import DEV_FOLDERS, claim, prepare
from benchmarks.clips import data_folder
from scene_edge.codec.errors import ConfigError
from scene_edge.models.data import ClipSampler, DataConfig
from scene_edge.models.proxy import coded_by_x264
from scene_edge.models.recipes import SceneRun, load_recipe, make_run
from scene_edge.models.train_scene import SceneTraining, of_gop

EXAMPLE = "Example: python -m benchmarks.scene_ablations --minutes 30 --variants full,own,jpeg --json scene.json"

RECIPE = "scene-m"
FULL = "full"
QPS = (27, 33, 39, 45)
DEV_FRAMES = 8
APART = 3
"""x264's exchange rate is taken between QPs that lie so far to each side."""

console = _report.console()


@dataclass(frozen=True)
class Variant:
    """One trial and what of the recipe it changes."""

    title: str
    recipe: Mapping[str, Any]


VARIANTS = {
    FULL: Variant("full", {}),
    "none": Variant("semantic path: grey", {"prior": "none"}),
    "noise": Variant("semantic path: noise", {"prior": "noise"}),
    "half": Variant("second block from its own features", {"size": "scene-m-half"}),
    "own": Variant("both blocks from their own features (AsConvSR)", {"size": "scene-m-own"}),
    "temporal": Variant("sees its last output", {"size": "scene-m-temporal"}),
    "wide": Variant("twice the width", {"size": "scene-m-wide"}),
    "narrow": Variant("half the width (scene-s, taught by nobody)", {"size": "scene-s"}),
    "jpeg": Variant("JPEG proxy alone", {"proxy": "jpeg", "real_codec": False}),
    "hybrid": Variant("hybrid proxy alone", {"real_codec": False}),
    "jpeg-x264": Variant("x264 with JPEG's gradient", {"proxy": "jpeg"}),
    "no-detail": Variant("no VIF, no DLM", {"detail_weight": 0.0, "ssim_weight": 0.8}),
    "no-rise": Variant("a rising rate costs its price alone", {"rise_weight": 0.0}),
}


@dataclass(frozen=True)
class Judged:
    """Of one draw at one QP, means over crops: log distortion taken off, log bits added, x264's price of a log bit."""

    qp: int
    better: float
    rise: float
    price: float

    @property
    def rate_percent(self) -> float:
        """Change of the rate at equal quality; negative is a saving."""
        return 100.0 * (self.rise - self.better / self.price)


def variant_run(name: str, **machine: Any) -> SceneRun:
    """The recipe of a variant, with the settings of this machine (data, out, max_minutes, ...). Raises ConfigError."""
    if name not in VARIANTS:
        raise ConfigError("no such variant", got=name, allowed=", ".join(VARIANTS))
    recipe = load_recipe(SceneRun, RECIPE, **machine).as_dict()
    return make_run(SceneRun, recipe | dict(VARIANTS[name].recipe) | machine, name)


def train_variant(config: SceneRun, clips: Path) -> SceneTraining:
    """Train, or go on; returns the run with its averaged weights."""
    torch.manual_seed(config.seed)
    training = SceneTraining(config, clips)
    training.trainer.run(training.step)
    training.model.load_state_dict(training.trainer.average)
    return training


class Yardstick:
    """Crops of development clips, coded without a filter once for all variants."""

    def __init__(self, clips: Path, like: SceneTraining, seeds: Sequence[int], batches: int) -> None:
        config = like.config
        self._judge, self._batches = like, {}
        self._plain: dict[tuple[int, int, int], tuple[Tensor, Tensor, float]] = {}
        for seed in track(seeds, "crops without a filter", console=console):
            sampler = ClipSampler(clips, seed, size=config.crop, length=config.length)
            self._batches[seed] = [sampler.sample(config.batch) for _ in range(batches)]
            for index, batch in enumerate(self._batches[seed]):
                frames = like.frames(batch)
                for qp in QPS:
                    self._plain[seed, index, qp] = self._without(frames, qp)

    @torch.no_grad()
    def _without(self, frames: list[Tensor], qp: int) -> tuple[Tensor, Tensor, float]:
        """Qualities and log bits [B] at a QP, and the price around it."""
        found = []
        for each in (qp - APART, qp, qp + APART):
            decoded, bits = coded_by_x264(frames, each)
            found.append((self._judge.qualities(decoded, frames, []), torch.log(of_gop(bits))))
        (fine, fine_bits), (lost, bits), (coarse, coarse_bits) = found
        return lost, bits, float((coarse - fine).mean() / (fine_bits - coarse_bits).mean().clamp_min(1e-3))

    @torch.no_grad()
    def judge(self, training: SceneTraining, label: str) -> list[list[Judged]]:
        """For each draw one result for each QP."""
        training.model.eval()
        draws = []
        for seed, batches in track(self._batches.items(), f"{label}: judged", console=console):
            rows: dict[int, list[tuple[float, float, float]]] = {qp: [] for qp in QPS}
            for index, batch in enumerate(batches):
                frames = self._judge.frames(batch)
                for qp in QPS:
                    controls = training.controls(batch.clips.tolist(), batch.whole, float(qp))
                    seen = [frame.clamp(0.0, 1.0) for frame in training.filtered(frames, controls)]
                    decoded, bits = coded_by_x264(seen, qp)
                    lost, plain_bits, price = self._plain[seed, index, qp]
                    better = lost - self._judge.qualities(decoded, frames, [])
                    rise = torch.log(of_gop(bits)) - plain_bits
                    rows[qp].append((float(better.mean()), float(rise.mean()), price))
            draws.append([Judged(qp, *map(statistics.fmean, zip(*found, strict=True))) for qp, found in rows.items()])
        return draws


def summarise(name: str, steps: int, draws: Sequence[Sequence[Judged]]) -> dict[str, Any]:
    """One row: rate at equal quality and rise at each QP, their means, the standard error over draws."""
    means = [statistics.fmean(point.rate_percent for point in draw) for draw in draws]
    by_qp = []
    for index, qp in enumerate(QPS):
        points = [draw[index] for draw in draws]
        rise = 100 * statistics.fmean(point.rise for point in points)
        by_qp.append({"qp": qp, "rate": statistics.fmean(point.rate_percent for point in points), "rise": rise})
    return {
        "variant": name,
        "title": VARIANTS[name].title,
        "steps": steps,
        "rate": statistics.fmean(means),
        "error": statistics.stdev(means) / len(means) ** 0.5 if len(means) > 1 else None,
        "by_qp": by_qp,
    }


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="rate at equal quality against x264 alone, % (change of the rate itself, %)")
    for head in ("variant", "steps", *(f"QP {qp}" for qp in QPS), "all"):
        table.add_column(head, justify="left" if head == "variant" else "right", no_wrap=True)
    for row in rows:
        cells = [f"{point['rate']:+.1f} ({point['rise']:+.1f})" for point in row["by_qp"]]
        error = "" if row["error"] is None else f" ±{row['error']:.1f}"
        table.add_row(row["title"], str(row["steps"]), *cells, f"{row['rate']:+.1f}{error}")
    return table


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the PNG: a bar for each variant, with its standard error."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(9, 1.2 + 0.42 * len(rows)), layout="constrained")
    places, values = list(range(len(rows))), [row["rate"] for row in rows]
    colours = ["#2ca02c" if row["variant"] == FULL else "#98df8a" for row in rows]
    bar = axis.barh(places, values, xerr=[row["error"] or 0.0 for row in rows], color=colours)
    axis.bar_label(bar, fmt="%+.1f", padding=4, fontsize=8)
    axis.set_yticks(places, [row["title"] for row in rows])
    axis.invert_yaxis()
    axis.axvline(0.0, color="#444444", linewidth=1)
    axis.margins(x=0.15)
    axis.set_xlabel("rate at equal quality against x264 alone, % (less is better)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def run(
    minutes: Annotated[float, typer.Option(min=0.01, help="Of each variant.")] = 30.0,
    variants: Annotated[str, typer.Option(help="Which to train and compare, comma separated.")] = ",".join(VARIANTS),
    start: Annotated[Path | None, typer.Option(help="Run or bundle whose weights fit. Default: none.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs and of plot.png.")] = Path("runs/scene_ablations"),
    cache: Annotated[Path, typer.Option(help="Folder of prepared clips, shared with training.")] = Path("runs/cache"),
    draws: Annotated[int, typer.Option(min=1, help="Sets of crops that all are judged on.")] = 4,
    batches: Annotated[int, typer.Option(min=1, help="Batches of crops in each.")] = 6,
    seed: Annotated[int, typer.Option(help="Of training; that of the crops follows from it.")] = 7,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
) -> None:
    """Train SCENE with one thing changed after the other, and compare what comes of it."""
    asked = [part.strip() for part in variants.split(",")]
    data, report = data_folder(), _report.envelope("scene_ablations", seed=seed)
    torch.set_num_threads(threads)
    machine = {"data": data, "max_minutes": minutes, "seed": seed, "threads": threads, "start": start}
    configs = {name: variant_run(name, out=out / name, **machine) for name in asked}
    settings = {"minutes": minutes, "seed": seed, "start": str(start) if start else None}
    claim(out, settings | {"recipe": variant_run(FULL, out=out, **machine).as_dict()})
    clips = prepare(DataConfig(data), cache, "training clips")
    judged = DataConfig(data, DEV_FOLDERS, action_folders=(), frames=DEV_FRAMES)
    judged_clips = prepare(judged, cache, "development clips")
    judge = SceneTraining(variant_run(FULL, out=out / "judge", **machine), clips)
    yardstick = Yardstick(judged_clips, judge, range(seed + 100, seed + 100 + draws), batches)
    rows = []
    for number, (name, config) in enumerate(configs.items(), 1):
        console.print(f"{number} of {len(configs)}: {VARIANTS[name].title}", highlight=False)
        training = train_variant(config, clips)
        rows.append(summarise(name, training.trainer.steps, yardstick.judge(training, name)))
    console.print(table_of(rows))
    draw(rows, out / "plot.png")
    _report.write_json(json_file or out / "report.json", report | {"settings": settings, "results": rows})
    console.print(f"written: {json_file or out / 'report.json'}, {out / 'plot.png'}")


def main() -> None:
    _report.command(run, EXAMPLE)


if __name__ == "__main__":
    main()
