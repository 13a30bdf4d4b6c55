"""Measures each stage of the camera alone, one after the other, on the same pictures and on this very board.

Nothing else of ours runs meanwhile, so a stage has all cores that it can use, which in the running camera it shares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import EngineError, SceneEdgeError
from scene_edge.codec.identity import AccessUnit, Frame
from scene_edge.codec.kernels import Kernels
from scene_edge.codec.packet import SemanticPacket
from scene_edge.codec.planes import Planes
from scene_edge.codec.quality import hold_of
from scene_edge.edge import bench_stages as stages
from scene_edge.edge.attention import WHERE
from scene_edge.edge.clip import encoder_settings
from scene_edge.edge.config import CameraConfig, NetworkConfig
from scene_edge.edge.encoders import GStreamerEncoder, create_encoder
from scene_edge.edge.encoders.choose import choose_encoder
from scene_edge.edge.gop import GopCoder
from scene_edge.edge.networks import open_bundle, open_prefilter, quality_control, scene_graph
from scene_edge.edge.semantics import SemanticEncoder
from scene_edge.edge.share import FixedQuality
from scene_edge.edge.transport import PahoTransport
from scene_edge.inference.roofline import Peaks
from scene_edge.inference.rows import Rows
from scene_edge.inference.session import Session, open_session
from scene_edge.inference.stages import Advance, StageRow, measured, without

RENDERED = ("street:", "testsrc:")
"""Sources whose pictures are drawn here: what that takes is no camera's."""

NOT_ON = "nothing to measure it on: "


@dataclass(slots=True)
class Material:
    """What the stages hand on. `pictures` are those that the server sees; `filtered` is what H.264 coded."""

    fps: float
    frames: list[Frame] = field(default_factory=list)
    filtered: list[Planes] = field(default_factory=list)
    units: list[AccessUnit] = field(default_factory=list)
    pictures: list[Planes] = field(default_factory=list)
    packets: list[SemanticPacket] = field(default_factory=list)


class FixedOpener:
    """A SessionOpener of one candidate, with nothing in its place: `main` runs just so, or EngineError is raised."""

    def __init__(self, engine: str, precision: str, main: str, threads: int | None) -> None:
        self._engine, self._precision, self._main, self._threads = engine, precision, main, threads
        self.sessions: dict[str, Session] = {}

    def __call__(
        self, bundle: Bundle, graph: str, height: int, width: int, kernels: Kernels | None = None, /
    ) -> Session:
        engine, precision = self._engine, self._precision
        session = open_session(
            bundle,
            graph,
            height=height,
            width=width,
            prefer=(engine,),
            precision=precision,
            threads=self._threads,
            kernels=kernels,
        )
        self.sessions[graph] = session
        if graph == self._main and session.precision != precision:
            reasons = "; ".join(session.fallbacks)
            raise EngineError(f"{engine} runs {graph} at {session.precision} only", got=reasons, allowed=precision)
        return session

    @property
    def main(self) -> Session:
        return self.sessions[self._main]

    @property
    def proven(self) -> bool:
        """Whether all that was opened reproduced its golden run."""
        return all(session.proven for session in self.sessions.values())

    def close(self) -> None:
        for session in self.sessions.values():
            session.close()


class CameraBench(Rows):
    """Runs the stages in order. Each leaves its rows in `rows`, and in `material` what later ones work on."""

    def __init__(
        self, config: CameraConfig, size: stages.Size, frames: int, peaks: Peaks, advance: Advance = lambda _: None
    ) -> None:
        super().__init__(size, peaks, advance)
        self._config, self._frames = config, frames
        self.material = Material(config.source.fps)

    def run(self, engines: Sequence[str], broker: tuple[str, str] | str) -> None:
        """All stages. `broker` is (kind, URL), or the reason why there is none. Raises SourceError without pictures."""
        self.capture()
        self.scene(engines)
        self.h264()
        self.semantics(engines)
        self.publish(broker)

    def capture(self) -> None:
        """Reading a picture: drawing it, decoding and scaling it, or waiting for a live camera's."""
        url = self._config.source.url
        found = stages.capture(self._config, self._size, self._frames)
        self.material.frames, self.material.fps = found.frames, found.fps
        kind = url.partition(":")[0] if ":" in url else "file"
        row = self._row("capture", kind, "rendered" if is_rendered(self._config) else "camera or file")
        self._keep(measured(row, found.times_ms, len(found.frames)))

    def scene(self, engines: Sequence[str]) -> None:
        """The filter on each candidate. Pictures of the first that runs go on."""
        material, network = self.material, self._config.scene
        material.filtered = [frame.planes for frame in material.frames]
        took_over = False

        def run(row: StageRow, bundle: Bundle, opener: FixedOpener) -> StageRow:
            nonlocal took_over
            scene = open_prefilter(bundle, opener, *self._size, floor=self._config.scene.floor)
            pictures, times_ms = stages.filtered(scene, material.frames)
            if not took_over:
                material.filtered, took_over = pictures, True
            # a map is made of every few frames, and much of what it costs is no network's
            roofline_ms = None if graph == WHERE else self._roofline_ms(bundle, graph, opener.main)
            return measured(row, times_ms, len(times_ms), roofline_ms)

        try:
            graph = scene_graph(self._config) if network.enabled else WHERE
        except SceneEdgeError as error:
            self._keep(without(self._row("scene", network.bundle, ""), str(error)))
            return
        self._each("scene", network, graph, engines, run)

    def h264(self) -> None:
        """The configured encoder, chosen by trial as in the running camera, then the camera's own decode."""
        config, material = self._config, self.material
        settings = encoder_settings(config, *self._size, material.fps)

        def encode(row: StageRow) -> StageRow:
            name = choose_encoder(config.video, settings).encoder
            encoder = create_encoder(name, settings)
            try:
                material.units, times_ms = stages.encoded(encoder, material.filtered, material.frames)
            finally:
                encoder.close()
            library = "gstreamer" if name == GStreamerEncoder.name else "libav"
            return measured(replace(row, model=name, engine=library), times_ms, len(times_ms))

        def decode(row: StageRow) -> StageRow:
            material.pictures, times_ms = stages.decoded(material.units)
            return measured(row, times_ms, len(times_ms))

        self._attempt(self._row("h264_encode", config.video.encoder, "libav"), encode)
        self._attempt(self._row("h264_decode", "h264", "libav"), decode)

    def semantics(self, engines: Sequence[str]) -> None:
        """SMC's encoder on each candidate, then the entropy coder on the latents of the first that runs."""
        config, material = self._config, self.material
        missing = NOT_ON + "no engine ran smc_encode"
        entropy = without(self._row("entropy", config.semantics.bundle, "rans"), missing)
        originals = [frame.planes for frame in material.frames]

        def run(row: StageRow, bundle: Bundle, opener: FixedOpener) -> StageRow:
            nonlocal entropy
            if not material.pictures:
                return without(row, NOT_ON + "no picture was decoded")
            encoder, hold, gop = SemanticEncoder(bundle, *self._size, opener), hold_of(bundle), config.video.gop
            share = gop / math.ceil(gop / hold)
            found, times_ms = stages.mined(encoder, originals, material.pictures, material.units, hold)
            roofline_ms = self._roofline_ms(bundle, "encoder", opener.main)
            if entropy.ms_p50 is None:
                control = quality_control(config.semantics, encoder.steps, gop)
                spent_ms = stages.entropy(encoder, found, material.units, control)
                coder = self._gop_coder(encoder)
                material.packets = stages.packets(coder, material.units, originals)
                entropy = measured(self._row("entropy", bundle.name, "rans"), spent_ms, len(spent_ms) * share)
            return measured(row, times_ms, len(times_ms) * share, roofline_ms)

        self._each("smc_encode", config.semantics, "encoder", engines, run)
        self._keep(entropy)

    def publish(self, broker: tuple[str, str] | str) -> None:
        """Video messages over a real socket to a broker on this machine."""
        config, material = self._config, self.material
        if isinstance(broker, str):
            self._keep(without(self._row("publish", "", "mqtt"), broker))
            return
        kind, url = broker
        local = config.model_copy(update={"mqtt": config.mqtt.model_copy(update={"broker": url})})

        def run(row: StageRow) -> StageRow:
            payloads = stages.messages(config, material.units, self._size, material.fps)
            transport = PahoTransport(local.mqtt, f"{config.camera[:50]}-bench")
            return measured(row, stages.published(transport, local, payloads), len(material.units))

        self._attempt(self._row("publish", kind, "mqtt"), run)

    def _gop_coder(self, encoder: SemanticEncoder) -> GopCoder:
        """One that always speaks, since a silent packet would leave the server's stages nothing to decode."""
        config = self._config
        coarsest = max(range(len(encoder.steps)), key=lambda index: encoder.steps[index])
        return GopCoder(
            encoder,
            session_id=stages.SESSION_ID,
            width=self._size[0],
            height=self._size[1],
            frame_period_ns=round(1e9 / self.material.fps),
            gop=config.video.gop,
            control=FixedQuality(coarsest),
        )

    def _each(
        self,
        stage: str,
        network: NetworkConfig,
        graph: str,
        engines: Sequence[str],
        run: Callable[[StageRow, Bundle, FixedOpener], StageRow],
    ) -> None:
        """A row for each candidate of the network, or one that says why there is none."""
        if not network.enabled:
            self._keep(without(self._row(stage, network.bundle, ""), "switched off in the settings"))
            return
        opened = partial(open_bundle, self._config, network.bundle)
        for row, bundle in self._candidates(stage, network.bundle, graph, engines, opened):
            opener = FixedOpener(row.engine, row.precision or "", graph, network.threads)

            def one(row: StageRow, bundle: Bundle = bundle, opener: FixedOpener = opener) -> StageRow:
                try:
                    return replace(run(row, bundle, opener), proven=opener.proven)
                finally:
                    opener.close()

            self._attempt(row, one)


def is_rendered(config: CameraConfig) -> bool:
    """Whether the source draws its pictures here."""
    return config.source.url.startswith(RENDERED)
