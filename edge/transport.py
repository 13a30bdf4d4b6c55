"""MQTT as the publisher sees it: one connection at a time, made anew after a loss. paho-mqtt behind it, or memory."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from scene_edge.codec.errors import ConfigError, TransportError
from scene_edge.edge.config import MqttConfig, broker_address

CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Message:
    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False


@dataclass(frozen=True, slots=True)
class Listener:
    """Called from the transport's own thread; must not block. `progress`: the broker took a message."""

    message: Callable[[str, bytes], None]
    progress: Callable[[], None]
    lost: Callable[[str], None]


class Transport(Protocol):
    def connect(self, will: Message, subscriptions: list[str], listener: Listener) -> None:
        """Returns once the broker has accepted us. Raises TransportError, after which it may be called again."""
        ...

    def publish(self, message: Message) -> None:
        """Hand a message over. Raises TransportError if there is no connection."""
        ...

    def in_flight(self) -> int:
        """Messages handed over that the broker has not taken yet."""
        ...

    def close(self) -> None:
        """End the connection in good order: no Last Will. Safe to call at any time."""
        ...


class PahoTransport:
    """A new paho client for each connection: what was not acknowledged is sent again from the spool, not from paho."""

    def __init__(self, config: MqttConfig, client_id: str) -> None:
        self._config, self._client_id = config, client_id
        self._host, self._port, self._tls = broker_address(config.broker)
        self._client: mqtt.Client | None = None
        self._lock = threading.Lock()
        self._handed_over = self._taken = 0

    def connect(self, will: Message, subscriptions: list[str], listener: Listener) -> None:
        self.close()
        client = self._new_client(will)
        accepted = threading.Event()
        refusal: list[str] = []

        def on_connect(_client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
            if reason.is_failure:
                refusal.append(str(reason))
            elif subscriptions:
                client.subscribe([(topic, 1) for topic in subscriptions])
            accepted.set()

        def on_disconnect(_client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
            if self._client is client:
                listener.lost(str(reason))
            accepted.set()

        def on_publish(_client: mqtt.Client, _data: Any, _mid: int, _reason: Any, _properties: Any) -> None:
            with self._lock:
                self._taken += 1
            listener.progress()

        def on_message(_client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
            listener.message(message.topic, bytes(message.payload))

        client.on_connect, client.on_disconnect = on_connect, on_disconnect
        client.on_publish, client.on_message = on_publish, on_message
        try:
            client.connect(self._host, self._port, self._config.keepalive_s)
        except (OSError, ValueError) as error:
            _end(client)
            raise TransportError(
                self._cannot(), got=str(error), hint="Is the broker running, and reachable?"
            ) from error
        client.loop_start()
        in_time = accepted.wait(CONNECT_TIMEOUT_S)
        if not in_time or refusal or not client.is_connected():
            _end(client)
            raise TransportError(self._cannot(), got=refusal[0] if refusal else "no answer to CONNECT")
        with self._lock:
            self._handed_over = self._taken = 0
        self._client = client

    def publish(self, message: Message) -> None:
        client = self._client
        if client is None:
            raise TransportError("there is no connection to the broker")
        with self._lock:
            self._handed_over += 1
        info = client.publish(message.topic, message.payload, message.qos, message.retain)
        if info.rc not in (MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_QUEUE_SIZE):
            raise TransportError("the broker cannot be written to", got=mqtt.error_string(info.rc))

    def in_flight(self) -> int:
        with self._lock:
            return max(0, self._handed_over - self._taken)

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            _end(client)

    def _new_client(self, will: Message) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=True,
            protocol=mqtt.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(self._config.window + 8)
        client.will_set(will.topic, will.payload, will.qos, will.retain)
        if self._config.username is not None:
            secret = self._config.password
            client.username_pw_set(self._config.username, secret.get_secret_value() if secret else None)
        if self._tls:
            ca, cert, key = (
                str(path) if path else None
                for path in (self._config.ca_file, self._config.cert_file, self._config.key_file)
            )
            try:
                # The broker's chain and name are always verified: there is no setting that leaves it out.
                context = ssl.create_default_context(cafile=ca)
                context.minimum_version = ssl.TLSVersion.TLSv1_2
                if cert is not None:
                    context.load_cert_chain(cert, key)
                client.tls_set_context(context)
            except (OSError, ValueError) as error:
                raise ConfigError("the certificates of mqtt cannot be used", got=str(error)) from error
        return client

    def _cannot(self) -> str:
        return f"cannot connect to {self._config.broker}"


def _end(client: mqtt.Client) -> None:
    """Its callbacks refer to it: without them it goes at once, and its sockets with it."""
    client.disconnect()
    client.loop_stop()
    client.on_connect = client.on_disconnect = client.on_publish = client.on_message = None


class MemoryTransport:
    """A broker of one client, in memory: for tests, and for anything that wants a camera without a network.

    `sent` holds every message that was taken. Set `down` to refuse connections; `lose()` breaks the one there is.
    """

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.connections = 0
        self.down = False
        self.on_publish: Callable[[Message], None] = lambda _message: None
        self.will: Message | None = None
        self._listener: Listener | None = None

    def connect(self, will: Message, subscriptions: list[str], listener: Listener) -> None:
        if self.down:
            raise TransportError("cannot connect to memory", got="connection refused")
        self.connections += 1
        self.will, self._listener = will, listener

    def publish(self, message: Message) -> None:
        if self._listener is None:
            raise TransportError("there is no connection to the broker")
        self.sent.append(message)
        self.on_publish(message)

    def in_flight(self) -> int:
        return 0

    def close(self) -> None:
        self._listener = None

    def deliver(self, topic: str, payload: bytes) -> None:
        """A message from the other side."""
        if self._listener is not None:
            self._listener.message(topic, payload)

    def lose(self, reason: str = "connection reset") -> None:
        """Break the connection, as a broker that dies does: the Last Will is published."""
        listener, self._listener = self._listener, None
        if listener is not None:
            if self.will is not None:
                self.sent.append(self.will)
            listener.lost(reason)
