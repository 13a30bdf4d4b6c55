"""Queues, ledger, spool and wire costs: bounded, metered, and balanced whatever happens in whatever order."""

from __future__ import annotations

import socket
import threading

import paho.mqtt.client as mqtt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.enums import CallbackAPIVersion

from scene_edge.edge.ledger import Ledger, percentiles
from scene_edge.edge.queues import BoundedQueue, WhenFull
from scene_edge.edge.spool import MemorySpool, Record
from scene_edge.edge.wire import PUBACK_BYTES, TCP_IP_BYTES, on_the_line, publish_overhead


def test_a_refusing_queue_says_so_and_counts() -> None:
    queue: BoundedQueue[int] = BoundedQueue("q", 2, WhenFull.REFUSE)
    assert [queue.put(item) for item in range(3)] == [True, True, False]
    assert queue.get() == 0
    meter = queue.meter()
    assert (meter.depth, meter.high_water, meter.put, meter.refused, meter.taken) == (1, 2, 2, 1, 1)


def test_a_waiting_queue_loses_nothing() -> None:
    queue: BoundedQueue[int] = BoundedQueue("q", 2, WhenFull.WAIT)
    taken: list[int] = []

    def consume() -> None:
        while (item := queue.get()) is not None:
            taken.append(item)

    consumer = threading.Thread(target=consume)
    consumer.start()
    assert all(queue.put(item) for item in range(200))
    queue.finish()
    consumer.join(10)
    assert taken == list(range(200))
    assert queue.meter().high_water <= 2


def test_a_finished_queue_is_drained_and_a_cancelled_one_is_not() -> None:
    queue: BoundedQueue[str] = BoundedQueue("q", 4, WhenFull.WAIT)
    queue.put("a")
    queue.finish()
    assert queue.get() == "a"
    assert queue.get() is None
    other: BoundedQueue[str] = BoundedQueue("q", 1, WhenFull.WAIT)
    other.put("a")
    results: list[bool] = []
    blocked = threading.Thread(target=lambda: results.append(other.put("b")))
    blocked.start()
    assert other.cancel() == ["a"]
    blocked.join(10)
    assert results in ([False], [True])
    assert not other.put("c")


MOVES = st.lists(st.sampled_from(["capture", "spool", "unspool", "commit", "drop", "drop_spooled"]), max_size=60)


@given(MOVES)
def test_the_ledger_balances_after_every_move(moves: list[str]) -> None:
    ledger = Ledger()
    pipeline = spooled = 0
    for move in moves:
        if move == "capture":
            ledger.capture()
            pipeline += 1
        elif move == "spool" and pipeline:
            ledger.spool()
            pipeline, spooled = pipeline - 1, spooled + 1
        elif move == "unspool" and spooled:
            ledger.unspool()
            pipeline, spooled = pipeline + 1, spooled - 1
        elif move == "commit" and spooled:
            ledger.commit(spooled, [1.0])
            spooled = 0
        elif move == "drop" and pipeline:
            ledger.drop("a")
            pipeline -= 1
        elif move == "drop_spooled" and spooled:
            ledger.drop("b", spooled=True)
            spooled -= 1
        snapshot = ledger.snapshot()
        assert snapshot.balanced
        assert (snapshot.in_pipeline, snapshot.spooled) == (pipeline, pipeline + spooled)


def test_kbps_follow_the_time_of_the_video() -> None:
    ledger = Ledger()
    for frame in range(25 * 20):
        ledger.add_bytes(media_ns=frame * 40_000_000, video=500)
        ledger.add_bytes(semantic=5, overhead=50)
    kbps = ledger.snapshot().kbps
    assert kbps["video"] == pytest.approx(100, rel=0.02)
    assert kbps["semantic"] == pytest.approx(1, rel=0.02)
    assert kbps["total"] == pytest.approx(111, rel=0.02)
    assert ledger.snapshot().bytes == {
        "video": 250_000, "semantic": 2500, "sei": 0, "overhead": 25_000, "total": 277_500
    }  # fmt: skip


def test_percentiles_by_nearest_rank() -> None:
    assert percentiles([float(value) for value in range(1, 101)]) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
    assert percentiles([]) == {}


def record(seq: int, leaf: str = "video", size: int = 10, frames: int = 1) -> Record:
    return Record(leaf, b"x" * size, seq, (0,) * frames if leaf == "video" else ())


def test_the_spool_keeps_order_and_frees_cumulatively() -> None:
    spool = MemorySpool(1000)
    assert spool.put([record(0), record(1)])
    assert spool.put([record(1, "semantic")])
    assert spool.put([record(2)])
    order = []
    last = 0
    while (item := spool.next_after(last)) is not None:
        order.append((item.leaf, item.last_seq))
        last = item.record_id
    assert order == [("video", 0), ("video", 1), ("semantic", 1), ("video", 2)]
    freed = spool.acknowledge(1)
    assert sorted((item.leaf, item.last_seq) for item in freed) == [("semantic", 1), ("video", 0), ("video", 1)]
    counts = spool.counts()
    assert (counts.records, counts.bytes, counts.frames) == (1, 10, 1)
    assert spool.acknowledge(1) == []


def test_a_full_spool_takes_all_fragments_or_none() -> None:
    spool = MemorySpool(25)
    assert not spool.put([record(0, frames=0), record(0, frames=0), record(0)])
    assert spool.counts().records == 0
    assert spool.put([record(0, frames=0), record(0)])
    assert not spool.put([record(1)])
    assert spool.put([record(1)], must=True)


def test_what_is_acknowledged_already_is_not_taken_and_a_wild_number_shuts_no_door() -> None:
    spool = MemorySpool(1000)
    spool.put([record(0), record(1)])
    assert len(spool.acknowledge(2**32 - 1)) == 2
    assert not spool.put([record(1, "semantic")])
    assert spool.put([record(2)])


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=60))
def test_the_spool_counts_what_it_holds(steps: list[tuple[bool, int]]) -> None:
    spool = MemorySpool(400)
    held: list[int] = []
    next_seq = 0
    for put, seq in steps:
        if put:
            if spool.put([record(next_seq)]):
                held.append(next_seq)
            next_seq += 1
        else:
            freed = {item.last_seq for item in spool.acknowledge(seq)}
            assert freed == {value for value in held if value <= seq}
            held = [value for value in held if value > seq]
        counts = spool.counts()
        assert (counts.records, counts.frames, counts.bytes) == (len(held), len(held), 10 * len(held))
        assert counts.bytes <= 400


@pytest.mark.parametrize("size", [0, 1, 90, 91, 127, 128, 1000, 16_383, 20_000, 120_000])
@pytest.mark.parametrize("qos", [0, 1])
def test_publish_overhead_is_that_of_the_bytes_which_paho_writes(size: int, qos: int) -> None:
    written: list[bytes] = []

    class Recorder(mqtt.Client):
        def _packet_queue(self, command: int, packet: bytes, *_: object) -> mqtt.MQTTErrorCode:
            written.append(bytes(packet))
            return mqtt.MQTTErrorCode.MQTT_ERR_SUCCESS

    client = Recorder(CallbackAPIVersion.VERSION2)
    here, there = socket.socketpair()
    with here, there:
        client._sock = here
        client._send_publish(1, b"scene/1/167/gate-1/video", b"p" * size, qos)
        client._sock = None
    (packet,) = written
    reply = PUBACK_BYTES + TCP_IP_BYTES if qos else 0
    assert publish_overhead("scene/1/167/gate-1/video", size, qos, tls=False) == (
        len(packet) - size + TCP_IP_BYTES * -(-len(packet) // 1448) + reply
    )


def test_tls_adds_its_records() -> None:
    assert on_the_line(100, tls=True) - on_the_line(100, tls=False) == 22
    assert on_the_line(40_000, tls=True) >= 40_000 + 3 * 22
