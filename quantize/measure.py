"""Runs an artefact of a written bundle through its own engine: error against float torch, CPU time of an inference."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scene_edge.codec.bundle import Artifact, Bundle
from scene_edge.inference.seam import Order, Session, TensorInfo
from scene_edge.inference.session import ENGINE_MODULES
from scene_edge.quantize.graphs import Sample
from scene_edge.quantize.report import OutputError

RUNS = 5


def open_artifact(bundle: Bundle, graph: str, artifact: Artifact, example: Sample) -> Session:
    """A session on one thread at the example's size. TensorRT's files, which are ONNX, run on ONNX Runtime here."""
    spec = bundle.graph(graph)
    inputs = {item.name: TensorInfo(example[item.name].shape, np.dtype(item.dtype)) for item in spec.inputs}
    outputs = tuple(item.name for item in spec.outputs)
    engine = "onnx" if artifact.engine == "tensorrt" else artifact.engine
    session: Session = import_module(ENGINE_MODULES[engine]).open_engine(Order(bundle, artifact, inputs, outputs, 1))
    return session


def cpu_ms(session: Session, sample: Sample) -> float:
    """CPU time of one inference, the best of a few after a first one that does not count."""
    session.run(sample)
    best = float("inf")
    for _ in range(RUNS):
        start = time.process_time()
        session.run(sample)
        best = min(best, time.process_time() - start)
    return best * 1000.0


def run_all(session: Session, samples: Sequence[Sample]) -> list[dict[str, NDArray[Any]]]:
    return [session.run(sample) for sample in samples]


def output_errors(
    found: Sequence[Mapping[str, NDArray[Any]]], wanted: Sequence[Mapping[str, NDArray[Any]]]
) -> dict[str, OutputError]:
    """Errors of each output over all samples."""
    errors = {}
    for name in wanted[0]:
        largest = total = squares = energy = 0.0
        count = 0
        for got, truth in zip(found, wanted, strict=True):
            reference = truth[name].astype(np.float64)
            difference = np.abs(got[name].astype(np.float64) - reference)
            largest = max(largest, float(difference.max(initial=0.0)))
            total += float(difference.sum())
            squares += float(np.square(difference).sum())
            energy += float(np.square(reference).sum())
            count += difference.size
        relative = float(np.sqrt(squares / max(count, 1)) / max(np.sqrt(energy / max(count, 1)), 1e-6))
        errors[name] = OutputError(largest, total / max(count, 1), relative)
    return errors


def latent_mismatch(
    found: Sequence[Mapping[str, NDArray[Any]]], wanted: Sequence[Mapping[str, NDArray[Any]]]
) -> float | None:
    """Share of integers of the output "latent" that differ; None for a graph without one."""
    if "latent" not in wanted[0]:
        return None
    pairs = [(np.rint(got["latent"]), np.rint(truth["latent"])) for got, truth in zip(found, wanted, strict=True)]
    return float(np.mean([np.mean(got != truth) for got, truth in pairs]))
