"""Float networks of a bundle on OpenVINO, at what the processor can: there for whoever asks, and no fallback."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scene_edge.codec.bundle import Bundle, write_bundle
from scene_edge.codec.errors import EngineError
from scene_edge.inference import openvino as openvino_engine
from scene_edge.inference import session as session_module
from scene_edge.inference.artifacts import artifacts_of
from scene_edge.inference.session import Session, available_engines, open_session
from tests.inference import tiny

pytest.importorskip("onnx")

if available_engines()["openvino"].startswith("absent"):
    pytest.skip("no OpenVINO here", allow_module_level=True)

ONNX = {"engine": "onnx", "precision": "fp32", "file": "tiny.onnx"}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """One that ships float32 for ONNX Runtime alone."""
    tiny.write_tiny(tmp_path / "tiny")
    return write_bundle(tmp_path / "tiny", tiny.manifest([ONNX]))


def opened(bundle: Bundle, precision: str) -> Session:
    return open_session(bundle, "tiny", height=24, width=40, prefer=["openvino"], precision=precision, threads=1)


def capable() -> list[str]:
    found: list[str] = openvino_engine._core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return found


def test_what_follows_from_what_is_listed(bundle: Bundle) -> None:
    graph = bundle.graph("tiny")
    (listed,) = graph.artifacts
    assert [(item.engine, item.precision, item.file) for item in artifacts_of(graph)] == [
        ("onnx", "fp32", "tiny.onnx"),
        *[("openvino", precision, "tiny.onnx") for precision in ("fp32", "bf16", "fp16")],
    ]
    assert artifacts_of(graph, "int8") == (listed,)
    assert [item.precision for item in artifacts_of(graph, "bf16")[1:]] == ["bf16"]
    own = replace(listed, engine="openvino", file="tiny.xml.gz")
    both = replace(graph, artifacts=(listed, own))
    assert [item.file for item in artifacts_of(both, "fp32")] == ["tiny.onnx", "tiny.xml.gz"]
    assert artifacts_of(both, "bf16")[2].file == "tiny.xml.gz"
    quantised = replace(graph, artifacts=(replace(listed, precision="int8"),))
    assert artifacts_of(quantised) == quantised.artifacts


def test_nobody_falls_back_to_them(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="no artifact"):
        opened(bundle, "int8")


def test_float32_is_float32(bundle: Bundle) -> None:
    session = opened(bundle, "fp32")
    given = tiny.inputs(1, (24, 40))
    np.testing.assert_allclose(session.run(given)["y"], tiny.truth(given)["y"], rtol=1e-4, atol=1e-3)
    assert (session.precision, session.proven, session.fallbacks) == ("fp32", True, ())


@pytest.mark.skipif("BF16" not in capable(), reason="this processor has no bfloat16")
def test_bfloat16_is_no_float32_and_within_its_golden_run(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_PROVEN", {})
    opened(bundle, "fp32").close()
    rehearsed = len(session_module._PROVEN)
    session = opened(bundle, "bf16")
    assert (session.precision, session.proven, session.fallbacks) == ("bf16", True, ())
    assert len(session_module._PROVEN) == rehearsed + 1, "what float32 proved says nothing of it"
    given = tiny.inputs(1, (24, 40))
    found, truth = session.run(given)["y"], tiny.truth(given)["y"]
    off = float(np.abs(found - truth).max() / np.abs(truth).max())
    assert 1e-5 < off < 2e-2


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_what_the_processor_cannot_is_said(bundle: Bundle, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    core = openvino_engine._core()

    class Plain:
        """A processor that knows float32 alone."""

        def get_property(self, _device: str, _name: str) -> list[str]:
            return ["FP32", "INT8"]

        def __getattr__(self, name: str) -> object:
            return getattr(core, name)

    monkeypatch.setattr(openvino_engine, "_core", Plain)
    with pytest.raises(EngineError, match=f"CPU does not compute at {precision}"):
        opened(bundle, precision)
