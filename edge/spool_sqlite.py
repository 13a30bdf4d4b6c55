"""The durable spool: records in an SQLite file, committed in groups; what a crash loses is less than a second old.

**What a crash can lose.** Only records that the server has not acknowledged and that are younger than one commit: at
most 200 ms of them, or 10, and what a commit of about 4 ms (a slow card: 100 ms) holds up. Everything older is in the
file (WAL, `synchronous=FULL`) and is sent by the next process. While the file cannot be written the bound is
`memory_bytes`.

**Live delay.** A record can be sent the moment it is put, from memory; its commit follows. One that the server
acknowledges before that never reaches the file.

**When the file fails** (disk full, input/output error, read-only, locked), records stay in memory up to
`memory_bytes`, the reason is announced, and the file is tried again with growing pauses. A broken file is moved aside,
and a new one begun.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from scene_edge.codec.errors import StoreError
from scene_edge.edge.backoff import Backoff
from scene_edge.edge.clock import Clock
from scene_edge.edge.spool import Entry, Index, Lane, Limits, Notices, Record, SpoolCounts, fits, oldest_ns, stamp
from scene_edge.edge.spool_file import DamagedFileError, Head, Row, SpoolFile

COMMIT_RECORDS = 10
COMMIT_S = 0.2
RETRY_FIRST_S, RETRY_LAST_S = 1.0, 60.0
MAX_ROWS_A_COMMIT = 256
MAX_FAILED_READS = 3
"""A record that cannot be read so often, though its file opens each time, is given up: the lane must go on."""

CLOCK_WAS_SET_NS = 1_672_531_200_000_000_000
"""The year 2023: an earlier time of storing is that of a board without a clock, and says nothing about age."""


@dataclass(slots=True)
class _Unsaved:
    """A record that is in memory alone, and since when."""

    record: Record
    stored_ns: int
    quarantined: bool = False


class SqliteSpool:
    """See the module, and `spool.Spool` for the contract. Opens what is there; never raises because of the file.

    Two locks: `changed` guards the books and is held for moments only, so that no video waits for a disk; `_file_lock`
    guards the connection. Whoever holds `changed` never takes the other.
    """

    file_type: type[SpoolFile] = SpoolFile

    def __init__(self, path: Path, limits: Limits, *, session: int, clock: Clock, notices: Notices) -> None:
        self.changed = threading.Condition()
        self._limits, self._session, self._clock, self._notices = limits, session, clock, notices
        self._index = Index(session)
        self.sessions, self.own = self._index.sessions, self._index.own
        self._file = self.file_type(path)
        self._file_lock = threading.Lock()
        self._unsaved: dict[int, _Unsaved] = {}
        self._unsaved_bytes = 0
        self._due_s: float | None = None
        self._done_rows: set[int] = set()
        self._bad_rows: set[int] = set()
        self._next_row = 1
        self._loaded = False
        self._failure: str | None = None
        self._failed_reads: tuple[int, int] = (0, 0)
        self._closing = False
        self._backoff = Backoff(RETRY_FIRST_S, RETRY_LAST_S, random.Random())
        self._attempt(self._open)
        self._writer = threading.Thread(target=self._run, name="spool", daemon=True)
        self._start()

    # The contract

    def begin_session(self, session: int) -> bool:
        # While the writer is at work it knows records by numbers that change here; and nobody waits for a disk.
        if not self._file_lock.acquire(blocking=False):
            return False
        try:
            with self.changed:
                if not self._loaded:
                    return False
                moved = self._index.begin_session(session)
                self._unsaved = {
                    moved.get(number, number): replace(item, record=replace(item.record, record_id=moved[number]))
                    if number in moved
                    else item
                    for number, item in self._unsaved.items()
                }
                self._session = session
                self.changed.notify_all()
                return True
        finally:
            self._file_lock.release()

    def put(self, records: Sequence[Record], *, must: bool = False) -> bool:
        with self.changed:
            self._expire()
            stamped = stamp(records, self._session)
            size = sum(record.size for record in stamped)
            room = self._unsaved_bytes + size <= self._limits.memory_bytes and fits(self._index, stamped, self._limits)
            if self._closing or not (must or room) or any(map(self._index.is_done, stamped)):
                return False
            now_ns = self._clock.now_ns()
            stored_ns = now_ns + self._clock.utc_offset_ns()
            for record in stamped:
                kept = self._index.add(record, now_ns).record
                self._unsaved[kept.record_id] = _Unsaved(kept, stored_ns)
            self._unsaved_bytes += size
            self._work_waits()
            self.changed.notify_all()
            return True

    def next_after(self, record_id: int, lane: Lane = Lane.LIVE) -> Record | None:
        with self.changed:
            self._expire()
            return self._index.next_after(record_id, lane)

    def payload(self, record_id: int) -> bytes | None:
        with self.changed:
            entry = self._index.find(record_id)
            if entry is None:
                return None
            if record_id in self._unsaved:
                return entry.record.payload
        try:
            with self._file_lock:
                payload = self._file.payload(entry.row, entry.record)
        except DamagedFileError:
            payload = None
        except StoreError as error:
            self._note_failed_read(record_id, error)
            return None
        if payload is None:
            self._give_up(record_id, "damaged")
        return payload

    def acknowledge(self, session: int, seq: int) -> list[Record]:
        with self.changed:
            freed = self._index.acknowledge(session, seq)
            for entry in freed:
                self._forget(entry)
            self.changed.notify_all()
            return [entry.record for entry in freed]

    def quarantine(self, record_id: int) -> None:
        with self.changed:
            for entry in self._index.take_message(record_id):
                if entry.row:
                    self._bad_rows.add(entry.row)
                else:
                    self._unsaved[entry.record.record_id].quarantined = True
                self._notices.given_up(entry.record, "quarantined")
            self._work_waits()
            self.changed.notify_all()

    def counts(self) -> SpoolCounts:
        with self.changed:
            return self._index.counts()

    def held(self) -> dict[int, int] | None:
        with self.changed:
            return self._index.held() if self._loaded else None

    def close(self) -> None:
        with self.changed:
            self._closing = True
            self.changed.notify_all()
        self._writer.join()

    def flush(self) -> bool:
        """Write what waits; False if the file does not take it. The writer's thread does so when it is due."""
        return self._attempt(self._save)

    def _start(self) -> None:
        self._writer.start()

    # Books, with `changed` held

    def _expire(self) -> None:
        for entry in self._index.take_older_than(oldest_ns(self._clock, self._limits)):
            self._forget(entry)
            self._notices.given_up(entry.record, "too_old")
            self.changed.notify_all()

    def _forget(self, entry: Entry) -> None:
        """It has left the index: neither memory nor file need keep it."""
        if entry.row:
            self._done_rows.add(entry.row)
        elif self._unsaved.pop(entry.record.record_id, None) is not None:
            self._unsaved_bytes -= entry.record.size
        self._work_waits()

    def _work_waits(self) -> None:
        if self._due_s is None:
            self._due_s = time.monotonic() + COMMIT_S

    def _give_up(self, record_id: int, reason: str) -> None:
        with self.changed:
            for entry in self._index.take_message(record_id):
                self._forget(entry)
                self._notices.given_up(entry.record, reason)
            self.changed.notify_all()

    def _note_failed_read(self, record_id: int, error: StoreError) -> None:
        """The writer opens the file anew; a record that fails again and again behind that is lost. While the file does
        not open at all that says nothing of a record."""
        if self._failure is not None:
            return
        self._fail(error)
        number, times = self._failed_reads
        times = times + 1 if number == record_id else 1
        self._failed_reads = (record_id, times)
        if times >= MAX_FAILED_READS:
            self._give_up(record_id, "damaged")

    # The file, in the writer's thread once it runs

    def _run(self) -> None:
        while self._await_work():
            if self.flush():
                self._backoff.reset()
            elif self._closing:
                break
            else:
                pause_s = self._backoff.next_s()
                with self.changed:
                    self.changed.wait_for(lambda: self._closing, pause_s)
        with self._file_lock:
            self._file.close()

    def _await_work(self) -> bool:
        """Until a commit is due: 10 records or 200 ms. False: closed, and nothing is left to write."""
        with self.changed:
            self.changed.wait_for(lambda: self._closing or self._failure is not None or self._due_s is not None)
            while not self._closing and self._failure is None and len(self._unsaved) < COMMIT_RECORDS:
                left_s = (self._due_s or 0.0) - time.monotonic()
                if left_s <= 0:
                    break
                self.changed.wait(left_s)
            return not self._closing or bool(self._unsaved or self._done_rows or self._bad_rows)

    def _attempt(self, work: Callable[[], None]) -> bool:
        """Do something with the file. What fails is announced, and the file opened anew before the next try; one that
        is broken is replaced at once."""
        try:
            with self._file_lock:
                try:
                    if self._failure is not None:
                        self._open()
                    work()
                except DamagedFileError as error:
                    self._begin_anew(error)
        except StoreError as error:
            self._fail(error)
            return False
        except Exception as error:  # whatever it is, video goes on from memory, and it is said
            self._fail(StoreError("the spool's writer failed", got=repr(error)))
            return False
        self._succeed()
        return True

    def _open(self) -> None:
        self._file.open()
        if not self._loaded:
            self._load()

    def _load(self) -> None:
        """Take over what earlier sessions left."""
        heads, last_row = self._file.heads(), self._file.last_row()
        bad = {row for row, head in heads if head is None}
        good = iter([(row, head) for row, head in heads if head is not None])
        while some := list(islice(good, MAX_ROWS_A_COMMIT)):
            with self.changed:  # for moments only: video may be running already
                if frames := sum(self._take_over(row, head) for row, head in some):
                    self._notices.recovered(frames)
        with self.changed:
            orphans = [entry.row for session in self.sessions for entry in self._index.take_orphans(session)]
            self._done_rows |= bad.union(orphans)
            if self._done_rows:
                self._work_waits()
            self._next_row, self._loaded = last_row + 1, True
            self.changed.notify_all()
        if bad:
            self._notices.degrade(f"spool damaged: {len(bad)} records of an earlier session are lost")

    def _take_over(self, row: int, head: Head) -> int:
        """A record of the file into the index; how many frames it has."""
        now_ns = self._clock.now_ns()
        utc_ns = now_ns + self._clock.utc_offset_ns()
        age_ns = max(0, utc_ns - head.stored_ns) if head.stored_ns >= CLOCK_WAS_SET_NS else 0
        # Another boot's clock read these frames: that says nothing about latency, only how many there are.
        record = replace(head.record, taken_ns=bytes(head.record.frames))
        self._index.add(record, now_ns - age_ns, row)
        return record.frames

    def _save(self) -> None:
        with self.changed:
            batch = list(islice(self._unsaved.items(), MAX_ROWS_A_COMMIT))
            rows = [
                Row(self._next_row + number, item.record, item.stored_ns, item.quarantined)
                for number, (_, item) in enumerate(batch)
            ]
            done, bad = set(self._done_rows), set(self._bad_rows)
            self._due_s = None
        if rows or done or bad:
            self._file.write(rows, sorted(bad), sorted(done))
        with self.changed:
            self._next_row += len(rows)
            self._done_rows -= done
            self._bad_rows -= bad
            for (record_id, _), row in zip(batch, rows, strict=True):
                self._note_saved(record_id, row)
            if self._unsaved or self._done_rows or self._bad_rows:
                self._work_waits()
            self.changed.notify_all()  # memory has room again

    def _note_saved(self, record_id: int, row: Row) -> None:
        item = self._unsaved.pop(record_id, None)
        if item is None:  # acknowledged meanwhile
            self._done_rows.add(row.row)
            return
        self._unsaved_bytes -= item.record.size
        entry = self._index.find(record_id)
        if entry is not None:
            # An array is a third of a tuple of integers, and after an hour without a network there are many.
            entry.record = replace(entry.record, payload=b"", taken_ns=array("q", tuple(entry.record.taken_ns)))
            entry.row = row.row
        elif not row.quarantined:
            self._bad_rows.add(row.row)

    def _begin_anew(self, error: DamagedFileError) -> None:
        """Move a broken file aside. What can still be read of it goes into the new one, as much as memory may hold."""
        saved = self._salvage()
        aside = self._file.move_aside()
        with self.changed:
            utc_offset_ns = self._clock.utc_offset_ns()
            lost: list[int] = []
            for entry in [entry for entry in self._index.entries() if entry.row]:
                number = entry.record.record_id
                if number in saved:
                    entry.record, entry.row = replace(entry.record, payload=saved[number]), 0
                    self._unsaved[number] = _Unsaved(entry.record, entry.since_ns + utc_offset_ns)
                    self._unsaved_bytes += entry.record.size
                else:
                    lost.append(number)
            # Rows keep the order of records, by which the next start goes: what was saved comes before what is newer.
            self._unsaved = dict(sorted(self._unsaved.items()))
            for entry in [entry for number in lost for entry in self._index.take_message(number)]:
                self._forget(entry)
                self._notices.given_up(entry.record, "damaged")
            self._done_rows.clear()
            self._bad_rows.clear()
            self._next_row, self._loaded = 1, True
            self._work_waits()
        self._notices.degrade(f"spool damaged: moved aside as {aside.name} ({error.got})")
        self._file.open()

    def _salvage(self) -> dict[int, bytes]:
        with self.changed:
            entries = [entry for entry in self._index.entries() if entry.row]
            room = self._limits.memory_bytes - self._unsaved_bytes
        saved: dict[int, bytes] = {}
        for entry in entries:
            room -= entry.record.size
            if room < 0:
                break
            with contextlib.suppress(StoreError):
                payload = self._file.payload(entry.row, entry.record)
                if payload is not None:
                    saved[entry.record.record_id] = payload
        return saved

    def _fail(self, error: StoreError) -> None:
        reason = f"spool in memory alone: {error.got}"
        before = self._failure
        with self.changed:
            self._failure = reason
            self.changed.notify_all()
        if before == reason:
            return
        if before is not None:
            self._notices.recover(before)
        self._notices.degrade(reason)

    def _succeed(self) -> None:
        before, self._failure = self._failure, None
        if before is not None:
            self._notices.recover(before)
