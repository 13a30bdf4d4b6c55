"""The systems that are compared: pictures in, pictures and bytes out.

Ours (x264 alone, with SCENE, with SMC, with both, with F-Net but no semantics) share encoder, preset, GOP, SEI and
transport. Other codecs share GOP, transport and the bytes of an anchor for each keyframe.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from benchmarks.codecs import CODECS, Codec, code_video
from benchmarks.filters import FILTERS, filtered
from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import ConfigError, RunError
from scene_edge.codec.h264 import H264Decoder
from scene_edge.codec.identity import AccessUnit
from scene_edge.codec.packet import SemanticPacket
from scene_edge.codec.planes import Planes
from scene_edge.codec.riders import Carrier, write_riders
from scene_edge.codec.sei import UTC_UNKNOWN
from scene_edge.codec.topics import Topics
from scene_edge.codec.videomessage import split_video
from scene_edge.edge.batch import VideoBatch, Waiting
from scene_edge.edge.clip import EncodedClip, encode_clip, with_anchor
from scene_edge.edge.config import CameraConfig, MqttConfig
from scene_edge.edge.networks import Networks, open_networks
from scene_edge.edge.riders import MAX_BODY_BYTES
from scene_edge.edge.settings import load_config
from scene_edge.edge.wire import publish_overhead
from scene_edge.server.fusion import PREFERENCE, FusionDecoder
from scene_edge.server.recording import DecodeReport, decode_clip


@dataclass(frozen=True)
class System:
    """Which parts of ours run. `fusion` without `semantics` is what a server does that gets no packets."""

    scene: bool = False
    weights: str = "human"
    """Whose SCENE."""
    bundle: str | None = None
    """SCENE's bundle; None: the one for these weights."""
    tune: str = "human"
    """Whom x264 spends bits for."""
    semantics: bool = False
    fusion: bool = False
    codec: Codec | None = None
    """What codes the video in place of the camera's x264."""
    plain_filter: str | None = None
    """FFmpeg's filter in SCENE's place."""


OURS: Mapping[str, System] = MappingProxyType(
    {
        "x264": System(),
        "scene": System(scene=True),
        "scene-m": System(scene=True, bundle="scene-m"),
        "fnet": System(fusion=True),
        "smc": System(semantics=True, fusion=True),
        "both": System(scene=True, semantics=True, fusion=True),
        "machine": System(scene=True, weights="machine"),
        "machine-smc": System(scene=True, weights="machine", semantics=True, fusion=True),
    }
)
"""Before and behind the camera's own x264, as it comes; with "-tuned" behind the name, for machines (video.tune)."""

SYSTEMS: Mapping[str, System] = MappingProxyType(
    {
        **OURS,
        **{f"{name}-tuned": replace(parts, tune="machine") for name, parts in OURS.items()},
        **{name: System(plain_filter=graph) for name, graph in FILTERS.items()},
        **{name: System(codec=codec) for name, codec in CODECS.items()},
        **{f"scene-{name}": System(scene=True, codec=CODECS[name]) for name in ("x265", "svtav1")},
        **{f"scene-m-{name}": System(scene=True, bundle="scene-m", codec=CODECS[name]) for name in ("x265", "svtav1")},
        **{f"machine-{name}": System(scene=True, weights="machine", codec=CODECS[name]) for name in ("x265", "svtav1")},
    }
)

SESSION_ID = 1
"""The same for every run, so that the same settings give the same bytes."""

UTC_OFFSET_NS = 1_790_000_000_000_000_000
"""Any that is not 0: it costs what a known UTC costs."""


_SLICE = b"\x00\x00\x00\x01\x65\x88"
"""The least that an anchor can stand before."""


@dataclass(frozen=True)
class Output:
    """What the server sees. bytes: video, semantic, sei, overhead, total, and of the overhead what carries semantics;
    ms: mean per frame of each stage."""

    pictures: list[Planes]
    bytes: dict[str, int]
    ms: dict[str, float]


CAMERA_SYSTEMS = ("x264", "scene", "smc", "both", "machine", "machine-smc")
"""Those that differ in what the camera does, and run on it."""


@dataclass(frozen=True)
class Coding:
    """What systems share: rung and GOP, x264's preset, and where bundles lie (None: the shipped ones)."""

    crf: int = 30
    gop: int = 30
    preset: str = "superfast"
    zoo: Path | None = None
    smc: str | None = None
    """Name or folder of the SMC bundle, the index of its quality, the share that it may take where that is left to the
    camera; None: the camera's default."""
    semantic_quality: int | None = None
    max_share: float | None = None
    engine: str | None = None
    """That runs the networks on both sides, and at which precision; None: the camera's and the server's default."""
    precision: str = "int8"


def parts_of(system: str) -> System:
    """Raises ConfigError for a system that there is not."""
    if system not in SYSTEMS:
        raise ConfigError("no such system", got=system, allowed=", ".join(SYSTEMS))
    return SYSTEMS[system]


def camera_config(system: str, coding: Coding) -> CameraConfig:
    """The `cpu` profile, whatever the environment says, with one thread in each stage. Raises ConfigError."""
    parts = parts_of(system)
    overrides: dict[str, object] = {
        "scene.enabled": parts.scene,
        "scene.weights": parts.weights,
        "semantics.enabled": parts.semantics,
        "scene.threads": 1,
        "semantics.threads": 1,
        "video.encoder": "libx264",
        "video.crf": coding.crf,
        "video.gop": coding.gop,
        "video.preset": coding.preset,
        "video.tune": parts.tune,
        "video.threads": 1,
    }
    if coding.engine is not None:
        for section in ("scene", "semantics"):
            overrides |= {f"{section}.engines": f"[{coding.engine}]", f"{section}.precision": coding.precision}
    if parts.bundle is not None:
        overrides["scene.bundle"] = parts.bundle
    if coding.zoo is not None:
        overrides["bundles.zoo"] = coding.zoo.resolve()
    if coding.smc is not None:
        overrides["semantics.bundle"] = coding.smc
    if coding.semantic_quality is not None:
        overrides["semantics.quality"] = coding.semantic_quality
    if coding.max_share is not None:
        overrides["semantics.max_share"] = coding.max_share
    texts = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in overrides.items()]
    return load_config("cpu", overrides=texts, environment={})


def bundle_digests(system: str, coding: Coding) -> dict[str, str]:
    """Name -> digest of the bundles that a system uses. Raises BundleError where one is missing."""
    config, parts = camera_config(system, coding), parts_of(system)
    used = [config.scene.bundle] * parts.scene + [config.semantics.bundle] * parts.fusion
    return {name: Bundle.open(name, zoo=coding.zoo).digest.hex() for name in used}


def settings_of(system: str, coding: Coding) -> list[dict[str, object]]:
    """The settings beside their bundles of SCENE and of SMC's encoder, as far as a system has them."""
    config, parts = camera_config(system, coding), parts_of(system)
    used = [config.scene] * parts.scene + [config.semantics] * parts.semantics
    plain = ("enabled", "bundle", "engines", "threads")
    return [
        {key: value for key, value in network.model_dump(mode="json").items() if key not in plain} for network in used
    ]


@lru_cache(maxsize=4)
def _networks(system: str, coding: Coding, width: int, height: int) -> Networks:
    """Opened once for each size and, since SCENE's kernels follow it, rung."""
    return open_networks(camera_config(system, coding), width, height, strict=True)


def encode(system: str, pictures: Sequence[Planes], fps: float, coding: Coding) -> EncodedClip:
    """What a camera of ours makes of the pictures. Raises BundleError or EngineError where a network does not open."""
    networks = _networks(system, coding, pictures[0].width, pictures[0].height)
    return encode_clip(pictures, fps, camera_config(system, coding), networks=networks, session_id=SESSION_ID)


@lru_cache(maxsize=4)
def fusion_decoder(
    bundle: str, zoo: Path | None, width: int, height: int, engine: str | None = None, precision: str = "int8"
) -> FusionDecoder:
    """A server's decoder in one thread, opened once for each size."""
    prefer = PREFERENCE if engine is None else (engine,)
    return FusionDecoder(Bundle.open(bundle, zoo=zoo), width, height, prefer=prefer, precision=precision, threads=1)


def decoder_for(clip: EncodedClip, coding: Coding) -> FusionDecoder:
    """The decoder that belongs to a clip coded with SMC, or that F-Net alone would use on it."""
    bundle = camera_config("smc", coding).semantics.bundle
    return fusion_decoder(bundle, coding.zoo, clip.width, clip.height, coding.engine, coding.precision)


def fuse_without_semantics(units: Sequence[AccessUnit], decoder: FusionDecoder) -> list[Planes]:
    """The pictures of a server that knows the bundle and gets no packet."""
    video, fused = H264Decoder(), []
    for unit in units:
        for picture in video.decode(unit.data, unit.frame_seq):
            fused.append(decoder.fuse(picture.planes, None, unit.keyframe, qp=picture.qp))
    return fused


def prefiltered(system: str, pictures: Sequence[Planes], fps: float, coding: Coding) -> list[Planes]:
    """What a system's SCENE makes of the pictures for a rung, as if x264 came behind it."""
    networks = _networks(system, coding, pictures[0].width, pictures[0].height)
    if networks.scene is None:
        raise RunError("SCENE did not open", got=", ".join(networks.degraded))
    networks.scene.reset()
    return [networks.scene.apply(planes, round(index * 1e9 / fps)) for index, planes in enumerate(pictures)]


def run_system(system: str, pictures: Sequence[Planes], fps: float, coding: Coding) -> Output:
    """Encode, put on the wire, decode and fuse. Raises RunError if a picture or a packet was lost on the way."""
    parts = parts_of(system)
    given = pictures
    if parts.plain_filter is not None:
        given = filtered(pictures, parts.plain_filter)
    elif parts.codec is not None and parts.scene:
        given = prefiltered(system, pictures, fps, coding)
    if parts.codec is not None:
        clip, seen = run_codec(parts.codec, given, fps, coding)
        return Output(seen, clip.bytes | _wire(clip), clip.ms)
    clip = encode(system, given, fps, coding)
    report = DecodeReport()
    if parts.semantics:
        seen = decode_clip(clip, decoder=decoder_for(clip, coding), report=report)
    else:
        seen = decode_clip(clip, lossy=True, report=report)
    used = report.fused + report.passed
    if report.faults or len(seen) != len(pictures) or used != len(pictures) * parts.semantics:
        raise RunError(
            f"{system} lost something without any loss on the way",
            got=f"{len(seen)} of {len(pictures)} pictures, {used} fused or passed, faults {dict(report.faults)}",
        )
    if parts.fusion and not parts.semantics:
        seen = fuse_without_semantics(clip.access_units, decoder_for(clip, coding))
    return Output(seen, clip.bytes | _wire(clip), clip.ms)


def run_codec(codec: Codec, pictures: Sequence[Planes], fps: float, coding: Coding) -> tuple[EncodedClip, list[Planes]]:
    """Another codec's video as if a camera of ours sent it: as many bytes as an anchor has stand at each keyframe.

    In HEVC and VVC it would be a byte more, AV1's metadata OBU is about as long.
    """
    video = code_video(codec, pictures, fps, coding.crf, coding.gop)
    marked = [replace(unit, data=unit.data + bytes(_anchor_bytes(unit))) for unit in video.units]
    counts = {"video": sum(len(unit.data) for unit in video.units), "semantic": 0}
    counts["sei"] = sum(len(unit.data) for unit in marked) - counts["video"]
    size = pictures[0].width, pictures[0].height
    return EncodedClip(SESSION_ID, *size, fps, marked, [], [], counts, video.ms), video.pictures


def _anchor_bytes(unit: AccessUnit) -> int:
    """What an anchor of this picture takes in H.264; none but at a keyframe."""
    return len(with_anchor(replace(unit, data=_SLICE), 0, SESSION_ID, "keyframe", UTC_UNKNOWN).data) - len(_SLICE)


def _wire(clip: EncodedClip) -> dict[str, int]:
    """The counts that the transport adds or changes, and the total."""
    wire = wire_bytes(clip)
    total = wire.whole
    overhead = total - wire.semantic - clip.bytes["video"] - clip.bytes["sei"]
    return {
        "semantic": wire.semantic,
        "overhead": overhead,
        "semantic_overhead": wire.semantic_overhead,
        "total": total,
    }


class WireBytes(NamedTuple):
    """All that goes over the line; of it packets, and what carries these."""

    whole: int
    semantic: int
    semantic_overhead: int


def wire_bytes(clip: EncodedClip) -> WireBytes:
    """With MQTT and TCP/IP, when video and semantics use one broker at QoS 1 without TLS.

    Access units share messages as those of a live camera with default settings, whose clock knows UTC; a small packet
    rides in the first message behind its frames, as it does there. Behind the last frame there is none in a clip: what
    would ride in it rides in the last. The camera's ledger (one a second) and the server's acknowledgements (one a GOP)
    are the same for all systems and are not counted.
    """
    topic = Topics("camera-1")
    waiting = deque(packet for packet in clip.packets if len(packet.body) <= MAX_BODY_BYTES)
    alone = [len(packet.to_bytes()) for packet in clip.packets if len(packet.body) > MAX_BODY_BYTES]
    around = sum(publish_overhead(topic.semantic, size, 1, tls=False) for size in alone)
    whole, semantic = sum(alone) + around, sum(alone)
    last = clip.access_units[-1].frame_seq
    for units in _batches(clip):
        riding = []
        while waiting and (waiting[0].last_seq < units[0].frame_seq or units[-1].frame_seq == last):
            riding.append(waiting.popleft())
        riders = _riders(clip, units, riding)
        plain, laden = _message_bytes(clip, units, b""), _message_bytes(clip, units, riders)
        whole, semantic, around = whole + laden, semantic + len(riders), around + laden - plain - len(riders)
    return WireBytes(whole, semantic, around)


def _riders(clip: EncodedClip, units: Sequence[AccessUnit], packets: Sequence[SemanticPacket]) -> bytes:
    first = units[0]
    return write_riders(packets, Carrier(clip.session_id, first.frame_seq, first.capture_ns, clip.width, clip.height))


def _message_bytes(clip: EncodedClip, units: Sequence[AccessUnit], riders: bytes) -> int:
    size = {"width": clip.width, "height": clip.height}
    messages = split_video(units, session_id=clip.session_id, riders=riders, **size)
    payloads = [len(message.to_bytes()) for message in messages]
    return sum(payload + publish_overhead(Topics("camera-1").video, payload, 1, tls=False) for payload in payloads)


def _batches(clip: EncodedClip) -> Iterator[list[AccessUnit]]:
    batch = VideoBatch(MqttConfig().video_batch_ms, round(1e9 / clip.fps))
    for coded in clip.access_units:
        unit = replace(coded, utc_offset_ns=UTC_OFFSET_NS)
        if not batch.fits(unit):
            yield [item.unit for item in batch.take()]
        batch.add(Waiting(unit), 0)
        if batch.full:
            yield [item.unit for item in batch.take()]
    if len(batch):
        yield [item.unit for item in batch.take()]
