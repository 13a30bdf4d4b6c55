"""From a torch graph to an exported program and an fp32 ONNX model whose height and width stay free. Still float."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch.export import Dim, ExportedProgram

from scene_edge.codec.errors import ConfigError, EngineError
from scene_edge.codec.planes import ALIGN, MAX_SIDE
from scene_edge.inference.golden import fitted
from scene_edge.models.registry import GraphExport

__all__ = ["Axes", "Sample", "Shapes", "anonymous", "dynamic_axes", "export_program", "fitted", "run_torch", "to_onnx"]

Sample: TypeAlias = Mapping[str, NDArray[Any]]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

UNIT = ALIGN // 4
"""Sides of a packed picture are multiples of this; states have a whole number of positions per unit."""


@dataclass(frozen=True)
class Axes:
    """Where an input's rows and columns lie, and how many of them one UNIT of the picture has."""

    rows: int
    columns: int
    per_unit: int


def dynamic_axes(graph: GraphExport) -> dict[str, Axes]:
    """Inputs whose height and width are free: those in which example, calibration or LiteRT shapes differ.

    Raises ConfigError where an input's size is no fixed share of the picture's, or anything but its sides varies.
    """
    seen: dict[str, list[tuple[int, ...]]] = {name: [value.shape] for name, value in graph.inputs}
    for shapes in (*map(shapes_of, graph.calibration), *graph.litert_shapes):
        if set(shapes) != set(seen):
            raise ConfigError(
                "a calibration sample or LiteRT shape names other inputs", got=sorted(shapes), allowed=sorted(seen)
            )
        for name, shape in shapes.items():
            seen[name].append(tuple(shape))
    axes: dict[str, Axes] = {}
    picture: list[tuple[int, int]] = []
    for name, value in graph.inputs:
        if len(set(seen[name])) == 1:
            continue
        rows, columns = (1, 2) if value.dtype == np.uint8 else (2, 3)
        fixed = {tuple(side for axis, side in enumerate(shape) if axis not in (rows, columns)) for shape in seen[name]}
        sides = [(shape[rows], shape[columns]) for shape in seen[name]]
        picture = picture or sides
        ratio = Fraction(sides[0][0], picture[0][0])
        exact = all(
            side[0] == size[0] * ratio and side[1] == size[1] * ratio for side, size in zip(sides, picture, strict=True)
        )
        if len(fixed) != 1 or not exact or (ratio * UNIT).denominator != 1:
            raise ConfigError(f"sizes of input {name} do not follow the picture", got=sorted(set(seen[name])))
        axes[name] = Axes(rows, columns, int(ratio * UNIT))
    return axes


def shapes_of(sample: Sample) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in sample.items()}


def export_program(graph: GraphExport, example: Sample, axes: Mapping[str, Axes]) -> ExportedProgram:
    """The graph as torch.export sees it, with the given sides free. Raises EngineError if it cannot be exported."""
    most = MAX_SIDE // 4 // UNIT
    rows, columns = Dim("rows", min=2, max=most), Dim("columns", min=2, max=most)
    free = []
    for name, _ in graph.inputs:
        axis = axes.get(name)
        free.append({axis.rows: axis.per_unit * rows, axis.columns: axis.per_unit * columns} if axis else None)
    arguments = tuple(torch.from_numpy(np.ascontiguousarray(example[name])) for name, _ in graph.inputs)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(graph.module.eval(), arguments, dynamic_shapes=tuple(free) if axes else None)
    except Exception as error:  # torch raises many unrelated kinds here; all mean the same
        raise EngineError(
            f"{type(graph.module).__name__} cannot be exported",
            got=_first_line(error),
            hint="No Python branch on a shape, no view of height or width, float bounds in clamp.",
        ) from error


def to_onnx(program: ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """An fp32 ONNX model with our names and no trace of the machine that made it. Raises EngineError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger = logging.getLogger("torch.onnx")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            exported = torch.onnx.export(
                program, (), input_names=list(inputs), output_names=list(outputs), dynamo=True, verbose=False
            )
        except Exception as error:
            raise EngineError("the exported program cannot be written as ONNX", got=_first_line(error)) from error
        finally:
            logger.setLevel(level)
    if exported is None:
        raise EngineError("the exported program cannot be written as ONNX")
    return anonymous(exported.model_proto)


def anonymous(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without stack traces, doc strings and file names, which the exporter puts into every node."""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    for items in (graph.node, graph.value_info, graph.input, graph.output, graph.initializer):
        for item in items:
            item.doc_string = ""
            del item.metadata_props[:]
    return model


@torch.no_grad()
def run_torch(graph: GraphExport, sample: Sample) -> dict[str, NDArray[Any]]:
    """The float reference: named inputs -> named outputs."""
    given = [torch.from_numpy(np.ascontiguousarray(sample[name])) for name, _ in graph.inputs]
    result = graph.module.eval()(*given)
    tensors = result if isinstance(result, tuple | list) else (result,)
    if len(tensors) != len(graph.outputs):
        raise ConfigError("the graph gives other outputs than it names", got=len(tensors), allowed=len(graph.outputs))
    return {name: tensor.numpy().copy() for name, tensor in zip(graph.outputs, tensors, strict=True)}


def weights_digest(module: torch.nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def samples_digest(samples: Sequence[Sample]) -> str:
    """SHA-256 over the calibration samples in their order."""
    digest = hashlib.sha256()
    for sample in samples:
        for name, value in sorted(sample.items()):
            digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:300] if text else ''}"
