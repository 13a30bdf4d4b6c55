"""Counts frames that came out of the encoder: a process that lives and encodes nothing is a stall, whatever it says."""

from __future__ import annotations

import os
import socket

from scene_edge.edge.clock import Clock


class Watchdog:
    """A stall: frames went in, and for `limit_s` none came out."""

    def __init__(self, limit_s: float, clock: Clock) -> None:
        self._limit_ns = round(limit_s * 1e9)
        self._clock = clock
        self._frames_out = 0
        self._frames_in_then = 0
        self._moved_ns = clock.now_ns()

    def stalled(self, frames_in: int, frames_out: int) -> bool:
        """To be asked about once a second with the totals so far."""
        now_ns = self._clock.now_ns()
        if frames_out > self._frames_out or frames_in == self._frames_in_then:
            self._frames_out, self._frames_in_then, self._moved_ns = frames_out, frames_in, now_ns
            return False
        return now_ns - self._moved_ns > self._limit_ns


def notify_systemd(state: str) -> bool:
    """Tell systemd "READY=1" or "WATCHDOG=1"; False where there is none to tell."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(state.encode(), address)
    except OSError:
        return False
    return True
