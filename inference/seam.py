"""What every inference engine has in common: the Session seam, what an engine is asked for, how inputs are checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.bundle import Artifact, Bundle
from scene_edge.codec.errors import EngineError
from scene_edge.codec.kernels import Kernels, replaced

Tensors: TypeAlias = Mapping[str, NDArray[Any]]

DEFAULT_THREADS = 2

BROKEN_IMPORT = (ImportError, AttributeError, OSError)
"""What importing a runtime raises that is not there, was built for another numpy, or lacks a shared library."""


class TensorInfo(NamedTuple):
    """An input or output of an open session. An output's shape is () where the engine knows it only after a run."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Session(Protocol):
    """One compiled graph at one size. Not for two threads at once: give each its own."""

    engine: str
    precision: str
    device: str
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    fallbacks: tuple[str, ...]
    """Why what was preferred to this engine and precision is not in use; empty where the first choice runs."""
    proven: bool
    """Whether it reproduced the bundle's golden output on this engine, rather than merely gave finite numbers."""

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """Named inputs -> named outputs, which later runs neither overwrite nor share.

        Raises EngineError for a missing, unknown or misshapen input, or if the runtime fails.
        """
        ...

    def close(self) -> None:
        """Free the runtime's memory. Running afterwards is an EngineError; closing twice is not."""
        ...


class Order(NamedTuple):
    """What an engine is asked for: one artifact at fixed input shapes."""

    bundle: Bundle
    artifact: Artifact
    inputs: Mapping[str, TensorInfo]
    outputs: tuple[str, ...]
    threads: int
    kernels: Kernels | None = None
    """What is written over the kernels in its files."""
    compiled: bytes = b""
    """What `CheckedSession.compiled` gave for the same order, which opens sooner; empty: from the bundle's files."""

    def read(self, file: str) -> bytes:
        """A file of the bundle, with the order's kernels in it. Raises BundleError for kernels that do not fit."""
        data = self.bundle.read(file)
        return data if self.kernels is None else replaced(data, file, self.artifact, self.kernels)


class CheckedSession(ABC):
    """A Session whose inputs are checked here and whose runtime's errors come out as EngineError."""

    engine: str
    device: str = "CPU"
    runtime_errors: tuple[type[Exception], ...] = (RuntimeError, ValueError, TypeError)

    def __init__(self, precision: str, inputs: Mapping[str, TensorInfo], outputs: Mapping[str, TensorInfo]) -> None:
        self.precision = precision
        self.inputs = inputs
        self.outputs = outputs
        self.fallbacks: tuple[str, ...] = ()
        self.proven = False
        self._closed = False

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        if self._closed:
            raise EngineError(f"{self.engine} session is closed")
        arrays = self._checked(inputs)
        try:
            return self._infer(arrays)
        except self.runtime_errors as error:
            raise EngineError(f"{self.engine} failed while it ran", got=one_line(error)) from error

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._release()

    def compiled(self) -> bytes:
        """What `Order.compiled` takes, on this board and with this version of the engine; empty where it has none."""
        return b""

    @abstractmethod
    def _infer(self, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run on checked, contiguous arrays; what is returned belongs to the caller."""

    @abstractmethod
    def _release(self) -> None:
        """Let go of the runtime's objects."""

    def _checked(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        if inputs.keys() != self.inputs.keys():
            raise EngineError("wrong inputs", got=", ".join(inputs) or "none", allowed=", ".join(self.inputs))
        arrays = {}
        for name, info in self.inputs.items():
            array = inputs[name]
            if array.shape != info.shape or array.dtype != info.dtype:
                raise EngineError(
                    f"input {name} does not fit",
                    got=f"{array.dtype} {array.shape}",
                    allowed=f"{info.dtype} {info.shape}",
                )
            arrays[name] = np.ascontiguousarray(array)
        return arrays


def one_line(error: BaseException) -> str:
    """An error of a foreign library as the first 300 characters of it, without line breaks."""
    return " ".join(str(error).split())[:300] or type(error).__name__
