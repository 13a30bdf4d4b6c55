"""Small memories of one camera, cheap enough for a thousand: the latest latencies, and a line of numbers a second."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Mapping, Sequence


class Latencies:
    """The latest `size` values, kept in order, so that a percentile is a look and not a sort.

    >>> latencies = Latencies(3)
    >>> latencies.extend([9.0, 1.0, 2.0, 3.0])
    >>> latencies.percentiles()
    {'p50': 2.0, 'p95': 3.0, 'p99': 3.0}
    """

    def __init__(self, size: int) -> None:
        self._latest: deque[float] = deque()
        self._ranked: list[float] = []
        self._size = size

    def extend(self, values: Iterable[float]) -> None:
        for value in values:
            if len(self._latest) == self._size:
                del self._ranked[bisect_left(self._ranked, self._latest.popleft())]
            self._latest.append(value)
            insort(self._ranked, value)

    def clear(self) -> None:
        self._latest.clear()
        self._ranked.clear()

    def percentiles(self) -> dict[str, float | None]:
        """p50, p95 and p99 by nearest rank; None each where there is nothing."""
        count = len(self._ranked)
        return {f"p{p}": round(self._ranked[-(-count * p // 100) - 1], 1) if count else None for p in (50, 95, 99)}


class History:
    """The latest `length` points with the same columns, 8 bytes a number; None is remembered as such."""

    def __init__(self, columns: Sequence[str], length: int) -> None:
        self._columns, self._length = tuple(columns), length
        self._numbers = array("d")
        self._next = 0

    def add(self, point: Mapping[str, float | None]) -> None:
        row = array("d", (math.nan if (value := point.get(name)) is None else value for name in self._columns))
        width = len(self._columns)
        if len(self._numbers) < width * self._length:
            self._numbers.extend(row)
            return
        self._numbers[self._next * width : (self._next + 1) * width] = row
        self._next = (self._next + 1) % self._length

    def points(self) -> list[dict[str, float | None]]:
        """Oldest first."""
        width = len(self._columns)
        rows = [self._numbers[at : at + width] for at in range(0, len(self._numbers), width)]
        ordered = rows[self._next :] + rows[: self._next]
        return [
            {name: None if math.isnan(value) else value for name, value in zip(self._columns, row, strict=True)}
            for row in ordered
        ]
