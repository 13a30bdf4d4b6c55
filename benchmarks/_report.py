"""What every benchmark says of itself (machine, seed, command, versions, commit), and how it writes its JSON."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

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
