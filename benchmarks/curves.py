"""Rate-accuracy curves: Bjontegaard deltas that say when they are undefined, and bootstrap intervals over clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import Akima1DInterpolator, PchipInterpolator

from scene_edge.codec.errors import FormatError

F64: TypeAlias = NDArray[np.float64]
Method: TypeAlias = Literal["pchip", "akima"]

MIN_POINTS = 4
"""Fewer distinct qualities than this say too little of a curve's shape."""

MIN_OVERLAP = 0.25
"""Part of the joint quality (or rate) range that both curves must cover before their difference means anything."""

MAX_REPAIR = 0.1
"""Largest change, in parts of a curve's own quality range, by which noise may be ironed out to make it monotone."""


@dataclass(frozen=True)
class Delta:
    """One Bjontegaard number with what one must know to believe it; `value` is None where it is undefined."""

    value: float | None
    reason: str = ""
    overlap: float = 0.0
    repaired: float = 0.0

    def __str__(self) -> str:
        return f"{self.value:+.1f}" if self.value is not None else f"undefined ({self.reason})"


@dataclass(frozen=True)
class Curve:
    """Points of one system, rates in kbit/s and any quality that should rise with the rate; ordered by rate."""

    rates_kbps: F64
    quality: F64

    @classmethod
    def of(cls, rates_kbps: Sequence[float], quality: Sequence[float | None]) -> Curve:
        """Points whose quality is None are left out. Raises FormatError on a rate that is not positive."""
        kept = [(r, q) for r, q in zip(rates_kbps, quality, strict=True) if q is not None]
        points = np.asarray(sorted(kept), np.float64).reshape(-1, 2)
        if not np.isfinite(points).all() or (points[:, 0] <= 0).any():
            raise FormatError("a rate or a quality cannot be used", got=points.tolist(), allowed="finite, rate above 0")
        return cls(points[:, 0], points[:, 1])


def monotone(values: F64) -> F64:
    """The nearest non-decreasing sequence in least squares (pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        blocks.append((float(value), 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (first, m), (second, n) = blocks[-2:]
            blocks[-2:] = [((first * m + second * n) / (m + n), m + n)]
    return np.repeat([mean for mean, _ in blocks], [count for _, count in blocks]).astype(np.float64)


def _strictly_rising(curve: Curve) -> tuple[F64, F64, float]:
    """(log rate, quality, repair): quality ironed to rise, equal neighbours merged at their mean log rate."""
    level = monotone(curve.quality)
    span = float(np.ptp(curve.quality)) if len(level) else 0.0
    repair = float(np.abs(level - curve.quality).max() / span) if span > 0 else 0.0
    values, group = np.unique(level, return_inverse=True)
    log_rate = np.bincount(group, np.log(curve.rates_kbps)) / np.bincount(group) if len(level) else level
    return log_rate, values, repair


def _integral(x: F64, y: F64, low: float, high: float, method: Method) -> float:
    spline = PchipInterpolator(x, y) if method == "pchip" else Akima1DInterpolator(x, y)
    return float(spline.integrate(low, high))


def _delta(
    anchor: tuple[F64, F64], test: tuple[F64, F64], method: Method, what: str
) -> tuple[float | None, str, float]:
    """Mean of test - anchor over the common range of x, as (difference, reason, overlap)."""
    (ax, ay), (tx, ty) = anchor, test
    for name, x in (("anchor", ax), ("test", tx)):
        if len(x) < MIN_POINTS:
            return None, f"{name} has {len(x)} distinct points, {MIN_POINTS} needed", 0.0
    low, high = max(ax[0], tx[0]), min(ax[-1], tx[-1])
    overlap = max(0.0, float((high - low) / (max(ax[-1], tx[-1]) - min(ax[0], tx[0]))))
    if overlap <= 0:
        side = "below" if tx[-1] <= ax[0] else "above"
        return None, f"no common {what}: test lies {side} the anchor", 0.0
    if overlap < MIN_OVERLAP:
        return None, f"only {overlap:.0%} of the {what} is common", overlap
    difference = _integral(tx, ty, low, high, method) - _integral(ax, ay, low, high, method)
    return difference / (high - low), "", overlap


def bd_rate(anchor: Curve, test: Curve, method: Method = "pchip") -> Delta:
    """Mean rate change of `test` against `anchor` at equal quality, in percent; negative is a saving.

    Bjontegaard VCEG-M33 with a shape-preserving spline of log rate over quality. Undefined, with the reason, where a
    curve has too few points, is too noisy to be called monotone, or shares too little of its quality range.
    """
    a_rate, a_quality, a_repair = _strictly_rising(anchor)
    t_rate, t_quality, t_repair = _strictly_rising(test)
    repair = max(a_repair, t_repair)
    if repair > MAX_REPAIR:
        return Delta(None, f"quality does not rise with rate: {repair:.0%} of its range would need repair", 0.0, repair)
    mean, reason, overlap = _delta((a_quality, a_rate), (t_quality, t_rate), method, "quality range")
    return Delta(None if mean is None else 100 * (float(np.exp(mean)) - 1), reason, overlap, repair)


def bd_quality(anchor: Curve, test: Curve, method: Method = "pchip") -> Delta:
    """Mean quality change of `test` against `anchor` at equal rate, in the quality's own unit; positive is a gain.

    Defined wherever the rates overlap, so also for curves that never reach the same quality.
    """
    curves = [(np.log(curve.rates_kbps), curve.quality) for curve in (anchor, test)]
    if any(len(x) and (np.diff(x) <= 0).any() for x, _ in curves):
        return Delta(None, "two points of one curve have the same rate")
    return Delta(*_delta(curves[0], curves[1], method, "rate range"))


def ironed(curve: Curve) -> Curve:
    """The same points with the quality made to rise, for who asks where a noisy curve has a value."""
    return Curve(curve.rates_kbps, monotone(curve.quality))


def rate_at(curve: Curve, quality: float, steps: int = 400) -> float | None:
    """The least rate in kbit/s at which the curve, ironed, has this quality; None where it never does, or always."""
    if not _is_curve(curve):
        return None
    rates = np.geomspace(curve.rates_kbps[0], curve.rates_kbps[-1], steps)
    values = PchipInterpolator(np.log(curve.rates_kbps), monotone(curve.quality))(np.log(rates))
    if not values[0] <= quality <= values[-1]:
        return None
    after = max(1, int(np.searchsorted(values, quality)))
    return float(np.interp(quality, values[after - 1 : after + 1], rates[after - 1 : after + 1]))


def quality_at(curve: Curve, rate_kbps: float) -> float | None:
    """The quality at a rate, between the points as they are; None outside them."""
    if not _is_curve(curve) or not curve.rates_kbps[0] <= rate_kbps <= curve.rates_kbps[-1]:
        return None
    return float(PchipInterpolator(np.log(curve.rates_kbps), curve.quality)(np.log(rate_kbps)))


def _is_curve(curve: Curve) -> bool:
    return len(curve.rates_kbps) >= 2 and bool((np.diff(curve.rates_kbps) > 0).all())


def worst_rate(anchor: Curve, test: Curve, steps: int = 64) -> float | None:
    """The rate at which `test` loses most against `anchor` (or gains least); None without rates in common."""
    if not len(anchor.rates_kbps) or not len(test.rates_kbps):
        return None
    low = max(anchor.rates_kbps[0], test.rates_kbps[0])
    high = min(anchor.rates_kbps[-1], test.rates_kbps[-1])
    if low >= high:
        return None
    points = np.concatenate([np.geomspace(low, high, steps)[1:-1], anchor.rates_kbps, test.rates_kbps])
    gains = []
    for rate in points[(points >= low) & (points <= high)]:
        mine, theirs = quality_at(test, float(rate)), quality_at(anchor, float(rate))
        if mine is not None and theirs is not None:
            gains.append((mine - theirs, float(rate)))
    return min(gains)[1] if gains else None


@dataclass(frozen=True)
class Interval:
    """A percentile bootstrap interval; `defined` is the part of the draws in which the statistic existed."""

    low: float
    high: float
    defined: float


def resamples(clips: int, *, seed: int, draws: int = 1000) -> list[list[int]]:
    """Indexes of clips drawn anew with replacement. None at all for fewer than three clips.

    Frames of one clip are no independent sample, so they are never resampled.
    """
    if clips < 3:
        return []
    generator = np.random.default_rng(seed)
    return [generator.integers(0, clips, clips).tolist() for _ in range(draws)]


def interval(results: Sequence[float | None], *, level: float = 0.95) -> Interval | None:
    """The interval of a statistic over resamples; None without any, or where most of them leave it undefined."""
    values = [value for value in results if value is not None]
    if not values or len(values) * 2 < len(results):
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), len(values) / len(results))


def bootstrap(
    statistic: Callable[[Sequence[int]], float | None], clips: int, *, seed: int, draws: int = 1000, level: float = 0.95
) -> Interval | None:
    """Interval of `statistic(clip indexes)`; see `resamples` and `interval` for when there is none."""
    return interval([statistic(drawn) for drawn in resamples(clips, seed=seed, draws=draws)], level=level)
