"""Measures each stage of the server alone, on what a camera made: fusion, detection, tracks, actions.

For `scene-edge bench`, which measures the camera's stages first. One camera, one thread of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import EngineError, SceneEdgeError
from scene_edge.codec.packet import KEY, SemanticPacket
from scene_edge.codec.planes import Planes
from scene_edge.inference.roofline import Peaks
from scene_edge.inference.rows import Rows
from scene_edge.inference.session import Session
from scene_edge.inference.stages import WARM_UP, Advance, StageRow, Stopwatch, measured, without
from scene_edge.server.analytics.action import ClipRecogniser
from scene_edge.server.analytics.detections import Detections
from scene_edge.server.analytics.detector import BundleDetector
from scene_edge.server.analytics.tracker import ByteTracker
from scene_edge.server.config import ServerConfig
from scene_edge.server.fusion import FusionDecoder, LatentFeed

T = TypeVar("T")
R = TypeVar("R")

ACT_RUNS = 10
"""Verdicts that are measured: one looks at a whole window of pictures."""


@dataclass(frozen=True, slots=True)
class Received:
    """What a camera sent, decoded from H.264. `packets` belong to `pictures`, whose numbers begin at 0."""

    pictures: Sequence[Planes]
    packets: Sequence[SemanticPacket]
    fps: float
    bundle: Bundle

    @property
    def size(self) -> tuple[int, int]:
        return self.pictures[0].width, self.pictures[0].height


class ServerBench(Rows):
    """Runs the stages in order; each leaves its rows in `rows`."""

    def __init__(
        self,
        received: Received,
        peaks: Peaks,
        advance: Advance = lambda _: None,
        config: ServerConfig | None = None,
    ) -> None:
        super().__init__(received.size, peaks, advance)
        self.received, self.config = received, config or ServerConfig()
        self._fused: list[Planes] = []
        self._detections: list[Detections] = []

    def run(self, engines: Sequence[str]) -> None:
        self.smc_decode(engines)
        self.detect(engines)
        self.track()
        self.act(engines)

    def smc_decode(self, engines: Sequence[str]) -> None:
        """Packet to latents and fusion of every picture, on each candidate; pictures of the first that runs go on."""
        received, settings = self.received, self.config.fusion

        def run(row: StageRow) -> StageRow:
            decoder = FusionDecoder(
                received.bundle,
                *received.size,
                prefer=(row.engine,),
                precision=row.precision or settings.precision,
                threads=settings.threads,
            )
            try:
                _same_precision(row, decoder.session)
                pictures, times_ms = fused(decoder, received)
                self._fused = self._fused or pictures
                return self._network_row(row, received.bundle, "decoder", decoder.session, times_ms, len(times_ms))
            finally:
                decoder.close()

        self._each("smc_decode", received.bundle, "decoder", engines, run)

    def detect(self, engines: Sequence[str]) -> None:
        """The configured detector on every fused picture; the server looks at `detect_fps` of them."""
        analytics, pictures = self.config.analytics, self._pictures
        bundle = self._bundle_of("detect", analytics.detector)
        if bundle is None:
            return

        def run(row: StageRow) -> StageRow:
            detector = BundleDetector(bundle, prefer=(row.engine,), threads=analytics.threads)
            try:
                _same_precision(row, detector.session)
                found, times_ms = timed(detector.detect, pictures)
                self._detections = self._detections or found
                return self._network_row(row, bundle, "detector", detector.session, times_ms, len(times_ms))
            finally:
                detector.close()

        self._each("detect", bundle, "detector", engines, run)

    def track(self) -> None:
        row = self._row("track", "bytetrack", "trackers")

        def run(row: StageRow) -> StageRow:
            if not self._detections:
                return without(row, "nothing to measure it on: no engine ran detect")
            tracker, watch = ByteTracker(self.received.fps), Stopwatch()
            for seq, detections in enumerate(self._detections):
                watch.time(tracker.update, detections, seq)
            return measured(row, watch.times_ms, len(watch.times_ms))

        self._attempt(row, run)

    def act(self, engines: Sequence[str]) -> None:
        """A verdict of the first configured recogniser: its window's pictures made small, and its network."""
        analytics, pictures = self.config.analytics, self._pictures
        bundle = self._bundle_of("act", analytics.actions[0] if analytics.actions else "off")
        if bundle is None:
            return

        def run(row: StageRow) -> StageRow:
            recogniser = ClipRecogniser(bundle, prefer=(row.engine,), threads=analytics.threads)
            try:
                _same_precision(row, recogniser.session)
                _, times_ms = timed(recogniser.classify, [pictures] * ACT_RUNS)
                served = len(times_ms) * recogniser.model.hop_s * self.received.fps
                return self._network_row(row, bundle, "action", recogniser.session, times_ms, served)
            finally:
                recogniser.close()

        self._each("act", bundle, "action", engines, run)

    @property
    def _pictures(self) -> Sequence[Planes]:
        return self._fused or self.received.pictures

    def _bundle_of(self, stage: str, name: str) -> Bundle | None:
        """None, and a row with the reason, for what is switched off or no bundle."""
        if name == "off":
            self._keep(without(self._row(stage, name, ""), "switched off in the settings"))
            return None
        try:
            return Bundle.open(name)
        except SceneEdgeError as error:
            self._keep(without(self._row(stage, name, ""), str(error)))
            return None

    def _each(
        self, stage: str, bundle: Bundle, graph: str, engines: Sequence[str], run: Callable[[StageRow], StageRow]
    ) -> None:
        for row, _ in self._candidates(stage, bundle.name, graph, engines, lambda: bundle):
            self._attempt(row, run)

    def _network_row(
        self, row: StageRow, bundle: Bundle, graph: str, session: Session, times_ms: Sequence[float], frames: float
    ) -> StageRow:
        roofline_ms = self._roofline_ms(bundle, graph, session)
        return replace(measured(row, times_ms, frames, roofline_ms), proven=session.proven)


def fused(decoder: FusionDecoder, received: Received) -> tuple[list[Planes], list[float]]:
    """Every picture fused with its latent, whatever the video's QP, so that the network runs each time."""
    by_frame = {packet.first_seq + offset: packet for packet in received.packets for offset in range(packet.count)}
    keys = {packet.first_seq for packet in received.packets if packet.kind == KEY} | {0}

    def fuse(feed: LatentFeed, seq: int) -> Planes:
        latent, step = feed.latent_of(by_frame.get(seq), seq)
        return decoder.fuse(received.pictures[seq], latent, seq in keys, step)

    for _ in range(WARM_UP):
        decoder.fuse(received.pictures[0], None, True)
    feed, watch = LatentFeed(decoder), Stopwatch()
    return [watch.time(fuse, feed, seq) for seq in range(len(received.pictures))], watch.times_ms


def timed(call: Callable[[T], R], items: Sequence[T]) -> tuple[list[R], list[float]]:
    """`call` on each item after a warm-up on the first: results, and ms of each."""
    for _ in range(WARM_UP):
        call(items[0])
    watch = Stopwatch()
    return [watch.time(call, item) for item in items], watch.times_ms


def _same_precision(row: StageRow, session: Session) -> None:
    if session.precision != row.precision:
        raise EngineError(
            f"{row.engine} runs it at {session.precision} only",
            got="; ".join(session.fallbacks),
            allowed=row.precision,
        )
