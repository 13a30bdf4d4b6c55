"""Writes a small ONNX model of nothing but convolutions, to measure what an engine can do at best. No onnx needed.

A camera installs an engine that reads ONNX, and no package that writes it. So the few protobuf messages that a stack of
1x1 convolutions takes are written here, field by field, as onnx.proto numbers them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.varints import write_varint

_KINDS = {np.dtype(np.float32): 1, np.dtype(np.uint8): 2, np.dtype(np.int8): 3}
_IR_VERSION, _OPSET = 9, 17

Activations: TypeAlias = Literal["float32", "uint8", "int8"]


@dataclass(frozen=True, slots=True)
class Probe:
    """`layers` 1x1 convolutions of `channels` each on `side` x `side` positions: all arithmetic, and little memory."""

    channels: int = 256
    side: int = 32
    layers: int = 12

    @property
    def operations(self) -> int:
        """Multiplications and additions of one run.

        >>> Probe(channels=2, side=3, layers=5).operations
        360
        """
        return 2 * self.channels**2 * self.side**2 * self.layers

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return 1, self.channels, self.side, self.side


def conv_stack(probe: Probe, activations: Activations) -> bytes:
    """The model as ONNX: input x f32 of `probe.shape`, output y f32 [1, 1, 1, 1].

    `uint8` and `int8`: the activations between the convolutions are that (QDQ, zero-point 0), and the weights int8, as
    in the artefacts of our bundles: ONNX Runtime on x86 is fast with the former, TensorRT takes the latter alone. The
    mean at the end keeps the output from costing memory traffic; it is not counted.
    """
    quantised = activations != "float32"
    generator = np.random.default_rng(0)
    graph = _Graph()
    value = "x"
    if quantised:
        graph.constant("scale", np.float32(0.05))
        graph.constant("weight_scale", np.float32(0.002))
        graph.constant("zero", np.dtype(activations).type(0))
        graph.constant("weight_zero", np.int8(0))
        value = graph.quantised(value)
    for layer in range(probe.layers):
        shape = (probe.channels, probe.channels, 1, 1)
        weights = generator.integers(-127, 128, shape).astype(np.int8)
        name = f"w{layer}"
        if quantised:
            graph.constant(f"{name}_q", weights)
            name = graph.node("DequantizeLinear", (f"{name}_q", "weight_scale", "weight_zero"))
        else:
            graph.constant(name, weights.astype(np.float32) * np.float32(0.002))
        value = graph.node("Relu", (graph.node("Conv", (value, name)),))
        if quantised:
            value = graph.quantised(value)
    graph.node("GlobalAveragePool", (graph.node("ReduceMean", (value,), axes=(1,)),), output="y")
    return graph.model(probe.shape)


class _Graph:
    """Nodes and constants in the order in which they were added."""

    def __init__(self) -> None:
        self._nodes: list[bytes] = []
        self._constants: list[bytes] = []

    def node(self, kind: str, inputs: Sequence[str], output: str = "", axes: Sequence[int] = ()) -> str:
        """NodeProto: input 1, output 2, op_type 4, attribute 5. Gives the output's name."""
        output = output or f"t{len(self._nodes)}"
        parts = [_text(1, name) for name in inputs] + [_text(2, output), _text(4, kind)]
        if axes:
            # AttributeProto: name 1, ints 8, type 20 (INTS is 7)
            attribute = _text(1, "axes") + b"".join(_number(8, axis) for axis in axes) + _number(20, 7)
            parts.append(_field(5, attribute))
        self._nodes.append(b"".join(parts))
        return output

    def quantised(self, name: str) -> str:
        rounded = self.node("QuantizeLinear", (name, "scale", "zero"))
        return self.node("DequantizeLinear", (rounded, "scale", "zero"))

    def constant(self, name: str, value: NDArray[np.generic] | np.generic) -> None:
        """TensorProto: dims 1, data_type 2, name 8, raw_data 9."""
        array = np.asarray(value)
        dims = b"".join(_number(1, side) for side in array.shape)
        self._constants.append(dims + _number(2, _KINDS[array.dtype]) + _text(8, name) + _field(9, array.tobytes()))

    def model(self, shape: Sequence[int]) -> bytes:
        """ModelProto: ir_version 1, graph 7, opset_import 8. GraphProto: node 1, name 2, initializer 5, input 11,
        output 12."""
        graph = b"".join(_field(1, node) for node in self._nodes) + _text(2, "probe")
        graph += b"".join(_field(5, tensor) for tensor in self._constants)
        graph += _field(11, _value("x", shape)) + _field(12, _value("y", (1, 1, 1, 1)))
        return _number(1, _IR_VERSION) + _field(7, graph) + _field(8, _number(2, _OPSET))


def _value(name: str, shape: Sequence[int]) -> bytes:
    """ValueInfoProto: name 1, type 2; TypeProto: tensor_type 1 with elem_type 1 and shape 2 of dim 1 of dim_value 1."""
    dims = b"".join(_field(1, _number(1, side)) for side in shape)
    return _text(1, name) + _field(2, _field(1, _number(1, _KINDS[np.dtype(np.float32)]) + _field(2, dims)))


def _number(field: int, value: int) -> bytes:
    return write_varint(field << 3) + write_varint(value)


def _text(field: int, value: str) -> bytes:
    return _field(field, value.encode())


def _field(field: int, data: bytes) -> bytes:
    """Wire type 2: a length, then so many bytes."""
    return write_varint(field << 3 | 2) + write_varint(len(data)) + data
