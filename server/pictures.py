"""From joined frames to results: H.264 decode, fusion, detection, tracking, actions, for one camera, in order.

Damage never stops it. A gap or an access unit that will not decode costs the pictures up to the next IDR; a missing or
bad packet costs the fusion of its frames (the decoder works on from the lossy picture); a network that fails costs its
own results. Each is counted under its own reason in the camera's state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from scene_edge.codec.annexb import has_idr
from scene_edge.codec.errors import BundleError, DecoderError, EngineError, EntropyError, PacketError, SceneEdgeError
from scene_edge.codec.h264 import Decoded, H264Decoder
from scene_edge.codec.packet import SemanticPacket
from scene_edge.codec.planes import Planes
from scene_edge.server.analytics.detections import Detections
from scene_edge.server.analytics.seams import Action, ActionRecogniser, Detector, Track, Tracker
from scene_edge.server.config import MAX_PIXELS, FusionConfig
from scene_edge.server.fusion import BundleShelf, FusionDecoder, LatentFeed
from scene_edge.server.join import Joined, JoinStatus, VideoUnit
from scene_edge.server.state import CameraState, Snapshot
from scene_edge.server.store import FrameResult

MAX_UNDECODED = 16
"""A decoder that holds more access units than this without a picture has lost them (no B-frames are sent)."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Analytics:
    """What looks at the pictures. The detector is shared by all cameras and locks itself; the rest is one camera's."""

    detector: Detector | None
    tracker: Tracker | None
    recognisers: Sequence[ActionRecogniser]
    detect_fps: float
    action_score: float = 0.0
    max_lag_s: float = math.inf
    """A camera whose frames are handled later than this after their arrival is looked at once a second."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one frame, and whether a detector looked at it (so that an empty picture is reported too)."""

    result: FrameResult
    unit: VideoUnit
    analysed: bool


FusionFactory = Callable[[bytes, int, int], FusionDecoder]


def fusion_factory(shelf: BundleShelf, config: FusionConfig) -> FusionFactory:
    """(bundle digest, width, height) -> a decoder; raises BundleError or EngineError."""

    def build(digest: bytes, width: int, height: int) -> FusionDecoder:
        bundle = shelf.find(digest)
        return FusionDecoder(
            bundle, width, height, prefer=config.engines, precision=config.precision, threads=config.threads
        )

    return build


class PicturePipeline:
    """One camera's pictures. `reset` at every new session."""

    def __init__(
        self,
        state: CameraState,
        analytics: Analytics,
        fusion: FusionFactory | None,
        *,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._state, self._analytics, self._fusion, self._max_pixels = state, analytics, fusion, max_pixels
        self._h264: H264Decoder | None = None
        self._undecoded: dict[int, Joined] = {}
        self._feed: LatentFeed | None = None
        self._feed_key: tuple[bytes, int, int] | None = None
        self._next_detect_ns: int | None = None
        self._behind = False
        if analytics.detector is not None:
            state.uses("detector", analytics.detector.name)
        for number, recogniser in enumerate(analytics.recognisers):
            state.uses(f"action{number}", recogniser.name)

    def reset(self) -> None:
        """A new session begins: nothing of the old one may leak into it."""
        self._undecoded.clear()
        self._h264 = None
        if self._feed is not None:
            self._feed = LatentFeed(self._feed.decoder)  # compiled already; a key packet clears the rest
        else:
            self._feed_key = None  # what failed in one session is tried again in the next
        self._next_detect_ns = None
        if self._analytics.tracker is not None:
            self._analytics.tracker.reset()
        for recogniser in self._analytics.recognisers:
            recogniser.reset()

    def close(self) -> None:
        self._close_fusion()
        for recogniser in self._analytics.recognisers:
            recogniser.close()

    def prepare(self, digest: bytes, width: int, height: int) -> None:
        """Open the fusion network that a camera announces, before its first frames wait for it."""
        if self._fusion is not None and self._feed_key is None:
            self._feed_key = (digest, width, height)
            self._open_fusion(*self._feed_key)

    def process(self, joined: Joined) -> Iterator[Outcome]:
        """The outcomes that this frame completes, in order; every frame gets exactly one in the end."""
        unit = joined.unit
        if unit is None:
            yield from self._lose_pictures()
            return
        self._undecoded[joined.frame_seq] = joined
        if self._h264 is None:
            if not has_idr(unit.data):
                self._state.dropped("video_no_keyframe")
                del self._undecoded[joined.frame_seq]
                yield self._blank(joined, unit)
                return
            self._h264 = H264Decoder(max_pixels=self._max_pixels)
        try:
            with self._timed("decode"):
                pictures = self._h264.decode(unit.data, joined.frame_seq)
        except DecoderError as error:
            log.warning("video does not decode", camera=self._state.camera, seq=joined.frame_seq, error=str(error))
            yield from self._lose_pictures()
            return
        for picture in pictures:
            yield from self._arrived(picture)
        if len(self._undecoded) > MAX_UNDECODED:
            yield from self._lose_pictures()

    def _arrived(self, picture: Decoded) -> Iterator[Outcome]:
        seq, planes = picture.frame_seq, picture.planes
        for earlier in [key for key in self._undecoded if key < seq]:
            yield from self._lost(self._undecoded.pop(earlier))
        joined = self._undecoded.pop(seq, None)
        if joined is None or joined.unit is None:
            self._state.dropped("video_unknown_picture")
            return
        if (planes.width, planes.height) != (joined.unit.width, joined.unit.height):
            self._state.dropped("video_wrong_size")
            yield self._blank(joined, joined.unit)
            return
        fused = self._fuse(joined, joined.unit, picture)
        yield self._analyse(joined, joined.unit, planes, fused)

    def _lose_pictures(self) -> Iterator[Outcome]:
        """The decoder's references are gone: give up what it holds and wait for the next IDR."""
        self._h264 = None
        waiting, self._undecoded = self._undecoded, {}
        for joined in waiting.values():
            yield from self._lost(joined)

    def _lost(self, joined: Joined) -> Iterator[Outcome]:
        if joined.unit is not None:
            self._state.dropped("video_damaged")
            yield self._blank(joined, joined.unit)

    def _blank(self, joined: Joined, unit: VideoUnit) -> Outcome:
        return Outcome(_result(joined, unit, "none"), unit, False)

    # Fusion

    def _fuse(self, joined: Joined, unit: VideoUnit, picture: Decoded) -> Planes | None:
        if self._fusion is None or joined.status is JoinStatus.UNPAIRED:
            return None
        feed = self._feed_for(joined.packet, picture.planes)
        if feed is None:
            return None
        latent, step = None, None
        try:
            with self._timed("entropy"):
                latent, step = feed.latent_of(joined.packet, joined.frame_seq)
        except PacketError as error:
            self._refuse("semantic_refused", error)
        except EntropyError as error:
            self._refuse("semantic_damaged", error)
        try:
            with self._timed("fuse"):
                fused = feed.decoder.fuse(picture.planes, latent, unit.keyframe, step, picture.qp)
            if fused is not picture.planes:
                return fused
            self._state.passed()
            return None
        except Exception as error:  # a runtime may raise anything: the camera's stream goes on without it
            log.exception("fusion failed", camera=self._state.camera)
            self._state.dropped("fusion_failed")
            self._state.degrade("fusion", f"fusion failed: {error}")
            self._close_fusion(keep_key=True)
            return None

    def _feed_for(self, packet: SemanticPacket | None, planes: Planes) -> LatentFeed | None:
        """The decoder for this bundle and size. One that failed to open is not tried again for the same."""
        if self._feed_key is not None and (packet is None or packet.bundle_digest == self._feed_key[0]):
            wanted = (self._feed_key[0], planes.width, planes.height)
        elif packet is not None:
            wanted = (packet.bundle_digest, planes.width, planes.height)
        else:
            return None
        if wanted != self._feed_key:
            self._close_fusion()
            self._feed_key = wanted
            self._open_fusion(*wanted)
        return self._feed

    def _open_fusion(self, digest: bytes, width: int, height: int) -> None:
        if self._fusion is None:
            return
        try:
            decoder = self._fusion(digest, width, height)
        except (BundleError, EngineError) as error:
            reason = "unknown_bundle" if isinstance(error, BundleError) else "no_fusion_engine"
            log.warning("no fusion for this camera", camera=self._state.camera, error=str(error))
            self._state.dropped(reason)
            self._state.degrade("fusion", str(error))
            return
        self._feed = LatentFeed(decoder)
        self._state.uses("fusion", decoder.engine)
        self._state.degrade("fusion", None)

    def _close_fusion(self, *, keep_key: bool = False) -> None:
        if self._feed is not None:
            self._feed.decoder.close()
        self._feed = None
        if not keep_key:
            self._feed_key = None

    def _refuse(self, reason: str, error: SceneEdgeError) -> None:
        log.warning("packet not used", camera=self._state.camera, reason=reason, error=str(error))
        self._state.dropped(reason)

    # Analytics

    def _analyse(self, joined: Joined, unit: VideoUnit, lossy: Planes, fused: Planes | None) -> Outcome:
        picture = lossy if fused is None else fused
        self._note_lag(time.monotonic() - joined.arrived_s)
        due = self._detection_due(unit.capture_ns)
        tracks = self._track(picture, unit.frame_seq) if due else ()
        actions = self._recognise(picture, unit)
        if due:
            self._state.saw(Snapshot(unit.frame_seq, unit.utc_ns, lossy, fused, tracks))
        for action in actions:
            self._state.acted(action, unit.utc_ns)
        name = "lossy" if fused is None else "fused"
        return Outcome(_result(joined, unit, name, tracks, tuple(actions)), unit, due)

    def _note_lag(self, lag_s: float) -> None:
        """Better few boxes in time than all of them later and later; said on the page while it lasts."""
        limit_s = self._analytics.max_lag_s
        behind = lag_s > (limit_s / 2 if self._behind else limit_s)
        if behind != self._behind:
            self._behind = behind
            reason = f"more than {limit_s:g} s behind, so it looks at one picture a second" if behind else None
            self._state.degrade("pace", reason)

    def _detection_due(self, capture_ns: int) -> bool:
        fps = min(self._analytics.detect_fps, 1.0) if self._behind else self._analytics.detect_fps
        period_ns = round(1e9 / fps)
        due_ns = self._next_detect_ns
        jumped_back = due_ns is not None and capture_ns < due_ns - 2 * period_ns
        if due_ns is not None and capture_ns < due_ns and not jumped_back:
            return False
        in_step = due_ns is not None and due_ns + period_ns > capture_ns and not jumped_back
        self._next_detect_ns = (due_ns or 0) + period_ns if in_step else capture_ns + period_ns
        return True

    def _track(self, picture: Planes, seq: int) -> tuple[Track, ...]:
        detector, tracker = self._analytics.detector, self._analytics.tracker
        if detector is None or tracker is None:
            return ()
        try:
            with self._timed("detect"):
                found = _road_users(detector.detect(picture))
            with self._timed("track"):
                tracks = tuple(tracker.update(found, seq))
        except Exception as error:  # as above: a failing network costs its results, not the stream
            log.exception("detection failed", camera=self._state.camera)
            self._state.dropped("detection_failed")
            self._state.degrade("detector", f"detection failed: {error}")
            return ()
        self._state.degrade("detector", None)
        return tracks

    def _recognise(self, picture: Planes, unit: VideoUnit) -> list[Action]:
        actions: list[Action] = []
        for recogniser in self._analytics.recognisers:
            try:
                with self._timed("act"):
                    actions += recogniser.push(picture, unit.frame_seq, unit.capture_ns / 1e9)
            except Exception as error:  # as above
                log.exception("action recognition failed", camera=self._state.camera, model=recogniser.name)
                self._state.dropped("action_failed")
                self._state.degrade("action", f"action recognition failed: {error}")
        return [action for action in actions if action.score >= self._analytics.action_score]

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._state.took(stage, (time.perf_counter() - started) * 1000)


def _road_users(found: Detections) -> Detections:
    """COCO's classes folded to person and vehicle; a detector with classes of its own keeps them."""
    return found.folded() if "person" in found.names else found


def _result(
    joined: Joined, unit: VideoUnit, picture: str, tracks: tuple[Track, ...] = (), actions: tuple[Action, ...] = ()
) -> FrameResult:
    packet = joined.packet
    return FrameResult(
        joined.frame_seq,
        unit.utc_ns,
        joined.status.value,
        picture,
        len(unit.data),
        _body_share(packet, joined.frame_seq),
        tracks,
        actions,
    )


def _body_share(packet: SemanticPacket | None, seq: int) -> int:
    """A frame's part of its packet's body in bytes: equal parts that add up, for frames have no bytes of their own."""
    if packet is None:
        return 0
    index, size = seq - packet.first_seq, len(packet.body)
    return size * (index + 1) // packet.count - size * index // packet.count
