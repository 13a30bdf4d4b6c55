"""What the server knows of one camera at this moment, shared between its worker, the page and the metrics."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scene_edge.codec.planes import Planes
from scene_edge.server.analytics.seams import Action, Track
from scene_edge.server.history import History, Latencies

LATENCY_WINDOW = 1024
RECENT_ACTIONS = 20
LEDGER_FRESH_S = 5.0
MAX_SHOWN = 64
"""Longest lists and dictionaries taken over from what a camera says of itself."""

MAX_TEXT = 200
MAX_NUMBER = 2.0**63
"""JSON knows integers that no float holds, and that no page should be sent."""

MQTT_QOS1_BYTES = 12
"""Fixed header, topic length and packet id of a QoS 1 publish, and its PUBACK, in bytes."""

TCP_IP_BYTES, SEGMENT_BYTES = 40, 1448

STREAMS = ("video", "semantic", "sei", "overhead")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The picture on the page: what H.264 gave, what fusion made of it (None: not fused), and what was seen on it."""

    seq: int
    utc_ns: int
    lossy: Planes
    fused: Planes | None
    tracks: tuple[Track, ...]

    def told(self) -> dict[str, Any]:
        """What the page is told of it, besides the picture itself."""
        return {
            "seq": self.seq,
            "width": self.lossy.width,
            "height": self.lossy.height,
            "fused": self.fused is not None,
            "tracks": [
                {"id": track.track_id, "label": track.label, "box": [round(value, 1) for value in track.box]}
                for track in self.tracks
            ],
        }


class CameraState:
    """Counters, last values and the current picture of one camera. Every method may be called from any thread.

    `company`: how many cameras the server has met."""

    def __init__(
        self,
        camera: str,
        *,
        silent_after_s: float = 10.0,
        history_s: int = 300,
        company: Callable[[], int] = lambda: 1,
    ) -> None:
        self.camera, self.company = camera, company
        self._silent_after_s = silent_after_s
        self._lock = threading.Lock()
        self._status: str | None = None
        self._birth: dict[str, Any] = {}
        self._ledger: dict[str, Any] = {}
        self._ledger_at_s = -1e9
        self._video_at_s: float | None = None
        self._session: str | None = None
        self._size: tuple[int, int] | None = None
        self._latency_ms = Latencies(LATENCY_WINDOW)
        self._wire: Counter[str] = Counter()
        self._rode_bytes = 0
        self._wire_at_s = time.monotonic()
        self._kbps: dict[str, float] = {}
        self._match: dict[str, int] = {}
        self._match_rate: float | None = None
        self._dropped: Counter[str] = Counter()
        self._committed = self._passed = 0
        self._waiting = 0
        self._degraded: dict[str, str] = {}
        self._engines: dict[str, str] = {}
        self._snapshot: Snapshot | None = None
        self._track_ids: set[int] = set()
        self._actions: deque[tuple[Action, int]] = deque(maxlen=RECENT_ACTIONS)
        self._stage_ms: dict[str, float] = {}
        self._history = History(("t", *STREAMS, "p50", "p95", "p99"), history_s)

    # What the worker reports.

    def told_status(self, text: str) -> None:
        with self._lock:
            self._status = text[:MAX_TEXT]

    def told_birth(self, birth: Mapping[str, Any]) -> None:
        with self._lock:
            self._birth = dict(birth)

    def told_ledger(self, ledger: Mapping[str, Any]) -> None:
        with self._lock:
            self._ledger = dict(ledger)
            self._ledger_at_s = time.monotonic()

    def received(self, stream: str, payload_bytes: int, *, sei_bytes: int = 0, topic_bytes: int = 0) -> None:
        """Count one message on the wire under its stream, and its share of SEI, MQTT and TCP/IP."""
        message = payload_bytes + topic_bytes + MQTT_QOS1_BYTES
        segments = -(-message // SEGMENT_BYTES)
        with self._lock:
            rode = self._rode_bytes if stream == "video" else 0
            self._rode_bytes -= rode
            self._wire[stream] += max(0, payload_bytes - sei_bytes - rode)
            self._wire["sei"] += sei_bytes
            self._wire["overhead"] += message - payload_bytes + segments * TCP_IP_BYTES
            if stream == "video":
                self._video_at_s = time.monotonic()

    def rode(self, semantic_bytes: int) -> None:
        """Semantics came in a video message that was counted: the next one bears less, so that no count ever falls."""
        with self._lock:
            self._wire["semantic"] += semantic_bytes
            self._rode_bytes += semantic_bytes

    def began_session(self, session: str, size: tuple[int, int]) -> None:
        with self._lock:
            self._session, self._size = session, size
            self._track_ids.clear()
            self._actions.clear()
            self._latency_ms.clear()
            self._match, self._match_rate = {}, None

    def dropped(self, reason: str, count: int = 1) -> None:
        """Count something that the server could not use, under its own reason."""
        with self._lock:
            self._dropped[reason] += count

    def passed(self) -> None:
        """A picture was coded too finely for fusion to help, and is used as it is."""
        with self._lock:
            self._passed += 1

    def committed(self, latencies_ms: Sequence[float], frames: int) -> None:
        with self._lock:
            self._committed += frames
            self._latency_ms.extend(latencies_ms)

    def joined(self, counts: Mapping[str, int], match_rate: float | None, waiting: int) -> None:
        with self._lock:
            self._match, self._match_rate, self._waiting = dict(counts), match_rate, waiting

    def degrade(self, part: str, reason: str | None) -> None:
        """Say why a part of the server's work is not done for this camera; None: it is done again."""
        with self._lock:
            if reason is None:
                self._degraded.pop(part, None)
            else:
                self._degraded[part] = reason[:MAX_TEXT]

    def uses(self, part: str, engine: str) -> None:
        with self._lock:
            self._engines[part] = engine

    def took(self, stage: str, ms: float) -> None:
        """Blend the time of one stage into its running mean."""
        with self._lock:
            before = self._stage_ms.get(stage, ms)
            self._stage_ms[stage] = before + 0.05 * (ms - before)

    def saw(self, snapshot: Snapshot) -> None:
        with self._lock:
            self._snapshot = snapshot
            self._track_ids.update(track.track_id for track in snapshot.tracks)

    def acted(self, action: Action, utc_ns: int) -> None:
        with self._lock:
            self._actions.appendleft((action, utc_ns))

    # What the page and the metrics read.

    @property
    def snapshot(self) -> Snapshot | None:
        with self._lock:
            return self._snapshot

    def tick(self) -> None:
        """Once a second: turn byte counts into rates and extend the history."""
        now_s = time.monotonic()
        with self._lock:
            elapsed_s = max(now_s - self._wire_at_s, 1e-3)
            self._kbps = {name: self._wire[name] * 8 / 1000 / elapsed_s for name in STREAMS}
            self._wire.clear()
            self._wire_at_s = now_s
            kbps, _ = self._rates(now_s)
            point: dict[str, float | None] = {"t": round(time.time(), 1)}
            point.update({name: kbps.get(name) for name in STREAMS})
            point.update(self._latency_ms.percentiles())
            self._history.add(point)

    def history(self) -> list[dict[str, float | None]]:
        """A point a second: time, kbit/s of each stream, percentiles of the latency; oldest first."""
        with self._lock:
            return self._history.points()

    def annotated(self, view: dict[str, Any]) -> dict[str, Any]:
        """A worker process' view, and what was noted here, before messages reached it."""
        with self._lock:
            degraded = view["degraded"] + [f"server: {why}" for why in self._degraded.values()]
            dropped = Counter(view["server"]["dropped"]) + self._dropped
            status = "degraded" if self._degraded and view["status"] == "online" else view["status"]
        server = {**view["server"], "dropped": dict(dropped)}
        return {**view, "status": status, "degraded": degraded, "server": server}

    def view(self) -> dict[str, Any]:
        """All of it as JSON for /api/cameras."""
        now_s = time.monotonic()
        with self._lock:
            kbps, source = self._rates(now_s)
            birth, ledger, snapshot = self._birth, self._ledger, self._snapshot
            degraded = _texts(birth.get("degraded")) + [f"server: {why}" for why in self._degraded.values()]
            actions = [_action_view(action, utc_ns) for action, utc_ns in self._actions]
            tracks = [_track_view(track) for track in snapshot.tracks] if snapshot else []
            return {
                "camera": self.camera,
                "status": self._status_word(now_s, bool(degraded)),
                "status_text": self._status,
                "session": self._session,
                "profile": _text(birth.get("profile")),
                "version": _text(birth.get("version")),
                "width": self._size[0] if self._size else None,
                "height": self._size[1] if self._size else None,
                "fps": _number(birth.get("fps")),
                "ledger": {
                    **{name: _whole(ledger.get(name)) for name in ("captured", "committed", "spooled")},
                    "dropped": _counts(ledger.get("dropped")),
                    "backfill": _whole(ledger.get("backfill_frames")),
                },
                "kbps": {**kbps, "total": _total(kbps)},
                "kbps_source": source,
                "bytes": _counts(ledger.get("bytes")),
                "semantics": birth.get("semantics") if isinstance(birth.get("semantics"), bool) else None,
                "match_rate": self._match_rate,
                "match": self._match,
                "latency_ms": self._latency_ms.percentiles(),
                "tracks": tracks,
                "tracks_seen": len(self._track_ids),
                "actions": actions,
                "encoder": _text(birth.get("encoder")),
                "scene_strength": _number(ledger.get("scene_strength")),
                "engine": {**_named(birth.get("engine")), **self._engines},
                "degraded": degraded,
                "rss_mb": {"camera": _number(ledger.get("rss_mb"))},
                "stage_ms": {
                    "camera": _numbers(ledger.get("stage_ms")),
                    "server": {name: round(ms, 2) for name, ms in self._stage_ms.items()},
                },
                "server": {
                    "committed": self._committed,
                    "waiting": self._waiting,
                    "passed": self._passed,
                    "dropped": dict(self._dropped),
                },
                "picture": _picture_view(snapshot),
            }

    def _rates(self, now_s: float) -> tuple[dict[str, float | None], str]:
        """kbit/s by stream: as the camera tells them, else as measured here; None before any video came."""
        told = _numbers(self._ledger.get("kbps"))
        if now_s - self._ledger_at_s < LEDGER_FRESH_S and all(name in told for name in STREAMS):
            return {name: round(told[name], 2) for name in STREAMS}, "camera"
        if self._video_at_s is None:
            return dict.fromkeys(STREAMS), "server"
        return {name: round(self._kbps.get(name, 0.0), 2) for name in STREAMS}, "server"

    def _status_word(self, now_s: float, degraded: bool) -> str:
        if self._status is None:
            return "unknown"
        word = self._status.partition(":")[0]
        if word in ("offline", "stopped"):
            return word
        if word not in ("online", "degraded"):
            return "unknown"
        if self._video_at_s is None or now_s - self._video_at_s > self._silent_after_s:
            return "silent"
        return "degraded" if degraded or word == "degraded" else "online"


class EarlierState(CameraState):
    """What the work on an earlier session reports to: its counts reach the camera's, its pictures and times no page."""

    def __init__(self, shown: CameraState) -> None:
        super().__init__(shown.camera, company=shown.company)
        self._shown = shown

    def dropped(self, reason: str, count: int = 1) -> None:
        self._shown.dropped(reason, count)

    def passed(self) -> None:
        self._shown.passed()

    def rode(self, semantic_bytes: int) -> None:
        self._shown.rode(semantic_bytes)

    def committed(self, latencies_ms: Sequence[float], frames: int) -> None:
        self._shown.committed((), frames)


def _total(kbps: Mapping[str, float | None]) -> float | None:
    known = [rate for rate in kbps.values() if rate is not None]
    return round(sum(known), 2) if known else None


def _track_view(track: Track) -> dict[str, Any]:
    return {
        "id": track.track_id,
        "label": track.label,
        "score": round(track.score, 3),
        "box": [round(value, 1) for value in track.box],
    }


def _action_view(action: Action, utc_ns: int) -> dict[str, Any]:
    return {
        "label": action.label,
        "score": round(action.score, 3),
        "model": action.model,
        "start_seq": action.start_seq,
        "end_seq": action.end_seq,
        "utc_s": round(utc_ns / 1e9, 3),
    }


def _picture_view(snapshot: Snapshot | None) -> dict[str, Any] | None:
    if snapshot is None:
        return None
    return {
        "seq": snapshot.seq,
        "utc_s": round(snapshot.utc_ns / 1e9, 3),
        "width": snapshot.lossy.width,
        "height": snapshot.lossy.height,
        "fused": snapshot.fused is not None,
    }


# A camera's own words are shown, but bounded and of the expected type: the page must survive a camera that lies.


def _text(value: object) -> str | None:
    return value[:MAX_TEXT] if isinstance(value, str) else None


def _texts(value: object) -> list[str]:
    return [_word(item) for item in value[:MAX_SHOWN]] if isinstance(value, list) else []


def _word(value: object) -> str:
    """Lists and objects are not written out: nested deeply enough, that alone would end the page's request."""
    return str(value)[:MAX_TEXT] if isinstance(value, str | int | float) else f"({type(value).__name__})"


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -MAX_NUMBER < value < MAX_NUMBER:
        return None
    return value


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and _number(value) is not None else None


def _numbers(value: object) -> dict[str, float]:
    if not isinstance(value, dict):
        return {}
    found = ((str(key)[:MAX_TEXT], _number(item)) for key, item in list(value.items())[:MAX_SHOWN])
    return {key: number for key, number in found if number is not None}


def _counts(value: object) -> dict[str, int]:
    return {key: int(number) for key, number in _numbers(value).items()}


def _named(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {str(k)[:MAX_TEXT]: _word(v) for k, v in list(value.items())[:MAX_SHOWN] if v is not None}
