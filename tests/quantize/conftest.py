"""One bundle for all tests of quantisation that need no converter to LiteRT. Imports nothing of the build side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scene_edge.codec.bundle import Bundle

if TYPE_CHECKING:
    from scene_edge.quantize.report import QuantisationReport


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, QuantisationReport, list[str]]:
    """The toys' bundle, its report, and the steps that were told."""
    from scene_edge.quantize.export import export_bundle
    from tests.quantize.toys import toy_graphs

    out: Path = tmp_path_factory.mktemp("zoo") / "toy"
    steps: list[str] = []
    report = export_bundle(
        toy_graphs(),
        name="toy",
        kind="smc",
        version="0.1.0",
        counter=3,
        parameters={"channels": 8},
        training={"steps": 0},
        out=out,
        engines=("openvino", "onnx", "tensorrt"),
        extra_files={"card.md": b"# toy\n"},
        progress=lambda what, done, total: steps.append(f"{done}/{total} {what}"),
    )
    return Bundle.open(out), report, steps
