"""`scene-edge bench`: what each stage takes on this very board, which engine is fastest, which stage is the limit."""

from __future__ import annotations

import re
import signal
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from scene_edge.broker import LocalBroker
from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import ConfigError, SceneEdgeError, TransportError, UsageError
from scene_edge.edge.bench import CameraBench
from scene_edge.edge.bench_report import Limit, limit_of, machine
from scene_edge.edge.choice import ChoiceCache, Chosen, choose, usual_size
from scene_edge.edge.cli import ConfigOption, JsonOption, ProfileOption, SetOption, write_json
from scene_edge.edge.config import CameraConfig, LogConfig
from scene_edge.edge.logs import configure_logging
from scene_edge.edge.networks import open_bundle
from scene_edge.edge.settings import load_config
from scene_edge.inference.roofline import Peaks, measure_peaks
from scene_edge.inference.session import DEFAULT_ENGINES, ENGINE_MODULES
from scene_edge.inference.stages import SERVER_STAGES, STAGES, Advance, StageRow, candidates

CAMERA_NETWORKS = {"scene": "scene", "smc_encode": "semantics"}
"""Stage -> its section of the settings."""

NETWORK_STAGES = (*CAMERA_NETWORKS, "smc_decode", "detect", "act")

_SIZE = re.compile(r"(\d{2,4})x(\d{2,4})")


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was measured, and what follows from it."""

    machine: dict[str, Any]
    peaks: Peaks
    rows: list[StageRow]
    chosen: dict[str, Chosen | None]
    stored: bool
    limit: Limit | None

    def as_json(self) -> dict[str, Any]:
        choice = {
            stage: None
            if found is None
            else {"engine": found.engine, "precision": found.precision, "ms": found.ms, "why": found.why}
            for stage, found in self.chosen.items()
        }
        return {
            "machine": {**self.machine, "peaks": self.peaks.as_json()},
            "stages": [row.as_json() for row in self.rows],
            "choice": choice,
            "choice_stored": self.stored,
            "limit": self.limit.as_json() if self.limit else None,
        }


def measure(
    config: CameraConfig,
    size: tuple[int, int],
    frames: int,
    engines: Sequence[str] | None = None,
    advance: Advance = lambda _: None,
) -> Report:
    """Camera, then server where it is installed, on up to `frames` pictures of the configured source.

    The verdict on engines is kept for this board (edge/choice.py) unless `engines` left some out. Raises SourceError
    for a source without pictures; a stage that fails is listed with its reason.
    """
    tried = tuple(ENGINE_MODULES) if engines is None else tuple(engines)
    peaks = measure_peaks(_precisions(config), config.semantics.threads)
    advance("peaks of this machine")
    camera = CameraBench(config, size, frames, peaks, advance)
    with ExitStack() as stack:
        camera.run(tried, _broker(stack))
    rows = camera.rows + _server_rows(config, camera, peaks, tried, advance)
    orders = {stage: getattr(config, section).named_engines for stage, section in CAMERA_NETWORKS.items()}
    chosen = {
        stage: choose([row for row in rows if row.stage == stage], orders.get(stage, DEFAULT_ENGINES))
        for stage in NETWORK_STAGES
    }
    stored = engines is None and _store(config, size, chosen)
    return Report(machine(config), peaks, rows, chosen, stored, limit_of(rows, config, chosen))


def bench(
    profile: ProfileOption = "auto",
    config: ConfigOption = None,
    source: Annotated[str, typer.Option(help="A video file or a source URL.")] = "street:",
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Picture size. Default: what the profile works at.")
    ] = None,
    frames: Annotated[int, typer.Option(min=1, max=10_000, help="Pictures that each stage is measured on.")] = 60,
    engine: Annotated[
        list[str] | None, typer.Option(help=f"Only this engine; repeatable: {', '.join(ENGINE_MODULES)}.")
    ] = None,
    settings: SetOption = None,
    json_file: JsonOption = None,
) -> None:
    """Measure each stage on this very board: ms, frames/s, and how near the silicon's limit it runs.

    Every engine and precision that the bundles ship is tried; the fastest whose output is right is remembered, and a
    camera whose engines are `auto` takes it from then on.

    Examples: scene-edge bench; scene-edge bench --size 1280x720 --frames 100 --json bench.json; scene-edge bench
    --source street.mp4 --engine openvino --engine onnx
    """
    configure_logging(LogConfig(level="error"))
    unknown = [name for name in engine or () if name not in ENGINE_MODULES]
    if unknown:
        raise UsageError("no such engine", got=", ".join(unknown), allowed=", ".join(ENGINE_MODULES))
    asked = None if size is None else parse_size(size)
    place = [f"source.url={source}", "source.pace=asap"]
    place += [] if asked is None else [f"source.width={asked[0]}", f"source.height={asked[1]}"]
    loaded = load_config(profile, config, [*place, *(settings or [])])
    console = _console(json_file == Path("-"))
    # Told to end, we end as after Ctrl-C: the broker that runs beside us ends first.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        report = _measure_with_progress(loaded, asked or usual_size(loaded), frames, engine or None)
    finally:
        signal.signal(signal.SIGTERM, before)
    show(report, console)
    if json_file is not None:
        write_json(json_file, report.as_json())


def _measure_with_progress(
    config: CameraConfig, size: tuple[int, int], frames: int, engines: Sequence[str] | None
) -> Report:
    with _progress() as bar:
        task = bar.add_task("peaks of this machine", total=len(STAGES) + 1)
        return measure(config, size, frames, engines, _mover(bar, task))


def parse_size(text: str) -> tuple[int, int]:
    """ "960x540" -> (960, 540). Raises ConfigError for anything but even sides from 32 to 8192."""
    found = _SIZE.fullmatch(text)
    sides = (int(found[1]), int(found[2])) if found else (0, 0)
    if not all(32 <= side <= 8192 and side % 2 == 0 for side in sides):
        raise ConfigError("not a picture size", got=text, allowed="WxH, such as 960x540, even, 32..8192")
    return sides


def show(report: Report, console: Console) -> None:
    """The table, the peaks, the verdicts and the limit."""
    first = report.rows[0]
    title = f"{first.width}x{first.height} on {report.machine['board']}, {report.machine['cores']} cores"
    table = Table(title=title, title_justify="left")
    for name in ("stage", "model", "engine", "precision"):
        table.add_column(name, no_wrap=name != "model")
    for name in ("ms p50", "ms p95", "frames/s", "x roofline"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.rows:
        numbers = (row.ms_p50, row.ms_p95, row.fps, row.peak_ratio)
        cells = ["-" if value is None else f"{value:,.2f}" for value in numbers]
        table.add_row(row.stage, row.model, row.engine or "-", row.precision or "-", *cells)
    console.print(table)
    for row in report.rows:
        if row.reason:
            where = " ".join(filter(None, (row.stage, row.engine, row.precision)))
            console.print(f"{where} did not run: {row.reason}", highlight=False, markup=False, style="yellow")
    peaks = report.peaks.as_json()
    rates = [f"{item['engine']} {item['precision']} {item['gops_per_s']:g} GOP/s" for item in peaks["gops_per_s"]]
    rates.append(f"memory {peaks['copy_gbytes_per_s']:g} GB/s")
    console.print(f"peaks at {peaks['threads']} threads: {', '.join(rates)}", highlight=False)
    for stage, found in report.chosen.items():
        if found is not None:
            console.print(f"{stage}: {found.why}", highlight=False)
        elif any(row.stage == stage and row.ms_p50 is not None for row in report.rows):
            console.print(f"{stage}: nothing that ran proved itself by a golden run: none is chosen", highlight=False)
    if report.stored:
        console.print("remembered for cameras whose engines are auto; scene-edge doctor shows it", highlight=False)
    if report.limit is not None:
        console.print(report.limit.sentence, highlight=False)


def _broker(stack: ExitStack) -> tuple[str, str] | str:
    """A broker for as long as `stack` is open, as (kind, URL); or why there is none."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scene-edge-bench-")))
    try:
        broker = stack.enter_context(LocalBroker(folder))
    except TransportError as error:
        return str(error)
    return broker.kind, broker.url


def _server_rows(
    config: CameraConfig, camera: CameraBench, peaks: Peaks, engines: Sequence[str], advance: Advance
) -> list[StageRow]:
    size, material = (camera.rows[0].width, camera.rows[0].height), camera.material

    def none(reason: str) -> list[StageRow]:
        return [StageRow(stage, "", "", None, *size, reason=reason) for stage in SERVER_STAGES]

    try:
        from scene_edge.server.bench import Received, ServerBench
    except ModuleNotFoundError as error:
        return none(f"the server is not installed: no package {error.name}. pip install 'scene-edge[server]'")
    if not material.pictures:
        return none("nothing to measure it on: no picture was decoded")
    try:
        bundle = open_bundle(config, config.semantics.bundle)
    except SceneEdgeError as error:
        return none(str(error))
    server = ServerBench(Received(material.pictures, material.packets, material.fps, bundle), peaks, advance)
    server.run(engines)
    return server.rows


def _precisions(config: CameraConfig) -> list[tuple[str, str]]:
    """(engine, precision) of all that could run a network of the camera: the silicon's peak is that of the best, also
    where others are measured."""
    found: list[tuple[str, str]] = []
    for section in CAMERA_NETWORKS.values():
        if (bundle := _bundle(config, section)) is not None:
            for graph in bundle.graphs:
                found += candidates(bundle, graph, tuple(ENGINE_MODULES))
    return list(dict.fromkeys(found))


def _bundle(config: CameraConfig, section: str) -> Bundle | None:
    """None for what cannot be opened: its stage's row says why."""
    try:
        return open_bundle(config, getattr(config, section).bundle)
    except SceneEdgeError:
        return None


def _store(config: CameraConfig, size: tuple[int, int], chosen: dict[str, Chosen | None]) -> bool:
    """Whether any verdict of the camera's networks was written."""
    cache, written = ChoiceCache(), False
    for stage, section in CAMERA_NETWORKS.items():
        found, bundle = chosen[stage], _bundle(config, section)
        if found is not None and bundle is not None:
            written |= cache.put(bundle, *size, getattr(config, section).threads, found)
    return written


def _console(stderr: bool) -> Console:
    """As wide as the terminal, and wide enough for the table where there is none."""
    found = Console(stderr=stderr)
    return found if found.is_terminal else Console(stderr=stderr, width=120)


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _mover(bar: Progress, task: TaskID) -> Advance:
    """A step is a stage, however many engines it is measured on."""

    def move(done: str) -> None:
        stage = done.partition(" ")[0]
        bar.update(task, description=done, completed=STAGES.index(stage) + 2 if stage in STAGES else 1)

    return move
