"""Decoding recordings made by `scene-edge encode`: H.264 and the packets in its SEI -> fused pictures, lossless."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import av.container
import av.error
import av.video.stream
import structlog
from av.video.frame import VideoFrame

from scene_edge.codec.annexb import has_idr
from scene_edge.codec.errors import (
    ConfigError,
    DecoderError,
    EncoderError,
    EntropyError,
    PacketError,
    SeiError,
    SourceError,
)
from scene_edge.codec.h264 import Decoded, H264Decoder
from scene_edge.codec.identity import AccessUnit
from scene_edge.codec.packet import SemanticPacket
from scene_edge.codec.planes import Planes
from scene_edge.codec.sei import SEMANTIC_UUID, read_anchor, read_sei, to_annexb
from scene_edge.server.config import FusionConfig
from scene_edge.server.fusion import BundleShelf, FusionDecoder, LatentFeed
from scene_edge.server.pictures import FusionFactory, fusion_factory
from scene_edge.server.planar import i420

Progress = Callable[[int], None]
"""Called with the number of frames written so far."""

MILLISECONDS = Fraction(1, 1000)

log = structlog.get_logger(__name__)


class Clip(Protocol):
    """What `decode_clip` needs of an encoded clip in memory."""

    @property
    def access_units(self) -> Sequence[AccessUnit]: ...

    @property
    def packets(self) -> Sequence[SemanticPacket]: ...


@dataclass(slots=True)
class DecodeReport:
    """What decoding found. `passed`: pictures that were coded too finely for fusion to help (`fused_from_qp`).

    `faults` counts by reason: packets not used, pictures repeated because of damage.
    """

    frames: int = 0
    fused: int = 0
    passed: int = 0
    packets: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    video_bytes: int = 0
    semantic_bytes: int = 0
    engine: str | None = None
    bundle: str | None = None
    faults: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    ms: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"faults": dict(self.faults)}


class PictureDecoder:
    """Access units and packets in, exactly one picture for each access unit out.

    Damage costs pictures, not the rest: a frame that does not decode repeats the one before, a packet that does not fit
    leaves its frames to the lossy path; `report.faults` counts both.
    """

    def __init__(self, fusion: FusionFactory | None, report: DecodeReport) -> None:
        self._factory, self._report = fusion, report
        self._h264 = H264Decoder()
        self._feed: LatentFeed | None = None
        self._digest: bytes | None = None
        self._packets: dict[int, SemanticPacket] = {}
        self._last: Planes | None = None
        self._owed = 0
        self._ns: Counter[str] = Counter()

    def packet(self, packet: SemanticPacket) -> None:
        """Take a packet; it must come before the access unit of its first frame."""
        self._report.packets += 1
        for seq in range(packet.first_seq, packet.last_seq + 1):
            self._packets[seq] = packet

    def unit(self, unit: AccessUnit) -> Iterator[Planes]:
        """The picture of an access unit; none before the first that decodes, which then stands for those as well."""
        packet = self._packets.pop(unit.frame_seq, None)
        started_ns = time.perf_counter_ns()
        try:
            decoded = self._h264.decode(unit.data, unit.frame_seq)
            found = next((picture for picture in decoded if picture.frame_seq == unit.frame_seq), None)
        except DecoderError as error:
            log.warning("frame repeated", seq=unit.frame_seq, error=str(error))
            found = None
        self._ns["decode"] += time.perf_counter_ns() - started_ns
        if found is None:
            self._report.faults["video_damaged"] += 1
        else:
            self._last = self._fuse(found, packet, unit)
        if self._last is None:
            self._owed += 1
            return
        pictures, self._owed = [self._last] * (self._owed + 1), 0
        self._report.frames += len(pictures)
        yield from pictures

    def finish(self) -> None:
        """Close the networks and settle the report. Raises DecoderError if nothing was decoded at all."""
        if self._feed is not None:
            self._feed.decoder.close()
        frames = max(1, self._report.frames)
        self._report.ms |= {stage: round(ns / 1e6 / frames, 3) for stage, ns in self._ns.items()}
        if not self._report.frames:
            raise DecoderError("no frame of the recording decodes", hint="Check that the file is complete.")

    def _fuse(self, picture: Decoded, packet: SemanticPacket | None, unit: AccessUnit) -> Planes:
        feed = self._open_feed(picture.planes, packet)
        if feed is None:
            return picture.planes
        latent, step = None, None
        started_ns = time.perf_counter_ns()
        try:
            latent, step = feed.latent_of(packet, unit.frame_seq)
        except (PacketError, EntropyError) as error:
            log.warning("packet not used", seq=unit.frame_seq, error=str(error))
            self._report.faults["semantic_refused" if isinstance(error, PacketError) else "semantic_damaged"] += 1
        fused = feed.decoder.fuse(picture.planes, latent, unit.keyframe, step, picture.qp)
        self._ns["fuse"] += time.perf_counter_ns() - started_ns
        if fused is picture.planes:
            self._report.passed += 1
        else:
            self._report.fused += 1
        return fused

    def _open_feed(self, lossy: Planes, packet: SemanticPacket | None) -> LatentFeed | None:
        """The decoder that the first packet asks for. Raises BundleError or EngineError if there is none."""
        if self._factory is None or (self._digest is None and packet is None):
            return None
        size_changed = self._feed is not None and (self._feed.decoder.width, self._feed.decoder.height) != (
            lossy.width,
            lossy.height,
        )
        if packet is not None and (packet.bundle_digest != self._digest or size_changed):
            decoder = self._factory(packet.bundle_digest, lossy.width, lossy.height)
            self._feed, self._digest = LatentFeed(decoder), packet.bundle_digest
            self._report.engine, self._report.bundle = decoder.engine, decoder.bundle.name
        elif size_changed:
            self._feed, self._digest = None, None
        return self._feed


def decode_clip(
    clip: Clip,
    *,
    lossy: bool = False,
    decoder: FusionDecoder | None = None,
    config: FusionConfig | None = None,
    report: DecodeReport | None = None,
) -> list[Planes]:
    """One picture for each access unit of a clip in memory: fused, or with `lossy` just decoded.

    `decoder` that is already open for this bundle and size saves opening it for each clip; it stays the caller's.
    """
    settings = config or FusionConfig()
    report = DecodeReport() if report is None else report
    factory: FusionFactory | None = None
    if not lossy:
        factory = (
            (lambda *_: decoder) if decoder is not None else fusion_factory(BundleShelf(settings.bundles), settings)
        )
    pictures = PictureDecoder(factory, report)
    for packet in clip.packets:
        pictures.packet(packet)
    frames = [planes for unit in clip.access_units for planes in pictures.unit(unit)]
    if decoder is None:
        pictures.finish()
    return frames


def decode_recording(
    in_path: Path,
    out_path: Path,
    *,
    lossy: bool = False,
    config: FusionConfig | None = None,
    progress: Progress | None = None,
) -> DecodeReport:
    """Write the fused (or with `lossy` the plain) pictures of a recording as FFV1 into a Matroska file.

    The file appears only when it is complete. Raises SourceError, BundleError, EngineError, DecoderError, EncoderError.
    """
    _check_paths(in_path, out_path)
    settings = config or FusionConfig()
    report = DecodeReport()
    factory = None if lossy else fusion_factory(BundleShelf(settings.bundles), settings)
    pictures = PictureDecoder(factory, report)
    writer = _LosslessWriter(out_path)
    started_s = time.perf_counter()
    try:
        times: list[int] = []
        for unit, pts, packets in _read_recording(in_path, report):
            for packet in packets:
                pictures.packet(packet)
            times.append(pts)
            for planes in pictures.unit(unit):
                writer.write(planes, times.pop(0))
                if progress is not None:
                    progress(report.frames)
        pictures.finish()
        writer.finish()
    finally:
        writer.abandon()
    report.width, report.height = writer.size
    report.fps = round(report.frames / (time.perf_counter() - started_s), 2)
    if not lossy and not report.packets:
        report.notes.append("the recording holds no semantic packets: this is its plain video")
    return report


def recorded_frames(path: Path) -> int:
    """How many access units a recording holds, for a progress bar. Raises SourceError."""
    with _open(path) as container:
        return sum(1 for packet in container.demux(container.streams.video[0]) if packet.size)


def _read_recording(path: Path, report: DecodeReport) -> Iterator[tuple[AccessUnit, int, list[SemanticPacket]]]:
    """(access unit, time in ms, the packets in it). What follows damage in the container is given up, with a note."""
    with _open(path) as container:
        stream = container.streams.video[0]
        if stream.codec_context.name != "h264":
            raise SourceError(f"{path} is no recording of scene-edge", got=stream.codec_context.name, allowed="h264")
        seq = -1
        for packet in _demuxed(container, stream, report):
            try:
                data = to_annexb(bytes(packet), stream.codec_context.extradata)
                semantics, seq = _semantics(data, seq, report)
            except SeiError as error:
                raise SourceError(f"{path} holds damaged H.264", got=str(error)) from error
            report.video_bytes += len(data)
            time_base = packet.time_base or MILLISECONDS
            pts = packet.pts if packet.pts is not None else packet.dts
            keyframe = bool(packet.is_keyframe) or has_idr(data)
            yield AccessUnit(data, seq, 0, keyframe), round((pts or 0) * time_base / MILLISECONDS), semantics


def _semantics(data: bytes, seq: int, report: DecodeReport) -> tuple[list[SemanticPacket], int]:
    """The packets in an access unit, and its number: from its anchor or first packet, else one after the last."""
    packets = []
    for payload in read_sei(data, SEMANTIC_UUID):
        try:
            packets.append(SemanticPacket.from_bytes(payload))
        except PacketError as error:
            log.warning("packet not used", error=str(error))
            report.faults["semantic_corrupt"] += 1
        report.semantic_bytes += len(payload)
    anchor = read_anchor(data)
    if anchor is not None:
        return packets, anchor.frame_seq
    return packets, packets[0].first_seq if packets else seq + 1


def _demuxed(container: Any, stream: av.video.stream.VideoStream, report: DecodeReport) -> Iterator[Any]:
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except av.error.FFmpegError as error:
        report.faults["container_damaged"] += 1
        report.notes.append(f"the file is damaged, decoding ends early: {error}")


def _open(path: Path) -> av.container.InputContainer:
    try:
        container = av.open(str(path))
    except av.error.FileNotFoundError as error:
        raise SourceError(f"no such recording: {path}", hint="Check the path.") from error
    except (av.error.FFmpegError, OSError) as error:
        raise SourceError(f"{path} is not a recording that can be read", got=str(error)) from error
    if not container.streams.video:
        container.close()
        raise SourceError(f"{path} has no video stream", allowed="a .mkv made by scene-edge encode")
    return container


def _check_paths(in_path: Path, out_path: Path) -> None:
    if out_path.suffix.lower() != ".mkv":
        raise ConfigError("the decoded video is a Matroska file", got=out_path.name, allowed="a name that ends in .mkv")
    if not out_path.parent.is_dir():
        raise ConfigError(f"no such folder: {out_path.parent}", hint="Make it first.")
    if in_path.exists() and out_path.exists() and in_path.samefile(out_path):
        raise ConfigError("recording and output are the same file", got=str(out_path))


class _LosslessWriter:
    """FFV1 version 3 in Matroska, every frame on its own, with a checksum for each slice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._container: av.container.OutputContainer | None = None
        self._stream: av.video.stream.VideoStream | None = None
        self._last_pts = -1
        self.size = (0, 0)

    def write(self, planes: Planes, time_ms: int) -> None:
        stream = self._stream or self._open(planes)
        if (planes.width, planes.height) != self.size:
            raise DecoderError(
                "the recording changes its size", got=f"{planes.width}x{planes.height}", allowed=self.size
            )
        frame = VideoFrame.from_ndarray(i420(planes), format="yuv420p")
        self._last_pts = frame.pts = max(time_ms, self._last_pts + 1)
        frame.time_base = MILLISECONDS
        self._mux(stream, frame)

    def finish(self) -> None:
        if self._container is None or self._stream is None:
            raise DecoderError("the recording holds no frame that decodes")
        self._mux(self._stream, None)
        try:
            self._container.close()
            self._container = None
            self._temporary.replace(self._path)
        except (av.error.FFmpegError, OSError) as error:
            raise EncoderError(f"cannot finish {self._path}", got=str(error)) from error

    def abandon(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None
        self._temporary.unlink(missing_ok=True)

    def _open(self, planes: Planes) -> av.video.stream.VideoStream:
        try:
            self._container = av.open(str(self._temporary), "w", format="matroska")
            stream = self._container.add_stream("ffv1", options={"level": "3", "g": "1", "slicecrc": "1"})
        except (av.error.FFmpegError, OSError) as error:
            raise EncoderError(f"cannot write {self._path}", got=str(error)) from error
        stream.width, stream.height, stream.pix_fmt = planes.width, planes.height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = MILLISECONDS
        self._stream, self.size = stream, (planes.width, planes.height)
        return stream

    def _mux(self, stream: av.video.stream.VideoStream, frame: VideoFrame | None) -> None:
        if self._container is None:
            raise EncoderError(f"{self._path} is written to before it is open")
        try:
            for packet in stream.encode(frame):
                self._container.mux(packet)
        except (av.error.FFmpegError, OSError) as error:
            raise EncoderError(f"cannot write {self._path}", got=str(error)) from error
