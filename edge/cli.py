"""The camera's commands, `start`, `encode`, `doctor`, `validate` and `profiles`, as plain typer functions."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from scene_edge.codec.errors import ConfigError
from scene_edge.edge.config import PROFILES, CameraConfig, LogConfig, shown

SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as video.crf=28; repeatable.")
]
ProfileOption = Annotated[
    str, typer.Option(envvar="SCENE_EDGE_PROFILE", help=f"Device profile: {', '.join(PROFILES)}.")
]
ConfigOption = Annotated[Path | None, typer.Option(help="YAML file over the profile.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write a report as JSON; - is standard output.")]


def start(
    profile: ProfileOption = "auto",
    config: ConfigOption = None,
    source: Annotated[
        str | None, typer.Option(help="File, testsrc:, street:, rtsp://..., v4l2:/dev/video0, picamera2:0.")
    ] = None,
    camera: Annotated[str | None, typer.Option(help="Camera id in the topics: [A-Za-z0-9_-]{1,64}.")] = None,
    broker: Annotated[str | None, typer.Option(help="mqtt://HOST:PORT or mqtts://HOST:PORT.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Stop after so many captured frames.")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the settings that apply, without secrets, and stop.")
    ] = False,
    settings: SetOption = None,
) -> None:
    """Run a camera: filter, encode, code semantics, publish; until the source ends or it is told to stop.

    Example: scene-edge start --profile cpu --source street.mp4 --broker mqtt://127.0.0.1:1883 --camera gate-1
    """
    overrides = _overrides({"source.url": source, "camera": camera, "mqtt.broker": broker}, settings)
    chosen = _load(profile, config, overrides)
    if print_config:
        typer.echo(yaml.safe_dump(shown(chosen), sort_keys=False), nl=False)
        return
    from scene_edge.edge.camera import Camera, finish
    from scene_edge.edge.logs import configure_logging

    configure_logging(chosen.log)
    running = Camera(chosen, frames=frames)

    def end(number: int, _frame: object) -> None:
        running.stop()
        signal.signal(number, signal.SIG_DFL)  # a second one ends us at once

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    report = finish(running)
    typer.echo(f"{report.ledger.committed} of {report.ledger.captured} frames committed", err=True)


def encode(
    source: Annotated[str, typer.Argument(metavar="IN", help="A video file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.mkv", help="The recording; it appears when it is complete.")],
    profile: ProfileOption = "auto",
    config: ConfigOption = None,
    width: Annotated[int | None, typer.Option(min=32, max=8192, help="Scale wider pictures down to this.")] = None,
    crf: Annotated[int | None, typer.Option(min=0, max=51, help="Constant quality.")] = None,
    bitrate: Annotated[int | None, typer.Option(min=8, metavar="KBPS", help="Target rate instead of --crf.")] = None,
    no_scene: Annotated[bool, typer.Option("--no-scene", help="Leave out the filter.")] = False,
    no_semantics: Annotated[bool, typer.Option("--no-semantics", help="Leave out the semantic stream.")] = False,
    frames: Annotated[int | None, typer.Option(min=1, help="Only the first so many frames.")] = None,
    settings: SetOption = None,
    json_file: JsonOption = None,
) -> None:
    """Code a video file into a self-contained recording: H.264 for every player, semantics inside it as SEI.

    Example: scene-edge encode street.mp4 street.mkv --width 960 --crf 30 --json report.json
    """
    if crf is not None and bitrate is not None:
        raise ConfigError("--crf and --bitrate exclude each other", got=f"--crf {crf} --bitrate {bitrate}")
    values: dict[str, Any] = {"video.width": width, "video.crf": crf, "video.bitrate_kbps": bitrate}
    if crf is not None:
        values["video.bitrate_kbps"] = "null"
    values["scene.enabled"] = "false" if no_scene else None
    values["semantics.enabled"] = "false" if no_semantics else None
    chosen = _load(profile, config, _overrides(values, settings))
    from scene_edge.edge.recording import encode_recording

    total = frames or _frames_in(source)
    with _progress() as bar:
        task = bar.add_task("encode", total=total or None)
        report = encode_recording(source, out, chosen, lambda done: bar.update(task, completed=done), frames)
    for note in (*report.notes, *(f"degraded: {reason}" for reason in report.degraded)):
        typer.echo(f"note: {note}", err=True)
    for fault, count in report.faults.items():
        typer.echo(f"survived: {fault} x {count}", err=True)
    if json_file is not None:
        write_json(json_file, report.as_json())
    sizes = ", ".join(f"{name} {count}" for name, count in report.bytes.items())
    typer.echo(
        f"{out}: {report.frames} frames at {report.fps:.1f} frames/s; bytes: {sizes}", err=json_file == Path("-")
    )


def doctor(
    profile: ProfileOption = "auto",
    config: ConfigOption = None,
    broker: Annotated[str | None, typer.Option(help="mqtt://HOST:PORT or mqtts://HOST:PORT.")] = None,
    settings: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print findings as JSON.")] = False,
) -> None:
    """Examine this machine: devices, clock, a trial encode, a real inference per engine, bundles, broker.

    Exit status 1 if a finding is a failure. Example: scene-edge doctor --profile cpu --json
    """
    chosen = _load(profile, config, _overrides({"mqtt.broker": broker}, settings))
    from scene_edge.edge.doctor import Finding, examine, exit_status

    findings: list[Finding] = []
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    console = Console()
    for finding in examine(chosen):
        findings.append(finding)
        if not as_json:
            console.print(f"[{colours[finding.level]}]{finding.level:5}[/]", end="")
            console.print(f"{finding.code}: {finding.sentence}", markup=False, highlight=False)
            if finding.command:
                console.print(f"     next: {finding.command}", markup=False, highlight=False)
    status = exit_status(findings)
    if as_json:
        document = {
            "ok": status == 0,
            "profile": chosen.profile,
            "findings": [
                {"code": item.code, "level": item.level, "sentence": item.sentence, "command": item.command}
                for item in findings
            ],
        }
        typer.echo(json.dumps(document, indent=2))
    raise typer.Exit(status)


def validate(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="A camera's YAML file.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of such a file instead.")] = False,
) -> None:
    """Check a configuration file; an error names its line.

    Examples: scene-edge validate camera.yaml; scene-edge validate --schema > camera.schema.json
    """
    from scene_edge.edge.settings import json_schema, validate_file

    if schema:
        typer.echo(json_schema())
        return
    if file is None:
        raise ConfigError("validate wants a file, or --schema", hint="For example: scene-edge validate camera.yaml")
    config = validate_file(file)
    typer.echo(f"{file}: good (camera {config.camera}, profile {config.profile})")


def profiles(
    show: Annotated[str | None, typer.Option(help="Print this profile's commented YAML.")] = None,
) -> None:
    """List the device profiles, and which of them `auto` means on this board.

    Examples: scene-edge profiles; scene-edge profiles --show rpi5 > camera.yaml
    """
    from scene_edge.edge.board import detect_profile
    from scene_edge.edge.settings import load_config, profile_text

    if show is not None:
        if show not in PROFILES:
            raise ConfigError("no such profile", got=show, allowed=", ".join(PROFILES))
        typer.echo(profile_text(show), nl=False)
        return
    table = Table("profile", "inference", "H.264", "rate", "width", "source")
    table.title = f"auto is {detect_profile()} on this board"
    for name in PROFILES:
        config = load_config(name, environment={})
        video = config.video
        encoders = video.candidates if video.encoder == "auto" else (video.encoder,)
        rate = f"crf {video.crf}" if video.bitrate_kbps is None else f"{video.bitrate_kbps} kbit/s"
        label = f"auto ({config.profile})" if name == "auto" else name
        width = str(video.width or "source's")
        table.add_row(label, ", ".join(config.scene.engines), ", ".join(encoders), rate, width, config.source.url)
    Console().print(table)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """A report to a file, or to standard output for `-`. Raises ConfigError where it cannot be written."""
    text = json.dumps(document, indent=2)
    if path == Path("-"):
        typer.echo(text)
        return
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}", got=error.strerror) from error


def _load(profile: str, config: Path | None, overrides: list[str]) -> CameraConfig:
    from scene_edge.edge.logs import configure_logging
    from scene_edge.edge.settings import load_config

    configure_logging(LogConfig())
    return load_config(profile, config, overrides)


def _overrides(values: dict[str, Any], settings: list[str] | None) -> list[str]:
    """Options that were given, then --set, which has the last word."""
    return [f"{key}={value}" for key, value in values.items() if value is not None] + (settings or [])


def _frames_in(source: str) -> int:
    """How many frames the container claims; 0 where it does not say or cannot be read (encode says why)."""
    from scene_edge.codec.errors import SourceError
    from scene_edge.codec.media import probe

    try:
        return probe(source).frames
    except SourceError:
        return 0


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
