"""`python -m tests.faults`: every fault of the list as often as promised, and a page that says what was lost.

Exit status 1 unless nothing was lost, every ledger adds up (captured = committed + spooled + dropped, by reason), and
the stream went on within 5 s of every kill.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.faults.harm import Fault, JumpingClock, faults
from tests.faults.stage import Stage, Verdict

COLUMNS = ("fault", "times", "captured", "committed", "spooled", "dropped", "lost", "unexpected", "resent",
           "connections", "resumed_s", "s", "valid")  # fmt: skip


RESUME_S = 5.0
"""After a kill the stream goes on within so long."""


def row(fault: Fault, times: int, verdict: Verdict, seconds: float) -> str:
    ledger = verdict.ledger
    dropped = ", ".join(f"{reason} {count}" for reason, count in sorted(ledger.dropped.items())) or "0"
    cells = [
        f"{fault.key}: {fault.says}", times, ledger.captured, ledger.committed, ledger.spooled, dropped,
        len(verdict.lost), len(verdict.unexpected), verdict.resent, verdict.connections,
        f"{max(verdict.resumed_s):.1f}" if verdict.resumed_s else "", round(seconds),
        "; ".join(verdict.faults) or "yes",
    ]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", help="faults whose name begins so, such as F7")
    parser.add_argument("--few", action="store_true", help="as often as a test run does them")
    parser.add_argument("--report", type=Path, help="write the page here as well")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    clock = JumpingClock()
    chosen = [fault for fault in faults(clock) if fault.key.startswith(options.only or "")]
    rows, valid = [], True
    columns = (TextColumn("{task.description:14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        total = bar.add_task("faults", total=len(chosen))
        for fault in chosen:
            bar.update(total, description=fault.key)
            times, begun = fault.few if options.few else fault.full, time.perf_counter()
            with (
                tempfile.TemporaryDirectory() as folder,
                Stage(Path(folder), clock=clock, processes=fault.processes) as stage,
            ):
                verdict = stage.play(lambda on, fault=fault, times=times: fault.do(on, times))  # type: ignore[misc]
            rows.append(row(fault, times, verdict, time.perf_counter() - begun))
            valid = valid and not verdict.faults and max(verdict.resumed_s, default=0.0) <= RESUME_S
            bar.advance(total)
    page = "\n".join(
        [
            f"# Faults: {'nothing lost' if valid else 'NOT VALID'}",
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|---" * len(COLUMNS) + "|",
            *rows,
        ]
    )
    print(page)
    if options.report is not None:
        options.report.write_text(page + "\n")
    return 0 if valid else 1


if __name__ == "__main__":
    sys.exit(main())
