"""What waits on the camera until the server has committed it. In memory; a durable one fits the same seam."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Record:
    """One MQTT payload. It is done with once the server has acknowledged frame `last_seq`. `taken_ns` has an entry for
    each frame that the message completes: when it was read, for the latency."""

    leaf: str
    payload: bytes
    last_seq: int
    taken_ns: tuple[int, ...] = ()
    record_id: int = 0

    @property
    def frames(self) -> int:
        """How many frames are complete with this message: of a message's fragments only the last has any."""
        return len(self.taken_ns)


@dataclass(frozen=True, slots=True)
class SpoolCounts:
    records: int
    bytes: int
    frames: int


class Spool(Protocol):
    """Records keep the order in which they were put. `changed` is notified on every put and every acknowledgement."""

    changed: threading.Condition

    def put(self, records: Sequence[Record], *, must: bool = False) -> bool:
        """All of them or none: False if they do not fit, or if the server has acknowledged their frames already.

        `must` puts them past the limit, for the few bytes that hold others back.
        """
        ...

    def next_after(self, record_id: int) -> Record | None:
        """The oldest record with a greater id; 0 begins at the front."""
        ...

    def acknowledge(self, seq: int) -> list[Record]:
        """Free every record whose `last_seq` is at most `seq`, and return them."""
        ...

    def counts(self) -> SpoolCounts: ...


class MemorySpool:
    """Bounded by payload bytes. What is in it is lost with the process; the ledger counts it as spooled until then."""

    def __init__(self, max_bytes: int) -> None:
        self.changed = threading.Condition()
        self._max_bytes = max_bytes
        self._records: dict[int, Record] = {}
        self._by_leaf: dict[str, deque[int]] = {}
        self._last_id = 0
        self._bytes = self._frames = 0
        self._acknowledged = self._highest = -1

    def put(self, records: Sequence[Record], *, must: bool = False) -> bool:
        with self.changed:
            size = sum(len(record.payload) for record in records)
            if not must and self._bytes + size > self._max_bytes:
                return False
            if any(record.last_seq <= self._acknowledged for record in records):
                return False
            for record in records:
                self._last_id += 1
                self._records[self._last_id] = replace(record, record_id=self._last_id)
                self._by_leaf.setdefault(record.leaf, deque()).append(self._last_id)
                self._frames += record.frames
                self._highest = max(self._highest, record.last_seq)
            self._bytes += size
            self.changed.notify_all()
            return True

    def next_after(self, record_id: int) -> Record | None:
        with self.changed:
            if not self._records:
                return None
            for number in range(max(record_id + 1, next(iter(self._records))), self._last_id + 1):
                if number in self._records:
                    return self._records[number]
            return None

    def acknowledge(self, seq: int) -> list[Record]:
        with self.changed:
            freed = []
            # Within a leaf in order: a record that is not done with keeps those behind it. Across leaves there is none.
            for numbers in self._by_leaf.values():
                while numbers and self._records[numbers[0]].last_seq <= seq:
                    record = self._records.pop(numbers.popleft())
                    freed.append(record)
                    self._bytes -= len(record.payload)
                    self._frames -= record.frames
            # Never past what was put: a wrong number must not shut the door on frames to come.
            self._acknowledged = max(self._acknowledged, min(seq, self._highest))
            self.changed.notify_all()
            return freed

    def counts(self) -> SpoolCounts:
        with self.changed:
            return SpoolCounts(len(self._records), self._bytes, self._frames)
