"""Fidelity of proxies: filters do what they are called, agreement against known orders, fits, one small real run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")
pytest.importorskip("imageio_ffmpeg")

from benchmarks import proxy_fidelity  # noqa: E402
from benchmarks.fidelity import (  # noqa: E402
    PROXY_NAMES,
    Record,
    agreement,
    over_crfs,
    over_filters,
    rate_fit,
    values_of,
)
from benchmarks.proxy_fidelity import FILTERS, PROXIES, filtered  # noqa: E402
from tests.data import dev_clip  # noqa: E402


def test_agreement_counts_orders_and_knows_when_there_is_none() -> None:
    assert agreement([1, 2, 3, 4], [2, 4, 6, 8]) == pytest.approx((1, 1, 1))
    assert agreement([1, 2, 3, 4], [8, 6, 4, 2]) == pytest.approx((-1, -1, 0))
    found = agreement([1, 2, 3, 4], [1, 3, 2, 100])
    assert found is not None
    assert found[1:] == pytest.approx((0.8, 5 / 6))
    found = agreement([1, 2, 3], [5, 5, 9])
    assert found is not None
    assert found[2] == 1, "equal ones are in no order"
    assert agreement([1, 1, 1], [1, 2, 3]) is None
    assert agreement([1, 2], [1, 2]) is None


def records(gain: float = 1.0) -> list[Record]:
    """A codec, and a proxy with `gain` times its bits to the power of two, on two clips."""
    found = []
    for clip, busy in (("a", 1.0), ("b", 3.0)):
        for index, name in enumerate(("identity", "blur", "sharpening")):
            for crf in (27, 35, 43):
                bits = busy * 2.0 ** ((50 - crf) / 6) * (1, 0.7, 1.5)[index]
                quality = 0.99 - 0.001 * crf - 0.01 * index
                found.append(Record(clip, name, crf, "x264", 60 - crf - index, quality, 1000 * bits))
                found.append(Record(clip, name, crf, "hybrid", 50 - crf - index, quality, gain * bits**2))
    return found


def test_a_proxy_that_orders_alike_agrees_whatever_its_scale() -> None:
    rows = over_crfs(records()) + over_filters(records(7.0))
    assert {row.measure for row in rows if row.sweep == "over CRFs"} == {"PSNR", "SSIM", "bits"}
    assert {row.measure for row in rows if row.sweep == "over filters"} == {"PSNR", "SSIM", "bits", "J"}
    for row in rows:
        assert (row.spearman, row.pairs) == pytest.approx((1, 1))
        assert row.groups == (2 if row.sweep == "over CRFs" else 6)


def test_bits_are_fitted_as_a_power() -> None:
    (fit,) = rate_fit(records(5.0))
    assert (fit["codec"], fit["proxy"]) == ("x264", "hybrid")
    assert (fit["b"], fit["elasticity"]) == pytest.approx((0.5, 0.5))
    assert fit["a"] == pytest.approx(np.log(1000 / 5**0.5))
    assert fit["error_percent"] == pytest.approx(0, abs=1e-6)


def test_j_charges_bits_at_the_coder_s_own_rate() -> None:
    values = values_of(records(), "x264", "J")
    plain = [values["a", "identity", crf] for crf in (27, 35, 43)]
    assert np.ptp(plain) < 0.05, "turning the CRF gains nothing"


def test_filters_do_what_they_are_called() -> None:
    random = np.random.default_rng(1)
    packed = random.integers(60, 190, (3, 8, 8, 24), dtype=np.uint8)
    packed[1:] = packed[:1] + random.integers(0, 3, (2, 8, 8, 24), dtype=np.uint8)
    lumas = {name: np.stack([planes.y for planes in filtered(packed, name)]).astype(float) for name in FILTERS}
    rough = {name: np.abs(np.diff(luma)).mean() for name, luma in lumas.items()}
    order = ["blur", "light blur", "identity", "light sharpening", "sharpening"]
    assert sorted(order, key=lambda name: rough[name]) == order
    assert rough["median"] < rough["identity"]
    steps = {name: np.abs(np.diff(luma, axis=0)).mean() for name, luma in lumas.items()}
    assert steps["mean in time"] < steps["identity"]
    assert np.array_equal(filtered(packed, "blur")[2].u, filtered(packed, "identity")[2].u), "chroma stays"


def test_a_small_run_writes_its_report_and_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    dev_clip("carphone_pristine.mp4")
    assert tuple(PROXIES) == PROXY_NAMES
    monkeypatch.setattr(proxy_fidelity, "FILTERS", {name: FILTERS[name] for name in ("identity", "blur", "sharpening")})
    proxy_fidelity.run("codec/carphone*", crfs="27,35,43", codecs="x264", limit=2, width=96, out=tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["records"]) == 3 * 3 * 4
    assert (tmp_path / "plot.png").stat().st_size > 1000
    bits = [row for row in report["fidelity"] if (row["sweep"], row["measure"]) == ("over CRFs", "bits")]
    assert [row["proxy"] for row in bits] == list(PROXY_NAMES)
    assert all(row["spearman"] == 1 for row in bits)
