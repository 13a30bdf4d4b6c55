"""Which numbers are reported of which development clips: metrics of records, and the groups of clips they are for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from benchmarks.clips import ACTION_SETS, BOX_SETS
from benchmarks.metrics import Counts

Record: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """One number of a set of records, or None; `per_clip` metrics are compared clip by clip, the others pooled.

    `ceiling` is what nothing can exceed; where it is None, that is the originals' own score.
    """

    name: str
    title: str
    of: Callable[[Sequence[Record]], float | None]
    per_clip: bool = False
    digits: int = 1
    ceiling: float | None = None


def _f1(section: str) -> Callable[[Sequence[Record]], float | None]:
    def pooled(records: Sequence[Record]) -> float | None:
        counts = [
            Counts(record[section]["tp"], record[section]["fp"], record[section]["fn"])
            for record in records
            if section in record
        ]
        f1 = sum(counts, Counts()).f1
        return None if f1 is None else 100 * f1

    return pooled


def _mask_recall(records: Sequence[Record]) -> float | None:
    recall = sum((Counts(**record["masks"]) for record in records if "masks" in record), Counts()).recall
    return None if recall is None else 100 * recall


def _mean(section: str, key: str, scale: float = 1.0) -> Callable[[Sequence[Record]], float | None]:
    def mean(records: Sequence[Record]) -> float | None:
        values = [record[section][key] for record in records if section in record]
        known = [value for value in values if value is not None]
        return scale * sum(known) / len(known) if known else None

    return mean


def _share(wanted: str) -> Callable[[Sequence[Record]], float | None]:
    """Percentage of action clips whose predicted class equals the record's `wanted` one."""

    def share(records: Sequence[Record]) -> float | None:
        actions = [record["action"] for record in records if "action" in record]
        hits = sum(action["predicted"] is not None and action["predicted"] == action[wanted] for action in actions)
        return 100 * hits / len(actions) if actions else None

    return share


AGREEMENT = Metric("agreement", "F1 agreement %", _f1("agreement"), ceiling=100)
SECOND = Metric("agreement_second", "F1 agreement, second detector %", _f1("agreement_second"), ceiling=100)
SEGMENTATION = (
    Metric("mask_iou", "mask IoU %", _mean("segmentation", "mask_iou", 100)),
    Metric("mean_iou", "mIoU agreement %", _mean("segmentation", "mean_iou", 100), ceiling=100),
)
MASKS = Metric("mask_recall", "mask recall %", _mask_recall)
TRACKING = (
    Metric("f1_truth", "F1 truth %", _f1("truth")),
    Metric("ap50", "AP50 %", _mean("truth", "ap50", 100)),
    Metric("mota", "MOTA %", _mean("tracking", "mota", 100)),
    Metric("idf1", "IDF1 %", _mean("tracking", "idf1", 100)),
)
PICTURE = (
    Metric("vmaf", "VMAF", _mean("quality", "vmaf"), per_clip=True),
    Metric("vmaf_neg", "VMAF NEG", _mean("quality", "vmaf_neg"), per_clip=True),
    Metric("ms_ssim", "MS-SSIM", _mean("quality", "ms_ssim"), per_clip=True, digits=4),
    Metric("ssim", "SSIM", _mean("quality", "ssim"), per_clip=True, digits=4),
    Metric("psnr", "PSNR dB", _mean("quality", "psnr_db"), per_clip=True, digits=2),
)
ACTION = (
    Metric("top1", "top-1 %", _share("label")),
    Metric("top1_agreement", "top-1 agreement %", _share("reference"), ceiling=100),
)


@dataclass(frozen=True)
class Group:
    """Clips that are reported together, and what is reported of them."""

    name: str
    title: str
    categories: tuple[str, ...]
    metrics: tuple[Metric, ...]


GROUPS = (
    Group("boxes", "boxes, all clips with people or vehicles", BOX_SETS, (AGREEMENT, SECOND)),
    Group("mot", "street with ground truth (mot)", ("mot",), (AGREEMENT, SECOND, *TRACKING, *PICTURE)),
    Group("vos", "moving camera (vos)", ("vos",), (AGREEMENT, SECOND, MASKS, *SEGMENTATION, *PICTURE)),
    Group("traffic", "traffic", ("traffic",), (AGREEMENT, SECOND, *PICTURE)),
    Group("pedestrian", "pedestrian", ("pedestrian",), (AGREEMENT, SECOND, *PICTURE)),
    Group("pictures", "picture quality, all but the action clips", (*BOX_SETS, "natural", "codec"), PICTURE),
    *(Group(name, f"actions, {name.partition('_')[2]}", (name,), ACTION) for name in ACTION_SETS),
)

BYTE_KINDS = ("video", "semantic", "sei", "overhead")


def kbps(records: Sequence[Record], kind: str = "total") -> float:
    """Bits of the clips over the seconds they last, in 1000 bit/s."""
    return float(sum(r["bytes"][kind] for r in records) * 8 / 1000 / sum(r["seconds"] for r in records))
