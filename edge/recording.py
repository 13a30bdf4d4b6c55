"""A self-contained recording: Matroska with H.264 that every player shows, and the semantic packets in it as SEI."""

from __future__ import annotations

import io
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container
import av.error
import av.video.stream

from scene_edge.codec.errors import ConfigError, EncoderError, SourceError
from scene_edge.codec.identity import AccessUnit, new_session_id, session_hex
from scene_edge.codec.packet import SemanticPacket
from scene_edge.codec.sei import SEMANTIC_UUID, insert_sei
from scene_edge.edge.clip import Coded, FrameCoder, encoder_settings
from scene_edge.edge.config import CameraConfig
from scene_edge.edge.encoders import create_encoder
from scene_edge.edge.encoders.choose import choose_encoder
from scene_edge.edge.networks import Networks, open_networks
from scene_edge.edge.sources import Source, SourceInfo, open_source

Progress = Callable[[int], None]
"""Called with the number of frames written so far."""

_MILLISECONDS = Fraction(1, 1000)


@dataclass(frozen=True, slots=True)
class EncodeReport:
    """fps: frames a second of wall time; source_fps: of the video. bytes: video (H.264 alone), semantic (packets), sei
    (anchors and what wraps the packets), container (the rest of the file), total (the file). ms: mean of each stage."""

    frames: int
    fps: float
    source_fps: float
    width: int
    height: int
    seconds: float
    bytes: dict[str, int]
    kbps: dict[str, float]
    ms: dict[str, float]
    encoder: str
    engine: dict[str, str]
    bundle: dict[str, str]
    session: str
    packets: int
    faults: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    degraded: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class RecordingWriter:
    """Writes GOP after GOP. A GOP waits until its packets are there, since they ride in its first access unit."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._container: av.container.OutputContainer | None = None
        self._stream: av.video.stream.VideoStream | None = None
        self._units: list[AccessUnit] = []
        self._packets: list[SemanticPacket] = []
        self._start_ns = 0
        self.frames = 0
        self.stream_bytes = 0

    def add(self, coded: Coded) -> None:
        # Packets close no later than the next keyframe, so they belong to the GOP at hand if they came with it.
        for unit in coded.units:
            if unit.keyframe and self._units:
                self._packets += [packet for packet in coded.packets if packet.first_seq < unit.frame_seq]
                coded.packets = [packet for packet in coded.packets if packet.first_seq >= unit.frame_seq]
                self._write_gop()
            self._units.append(unit)
        self._packets += coded.packets

    def finish(self) -> int:
        """Write what is left and put the file in its place; returns its size in bytes."""
        self._write_gop()
        if self._container is None:
            raise EncoderError("nothing was encoded, so there is no recording")
        try:
            self._container.close()
            self._container = None
            self._temporary.replace(self._path)
            return self._path.stat().st_size
        except (av.error.FFmpegError, OSError) as error:
            raise EncoderError(f"cannot finish {self._path}", got=str(error)) from error

    def abandon(self) -> None:
        """Remove an unfinished file."""
        if self._container is not None:
            self._container.close()
            self._container = None
        self._temporary.unlink(missing_ok=True)

    def _write_gop(self) -> None:
        if not self._units:
            return
        first = self._units[0].data
        for packet in self._packets:
            first = insert_sei(first, packet.to_bytes(), SEMANTIC_UUID)
        stream = self._stream or self._open(b"".join(unit.data for unit in self._units))
        for index, unit in enumerate(self._units):
            data = unit.data if index else first
            packet_out = av.Packet(data)
            packet_out.stream = stream
            packet_out.time_base = _MILLISECONDS
            packet_out.pts = packet_out.dts = round((unit.capture_ns - self._start_ns) / 1e6)
            packet_out.is_keyframe = unit.keyframe
            self._mux(packet_out)
            self.stream_bytes += len(data)
        self.frames += len(self._units)
        self._units, self._packets = [], []

    def _open(self, gop: bytes) -> av.video.stream.VideoStream:
        """Begin the file. FFmpeg's raw H.264 reader makes the codec's parameters from the first GOP."""
        self._start_ns = self._units[0].capture_ns
        try:
            with av.open(io.BytesIO(gop), format="h264") as template:
                self._container = av.open(str(self._temporary), "w", format="matroska")
                self._stream = self._container.add_stream_from_template(template.streams.video[0])
        except (av.error.FFmpegError, OSError) as error:
            raise EncoderError(f"cannot write {self._path}", got=getattr(error, "strerror", str(error))) from error
        self._stream.time_base = _MILLISECONDS
        return self._stream

    def _mux(self, packet: av.Packet[Any]) -> None:
        if self._container is None:
            raise EncoderError(f"{self._path} is written to before it is open")
        try:
            self._container.mux(packet)
        except (av.error.FFmpegError, OSError) as error:
            raise EncoderError(f"cannot write {self._path}", got=getattr(error, "strerror", str(error))) from error


def encode_recording(
    source: str | Path, out_path: Path, config: CameraConfig, progress: Progress | None = None, limit: int | None = None
) -> EncodeReport:
    """Code a file (or testsrc:) into `out_path`, which appears only when it is complete.

    Raises SourceError, BundleError, EngineError, EncoderError. Damage inside the source is survived and counted.
    """
    _check_target(source, out_path)
    config = config.model_copy(update={"source": config.source.model_copy(update={"url": str(source), "pace": "asap"})})
    reader = open_source(config.source, max_width=config.video.width, frames=limit)
    networks: Networks | None = None
    try:
        info = reader.open()
        if info.live:
            raise SourceError("a live source has no end, so it cannot be a recording", got=str(source))
        networks = open_networks(config, info.width, info.height, strict=True)
        return _encode(reader, info, networks, config, out_path, progress, limit)
    finally:
        reader.close()
        if networks is not None:
            networks.close()


def _encode(
    reader: Source,
    info: SourceInfo,
    networks: Networks,
    config: CameraConfig,
    out_path: Path,
    progress: Progress | None,
    limit: int | None,
) -> EncodeReport:
    settings = encoder_settings(config, info.width, info.height, info.fps)
    choice = choose_encoder(config.video, settings)
    encoder = create_encoder(choice.encoder, settings)
    coder = FrameCoder(
        config,
        width=info.width,
        height=info.height,
        fps=info.fps,
        networks=networks,
        encoder=encoder,
        session_id=new_session_id(),
    )
    writer = RecordingWriter(out_path)
    packets = read = 0
    started = time.perf_counter()
    first_ns = last_ns = 0
    try:
        while (limit is None or read < limit) and (frame := reader.read()) is not None:
            first_ns = frame.capture_ns if read == 0 else first_ns
            last_ns = frame.capture_ns
            coded = coder.push(frame)
            packets += len(coded.packets)
            writer.add(coded)
            read += 1
            if progress is not None:
                progress(read)
        coded = coder.flush()
        packets += len(coded.packets)
        writer.add(coded)
        total = writer.finish()
    finally:
        writer.abandon()
        encoder.close()
    wall_s = time.perf_counter() - started
    seconds = (last_ns - first_ns + info.frame_period_ns) / 1e9
    return EncodeReport(
        frames=writer.frames,
        fps=round(writer.frames / wall_s, 2),
        source_fps=round(info.fps, 3),
        width=info.width,
        height=info.height,
        seconds=round(seconds, 3),
        bytes=(counts := _byte_counts(coder.bytes, writer.stream_bytes, total)),
        kbps={name: round(count * 8 / 1000 / seconds, 2) for name, count in counts.items()},
        ms=coder.ms | {"total": round(wall_s * 1000 / max(1, writer.frames), 3)},
        encoder=choice.encoder,
        engine=networks.engines,
        bundle=_digests(networks),
        session=session_hex(coder.session_id),
        packets=packets,
        faults=dict(reader.faults + coder.faults),
        notes=info.notes,
        degraded=(*choice.degraded, *networks.degraded),
    )


def _digests(networks: Networks) -> dict[str, str]:
    return {
        "scene": networks.scene.bundle.digest.hex()[:16] if networks.scene else "",
        "smc": networks.semantics.bundle.digest.hex()[:16] if networks.semantics else "",
    }


def _byte_counts(coded: Counter[str], stream_bytes: int, total: int) -> dict[str, int]:
    video, semantic = coded["video"], coded["semantic"]
    return {
        "video": video,
        "semantic": semantic,
        "sei": stream_bytes - video - semantic,
        "container": total - stream_bytes,
        "total": total,
    }


def _check_target(source: str | Path, out_path: Path) -> None:
    if out_path.suffix.lower() != ".mkv":
        raise ConfigError("a recording is a Matroska file", got=out_path.name, allowed="a name that ends in .mkv")
    if not out_path.parent.is_dir():
        raise ConfigError(f"no such folder: {out_path.parent}", hint="Make it first.")
    if out_path.is_dir():
        raise ConfigError(f"{out_path} is a folder", allowed="a file name")
    if out_path.exists() and Path(source).exists() and out_path.samefile(source):
        raise ConfigError("source and recording are the same file", got=str(out_path))
