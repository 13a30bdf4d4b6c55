"""What runs a graph: the artefacts that its bundle lists, and those that follow from them without a file of their own.

OpenVINO reads ONNX as well, and computes a float network at bfloat16 or float16 where the processor can: a bundle that
ships float32 for ONNX Runtime brings three more that way. They are there for whoever asks for that very precision
(`scene-edge bench` does); nobody falls back to them.
"""

from __future__ import annotations

from dataclasses import replace

from scene_edge.codec.bundle import Artifact, Graph

DERIVED = ("fp32", "bf16", "fp16")


def artifacts_of(graph: Graph, precision: str | None = None) -> tuple[Artifact, ...]:
    """Those that are listed, then those that follow from them: at `precision`, or all."""
    listed = {(item.engine, item.precision) for item in graph.artifacts}
    floats = [item for item in graph.artifacts if item.precision == "fp32" and item.engine in ("openvino", "onnx")]
    found = {
        wanted: replace(item, engine="openvino", precision=wanted)
        for item in sorted(floats, key=lambda item: item.engine != "openvino")[:1]
        for wanted in DERIVED
        if ("openvino", wanted) not in listed and precision in (None, wanted)
    }
    return (*graph.artifacts, *found.values())
