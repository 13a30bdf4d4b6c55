"""From records of single measurements to rates, scores and gains of groups of clips. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from benchmarks.curves import (
    Curve,
    Delta,
    Interval,
    bd_quality,
    bd_rate,
    interval,
    ironed,
    quality_at,
    rate_at,
    resamples,
    worst_rate,
)
from benchmarks.groups import BYTE_KINDS, GROUPS, Group, Metric, Record, kbps
from benchmarks.systems import SYSTEMS

ANCHOR = "x264"

BESIDE_ANCHOR = (
    ("fnet", "smc"),
    *(("x264-tuned", f"{name}-tuned") for name in ("machine", "smc", "machine-smc")),
    *((codec, f"{filtered}-{codec}") for codec in ("x265", "svtav1") for filtered in ("scene", "scene-m", "machine")),
)
"""(anchor, system) that are compared as well: what the semantics gain over F-Net alone, SCENE before
other codecs, and all before an x264 that is tuned for machines."""

DRAWS = 400
"""Bootstrap draws behind each interval."""

ANCHOR_KEEPS = 0.7
"""Part of the original's score; where the anchor keeps as much, the other systems are asked what they keep."""


def summarise(records: Sequence[Record], *, seed: int, anchor: str = ANCHOR) -> list[dict[str, Any]]:
    """One entry a group that has clips: points of each system, scores of the originals, gains over the anchor."""
    summary = []
    for group in GROUPS:
        mine = [record for record in records if record["category"] in group.categories]
        coded, incomplete = _complete([record for record in mine if record["crf"] is not None])
        if not coded:
            continue
        originals = [record for record in mine if record["crf"] is None and record["clip"] not in incomplete]
        present = {record["system"] for record in coded}
        systems = [*(system for system in SYSTEMS if system in present), *sorted(present - {*SYSTEMS})]
        pairs = [(anchor, system) for system in systems if system != anchor and anchor in systems]
        pairs += [pair for pair in BESIDE_ANCHOR if {*pair} <= present and pair[0] != anchor]
        sample = _Sample.of(coded, originals, seed)
        summary.append(
            {
                "group": group.name,
                "title": group.title,
                "clips": len(sample.clips),
                "incomplete": incomplete,
                "original": {metric.name: metric.of(originals) for metric in group.metrics},
                "points": [point for system in systems for point in _points(group, coded, system)],
                "semantic_share": {system: share for system in systems if (share := _share_at_mid(coded, system))},
                "deltas": [entry for metric in group.metrics for entry in _compare(metric, sample, pairs)],
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


def _share_at_mid(coded: Sequence[Record], system: str) -> dict[str, float] | None:
    """Percent of all bits that the semantics take at the middle rung; None for a system without any."""
    mine = [record for record in coded if record["system"] == system]
    rungs = sorted({record["crf"] for record in mine})
    counts = [record["bytes"] for record in mine if record["crf"] == rungs[len(rungs) // 2]]
    total, semantic = (sum(count[kind] for count in counts) for kind in ("total", "semantic"))
    if not semantic:
        return None
    carried = semantic + sum(count.get("semantic_overhead", 0) for count in counts)
    return {"crf": rungs[len(rungs) // 2], "percent": 100 * semantic / total, "with_messages": 100 * carried / total}


@dataclass(frozen=True)
class _Sample:
    """The records of one group by system and clip, and the draws of its clips: first all, then each resample."""

    clips: list[str]
    coded: Mapping[str, Mapping[str, Sequence[Record]]]
    originals: Mapping[str, Record]
    draws: list[list[str]]

    @classmethod
    def of(cls, coded: Sequence[Record], originals: Sequence[Record], seed: int) -> _Sample:
        by_system: dict[str, dict[str, list[Record]]] = {}
        for record in coded:
            by_system.setdefault(record["system"], {}).setdefault(record["clip"], []).append(record)
        clips = sorted({record["clip"] for record in coded})
        drawn = [[clips[i] for i in draw] for draw in resamples(len(clips), seed=seed, draws=DRAWS)]
        return cls(clips, by_system, {record["clip"]: record for record in originals}, [clips, *drawn])

    def curve(self, metric: Metric, system: str, clips: Sequence[str]) -> Curve:
        """The pooled curve of these clips (a clip may come more than once)."""
        at: dict[int, list[Record]] = {}
        for clip in clips:
            for record in self.coded[system][clip]:
                at.setdefault(record["crf"], []).append(record)
        return Curve.of([kbps(records) for records in at.values()], [metric.of(records) for records in at.values()])

    def ceiling(self, metric: Metric, clips: Sequence[str]) -> float | None:
        """The best score there can be on these clips."""
        if metric.ceiling is not None:
            return metric.ceiling
        return metric.of([self.originals[clip] for clip in clips if clip in self.originals])


_Pair: TypeAlias = tuple[Curve, Curve]
"""The anchor's curve and the other's, of the same draw."""


def _compare(metric: Metric, sample: _Sample, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Gains of one metric for each (anchor, system)."""
    draws = [[clip] for clip in sample.clips] if metric.per_clip else sample.draws
    curves = {
        system: [sample.curve(metric, system, draw) for draw in draws]
        for system in sorted({s for p in pairs for s in p})
    }
    entries = []
    for anchor, system in pairs:
        drawn = list(zip(curves[anchor], curves[system], strict=True))
        entry: dict[str, Any] = {"metric": metric.name, "anchor": anchor, "system": system, "clips": len(sample.clips)}
        for name, function in (("bd_rate_percent", bd_rate), ("bd_score", bd_quality)):
            delta, band = _by_clip(function, drawn, sample) if metric.per_clip else _pooled(function, drawn)
            entry[name] = {
                "value": delta.value,
                "reason": delta.reason,
                "overlap": delta.overlap,
                "repaired": delta.repaired,
                "interval95": _pair_of(band),
            }
        if not metric.per_clip:
            entry["kept"] = _kept(drawn, [sample.ceiling(metric, draw) for draw in draws])
            entry["worst"] = _worst(drawn)
        entries.append(entry)
    return entries


_DeltaOf: TypeAlias = Callable[[Curve, Curve], Delta]


def _pooled(function: _DeltaOf, drawn: Sequence[_Pair]) -> tuple[Delta, Interval | None]:
    delta = function(*drawn[0])
    return delta, None if delta.value is None else interval([function(*pair).value for pair in drawn[1:]])


def _by_clip(function: _DeltaOf, drawn: Sequence[_Pair], sample: _Sample) -> tuple[Delta, Interval | None]:
    """The mean of the deltas of single clips, over those for which there is one."""
    deltas = [function(*pair) for pair in drawn]
    known = {clip: delta for clip, delta in zip(sample.clips, deltas, strict=True) if delta.value is not None}
    values = {clip: delta.value for clip, delta in known.items() if delta.value is not None}
    reasons = "; ".join(sorted({delta.reason for delta in deltas if delta.reason}))
    if not values:
        return Delta(None, reasons), None
    mean = Delta(
        sum(values.values()) / len(values),
        f"undefined for {len(deltas) - len(values)} of {len(deltas)} clips: {reasons}" if reasons else "",
        min(delta.overlap for delta in known.values()),
        max(delta.repaired for delta in known.values()),
    )
    return mean, interval([_mean(values[clip] for clip in draw if clip in values) for draw in sample.draws[1:]])


def _kept(drawn: Sequence[_Pair], ceilings: Sequence[float | None]) -> dict[str, Any]:
    """Percent of the original's score that the system keeps at the rate where the anchor keeps ANCHOR_KEEPS."""

    def at(pair: _Pair, ceiling: float | None) -> tuple[float | None, float | None]:
        rate = rate_at(pair[0], ANCHOR_KEEPS * ceiling) if ceiling else None
        score = quality_at(ironed(pair[1]), rate) if rate is not None else None
        return rate, 100 * score / ceiling if score is not None and ceiling else None

    rate, percent = at(drawn[0], ceilings[0])
    values = [at(pair, ceiling)[1] for pair, ceiling in zip(drawn[1:], ceilings[1:], strict=True)]
    reason = "" if percent is not None else f"not measured where the anchor keeps {ANCHOR_KEEPS:.0%}"
    if rate is None:
        reason = f"the anchor never keeps just {ANCHOR_KEEPS:.0%}"
    band = None if percent is None else interval(values)
    return {"kbps": rate, "value": percent, "reason": reason, "interval95": _pair_of(band)}


def _worst(drawn: Sequence[_Pair]) -> dict[str, Any]:
    """The system's score minus the anchor's where that is least; the interval is that of the same rate."""
    rate = worst_rate(*drawn[0])
    if rate is None:
        return {"kbps": None, "value": None, "reason": "no rates in common", "interval95": None}

    def gain(pair: _Pair) -> float | None:
        mine, theirs = quality_at(pair[1], rate), quality_at(pair[0], rate)
        return None if mine is None or theirs is None else mine - theirs

    band = interval([gain(pair) for pair in drawn[1:]])
    return {"kbps": rate, "value": gain(drawn[0]), "reason": "", "interval95": _pair_of(band)}


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return sum(known) / len(known) if known else None


def _pair_of(band: Interval | None) -> list[float] | None:
    return None if band is None else [band.low, band.high]
