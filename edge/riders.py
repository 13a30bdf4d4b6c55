"""Semantic packets that wait for the next video message to ride in; shared by two stages of the camera."""

from __future__ import annotations

import threading

from scene_edge.codec.packet import SemanticPacket

MAX_BODY_BYTES = 4_096
"""A larger packet goes alone: what it would save is little, and a lost message costs less."""

_MAX_TOGETHER_BYTES = 6_000
_HEADER_BYTES = 48
"""More than what a rider has before its body."""


class Riders:
    """First in, first out."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[SemanticPacket] = []

    def __len__(self) -> int:
        with self._lock:
            return len(self._waiting)

    def add(self, packet: SemanticPacket) -> None:
        """`packet` has a body of at most MAX_BODY_BYTES."""
        with self._lock:
            self._waiting.append(packet)

    def take(self) -> list[SemanticPacket]:
        """Those that fit into one message, in order; they wait no more."""
        with self._lock:
            taken, room = 0, _MAX_TOGETHER_BYTES
            for packet in self._waiting:
                room -= len(packet.body) + _HEADER_BYTES
                if room < 0:
                    break
                taken += 1
            out, self._waiting = self._waiting[:taken], self._waiting[taken:]
            return out
