"""Bjontegaard deltas on curves whose answer is known, and on curves that have none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.curves import (
    Curve,
    Interval,
    Method,
    bd_quality,
    bd_rate,
    bootstrap,
    interval,
    monotone,
    quality_at,
    rate_at,
    resamples,
    worst_rate,
)
from scene_edge.codec.errors import FormatError

RATES = [100.0, 180.0, 320.0, 560.0, 1000.0]
QUALITY: list[float | None] = [40.0, 58.0, 70.0, 79.0, 85.0]


@pytest.mark.parametrize("method", ["pchip", "akima"])
@pytest.mark.parametrize("factor", [0.9, 1.1, 1.5])
def test_a_rate_shift_comes_back_as_that_many_percent(method: Method, factor: float) -> None:
    shifted = Curve.of([rate * factor for rate in RATES], QUALITY)
    got = bd_rate(Curve.of(RATES, QUALITY), shifted, method)
    assert got.value == pytest.approx(100 * (factor - 1), abs=1e-9)
    assert got.overlap == pytest.approx(1)
    assert got.repaired == 0


def test_a_quality_shift_comes_back_as_that_much() -> None:
    better = Curve.of(RATES, [q + 2.5 for q in QUALITY if q is not None])
    assert bd_quality(Curve.of(RATES, QUALITY), better).value == pytest.approx(2.5)
    saved = bd_rate(Curve.of(RATES, QUALITY), better)
    assert saved.value is not None
    assert saved.value < 0


def test_order_of_points_does_not_matter() -> None:
    curve = Curve.of(RATES[::-1], QUALITY[::-1])
    assert bd_rate(Curve.of(RATES, QUALITY), curve).value == pytest.approx(0)


def test_a_straight_line_on_other_points_is_exact() -> None:
    # quality = 10 log2(rate): sampling it elsewhere, 20 % more expensive, still gives +20 %.
    anchor = Curve.of(RATES, [10 * float(np.log2(rate)) for rate in RATES])
    others = [130.0, 220.0, 450.0, 700.0, 900.0]
    test = Curve.of([1.2 * rate for rate in others], [10 * float(np.log2(rate)) for rate in others])
    assert bd_rate(anchor, test).value == pytest.approx(20)


@pytest.mark.parametrize(
    ("rates", "quality", "reason"),
    [
        (RATES, [q + 60 for q in QUALITY if q is not None], "no common quality range: test lies above"),
        (RATES, [q - 60 for q in QUALITY if q is not None], "no common quality range: test lies below"),
        (RATES, [q + 40 for q in QUALITY if q is not None], "of the quality range is common"),
        (RATES, [70.0, 40.0, 80.0, 50.0, 85.0], "does not rise with rate"),
        (RATES, [70.0] * 5, "1 distinct points"),
        (RATES[:3], QUALITY[:3], "3 distinct points"),
        (RATES, [*QUALITY[:3], None, None], "3 distinct points"),
        ([], [], "0 distinct points"),
    ],
)
def test_what_cannot_be_compared_is_undefined_with_a_reason(
    rates: Sequence[float], quality: Sequence[float | None], reason: str
) -> None:
    got = bd_rate(Curve.of(RATES, QUALITY), Curve.of(rates, quality))
    assert got.value is None
    assert reason in got.reason
    assert "undefined" in str(got)


def test_bd_quality_is_defined_where_bd_rate_is_not() -> None:
    far_better = Curve.of(RATES, [q + 60 for q in QUALITY if q is not None])
    assert bd_quality(Curve.of(RATES, QUALITY), far_better).value == pytest.approx(60)
    far_dearer = Curve.of([rate * 100 for rate in RATES], QUALITY)
    assert bd_quality(Curve.of(RATES, QUALITY), far_dearer).value is None


def test_a_little_noise_is_ironed_out_and_said() -> None:
    five = Curve.of(RATES, [40.0, 58.0, 70.0, 69.0, 85.0])
    got = bd_rate(five, five)
    assert got.value == pytest.approx(0)
    assert got.repaired == pytest.approx(0.5 / 45)


def test_rates_must_be_positive() -> None:
    with pytest.raises(FormatError, match="rate above 0"):
        Curve.of([0.0, 1.0], [1.0, 2.0])


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12))
def test_monotone_is_the_isotonic_fit(values: list[float]) -> None:
    array = np.array(values)
    fit = monotone(array)
    assert (np.diff(fit) >= 0).all()
    assert fit.sum() == pytest.approx(array.sum(), abs=1e-6)
    if (np.diff(array) >= 0).all():
        assert fit == pytest.approx(array)


def test_bootstrap_covers_the_mean_and_repeats() -> None:
    values = np.random.default_rng(1).normal(5, 1, 40)

    def mean(clips: Sequence[int]) -> float:
        return float(values[list(clips)].mean())

    got = bootstrap(mean, 40, seed=3)
    assert isinstance(got, Interval)
    assert got.low < values.mean() < got.high
    # The normal approximation gives a half width of 1.96 * s / sqrt(n).
    assert got.high - got.low == pytest.approx(2 * 1.96 * values.std() / 40**0.5, rel=0.15)
    assert got == bootstrap(mean, 40, seed=3)


def test_bootstrap_is_silent_where_it_would_mislead() -> None:
    assert bootstrap(lambda clips: 1.0, 2, seed=0) is None
    assert bootstrap(lambda clips: None, 10, seed=0) is None
    partly = bootstrap(lambda clips: 1.0 if clips[0] else None, 10, seed=0)
    assert partly is not None
    assert partly.defined == pytest.approx(0.9, abs=0.05)


def test_rate_and_quality_are_each_others_inverse_on_the_points_and_between() -> None:
    curve = Curve.of(RATES, QUALITY)
    assert rate_at(curve, 70.0) == pytest.approx(320, rel=0.01)
    assert quality_at(curve, 320.0) == pytest.approx(70)
    between = rate_at(curve, 64.0)
    assert between is not None
    assert quality_at(curve, between) == pytest.approx(64, abs=0.5)


def test_outside_the_points_nothing_is_made_up() -> None:
    curve = Curve.of(RATES, QUALITY)
    assert rate_at(curve, 39.9) is None
    assert rate_at(curve, 85.1) is None
    assert quality_at(curve, 99.0) is None
    assert quality_at(Curve.of([100.0], [1.0]), 100.0) is None


def test_the_worst_rate_is_where_most_is_lost() -> None:
    anchor = Curve.of(RATES, QUALITY)
    dented = Curve.of(RATES, [40.0, 58.0, 61.0, 79.0, 85.0])
    assert worst_rate(anchor, dented) == pytest.approx(320, rel=0.1)
    assert worst_rate(anchor, Curve.of([rate * 100 for rate in RATES], QUALITY)) is None
    assert worst_rate(anchor, Curve.of([], [])) is None


def test_resamples_are_of_clips_and_repeat() -> None:
    assert resamples(2, seed=0) == []
    drawn = resamples(5, seed=1, draws=7)
    assert len(drawn) == 7
    assert {len(clips) for clips in drawn} == {5}
    assert drawn == resamples(5, seed=1, draws=7)
    assert interval([]) is None
    assert interval([None, None, 1.0]) is None
