"""What an engine is held to: a golden run of a bundle, and how far outputs are from it.

A file of golden tensors holds one run whole, "in.<name>" and "out.<name>", of a small picture. For artefacts that are
fixed to a larger one it holds "at.<rows>x<columns>.<name>" as well (of the packed grid): the run's inputs repeated to
that size, of whose outputs some values are kept, at places that follow from their number alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.errors import EngineError

Tensors: TypeAlias = Mapping[str, NDArray[Any]]

KEPT = 4096
"""Values that are kept of an output at a larger size."""

_STRIDE = 2654435761
"""A prime, near the golden ratio of 2^32: its multiples scatter over any output."""


@dataclass(frozen=True)
class Run:
    """Inputs, and what came of them: outputs whole, or, where `at` names a size, what is kept of them."""

    inputs: Tensors
    outputs: Tensors
    at: tuple[int, int] | None = None

    def errors(self, found: Tensors) -> dict[str, float]:
        """Relative RMS error of each output: rms(output - golden) / rms(golden). Raises EngineError for a misfit."""
        seen = {name: sampled(value) for name, value in found.items()} if self.at else found
        return golden_error(seen, {f"out.{name}": value for name, value in self.outputs.items()})


def whole_run(golden: Tensors) -> Run:
    """The run that is kept whole."""
    return Run(_under("in.", golden), _under("out.", golden))


def run_at(golden: Tensors, grid: tuple[int, int], shapes: Mapping[str, tuple[int, ...]]) -> Run | None:
    """The run at another size of the packed grid; None where nothing is kept of one. `shapes` are its inputs'."""
    outputs = _under(_prefix(grid), golden)
    return Run(fitted(_under("in.", golden), shapes), outputs, grid) if outputs else None


def kept_at(grid: tuple[int, int], outputs: Tensors) -> dict[str, NDArray[Any]]:
    """What a file of golden tensors keeps of a run's outputs at a larger size."""
    return {f"{_prefix(grid)}{name}": sampled(value) for name, value in outputs.items()}


def sampled(values: NDArray[Any]) -> NDArray[Any]:
    """Some values of an array, the same ones in every array of its size."""
    flat = np.ravel(values)
    return np.ascontiguousarray(flat[np.arange(min(KEPT, flat.size), dtype=np.int64) * _STRIDE % max(flat.size, 1)])


def fitted(sample: Tensors, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """The sample at another size: cropped, or repeated from its top left; pictures and states stay in register."""
    result = {}
    for name, shape in shapes.items():
        value = sample[name]
        for axis, side in enumerate(shape):
            if value.shape[axis] != side:
                value = np.take(value, np.arange(side) % value.shape[axis], axis)
        result[name] = np.ascontiguousarray(value)
    return result


def golden_error(outputs: Tensors, golden: Tensors) -> dict[str, float]:
    """Relative RMS error of each output against "out.<name>" in `golden`: rms(output - golden) / rms(golden).

    Raises EngineError if an output is missing or has another shape.
    """
    errors = {}
    for name, wanted in _under("out.", golden).items():
        if name not in outputs or outputs[name].shape != wanted.shape:
            got = outputs[name].shape if name in outputs else "nothing"
            raise EngineError(f"output {name} is not as in the golden run", got=got, allowed=wanted.shape)
        truth = wanted.astype(np.float64)
        error = _rms(outputs[name].astype(np.float64) - truth) / max(_rms(truth), 1e-6)
        errors[name] = error if np.isfinite(error) else float("inf")
    return errors


def _prefix(grid: tuple[int, int]) -> str:
    return f"at.{grid[0]}x{grid[1]}."


def _under(prefix: str, tensors: Tensors) -> dict[str, NDArray[Any]]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0
