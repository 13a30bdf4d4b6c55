"""H.264 encoders inside FFmpeg, through PyAV: libx264, Quick Sync, and the V4L2 codec of Raspberry Pi up to 4."""

from __future__ import annotations

import os
from fractions import Fraction
from typing import Any

import av
import av.codec
import av.error
import av.video.codeccontext
import av.video.frame

from scene_edge.codec.errors import EncoderError
from scene_edge.codec.h264 import has_idr
from scene_edge.codec.media import frame_of
from scene_edge.codec.planes import Planes
from scene_edge.codec.sei import strip_sei
from scene_edge.edge.encoders.base import X264_INFO_UUID, CodedPicture, EncoderSettings

MAX_X264_THREADS = 4

_PIXEL_FORMATS = {"libx264": "yuv420p", "h264_qsv": "nv12", "h264_v4l2m2m": "yuv420p"}


class LibavEncoder:
    """One of `libx264`, `h264_qsv`, `h264_v4l2m2m`. Time stamps are picture numbers at the nominal rate."""

    def __init__(self, name: str, settings: EncoderSettings) -> None:
        if name not in _PIXEL_FORMATS:
            raise EncoderError("no such encoder in FFmpeg", got=name, allowed=", ".join(_PIXEL_FORMATS))
        self.name = name
        self._settings = settings
        self._format = _PIXEL_FORMATS[name]
        rate = Fraction(settings.fps).limit_denominator(1001)
        try:
            context: Any = av.codec.CodecContext.create(name, "w")
            context.width, context.height = settings.width, settings.height
            context.pix_fmt = self._format
            context.framerate, context.time_base = rate, 1 / rate
            context.gop_size = settings.gop
            context.max_b_frames = 0
            context.options = _options(name, settings)
            if settings.bitrate_kbps is not None:
                context.bit_rate = settings.bitrate_kbps * 1000
            context.open()
        except (av.error.FFmpegError, av.codec.codec.UnknownCodecError, ValueError, OSError) as error:
            raise EncoderError(f"{name} does not open", got=str(error), hint="See: scene-edge doctor") from error
        self._context: Any = context

    def encode(self, planes: Planes, pts: int) -> list[CodedPicture]:
        if (planes.width, planes.height) != (self._settings.width, self._settings.height):
            raise EncoderError(
                "picture of another size than the encoder's",
                got=f"{planes.width}x{planes.height}",
                allowed=f"{self._settings.width}x{self._settings.height}",
            )
        frame = frame_of(planes)
        if self._format != "yuv420p":
            frame = frame.reformat(format=self._format)
        frame.pts = pts
        return self._run(frame)

    def flush(self) -> list[CodedPicture]:
        return self._run(None)

    def close(self) -> None:
        # PyAV frees the context with its last reference.
        self._context = None

    def _run(self, frame: av.video.frame.VideoFrame | None) -> list[CodedPicture]:
        if self._context is None:
            raise EncoderError(f"{self.name} is used after it was closed")
        try:
            packets = self._context.encode(frame)
        except av.error.EOFError:
            return []
        except (av.error.FFmpegError, OSError) as error:
            raise EncoderError(f"{self.name} failed", got=str(error), hint="See: scene-edge doctor") from error
        return [coded_picture(bytes(packet), packet.pts) for packet in packets if packet.size]


def coded_picture(data: bytes, pts: int) -> CodedPicture:
    data = strip_sei(data, X264_INFO_UUID)
    return CodedPicture(data, pts, has_idr(data))


def _options(name: str, settings: EncoderSettings) -> dict[str, str]:
    rate = settings.bitrate_kbps
    if name == "libx264":
        threads = settings.threads or min(MAX_X264_THREADS, os.cpu_count() or 1)
        # Scene-cut detection off: a keyframe at any other place would break the fixed GOP that packets follow.
        parameters = (
            f"keyint={settings.gop}:min-keyint={settings.gop}:scenecut=0:bframes=0:repeat-headers=1:threads={threads}"
        )
        if settings.tune == "machine":
            parameters += ":aq-mode=0"  # it moves bits from busy blocks, which objects are, to plain ones
        if rate is not None:
            parameters += f":bitrate={rate}:vbv-maxrate={rate}:vbv-bufsize={rate}"
        options = {"preset": settings.preset, "tune": "zerolatency", "x264-params": parameters}
        return options if rate is not None else {**options, "crf": str(settings.crf)}
    if name == "h264_qsv":
        options = {"preset": "veryfast", "async_depth": "1", "low_power": "0", "idr_interval": "0"}
        return options if rate is not None else {**options, "global_quality": str(settings.crf)}
    return {"num_capture_buffers": "8"}
