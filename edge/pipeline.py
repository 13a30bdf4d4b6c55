"""The camera's stages, each in its thread with one bounded queue before it: capture, SCENE, H.264, SMC, spool.

What happens when a queue is full: a source that can wait (a file at pace `asap` or `steady`) waits, and so does
everything behind it, so that nothing is lost; its pictures then leave after the packet that belongs to them, so that no
deadline at the server can part them, however slow this machine is. A live source drops the frame and counts it. A full
semantics queue costs the rest of that GOP its semantics, never a picture. A full spool costs a live camera the rest of
the GOP, since no decoder could use it.

What leaves goes through the outbox (outbox.py), which knows what shares a message.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from scene_edge.codec.errors import EngineError
from scene_edge.codec.identity import AccessUnit, Frame, SessionId, new_session_id
from scene_edge.codec.planes import Planes
from scene_edge.edge.clock import Clock
from scene_edge.edge.config import CameraConfig
from scene_edge.edge.encoders import Encoded, Sequencer, VideoEncoder
from scene_edge.edge.gop import GopCoder, StageTime
from scene_edge.edge.ledger import Ledger
from scene_edge.edge.networks import Networks, quality_control
from scene_edge.edge.outbox import Outbox, Outgoing
from scene_edge.edge.queues import BoundedQueue, QueueMeter, WhenFull
from scene_edge.edge.revival import Revival
from scene_edge.edge.semantics import SemanticEncoder
from scene_edge.edge.sources import Source, SourceInfo
from scene_edge.edge.spool import Spool

Degrade = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Captured:
    """A frame, and when it was read: the clock of its latency, since a file's capture times are not of today."""

    frame: Frame
    taken_ns: int

    @property
    def capture_ns(self) -> int:
        return self.frame.capture_ns


@dataclass(frozen=True, slots=True)
class Filtered:
    captured: Captured
    planes: Planes


@dataclass(frozen=True, slots=True)
class SemanticJob:
    """`first_frame`: how many frames were coded before the session of this one."""

    outgoing: Outgoing
    original: Planes
    first_frame: int


class Pipeline:
    """Start once, then `join`. The first error of a stage ends all of them and is raised by `join`."""

    def __init__(
        self,
        config: CameraConfig,
        source: Source,
        info: SourceInfo,
        encoder: VideoEncoder,
        networks: Networks,
        spool: Spool,
        ledger: Ledger,
        *,
        session_id: int,
        utc_quality: int,
        clock: Clock,
        degrade: Degrade,
        recover: Degrade = lambda _reason: None,
        frames: int | None = None,
    ) -> None:
        self._config, self._source, self._info = config, source, info
        self._ledger, self._clock, self._networks = ledger, clock, networks
        self.session_id, self._limit = session_id, frames
        self.sessions: dict[SessionId, int] = {session_id: 0}
        """Every session that was begun, and how many frames were coded before it."""
        self._part = threading.Event()
        self._scene = networks.scene
        scene, semantics = networks.reopen_scene, networks.reopen_semantics
        self._scene_revival = Revival("scene", scene and partial(scene, degrade), clock, degrade, recover)
        self._semantic_revival = Revival(
            "semantics", semantics and partial(semantics, degrade), clock, degrade, recover
        )
        self._sequencer: Sequencer[Captured] = Sequencer(encoder)
        self._gop = None if networks.semantics is None else self._make_gop(networks.semantics)
        self._lossless = not info.live
        full = WhenFull.WAIT if self._lossless else WhenFull.REFUSE
        sizes = config.queues
        self._to_scene: BoundedQueue[Captured] = BoundedQueue("scene", sizes.scene, full)
        # Between two stages of our own the producer waits: what is too much is turned away at the door, once.
        self._to_encode: BoundedQueue[Filtered] = BoundedQueue("encode", sizes.encode, WhenFull.WAIT)
        self._to_semantics: BoundedQueue[SemanticJob] = BoundedQueue("semantics", sizes.semantics, full)
        self._stopping = threading.Event()
        self._outbox = Outbox(
            config,
            info,
            spool,
            ledger,
            session_id=session_id,
            utc_quality=utc_quality,
            clock=clock,
            stopping=self._stopping,
        )
        """Its video belongs to the thread `semantics` where pictures wait for their packet, else to `encode`."""
        self._error: BaseException | None = None
        self._error_lock = threading.Lock()
        self._semantics_on = self._gop is not None
        self._skip_semantics = self._skip_video = False
        self._cuts: deque[int] = deque()
        self._coding_from = 0
        self._lost_seen = 0
        self.encoded = 0
        self._scene_time, self._video_time = StageTime(), StageTime()
        stages = [("capture", self._capture), ("scene", self._filter), ("encode", self._encode)]
        if self._gop is not None:
            stages.append(("semantics", self._code_semantics))
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True) for name, work in stages
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of the stream; False if it has not come in time. Raises the error that ended it."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            return False
        if self._error is not None:
            raise self._error
        return True

    def stop(self) -> None:
        """End the stream after the frames that are under way."""
        self._stopping.set()
        self._scene_revival.close()
        self._semantic_revival.close()
        self._source.stop()
        self._outbox.wake()

    def part(self) -> bool:
        """Begin another session at the next keyframe, so that what is new does not queue behind what waits. False: a
        source that can wait has nothing that is new."""
        if not self._lossless:
            self._part.set()
        return not self._lossless

    @property
    def scene_strength(self) -> float | None:
        """How strong SCENE is, 0..1; None where it does not run."""
        return self._scene.strength if self._scene is not None else None

    @property
    def failures(self) -> dict[str, int]:
        """How often a network failed, or did not open again; empty where none did."""
        counts = {"scene_failed": self._scene_revival.failures, "semantics_failed": self._semantic_revival.failures}
        return {name: count for name, count in counts.items() if count}

    @property
    def semantics_on(self) -> bool:
        return self._semantics_on

    @property
    def stage_ms(self) -> dict[str, float]:
        times = {"scene": self._scene_time, "encode": self._video_time}
        if self._gop is not None:
            times |= {"decode": self._gop.decode_time, "semantics": self._gop.encode_time}
        return {name: round(stage.mean_ms, 3) for name, stage in times.items()}

    def meters(self) -> list[QueueMeter]:
        return [queue.meter() for queue in (self._to_scene, self._to_encode, self._to_semantics)]

    def _make_gop(self, semantics: SemanticEncoder) -> GopCoder:
        return GopCoder(
            semantics,
            session_id=self.session_id,
            width=self._info.width,
            height=self._info.height,
            frame_period_ns=self._info.frame_period_ns,
            gop=self._config.video.gop,
            control=quality_control(self._config.semantics, semantics.steps, self._config.video.gop),
            max_latency_ms=self._config.semantics.max_latency_ms,
        )

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            # Kept for join(), which raises it in the thread that can do something about it.
            with self._error_lock:
                self._error = self._error or error
            self._cancel()

    def _cancel(self) -> None:
        self.stop()
        for queue in (self._to_scene, self._to_encode):
            left = len(queue.cancel())
            if left:
                self._ledger.drop("failed", left)
        left = len(self._to_semantics.cancel())
        if left and self._lossless:
            self._ledger.drop("failed", left)

    def _capture(self) -> None:
        taken = 0
        try:
            while not self._stopping.is_set() and taken != self._limit:
                frame = self._source.read()
                if frame is None:
                    break
                taken += 1
                self._ledger.capture()
                if not self._to_scene.put(Captured(frame, self._clock.now_ns())):
                    self._ledger.drop("failed" if self._error else "queue_full")
        finally:
            self._to_scene.finish()

    def _filter(self) -> None:
        try:
            while (captured := self._to_scene.get()) is not None:
                try:
                    planes = self._filtered(captured.frame)
                except BaseException:
                    self._ledger.drop("failed")
                    raise
                if not self._to_encode.put(Filtered(captured, planes)):
                    self._ledger.drop("failed")
        finally:
            self._to_encode.finish()

    def _filtered(self, frame: Frame) -> Planes:
        if self._scene is None and (revived := self._scene_revival.take()) is not None:
            self._scene = self._networks.scene = revived
        if self._scene is None:
            return frame.planes
        started_ns = time.perf_counter_ns()
        try:
            planes = self._scene.apply(frame.planes, frame.capture_ns)
        except EngineError as error:
            failed, self._scene = self._scene, None
            self._scene_revival.failed(failed, error)
            return frame.planes
        self._scene_time.add(started_ns)
        return planes

    def _encode(self) -> None:
        try:
            while (item := self._next_filtered()) is not None:
                self._encode_one(item)
            self._emit_all(self._sequencer.flush())
            self._account_lost()
            if not self._video_waits:
                self._outbox.close_message()
        finally:
            inside = self._sequencer.abandon()
            if not self._video_waits:
                inside += self._outbox.abandon_video()
            if inside:
                self._ledger.drop("failed", inside)
            self._to_semantics.finish()

    @property
    def _video_waits(self) -> bool:
        """Pictures leave after the packet that belongs to them."""
        return self._lossless and self._gop is not None

    def _next_filtered(self) -> Filtered | None:
        """The next picture. A message that has been open for long enough leaves while none comes."""
        left_s = None if self._video_waits else self._outbox.left_s()
        if left_s is not None and not self._to_encode.ready(left_s) and not self._outbox.close_message():
            self._skip_video = True
        return self._to_encode.get()

    def _encode_one(self, item: Filtered) -> None:
        started_ns = time.perf_counter_ns()
        encoded = self._sequencer.encode(item.planes, item.captured)
        self._video_time.add(started_ns)
        self._account_lost()
        self._emit_all(encoded)

    def _emit_all(self, encoded: list[Encoded[Captured]]) -> None:
        for index, done in enumerate(encoded):
            try:
                self._emit(done.unit, done.source)
            except BaseException:
                self._ledger.drop("failed", len(encoded) - index - 1)
                raise

    def _account_lost(self) -> None:
        lost = self._sequencer.lost - self._lost_seen
        if lost:
            self._lost_seen += lost
            self._ledger.drop("encoder", lost)

    def _emit(self, unit: AccessUnit, captured: Captured) -> None:
        """One access unit to the semantic encoder and into the spool: in this order for a source that can wait.

        Its frame is accounted for by then, even where this raises.
        """
        self.encoded += 1
        if unit.keyframe and self._part.is_set():
            self._begin_session(unit.frame_seq)
        unit = replace(unit, frame_seq=unit.frame_seq - self.sessions[self.session_id])
        outgoing = Outgoing(unit, captured.frame.utc_offset_ns, captured.taken_ns, self.session_id)
        job = SemanticJob(outgoing, captured.frame.planes, self.sessions[self.session_id])
        if self._video_waits:
            if not self._to_semantics.put(job):
                self._ledger.drop("failed")
            return
        if unit.keyframe:
            self._skip_video = self._skip_semantics = False
            self._semantics_on = self._semantics_on or self._semantic_revival.ready()
        if self._skip_video:
            self._outbox.drop_video(1)
        elif not self._outbox.add_video(outgoing):
            self._skip_video = True
        elif self._semantics_on:
            if not self._skip_semantics and not self._to_semantics.put(job):
                self._skip_semantics = True
                self._cuts.append(self.sessions[self.session_id] + unit.frame_seq)
            if self._skip_semantics:
                self._ledger.lose_semantics("queue_full")

    def _begin_session(self, first_frame: int) -> None:
        """Frames are numbered from 0 again; the encoder goes on as if nothing were."""
        session_id = new_session_id()
        if self._outbox.begin_session(session_id):
            self.sessions[session_id] = first_frame
            self.session_id = session_id
            self._part.clear()

    def _code_semantics(self) -> None:
        gop = self._gop
        if gop is None:
            return
        held: deque[Outgoing] = deque()
        try:
            while (job := self._next_job()) is not None:
                if self._lossless:
                    held.append(job.outgoing)
                gop = self._code_one(gop, job)
                self._release(held, gop.open_from)
            self._cut_where_skipped(gop)
            self._outbox.add_packets(gop.flush())
            self._release(held, None)
            if self._video_waits:
                self._outbox.close_message()
            self._outbox.send_riders()
        finally:
            left = len(held) + (self._outbox.abandon_video() if self._video_waits else 0)
            if left:
                self._ledger.drop("failed", left)
            self._outbox.abandon_riders()

    def _code_one(self, gop: GopCoder, job: SemanticJob) -> GopCoder:
        """The coder of the next one: another, where its network failed and was opened anew."""
        if (revived := self._semantic_revival.take()) is not None:
            self._networks.semantics = revived
            gop = self._gop = self._make_gop(revived)
            self._semantics_on = True
        if not self._semantics_on:
            self._ledger.lose_semantics("engine")
            return gop
        gop.session_id, self._coding_from = job.outgoing.session_id, job.first_frame
        try:
            self._outbox.add_packets(gop.push(job.outgoing.unit, job.original))
            if (scene := self._scene) is not None and job.outgoing.unit.keyframe:
                scene.coded_with(gop.keyframe_qp)
            self._cut_where_skipped(gop)
        except EngineError as error:
            self._semantics_on = False
            self._ledger.lose_semantics("engine")
            self._semantic_revival.failed(self._networks.semantics, error)
        self._account_lost_semantics(gop)
        return gop

    def _cut_where_skipped(self, gop: GopCoder) -> None:
        """Close the packet now if the frame due next was turned away: the server need not wait for it."""
        while self._cuts and gop.expected is not None and self._cuts[0] <= gop.expected + self._coding_from:
            if self._cuts.popleft() == gop.expected + self._coding_from:
                self._outbox.add_packets(gop.cut())

    def _release(self, held: deque[Outgoing], waiting_from: int | None) -> None:
        """Spool the pictures whose packet has left, or for which none will come."""
        released = False
        while held and (waiting_from is None or held[0].unit.frame_seq < waiting_from):
            self._outbox.add_video(held.popleft())
            released = True
        if released and self._semantics_on:
            # The next ones leave with the next packet only: what is here need not wait for them.
            self._outbox.close_message()

    def _account_lost_semantics(self, gop: GopCoder) -> None:
        for reason, frames in gop.lost.items():
            self._ledger.lose_semantics(reason, frames)
        gop.lost.clear()

    def _next_job(self) -> SemanticJob | None:
        """The next frame to mine. Packets go alone once no picture has come for so long that they could ride with."""
        outbox = self._outbox
        if not self._lossless and outbox.has_riders and not self._to_semantics.ready(outbox.patience_s):
            self._outbox.send_riders()
        return self._to_semantics.get()
