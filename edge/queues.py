"""The one queue between two stages: bounded, metered, with a written answer to "what if it is full"."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

T = TypeVar("T")


class WhenFull(Enum):
    """WAIT holds the producer back (nothing is lost); REFUSE returns False at once (a live producer never waits)."""

    WAIT = "wait"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class QueueMeter:
    """Counters since the start: items put, refused, taken; how many wait now, how many at most; time lost waiting."""

    name: str
    capacity: int
    depth: int
    high_water: int
    put: int
    refused: int
    taken: int
    waited_ms: float


class BoundedQueue(Generic[T]):
    """First in, first out, for one producer and one consumer thread.

    `finish()` says that nothing more comes: the consumer drains what is left, then gets None. `cancel()` throws away
    what is left and frees both sides at once.
    """

    def __init__(self, name: str, capacity: int, when_full: WhenFull) -> None:
        self.name, self.capacity, self.when_full = name, capacity, when_full
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._finished = self._cancelled = False
        self._put = self._refused = self._taken = self._high_water = self._waited_ns = 0

    def put(self, item: T) -> bool:
        """True if the item is in the queue; False if it was refused (full) or nobody will read it (cancelled)."""
        with self._changed:
            if len(self._items) >= self.capacity and not self._cancelled:
                if self.when_full is WhenFull.REFUSE:
                    self._refused += 1
                    return False
                started = time.monotonic_ns()
                self._changed.wait_for(lambda: len(self._items) < self.capacity or self._cancelled)
                self._waited_ns += time.monotonic_ns() - started
            if self._cancelled:
                return False
            self._items.append(item)
            self._put += 1
            self._high_water = max(self._high_water, len(self._items))
            self._changed.notify_all()
            return True

    def ready(self, timeout_s: float) -> bool:
        """True once `get` would return at once; False if that takes longer than `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._items) or self._finished or self._cancelled, timeout_s)

    def get(self) -> T | None:
        """The oldest item, waiting for it; None once the queue is finished and empty, or cancelled."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._items) or self._finished or self._cancelled)
            if not self._items:
                return None
            item = self._items.popleft()
            self._taken += 1
            self._changed.notify_all()
            return item

    def finish(self) -> None:
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def cancel(self) -> list[T]:
        """Close at once; returns the items that nobody will see now, so that they can be accounted for."""
        with self._changed:
            self._finished = self._cancelled = True
            left = list(self._items)
            self._items.clear()
            self._changed.notify_all()
            return left

    def meter(self) -> QueueMeter:
        with self._changed:
            return QueueMeter(
                self.name,
                self.capacity,
                len(self._items),
                self._high_water,
                self._put,
                self._refused,
                self._taken,
                self._waited_ns / 1e6,
            )
