"""A Session in memory: a Python function in an engine's place, for tests of whatever runs graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from scene_edge.codec.errors import EngineError
from scene_edge.inference.seam import CheckedSession, TensorInfo, Tensors


class FakeSession(CheckedSession):
    """Checks like the real ones. `runs` counts what was asked of it.

    >>> import numpy as np
    >>> info = {"x": TensorInfo((2,), np.dtype(np.float32))}
    >>> session = FakeSession(lambda given: {"y": given["x"] * 2}, inputs=info, outputs={"y": info["x"]})
    >>> session.run({"x": np.ones(2, np.float32)})["y"].tolist()
    [2.0, 2.0]
    """

    engine = "fake"

    def __init__(
        self,
        function: Callable[[Tensors], Tensors],
        *,
        inputs: Mapping[str, TensorInfo],
        outputs: Mapping[str, TensorInfo],
        precision: str = "fp32",
    ) -> None:
        super().__init__(precision, inputs, outputs)
        self.runs = 0
        self._function = function

    def _infer(self, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.runs += 1
        given = self._function(arrays)
        if given.keys() != self.outputs.keys():
            raise EngineError("fake gave other outputs", got=", ".join(given), allowed=", ".join(self.outputs))
        return {name: array.copy() for name, array in given.items()}

    def _release(self) -> None:
        pass
