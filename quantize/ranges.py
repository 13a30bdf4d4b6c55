"""Ranges of 8-bit activations that lose least, where an engine's own calibration takes the extremes of all samples.

One outlier in one sample stretches an extreme over it, and all other values share fewer of the 256 steps; cut off at
the mean of the samples' extremes, rare but telling values go, such as the peaks of an objectness. So each tensor gets,
of a few ranges between nothing and its extremes, the one whose rounding and cutting off loses least over the samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from scene_edge.quantize.graphs import Sample

F32 = NDArray[np.float32]
Range = tuple[float, float]

SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Parts of an extreme that are tried."""

ROUNDS = 2

STEPS = 255

VALUES = 10_000
TAIL = 200
"""Of each tensor in each sample: values that are kept, evenly spread, and how many of the largest and smallest."""

AT_ONCE = 96
"""Tensors that are kept at a time: all of them at once would take gigabytes."""


def least_lossy(model: onnx.ModelProto, samples: Sequence[Sample]) -> dict[str, Range]:
    """For each float tensor that a node computes: the range, 0 in it, that loses least over the samples."""
    found: dict[str, Range] = {}
    for names in _batches(_computed(model)):
        seen = _values(model, names, samples)
        found |= {name: best_range(*values) for name, values in seen.items()}
    return found


def best_range(values: F32, weights: F32) -> Range:
    """A range between nothing and the values' extremes whose 8-bit steps give them back best: one end after the other.

    >>> best_range(np.array([0.0, 1.0], np.float32), np.ones(2, np.float32))
    (0.0, 1.0)
    """
    lowest, highest = min(0.0, float(values.min())), max(0.0, float(values.max()))
    low, high = lowest, highest
    for _ in range(ROUNDS):
        high = min((highest * share for share in SHARES), key=lambda end: _loss(values, weights, low, end))
        low = min((lowest * share for share in SHARES), key=lambda end: _loss(values, weights, end, high))
    return low, high


def _loss(values: F32, weights: F32, low: float, high: float) -> float:
    """Weighted sum of squared errors of values that are rounded to the steps from `low` to `high`."""
    step = (high - low) / STEPS
    if not step:
        return float(weights @ np.square(values))
    zero = round(-low / step)
    steps = np.clip(np.rint(values / np.float32(step)), -zero, STEPS - zero)
    return float(weights @ np.square(steps * np.float32(step) - values))


def thinned(values: F32) -> tuple[F32, F32]:
    """Some values, evenly spread, and all of the largest and smallest, which are few; and for how many each stands.

    What is cut off lies in the tails: an even choice alone would miss it.
    """
    flat = values.ravel()
    stride = -(-flat.size // VALUES)
    if stride == 1:
        return flat, np.ones_like(flat)
    ends = np.partition(flat, (TAIL, flat.size - TAIL))
    tails = np.concatenate([ends[:TAIL], ends[-TAIL:]])
    kept = flat[::stride]
    return np.concatenate([kept, tails]), np.concatenate([np.full_like(kept, stride), np.ones_like(tails)])


def _computed(model: onnx.ModelProto) -> list[str]:
    """Names of the float tensors that nodes put out."""
    known = onnx.shape_inference.infer_shapes(model)
    floats = {
        item.name
        for item in (*known.graph.value_info, *known.graph.output)
        if item.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    return [name for node in model.graph.node for name in node.output if name in floats]


def _batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[start : start + AT_ONCE] for start in range(0, len(names), AT_ONCE))


def _values(model: onnx.ModelProto, names: Sequence[str], samples: Sequence[Sample]) -> dict[str, tuple[F32, F32]]:
    """Of each tensor, over all samples, what `thinned` leaves of it."""
    import onnxruntime

    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    del opened.graph.output[:]
    opened.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(opened.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kept: dict[str, list[tuple[F32, F32]]] = {name: [] for name in names}
    for sample in samples:
        outputs = session.run(list(names), dict(sample))
        for name, values in zip(names, outputs, strict=True):
            kept[name].append(thinned(values))
    return {
        name: (np.concatenate(values), np.concatenate(weights))
        for name, parts in kept.items()
        for values, weights in [zip(*parts, strict=True)]
    }
