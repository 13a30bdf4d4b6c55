"""ONNX INT8 with explicit QuantizeLinear/DequantizeLinear pairs, per-channel symmetric weights and ranges of our own.

Two kinds, because no engine runs the other's well. ONNX Runtime on x86 is three times faster with u8 activations,
and no faster than fp32 with s8; TensorRT accepts only s8 with zero-point 0.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from scene_edge.codec.errors import EngineError
from scene_edge.quantize.graphs import Sample, anonymous
from scene_edge.quantize.ranges import least_lossy

ARITHMETIC = ("Conv", "Gemm", "MatMul")
MOVES = ("Concat", "Slice", "Split", "Transpose", "Reshape", "Cast", "Identity", "Resize")


def quantise_onnx(model: onnx.ModelProto, samples: Sequence[Sample], *, symmetric: bool) -> bytes:
    """fp32 ONNX and samples -> QDQ ONNX; `symmetric`: s8 with zero-point 0 for TensorRT. Raises EngineError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                self._left = iter([dict(sample) for sample in samples])

            def get_next(self) -> Any:
                return next(self._left, None)

        logger = logging.getLogger()
        disabled = logger.manager.disable
        logging.disable(logging.WARNING)  # it advises on the root logger; what it advises is done
        try:
            with tempfile.TemporaryDirectory() as folder:
                source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
                onnx.save(model, str(source))
                ranges = {
                    name: [{"rmin": np.float32(low), "rmax": np.float32(high)}]
                    for name, (low, high) in least_lossy(model, samples).items()
                }
                quantize_static(
                    str(source),
                    str(target),
                    Reader(),
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
                    activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    nodes_to_exclude=float_nodes(model),
                    extra_options={
                        "ActivationSymmetric": symmetric,
                        "WeightSymmetric": True,
                        "TensorQuantOverrides": ranges,
                    },
                )
                return anonymous(onnx.load(str(target))).SerializeToString()
        except Exception as error:
            raise EngineError(
                "ONNX Runtime cannot quantise the graph", got=f"{type(error).__name__}: {error}"
            ) from error
        finally:
            logging.disable(disabled)


def float_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of nodes that stay in float.

    Subtractions: the residual of two features would drown in the 8-bit noise of both. The way from the last
    convolution to a u8 picture: a filter close to the identity must not lose grey levels. The copies that make
    up a state: it goes out as f32 anyway.
    """
    producers = {output: node for node in model.graph.node for output in node.output}
    names = {node.name for node in model.graph.node if node.op_type == "Sub"}
    for output in model.graph.output:
        picture = output.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        stack = [output.name]
        visited: set[str] = set()
        while stack:
            node = producers.get(stack.pop())
            if node is None or node.name in visited or node.op_type in ARITHMETIC:
                continue
            if not (picture or node.op_type in MOVES):
                continue
            visited.add(node.name)
            stack += list(node.input)
        names |= visited
    return sorted(names)
