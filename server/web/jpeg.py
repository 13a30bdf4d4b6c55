"""4:2:0 planes to JPEG through FFmpeg's mjpeg encoder: no colour is converted, only the range is stretched."""

from __future__ import annotations

from fractions import Fraction

import av
import av.error
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange

from scene_edge.codec.errors import EncoderError
from scene_edge.codec.planes import Planes
from scene_edge.server.planar import i420


def encode_jpeg(planes: Planes, quality: int = 85) -> bytes:
    """A JPEG of the picture; quality 10..100 as libjpeg counts it. Raises EncoderError."""
    frame = VideoFrame.from_ndarray(i420(planes), format="yuv420p")
    frame = frame.reformat(format="yuvj420p", src_color_range=ColorRange.MPEG, dst_color_range=ColorRange.JPEG)
    context = av.CodecContext.create("mjpeg", "w")
    if not isinstance(context, VideoCodecContext):
        raise EncoderError("this FFmpeg has no JPEG encoder")
    context.width, context.height, context.pix_fmt = planes.width, planes.height, "yuvj420p"
    context.framerate = Fraction(1)
    scale = _quantiser(quality)
    context.qmin = context.qmax = scale
    context.options = {"qscale": str(scale)}
    try:
        packets = [*context.encode(frame), *context.encode(None)]
    except av.error.FFmpegError as error:
        raise EncoderError("cannot encode a JPEG", got=str(error)) from error
    return b"".join(bytes(packet) for packet in packets)


def _quantiser(quality: int) -> int:
    """libjpeg's quality -> FFmpeg's quantiser 2 (best) .. 31."""
    return min(31, max(2, round(2 + (95 - quality) * 0.22)))
