"""The `scene-edge` command: gathers the parts' commands, importing only the part that is called."""

from __future__ import annotations

import importlib
import json
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from scene_edge import __version__
from scene_edge.codec.errors import BundleError, SceneEdgeError, UsageError

# name -> (module, function, its line in the overview, which stands here so that --help imports no part)
PARTS: dict[str, tuple[str, str, str]] = {
    "demo": ("scene_edge.demo", "demo", "Camera, broker, server and page on this machine."),
    "start": ("scene_edge.edge.cli", "start", "Run a camera."),
    "serve": ("scene_edge.server.cli", "serve", "Run the server and its page."),
    "encode": ("scene_edge.edge.cli", "encode", "Code a video file into a self-contained recording."),
    "decode": ("scene_edge.server.cli", "decode", "Turn a recording into its fused or plain video."),
    "doctor": ("scene_edge.edge.cli", "doctor", "Examine this machine and say what to do next."),
    "bench": ("scene_edge.bench", "bench", "Measure each stage on this board."),
    "validate": ("scene_edge.edge.cli", "validate", "Check a camera's configuration file."),
    "profiles": ("scene_edge.edge.cli", "profiles", "List the device profiles."),
    "train": ("scene_edge.models.cli", "train", "Train a network (extra: train)."),
    "quantize": ("scene_edge.quantize.cli", "quantize", "Quantise a network into a bundle (extra: train)."),
}

# Commands of commands: name -> (module, function that makes the application, its line in the overview).
GROUPS: dict[str, tuple[str, str, str]] = {
    "fleet": ("scene_edge.server.fleet_cli", "fleet_app", "Certificates and broker settings of many cameras."),
}

# The extra that brings a package, by the top of its import name.
EXTRAS = {
    **dict.fromkeys(("torch", "onnx", "onnxscript", "scipy"), "train"),
    **dict.fromkeys(("fastapi", "starlette", "uvicorn", "sqlalchemy", "trackers", "psutil", "PIL"), "server"),
    "amqtt": "demo",
    "openvino": "openvino",
    "onnxruntime": "onnx",
    "ai_edge_litert": "litert",
}

INTERRUPTED = 130
_SETTING = re.compile(r"[a-z][a-z0-9_.]*=.*", re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, 2 for usage and bad input, 1 for a failure at run time."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """The exit code; an error is one line on stderr, with `--debug` after its traceback."""
    words = [word for word in arguments if word != "--debug"]
    debug = len(words) != len(arguments)
    words = spread_settings(words) or ["--help"]
    try:
        return int(build(command_of(words))(words, standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except SceneEdgeError as error:
        return _fail(error, str(error), error.exit_code, debug)
    except ModuleNotFoundError as error:
        top = (error.name or "").partition(".")[0]
        if top not in EXTRAS:
            return _fail(error, f"internal: {error}", 1, debug)
        text = f"this command needs the package {top}. pip install 'scene-edge[{EXTRAS[top]}]'"
        return _fail(error, text, UsageError.exit_code, debug)
    except Exception as error:
        if hasattr(error, "format_message"):
            # click's errors: typer carries its own copy of click in some releases and needs the real one in others.
            return _fail(error, _click_text(error), UsageError.exit_code, debug)
        return _fail(error, f"internal: {type(error).__name__}: {error} (--debug shows where)", 1, debug)


def build(command: str | None) -> typer.Typer:
    """The application. Only `command` is really there; the others are lines in the overview."""
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help="Machine-vision cameras that send meaning beside a thin H.264 stream.",
        epilog="Example: scene-edge demo --seconds 20. Any command takes --help, and --debug for a traceback.",
    )
    for name, (module, function, line) in PARTS.items():
        callback: Callable[..., Any] = _never
        if name == command:
            callback = getattr(importlib.import_module(module), function)
        app.command(name, short_help=line)(callback)
    for name, (module, function, line) in GROUPS.items():
        if name == command:
            app.add_typer(getattr(importlib.import_module(module), function)(), name=name, short_help=line)
        else:
            app.command(name, short_help=line)(_never)
    app.add_typer(models_app(), name="models", short_help="List, show and verify model bundles.")
    app.command("version", short_help="Print the version.")(version)
    app.callback()(_root)
    return app


def command_of(words: Sequence[str]) -> str | None:
    """The sub-command that is called: the first word that is no option."""
    return next((word for word in words if not word.startswith("-")), None)


def spread_settings(words: Sequence[str]) -> list[str]:
    """`--set a=1 b=2` as `--set a=1 --set b=2`.

    >>> spread_settings(["start", "--set", "video.crf=30", "video.gop=15", "--frames", "9"])
    ['start', '--set', 'video.crf=30', '--set', 'video.gop=15', '--frames', '9']
    """
    out: list[str] = []
    in_settings = False
    for word in words:
        if in_settings and out[-1] != "--set" and _SETTING.fullmatch(word):
            out.append("--set")
        elif word.startswith("-") or (in_settings and out[-1] != "--set"):
            in_settings = word == "--set"
        out.append(word)
    return out


def version() -> None:
    """Print the version.

    Example: scene-edge version
    """
    typer.echo(f"scene-edge {__version__}")


def models_app() -> typer.Typer:
    app = typer.Typer(
        no_args_is_help=False,
        rich_markup_mode=None,
        help="Look at model bundles, shipped ones by name and others by path.",
        epilog="Example: scene-edge models verify smc-s",
    )
    app.command("list")(models_list)
    app.command("show")(models_show)
    app.command("verify")(models_verify)
    return app


def models_list(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """The bundles that are installed with this package.

    Example: scene-edge models list
    """
    from scene_edge.codec.bundle import Bundle, shipped_bundles

    bundles = [Bundle.open(name) for name in shipped_bundles()]
    if as_json:
        typer.echo(json.dumps([_summary(bundle) for bundle in bundles], indent=2))
        return
    table = Table("name", "kind", "version", "digest", "MB", "artifacts")
    for bundle in bundles:
        summary = _summary(bundle)
        size_mb = f"{summary['bytes'] / 1e6:.2f}"
        cells = [str(summary[key]) for key in ("name", "kind", "version", "digest")]
        table.add_row(*cells, size_mb, ", ".join(summary["artifacts"]))
    Console().print(table)


def models_show(bundle: Annotated[str, typer.Argument(help="A shipped bundle's name, or a bundle folder.")]) -> None:
    """A bundle's whole manifest as JSON, with its training record and quantisation report.

    Example: scene-edge models show smc-s
    """
    from scene_edge.codec.bundle import Bundle

    opened = Bundle.open(bundle)
    typer.echo(json.dumps({"digest": opened.digest.hex(), **opened.manifest}, indent=2))


def models_verify(
    bundles: Annotated[list[str] | None, typer.Argument(help="Names or folders; without any, all shipped.")] = None,
    key: Annotated[Path | None, typer.Option(help="Ed25519 public key (32 bytes or 64 hex digits).")] = None,
) -> None:
    """Check manifest, digests and, with a key, the signature; exit code 2 if a bundle is not what it says.

    Example: scene-edge models verify smc-s scene-s
    """
    from scene_edge.codec.bundle import Bundle, shipped_bundles

    public_key = _read_key(key) if key is not None else None
    for name in bundles or shipped_bundles():
        opened = Bundle.open(name, public_key=public_key)
        typer.echo(f"{opened.name} {opened.version} {opened.digest.hex()[:16]} {'signed' if opened.signed else 'good'}")


def _summary(bundle: Any) -> dict[str, Any]:
    artifacts = {f"{item.engine} {item.precision}" for graph in bundle.graphs.values() for item in graph.artifacts}
    return {
        "name": bundle.name,
        "kind": bundle.kind,
        "version": bundle.version,
        "digest": bundle.digest.hex()[:16],
        "bytes": sum(entry.size_bytes for entry in bundle.files.values()),
        "artifacts": sorted(artifacts),
    }


def _read_key(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read key {path}", got=error.strerror) from error
    text = raw.strip()
    return bytes.fromhex(text.decode()) if re.fullmatch(rb"[0-9a-fA-F]{64}", text) else raw


def _root() -> None:
    """Machine-vision cameras that send meaning beside a thin H.264 stream."""


def _never() -> None:
    raise UsageError("this command was not loaded")


def _click_text(error: Any) -> str:
    text = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{text}. See: {context.command_path} --help" if context is not None else text


def _fail(error: BaseException, text: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    print("error: " + " ".join(text.split()), file=sys.stderr)
    return code
