"""The systems that are compared (x264 alone, with SCENE, with SMC, with both): pictures in, pictures and bytes out.

Everything but SCENE and SMC is the same for all: encoder, preset, GOP, SEI, transport.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from scene_edge.codec.bundle import Bundle
from scene_edge.codec.errors import ConfigError, RunError
from scene_edge.codec.identity import AccessUnit
from scene_edge.codec.planes import Planes
from scene_edge.codec.topics import Topics
from scene_edge.codec.videomessage import split_video
from scene_edge.edge.batch import VideoBatch, Waiting
from scene_edge.edge.clip import EncodedClip, encode_clip
from scene_edge.edge.config import CameraConfig, MqttConfig
from scene_edge.edge.networks import Networks, open_networks
from scene_edge.edge.settings import load_config
from scene_edge.edge.wire import publish_overhead
from scene_edge.server.fusion import FusionDecoder
from scene_edge.server.recording import DecodeReport, decode_clip

SYSTEMS = MappingProxyType({"x264": (False, False), "scene": (True, False), "smc": (False, True), "both": (True, True)})
"""Name -> (SCENE on, SMC on)."""

SESSION_ID = 1
"""The same for every run, so that the same settings give the same bytes."""

UTC_OFFSET_NS = 1_790_000_000_000_000_000
"""Any that is not 0: it costs what a known UTC costs."""


@dataclass(frozen=True)
class Output:
    """What the server sees. bytes: video, semantic, sei, overhead, total; ms: mean per frame of each stage."""

    pictures: list[Planes]
    bytes: dict[str, int]
    ms: dict[str, float]


@dataclass(frozen=True)
class Coding:
    """What all systems share: quality, GOP and preset of x264, and where bundles lie (None: the shipped ones)."""

    crf: int = 30
    gop: int = 30
    preset: str = "superfast"
    zoo: Path | None = None


def parts_of(system: str) -> tuple[bool, bool]:
    """(SCENE on, SMC on). Raises ConfigError for a system that there is not."""
    if system not in SYSTEMS:
        raise ConfigError("no such system", got=system, allowed=", ".join(SYSTEMS))
    return SYSTEMS[system]


def camera_config(system: str, coding: Coding) -> CameraConfig:
    """The `cpu` profile, whatever the environment says, with one thread in each stage. Raises ConfigError."""
    scene, semantics = parts_of(system)
    overrides: dict[str, object] = {
        "scene.enabled": scene,
        "semantics.enabled": semantics,
        "scene.threads": 1,
        "semantics.threads": 1,
        "video.encoder": "libx264",
        "video.crf": coding.crf,
        "video.gop": coding.gop,
        "video.preset": coding.preset,
        "video.threads": 1,
    }
    if coding.zoo is not None:
        overrides["bundles.zoo"] = coding.zoo.resolve()
    texts = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in overrides.items()]
    return load_config("cpu", overrides=texts, environment={})


def bundle_digests(system: str, zoo: Path | None = None) -> dict[str, str]:
    """Name -> digest of the bundles that a system uses. Raises BundleError where one is missing."""
    config = camera_config(system, Coding(zoo=zoo))
    used = [network.bundle for network in (config.scene, config.semantics) if network.enabled]
    return {name: Bundle.open(name, zoo=zoo).digest.hex() for name in used}


@lru_cache(maxsize=4)
def _networks(system: str, zoo: Path | None, width: int, height: int) -> Networks:
    """Opened once for each size; the quality of the video does not concern them."""
    return open_networks(camera_config(system, Coding(zoo=zoo)), width, height, strict=True)


def encode(system: str, pictures: Sequence[Planes], fps: float, coding: Coding) -> EncodedClip:
    networks = _networks(system, coding.zoo, pictures[0].width, pictures[0].height)
    return encode_clip(pictures, fps, camera_config(system, coding), networks=networks, session_id=SESSION_ID)


@lru_cache(maxsize=4)
def _fusion(bundle: str, zoo: Path | None, width: int, height: int) -> FusionDecoder:
    return FusionDecoder(Bundle.open(bundle, zoo=zoo), width, height, threads=1)


def run_system(system: str, pictures: Sequence[Planes], fps: float, coding: Coding) -> Output:
    """Encode, put on the wire, decode and fuse. Raises RunError if a picture or a packet was lost on the way."""
    clip = encode(system, pictures, fps, coding)
    semantics = camera_config(system, coding).semantics
    report = DecodeReport()
    if semantics.enabled:
        decoder = _fusion(semantics.bundle, coding.zoo, clip.width, clip.height)
        seen = decode_clip(clip, decoder=decoder, report=report)
    else:
        seen = decode_clip(clip, lossy=True, report=report)
    if report.faults or len(seen) != len(pictures) or report.fused != len(pictures) * semantics.enabled:
        raise RunError(
            f"{system} lost something without any loss on the way",
            got=f"{len(seen)} of {len(pictures)} pictures, {report.fused} fused, faults {dict(report.faults)}",
        )
    counts = clip.bytes | {"overhead": transport_bytes(clip)}
    counts["total"] = sum(counts[kind] for kind in ("video", "semantic", "sei", "overhead"))
    return Output(seen, counts, clip.ms)


def transport_bytes(clip: EncodedClip) -> int:
    """What MQTT and TCP/IP add when video and semantics ride on one broker at QoS 1 without TLS.

    Access units share messages as those of a live camera with default settings, whose clock knows UTC. The camera's
    ledger (one a second) and the server's acknowledgements (one a GOP) are the same for all systems and are not
    counted.
    """
    topics = Topics("camera-1")
    total = 0
    for units in _batches(clip):
        for message in split_video(units, session_id=clip.session_id, width=clip.width, height=clip.height):
            size = len(message.to_bytes())
            total += size + publish_overhead(topics.video, size, 1, tls=False)
    total -= sum(len(unit.data) for unit in clip.access_units)
    for packet in clip.packets:
        total += publish_overhead(topics.semantic, len(packet.to_bytes()), 1, tls=False)
    return total


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
