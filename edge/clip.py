"""One frame's way in one thread: SCENE, H.264, local decode, SMC. Deterministic; for recordings, benchmarks, tests."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from scene_edge.codec.identity import AccessUnit, Frame, new_session_id
from scene_edge.codec.latents import I16
from scene_edge.codec.packet import SemanticPacket
from scene_edge.codec.planes import Planes
from scene_edge.codec.sei import ANCHOR_UUID, UTC_UNKNOWN, Anchor, insert_sei
from scene_edge.edge.config import CameraConfig
from scene_edge.edge.encoders import EncoderSettings, LibavEncoder, Sequencer, VideoEncoder
from scene_edge.edge.gop import GopCoder, StageTime
from scene_edge.edge.networks import Networks, open_networks, quality_control


@dataclass(slots=True)
class Coded:
    """What one step gave. `latents` are the integers of the semantic payloads, in order."""

    units: list[AccessUnit] = field(default_factory=list)
    packets: list[SemanticPacket] = field(default_factory=list)
    latents: list[I16] = field(default_factory=list)


@dataclass(slots=True)
class EncodedClip:
    """A whole clip in memory. bytes: video, semantic, sei, total; ms: mean per frame of each stage."""

    session_id: int
    width: int
    height: int
    fps: float
    access_units: list[AccessUnit]
    packets: list[SemanticPacket]
    latents: list[I16]
    bytes: dict[str, int]
    ms: dict[str, float]

    @property
    def kbps(self) -> dict[str, float]:
        seconds = len(self.access_units) / self.fps
        return {name: count * 8 / 1000 / seconds for name, count in self.bytes.items()} if seconds else {}


class FrameCoder:
    """Codes frame after frame. The caller owns `networks` and closes them."""

    def __init__(
        self,
        config: CameraConfig,
        *,
        width: int,
        height: int,
        fps: float,
        networks: Networks,
        encoder: VideoEncoder,
        session_id: int,
        utc_quality: int = UTC_UNKNOWN,
    ) -> None:
        self.session_id = session_id
        self._config, self._utc_quality = config, utc_quality
        self._scene = networks.scene
        self._semantics = networks.semantics
        self._sequencer: Sequencer[Frame] = Sequencer(encoder)
        self._gop: GopCoder | None = None
        if networks.semantics is not None:
            self._gop = GopCoder(
                networks.semantics,
                session_id=session_id,
                width=width,
                height=height,
                frame_period_ns=round(1e9 / fps),
                gop=config.video.gop,
                control=quality_control(config.semantics, networks.semantics.steps, config.video.gop),
                max_latency_ms=config.semantics.max_latency_ms,
            )
        if networks.scene is not None:
            networks.scene.reset()
        self.bytes: Counter[str] = Counter(video=0, semantic=0, sei=0)
        self._scene_time, self._video_time = StageTime(), StageTime()

    def push(self, frame: Frame) -> Coded:
        planes = frame.planes
        if self._scene is not None:
            started_ns = time.perf_counter_ns()
            planes = self._scene.apply(planes, frame.capture_ns)
            self._scene_time.add(started_ns)
        started_ns = time.perf_counter_ns()
        encoded = self._sequencer.encode(planes, frame)
        self._video_time.add(started_ns)
        coded = Coded()
        for item in encoded:
            self._take(item.unit, item.source, coded)
        return coded

    def flush(self) -> Coded:
        coded = Coded()
        for item in self._sequencer.flush():
            self._take(item.unit, item.source, coded)
        if self._gop is not None:
            coded.packets += self._count(self._gop.flush())
        return coded

    @property
    def ms(self) -> dict[str, float]:
        """Mean wall time of each stage over its frames."""
        times = {"scene": self._scene_time.mean_ms, "encode": self._video_time.mean_ms}
        if self._gop is not None:
            times |= {"decode": self._gop.decode_time.mean_ms, "semantics": self._gop.encode_time.mean_ms}
        return {name: round(value, 3) for name, value in times.items()}

    @property
    def faults(self) -> Counter[str]:
        faults = Counter({f"semantics_{name}": count for name, count in (self._gop.lost if self._gop else {}).items()})
        faults["encoder_lost"] += self._sequencer.lost
        return +faults

    def _take(self, unit: AccessUnit, frame: Frame, coded: Coded) -> None:
        marked = with_anchor(unit, frame.utc_offset_ns, self.session_id, self._config.video.sei, self._utc_quality)
        self.bytes["video"] += len(unit.data)
        self.bytes["sei"] += len(marked.data) - len(unit.data)
        coded.units.append(marked)
        if self._gop is not None and self._semantics is not None:
            coded.packets += self._count(self._gop.push(unit, frame.planes))
            if self._scene is not None and unit.keyframe:
                self._scene.coded_with(self._gop.keyframe_qp)
            if self._semantics.last_latents is not None:
                coded.latents.append(self._semantics.last_latents)

    def _count(self, packets: list[SemanticPacket]) -> list[SemanticPacket]:
        self.bytes["semantic"] += sum(len(packet.to_bytes()) for packet in packets)
        return packets


def with_anchor(unit: AccessUnit, utc_offset_ns: int, session_id: int, mode: str, utc_quality: int) -> AccessUnit:
    """The access unit with its identity as SEI, where `mode` (keyframe, every, off) wants it there."""
    if mode == "off" or (mode == "keyframe" and not unit.keyframe):
        return unit
    quality = utc_quality if utc_offset_ns else UTC_UNKNOWN
    anchor = Anchor(session_id, unit.frame_seq, unit.capture_ns, utc_offset_ns, quality)
    return replace(unit, data=insert_sei(unit.data, anchor.to_bytes(), ANCHOR_UUID))


def encoder_settings(config: CameraConfig, width: int, height: int, fps: float) -> EncoderSettings:
    video = config.video
    return EncoderSettings(
        width=width,
        height=height,
        fps=fps,
        gop=video.gop,
        crf=video.crf,
        bitrate_kbps=video.bitrate_kbps,
        preset=video.preset,
        tune=video.tune,
        threads=video.threads,
    )


def encode_clip(
    frames: Iterable[Frame | Planes],
    fps: float,
    config: CameraConfig,
    *,
    networks: Networks | None = None,
    session_id: int | None = None,
) -> EncodedClip:
    """Code a clip in memory with libx264 in one thread: the same frames and settings give the same bytes.

    Bare planes are taken to be `fps` apart. `networks` that are already open (for this size) save opening them for
    each clip; otherwise SCENE and SMC are opened as `config` says, and an error there is raised. All frames must be of
    one size.
    """
    coder: FrameCoder | None = None
    opened: Networks | None = None
    units: list[AccessUnit] = []
    packets: list[SemanticPacket] = []
    latents: list[I16] = []
    size = (0, 0)

    def keep(coded: Coded) -> None:
        units.extend(coded.units)
        packets.extend(coded.packets)
        latents.extend(coded.latents)

    try:
        for index, item in enumerate(frames):
            frame = item if isinstance(item, Frame) else Frame(item, round(index * 1e9 / fps))
            if coder is None:
                size = frame.planes.width, frame.planes.height
                if networks is None:
                    networks = opened = open_networks(config, *size, strict=True)
                settings = replace(encoder_settings(config, *size, fps), threads=1)
                coder = FrameCoder(
                    config,
                    width=size[0],
                    height=size[1],
                    fps=fps,
                    networks=networks,
                    encoder=LibavEncoder("libx264", settings),
                    session_id=new_session_id() if session_id is None else session_id,
                )
            keep(coder.push(frame))
        if coder is not None:
            keep(coder.flush())
    finally:
        if opened is not None:
            opened.close()
    counts = dict(coder.bytes) if coder else {"video": 0, "semantic": 0, "sei": 0}
    counts["total"] = sum(counts.values())
    return EncodedClip(
        session_id=coder.session_id if coder else 0,
        width=size[0],
        height=size[1],
        fps=fps,
        access_units=units,
        packets=packets,
        latents=latents,
        bytes=counts,
        ms=coder.ms if coder else {},
    )
