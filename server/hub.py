"""The states of all cameras and of the server itself: what page, API and metrics read. No network, no database."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from scene_edge.server.jpegs import JpegCache
from scene_edge.server.state import CameraState

TICK_S = 1.0


def rss_mb(pid: int | None = None) -> float | None:
    """Resident memory of a process, this one if none is named; None where the system does not say."""
    try:
        with open(f"/proc/{pid or 'self'}/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


class Elsewhere(Protocol):
    """States that worker processes hold (processes.py), asked as the hub is."""

    def cameras(self) -> list[dict[str, Any]]: ...

    def pictures(self) -> dict[str, dict[str, Any]]: ...

    def jpeg(self, camera: str, kind: str) -> tuple[bytes, int] | None: ...

    def history(self, camera: str) -> list[dict[str, float | None]] | None: ...

    def processes(self) -> list[dict[str, Any]]: ...


class Hub:
    """Holds every CameraState and ticks it once a second. `health` answers for the server's own parts.

    `company` says how many cameras the server has met, where that is more than are met here.
    """

    def __init__(
        self,
        *,
        silent_after_s: float = 10.0,
        history_s: int = 300,
        jpeg_quality: int = 85,
        company: Callable[[], int] | None = None,
    ) -> None:
        self._silent_after_s, self._history_s = silent_after_s, history_s
        self._company = company or (lambda: len(self._states))
        self._lock = threading.Lock()
        self._states: dict[str, CameraState] = {}
        self._jpegs = JpegCache(jpeg_quality)
        self._checks: dict[str, Callable[[], str]] = {}
        self.role = "owner"
        self.elsewhere: Elsewhere | None = None
        self._dropped: Callable[[], dict[str, int]] = dict
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.started_s = time.time()

    def state(self, camera: str) -> CameraState:
        """The state of a camera, made at its first mention."""
        with self._lock:
            if camera not in self._states:
                self._states[camera] = CameraState(
                    camera, silent_after_s=self._silent_after_s, history_s=self._history_s, company=self._company
                )
            return self._states[camera]

    # What the page asks. Worker processes may take their time to answer.

    def cameras(self) -> list[dict[str, Any]]:
        """The list of GET /api/cameras, by name."""
        with self._lock:
            states = dict(self._states)
        views = []
        for view in [] if self.elsewhere is None else self.elsewhere.cameras():
            state = states.pop(view["camera"], None)
            views.append(view if state is None else state.annotated(view))
        views += [state.view() for state in states.values()]
        memory_mb = self._memory_mb(self._processes())
        for view in views:
            view["rss_mb"]["server"] = memory_mb
        return sorted(views, key=lambda view: str(view["camera"]))

    def pictures(self) -> dict[str, dict[str, Any]]:
        """Camera -> what its current picture shows: number of the frame, size, tracks."""
        with self._lock:
            states = list(self._states.values())
        shown = {state.camera: seen.told() for state in states if (seen := state.snapshot) is not None}
        return shown if self.elsewhere is None else self.elsewhere.pictures() | shown

    def jpeg(self, camera: str, kind: str) -> tuple[bytes, int] | None:
        """The camera's current picture, `lossy` or `fused`, and the number of its frame. Raises EncoderError."""
        with self._lock:
            state = self._states.get(camera)
        if state is not None and (snapshot := state.snapshot) is not None:
            data = self._jpegs.get(camera, kind, snapshot)
            return None if data is None else (data, snapshot.seq)
        return None if self.elsewhere is None else self.elsewhere.jpeg(camera, kind)

    def history(self, camera: str) -> list[dict[str, float | None]] | None:
        """A point a second; None for a camera that was never met."""
        if self.elsewhere is not None and (points := self.elsewhere.history(camera)) is not None:
            return points
        with self._lock:
            state = self._states.get(camera)
        return None if state is None else state.history()

    def answer_for(self, part: str, check: Callable[[], str]) -> None:
        """`check` says "ok" or what is wrong with a part of the server."""
        self._checks[part] = check

    def count_with(self, dropped: Callable[[], dict[str, int]]) -> None:
        """Where messages are counted that never reached a camera's worker."""
        self._dropped = dropped

    def health(self) -> dict[str, Any]:
        parts = {part: check() for part, check in self._checks.items()}
        processes = self._processes()
        if processes:
            wrong = [process["state"] for process in processes if process["state"] != "running"]
            parts["workers"] = f"{len(wrong)} of {len(processes)} processes {wrong[0]}" if wrong else "ok"
        well = all(answer == "ok" for answer in parts.values())
        return {
            "status": "ok" if well else "failing",
            "role": self.role,
            "parts": parts,
            "workers": processes,
            "dropped": self._dropped(),
            "rss_mb": self._memory_mb(processes),
            "uptime_s": round(time.time() - self.started_s, 1),
        }

    def _processes(self) -> list[dict[str, Any]]:
        return [] if self.elsewhere is None else self.elsewhere.processes()

    @staticmethod
    def _memory_mb(processes: list[dict[str, Any]]) -> float | None:
        """Of this process and its workers."""
        own_mb = rss_mb()
        return None if own_mb is None else round(own_mb + sum(process["rss_mb"] or 0.0 for process in processes), 1)

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
