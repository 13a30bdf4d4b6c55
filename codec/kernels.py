"""Other kernels for convolutions of a finished artefact: written over those in its files, whatever the engine.

A filter that follows its scene has kernels that change about once a scene. No engine quantises kernels that are inputs
of a graph, so they are constants: quantised here, for each output by itself, into the bytes that the bundle's manifest
points to (`KernelSlot`). Ranges of activations stay as they were calibrated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import BundleError
from scene_edge.codec.manifest import Artifact, KernelSlot

MAX_BASES = 16
MAX_CRF = 63
WEIGHTS = "weights.safetensors"

F32: TypeAlias = NDArray[np.float32]

LARGEST = 127
"""Kernels are symmetric: -127..127 times their scale."""


class Kernel(NamedTuple):
    """weights f32 [outputs, inputs, rows, columns] and bias f32 [outputs] of one convolution."""

    weights: F32
    bias: F32


Kernels: TypeAlias = Mapping[str, Kernel]
"""By the names of the layers in the manifest."""


def replaced(data: bytes, file: str, artifact: Artifact, kernels: Kernels) -> bytes:
    """A file of an artefact with other kernels in it.

    Raises BundleError where the artefact has no place for one of them, or the file is too short for what it says.
    """
    missing = kernels.keys() - {slot.layer for slot in artifact.kernels}
    if missing:
        raise BundleError(f"{artifact.file} has no place for other kernels", got=", ".join(sorted(missing)))
    slots = [slot for slot in artifact.kernels if slot.file == file and slot.layer in kernels]
    if not slots:
        return data
    out = bytearray(data)
    for slot in slots:
        for place, values in _values(slot, kernels[slot.layer]):
            content = np.ascontiguousarray(values).tobytes()
            if place + len(content) > len(out):
                raise BundleError(
                    f"kernels of layer {slot.layer} do not fit into {file}",
                    got=f"{len(content)} bytes at {place} of {len(out)}",
                )
            out[place : place + len(content)] = content
    return bytes(out)


def quantised(weights: F32) -> tuple[NDArray[np.int8], F32]:
    """Symmetric, for each output by itself: s8 [outputs, ...] and scales f32 [outputs], weights = s8 * scale."""
    peak = np.abs(weights).reshape(len(weights), -1).max(1)
    scales = np.maximum(peak / LARGEST, 1e-12).astype(np.float32)
    whole = np.rint(weights / scales.reshape(-1, *([1] * (weights.ndim - 1))))
    return np.clip(whole, -LARGEST, LARGEST).astype(np.int8), scales


def _values(slot: KernelSlot, kernel: Kernel) -> list[tuple[int, NDArray[Any]]]:
    """What to write where."""
    weights, bias = kernel.weights.astype(np.float32), kernel.bias.astype(np.float32)
    if slot.layout == "ohwi":
        weights = weights.transpose(0, 2, 3, 1)
    if slot.scales is None:
        return [(slot.weights, weights), (slot.bias, bias)]
    whole, scales = quantised(weights)
    values: list[tuple[int, NDArray[Any]]] = [(slot.weights, whole), (slot.scales, scales)]
    if slot.input_scale is None or slot.bias_scales is None:
        return [*values, (slot.bias, bias)]
    units = (np.float32(slot.input_scale) * scales).astype(np.float32)
    return [*values, (slot.bias, np.rint(bias / units).astype(np.int32)), (slot.bias_scales, units)]


class KernelBank:
    """Base kernels of the assembled convolutions of a SCENE bundle: K_c = sum_i a_{c,i} k_i (arXiv 2601.22189).

    The manifest's `kernels` lists, for each layer in the order of its coefficients, the layer's name and that of its
    bases in weights.safetensors: "<bases>.weight" [E * C, inputs, rows, columns] and "<bases>.bias" [E * C]. Its
    `residual` names likewise the last layer, whose output is added to the picture.

    Where it has `coarseness`, kernels follow the codec's quantiser too: with t = (CRF - `centre`) / `unit`, CRF held
    within `range`, t * slopes[0] + t^2 * slopes[1] is added to the coefficients, and to the 1 by which each output of
    the residual is multiplied. `slopes` [2, coefficients + outputs] is a tensor of weights.safetensors.
    """

    def __init__(self, bundle: Bundle) -> None:
        listed, config = bundle.parameters.get("kernels"), bundle.parameters.get("config")
        bases = config.get("bases") if isinstance(config, Mapping) else None
        residual = bundle.parameters.get("residual")
        named = isinstance(listed, list) and all(_is_pair(item) for item in [*listed, residual])
        if not (named and residual and listed and isinstance(bases, int) and 1 <= bases <= MAX_BASES):
            raise BundleError(f"bundle {bundle.name} does not say what its kernels are made of", got=str(listed)[:80])
        tensors = bundle.tensors(WEIGHTS)
        self._layers = [(layer, *_bases(tensors, name, bases)) for layer, name in listed]
        layer, name = residual
        weights, bias = _bases(tensors, name, 1)
        self._residual = (layer, Kernel(weights[0], bias[0]))
        self._coarseness = _Coarseness.of(bundle, tensors, self.coefficients + bias[0].size)

    @property
    def coefficients(self) -> int:
        """How many `assemble` takes."""
        return sum(bias.size for _, _, bias in self._layers)

    def assemble(
        self, coefficients: NDArray[Any], strength: float = 1.0, crf: float | None = None
    ) -> dict[str, Kernel]:
        """Coefficients of a scene, in any shape -> kernels by layer for that CRF, the residual's times `strength`.

        Without `crf` they are those of the middle of the bundle's range. Raises BundleError for another number of
        coefficients.
        """
        values = coefficients.astype(np.float32).ravel()
        if values.size != self.coefficients or not np.isfinite(values).all():
            raise BundleError("coefficients do not fit the kernels", got=values.size, allowed=self.coefficients)
        layer, plain = self._residual
        gains: F32 = np.full(plain.bias.size, strength, np.float32)
        if self._coarseness is not None and crf is not None:
            added = self._coarseness.at(crf)
            values = values + added[: values.size]
            gains = gains * (1 + added[values.size :])
        kernels, at = {layer: Kernel(plain.weights * gains[:, None, None, None], plain.bias * gains)}, 0
        for layer, weights, bias in self._layers:
            part = values[at : at + bias.size].reshape(bias.shape)
            kernels[layer] = Kernel(np.einsum("ec,ecihw->cihw", part, weights), (part * bias).sum(0))
            at += bias.size
        return kernels


@dataclass(frozen=True)
class _Coarseness:
    """What a quantiser adds to coefficients and gains."""

    slopes: F32
    centre: float
    unit: float
    least: float
    most: float

    @classmethod
    def of(cls, bundle: Bundle, tensors: Mapping[str, NDArray[Any]], count: int) -> _Coarseness | None:
        """What the manifest's `coarseness` says. Raises BundleError where that cannot be."""
        said = bundle.parameters.get("coarseness")
        if said is None:
            return None
        fields = said if isinstance(said, Mapping) else {}
        bounds = fields.get("range")
        numbers = [fields.get("centre"), fields.get("unit"), *(bounds if isinstance(bounds, list) else [])]
        slopes = tensors.get(str(fields.get("slopes")))
        numeric = all(isinstance(value, (int, float)) and 0 < value <= MAX_CRF for value in numbers)
        if not numeric or len(numbers) != 4 or slopes is None or slopes.shape != (2, count):
            raise BundleError(
                f"bundle {bundle.name} does not say how its kernels follow the quantiser",
                got=str(said)[:80],
                allowed=f"slopes [2, {count}], centre, unit, range [from, to]",
            )
        return cls(slopes.astype(np.float32), *(float(value) for value in numbers))

    def at(self, crf: float) -> F32:
        far = np.float32((min(max(crf, self.least), self.most) - self.centre) / self.unit)
        added: F32 = far * self.slopes[0] + far * far * self.slopes[1]
        return added


def _is_pair(item: object) -> bool:
    return isinstance(item, list) and len(item) == 2 and all(isinstance(name, str) for name in item)


def _bases(tensors: Mapping[str, NDArray[Any]], name: str, bases: int) -> tuple[F32, F32]:
    """[E, C, inputs, rows, columns] and [E, C]."""
    weights, bias = tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")
    if weights is None or bias is None or weights.ndim != 4 or bias.shape != weights.shape[:1] or len(bias) % bases:
        found = [None if value is None else value.shape for value in (weights, bias)]
        raise BundleError(
            f"base kernels {name} are not usable", got=found, allowed=f"[{bases} C, i, h, w] and [{bases} C]"
        )
    shape = (bases, len(bias) // bases)
    return weights.astype(np.float32).reshape(*shape, *weights.shape[1:]), bias.astype(np.float32).reshape(shape)
