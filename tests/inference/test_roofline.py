"""The bound that measured times are held against: counts by hand, a probe that other tools accept, plain arithmetic."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from scene_edge.codec.bundle import Bundle
from scene_edge.inference.probe import Activations, Probe, conv_stack
from scene_edge.inference.roofline import Peaks, Work, _probe_bundle, copy_bytes_per_s, measure_peaks, work_of
from scene_edge.inference.seam import Order, TensorInfo
from scene_edge.inference.session import open_session
from scene_edge.inference.stages import StageRow, Stopwatch, candidates, measured, without
from tests.inference import tiny

SMALL = Probe(channels=8, side=4, layers=3)

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO reads graphs for us")


def test_the_bound_is_the_larger_of_arithmetic_and_memory() -> None:
    peaks = Peaks(2, 10e9, {("onnx", "int8"): 50e9, ("openvino", "int8"): 100e9, ("onnx", "fp32"): 20e9}, {})
    assert peaks.best("int8") == 100e9
    assert peaks.roofline_ms(Work(operations=10**9, bytes=10**6), "int8") == pytest.approx(10.0)
    assert peaks.roofline_ms(Work(operations=10**9, bytes=10**6), "fp32") == pytest.approx(50.0)
    assert peaks.roofline_ms(Work(operations=10**6, bytes=10**8), "int8") == pytest.approx(10.0)
    assert peaks.roofline_ms(Work(operations=10**9, bytes=10**6), "bf16") is None
    told = peaks.as_json()
    assert told["threads"] == 2
    assert told["gops_per_s"][1] == {"engine": "openvino", "precision": "int8", "gops_per_s": 100.0}


@pytest.mark.parametrize("activations", ["float32", "uint8", "int8"])
def test_the_probe_is_the_onnx_that_it_claims_to_be(activations: Activations) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(conv_stack(SMALL, activations))
    onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Conv") == SMALL.layers
    assert kinds.count("QuantizeLinear") == (0 if activations == "float32" else SMALL.layers + 1)


def test_the_probe_computes_what_its_weights_say() -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    data = conv_stack(SMALL, "float32")
    model = onnx.load_from_string(data)
    weights = [onnx.numpy_helper.to_array(tensor)[:, :, 0, 0] for tensor in model.graph.initializer]
    x = np.random.default_rng(1).standard_normal(SMALL.shape, np.float32)
    y = x[0].reshape(SMALL.channels, -1)
    for weight in weights:
        y = np.maximum(weight @ y, 0)
    (found,) = runtime.InferenceSession(data).run(None, {"x": x})
    np.testing.assert_allclose(found.item(), y.mean(), rtol=1e-4)


@needs_openvino
@pytest.mark.parametrize("file", ["probe.fp32.onnx", "probe.u8.onnx", "probe.s8.onnx"])
def test_operations_and_weights_are_counted_as_by_hand(tmp_path: Path, file: str) -> None:
    from scene_edge.inference import openvino

    bundle = _probe_bundle(tmp_path, SMALL)
    (artifact,) = (item for item in bundle.graph("probe").artifacts if item.file == file)
    order = Order(bundle, artifact, {"x": TensorInfo(SMALL.shape, np.dtype(np.float32))}, ("y",), 1)
    operations, weights = openvino.count(order)
    assert operations == 2 * 8 * 8 * 4 * 4 * 3 == SMALL.operations
    assert weights == 8 * 8 * 3


@needs_openvino
def test_the_work_of_a_graph_follows_its_size(tmp_path: Path) -> None:
    bundle = tiny.write_tiny(tmp_path / "tiny")
    found = {}
    for grid in ((16, 24), (32, 48)):
        session = open_session(bundle, "tiny", height=grid[0], width=grid[1], prefer=("openvino",), precision="fp32")
        found[grid] = work_of(bundle, bundle.graph("tiny"), session)
        session.close()
    small, large = found[16, 24], found[32, 48]
    assert small is not None
    assert large is not None
    assert small.operations == 2 * 16 * 24 * 4 * 24 * 9
    assert large.operations == 4 * small.operations
    pictures, states, weights = 16 * 24 * 24, 3 * 4 * 4 * 6 * 4, 4 * 24 * 9 * 4
    assert small.bytes == pictures + states + weights


def test_without_a_graph_that_can_be_read_nothing_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scene_edge.codec.errors import EngineError
    from scene_edge.inference import openvino

    def absent(_order: Order) -> tuple[int, int]:
        raise EngineError("openvino is not installed")

    monkeypatch.setattr(openvino, "count", absent)
    bundle = tiny.write_tiny(tmp_path / "tiny")
    session = open_session(bundle, "tiny", height=16, width=24, prefer=("onnx",), precision="fp32")
    assert work_of(bundle, bundle.graph("tiny"), session) is None


def test_peaks_are_measured_where_the_probe_runs_and_explained_where_not() -> None:
    pytest.importorskip("onnxruntime")
    wanted = [("onnx", "int8"), ("onnx", "fp32"), ("litert", "int8"), ("onnx", "bf16"), ("onnx", "int8")]
    peaks = measure_peaks(wanted, threads=1, probe=SMALL)
    assert list(peaks.operations) == [("onnx", "int8"), ("onnx", "fp32")]
    assert all(value > 0 for value in peaks.operations.values())
    assert "reads no ONNX" in peaks.reasons["litert", "int8"]
    assert "no probe" in peaks.reasons["onnx", "bf16"]
    assert copy_bytes_per_s(2, size=1 << 16) > 0


ROW = StageRow("scene", "scene-s", "openvino", "int8", 960, 540)


def test_a_row_has_percentiles_of_calls_and_the_rate_of_all_frames() -> None:
    row = measured(ROW, [10.0] * 19 + [110.0], frames=80, roofline_ms=4.0)
    assert (row.ms_p50, row.ms_p95, row.fps, row.peak_ratio) == (10.0, 15.0, 266.67, 2.5)
    assert measured(ROW, [1.0], 1).peak_ratio is None
    assert "more frames" in measured(ROW, [], 0).reason
    gone = without(row, "it broke")
    assert gone.reason == "it broke"
    assert gone.as_json() == {**ROW.as_json(), "reason": "it broke"}


def test_a_stopwatch_times_each_call_once() -> None:
    watch = Stopwatch()
    assert watch.time(max, 3, 5) == 5
    assert len(watch.times_ms) == 1


def test_candidates_come_in_the_order_of_engines_int8_first() -> None:
    bundle = Bundle.open("scene-s")
    assert candidates(bundle, "filter", ("onnx", "openvino")) == [
        ("onnx", "int8"), ("onnx", "fp32"),
        ("openvino", "int8"), ("openvino", "bf16"), ("openvino", "fp16"), ("openvino", "fp32"),
    ]  # fmt: skip
    assert candidates(bundle, "filter", ("tensorrt",)) == []
