"""Finding where the kernels of a layer lie in the files of an artefact, so that a camera may write others over them.

Converters name and order things as they like. What they cannot hide is the values: the kernels that a graph was
exported with are looked for among all constants that may be a convolution's, and then their bytes in the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from scene_edge.codec import ir
from scene_edge.codec.errors import EngineError
from scene_edge.codec.kernels import Kernel, Kernels

Array = NDArray[Any]


@dataclass(frozen=True)
class _Found:
    """A convolution's constants as they are stored; scales are None where it is float."""

    weights: Array
    bias: Array
    layout: str = "oihw"
    scales: Array | None = None
    bias_scales: Array | None = None


def slots_of(engine: str, files: Mapping[str, bytes], kernels: Kernels) -> list[dict[str, Any]]:
    """The manifest's `kernels` of an artefact, whose first file is the graph, with `kernels` in it as exported.

    Raises EngineError where one of them is not found, or found more than once.
    """
    if not kernels:
        return []
    readers = {"onnx": _in_onnx, "tensorrt": _in_onnx, "openvino": _in_ir, "litert": _in_litert}
    file = next(name for name in files if not name.endswith(ir.SUFFIX))
    candidates = list(readers[engine](files))
    slots = []
    for layer, kernel in kernels.items():
        matching = [found for found in candidates if _matches(found, kernel)]
        if len(matching) != 1:
            raise EngineError(f"kernels of layer {layer} are not in {file} once", got=f"{len(matching)} times")
        slots.append(_slot(layer, file, files[file], matching[0]))
    return slots


def _slot(layer: str, file: str, data: bytes, found: _Found) -> dict[str, Any]:
    slot: dict[str, Any] = {"layer": layer, "file": file, "layout": found.layout}
    places = {"weights": found.weights, "bias": found.bias, "scales": found.scales, "bias_scales": found.bias_scales}
    for name, values in places.items():
        if values is not None:
            slot[name] = _place(data, np.ascontiguousarray(values).tobytes(), f"{name} of layer {layer}", file)
    if found.scales is not None and found.bias_scales is not None:
        ratios = found.bias_scales.ravel().astype(np.float64) / found.scales.ravel()
        slot["input_scale"] = float(np.median(ratios))
    return slot


def _place(data: bytes, content: bytes, what: str, file: str) -> int:
    place = data.find(content)
    if place < 0 or data.find(content, place + 1) >= 0:
        raise EngineError(f"{what} cannot be told from the rest of {file}", hint="Constants may be shared.")
    return place


def _matches(found: _Found, kernel: Kernel) -> bool:
    weights = kernel.weights.transpose(0, 2, 3, 1) if found.layout == "ohwi" else kernel.weights
    if found.weights.shape != weights.shape or found.bias.size != kernel.bias.size:
        return False
    stored = found.weights.astype(np.float64)
    allowed: Array = np.full(len(weights), 1e-5 + 1e-3 * float(np.abs(weights).max()))
    if found.scales is not None:
        stored = stored * found.scales.reshape(-1, 1, 1, 1)
        allowed = 1.01 * found.scales.reshape(-1).astype(np.float64)
    bias = found.bias.ravel().astype(np.float64)
    if found.bias_scales is not None:
        bias = bias * found.bias_scales.ravel()
    near = np.abs(stored - weights).reshape(len(weights), -1).max(1) <= allowed
    return bool(near.all() and np.abs(bias - kernel.bias).max() <= 1e-3 + 0.01 * np.abs(kernel.bias).max())


def _in_onnx(files: Mapping[str, bytes]) -> Iterator[_Found]:
    """Convolutions with constant kernels, plain or behind a DequantizeLinear."""
    (data,) = files.values()
    graph = onnx.load_from_string(data).graph
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    dequantised = {node.output[0]: node.input for node in graph.node if node.op_type == "DequantizeLinear"}

    def constant(name: str) -> tuple[Array | None, Array | None]:
        if name in dequantised:
            return constants.get(dequantised[name][0]), constants.get(dequantised[name][1])
        return constants.get(name), None

    for node in graph.node:
        if node.op_type == "Conv" and len(node.input) == 3:
            (weights, scales), (bias, units) = constant(node.input[1]), constant(node.input[2])
            if weights is not None and bias is not None:
                yield _Found(weights, bias, "oihw", scales, units)


def _in_ir(files: Mapping[str, bytes]) -> Iterator[_Found]:
    """Convolutions whose kernels are constants, plain or s8 times a scale, with the bias that is added behind them."""
    from scene_edge.inference.openvino import load

    text = next(ir.inflate(data, name) for name, data in files.items() if name.endswith(ir.SUFFIX))
    weights_file = next(data for name, data in files.items() if not name.endswith(ir.SUFFIX))
    model = load().Core().read_model(text, weights_file)
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Convolution":
            continue
        followers = [target.get_node() for target in node.output(0).get_target_inputs()]
        added = [follower.input_value(1).get_node() for follower in followers if follower.get_type_name() == "Add"]
        if len(added) != 1:
            continue
        (weights, scales), (bias, units) = (_stored(source) for source in (node.input_value(1).get_node(), added[0]))
        if weights is not None and bias is not None:
            yield _Found(weights, bias, "oihw", scales, units)


def _stored(node: Any) -> tuple[Array | None, Array | None]:
    """A constant as it is stored, and its scales where it is integers less a zero-point of 0, times scales."""
    while node.get_type_name() == "Reshape":
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Multiply":
        return _data(node), None
    source, scales = (node.input_value(index).get_node() for index in range(2))
    if source.get_type_name() == "Subtract":
        source = source.input_value(0).get_node()
    return _data(source), _data(scales)


def _data(node: Any) -> Array | None:
    """A constant as it is stored, by itself or behind a conversion or another shape."""
    while node.get_type_name() in ("Convert", "Reshape"):
        node = node.input_value(0).get_node()
    return np.array(node.data) if node.get_type_name() == "Constant" else None


def _in_litert(files: Mapping[str, bytes]) -> Iterator[_Found]:
    """Every pair of s8 kernels [o, h, w, i] and an s32 bias whose units are theirs times one input's."""
    from scene_edge.inference.litert import load

    (content,) = files.values()
    interpreter = load()[0].Interpreter(model_content=content)
    interpreter.allocate_tensors()
    weights, biases = [], []
    for detail in interpreter.get_tensor_details():
        scales = np.asarray(detail["quantization_parameters"]["scales"], np.float32)
        shape = tuple(detail["shape"])
        if scales.size < 2:
            continue  # of a whole tensor: activations
        if len(shape) == 4 and detail["dtype"] == np.int8 and scales.size == shape[0]:
            weights.append((detail["index"], scales))
        if shape == (scales.size,) and detail["dtype"] == np.int32:
            biases.append((detail["index"], scales))
    for index, scales in weights:
        stored = np.array(interpreter.get_tensor(index))
        for other, units in biases:
            ratios = units / scales if units.size == scales.size else np.array([1.0, 2.0])
            if np.ptp(ratios) <= 1e-3 * ratios.max():
                yield _Found(stored, np.array(interpreter.get_tensor(other)), "ohwi", scales, units)
