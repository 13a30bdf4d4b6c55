"""OpenVINO INT8: post-training quantisation with NNCF, written as IR that takes u8 pictures and any size."""

from __future__ import annotations

import logging
import re
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from scene_edge.codec import ir
from scene_edge.codec.errors import EngineError
from scene_edge.inference.openvino import load
from scene_edge.quantize.graphs import Sample

ARITHMETIC = ("Convolution", "GroupConvolution", "MatMul")
MOVES = ("Concat", "Slice", "StridedSlice", "VariadicSplit", "Split", "Transpose", "Reshape", "Convert", "Interpolate")


def quantise_openvino(model: onnx.ModelProto, samples: Sequence[Sample]) -> dict[str, bytes]:
    """fp32 ONNX and calibration samples -> {".xml.gz": ..., ".bin": ...}. Raises EngineError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        openvino = load()  # before NNCF: it hides the telemetry that NNCF would use as well
        import nncf

        nncf.set_log_level(logging.ERROR)
        network = openvino.Core().read_model(model.SerializeToString())
        with _without_progress_bars():
            try:
                quantised = nncf.quantize(
                    network,
                    nncf.Dataset([dict(sample) for sample in samples]),
                    preset=nncf.QuantizationPreset.MIXED,  # symmetric weights, asymmetric activations
                    advanced_parameters=nncf.AdvancedQuantizationParameters(
                        overflow_fix=nncf.OverflowFix.DISABLE  # or the first weights get 7 bits; VNNI, AMX, ARM take 8
                    ),
                    subset_size=len(samples),
                    ignored_scope=nncf.IgnoredScope(names=float_operations(network), validate=False),
                )
            except Exception as error:
                raise EngineError("NNCF cannot quantise the graph", got=f"{type(error).__name__}: {error}") from error
        return save_ir(quantised)


def save_ir(network: Any) -> dict[str, bytes]:
    """An OpenVINO model -> the bytes of its two files, without the record of how and where it was made."""
    openvino = load()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        openvino.save_model(network, str(path), compress_to_fp16=False)
        text = _without_record(path.read_text()).encode()
        return {ir.SUFFIX: ir.deflate(text), ".bin": path.with_suffix(".bin").read_bytes()}


def float_operations(network: Any) -> list[str]:
    """Names of operations that stay in float.

    Subtractions: the residual of two features would drown in the 8-bit noise of both. The way from the last
    convolution to a u8 picture: a filter close to the identity must not lose grey levels. The copies that make
    up a state: it goes out as f32 anyway.
    """
    names = {node.get_friendly_name() for node in network.get_ops() if node.get_type_name() == "Subtract"}
    for result in network.get_results():
        picture = result.get_element_type().get_type_name() == "u8"
        stack = [result.input_value(0).get_node()]
        visited: set[str] = set()
        while stack:
            node = stack.pop()
            kind, name = node.get_type_name(), node.get_friendly_name()
            if name in visited or kind in ARITHMETIC or not (picture or kind in MOVES):
                continue
            visited.add(name)
            stack += [node.input_value(index).get_node() for index in range(node.get_input_size())]
        names |= visited
    plain = ("Constant", "Parameter", "Result")
    return sorted(names & {node.get_friendly_name() for node in network.get_ops() if node.get_type_name() not in plain})


def _without_record(xml: str) -> str:
    """The IR without the model's <rt_info>: it holds versions, options and paths, which our report says better."""
    head, separator, tail = xml.rpartition("</edges>")
    return head + separator + re.sub(r"<rt_info>.*</rt_info>", "", tail, flags=re.DOTALL) if separator else xml


class _without_progress_bars:
    """NNCF draws its own bars on the console; ours is drawn by the command."""

    def __enter__(self) -> None:
        from nncf.common.logging import track_progress

        self._track: Any = track_progress.track
        original = track_progress.track.__init__

        def quiet(track: Any, *arguments: Any, **settings: Any) -> None:
            original(track, *arguments, **settings)
            track.progress.disable = True

        self._original = original
        self._track.__init__ = quiet

    def __exit__(self, *_: object) -> None:
        self._track.__init__ = self._original
