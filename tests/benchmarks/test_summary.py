"""Groups, rates and deltas from records that are made up, and the record file that lets a run go on."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import rate_accuracy
from benchmarks.clips import Clip
from benchmarks.measure import ORIGINAL, Settings
from benchmarks.plots import draw
from benchmarks.rate_accuracy import Records, expected_cost, make_plan
from benchmarks.summary import summarise
from benchmarks.systems import Coding
from benchmarks.tables import show

CRFS = (27, 31, 35, 39, 43)


def coded(clip: str, system: str, step: int, rate_factor: float, **scores: Any) -> dict[str, Any]:
    """A record of two seconds at 100, 80, 60 .. kbit/s times the factor."""
    total = int(rate_factor * (100 - 20 * step) * 2000 / 8)
    counts = {"video": total - 300, "semantic": 100, "sei": 50, "overhead": 150, "total": total}
    named = {"clip": clip, "category": clip.partition("/")[0], "system": system, "crf": CRFS[step]}
    return {"key": f"{clip}{system}{step}", **named, "seconds": 2.0, "frames": 60, "bytes": counts, "ms": {}, **scores}


def records() -> list[dict[str, Any]]:
    """x264, and a system that does the same 25 % cheaper, on two street clips and three action clips."""
    found = []
    for system, factor in (("x264", 1.0), ("both", 0.75)):
        for step in range(5):
            agreement = {"tp": 90 - 10 * step, "fp": 10, "fn": 5}
            quality = {"vmaf": 90.0 - 12 * step, "vmaf_neg": 88.0 - 12 * step, "ms_ssim": None, "frames": 12}
            for clip in ("vos/a", "vos/b"):
                found.append(coded(clip, system, step, factor, agreement=agreement, quality=quality))
            for number in range(3):
                predicted = "run" if number >= step - 2 else "walk"
                action = {"label": "run", "predicted": predicted, "reference": "run"}
                found.append(coded(f"action_arid/{number}", system, step, factor, action=action))
    for clip in ("vos/a", "action_arid/0"):
        named = {"key": clip, "clip": clip, "category": clip.partition("/")[0], "system": ORIGINAL, "crf": None}
        found.append(named | {"masks": {"tp": 3, "fp": 0, "fn": 1}} if "vos" in clip else named)
    return found


def test_a_cheaper_system_is_cheaper_by_that_much() -> None:
    groups = {entry["group"]: entry for entry in summarise(records(), seed=0)}
    assert set(groups) == {"boxes", "vos", "pictures", "action_arid"}
    for group, metric in (("boxes", "agreement"), ("vos", "vmaf"), ("pictures", "vmaf_neg")):
        (delta,) = [entry for entry in groups[group]["deltas"] if entry["metric"] == metric]
        assert delta["bd_rate_percent"]["value"] == pytest.approx(-25, abs=0.1)
        assert delta["bd_score"]["value"] > 0
    (first,) = [point for point in groups["vos"]["points"] if point["system"] == "x264" and point["crf"] == 27]
    assert first["kbps"]["total"] == pytest.approx(100)
    assert first["scores"]["agreement"] == pytest.approx(100 * 180 / 195)
    assert groups["vos"]["original"]["mask_recall"] == pytest.approx(75)


def test_what_nobody_measured_is_undefined_and_not_zero() -> None:
    groups = {entry["group"]: entry for entry in summarise(records(), seed=0)}
    (delta,) = [entry for entry in groups["pictures"]["deltas"] if entry["metric"] == "ms_ssim"]
    assert delta["bd_rate_percent"]["value"] is None
    assert "0 distinct points" in delta["bd_rate_percent"]["reason"]
    actions = [point["scores"]["top1"] for point in groups["action_arid"]["points"] if point["system"] == "both"]
    assert actions == pytest.approx([100, 100, 100, 200 / 3, 100 / 3])


def test_a_clip_that_lacks_a_point_is_left_out_of_all() -> None:
    groups = {entry["group"]: entry for entry in summarise(records()[1:], seed=0)}
    assert groups["vos"]["incomplete"] == ["vos/a"]
    assert {point["clips"] for point in groups["vos"]["points"]} == {1}
    assert groups["vos"]["original"]["mask_recall"] is None


def test_tables_and_plot_come_out(tmp_path: Path) -> None:
    groups = summarise(records(), seed=0)
    out = io.StringIO()
    show(groups, Console(file=out, width=200))
    assert "-25.0" in out.getvalue()
    assert "undefined" in out.getvalue()
    draw(groups, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_records_survive_a_line_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    first = Records(path)
    first.add({"key": "a", "clip": "x"})
    first.add({"key": "b", "clip": "y"})
    path.write_text(path.read_text()[:-6])
    again = Records(path)
    assert set(again.by_key) == {"a"}
    again.add({"key": "b", "clip": "z"})
    assert set(Records(path).by_key) == {"a", "b"}


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    path = tmp_path / "street.mp4"
    path.write_bytes(b"not read here")
    return Clip("natural/street", path, "natural", None, 1280, 720, 24.0, 100)


def settings(**changes: Any) -> Settings:
    base: dict[str, Any] = {
        "coding": Coding(),
        "limit": None,
        "detect_width": 960,
        "action_width": 320,
        "detect_stride": 5,
        "track_stride": 2,
        "quality_stride": 5,
        "detector": Path("none.onnx"),
        "action_bundles": {},
    }
    return Settings(**(base | changes))


def test_a_key_changes_with_whatever_shapes_the_numbers(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        rate_accuracy, "bundle_digests", lambda system, zoo: {"scene-s": "11"} if system == "scene" else {}
    )
    plain = make_plan([clip], ["x264", "scene"], [31, 39], settings())
    assert not plain.originals, "nothing is detected on a clip without people"
    assert len({job.key for job in plain.coded}) == 4
    codings = [{"coding": Coding(gop=60)}, {"coding": Coding(preset="fast")}]
    for changes in (*codings, {"limit": 50}, {"detect_width": 640}, {"quality_stride": 1}):
        other = make_plan([clip], ["x264", "scene"], [31, 39], settings(**changes))
        assert not {job.key for job in plain.coded} & {job.key for job in other.coded}, changes
    monkeypatch.setattr(
        rate_accuracy, "bundle_digests", lambda system, zoo: {"scene-s": "22"} if system == "scene" else {}
    )
    retrained = make_plan([clip], ["x264", "scene"], [31, 39], settings())
    same = {job.key for job in plain.coded} & {job.key for job in retrained.coded}
    assert {key.split("|")[1] for key in same} == {"x264"}


def test_cost_rises_with_the_work(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_accuracy, "bundle_digests", lambda system, zoo: {})
    jobs = make_plan([clip], ["x264", "scene", "smc", "both"], [31], settings()).coded
    costs = [expected_cost(job) for job in jobs]
    assert costs == sorted(costs)
    assert expected_cost(make_plan([clip], ["x264"], [31], settings(limit=10)).coded[0]) < costs[0]
