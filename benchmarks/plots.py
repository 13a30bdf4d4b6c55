"""The summary of `rate_accuracy` as one picture: a panel for each headline score over kbit/s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PANELS = (
    ("boxes", "agreement", "box agreement with the original, F1 %"),
    ("boxes", "agreement_second", "the same by a second detector, F1 %"),
    ("mot", "f1_truth", "people against ground truth, F1 %"),
    ("mot", "mota", "MOTA %"),
    ("mot", "idf1", "IDF1 %"),
    ("vos", "mean_iou", "segmentation, agreement with the original, mIoU %"),
    ("vos", "mask_iou", "segmentation against masks, IoU %"),
    ("action_arid", "top1", "actions at night, top-1 %"),
    ("action_fight", "top1", "fights, top-1 %"),
    ("action_arid", "top1_agreement", "actions at night, agreement with the original, %"),
    ("action_fight", "top1_agreement", "fights, agreement with the original, %"),
    ("pictures", "vmaf", "VMAF"),
    ("pictures", "vmaf_neg", "VMAF NEG"),
    ("pictures", "ms_ssim", "MS-SSIM"),
)

COLOURS = {
    "x264": "#444444",
    "scene": "#1f77b4",
    "fnet": "#98df8a",
    "smc": "#2ca02c",
    "both": "#d62728",
    "machine": "#17becf",
    "machine-smc": "#e377c2",
    "x264-veryfast": "#9a9a9a",
    "x265": "#ff7f0e",
    "svtav1": "#9467bd",
    "vvenc": "#8c564b",
}
"""One colour for one system, in every plot."""


def draw(groups: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the PNG; panels without data are left out, and nothing is written where there is none at all."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    entries = {entry["group"]: entry for entry in groups}
    panels = [panel for panel in PANELS if panel[0] in entries]
    if not panels:
        return
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(5 * columns, 3.6 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (name, metric, title) in zip(axes.flat, panels, strict=False):
        _panel(axis, entries[name], metric, title)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _panel(axis: Any, entry: Mapping[str, Any], metric: str, title: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for system, colour in COLOURS.items():
        points = [
            (point["kbps"]["total"], point["scores"][metric])
            for point in entry["points"]
            if point["system"] == system and point["scores"][metric] is not None
        ]
        if points:
            rates, scores = zip(*sorted(points), strict=True)
            axis.plot(rates, scores, marker="o", markersize=4, color=colour, label=system)
    ceiling = entry["original"][metric]
    if ceiling is not None:
        axis.axhline(ceiling, color="#999999", linestyle="--", linewidth=1, label="original")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("kbit/s, all bytes")
    axis.set_title(f"{title} ({entry['clips']} clip{'s' if entry['clips'] != 1 else ''})", fontsize=10)
    axis.grid(visible=True, which="both", alpha=0.25)
