"""Which record the publisher sends next: two lanes, what is under way, what a broker will not take. No network here.

**Live first.** A record of an earlier session goes only when the live lane has nothing to send, or after every eighth
live one in a row. Without that share a file, or a link that carries no more than the live video, would hold the
backfill back until its age ends it, which is the loss that the spool is for; it costs a full link a ninth. And
backfill never has more than a quarter of the window without an answer from the *server*, and less where answers take
long (`BackfillPace`): two hundred cameras that empty their spools at once must not make live pictures queue up there.

**What may be without an answer.** Live records too go only so far ahead of the server's acknowledgements: what a broker
would have to keep for a server that is away is better kept here, and a server that is slow sets the pace.

**What a broker refuses.** Brokers disconnect a publisher whose packet is too large, and it would be sent again for
ever. So a record larger than any that this broker has taken goes alone; if five connections in a row end at once while
it alone is under way, although they had taken all before it, it goes into quarantine. A link that breaks does so
later, or with less in hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scene_edge.edge.clock import Clock
from scene_edge.edge.config import MqttConfig
from scene_edge.edge.spool import Lane, Record, Spool

LIVE_FOR_EACH_BACKFILL = 8
BACKFILL_WINDOW = 4
"""The part of the window that backfill may use: one in so many."""

UNANSWERED = 256
"""Live records that may have been sent without an answer from the server: 51 s at five messages a second."""

REFUSALS = 5
REFUSED_WITHIN_S = 5.0
"""A broker that refuses closes the connection at once; a link that is dead shows at the next keep-alive."""

MORE_AFTER_NS = 500_000_000
UNREADABLE_WAIT_S = 1.0
MAX_PATIENCE = 16.0


@dataclass(slots=True)
class _Way:
    """How far a lane has got: what was sent on this connection, what ever was, and since when the server owes an
    answer."""

    lane: Lane
    cursor: int = 0
    last_sent: int = 0
    progress_ns: int = 0
    patience: float = 1.0
    blocked_until_ns: int = 0


class BackfillPace:
    """How many records of a backlog may be without an answer: one more for each answer that comes soon, half for one
    that does not (TCP's way, with the server's queue as what must not grow).

    Never less than `LEAST`: a picture is not answered before its semantics are there, which come behind its GOP."""

    LEAST = 8
    SOON_NS = 250_000_000

    def __init__(self, most: int) -> None:
        self._most, self._least = most, min(self.LEAST, most)
        self.room = self._least
        self._halved_ns = 0

    def answered(self, sent_ns: int, now_ns: int) -> None:
        if now_ns - sent_ns <= self.SOON_NS:
            self.room = min(self.room + 1, self._most)
        elif sent_ns >= self._halved_ns:  # else it was under way when the last one told the same
            self.room, self._halved_ns = max(self._least, self.room // 2), now_ns


class Dispatcher:
    """For the publisher's thread, but for `progress` and `want`."""

    def __init__(self, spool: Spool, in_flight: Callable[[], int], config: MqttConfig, clock: Clock) -> None:
        self._spool, self._in_flight, self._config, self._clock = spool, in_flight, config, clock
        self._live, self._backfill = _Way(Lane.LIVE), _Way(Lane.BACKFILL)
        self._live_in_a_row = 0
        self._pace = BackfillPace(max(1, config.window // BACKFILL_WINDOW))
        self._backfill_sent_ns: dict[int, int] = {}
        self._alone: tuple[Record, int] | None = None
        self._largest_taken = 0
        self._refused: tuple[int, int] = (0, 0)
        self._answered = False
        self._wanted = False
        self._parting = 0

    def choose(self) -> Record | None:
        """The record whose turn it is; None if there is none, or no room for it."""
        under_way = self._in_flight()
        if self._alone is not None and under_way == 0:
            self._largest_taken = max(self._largest_taken, self._alone[0].size)
            self._alone = None
        if under_way >= self._config.window or self._alone is not None:
            return None
        record = self._next()
        if record is not None and record.size > self._largest_taken and under_way:
            return None
        return record

    def send(self, record: Record) -> bool:
        """The record is handed over now; True if it was before."""
        way, now_ns = self._way(record), self._clock.now_ns()
        first = self._spool.next_after(0, way.lane)
        if first is not None and first.record_id == record.record_id:
            # Nothing sent is waiting for an answer: the server's silence is counted from here.
            way.progress_ns = now_ns
        if record.size > self._largest_taken:
            self._alone = (record, now_ns)
        way.cursor = record.record_id
        if way is self._backfill:
            self._backfill_sent_ns[record.record_id] = now_ns
        self._live_in_a_row = self._live_in_a_row + 1 if way is self._live else 0
        again = record.record_id <= way.last_sent
        way.last_sent = max(way.last_sent, record.record_id)
        return again

    def skip(self, record: Record) -> None:
        """It could not be read. Where the spool has not given it up, its lane waits for a moment and tries again."""
        way = self._way(record)
        first = self._spool.next_after(way.cursor, way.lane)
        if first is not None and first.record_id == record.record_id:
            way.blocked_until_ns = self._clock.now_ns() + round(UNREADABLE_WAIT_S * 1e9)

    def progress(self, lane: Lane, freed: Sequence[Record] = ()) -> None:
        """The server has freed something; from the transport's thread."""
        self._answered = True
        times_ns = [self._backfill_sent_ns.pop(record.record_id, None) for record in freed]
        if lane is Lane.BACKFILL and times_ns and times_ns[-1] is not None:
            self._pace.answered(times_ns[-1], self._clock.now_ns())
        way = self._live if lane is Lane.LIVE else self._backfill
        way.progress_ns, way.patience = self._clock.now_ns(), 1.0

    def part(self) -> None:
        """What is live becomes backfill in a moment: until another session has begun it goes at the pace of such."""
        self._parting = len(self._spool.own)

    def want(self) -> None:
        """The server misses something that was sent; from the transport's thread."""
        self._wanted = True

    @property
    def wanted(self) -> bool:
        """Whether `rewind_if_silent` has something to do at once."""
        return self._wanted

    def rewind(self) -> None:
        """A new connection: everything unacknowledged is sent again."""
        for way in (self._live, self._backfill):
            way.cursor, way.progress_ns = 0, self._clock.now_ns()
        self._backfill_sent_ns.clear()
        self._answered = self._wanted = False

    def rewind_if_silent(self, now_ns: int) -> bool:
        """Send a lane again whose records the server has left without an answer for too long, or both where it asked
        for what it misses; True if there was one."""
        if self._wanted:
            self._wanted = False
            for way in (self._live, self._backfill):
                way.cursor, way.progress_ns = 0, now_ns
            return True
        silent = [way for way in (self._live, self._backfill) if self._is_silent(way, now_ns)]
        for way in silent:
            way.cursor, way.progress_ns = 0, now_ns
            way.patience = min(way.patience * 2, MAX_PATIENCE)
        return bool(silent)

    def lost(self) -> Record | None:
        """The connection has ended of itself. A record that no broker will take goes into quarantine, and is
        returned."""
        alone, self._alone = self._alone, None
        if not self._answered:
            self._largest_taken = 0  # as far as we know it is another broker, or has other limits
        if alone is None or self._in_flight() == 0 or self._clock.now_ns() - alone[1] > REFUSED_WITHIN_S * 1e9:
            self._refused = (0, 0)
            return None
        record, (number, times) = alone[0], self._refused
        times = times + 1 if number == record.record_id else 1
        self._refused = (record.record_id, times)
        if times < REFUSALS:
            return None
        self._spool.quarantine(record.record_id)
        return record

    def _next(self) -> Record | None:
        live = self._first(self._live)
        oldest = self._spool.next_after(0, Lane.LIVE)
        room = self._room(self._live) if self._parting == len(self._spool.own) else UNANSWERED
        if live is not None and oldest is not None and live.record_id - oldest.record_id >= room:
            live = None
        if live is None or self._live_in_a_row >= LIVE_FOR_EACH_BACKFILL:
            record, oldest = self._first(self._backfill), self._spool.next_after(0, Lane.BACKFILL)
            room = self._room(self._backfill)
            if record is not None and oldest is not None and record.record_id - oldest.record_id < room:
                return record
        return live

    def _room(self, way: _Way) -> int:
        """What of a backlog may be without an answer. One that stays away may wait for what comes next, fragments or
        semantics: so the room grows with the silence."""
        silent_ns = self._clock.now_ns() - way.progress_ns
        return min(self._pace.room + BackfillPace.LEAST * (silent_ns // MORE_AFTER_NS), self._config.window)

    def _first(self, way: _Way) -> Record | None:
        if self._clock.now_ns() < way.blocked_until_ns:
            return None
        return self._spool.next_after(way.cursor, way.lane)

    def _is_silent(self, way: _Way, now_ns: int) -> bool:
        first = self._spool.next_after(0, way.lane)
        if first is None or first.record_id > way.cursor:
            return False
        return now_ns - way.progress_ns > self._config.resend_after_s * way.patience * 1e9

    def _way(self, record: Record) -> _Way:
        return self._live if record.lane is Lane.LIVE else self._backfill
