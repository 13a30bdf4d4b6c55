"""Agreement of proxies with codecs, from what both made of the same pictures: correlations, orders, rate fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import rankdata

PROXY_NAMES = ("jpeg", "block", "hybrid")
CODEC_NAMES = ("x264", "x265", "svtav1")

MEASURES = ("PSNR", "SSIM", "bits", "J")

SAME = 1e-6
"""Differences below that are none: two filters that leave a clip alike are in no order."""


@dataclass(frozen=True)
class Record:
    """What one coder made of one filtered clip at one rung; quality is against the unfiltered clip."""

    clip: str
    filter: str
    crf: int
    coder: str
    psnr: float
    ssim: float
    bits: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Fidelity:
    """Means over `groups` of points: correlations, and the share of pairs of points that stand in the same order."""

    sweep: str
    codec: str
    proxy: str
    measure: str
    pearson: float
    spearman: float
    pairs: float
    groups: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


Values = Mapping[tuple[str, str, int], float]
"""(clip, filter, CRF) -> what a coder got."""


def values_of(records: Sequence[Record], coder: str, measure: str) -> Values:
    """One measure of one coder; bits are logarithms, J is log(1 - SSIM) + mu log(bits).

    mu is the coder's own exchange rate, for each clip: -d log(1 - SSIM) / d log(bits) over the CRFs without a filter.
    """
    mine = [record for record in records if record.coder == coder]
    log_bits = {(r.clip, r.filter, r.crf): float(np.log(r.bits)) for r in mine}
    if measure == "bits":
        return log_bits
    if measure != "J":
        return {(r.clip, r.filter, r.crf): r.psnr if measure == "PSNR" else r.ssim for r in mine}
    loss = {(r.clip, r.filter, r.crf): float(np.log(1.0 - r.ssim + 1e-3)) for r in mine}
    price = {}
    for clip in {r.clip for r in mine}:
        plain = [key for key in loss if key[:2] == (clip, "identity")]
        if len(plain) > 1:
            price[clip] = -float(np.polyfit([log_bits[key] for key in plain], [loss[key] for key in plain], 1)[0])
    return {key: loss[key] + price[key[0]] * log_bits[key] for key in loss if key[0] in price}


def agreement(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float] | None:
    """Pearson, Spearman, and the share of pairs in the same order; None where either does not vary.

    >>> agreement([1, 2, 3], [10, 20, 90])[1:]
    (1.0, 1.0)
    """
    if len(first) < 3 or min(np.ptp(first), np.ptp(second)) < SAME:
        return None
    pearson = float(np.corrcoef(first, second)[0, 1])
    spearman = float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])
    steps = [
        (first[i] - first[j], second[i] - second[j])
        for i, j in combinations(range(len(first)), 2)
        if abs(second[i] - second[j]) > SAME
    ]
    return pearson, spearman, float(np.mean([a * b > 0 for a, b in steps]))


def over_crfs(records: Sequence[Record]) -> list[Fidelity]:
    """For each clip, over its CRFs without a filter. J is left out: it says nothing over CRFs."""
    clips = dict.fromkeys(record.clip for record in records)
    crfs = sorted({record.crf for record in records})
    groups = [[(clip, "identity", crf) for crf in crfs] for clip in clips]
    return _over("over CRFs", records, groups, [measure for measure in MEASURES if measure != "J"])


def over_filters(records: Sequence[Record]) -> list[Fidelity]:
    """For each clip and CRF, over the filters."""
    places = dict.fromkeys((record.clip, record.crf) for record in records)
    filters = list(dict.fromkeys(record.filter for record in records))
    groups = [[(clip, name, crf) for name in filters] for clip, crf in places]
    return _over("over filters", records, groups, MEASURES)


def _over(
    sweep: str, records: Sequence[Record], groups: Sequence[Sequence[tuple[str, str, int]]], measures: Sequence[str]
) -> list[Fidelity]:
    coders = {record.coder for record in records}
    rows = []
    for measure in measures:
        values = {coder: values_of(records, coder, measure) for coder in coders}
        for codec in (name for name in CODEC_NAMES if name in coders):
            for proxy in (name for name in PROXY_NAMES if name in coders):
                both = [[key for key in group if key in values[codec] and key in values[proxy]] for group in groups]
                found = [
                    one
                    for keys in both
                    if (one := agreement([values[proxy][k] for k in keys], [values[codec][k] for k in keys]))
                ]
                if found:
                    pearson, spearman, pairs = (float(mean) for mean in np.mean(found, 0))
                    rows.append(Fidelity(sweep, codec, proxy, measure, pearson, spearman, pairs, len(found)))
    return rows


def rate_fit(records: Sequence[Record]) -> list[dict[str, Any]]:
    """log(real bits) = a + b log(proxy bits) over everything, and its median error on clips that it did not see.

    Neural wrapping (CVPR 2025, equation 3) fits an affine map; bits span decades, so here it is one of logarithms. The
    `elasticity` is the same slope over filters alone, each clip and CRF against itself without a filter: below 1, the
    proxy exaggerates what a filter saves.
    """
    coders = {record.coder for record in records}
    fits = []
    for codec in (name for name in CODEC_NAMES if name in coders):
        for proxy in (name for name in PROXY_NAMES if name in coders):
            real, near = (values_of(records, name, "bits") for name in (codec, proxy))
            keys = sorted(real.keys() & near.keys())
            clips = np.array([key[0] for key in keys])
            x, y = (np.array([values[key] for key in keys]) for values in (near, real))
            slope, offset = np.polyfit(x, y, 1)
            errors: list[float] = []
            for clip in sorted(set(clips)) if len(set(clips)) > 1 else []:
                fitted = np.polyfit(x[clips != clip], y[clips != clip], 1)
                errors += np.abs(np.exp(np.polyval(fitted, x[clips == clip]) - y[clips == clip]) - 1).tolist()
            error = 100 * float(np.median(errors)) if errors else None
            moved = np.array(
                [[values[key] - values[key[0], "identity", key[2]] for key in keys] for values in (near, real)]
            )
            elasticity = float((moved[0] * moved[1]).sum() / (moved[0] ** 2).sum()) if moved[0].any() else None
            fit = {"a": float(offset), "b": float(slope), "error_percent": error, "elasticity": elasticity}
            fits.append({"codec": codec, "proxy": proxy, **fit})
    return fits
