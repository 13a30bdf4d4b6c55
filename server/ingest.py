"""MQTT in and out (paho): every message of every camera goes to the engine, acknowledgements and results go back.

QoS 1 with a lasting session (clean_session False, fixed client id), so the broker keeps what comes while the server is
away. The network thread never waits for a camera: what one sends faster than it may, or than its worker takes, is held
back behind its own door (throttle.py), and dropped and counted where that is full. Cameras are safe from that, and from
a crash here, because they keep every record until the server's own ack.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections import Counter
from typing import Any

import paho.mqtt.client as mqtt
import structlog
from paho.mqtt.enums import CallbackAPIVersion

from scene_edge.codec.errors import ConfigError, PacketError
from scene_edge.codec.topics import PREFIX, SHARDS, parse
from scene_edge.server.clock import SYSTEM, Clock
from scene_edge.server.config import BrokerConfig, LimitsConfig
from scene_edge.server.engine import Engine
from scene_edge.server.hub import Hub
from scene_edge.server.throttle import Throttle
from scene_edge.server.worker import Inbound

SUBSCRIBED = ("video", "semantic", "status", "birth", "ledger")
"""Not `#`: the server's own acks and results would come back to it."""

EVERY_SHARD = range(SHARDS)
MAX_PAYLOAD_BYTES = 131_072
MAX_QUEUED_OUT = 10_000
MAX_UNDER_WAY = 1_000
RELEASE_EVERY_S = 0.02
"""How often those who are held back are looked at, while there are any."""

log = structlog.get_logger(__name__)


class Ingest:
    """The server's MQTT client. `start` returns at once and keeps trying; `connected` says how it stands."""

    def __init__(
        self,
        config: BrokerConfig,
        engine: Engine,
        limits: LimitsConfig,
        hub: Hub,
        shards: range = EVERY_SHARD,
        *,
        client: mqtt.Client | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        self._config, self._hub, self._clock = config, hub, clock
        self._places = ["+"] if shards == EVERY_SHARD else [str(shard) for shard in shards]

        def told(camera: str, too_fast: bool) -> None:
            why = f"throttled: it sends more than {limits.messages_per_s:g} messages a second" if too_fast else None
            hub.state(camera).degrade("throttle", why)

        self._throttle = Throttle(engine.submit, limits.messages_per_s, limits.queue_messages, told)
        self._doors = threading.Condition()
        self._stopping = False
        self._feeder: threading.Thread | None = None
        self._lock = threading.Lock()
        self._dropped: Counter[str] = Counter()
        self._ready = threading.Event()
        self._client = client or mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=config.client_id, clean_session=False, protocol=mqtt.MQTTv311
        )
        self._client.max_queued_messages_set(MAX_QUEUED_OUT)
        self._client.max_inflight_messages_set(MAX_UNDER_WAY)
        self._client.reconnect_delay_set(1, 5)
        self._client.on_connect = self._on_connect
        self._client.on_connect_fail = self._on_connect_fail
        self._client.on_subscribe = self._on_subscribe
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message
        if config.credentials:
            self._client.username_pw_set(*config.credentials)
        if config.tls:
            try:
                context = ssl.create_default_context(cafile=config.ca_file)
                context.minimum_version = ssl.TLSVersion.TLSv1_2
                if config.cert_file:
                    context.load_cert_chain(config.cert_file, config.key_file)
            except (OSError, ssl.SSLError) as error:
                raise ConfigError("cannot use the TLS files of the broker", got=str(error)) from error
            self._client.tls_set_context(context)

    @property
    def connected(self) -> bool:
        """Connected and subscribed."""
        return self._ready.is_set()

    @property
    def dropped(self) -> dict[str, int]:
        """Messages that never reached a worker, by reason."""
        with self._lock:
            return dict(self._dropped)

    def start(self) -> None:
        log.info("connecting", broker=self._config.shown)
        self._client.connect_async(self._config.host, self._config.port, keepalive=self._config.keepalive_s)
        self._client.loop_start()

    def wait_connected(self, timeout_s: float) -> bool:
        return self._ready.wait(timeout_s)

    def publish(self, topic: str, payload: bytes, qos: int) -> None:
        """Never blocks. While the broker is away results are dropped (they are in the store), and counted."""
        if not self._client.is_connected():
            self._count("unpublished")
            return
        if self._client.publish(topic, payload, qos).rc != mqtt.MQTT_ERR_SUCCESS:
            self._count("unpublished")

    def settled(self, timeout_s: float) -> bool:
        """Wait until nothing is held back."""
        with self._doors:
            return self._doors.wait_for(lambda: not self._throttle.holds, timeout_s)

    def stop(self) -> None:
        with self._doors:
            self._stopping = True
            self._doors.notify_all()
            feeder = self._feeder
        if feeder is not None:
            feeder.join()
        self._client.disconnect()
        self._client.loop_stop()
        self._ready.clear()

    def _on_connect(self, client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            log.error("broker refuses the connection", broker=self._config.shown, reason=str(reason))
            return
        client.subscribe([(f"{PREFIX}/{place}/+/{leaf}", 1) for place in self._places for leaf in SUBSCRIBED])

    def _on_subscribe(self, _client: mqtt.Client, _data: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        refused = [str(reason) for reason in reasons if reason.is_failure]
        if refused:
            log.error("broker refuses a subscription", broker=self._config.shown, reasons=refused)
            return
        log.info("connected", broker=self._config.shown)
        self._ready.set()

    def _on_connect_fail(self, _client: mqtt.Client, _data: Any) -> None:
        log.warning("broker cannot be reached, trying again", broker=self._config.shown)

    def _on_disconnect(self, _client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._ready.clear()
        if reason.is_failure:
            log.warning("connection lost, trying again", broker=self._config.shown, reason=str(reason))

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        try:
            name = parse(message.topic)
        except (PacketError, UnicodeDecodeError):
            self._count("bad_topic")
            return
        if len(message.payload) > MAX_PAYLOAD_BYTES:
            self._count("too_large")
            return
        if message.retain and name.leaf in ("video", "semantic"):
            self._count("retained_media")  # a picture of long ago is not a stream
            return
        if name.leaf == "status" and not message.payload:
            return  # a retained status being cleared
        inbound = Inbound(name.leaf, bytes(message.payload), self._clock.now_s())
        with self._doors:
            reason = self._throttle.offer(name.camera, inbound, inbound.arrived_s)
            if self._throttle.holds:
                if self._feeder is None:  # most servers never need one
                    self._feeder = threading.Thread(target=self._feed, name="throttle", daemon=True)
                    self._feeder.start()
                self._doors.notify_all()
        if reason is not None:
            self._drop(name.camera, reason)

    def _feed(self) -> None:
        """Let through, as time passes, what is held back."""
        while True:
            with self._doors:
                self._doors.wait_for(lambda: self._throttle.holds or self._stopping)
                if self._stopping:
                    return
                dropped = self._throttle.release(self._clock.now_s())
                if not self._throttle.holds:
                    self._doors.notify_all()
            for camera, reason in dropped:
                self._drop(camera, reason)
            time.sleep(RELEASE_EVERY_S)

    def _drop(self, camera: str, reason: str) -> None:
        """What is one camera's own fault or misfortune is counted there."""
        if reason in ("throttled", "queue_full"):
            self._hub.state(camera).dropped(reason)
        else:
            self._count(reason)

    def _count(self, reason: str) -> None:
        with self._lock:
            self._dropped[reason] += 1
