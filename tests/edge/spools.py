"""Spools for tests: one of each kind with a clock moved by hand, what they announced, and a wait for the writer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from scene_edge.edge.clock import FakeClock
from scene_edge.edge.spool import Lane, Limits, MemorySpool, Notices, Record, Spool
from scene_edge.edge.spool_sqlite import SqliteSpool
from tests.waiting import wait_until

SESSION, OLD = 0xFEDC_BA98_7654_3210, 7


@dataclass
class Heard:
    """Everything that a spool said."""

    given_up: list[tuple[int, str]] = field(default_factory=list)
    recovered: list[int] = field(default_factory=list)
    degraded: list[str] = field(default_factory=list)
    over: list[str] = field(default_factory=list)

    @property
    def notices(self) -> Notices:
        return Notices(
            lambda record, reason: self.given_up.append((record.last_seq, reason)),
            self.recovered.append,
            self.degraded.append,
            self.over.append,
        )


@dataclass
class Bench:
    """Makes spools of one kind on one folder, and closes them."""

    folder: Path
    kind: str = "sqlite"
    clock: FakeClock = field(default_factory=FakeClock)
    heard: Heard = field(default_factory=Heard)
    made: list[Spool] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.folder / "spool" / "gate-1.sqlite"

    def open(self, session: int = SESSION, limits: Limits | None = None) -> Spool:
        limits = limits or Limits(1_000_000)
        if self.kind == "memory":
            self.made.append(MemorySpool(limits, session, self.clock, self.heard.notices))
        else:
            made = SqliteSpool(self.file, limits, session=session, clock=self.clock, notices=self.heard.notices)
            self.made.append(made)
        return self.made[-1]

    def close(self) -> None:
        for spool in self.made:
            spool.close()


def benches(folder: Path, kind: str) -> Iterator[Bench]:
    bench = Bench(folder, kind)
    yield bench
    bench.close()


def record(seq: int, leaf: str = "video", size: int = 10, frames: int = 1, last_frame: int = -1) -> Record:
    payload = (f"{leaf}{seq}|".encode() * size)[:size]
    return Record(leaf, payload, seq, (seq,) * frames if leaf == "video" else (), last_frame)


def fragments(seq: int, count: int = 3) -> list[Record]:
    return [record(seq, size=10 + number, frames=number == count - 1) for number in range(count)]


def walk(spool: Spool, lane: Lane = Lane.LIVE) -> list[Record]:
    found, last = [], 0
    while (item := spool.next_after(last, lane)) is not None:
        found.append(item)
        last = item.record_id
    return found


def seqs(spool: Spool, lane: Lane = Lane.LIVE) -> list[int]:
    return [item.last_seq for item in walk(spool, lane)]


def settle(spool: Spool) -> None:
    """Wait until the writer has nothing to do."""
    if isinstance(spool, SqliteSpool):
        wait_until(lambda: not (spool._unsaved or spool._done_rows or spool._bad_rows))
