"""Graphs on native TensorRT 10 and 11 (Jetson, NVIDIA GPUs): an engine built on the device from ONNX with explicit QDQ.

Built engines are cached by the digest of the model, the shapes and the versions, since building takes minutes. Needs
`tensorrt` (on Jetson from JetPack, so a venv with --system-site-packages) and `cuda-python`. Not among the engines
that are tried by default: it has had no run on a board of ours yet, and a golden run decides before it is used.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.errors import EngineError
from scene_edge.inference.seam import BROKEN_IMPORT, CheckedSession, Order, TensorInfo, one_line

_WORKSPACE_BYTES = 512 << 20


class _Runtime(NamedTuple):
    tensorrt: ModuleType
    cudart: ModuleType


@lru_cache(maxsize=1)
def load() -> _Runtime:
    """TensorRT and the CUDA runtime's bindings. Raises EngineError, saying which is missing."""
    try:
        import tensorrt
    except BROKEN_IMPORT as error:
        raise EngineError(
            "TensorRT is not installed: it comes with JetPack, or as the package tensorrt beside an NVIDIA driver",
            got=one_line(error),
            hint="On Jetson make the venv with --system-site-packages.",
        ) from error
    try:
        cudart = import_module("cuda.bindings.runtime")
    except BROKEN_IMPORT as error:
        raise EngineError(
            "TensorRT is here, but not the CUDA runtime's bindings", got=one_line(error), hint="pip install cuda-python"
        ) from error
    if int(str(tensorrt.__version__).split(".")[0]) < 10:
        raise EngineError("TensorRT is too old", got=tensorrt.__version__, allowed=">= 10")
    return _Runtime(tensorrt, cudart)


def runtime_version() -> str:
    """Version of TensorRT. Raises EngineError where there is none."""
    return str(load().tensorrt.__version__)


class TensorRtSession(CheckedSession):
    """One execution context with a device buffer for every tensor, used again for every run."""

    engine = "tensorrt"

    def __init__(self, order: Order, cache: Path | None = None) -> None:
        runtime = load()
        self._cudart = runtime.cudart
        logger = runtime.tensorrt.Logger(runtime.tensorrt.Logger.ERROR)
        plan = _plan(runtime.tensorrt, logger, order, cache if cache is not None else _cache_folder())
        self._trt_runtime = runtime.tensorrt.Runtime(logger)
        self._engine = self._trt_runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(f"TensorRT cannot load the engine of {order.artifact.file}", hint="Empty its cache.")
        self._context = self._engine.create_execution_context()
        self._buffers: dict[str, int] = {}
        self._stream = self._cuda(self._cudart.cudaStreamCreate())
        for name, info in order.inputs.items():
            self._context.set_input_shape(name, info.shape)
        outputs = {}
        for name in order.outputs:
            dtype = np.dtype(runtime.tensorrt.nptype(self._engine.get_tensor_dtype(name)))
            outputs[name] = TensorInfo(tuple(self._context.get_tensor_shape(name)), dtype)
        for name, info in {**order.inputs, **outputs}.items():
            size = int(np.prod(info.shape)) * info.dtype.itemsize
            self._buffers[name] = self._cuda(self._cudart.cudaMalloc(size))
            self._context.set_tensor_address(name, int(self._buffers[name]))
        self.device = "CUDA"
        super().__init__(order.artifact.precision, order.inputs, outputs)

    def _infer(self, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        copy, kind = self._cudart.cudaMemcpyAsync, self._cudart.cudaMemcpyKind
        for name, array in arrays.items():
            direction = kind.cudaMemcpyHostToDevice
            self._cuda(copy(self._buffers[name], array.ctypes.data, array.nbytes, direction, self._stream))
        if not self._context.execute_async_v3(int(self._stream)):
            raise EngineError("TensorRT refused to run")
        found: dict[str, NDArray[Any]] = {}
        for name, info in self.outputs.items():
            out = found[name] = np.empty(info.shape, info.dtype)
            direction = kind.cudaMemcpyDeviceToHost
            self._cuda(copy(out.ctypes.data, self._buffers[name], out.nbytes, direction, self._stream))
        self._cuda(self._cudart.cudaStreamSynchronize(self._stream))
        return found

    def _release(self) -> None:
        for buffer in self._buffers.values():
            self._cuda(self._cudart.cudaFree(buffer))
        self._cuda(self._cudart.cudaStreamDestroy(self._stream))
        del self._context, self._engine, self._trt_runtime

    def _cuda(self, result: tuple[Any, ...]) -> Any:
        """The value of a CUDA call, whose first item is its status."""
        if int(result[0]) != 0:
            raise EngineError("CUDA failed", got=str(result[0]))
        return result[1] if len(result) > 1 else None


def open_engine(order: Order) -> TensorRtSession:
    """A session for an order. Raises EngineError, also if the cache cannot be written."""
    try:
        return TensorRtSession(order)
    except (RuntimeError, ValueError, TypeError, AttributeError, OSError) as error:
        raise EngineError(f"TensorRT cannot load {order.artifact.file}", got=one_line(error)) from error


def _plan(tensorrt: ModuleType, logger: Any, order: Order, cache: Path) -> bytes:
    """The serialised engine, from the cache or built now."""
    model = order.read(order.artifact.file)
    shapes = sorted((name, info.shape) for name, info in order.inputs.items())
    key = hashlib.sha256(model + repr((shapes, tensorrt.__version__)).encode()).hexdigest()
    cached = cache / f"{key}.engine"
    if cached.is_file():
        return cached.read_bytes()
    builder = tensorrt.Builder(logger)
    # Strongly typed: every precision stands in the graph (QDQ), which is the only way that TensorRT 11 knows.
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(model):
        reasons = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise EngineError(f"TensorRT cannot read {order.artifact.file}", got=reasons[:300])
    config = builder.create_builder_config()
    config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
    profile = builder.create_optimization_profile()
    for name, shape in shapes:
        profile.set_shape(name, shape, shape, shape)
    config.add_optimization_profile(profile)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise EngineError(f"TensorRT cannot build an engine of {order.artifact.file}")
    plan = bytes(built)
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = cached.with_suffix(f".{os.getpid()}")
    temporary.write_bytes(plan)
    temporary.replace(cached)
    return plan


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "scene-edge" / "tensorrt"
