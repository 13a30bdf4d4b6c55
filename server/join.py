"""Joining the two streams of one session by frame number, with a deadline. Pure: the clock is an argument.

Frames leave in order, each with a status that says what became of it:

    matched            video and semantics are both there
    unpaired           the camera sends no semantics, so nothing was awaited
    missing_semantics  no packet for this frame within the deadline
    missing_video      the frame itself never came; the gap is reported once, not frame by frame

A packet that comes after its frames have left makes them `late` in the counts (they left as missing_semantics).
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from enum import Enum

from scene_edge.codec.packet import FLAG_GOP_CUT, SemanticPacket

MAX_REMEMBERED = 4096
"""So many frames that left without semantics are remembered, to tell a late packet from a repeated one."""


class JoinStatus(str, Enum):
    MATCHED = "matched"
    UNPAIRED = "unpaired"
    MISSING_SEMANTICS = "missing_semantics"
    MISSING_VIDEO = "missing_video"


@dataclass(frozen=True, slots=True)
class VideoUnit:
    """One access unit as it came over the wire.

    `utc_ns` is the capture time on the common clock; where the camera knows no UTC (`utc_known` false) it is the time
    of arrival, and says nothing about latency.
    """

    session_id: int
    frame_seq: int
    capture_ns: int
    utc_ns: int
    utc_known: bool
    keyframe: bool
    width: int
    height: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Joined:
    """One frame on its way out, or (unit None) a gap of `count` frames that never came, starting at `frame_seq`."""

    frame_seq: int
    status: JoinStatus
    unit: VideoUnit | None = None
    packet: SemanticPacket | None = None
    count: int = 1
    arrived_s: float = 0.0


@dataclass(slots=True)
class Joiner:
    """The join buffer of one session.

    `next_seq` is the frame due next; None means that the session was met in its middle, and that frames with lower
    numbers than the first one seen are awaited. Frames that are missing are awaited for `gap_s` (None: the deadline):
    their camera still has them, unless it gave them up. A camera that says what it has (`camera_holds`) is believed
    instead: no time gives up what it will send. Whatever exceeds `max_frames` or `max_bytes` leaves early, as if its
    deadline had passed, or is not taken where it would wait behind frames that the camera has.
    """

    deadline_s: float
    next_seq: int | None = None
    expect_semantics: bool = False
    max_frames: int = 2048
    max_bytes: int = 64 << 20
    gap_s: float | None = None
    held_from: int | None = None
    counts: Counter[str] = field(default_factory=Counter)
    _units: dict[int, tuple[VideoUnit, float]] = field(default_factory=dict)
    _packets: dict[int, SemanticPacket] = field(default_factory=dict)
    _unmatched: deque[int] = field(default_factory=lambda: deque(maxlen=MAX_REMEMBERED))
    _cut: bool = False
    _bytes: int = 0
    _first_arrival_s: float | None = None

    def add_video(self, unit: VideoUnit, now_s: float) -> bool:
        """Take a frame. False: it is a repetition, or came after the gap it belongs to had been given up."""
        seq = unit.frame_seq
        if seq in self._units or (self.next_seq is not None and seq < self.next_seq):
            self.counts["repeated_video"] += 1
            return False
        if self.held_from is not None and self._overfull() and seq > max(self._units):
            self.counts["join_overflow"] += 1  # it is not acknowledged, so it comes again
            return True
        if self._first_arrival_s is None:
            self._first_arrival_s = now_s
        if seq == 0 and self.next_seq is None:
            self.next_seq = 0  # nothing can have been before it, whenever it comes
        self._units[seq] = (unit, now_s)
        self._bytes += len(unit.data)
        return True

    def add_semantics(self, packet: SemanticPacket) -> None:
        """Take a packet; frames of it that have left already are counted as late (or repeated)."""
        for seq in range(packet.first_seq, packet.last_seq + 1):
            if self.next_seq is None or seq >= self.next_seq:
                self._packets.setdefault(seq, packet)
            elif seq in self._unmatched:
                self._unmatched.remove(seq)
                self.counts["missing_semantics"] -= 1
                self.counts["late"] += 1
            else:
                self.counts["repeated_semantics"] += 1
        while len(self._packets) > 2 * self.max_frames:
            del self._packets[max(self._packets)]
            self.counts["join_overflow"] += 1

    def camera_holds(self, first_seq: int) -> None:
        """The camera has said that it will never send a frame below `first_seq`, and may send any from there on."""
        self.held_from = max(first_seq, self.held_from or 0)

    def release(self, now_s: float, *, hurry: bool = False) -> list[Joined]:
        """Everything that can leave by `now_s`, in order; with `hurry` frames wait for semantics no longer."""
        out: list[Joined] = []
        while self._units:
            if self.next_seq is None:
                begun = self._middle(now_s)
                if begun is None:
                    break
                self.next_seq = begun
            held = self._units.get(self.next_seq)
            if held is None:
                gap = self._gap(now_s)
                if gap is None:
                    break
                out.append(gap)
                continue
            unit, arrived_s = held
            packet = self._packets.get(self.next_seq)
            overdue = hurry or now_s >= arrived_s + self.deadline_s or self._overfull()
            if packet is None and self._awaited(unit) and not overdue:
                break
            out.append(self._leave(unit, packet, arrived_s))
        return out

    def next_deadline_s(self) -> float | None:
        """When `release` has to be called again even if nothing arrives; None while nothing waits."""
        if not self._units:
            return None
        held = None if self.next_seq is None else self._units.get(self.next_seq)
        if held is not None:
            return held[1] + self.deadline_s
        if self.held_from is not None:
            return None  # the camera's word is awaited, not a time
        if self.next_seq is None:
            return (self._first_arrival_s or 0.0) + self._patience_s
        return min(arrived for _, arrived in self._units.values()) + self._patience_s

    def missing(self) -> int | None:
        """The frame that is awaited although later ones are here; 0 where a session was met in its middle."""
        if not self._units or self.next_seq in self._units:
            return None
        return self.next_seq or 0

    @property
    def _patience_s(self) -> float:
        return self.deadline_s if self.gap_s is None else self.gap_s

    @property
    def waiting(self) -> int:
        """Frames held back right now."""
        return len(self._units)

    def match_rate(self) -> float | None:
        """Share of the frames due for a match that got one; None where none was due."""
        due = sum(self.counts[name] for name in ("matched", "late", "missing_semantics", "missing_video"))
        if not due or not (self.counts["matched"] or self.counts["late"] or self.counts["missing_semantics"]):
            return None
        return self.counts["matched"] / due

    def _awaited(self, unit: VideoUnit) -> bool:
        """Whether semantics may still come: not in a GOP whose packet said that it was cut short."""
        return self.expect_semantics and (unit.keyframe or not self._cut)

    def _overfull(self) -> bool:
        return len(self._units) > self.max_frames or self._bytes > self.max_bytes

    def _middle(self, now_s: float) -> int | None:
        """Where a session begins that was met in its middle, once what was before that is not awaited any more."""
        lowest = min(self._units)
        if self.held_from is not None:
            return min(lowest, self.held_from)
        if self._overfull() or now_s >= (self._first_arrival_s or 0.0) + self._patience_s:
            return lowest
        return None

    def _gap(self, now_s: float) -> Joined | None:
        """Frames are missing before the lowest one here: give them up where their camera has them no more, or, if it
        does not say, once a frame here has waited for long enough."""
        first, lowest = self.next_seq or 0, min(self._units)
        if self.held_from is not None:
            lowest = min(lowest, self.held_from)
            if lowest <= first:
                return None
        else:
            waited_since_s = min(arrived for _, arrived in self._units.values())
            if now_s < waited_since_s + self._patience_s and not self._overfull():
                return None
        self.next_seq = lowest
        count = self.next_seq - first
        self.counts["missing_video"] += count
        self._forget_packets_before(self.next_seq)
        return Joined(first, JoinStatus.MISSING_VIDEO, count=count)

    def _leave(self, unit: VideoUnit, packet: SemanticPacket | None, arrived_s: float) -> Joined:
        seq = unit.frame_seq
        del self._units[seq]
        self._packets.pop(seq, None)
        self._bytes -= len(unit.data)
        self.next_seq = seq + 1
        self._cut = self._cut and not unit.keyframe
        if packet is not None and seq == packet.last_seq:
            self._cut = bool(packet.flags & FLAG_GOP_CUT)
        if packet is not None:
            status = JoinStatus.MATCHED
        elif self.expect_semantics:
            status = JoinStatus.MISSING_SEMANTICS
            self._unmatched.append(seq)
        else:
            status = JoinStatus.UNPAIRED
        self.counts[status.value] += 1
        return Joined(seq, status, unit, packet, arrived_s=arrived_s)

    def _forget_packets_before(self, seq: int) -> None:
        for stale in [key for key in self._packets if key < seq]:
            del self._packets[stale]
