"""The publisher: order, acknowledgements, silence, lost connections, and what is said about the camera."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from scene_edge.codec.errors import TransportError
from scene_edge.codec.topics import Topics
from scene_edge.edge.backoff import Backoff
from scene_edge.edge.clock import FakeClock, SystemClock
from scene_edge.edge.config import MqttConfig
from scene_edge.edge.ledger import Ledger
from scene_edge.edge.publisher import Publisher, Voice
from scene_edge.edge.spool import Limits, MemorySpool, Record
from scene_edge.edge.transport import Listener, MemoryTransport, Message, PahoTransport
from scene_edge.edge.watchdog import Watchdog, notify_systemd
from tests.waiting import wait_until

SESSION = 0xABC
TOPICS = Topics("gate-1")


@dataclass
class Desk:
    """A publisher on a transport in memory. Its clock stands still while nobody waits on it."""

    config: MqttConfig = field(default_factory=lambda: MqttConfig(backoff_base_ms=10, backoff_cap_ms=20))
    clock: SystemClock | FakeClock = field(default_factory=SystemClock)

    def __post_init__(self) -> None:
        self.transport = MemoryTransport()
        self.spool = MemorySpool(Limits(10_000), SESSION)
        self.ledger = Ledger()
        self.status = "online"
        self.publisher = Publisher(
            self.transport,
            self.spool,
            self.ledger,
            self.config,
            camera="gate-1",
            voice=Voice(lambda: self.status, lambda: b"{}", lambda: b"{}"),
            clock=self.clock,
            generator=random.Random(1),
        )

    def put(self, *seqs: int) -> None:
        for seq in seqs:
            self.ledger.capture()
            self.ledger.spool()
            assert self.spool.put([Record("video", str(seq).encode(), seq, (0,))])

    def ack(self, seq: int, **changes: object) -> None:
        document = {"session": f"{SESSION:016x}", "seq": seq, "epoch": 1} | changes
        self.transport.deliver(TOPICS.ack, json.dumps(document).encode())

    def videos(self) -> list[int]:
        return [int(message.payload) for message in list(self.transport.sent) if message.topic == TOPICS.video]

    def said(self, topic: str) -> list[bytes]:
        return [message.payload for message in list(self.transport.sent) if message.topic == topic]


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    if made.publisher._thread.is_alive():
        made.publisher.stop()


def test_records_leave_in_order_and_are_freed_by_the_servers_ack(desk: Desk) -> None:
    desk.put(0, 1, 2)
    desk.publisher.start()
    wait_until(lambda: desk.videos() == [0, 1, 2])
    desk.put(3)
    wait_until(lambda: desk.videos() == [0, 1, 2, 3])
    desk.ack(1)
    assert desk.ledger.snapshot().committed == 2
    assert not desk.publisher.drain(0)
    desk.ack(3)
    assert desk.publisher.drain(0)
    desk.publisher.stop()
    snapshot = desk.ledger.snapshot()
    assert (snapshot.committed, snapshot.spooled) == (4, 0)
    assert desk.said(TOPICS.status) == [b"online", b"stopped"]
    assert desk.transport.will == Message(TOPICS.status, b"offline", 1, True)
    assert desk.publisher.resent == 0


def test_what_the_server_misses_is_sent_again_at_once(desk: Desk) -> None:
    """And what it has is freed all the same; before it has anything there is no number to say."""
    desk.put(0, 1, 2, 3)
    desk.publisher.start()
    wait_until(lambda: desk.videos() == [0, 1, 2, 3])
    desk.transport.deliver(TOPICS.ack, json.dumps({"session": f"{SESSION:016x}", "epoch": 1, "missing": 0}).encode())
    wait_until(lambda: desk.videos() == [0, 1, 2, 3, 0, 1, 2, 3])
    assert desk.ledger.snapshot().committed == 0
    desk.ack(1, missing=2)
    wait_until(lambda: desk.videos()[8:] == [2, 3])
    assert desk.ledger.snapshot().committed == 2
    desk.transport.deliver(TOPICS.ack, json.dumps({"session": f"{SESSION:016x}", "epoch": 1}).encode())
    desk.ack(1, epoch=0, missing=2)
    assert desk.publisher.bad_acks == 2
    assert len(desk.videos()) == 10


def test_a_lost_connection_sends_again_what_was_not_acknowledged(desk: Desk) -> None:
    desk.put(0, 1, 2)
    desk.publisher.start()
    wait_until(lambda: desk.videos() == [0, 1, 2])
    desk.ack(0)
    desk.transport.down = True
    desk.transport.lose()
    wait_until(lambda: not desk.publisher.online)
    desk.put(3)
    desk.transport.down = False
    wait_until(lambda: desk.videos() == [0, 1, 2, 1, 2, 3])
    assert desk.publisher.connections == 2
    assert desk.publisher.resent == 2
    assert desk.said(TOPICS.status) == [b"online", b"offline", b"online"]


def test_a_silent_server_gets_everything_again_with_growing_patience() -> None:
    clock = SystemClock()
    desk = Desk(MqttConfig(resend_after_s=0.05), clock)
    desk.put(0, 1)
    desk.publisher.start()
    wait_until(lambda: desk.videos() == [0, 1, 0, 1, 0, 1])
    assert desk.publisher._dispatcher._live.patience > 1
    desk.ack(1)
    assert desk.publisher._dispatcher._live.patience == 1
    count = len(desk.videos())
    desk.put(2)
    wait_until(lambda: len(desk.videos()) > count)
    desk.publisher.stop()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        b"[" * 400,
        b'{"session":"0000000000000abc"}',
        b'{"session":"0000000000000abc","seq":-1}',
        b'{"session":"0000000000000abc","seq":true}',
        b'{"session":"0000000000000abc","seq":"1"}',
        b'{"session":"0000000000000abc","seq":1,"epoch":null}',
        b'{"session":"0000000000000abd","seq":1,"epoch":1}',
        b'{"session":"0000000000000abc","seq":4294967296,"epoch":1}',
        b'{"session":"0000000000000abc","seq":1,"epoch":1,"x":"' + b"x" * 600 + b'"}',
        b"\xff\xfe",
    ],
)
def test_a_bad_ack_is_counted_and_changes_nothing(desk: Desk, payload: bytes) -> None:
    desk.put(0, 1)
    desk.publisher.start()
    wait_until(lambda: desk.videos() == [0, 1])
    desk.transport.deliver(TOPICS.ack, payload)
    desk.transport.deliver(TOPICS.status, b"whatever")
    assert desk.publisher.bad_acks == 1
    assert desk.spool.counts().records == 2


def test_an_older_epoch_is_refused(desk: Desk) -> None:
    desk.put(0, 1)
    desk.publisher.start()
    wait_until(lambda: desk.videos() == [0, 1])
    desk.ack(0, epoch=5)
    desk.ack(1, epoch=4)
    assert desk.spool.counts().records == 1
    assert desk.publisher.bad_acks == 1


def test_status_and_birth_are_said_again_only_when_they_change(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scene_edge.edge.publisher.REPORT_PERIOD_S", 0.02)
    desk.publisher.start()
    wait_until(lambda: len(desk.said(TOPICS.ledger)) >= 4)
    desk.status = "degraded:no scene"
    wait_until(lambda: len(desk.said(TOPICS.status)) >= 2)
    assert desk.said(TOPICS.status) == [b"online", b"degraded:no scene"]


def test_publishing_fails_and_the_publisher_comes_back(desk: Desk) -> None:
    desk.put(0)
    failures = [TransportError("broken pipe")]

    def fail_once(message: Message) -> None:
        if message.topic == TOPICS.video and failures:
            raise failures.pop()

    desk.transport.on_publish = fail_once
    desk.publisher.start()
    wait_until(lambda: desk.videos() == [0, 0])
    assert desk.publisher.connections == 2


def test_no_broker_means_growing_random_waits() -> None:
    clock = FakeClock()
    desk = Desk(MqttConfig(backoff_base_ms=500, backoff_cap_ms=30_000), clock)
    desk.transport.down = True
    original = clock.wait

    def wait(event: threading.Event, seconds: float) -> bool:
        if len(clock.waits_s) > 40:
            event.set()
        return original(event, seconds)

    clock.wait = wait  # type: ignore[method-assign]
    desk.publisher.start()
    desk.publisher._thread.join(20)
    assert clock.waits_s[0] <= 0.5
    assert all(seconds <= 30 for seconds in clock.waits_s)
    assert max(clock.waits_s) > 10
    assert len(set(clock.waits_s)) == len(clock.waits_s)


def test_backoff_is_full_jitter_and_forgets_on_success() -> None:
    backoff = Backoff(1.0, 8.0, random.Random(3))
    waits = [backoff.next_s() for _ in range(2000)]
    assert all(0 <= wait <= min(8.0, 2.0 ** min(step, 10)) for step, wait in enumerate(waits))
    assert min(waits) < 0.1
    backoff.reset()
    assert backoff.next_s() <= 1


def test_no_broker_at_all_is_a_transport_error() -> None:
    transport = PahoTransport(MqttConfig(broker="mqtt://127.0.0.1:9"), "gate-1")
    listener = Listener(lambda _topic, _payload: None, lambda: None, lambda _reason: None)
    with pytest.raises(TransportError, match=r"cannot connect to mqtt://127\.0\.0\.1:9"):
        transport.connect(Message("a", b""), [], listener)
    with pytest.raises(TransportError, match="no connection"):
        transport.publish(Message("a", b""))
    transport.close()


def test_the_watchdog_counts_frames_that_came_out() -> None:
    clock = FakeClock()
    watchdog = Watchdog(5, clock)
    assert not watchdog.stalled(0, 0)
    clock.advance(60)
    assert not watchdog.stalled(0, 0)  # nothing went in
    assert not watchdog.stalled(10, 10)
    clock.advance(4)
    assert not watchdog.stalled(20, 10)
    clock.advance(2)
    assert watchdog.stalled(30, 10)
    assert not watchdog.stalled(30, 11)


def test_systemd_is_told_where_there_is_one(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket
    import tempfile
    from pathlib import Path

    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify_systemd("READY=1")
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        address = str(Path(folder) / "notify")
        channel.bind(address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert notify_systemd("READY=1")
        assert channel.recv(64) == b"READY=1"
    assert not notify_systemd("WATCHDOG=1")
