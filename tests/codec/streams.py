"""Small H.264 streams made in the test, as Annex B access units or as a Matroska file."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np

from scene_edge.codec.planes import Planes


def picture(index: int, width: int = 96, height: int = 64) -> Planes:
    """A moving gradient with a little texture."""
    y, x = np.mgrid[0:height, 0:width]
    luma = (x * 2 + y + index * 5) % 200 + 16 + ((x // 4 + y // 4 + index) % 2) * 8
    chroma = np.full((height // 2, width // 2), 100 + index % 50, np.uint8)
    return Planes(luma.astype(np.uint8), chroma, chroma + np.uint8(30))


def frame_of(planes: Planes) -> av.VideoFrame:
    packed = np.concatenate([planes.y.ravel(), planes.u.ravel(), planes.v.ravel()])
    return av.VideoFrame.from_ndarray(packed.reshape(planes.height * 3 // 2, planes.width), format="yuv420p")


def access_units(
    count: int = 12, width: int = 96, height: int = 64, *, gop: int = 6, options: dict[str, str] | None = None
) -> list[bytes]:
    """x264, zerolatency: one access unit for each picture, headers repeated at each keyframe."""
    context = av.CodecContext.create("libx264", "w")
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.time_base, context.framerate, context.gop_size = Fraction(1, 30), Fraction(30), gop
    context.options = {"preset": "ultrafast", "tune": "zerolatency", "threads": "1", **(options or {})}
    units = []
    for index in range(count):
        frame = frame_of(picture(index, width, height))
        frame.pts = index
        units += [bytes(packet) for packet in context.encode(frame)]
    return units + [bytes(packet) for packet in context.encode(None)]


def matroska(count: int = 8) -> bytes:
    """The same kind of stream in Matroska, where it is length-prefixed (AVCC)."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast", "tune": "zerolatency"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 96, 64, "yuv420p", 4
        for index in range(count):
            frame = frame_of(picture(index))
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()
