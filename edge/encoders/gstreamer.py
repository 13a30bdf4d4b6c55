"""NVIDIA Jetson's H.264 hardware through GStreamer: appsrc, nvv4l2h264enc, appsink. Needs the system's `gi`."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from scene_edge.codec.errors import EncoderError
from scene_edge.codec.planes import Planes
from scene_edge.edge.encoders.base import CodedPicture, EncoderSettings
from scene_edge.edge.encoders.libav import coded_picture

PULL_TIMEOUT_NS = 20_000_000
FLUSH_TIMEOUT_NS = 2_000_000_000
DEFAULT_KBPS = 1500


class GStreamerEncoder:
    """Buffers carry the picture number as their time stamp, which the element hands through to its output."""

    name = "nvv4l2h264enc"

    def __init__(self, settings: EncoderSettings) -> None:
        try:
            import gi

            gi.require_version("Gst", "1.0")
            from gi.repository import GLib, Gst
        except (ImportError, ValueError) as error:
            raise EncoderError(
                "GStreamer's Python binding is not installed",
                hint="sudo apt install python3-gi gir1.2-gstreamer-1.0, and make the venv with --system-site-packages.",
            ) from error
        Gst.init(None)
        self._gst: Any = Gst
        self._settings = settings
        self._period_ns = round(1e9 / settings.fps)
        try:
            self._pipeline: Any = Gst.parse_launch(_description(settings))
        except GLib.Error as error:
            raise EncoderError("nvv4l2h264enc is not on this board", got=error.message) from error
        self._source: Any = self._pipeline.get_by_name("source")
        self._sink: Any = self._pipeline.get_by_name("sink")
        if self._pipeline.set_state(Gst.State.PLAYING) == Gst.StateChangeReturn.FAILURE:
            self.close()
            raise EncoderError("nvv4l2h264enc does not start", hint="Jetson Orin Nano has no H.264 encoder.")

    def encode(self, planes: Planes, pts: int) -> list[CodedPicture]:
        if (planes.width, planes.height) != (self._settings.width, self._settings.height):
            raise EncoderError("picture of another size than the encoder's", got=f"{planes.width}x{planes.height}")
        picture = np.concatenate([planes.y.ravel(), planes.u.ravel(), planes.v.ravel()])
        buffer = self._gst.Buffer.new_wrapped(picture.tobytes())
        buffer.pts = pts * self._period_ns
        buffer.duration = self._period_ns
        if self._source.emit("push-buffer", buffer) != self._gst.FlowReturn.OK:
            raise EncoderError("nvv4l2h264enc refused a picture", hint="See: scene-edge doctor")
        return self._pull(PULL_TIMEOUT_NS)

    def flush(self) -> list[CodedPicture]:
        self._source.emit("end-of-stream")
        return self._pull(FLUSH_TIMEOUT_NS)

    def close(self) -> None:
        self._pipeline.set_state(self._gst.State.NULL)

    def _pull(self, first_timeout_ns: int) -> list[CodedPicture]:
        """Wait a little for the first picture, then take what else is there."""
        out = []
        timeout_ns = first_timeout_ns
        while (sample := self._sink.emit("try-pull-sample", timeout_ns)) is not None:
            buffer = sample.get_buffer()
            data = buffer.extract_dup(0, buffer.get_size())
            out.append(coded_picture(bytes(data), round(buffer.pts / self._period_ns)))
            timeout_ns = 0
        return out


def _description(settings: EncoderSettings) -> str:
    rate = Fraction(settings.fps).limit_denominator(1001)
    bits_per_s = (settings.bitrate_kbps or DEFAULT_KBPS) * 1000
    caps = (
        f"video/x-raw,format=I420,width={settings.width},height={settings.height},"
        f"framerate={rate.numerator}/{rate.denominator}"
    )
    return (
        f"appsrc name=source is-live=true format=time block=true max-buffers=4 caps={caps} "
        "! nvvidconv ! video/x-raw(memory:NVMM),format=NV12 "
        f"! nvv4l2h264enc bitrate={bits_per_s} iframeinterval={settings.gop} idrinterval={settings.gop} "
        "insert-sps-pps=1 num-B-Frames=0 maxperf-enable=1 "
        "! h264parse config-interval=-1 ! video/x-h264,stream-format=byte-stream,alignment=au "
        "! appsink name=sink sync=false max-buffers=64"
    )
