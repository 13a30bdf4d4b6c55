"""What waits on the camera until the server has committed it: the seam, the index behind it, and a spool in memory.

The durable one is `spool_sqlite.SqliteSpool`. Records of the session that runs are the *live* lane; what earlier
sessions left behind is the *backfill* lane. Those of an earlier process are found in the file; a process begins another
session of its own (`begin_session`) when it comes back from an outage with a backlog, so that what is new goes first.

When it is full: `put` refuses what is new, so a live camera drops the newest GOP (counted, `spool_full`) and a source
that can wait waits. What is there is kept: it is whole from a keyframe on, it may be under way already, and giving up
its head would cost pictures twice, those dropped and those of the GOP that their loss leaves without references.
Nothing stays for ever all the same: what is older than the cap in age goes, oldest first (`too_old`), and makes room.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

from scene_edge.edge.clock import Clock, SystemClock

MAX_RECORDS = 250_000
"""A spool with so many records is full: each takes about 0.5 kB of memory, wherever its payload is."""

_FIRST_LIVE_ID = 1 << 40


class Lane(Enum):
    LIVE = "live"
    BACKFILL = "backfill"


@dataclass(frozen=True, slots=True)
class Record:
    """One MQTT payload, done with once the server has acknowledged frame `last_seq` of its session.

    `taken_ns` has an entry for each frame that the message completes: when it was read, for the latency. `last_frame`
    is the last frame in the message itself, where `last_seq` reaches further because of semantics that ride in it; -1:
    the same. `record_id` and `size` are the spool's to fill in, and `session` where it is 0: the one that runs. A
    payload that is in a file is left out: ask for it with `Spool.payload`.
    """

    leaf: str
    payload: bytes
    last_seq: int
    taken_ns: Sequence[int] = ()
    last_frame: int = -1
    record_id: int = 0
    session: int = 0
    size: int = 0

    @property
    def lane(self) -> Lane:
        return Lane.LIVE if self.record_id >= _FIRST_LIVE_ID else Lane.BACKFILL

    @property
    def frames(self) -> int:
        """How many frames are complete with this message: of a message's fragments only the last has any."""
        return len(self.taken_ns)


@dataclass(frozen=True, slots=True)
class SpoolCounts:
    """Of both lanes; `backfill_...` says how much of that is of earlier sessions, `recovered_records` how much of it an
    earlier process left. `live_since_ns`: since when the oldest live record waits."""

    records: int
    bytes: int
    frames: int
    backfill_records: int = 0
    backfill_frames: int = 0
    recovered_records: int = 0
    live_since_ns: int | None = field(default=None, compare=False)


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Notices:
    """What a spool says of its own accord. Called from any thread, some with the spool's lock held: they must return at
    once and not call the spool.

    `given_up`: a record is gone without an acknowledgement, and why. `recovered`: so many frames of earlier sessions
    were found. `degrade` and `recover`: a reason begins, and is over.
    """

    given_up: Callable[[Record, str], None] = _ignore
    recovered: Callable[[int], None] = _ignore
    degrade: Callable[[str], None] = _ignore
    recover: Callable[[str], None] = _ignore


class Spool(Protocol):
    """Records keep the order in which they were put, in each lane. `changed` is notified on every put and every
    acknowledgement. `sessions` holds those of which there are, or were, records, with the one that runs; `own` those of
    them that this process began."""

    changed: threading.Condition
    sessions: set[int]
    own: set[int]

    def begin_session(self, session: int) -> bool:
        """From now on `session` runs, and what is here is backfill. False: not at this moment, ask again."""
        ...

    def put(self, records: Sequence[Record], *, must: bool = False) -> bool:
        """Take the records of one message, all of them or none: False if they do not fit, or if the server has
        acknowledged their frames already.

        `must` puts them past the limit, for the few bytes that hold others back.
        """
        ...

    def next_after(self, record_id: int, lane: Lane = Lane.LIVE) -> Record | None:
        """The oldest record of a lane with a greater id; 0 begins at the front."""
        ...

    def payload(self, record_id: int) -> bytes | None:
        """What to send. None: it cannot be had at the moment, or it was damaged and is not in the spool any more."""
        ...

    def acknowledge(self, session: int, seq: int) -> list[Record]:
        """Free every record of a session whose `last_seq` is at most `seq`, and return them."""
        ...

    def quarantine(self, record_id: int) -> None:
        """Take a record out of its lane, with the fragments that belong to it: no broker will have it. Reported."""
        ...

    def counts(self) -> SpoolCounts: ...

    def held(self) -> dict[int, int] | None:
        """By session the first frame that may still be sent: none below it ever will be, and none at all of a session
        that is not named. None: it is not known yet what earlier sessions left."""
        ...

    def close(self) -> None:
        """Keep what can be kept. Nothing may be put any more."""
        ...


@dataclass(slots=True)
class Entry:
    """A record in its place: when its age began, by the monotonic clock, and where it stands in a file (0: nowhere)."""

    record: Record
    since_ns: int
    row: int = 0


class Index:
    """The books of a spool: order, lanes, what an acknowledgement frees, what is too old. Its owner holds the lock."""

    def __init__(self, session: int) -> None:
        self.session = session
        self.sessions = {session}
        self.own = {session}
        self.bytes = 0
        self._recovered = 0
        self._lanes: dict[Lane, dict[int, Entry]] = {Lane.BACKFILL: {}, Lane.LIVE: {}}
        self._last = {Lane.BACKFILL: 0, Lane.LIVE: _FIRST_LIVE_ID - 1}
        self._frames = {Lane.BACKFILL: 0, Lane.LIVE: 0}
        self._by_leaf: dict[tuple[int, str], deque[int]] = {}
        self._acknowledged = self._highest = self._last_put = -1

    def __len__(self) -> int:
        return sum(len(entries) for entries in self._lanes.values())

    def begin_session(self, session: int) -> dict[int, int]:
        """Make what is live the end of the backfill lane: old record id -> new one."""
        live, backfill = self._lanes[Lane.LIVE], self._lanes[Lane.BACKFILL]
        moved: dict[int, int] = {}
        for number, entry in live.items():
            moved[number] = self._last[Lane.BACKFILL] = self._last[Lane.BACKFILL] + 1
            entry.record = replace(entry.record, record_id=moved[number])
            backfill[moved[number]] = entry
        live.clear()
        for (owner, _), numbers in self._by_leaf.items():
            if owner == self.session:
                numbers.extend([moved[numbers.popleft()] for _ in range(len(numbers))])
        self._frames[Lane.BACKFILL] += self._frames[Lane.LIVE]
        self._frames[Lane.LIVE] = 0
        self._acknowledged = self._highest = self._last_put = -1
        self.session = session
        self.sessions.add(session)
        self.own.add(session)
        return moved

    def add(self, record: Record, since_ns: int, row: int = 0) -> Entry:
        """At the end of the lane of its session."""
        lane = self._lane_of_session(record.session)
        number = self._last[lane] = self._last[lane] + 1
        entry = Entry(replace(record, record_id=number), since_ns, row)
        self._lanes[lane][number] = entry
        self._by_leaf.setdefault((record.session, record.leaf), deque()).append(number)
        self.sessions.add(record.session)
        self.bytes += record.size
        self._recovered += record.session not in self.own
        self._frames[lane] += record.frames
        if lane is Lane.LIVE:
            self._highest = max(self._highest, record.last_seq)
            if record.leaf == "video":
                self._last_put = max(self._last_put, last_frame_of(record))
        return entry

    def find(self, record_id: int) -> Entry | None:
        return self._lanes[_lane_of(record_id)].get(record_id)

    def next_after(self, record_id: int, lane: Lane) -> Record | None:
        entries = self._lanes[lane]
        if not entries:
            return None
        for number in range(max(record_id + 1, next(iter(entries))), self._last[lane] + 1):
            if number in entries:
                return entries[number].record
        return None

    def is_done(self, record: Record) -> bool:
        """Whether the server has acknowledged the frames of a record that is about to be put. Of a session that is over
        only semantics are put, and are of use while it has pictures."""
        if record.session != self.session:
            return not self._by_leaf.get((record.session, "video"))
        return record.last_seq <= self._acknowledged

    def acknowledge(self, session: int, seq: int) -> list[Entry]:
        freed = []
        # Within a leaf in order: a record that is not done with keeps those behind it. Across leaves there is none.
        for key in [key for key in self._by_leaf if key[0] == session]:
            numbers = self._by_leaf[key]
            while numbers and self._at(numbers[0]).record.last_seq <= seq:
                freed.append(self._take(numbers.popleft()))
        if session == self.session:
            # Never past what was put: a wrong number must not shut the door on frames to come.
            self._acknowledged = max(self._acknowledged, min(seq, self._highest))
        return freed + self.take_orphans(session, seq)

    def take_orphans(self, session: int, seq: int = -1) -> list[Entry]:
        """Remove what nothing can complete any more: of an earlier session, semantics without video, and the last
        messages where their own frames are acknowledged but not those which their semantics would reach."""
        if session == self.session:
            return []
        video = self._by_leaf.get((session, "video"))
        if video:
            last = self._at(video[-1]).record
            if seq < last_frame_of(last):
                return []
        return [
            self._take(numbers.popleft())
            for key, numbers in self._by_leaf.items()
            if key[0] == session
            for _ in range(len(numbers))
        ]

    def take_message(self, record_id: int) -> list[Entry]:
        """Remove a record with the fragments that belong to it, and with what is of no use without them."""
        gone = [self._remove(number) for number in self._message_of(record_id)]
        return gone + (self.take_orphans(gone[0].record.session) if gone else [])

    def _message_of(self, record_id: int) -> list[int]:
        """The last of a video message's fragments has its frames, those before it have none."""
        entry = self.find(record_id)
        if entry is None:
            return []
        if entry.record.leaf != "video":
            return [record_id]
        first = last = record_id
        while self._is_fragment(first - 1):
            first -= 1
        while self._is_fragment(last) and self.find(last + 1) is not None:
            last += 1
        return list(range(first, last + 1))

    def _remove(self, record_id: int) -> Entry:
        entry = self._take(record_id)
        # Found at once where it counts: what is given up for its age is the oldest of its leaf.
        self._by_leaf[entry.record.session, entry.record.leaf].remove(record_id)
        return entry

    def take_older_than(self, since_ns: int) -> list[Entry]:
        """Remove the messages at the front whose age began before `since_ns`."""
        gone = []
        for entries in self._lanes.values():
            while entries and (first := next(iter(entries.values()))).since_ns < since_ns:
                gone += self.take_message(first.record.record_id)
        return gone

    def entries(self) -> Iterator[Entry]:
        for entries in self._lanes.values():
            yield from entries.values()

    def counts(self) -> SpoolCounts:
        oldest = next(iter(self._lanes[Lane.LIVE].values()), None)
        return SpoolCounts(
            len(self),
            self.bytes,
            sum(self._frames.values()),
            len(self._lanes[Lane.BACKFILL]),
            self._frames[Lane.BACKFILL],
            self._recovered,
            None if oldest is None else oldest.since_ns,
        )

    def held(self) -> dict[int, int]:
        """See `Spool.held`. Of a message in fragments the last one knows how many frames there are."""
        firsts = {self.session: self._last_put + 1}
        for (session, leaf), numbers in self._by_leaf.items():
            if leaf != "video":
                continue
            records = (self._at(number).record for number in numbers)
            whole = next((record for record in records if record.frames), None)
            if whole is not None:
                firsts[session] = last_frame_of(whole) - whole.frames + 1
        return firsts

    def _lane_of_session(self, session: int) -> Lane:
        return Lane.LIVE if session == self.session else Lane.BACKFILL

    def _at(self, record_id: int) -> Entry:
        return self._lanes[_lane_of(record_id)][record_id]

    def _take(self, record_id: int) -> Entry:
        lane = _lane_of(record_id)
        entry = self._lanes[lane].pop(record_id)
        self.bytes -= entry.record.size
        self._frames[lane] -= entry.record.frames
        self._recovered -= entry.record.session not in self.own
        return entry

    def _is_fragment(self, record_id: int) -> bool:
        """Whether it is a fragment other than its message's last."""
        entry = self.find(record_id)
        return entry is not None and entry.record.leaf == "video" and not entry.record.frames


def last_frame_of(record: Record) -> int:
    """The last frame in a message itself."""
    return record.last_seq if record.last_frame < 0 else record.last_frame


def _lane_of(record_id: int) -> Lane:
    return Lane.LIVE if record_id >= _FIRST_LIVE_ID else Lane.BACKFILL


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps of a spool: payload bytes, those of them that may wait in memory for a file, and age."""

    max_bytes: int
    memory_bytes: int = 64_000_000
    max_age_s: float = math.inf


@dataclass
class MemorySpool:
    """Bounded by payload bytes and age. What is in it is lost with the process; the ledger counts it as spooled until
    then. What is quarantined is not kept."""

    limits: Limits
    session: int = 0
    clock: Clock = field(default_factory=SystemClock)
    notices: Notices = field(default_factory=Notices)

    def __post_init__(self) -> None:
        self.changed = threading.Condition()
        self._index = Index(self.session)
        self.sessions, self.own = self._index.sessions, self._index.own

    def begin_session(self, session: int) -> bool:
        with self.changed:
            self._index.begin_session(session)
            self.session = session
            self.changed.notify_all()
            return True

    def put(self, records: Sequence[Record], *, must: bool = False) -> bool:
        with self.changed:
            self._expire()
            stamped = stamp(records, self.session)
            if not (must or fits(self._index, stamped, self.limits)) or any(map(self._index.is_done, stamped)):
                return False
            for record in stamped:
                self._index.add(record, self.clock.now_ns())
            self.changed.notify_all()
            return True

    def next_after(self, record_id: int, lane: Lane = Lane.LIVE) -> Record | None:
        with self.changed:
            self._expire()
            return self._index.next_after(record_id, lane)

    def payload(self, record_id: int) -> bytes | None:
        with self.changed:
            entry = self._index.find(record_id)
            return None if entry is None else entry.record.payload

    def acknowledge(self, session: int, seq: int) -> list[Record]:
        with self.changed:
            freed = [entry.record for entry in self._index.acknowledge(session, seq)]
            self.changed.notify_all()
            return freed

    def quarantine(self, record_id: int) -> None:
        with self.changed:
            for entry in self._index.take_message(record_id):
                self.notices.given_up(entry.record, "quarantined")
            self.changed.notify_all()

    def counts(self) -> SpoolCounts:
        with self.changed:
            return self._index.counts()

    def held(self) -> dict[int, int] | None:
        with self.changed:
            return self._index.held()

    def close(self) -> None:
        pass

    def _expire(self) -> None:
        for entry in self._index.take_older_than(oldest_ns(self.clock, self.limits)):
            self.notices.given_up(entry.record, "too_old")
            self.changed.notify_all()


def stamp(records: Sequence[Record], session: int) -> list[Record]:
    return [replace(record, session=record.session or session, size=len(record.payload)) for record in records]


def fits(index: Index, records: Sequence[Record], limits: Limits) -> bool:
    size = sum(record.size for record in records)
    return index.bytes + size <= limits.max_bytes and len(index) + len(records) <= MAX_RECORDS


def oldest_ns(clock: Clock, limits: Limits) -> int:
    """Whatever began before this is too old."""
    return clock.now_ns() - round(min(limits.max_age_s, 1e9) * 1e9)
