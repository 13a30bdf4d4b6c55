"""Two lanes: live first, backfill with a share; records that a broker refuses; the books of earlier sessions."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from scene_edge.codec.identity import session_hex
from scene_edge.codec.topics import Topics
from scene_edge.edge.clock import FakeClock
from scene_edge.edge.config import MqttConfig
from scene_edge.edge.lanes import LIVE_FOR_EACH_BACKFILL, REFUSALS, UNANSWERED, BackfillPace, Dispatcher
from scene_edge.edge.ledger import Ledger
from scene_edge.edge.publisher import Publisher, Voice
from scene_edge.edge.spool import Lane, Limits, MemorySpool, Notices, Record
from scene_edge.edge.spool_sqlite import SqliteSpool
from scene_edge.edge.transport import MemoryTransport
from tests.edge.spools import OLD, SESSION, Bench, benches, record, seqs
from tests.waiting import wait_until

TOPICS = Topics("gate-1")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    yield from benches(tmp_path, "sqlite")


def left_behind(bench: Bench, count: int) -> SqliteSpool:
    old = bench.open(OLD)
    for seq in range(count):
        assert old.put([record(seq)])
    old.close()
    spool = bench.open()
    assert isinstance(spool, SqliteSpool)
    return spool


def sent(dispatcher: Dispatcher, limit: int = 1000) -> list[Record]:
    """Hand over whatever has its turn."""
    found = []
    while len(found) < limit and (item := dispatcher.choose()) is not None:
        dispatcher.send(item)
        found.append(item)
    return found


def test_live_goes_first_and_backfill_has_its_share(bench: Bench) -> None:
    spool = left_behind(bench, 30)
    for seq in range(20):
        spool.put([record(seq)])
    dispatcher = Dispatcher(spool, lambda: 0, MqttConfig(window=64), bench.clock)
    order = [item.lane for item in sent(dispatcher)]
    group = [Lane.LIVE] * LIVE_FOR_EACH_BACKFILL + [Lane.BACKFILL]
    assert order[:18] == group + group
    assert order[18:22] == [Lane.LIVE] * 4
    assert order.count(Lane.BACKFILL) == BackfillPace.LEAST, "no more without an answer from the server"
    spool.acknowledge(OLD, 3)
    assert [item.last_seq for item in sent(dispatcher)] == [8, 9, 10, 11]
    spool.put([record(20)])
    spool.acknowledge(OLD, 9)
    assert sent(dispatcher, 1)[0].lane is Lane.LIVE


def test_a_backlog_takes_more_while_answers_come_soon_and_half_where_they_do_not(bench: Bench) -> None:
    spool = left_behind(bench, 60)
    dispatcher = Dispatcher(spool, lambda: 0, MqttConfig(window=64), bench.clock)
    rooms = []
    for late_s in (0.1, 0.1, 0.1, 0.1, 0.9, 0.1):
        under_way = sent(dispatcher)
        first = spool.next_after(0, Lane.BACKFILL)
        assert first is not None
        rooms.append(len(under_way))
        bench.clock.advance(late_s)
        freed = spool.acknowledge(OLD, first.last_seq + 3)
        dispatcher.progress(Lane.BACKFILL, freed)
    assert rooms == [8, 5, 5, 5, 5, 0], "it grows by one for each answer, and halves for the late one"
    pace = BackfillPace(16)
    for _ in range(30):
        pace.answered(0, 1)
    assert pace.room == 16
    pace.answered(0, 10**9)
    pace.answered(0, 10**9 + 1)
    assert pace.room == 8, "what was under way tells the same: it counts once"


def test_a_backlog_that_gets_no_answer_may_wait_for_what_comes_behind_it(bench: Bench) -> None:
    """A picture in more fragments than there is room for, or whose semantics come with a far later message."""
    spool = left_behind(bench, 60)
    dispatcher = Dispatcher(spool, lambda: 0, MqttConfig(window=32), bench.clock)
    dispatcher.rewind()
    found = []
    for _ in range(6):
        found.append(len(sent(dispatcher)))
        bench.clock.advance(0.5)
    assert found == [8, 8, 8, 8, 0, 0], "up to the window"


def test_live_records_wait_for_answers_too(bench: Bench) -> None:
    spool = bench.open()
    for seq in range(UNANSWERED + 10):
        spool.put([record(seq)])
    dispatcher = Dispatcher(spool, lambda: 0, MqttConfig(), bench.clock)
    assert len(sent(dispatcher)) == UNANSWERED
    spool.acknowledge(SESSION, 5)
    assert len(sent(dispatcher)) == 6


def test_each_lane_is_sent_again_for_its_own_silence(bench: Bench) -> None:
    spool = left_behind(bench, 2)
    spool.put([record(0)])
    dispatcher = Dispatcher(spool, lambda: 0, MqttConfig(resend_after_s=10), bench.clock)
    dispatcher.rewind()
    assert len(sent(dispatcher)) == 3
    bench.clock.advance(6)
    spool.acknowledge(OLD, 0)
    dispatcher.progress(Lane.BACKFILL)
    bench.clock.advance(6)
    assert dispatcher.rewind_if_silent(bench.clock.now_ns())
    assert [(item.lane, item.last_seq) for item in sent(dispatcher)] == [(Lane.LIVE, 0)]
    bench.clock.advance(6)
    assert dispatcher.rewind_if_silent(bench.clock.now_ns())
    assert [(item.lane, item.last_seq) for item in sent(dispatcher)] == [(Lane.BACKFILL, 1)]


def test_a_record_that_cannot_be_read_does_not_hold_the_other_lane(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = left_behind(bench, 1)
    dispatcher = Dispatcher(spool, lambda: 0, MqttConfig(), bench.clock)
    (item,) = [dispatcher.choose()]
    assert item is not None
    dispatcher.skip(item)
    assert dispatcher.choose() is None
    spool.put([record(0)])
    assert [item.lane for item in sent(dispatcher)] == [Lane.LIVE]
    bench.clock.advance(1)
    assert [item.lane for item in sent(dispatcher)] == [Lane.BACKFILL]


# What a broker refuses


@dataclass
class Broker:
    """Takes what is not larger than `limit`, and ends the connection at once on anything else."""

    limit: int
    clock: FakeClock = field(default_factory=FakeClock)
    under_way: int = 0
    taken: list[int] = field(default_factory=list)
    lost: list[Record] = field(default_factory=list)
    close_after_s: float = 0.1

    def connect(self, dispatcher: Dispatcher, rounds: int = 1) -> None:
        for _ in range(rounds):
            self.under_way = 0
            dispatcher.rewind()
            while (item := dispatcher.choose()) is not None:
                dispatcher.send(item)
                self.under_way += 1
                if item.size > self.limit:
                    self.clock.advance(self.close_after_s)
                    break
                self.taken.append(item.last_seq)
                self.under_way -= 1
            else:
                return
            refused = dispatcher.lost()
            if refused is not None:
                self.lost.append(refused)


def spool_of(sizes: list[int], clock: FakeClock, given_up: list[tuple[int, str]]) -> MemorySpool:
    notices = Notices(lambda item, reason: given_up.append((item.last_seq, reason)))
    spool = MemorySpool(Limits(10**6), SESSION, clock, notices)
    for seq, size in enumerate(sizes):
        spool.put([record(seq, size=size)])
    return spool


def test_a_record_that_ends_every_connection_goes_into_quarantine() -> None:
    broker, given_up = Broker(1000), list[tuple[int, str]]()
    spool = spool_of([10, 20, 5000, 30], broker.clock, given_up)
    dispatcher = Dispatcher(spool, lambda: broker.under_way, MqttConfig(), broker.clock)
    broker.connect(dispatcher, REFUSALS - 1)
    assert given_up == []
    assert 3 not in broker.taken
    broker.connect(dispatcher)
    assert given_up == [(2, "quarantined")]
    broker.connect(dispatcher)
    assert broker.taken[-3:] == [0, 1, 3]
    assert seqs(spool) == [0, 1, 3]


def test_a_dead_link_puts_nothing_into_quarantine() -> None:
    """It shows at a keep-alive, much later, or anywhere."""
    broker, given_up = Broker(1000, close_after_s=45), list[tuple[int, str]]()
    dispatcher = Dispatcher(
        spool_of([10, 5000], broker.clock, given_up), lambda: broker.under_way, MqttConfig(), broker.clock
    )
    broker.connect(dispatcher, 3 * REFUSALS)
    assert given_up == []


def test_what_this_broker_has_taken_before_is_not_suspected(bench: Bench) -> None:
    given_up: list[tuple[int, str]] = []
    broker = Broker(10_000)
    spool = spool_of([5000, 5000], broker.clock, given_up)
    dispatcher = Dispatcher(spool, lambda: broker.under_way, MqttConfig(), broker.clock)
    broker.connect(dispatcher)
    spool.acknowledge(SESSION, 0)
    dispatcher.progress(Lane.LIVE)
    assert dispatcher.lost() is None
    dispatcher.rewind()
    broker.under_way = 3
    item = dispatcher.choose()
    assert item is not None
    assert item.size == 5000, "it need not go alone"


def test_records_larger_than_the_broker_takes_never_leave(bench: Bench) -> None:
    spool = bench.open()
    ledger, transport = Ledger(), MemoryTransport()
    publisher = Publisher(
        transport,
        spool,
        ledger,
        MqttConfig(max_message_bytes=1024),
        camera="gate-1",
        voice=Voice(lambda: "online", lambda: b"{}", lambda: b"{}"),
        clock=bench.clock,
        generator=random.Random(1),
    )
    for seq, size in enumerate([10, 2000, 20]):
        spool.put([record(seq, size=size)])
    publisher.start()
    wait_until(lambda: [message.topic for message in list(transport.sent)].count(TOPICS.video) == 2)
    publisher.stop()
    assert bench.heard.given_up == [(1, "quarantined")]


# The whole of it over a transport in memory


def test_an_earlier_session_is_sent_acknowledged_and_booked(bench: Bench) -> None:
    spool = left_behind(bench, 3)
    spool.close()
    ledger, transport = Ledger(), MemoryTransport()
    notices = Notices(lambda *_: None, ledger.recover)
    spool = SqliteSpool(bench.file, Limits(10**6), session=SESSION, clock=bench.clock, notices=notices)
    bench.made.append(spool)
    publisher = Publisher(
        transport,
        spool,
        ledger,
        MqttConfig(),
        camera="gate-1",
        voice=Voice(lambda: "online", lambda: b"{}", lambda: b"{}"),
        clock=bench.clock,
    )

    def videos() -> list[bytes]:
        return [message.payload for message in list(transport.sent) if message.topic == TOPICS.video]

    def ack(session: int, seq: int) -> None:
        document = {"session": session_hex(session), "seq": seq, "epoch": 1}
        transport.deliver(TOPICS.ack, json.dumps(document).encode())

    ledger.capture()
    ledger.spool()
    spool.put([record(0)])
    publisher.start()
    wait_until(lambda: len(videos()) == 4)
    assert videos() == [record(0).payload, *(record(seq).payload for seq in range(3))]
    ack(OLD, 1)
    snapshot = ledger.snapshot()
    assert (snapshot.captured, snapshot.committed, snapshot.spooled) == (1, 0, 1)
    assert (snapshot.backfill.recovered, snapshot.backfill.committed, snapshot.backfill.waiting) == (3, 2, 1)
    assert not publisher.drain(0), "live records wait"
    ack(SESSION, 0)
    assert publisher.drain(0), "what earlier sessions left does not hold the end up"
    ack(123, 9)
    assert publisher.bad_acks == 1
    ack(OLD, 2)
    assert ledger.snapshot().balanced
    assert spool.counts().records == 0
    publisher.stop()
    assert publisher.resent == 0


def test_the_books_of_earlier_sessions_balance_by_themselves() -> None:
    ledger = Ledger()
    ledger.recover(10)
    ledger.commit_backfill(4)
    ledger.drop_backfill("too_old", 3)
    snapshot = ledger.snapshot()
    assert snapshot.balanced
    assert (snapshot.captured, snapshot.spooled) == (0, 0)
    assert (snapshot.backfill.waiting, snapshot.backfill.dropped) == (3, {"too_old": 3})
