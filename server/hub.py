"""The states of all cameras and of the server itself: what page, API and metrics read. No network, no database."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from scene_edge.server.state import CameraState

TICK_S = 1.0


def rss_mb() -> float | None:
    """Resident memory of this process; None where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


class Hub:
    """Holds every CameraState and ticks it once a second. `health` answers for the server's own parts."""

    def __init__(self, *, silent_after_s: float = 10.0, history_s: int = 300) -> None:
        self._silent_after_s, self._history_s = silent_after_s, history_s
        self._lock = threading.Lock()
        self._states: dict[str, CameraState] = {}
        self._checks: dict[str, Callable[[], str]] = {}
        self.role = "owner"
        self._dropped: Callable[[], dict[str, int]] = dict
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.started_s = time.time()

    def state(self, camera: str) -> CameraState:
        """The state of a camera, made at its first mention."""
        with self._lock:
            if camera not in self._states:
                self._states[camera] = CameraState(
                    camera,
                    silent_after_s=self._silent_after_s,
                    history_s=self._history_s,
                    company=self._states.__len__,
                )
            return self._states[camera]

    def find(self, camera: str) -> CameraState | None:
        with self._lock:
            return self._states.get(camera)

    def cameras(self) -> list[dict[str, Any]]:
        """The list of GET /api/cameras, by name."""
        with self._lock:
            states = sorted(self._states.values(), key=lambda state: state.camera)
        memory_mb = rss_mb()
        views = [state.view() for state in states]
        for view in views:
            view["rss_mb"]["server"] = memory_mb
        return views

    def pictures(self) -> dict[str, int]:
        """Camera -> number of the frame that its current picture shows."""
        with self._lock:
            states = list(self._states.values())
        return {state.camera: shown.seq for state in states if (shown := state.snapshot) is not None}

    def answer_for(self, part: str, check: Callable[[], str]) -> None:
        """`check` says "ok" or what is wrong with a part of the server."""
        self._checks[part] = check

    def count_with(self, dropped: Callable[[], dict[str, int]]) -> None:
        """Where messages are counted that never reached a camera's worker."""
        self._dropped = dropped

    def health(self) -> dict[str, Any]:
        parts = {part: check() for part, check in self._checks.items()}
        well = all(answer == "ok" for answer in parts.values())
        return {
            "status": "ok" if well else "failing",
            "role": self.role,
            "parts": parts,
            "dropped": self._dropped(),
            "rss_mb": rss_mb(),
            "uptime_s": round(time.time() - self.started_s, 1),
        }

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def wait_stop(self, timeout_s: float) -> bool:
        """Sleep, but wake up at `stop`: whether that was it."""
        return self._stop.wait(timeout_s)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="hub", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(TICK_S):
            with self._lock:
                states = list(self._states.values())
            for state in states:
                state.tick()
