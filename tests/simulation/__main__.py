"""`python -m tests.simulation`: so many seeds of the whole system under harm, and a page that says what came of it.

Exit status 1 if a seed shows a violation. Each is printed with its story; `--seed N` plays it again, event by event.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tests.simulation.play import Verdict, play, quietly

SHOWN = 20
"""Failing seeds with their story, at most."""


def story(verdict: Verdict) -> str:
    lines = [f"seed {verdict.seed}: {len(verdict.violations)} violations", *verdict.violations, *verdict.trace]
    return "\n".join([*lines, f"replay: python -m tests.simulation --seed {verdict.seed}"])


def verdicts(seeds: range, jobs: int) -> Iterator[Verdict]:
    if jobs == 1:
        quietly()
        yield from map(play, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, quietly) as pool:
        yield from pool.imap_unordered(play, seeds)


def page(done: list[Verdict], seconds: float) -> str:
    """One page: what was played, what was captured, stored and dropped, and what must not have been."""
    counts: Counter[str] = Counter()
    harm: Counter[str] = Counter()
    for verdict in done:
        counts.update(verdict.counts)
        harm.update(verdict.harm)
    bad = sorted(verdict.seed for verdict in done if verdict.violations)
    simulated_h = sum(verdict.seconds for verdict in done) / 3600
    rows = {
        "seeds": len(done),
        "violations": len(bad),
        "simulated hours": round(simulated_h, 1),
        "events": sum(verdict.events for verdict in done),
        "seconds": round(seconds),
        **{f"frames {name}": count for name, count in sorted(counts.items())},
        **{f"harm: {name}": count for name, count in sorted(harm.items())},
    }
    head = f"# Simulation: {'nothing lost, nothing unexpected' if not bad else f'NOT VALID, seeds {bad[:SHOWN]}'}"
    return "\n".join(
        [head, "", "| what | count |", "|---|---|", *(f"| {name} | {row} |" for name, row in rows.items())]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many (default 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default 0)")
    parser.add_argument("--seed", type=int, help="play this one alone, and tell its story")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: cores)")
    parser.add_argument("--report", type=Path, help="write the page here as well")
    options = parser.parse_args()
    if options.seed is not None:
        quietly()
        verdict = play(options.seed)
        print(story(verdict))
        return bool(verdict.violations)
    seeds, begun = range(options.first, options.first + options.seeds), time.perf_counter()
    done: list[Verdict] = []
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("seeds", total=len(seeds))
        for verdict in verdicts(seeds, min(options.jobs, len(seeds))):
            done.append(verdict)
            bar.advance(task)
            if verdict.violations and sum(bool(other.violations) for other in done) <= SHOWN:
                print(story(verdict), end="\n\n", flush=True)
    text = page(done, time.perf_counter() - begun)
    print(text)
    if options.report is not None:
        options.report.write_text(text + "\n")
    return int(any(verdict.violations for verdict in done))


if __name__ == "__main__":
    sys.exit(main())
