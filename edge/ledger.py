"""The camera's books: captured = committed + spooled + dropped in frames, at every moment; and each stream's bytes."""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass, field

WINDOW_S = 10.0
LATENCIES_KEPT = 2048
_STREAMS = ("video", "semantic", "sei", "overhead")


@dataclass(frozen=True, slots=True)
class Backfill:
    """Frames of earlier sessions: found in the spool, acknowledged since then, still there, given up by reason."""

    recovered: int = 0
    committed: int = 0
    waiting: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def balanced(self) -> bool:
        return self.recovered == self.committed + self.waiting + sum(self.dropped.values())


@dataclass(frozen=True, slots=True)
class LedgerSnapshot:
    """Frames, at one instant. `spooled` waits on the camera: `in_pipeline` of it is not encoded yet, the rest is sent
    or about to be and not acknowledged by the server. `dropped` is by reason. Semantics are counted apart: a frame
    without them is still delivered.

    `backfill` has an equation of its own, for frames that earlier sessions left in the spool, which this session has
    not captured: recovered = committed + waiting + dropped."""

    captured: int
    committed: int
    spooled: int
    in_pipeline: int
    dropped: dict[str, int]
    semantics_coded: int
    semantics_lost: dict[str, int]
    bytes: dict[str, int]
    kbps: dict[str, float]
    latency_ms: dict[str, float] = field(default_factory=dict)
    backfill: Backfill = field(default_factory=Backfill)

    @property
    def balanced(self) -> bool:
        return self.captured == self.committed + self.spooled + sum(self.dropped.values()) and self.backfill.balanced


class Ledger:
    """Thread-safe. Every method moves whole frames from one account to another under one lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._captured = self._committed = self._in_pipeline = self._in_spool = self._semantics_coded = 0
        self._dropped: Counter[str] = Counter()
        self._recovered = self._backfilled = self._waiting = 0
        self._backfill_dropped: Counter[str] = Counter()
        self._semantics_lost: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter(dict.fromkeys(_STREAMS, 0))
        self._latencies_ms: deque[float] = deque(maxlen=LATENCIES_KEPT)
        self._history: deque[tuple[int, Counter[str]]] = deque()
        self._media_ns: int | None = None

    def capture(self) -> None:
        """A frame came from the source."""
        with self._lock:
            self._captured += 1
            self._in_pipeline += 1

    def spool(self, frames: int = 1) -> None:
        """The access units of so many frames are put into the spool."""
        with self._lock:
            self._in_pipeline -= frames
            self._in_spool += frames

    def unspool(self, frames: int = 1) -> None:
        """The spool did not take them after all."""
        with self._lock:
            self._in_pipeline += frames
            self._in_spool -= frames

    def commit(self, frames: int, latencies_ms: list[float]) -> None:
        """The server acknowledged frames of the spool."""
        with self._lock:
            self._in_spool -= frames
            self._committed += frames
            self._latencies_ms.extend(latencies_ms)

    def drop(self, reason: str, frames: int = 1, *, spooled: bool = False) -> None:
        """Frames are given up: in the pipeline, or, with `spooled`, from the spool."""
        with self._lock:
            if spooled:
                self._in_spool -= frames
            else:
                self._in_pipeline -= frames
            self._dropped[reason] += frames

    def recover(self, frames: int) -> None:
        """Frames of earlier sessions were found in the spool."""
        with self._lock:
            self._recovered += frames
            self._waiting += frames

    def commit_backfill(self, frames: int) -> None:
        """The server acknowledged frames of an earlier session."""
        with self._lock:
            self._waiting -= frames
            self._backfilled += frames

    def drop_backfill(self, reason: str, frames: int) -> None:
        """Frames of an earlier session are given up."""
        with self._lock:
            self._waiting -= frames
            self._backfill_dropped[reason] += frames

    def code_semantics(self, frames: int) -> None:
        with self._lock:
            self._semantics_coded += frames

    def lose_semantics(self, reason: str, frames: int = 1) -> None:
        """Frames that go without semantics."""
        with self._lock:
            self._semantics_lost[reason] += frames

    def add_bytes(self, *, media_ns: int | None = None, **streams: int) -> None:
        """Bytes of video, semantic, sei, overhead; `media_ns` is the capture time up to which they reach."""
        with self._lock:
            self._bytes.update(streams)
            if media_ns is None:
                return
            if self._media_ns is None:
                # The first frame's bytes belong to a time before which there was nothing.
                self._history.append((media_ns, Counter()))
            self._media_ns = media_ns
            if media_ns - self._history[-1][0] >= 1_000_000_000:
                self._history.append((media_ns, Counter(self._bytes)))
            while len(self._history) > 2 and media_ns - self._history[0][0] > WINDOW_S * 1e9:
                self._history.popleft()

    def snapshot(self) -> LedgerSnapshot:
        with self._lock:
            counts = {name: self._bytes[name] for name in _STREAMS}
            return LedgerSnapshot(
                captured=self._captured,
                committed=self._committed,
                spooled=self._in_pipeline + self._in_spool,
                in_pipeline=self._in_pipeline,
                dropped=dict(self._dropped),
                semantics_coded=self._semantics_coded,
                semantics_lost=dict(self._semantics_lost),
                bytes={**counts, "total": sum(counts.values())},
                kbps=self._kbps(),
                latency_ms=percentiles(list(self._latencies_ms)),
                backfill=Backfill(self._recovered, self._backfilled, self._waiting, dict(self._backfill_dropped)),
            )

    def _kbps(self) -> dict[str, float]:
        """Over the last WINDOW_S of the video's own time, which is the wall's for a live camera."""
        span_ns = self._media_ns - self._history[0][0] if self._media_ns is not None else 0
        if span_ns <= 0:
            return dict.fromkeys((*_STREAMS, "total"), 0.0)
        before = self._history[0][1]
        rates = {name: (self._bytes[name] - before[name]) * 8e6 / span_ns for name in _STREAMS}
        rates["total"] = sum(rates.values())
        return {name: round(rate, 3) for name, rate in rates.items()}


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p95 and p99 by nearest rank; empty for no values.

    >>> percentiles([3.0, 1.0, 2.0])
    {'p50': 2.0, 'p95': 3.0, 'p99': 3.0}
    """
    if not values:
        return {}
    ranked = sorted(values)
    return {f"p{p}": round(ranked[max(0, -(-len(ranked) * p // 100) - 1)], 3) for p in (50, 95, 99)}
