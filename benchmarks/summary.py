"""From records of single measurements to rates, scores and Bjontegaard deltas of groups of clips. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from benchmarks.clips import ACTION_SETS, BOX_SETS
from benchmarks.curves import Curve, Delta, Interval, bd_quality, bd_rate, bootstrap
from benchmarks.metrics import Counts
from benchmarks.systems import SYSTEMS

Record: TypeAlias = Mapping[str, Any]

ANCHOR = "x264"

DRAWS = 400
"""Bootstrap draws behind each interval."""


@dataclass(frozen=True)
class Metric:
    """One number of a set of records, or None; `per_clip` metrics are compared clip by clip, the others pooled."""

    name: str
    title: str
    of: Callable[[Sequence[Record]], float | None]
    per_clip: bool = False
    digits: int = 1


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


AGREEMENT = Metric("agreement", "F1 agreement %", _f1("agreement"))
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
)
ACTION = (Metric("top1", "top-1 %", _share("label")), Metric("kept", "kept %", _share("reference")))


@dataclass(frozen=True)
class Group:
    """Clips that are reported together, and what is reported of them."""

    name: str
    title: str
    categories: tuple[str, ...]
    metrics: tuple[Metric, ...]


GROUPS = (
    Group("boxes", "boxes, all clips with people or vehicles", BOX_SETS, (AGREEMENT,)),
    Group("mot", "street with ground truth (mot)", ("mot",), (AGREEMENT, *TRACKING, *PICTURE)),
    Group("vos", "moving camera (vos)", ("vos",), (AGREEMENT, MASKS, *PICTURE)),
    Group("traffic", "traffic", ("traffic",), (AGREEMENT, *PICTURE)),
    Group("pedestrian", "pedestrian", ("pedestrian",), (AGREEMENT, *PICTURE)),
    Group("pictures", "picture quality, all but the action clips", (*BOX_SETS, "natural", "codec"), PICTURE),
    *(Group(name, f"actions, {name.partition('_')[2]}", (name,), ACTION) for name in ACTION_SETS),
)

BYTE_KINDS = ("video", "semantic", "sei", "overhead")


def kbps(records: Sequence[Record], kind: str = "total") -> float:
    """Bits of the clips over the seconds they last, in 1000 bit/s."""
    return float(sum(r["bytes"][kind] for r in records) * 8 / 1000 / sum(r["seconds"] for r in records))


def summarise(records: Sequence[Record], *, seed: int) -> list[dict[str, Any]]:
    """One entry a group that has clips: points of each system, scores of the originals, deltas against the anchor."""
    summary = []
    for group in GROUPS:
        mine = [record for record in records if record["category"] in group.categories]
        coded, incomplete = _complete([record for record in mine if record["crf"] is not None])
        if not coded:
            continue
        originals = [record for record in mine if record["crf"] is None and record["clip"] not in incomplete]
        present = {record["system"] for record in coded}
        systems = [system for system in SYSTEMS if system in present]
        summary.append(
            {
                "group": group.name,
                "title": group.title,
                "clips": len({record["clip"] for record in coded}),
                "incomplete": incomplete,
                "original": {metric.name: metric.of(originals) for metric in group.metrics},
                "points": [point for system in systems for point in _points(group, coded, system)],
                "deltas": [
                    _compare(metric, coded, system, seed)
                    for system in systems
                    if system != ANCHOR and ANCHOR in systems
                    for metric in group.metrics
                ],
            }
        )
    return summary


def _complete(coded: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """Records of the clips that have every system at every quality, and the names of the others.

    Points over different clips would compare the clips and not the systems.
    """
    wanted = {(record["system"], record["crf"]) for record in coded}
    there: dict[str, set[tuple[str, int]]] = {}
    for record in coded:
        there.setdefault(record["clip"], set()).add((record["system"], record["crf"]))
    incomplete = sorted(clip for clip, points in there.items() if points != wanted)
    return [record for record in coded if record["clip"] not in incomplete], incomplete


def _points(group: Group, coded: Sequence[Record], system: str) -> list[dict[str, Any]]:
    points = []
    for crf in sorted({record["crf"] for record in coded if record["system"] == system}):
        records = [record for record in coded if record["system"] == system and record["crf"] == crf]
        rates = {kind: kbps(records, kind) for kind in (*BYTE_KINDS, "total")}
        scores = {metric.name: metric.of(records) for metric in group.metrics}
        points.append({"system": system, "crf": crf, "clips": len(records), "kbps": rates, "scores": scores})
    return points


_ByClip: TypeAlias = Mapping[str, Sequence[Record]]


def _curve(metric: Metric, clips: Sequence[str], by_clip: _ByClip) -> Curve:
    """The pooled curve of these clips (a clip may come more than once)."""
    at: dict[int, list[Record]] = {}
    for clip in clips:
        for record in by_clip[clip]:
            at.setdefault(record["crf"], []).append(record)
    return Curve.of([kbps(records) for records in at.values()], [metric.of(records) for records in at.values()])


def _compare(metric: Metric, coded: Sequence[Record], system: str, seed: int) -> dict[str, Any]:
    """Deltas of one metric, on the clips that both systems have coded."""
    sides: list[dict[str, list[Record]]] = [{}, {}]
    for side, name in zip(sides, (ANCHOR, system), strict=True):
        for record in coded:
            if record["system"] == name:
                side.setdefault(record["clip"], []).append(record)
    clips = sorted(sides[0].keys() & sides[1].keys())
    entry: dict[str, Any] = {"metric": metric.name, "system": system, "clips": len(clips)}
    for name, function in (("bd_rate_percent", bd_rate), ("bd_score", bd_quality)):
        delta, interval = _delta_of(metric, function, clips, sides[0], sides[1], seed)
        entry[name] = {
            "value": delta.value,
            "reason": delta.reason,
            "overlap": delta.overlap,
            "repaired": delta.repaired,
            "interval95": [interval.low, interval.high] if interval else None,
        }
    return entry


def _delta_of(
    metric: Metric,
    function: Callable[[Curve, Curve], Delta],
    clips: Sequence[str],
    anchor: _ByClip,
    test: _ByClip,
    seed: int,
) -> tuple[Delta, Interval | None]:
    def pooled(chosen: Sequence[str]) -> Delta:
        return function(_curve(metric, chosen, anchor), _curve(metric, chosen, test))

    if not metric.per_clip:
        delta = pooled(clips)
        if delta.value is None:
            return delta, None
        return delta, bootstrap(
            lambda drawn: pooled([clips[i] for i in drawn]).value, len(clips), seed=seed, draws=DRAWS
        )
    deltas = [pooled([clip]) for clip in clips]
    values = [delta.value for delta in deltas if delta.value is not None]
    reasons = sorted({delta.reason for delta in deltas if delta.reason})
    if not values:
        return Delta(None, "; ".join(reasons)), None
    known = [delta for delta in deltas if delta.value is not None]
    mean = Delta(
        sum(values) / len(values),
        f"undefined for {len(deltas) - len(values)} of {len(deltas)} clips: {'; '.join(reasons)}" if reasons else "",
        min(delta.overlap for delta in known),
        max(delta.repaired for delta in known),
    )
    return mean, bootstrap(
        lambda drawn: sum(values[i] for i in drawn) / len(drawn), len(values), seed=seed, draws=DRAWS
    )
