"""Runs mutants through a target and keeps book: what came out, how long the slowest took, how much memory it wanted."""

from __future__ import annotations

import hashlib
import resource
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from scene_edge.codec.errors import SceneEdgeError

CORPUS = Path(__file__).parents[1] / "corpus"
CHUNK = 500
"""Mutants of one random generator: a chunk can be made again by itself."""

MEASURED = 10
"""So many mutants of a target run under tracemalloc."""

MEMORY_BYTES = 64 << 20
"""What a message may make a process allocate, whatever it says."""


@dataclass(frozen=True, slots=True)
class Target:
    """`run` may raise `allowed` and nothing else, on whatever `mutate` makes and on every file of the corpus.

    `seeds` are good: `run` takes them. `decodes` tells the full decode from the header path; `weight` is the target's
    share of its path.
    """

    name: str
    mutate: Callable[[Random], bytes]
    run: Callable[[bytes], object]
    seeds: Sequence[bytes]
    allowed: tuple[type[SceneEdgeError], ...]
    decodes: bool = False
    weight: float = 1.0


@dataclass(slots=True)
class Tally:
    """What the mutants of one target came to. `slowest_ms` is reported, never judged."""

    name: str
    mutants: int = 0
    taken: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    crashes: dict[str, bytes] = field(default_factory=dict)
    """Type and place of the error -> the first mutant that met it."""
    seconds: float = 0.0
    slowest_ms: float = 0.0
    slowest: bytes = b""
    peak_bytes: int = 0


def storm(target: Target, count: int, seed: int, progress: Callable[[int], None] = lambda _done: None) -> Tally:
    """`count` mutants; the same `seed` makes the same ones. `progress` gets how many more are done."""
    tally = Tally(target.name)
    for first in range(0, count, CHUNK):
        random = Random(f"{seed}/{target.name}/{first}")
        size = min(CHUNK, count - first)
        for number in range(size):
            data = target.mutate(random)
            if first == 0 and number < MEASURED:
                _measured(target, data, tally)
            else:
                _timed(target, data, tally)
        tally.mutants += size
        progress(size)
    return tally


def _timed(target: Target, data: bytes, tally: Tally) -> None:
    begun = time.perf_counter()
    try:
        target.run(data)
        tally.taken += 1
    except target.allowed as error:
        tally.refused[type(error).__name__] += 1
    except Exception as error:
        tally.crashes.setdefault(_place_of(error), data)
    took = time.perf_counter() - begun
    tally.seconds += took
    if took * 1e3 > tally.slowest_ms:
        tally.slowest_ms, tally.slowest = took * 1e3, data


def _measured(target: Target, data: bytes, tally: Tally) -> None:
    """The same under tracemalloc, whose time does not count."""
    kept = tally.slowest_ms, tally.slowest, tally.seconds
    tracemalloc.start()
    try:
        _timed(target, data, tally)
        tally.peak_bytes = max(tally.peak_bytes, tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    tally.slowest_ms, tally.slowest, tally.seconds = kept


def _place_of(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "?"
    return f"{type(error).__name__} at {where}: {str(error)[:80]}"


def keep(tally: Tally, folder: Path) -> list[Path]:
    """Every crash as a file of the corpus, to be given a better name by whoever mends it."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for data in tally.crashes.values():
        paths.append(folder / f"{tally.name}--{hashlib.sha256(data).hexdigest()[:12]}.bin")
        paths[-1].write_bytes(data)
    return paths


def cap_memory(spare_bytes: int = MEMORY_BYTES) -> None:
    """From here on this process gets `spare_bytes` of address space more, and MemoryError for anything beyond.

    Every mutant is held to it, what NumPy or SQLite reserve without touching it included. Not to be undone: use it in a
    process of its own, once its modules are loaded.
    """
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + spare_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
