"""Trends of a soak: what grows, what stays, and when there is too little to tell."""

from __future__ import annotations

import pytest

from benchmarks.soak import trend
from scene_edge.codec.errors import ConfigError


def test_a_trend_leaves_the_warm_up_out() -> None:
    samples = [{"s": 5.0 * i, "rss_mb": 100.0 + 200.0 * (i < 20) + 0.01 * i} for i in range(120)]
    found = trend(samples, "rss_mb", 100.0)
    assert found["slope_an_hour"] == pytest.approx(0.01 / 5 * 3600, abs=0.01)
    assert found["first"] == pytest.approx(100.3, abs=0.01)
    assert found["last"] == pytest.approx(101.09, abs=0.02)
    assert found["largest"] == pytest.approx(101.19)


def test_too_few_samples() -> None:
    with pytest.raises(ConfigError, match="too few samples"):
        trend([{"s": float(i), "threads": 3.0} for i in range(15)], "threads", 10.0)
