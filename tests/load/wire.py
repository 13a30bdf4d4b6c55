"""MQTT 3.1.1 as a thousand cameras in one process can afford it: an asyncio protocol, and its packets as bytes.

Only what a camera says and hears: CONNECT with a Last Will, SUBSCRIBE, PUBLISH at QoS 0 and 1, PUBACK, DISCONNECT.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from dataclasses import dataclass

CONNACK, PUBLISH, PUBACK = 2, 3, 4


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack(">H", len(data)) + data


def packet(head: int, body: bytes) -> bytes:
    """A control packet: `head` is its first byte, the length of `body` follows as a varint.

    >>> packet(0xC0, b"").hex()
    'c000'
    """
    length, left = bytearray(), len(body)
    while True:
        left, low = divmod(left, 128)
        length.append(low | (128 if left else 0))
        if not left:
            return bytes((head,)) + bytes(length) + body


def connect(client_id: str, will_topic: str, will: bytes, keepalive_s: int) -> bytes:
    """A clean session whose Last Will is retained, at QoS 1."""
    flags = 0x02 | 0x04 | 0x08 | 0x20
    head = _text("MQTT") + struct.pack(">BBH", 4, flags, keepalive_s)
    return packet(0x10, head + _text(client_id) + _text(will_topic) + struct.pack(">H", len(will)) + will)


def subscribe(topic: str) -> bytes:
    return packet(0x82, struct.pack(">H", 1) + _text(topic) + b"\x01")


def publish(topic: str, payload: bytes, number: int, *, retain: bool = False) -> bytes:
    """At QoS 1 with packet id `number`; 0 sends it at QoS 0."""
    identity = struct.pack(">H", number) if number else b""
    return packet(0x30 | (0x02 if number else 0) | retain, _text(topic) + identity + payload)


@dataclass(frozen=True, slots=True)
class Ear:
    """What a connection tells its camera; `lost` comes once, at the end."""

    accepted: Callable[[], None]
    message: Callable[[bytes], None]
    taken: Callable[[int], None]
    lost: Callable[[], None]


class Wire(asyncio.Protocol):
    """One connection. PUBLISH is acknowledged here; every topic is the camera's own `ack`, the only one it hears."""

    def __init__(self, ear: Ear, hello: bytes) -> None:
        self._ear, self._hello = ear, hello
        self._transport: asyncio.Transport | None = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._hello)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._ear.lost()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        at = 0
        while (found := self._next(buffer, at)) is not None:
            start, end = found
            self._handle(buffer[at], buffer[start:end])
            at = end
        self._buffer = buffer[at:]

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.write(packet(0xE0, b""))
            self._transport.close()

    @staticmethod
    def _next(buffer: bytes, at: int) -> tuple[int, int] | None:
        """Where the body of the packet at `at` begins and ends; None while it is not all there."""
        length, shift, place = 0, 0, at + 1
        while place < len(buffer):
            byte = buffer[place]
            length |= (byte & 127) << shift
            shift, place = shift + 7, place + 1
            if byte < 128:
                return (place, place + length) if place + length <= len(buffer) else None
        return None

    def _handle(self, head: int, body: bytes) -> None:
        kind = head >> 4
        if kind == PUBLISH:
            (topic_bytes,) = struct.unpack_from(">H", body)
            at = 2 + topic_bytes
            if head & 0x06:
                self.write(packet(0x40, body[at : at + 2]))
                at += 2
            self._ear.message(body[at:])
        elif kind == PUBACK:
            self._ear.taken(int.from_bytes(body[:2], "big"))
        elif kind == CONNACK:
            if body[1] == 0:
                self._ear.accepted()
            elif self._transport is not None:
                self._transport.close()
