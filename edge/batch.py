"""Which access units share a video message: a message of its own for each would cost more than small pictures do."""

from __future__ import annotations

from dataclasses import dataclass, replace

from scene_edge.codec.identity import AccessUnit
from scene_edge.codec.videomessage import MAX_UNITS, can_follow

MAX_BATCH_BYTES = 110_000
"""With header and table the message stays in one piece; a longer access unit is alone in its message, in fragments."""

HOLD_NS = 1_000_000
"""Within a message the UTC offset stands still until it has moved by this: the noise of reading two clocks, one after
the other, is not worth its bytes."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """An access unit as it will be sent, how much of it is SEI, and when its frame was read."""

    unit: AccessUnit
    sei_bytes: int = 0
    taken_ns: int = 0


class VideoBatch:
    """The message that is still open. Ask `fits` before and `full` after each `add`; `take` empties it.

    `max_ms` of video go into one at most; None: no such limit; 0: one access unit. A message never reaches past a
    keyframe, so losing it costs no other GOP anything.
    """

    def __init__(self, max_ms: int | None, frame_period_ns: int) -> None:
        self._max_ns = None if max_ms is None else max_ms * 1_000_000
        self._period_ns = frame_period_ns
        self._items: list[Waiting] = []
        self._bytes = 0
        self._opened_ns = 0

    def __len__(self) -> int:
        return len(self._items)

    def fits(self, unit: AccessUnit) -> bool:
        """Whether `unit` can join what is there."""
        if not self._items:
            return True
        return (
            not unit.keyframe
            and can_follow(unit, self._items[-1].unit)
            and self._bytes + len(unit.data) <= MAX_BATCH_BYTES
        )

    def add(self, item: Waiting, now_ns: int) -> None:
        """`now_ns` starts the clock of `left_s` with the first access unit."""
        if not self._items:
            self._opened_ns = now_ns
        else:
            held_ns = self._items[-1].unit.utc_offset_ns
            if abs(item.unit.utc_offset_ns - held_ns) < HOLD_NS:
                item = replace(item, unit=replace(item.unit, utc_offset_ns=held_ns))
        self._items.append(item)
        self._bytes += len(item.unit.data)

    @property
    def full(self) -> bool:
        """No other access unit can be waited for. Half a frame of slack: capture times are never quite regular."""
        if not self._items:
            return False
        if len(self._items) >= MAX_UNITS:
            return True
        if self._max_ns is None:
            return False
        span_ns = self._items[-1].unit.capture_ns - self._items[0].unit.capture_ns + self._period_ns
        return span_ns + self._period_ns // 2 > self._max_ns

    def left_s(self, now_ns: int) -> float | None:
        """How long the next access unit can be waited for; None: as long as it takes."""
        if not self._items or self._max_ns is None:
            return None
        return max(0.0, (self._opened_ns + self._max_ns - now_ns) / 1e9)

    def take(self) -> list[Waiting]:
        items, self._items, self._bytes = self._items, [], 0
        return items
