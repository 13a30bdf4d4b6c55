"""`scene-edge quantize`: from a training run to a bundle of INT8 artefacts, with a measured report on the console."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scene_edge.codec.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from scene_edge.quantize.report import QuantisationReport, TrainingReport


class Engine(str, Enum):
    """What a bundle can be made for."""

    openvino = "openvino"
    onnx = "onnx"
    litert = "litert"
    tensorrt = "tensorrt"


class Method(str, Enum):
    """Post-training quantisation, or quantisation-aware training of the weights before it."""

    ptq = "ptq"
    qat = "qat"


def quantize(
    model: Annotated[
        str, typer.Argument(help="A model's name (smc-s, scene-s, ...) or the folder of its training run.")
    ],
    engine: Annotated[
        list[Engine] | None, typer.Option(help="Repeat for several. Default: openvino, onnx, litert.")
    ] = None,
    method: Annotated[
        Method, typer.Option(help="qat: train the weights in INT8 before, with the float network as teacher.")
    ] = Method.ptq,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each graph with --method qat.")] = 300,
    calibration: Annotated[Path, typer.Option(help="Folder with train/ clips to calibrate on.")] = Path(
        "../shared/data"
    ),
    out: Annotated[Path | None, typer.Option(help="Folder of the bundle. Default: models/zoo/NAME.")] = None,
    runs: Annotated[Path, typer.Option(help="Where training runs lie, for a model given by name.")] = Path("runs"),
    cache: Annotated[Path, typer.Option(help="Decoded training clips, as `scene-edge train` keeps them.")] = Path(
        "runs/cache"
    ),
    max_error: Annotated[
        float, typer.Option(min=0.0, help="Largest relative RMS error of any output before it is refused.")
    ] = 0.5,
    version: Annotated[str, typer.Option(help="Version of the bundle.")] = "0.1.0",
    json_: Annotated[Path | None, typer.Option("--json", help="Write the report here as well.")] = None,
) -> None:
    """Quantise a trained model to INT8 for each engine and write it as a bundle, unless it loses too much.

    LiteRT needs litert-torch, which lives in an environment of its own: name its python in SCENE_EDGE_LITERT_PYTHON.

    Example: scene-edge quantize smc-s --engine openvino --calibration ../shared/data --out models/zoo/smc-s

    Example: scene-edge quantize smc-s --method qat --steps 300 --calibration ../shared/data
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from scene_edge.quantize.export import DEFAULT_ENGINES, export_bundle

    name, run, build = _resolve(model, runs)
    if not calibration.is_dir():
        raise ConfigError(
            "no such folder with clips", got=str(calibration), hint="Give --calibration a folder with train/."
        )
    target = out or Path("models") / "zoo" / name
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"{name}: calibration samples", total=None)

        def show(what: str, step: int, steps: int) -> None:
            bar.update(task, description=what, completed=step - 1, total=steps)

        export = build(run, calibration, cache)
        report = export_bundle(
            export.graphs,
            name=export.name,
            kind=export.kind,
            version=version,
            counter=_next_counter(target),
            parameters=export.parameters,
            training=export.training,
            out=target,
            engines=[item.value for item in engine] if engine else DEFAULT_ENGINES,
            extra_files=export.extra_files,
            max_error=max_error,
            qat_steps=steps if method is Method.qat else 0,
            progress=show,
        )
        bar.update(task, description=f"{name}: {method.value} done", completed=bar.tasks[0].total)
    Console().print(_table(report))
    for graph, training in report.training.items():
        typer.echo(f"{graph}, trained: {_change(training)}")
    typer.echo(f"{target}: {sum(path.stat().st_size for path in target.iterdir()) / 1e6:.1f} MB")
    if json_ is not None:
        json_.write_text(json.dumps(report.as_dict(), indent=1))


def _resolve(model: str, runs: Path) -> tuple[str, Path, Callable[[Path, Path, Path], Any]]:
    """Name, run folder and export of a model given by its name or by the folder of its run (runs/smc is smc-s)."""
    from scene_edge.models.registry import EXPORTS
    from scene_edge.models.task_exports import TASK_EXPORTS

    exports = {**EXPORTS, **TASK_EXPORTS}
    folder = Path(model)
    if folder.is_dir():
        names = [name for name in exports if folder.name in (name, name.rpartition("-")[0], name.rpartition("-")[2])]
        if len(names) == 1:
            return names[0], folder, exports[names[0]]
        raise ConfigError("cannot tell which model the run is of", got=model, allowed=", ".join(sorted(exports)))
    if model not in exports:
        raise ConfigError("no such model or run", got=model, allowed=f"a run's folder, or {', '.join(sorted(exports))}")
    run = next((runs / part for part in (model, model.partition("-")[0]) if (runs / part).is_dir()), runs / model)
    return model, run, exports[model]


def _next_counter(target: Path) -> int:
    """One more than the bundle that is replaced: cameras refuse to go back."""
    from scene_edge.codec.bundle import MANIFEST_FILE, Bundle

    return Bundle.open(target).counter + 1 if (target / MANIFEST_FILE).is_file() else 1


def _change(training: TrainingReport) -> str:
    outputs = [f"{name} {training.before[name]:.4f} -> {error:.4f}" for name, error in training.after.items()]
    return ", ".join(outputs) + ("" if training.taken else "; no better, so left as it was")


def _table(report: QuantisationReport) -> Table:
    from rich.table import Table

    table = Table(box=None)
    table.add_column("file", no_wrap=True)
    for title in ("kB", "CPU ms", "at", "worst output", "error", "latent differs"):
        table.add_column(title)
    for item in report.artifacts:
        output, relative = item.worst
        size = f"{item.grid[1] * 4}x{item.grid[0] * 4}" if item.grid else "-"
        mismatch = "-" if item.latent_mismatch is None else f"{item.latent_mismatch:.2%}"
        file = item.file if item.shipped else f"({item.file})"
        table.add_row(
            file, f"{item.size_bytes / 1000:.0f}", f"{item.cpu_ms:.2f}", size, output, f"{relative:.4f}", mismatch
        )
    return table
