"""Ranges of activations: nothing that is chosen loses more than the extremes do, and outliers are cut off."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from scene_edge.quantize.ranges import F32, STEPS, best_range, least_lossy, thinned  # noqa: E402

FLOATS = st.floats(-1e4, 1e4, width=32)


def rounded(values: F32, low: float, high: float) -> F32:
    """As an engine would: steps of one size, 0 among them."""
    step = (high - low) / STEPS or 1.0
    zero = np.rint(-low / step)
    return np.asarray((np.clip(np.rint(values / step) + zero, 0, STEPS) - zero) * step, np.float32)


@given(arrays(np.float32, st.integers(1, 40), elements=FLOATS))
def test_a_range_holds_zero_and_loses_no_more_than_the_extremes(values: F32) -> None:
    low, high = best_range(values, np.ones_like(values))
    extremes = min(0.0, float(values.min())), max(0.0, float(values.max()))
    assert extremes[0] <= low <= 0.0 <= high <= extremes[1]
    lost, before = (float(np.square(rounded(values, *bounds) - values).sum()) for bounds in ((low, high), extremes))
    assert lost <= before * 1.01 + 1e-3


def test_one_outlier_does_not_stretch_the_range_of_all_and_telling_peaks_stay() -> None:
    many = np.random.default_rng(3).normal(0, 1, 500_000).astype(np.float32)
    with_outlier = np.append(many, np.float32(12.0))
    assert best_range(*thinned(with_outlier))[1] < 8.0
    with_peaks = np.append(many, np.full(3000, 12.0, np.float32))
    assert best_range(*thinned(with_peaks))[1] == 12.0


def test_every_float_that_a_node_computes_has_a_range() -> None:
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["x"], ["y"], to=floats),
        helper.make_node("Neg", ["y"], ["z"]),
        helper.make_node("Cast", ["z"], ["out"], to=onnx.TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [None])],
        [helper.make_tensor_value_info("out", onnx.TensorProto.UINT8, [None])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    samples = [{"x": np.array([0, value], np.uint8)} for value in (50, 100)]
    assert least_lossy(model, samples) == {"y": (0.0, 100.0), "z": (-100.0, 0.0)}
