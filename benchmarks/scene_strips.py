"""SCENE's filter over a whole picture, and over strips of it that stay in a cache, with the overlap that they need.

    python -m benchmarks.scene_strips --size 1920x1080 --threads 1

A strip must reach as many rows of the packed grid beyond its own as the filter's convolutions do, one for each of them;
those rows are computed twice. Runs take turns, so that a busy machine is busy for all; CPU time is that of all threads.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import track
from rich.table import Table

from benchmarks import _report
from benchmarks.network_cost import parse_sizes
from scene_edge.codec.bundle import Bundle
from scene_edge.codec.planes import aligned
from scene_edge.inference.session import Session, open_session

EXAMPLE = "Example: python -m benchmarks.scene_strips --size 1920x1080 --strips 1,2,4,8"

REACH = 6
"""Rows of the packed grid: the filter is six convolutions of 3x3 deep."""

console = _report.console()


def run(
    size: Annotated[str, typer.Option(help="Of pictures, in luma samples.")] = "1920x1080",
    strips: Annotated[str, typer.Option(help="Into how many the picture is cut.")] = "1,2,4,8",
    threads: Annotated[int, typer.Option(min=1, help="Inference threads.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Pictures.")] = 25,
    bundle: Annotated[str, typer.Option(help="A SCENE bundle.")] = "scene-s",
    engine: Annotated[str, typer.Option(help="Which engine.")] = "openvino",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
) -> None:
    """Time the filter on a picture in one piece and in strips."""
    report = _report.envelope("scene_strips")
    ((width, height),) = parse_sizes(size)
    rows, columns = aligned(height) // 4, aligned(width) // 4
    opened = Bundle.open(bundle)
    sessions: dict[int, Session] = {}
    for count in _report.numbers(strips):
        tall = rows if count == 1 else -(-rows // count) + 2 * REACH
        sessions[count] = open_session(
            opened, "filter", height=tall, width=columns, prefer=[engine], threads=threads, verify=False
        )
    spent: dict[int, list[tuple[float, float]]] = {count: [] for count in sessions}
    pictures = {
        count: np.random.default_rng(0).integers(0, 256, session.inputs["x"].shape, dtype=np.uint8)
        for count, session in sessions.items()
    }
    for _ in track(range(runs), "runs", console=console, transient=True):
        for count, session in sessions.items():
            began, cpu = time.perf_counter(), time.process_time()
            for _ in range(count):
                session.run({"x": pictures[count]})
            spent[count].append((1000 * (time.perf_counter() - began), 1000 * (time.process_time() - cpu)))
    found = []
    table = Table("strips", "rows of each", "ms p50", "CPU ms p50", "CPU ms, least", title=f"{bundle} at {size}")
    for count, times in spent.items():
        wall, cpu_ms = np.array(times).T
        tall = sessions[count].inputs["x"].shape[1]
        row: dict[str, Any] = {"strips": count, "rows": tall, "ms_p50": float(np.median(wall))}
        row |= {"cpu_ms_p50": float(np.median(cpu_ms)), "cpu_ms_least": float(cpu_ms.min())}
        found.append(row)
        table.add_row(str(count), str(tall), *(f"{row[key]:.1f}" for key in ("ms_p50", "cpu_ms_p50", "cpu_ms_least")))
    console.print(table)
    for key in ("machine", "command"):
        console.print(f"{key}: {report[key]}", highlight=False, soft_wrap=True)
    _report.write_json(json_file, report | {"rows": found})


def main() -> None:
    _report.command(run, EXAMPLE)


if __name__ == "__main__":
    main()
