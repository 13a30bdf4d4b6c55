"""LiteRT: conversion in its own environment, where there is one. What ships is in tests/inference/test_shipped.py."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed: pip install scene-edge[litert]")

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import EngineError
from scene_edge.inference.golden import golden_error
from scene_edge.inference.session import open_session


@pytest.mark.slow
def test_toy_to_litert_at_two_sizes(tmp_path: Path) -> None:
    for package in ("torch", "onnxscript"):
        pytest.importorskip(package, reason="quantisation needs the extra train: pip install scene-edge[train]")
    from scene_edge.quantize.export import export_bundle
    from scene_edge.quantize.graphs import run_torch
    from scene_edge.quantize.to_litert import litert_python
    from tests.quantize.toys import encoder_sample, toy_graphs

    try:
        litert_python()
    except EngineError as error:
        pytest.skip(str(error))
    graphs = {"encoder": toy_graphs(6)["encoder"]}
    common = {"name": "toy", "kind": "smc", "version": "0.1.0", "counter": 1, "parameters": {}, "training": {}}
    report = export_bundle(graphs, **common, out=tmp_path / "toy", engines=("litert",))
    bundle = Bundle.open(tmp_path / "toy")
    files = {artifact.file: artifact.shape_hint for artifact in bundle.graph("encoder").artifacts}
    assert {file: hint for file, hint in files.items() if file.endswith(".tflite")} == {
        "encoder.160x96.int8.tflite": (24, 40),
        "encoder.192x128.int8.tflite": (32, 48),
    }
    assert "litert-torch" in report.tools
    for rows, columns in ((24, 40), (32, 48)):
        given = encoder_sample(77, rows, columns)
        session = open_session(bundle, "encoder", height=rows, width=columns, prefer=("litert",), threads=1)
        wanted = {f"out.{key}": value for key, value in run_torch(graphs["encoder"], given).items()}
        assert max(golden_error(session.run(given), wanted).values()) <= bundle.graph("encoder").golden.tolerance
        assert session.precision == "int8"
        session.close()
