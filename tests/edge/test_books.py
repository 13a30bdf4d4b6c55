"""Queues, ledger and wire costs: bounded, metered, and balanced whatever happens in whatever order."""

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
