"""`python -m tests.load`: what a server bears, against what is asked of it, and a page that says so.

Exit status 1 unless every demand is met. `--cameras` scales all loads for a machine that is busy with other things: the
page says by how much, and what a record costs.

Examples:
  python -m tests.load --report load.md
  python -m tests.load --only L1 --cameras 0.25
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tests.load.loads import LOADS, Load, Outcome, Size


def row(load: Load, size: Size, outcome: Outcome) -> str:
    asked = ", ".join(f"{name}: {'yes' if met else '**NO**'}" for name, met in outcome.demands.items())
    found = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in outcome.figures.items())
    return f"| {load.key}: {load.says} | {size.cameras} | {size.processes} | {asked} | {found} |"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="loads whose name begins so, such as L4")
    parser.add_argument("--few", action="store_true", help="as much as a test run does")
    parser.add_argument("--cameras", type=float, default=1.0, metavar="SHARE", help="this share of the cameras")
    parser.add_argument("--processes", type=int, help="worker processes of the server, in place of each load's own")
    parser.add_argument("--report", type=Path, help="write the page here as well")
    options = parser.parse_args()
    chosen = [load for load in LOADS if load.key.startswith(options.only or "")]
    rows, met = [], True
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:30}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        for load in chosen:
            task = bar.add_task(load.key, total=1.0)

            def step(share: float, what: str, task: object = task, key: str = load.key) -> None:
                bar.update(task, completed=share, description=f"{key}: {what}")  # type: ignore[arg-type]

            size = load.few if options.few else load.full
            cameras = max(2, round(size.cameras * options.cameras))
            size = replace(size, cameras=cameras, processes=options.processes or size.processes)
            outcome = asyncio.run(load.run(size, step))
            bar.update(task, completed=1.0, description=load.key)
            rows.append(row(load, size, outcome))
            met = met and outcome.met
    cores = len(os.sched_getaffinity(0))
    page = "\n".join(
        [
            f"# Load: {'every demand is met' if met else 'NOT every demand is met'}",
            "",
            f"Broker, server and cameras together on {cores} core(s), {platform.machine()}; "
            f"the machine's load was {os.getloadavg()[0]:.1f}.",
            "",
            "| load | cameras | processes | asked | measured |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )
    print(page)
    if options.report is not None:
        options.report.write_text(page + "\n")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
