"""One camera from source to broker: opens the parts, runs pipeline and publisher, and tells what happened."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass
from typing import Any

import scene_edge
from scene_edge.codec.errors import EncoderError, TransportError
from scene_edge.codec.identity import SessionId, new_session_id, session_hex
from scene_edge.codec.sei import UTC_FREE_RUNNING, UTC_LOCKED
from scene_edge.edge.board import clock_is_synchronised, resident_mb
from scene_edge.edge.clip import encoder_settings
from scene_edge.edge.clock import Clock, SystemClock
from scene_edge.edge.config import CameraConfig, in_the_clear, without_password
from scene_edge.edge.encoders import VideoEncoder, create_encoder
from scene_edge.edge.encoders.choose import choose_encoder
from scene_edge.edge.ledger import Ledger, LedgerSnapshot
from scene_edge.edge.logs import logger
from scene_edge.edge.networks import Networks, open_networks
from scene_edge.edge.pipeline import Pipeline
from scene_edge.edge.publisher import Publisher, Voice
from scene_edge.edge.sources import Source, SourceInfo, open_source
from scene_edge.edge.spool import Limits, MemorySpool, Notices, Record, Spool, SpoolCounts
from scene_edge.edge.spool_sqlite import SqliteSpool
from scene_edge.edge.transport import PahoTransport, Transport
from scene_edge.edge.watchdog import Watchdog, notify_systemd

TICK_S = 0.5
STALLS_BEFORE_RESTART = 3
MAX_STATUS_CHARS = 200


@dataclass(frozen=True, slots=True)
class CameraReport:
    """What a run came to. `drained`: the server acknowledged every frame that was not dropped."""

    session: str
    ledger: LedgerSnapshot
    encoder: str
    engine: dict[str, str]
    degraded: tuple[str, ...]
    faults: dict[str, int]
    connections: int
    resent: int
    drained: bool


class Camera:
    """`open()`, then `run()` until the source ends, `frames` are captured, or `stop()` is called; then `close()`."""

    def __init__(
        self,
        config: CameraConfig,
        *,
        frames: int | None = None,
        transport: Transport | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.config = config
        self._first_session = new_session_id()
        self.ledger = Ledger()
        self._frames = frames
        self._clock = clock or SystemClock()
        self._transport = transport or PahoTransport(config.mqtt, config.camera)
        self._log = logger(camera=config.camera)
        self._stop = threading.Event()
        self._degraded: dict[str, None] = {}
        self._degraded_lock = threading.Lock()
        self._spool: Spool | None = None
        self._source: Source | None = None
        self._info: SourceInfo | None = None
        self._encoder: VideoEncoder | None = None
        self._networks = Networks()
        self._pipeline: Pipeline | None = None
        self._publisher: Publisher | None = None

    @property
    def session_id(self) -> SessionId:
        """The session that runs: another one after an outage that left a backlog."""
        return self._first_session if self._pipeline is None else self._pipeline.session_id

    @property
    def sessions(self) -> dict[SessionId, int]:
        """Every session that was begun, and how many frames were coded before it."""
        return {self._first_session: 0} if self._pipeline is None else dict(self._pipeline.sessions)

    def open(self) -> None:
        """Open source, encoder, networks. Raises SourceError or EncoderError; missing networks only degrade."""
        config = self.config
        self._spool = spool = self._open_spool()
        self._source = open_source(config.source, max_width=config.video.width, clock=self._clock)
        self._info = info = self._source.open()
        for note in info.notes:
            self._log.warning("source.note", note=note)
        settings = encoder_settings(config, info.width, info.height, info.fps)
        choice = choose_encoder(config.video, settings)
        self._encoder = create_encoder(choice.encoder, settings)
        self._networks = open_networks(config, info.width, info.height, strict=False, live=True)
        for reason in (*choice.degraded, *self._networks.degraded):
            self.degrade(reason)
        self._pipeline = Pipeline(
            config,
            self._source,
            info,
            self._encoder,
            self._networks,
            spool,
            self.ledger,
            session_id=self._first_session,
            utc_quality=UTC_LOCKED if clock_is_synchronised() else UTC_FREE_RUNNING,
            clock=self._clock,
            degrade=self.degrade,
            recover=self.recover,
            frames=self._frames,
        )
        self._publisher = Publisher(
            self._transport,
            spool,
            self.ledger,
            config.mqtt,
            camera=config.camera,
            voice=Voice(self.status, self.birth, self.ledger_json, self._part),
            clock=self._clock,
            log=self._log.info,
        )

    def run(self) -> CameraReport:
        """Raises EncoderError if the encoder stalls for good, and whatever a stage failed with."""
        pipeline, publisher, info = self._opened()
        self._log.info(
            "camera.start",
            source=without_password(self.config.source.url),
            size=f"{info.width}x{info.height}",
            fps=round(info.fps, 3),
            encoder=self._encoder.name if self._encoder else "",
            **self._networks.engines,
        )
        if in_the_clear(self.config.mqtt.broker):
            self._log.warning("broker.in_the_clear", broker=self.config.mqtt.broker, hint="mqtts:// encrypts")
        publisher.start()
        pipeline.start()
        notify_systemd("READY=1")
        drained = False
        try:
            self._watch(pipeline)
            drained = publisher.drain(self.config.mqtt.drain_s)
        finally:
            pipeline.stop()
            publisher.stop()
        report = self._report(publisher, drained)
        self._log.info("camera.end", drained=drained, **_counts(report.ledger))
        return report

    def stop(self) -> None:
        """From any thread, or a signal handler."""
        self._stop.set()

    @property
    def told_to_stop(self) -> bool:
        return self._stop.is_set()

    def close(self) -> None:
        if self._source is not None:
            self._source.close()
        if self._encoder is not None:
            self._encoder.close()
        self._networks.close()
        if self._spool is not None:
            self._spool.close()

    def degrade(self, reason: str) -> None:
        """Announce that something runs in a lesser way than configured: log, status, birth."""
        with self._degraded_lock:
            if reason in self._degraded:
                return
            self._degraded[reason] = None
        self._log.warning("camera.degraded", reason=reason)

    def recover(self, reason: str) -> None:
        with self._degraded_lock:
            if self._degraded.pop(reason, "") is None:
                self._log.info("camera.recovered", reason=reason)

    @property
    def degraded(self) -> tuple[str, ...]:
        with self._degraded_lock:
            return tuple(self._degraded)

    def status(self) -> str:
        reasons = "; ".join(self.degraded)
        return f"degraded:{reasons[:MAX_STATUS_CHARS]}" if reasons else "online"

    def birth(self) -> bytes:
        """Who this camera is and what it runs, as JSON."""
        pipeline, _, info = self._opened()
        semantics = self._networks.semantics
        scene = self._networks.scene
        return _json(
            {
                "session": session_hex(self.session_id),
                "camera": self.config.camera,
                "version": scene_edge.__version__,
                "profile": self.config.profile,
                "width": info.width,
                "height": info.height,
                "fps": round(info.fps, 3),
                "pace": "live" if info.live else "asap",
                "gop": self.config.video.gop,
                "encoder": self._encoder.name if self._encoder else "",
                "engine": self._networks.engines,
                "engine_choice": self._networks.choices,
                "semantics": pipeline.semantics_on,
                "tells_held": True,
                "bundle": _bundle(semantics.bundle.name, semantics.bundle.digest) if semantics else None,
                "scene_bundle": _bundle(scene.bundle.name, scene.bundle.digest) if scene else None,
                "degraded": list(self.degraded),
                "notes": list(info.notes),
            }
        )

    def ledger_json(self) -> bytes:
        """The books of this second, as JSON."""
        pipeline, publisher, _ = self._opened()
        snapshot = self.ledger.snapshot()
        spooled = self._spool.counts() if self._spool else SpoolCounts(0, 0, 0)
        held = self._spool.held() if self._spool else None
        return _json(
            {
                "session": session_hex(self.session_id),
                **asdict(snapshot),
                "held": None if held is None else {session_hex(session): seq for session, seq in held.items()},
                "spool_bytes": spooled.bytes,
                "backfill_records": spooled.backfill_records,
                "backfill_frames": spooled.backfill_frames,
                "faults": self._faults(),
                "connections": publisher.connections,
                "resent": publisher.resent,
                "rss_mb": round(resident_mb(), 1),
                "scene_strength": pipeline.scene_strength,
                "stage_ms": pipeline.stage_ms,
                "queues": {meter.name: asdict(meter) for meter in pipeline.meters()},
            }
        )

    def _watch(self, pipeline: Pipeline) -> None:
        """Until the stream ends: see that frames come out, and tell systemd only while they do."""
        watchdog = Watchdog(self.config.watchdog.stall_s, self._clock)
        sent_before = encoded_before = stalls = 0
        stalled = "encoder stalled"
        while not pipeline.join(TICK_S):
            if self._stop.is_set():
                pipeline.stop()
            snapshot = self.ledger.snapshot()
            if watchdog.stalled(snapshot.captured, pipeline.encoded):
                stalls += 1
                self.degrade(stalled)
                if stalls * TICK_S > STALLS_BEFORE_RESTART * self.config.watchdog.stall_s:
                    raise EncoderError(
                        "the encoder takes frames and gives none", hint="Restart; see scene-edge doctor."
                    )
                continue
            stalls = 0
            self.recover(stalled)
            sent = snapshot.bytes["overhead"]
            if pipeline.encoded > encoded_before and sent > sent_before:
                notify_systemd("WATCHDOG=1")
            encoded_before, sent_before = pipeline.encoded, sent

    def _open_spool(self) -> Spool:
        settings = self.config.spool
        limits = Limits(round(settings.max_mb * 1e6), round(settings.memory_mb * 1e6), settings.max_age_h * 3600)
        notices = Notices(self._given_up, self.ledger.recover, self.degrade, self.recover)
        if settings.path is None:
            return MemorySpool(limits, self._first_session, self._clock, notices)
        file = settings.path / f"{self.config.camera}.sqlite"
        return SqliteSpool(file, limits, session=self._first_session, clock=self._clock, notices=notices)

    def _given_up(self, record: Record, reason: str) -> None:
        if not record.frames:
            return  # semantics, or a fragment: its frames are counted with the last one
        if self._spool is None or record.session in self._spool.own:
            self.ledger.drop(reason, record.frames, spooled=True)
        else:
            self.ledger.drop_backfill(reason, record.frames)

    def _part(self) -> bool:
        self._log.info("camera.parts", hint="what waits is backfill from here on, and what is new goes first")
        return self._opened()[0].part()

    def _opened(self) -> tuple[Pipeline, Publisher, SourceInfo]:
        if self._pipeline is None or self._publisher is None or self._info is None:
            raise EncoderError("the camera is used before it is open", hint="Call open() first.")
        return self._pipeline, self._publisher, self._info

    def _faults(self) -> dict[str, int]:
        """What went wrong and was survived, by name: of the source, and of networks."""
        source = dict(self._source.faults) if self._source else {}
        return source | (self._pipeline.failures if self._pipeline else {})

    def _report(self, publisher: Publisher, drained: bool) -> CameraReport:
        return CameraReport(
            session=session_hex(self.session_id),
            ledger=self.ledger.snapshot(),
            encoder=self._encoder.name if self._encoder else "",
            engine=self._networks.engines,
            degraded=self.degraded,
            faults=self._faults(),
            connections=publisher.connections,
            resent=publisher.resent,
            drained=drained,
        )


def run_camera(config: CameraConfig, *, frames: int | None = None, transport: Transport | None = None) -> CameraReport:
    """Open, run, close. Raises what `finish` raises."""
    camera = Camera(config, frames=frames, transport=transport)
    return finish(camera)


def finish(camera: Camera) -> CameraReport:
    """Open, run, close. Raises TransportError if the stream ended and the server never acknowledged all of it."""
    try:
        camera.open()
        report = camera.run()
    finally:
        camera.close()
    if not report.drained and not camera.told_to_stop:
        raise TransportError(
            f"{report.ledger.spooled} of {report.ledger.captured} frames were never acknowledged by a server",
            got=f"{report.connections} connections to {camera.config.mqtt.broker}",
            hint="Do the broker and `scene-edge serve` run?",
        )
    return report


def _counts(snapshot: LedgerSnapshot) -> dict[str, Any]:
    return {
        "captured": snapshot.captured,
        "committed": snapshot.committed,
        "spooled": snapshot.spooled,
        "dropped": snapshot.dropped,
    }


def _bundle(name: str, digest: bytes) -> dict[str, str]:
    return {"name": name, "digest": digest.hex()}


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
