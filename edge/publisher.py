"""Sends what is in the spool, lane by lane, and frees it when the server says so; comes back by itself after a loss.

Which record is next is `lanes.Dispatcher`'s to say; here are the connection, the acknowledgements, and the camera's
voice.
"""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass

from scene_edge.codec.errors import TransportError
from scene_edge.codec.identity import SessionId
from scene_edge.codec.topics import Topics
from scene_edge.edge.backoff import Backoff
from scene_edge.edge.clock import Clock
from scene_edge.edge.config import MqttConfig, broker_address
from scene_edge.edge.lanes import Dispatcher
from scene_edge.edge.ledger import Ledger
from scene_edge.edge.spool import Lane, Record, Spool
from scene_edge.edge.transport import Listener, Message, Transport
from scene_edge.edge.wire import publish_overhead

REPORT_PERIOD_S = 1.0
PART_AFTER_S = 5.0
"""After an outage that has left so much of the session that runs, another one begins, and this becomes backfill."""

GOODBYE_S = 2.0
MAX_ACK_BYTES = 512
SESSION = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Voice:
    """What the publisher says for the camera: the retained status and birth, and the ledger of every second.

    `part` asks the camera to begin another session at the next keyframe; False if it never will."""

    status: Callable[[], str]
    birth: Callable[[], bytes]
    ledger: Callable[[], bytes]
    part: Callable[[], bool] = lambda: False


class Publisher:
    """One thread. Records are sent once per connection, in the order of their lane. After a reconnect, and when the
    server was silent for `resend_after_s`, what it has not acknowledged is sent again. Duplicates are the server's to
    ignore.
    """

    def __init__(
        self,
        transport: Transport,
        spool: Spool,
        ledger: Ledger,
        config: MqttConfig,
        *,
        camera: str,
        voice: Voice,
        clock: Clock,
        generator: random.Random | None = None,
        log: Callable[..., None] = lambda _event, **_values: None,
    ) -> None:
        self._transport, self._spool, self._ledger, self._config = transport, spool, ledger, config
        self._topics = Topics(camera)
        self._voice, self._clock, self._log = voice, clock, log
        self._tls = broker_address(config.broker)[2]
        self._backoff = Backoff(config.backoff_base_ms / 1e3, config.backoff_cap_ms / 1e3, generator or random.Random())
        self._changed = spool.changed
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._dispatcher = Dispatcher(spool, transport.in_flight, config, clock)
        self._online = False
        self._connected = False
        self._report_ns = 0
        self._epoch = 0
        self._announced: tuple[str, bytes] | None = None
        self._announced_session = -1
        self._silent = False
        self.connections = 0
        self.resent = 0
        self.bad_acks = 0

    def start(self) -> None:
        self._thread.start()

    @property
    def online(self) -> bool:
        return self._online

    def drain(self, seconds: float) -> bool:
        """Wait until the server has acknowledged everything of this process; False once it has freed nothing for
        `seconds`. What earlier ones left may take hours, and is safe."""
        with self._changed:
            while left := self._own_records():
                if self._changed.wait_for(lambda: self._own_records() == 0, seconds):
                    return True
                if self._own_records() >= left:
                    return False
        return True

    def _own_records(self) -> int:
        counts = self._spool.counts()
        return counts.records - counts.recovered_records

    def _consider_parting(self) -> None:
        """After an outage: what is new must not queue behind what has waited."""
        since_ns = self._spool.counts().live_since_ns
        old = since_ns is not None and self._clock.now_ns() - since_ns >= PART_AFTER_S * 1e9
        if old and self._voice.part():
            self._dispatcher.part()

    def stop(self) -> None:
        """Say goodbye (status `stopped`) and end the thread. What is still in the spool stays there."""
        self._stopping.set()
        self._wake()
        self._thread.join()

    def step(self) -> float:
        """One turn of the thread: connect, or say and send what is due. Seconds until the next turn; while there is a
        connection, what comes into the spool ends the pause."""
        if not self._connected:
            return self._come_back()
        try:
            if self._online:
                return self._converse()
        except TransportError as error:
            self._log("broker.lost", reason=str(error))
        if (refused := self._dispatcher.lost()) is not None:
            self._log("broker.refuses", record_bytes=refused.size, last_seq=refused.last_seq)
        self._part()
        return self._backoff.next_s()  # all cameras have lost it: they must not come back in one moment

    def _run(self) -> None:
        while not self._stopping.is_set():
            pause_s = self.step()
            if not self._connected:
                self._clock.wait(self._stopping, pause_s)
            elif pause_s > 0:
                with self._changed:
                    self._changed.wait_for(self._has_work, pause_s)
        try:
            if self._connected:
                self._say_goodbye()
        except TransportError as error:
            self._log("broker.lost", reason=str(error))
        self._part()

    def _come_back(self) -> float:
        try:
            self._connect()
        except TransportError as error:
            wait_s = self._backoff.next_s()
            self._log("broker.unreachable", reason=str(error), retry_in_s=round(wait_s, 2))
            return wait_s
        self._backoff.reset()
        return 0.0

    def _connect(self) -> None:
        will = Message(self._topics.status, b"offline", retain=True)
        # Online before the call: a loss while it returns must not be overwritten.
        self._online = True
        try:
            self._transport.connect(will, [self._topics.ack], Listener(self._on_message, self._wake, self._on_lost))
        except TransportError:
            self._online = False
            raise
        self._connected = True
        self.connections += 1
        self._dispatcher.rewind()
        self._announced = None
        self._consider_parting()
        self._report_ns = 0
        self._log("broker.connected", broker=self._config.broker)

    def _part(self) -> None:
        self._online = self._connected = False
        self._transport.close()

    def _converse(self) -> float:
        now_ns = self._clock.now_ns()
        if now_ns >= self._report_ns:
            self._announce()
            self._send(self._topics.ledger, self._voice.ledger(), qos=0)
            self._report_ns = now_ns + round(REPORT_PERIOD_S * 1e9)
        asked = self._dispatcher.wanted
        if self._dispatcher.rewind_if_silent(now_ns):
            self._silent = self._silent or not asked
            self._log("server.silent", records=self._spool.counts().records)
        if self._send_next():
            return 0.0
        return max(0.0, (self._report_ns - self._clock.now_ns()) / 1e9)

    def _has_work(self) -> bool:
        if not self._online or self._stopping.is_set():
            return True
        return self._dispatcher.wanted or self._dispatcher.choose() is not None

    def _send_next(self) -> bool:
        """True if there may be more to send at once."""
        record = self._dispatcher.choose()
        if record is None:
            return False
        if record.size > self._config.max_message_bytes:
            self._log("record.too_large", record_bytes=record.size, last_seq=record.last_seq)
            self._spool.quarantine(record.record_id)
            return True
        payload = self._spool.payload(record.record_id)
        if payload is None:
            self._dispatcher.skip(record)
            return True
        if record.lane is Lane.LIVE and record.session != self._announced_session:
            self._announce()  # the server takes a session for the one that runs if the birth names it
            self._announced_session = record.session
        topic = self._topics.video if record.leaf == "video" else self._topics.semantic
        again = self._dispatcher.send(record)
        self._transport.publish(Message(topic, payload, self._config.qos))
        self._account(topic, record, again)
        return True

    def _account(self, topic: str, record: Record, again: bool) -> None:
        """Streams' own bytes were counted when they were made; here comes what the line adds, all of it on a resend,
        and of an earlier process, which made them."""
        overhead = publish_overhead(topic, record.size, self._config.qos, tls=self._tls)
        self.resent += again
        if again or record.session not in self._spool.own:
            overhead += record.size
        self._ledger.add_bytes(overhead=overhead)

    def _announce(self) -> None:
        """Status and birth are retained, so they are sent again only when they changed."""
        said = self._voice.status(), self._voice.birth()
        if said != self._announced:
            self._send(self._topics.birth, said[1], retain=True)
            self._send(self._topics.status, said[0].encode(), retain=True)
            self._announced = said

    def _say_goodbye(self) -> None:
        self._send(self._topics.ledger, self._voice.ledger(), qos=0)
        self._send(self._topics.status, b"stopped", retain=True)
        with self._changed:
            self._changed.wait_for(lambda: self._transport.in_flight() == 0 or not self._online, GOODBYE_S)

    def _send(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        self._transport.publish(Message(topic, payload, qos, retain))
        self._ledger.add_bytes(overhead=len(payload) + publish_overhead(topic, len(payload), qos, tls=self._tls))

    def _on_message(self, topic: str, payload: bytes) -> None:
        if topic != self._topics.ack:
            return
        self._ledger.add_bytes(overhead=len(payload) + publish_overhead(topic, len(payload), 0, tls=self._tls))
        acknowledged = self._acknowledged(payload)
        if acknowledged is None:
            return
        session, seq, missing = acknowledged
        if missing:
            self._dispatcher.want()
            self._wake()
        if seq is None:
            return
        freed = self._spool.acknowledge(session, seq)
        if not freed:
            return
        self._dispatcher.progress(freed[0].lane, freed)
        if self._silent:
            self._silent = False
            self._consider_parting()
        if session not in self._spool.own:
            self._ledger.commit_backfill(sum(record.frames for record in freed))
            return
        now_ns = self._clock.now_ns()
        latencies_ms = [(now_ns - taken_ns) / 1e6 for record in freed for taken_ns in record.taken_ns]
        self._ledger.commit(len(latencies_ms), latencies_ms)

    def _acknowledged(self, payload: bytes) -> tuple[int, int | None, bool] | None:
        """Session and number of an ack that is ours and not stale, and whether the server misses a frame behind it;
        anything else is counted and ignored."""
        try:
            ack = json.loads(payload) if len(payload) <= MAX_ACK_BYTES else None
        except (ValueError, RecursionError):
            ack = None
        if not isinstance(ack, dict):
            self.bad_acks += 1
            return None
        session = _session(ack.get("session"))
        seq, epoch = _whole(ack.get("seq")), _whole(ack.get("epoch", 0))
        missing = _whole(ack.get("missing")) is not None
        nothing = seq is None and not missing
        if session not in self._spool.sessions or nothing or epoch is None or epoch < self._epoch:
            self.bad_acks += 1
            return None
        self._epoch = epoch
        self._backoff.company = _whole(ack.get("cameras")) or self._backoff.company
        return session, seq, missing

    def _on_lost(self, _reason: str) -> None:
        self._online = False
        self._wake()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


def _session(name: object) -> SessionId:
    """-1, which no session has, for anything but 16 hexadecimal digits."""
    return int(name, 16) if isinstance(name, str) and SESSION.fullmatch(name) else -1


def _whole(value: object) -> int | None:
    """A number from 0 to 2^32 - 1, or None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32 else None
