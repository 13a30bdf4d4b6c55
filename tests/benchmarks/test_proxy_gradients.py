"""Gradients of proxies: octaves add up to the picture, promises are derivatives, one small real run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks import proxy_gradients  # noqa: E402
from benchmarks.proxy_gradients import STEP, Derivative, Judge, directions, promised, slope_and_correlation  # noqa: E402
from scene_edge.models.blocks import to_planes  # noqa: E402
from scene_edge.models.proxy import coded_by_x264  # noqa: E402
from tests.data import dev_clip  # noqa: E402


def frames(seed: int = 3) -> list[torch.Tensor]:
    random = np.random.default_rng(seed)
    base = np.cumsum(np.cumsum(random.normal(0, 1, (1, 24, 34, 34)), 2), 3)
    base = (base - base.min()) / (base.max() - base.min())
    return [torch.from_numpy(base[:, :, i : i + 32, i : i + 32].astype(np.float32)) for i in range(2)]


def test_octaves_are_the_luma_s_detail_and_leave_colours() -> None:
    given = frames()
    ways = directions(given)
    assert list(ways) == ["octave 1", "octave 2", "octave 3", "octave 4", "edges"]
    detail = sum(ways[f"octave {octave}"][1] for octave in range(1, 5))
    luma, u, v = to_planes(detail)
    left = to_planes(given[1])[0] - luma
    assert float(left.diff(dim=3).abs().mean()) < 0.2 * float(to_planes(given[1])[0].diff(dim=3).abs().mean())
    assert not u.any()
    assert not v.any()


def test_a_proxy_that_codes_nothing_promises_the_derivative_of_the_judge() -> None:
    given = frames()
    judge = Judge(given[-1])

    class Nothing(torch.nn.Module):
        """Gives back what it gets, for as many bits as there is energy."""

        def forward(self, pictures: list[torch.Tensor], qp: float) -> tuple[list[torch.Tensor], torch.Tensor]:
            return pictures, torch.stack([picture.square().sum((1, 2, 3)) for picture in pictures], 1)

    ways = {name: way for name, way in directions(given).items() if name in ("octave 3", "octave 4")}
    found = promised(Nothing(), given, ways, 40, judge)
    last = coded_by_x264(given, 40)[0][-1]
    for name, way in ways.items():
        step = 1e-2 * STEP
        ends = [float(judge.lost(last + sign * step * way[-1])) for sign in (1, -1)]
        assert found[name, "lost"] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.1, abs=0.02)


def test_slopes_and_correlations_by_hand() -> None:
    rows = [Derivative("a", crf, "edges", "lost", "x264", value) for crf, value in ((27, 1.0), (33, 2.0))]
    rows += [Derivative("a", crf, "edges", "lost", "jpeg", value) for crf, value in ((33, 4.0), (27, 2.0))]
    assert slope_and_correlation(rows, "jpeg", "lost") == pytest.approx((0.5, 1.0))


def test_a_small_run_writes_its_report_and_its_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    dev_clip("carphone_pristine.mp4")
    proxy_gradients.run("codec/carphone*", crfs="33", limit=2, width=176, out=tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["derivatives"]) == 5 * 2 * 4
    assert (tmp_path / "plot.png").stat().st_size > 1000
    lost = [row["value"] for row in report["derivatives"] if row["coder"] == "x264" and row["what"] == "lost"]
    assert len(lost) == 5
