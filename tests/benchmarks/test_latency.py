"""The latency benchmark: what is divided by what, float bundles that prove themselves, and a plot that appears."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("trackers")

from benchmarks.latency import draw, float_scene, float_smc, ratios, rows_of, torch_rows
from scene_edge.codec.bundle import Bundle
from scene_edge.edge.settings import load_config
from scene_edge.inference.roofline import Peaks
from scene_edge.inference.session import open_session

PEAKS = Peaks(1, 1e9, {("onnx", "int8"): 1e9}, {})


def row(
    engine: str, precision: str, form: str, ms: float | None, stage: str = "scene", width: int = 96
) -> dict[str, Any]:
    found = {"stage": stage, "model": "m", "engine": engine, "precision": precision, "form": form, "height": 64}
    return {**found, "width": width, "ms_p50": ms, "fps": 1000 / ms if ms else None, "peak_ratio": 2.0}


ROWS = [
    row("openvino", "int8", "shipped", 10.0),
    row("onnx", "int8", "shipped", 8.0),
    row("litert", "int8", "shipped", None),
    row("onnx", "fp32", "shipped", 21.0),
    row("onnx", "fp32", "float", 20.0),
    row("openvino", "fp32", "float", 24.0),
    row("pytorch", "fp32", "pytorch", 40.0),
    row("openvino", "int8", "shipped", 30.0, width=192),
    row("openvino", "fp32", "float", 5.0, stage="smc_encode"),
]


def test_float32_is_held_against_the_fastest_int8_of_the_same_size() -> None:
    small, large = ratios(ROWS)
    assert (small["best"], small["ms"], small["peak_ratio"]) == ("onnx int8", 8.0, 2.0)
    assert small["times"] == {"onnx fp32": 2.5, "openvino fp32": 3.0, "pytorch fp32": 5.0}
    assert (large["width"], large["best"], large["times"]) == (192, "openvino int8", {})


def test_the_plot_appears_also_without_cameras(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(ROWS, [], tmp_path / "new" / "a.png")
    draw(ROWS, [{"cameras": 1, "round_ms": 5.0, "ms_a_frame": 5.0}], tmp_path / "b.png")
    assert (tmp_path / "new" / "a.png").stat().st_size > 1000
    assert (tmp_path / "b.png").stat().st_size > 1000


def test_pytorch_runs_each_network_alone() -> None:
    rows = list(torch_rows("scene-s", "smc-s", (96, 64), 1, 1))
    assert [found["stage"] for found in rows] == ["smc_encode", "smc_decode", "scene"]
    assert all(found["ms_p50"] > 0 and found["form"] == "pytorch" for found in rows)


@pytest.mark.slow
def test_float_bundles_run_on_both_engines_and_prove_themselves(tmp_path: Path) -> None:
    smc = float_smc("smc-s", tmp_path / "smc")
    bundle = Bundle.open(smc)
    for graph in ("encoder", "decoder"):
        for engine in ("openvino", "onnx"):
            session = open_session(bundle, graph, height=16, width=24, prefer=(engine,), precision="fp32")
            assert session.precision == "fp32"
            assert session.proven
            session.close()
    scene = float_scene("scene-s", tmp_path / "scene")
    overrides = ["source.url=street:", "source.pace=asap", "source.width=96", "source.height=64"]
    overrides += [f"scene.bundle={scene}", f"semantics.bundle={smc}", "video.gop=5"]
    config = load_config("cpu", overrides=overrides, environment={})
    rows = list(rows_of(config, (96, 64), 5, PEAKS, ("openvino", "onnx"), "float"))
    assert {found["stage"] for found in rows} == {"scene", "smc_encode", "smc_decode"}
    assert len(rows) == 6
    assert all(found["precision"] == "fp32" and found["reason"] == "" for found in rows)
