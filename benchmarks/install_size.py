"""What a camera installs: the wheel is built, put into a fresh virtual environment, and weighed package by package.

    python -m benchmarks.install_size --extra onnx

Fails where a build-side package such as torch has found its way in.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from benchmarks import _report
from scene_edge.codec.errors import RunError

EXAMPLE = "Example: python -m benchmarks.install_size --extra openvino --json install.json"

UNWANTED = ("torch", "torchvision", "onnxscript", "scipy", "opencv-python", "fastapi", "ray")
"""Of the build side or the server: none of it belongs on a camera."""

TOOLS = ("pip", "setuptools")
"""Come with every virtual environment; not counted."""

# Runs in the new environment, with nothing but the standard library.
_WEIGH = """
import json
from importlib.metadata import distributions
found = {}
for package in distributions():
    paths = [path.locate() for path in package.files or []]
    size = sum(path.stat().st_size for path in paths if path.is_file())
    found[package.metadata["Name"].lower()] = {"version": package.version, "bytes": size}
print(json.dumps(found))
"""


def call(*command: str | Path) -> str:
    """Standard output of a command. Raises RunError with its last line of complaint."""
    done = subprocess.run([str(part) for part in command], cwd=_report.REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise RunError(f"{' '.join(map(str, command[:4]))} failed", got=lines[-1] if lines else done.returncode)
    return done.stdout


def weigh(folder: Path, extra: str) -> dict[str, Any]:
    """Build, install into `folder`, and measure. Raises RunError where a step fails."""
    call(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, _report.REPOSITORY)
    wheel = next(folder.glob("scene_edge-*.whl"))
    call(sys.executable, "-m", "venv", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    started = time.monotonic()
    target = f"{wheel}[{extra}]" if extra else str(wheel)
    call(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", target)
    install_s = time.monotonic() - started
    packages = {name: size for name, size in json.loads(call(python, "-c", _WEIGH)).items() if name not in TOOLS}
    return {
        "extra": extra,
        "wheel_bytes": wheel.stat().st_size,
        "install_s": round(install_s, 1),
        "packages": dict(sorted(packages.items(), key=lambda item: -int(item[1]["bytes"]))),
        "total_bytes": sum(size["bytes"] for size in packages.values()),
        "unwanted": sorted(name for name in packages if name in UNWANTED),
        "runs": call(folder / "venv" / "bin" / "scene-edge", "version").strip(),
    }


def run(
    extra: Annotated[str, typer.Option(help="The inference engine's extra: openvino, onnx, litert; empty: none.")] = (
        "openvino"
    ),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
) -> None:
    """Measure the size of the camera's install."""
    report = _report.envelope("install_size")
    with tempfile.TemporaryDirectory() as folder:
        result = weigh(Path(folder), extra)
    table = Table(
        title=f"scene-edge with {extra or 'no engine'}, {result['install_s']} s to install", title_justify="left"
    )
    for title in ("package", "version", "MB"):
        table.add_column(title, justify="right" if title == "MB" else "left")
    for name, size in result["packages"].items():
        table.add_row(name, size["version"], f"{size['bytes'] / 1e6:.1f}")
    table.add_section()
    table.add_row("total", "", f"{result['total_bytes'] / 1e6:.1f}")
    console = _report.console()
    console.print(table)
    console.print(f"wheel {result['wheel_bytes'] / 1e6:.2f} MB; {result['runs']}", highlight=False)
    _report.write_json(json_file, report | result)
    if result["unwanted"]:
        raise RunError("a camera would install what it must not", got=", ".join(result["unwanted"]))


def main() -> None:
    _report.command(run, EXAMPLE)


if __name__ == "__main__":
    main()
