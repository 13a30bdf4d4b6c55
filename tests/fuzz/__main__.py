"""`python -m tests.fuzz`: mutants through every parser, with a progress bar and a page of what came of it.

Everything is repeatable: the same --seed makes the same mutants. Exit status 1 if anything but the errors that a parser
may raise came out; what did it lies in --crashes.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.fuzz.decoders import decoder_targets
from tests.fuzz.engine import CORPUS, MEMORY_BYTES, Tally, Target, cap_memory, keep, storm
from tests.fuzz.headers import header_targets

HEADER, DECODE = 10_000_000, 200_000


def shares(targets: list[Target], total: int) -> list[int]:
    """How many mutants each target gets, by weight; at least one."""
    weights = sum(target.weight for target in targets)
    return [max(1, round(total * target.weight / weights)) for target in targets]


def run(header: int, decode: int, seed: int, only: str | None) -> list[Tally]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.getLogger("libav").setLevel(logging.CRITICAL + 1)
    shelf = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=shelf) as folder:
        groups = [(header_targets(), header), (decoder_targets(Path(folder)), decode)]
        plan = [
            (target, count)
            for targets, total in groups
            for target, count in zip(targets, shares(targets, total), strict=True)
            if only in (None, target.name)
        ]
        for target, _ in plan:
            for good in target.seeds:
                target.run(good)
        cap_memory()
        console = Console(stderr=True)
        columns = (TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("fuzz", total=sum(count for _, count in plan))
            tallies = []
            for target, count in plan:
                bar.update(task, description=target.name)
                tallies.append(storm(target, count, seed, lambda done: bar.advance(task, done)))
    return tallies


def page(tallies: list[Tally], seconds: float, seed: int) -> str:
    """The report, as Markdown."""
    total = sum(tally.mutants for tally in tallies)
    crashes = sum(len(tally.crashes) for tally in tallies)
    lines = [
        f"# {total:,} mutants in {seconds:.0f} s ({total / max(seconds, 1e-9):,.0f} a second), seed {seed}: "
        f"{crashes or 'no'} crashes",
        "",
        f"No mutant may make the process allocate more than {MEMORY_BYTES >> 20} MB (address space, all of them; "
        "`peak` is of the Python heap, of the first few). Times are reported, not judged.",
        "",
        "| target | mutants | taken | refused | slowest, ms | mean, us | peak, MB | crashes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for tally in tallies:
        refused = ", ".join(f"{name} {count:,}" for name, count in sorted(tally.refused.items())) or "0"
        mean_us, peak_mb = tally.seconds / max(tally.mutants, 1) * 1e6, tally.peak_bytes / 2**20
        lines.append(
            f"| {tally.name} | {tally.mutants:,} | {tally.taken:,} | {refused} | {tally.slowest_ms:.1f} | "
            f"{mean_us:.0f} | {peak_mb:.1f} | {len(tally.crashes)} |"
        )
    lines += ["", *(f"* {tally.name}: {place}" for tally in tallies for place in tally.crashes)]
    return "\n".join(lines)


def document(tallies: list[Tally]) -> list[dict[str, Any]]:
    return [
        {
            "target": tally.name,
            "mutants": tally.mutants,
            "taken": tally.taken,
            "refused": dict(tally.refused),
            "slowest_ms": round(tally.slowest_ms, 3),
            "peak_bytes": tally.peak_bytes,
            "crashes": list(tally.crashes),
        }
        for tally in tallies
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--header", type=int, default=HEADER, help=f"mutants of headers (default {HEADER:,})")
    parser.add_argument("--decode", type=int, default=DECODE, help=f"mutants that are decoded (default {DECODE:,})")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="one target by name")
    parser.add_argument("--crashes", type=Path, default=CORPUS, help="folder for what crashed")
    parser.add_argument("--report", type=Path, help="write the page here as well")
    parser.add_argument("--json", type=Path, dest="json_file", help="the same for machines")
    options = parser.parse_args()
    begun = time.perf_counter()
    tallies = run(options.header, options.decode, options.seed, options.only)
    text = page(tallies, time.perf_counter() - begun, options.seed)
    print(text)
    for tally in tallies:
        for path in keep(tally, options.crashes):
            print(f"kept: {path}")
    if options.report is not None:
        options.report.write_text(text + "\n")
    if options.json_file is not None:
        options.json_file.write_text(json.dumps(document(tallies)))
    return 1 if any(tally.crashes for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
