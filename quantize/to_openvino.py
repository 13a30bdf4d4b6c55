"""OpenVINO's own form of a graph: float, or quantised as the ONNX file says, so that both engines round alike.

OpenVINO reads QDQ pairs as it reads its own: as ranges of activations and 8-bit weights. On SMC that is as fast as what
NNCF makes of the graph, and loses less, since the ranges are ours (`ranges`).
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from scene_edge.codec import ir
from scene_edge.codec.errors import EngineError
from scene_edge.inference.openvino import load


def to_ir(data: bytes) -> dict[str, bytes]:
    """An ONNX model, float or with QDQ pairs -> {".xml.gz": ..., ".bin": ...}, without the record of how and where it
    was made. Raises EngineError."""
    openvino = load()
    try:
        network = openvino.Core().read_model(data)
    except RuntimeError as error:
        raise EngineError("OpenVINO cannot read the graph", got=str(error)) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        openvino.save_model(network, str(path), compress_to_fp16=False)
        text = _without_record(path.read_text()).encode()
        return {ir.SUFFIX: ir.deflate(text), ".bin": path.with_suffix(".bin").read_bytes()}


def _without_record(xml: str) -> str:
    """The IR without the model's <rt_info>: it holds versions, options and paths, which our report says better."""
    head, separator, tail = xml.rpartition("</edges>")
    return head + separator + re.sub(r"<rt_info>.*</rt_info>", "", tail, flags=re.DOTALL) if separator else xml
