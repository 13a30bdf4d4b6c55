"""Other codecs through FFmpeg's own program, as live cameras could run them: no reordering, one thread, the same GOP.

Each has a quality scale of its own. A *rung* is a CRF of x264; `Codec.quality` gives the number at which this codec
spends about as many bits, so that curves over the same rungs cover the same rates.
"""

from __future__ import annotations

import io
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import av
import av.error
import numpy as np

from scene_edge.codec.errors import ConfigError, DecoderError, EngineError
from scene_edge.codec.identity import AccessUnit
from scene_edge.codec.media import planes_of
from scene_edge.codec.planes import Planes

_FIXED_GOP = "keyint={gop}:min-keyint={gop}:scenecut=0:bframes=0:repeat-headers=1"


@dataclass(frozen=True)
class Codec:
    """`options` of FFmpeg with {quality} and {gop} left open; `stream` is FFmpeg's name of the elementary stream.

    `ladder`: (CRF of x264, own quality) in rising order, straight lines between them.
    """

    stream: str
    options: str
    ladder: tuple[tuple[int, int], ...]
    gops_apart: bool = False
    """Whether each GOP is a run of its own, for an encoder that knows no keyframes while it keeps the order."""

    def quality(self, crf: int) -> int:
        """This codec's number for a rung. Raises ConfigError for a rung beyond the ladder."""
        rungs, own = zip(*self.ladder, strict=True)
        if not rungs[0] <= crf <= rungs[-1]:
            raise ConfigError("no such rung for this codec", got=crf, allowed=f"CRF {rungs[0]} to {rungs[-1]} of x264")
        return round(float(np.interp(crf, rungs, own)))

    def arguments(self, crf: int, gop: int) -> list[str]:
        """FFmpeg's options for the encoder at a rung."""
        return self.options.format(quality=self.quality(crf), gop=gop).split()


CODECS = MappingProxyType(
    {
        "x264-veryfast": Codec(
            "h264",
            f"-c:v libx264 -preset veryfast -tune zerolatency -crf {{quality}} -x264-params {_FIXED_GOP}:threads=1"
            # x264's advertisement of itself, once a stream; the camera's own encoder strips it as well
            " -bsf:v filter_units=remove_types=6",
            ((15, 15), (51, 51)),
        ),
        "x265": Codec(
            "hevc",
            f"-c:v libx265 -preset veryfast -tune zerolatency -crf {{quality}} -x265-params {_FIXED_GOP}"
            ":open-gop=0:info=0:pools=none:frame-threads=1:log-level=error",
            ((15, 14), (35, 34), (43, 42), (51, 47)),
        ),
        "svtav1": Codec(
            "obu",
            # FFmpeg's own -crf ends at 63, which is more than the low rungs spend
            "-c:v libsvtav1 -preset 10 -g {gop} -svtav1-params crf={quality}:pred-struct=1:rtc=1:scd=0:lp=1",
            ((15, 18), (27, 39), (39, 59), (43, 62), (51, 66)),
        ),
        "vvenc": Codec(
            "vvc",
            "-c:v libvvenc -preset faster -qp {quality}"
            " -vvenc-params picreordering=0:gopsize=8:intraperiod=-1:decodingrefreshtype=none:threads=1:verbosity=1",
            ((15, 17), (31, 32), (43, 45), (51, 51)),
            gops_apart=True,
        ),
    }
)
"""Presets are those of one core in real time or near it; VVenC's fastest is not, and stands for what is to come."""

_TEMPORAL_DELIMITER = b"\x12\x00"
"""Begins each picture in a file of AV1 and in no transport (RTP, MP4): its two bytes are not counted."""


@dataclass(frozen=True)
class CodedVideo:
    """One access unit for each picture, what a decoder makes of them, and the mean milliseconds for a picture."""

    units: list[AccessUnit]
    pictures: list[Planes]
    ms: dict[str, float]


def code_video(codec: Codec, pictures: Sequence[Planes], fps: float, crf: int, gop: int) -> CodedVideo:
    """Encode at a rung and decode. Raises EngineError where FFmpeg fails, DecoderError where a picture is missing."""
    length = gop if codec.gops_apart else len(pictures)
    started_s = time.perf_counter()
    parts = [
        _encode(codec.arguments(crf, gop), codec.stream, pictures[start : start + length], fps)
        for start in range(0, len(pictures), length)
    ]
    encoded_s = time.perf_counter()
    try:
        packets = [packet for part in parts for packet in _packets(part, codec.stream)]
        seen = [picture for part in parts for picture in _decode(part, codec.stream)]
    except (av.error.FFmpegError, ValueError) as error:
        raise DecoderError(f"what {codec.stream} encoded does not decode", got=str(error)) from error
    if len(packets) != len(pictures) or len(seen) != len(pictures):
        raise DecoderError(
            f"{codec.stream} lost pictures", got=f"{len(packets)} coded, {len(seen)} decoded", allowed=len(pictures)
        )
    units = [AccessUnit(data, i, round(i * 1e9 / fps), i % gop == 0) for i, data in enumerate(packets)]
    decoded_s = time.perf_counter()
    spent = {"encode": encoded_s - started_s, "decode": decoded_s - encoded_s}
    return CodedVideo(units, seen, {stage: round(1000 * s / len(pictures), 3) for stage, s in spent.items()})


def _encode(arguments: list[str], stream: str, pictures: Sequence[Planes], fps: float) -> bytes:
    import imageio_ffmpeg

    size = f"{pictures[0].width}x{pictures[0].height}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-v", "error", "-f", "rawvideo"]
    command += ["-pix_fmt", "yuv420p", "-s", size, "-r", f"{fps:.6f}", "-i", "pipe:0", "-threads", "1", *arguments]
    raw = b"".join(plane.tobytes() for p in pictures for plane in (p.y, p.u, p.v))
    # SVT-AV1 would announce itself on the terminal, whatever FFmpeg is told.
    done = subprocess.run(
        [*command, "-f", stream, "pipe:1"], input=raw, capture_output=True, env={**os.environ, "SVT_LOG": "1"}
    )
    if done.returncode or not done.stdout:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise EngineError(f"FFmpeg does not encode {stream}", got=lines[0] if lines else f"exit {done.returncode}")
    return done.stdout


def _packets(stream: bytes, name: str) -> list[bytes]:
    with av.open(io.BytesIO(stream), "r", format=name) as container:
        found = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    return [data.removeprefix(_TEMPORAL_DELIMITER) for data in found]


def _decode(stream: bytes, name: str) -> list[Planes]:
    with av.open(io.BytesIO(stream), "r", format=name) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return [_eight_bit(frame) for frame in container.decode(video=0)]


def _eight_bit(frame: Any) -> Planes:
    """VVenC codes eight bits as ten; rounded back here, where FFmpeg's converter would dither."""
    if frame.format.name != "yuv420p10le":
        return planes_of(frame)
    y, u, v = (
        np.frombuffer(memoryview(plane), np.uint16).reshape(plane.height, -1)[:, : plane.width]
        for plane in frame.planes
    )
    return Planes(*(np.minimum((plane.astype(np.uint16) + 2) >> 2, 255).astype(np.uint8) for plane in (y, u, v)))
