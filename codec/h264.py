"""H.264 decoding, one access unit at a time: the camera does it for its own stream, the server for each camera's."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import av
import av.error
import numpy as np
from av.sidedata.sidedata import SideDataContainer, Type
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from scene_edge.codec.annexb import MAX_ACCESS_UNIT_BYTES, has_idr
from scene_edge.codec.errors import DecoderError, FormatError
from scene_edge.codec.media import planes_of
from scene_edge.codec.planes import MAX_SIDE, Planes

__all__ = ["Decoded", "H264Decoder", "has_idr"]

_MAX_PENDING = 64

KEYFRAME_FINER = 3.0
"""By how much a keyframe's QP lies below those of the pictures that follow it, as a rule (x264's ipratio of 1.4)."""

_CODING = np.dtype(
    [("blocks", "u4"), ("start", np.uintp), ("stride", np.uintp), ("type", "i4"), ("qp", "i4"), ("planes", "i4", 8)],
    align=True,
)
"""FFmpeg's AVVideoEncParams: how a picture was coded, before one AVVideoBlockParams for each macroblock."""

_BLOCK = np.dtype([("place", "i4", 4), ("delta_qp", "i4")])


class Decoded(NamedTuple):
    """A decoded picture; `qp` is the mean quantiser of its macroblocks, 0..51, None where FFmpeg does not tell it.

    A slice's own QP says less: where quantisation is adaptive, a busy picture's lies ten below what its blocks get.
    """

    frame_seq: int
    planes: Planes
    qp: float | None


MAX_NAL_UNITS = 1024
"""Of one access unit. FFmpeg takes 4 kB for each, whatever it holds; a picture has at most 600 slices (table A-1)."""

_START_CODE = b"\x00\x00\x01"
"""In front of each NAL unit, and nowhere inside one (clause 7.4.1)."""


class H264Decoder:
    """Access units in, pictures out; low delay, so a stream without B-frames gives each picture at once.

    Bit-exact by standard. More than `max_pixels` in a picture is an error. After an error the decoder starts afresh:
    give it a keyframe.
    """

    def __init__(self, *, threads: int = 1, max_pixels: int = MAX_SIDE * MAX_SIDE) -> None:
        self._threads, self._max_pixels = threads, max_pixels
        self._context = self._open()
        self._pending: OrderedDict[int, None] = OrderedDict()

    def decode(self, annexb: bytes, frame_seq: int) -> list[Decoded]:
        """The pictures that this access unit completes: none or one in a stream without B-frames.

        Raises DecoderError if FFmpeg refuses the bytes. Damage that it conceals gives a picture all the same.
        """
        if not 0 < len(annexb) <= MAX_ACCESS_UNIT_BYTES:
            raise DecoderError("access unit is empty or too large", got=f"{len(annexb)} bytes")
        if (units := annexb.count(_START_CODE)) > MAX_NAL_UNITS:
            raise DecoderError(
                "access unit is cut into too many pieces", got=units, allowed=f"{MAX_NAL_UNITS} NAL units"
            )
        packet: av.Packet[Any] = av.Packet(annexb)
        packet.pts = packet.dts = frame_seq
        self._pending[frame_seq] = None
        while len(self._pending) > _MAX_PENDING:
            self._pending.popitem(last=False)
        return self._run(packet, f"cannot decode frame {frame_seq}")

    def flush(self) -> list[Decoded]:
        """What the decoder still holds. It may be used again, with a keyframe."""
        pictures = self._run(None, "cannot finish decoding")
        self.reset()
        return pictures

    def reset(self) -> None:
        """Forget everything, as after a gap: the next access unit must be a keyframe."""
        self._context = self._open()
        self._pending.clear()

    def _run(self, packet: av.Packet[Any] | None, what: str) -> list[Decoded]:
        try:
            return [self._picture(frame) for frame in self._context.decode(packet)]
        except (av.error.FFmpegError, FormatError, ValueError, MemoryError) as error:
            self.reset()
            raise DecoderError(what, got=str(error), hint="Decoding begins again at the next keyframe.") from error

    def _picture(self, frame: VideoFrame) -> Decoded:
        if max(frame.width, frame.height) > MAX_SIDE or frame.width * frame.height > self._max_pixels:
            allowed = f"sides of {MAX_SIDE}, {self._max_pixels} in all"
            raise DecoderError("picture is too large", got=f"{frame.width}x{frame.height}", allowed=allowed)
        frame_seq = frame.pts if frame.pts is not None else next(iter(self._pending), 0)
        self._pending.pop(frame_seq, None)
        return Decoded(frame_seq, planes_of(frame), _mean_qp(frame))

    def _open(self) -> VideoCodecContext:
        context = av.CodecContext.create("h264", "r")
        if not isinstance(context, VideoCodecContext):
            raise DecoderError("this FFmpeg has no H.264 decoder")
        context.thread_count = self._threads
        # Frame threads would hold pictures back; slices are decoded side by side within one picture.
        context.thread_type = "SLICE"
        # FFmpeg refuses before it allocates. It counts whole macroblocks: a picture may be 15 samples larger each way.
        most = self._max_pixels + 32 * MAX_SIDE
        context.options = {"export_side_data": "venc_params", "max_pixels": str(most)}
        context.flags |= av.codec.context.Flags.low_delay
        return context


def _mean_qp(frame: VideoFrame) -> float | None:
    # Not frame.side_data: the frame would keep the container, which keeps the frame, and a hundred pictures would wait
    # for the collector of cycles. Its keys are typed as if they were names.
    found: Any = SideDataContainer(frame)  # type: ignore[call-arg]
    side = found.get(Type.VIDEO_ENC_PARAMS)
    if side is None:
        return None
    data = memoryview(side)
    (coding,) = np.frombuffer(data, _CODING, 1)
    count, stride = int(coding["blocks"]), int(coding["stride"])
    if not count or stride != _BLOCK.itemsize:
        return None
    blocks = np.frombuffer(data, _BLOCK, count, int(coding["start"]))
    return float(coding["qp"] + blocks["delta_qp"].mean())
