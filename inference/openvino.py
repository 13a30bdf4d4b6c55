"""Graphs on OpenVINO (CPU unless told otherwise), as IR or ONNX, reshaped to fixed sizes. Sends no telemetry."""

from __future__ import annotations

import sys
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scene_edge.codec import ir
from scene_edge.codec.errors import EngineError
from scene_edge.inference.seam import BROKEN_IMPORT, CheckedSession, Order, TensorInfo, one_line


@lru_cache(maxsize=1)
def load() -> ModuleType:
    """The openvino package. Raises EngineError where there is none.

    Merely importing openvino sends a usage event where openvino-telemetry is installed and the user never said no.
    A camera sends nothing that its owner did not ask for, so that package is hidden before: openvino has a stub for it.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except BROKEN_IMPORT as error:
        raise EngineError(
            "openvino is not installed", got=one_line(error), hint='pip install "scene-edge[openvino]"'
        ) from error
    module: ModuleType = openvino
    return module


def runtime_version() -> str:
    """Version of the runtime. Raises EngineError where there is none."""
    return str(load().__version__).split("-")[0]


@lru_cache(maxsize=1)
def _core() -> Any:
    return load().Core()


class OpenVinoSession(CheckedSession):
    """One infer request of one compiled model, used again for every run."""

    engine = "openvino"

    def __init__(self, order: Order, device: str = "CPU") -> None:
        load()
        self.device = device
        try:
            compiled = _compiled(order, device)
            outputs = {_name(port, order.outputs): port for port in compiled.outputs}
            self._request = compiled.create_infer_request()
            self._model = compiled
        except self.runtime_errors as error:
            raise EngineError(f"openvino cannot load {order.artifact.file}", got=one_line(error)) from error
        self._index = {name: compiled.outputs.index(port) for name, port in outputs.items()}
        self._ports = {name: compiled.input(name) for name in order.inputs}
        infos = {
            name: TensorInfo(
                tuple(port.shape) if port.partial_shape.is_static else (), np.dtype(port.element_type.to_dtype())
            )
            for name, port in outputs.items()
        }
        super().__init__(order.artifact.precision, order.inputs, infos)

    def _infer(self, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        # Inputs are read in place; outputs are copied out, since the request writes into the same memory next time.
        self._request.infer({self._ports[name]: array for name, array in arrays.items()}, share_inputs=True)
        return {name: self._request.get_output_tensor(index).data.copy() for name, index in self._index.items()}

    def compiled(self) -> bytes:
        try:
            return bytes(self._model.export_model().getvalue())
        except RuntimeError:
            return b""  # not every device can

    def _release(self) -> None:
        del self._request, self._ports, self._model


def open_engine(order: Order) -> OpenVinoSession:
    """A session for an order. Raises EngineError."""
    return OpenVinoSession(order)


def count(order: Order) -> tuple[int, int]:
    """(operations, weights) of one run of the order's graph, 2 operations for a multiplication with its addition.

    Raises EngineError where the graph cannot be read.
    """
    try:
        multiplications, weights = products(_read(order))
    except OpenVinoSession.runtime_errors as error:
        raise EngineError(f"openvino cannot read {order.artifact.file}", got=one_line(error)) from error
    return 2 * multiplications, weights


def products(model: Any) -> tuple[int, int]:
    """(multiplications, weights) of a model with fixed shapes, in its convolutions and matrix products."""
    layers = [_layer(node) for node in model.get_ops()]
    return sum(found for found, _ in layers), sum(weights for _, weights in layers)


def _layer(node: Any) -> tuple[int, int]:
    """(multiplications, weights) of a node; (0, 0) of all that is neither convolution nor matrix product."""
    kind = node.get_type_name()
    if kind not in ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul"):
        return 0, 0
    given, weight = (list(node.input_value(place).get_shape()) for place in (0, 1))
    out, size = list(node.get_output_shape(0)), int(np.prod(weight))
    if kind == "MatMul":
        return int(np.prod(out)) * given[-2 if node.get_attributes()["transpose_a"] else -1], size
    if kind == "ConvolutionBackpropData":
        return given[0] * int(np.prod(given[2:])) * size, size
    return out[0] * int(np.prod(out[2:])) * size, size


def _read(order: Order) -> Any:
    """The model with its inputs fixed to the order's shapes."""
    file = order.artifact.file
    if file.endswith(ir.SUFFIX):
        text, weights = ir.inflate(order.read(file), file), ir.weights_of(file)
        model = _core().read_model(text, order.read(weights) if weights in order.bundle.files else b"")
    else:
        model = _core().read_model(order.read(file), b"")
    names = {name for port in model.inputs for name in port.get_names()}
    missing = order.inputs.keys() - names
    if missing or len(model.inputs) != len(order.inputs):
        raise EngineError(f"{file} has other inputs", got=sorted(names), allowed=sorted(order.inputs))
    model.reshape({name: list(info.shape) for name, info in order.inputs.items()})
    for name, info in order.inputs.items():
        found = np.dtype(model.input(name).get_element_type().to_dtype())
        if found != info.dtype:
            raise EngineError(f"input {name} of {file} has another type", got=found, allowed=info.dtype)
    return model


def _compiled(order: Order, device: str) -> Any:
    """The compiled model, by way of its graph or, six times as fast, from what was compiled before."""
    if not order.compiled:
        return _core().compile_model(_read(order), device, _settings(order, device))
    compiled = _core().import_model(order.compiled, device, _settings(order, device))
    found = {
        name: TensorInfo(tuple(port.shape), np.dtype(port.element_type.to_dtype()))
        for port in compiled.inputs
        for name in port.get_names() & order.inputs.keys()
    }
    if found != order.inputs:
        raise EngineError(f"what was compiled of {order.artifact.file} has other inputs", got=sorted(found))
    return compiled


def _settings(order: Order, device: str) -> dict[str, str]:
    settings = {"PERFORMANCE_HINT": "LATENCY"}
    if device == "CPU":
        settings |= {"INFERENCE_NUM_THREADS": str(order.threads), "NUM_STREAMS": "1", "ENABLE_CPU_PINNING": "NO"}
    hint, capability = _PRECISIONS[order.artifact.precision]
    if capability not in _core().get_property(device, "OPTIMIZATION_CAPABILITIES"):
        raise EngineError(f"{device} does not compute at {order.artifact.precision}")
    settings["INFERENCE_PRECISION_HINT"] = hint
    return settings


_PRECISIONS = {"fp32": ("f32", "FP32"), "int8": ("f32", "FP32"), "bf16": ("bf16", "BF16"), "fp16": ("f16", "FP16")}
"""Hint for what is float, and what a device must say that it can. Without a hint a CPU with AMX or bf16 silently
computes in bf16: all of fp32, and the float rest of INT8, which would then differ from one machine to the next. INT8 is
no slower for it."""


def _name(port: Any, wanted: tuple[str, ...]) -> str:
    names = set(port.get_names())
    for name in wanted:
        if name in names:
            return name
    raise EngineError("model has an output that its manifest does not name", got=sorted(names), allowed=wanted)
