"""A spool's file under harm: kills, truncation, garbage, flipped bits, full and failing disks, another owner."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scene_edge.codec.checksum import crc32c
from scene_edge.codec.errors import StoreError
from scene_edge.edge import spool_sqlite
from scene_edge.edge.spool import Lane, Limits, Record
from scene_edge.edge.spool_file import MAX_DAMAGED, DamagedFileError, Head, SpoolFile
from scene_edge.edge.spool_sqlite import SqliteSpool
from tests.edge.spools import OLD, SESSION, Bench, benches, fragments, record, seqs, settle, walk
from tests.fuzz.engine import CORPUS
from tests.waiting import wait_until

EVERYTHING = os.environ.get("SCENE_EDGE_TEST_EVERYTHING") == "1"
"""As `make faults` sets it: every offset, every statement, every round, in place of a few of each."""

TAIL_BYTES = 4096
SAMPLED_OFFSETS = TAIL_BYTES if EVERYTHING else 24
STATEMENTS = range(22) if EVERYTHING else range(0, 22, 3)
KILLS = 40 if EVERYTHING else 3


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(spool_sqlite, "COMMIT_S", 0.02)
    monkeypatch.setattr(spool_sqlite, "RETRY_FIRST_S", 0.01)
    monkeypatch.setattr(spool_sqlite, "RETRY_LAST_S", 0.05)
    yield from benches(tmp_path, "sqlite")


def fill(bench: Bench, count: int = 12, size: int = 900) -> dict[int, bytes]:
    """A closed file in which OLD left `count` records; what they hold, by number."""
    old = bench.open(OLD)
    for seq in range(count):
        assert old.put([record(seq, size=size)])
    old.close()
    return {seq: record(seq, size=size).payload for seq in range(count)}


def read_all(bench: Bench) -> dict[int, bytes]:
    """Everything that a new session would send; what is damaged leaves the spool and is counted."""
    spool = bench.open()
    found = {}
    for item in walk(spool, Lane.BACKFILL):
        payload = spool.payload(item.record_id)
        if payload is not None:
            found[item.last_seq] = payload
    left = seqs(spool, Lane.BACKFILL)
    assert spool.put([record(0)]), "it goes on whatever was found"
    spool.close()
    return {seq: found[seq] for seq in left}


def harm(bench: Bench, path: Path, change: Callable[[bytes], bytes]) -> None:
    """Put a changed file in place: every record that is read is whole, and every one that is not was spoken of."""
    good = path.read_bytes()
    held = {seq: record(seq, size=900).payload for seq in range(12)}
    path.write_bytes(change(good))
    bench.heard.given_up.clear()
    bench.heard.degraded.clear()
    found = read_all(bench)
    assert found.items() <= held.items(), "nothing damaged is ever sent"
    lost = held.keys() - found.keys()
    assert not lost or bench.heard.degraded or {seq for seq, _ in bench.heard.given_up} == lost
    for file in path.parent.iterdir():
        file.unlink()
    path.write_bytes(good)


def test_whatever_is_cut_off_its_end_it_opens_and_says_what_is_gone(bench: Bench) -> None:
    fill(bench)
    size = bench.file.stat().st_size
    offsets = random.Random(1).sample(range(TAIL_BYTES), SAMPLED_OFFSETS)
    for cut in (0, TAIL_BYTES - 1, *offsets):
        harm(bench, bench.file, lambda good, cut=cut: good[: size - TAIL_BYTES + cut])  # type: ignore[misc]


def test_whatever_is_garbled_at_its_end_it_opens_and_sends_nothing_wrong(bench: Bench) -> None:
    fill(bench)
    size, generator = bench.file.stat().st_size, random.Random(2)
    for offset in generator.sample(range(TAIL_BYTES), SAMPLED_OFFSETS):
        at = size - TAIL_BYTES + offset
        noise = generator.randbytes(generator.choice([1, 8, 64, 4096]))
        harm(bench, bench.file, lambda good, at=at, noise=noise: (good[:at] + noise + good[at + len(noise) :])[:size])  # type: ignore[misc]


def test_any_page_may_be_garbled(bench: Bench) -> None:
    fill(bench)
    generator = random.Random(3)
    for start in range(0, bench.file.stat().st_size, 4096):
        noise = generator.randbytes(200)
        at = start + generator.randrange(4096 - 200)
        harm(bench, bench.file, lambda good, at=at, noise=noise: good[:at] + noise + good[at + 200 :])  # type: ignore[misc]


@pytest.mark.parametrize("content", [b"", b"not a database", b"SQLite format 3\0" + bytes(2000)])
def test_a_file_that_is_no_spool_is_moved_aside(bench: Bench, content: bytes) -> None:
    bench.file.parent.mkdir()
    bench.file.write_bytes(content)
    spool = bench.open()
    assert spool.put([record(0)])
    settle(spool)
    aside = bench.file.with_name("gate-1.sqlite.damaged-1")
    assert aside.exists() == bool(content)
    assert any("gate-1.sqlite.damaged-1" in reason for reason in bench.heard.degraded) == bool(content)


def test_a_database_of_somebody_else_is_moved_aside(bench: Bench) -> None:
    bench.file.parent.mkdir()
    connection = sqlite3.connect(bench.file)
    connection.execute("CREATE TABLE heads (name TEXT)")
    connection.close()
    spool = bench.open()
    assert spool.put([record(0)])
    settle(spool)
    assert bench.file.with_name("gate-1.sqlite.damaged-1").exists()


@pytest.mark.parametrize("name", ["message_of_sqlite_not_utf8", "schema_not_utf8", "format_of_the_future"])
def test_damage_that_sqlite_has_no_word_for_is_damage(bench: Bench, name: str) -> None:
    """Taken for a disk that fails for a moment, such a file would stand in the way of its camera for ever."""
    bench.file.parent.mkdir()
    bench.file.write_bytes((CORPUS / f"spool--{name}.bin").read_bytes())
    spool = bench.open()
    assert spool.put([record(0)])
    settle(spool)
    assert bench.file.with_name("gate-1.sqlite.damaged-1").exists()


def test_damaged_files_do_not_pile_up(bench: Bench) -> None:
    bench.file.parent.mkdir()
    for _ in range(MAX_DAMAGED + 3):
        bench.file.write_bytes(b"rubbish" * 100)
        bench.open().close()
    kept = sorted(file.name for file in bench.file.parent.glob("*.damaged-*"))
    assert kept == [f"gate-1.sqlite.damaged-{number}" for number in (4, 5, 6)]


def test_every_flipped_bit_of_a_record_is_seen(tmp_path: Path) -> None:
    """In the head by itself, in the payload by the sum of both."""
    item = replace(record(7, size=60), session=SESSION, size=60)
    head = Head(item, 123).to_bytes()
    read = Head.from_bytes(head)
    assert read is not None
    assert (read.stored_ns, read.record.session, read.record.last_seq, read.record.size) == (123, SESSION, 7, 60)
    for bit in range(8 * len(head)):
        assert Head.from_bytes(flipped(head, bit)) is None
    whole = head + item.payload
    assert all(crc32c(flipped(whole, bit)) != crc32c(whole) for bit in range(8 * len(whole)))


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize(("table", "column"), [("heads", "head"), ("payloads", "payload")])
def test_a_flipped_bit_in_the_file_costs_its_record_alone(bench: Bench, table: str, column: str) -> None:
    fill(bench)
    connection = sqlite3.connect(bench.file)
    (data,) = connection.execute(f"SELECT {column} FROM {table} WHERE row = 5").fetchone()
    connection.execute(f"UPDATE {table} SET {column} = ? WHERE row = 5", (flipped(data, 77),))
    connection.commit()
    connection.close()
    assert sorted(read_all(bench)) == [seq for seq in range(12) if seq != 4]
    if table == "payloads":
        assert bench.heard.given_up == [(4, "damaged")]
    else:
        assert bench.heard.recovered == [11]
        assert "1 records" in bench.heard.degraded[0]


def test_a_damaged_fragment_takes_its_message_along(bench: Bench) -> None:
    old = bench.open(OLD)
    old.put([record(0)])
    old.put(fragments(1))
    old.put([record(2)])
    old.close()
    connection = sqlite3.connect(bench.file)
    connection.execute("UPDATE payloads SET payload = x'00' WHERE row = 3")
    connection.commit()
    connection.close()
    assert sorted(read_all(bench)) == [0, 2]
    assert bench.heard.given_up == [(1, "damaged")] * 3


def test_a_file_that_breaks_while_it_is_used_loses_only_what_cannot_be_read(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bench)
    spool = bench.open()
    write, payload = SpoolFile.write, SpoolFile.payload
    broken = [True]

    def breaks(self: SpoolFile, *args: Any) -> None:
        if broken:
            broken.clear()
            raise DamagedFileError("cannot write the spool", got="database disk image is malformed")
        write(self, *args)

    def reads(self: SpoolFile, row: int, item: Record) -> bytes | None:
        if item.last_seq == 3:
            raise DamagedFileError("cannot read the spool", got="database disk image is malformed")
        return payload(self, row, item)

    monkeypatch.setattr(SpoolFile, "write", breaks)
    monkeypatch.setattr(SpoolFile, "payload", reads)
    spool.put([record(0)])
    settle(spool)
    wait_until(lambda: not broken)
    assert bench.heard.given_up == [(3, "damaged")]
    assert bench.file.with_name("gate-1.sqlite.damaged-1").exists()
    spool.close()
    again = bench.open(99)
    assert sorted(seqs(again, Lane.BACKFILL)) == sorted([seq for seq in range(12) if seq != 3] + [0])
    assert all(again.payload(item.record_id) is not None for item in walk(again, Lane.BACKFILL))


def test_what_is_saved_of_a_broken_file_keeps_its_place_before_what_is_newer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows out of order made the next start send a later frame first, and an ack of it freed those before it."""
    spool = bench.open()
    spool.put([record(0)])
    settle(spool)
    write, broken = SpoolFile.write, [True]

    def breaks(self: SpoolFile, *args: Any) -> None:
        if broken:
            broken.clear()
            raise DamagedFileError("cannot write the spool", got="database disk image is malformed")
        write(self, *args)

    monkeypatch.setattr(SpoolFile, "write", breaks)
    for seq in (1, 2, 3):
        spool.put([record(seq)])
    wait_until(lambda: not broken)
    settle(spool)
    spool.close()
    assert seqs(bench.open(99), Lane.BACKFILL) == [0, 1, 2, 3]


# Disks that fail


class Failing:
    """A connection whose n-th statement and all after it fail, until it is mended."""

    def __init__(self, inner: sqlite3.Connection, plan: Plan) -> None:
        self._inner, self._plan = inner, plan

    def execute(self, *args: Any) -> sqlite3.Cursor:
        self._plan.step()
        return self._inner.execute(*args)

    def executemany(self, *args: Any) -> sqlite3.Cursor:
        self._plan.step()
        return self._inner.executemany(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class Plan:
    def __init__(self, first: int, message: str) -> None:
        self.left, self.message, self.mended = first, message, False

    def step(self) -> None:
        self.left -= 1
        if self.left < 0 and not self.mended:
            raise sqlite3.OperationalError(self.message)


FAULTS = {
    "ENOSPC": "database or disk is full",
    "EIO": "disk I/O error",
    "EROFS": "attempt to write a readonly database",
    "locked": "database is locked",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("nth", STATEMENTS)
def test_the_nth_statement_fails_and_all_after_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, fault: str, nth: int
) -> None:
    """Nothing is refused, the fault is announced, and in the end all of it is in the file and can be sent."""
    connect, plan = sqlite3.connect, Plan(nth, FAULTS[fault])
    monkeypatch.setattr(spool_sqlite, "COMMIT_S", 0.001)
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **more: Failing(connect(*args, **more), plan))
    spool, count = bench.open(), 0
    assert isinstance(spool, SqliteSpool)
    while plan.left >= 0 or count < 2:
        assert spool.put([record(count)])
        count += 1
        wait_until(lambda: plan.left < 0 or not spool._unsaved)
    assert spool.put([record(count)])
    count += 1
    wait_until(lambda: bool(bench.heard.degraded))
    assert bench.heard.degraded == [f"spool in memory alone: {FAULTS[fault]}"]
    assert bench.heard.over == []
    plan.mended = True
    settle(spool)
    wait_until(lambda: bench.heard.over == bench.heard.degraded)
    assert [spool.payload(item.record_id) for item in walk(spool)] == [record(seq).payload for seq in range(count)]
    spool.close()
    assert seqs(bench.open(99), Lane.BACKFILL) == list(range(count))
    assert bench.heard.given_up == []


def test_while_the_file_fails_memory_has_a_cap_of_its_own(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    connect, plan = sqlite3.connect, Plan(0, FAULTS["ENOSPC"])
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **more: Failing(connect(*args, **more), plan))
    spool = bench.open(limits=Limits(1_000_000, memory_bytes=35))
    assert [spool.put([record(seq)]) for seq in range(5)] == [True, True, True, False, False]
    plan.mended = True
    settle(spool)
    assert spool.put([record(5)])
    assert seqs(spool) == [0, 1, 2, 5]


def test_a_database_that_is_really_full(bench: Bench) -> None:
    """SQLite's own limit of pages stands in for the disk's."""
    spool = bench.open()
    assert isinstance(spool, SqliteSpool)
    spool.put([record(0)])
    settle(spool)
    connection = spool._file._connection
    assert connection is not None
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    assert spool.put([record(1, size=50_000)])
    wait_until(lambda: bench.heard.degraded == ["spool in memory alone: database or disk is full"])
    wait_until(lambda: bench.heard.over == bench.heard.degraded)  # a new connection has no such limit
    settle(spool)
    spool.close()
    assert seqs(bench.open(99), Lane.BACKFILL) == [0, 1]


def test_a_record_that_cannot_be_read_is_tried_again_and_then_given_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bench, 3)
    spool = bench.open()
    payload = SpoolFile.payload

    def reads(self: SpoolFile, row: int, item: Record) -> bytes | None:
        if item.last_seq == 1:
            raise StoreError("cannot read the spool", got="disk I/O error")
        return payload(self, row, item)

    monkeypatch.setattr(SpoolFile, "payload", reads)
    first, bad, last = walk(spool, Lane.BACKFILL)
    assert spool.payload(first.record_id) is not None
    for _ in range(spool_sqlite.MAX_FAILED_READS):
        assert bad in walk(spool, Lane.BACKFILL)
        assert spool.payload(bad.record_id) is None
        wait_until(lambda: bench.heard.over == bench.heard.degraded != [])
    assert walk(spool, Lane.BACKFILL) == [first, last]
    assert bench.heard.given_up == [(1, "damaged")]


def test_a_disk_that_is_gone_costs_no_record(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(bench, 3)
    connect, plan = sqlite3.connect, Plan(10**6, FAULTS["EIO"])
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **more: Failing(connect(*args, **more), plan))
    spool = bench.open()
    plan.left = 0
    first = walk(spool, Lane.BACKFILL)[0]
    for _ in range(5 * spool_sqlite.MAX_FAILED_READS):
        assert spool.payload(first.record_id) is None
    assert len(walk(spool, Lane.BACKFILL)) == 3
    plan.mended = True
    wait_until(lambda: bench.heard.over == bench.heard.degraded != [])
    assert spool.payload(first.record_id) == record(0, size=900).payload
    assert bench.heard.given_up == []


def test_two_cameras_do_not_share_a_file(bench: Bench) -> None:
    first = bench.open(OLD)
    assert first.put([record(0)])
    settle(first)
    second = bench.open(SESSION)
    assert bench.heard.degraded == ["spool in memory alone: database is locked"]
    assert second.put([record(0)])
    assert walk(second, Lane.BACKFILL) == []
    first.close()
    settle(second)
    assert seqs(second, Lane.BACKFILL) == [0], "taken over late, behind what is live"
    assert bench.heard.recovered == [1]
    assert bench.heard.over == bench.heard.degraded


def test_a_folder_that_cannot_be_made(bench: Bench) -> None:
    (bench.folder / "spool").write_text("a file in its place")
    spool = bench.open()
    assert spool.put([record(0)])
    assert bench.heard.degraded[0].startswith("spool in memory alone: ")
    (bench.folder / "spool").unlink()
    settle(spool)
    assert bench.file.exists()


# Kills

CHILD = """
import itertools
import sys
import time
from pathlib import Path
from scene_edge.edge import spool_sqlite
from scene_edge.edge.clock import SystemClock
from scene_edge.edge.spool import Limits, Notices, Record
spool_sqlite.COMMIT_S = 0.002
save = spool_sqlite.SqliteSpool._save
stored = [-1]
def told(self):
    with self.changed:
        batch = list(self._unsaved.values())[: spool_sqlite.MAX_ROWS_A_COMMIT]
    last = batch[-1].record.last_seq if batch else None
    save(self)
    if last is not None:
        stored.append(last)
        print(last, flush=True)
spool_sqlite.SqliteSpool._save = told
session = int(sys.argv[2])
spool = spool_sqlite.SqliteSpool(
    Path(sys.argv[1]), Limits(10**9), session=session, clock=SystemClock(), notices=Notices()
)
for seq in itertools.count():
    while not spool.put([Record("video", (b"%d|" % seq) * 300, seq, (seq,))]):
        time.sleep(0.001)  # full for the moment, on a slow disk: only the signal may end this
    if seq % 7 == 6:
        spool.acknowledge(session, max(0, stored[-1] - 40))
"""


def test_what_was_reported_as_stored_survives_kill_9(bench: Bench) -> None:
    """A child puts, acknowledges and commits until it is killed; nothing that it said was stored is missing."""
    generator = random.Random(4)
    for session in range(1, KILLS + 1):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(bench.file), str(session)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        told = -1
        for _ in range(generator.randrange(3, 40)):
            told = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        told = max([told, *(int(line) for line in child.stdout.read().splitlines() if line)])
        child.wait()
        child.stdout.close()
        spool = bench.open(1000 + session)
        found = {item.last_seq: item for item in walk(spool, Lane.BACKFILL) if item.session == session}
        assert {seq for seq in range(told - 39, told + 1) if seq > 0} <= found.keys()
        assert sorted(found) == list(range(min(found), max(found) + 1))
        for seq, item in found.items():
            assert spool.payload(item.record_id) == (b"%d|" % seq) * 300
        spool.acknowledge(session, max(found))
        spool.close()
    assert bench.heard.given_up == []
    assert bench.heard.degraded == []
