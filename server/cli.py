"""The server's commands, `serve` and `decode`, as plain typer functions; the `scene-edge` command registers them."""

from __future__ import annotations

import json
import logging
import signal
import threading
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
import yaml

from scene_edge.codec.errors import ConfigError
from scene_edge.server.config import LEVELS, load_config, parse_listen, shown


def serve(
    config: Annotated[Path | None, typer.Option(help="YAML file; see docs/server.md.")] = None,
    broker: Annotated[str | None, typer.Option(help="mqtt://HOST:PORT or mqtts://HOST:PORT")] = None,
    listen: Annotated[str | None, typer.Option(help="HOST:PORT of the page; port 0 takes a free one.")] = None,
    database: Annotated[str | None, typer.Option(help="Database URL, such as sqlite:///scene-edge.db")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the settings that apply, without secrets, and stop.")
    ] = False,
) -> None:
    """Receive, fuse, analyse and store what the cameras send, and show it on a page.

    Example: scene-edge serve --broker mqtt://127.0.0.1:1883 --listen 127.0.0.1:8080
    """
    overrides: dict[str, Any] = {}
    if broker is not None:
        overrides["broker.url"] = broker
    if listen is not None:
        overrides["web.host"], overrides["web.port"] = parse_listen(listen)
    if database is not None:
        overrides["database"] = database
    settings = load_config(config, overrides=overrides)
    if print_config:
        typer.echo(yaml.safe_dump(shown(settings), sort_keys=False), nl=False)
        return
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(LEVELS[settings.log_level]))
    from scene_edge.server.service import Server

    server = Server(settings)
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    server.start()
    typer.echo(f"page: {server.url}  broker: {settings.broker.shown}  database: {_shown(settings.database)}")
    done.wait()
    typer.echo("stopping")
    server.stop()


def decode(
    recording: Annotated[Path, typer.Argument(metavar="IN.mkv", help="A recording made by scene-edge encode.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.mkv", help="Where the pictures go, as lossless FFV1.")],
    lossy: Annotated[bool, typer.Option("--lossy", help="The plain H.264 pictures, without fusion.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write a report; - is standard output.")] = None,
) -> None:
    """Turn a recording into its fused (or with --lossy its plain) video: same frames, same size, lossless.

    Example: scene-edge decode gate.mkv gate.fused.mkv --json report.json
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from scene_edge.server.recording import decode_recording, recorded_frames

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    total = recorded_frames(recording)
    console = Console(stderr=True)
    columns = (TextColumn("decoding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("decoding", total=total)
        report = decode_recording(
            recording, out, lossy=lossy, progress=lambda frames: bar.update(task, completed=frames)
        )
    faults = ", ".join(f"{name} {count}" for name, count in report.faults.items()) or "none"
    kind = f"{report.fused} fused by {report.bundle} on {report.engine}" if report.fused else "plain"
    kind += f", {report.passed} good enough as they are" if report.passed else ""
    size = f"{report.width}x{report.height}"
    summary = f"{out}: {report.frames} frames, {size}, {kind}, {report.fps} frames/s, faults: {faults}"
    to_stdout = json_file is not None and str(json_file) == "-"
    typer.echo(summary, err=to_stdout)
    for note in report.notes:
        typer.echo(f"note: {note}", err=True)
    if json_file is not None:
        write_json(json_file, report.as_json())


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a report; `-` is standard output. Raises ConfigError where that is not possible."""
    text = json.dumps(document, indent=1, sort_keys=True)
    if str(path) == "-":
        typer.echo(text)
        return
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}", got=error.strerror or str(error)) from error


def _shown(url: str) -> str:
    """A database URL without its password."""
    import sqlalchemy as sa

    return sa.engine.make_url(url).render_as_string(hide_password=True)
