"""From torch graphs to a bundle: fp32 ONNX, OpenVINO INT8, ONNX INT8, LiteRT INT8, a golden run, a measured report.

Every artefact is opened from the written bundle by the very session that the camera uses, and compared with float
torch on samples that no calibration saw. A bundle whose loss is beyond the bound is not written.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from safetensors.numpy import save
from torch.export import ExportedProgram

from scene_edge.codec import ir
from scene_edge.codec.bundle import MANIFEST_FILE, Bundle, write_bundle
from scene_edge.codec.errors import ConfigError, EngineError
from scene_edge.codec.manifest import ENGINES, FORMAT, Artifact
from scene_edge.inference.golden import fitted, kept_at, run_at, whole_run
from scene_edge.models.registry import GraphExport
from scene_edge.quantize import graphs as g
from scene_edge.quantize.equalise import equalised
from scene_edge.quantize.kernels import slots_of
from scene_edge.quantize.measure import cpu_ms, latent_mismatch, open_artifact, output_errors, run_all
from scene_edge.quantize.qat import check_trainable, trained
from scene_edge.quantize.report import ArtifactReport, QuantisationReport, TrainingReport, tool_versions
from scene_edge.quantize.rounding import rounded
from scene_edge.quantize.to_litert import LitertTask, litert_python, quantise_litert
from scene_edge.quantize.to_onnx import quantise_onnx
from scene_edge.quantize.to_openvino import to_ir

__all__ = ["DEFAULT_ENGINES", "GraphExport", "QuantisationReport", "export_bundle"]

DEFAULT_ENGINES = ("openvino", "onnx", "litert")
DEFAULT_MAX_ERROR = 0.5
EVALUATION_SAMPLES = 8
LITERT_SAMPLES = 24
TUNING_SAMPLES = 24
QAT_SEED = 7
GOLDEN_GRID = (24, 32)
GOLDEN_BYTES = 1 << 18
FP32_BYTES = 500_000
"""An fp32 ONNX file is shipped beside the INT8 ones up to this size, as the artefact of last resort."""

Progress = Callable[[str, int, int], None]


@dataclass
class _Work:
    """One graph on its way."""

    name: str
    graph: GraphExport
    axes: dict[str, g.Axes]
    calibration: list[g.Sample]
    evaluation: list[g.Sample]
    tuned: GraphExport
    """Computes the same and takes INT8 better; the graph itself is what it is compared with."""
    model: onnx.ModelProto | None = None
    artifacts: list[Artifact] = field(default_factory=list)
    slots: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By artefact: where the kernels lie that a camera may change."""
    training: TrainingReport | None = None

    def keep(self, artifact: Artifact, files: Mapping[str, bytes]) -> None:
        """An artefact that was written. Raises EngineError where its kernels cannot be found again."""
        self.artifacts.append(artifact)
        self.slots[artifact.file] = slots_of(artifact.engine, files, self.graph.kernels)

    @property
    def example(self) -> dict[str, NDArray[Any]]:
        return dict(self.graph.inputs)

    @property
    def shapes(self) -> list[dict[str, tuple[int, ...]]]:
        """Sizes for fixed-shape engines; the first is where errors are measured, the last where time is."""
        return self.graph.litert_shapes or [g.shapes_of(self.example)]

    def grid(self, shapes: g.Shapes) -> tuple[int, int] | None:
        """Packed rows and columns; None where the graph has one size only."""
        name = next(iter(self.axes), None)
        return None if name is None else (shapes[name][self.axes[name].rows], shapes[name][self.axes[name].columns])

    def export(self, graph: GraphExport, shapes: g.Shapes, axes: Mapping[str, g.Axes]) -> ExportedProgram:
        return g.export_program(graph, fitted(self.example, shapes), axes)

    def tune(self, qat_steps: int, progress: Callable[[], None]) -> None:
        """Raises EngineError where it would not compute the same. Kernels that a camera changes are left alone."""
        if self.graph.kernels:
            return
        samples = self.calibration[:: math.ceil(len(self.calibration) / TUNING_SAMPLES)]
        self.tuned = equalised(self.graph, samples)
        if qat_steps:
            found = trained(self.graph, self.tuned, self.calibration, steps=qat_steps, seed=QAT_SEED, progress=progress)
            self.tuned = found.graph
            self.training = TrainingReport(qat_steps, QAT_SEED, found.before, found.after, found.taken)
        self.tuned = rounded(self.tuned, samples)


def export_bundle(
    graphs: dict[str, GraphExport],
    *,
    name: str,
    kind: str,
    version: str,
    counter: int,
    parameters: dict[str, Any],
    training: dict[str, Any],
    out: Path,
    engines: Sequence[str] = DEFAULT_ENGINES,
    extra_files: Mapping[str, bytes] | None = None,
    max_error: float = DEFAULT_MAX_ERROR,
    qat_steps: int = 0,
    progress: Progress | None = None,
) -> QuantisationReport:
    """Quantise `graphs` for `engines` and write the bundle `out`, which replaces an older bundle there.

    With `qat_steps` the weights are trained in INT8 for so many steps before (see `qat`). Raises EngineError where a
    graph cannot be converted or an artefact's relative RMS error exceeds `max_error`, and ConfigError for engines,
    samples, graphs or an output folder that make no sense; `out` is as before in either case.
    """
    unknown = sorted(set(engines) - set(ENGINES))
    if unknown or not engines:
        raise ConfigError("unknown engine to quantise for", got=", ".join(unknown), allowed=", ".join(ENGINES))
    if out.exists() and not (out.is_dir() and ((out / MANIFEST_FILE).is_file() or not any(out.iterdir()))):
        raise ConfigError("the output is no bundle and not empty", got=str(out), hint="Name a new folder.")
    if "litert" in engines:
        litert_python()  # fails now rather than after minutes
    works = [_prepared(graph_name, graph) for graph_name, graph in graphs.items()]
    if qat_steps:
        for work in works:
            check_trainable(work.graph, work.calibration)
    steps = _Steps(progress, sum(_effort(work, engines, qat_steps) for work in works))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        folder = Path(scratch) / "bundle"
        folder.mkdir()
        for file, data in (extra_files or {}).items():
            (folder / file).write_bytes(data)
        tools = tool_versions()
        for work in works:
            steps.next(f"{work.name}: channels and weights")
            work.tune(qat_steps, partial(steps.next, f"{work.name}: training in INT8"))
            _convert(work, engines, folder, steps)
        if "litert" in engines:
            tools |= _convert_litert(works, folder, steps)
        for work in works:
            (folder / f"{work.name}.golden.safetensors").write_bytes(_golden(work))
        base: dict[str, Any] = {
            "format": FORMAT,
            "name": name,
            "kind": kind,
            "version": version,
            "counter": counter,
            "parameters": parameters,
            "training": training,
        }
        draft = write_bundle(folder, {**base, "graphs": {work.name: _entry(work, 1.0) for work in works}})
        reports = [report for work in works for report in _measured(work, draft, steps)]
        _refuse(reports, max_error)
        reports = list(_shipped(works, reports, folder))
        report = QuantisationReport(
            method="qat" if qat_steps else "ptq",
            weights_sha256={work.name: g.weights_digest(work.graph.module) for work in works},
            calibration_sha256={work.name: g.samples_digest(work.calibration) for work in works},
            calibration_samples={work.name: len(work.calibration) for work in works},
            evaluation_samples={work.name: len(work.evaluation) for work in works},
            tools=tools,
            artifacts=tuple(reports),
            training={work.name: work.training for work in works if work.training},
        )
        entries = {work.name: _entry(work, _tolerance(work, draft, reports)) for work in works}
        write_bundle(folder, {**base, "graphs": entries, "quantisation": report.as_dict()})
        _replace(out, folder, Path(scratch) / "previous")
    return report


def _prepared(name: str, graph: GraphExport) -> _Work:
    """Splits the samples: every few of them judges, the others calibrate; with one sample, it does both."""
    if not graph.calibration:
        raise ConfigError(
            f"graph {name} has no calibration samples", hint="Point --calibration at a folder with clips."
        )
    axes = g.dynamic_axes(graph)
    samples: list[g.Sample] = list(graph.calibration)
    stride = max(2, len(samples) // EVALUATION_SAMPLES)
    evaluation = samples[stride - 1 :: stride][:EVALUATION_SAMPLES] or samples
    held_out = {id(sample) for sample in evaluation}
    calibration = [sample for sample in samples if id(sample) not in held_out] or samples
    return _Work(name, graph, axes, calibration, evaluation, graph)


def _effort(work: _Work, engines: Sequence[str], qat_steps: int) -> int:
    made = 3 + qat_steps + 2 * len(set(engines) - {"litert"}) + ("litert" in engines) * 2 * len(work.shapes)
    return made + ("openvino" in engines)


def _convert(work: _Work, engines: Sequence[str], folder: Path, steps: _Steps) -> None:
    inputs = [name for name, _ in work.graph.inputs]
    steps.next(f"{work.name}: ONNX fp32")
    work.model = g.to_onnx(work.export(work.graph, work.shapes[0], work.axes), inputs, work.graph.outputs)
    _add(work, folder, "onnx", "fp32", {".onnx": work.model.SerializeToString()})
    tuned = g.to_onnx(work.export(work.tuned, work.shapes[0], work.axes), inputs, work.graph.outputs)
    data = b""
    for engine in ("onnx", "openvino"):
        if engine in engines:
            steps.next(f"{work.name}: {engine} INT8")
            data = data or quantise_onnx(tuned, work.calibration, symmetric=False)
            if engine == "onnx":
                _add(work, folder, engine, "int8", {".onnx": data})
            else:
                _add(work, folder, engine, "fp32", to_ir(work.model.SerializeToString()))
                _add(work, folder, engine, "int8", to_ir(data))
    if "tensorrt" in engines:
        steps.next(f"{work.name}: tensorrt INT8")
        _add(work, folder, "tensorrt", "int8", {".onnx": quantise_onnx(tuned, work.calibration, symmetric=True)})


def _add(work: _Work, folder: Path, engine: str, precision: str, files: Mapping[str, bytes]) -> None:
    """Write an artefact's files; the first of them is the one that the manifest names."""
    stem = f"{work.name}.tensorrt.{precision}" if engine == "tensorrt" else f"{work.name}.{precision}"
    for suffix, data in files.items():
        (folder / f"{stem}{suffix}").write_bytes(data)
    work.keep(
        Artifact(engine, precision, f"{stem}{next(iter(files))}"),
        {f"{stem}{suffix}": data for suffix, data in files.items()},
    )


def _convert_litert(works: Sequence[_Work], folder: Path, steps: _Steps) -> dict[str, str]:
    tasks, targets = [], []
    for work in works:
        for shapes in work.shapes:
            grid = work.grid(shapes)
            size = f".{grid[1] * 4}x{grid[0] * 4}" if grid else ""
            targets.append((work, Artifact("litert", "int8", f"{work.name}{size}.int8.tflite", grid)))
            stride = math.ceil(len(work.calibration) / LITERT_SAMPLES)
            samples = [fitted(sample, shapes) for sample in work.calibration[::stride]]
            names = [name for name, _ in work.graph.inputs]
            tasks.append(LitertTask(work.export(work.tuned, shapes, {}), names, work.graph.outputs, samples))
    labels = iter(f"{artifact.file}" for _, artifact in targets)
    models, versions = quantise_litert(tasks, lambda: steps.next(next(labels)))
    for (work, artifact), data in zip(targets, models, strict=True):
        (folder / artifact.file).write_bytes(data)
        work.keep(artifact, {artifact.file: data})
    return versions


def _golden(work: _Work) -> bytes:
    """Inputs and float outputs of one evaluation sample, at LiteRT's first size where that is small, else cropped."""
    shapes = work.shapes[0]
    sample = fitted(work.evaluation[0], shapes)
    if work.axes and sum(value.nbytes for value in sample.values()) > GOLDEN_BYTES // 2:
        rows, columns = (side // g.UNIT for side in GOLDEN_GRID)
        cropped = {key: list(shape) for key, shape in shapes.items()}
        for name, axes in work.axes.items():
            cropped[name][axes.rows] = rows * axes.per_unit
            cropped[name][axes.columns] = columns * axes.per_unit
        sample = fitted(sample, {key: tuple(shape) for key, shape in cropped.items()})
    outputs = g.run_torch(work.graph, sample)
    tensors = {f"in.{key}": value for key, value in sample.items()} | {f"out.{k}": v for k, v in outputs.items()}
    for at in _fixed_sizes(work, sample):
        larger = fitted(sample, at)
        tensors |= kept_at(work.grid(at) or GOLDEN_GRID, g.run_torch(work.graph, larger))
    return save(tensors)


def _fixed_sizes(work: _Work, sample: g.Sample) -> list[g.Shapes]:
    """Those of artefacts that cannot take the golden run's own size."""
    hints = {artifact.shape_hint for artifact in work.artifacts if artifact.shape_hint is not None}
    return [shapes for shapes in work.shapes if work.grid(shapes) in hints and shapes != g.shapes_of(sample)]


def _entry(work: _Work, tolerance: float) -> dict[str, Any]:
    """The graph's part of the manifest."""
    if work.model is None:
        raise EngineError(f"graph {work.name} was not converted")
    inputs = []
    for name, value in work.graph.inputs:
        shape: list[int | None] = [int(side) for side in value.shape]
        if name in work.axes:
            shape[work.axes[name].rows] = shape[work.axes[name].columns] = None
        inputs.append({"name": name, "dtype": str(value.dtype), "shape": shape})
    outputs = []
    for item in work.model.graph.output:
        sides = item.type.tensor_type.shape.dim
        dtype = onnx.helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type)
        shape = [int(side.dim_value) if side.HasField("dim_value") else None for side in sides]
        outputs.append({"name": item.name, "dtype": str(np.dtype(dtype)), "shape": shape})
    artifacts: list[dict[str, Any]] = []
    for artifact in work.artifacts:
        entry: dict[str, Any] = {"engine": artifact.engine, "precision": artifact.precision, "file": artifact.file}
        entry["shape"] = list(artifact.shape_hint) if artifact.shape_hint else None
        artifacts.append(entry | ({"kernels": work.slots[artifact.file]} if work.slots.get(artifact.file) else {}))
    golden = {"file": f"{work.name}.golden.safetensors", "tolerance": tolerance}
    return {"inputs": inputs, "outputs": outputs, "artifacts": artifacts, "golden": golden}


def _measured(work: _Work, bundle: Bundle, steps: _Steps) -> Iterator[ArtifactReport]:
    """Each artefact's error at the first size, its time at the last; a fixed-shape artefact's at its own."""
    for artifact in work.artifacts:
        steps.next(f"{artifact.file}: measuring")
        own = [shapes for shapes in work.shapes if artifact.shape_hint in (None, work.grid(shapes))]
        samples = [fitted(sample, own[0]) for sample in work.evaluation]
        wanted = [g.run_torch(work.graph, sample) for sample in samples]
        session = open_artifact(bundle, work.name, artifact, samples[0])
        found = run_all(session, samples)
        if own[-1] != own[0]:
            session.close()
            samples = [fitted(work.evaluation[0], own[-1])]
            session = open_artifact(bundle, work.name, artifact, samples[0])
        duration_ms = cpu_ms(session, samples[0])
        session.close()
        size = bundle.files[artifact.file].size_bytes
        if artifact.file.endswith(ir.SUFFIX):
            size += bundle.files[ir.weights_of(artifact.file)].size_bytes
        yield ArtifactReport(
            graph=work.name,
            engine=artifact.engine,
            precision=artifact.precision,
            file=artifact.file,
            size_bytes=size,
            errors=output_errors(found, wanted),
            cpu_ms=duration_ms,
            grid=work.grid(own[-1]),
            latent_mismatch=latent_mismatch(found, wanted),
        )


def _refuse(reports: Sequence[ArtifactReport], max_error: float) -> None:
    for report in reports:
        output, relative = report.worst
        if not relative <= max_error:
            raise EngineError(
                f"{report.precision} of graph {report.graph} on {report.engine} loses too much in output {output}",
                got=f"relative error {relative:.3g}",
                allowed=f"at most {max_error:g}",
                hint="More or better calibration samples, longer training, or a larger --max-error.",
            )


def _shipped(works: Sequence[_Work], reports: Sequence[ArtifactReport], folder: Path) -> Iterator[ArtifactReport]:
    """Drop fp32 files that were made to compare with, save small ONNX ones; the report keeps their figures."""
    for report in reports:
        if report.precision == "int8" or (report.engine == "onnx" and report.size_bytes <= FP32_BYTES):
            yield report
            continue
        for file in {report.file, ir.weights_of(report.file)} if report.engine == "openvino" else {report.file}:
            (folder / file).unlink()
        for work in works:
            work.artifacts = [artifact for artifact in work.artifacts if artifact.file != report.file]
        yield replace(report, shipped=False)


def _tolerance(work: _Work, bundle: Bundle, reports: Sequence[ArtifactReport]) -> float:
    """Golden tolerance: twice the worst error measured, never under 2 %, since other CPUs round otherwise.

    The golden sample itself may be a hard one: no less than one and a half times its own worst error.
    """
    worst = max(report.worst[1] for report in reports if report.graph == work.name)
    return min(1.0, round(max(0.02, 2.0 * worst, 1.5 * _golden_error(work, bundle)), 4))


def _golden_error(work: _Work, bundle: Bundle) -> float:
    golden = bundle.tensors(f"{work.name}.golden.safetensors")
    found = [0.0]
    for artifact in work.artifacts:
        at = [shapes for shapes in work.shapes if artifact.shape_hint == work.grid(shapes)]
        fixed = run_at(golden, artifact.shape_hint, at[0]) if artifact.shape_hint and at else None
        run = fixed or whole_run(golden)
        session = open_artifact(bundle, work.name, artifact, run.inputs)
        found += run.errors(session.run(run.inputs)).values()
        session.close()
    return max(found)


def _replace(out: Path, folder: Path, previous: Path) -> None:
    if out.exists():
        out.rename(previous)
    folder.rename(out)
    shutil.rmtree(previous, ignore_errors=True)


class _Steps:
    """Counts what is done and tells it."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def next(self, what: str) -> None:
        self._done += 1
        if self._progress:
            self._progress(what, self._done, max(self._total, self._done))
