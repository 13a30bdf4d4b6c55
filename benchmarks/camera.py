"""The camera's share: frames a second, time and CPU of each stage, and memory, against plain x264 in the same run.

    python -m benchmarks.camera --frames 60 --repeats 1

Stages run one after the other on frames that lie ready as raw planes, so that neither a source nor a queue is in the
figures; every run is a process of its own, and the systems take turns, so that a busy machine is busy for all.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import _report
from benchmarks.camera_run import WARM_UP
from benchmarks.clips import find_clips
from benchmarks.systems import CAMERA_SYSTEMS, parts_of
from scene_edge.codec.errors import RunError, SourceError
from scene_edge.codec.media import read_video

EXAMPLE = "Example: python -m benchmarks.camera --clip mot --width 960 --frames 150 --json camera.json"

STAGES = ("scene", "x264", "local decode", "semantics", "(entropy coding)")
"""In the order of a frame's way; entropy coding is a part of semantics."""


def run_apart(**task: Any) -> dict[str, Any]:
    """One run in an interpreter of its own that loads what a camera loads. Raises RunError with its last words."""
    command = [sys.executable, "-m", "benchmarks.camera_run", json.dumps(task)]
    done = subprocess.run(command, cwd=_report.REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RunError(f"the run of {task['system']} failed", got=lines[-1] if lines else f"exit {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def median_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of each number; what is no number is that of the first run."""
    middle: dict[str, Any] = {}
    for key, value in runs[0].items():
        if isinstance(value, dict) and key != "engines":
            middle[key] = median_of([run[key] for run in runs])
        elif isinstance(value, (int, float)):
            middle[key] = round(statistics.median(run[key] for run in runs), 3)
        else:
            middle[key] = value
    return middle


def show(results: dict[str, dict[str, Any]], size: tuple[int, int], crf: int, console: Console) -> None:
    table = Table(title=f"{size[0]}x{size[1]}, CRF {crf}, ms a frame: wall / CPU of all threads", title_justify="left")
    for title in ("system", "frames/s", *STAGES, "total", "x264 x", "RSS MB"):
        table.add_column(title, justify="left" if title == "system" else "right", no_wrap=True)
    plain = results["x264"]["cpu_ms"]["total"]
    for system, run in results.items():
        cells = [
            f"{run['wall_ms'][stage]:.1f} / {run['cpu_ms'][stage]:.1f}" if stage in run["wall_ms"] else "-"
            for stage in (*STAGES, "total")
        ]
        ratio = run["cpu_ms"]["total"] / plain
        table.add_row(system, f"{run['fps']:.1f}", *cells, f"{ratio:.1f}", f"{run['rss_mb']:.0f}")
    console.print(table)


def run(
    clip: Annotated[str, typer.Option(help="Which clip; the first that matches.")] = "mot",
    width: Annotated[int, typer.Option(min=64)] = 960,
    frames: Annotated[int, typer.Option(min=1, help="Frames that count, after a short warm-up.")] = 150,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each system; the median is shown.")] = 3,
    profile: Annotated[str, typer.Option(help="Device profile.")] = "cpu",
    crf: Annotated[int, typer.Option(min=0, max=51, help="Where video is good, SMC does not run: see 26.")] = 40,
    systems: Annotated[str, typer.Option(help="x264 is always among them.")] = ",".join(CAMERA_SYSTEMS),
    zoo: Annotated[Path | None, typer.Option(help="Folder of scene-s and smc-s; default: the shipped ones.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Inference threads; default: the profile's.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
) -> None:
    """Measure the camera side."""
    console = _report.console()
    report = _report.envelope("camera")
    source = find_clips([clip])[0]
    pictures = [planes for planes, _ in read_video(source.path, width=width, limit=frames + WARM_UP)]
    if len(pictures) <= WARM_UP:
        raise SourceError("the clip is too short", got=f"{len(pictures)} frames", allowed=f"more than {WARM_UP}")
    size = pictures[0].width, pictures[0].height
    names = ["x264", *(name for name in systems.split(",") if name != "x264" and parts_of(name))]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frames.yuv"
        with path.open("wb") as file:
            for planes in pictures:
                file.writelines(plane.tobytes() for plane in (planes.y, planes.u, planes.v))
        for turn in range(repeats):
            for name in names:
                console.print(f"run {turn + 1} of {repeats}: {name}", highlight=False)
                task = {"profile": profile, "threads": threads, "path": str(path), "size": size, "fps": source.fps}
                task["crf"] = crf
                task["zoo"] = None if zoo is None else str(zoo.resolve())
                parts = parts_of(name)
                whose = {
                    "scene": parts.scene,
                    "weights": parts.weights,
                    "semantics": parts.semantics,
                    "tune": parts.tune,
                    "bundle": parts.bundle,
                }
                runs[name].append(run_apart(system=name, **whose, **task))
    results = {name: median_of(found) for name, found in runs.items()}
    show(results, size, crf, console)
    report |= {
        "clip": source.name,
        "size": size,
        "profile": profile,
        "crf": crf,
        "repeats": repeats,
        "systems": results,
        "runs": runs,
    }
    _report.write_json(json_file, report)


def main() -> None:
    _report.command(run, EXAMPLE)


if __name__ == "__main__":
    main()
