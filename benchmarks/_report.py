"""What every benchmark says of itself (machine, seed, command, versions, commit), and how it writes its JSON."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from scene_edge.codec.errors import ConfigError, SceneEdgeError

REPOSITORY = Path(__file__).resolve().parents[1]

PACKAGES = (
    "scene-edge",
    "numpy",
    "av",
    "openvino",
    "onnxruntime",
    "ai-edge-litert",
    "trackers",
    "imageio-ffmpeg",
    "scipy",
)


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, system, and how busy it all was at the start."""
    memory_kb = _first_value(Path("/proc/meminfo"), "MemTotal")
    return {
        "cpu": _first_value(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(int(memory_kb.split()[0]) / 1e6, 1) if memory_kb else None,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def _first_value(path: Path, key: str) -> str:
    """The value of the first `key : value` line; empty where the file or the key is absent (not Linux)."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def versions() -> dict[str, str]:
    """Installed versions of what can move a number."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> dict[str, Any]:
    """The commit that ran, and whether the tree differed from it. Empty outside a git checkout."""
    try:
        head = _git("rev-parse", "HEAD")
        return {"id": head, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {}


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(REPOSITORY), *arguments], check=True, capture_output=True, text=True, timeout=30
    )
    return done.stdout.strip()


def envelope(name: str, *, seed: int | None = None) -> dict[str, Any]:
    """Everything but the results."""
    return {
        "benchmark": name,
        "command": f"python -m benchmarks.{name} {shlex.join(sys.argv[1:])}".strip(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seed": seed,
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
    }


def write_json(path: Path | None, report: Mapping[str, Any]) -> None:
    """Write the report where asked; None writes nothing. The file appears complete or not at all."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(path.suffix + ".part")
    partial.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    partial.replace(path)


def write_all(out: Path, json_file: Path | None, report: Mapping[str, Any]) -> None:
    """Write the report into the folder, and where it was asked for beside."""
    for path in {out / "report.json", json_file} - {None}:
        write_json(path, report)


def peak_memory_mb() -> float:
    """Largest resident set of this process so far, in 10^6 bytes; 0 where the system does not say (not Linux)."""
    value = _first_value(Path("/proc/self/status"), "VmHWM")
    return int(value.split()[0]) * 1024 / 1e6 if value else 0.0


def numbers(text: str) -> list[int]:
    """A comma-separated option, sorted, without repetitions. Raises ConfigError."""
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise ConfigError("not a list of whole numbers", got=text, allowed="such as 27,31,35") from error


def console() -> Console:
    """Where results are printed: as wide as the terminal, and wide enough for any table where it is a file."""
    found = Console()
    return found if found.is_terminal else Console(width=170)


def command(function: Callable[..., None], example: str) -> None:
    """Run `function` as the script's command line; errors of ours are one line and their exit code."""
    app = typer.Typer(add_completion=False)
    app.command(epilog=example)(function)
    try:
        app()
    except SceneEdgeError as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", highlight=False)
        raise SystemExit(error.exit_code) from error
