"""What every spool promises, in memory and in a file: order, lanes, acknowledgements, caps, quarantine, books."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scene_edge.edge import spool_sqlite
from scene_edge.edge.spool import Lane, Limits, Record, Spool, SpoolCounts
from tests.edge.spools import OLD, SESSION, Bench, benches, fragments, record, seqs, settle, walk
from tests.waiting import wait_until


@pytest.fixture(params=["memory", "sqlite"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    yield from benches(tmp_path, request.param)


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[Bench]:
    yield from benches(tmp_path, "sqlite")


def with_history(bench: Bench) -> Spool:
    """A spool of SESSION in which OLD left frames 0 to 3, frame 2 in three fragments, and semantics up to 3."""
    old = bench.open(OLD)
    for records in ([record(0)], [record(1)], fragments(2), [record(3)], [record(3, "semantic")]):
        assert old.put(records)
    old.close()
    return bench.open()


def test_order_and_cumulative_acknowledgements(bench: Bench) -> None:
    spool = bench.open()
    assert spool.put([record(0)])
    assert spool.put([record(1)])
    assert spool.put([record(1, "semantic")])
    assert spool.put([record(2)])
    assert [(item.leaf, item.last_seq) for item in walk(spool)] == [
        ("video", 0), ("video", 1), ("semantic", 1), ("video", 2)
    ]  # fmt: skip
    assert {(item.session, item.size) for item in walk(spool)} == {(SESSION, 10)}
    freed = spool.acknowledge(SESSION, 1)
    assert sorted((item.leaf, item.last_seq) for item in freed) == [("semantic", 1), ("video", 0), ("video", 1)]
    assert spool.counts() == SpoolCounts(1, 10, 1)
    assert spool.acknowledge(SESSION, 1) == []
    assert spool.acknowledge(OLD, 5) == []


@pytest.mark.parametrize("wait", [False, True])
def test_payloads_and_times_come_back_as_they_were_put(bench: Bench, wait: bool) -> None:
    spool = bench.open()
    put = [record(0, size=100_000, frames=5), record(4, "semantic", size=61)]
    for item in put:
        assert spool.put([item])
    if wait:
        settle(spool)
    for kept, item in zip(walk(spool), put, strict=True):
        assert spool.payload(kept.record_id) == item.payload
        assert list(kept.taken_ns) == list(item.taken_ns)
        assert (kept.leaf, kept.last_seq, kept.frames) == (item.leaf, item.last_seq, item.frames)
    assert spool.payload(1) is None


def test_a_full_spool_takes_all_fragments_or_none(bench: Bench) -> None:
    spool = bench.open(limits=Limits(25))
    assert not spool.put([record(0, frames=0), record(0, frames=0), record(0)])
    assert spool.counts().records == 0
    assert spool.put([record(0, frames=0), record(0)])
    assert not spool.put([record(1)])
    assert spool.put([record(1)], must=True)
    spool.acknowledge(SESSION, 1)
    assert spool.put([record(2)])


def test_what_is_acknowledged_already_is_not_taken_and_a_wild_number_shuts_no_door(bench: Bench) -> None:
    spool = bench.open()
    spool.put([record(0), record(1)])
    assert len(spool.acknowledge(SESSION, 2**32 - 1)) == 2
    assert not spool.put([record(1, "semantic")])
    assert spool.put([record(2)])


def test_a_record_that_is_not_done_with_keeps_those_behind_it(bench: Bench) -> None:
    spool = bench.open()
    spool.put([record(9, last_frame=4)])
    spool.put([record(5)])
    assert spool.acknowledge(SESSION, 5) == []
    assert len(spool.acknowledge(SESSION, 9)) == 2


def test_quarantine_takes_the_whole_message_and_says_so(bench: Bench) -> None:
    spool = bench.open()
    for records in ([record(0)], fragments(1), [record(2)]):
        spool.put(records)
    spool.quarantine(walk(spool)[2].record_id)
    assert seqs(spool) == [0, 2]
    assert bench.heard.given_up == [(1, "quarantined")] * 3
    assert spool.counts().frames == 2
    spool.quarantine(walk(spool)[0].record_id + 1)  # it is gone already
    assert len(bench.heard.given_up) == 3


def test_age_takes_the_oldest_and_makes_room(bench: Bench) -> None:
    spool = bench.open(limits=Limits(40, max_age_s=60))
    spool.put(fragments(0, 2))
    bench.clock.advance(40)
    spool.put([record(1)])
    assert not spool.put([record(2)])
    bench.clock.advance(21)
    assert spool.put([record(2)])
    assert seqs(spool) == [1, 2]
    assert bench.heard.given_up == [(0, "too_old")] * 2
    bench.clock.advance(61)
    assert spool.next_after(0) is None
    assert spool.counts() == SpoolCounts(0, 0, 0)


def test_nothing_is_taken_beyond_the_greatest_number_of_records(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scene_edge.edge.spool.MAX_RECORDS", 3)
    spool = bench.open()
    assert [spool.put([record(seq)]) for seq in range(5)] == [True, True, True, False, False]


def test_what_an_earlier_session_left_waits_in_its_own_lane(durable: Bench) -> None:
    spool = with_history(durable)
    assert spool.put([record(0)])
    assert seqs(spool) == [0]
    assert seqs(spool, Lane.BACKFILL) == [0, 1, 2, 2, 2, 3, 3]
    assert durable.heard.recovered == [4]
    assert spool.sessions == {OLD, SESSION}
    counts = spool.counts()
    assert (counts.records, counts.frames, counts.backfill_records, counts.backfill_frames) == (8, 5, 7, 4)
    assert [spool.payload(item.record_id) for item in walk(spool, Lane.BACKFILL)][:2] == [
        record(0).payload,
        record(1).payload,
    ]


def test_an_acknowledgement_frees_its_own_session_alone(durable: Bench) -> None:
    spool = with_history(durable)
    spool.put([record(0)])
    assert sum(item.frames for item in spool.acknowledge(OLD, 1)) == 2
    assert (seqs(spool), seqs(spool, Lane.BACKFILL)) == ([0], [2, 2, 2, 3, 3])
    spool.acknowledge(SESSION, 3)
    assert (seqs(spool), seqs(spool, Lane.BACKFILL)) == ([], [2, 2, 2, 3, 3])
    assert spool.put([record(4)])
    settle(spool)
    spool.close()
    again = durable.open(99)
    assert [(item.session, item.last_seq) for item in walk(again, Lane.BACKFILL)] == [
        (OLD, 2), (OLD, 2), (OLD, 2), (OLD, 3), (OLD, 3), (SESSION, 4)
    ]  # fmt: skip


def begin(spool: Spool, session: int) -> None:
    """The writer may be at work for a moment."""
    wait_until(lambda: spool.begin_session(session))


NEXT = SESSION + 1


def test_another_session_makes_what_is_there_backfill_and_what_is_new_live(bench: Bench) -> None:
    spool = bench.open()
    spool.put([record(0)])
    spool.put(fragments(1))
    spool.put([record(2), record(2, "semantic")])
    spool.acknowledge(SESSION, 0)
    begin(spool, NEXT)
    assert (seqs(spool), seqs(spool, Lane.BACKFILL)) == ([], [1, 1, 1, 2, 2])
    assert spool.put([record(0)])
    assert [(item.session, item.lane) for item in walk(spool)] == [(NEXT, Lane.LIVE)]
    late = replace(record(2, "semantic"), session=SESSION)
    assert spool.put([late]), "semantics of the session before may come a little later"
    assert seqs(spool, Lane.BACKFILL) == [1, 1, 1, 2, 2, 2]
    counts = spool.counts()
    assert (counts.records, counts.backfill_records, counts.backfill_frames, counts.recovered_records) == (7, 6, 2, 0)
    assert spool.own == {SESSION, NEXT}
    assert len(spool.acknowledge(NEXT, 0)) == 1
    assert len(spool.acknowledge(SESSION, 1)) == 3, "fragments stay together"
    spool.quarantine(walk(spool, Lane.BACKFILL)[0].record_id)
    assert seqs(spool, Lane.BACKFILL) == [], "semantics without pictures are of no use"
    assert not spool.put([late])


def test_sessions_of_one_process_are_all_there_for_the_next(durable: Bench) -> None:
    spool = durable.open(OLD)
    for session in (SESSION, NEXT, NEXT + 1):
        for seq in range(3):
            assert spool.put([record(seq)])
        begin(spool, session)
    settle(spool)
    assert [spool.payload(item.record_id) for item in walk(spool, Lane.BACKFILL)] == [
        record(n % 3).payload for n in range(9)
    ]
    spool.close()
    again = durable.open(99)
    assert [(item.session, item.last_seq) for item in walk(again, Lane.BACKFILL)] == [
        (session, seq) for session in (OLD, SESSION, NEXT) for seq in range(3)
    ]
    assert again.counts().recovered_records == 9
    assert again.own == {99}


def test_semantics_that_reach_past_a_session_s_end_do_not_stay_for_ever(durable: Bench) -> None:
    old = durable.open(OLD)
    old.put([record(4, last_frame=4)])
    old.put([record(12, "semantic")])
    old.put([record(12, last_frame=7)])
    old.close()
    spool = durable.open()
    assert spool.acknowledge(OLD, 6)[0].last_seq == 4
    assert seqs(spool, Lane.BACKFILL) == [12, 12]
    assert len(spool.acknowledge(OLD, 7)) == 2, "no frame of that session comes any more"
    settle(spool)
    spool.close()
    assert walk(durable.open(), Lane.BACKFILL) == []


def test_semantics_without_any_video_are_not_taken_over(durable: Bench) -> None:
    old = durable.open(OLD)
    old.put([record(0)])
    old.put([record(4, "semantic")])
    old.acknowledge(OLD, 0)
    old.close()
    spool = durable.open()
    assert walk(spool, Lane.BACKFILL) == []
    assert durable.heard.recovered == []


def test_age_goes_on_while_nothing_runs(durable: Bench) -> None:
    spool = with_history(durable)
    spool.close()
    durable.clock.advance(3600)
    later = durable.open(9, Limits(10_000, max_age_s=3000))
    assert durable.heard.recovered == [4, 4]
    assert walk(later, Lane.BACKFILL) == []
    assert {reason for _, reason in durable.heard.given_up} == {"too_old"}


def test_a_clock_that_was_never_set_makes_nothing_old(durable: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable.clock, "utc_offset_ns", lambda: 0)
    with_history(durable).close()
    monkeypatch.setattr(durable.clock, "utc_offset_ns", lambda: 1_800_000_000_000_000_000)
    assert len(walk(durable.open(9, Limits(10_000, max_age_s=60)), Lane.BACKFILL)) == 7


def test_a_record_that_is_acknowledged_at_once_never_reaches_the_file(
    durable: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_sqlite, "COMMIT_S", 3600.0)
    spool = durable.open()
    spool.put([record(0)])
    spool.put([record(1)])
    spool.acknowledge(SESSION, 0)
    spool.close()
    assert seqs(durable.open(9), Lane.BACKFILL) == [1]


def test_ten_records_are_committed_whatever_the_time(durable: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_sqlite, "COMMIT_S", 3600.0)
    spool = durable.open()
    for seq in range(spool_sqlite.COMMIT_RECORDS):
        spool.put([record(seq)])
    settle(spool)
    assert seqs(spool) == list(range(spool_sqlite.COMMIT_RECORDS))


def test_quarantine_is_kept_up_to_its_cap(durable: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scene_edge.edge.spool_file.QUARANTINE_BYTES", 250)
    spool = durable.open()
    for seq in range(4):
        spool.put([record(seq, size=100)])
        if seq % 2:
            settle(spool)  # some are in the file by then, some not
        spool.quarantine(walk(spool)[0].record_id)
        settle(spool)
    spool.put([record(9)])
    spool.close()
    again = durable.open(9)
    assert seqs(again, Lane.BACKFILL) == [9]
    again.close()
    connection = sqlite3.connect(durable.file)
    kept = connection.execute("SELECT row FROM heads WHERE quarantined = 1 ORDER BY row").fetchall()
    connection.close()
    assert len(kept) == 2


@dataclass
class Model:
    """What a spool must hold, by the simplest means: a list."""

    session: int = 0
    held: list[tuple[int, Record]] = field(default_factory=list)
    acknowledged: int = -1
    highest: int = -1

    def acknowledge(self, session: int, seq: int) -> set[tuple[int, str, int]]:
        before = list(self.held)
        for leaf in ("video", "semantic"):
            mine = [item for item in self.held if item[0] == session and item[1].leaf == leaf]
            for item in mine:
                if item[1].last_seq > seq:
                    break
                self.held.remove(item)
        video = [item[1].last_seq for item in self.held if item[0] == session and item[1].leaf == "video"]
        if session != self.session and (not video or seq >= video[-1]):
            self.held = [item for item in self.held if item[0] != session]
        return {(owner, item.leaf, item.last_seq) for owner, item in before if (owner, item) not in self.held}


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(1, 3), st.booleans()),
        st.tuples(st.just("ack"), st.integers(0, 2), st.integers(0, 30)),
        st.tuples(st.just("reopen"), st.just(0), st.just(False)),
        st.tuples(st.just("look"), st.just(0), st.just(False)),
    ),
    max_size=40,
)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_a_spool_does_what_a_list_would(kind: str, steps: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool_sqlite, "COMMIT_S", 0.001)
        bench, model, next_seq = Bench(Path(folder), kind), Model(), 0
        spool = bench.open(0)
        for step, number, more in steps:
            if step == "put":
                records = fragments(next_seq, number) if not more else [record(next_seq, "semantic")]
                taken = spool.put(records)
                assert taken == (next_seq > model.acknowledged)
                if taken:
                    model.held += [(model.session, item) for item in records]
                    model.highest = next_seq
                next_seq += 1
            elif step == "ack":
                session = max(0, model.session - number)
                if session == model.session:
                    model.acknowledged = max(model.acknowledged, min(more, model.highest))
                freed = {(item.session, item.leaf, item.last_seq) for item in spool.acknowledge(session, more)}
                assert freed == model.acknowledge(session, more)
            elif step == "reopen" and kind == "sqlite":
                spool.close()
                model.session, model.acknowledged, model.highest, next_seq = model.session + 1, -1, -1, 0
                spool = bench.open(model.session)
                for session in range(model.session):
                    model.acknowledge(session, -1)  # semantics that were left without video
            held = [*walk(spool, Lane.BACKFILL), *walk(spool)]
            assert [(item.session, item.leaf, item.last_seq) for item in held] == [
                (owner, item.leaf, item.last_seq) for owner, item in model.held
            ]
            if step == "look":
                assert [spool.payload(item.record_id) for item in held] == [item.payload for _, item in model.held]
            counts = spool.counts()
            assert counts.records == len(model.held)
            assert counts.bytes == sum(len(item.payload) for _, item in model.held)
            assert counts.frames == sum(item.frames for _, item in model.held)
        spool.close()
        assert bench.heard.given_up == []
        assert bench.heard.degraded == []


def test_what_may_still_be_sent_is_told_by_session(bench: Bench) -> None:
    spool = bench.open()
    assert spool.held() == {SESSION: 0}
    spool.put([record(0)])
    spool.put([Record("semantic", b"x", 9)])
    spool.put([replace(item, taken_ns=(1, 2) if item.frames else (), last_frame=4) for item in fragments(6)])
    assert spool.held() == {SESSION: 0}
    spool.acknowledge(SESSION, 0)
    assert spool.held() == {SESSION: 3}, "two frames, in fragments, in which semantics ride that reach to 6"
    spool.acknowledge(SESSION, 9)
    assert spool.held() == {SESSION: 5}, "the next one that may come"
