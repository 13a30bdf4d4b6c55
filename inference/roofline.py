"""What a graph takes at least on this machine: its operations and bytes against peaks that are measured here, shortly.

time >= max(operations / operations a second, bytes / bytes a second), with 2 operations for a multiplication and its
addition, and with every input, output and weight crossing memory once. What lies between two layers may stay in a
cache, so it is not counted: no machine beats the bound, and a ratio of 1 to it is as fast as the silicon allows.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from scene_edge.codec import ir
from scene_edge.codec.bundle import Artifact, Bundle, Graph, write_bundle
from scene_edge.codec.errors import EngineError
from scene_edge.inference.probe import Activations, Probe, conv_stack
from scene_edge.inference.seam import DEFAULT_THREADS, Order, TensorInfo
from scene_edge.inference.session import ENGINE_MODULES, Session

ELEMENT_BYTES = {"int8": 1, "fp16": 2, "bf16": 2, "fp32": 4}

_RUNS = 5
_COPY_BYTES = 64 << 20
_FLOAT, _INT8, _INT8_SYMMETRIC = "probe.fp32.onnx", "probe.u8.onnx", "probe.s8.onnx"
_PROBES: tuple[tuple[str, Activations], ...] = ((_FLOAT, "float32"), (_INT8, "uint8"), (_INT8_SYMMETRIC, "int8"))
_ONNX_ENGINES = ("openvino", "onnx", "tensorrt")
"""Those that read the probe. LiteRT does not: its graphs are held against the best of the others."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one run of a graph takes: operations, and bytes that cross memory."""

    operations: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Peaks:
    """Measured at a number of threads. `operations`: (engine, precision) -> operations a second."""

    threads: int
    bytes_per_s: float
    operations: Mapping[tuple[str, str], float]
    reasons: Mapping[tuple[str, str], str]

    def best(self, precision: str) -> float | None:
        """The silicon's peak at a precision is that of the best engine. None where nothing could be measured."""
        found = [value for (_, known), value in self.operations.items() if known == precision]
        return max(found, default=None)

    def roofline_ms(self, work: Work, precision: str) -> float | None:
        """The least time for `work`, in ms; None without a peak at this precision.

        >>> peaks = Peaks(1, 1e9, {("onnx", "int8"): 2e9, ("openvino", "int8"): 4e9}, {})
        >>> peaks.roofline_ms(Work(operations=8_000_000, bytes=1_000_000), "int8")
        2.0
        >>> peaks.roofline_ms(Work(operations=8_000_000, bytes=3_000_000), "int8")
        3.0
        """
        best = self.best(precision)
        return None if best is None else 1000 * max(work.operations / best, work.bytes / self.bytes_per_s)

    def as_json(self) -> dict[str, Any]:
        return {
            "threads": self.threads,
            "copy_gbytes_per_s": round(self.bytes_per_s / 1e9, 2),
            "gops_per_s": [
                {"engine": engine, "precision": precision, "gops_per_s": round(value / 1e9, 1)}
                for (engine, precision), value in self.operations.items()
            ],
            "not_measured": [
                {"engine": engine, "precision": precision, "reason": reason}
                for (engine, precision), reason in self.reasons.items()
            ],
        }


def measure_peaks(wanted: Sequence[tuple[str, str]], threads: int | None = None, probe: Probe | None = None) -> Peaks:
    """A convolution stack on each (engine, precision) that reads one, and a copy of memory. Takes some 100 ms each."""
    threads = threads or DEFAULT_THREADS
    probe = probe or Probe()
    operations: dict[tuple[str, str], float] = {}
    reasons: dict[tuple[str, str], str] = {}
    with tempfile.TemporaryDirectory(prefix="scene-edge-probe-") as folder:
        bundle = _probe_bundle(Path(folder), probe)
        for engine, precision in dict.fromkeys(wanted):
            try:
                operations[engine, precision] = probe.operations / _probe_s(bundle, probe, engine, precision, threads)
            except EngineError as error:
                reasons[engine, precision] = str(error)
    return Peaks(threads, copy_bytes_per_s(threads), operations, reasons)


def copy_bytes_per_s(threads: int, size: int = _COPY_BYTES) -> float:
    """Bytes read and written a second while `threads` threads copy arrays of `size` bytes in all, the best of a few."""
    part = max(1, size // threads)
    pairs = [(np.ones(part, np.uint8), np.empty(part, np.uint8)) for _ in range(threads)]
    best_s = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_RUNS):
            started = time.perf_counter()
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))
            best_s = min(best_s, time.perf_counter() - started)
    return 2 * part * threads / best_s


def work_of(bundle: Bundle, graph: Graph, session: Session) -> Work | None:
    """Operations of the graph at the session's shapes, and the bytes of its inputs, outputs and weights.

    None where OpenVINO, which reads the graph for us, is not installed or there is no artefact that it reads. Any of
    them will do: it is the same network at each precision.
    """
    readable = [item for item in graph.artifacts if item.file.endswith((ir.SUFFIX, ".onnx"))]
    for artifact in sorted(readable, key=lambda item: item.precision != session.precision):
        order = Order(bundle, artifact, session.inputs, tuple(spec.name for spec in graph.outputs), 1)
        try:
            from scene_edge.inference import openvino

            operations, weights = openvino.count(order)
        except EngineError:
            continue
        tensors = [*session.inputs.values(), *session.outputs.values()]
        moved = sum(int(np.prod(info.shape)) * info.dtype.itemsize for info in tensors if info.shape)
        return Work(operations, moved + weights * ELEMENT_BYTES.get(session.precision, 4))
    return None


def _probe_bundle(folder: Path, probe: Probe) -> Bundle:
    for name, activations in _PROBES:
        (folder / name).write_bytes(conv_stack(probe, activations))
    shape = {"x": probe.shape, "y": (1, 1, 1, 1)}
    inputs, outputs = ([{"name": name, "dtype": "float32", "shape": list(shape[name])}] for name in ("x", "y"))
    artifacts = [{"engine": "onnx", "precision": "fp32", "file": name, "shape": None} for name, _ in _PROBES]
    graphs = {"probe": {"inputs": inputs, "outputs": outputs, "artifacts": artifacts}}
    head = {"format": 1, "name": "probe", "kind": "scene", "version": "1", "counter": 1}
    return write_bundle(folder, {**head, "graphs": graphs, "parameters": {}})


def _probe_s(bundle: Bundle, probe: Probe, engine: str, precision: str, threads: int) -> float:
    """The best of a few runs, in seconds. Raises EngineError where the engine does not run the probe."""
    if engine not in _ONNX_ENGINES:
        raise EngineError(f"{engine} reads no ONNX, so its own peak is not measured")
    # OpenVINO computes float models at bf16 or fp16 where it is asked to; elsewhere the precision is the model's.
    if precision not in ("int8", "fp32") and engine != "openvino":
        raise EngineError(f"there is no probe for {engine} at {precision}")
    file = _FLOAT if precision != "int8" else _INT8_SYMMETRIC if engine == "tensorrt" else _INT8
    x = TensorInfo(probe.shape, np.dtype(np.float32))
    order = Order(bundle, Artifact(engine, precision, file), {"x": x}, ("y",), threads)
    session: Session = import_module(ENGINE_MODULES[engine]).open_engine(order)
    try:
        feed = {"x": np.random.default_rng(0).standard_normal(probe.shape, np.float32)}
        best_s = float("inf")
        for _ in range(_RUNS + 1):
            started = time.perf_counter()
            session.run(feed)
            best_s = min(best_s, time.perf_counter() - started)
    finally:
        session.close()
    return best_s
