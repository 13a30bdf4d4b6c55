"""Graphs on ONNX Runtime: the CPU provider, or CUDA where the installed build has it."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.errors import EngineError
from scene_edge.inference.seam import BROKEN_IMPORT, CheckedSession, Order, TensorInfo, one_line

_DTYPES = {
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(bool)": np.bool_,
}
_ERRORS_ONLY = 3


@lru_cache(maxsize=1)
def load() -> ModuleType:
    """The onnxruntime package, telemetry off. Raises EngineError where there is none."""
    try:
        import onnxruntime
    except BROKEN_IMPORT as error:
        raise EngineError(
            "onnxruntime is not installed", got=one_line(error), hint='pip install "scene-edge[onnx]"'
        ) from error
    onnxruntime.disable_telemetry_events()
    module: ModuleType = onnxruntime
    return module


def runtime_version() -> str:
    """Version of the runtime. Raises EngineError where there is none."""
    return str(load().__version__)


@lru_cache(maxsize=1)
def _foreign_errors() -> tuple[type[Exception], ...]:
    """onnxruntime's exceptions share no base class but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found = [item for item in vars(state).values() if isinstance(item, type) and issubclass(item, Exception)]
    return (RuntimeError, ValueError, TypeError, *found)


class OnnxRuntimeSession(CheckedSession):
    """One InferenceSession. Outputs come in memory of their own from every run."""

    engine = "onnx"

    def __init__(self, order: Order) -> None:
        runtime = load()
        self.runtime_errors = _foreign_errors()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = order.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        # A worker that spins while it waits takes a core from the H.264 encoder.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        present = runtime.get_available_providers()
        try:
            self._session = runtime.InferenceSession(
                order.read(order.artifact.file), options, providers=[name for name in wanted if name in present]
            )
        except self.runtime_errors as error:
            raise EngineError(f"onnxruntime cannot load {order.artifact.file}", got=one_line(error)) from error
        self.device = self._session.get_providers()[0].removesuffix("ExecutionProvider")
        _check_inputs(order, self._session.get_inputs())
        found = {output.name: output for output in self._session.get_outputs()}
        if not set(order.outputs) <= found.keys():
            raise EngineError(f"{order.artifact.file} lacks outputs", got=sorted(found), allowed=sorted(order.outputs))
        self._outputs = list(order.outputs)
        infos = {name: TensorInfo(_static(found[name].shape), _dtype(found[name].type)) for name in order.outputs}
        super().__init__(order.artifact.precision, order.inputs, infos)

    def _infer(self, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return dict(zip(self._outputs, self._session.run(self._outputs, arrays), strict=True))

    def _release(self) -> None:
        del self._session


def open_engine(order: Order) -> OnnxRuntimeSession:
    """A session for an order. Raises EngineError."""
    return OnnxRuntimeSession(order)


def _check_inputs(order: Order, found: list[Any]) -> None:
    file = order.artifact.file
    if {item.name for item in found} != order.inputs.keys():
        raise EngineError(f"{file} has other inputs", got=[item.name for item in found], allowed=sorted(order.inputs))
    for item in found:
        info = order.inputs[item.name]
        if _dtype(item.type) != info.dtype:
            raise EngineError(f"input {item.name} of {file} has another type", got=item.type, allowed=info.dtype)
        fits = len(item.shape) == len(info.shape) and all(
            not isinstance(side, int) or side == wanted for side, wanted in zip(item.shape, info.shape, strict=True)
        )
        if not fits:
            raise EngineError(f"input {item.name} of {file} has another shape", got=item.shape, allowed=info.shape)


def _dtype(name: str) -> np.dtype[Any]:
    if name not in _DTYPES:
        raise EngineError("graph with a type of tensor that is not supported", got=name, allowed=", ".join(_DTYPES))
    return np.dtype(_DTYPES[name])


def _static(shape: list[Any]) -> tuple[int, ...]:
    return tuple(shape) if all(isinstance(side, int) for side in shape) else ()
